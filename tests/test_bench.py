"""The measurements of `python -m glmlab bench`, at a tiny shape on a CPU: what is measured, what is written, what goes on after a failure."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from glmlab import bench, bench_eval, bench_memory, bench_train, chat, memory
from glmlab.__main__ import main

SIZES = dict(vocab_size=2048, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
             pad_token_id=2000, eos_token_id=[2000], attention_bias=True)
V1 = dict(vocab_size=2048, hidden_size=32, num_layers=2, num_attention_heads=4, inner_hidden_size=64, pad_token_id=3, mask_token_id=2040,
          gmask_token_id=2041, bos_token_id=2044, eos_token_id=2045)


@pytest.fixture
def tiny(monkeypatch):
    """The catalogue's shapes, each with two small layers and special tokens in a small vocabulary, on the CPU; short measurements."""
    sizes = {"Glm4": SIZES, "Glm": SIZES, "ChatGLM": V1}
    monkeypatch.setattr(bench, "SHAPES", {name: (kind, form, sizes[kind]) for name, (kind, form, _) in bench.SHAPES.items()})
    markers = {form: {marker: 2000 + place for place, marker in enumerate(names)} for form, names in bench.MARKERS.items()}
    markers["chatglm"] = {"<pad>": 3, "[gMASK]": 2041, "<sop>": 2044, "<eop>": 2045}
    monkeypatch.setattr(bench, "MARKERS", markers)
    monkeypatch.setattr(bench, "TEXT_IDS", 1500)
    monkeypatch.setattr(bench, "device_for", lambda base: "cpu")
    monkeypatch.setattr(bench, "machine", lambda device: {"device": device, "matmul_tflops": 1.0})
    monkeypatch.setattr(memory, "compile_layers", lambda model: None)  # minutes on a CPU
    monkeypatch.setitem(bench_train.STEPS, "cpu", (1, 2))


# --- the file ----------------------------------------------------------------------------------------------------

def test_the_file_is_written_after_each_row_and_a_failure_costs_one_row(tmp_path):
    lines = []
    table = bench.Table(tmp_path / "new" / "x.json", {"base": "b"}, lines.append)

    def fails():
        raise ZeroDivisionError("by nothing. And more")

    table.add("first", lambda: {"samples_per_second": 2.5, "seconds": 4.0}, base_weights="nf4")
    assert json.loads(table.out.read_text())["rows"] == [{"setting": "first", "base_weights": "nf4", "samples_per_second": 2.5, "seconds": 4.0}]
    table.add("second", fails, base_weights="none")
    table.add("third", dict)
    assert json.loads(table.out.read_text()) == {"about": {"base": "b"}, "rows": [
        {"setting": "first", "base_weights": "nf4", "samples_per_second": 2.5, "seconds": 4.0},
        {"setting": "second", "base_weights": "none", "not_measured": "ZeroDivisionError: by nothing"}, {"setting": "third"}]}
    assert lines[:2] == ["first: 2.50 samples/s, 4 s", "second: not measured: ZeroDivisionError: by nothing"]


def test_a_file_that_cannot_be_written_is_refused_at_the_start_and_one_that_can_is_not_touched(tmp_path):
    (tmp_path / "old.json").write_text("old")
    with pytest.raises(OSError, match="a part of the path is a file"):
        bench.Table(tmp_path / "old.json" / "x.json", {})
    with pytest.raises(IsADirectoryError, match="is a folder; give the name of a JSON file"):
        bench.Table(tmp_path, {})
    bench.Table(tmp_path / "old.json", {})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"old.json": "old"}


# --- bases and samples -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["glm-4-9b-0414", "chatglm3-6b", "chatglm-6b"])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_a_random_base_has_the_layers_of_a_loaded_one(tiny, name, quantization):
    model = bench.random_base(name, quantization, device="cpu")
    head = model.get_output_embeddings()
    layers = [type(module).__name__ for module in memory.layers(model).modules() if isinstance(module, torch.nn.Linear)]
    assert set(layers) == {"Linear4bit" if quantization == "nf4" else "Linear"} and type(head) is torch.nn.Linear
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cpu"}
    assert model.dtype == torch.bfloat16 and not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert (head.weight is model.get_input_embeddings().weight) == (name == "chatglm-6b")
    again = bench.random_base(name, quantization, device="cpu")
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), again.parameters()))


