"""ChatGLM2/3 and chatglm-format GLM-4 as GlmForCausalLM: against the original code's numbers, and on folders made here."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig, GlmForCausalLM

import glmlab.chatglm.glm as glm
from glmlab import models

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = sorted(path.parent for family in ("chatglm3_6b", "glm4_9b_chat")
                for path in (ROOT.parent / "shared" / "golden" / family).glob("*/cases.json"))
TOLERANCE = 1e-5
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"]


# --- the original code's numbers ---------------------------------------------------------------------------------

@pytest.fixture(scope="module", params=[f"{folder.parent.name}/{folder.name}" for folder in GOLDEN] or [None])
def golden(request):
    """(folder, cases, tensors) of one tiny model that the original code computed."""
    if request.param is None:
        pytest.skip("no golden data: ../shared/golden is not there")
    folder = ROOT.parent / "shared" / "golden" / request.param
    return folder, json.loads((folder / "cases.json").read_text(encoding="utf-8"))["cases"], load_file(folder / "tensors.safetensors")


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def golden_model(request, golden):
    """The tiny model of `golden`, loaded from its original folder."""
    return glm.load(golden[0], dtype="float32", attn_implementation=request.param)


def _inputs(tensors, case) -> dict:
    names = ("input_ids", "attention_mask", "position_ids", "labels")
    return {name: tensors[f"{case['case']}.{name}"] for name in names if f"{case['case']}.{name}" in tensors}


def _cases(golden, kind: str) -> list[dict]:
    found = [case for case in golden[1] if case["kind"] == kind]
    assert found
    return found


def test_logits_loss_and_gradients_are_the_originals(golden, golden_model):
    for case in _cases(golden, "forward"):
        tensors, inputs = golden[2], _inputs(golden[2], case)
        golden_model.zero_grad()
        output = golden_model(**inputs, output_hidden_states=True)
        real = inputs["attention_mask"].bool() if case["compare"] == "non_pad" else torch.ones_like(inputs["input_ids"], dtype=torch.bool)
        for ours, what in ((output.logits, "logits"), (output.hidden_states[1], "hidden_first")):
            difference = (ours - tensors[f"{case['case']}.{what}"])[real].abs().max().item()
            assert difference < TOLERANCE, (case["case"], what, difference)
        if "loss" in case:
            assert output.loss.item() == pytest.approx(case["loss"], abs=TOLERANCE)
            output.loss.backward()
            norms = _original_gradient_norms(golden_model)
            assert case["grad_norms"].keys() == norms.keys()
            assert norms == pytest.approx(case["grad_norms"], rel=1e-5, abs=1e-7)


def _original_gradient_norms(model) -> dict[str, float]:
    """Gradient norms under the original names: query, key and value are one parameter there."""
    squares = {}
    names = {"model.embed_tokens": "transformer.embedding.word_embeddings", "model.layers": "transformer.encoder.layers",
             "model.norm": "transformer.encoder.final_layernorm", "lm_head": "transformer.output_layer", "gate_up_proj": "dense_h_to_4h",
             "down_proj": "dense_4h_to_h", "self_attn.o_proj": "self_attention.dense", "self_attn.q_proj": "self_attention.query_key_value",
             "self_attn.k_proj": "self_attention.query_key_value", "self_attn.v_proj": "self_attention.query_key_value"}
    for name, parameter in model.named_parameters():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        squares[name] = squares.get(name, 0.0) + parameter.grad.double().pow(2).sum().item()
    return {name: square ** 0.5 for name, square in squares.items()}


def test_greedy_answers_are_the_originals(golden, golden_model):
    for case in _cases(golden, "greedy_generate"):
        inputs = _inputs(golden[2], case)
        inputs.pop("position_ids", None)  # generate makes them of the attention mask
        output = golden_model.generate(**inputs, do_sample=False, max_new_tokens=case["max_new_tokens"], eos_token_id=case["eos_token_id"],
                                       pad_token_id=golden_model.config.pad_token_id, return_dict_in_generate=True, output_logits=True)
        wanted = golden[2][f"{case['case']}.sequences"]
        assert output.sequences.tolist() == wanted.tolist(), case["case"]
        steps, stops = torch.stack(output.logits, 1), case["eos_token_id"]
        for row, new in enumerate(wanted[:, inputs["input_ids"].shape[1]:].tolist()):
            ends = [place for place, token in enumerate(new) if token in (stops if isinstance(stops, list) else [stops])]
            length = ends[0] + 1 if ends else len(new)
            assert (steps[row, :length] - golden[2][f"{case['case']}.step_logits"][row, :length]).abs().max() < TOLERANCE, case["case"]


def test_cached_decoding_is_the_originals(golden, golden_model):
    for case in _cases(golden, "cached_forward"):
        ids, wanted = golden[2][f"{case['case']}.input_ids"], golden[2][f"{case['case']}.step_logits"]
        with torch.no_grad():
            output = golden_model(input_ids=ids[:, :case["prefill"]], use_cache=True)
            steps = [output.logits[:, -1]]
            for place in range(case["prefill"], ids.shape[1]):
                output = golden_model(input_ids=ids[:, place:place + 1], past_key_values=output.past_key_values, use_cache=True)
                steps.append(output.logits[:, -1])
        assert (torch.stack(steps, 1) - wanted).abs().max() < TOLERANCE
        layer = output.past_key_values.layers[0]
        for ours, name in ((layer.keys, "key0"), (layer.values, "value0")):
            assert (ours - golden[2][f"{case['case']}.{name}"]).abs().max() < TOLERANCE


# --- folders in the original format, made here -------------------------------------------------------------------

RAW = {
    "model_type": "chatglm", "architectures": ["ChatGLMModel"], "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"},
    "rmsnorm": True, "post_layer_norm": True, "add_bias_linear": False, "apply_residual_connection_post_layernorm": False,
    "multi_query_attention": True, "multi_query_group_num": 2, "add_qkv_bias": True, "layernorm_epsilon": 1e-5, "seq_length": 512,
    "tie_word_embeddings": False, "eos_token_id": 2, "pad_token_id": 0, "num_layers": 3, "hidden_size": 64, "ffn_hidden_size": 112,
    "kv_channels": 24, "num_attention_heads": 4, "padded_vocab_size": 96, "torch_dtype": "float32",
}


def _original_weights(raw: dict, dtype=torch.float32) -> tuple[dict, dict]:
    """Random weights under the original names, and the same numbers as Glm wants them, sorted out head by head."""
    generator = torch.Generator().manual_seed(11)

    def random(*shape):
        return (torch.randn(*shape, generator=generator) * 0.15).to(dtype)

    heads, size, hidden, inner = raw["num_attention_heads"], raw["kv_channels"], raw["hidden_size"], raw["ffn_hidden_size"]
    groups = raw["multi_query_group_num"] if raw.get("multi_query_attention") else heads
    original = {"transformer.embedding.word_embeddings.weight": random(raw["padded_vocab_size"], hidden),
                "transformer.output_layer.weight": random(raw["padded_vocab_size"], hidden),
                "transformer.encoder.final_layernorm.weight": 1 + random(hidden),
                "transformer.rotary_pos_emb.inv_freq": torch.rand(size // 4, generator=generator)}
    wanted = {"model.embed_tokens.weight": original["transformer.embedding.word_embeddings.weight"],
              "lm_head.weight": original["transformer.output_layer.weight"],
              "model.norm.weight": original["transformer.encoder.final_layernorm.weight"]}
    for number in range(raw["num_layers"]):
        theirs, ours = f"transformer.encoder.layers.{number}.", f"model.layers.{number}."
        for kind, extra in (("weight", (hidden,)), ("bias", ())) if raw.get("add_qkv_bias") else (("weight", (hidden,)),):
            query = [random(size, *extra) for _ in range(heads)]
            key, value = ([random(size, *extra) for _ in range(groups)] for _ in range(2))
            if raw.get("multi_query_attention"):
                rows = query + key + value
            else:
                rows = [part for head in zip(query, key, value) for part in head]
            original[f"{theirs}self_attention.query_key_value.{kind}"] = torch.cat(rows)
            for part, pieces in (("q", query), ("k", key), ("v", value)):
                wanted[f"{ours}self_attn.{part}_proj.{kind}"] = torch.cat(pieces)
        for their_name, our_name, weight in (
                ("input_layernorm", "input_layernorm", 1 + random(hidden)),
                ("post_attention_layernorm", "post_attention_layernorm", 1 + random(hidden)),
                ("self_attention.dense", "self_attn.o_proj", random(hidden, heads * size)),
                ("mlp.dense_h_to_4h", "mlp.gate_up_proj", random(2 * inner, hidden)),
                ("mlp.dense_4h_to_h", "mlp.down_proj", random(hidden, inner))):
            original[f"{theirs}{their_name}.weight"] = wanted[f"{ours}{our_name}.weight"] = weight
    return original, wanted


def _write(folder: Path, raw: dict, weights: dict, files: str = "model.safetensors", shards: int = 1) -> Path:
    """An original-format folder with `shards` weight files named like the Hub's."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    save = torch.save if files.endswith(".bin") else lambda content, path: save_file(content, path, metadata={"format": "pt"})
    if shards == 1:
        save(weights, folder / files)
        return folder
    stem, suffix = files.split(".")
    weight_map = {}
    for number in range(shards):
        part = f"{stem}-{number + 1:05}-of-{shards:05}.{suffix}"
        content = dict(list(sorted(weights.items()))[number::shards])  # a layer lies in several shards
        save(content, folder / part)
        weight_map |= dict.fromkeys(content, part)
    (folder / f"{files}.index.json").write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}), encoding="utf-8")
    return folder


