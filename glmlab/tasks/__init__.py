"""The projects: what differs from task to task. Text only, never tensors."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """What encoding and answering must know of a project. Its rows carry `row`, their 0-based place in the file."""
    name: str
    what: str                     # what its rows are called, for progress lines and messages
    text: Callable[..., str]      # row -> the part of it that is shortened when the row is too long
    messages: Callable[..., list[dict]]  # (row, its text, with its answer?, form of the prompt) -> conversation
    shorten: Callable[..., tuple[str, int]]  # (text, fits) -> (text that fits, amount cut)
