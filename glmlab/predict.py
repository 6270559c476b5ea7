"""Fine-tuned models as plain Python objects: text in, answers out."""

import json
from dataclasses import dataclass
from pathlib import Path

from glmlab.tasks import intent

CHUNK = 1000  # calls encoded at a time: bounded memory whatever their number


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
        from glmlab import evaluation, models
        if adapter is None:
            self.model, self.tokenizer = models.load_base(base, quantization, dtype, device)
        else:
            self.model, self.tokenizer = models.load_finetuned(base, adapter, quantization, dtype, device)
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
            if not isinstance(text, str) or not text.replace("[SEP]", "").strip():
                raise ValueError(f"text {number} is empty: give the call as one string")
        found = []
        with tqdm(total=len(texts), disable=not (len(texts) >= 200 if progress is None else progress), unit="call") as bar:
            for start in range(0, len(texts), CHUNK):
                part = evaluation.encode_prompts(self.tokenizer, texts[start : start + CHUNK], self.max_length, self.form, first=start)
                probabilities = evaluation.label_probabilities(
                    self.model, self.tokenizer, part, batch_size, progress=lambda done: bar.update(start + done - bar.n))
                found += [as_intent(row, prompt.cut) for row, prompt in zip(probabilities, part)]
        return found[0] if single else found


def trained_form(adapter) -> str:
    """The form of the prompt a checkpoint was trained with, as its glmlab.json says; system where nothing does."""
    from glmlab.models import CHECKPOINT_FILE
    file = Path(adapter) / CHECKPOINT_FILE if adapter is not None else None
    if file is None or not file.is_file():
        return "system"
    return json.loads(file.read_text(encoding="utf-8")).get("form", "system")


def as_intent(probabilities, turns_dropped: int = 0) -> Intent:
    """An `Intent` from 34 probabilities."""
    best = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])[:3]
    top3 = [(i, intent.NAMES[i], float(probabilities[i])) for i in best]
    return Intent(*top3[0], top3, turns_dropped)