@pytest.fixture
def make_folder(tmp_path):
    """`make_folder(files=, shards=, **config)`: (original-format folder, its weights as Glm wants them)."""
    def make(files="model.safetensors", shards=1, **config):
        raw = RAW | config
        original, wanted = _original_weights(raw)
        return _write(tmp_path / "base", raw, original, files, shards), wanted

    return make


def _same_weights(model, wanted: dict) -> None:
    state = model.state_dict()
    assert state.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(state[name], wanted[name])] == []


IDS = torch.tensor([[5, 6, 40, 41, 42, 77, 90, 13, 8]])

VARIANTS = {
    "grouped": {},
    "no bias": {"add_qkv_bias": False},
    "by head": {"multi_query_attention": False},
    "by head, no bias": {"multi_query_attention": False, "add_qkv_bias": False},
    "one head": {"multi_query_attention": False, "num_attention_heads": 1},
    "one group": {"multi_query_group_num": 1},
    "as many groups as heads": {"multi_query_group_num": 4},
    "wide heads": {"kv_channels": 40},
    "28 layers": {"num_layers": 28},
    "rope 50": {"rope_ratio": 50},
    "rope 500, many stop ids": {"rope_ratio": 500, "eos_token_id": [70, 71, 72], "pad_token_id": 70, "layernorm_epsilon": 1.5625e-7},
}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_row_arrives_where_it_belongs(make_folder, config):
    folder, wanted = make_folder(**config)
    model = glm.load(folder)
    assert type(model) is GlmForCausalLM and not model.training and model.dtype is torch.float32
    assert model.loss_type == "ForCausalLM"
    _same_weights(model, wanted)
    raw = RAW | config
    assert model.config.rms_norm_eps == raw["layernorm_epsilon"]
    assert model.config.eos_token_id == raw["eos_token_id"] and model.config.pad_token_id == raw["pad_token_id"]
    assert model.generation_config.eos_token_id == raw["eos_token_id"] and model.generation_config.pad_token_id == raw["pad_token_id"]
    half = raw["kv_channels"] // 2
    frequencies = 1 / (10000 * raw.get("rope_ratio", 1)) ** (torch.arange(0, half, 2, dtype=torch.float64) / half)
    assert torch.allclose(model.model.rotary_emb.inv_freq.double(), frequencies, rtol=1e-6, atol=0)
    assert model(IDS).logits.isfinite().all()


