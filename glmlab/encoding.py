"""Rows of a task -> prompts and training samples within the token limit."""

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from glmlab import chat, paths
from glmlab.tasks import Task


@dataclass(frozen=True)
class Prompt:
    """One encoded row, ready for the answer."""
    ids: list[int]
    text: str  # what of its text the model reads
    cut: int   # how much of its text was left out because it was too long, in the task's own measure


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
    return [Prompt(sample.ids, text, cut) for sample, text, cut in _encoded(tokenizer, task, rows, max_length, form, reserve, False, named)]


def samples(tokenizer, task: Task, rows: list, max_length: int, form: str) -> tuple[list[chat.Sample], int]:
    """Training samples within max_length tokens, answer and stop id included: `(samples, how many rows were shortened)`.

    Errors: ValueError that names a row which max_length leaves no room for.
    """
    found = list(_encoded(tokenizer, task, rows, max_length, form, 0, True, "row"))
    return [sample for sample, *_ in found], sum(cut > 0 for *_, cut in found)


def stored_samples(folder, tokenizer, task: Task, rows: Iterable, max_length: int, form: str) -> "StoredSamples":
    """`samples` for more rows than fit in memory: encoded one after another into a folder, read from there in training.

    rows: any iterable, e.g. a generator over your files. Errors: as `samples`.
    """
    return store(folder, (sample for sample, *_ in _encoded(tokenizer, task, rows, max_length, form, 0, True, "row")))


def _encoded(tokenizer, task: Task, rows: Iterable, max_length: int, form: str, reserve: int, answered: bool,
             named: str) -> Iterator[tuple[chat.Sample, str, int]]:
    """(sample, what was left of the text, how much was not) of each row."""
    tokenizer = _Remembering(tokenizer)
    for row in rows:
        kept = task.text(row)

        def messages(text: str, row=row) -> list[dict]:
            return task.messages(row, text, answered, form)

        def shorten(text: str, fits) -> tuple[str, int]:
            nonlocal kept
            kept, cut = task.shorten(text, fits)
            return kept, cut
        try:
            sample, cut = chat.fit(tokenizer, messages, kept, max_length, shorten, reserve)
        except ValueError as error:
            raise ValueError(f"{named} {row.row}: {error}") from error
        yield sample, kept, cut


def room(model, max_length: int) -> int:
    """max_length, or the positions the model was made for if those are fewer."""
    return min(max_length, getattr(model.config, "max_position_embeddings", None) or max_length)


# --- samples on disk ---------------------------------------------------------------------------------------------

class StoredSamples(Sequence):
    """Encoded samples in a folder, read one at a time: what `training.train` takes in place of a list."""

    def __init__(self, folder):
        """Errors: FileNotFoundError if `store` did not finish there."""
        import numpy as np
        folder = Path(folder)
        if not (folder / "index.json").is_file():
            raise FileNotFoundError(f"{paths.shown(folder)} holds no finished samples (index.json is missing); encode them again")
        self._count = json.loads((folder / "index.json").read_text(encoding="utf-8"))["samples"]
        self._ids = np.memmap(folder / "ids.bin", dtype=np.int32, mode="r")
        self._index = np.memmap(folder / "index.bin", dtype=np.int64, mode="r").reshape(self._count, 3)  # first id, last id, labels_from

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> chat.Sample:
        if not -self._count <= place < self._count:
            raise IndexError(place)
        first, stop, labels_from = self._index[place].tolist()
        return chat.Sample(self._ids[first:stop].tolist(), labels_from)


def store(folder, samples: Iterable[chat.Sample]) -> StoredSamples:
    """Write samples into a folder, one after another. Errors: ValueError for none, or one with several answers (its gaps are not kept)."""
    import numpy as np
    folder, place, count = Path(folder), 0, 0
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.json").unlink(missing_ok=True)
    with open(folder / "ids.bin", "wb") as ids, open(folder / "index.bin", "wb") as index:
        for count, sample in enumerate(samples, 1):
            if sample.gaps:
                raise ValueError(f"sample {count - 1} learns several answers of one conversation; store conversations answer by answer")
            np.asarray(sample.ids, dtype=np.int32).tofile(ids)
            np.asarray([place, place + len(sample.ids), sample.labels_from], dtype=np.int64).tofile(index)
            place += len(sample.ids)
    if not count:
        raise ValueError("there are no samples to store")
    paths.write_json(folder / "index.json", {"samples": count, "tokens": place})  # last: a folder without it is unfinished
    return StoredSamples(folder)
