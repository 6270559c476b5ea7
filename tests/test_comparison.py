"""Comparison: which systems, one base in memory with adapters put on and off, what is scored again and what is remembered."""

import json
import random

import pytest
import torch

from glmlab import comparison, evaluation, models, paths
from glmlab.constrained import Copying
from glmlab.tasks import intent, triplets
from glmlab.tiny.tokenizer import train_tokenizer

CALLS = [intent.Call(row, text, label) for row, text, label in [
    (0, "您好请讲[SEP]我想查一下话费", 6), (2, "您好[SEP]帮我把套餐取消吧", 1), (3, "请讲[SEP]怎么多扣了二十块钱", 12), (7, "流量包帮我开通一下", 7)]]
QUIET = {"log": lambda line: None}


@pytest.fixture(scope="module")
def intent_tokenizer():
    return train_tokenizer([intent.SYSTEM_PROMPT, *intent.ANSWERS, *(call.text for call in CALLS)] * 3, 1400)


@pytest.fixture
def home(tmp_path, monkeypatch, make_model, intent_tokenizer):
    """A GLMLAB_HOME with a base and two runs on it: `one` (checkpoints 2 and 4), `other` (6) with another rank and other layers."""
    monkeypatch.setenv("GLMLAB_HOME", str(tmp_path))
    comparison.base_sums.cache_clear()
    _base(tmp_path / "base", make_model, intent_tokenizer)
    _run(tmp_path, "one", {2: 1, 4: 2}, "qlora", r=4, target_modules=["q_proj", "down_proj"])
    _run(tmp_path, "other", {6: 3}, "lora", r=2, target_modules=["o_proj"])
    return tmp_path


