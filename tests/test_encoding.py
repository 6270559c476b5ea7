"""Rows -> prompts and samples for any task, and samples on disk in place of a list."""

import pytest

from glmlab import chat, encoding
from glmlab.chat import Sample
from glmlab.tasks import intent, triplets

ROWS = [triplets.Sentence(number, f"陈{name}创立了恒远科技。", (triplets.Triple(f"陈{name}", "创立", "恒远科技"),)) for number, name in enumerate("志建文宇")]


def test_samples_are_prompt_answer_and_stop(tokenizer):
    samples, shortened = encoding.samples(tokenizer, triplets.TASK, ROWS, 400, "instruction")
    prompts = encoding.prompts(tokenizer, triplets.TASK, ROWS, 400, "instruction", 40)
    assert shortened == 0 and len(samples) == len(prompts) == 4
    for row, sample, prompt in zip(ROWS, samples, prompts):
        assert sample.ids == prompt.ids + chat.answer_ids(tokenizer, triplets.answer(row.triples)) and sample.labels_from == len(prompt.ids)
        assert prompt.text == row.text and prompt.cut == 0


def test_a_row_that_does_not_fit_is_named(tokenizer):
    with pytest.raises(ValueError, match="row 0: max_length=64 leaves no room"):
        encoding.samples(tokenizer, triplets.TASK, ROWS, 64, "instruction")


def test_stored_samples_are_the_same_one_by_one(tokenizer, tmp_path):
    wanted, _ = encoding.samples(tokenizer, triplets.TASK, ROWS, 400, "instruction")
    found = encoding.stored_samples(tmp_path / "s", tokenizer, triplets.TASK, (row for row in ROWS), 400, "instruction")
    assert list(found) == wanted == list(encoding.StoredSamples(tmp_path / "s")) and found[-1] == wanted[-1] and len(found) == 4
    assert chat.shared_prefix(found) == chat.shared_prefix(wanted) > 10
    with pytest.raises(IndexError):
        found[4]


def test_an_interrupted_store_is_refused(tmp_path):
    def some():
        yield Sample([1, 2, 3], 2)
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        encoding.store(tmp_path, some())
    with pytest.raises(FileNotFoundError, match="no finished samples"):
        encoding.StoredSamples(tmp_path)
    with pytest.raises(ValueError, match="several answers"):
        encoding.store(tmp_path, [Sample([1, 2, 3, 4], 1, ((2, 3),))])
    with pytest.raises(ValueError, match="no samples"):
        encoding.store(tmp_path, [])


def test_the_task_of_project_1_is_encoded_alike(tokenizer):
    call = intent.Call(7, "您好[SEP]查话费", 6)
    (sample,), _ = encoding.samples(tokenizer, intent.TASK, [call], 4000, "system")
    assert sample == chat.encode_sample(tokenizer, intent.messages(call.text, 6))
