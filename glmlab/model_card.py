"""The card (README.md) of a merged folder: metadata as the Hub reads them, what was merged and checked, how it loads."""

import json
from pathlib import Path

from glmlab import models

LOADS = """
## How it loads
```python
{first}from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # where this file lies
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
```
"""
#: transformers itself has no class for ChatGLM-6B.
FIRST = "import glmlab.chatglm.v1  # makes the class of ChatGLM-6B known\n"
ONLY_HERE = """
Without the first line transformers answers "does not recognize this architecture". So this folder is not for vLLM, `transformers serve`,
llama.cpp or Ollama, which know no ChatGLM-6B: serve it with `python -m glmlab serve TASK --base FOLDER --run none`.
"""


def merged(out, base, adapter, off: float, spread: float, dtype: str) -> str:
    """The card of the folder `out`, in which `adapter` is merged into `base`. off, spread: of the logits (`models.merge`)."""
    from huggingface_hub import ModelCardData
    adapter, model_type = Path(adapter), json.loads((Path(out) / "config.json").read_text(encoding="utf-8"))["model_type"]
    only_here = model_type == "chatglm"
    name = models.CATALOGUE[base].source if base in models.CATALOGUE else str(base) if _is_hub_id(base) else Path(base).name
    data = ModelCardData(language="zh", **licence(base), base_model=name, base_model_relation="finetune", pipeline_tag="text-generation",
                         library_name="glmlab" if only_here else "transformers", tags=[model_type, "lora", "glm-lab"])
    lines = [f"# {name} with {adapter.parent.name} {adapter.name.removeprefix('checkpoint-')}", "",
             f"The base `{name}` with a LoRA adapter merged into its {dtype} weights by `python -m glmlab merge`. "
             f"Licence of the weights: {models.CATALOGUE[base].licence if base in models.CATALOGUE else 'that of the base'}.", "",
             f"- Loaded again, its logits differ from those of base and adapter by {off:.2g} (root mean square; their spread is {spread:.2g}).",
             "- The chat template is the prompt of the training. What the model was measured to do stands in the reports of its run.",
             *_training(adapter.parent / "run.json")]
    return f"---\n{data.to_yaml()}\n---\n" + "\n".join(lines) + "\n" + LOADS.format(first=FIRST * only_here) + ONLY_HERE * only_here


def _is_hub_id(base) -> bool:
    return not Path(models.base_source(base)).is_dir()


def _training(file: Path) -> list[str]:
    """What run.json says of the training; nothing for an adapter without one."""
    if not file.is_file():
        return []
    record = json.loads(file.read_text(encoding="utf-8"))
    data, settings = record.get("data", {}).get("train", {}), record["settings"]
    return [f"- Trained on {data.get('rows', 'unknown')} rows of `{Path(str(data.get('file', 'unknown'))).name}`; settings: "
            f"rank {settings['rank']}, {settings['steps']} steps, learning rate {settings['learning_rate']:g}."]


def licence(base) -> dict[str, str]:
    """The licence of a base as metadata: of the catalogue, else of the card in its folder, else unknown.

    The Hub has an identifier for MIT; the licences of the ChatGLM weights are `other`, with a name.
    """
    from huggingface_hub import ModelCard
    if base in models.CATALOGUE:
        name = models.CATALOGUE[base].licence.partition(" (")[0]
        return {"license": "mit"} if name == "MIT" else {"license": "other", "license_name": name.lower().replace(" ", "-")}
    card = Path(models.base_source(base)) / "README.md"
    data = ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict() if card.is_file() else {}
    found = {name: str(data[name]) for name in ("license", "license_name", "license_link") if data.get(name)}
    return found or {"license": "unknown"}
