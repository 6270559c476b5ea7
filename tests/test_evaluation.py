"""Calls to prompts within the limit, and both ways to a prediction."""

import numpy as np
import pytest
import torch

from glmlab import chat, evaluation, generation, scoring
from glmlab.tasks import intent
from glmlab.tiny.tokenizer import train_tokenizer

CALLS = [intent.Call(row, text, label) for row, text, label in [
    (0, "您好请讲[SEP]我想查一下话费[SEP]好的请稍等[SEP]谢谢再见", 6), (2, "您好[SEP]帮我把套餐取消吧我不用了[SEP]好的", 1),
    (3, "您好请讲[SEP]怎么多扣了二十块钱[SEP]我看一下[SEP]你们这是乱收费", 12), (7, "请讲[SEP]流量包帮我开通一下", 7)]]
LONG = intent.Call(9, "您好请讲[SEP]" + "[SEP]".join(f"嗯我再想想第{number}件事" for number in range(300)) + "[SEP]那就取消吧再见", 1)


@pytest.fixture(scope="module")
def intent_tokenizer():
    """A tokenizer that knows the intent prompt, so that its 34 names take few tokens."""
    return train_tokenizer([intent.SYSTEM_PROMPT, intent.TEMPLATE, *intent.ANSWERS, LONG.text, *(call.text for call in CALLS)] * 3, 1400)


@pytest.fixture
def model(intent_tokenizer, make_model):
    return make_model(vocab_size=1400, pad_token_id=intent_tokenizer.pad_token_id, eos_token_id=intent_tokenizer.eos_token_id)


def _head(tokenizer):
    """The ids of the prompt up to the call."""
    return chat.prompt_ids(tokenizer, [{"role": "system", "content": intent.SYSTEM_PROMPT}])[:-1]


def _limit(tokenizer, spare):
    return len(chat.prompt_ids(tokenizer, intent.messages(""))) + spare


# --- encoding ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("form", ["system", "template"])
def test_a_call_that_fits_is_the_prompt_of_its_messages(intent_tokenizer, form):
    prompts = evaluation.encode_prompts(intent_tokenizer, [call.text for call in CALLS], 4000, form)
    expected = [chat.prompt_ids(intent_tokenizer, intent.messages(call.text, form=form)) for call in CALLS]
    assert [prompt.ids for prompt in prompts] == expected
    assert {prompt.cut for prompt in prompts} == {0}
    samples, shortened = evaluation.encode_samples(intent_tokenizer, CALLS, 4000, form)
    expected = [chat.encode_sample(intent_tokenizer, intent.messages(call.text, call.label, form)) for call in CALLS]
    assert samples == expected and shortened == 0
    for sample, prompt in zip(samples, prompts):
        assert sample.ids[: sample.labels_from] == prompt.ids


@pytest.mark.parametrize("form", ["system", "template"])
def test_a_long_call_loses_turns_from_its_middle_only(intent_tokenizer, form):
    limit = _limit(intent_tokenizer, 120)
    short, long = evaluation.encode_prompts(intent_tokenizer, [CALLS[3].text, LONG.text], limit, form, reserve=40)
    assert short.cut == 0 and 200 < long.cut < 302
    assert limit - 40 - 30 < len(long.ids) <= limit - 40
    text = intent_tokenizer.decode(long.ids)
    assert "您好请讲" in text and "那就取消吧再见" in text and "第150件事" not in text
    if form == "system":
        assert long.ids[: len(_head(intent_tokenizer))] == _head(intent_tokenizer)
    (sample, *_), shortened = evaluation.encode_samples(intent_tokenizer, [LONG, *CALLS], limit, form)
    assert shortened == 1 and len(sample.ids) <= limit
    assert sample.ids[sample.labels_from:] == chat.answer_ids(intent_tokenizer, intent.answer(1))  # the stop id included


def test_the_system_prompt_is_encoded_once(intent_tokenizer, monkeypatch):
    seen, real, limit = [], intent_tokenizer.encode, _limit(intent_tokenizer, 120)
    monkeypatch.setattr(intent_tokenizer, "encode", lambda text, **options: seen.append(text) or real(text, **options))
    evaluation.encode_prompts(intent_tokenizer, [call.text for call in CALLS] + [LONG.text], limit)
    assert sum(intent.SYSTEM_PROMPT in text for text in seen) == 1
    assert sum(CALLS[0].text.replace("[SEP]", "") in text.replace("[SEP]", "") for text in seen) == 1


def test_what_cannot_be_encoded_is_named(intent_tokenizer):
    with pytest.raises(ValueError, match="text 12: max_length=100 leaves no room"):
        evaluation.encode_prompts(intent_tokenizer, [LONG.text], 100, first=12)
    with pytest.raises(ValueError, match="row 9: max_length=100 leaves no room.*raise max_length"):
        evaluation.encode_samples(intent_tokenizer, [LONG], 100)
    with pytest.raises(ValueError, match=r"1 of 2 calls have no label \(rows 5\)"):
        evaluation.encode_samples(intent_tokenizer, [CALLS[0], intent.Call(5, "您好", None)], 4000)


def test_nothing_is_computed_for_calls_that_cannot_be_scored(intent_tokenizer):
    for rows in (evaluation.score_rows, evaluation.generate_rows):
        with pytest.raises(ValueError, match="have no label"):
            rows(None, intent_tokenizer, [intent.Call(5, "您好", None)])
        with pytest.raises(ValueError, match="no calls"):
            rows(None, intent_tokenizer, [])


