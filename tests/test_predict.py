"""IntentClassifier and TripletExtractor: what goes in, what comes out, how much memory it may take; extraction from the command line."""

import json

import pytest

from glmlab import __main__ as command_line
from glmlab import chat, comparison, evaluation, generation, models, predict, scoring
from glmlab.tasks import intent, sentences, triplets
from glmlab.tasks.triplets import Relation, Triple
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


# --- triples -----------------------------------------------------------------------------------------------------

SENTENCES = ["李明（工号7）在北京上班。", "公司总部在深圳，老板是王五。", "赵六毕业于清水大学，现任副校长（主管教学）。"]


@pytest.fixture
def load(tokenizer, make_model, monkeypatch):
    """`load(**options)`: an extractor on a random tiny GLM-4; `load.asked` holds what was asked of models."""
    model, load_asked = make_model(), []
    monkeypatch.setattr(models, "load_base", lambda *args: load_asked.append(args) or (model, tokenizer))
    monkeypatch.setattr(models, "load_finetuned", lambda *args: load_asked.append(args) or (model, tokenizer))

    def make(adapter=None, **options):
        return predict.TripletExtractor("chatglm-tiny", adapter, "none", max_new_tokens=40, **options)

    make.asked = load_asked
    return make


def writes(monkeypatch, *texts):
    """Let the model write these answers; returns what it was asked."""
    asked = []

    def generate_facts(model, tokenizer, prompts, max_new_tokens, batch_size, progress, shorter=None, allowed=None):
        asked.append((list(prompts), allowed))
        progress(len(prompts))
        return [generation.Answer(texts[(place + sum(len(p) for p, _ in asked[:-1])) % len(texts)], True, 3, 0.1, 0.2) for place in range(len(prompts))]

    monkeypatch.setattr(generation, "generate_facts", generate_facts)
    return asked


def test_triples_are_spelt_as_the_text_has_them(load, monkeypatch, tokenizer):
    asked = writes(monkeypatch, "(李明(工号7), 工作于, 北京)", "无", "我不知道")
    extractor = load()
    found = extractor.extract_batch(SENTENCES)
    assert [one.triples for one in found] == [[Triple("李明（工号7）", "工作于", "北京")], [], []]
    assert [one.unparsable for one in found] == [False, False, True] and found[2].answer == "我不知道" and {one.cut for one in found} == {0}
    assert asked == [([chat.prompt_ids(tokenizer, triplets.messages(text)) for text in SENTENCES], None)]
    assert extractor.extract(SENTENCES[0]).triples == found[0].triples and extractor.extract_batch([]) == []
    assert load.asked == [("chatglm-tiny", "none", None, None)]


def test_the_form_and_the_relations_are_those_of_the_training(load, monkeypatch, tokenizer, tmp_path):
    asked = writes(monkeypatch, "(李明, 朋友, 王五)")
    (tmp_path / models.CHECKPOINT_FILE).write_text(json.dumps({"step": 5, "form": "relations"}), encoding="utf-8")
    relations = {"朋友": Relation("两人相识", "人", "人")}
    extractor = load(tmp_path, relations=relations)
    assert extractor.extract(SENTENCES[0]).triples == [Triple("李明", "朋友", "王五")]
    assert asked[0][0] == [chat.prompt_ids(tokenizer, triplets.messages(SENTENCES[0], None, "relations", relations))]
    assert load.asked == [("chatglm-tiny", tmp_path, "none", None, None)] and load().form == "instruction"


def test_constrained_extraction_finds_only_what_stands_in_the_text(load):
    for text, found in zip(SENTENCES, load(constrained=True).extract_batch(SENTENCES, batch_size=2)):
        assert not found.unparsable and all(triple.head in text and triple.tail in text for triple in found.triples)
    relations = {"朋友": Relation("", "人", "人")}
    found = load(constrained=True, relations=relations).extract_batch(SENTENCES)
    assert {triple.relation for one in found for triple in one.triples} <= {"朋友"} and any(one.triples for one in found)


def test_thousands_of_texts_are_taken_in_chunks(load, monkeypatch, capsys):
    asked = writes(monkeypatch, "(李明, 工作于, 北京)", "无")
    monkeypatch.setattr(predict, "CHUNK", 2)
    found = load().extract_batch(["李明在北京。", "王五。", "李明在北京。"], progress=True)
    assert [len(prompts) for prompts, _ in asked] == [2, 1] and [len(one.triples) for one in found] == [1, 0, 1]
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize("bad", ["", "  \n", None, 7])
def test_an_empty_sentence_is_named(load, bad):
    with pytest.raises(ValueError, match="text 1 is empty"):
        load().extract_batch(["您好", bad])


def test_texts_of_a_file(tmp_path):
    path, sentence = tmp_path / "texts", triplets.Sentence
    path.write_text("一句。\n\n  两句。\n", encoding="utf-8")
    assert predict.read_texts(path) == ([sentence(0, "一句。", None), sentence(2, "两句。", None)], [])
    path.write_text('{"input": "一句。"}\n{"input": 7}\n{"text": "两句。", "spo_list": []}\n', encoding="utf-8")
    found, problems = predict.read_texts(path)
    assert found == [sentence(0, "一句。", None), sentence(2, "两句。", ())] and [problem.row for problem in problems] == [1]
    path.write_text('[\n  {"input": "一句。"}\n]', encoding="utf-8")
    assert predict.read_texts(path) == ([sentence(0, "一句。", None)], [])
    with pytest.raises(FileNotFoundError, match="one text a line"):
        predict.read_texts(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["[新华社] 张三创立了云帆。\n李四在北京。", "{注} 一句。", "[1]\n一句。", "[1] 一句。"])