@pytest.mark.parametrize("files", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("shards", [1, 3])
def test_all_kinds_of_weight_files(make_folder, files, shards):
    folder, wanted = make_folder(files, shards)
    for device_map in (None, "cpu", "auto"):
        _same_weights(glm.load(folder, device_map=device_map), wanted)


def test_half_precision_is_kept_unless_asked_otherwise(tmp_path):
    original, wanted = _original_weights(RAW, torch.float16)
    folder = _write(tmp_path, RAW | {"torch_dtype": "float16"}, original)
    assert glm.load(folder).dtype is torch.float16
    _same_weights(glm.load(folder, dtype=torch.float32), {name: weight.float() for name, weight in wanted.items()})


def test_a_generation_config_beside_the_weights_is_used(make_folder):
    folder, _ = make_folder()
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "top_p": 0.7, "eos_token_id": [2, 7]}), encoding="utf-8")
    generation = glm.load(folder).generation_config
    assert (generation.do_sample, generation.top_p, generation.eos_token_id, generation.pad_token_id) == (True, 0.7, [2, 7], 0)


def test_code_beside_the_weights_is_never_run(make_folder):
    folder, wanted = make_folder()
    for name in ("configuration_chatglm.py", "modeling_chatglm.py"):
        (folder / name).write_text("raise SystemExit('remote code ran')", encoding="utf-8")
    _same_weights(glm.load(folder, trust_remote_code=False), wanted)
    with pytest.raises(ValueError, match="never run"):
        glm.load(folder, trust_remote_code=True)


