"""The tiny bases that ship: real GLM-4, ChatGLM3 and ChatGLM-6B of at most 8 M parameters, and the text they were made from."""

import json
import random
import re
from functools import cache
from itertools import islice, product

import pytest
from test_sentences import bare

from glmlab import chat, paths
from glmlab.tasks import calls, intent, sentences
from glmlab.tiny import corpus, facts, reading, telecom

#: base -> (class, its linear layers in one layer, chat format)
BASES = {"glm4-tiny": ("Glm4ForCausalLM", 6, "glm4"), "chatglm3-tiny": ("GlmForCausalLM", 6, "chatglm3"),
         "chatglm-tiny": ("ChatGLMForCausalLM", 4, "chatglm")}
every_base = pytest.mark.parametrize("name", BASES)


@cache
def loaded(name):
    from glmlab import models
    return models.load_base(name, "none", "fp32", "cpu")


@pytest.fixture
def base():
    return loaded("glm4-tiny")


@every_base
def test_size_and_architecture(name):
    model, tokenizer = loaded(name)
    config = model.config
    assert type(model).__name__ == BASES[name][0] and chat.format_of(tokenizer).name == BASES[name][2]
    assert sum(p.numel() for p in model.parameters()) <= 8_000_000
    assert (paths.models(name) / "model.safetensors").stat().st_size <= 16e6
    assert config.hidden_size % 64 == 0 and config.intermediate_size % 64 == 0
    assert 6000 <= len(tokenizer) == config.vocab_size <= 8192


@every_base
def test_nf4_is_the_real_thing(name):
    from bitsandbytes.nn import Linear4bit

    from glmlab import models
    model, _ = models.load_base(name, "nf4", "fp32", "cpu")
    quantised = [name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, Linear4bit)]
    assert len(quantised) == BASES[name][1] * model.config.num_hidden_layers and "lm_head" not in quantised
    assert all(module.support_avx512bf16_for_cpu is False for module in model.modules() if isinstance(module, Linear4bit))


def test_prompt_equals_its_chat_template(base):
    messages = intent.messages("您好请讲[SEP]帮我查话费")
    rendered = base[1].apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert rendered == chat.prompt_ids(base[1], messages)


@every_base
def test_it_writes_fluent_text(name):
    import torch
    model, tokenizer = loaded(name)
    ids = torch.tensor([[*chat.start_ids(tokenizer), *chat.text_ids(tokenizer, "您好很高兴为您服务[SEP]")]])
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(input_ids=ids).logits[0, 1:-1], ids[0, 2:])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)
    written = tokenizer.decode(out[0, ids.shape[1]:])
    assert loss < 3 and sum("一" <= character <= "鿿" for character in written) >= 20


@every_base
def test_the_card_says_what_was_measured(name):
    record = json.loads((paths.models(name) / "training.json").read_text(encoding="utf-8"))
    card = (paths.models(name) / "README.md").read_text(encoding="utf-8")
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
    for name in corpus.WIDE_MIX:
        for _, document in islice(corpus.documents(5, {name: 1.0}), 300):
            assert isinstance(document, str) or document[-1]["role"] == "assistant"


# --- texts about names that nobody has heard ---------------------------------------------------------------------

@cache
def bare_runs(split, length=5):
    """All runs of so many characters outside names in the sentences of a split of project 2."""
    return {run[start : start + length] for one in sentences.make(split, sentences.SIZES[split]) for run in bare(one)
            for start in range(len(run) - length + 1)}


@pytest.mark.parametrize("split", ["val", "test"])
def test_reading_has_no_pattern_and_no_name_of_project_2s_val_and_test(split):
    """Patterns: those of reading.yaml; a few texts are looked at as they are written, too."""
    alternatives = [re.sub(r"\{\w+\}|[0-9]+", "\0", "".join(chosen)) for kind in facts.TITLE_FIELD for lines in reading.bank()[kind].values()
                    for line in lines for chosen in product(*([piece] if "|" not in piece else piece[1:-1].split("|")
                                                             for piece in re.split(r"(\[[^\]]*\])", line)))]
    runs = bare_runs(split)
    assert len(alternatives) > 900 and len(runs) > 100 and not [run for run in runs if any(run in line for line in alternatives)]
    rng = random.Random(4)
    text = "\n".join(corpus.plain_text(document) for document in islice(reading.documents(rng), 3000))
    kinds = sentences.bank()["slots"]
    invented = {name for one in sentences.make(split, sentences.SIZES[split]) for slot, name in one.names.items()
                if kinds[slot] in ("person", "company", "site") and len(name) > 2}
    assert len(invented) > 150 and not [name for name in invented if name in text]
    assert not re.search(r"\([^()\n]+, (工作于|担任|位于|毕业于|创立|总部在|任职), [^()\n]+\)", text)


