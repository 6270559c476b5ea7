"""`python -m glmlab merge`: a folder that loads without the adapter, with the training's prompt as chat template and a model card."""

import json

import pytest
import torch

from glmlab import chat, models
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
    card = (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    assert card.startswith(f"# {base} with {run} {adapter.name.removeprefix('checkpoint-')}\n") and "Licence" in card and "Trained on" in card
    assert json.loads((tmp_path / "merged" / "config.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"


def test_the_base_is_not_written_over():
    with pytest.raises(ValueError, match="is the source itself"):
        models.merge("glm4-tiny", models.find_checkpoint("intent-reference", -1), models.base_source("glm4-tiny"))