def test_a_hub_id_loads_from_the_cache(make_folder, tmp_path):
    folder, wanted = make_folder("pytorch_model.bin", 2)
    repository, commit = tmp_path / "cache" / "models--THUDM--chatglm3-6b", "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    _same_weights(glm.load("THUDM/chatglm3-6b", cache_dir=tmp_path / "cache", local_files_only=True), wanted)
    with pytest.raises(OSError, match="chatglm2-6b"):
        glm.load("THUDM/chatglm2-6b", cache_dir=tmp_path / "cache", local_files_only=True)


def test_an_embedding_that_is_also_the_head(tmp_path):
    original, wanted = _original_weights(RAW)
    head = original.pop("transformer.output_layer.weight")
    with pytest.raises(ValueError, match="1 missing: transformer.output_layer.weight"):
        glm.load(_write(tmp_path / "untied", RAW, original))
    tied = RAW | {"tie_word_embeddings": True}
    model = glm.load(_write(tmp_path / "tied", tied, original))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    _same_weights(model, wanted | {"lm_head.weight": wanted["model.embed_tokens.weight"]})
    model = glm.load(_write(tmp_path / "both", tied, original | {"transformer.output_layer.weight": head}))
    assert not model.config.tie_word_embeddings  # the config was wrong: two different matrices are stored
    _same_weights(model, wanted)


# --- which configs, and how they are read ------------------------------------------------------------------------

def test_is_original():
    assert glm.is_original(RAW)
    assert not glm.is_original({"model_type": "chatglm", "inner_hidden_size": 16384, "position_encoding_2d": True, "vocab_size": 130528})
    assert not glm.is_original({"model_type": "glm", "hidden_size": 64})
    assert not glm.is_original({})


