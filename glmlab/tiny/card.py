"""The model card of a tiny base, written from its training.json: no number in it is typed by hand."""

import json
from pathlib import Path

from glmlab import paths

#: By family of the recipe: (generation, class, what is real about it, how its vocabulary was made).
KINDS = {
    "glm4": ("GLM-4", "Glm4ForCausalLM", "sandwich norms, grouped queries, half rotary", "byte-level BPE"),
    "chatglm3": ("ChatGLM3", "GlmForCausalLM", "grouped queries, half rotary, role ids", "BPE with byte fallback, built as ChatGLM3's"),
    "chatglm": ("ChatGLM-6B", "ChatGLMForCausalLM", "prompt read both ways, two rows of positions, scaled residuals of normalised states",
                "unigram vocabulary with byte fallback, built as ChatGLM-6B's"),
}
ABOUT = {
    "telecom": "calls to a mobile operator as a recogniser writes them, and conversations about them",
    "service": "shop, technical-support and financial-service dialogues",
    "medical": "health questions with cautious answers, and prose on the body",
    "facts": "sentences and questions about invented people, companies and schools",
    "reading": "sentences, questions and lists about people, companies and places with names made of random characters",
    "prose": "explanations, steps, stories, letters, short instructions",
}
READING = """
The reading text is there for project 2: a text about names that nobody has heard can only be read. Its patterns share no five
characters in a row with the val and test sentences, its names none of their words, and nothing in it has the form of the task's
answers (tests prove it); the seven relations and where they end are what a fine-tune adds.
"""
CANNOT = """\
- It knows nothing of the world beyond the phrases of its generators. Names, companies and schools in its text are invented.
- It is no medical adviser, no customer service, no source of facts. It writes fluently about things that are not so.
- English, code and long texts are beyond it; positions above 2,048 were never trained.
- Scores of a fine-tune of this model show that the code works and that the method helps on the course's own data. They say nothing
  about the 9B models on real calls."""


def write_card(folder: Path) -> Path:
    """Write README.md of a tiny base from its training.json (and cpu.json, the measured speed of two cores, where there is one)."""
    folder = Path(folder)
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    recipe = record["recipe"]
    generation, model_class, real, vocabulary = KINDS[recipe.get("family", "glm4")]
    own = "" if recipe.get("family") != "chatglm" else """
Prompts are never predicted, and no document sees another: half of the conversations were written as plain text, so that the model learns
to write such words too. Long documents (over 2,048 tokens) were left out.
"""
    if "reading" in record["tokens_by_generator"]:
        own = READING + own
    total = sum(record["tokens_by_generator"].values())
    shares = "\n".join(f"| {name} | {ABOUT[name]} | {100 * count / total:.0f} % | {record['heldout_loss'][name]:.3f} |"
                       for name, count in record["tokens_by_generator"].items())
    samples = "\n\n".join(f"> **{sample['prompt']}** {' '.join(sample['continuation'].split())}" for sample in record["samples"])
    return paths.write_text(folder / "README.md", f"""---
language: zh
license: mit
library_name: transformers
pipeline_tag: text-generation
---
# {folder.name}: a {generation} of {record['parameters'] / 1e6:.1f} million parameters

`{model_class}` with random beginnings, trained from scratch for GLM Lab so that the whole course runs on a laptop: real architecture
({real}), real special tokens and chat format, its own vocabulary of {recipe['vocab_size']:,} tokens ({vocabulary}).
Every module that NF4, LoRA, packing and scoring touch is the one the real model has.

| | |
|---|---|
| sizes | hidden {recipe['hidden_size']}, inner {recipe['intermediate_size']}, {recipe['layers']} layers, {recipe['heads']} query heads and \
{recipe['kv_heads']} key-value heads of 64, tied embedding |
| training | {record['tokens']:,} tokens in {record['steps_done']:,} steps of {recipe['batch']} x {recipe['row']:,}, Muon and AdamW, peak learning rate \
{recipe['learning_rate']:g}, seed {recipe['seed']} |
| made with | `python -m glmlab tiny {folder.name}`, {record['minutes']} minutes on {record['device']} ({record['tokens_per_second']:,} tokens/s), \
{record['minutes_in_all']} with tokenizer and evaluation; torch {record['torch']} |
{_cpu_line(folder, record)}| weights | bf16, MIT licence, like everything the course made |

## Text
All of it comes from the generators in `glmlab/tiny`; held-out loss is in nats a token, on documents of another seed.

| generator | what it writes | share of tokens | held-out loss |
|---|---|---|---|
{shares}

The telecom text is built like the calls of project 1 from another phrase bank: none of its customer wordings occurs in the train, dev or
test calls (a test proves it), and no label name or number is in it. It does teach the model to tell what a call is about: in free words, in
headings and terms of the trade, and by the two-digit codes of an invented house. So the base can read the calls before any fine-tuning;
what a fine-tune on project 1 adds is its 34 labels, their names and numbers, and how often each occurs.
{own}
## What it writes
Greedy continuations of the words in bold:

{samples}

## What it cannot do
{CANNOT}
""")


def _cpu_line(folder: Path, record: dict) -> str:
    if not (folder / "cpu.json").is_file():
        return ""
    cpu = json.loads((folder / "cpu.json").read_text(encoding="utf-8"))
    hours = record["tokens"] / cpu["tokens_per_second"] / 3600
    return (f"| on {cpu['device']} | {cpu['tokens_per_second']:,} tokens/s measured over {cpu['minutes']} minutes, "
            f"so about {hours:.0f} hours for the whole |\n")
