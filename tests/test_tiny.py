"""The tiny base that ships: a real GLM-4 of at most 8 M parameters, and the text it was made from."""

import json
import random
from itertools import islice

import pytest

from glmlab import chat, paths
from glmlab.tasks import calls, intent
from glmlab.tiny import corpus, telecom

FOLDER = paths.models("glm4-tiny")


@pytest.fixture(scope="module")
def base():
    from glmlab import models
    return models.load_base("glm4-tiny", "none", "fp32", "cpu")


def test_size_and_architecture(base):
    from transformers import Glm4ForCausalLM
    model, tokenizer = base
    config = model.config
    assert type(model) is Glm4ForCausalLM
    assert sum(p.numel() for p in model.parameters()) <= 8_000_000
    assert (FOLDER / "model.safetensors").stat().st_size <= 16e6
    assert all(size % 64 == 0 for size in (config.hidden_size, config.intermediate_size, config.head_dim * config.num_attention_heads))
    assert 6000 <= len(tokenizer) == config.vocab_size <= 8192


def test_nf4_is_the_real_thing():
    from bitsandbytes.nn import Linear4bit

    from glmlab import models
    model, _ = models.load_base("glm4-tiny", "nf4", "fp32", "cpu")
    quantised = [name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, Linear4bit)]
    assert len(quantised) == 6 * model.config.num_hidden_layers and "lm_head" not in quantised
    assert all(module.support_avx512bf16_for_cpu is False for module in model.modules() if isinstance(module, Linear4bit))


def test_prompt_equals_its_chat_template(base):
    messages = intent.messages("您好请讲[SEP]帮我查话费")
    rendered = base[1].apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert rendered == chat.prompt_ids(base[1], messages)


def test_it_writes_fluent_text(base):
    import torch
    model, tokenizer = base
    ids = torch.tensor([[*chat.start_ids(tokenizer), *chat.text_ids(tokenizer, "您好很高兴为您服务[SEP]")]])
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)
    written = tokenizer.decode(out[0, ids.shape[1]:])
    assert loss < 3 and sum("一" <= character <= "鿿" for character in written) >= 20


def test_the_card_says_what_was_measured():
    record = json.loads((FOLDER / "training.json").read_text(encoding="utf-8"))
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for figure in (f"{record['tokens']:,}", record["device"], f"{record['tokens_per_second']:,}", *(f"{v:.3f}" for v in record["heldout_loss"].values())):
        assert figure in card
    assert record["steps_done"] == record["recipe"]["steps"]


# --- the text ----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def texts():
    return [corpus.plain_text(document) for document in islice(telecom.documents(random.Random(3)), 4000)]


def test_telecom_text_holds_no_label_and_no_wording_of_the_task(texts):
    whole = "\n".join(texts)
    # 办理取消 and the like are words of ordinary talk; the bracketed names and the form of the answers are not
    assert not [name for name in intent.NAMES if "（" in name and name in whole] and "意图：" not in whole
    wordings = {phrase for split in ("train", "dev", "test") for label in range(34) for phrase in calls.label_phrases(split, label, "w")
                if "{" not in phrase and len(phrase) >= 6}
    assert len(wordings) > 300 and not [phrase for phrase in wordings if phrase in whole]


def test_documents_are_complete_and_seeded(texts):
    assert "{" not in "".join(texts)
    again = [corpus.plain_text(document) for document in islice(telecom.documents(random.Random(3)), 50)]
    assert again == texts[:50] and len(set(texts)) > 3800
    for name in corpus.MIX:
        for _, document in islice(corpus.documents(5, {name: 1.0}), 300):
            assert isinstance(document, str) or document[-1]["role"] == "assistant"


def test_encoding_is_deterministic_and_full(base):
    one, shares = corpus.encode(base[1], "a", 3000)
    two, _ = corpus.encode(base[1], "a", 3000)
    assert (one == two).all() and sum(shares.values()) == 3000 and len(set(one.tolist())) > 300


def test_a_base_is_made_from_nothing(tmp_path, monkeypatch):
    from dataclasses import replace

    from glmlab.tiny import pretrain
    small = replace(pretrain.Recipe(), vocab_size=700, hidden_size=64, layers=1, heads=2, kv_heads=1, row=64, batch=2, steps=3, tokenizer_documents=50)
    monkeypatch.setitem(pretrain.RECIPES, "glm4-tiny", small)
    lines = []
    folder = pretrain.make("glm4-tiny", lines.append, out=tmp_path / "glm4-tiny", compiled=False)
    assert {"config.json", "model.safetensors", "tokenizer.json", "training.json", "README.md"} <= {path.name for path in folder.iterdir()}
    assert json.loads((folder / "training.json").read_text(encoding="utf-8"))["tokens"] == 3 * 2 * 64
