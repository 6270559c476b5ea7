"""Folders and commands for vLLM, which serves a merged model, or one base with many adapters, to many at once. vLLM is not needed here.

What it reads was taken from its source (lora/lora_model.py, lora/peft_helper.py, model_executor/models/glm4.py): it splits a layer that
GLM keeps in one piece, gate_up_proj, and refuses an adapter on the whole of it. So an adapter is rewritten, exactly: a product B A is
divided like the rows of B.
"""

import json
from pathlib import Path

from glmlab import chat, models, paths

ARCHITECTURES = ("Glm4ForCausalLM", "GlmForCausalLM")  # GLM-4-0414; ChatGLM2, ChatGLM3 and GLM-4-9B-Chat once converted
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)         # what --max-lora-rank may be
WHOLE, HALVES = "gate_up_proj", ("gate_proj", "up_proj")


def architecture(base) -> str:
    """The class that vLLM must know for a base. Errors: ValueError for one it does not know, or that must be converted first."""
    source = models.base_source(base)
    if not (Path(source) / "config.json").is_file():
        raise ValueError(f"{base} is not on this disk; download its folder and give its path, which vLLM needs too")
    found = json.loads((Path(source) / "config.json").read_text(encoding="utf-8")).get("architectures", ["none"])[0]
    if found not in ARCHITECTURES:
        raise ValueError(f"vLLM has no class for {base} ({found}); it serves {', '.join(ARCHITECTURES)}. ChatGLM2, ChatGLM3 and "
                         "GLM-4-9B-Chat: write them with `python -m glmlab convert` first; ChatGLM-6B: `python -m glmlab serve`")
    return found


def serves(base) -> bool:
    """Whether vLLM has a class for a base on this disk."""
    try:
        return bool(architecture(base))
    except ValueError:
        return False


def adapter(base, checkpoint, out) -> Path:
    """Write a checkpoint's adapter as vLLM reads it: PEFT's two files with gate_up_proj divided, and the chat template of the training.

    PEFT itself reads the checkpoint, not this folder. Errors: as `architecture`, `models.check_adapter` and `models.check_out`.
    """
    from safetensors.torch import load_file, save
    architecture(base)
    checkpoint, out = Path(checkpoint), Path(out)
    models.check_adapter(checkpoint)
    models.check_out(out, checkpoint)
    weights = {}
    for name, weight in load_file(checkpoint / "adapter_model.safetensors").items():
        parts = weight.chunk(2) if ".lora_B." in name else (weight, weight)  # rows of B: first those of gate, then those of up
        split = {name.replace(WHOLE, half): part.clone() for half, part in zip(HALVES, parts)}
        weights |= split if f".{WHOLE}." in name else {name: weight}
    config = json.loads((checkpoint / "adapter_config.json").read_text(encoding="utf-8"))
    if isinstance(config["target_modules"], list):
        config["target_modules"] = sorted({target.replace(WHOLE, half) for target in config["target_modules"] for half in HALVES})
    paths.write_bytes(out / "adapter_model.safetensors", save(weights, metadata={"format": "pt"}))
    paths.write_text(out / "chat_template.jinja", chat.format_of(models.load_tokenizer(base)).template)
    return paths.write_json(out / "adapter_config.json", config).parent


def command(base, folder, name: str) -> str:
    """The line that serves a folder of `adapter` on its base, or a merged folder."""
    folder = Path(folder)
    if not (folder / "adapter_config.json").is_file():
        return f"vllm serve {paths.shown(folder)} --served-model-name {name}"
    rank = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["r"]
    if rank > RANKS[-1]:
        raise ValueError(f"rank {rank} is more than vLLM serves ({RANKS[-1]}); merge the adapter instead")
    allowed = next(one for one in RANKS if one >= rank)
    return (f"vllm serve {paths.shown(models.base_source(base))} --enable-lora --max-lora-rank {allowed} "
            f"--lora-modules {name}={paths.shown(folder)} --chat-template {paths.shown(folder / 'chat_template.jinja')}")
