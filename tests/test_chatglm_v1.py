"""ChatGLM-6B: against the published code's numbers, against a second implementation, and as a transformers model."""

import json
from pathlib import Path

import glmlab  # noqa: F401  before torch
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, BitsAndBytesConfig

from glmlab import models, packing
from glmlab.chat import Sample
from glmlab.chatglm import v1

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden" / "chatglm_6b"
TOLERANCE = 1e-5
MASK, GMASK, SOP, EOP, PAD = 90, 91, 94, 95, 3
RAW = {"model_type": "chatglm", "architectures": ["ChatGLMModel"], "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"},
       "vocab_size": 100, "hidden_size": 64, "num_layers": 2, "num_attention_heads": 4, "inner_hidden_size": 128, "layernorm_epsilon": 1e-5,
       "max_sequence_length": 256, "mask_token_id": MASK, "gmask_token_id": GMASK, "bos_token_id": SOP, "eos_token_id": EOP,
       "pad_token_id": PAD, "position_encoding_2d": True, "quantization_bit": 0, "pre_seq_len": None, "prefix_projection": False,
       "torch_dtype": "float32", "use_cache": True, "transformers_version": "4.23.1"}
ROWS = [[10, 11, 12, 13, GMASK, SOP, 20, 21, 22], [30, GMASK, SOP, 40, 41, 42, 43], [50, MASK, 51, 52, SOP, 60]]
BATCH = [[10, 11, 12, GMASK, SOP, 20, 21, EOP], [30, 31, MASK, 33, SOP, 40, 41, EOP]]
LORA = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]


