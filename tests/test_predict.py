"""IntentClassifier: what goes in, what comes out, how much memory it may take."""

import json

import pytest

from glmlab import chat, evaluation, models, predict, scoring
from glmlab.tasks import intent
from glmlab.tiny.tokenizer import train_tokenizer

TEXTS = ["您好请讲[SEP]我想查一下话费", "帮我把套餐取消吧我不用了", "怎么多扣了二十块钱", "流量包帮我开通一下", "请讲[SEP]我投诉你们"]


@pytest.fixture(scope="module")
def intent_tokenizer():
    return train_tokenizer([intent.SYSTEM_PROMPT, intent.TEMPLATE, *intent.ANSWERS, *TEXTS] * 3, 1400)


@pytest.fixture
def classifier(intent_tokenizer, make_model, monkeypatch):
    """A classifier on a random tiny GLM-4; `classifier.loaded` holds what was asked of models."""
    loaded = []
    model = make_model(vocab_size=1400, pad_token_id=intent_tokenizer.pad_token_id, eos_token_id=intent_tokenizer.eos_token_id)
    monkeypatch.setattr(models, "load_base", lambda *args: loaded.append(args) or (model, intent_tokenizer))
    found = predict.IntentClassifier("glm4-tiny", quantization="none")
    found.loaded = loaded
    return found


def test_one_call_and_many(classifier, intent_tokenizer):
    many = classifier.classify(TEXTS)
    prompts = [chat.prompt_ids(intent_tokenizer, intent.messages(text)) for text in TEXTS]
    expected = scoring.score(classifier.model, intent_tokenizer, prompts, intent.ANSWERS)
    assert [found.id for found in many] == expected.argmax(1).tolist() and len({found.id for found in many}) > 1
    for found, row in zip(many, expected):
        assert found.name == intent.NAMES[found.id] and found.probability == pytest.approx(row.max(), abs=1e-6)
        assert found.top3 == [(label, intent.NAMES[label], pytest.approx(row[label], abs=1e-6)) for label in (-row).argsort()[:3]]
        assert found.top3[0] == (found.id, found.name, found.probability) and found.turns_dropped == 0
        assert 3 / 34 < sum(probability for _, _, probability in found.top3) <= 1
    one = classifier.classify(TEXTS[2])
    assert isinstance(one, predict.Intent) and one.id == many[2].id and one.probability == pytest.approx(many[2].probability, abs=1e-6)
    assert classifier.classify([]) == [] and classifier.classify(iter(TEXTS[:1]))[0].id == many[0].id
    assert classifier.loaded == [("glm4-tiny", "none", None, None)]


def test_thousands_of_calls_are_taken_in_chunks(classifier, monkeypatch):
    whole = classifier.classify(TEXTS)
    sizes, real = [], evaluation.encode_prompts
    monkeypatch.setattr(evaluation, "encode_prompts", lambda tokenizer, texts, *args, **more: sizes.append((len(texts), more["first"]))
                        or real(tokenizer, texts, *args, **more))
    monkeypatch.setattr(predict, "CHUNK", 2)
    assert [found.id for found in classifier.classify(TEXTS)] == [found.id for found in whole]
    assert sizes == [(2, 0), (2, 2), (1, 4)]


def test_the_bar_counts_calls(classifier, monkeypatch, capsys):
    monkeypatch.setattr(predict, "CHUNK", 2)
    classifier.classify(TEXTS)
    assert capsys.readouterr().err == ""
    classifier.classify(TEXTS, batch_size=1, progress=True)
    assert "5/5" in capsys.readouterr().err
    classifier.classify(["您好"] * 200)
    assert "200/200" in capsys.readouterr().err


@pytest.mark.parametrize("bad", ["", "  \n", "[SEP] [SEP]", None, 7])
def test_an_empty_text_is_named(classifier, bad):
    with pytest.raises(ValueError, match="text 1 is empty"):
        classifier.classify(["您好", bad])
    if isinstance(bad, str):
        with pytest.raises(ValueError, match="text 0 is empty"):
            classifier.classify(bad)


def test_a_call_too_long_loses_turns_and_a_limit_too_small_is_named(classifier, intent_tokenizer):
    bare = len(chat.prompt_ids(intent_tokenizer, intent.messages("")))
    classifier.max_length = bare + 32 + 60
    long = classifier.classify("[SEP]".join(f"嗯我再想想第{number}件事" for number in range(200)))
    assert 150 < long.turns_dropped < 200
    classifier.max_length = 64
    with pytest.raises(ValueError, match="text 0: max_length=64 leaves no room"):
        classifier.classify(TEXTS)


def test_the_form_is_the_one_of_the_training(intent_tokenizer, make_model, monkeypatch, tmp_path):
    model = make_model(vocab_size=1400, pad_token_id=intent_tokenizer.pad_token_id, eos_token_id=intent_tokenizer.eos_token_id,
                       max_position_embeddings=800)
    monkeypatch.setattr(models, "load_finetuned", lambda *args: (model, intent_tokenizer))
    assert predict.IntentClassifier("glm4-tiny", tmp_path).form == "system"  # an adapter of another tool says nothing
    (tmp_path / models.CHECKPOINT_FILE).write_text(json.dumps({"step": 5, "form": "template"}), encoding="utf-8")
    found = predict.IntentClassifier("glm4-tiny", tmp_path)
    assert found.form == "template" and found.max_length == 800
    assert predict.IntentClassifier("glm4-tiny", tmp_path, form="system").form == "system"
    seen = []
    monkeypatch.setattr(scoring, "score", lambda model, tokenizer, ids, *rest: seen.extend(ids) or [[1 / 34] * 34] * len(ids))
    found.max_length = 4000
    found.classify(TEXTS[:1])
    assert seen == [chat.prompt_ids(intent_tokenizer, intent.messages(TEXTS[0], form="template"))]