@pytest.mark.parametrize("name", list(bench.SHAPES))
def test_the_special_tokens_are_those_of_the_config(name):
    kind, form, sizes = bench.SHAPES[name]
    tokenizer = bench.tokenizer_of(name)
    config = bench.empty_base(name).config
    stops = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    assert chat.format_of(tokenizer).name == form and tokenizer.pad_token_id == config.pad_token_id
    assert chat.stop_ids(tokenizer) == set(stops)
    assert chat.two_way(tokenizer) == ((config.gmask_token_id, config.bos_token_id) if kind == "ChatGLM" else None)
    assert all(bench.TEXT_IDS <= token < config.vocab_size for token in chat.start_ids(tokenizer))


def test_samples_have_the_lengths_of_calls():
    samples = bench.call_like_samples(400, 450)
    assert 650 < sum(len(sample.ids) for sample in samples) / 400 < 690 and chat.shared_prefix(samples) == 450
    lengths = [len(sample.ids) for sample in bench.call_like_samples(20, 100, two_way=(7, 8), longest=300)]
    assert max(lengths) == 300 and lengths[0] == lengths[8] == lengths[16] == 300 and min(lengths) < 300


def test_steps_are_full_packs_and_full_batches():
    samples = bench.call_like_samples(60, 100)
    packs = bench_train.packed(samples, 100, 1000, 5)
    assert len(packs) == 5
    taken = 0
    for pack, in packs:
        count, tokens = int(pack["sample"][-1]) + 1, pack["input_ids"].numel()
        assert tokens == 100 + sum(len(sample.ids) - 100 for sample in samples[taken : taken + count]) <= 1000
        taken += count
        assert tokens + len(samples[taken].ids) - 100 > 1000
    batches = bench_train.padded(samples, 4, 5, 3, 1200)
    assert [batch["input_ids"].shape for batch, in batches] == [(4, 1200)] * 3
    assert [batch["input_ids"].shape[1] for batch, in bench_train.padded(samples, 4, 5, 3)] == [
        max(len(sample.ids) for sample in samples[start : start + 4]) for start in (0, 4, 8)]


# --- training and evaluation side by side ------------------------------------------------------------------------

def test_training_settings_are_measured_side_by_side(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_train, "PACKS", (1000, 800, 600))

    def none(*_):
        raise ImportError("no module named trl")

    monkeypatch.setattr(bench_train, "trl_rate", none)
    table = bench.Table(tmp_path / "x.json", {}, lambda line: None)
    bench_train.add_training(table, "glm-4-9b-0414")
    rows = json.loads(table.out.read_text())["rows"]
    assert [(row["base_weights"], row.get("pack_tokens")) for row in rows[:5]] == [("nf4", 1000), ("nf4", 800), ("nf4", 600), ("bf16", 1000),
                                                                                  ("bf16", 800)]
    assert {row.get("not_measured") for row in rows} == {None, "ImportError: no module named trl"} and "TRL" not in rows[6]["setting"]
    for row in rows[:7]:
        assert row["steps"] == 2 and row["share_of_limit"] == pytest.approx(row["tokens_per_second"] * table.about["flop_per_token"] / 1e12)
        assert row["samples_per_second"] * row["step_seconds"] == pytest.approx(row["samples_a_step"], rel=0.5)
    assert rows[0]["samples_a_step"] > rows[2]["samples_a_step"]


def test_arithmetic_of_a_token(tiny):
    layer = 32 * (32 + 2 * 16 + 32) + 32 * 128 + 64 * 32  # q, k and v, o; gate and up; down
    assert bench_train.flop_per_token(bench.empty_base("glm-4-9b-0414")) == 4 * 2 * layer


def test_the_cost_of_the_prompt_is_measured_with_and_without_sharing(tiny, monkeypatch):
    monkeypatch.setattr(bench_train, "PREFIXES", (0, 200))
    table = bench.Table(None, {}, lambda line: None)
    bench_train.add_prefixes(table, "glm-4-9b-0414", 900)
    assert [(row["prefix_tokens"], row["shared"], row["steps"]) for row in table.rows] == [(0, True, 5), (200, True, 5), (200, False, 5)]
    assert table.rows[1]["samples_a_step"] > table.rows[2]["samples_a_step"]