def _spread(model):
    """Random weights large enough that attention, biases and positions matter; the same every time."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            size = 2.0 if "attention.dense.weight" in name else 1.0 if "4h_to_h.weight" in name else 0.3  # outweigh the residual
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * size + (1.0 if "layernorm.weight" in name else 0.0))
    return model.eval()


def make_model(attention="sdpa", **config):
    raw = {name: value for name, value in RAW.items() if name != "auto_map"} | config
    return _spread(v1.ChatGLMForCausalLM._from_config(v1.ChatGLMConfig(**raw), attn_implementation=attention))


def padded(rows, side):
    """(ids, attention_mask) of rows padded to one length."""
    width = max(map(len, rows))

    def fill(values, filler):
        rest = [filler] * (width - len(values))
        return rest + values if side == "left" else values + rest

    return torch.tensor([fill(row, PAD) for row in rows]), torch.tensor([fill([1] * len(row), 0) for row in rows])


# --- the published code's numbers --------------------------------------------------------------------------------

@pytest.fixture(scope="module", params=sorted(path.parent.name for path in GOLDEN.glob("*/cases.json")) or [None])
def golden(request):
    """(folder, cases.json, tensors) of one tiny model that the published code computed."""
    if request.param is None:
        pytest.skip("no golden data: ../shared/golden/chatglm_6b is not there")
    folder = GOLDEN / request.param
    return folder, json.loads((folder / "cases.json").read_text(encoding="utf-8")), load_file(folder / "tensors.safetensors")


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def golden_model(request, golden):
    return AutoModelForCausalLM.from_pretrained(golden[0], dtype="float32", attn_implementation=request.param,
                                                residual_alpha_layers=golden[1]["residual_alpha_layers"]).eval()


def _cases(golden, kind):
    found = [case for case in golden[1]["cases"] if case["kind"] == kind]
    assert found
    return found


def _of(golden, case, *names):
    return [golden[2].get(f"{case['case']}.{name}") for name in names]


def _compare(output, golden, case, rows=slice(None)):
    real = torch.ones_like(_of(golden, case, "input_ids")[0], dtype=torch.bool)
    for row, pads in enumerate(case.get("n_left_pad", [])):
        real[row, :pads] = False
    for ours, what in ((output.logits, "logits"), (output.hidden_states[1], "hidden_first"), (output.hidden_states[-1], "hidden_last")):
        wanted = _of(golden, case, what)[0]
        torch.testing.assert_close(ours[rows][real[rows]], wanted[rows][real[rows]], atol=TOLERANCE, rtol=1e-6,
                                   msg=lambda text, what=what: f"{case['case']} {what}: {text}")


def test_golden_forward_with_the_published_masks(golden, golden_model):
    for case in _cases(golden, "forward"):
        ids, mask, positions = _of(golden, case, "input_ids", "attention_mask", "position_ids")
        for given in (mask, mask == 0):  # uint8 with 1 = masked, and bool with True = may look
            with torch.no_grad():
                output = golden_model(ids, attention_mask=given, position_ids=positions, output_hidden_states=True)
            _compare(output, golden, case)


def test_golden_forward_with_our_own_masks(golden, golden_model):
    checked = 0
    for case in _cases(golden, "forward"):
        ids, mask, positions = _of(golden, case, "input_ids", "attention_mask", "position_ids")
        if case["case"] == "both_masks_tokenizer_built":
            continue  # the published tokenizer counts from [MASK] there, against the published model; ours is the model's [gMASK]
        tokens = v1.padding_of(mask) if case["masks"].startswith("given") else None
        seen, found = v1.prefix_mask_and_positions(ids, tokens, golden_model.config)
        rows = slice(None)
        if case["case"] == "left_pad_model_built":  # the published model counts and sees pads; ours does not, so only rows without pads
            rows = [row for row, first in enumerate(ids[:, 0].tolist()) if first != golden_model.config.pad_token_id]
        real = torch.ones_like(ids, dtype=torch.bool) if tokens is None else tokens.bool()
        square = real[:, None, :, None] & real[:, None, None, :]
        assert torch.equal((seen & square)[rows], ((mask == 0) & square)[rows]), case["case"]
        assert torch.equal((found * real[:, None])[rows], positions[rows]), case["case"]
        with torch.no_grad():
            output = golden_model(ids, attention_mask=tokens, output_hidden_states=True)
        _compare(output, golden, case, rows)
        checked += 1
    assert checked == len(_cases(golden, "forward")) - 1


def test_golden_loss_and_gradients(golden, golden_model):
    cases = [case for case in _cases(golden, "forward") if "loss" in case]
    assert len(cases) == 2
    for case in cases:
        ids, labels = _of(golden, case, "input_ids", "labels")
        golden_model.zero_grad()
        loss = golden_model(ids, labels=labels).loss
        loss.backward()
        assert loss.item() == pytest.approx(case["loss"], abs=TOLERANCE)
        norms = {name: parameter.grad.norm().item() for name, parameter in golden_model.named_parameters()}
        wanted = {name: norm for name, norm in case["grad_norms"].items() if name != "lm_head.weight"}  # tied: one parameter
        assert norms.keys() == wanted.keys() and norms == pytest.approx(wanted, rel=TOLERANCE, abs=1e-7)


def test_golden_greedy_answers(golden, golden_model):
    for case in _cases(golden, "greedy_generate"):
        ids, mask, positions, wanted, logits = _of(golden, case, "input_ids", "attention_mask", "position_ids", "sequences", "step_logits")
        tokens = torch.ones_like(ids) if mask is None else v1.padding_of(mask)
        for options in ({}, {"use_cache": False}, *([{"position_ids": positions}] if positions is not None else [])):
            output = golden_model.generate(ids, attention_mask=tokens, do_sample=False, max_new_tokens=case["max_new_tokens"],
                                           eos_token_id=case["eos_token_id"], return_dict_in_generate=True, output_logits=True, **options)
            assert output.sequences.tolist() == wanted.tolist(), (case["case"], options)
            steps = torch.stack(output.logits, 1)
            for row, new in enumerate(wanted[:, ids.shape[1]:].tolist()):
                length = new.index(case["eos_token_id"]) + 1 if case["eos_token_id"] in new else len(new)
                assert (steps[row, :length] - logits[row, :length]).abs().max() < TOLERANCE, (case["case"], options)


def test_golden_cached_decoding(golden, golden_model):
    for case in _cases(golden, "cached_forward"):
        ids, wanted, keys, values = _of(golden, case, "input_ids", "step_logits", "key0", "value0")
        with torch.no_grad():
            output = golden_model(ids[:, :case["prefill"]], use_cache=True)
            steps = [output.logits[:, -1]]
            for place in range(case["prefill"], ids.shape[1]):
                output = golden_model(ids[:, place:place + 1], past_key_values=output.past_key_values)
                steps.append(output.logits[:, -1])
        assert (torch.stack(steps, 1) - wanted).abs().max() < TOLERANCE
        layer = output.past_key_values.layers[0]
        assert max((layer.keys - keys).abs().max(), (layer.values - values).abs().max()) < TOLERANCE


# --- a second implementation -------------------------------------------------------------------------------------

def reference(model, ids, layers_in_alpha):
    """Logits of one row, (s, vocabulary), straight from the definition: complex rotation, a loop over heads, -10000 for what is hidden."""
    config, weights = model.config, model.state_dict()
    start = ids.index(config.bos_token_id)
    marker = ids.index(config.gmask_token_id) if config.gmask_token_id in ids else ids.index(config.mask_token_id)
    places = [[place if place < start else marker for place in range(len(ids))], [max(0, place - start + 1) for place in range(len(ids))]]
    size = config.hidden_size // config.num_attention_heads
    frequencies = torch.tensor([10000 ** (-2 * i / (size // 2)) for i in range(size // 4)]).half().double()
    hidden_from = torch.tensor([[key > query and key >= start for key in range(len(ids))] for query in range(len(ids))])

    def linear(states, name):
        return states @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(states, name):
        centred = states - states.mean(-1, keepdim=True)
        centred = centred / (centred.pow(2).mean(-1, keepdim=True) + config.layernorm_epsilon).sqrt()
        return centred * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def turned(states):
        parts = []
        for part, row in zip(states.split(size // 2, dim=-1), places):
            angles = torch.outer(torch.tensor(row, dtype=torch.float64), frequencies)
            numbers = torch.complex(*part.chunk(2, dim=-1)) * torch.polar(torch.ones_like(angles), angles)
            parts += [numbers.real, numbers.imag]
        return torch.cat(parts, dim=-1)

    alpha = (2 * layers_in_alpha) ** 0.5
    states = weights["transformer.word_embeddings.weight"][ids]
    for number in range(config.num_layers):
        name = f"transformer.layers.{number}"
        normed = norm(states, f"{name}.input_layernorm")
        heads = []
        for head in linear(normed, f"{name}.attention.query_key_value").split(3 * size, dim=-1):
            query, key, value = head.split(size, dim=-1)
            scores = (turned(query) @ turned(key).T / size ** 0.5).masked_fill(hidden_from, -10000)
            heads.append(scores.softmax(-1) @ value)
        normed = norm(alpha * normed + linear(torch.cat(heads, -1), f"{name}.attention.dense"), f"{name}.post_attention_layernorm")
        inner = linear(normed, f"{name}.mlp.dense_h_to_4h")
        inner = 0.5 * inner * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (inner + 0.044715 * inner ** 3)))
        states = alpha * normed + linear(inner, f"{name}.mlp.dense_4h_to_h")
    return norm(states, "transformer.final_layernorm") @ weights["transformer.word_embeddings.weight"].T


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("config, layers", [
    ({}, 28), ({"num_layers": 28}, 28), ({"residual_alpha_layers": 2}, 2), ({"residual_alpha_layers": 5, "num_layers": 3}, 5),
    ({"hidden_size": 96, "num_attention_heads": 8, "inner_hidden_size": 200, "layernorm_epsilon": 1e-3}, 28),
], ids=["two layers", "28 layers", "alpha of the config", "alpha of neither", "narrow heads"])
def test_logits_are_those_of_the_definition(attention, config, layers):
    model = make_model(attention, **config).double()
    for row in ROWS:
        with torch.no_grad():
            logits = model(torch.tensor([row])).logits[0]
        torch.testing.assert_close(logits, reference(model, row, layers), atol=2e-5, rtol=0)  # the angles are float32
        assert logits.std() > 0.3


def by_hand(ids, real, config):
    """Mask (s, s) and positions (2, s) of one row, token by token."""
    tokens = [place for place, is_real in enumerate(real) if is_real]
    row = [ids[place] for place in tokens]
    start = row.index(config.bos_token_id)
    marker = row.index(config.gmask_token_id) if config.gmask_token_id in row[:start] else row.index(config.mask_token_id)
    mask, positions = torch.eye(len(ids), dtype=torch.bool), torch.zeros(2, len(ids), dtype=torch.long)
    for number, place in enumerate(tokens):
        positions[0, place] = number if number < start else marker
        positions[1, place] = 0 if number < start else number - start + 1
        for other_number, other in enumerate(tokens):
            mask[place, other] |= other_number <= number or other_number < start
    return mask, positions


def test_mask_and_positions_are_those_counted_by_hand():
    config, generator = v1.ChatGLMConfig(**RAW), torch.Generator().manual_seed(0)

    def number(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    rows, reals = [], []
    for trial in range(60):
        prompt = [number(4, 80) for _ in range(number(1, 8))]
        for marker in ([GMASK], [MASK], [GMASK, MASK], [MASK, GMASK, GMASK])[trial % 4]:
            prompt.insert(number(0, len(prompt) + 1), marker)
        answer = [number(4, 80) for _ in range(number(0, 5))] + [MASK, SOP, GMASK][: trial % 3]  # what an answer brings changes nothing
        row = prompt + [SOP] + answer
        left = number(0, 25 - len(row))
        right = 25 - left - len(row)
        ids, real = [PAD] * left + row + [PAD] * right, [False] * left + [True] * len(row) + [False] * right
        place = left + 1 if trial % 5 == 0 else 25  # a pad inside the row, or one more behind it
        rows.append(ids[:place] + [PAD] + ids[place:])
        reals.append(real[:place] + [False] + real[place:])
    masks, positions = v1.prefix_mask_and_positions(torch.tensor(rows), torch.tensor(reals).long(), config)
    assert masks.shape == (60, 1, 26, 26) and masks.dtype == torch.bool and positions.shape == (60, 2, 26)
    for ids, real, mask, position in zip(rows, reals, masks, positions):
        wanted, places = by_hand(ids, real, config)
        assert torch.equal(mask[0], wanted) and torch.equal(position[:, real], places[:, real])


def test_no_attention_mask_takes_the_pads_in_front_for_padding():
    config = v1.ChatGLMConfig(**RAW)
    ids, seen = padded(ROWS, "left")
    for one, two in zip(v1.prefix_mask_and_positions(ids, None, config), v1.prefix_mask_and_positions(ids, seen, config)):
        assert torch.equal(one, two)
    config.pad_token_id = None
    assert v1.prefix_mask_and_positions(ids, None, config)[1][1, 0].tolist() == [0, 1, 2, 3, *[3] * 5]  # pads are tokens like others then


def test_half_precision_rounds_the_angle():
    positions = torch.stack([torch.arange(2048), torch.arange(2048).flip(0)])[None]
    frequencies = (1.0 / 10000 ** (torch.arange(0, 64, 2) / 64)).half()
    exact = positions[..., None].float() * frequencies.float()
    rounded = positions.half()[..., None] * frequencies  # a product in half precision is rounded once
    for dtype, angles in ((torch.float32, exact), (torch.float16, rounded), (torch.bfloat16, rounded)):
        for ours, wanted in zip(v1.rotary(positions, 128, dtype), (angles.float().cos(), angles.float().sin())):
            assert ours.shape == (1, 2, 2048, 32) and torch.equal(ours, wanted.to(dtype))
    apart = (rounded.float().cos() - exact.cos()).abs()
    assert apart[:, 0, :128].max() == pytest.approx(0.015, abs=0.005) and apart.max() == pytest.approx(0.49, abs=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_half_precision_runs(attention, dtype):
    ids, seen = padded(ROWS, "left")
    with torch.no_grad():
        exact = make_model(attention)(ids, attention_mask=seen).logits
        half = make_model(attention).to(dtype)(ids, attention_mask=seen).logits
    real = seen.bool()
    assert half.dtype == dtype and half.isfinite().all()
    assert (half.float() - exact)[real].norm() < (0.01 if dtype == torch.float16 else 0.06) * exact[real].norm()


# --- config ------------------------------------------------------------------------------------------------------

def test_attention_under_autocast_is_16_bit(monkeypatch):
    """On GPUs torch.autocast gives norms in 32 bit, and 4-bit layers answer in the format they are asked in; FlashAttention takes 16 bit only."""
    norm = torch.nn.LayerNorm.forward
    monkeypatch.setattr(torch.nn.LayerNorm, "forward", lambda self, states: norm(self, states).float())
    seen, model = [], make_model().to(torch.bfloat16)
    for layer in model.transformer.layers:
        layer.attention.query_key_value.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(input_ids=torch.tensor(ROWS[:1]), output_hidden_states=True)
    assert set(seen) == {(torch.bfloat16, torch.bfloat16)}
    assert {states.dtype for states in out.hidden_states} == {torch.bfloat16}


def test_published_configs_read_as_they_are(tmp_path):
    for vocabulary, first, pad in ((130528, 130000, 3), (150528, 150000, 20003)):
        ids = {"mask_token_id": first, "gmask_token_id": first + 1, "bos_token_id": first + 4, "eos_token_id": first + 5,
               "pad_token_id": pad}
        raw = RAW | ids | {"vocab_size": vocabulary, "torch_dtype": "float16"}
        (tmp_path / "config.json").write_text(json.dumps(raw), encoding="utf-8")
        config = AutoConfig.from_pretrained(tmp_path)
        assert type(config) is v1.ChatGLMConfig and config.vocab_size == vocabulary and config.dtype is torch.float16
        assert {name: getattr(config, name) for name in ids} == ids
        assert (config.num_hidden_layers, config.intermediate_size, config.max_position_embeddings) == (2, 128, 256)
        assert config.residual_alpha_layers == 28 and config.tie_word_embeddings
        config.residual_alpha_layers = 4
        config.save_pretrained(tmp_path / "again")
        again = v1.ChatGLMConfig.from_pretrained(tmp_path / "again")
        assert again.to_json_string() == config.to_json_string() and again.residual_alpha_layers == 4 and not hasattr(again, "auto_map")
    assert v1.ChatGLMConfig().num_layers == 28


def test_configs_of_another_model_are_refused(tmp_path):
    later = {"model_type": "chatglm", "num_layers": 28, "padded_vocab_size": 65024, "hidden_size": 4096, "ffn_hidden_size": 13696}
    (tmp_path / "config.json").write_text(json.dumps(later), encoding="utf-8")
    for read in (AutoConfig, AutoModelForCausalLM, v1.ChatGLMConfig):
        with pytest.raises(ValueError, match="ffn_hidden_size, padded_vocab_size is of ChatGLM2, ChatGLM3 or GLM-4"):
            read.from_pretrained(tmp_path)


@pytest.mark.parametrize("wrong, said", [
    ({"gmask_token_id": 100}, "gmask_token_id=100 is not below vocab_size=100"), ({"bos_token_id": -1}, "bos_token_id=-1"),
    ({"eos_token_id": [5, 130005]}, "eos_token_id=.5, 130005."), ({"pad_token_id": 20003}, "pad_token_id=20003"),
    ({"mask_token_id": 130000}, "mask_token_id"),
    ({"hidden_size": 66}, "multiple of 4"), ({"hidden_size": 72, "num_attention_heads": 4}, "multiple of 4"),
    ({"quantization_bit": 4}, "quantization_bit=4.*BitsAndBytesConfig"), ({"pre_seq_len": 128}, "P-Tuning"),
    ({"position_encoding_2d": False}, "position_encoding_2d"),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")
def test_configs_that_cannot_be_computed_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        v1.ChatGLMConfig(**RAW | wrong)
    config = v1.ChatGLMConfig(**RAW)
    for name, value in wrong.items():
        setattr(config, name, value)  # as options of from_pretrained do
    with pytest.raises(ValueError, match=said):
        v1.ChatGLMForCausalLM(config)


def test_all_problems_are_named_at_once():
    with pytest.raises(ValueError, match="(?s)gmask_token_id.*bos_token_id") as error:
        v1.ChatGLMConfig(**RAW | {"gmask_token_id": 150001, "bos_token_id": 150004, "pre_seq_len": 8})
    assert str(error.value).count("\n- ") == 3


# --- weights -----------------------------------------------------------------------------------------------------

def published(folder, kind, dtype=torch.float32):
    """Write a tiny model as the published repository holds it; returns the model."""
    model = make_model()
    weights = {name: tensor.to(dtype).clone() for name, tensor in model.state_dict().items()}
    weights |= {f"transformer.layers.{number}.attention.rotary_emb.inv_freq": torch.rand(4).to(dtype) for number in range(2)}
    assert "lm_head.weight" in weights
    (folder / "config.json").write_text(json.dumps(RAW | {"torch_dtype": str(dtype)[6:]}), encoding="utf-8")
    if kind == "safetensors":
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return model
    names = sorted(weights)
    where = {name: f"pytorch_model-0000{1 + (place > len(names) // 2)}-of-00002.bin" for place, name in enumerate(names)}
    for shard in set(where.values()):
        torch.save({name: weights[name] for name in names if where[name] == shard}, folder / shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}), encoding="utf-8")
    return model


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_published_weights_load_and_come_back(tmp_path, kind, dtype):
    model = published(tmp_path, kind, dtype).to(dtype).float()
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32", output_loading_info=True)
    assert type(loaded) is v1.ChatGLMForCausalLM and not any(report.values())
    assert loaded.lm_head.weight is loaded.transformer.word_embeddings.weight
    ids, seen = padded(ROWS, "left")
    wanted = model(ids, attention_mask=seen).logits
    assert torch.equal(loaded(ids, attention_mask=seen).logits, wanted)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype is dtype  # what the config says
    loaded.save_pretrained(tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert saved["architectures"] == ["ChatGLMForCausalLM"] and saved["inner_hidden_size"] == 128 and "auto_map" not in saved
    assert "transformer.layers.1.attention.query_key_value.bias" in load_file(tmp_path / "out" / "model.safetensors")
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()) and torch.equal(again(ids, attention_mask=seen).logits, wanted)
    assert torch.equal(AutoModel.from_pretrained(tmp_path / "out")(ids, attention_mask=seen).last_hidden_state,
                       again.transformer(ids, attention_mask=seen).last_hidden_state)


def test_weights_of_the_other_vocabulary_are_refused(tmp_path):
    published(tmp_path, "safetensors")
    (tmp_path / "config.json").write_text(json.dumps(RAW | {"vocab_size": 120}), encoding="utf-8")
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_registering_again_changes_nothing():
    v1.register()
    assert type(AutoConfig.for_model("chatglm")) is v1.ChatGLMConfig


# --- padding, cache, generation ----------------------------------------------------------------------------------

@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_is_its_rows(attention, side):
    model = make_model(attention)
    ids, seen = padded(ROWS, side)
    seen_by = v1.prefix_mask_and_positions(ids, seen, model.config)
    labels = ids.masked_fill(seen == 0, -100)
    with torch.no_grad():
        batch = model(ids, attention_mask=seen, labels=labels)
        whole = model(ids, attention_mask=seen_by[0], position_ids=seen_by[1])
        additive = packing.attention_mask(seen_by[0][1, 0], model)
        one = model(ids[1:2], attention_mask=additive, position_ids=seen_by[1][1:2])
        bare = model(ids).logits if side == "left" else model(ids[:1]).logits
        square = seen[:, None, :, None] & seen[:, None, None, :]
        hidden = (1 - seen_by[0] * square).to(torch.uint8)  # the published form: 1 = masked, a pad from itself too
        for given in (hidden, seen_by[0]):
            torch.testing.assert_close(model(ids, attention_mask=given, position_ids=seen_by[1]).logits[seen == 1], batch.logits[seen == 1],
                                       atol=TOLERANCE, rtol=0)
    assert torch.equal(v1.padding_of(hidden), seen)
    assert torch.equal(batch.logits, whole.logits) and batch.logits.isfinite().all()
    torch.testing.assert_close(one.logits[0][seen[1] == 1], batch.logits[1][seen[1] == 1], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(bare, batch.logits[: len(bare)], atol=TOLERANCE, rtol=0)
    total = count = 0
    for number, row in enumerate(ROWS):
        alone = model(torch.tensor([row]), labels=torch.tensor([row]))
        torch.testing.assert_close(batch.logits[number][seen[number] == 1], alone.logits[0], atol=TOLERANCE, rtol=0)
        total, count = total + alone.loss.item() * (len(row) - 1), count + len(row) - 1
    if side == "right":  # on the left the first token of a row is a label of the pad before it
        assert batch.loss.item() == pytest.approx(total / count, abs=TOLERANCE)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_cached_equals_uncached(attention):
    model = make_model(attention).double()
    answers = [[20, 21, 22, GMASK], [40, 41, SOP, 43], [60, MASK, 62, 63]]
    ids, seen = padded([row[: row.index(SOP) + 1] + answer for row, answer in zip(ROWS, answers)], "left")
    split = ids.shape[1] - 4
    positions = v1.prefix_mask_and_positions(ids, seen, model.config)[1]
    with torch.no_grad():
        wanted = model(ids, attention_mask=seen).logits[:, split:]
        for steps in ([1, 1, 1, 1], [3, 1], [4]):
            for options in ("nothing", "mask", "positions", "everything"):
                output, logits, place = model(ids[:, :split], attention_mask=seen[:, :split], use_cache=True), [], split
                for step in steps:
                    given = {} if options == "nothing" else {"attention_mask": seen[:, : place + step]}
                    if options in ("positions", "everything"):
                        given["position_ids"] = positions[..., place:place + step]
                    if options == "everything":
                        mask = v1.prefix_mask_and_positions(ids, seen, model.config)[0]
                        given["attention_mask"] = mask[:, :, place:place + step, : place + step]
                    output = model(ids[:, place:place + step], past_key_values=output.past_key_values, **given)
                    logits.append(output.logits)
                    place += step
                torch.testing.assert_close(torch.cat(logits, 1), wanted, atol=1e-9, rtol=0)


def test_a_cache_whose_rows_are_not_known_is_refused():
    model, ids = make_model(), torch.tensor(BATCH)
    mask, positions = v1.prefix_mask_and_positions(ids, None, model.config)
    cache = model(ids, use_cache=True).past_key_values
    cache.crop(-1)
    with pytest.raises(ValueError, match="rows of this cache"):
        model(ids[:, -1:], past_key_values=cache)
    again = model(ids[:, -1:], past_key_values=cache, position_ids=positions[..., -1:])
    torch.testing.assert_close(again.logits[:, -1], model(ids).logits[:, -1], atol=TOLERANCE, rtol=0)
    cache = model(ids, position_ids=positions, attention_mask=mask, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="rows of this cache"):
        model(ids[:, -1:], past_key_values=cache)
    cache = model(ids, use_cache=True).past_key_values
    cache.batch_repeat_interleave(2)
    with pytest.raises(ValueError, match="rows of this cache"):
        model(torch.tensor([[5]] * 4), past_key_values=cache)


def greedy(model, row, count):
    """A greedy answer from whole rows only: no cache, no padding, no generate."""
    row = list(row)
    for _ in range(count):
        scores = model(torch.tensor([row])).logits[0, -1].detach()
        scores[model.config.eos_token_id] = -torch.inf
        row.append(scores.argmax().item())
    return row[-count:]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 3}],
                         ids=["cached", "uncached", "static cache", "prompt lookup"])
def test_generate_is_step_by_step(attention, options):
    model = make_model(attention)
    rows = ROWS[1:2] if "prompt_lookup_num_tokens" in options else ROWS
    ids, seen = padded(rows, "left")
    output = model.generate(ids, attention_mask=seen, do_sample=False, max_new_tokens=8, min_new_tokens=8, **options)
    wanted = [greedy(model, row, 8) for row in rows]
    assert output[:, ids.shape[1]:].tolist() == wanted
    assert len({tuple(answer) for answer in wanted}) == len(rows) and sum(len(set(answer)) for answer in wanted) > 2 * len(rows)
    assert torch.equal(model.generate(ids, do_sample=False, max_new_tokens=8, min_new_tokens=8, **options), output)  # pads are found


def test_generate_continues_an_answer_with_and_without_its_cache():
    model = make_model()
    ids, seen = padded([row[: row.index(SOP) + 1] for row in ROWS], "left")
    options = dict(do_sample=False, min_new_tokens=4, max_new_tokens=4, return_dict_in_generate=True)
    first = model.generate(ids, attention_mask=seen, **options)
    longer = torch.cat([seen, torch.ones(3, 4, dtype=torch.long)], 1)
    whole = model.generate(ids, attention_mask=seen, **options | {"min_new_tokens": 8, "max_new_tokens": 8}).sequences
    assert torch.equal(model.generate(first.sequences, attention_mask=longer, **options).sequences, whole)
    cached = model.generate(first.sequences, attention_mask=longer, past_key_values=first.past_key_values, **options)
    assert torch.equal(cached.sequences, whole)


def test_generate_counts_from_where_the_caller_says():
    """The published tokenizer counts from [MASK] where a row has both; its two rows of positions are kept up with the answer."""
    model, ids = make_model(), torch.tensor([[10, MASK, 12, 13, GMASK, SOP, 20]])
    own = v1.prefix_mask_and_positions(ids, None, model.config)[1]
    assert own[0].tolist() == [[0, 1, 2, 3, 4, 4, 4], [0, 0, 0, 0, 0, 1, 2]]
    other = own.clone()
    other[:, 0, 5:] = 1
    steps = []
    for positions in (None, other):
        options = {} if positions is None else {"position_ids": positions}
        answer = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=6, max_new_tokens=6,
                                return_dict_in_generate=True, output_logits=True, **options)
        row = answer.sequences
        whole = v1.prefix_mask_and_positions(row, None, model.config)[1]
        if positions is not None:
            whole[:, 0, 5:] = 1
        wanted = model(row, position_ids=whole).logits[:, ids.shape[1] - 1:-1]
        torch.testing.assert_close(torch.stack(answer.logits, 1), wanted, atol=5e-5, rtol=0)
        steps.append(wanted)
    assert (steps[0] - steps[1]).abs().max() > 0.1


def test_beams_and_sampling_do_not_depend_on_the_cache():
    model = make_model()
    ids, seen = padded(ROWS, "left")
    for options in ({"num_beams": 3, "do_sample": False}, {"do_sample": True, "top_p": 0.7, "temperature": 0.95}):
        results = []
        for use_cache in (True, False):
            torch.manual_seed(11)
            results.append(model.generate(ids, attention_mask=seen, max_new_tokens=6, use_cache=use_cache, **options))
        assert torch.equal(*results)


def test_generate_stops_at_eop():
    model = make_model()
    assert model.generation_config.eos_token_id == EOP and model.generation_config.pad_token_id == PAD
    ids, seen = padded(ROWS, "left")
    answers = [greedy(model, row, 6) for row in ROWS]
    stop = answers[0][2]
    output = model.generate(ids, attention_mask=seen, do_sample=False, max_new_tokens=6, eos_token_id=[EOP, stop])
    for answer, new in zip(answers, output[:, ids.shape[1]:].tolist()):
        length = answer.index(stop) + 1 if stop in answer else 6
        assert new[:length] == answer[:length] and set(new[length:]) <= {PAD}


# --- errors ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("row, said", [
    ([5, 6, 7, 8, SOP, 9], r"row 1: no \[gMASK\] \(id 91\) or \[MASK\] \(id 90\) before <sop>"),
    ([5, 6, 7, SOP, GMASK, 9], r"row 1: no \[gMASK\]"),
    ([5, 6, 7, GMASK, 8, 9], r"row 1: no <sop> \(id 94\)"), ([5, 6, 7, 8, 9, 9], "row 1: no <sop>"), ([PAD] * 6, "row 1: no <sop>"),
])
def test_a_row_without_its_special_tokens_is_named(row, said):
    model, ids = make_model(), torch.tensor([[5, 6, 7, GMASK, SOP, 9], row, [5, GMASK, 7, SOP, 9, 9]])
    seen = torch.ones_like(ids)
    for call in (lambda: model(ids), lambda: model(ids, attention_mask=seen), lambda: model.train()(ids, labels=ids),
                 lambda: model.generate(ids, attention_mask=seen), lambda: v1.prefix_mask_and_positions(ids, seen, model.config)):
        with pytest.raises(ValueError, match=said) as error:
            call()
        assert "row 0" not in str(error.value) and "row 2" not in str(error.value)
    hidden = seen.clone()
    hidden[0, 4] = 0  # a <sop> that is padded away is none
    with pytest.raises(ValueError, match="row 0: no <sop>"):
        model(ids[:1], attention_mask=hidden[:1])


def test_what_cannot_be_known_is_refused():
    model, ids = make_model(), torch.tensor(BATCH)
    mask, positions = v1.prefix_mask_and_positions(ids, None, model.config)
    embeds = model.get_input_embeddings()(ids)
    for said, call in (
        ("two rows of positions", lambda: model(ids, position_ids=torch.arange(8)[None])),
        ("two rows of positions", lambda: model(ids, position_ids=positions[..., 1:])),
        ("could mean either", lambda: model(ids, attention_mask=mask.long(), position_ids=positions)),
        ("does not fit", lambda: model(ids, attention_mask=torch.ones(2, 7))),
        ("either input_ids or inputs_embeds", lambda: model(attention_mask=mask)),
        ("inputs_embeds need", lambda: model(inputs_embeds=embeds)),
        ("4-D attention_mask needs position_ids", lambda: model(ids[:, 2:], attention_mask=mask[:, :, 2:],
                                                                past_key_values=_half_cache(model, ids))),
        ("2 cached and 6 new", lambda: model(ids[:, 2:], attention_mask=torch.ones(2, 6), position_ids=positions[..., 2:],
                                                          past_key_values=_half_cache(model, ids))),
        ("row 1 is padded on the right", lambda: model.generate(ids, attention_mask=torch.tensor([[1] * 8, [1] * 7 + [0]]))),
        ("inside a prompt", lambda: model.generate(ids, attention_mask=torch.ones(2, 8), past_key_values=_half_cache(model, ids))),
        ("must be 2D", lambda: model.generate(ids, attention_mask=mask)),
    ):
        with pytest.raises(ValueError, match=said):
            call()
    with torch.no_grad():
        given = model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).logits
        assert torch.equal(given, model(ids).logits) and torch.equal(given, model(ids, attention_mask=mask).logits)


def _half_cache(model, ids):
    cache = model(ids, use_cache=True).past_key_values
    cache.crop(-6)
    return cache


# --- training ----------------------------------------------------------------------------------------------------

def _gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_checkpointing_changes_nothing():
    model = make_model().train()
    ids, seen = padded(ROWS, "right")
    labels = ids.masked_fill(seen == 0, -100)
    plain = model(ids, attention_mask=seen, labels=labels).loss
    wanted = _gradients(model, plain)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    calls, inner = [], model.transformer.layers[0].mlp.forward
    model.transformer.layers[0].mlp.forward = lambda states: calls.append(1) or inner(states)
    loss = model(ids, attention_mask=seen, labels=labels).loss
    found = _gradients(model, loss)
    assert len(calls) == 2  # computed again in the backward pass
    assert torch.equal(loss, plain) and len(found) == 2 * 12 + 3 and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_logits_to_keep():
    model, ids = make_model(), torch.tensor(BATCH)
    with torch.no_grad():
        whole = model(ids).logits
        keep = torch.zeros_like(ids, dtype=torch.bool)
        keep[0, 4:6] = keep[1, 7] = True
        for wanted, given in ((whole[:, -2:], 2), (whole[:, [1, 5]], torch.tensor([1, 5])), (whole[keep], keep)):
            torch.testing.assert_close(model(ids, logits_to_keep=given).logits, wanted, atol=TOLERANCE, rtol=0)


def test_attentions_and_hidden_states():
    model, ids = make_model("eager"), torch.tensor(BATCH)
    output = model(ids, output_attentions=True, output_hidden_states=True)
    mask = v1.prefix_mask_and_positions(ids, None, model.config)[0].expand(2, 4, 8, 8)
    assert len(output.attentions) == 2 and len(output.hidden_states) == 3
    assert all((weights[~mask] == 0).all() and (weights[mask] > 0).all() for weights in output.attentions)


def test_autocast_trains():
    model, ids = make_model().train(), torch.tensor(BATCH)
    exact = _gradients(model, model(ids, labels=ids).loss)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, labels=ids).loss
    rounded = _gradients(model, loss)
    assert all((rounded[name] - exact[name]).norm() < 0.2 * exact[name].norm() + 1e-4 for name in exact if "query_key_value" in name)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_packs_and_padded_batches_train_like_the_samples(attention, layout):
    model = make_model(attention)
    samples = [Sample(row, row.index(SOP) + 1) for row in ROWS]
    ends = (GMASK, SOP)
    if layout == "packed":
        samples = [sample for sample in samples if GMASK in sample.ids]
        batch = packing.pack(samples, two_way=ends)
    else:
        batch = packing.pad(samples, PAD, two_way=ends)
    loss = packing.loss_sum(model, batch)
    found = _gradients(model, loss)
    total = 0.0
    for sample in samples:
        logits = model(torch.tensor([sample.ids])).logits[0, :-1]
        total = total + functional.cross_entropy(logits, torch.tensor(sample.labels[1:]), reduction="sum")
    wanted = _gradients(model, total)
    assert loss.item() == pytest.approx(total.item(), rel=1e-6)
    for name in wanted:
        assert (found[name] - wanted[name]).norm() <= 1e-5 * wanted[name].norm() + 1e-6, name
    tree = packing.Tree(two_way=ends)
    tree.add(ROWS[0])
    mask, positions = v1.prefix_mask_and_positions(torch.tensor(ROWS[:1]), None, model.config)
    assert torch.equal(tree.mask(), mask[0, 0]) and torch.equal(tree.position_ids(), positions)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_lora_learns_and_merges(tmp_path, quantization):
    from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
    published(tmp_path, "safetensors")
    options = {}
    if quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                                            bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, **options)
    if quantization == "nf4":
        from bitsandbytes.nn import Linear4bit
        assert models.guard_cpu_kernels(model) == 2 * len(LORA) and type(model.lm_head) is torch.nn.Linear
        assert isinstance(model.transformer.layers[1].attention.query_key_value, Linear4bit)
        assert model.lm_head.weight is model.transformer.word_embeddings.weight
        model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})
    torch.manual_seed(1)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=LORA, task_type="CAUSAL_LM"))
    ids, seen = padded(ROWS, "right")
    labels = ids.masked_fill(seen == 0, -100)
    model.eval().generate(input_ids=ids[:1], attention_mask=seen[:1], max_new_tokens=2)
    model.train()  # an answer before training must not spoil the gradients
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.02)
    losses = []
    for _ in range(12):
        loss = model(input_ids=ids, attention_mask=seen, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    grown = [name for name, parameter in model.named_parameters() if "lora_B" in name and parameter.abs().max() > 0]
    assert len(grown) == 2 * len(LORA) and losses[-1] < 0.5 * losses[0]
    model.save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        logits = tuned(input_ids=ids, attention_mask=seen).logits
        if quantization == "none":
            torch.testing.assert_close(logits, model.eval()(input_ids=ids, attention_mask=seen).logits, atol=TOLERANCE, rtol=0)
        merged = tuned.merge_and_unload()
        assert type(merged) is v1.ChatGLMForCausalLM
        torch.testing.assert_close(merged(ids, attention_mask=seen).logits, logits, atol=5e-5, rtol=0)
        merged.save_pretrained(tmp_path / "merged")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        assert torch.equal(again(ids, attention_mask=seen).logits, merged(ids, attention_mask=seen).logits)