def test_max_length_never_exceeds_the_positions_of_the_model(make_lora, make_model):
    assert evaluation.room(make_model(max_position_embeddings=900), 1024) == 900
    assert evaluation.room(make_lora(), 1024) == 1024


# --- mode score --------------------------------------------------------------------------------------------------

def test_score_rows_chooses_the_most_probable_label(intent_tokenizer, model):
    done = []
    found = evaluation.score_rows(model, intent_tokenizer, CALLS, 2048, batch_size=2, progress=done.append)
    ids = [chat.prompt_ids(intent_tokenizer, intent.messages(call.text)) for call in CALLS]
    expected = scoring.score(model, intent_tokenizer, ids, intent.ANSWERS, prefix_len=0, batch_tokens=1)
    assert np.abs(found.probabilities - expected).max() < 1e-5
    assert found.predicted == expected.argmax(1).tolist() and all(type(label) is int for label in found.predicted)
    assert found.truth == [6, 1, 12, 7] and found.turns_dropped == [0] * 4 and found.errors == {} and found.responses is None
    assert found.seconds > 0 and done[-1] == 4
    assert found.confidence() == pytest.approx(expected.max(1), abs=1e-5)
    assert [row[0] for row in found.ranked()] == found.predicted and all(len(set(row)) == 3 for row in found.ranked())


def test_batch_size_is_calls_a_pass(intent_tokenizer, model, monkeypatch):
    asked = []
    monkeypatch.setattr(scoring, "score", lambda *args: asked.append(args) or np.full((len(args[2]), 34), 1 / 34))
    prompts = evaluation.encode_prompts(intent_tokenizer, [call.text for call in CALLS] * 5, 4000)
    prefix = chat.shared_prefix([prompt.ids for prompt in prompts])
    fed = len(scoring.label_trie([chat.answer_ids(intent_tokenizer, answer) for answer in intent.ANSWERS]).fed)
    one = np.mean([len(prompt.ids) - prefix + fed for prompt in prompts])
    for batch_size in (1, 3, 10_000):
        evaluation.label_probabilities(model, intent_tokenizer, prompts, batch_size)
    assert [args[4] for args in asked] == [prefix] * 3
    assert [args[5] for args in asked] == [int(one), int(3 * one), evaluation.CPU_PASS_TOKENS]
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    evaluation.label_probabilities(model, intent_tokenizer, prompts, 10_000)
    assert asked[-1][5] == int(10_000 * one)


# --- mode generate -----------------------------------------------------------------------------------------------

def test_generate_rows_parses_what_was_written(intent_tokenizer, model, monkeypatch):
    texts = ["意图：6：咨询（含查询）账户信息", "我不知道", "意图：1：办理取消", None]
    asked = {}

    def fake(model, tokenizer, prompts, max_new_tokens, batch_size, progress, shorter):
        asked.update(prompts=prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)
        shorter(3), shorter(3)
        return texts
    monkeypatch.setattr(generation, "generate", fake)
    found = evaluation.generate_rows(model, intent_tokenizer, CALLS, 2048, 20, batch_size=3)
    assert found.predicted == [6, None, 1, None] and found.responses == texts and found.probabilities is None
    assert found.errors[1] == intent.NO_LABEL and "out of memory" in found.errors[3] and set(found.errors) == {1, 3}
    assert asked == {"prompts": [chat.prompt_ids(intent_tokenizer, intent.messages(call.text)) for call in CALLS],
                     "max_new_tokens": 20, "batch_size": 3}
    assert found.confidence() == [None] * 4 and found.ranked() == [[]] * 4


def test_generate_rows_equals_plain_generation(intent_tokenizer, model):
    done = []
    found = evaluation.generate_rows(model, intent_tokenizer, CALLS, 2048, 6, batch_size=2, progress=done.append)
    ids = [chat.prompt_ids(intent_tokenizer, intent.messages(call.text)) for call in CALLS]
    assert found.responses == generation.generate(model, intent_tokenizer, ids, 6)
    assert found.predicted == [intent.parse(text) for text in found.responses] and done == [2, 4]


def test_a_call_that_does_not_fit_the_memory_is_shortened(intent_tokenizer, model):
    bare, fits, tried = _limit(intent_tokenizer, 0), [20], []

    def check(module, args):
        tried.append(args[0].shape[1])
        if tried[-1] > bare + fits[0]:
            raise MemoryError
    model.get_input_embeddings().register_forward_pre_hook(check)
    found = evaluation.generate_rows(model, intent_tokenizer, [CALLS[0], LONG], bare + 600, 4)
    assert found.turns_dropped[0] == 0 and found.turns_dropped[1] > 200 and None not in found.responses
    assert max(tried) > bare + 20 >= tried[-1]
    fits[0] = -bare
    found = evaluation.generate_rows(model, intent_tokenizer, [LONG], bare + 600, 4)
    assert found.predicted == [None] and found.responses == [None] and "out of memory even with the call cut to" in found.errors[0]


def test_progress_in_a_report_is_a_few_lines():
    lines = []
    tell = evaluation.progress_lines(1000, log=lines.append)
    for done in range(1, 1001):
        tell(done)
    assert len(lines) == 10 and lines[0].startswith("100 of 1,000 calls, ") and lines[-1].startswith("1,000 of 1,000")
    assert "a second" in lines[0] and lines[-1].endswith(", 0 s left")
