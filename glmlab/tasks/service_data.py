"""The course's own service dialogues: text/service_<scene>.yaml -> splits, audit, JSON; and the exercise of adding a question.

Questions and answers were written for the course. A question stands in several phrasings with one answer: some are trained on, the
others wait for dev and test, in other words. In a dialogue the last question needs what was said before it; its history is the same in
all splits, only the phrasing of the last question differs.
"""

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from glmlab import paths
from glmlab.tasks import service
from glmlab.tasks.rows import Problem
from glmlab.tasks.service import SCENES, Dialogue, words_of

TEXT = Path(__file__).with_name("text")
SPLITS = ("train", "dev", "test")
SEED = 6
#: So many characters in a row, marks left out, must not be shared by a dev or test question and a training question.
RUN = 8
#: Characters of an answer, least and most.
LENGTH = (60, 220)
KEYS = {"questions": {"id", "answer", *SPLITS}, "dialogues": {"id", "turns", "answer", *SPLITS}}


# --- the YAML files ----------------------------------------------------------------------------------------------

def entries(folder: Path = TEXT) -> list[dict]:
    """All questions and dialogues: {"scene", "id", "history", "answer", "train", "dev", "test"}, phrasings as lists.

    Errors: ValueError that names file and id for a wrong key, an id or a phrasing that stands twice, a missing text; FileNotFoundError.
    """
    found, seen = [], {}
    for scene in SCENES:
        file = Path(folder) / f"service_{scene}.yaml"
        for entry in _entries(file, scene):
            where = f"{paths.shown(file)}, {entry['id']}"
            for mark in [entry["id"], *(_key(entry["history"], phrasing) for split in SPLITS for phrasing in entry[split])]:
                if mark in seen:
                    raise ValueError(f"{where}: {mark!r} stands in {seen[mark]} too")
                seen[mark] = where
            found.append(entry)
    return found


def _key(history: Iterable, question: str) -> str:
    return words_of("".join(turn for pair in history for turn in pair) + question)


def _entries(file: Path, scene: str) -> Iterator[dict]:
    import yaml
    name = paths.shown(file)
    try:
        top = yaml.load(file.read_text(encoding="utf-8"), yaml.CSafeLoader)
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"{name}, line {error.problem_mark.line + 1}: no valid YAML: {error.problem}") from None
    if not isinstance(top, dict) or set(top) != {"scene", *KEYS} or top["scene"] != scene:
        raise ValueError(f"{name}: needed are scene: {scene}, questions and dialogues")
    for part, keys in KEYS.items():
        for number, entry in enumerate(top[part]):
            if not isinstance(entry, dict) or set(entry) != keys:
                raise ValueError(f"{name}, {part} {number}: needed are the keys {', '.join(sorted(keys))}")
            history = tuple(map(tuple, entry.get("turns", ())))
            phrasings = {split: entry[split] for split in SPLITS}
            texts = [entry["id"], entry["answer"], *(turn for pair in history for turn in pair), *sum(phrasings.values(), [])]
            if not all(isinstance(text, str) and text.strip() for text in texts) or not all(len(pair) == 2 for pair in history):
                raise ValueError(f"{name}, {entry['id']}: a text is empty, or no text; put what looks like a number in quotation marks")
            yield {"scene": scene, "id": entry["id"], "history": history, "answer": entry["answer"].strip(), **phrasings}


# --- the splits --------------------------------------------------------------------------------------------------

def split(found: list[dict], seed: int = SEED) -> dict[str, list[Dialogue]]:
    """{"train", "dev", "test": dialogues}, one for each phrasing, in an order drawn with the seed; rows are the places in the split."""
    splits = {}
    for name in SPLITS:
        asked = [(entry, phrasing) for entry in found for phrasing in entry[name]]
        random.Random(f"{name}-{seed}").shuffle(asked)  # so that the head of a file holds every scene
        splits[name] = [Dialogue(row, phrasing, entry["answer"], entry["history"], entry["scene"])
                        for row, (entry, phrasing) in enumerate(asked)]
    return splits


