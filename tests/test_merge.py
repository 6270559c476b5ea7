"""`python -m glmlab merge`: a folder that loads without the adapter, with the training's prompt as chat template and a model card."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from safetensors.torch import load_file

from glmlab import chat, model_card, models, paths, vllm
from glmlab.__main__ import main

TALK = [{"role": "user", "content": "血压有点高怎么办？"}, {"role": "assistant", "content": "少吃盐。"}, {"role": "user", "content": "要吃药吗？"}]


@pytest.mark.parametrize("run", ["intent-reference", "medical-reference", "service-reference"])
def test_merged_folder(run, tmp_path, capsys):
    from transformers import AutoTokenizer
    assert main(["merge", run, str(tmp_path / "merged")]) == 0
    said = capsys.readouterr().out
    assert "logits differ from those of base and adapter by" in said and "written: " in said
    adapter = models.find_checkpoint(run, -1)
    base = models.read_run(run)["settings"]["base"]
    tuned, tokenizer = models.load_finetuned(base, adapter, "none", "fp32", "cpu")
    merged, _ = models.load_base(tmp_path / "merged", "none", "fp32", "cpu")
    ids = chat.prompt_ids(tokenizer, TALK)
    with torch.inference_mode():
        one, two = (model(input_ids=torch.tensor([ids])).logits for model in (tuned, merged))
    assert (one - two).square().mean().sqrt() < 0.1 * one.std()
    elsewhere = AutoTokenizer.from_pretrained(tmp_path / "merged")  # as vLLM and others read it
    assert elsewhere.apply_chat_template(TALK, add_generation_prompt=True, return_dict=False) == ids
    assert_card(tmp_path / "merged", base, f"# {base} with {run} {adapter.name.removeprefix('checkpoint-')}\n")
    config = json.loads((tmp_path / "merged" / "config.json").read_text(encoding="utf-8"))
    assert config["dtype"] == "bfloat16"
    assert_vllm_finds(tmp_path / "merged", config, run, said)


def assert_card(folder, base: str, title: str) -> None:
    """Metadata that the Hub's own reader takes, and code that loads the folder in a process of its own."""
    from huggingface_hub import ModelCard
    card = (folder / "README.md").read_text(encoding="utf-8")
    head, text = card.removeprefix("---\n").split("\n---\n", 1)
    assert text.startswith(title) and "Licence" in text and "Trained on" in text
    known, config = ModelCard(card).data.to_dict(), json.loads((folder / "config.json").read_text(encoding="utf-8"))
    only_here = config["model_type"] == "chatglm"
    assert known == {"language": "zh", "license": "mit", "base_model": base, "base_model_relation": "finetune", "pipeline_tag": "text-generation",
                     "library_name": "glmlab" if only_here else "transformers", "tags": [config["model_type"], "lora", "glm-lab"]}
    assert ("not for vLLM" in text) == ("import glmlab.chatglm.v1" in text) == only_here
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    done = subprocess.run([sys.executable, "-c", code + "print(type(model).__name__, len(tokenizer.apply_chat_template([{'role': 'user', 'content': '好'}])))"],
                          cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(config["architectures"][0]), done.stderr


def assert_vllm_finds(folder, config: dict, run: str, said: str) -> None:
    """vLLM itself is not run: these are the fields and files that its loader asks for, where it has a class for the base."""
    known = {"intent-reference": "Glm4ForCausalLM", "medical-reference": "GlmForCausalLM"}.get(run)
    if not known:
        assert config["architectures"] == ["ChatGLMForCausalLM"] and "vllm" not in said
        return
    assert config["architectures"] == [known] and config["rope_parameters"]["partial_rotary_factor"] == 0.5
    assert said.splitlines()[-1] == f"vllm serve {folder} --served-model-name {run}"
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (folder / name).is_file(), name


@pytest.mark.parametrize("run", ["intent-reference", "medical-reference"])
def test_an_adapter_folder_has_what_vllm_reads(run, tmp_path, capsys):
    assert main(["merge", run, str(tmp_path / "adapter"), "--adapter-only"]) == 0
    step, base = models.find_checkpoint(run, -1), models.read_run(run)["settings"]["base"]
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"vllm serve data/models/{base} --enable-lora --max-lora-rank 16 --lora-modules {run}={tmp_path / 'adapter'} "
        f"--chat-template {tmp_path / 'adapter' / 'chat_template.jinja'}")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == base and config["r"] == 16 and config["lora_alpha"] == 32 and not config["use_dora"]
    assert config["bias"] == "none" and config["modules_to_save"] is None
    before, after = load_file(step / "adapter_model.safetensors"), load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    known = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}  # of its GLM classes, packed layers taken apart
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in after} <= known
    assert {target.rsplit(".", 1)[-1] for target in config["target_modules"]} <= known

    def product(weights, layer):
        return weights[f"{layer}.lora_B.weight"] @ weights[f"{layer}.lora_A.weight"]

    layers = {name.split(".lora_")[0] for name in before}
    assert any("gate_up_proj" in layer for layer in layers)
    for layer in layers:
        parts = [layer.replace("gate_up_proj", half) for half in ("gate_proj", "up_proj")][: 2 if "gate_up_proj" in layer else 1]
        assert torch.equal(torch.cat([product(after, part) for part in parts]), product(before, layer)), layer


