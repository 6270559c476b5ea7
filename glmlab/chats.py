"""What talking leaves on disk: conversations, ratings of answers, preferences between two answers."""

import json
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from glmlab import paths

_appending = threading.Lock()
_changing = threading.RLock()  # several tabs may write in one conversation


class Gone(ValueError):
    """A conversation that has been deleted meanwhile."""


def folder(task: str) -> Path:
    """Where the conversations, feedback and votes of a task are kept."""
    return paths.home() / "data" / "chats" / task


def now() -> str:
    """The time with its zone: 2026-01-31T12:00:00+0800."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


# --- conversations -----------------------------------------------------------------------------------------------

def new(task: str) -> dict:
    """An empty conversation; it is not on disk before `save`.

    Its turns: {"id", "question", "answer", "model", "finish", "first", "seconds", "tokens", "left_out"} with times in seconds.
    """
    return {"id": time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(3), "task": task, "updated": now(), "turns": []}


def _file(task: str, name: str) -> Path:
    """Errors: ValueError for a name that could lead out of the folder."""
    if not re.fullmatch(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{6}", name):
        raise ValueError(f"{name[:60]!r} is no conversation")
    return folder(task) / f"{name}.json"


def new_turn(question: str, model: str) -> dict:
    """A question whose answer is yet to come."""
    return {"id": secrets.token_hex(6), "question": question, "answer": "", "model": model, "finish": "", "first": None, "seconds": 0.0,
            "tokens": 0, "left_out": 0}


def save(conversation: dict) -> None:
    """Write a conversation, whole or not at all."""
    with _changing:
        conversation["updated"] = now()
        paths.write_json(_file(conversation["task"], conversation["id"]), conversation)


def change(task: str, name: str, edit: Callable[[dict], None]) -> dict:
    """Read a conversation, `edit` it and write it, with nobody in between; returns it. Errors: as `load`."""
    with _changing:
        conversation = load(task, name)
        edit(conversation)
        save(conversation)
    return conversation


def load(task: str, name: str) -> dict:
    """A conversation by its id. Errors: Gone when there is none, ValueError when its file is damaged."""
    file = _file(task, name)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not all(isinstance(turn[field], str) for turn in found["turns"] for field in ("question", "answer")):
            raise TypeError("a turn without text")
    except FileNotFoundError as error:
        raise Gone(f"conversation {name} is not there any more") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{paths.shown(file)} is damaged ({error}); move it away") from error
    return found


def saved(task: str) -> list[dict]:
    """All conversations of a task, the one last written first; a damaged file is named on stderr and left out."""
    found = []
    for file in folder(task).glob("*-*-*.json"):
        try:
            found.append(load(task, file.stem))
        except ValueError as error:
            print(f"left out: {error}", file=sys.stderr)
    return sorted(found, key=lambda conversation: (conversation["updated"], conversation["id"]), reverse=True)


def delete(task: str, name: str) -> None:
    """Remove a conversation."""
    with _changing:
        _file(task, name).unlink(missing_ok=True)


def title(conversation: dict) -> str:
    """How a list names a conversation: its first question, on one line."""
    first = " ".join(conversation["turns"][0]["question"].split()) if conversation["turns"] else "…"
    return first if len(first) <= 24 else first[:23] + "…"


def messages(turns: list[dict]) -> list[dict]:
    """Turns as the messages of a prompt; rounds without an answer are left out, except the last question."""
    found = []
    for number, turn in enumerate(turns):
        answered = bool(turn["answer"]) and number < len(turns) - 1
        if answered or number == len(turns) - 1:
            found.append({"role": "user", "content": turn["question"]})
        if answered:
            found.append({"role": "assistant", "content": turn["answer"]})
    return found


# --- what people say about answers -------------------------------------------------------------------------------

def rate(task: str, model: str, messages: list[dict], answer: str, rating: str, correction: str = "") -> Path:
    """Add a rating to feedback.jsonl; of several for the same messages and answer the last one counts.

    messages: up to the question; rating: "up" or "down"; correction: the answer it should have been, "" for none.
    """
    return _append(task, "feedback.jsonl", {"time": now(), "task": task, "model": model, "messages": messages, "answer": answer,
                                            "rating": rating, "correction": correction})


def vote(task: str, messages: list[dict], answers: list[tuple[str, str]], preferred: str, finish: tuple[str, str] = ("", "")) -> Path:
    """Add a preference to votes.jsonl.

    answers: (model, text) as shown, A first; preferred: "a", "b" or "tie"; finish: how each ended, as `Ticket.finish`, "" if not known.
    """
    (model_a, text_a), (model_b, text_b) = answers
    return _append(task, "votes.jsonl", {
        "time": now(), "task": task, "messages": messages,
        "a": {"model": model_a, "answer": text_a, "finish": finish[0]}, "b": {"model": model_b, "answer": text_b, "finish": finish[1]},
        "preferred": preferred, "preferred_model": {"a": model_a, "b": model_b, "tie": None}[preferred]})


def _append(task: str, name: str, record: dict) -> Path:
    path = folder(task) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with _appending, open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
    return path