def test_linear_positions_of_chatglm2_32k_only(make_folder):
    ratio = {"rope_ratio": 16, "seq_length": 32768}
    linear = {"rope_type": "linear", "factor": 16.0, "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    theta = {"rope_type": "default", "rope_theta": 160000.0, "partial_rotary_factor": 0.5}
    for name, wanted in (("THUDM/chatglm2-6b-32k", linear), ("THUDM/chatglm3-6b-32k", theta), ("THUDM/glm-4-9b-chat", theta), ("", theta),
                         ("/models/chatglm2-and-3/chatglm3-6b-32k", theta),
                         ("/cache/models--THUDM--chatglm2-6b-32k/snapshots/0a1b", linear)):
        assert glm.glm_config(RAW | ratio | {"_name_or_path": name}).rope_parameters == wanted, name
    assert glm.glm_config(RAW | ratio, rope_scaling="linear").rope_parameters == linear
    assert glm.glm_config(RAW | ratio | {"_name_or_path": "THUDM/chatglm2-6b-32k"}, rope_scaling="theta").rope_parameters == theta
    assert glm.glm_config(RAW | {"_name_or_path": "THUDM/chatglm2-6b"}).rope_parameters["rope_type"] == "default"
    folder, _ = make_folder(**ratio)
    folder = folder.rename(folder.with_name("chatglm2-6b-32k"))
    model, other = glm.load(folder), glm.load(folder, rope_scaling="theta")
    frequencies = 10000 ** (-torch.arange(0, 12, 2, dtype=torch.float64) / 12) / 16
    assert torch.allclose(model.model.rotary_emb.inv_freq.double(), frequencies, rtol=1e-6, atol=0)
    assert (model(IDS).logits - other(IDS).logits).abs().max() > 1e-3
    with pytest.raises(ValueError, match="choose theta, linear"):
        glm.glm_config(RAW, rope_scaling="ntk")


@pytest.mark.parametrize("config, reason", [
    ({"rmsnorm": False}, "rmsnorm=False"), ({"post_layer_norm": False}, "post_layer_norm=False"),
    ({"apply_residual_connection_post_layernorm": True}, "residual"), ({"add_bias_linear": True}, "biases in output projection"),
    ({"quantization_bit": 4}, "packed as ChatGLM's own integers"), ({"pre_seq_len": 128}, "P-Tuning"),
    ({"hidden_dropout": 0.1}, "dropout between the layers"),
    ({"fp32_residual_connection": True}, "float32 residual"), ({"vision_config": {"layers": 2}}, "images"),
    ({"multi_query_group_num": 3}, "no multiple of"), ({"pad_token_id": 96}, "pad_token_id=96"),
    ({"eos_token_id": None}, "eos_token_id=None"),
    ({"eos_token_id": [2, 96]}, "eos_token_id"), ({"kv_channels": None}, "kv_channels=None"), ({"rope_ratio": 0}, "rope_ratio=0"),
    ({"layernorm_epsilon": "small"}, "layernorm_epsilon='small'"), ({"num_layers": 2.5}, "num_layers=2.5"),
])
def test_what_glm_cannot_compute_is_refused_before_weights_are_read(tmp_path, config, reason):
    with pytest.raises(ValueError, match=reason):
        glm.load(_write(tmp_path, RAW | config, {}))


def test_all_reasons_come_in_one_message():
    wrong = RAW | {"rmsnorm": False, "add_bias_linear": True, "quantization_bit": 8, "hidden_size": "64"}
    with pytest.raises(ValueError) as error:
        glm.glm_config(wrong)
    assert all(reason in str(error.value) for reason in ("rmsnorm", "add_bias_linear", "quantization_bit", "hidden_size"))
    assert glm.glm_config(RAW | {"quantization_bit": 0, "pre_seq_len": None, "hidden_dropout": 0.0}).num_hidden_layers == 3


def test_other_models_and_options_are_refused(tmp_path, make_folder):
    with pytest.raises(ValueError, match="not a config of ChatGLM2.*'glm'"):
        glm.load(_write(tmp_path / "glm", {"model_type": "glm"}, {}))
    with pytest.raises(OSError, match="no config.json"):
        glm.load(tmp_path)
    with pytest.raises(TypeError, match="variant"):
        glm.load(make_folder()[0], variant="fp16")


# --- weights that do not fit, files that are not whole -----------------------------------------------------------

NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32)
LAYER = "transformer.encoder.layers.1."


