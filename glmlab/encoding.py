"""Rows of a task -> prompts and training samples within the token limit."""

import functools
from dataclasses import dataclass

from glmlab import chat
from glmlab.tasks import Task


@dataclass(frozen=True)
class Prompt:
    """One encoded row, ready for the answer."""
    ids: list[int]
    cut: int  # how much of its text was left out because it was too long, in the task's own measure


class _Remembering:
    """A tokenizer that does not encode again what it encoded a moment ago: rows share one long system prompt."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.encode = functools.lru_cache(maxsize=8)(tokenizer.encode)

    def __getattr__(self, name: str):
        return getattr(self._tokenizer, name)


def prompts(tokenizer, task: Task, rows: list, max_length: int, form: str, reserve: int, named: str = "row") -> list[Prompt]:
    """The prompts of rows, at most max_length - reserve tokens each. reserve: tokens kept free for the answer.

    form: one of the task's, as the model was trained. Errors: ValueError that names the row when max_length leaves no room for it.
    """
    return [Prompt(sample.ids, cut) for sample, cut in _encoded(tokenizer, task, rows, max_length, form, reserve, False, named)]


def samples(tokenizer, task: Task, rows: list, max_length: int, form: str) -> tuple[list[chat.Sample], int]:
    """Training samples within max_length tokens, answer and stop id included: `(samples, how many rows were shortened)`.

    Errors: ValueError that names a row which max_length leaves no room for.
    """
    found = _encoded(tokenizer, task, rows, max_length, form, 0, True, "row")
    return [sample for sample, _ in found], sum(cut > 0 for _, cut in found)


def _encoded(tokenizer, task: Task, rows: list, max_length: int, form: str, reserve: int, answered: bool,
             named: str) -> list[tuple[chat.Sample, int]]:
    tokenizer, found = _Remembering(tokenizer), []
    for row in rows:
        def messages(text: str, row=row) -> list[dict]:
            return task.messages(row, text, answered, form)
        try:
            found.append(chat.fit(tokenizer, messages, task.text(row), max_length, task.shorten, reserve))
        except ValueError as error:
            raise ValueError(f"{named} {row.row}: {error}") from error
    return found


def room(model, max_length: int) -> int:
    """max_length, or the positions the model was made for if those are fewer."""
    return min(max_length, getattr(model.config, "max_position_embeddings", None) or max_length)
