"""load_base and convert on folders as they were published: every generation through the one door."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import glmlab
from glmlab import __main__ as command_line
from glmlab import chat, models, paths
from glmlab.chatglm import glm
from glmlab.chatglm.v1 import ChatGLMConfig, ChatGLMForCausalLM

SHARED = paths.ROOT.parent / "shared/golden"
FOLDERS = {"chatglm_6b/a_l3_h4": "ChatGLMForCausalLM", "chatglm3_6b/a_l3_h4_g2": "GlmForCausalLM", "glm4_9b_chat/b_l2_h8_g2_rope1": "GlmForCausalLM"}
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="published vocabularies and golden numbers are not part of this repository")
RAW = {"model_type": "chatglm", "architectures": ["ChatGLMModel"], "auto_map": {"AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration"},
       "hidden_size": 16, "ffn_hidden_size": 32, "num_layers": 1, "num_attention_heads": 2, "kv_channels": 8, "layernorm_epsilon": 1e-5,
       "multi_query_attention": True, "multi_query_group_num": 1, "add_qkv_bias": True, "add_bias_linear": False, "rmsnorm": True,
       "post_layer_norm": True, "tie_word_embeddings": False, "torch_dtype": "float16", "eos_token_id": 2, "pad_token_id": 0}


def original(folder, **changes):
    """A random checkpoint of ChatGLM3's kind in the original layout."""
    raw = RAW | changes
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    torch.manual_seed(2)
    save_file({name: torch.randn(shape).half() * 0.2 for name, shape in glm.original_shapes(glm.glm_config(raw)).items()},
              folder / "model.safetensors")
    return folder


@needs_shared
@pytest.mark.parametrize("name", FOLDERS)
def test_golden_folders_load_without_a_tokenizer(name):
    model, tokenizer = glmlab.load_base(SHARED / name, quantization="none", dtype=torch.float32, device="cpu")
    assert tokenizer is None and type(model).__name__ == FOLDERS[name] and not model.training
    arrays = load_file(SHARED / name / "tensors.safetensors")
    case = "gmask_single" if "chatglm_6b" in name else "single"
    with torch.no_grad():
        assert (model(input_ids=arrays[f"{case}.input_ids"]).logits - arrays[f"{case}.logits"]).abs().max() < 1e-5