def test_vllm_commands(tmp_path):
    with pytest.raises(ValueError, match=r"vLLM has no class for chatglm-tiny \(ChatGLMForCausalLM\)"):
        vllm.adapter("chatglm-tiny", models.find_checkpoint("service-reference", -1), tmp_path)
    with pytest.raises(ValueError, match="is the source itself"):
        vllm.adapter("glm4-tiny", models.find_checkpoint("intent-reference", -1), models.find_checkpoint("intent-reference", -1))
    with pytest.raises(ValueError, match="glm-4-9b-0414 is not on this disk"):
        vllm.architecture("glm-4-9b-0414")
    for rank, allowed in ((4, 8), (33, 64), (512, 512)):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": rank}))
        assert f"--max-lora-rank {allowed} " in vllm.command("glm4-tiny", tmp_path, "mine")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 600}))
    with pytest.raises(ValueError, match="rank 600 is more than vLLM serves"):
        vllm.command("glm4-tiny", tmp_path, "mine")


def test_licences_as_the_hub_writes_them(tmp_path):
    assert model_card.licence("glm-4-9b-0414") == {"license": "mit"}
    assert model_card.licence("chatglm3-6b") == {"license": "other", "license_name": "chatglm3-licence"}
    (tmp_path / "config.json").write_text("{}")
    assert model_card.licence(tmp_path) == {"license": "unknown"}
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: glm-4\nlanguage: zh\n---\n# a base\n")
    assert model_card.licence(tmp_path) == {"license": "other", "license_name": "glm-4"}


def test_what_is_there_is_not_written_over(tmp_path, monkeypatch):
    """Refused before anything is loaded: the base, the checkpoint, a file, a folder with files, a place that cannot be written."""
    monkeypatch.setattr(models, "load_finetuned", lambda *args, **options: pytest.fail("loaded first"))
    base, adapter = models.base_source("glm4-tiny"), models.find_checkpoint("intent-reference", -1)
    for out in (base, adapter):
        with pytest.raises(ValueError, match="is the source itself"):
            models.merge("glm4-tiny", adapter, out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    with pytest.raises(ValueError, match=r"mine holds files already \(README.md\)"):
        models.merge("glm4-tiny", adapter, tmp_path / "mine")
    assert (tmp_path / "mine" / "README.md").read_text() == "mine"
    with pytest.raises(ValueError, match=r"chatglm3-tiny holds files already \(README.md, config.json, generation_config.json, …\)"):
        models.merge("glm4-tiny", adapter, paths.models("chatglm3-tiny"))
    with pytest.raises(ValueError, match="README.md is a file; name a folder"):
        models.merge("glm4-tiny", adapter, tmp_path / "mine" / "README.md")
    with pytest.raises(OSError, match="cannot write .*: a part of the path is a file"):
        models.merge("glm4-tiny", adapter, tmp_path / "mine" / "README.md" / "out")
    if os.path.isdir("/proc"):
        with pytest.raises(OSError, match="cannot write /proc/x"):
            models.merge("glm4-tiny", adapter, "/proc/x")