@pytest.mark.parametrize("quantization", [None, NF4], ids=["full", "nf4"])
@pytest.mark.parametrize("change, message", [
    ({LAYER + "mlp.dense_4h_to_h.weight": None}, r"1 missing: transformer\.encoder\.layers\.1\.mlp\.dense_4h_to_h\.weight"),
    ({LAYER + "self_attention.query_key_value.bias": None}, "1 missing: .*query_key_value.bias"),
    ({LAYER + "self_attention.dense.bias": torch.zeros(64)}, "1 not known to the config: .*dense.bias"),
    ({LAYER + "self_attention.dense.weight": torch.zeros(64, 95)}, r"1 of another shape .*dense\.weight \(64, 95\) instead of \(64, 96\)"),
    ({LAYER + "self_attention.query_key_value.weight": torch.zeros(191, 64)}, r"\(191, 64\) instead of \(192, 64\)"),
    ({LAYER + "mlp.dense_h_to_4h.weight_scale": torch.zeros(224)}, "weight_scale: .*BitsAndBytesConfig"),
])
def test_weights_that_do_not_fit_are_refused(tmp_path, change, message, quantization):
    weights = _original_weights(RAW)[0] | change
    folder = _write(tmp_path, RAW, {name: weight for name, weight in weights.items() if weight is not None}, shards=2)
    with pytest.raises(ValueError, match=message):
        glm.load(folder, quantization_config=quantization)


@pytest.mark.parametrize("files", ["model.safetensors", "pytorch_model.bin"])
def test_files_that_are_missing_or_cut_are_named(make_folder, files):
    folder, _ = make_folder(files, 3)
    stem, suffix = files.split(".")
    first, second, third = (folder / f"{stem}-0000{number}-of-00003.{suffix}" for number in (1, 2, 3))
    whole = first.read_bytes()
    for content in (whole[:-100], whole[:30], b""):
        first.write_bytes(content)
        with pytest.raises(OSError, match=f"{first.name} is damaged or half downloaded"):
            glm.load(folder)
    first.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", encoding="utf-8")
    second.write_bytes(second.read_bytes()[:-1])
    with pytest.raises(OSError) as error:
        glm.load(folder)
    assert f"{first.name} is only a Git LFS pointer" in str(error.value) and f"{second.name} is damaged" in str(error.value)
    third.unlink()
    with pytest.raises(OSError, match=f"lacks 1 of the 3 weight files .*: {third.name}"):
        glm.load(folder)
    (folder / f"{files}.index.json").write_text('{"weight_map"', encoding="utf-8")
    with pytest.raises(OSError, match="index.json is damaged"):
        glm.load(folder)
    (folder / f"{files}.index.json").unlink()
    with pytest.raises(OSError, match="has no weights"):
        glm.load(folder)


def test_a_weight_file_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    folder = _write(tmp_path / "base", RAW, {"transformer.output_layer.weight": Evil()}, "pytorch_model.bin")
    with pytest.raises(OSError, match="damaged"):
        glm.load(folder)
    assert not (tmp_path / "ran").exists()


# --- 4 bits ------------------------------------------------------------------------------------------------------

SIXTYFOUR = {"hidden_size": 64, "ffn_hidden_size": 128, "kv_channels": 32, "num_attention_heads": 4}