def test_a_plain_text_may_begin_with_a_bracket(tmp_path, text):
    (tmp_path / "texts.txt").write_text(text, encoding="utf-8")
    assert [row.text for row in predict.read_texts(tmp_path / "texts.txt")[0]] == text.splitlines()
    (tmp_path / "texts.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError):  # a file that calls itself JSON must be
        predict.read_texts(tmp_path / "texts.jsonl")


def test_extract_on_the_command_line(load, monkeypatch, capsys, tmp_path):
    wanted = comparison.System("mine 5", "mine", 5, tmp_path, "chatglm-tiny", "none", "instruction", ("a note",))
    monkeypatch.setattr(comparison, "system", lambda *asked: asked == ("mine", 5, "") and wanted)
    asked = writes(monkeypatch, "(李明, 工作于, 北京)", "我不知道")
    (tmp_path / "texts.jsonl").write_text('{"input": "李明在北京。"}\n{"input": ""}\n{"input": "王五。"}\n', encoding="utf-8")
    assert command_line.main(["extract", str(tmp_path / "texts.jsonl"), "--run", "mine", "--checkpoint", "5"]) == 0
    said = capsys.readouterr()
    assert [json.loads(line) for line in said.out.splitlines()] == [
        {"row": 0, "text": "李明在北京。", "triples": [["李明", "工作于", "北京"]], "cut": 0},
        {"row": 2, "text": "王五。", "triples": [], "cut": 0, "unparsable": "我不知道"}]
    assert "NOTE: a note" in said.err and "row 1: empty text" in said.err
    assert command_line.main(["extract", "--text", "李明在北京。", "--run", "mine", "--checkpoint", "5", "--constrained"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == "李明在北京。" and asked[-1][1] is not None
    with pytest.raises(SystemExit):
        command_line.main(["extract", "--run", "mine"])


def test_extract_prints_what_it_has_before_it_goes_on_and_says_what_it_cut(load, monkeypatch, capsys, tmp_path):
    wanted = comparison.System("mine 5", "mine", 5, tmp_path, "chatglm-tiny", "none", "instruction")
    monkeypatch.setattr(comparison, "system", lambda *asked: wanted)
    printed = []
    writes(monkeypatch, "无")
    real = generation.generate_facts
    monkeypatch.setattr(generation, "generate_facts", lambda *args, **more: printed.append(capsys.readouterr()) or real(*args, **more))
    long = "李明在北京。" + "王五没有去成都。" * 300 + "赵六在深圳。"
    (tmp_path / "texts").write_text("\n".join([long, *["一句。"] * 120]), encoding="utf-8")
    assert command_line.main(["extract", str(tmp_path / "texts"), "--run", "mine"]) == 0
    assert [said.out.count("\n") for said in printed] == [0, 100] and capsys.readouterr().out.count("\n") == 21
    first = json.loads(printed[1].out.splitlines()[0])
    assert first["row"] == 0 and first["cut"] > 100 and f"row 0: too long, {first['cut']} sentences left out" in printed[1].err


def test_the_relations_of_a_run_are_those_it_was_trained_on(load, monkeypatch, tmp_path):
    (tmp_path / models.CHECKPOINT_FILE).write_text(json.dumps({"step": 5, "form": "relations", "relations": ["创立", "朋友"]}), encoding="utf-8")
    assert load(tmp_path).relations == {"创立": triplets.RELATIONS["创立"], "朋友": Relation("朋友")}
    assert load().relations == triplets.RELATIONS
    wanted = comparison.System("mine 5", "mine", 5, tmp_path, "chatglm-tiny", "none", "instruction", relations=("朋友",))
    monkeypatch.setattr(comparison, "system", lambda *asked: wanted)
    writes(monkeypatch, "(李明, 朋友, 王五)")
    made = []
    real = predict.TripletExtractor
    monkeypatch.setattr(predict, "TripletExtractor", lambda *args, **more: made.append(more["relations"]) or real(*args, **more))
    assert command_line.main(["extract", "--text", "李明认识王五。", "--run", "mine", "--constrained"]) == 0
    assert made == [{"朋友": Relation("朋友")}]


def test_a_system_has_the_relations_of_its_run(tmp_path):
    record = {"settings": {"base": "chatglm-tiny", "method": "lora", "form": "instruction"}, "base": {}}
    for data, wanted in (({"relations": ["创立", "朋友"]}, ("创立", "朋友")), ({}, ())):  # a run of before says nothing
        (tmp_path / "run.json").write_text(json.dumps(record | {"data": data}), encoding="utf-8")
        assert comparison.system(str(tmp_path), 0).relations == wanted


def test_sentences_on_the_command_line(tmp_path, capsys):
    assert command_line.main(["sentences", str(tmp_path), "--train", "5", "--seed", "3"]) == 0
    assert capsys.readouterr().out.count("written: ") == 3
    found, problems = triplets.read(tmp_path / "train_triplet.jsonl")
    made = sentences.sentences(sentences.make("train", 5, 3))
    assert [(row.text, row.triples) for row in found] == [(row.text, row.triples) for row in made] and not problems
    assert len(triplets.read(tmp_path / "test_triplet.jsonl")[0]) == sentences.SIZES["test"]
    for few in ("0", "-3"):
        assert command_line.main(["sentences", str(tmp_path), "--train", few]) == 1
        assert f"--train {few}: at least one sentence" in capsys.readouterr().err
    assert len(triplets.read(tmp_path / "train_triplet.jsonl")[0]) == 5