def write(folder: Path, source: Path = TEXT, seed: int = SEED) -> list[Path]:
    """Write train.json, dev.json and test.json of the questions in `source`, the document's JSON list; returns their paths.

    A row: {"instruction": "用户问：…", "input": "", "output": "…", "scene": "shop"}, in dialogues also "history": [[question, answer], …].
    """
    return [service.write(Path(folder) / f"{name}.json", dialogues)[0] for name, dialogues in split(entries(source), seed).items()]


# --- the audit ---------------------------------------------------------------------------------------------------

def audit(folder: Path = TEXT) -> list[Problem]:
    """What is wrong with the entries: length and form of answers, too few phrasings, and what `leaks` finds. Errors: as `entries`."""
    found, problems = entries(folder), []
    for row, entry in enumerate(found):
        problems += [Problem(f"service_{entry['scene']}.yaml", row, f"{reason}: {entry['id']}", "kept") for reason in _faults(entry)]
    return problems + leaks(split(found))


def _faults(entry: dict) -> Iterator[str]:
    answer = entry["answer"]
    if not LENGTH[0] <= len(answer) <= LENGTH[1]:
        yield f"length of {len(answer)} characters"
    if answer.count("\n") < 2 or not any(line.startswith(("1. ", "- ")) for line in answer.split("\n")):
        yield "no steps or points"
    if not answer.startswith("您好"):
        yield "no greeting"
    if not answer.endswith(("。", "！")):
        yield "no closing sentence"
    least = {"train": 2, "dev": 1, "test": 2} if entry["history"] else {"train": 5, "dev": 1, "test": 2}
    for name, count in least.items():
        if len(entry[name]) < count:
            yield f"only {len(entry[name])} phrasings for {name}"


def leaks(splits: dict[str, list[Dialogue]], run: int = RUN) -> list[Problem]:
    """The dev and test questions that share `run` characters in a row with a training question or its history, marks left out.

    A shorter question counts when it stands in one as a whole.
    """
    questions = {question for dialogue in splits["train"] for question in [dialogue.question, *(pair[0] for pair in dialogue.history)]}
    whole = "\n".join(sorted(map(words_of, questions)))
    problems = []
    for name in SPLITS[1:]:
        for dialogue in splits[name]:
            words = words_of(dialogue.question)
            parts = (words[start:start + run] for start in range(max(1, len(words) - run + 1)))
            if shared := next((part for part in parts if part in whole), None):
                problems.append(Problem(name, dialogue.row, f"leak: {dialogue.question} shares {shared} with a training question", "kept"))
    return problems


# --- the exercise: a new question --------------------------------------------------------------------------------

def with_question(dialogues: list[Dialogue], question: str, answer: str, phrasings: Iterable[str] = (),
                  scene: str = "shop") -> list[Dialogue]:
    """The dialogues and one new question in all its phrasings, as new rows behind them; write them with `service.write` and train again.

    Errors: ValueError for an empty question or answer, an unknown scene, or a question that is there already.
    """
    if scene not in SCENES:
        raise ValueError(f"scene {scene!r}: choose {', '.join(SCENES)}")
    if not words_of(answer):
        raise ValueError(f"the answer to {question!r} is empty")
    known = {_key(dialogue.history, dialogue.question): dialogue.row for dialogue in dialogues}
    found = list(dialogues)
    for text in (question, *phrasings):
        if not (key := words_of(text)):
            raise ValueError(f"an empty phrasing of {question!r}")
        if key in known:
            raise ValueError(f"{text!r} is row {known[key]} already; correct its answer there, or ask in other words")
        known[key] = len(found)
        found.append(Dialogue(len(found), text.strip(), answer.strip(), (), scene))
    return found