@pytest.mark.parametrize("config", [{}, {"multi_query_attention": False}], ids=["grouped", "by head"])
def test_nf4_while_loading_equals_quantising_the_converted_model(make_folder, tmp_path, config, monkeypatch):
    import bitsandbytes.nn.modules
    from bitsandbytes.nn import Linear4bit
    from transformers import AutoModelForCausalLM
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)  # as on a CPU with the kernel that spoils training
    folder, _ = make_folder(shards=2, **SIXTYFOUR, **config)
    direct = glm.load(folder, dtype=torch.float32, quantization_config=NF4)
    plain = AutoModelForCausalLM.from_pretrained(models.convert(folder, tmp_path / "plain"), dtype=torch.float32, quantization_config=NF4)
    assert type(direct) is GlmForCausalLM
    assert {name.rpartition(".")[2] for name, module in direct.named_modules() if isinstance(module, Linear4bit)} == set(LORA_TARGETS)
    assert all(not module.support_avx512bf16_for_cpu for module in direct.modules() if isinstance(module, Linear4bit))
    ours, theirs = direct.state_dict(), plain.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert models.guard_cpu_kernels(plain)
    assert torch.equal(direct(IDS).logits, plain(IDS).logits)


def test_a_4_bit_model_is_saved_and_read_again(make_folder, tmp_path):
    from transformers import AutoModelForCausalLM
    folder, _ = make_folder(**SIXTYFOUR)
    model = glm.load(folder, dtype=torch.float32, quantization_config=NF4)
    again = AutoModelForCausalLM.from_pretrained(glm.save(model, tmp_path / "four"))
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