def test_one_process_is_not_several(tiny):
    with pytest.raises(ValueError, match="accelerate launch --multi_gpu --num_processes 2 -m glmlab bench gpus"):
        bench_train.add_processes(bench.Table(None, {}), "glm-4-9b-0414")


def test_evaluation_is_measured_side_by_side(tiny, monkeypatch):
    for name, value in {"SCORED": 50, "ANSWER": 3, "PREFIX": 40, "PASS_TOKENS": 2000}.items():
        monkeypatch.setattr(bench_eval, name, value)
    monkeypatch.setattr(bench, "call_like_samples", partial(bench.call_like_samples, longest=90))
    table = bench.Table(None, {}, lambda line: None)
    bench_eval.add_evaluation(table, "glm-4-9b-0414")
    assert [row["base_weights"] for row in table.rows] == ["nf4"] * 6 + ["bf16"] * 6
    assert all(row["samples_per_second"] > 0 for row in table.rows)
    assert table.rows[5]["same_prediction_as_unpacked"] > 0.8 and table.rows[5]["largest_difference_of_a_probability"] < 0.05


# --- what fits a card --------------------------------------------------------------------------------------------

@pytest.fixture
def short(tiny, monkeypatch):
    for name, value in {"STEPS": 2, "EVAL_ROWS": 6, "CHAT_PROMPT": 30, "CHAT_TOKENS": 5}.items():
        monkeypatch.setattr(bench_memory, name, value)
    read = bench_memory.read_preset
    monkeypatch.setattr(bench_memory, "read_preset", lambda *names: replace(read(*names), max_length=200, batch_size=2, accumulation=2))


def test_a_preset_is_trained_evaluated_and_asked(short, tmp_path):
    table = bench.Table(tmp_path / "x.json", {}, lambda line: None)
    bench_memory.add_presets(table, ["8gb", "24gb"], "glm-4-9b-0414")
    bench_memory.add_presets(table, ["12gb"])
    rows = json.loads(table.out.read_text())["rows"]
    assert [(row["preset"], row["base"], row["cap_gib"]) for row in rows] == [("24gb", "glm-4-9b-0414", 21.7), ("12gb", "chatglm-6b", 11.2)]
    for row in rows:
        assert len(row["train"]["losses"]) == 2 and row["train"]["samples_a_step"] == 4 and row["train"]["pass"].startswith("pack_tokens")
        assert row["evaluate"]["prompts"] == 6 and row["chat"]["tokens"] in range(1, 6)
        assert row["seconds"] == pytest.approx(sum(row[phase]["seconds"] for phase in ("load", "train", "evaluate", "chat")))


def test_what_does_not_fit_is_a_row_that_says_so(short, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(bench_memory, "_evaluate", full)
    table = bench.Table(None, {}, lambda line: None)
    bench_memory.add_family(table, "chatglm3-6b")
    assert [row["setting"] for row in table.rows] == ["chatglm3-6b: NF4, fp16", "chatglm3-6b: bf16", "chatglm3-6b: fp16"]
    assert table.rows[1]["not_measured"] == "OutOfMemoryError: CUDA out of memory"


def test_a_loss_that_is_no_number_is_no_proof(short, monkeypatch):
    monkeypatch.setattr(bench_memory.training, "train", lambda *_: None)
    monkeypatch.setattr(bench_memory.runs, "read_log", lambda folder: [
        {"loss": 1.0, "grad_norm": None, "tokens_per_second": 1, "seconds": 1.0}, {"eval_loss": 2.0, "seconds": 2.0}])
    with pytest.raises(RuntimeError, match="a loss or gradient is no finite number"):
        bench_memory.prove(bench_memory.read_preset("24gb"), None, log=lambda line: None)


# --- the command -------------------------------------------------------------------------------------------------

def test_the_command_refuses_what_it_cannot_measure(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "memory", "--preset", "8gb"]) == 1
    assert "there is none; on a CPU take a tiny base" in capsys.readouterr().err
    assert main(["bench", "train", "--preset", "8gb"]) == 1
    assert "--preset is for bench memory" in capsys.readouterr().err
