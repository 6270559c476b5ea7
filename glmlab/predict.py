"""Fine-tuned models as plain Python objects: text in, answers out."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from glmlab.tasks import intent, rows, triplets

CHUNK = 1000  # texts encoded at a time: bounded memory whatever their number


@dataclass(frozen=True)
class Intent:
    """The answer to one call."""
    id: int
    name: str
    probability: float               # of this label among the 34
    top3: list[tuple[int, str, float]]  # (id, name, probability), best first
    turns_dropped: int               # turns cut from the middle because the call was too long


class IntentClassifier:
    """A base and an intent adapter, loaded once; `classify` takes one call or thousands."""

    def __init__(self, base="glm4-tiny", adapter=None, quantization: str = "nf4", device=None, dtype=None, max_length: int = 1536,
                 form: str | None = None):
        """adapter: a checkpoint folder, or None for the untuned base. max_length: tokens of prompt and answer.

        form: system or template; None takes the one the checkpoint was trained with. Errors: as `load_base`, `load_finetuned`.
        """
        from glmlab import evaluation
        self.model, self.tokenizer = _load(base, adapter, quantization, dtype, device)
        self.max_length = evaluation.room(self.model, max_length)
        self.form = form or trained_form(adapter)

    def classify(self, texts, batch_size: int = 25, progress: bool | None = None) -> list[Intent] | Intent:
        """The intent of each call: str -> Intent, list of str -> list of Intent in the same order.

        Calls may carry `[SEP]` between turns. batch_size: calls packed into one forward pass, which bounds the memory.
        progress: a bar; None shows one from 200 calls on. Errors: ValueError names the empty text.
        """
        from tqdm.auto import tqdm

        from glmlab import evaluation
        single = isinstance(texts, str)
        texts = [texts] if single else list(texts)
        for number, text in enumerate(texts):
            if not isinstance(text, str) or not intent.says_anything(text):
                raise ValueError(f"text {number} is empty: give the call as one string")
        found = []
        with tqdm(total=len(texts), disable=not (len(texts) >= 200 if progress is None else progress), unit="call") as bar:
            for start in range(0, len(texts), CHUNK):
                part = evaluation.encode_prompts(self.tokenizer, texts[start : start + CHUNK], self.max_length, self.form, first=start)
                probabilities = evaluation.label_probabilities(
                    self.model, self.tokenizer, part, batch_size, progress=lambda done: bar.update(start + done - bar.n))
                found += [as_intent(row, prompt.cut) for row, prompt in zip(probabilities, part)]
        return found[0] if single else found


@dataclass(frozen=True)
class Extraction:
    """The triples of one text."""
    triples: list[triplets.Triple]  # heads and tails as the text writes them, in the order of the answer
    answer: str                     # what the model wrote
    unparsable: bool                # nothing could be read in the answer, which is not the same as 无
    cut: int                        # sentences left out of the middle because the text was too long


class TripletExtractor:
    """A base and a triplet adapter, loaded once; `extract` takes one text, `extract_batch` many."""

    def __init__(self, base="chatglm-tiny", adapter=None, quantization: str = "nf4", device=None, dtype=None, max_length: int = 512,
                 max_new_tokens: int = 160, form: str | None = None, constrained: bool = False, relations=None):
        """adapter: a checkpoint folder, or None for the untuned base. max_length: tokens of prompt and answer.

        form: instruction or relations; None takes the one the checkpoint was trained with. constrained: heads and tails are copied from
        the text, relations from the list, so that every answer can be read (`glmlab.constrained`). relations: {name: Relation}; None
        takes those the checkpoint was trained on. Errors: as `load_base`, `load_finetuned`.
        """
        self.model, self.tokenizer = _load(base, adapter, quantization, dtype, device)
        self.max_length, self.max_new_tokens = max_length, max_new_tokens
        self.form = form or trained_form(adapter, "instruction")
        self.constrained, self.relations = constrained, trained_relations(adapter) if relations is None else relations

    def extract(self, text: str) -> Extraction:
        """The triples of a text. Errors: ValueError for an empty one."""
        return self.extract_batch([text])[0]

    def extract_batch(self, texts, batch_size: int = 25, progress: bool | None = None) -> list[Extraction]:
        """The triples of each text, in order. batch_size: answers written at a time, which bounds the memory.

        progress: a bar; None shows one from 200 texts on. Errors: ValueError names the empty text.
        """
        return list(self.extract_each(texts, batch_size, progress, CHUNK))

    def extract_each(self, texts, batch_size: int = 25, progress: bool | None = None, chunk: int = 100) -> Iterator[Extraction]:
        """As `extract_batch`, one after another: the first `chunk` texts come as soon as they are read, then the next."""
        from tqdm.auto import tqdm

        from glmlab import answering
        from glmlab.constrained import Copying
        asked = [triplets.Sentence(number, text, None) for number, text in enumerate(texts)]
        for row in asked:
            if not isinstance(row.text, str) or not row.text.strip():
                raise ValueError(f"text {row.row} is empty: give each text as one string")
        task, rule = triplets.task_of(self.relations), partial(Copying, relations=self.relations) if self.constrained else None
        with tqdm(total=len(asked), disable=not (len(asked) >= 200 if progress is None else progress), unit="text") as bar:
            for start in range(0, len(asked), chunk):
                part = asked[start : start + chunk]
                answers = answering.answer_rows(self.model, self.tokenizer, task, part, self.form, self.max_length, self.max_new_tokens,
                                                batch_size, lambda done: bar.update(start + done - bar.n), rule)
                yield from map(self._extraction, [row.text for row in part], answers.texts, answers.cut)

    def _extraction(self, text: str, answer: str, cut: int) -> Extraction:
        parsed = triplets.parse(answer, self.relations)
        return Extraction(triplets.restore(text, parsed or []), answer, parsed is None, cut)


def read_texts(path) -> tuple[list[triplets.Sentence], list[rows.Problem]]:
    """The texts of a file to extract from: a line each, or JSON as `triplets.read` takes it; and the rows that could not be read.

    JSON is a file called .json or .jsonl, or one whose first line is an object: a text may begin with a bracket ([新华社] …). `row`
    counts from 0, of plain texts all lines, the empty ones too. Errors: one FileNotFoundError or ValueError for what spoils the whole
    file: missing, empty, not UTF-8.
    """
    rows.require([path], "give a file with one text a line, or JSON lines")
    content = rows.read_text(path)
    if Path(path).suffix.lower() in (".json", ".jsonl") or _begins_as_json(content):
        return triplets.read(path)
    lines = enumerate(content.splitlines())
    return [triplets.Sentence(row, line.strip(), None) for row, line in lines if line.strip()], []


def _begins_as_json(content: str) -> bool:
    """Whether a text is JSON, or lines of it: a list or an object, as a whole or in its first line."""
    for part in (content.strip().split("\n", 1)[0], content):
        try:
            found = json.loads(part)
        except ValueError:
            continue
        return isinstance(found, dict) or isinstance(found, list) and all(isinstance(record, dict) for record in found)
    return False


def _load(base, adapter, quantization, dtype, device):
    """`(model, tokenizer)` of a base, with an adapter where one is given."""
    from glmlab import models
    if adapter is None:
        return models.load_base(base, quantization, dtype, device)
    return models.load_finetuned(base, adapter, quantization, dtype, device)


def trained_form(adapter, otherwise: str = "system") -> str:
    """The form of the prompt a checkpoint was trained with, as its glmlab.json says; `otherwise` where nothing does."""
    return _trained(adapter).get("form", otherwise)


def trained_relations(adapter) -> dict[str, triplets.Relation]:
    """The relations a checkpoint was trained on, as its glmlab.json says; those of the course where nothing does."""
    return triplets.of_run(_trained(adapter).get("relations", ()))


def _trained(adapter) -> dict:
    """What the glmlab.json of a checkpoint says; nothing for an untuned base (None) or an adapter of another tool."""
    from glmlab.models import CHECKPOINT_FILE
    file = Path(adapter) / CHECKPOINT_FILE if adapter is not None else None
    return json.loads(file.read_text(encoding="utf-8")) if file is not None and file.is_file() else {}


def as_intent(probabilities, turns_dropped: int = 0) -> Intent:
    """An `Intent` from 34 probabilities."""
    best = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])[:3]
    top3 = [(i, intent.NAMES[i], float(probabilities[i])) for i in best]
    return Intent(*top3[0], top3, turns_dropped)