MEASURE = """
import sys, threading, time
import glmlab.chatglm.glm as glm, torch, bitsandbytes
from transformers import BitsAndBytesConfig

def own():  # memory that is no page of a file, in MB
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1000

def watch():
    global peak
    while watching:
        peak = max(peak, own())
        time.sleep(0.0005)

nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
glm.load(sys.argv[2], dtype=torch.float32, quantization_config=nf4)  # what the libraries and one layer need
start = peak = own()
watching = True
thread = threading.Thread(target=watch)
thread.start()
model = glm.load(sys.argv[1], dtype=torch.float32, quantization_config=nf4 if sys.argv[3] == "nf4" else None)
watching = False
thread.join()
print(peak - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("files, shards", [("model.safetensors", 1), ("pytorch_model.bin", 4)])
def test_nf4_loading_never_holds_the_model_in_full(tmp_path, files, shards):
    wide = RAW | {"hidden_size": 512, "ffn_hidden_size": 1408, "kv_channels": 64, "num_attention_heads": 8, "num_layers": 20}
    weights, wanted = _original_weights(wide, torch.float16)
    folder = _write(tmp_path / "base", wide, weights, files, shards)
    shallow = _write(tmp_path / "shallow", wide | {"num_layers": 1}, _original_weights(wide | {"num_layers": 1}, torch.float16)[0])
    half = sum(weight.numel() * 2 for weight in wanted.values()) / 1e6
    assert half > 100

    def grown(kind: str) -> float:
        # freed blocks go back at once, as those of a real model do (above 32 MiB glibc maps each by itself): what is left is in use
        run = subprocess.run([sys.executable, "-c", MEASURE, folder, shallow, kind], capture_output=True, text=True, cwd=ROOT,
                             env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"})
        assert run.returncode == 0, run.stderr
        return float(run.stdout)

    four = grown("nf4")
    print(f"float16 {half:.0f} MB, peak of NF4 loading {four:.0f} MB above start")
    assert four < 0.6 * half  # NF4 with its scales is 0.28 of it, the rest is one weight at a time
    if shards == 1:
        assert grown("full") > 1.9 * half  # in float32: the measurement sees a whole copy where there is one


# --- saved, trained ----------------------------------------------------------------------------------------------

ALONE = """
import sys
sys.modules["glmlab"] = None
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(type(model).__module__)
torch.save(model(torch.tensor([[5, 6, 40, 41, 42, 77, 90, 13, 8]])).logits, sys.argv[2])
"""


@pytest.mark.parametrize("how, config", [("convert", {"multi_query_attention": False, "rope_ratio": 50}), ("save", {"add_qkv_bias": False}),
                                         ("save_pretrained", {})])
def test_the_saved_folder_needs_nothing_of_ours(make_folder, tmp_path, how, config):
    folder, wanted = make_folder(shards=2, **config)
    out, model = tmp_path / "plain", glm.load(folder)
    if how == "convert":
        assert models.convert(folder, out) == out
    elif how == "save":
        assert glm.save(model, out) == out
    else:
        model.save_pretrained(out)  # what a Trainer or a merge does
    saved = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert saved["model_type"] == "glm" and saved["architectures"] == ["GlmForCausalLM"] and "auto_map" not in saved
    assert load_file(out / "model.safetensors").keys() == wanted.keys()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    run = subprocess.run([sys.executable, "-I", "-c", ALONE, out, tmp_path / "logits.pt"], capture_output=True, text=True, cwd=tmp_path,
                         env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "transformers.models.glm.modeling_glm" and "MISSING" not in run.stderr and "UNEXPECTED" not in run.stderr
    assert torch.equal(torch.load(tmp_path / "logits.pt"), model(IDS).logits.detach())


def test_convert_keeps_or_changes_the_dtype(tmp_path):
    original, wanted = _original_weights(RAW, torch.float16)
    folder = _write(tmp_path / "base", RAW | {"torch_dtype": "float16"}, original)
    assert load_file(models.convert(folder, tmp_path / "half") / "model.safetensors")["lm_head.weight"].dtype is torch.float16
    full = load_file(models.convert(folder, tmp_path / "full", "float32") / "model.safetensors")
    assert all(torch.equal(full[name], wanted[name].float()) for name in wanted)
    config = json.loads((models.convert(_write(tmp_path / "long", RAW | {"rope_ratio": 16}, original), tmp_path / "out", chat_format="chatglm2")
                         / "config.json").read_text(encoding="utf-8"))
    assert config["rope_parameters"]["rope_type"] == "linear" and config["rope_parameters"]["factor"] == 16
    with pytest.raises(ValueError, match="source itself"):
        models.convert(folder, folder)


@pytest.mark.parametrize("quantization", [None, NF4], ids=["full", "nf4"])
def test_lora_learns_and_merges(make_folder, tmp_path, quantization):
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM
    folder, wanted = make_folder(**SIXTYFOUR)
    torch.manual_seed(1)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=LORA_TARGETS, task_type="CAUSAL_LM")
    model = get_peft_model(glm.load(folder, dtype=torch.float32, quantization_config=quantization), settings)
    with pytest.raises(TypeError, match="merge"):
        glm.save(model, tmp_path / "no")
    model.eval()(IDS)  # evaluation before training must not spoil the gradients
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.02)
    losses = []
    for _ in range(12):
        loss = model(IDS, labels=IDS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    grown = [name for name, parameter in model.named_parameters() if "lora_B" in name and parameter.abs().max() > 0]
    assert len(grown) == 3 * len(LORA_TARGETS) and losses[-1] < 0.5 * losses[0]
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    assert all(".lora_" in name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    tuned = PeftModel.from_pretrained(glm.load(folder), tmp_path / "adapter").eval()
    logits = tuned(IDS).logits
    merged = tuned.merge_and_unload()
    assert type(merged) is GlmForCausalLM and (merged(IDS).logits - logits).abs().max() < TOLERANCE
    again = AutoModelForCausalLM.from_pretrained(glm.save(merged, tmp_path / "merged"))
    assert torch.equal(again(IDS).logits, merged(IDS).logits)
    assert not torch.equal(again.state_dict()["model.layers.0.self_attn.q_proj.weight"], wanted["model.layers.0.self_attn.q_proj.weight"])