@needs_shared
@pytest.mark.parametrize("style, size, length", [("chatglm3", 65024, 8192), ("chatglm2", 65024, 32768), ("glm4", 151552, 131072)])
def test_a_published_folder_with_its_vocabulary(tmp_path, monkeypatch, capsys, style, size, length):
    ids = {"eos_token_id": [151329, 151336, 151338], "pad_token_id": 151329} if style == "glm4" else {}
    folder = original(tmp_path / "base", padded_vocab_size=size, seq_length=length, **ids)
    vocabulary = {"glm4": "glm4_9b_chat"}.get(style, "chatglm3_6b")
    shutil.copy(SHARED / f"tokenizers/{vocabulary}/tokenizer.model", folder)
    model, tokenizer = glmlab.load_base(folder, quantization="none", dtype="fp32", device="cpu")
    assert chat.format_of(tokenizer).name == style
    golden = json.loads((SHARED / "tokenizers/chatglm3_6b/golden.json").read_text(encoding="utf-8"))["build_chat_input"][1]
    messages = [*golden["history"], {"role": "user", "content": golden["query"]}]
    ids = torch.tensor([chat.prompt_ids(tokenizer, messages)])
    if style == "chatglm3":
        assert ids[0].tolist() == golden["input_ids"]

    assert command_line.main(["convert", str(folder), str(tmp_path / "plain"), "--dtype", "float32"]) == 0
    assert "written:" in capsys.readouterr().out
    alone = f"""
import sys, json, torch
sys.modules["glmlab"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({str(tmp_path / "plain")!r})
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "plain")!r}, dtype=torch.float32)
ids = tokenizer.apply_chat_template(json.loads({json.dumps(messages)!r}), add_generation_prompt=True, return_dict=False)
with torch.no_grad():
    torch.save((ids, type(model).__module__, model(torch.tensor([ids])).logits), {str(tmp_path / "out.pt")!r})
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([sys.executable, "-I", "-c", alone], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    templated, module, logits = torch.load(tmp_path / "out.pt")
    assert templated == ids[0].tolist() and module == "transformers.models.glm.modeling_glm"
    with torch.no_grad():
        assert torch.equal(model(ids).logits, logits)
    again, tokenizer = glmlab.load_base(tmp_path / "plain", quantization="none", dtype="fp32", device="cpu")
    assert chat.prompt_ids(tokenizer, messages) == templated


@needs_shared
def test_chatglm_6b_with_both_vocabularies(tmp_path):
    def save(name, vocab_size, shift, **settings):
        config = ChatGLMConfig(vocab_size=vocab_size, hidden_size=16, inner_hidden_size=32, num_layers=1, num_attention_heads=2,
                               mask_token_id=130000 + shift, gmask_token_id=130001 + shift, bos_token_id=130004 + shift,
                               eos_token_id=130005 + shift, pad_token_id=3 + shift)
        ChatGLMForCausalLM(config).save_pretrained(tmp_path / name)
        shutil.copy(SHARED / "tokenizers/chatglm_6b/ice_text.model", tmp_path / name)
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return glmlab.load_base(tmp_path / name, quantization="none", dtype="fp32", device="cpu")

    messages = [{"role": "user", "content": "你好"}]
    assert chat.prompt_ids(save("slim", 130528, 0, num_image_tokens=0)[1], messages) == [5, 74874, 130001, 130004]
    model, tokenizer = save("first", 150528, 20000)
    assert chat.prompt_ids(tokenizer, messages) == [20005, 94874, 150001, 150004]
    assert model.generate(torch.tensor([chat.prompt_ids(tokenizer, messages)]), max_new_tokens=2, do_sample=False).shape == (1, 6)
    with pytest.raises(ValueError, match="do not belong together.*150001 in the checkpoint"):
        save("mixed", 150528, 20000, num_image_tokens=0)
    out = models.convert(tmp_path / "slim", tmp_path / "plain")
    assert (out / "tokenizer.json").is_file() and chat.prompt_ids(models.load_tokenizer(out), messages) == [5, 74874, 130001, 130004]


def test_chatglm2_or_3_must_be_said_where_nothing_tells(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece", reason="makes a vocabulary file of ChatGLM's kind for this test")
    folder = original(tmp_path / "base", padded_vocab_size=400, seq_length=100)
    (tmp_path / "text").write_text("您好请讲 我想查一下话费 好的先生\n" * 20, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(input=str(tmp_path / "text"), model_prefix=str(folder / "tokenizer"), model_type="bpe",
                                             vocab_size=290, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
                                             minloglevel=9)
    with pytest.raises(ValueError, match="may be ChatGLM2 or ChatGLM3"):
        models.load_base(folder, "none", "fp32", "cpu")
    for style in ("chatglm2", "chatglm3"):
        assert chat.format_of(models.load_base(folder, "none", "fp32", "cpu", chat_format=style)[1]).name == style


def test_what_cannot_be_loaded_is_said(tmp_path, capsys):
    with pytest.raises(ValueError, match="add_bias_linear"):
        models.load_base(_with(original(tmp_path / "a", padded_vocab_size=64, seq_length=64), add_bias_linear=True), "none")
    cut = original(tmp_path / "b", padded_vocab_size=64, seq_length=64)
    os.truncate(cut / "model.safetensors", 500)
    with pytest.raises(OSError, match="damaged or half downloaded"):
        models.load_base(cut, "none")
    other = _with(original(tmp_path / "c", padded_vocab_size=64, seq_length=64), model_type="llama")
    with pytest.raises(ValueError, match="is a 'llama' model; this course loads chatglm, glm, glm4"):
        models.load_base(other, "none")
    assert command_line.main(["convert", "glm4-tiny", str(tmp_path / "out")]) == 1
    assert "which transformers loads as it is" in capsys.readouterr().err
    with pytest.raises(ValueError, match="source itself"):
        models.convert(cut, cut)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds files already"):
        models.convert(cut, tmp_path / "mine")


@pytest.mark.parametrize("code", [
    "models.load_tokenizer('chatglm-tiny')",
    "models.load_finetuned('chatglm-tiny', models.find_checkpoint('triplets-reference', -1), 'none', 'fp32', 'cpu')",
], ids=["tokenizer", "adapter"])
def test_loading_says_nothing(code):
    """No warning of transformers that no user can act on, and none silenced for the process."""
    program = f"import warnings\nfrom glmlab import models\n{code}\nassert 'is_gradient_checkpointing' not in str(warnings.filters)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_unknown_run_names_those_that_ship_too(tmp_path, monkeypatch):
    monkeypatch.setenv("GLMLAB_HOME", str(tmp_path))
    paths.write_json(paths.runs("mine", "run.json"), {})
    with pytest.raises(FileNotFoundError, match="run 'nope' not found in .* or data/runs; there are: .*intent-reference.*mine"):
        models.read_run("nope")


def _with(folder, **changes):
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(raw | changes), encoding="utf-8")
    return folder


def test_the_catalogue_counts_its_parameters(monkeypatch):
    """Weights by arithmetic: every linear layer in 4.127 bit (NF4, double quantisation) or 16 bit, everything else in 16 bit."""
    from transformers import GlmConfig, GlmForCausalLM
    sizes = {"chatglm3-6b": (28, 65024, GlmForCausalLM), "glm-4-9b-chat": (40, 151552, GlmForCausalLM)}
    with torch.device("meta"):
        built = {name: model_class(GlmConfig(vocab_size=vocabulary, hidden_size=4096, intermediate_size=13696, num_hidden_layers=layers,
                                             num_attention_heads=32, num_key_value_heads=2, head_dim=128, attention_bias=True, pad_token_id=0))
                 for name, (layers, vocabulary, model_class) in sizes.items()}
        built["chatglm-6b"] = ChatGLMForCausalLM(ChatGLMConfig())
    for name, model in built.items():
        linear = sum(module.weight.numel() for part, module in model.named_modules() if isinstance(module, torch.nn.Linear) and "head" not in part)
        total = sum(parameter.numel() for parameter in model.parameters())
        entry = models.CATALOGUE[name]
        assert abs(entry.parameters - total / 1e9) < 0.01
        assert abs(entry.bf16_gib - total * 2 / 2**30) < 0.06
        assert abs(entry.nf4_gib - (linear * 4.127 / 8 + (total - linear) * 2) / 2**30) < 0.06