def test_what_a_listing_says_stands_in_its_text():
    rng, lines = random.Random(5), 0
    for _ in range(300):
        text, records, told = reading.paragraph(rng)
        for whom, label, value in reading.stated(records, told, text):
            lines += 1
            assert whom in text and value in text and label and whom != value
    assert lines > 500


def test_a_sentence_that_denies_tells_nothing():
    rng = random.Random(6)
    for _ in range(200):
        text, records, told = reading.paragraph(rng)
        others = {value for record in records for field, value in record.items()
                  if field in ("otherperson", "othercompany", "otherschool")}
        assert not others & {part for whom, _, value in reading.stated(records, told, text) for part in (whom, value)}
    assert all("{other" in line for kind in facts.TITLE_FIELD for line in reading.bank()[kind]["denied"])


def test_a_row_of_words_has_one_answer():
    rng = random.Random(7)
    for _ in range(200):
        asked, answer = (message["content"] for message in reading.row(rng))
        words = re.split("[、， \n]", asked)
        if answer in words and (found := re.search("以“(.)”(开头|结尾)", asked)):
            assert answer[0 if found[2] == "开头" else -1] == found[1]
            assert sum(word[0 if found[2] == "开头" else -1] == found[1] for word in words[:words.index(answer) + 1]) == 1


def test_encoding_is_deterministic_and_full(base):
    one, shares = corpus.encode(base[1], "a", 3000)
    two, _ = corpus.encode(base[1], "a", 3000)
    assert (one == two).all() and sum(shares.values()) == 3000 and len(set(one.tolist())) > 300


@every_base
def test_a_base_is_made_from_nothing(name, tmp_path, monkeypatch):
    from dataclasses import replace

    from glmlab.tiny import pretrain
    small = replace(pretrain.RECIPES[name], vocab_size=900, hidden_size=64, layers=1, heads=2, kv_heads=1, row=512, batch=2, steps=3,
                    tokenizer_documents=50)
    monkeypatch.setitem(pretrain.RECIPES, name, small)
    lines = []
    folder = pretrain.make(name, lines.append, out=tmp_path / name, compiled=False)
    assert {"config.json", "model.safetensors", "tokenizer.json", "training.json", "README.md"} <= {path.name for path in folder.iterdir()}
    assert json.loads((folder / "training.json").read_text(encoding="utf-8"))["tokens"] == 3 * 2 * 512
    from glmlab import models
    model, tokenizer = models.load_base(folder, "none", "fp32", "cpu")
    assert type(model).__name__ == BASES[name][0] and len(tokenizer) == 900


def test_rows_of_whole_documents_are_the_documents_alone():
    """ChatGLM-6B is pre-trained on several documents a row: each sees its own prompt both ways and nothing else."""
    import torch

    from glmlab.tiny import pretrain
    model, tokenizer = loaded("chatglm-tiny")
    ids, shares = corpus.encode(tokenizer, "rows", 2048, corpus.MIX, row=1024)
    rows = torch.from_numpy(ids.astype("int64")).view(2, 1024)
    inputs, targets = pretrain.documents_in_rows(rows, model.config)
    end, sop = model.config.eos_token_id, model.config.bos_token_id
    learnt = checked = 0
    with torch.no_grad():
        together = model.base_model(input_ids=rows, use_cache=False, **inputs).last_hidden_state
        for row, hidden, wanted in zip(rows, together, targets):
            start = 0
            for stop in ((row == end).nonzero().flatten() + 1).tolist():
                alone = model.base_model(input_ids=row[None, start:stop], use_cache=False).last_hidden_state[0]
                assert (alone - hidden[start:stop]).abs().max() < 1e-4
                first = row[start:stop].tolist().index(sop) + start
                assert (wanted[start:first] == -100).all() and torch.equal(wanted[first : stop - 1], row[first + 1 : stop])
                learnt, checked, start = learnt + stop - 1 - first, checked + 1, stop
            assert (wanted[start - 1 :] == -100).all()  # the padding at the end
    assert checked > 4 and sum(shares.values()) <= 2048 and learnt == (targets != -100).sum()