def _base(folder, make_model, tokenizer):
    model = make_model(vocab_size=1400, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _run(home, name, checkpoints, method, **lora):
    from peft import LoraConfig, get_peft_model
    from transformers import Glm4ForCausalLM
    base = home / "base"
    files = {file: models.file_record(base / file)["sha256"] for file in ("config.json", "model.safetensors")}
    record = {"settings": {"base": str(base), "method": method, "form": "system"}, "base": {"name": "base", "files": files}}
    paths.write_json(paths.runs(name, "run.json"), record)
    for step, seed in checkpoints.items():
        torch.manual_seed(seed)
        model = get_peft_model(Glm4ForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", lora_alpha=8, **lora))
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
        folder = paths.runs(name, f"checkpoint-{step}")
        model.save_pretrained(folder)
        names = ("adapter_config.json", "adapter_model.safetensors")
        paths.write_json(folder / models.CHECKPOINT_FILE, {"step": step, "form": "template" if name == "other" else "system",
                                                           "files": {file: models.file_record(folder / file) for file in names}})


# --- which systems -----------------------------------------------------------------------------------------------

def test_a_system_is_what_its_run_says(home):
    last = comparison.system("one", -1)
    assert (last.name, last.run, last.step, last.quantization, last.form) == ("one 4", "one", 4, "nf4", "system")
    assert last.folder == home / "data/runs/one/checkpoint-4" and last.base == str(home / "base") and last.notes == ()
    other = comparison.system(str(home / "data/runs/other"), 6, quantization="nf4")  # a run by its path
    assert (other.name, other.quantization, other.form) == ("other 6", "nf4", "template")
    untuned = comparison.system("other", 0)
    assert (untuned.name, untuned.step, untuned.folder, untuned.quantization) == ("untuned base", 0, None, "none")
    with pytest.raises(FileNotFoundError, match="checkpoint 3 not found in .*one; there are: 2, 4"):
        comparison.system("one", 3)
    with pytest.raises(FileNotFoundError, match="run 'two' not found in .*; there are: .*one, other"):
        comparison.system("two", 0)


def test_checkpoints_in_order_and_others_beside_them_once(home):
    own, beside = comparison.systems("one", "all", "other:6,other:-1,one:2, other:0")
    assert [one.name for one in own] == ["untuned base", "one 2", "one 4"]
    assert [one.name for one in beside] == ["other 6", "untuned base none"]  # not in 4 bit, so another one than the first
    own, beside = comparison.systems("one", "4,2,0,4")
    assert [one.step for one in own] == [0, 2, 4] and beside == []
    with pytest.raises(FileNotFoundError, match="there are: 2, 4"):
        comparison.systems("one", "2,700")
    with pytest.raises(FileNotFoundError, match="checkpoint 1 not found in .*other; there are: 6"):
        comparison.systems("one", "all", "other:1")


def test_a_base_that_changed_since_the_training_is_said(home, make_model, intent_tokenizer):
    assert comparison.base_notes("zai-org/GLM-4-9B-0414", {"files": {"config.json": "00"}}) == ()
    (home / "base/config.json").write_text((home / "base/config.json").read_text() + "\n")
    comparison.base_sums.cache_clear()
    note, = comparison.system("one", 2).notes
    assert "is not the one this run was trained on (config.json differ" in note
    assert comparison.system("one", 0).notes == ()  # without an adapter every base is right


def test_what_the_numbers_do_not_show():
    assert "few million parameters and the calls were made for the course" in comparison.limits("glm4-tiny", True)
    assert "made for" not in comparison.limits("glm4-tiny", False) and "million" not in comparison.limits("glm-4-9b-0414", True)
    assert comparison.limits("glm-4-9b-0414", False) == "" == comparison.limits("/somewhere/else", False)


def test_rows_are_drawn_with_the_seed_and_stay_in_order():
    calls = [intent.Call(row, "x", 0) for row in range(50)]
    drawn = comparison.draw(calls, 10, 7)
    assert [call.row for call in drawn] == sorted(random.Random(7).sample(range(50), 10)) and drawn == comparison.draw(calls, 10, 7)
    assert comparison.draw(calls, 10, 8) != drawn
    assert comparison.draw(calls, 0, 7) is calls and comparison.draw(calls, 50, 7) is calls and comparison.draw(calls, 99, 7) is calls


# --- one base in memory ------------------------------------------------------------------------------------------

def _logits(model):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits


def test_adapters_are_swapped_without_a_trace(home, monkeypatch):
    loads, real = [], models.load_base
    monkeypatch.setattr(models, "load_base", lambda *args: loads.append(args) or real(*args))
    chosen = [comparison.system("one", step, quantization="none") for step in (0, 2, 4)] + [comparison.system("other", 6)]
    fresh = {}
    for one in chosen:
        model, _ = models.load_finetuned(one.base, one.folder, "none", "fp32", "cpu") if one.folder else real(one.base, "none", "fp32", "cpu")
        fresh[one.name] = _logits(model)
    loads.clear()
    bench = comparison.Bench("cpu", "fp32")
    for one in [*chosen, *reversed(chosen)]:
        model, tokenizer = bench.load(one)
        assert not model.training and torch.equal(_logits(model), fresh[one.name]), one.name
        assert tokenizer.vocab_size or len(tokenizer)
        adapters = [name for name, _ in model.named_parameters() if "lora_" in name]
        assert len({name.rsplit(".", 2)[1] for name in adapters}) == (one.folder is not None)  # never two adapters in memory
    assert loads == [(str(home / "base"), "none", "fp32", "cpu")]
    assert len({tuple(logits.flatten().tolist()) for logits in fresh.values()}) == 4


def test_another_quantization_loads_another_base(home, monkeypatch):
    loads, real = [], models.load_base
    monkeypatch.setattr(models, "load_base", lambda *args: loads.append(args[1]) or real(*args))
    bench = comparison.Bench("cpu", "fp32")
    for run, step in (("one", 2), ("one", 4), ("other", 6), ("one", 0)):
        bench.load(comparison.system(run, step))
    assert loads == ["nf4", "none", "nf4"]


def test_an_adapter_of_another_base_is_refused(home, make_model, intent_tokenizer):
    _base(home / "wider", lambda **sizes: make_model(**sizes, hidden_size=128), intent_tokenizer)
    with pytest.raises(ValueError, match="the adapter of one 2 does not fit the base .*wider: "):
        comparison.Bench("cpu", "fp32").load(comparison.system("one", 2, base=str(home / "wider"), quantization="none"))


# --- scored, or remembered ---------------------------------------------------------------------------------------

def test_what_was_scored_is_scored_again_only_when_something_changed(home, monkeypatch):
    one, bench, lines = comparison.system("one", 2), comparison.Bench("cpu", "fp32"), []
    first = comparison.scored(one, CALLS, bench, home / "out", "test", log=lines.append)
    model, tokenizer = models.load_finetuned(one.base, one.folder, "nf4", "fp32", "cpu")
    expected = evaluation.score_rows(model, tokenizer, CALLS)
    assert first["predicted"] == expected.predicted and first["confidence"] == pytest.approx(expected.confidence(), abs=1e-3)
    assert lines[0] == "one 2 on 4 test calls" and json.loads(json.dumps(first)) == first
    scoring = []
    monkeypatch.setattr(evaluation, "score_rows", lambda *args: scoring.append(args[5]) or expected)
    assert comparison.scored(one, CALLS, bench, home / "out", "test", log=lines.append) == first and not scoring
    assert "taken from" in lines[-1] and comparison.Bench()._model is None
    comparison.scored(one, CALLS, bench, home / "out", "test", recompute=True, **QUIET)
    comparison.scored(one, CALLS[:3], bench, home / "out", "test", **QUIET)
    comparison.scored(one, CALLS[:3], comparison.Bench("cpu", "bf16"), home / "out", "test", **QUIET)
    comparison.scored(comparison.system("one", 4), CALLS, bench, home / "out", "test", **QUIET)
    comparison.scored(comparison.system("other", 6), CALLS, bench, home / "out", "test", **QUIET)
    assert scoring == ["system"] * 4 + ["template"]


def test_answers_under_a_rule_are_remembered_beside_the_free_ones(home):
    one, bench, lines = comparison.system("one", 2), comparison.Bench("cpu", "fp32"), []
    rows = [triplets.Sentence(0, "李明在北京。", ()), triplets.Sentence(3, "王五是校长。", ())]

    def ask(rule=None):
        return comparison.answered(one, triplets.TASK, rows, bench, home / "out", "test", 600, 60, form="instruction", losses=False, log=lines.append,
                                   rule=rule)

    free, bound = ask(), ask(Copying)
    assert all(triplets.parse(text) is not None for text in bound["texts"]) and free["texts"] != bound["texts"]
    assert [line for line in lines if " on 2 " in line] == ["one 2 instruction on 2 test sentences", "one 2 instruction Copying on 2 test sentences"]
    assert (ask(), ask(Copying)) == (free, bound) and sum("taken from" in line for line in lines) == 2


def test_another_file_at_the_same_place_is_another_system(home):
    one, bench = comparison.system("one", 2), comparison.Bench("cpu", "fp32")
    asked = {"prompt": "您好", "max_length": 1024}
    before = comparison.about(one, CALLS, bench, asked)
    assert before == comparison.about(one, CALLS, bench, asked) != comparison.about(one, CALLS, bench, asked | {"prompt": "好"}) and json.loads(json.dumps(before)) == before
    assert before["adapter"] != comparison.about(comparison.system("one", 4), CALLS, bench, asked)["adapter"]
    assert comparison.about(comparison.system("one", 0), CALLS, bench, asked)["adapter"] is None
    relabelled = [intent.Call(0, CALLS[0].text, 5), *CALLS[1:]]
    assert comparison.rows_sum(relabelled) != before["rows"] == comparison.rows_sum(CALLS)
