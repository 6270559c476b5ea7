"""Project 3, customer service (智能客服): rows of the document's JSON list and its relatives -> dialogues, prompts, feedback. Text only.

A dialogue is a question with its answer, and what was said before: `history`, (question, answer) pairs, the field of that name in the
Alpaca form as LLaMA-Factory reads it. Only the last answer is to be learnt.
"""

import bisect
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from glmlab import paths
from glmlab.tasks import Task, rows
from glmlab.tasks.medical import words_of
from glmlab.tasks.rows import Problem, Row, problem_table

__all__ = ["SCENES", "SYSTEM_PROMPT", "TASK", "Dialogue", "Problem", "add_feedback", "in_form", "messages", "problem_table", "read",
           "read_splits", "shorten", "words_of", "write"]

#: Key in the field `scene` -> name. Rows of other origin may carry any scene, or none.
SCENES = {"shop": "网上购物", "support": "技术支持", "finance": "金融服务"}
#: Parts the turns of `Dialogue.text`; no written text holds it.
SEP = "\x1e"


@dataclass(frozen=True)
class Dialogue:
    """One question: its 0-based data row in the file, question, answer, (question, answer) pairs before it, scene ("" if unknown)."""
    row: int
    question: str
    answer: str
    history: tuple[tuple[str, str], ...] = ()
    scene: str = ""

    @property
    def text(self) -> str:
        """History and question as one text, SEP between the turns: what `shorten` shortens and TASK makes messages of."""
        return SEP.join([turn for pair in self.history for turn in pair] + [self.question])


# --- the prompt --------------------------------------------------------------------------------------------------

#: Optional: the tiny bases answer without it as well.
SYSTEM_PROMPT = ("你是一名耐心的客服，接待网上购物、技术支持和金融服务三类咨询。先问好，再把办法分条写清楚，最后用一句话收尾。"
                 "不知道的不要编造，不承诺收益，不索要密码和验证码。")
ASKED = "用户问："


def messages(question: str, history: Iterable = (), answer: str | None = None, form: str = "chat", system: bool = False) -> list[dict]:
    """The conversation of a question after its history, with its answer when one is given; form and system: as `in_form`."""
    turns = [turn for pair in history for turn in pair] + [question] + ([] if answer is None else [answer])
    return in_form([{"role": ("user", "assistant")[place % 2], "content": turn} for place, turn in enumerate(turns)], form, system)


def in_form(turns: list[dict], form: str = "chat", system: bool = False) -> list[dict]:
    """A conversation as training writes it; system: SYSTEM_PROMPT before it, unless it brings its own.

    form: "chat" (the customer's words alone) or "document" (`用户问：` before them, as in the files). Errors: ValueError for another form.
    """
    if form not in ("chat", "document"):
        raise ValueError(f"form {form!r}: choose chat or document")
    lead = ASKED if form == "document" else ""
    found = [turn | {"content": lead + turn["content"]} if turn["role"] == "user" else turn for turn in turns]
    if system and not (turns and turns[0]["role"] == "system"):
        found.insert(0, {"role": "system", "content": SYSTEM_PROMPT})
    return found


def _pairs(turns: list) -> tuple[tuple[str, str], ...]:
    """(question, answer) pairs of turns that alternate."""
    return tuple(zip(turns[::2], turns[1::2]))


def shorten(text: str, fits: Callable[[str], bool]) -> tuple[str, int]:
    """`Dialogue.text` without what is too much, and how many exchanges that cost; a cut question counts as one more.

    The oldest exchanges go first, then the middle of the question. Where not even two characters of it fit they are returned: the
    caller must check.
    """
    turns = text.split(SEP)
    drops = range(len(turns) // 2 + 1)
    place = bisect.bisect_left(drops, True, key=lambda count: fits(SEP.join(turns[2 * count:])))
    if place < len(drops):
        return SEP.join(turns[2 * place:]), place
    question = turns[-1]

    def without(count: int) -> str:
        head = (len(question) - count + 1) // 2
        return question[:head] + question[head + count:]

    most = max(0, len(question) - 2)
    return without(bisect.bisect_left(range(most), True, key=lambda count: fits(without(count)))), len(turns) // 2 + 1


def _task_messages(dialogue: Dialogue, text: str, answered: bool, form: str) -> list[dict]:
    *before, question = text.split(SEP)
    return messages(question, _pairs(before), dialogue.answer if answered else None, form)


#: What encoding must know of this task; `cut` is counted in exchanges.
TASK = Task("service", "dialogues", lambda dialogue: dialogue.text, _task_messages, shorten)


# --- reading -----------------------------------------------------------------------------------------------------

REMEDY = "the shipped dialogues are made by: python -m glmlab dialogues; for your own give the paths (train_file, dev_file, test_file)"
NEEDED = 'needed is {"instruction", "input", "output": text} or {"messages": [{"role", "content": text}, …]}'
_LEADS = re.compile(r"\s*(?:用户问|用户)\s*[：:]"), re.compile(r"\s*(?:客服回答|客服)\s*[：:]")  # before a question, an answer
#: What real logs put in place of names, numbers and pictures: [数字x], [ORDERID_10000029], #E-s[数字x].
MASK = re.compile(r"\[[\u4e00-\u9fff]{1,6}x\]|\[[A-Z]+_[0-9]+\]|#E-[a-z](?:\[数字x\])?")


@dataclass(frozen=True)
class _Answer:
    """What is to be learnt of a row; two of them are the same when their texts are."""
    text: str
    scene: str = field(compare=False, default="")

    def __str__(self) -> str:
        return f"the answer {' '.join(self.text.split())[:20]}…"


def read(path) -> tuple[list[Dialogue], list[Problem]]:
    """The dialogues of a JSON list or of JSON lines, and every row that cannot be used or is odd.

    A record: {"instruction": "用户问：…", "input": "", "output": "…"} with or without `用户问：` and `客服回答：`, and if there is one,
    "history": [[question, answer], …] and "scene"; or {"messages": …}, of which the system turn is left out. Masks of real logs stay.
    Errors: one FileNotFoundError or ValueError for what spoils a whole file: missing, empty, not UTF-8, no JSON, a broken list, or not
    one usable row.
    """
    return rows.read(path, _read, _dialogues, REMEDY)


def read_splits(files: dict[str, str | Path]) -> tuple[dict[str, list[Dialogue]], list[Problem]]:
    """The dialogues of several splits in the order train, dev, test, and every bad row; errors as `read`.

    A question that stands in two splits after the same history stays in the later one only, so that the test rows remain unseen.
    """
    return rows.read_splits(files, _read, _dialogues, words_of, REMEDY)


def _read(path) -> tuple[list[Row], list[Problem]]:
    file, text = paths.shown(path), rows.read_text(path)
    if not rows.is_json(text):
        raise ValueError(f"{file} is no JSON: it begins with {text.strip()[:20]!r}; {NEEDED}")
    try:
        return rows.checked(_rows(text, file), file, words_of)
    except ValueError as error:
        if "no valid JSON array" not in str(error):
            raise
        # the example printed in document 002 is broken in just this way
        raise ValueError(f'{error}; if there are straight quotation marks inside a text, write them as \\" or as “ ”') from None


def _rows(text: str, file: str) -> Iterator[Row]:
    for line, record in rows.json_rows(text, file):
        if isinstance(record, json.JSONDecodeError):
            yield Row(line, fault=f"not JSON: {record.msg}, column {record.colno}")
            continue
        turns = _turns(record)
        yield Row(line, fault=turns) if isinstance(turns, str) else _row(line, turns, str(record.get("scene") or ""))


def _dialogues(found: list[Row]) -> list[Dialogue]:
    return [_dialogue(row.number, row.text, row.target) for row in found]


def _dialogue(row: int, text: str, answer: _Answer) -> Dialogue:
    *before, question = text.split(SEP)
    return Dialogue(row, question, answer.text, _pairs(before), answer.scene)


def _row(line: int | None, turns: list[str], scene: str) -> Row:
    """A row of turns that alternate and end with the answer, with the fault that an empty turn is."""
    turns = [turn[lead.end() if (lead := _LEADS[place % 2].match(turn)) else 0:].strip() for place, turn in enumerate(turns)]
    masks = [mask for turn in turns for mask in MASK.findall(turn)]
    notes = (f"masked code: {len(masks)}, such as {masks[0]}",) if masks else ()
    return Row(line, SEP.join(turns[:-1]), _Answer(turns[-1], scene), _turn_fault(turns), notes)


def _turn_fault(turns: list[str]) -> str:
    """What is wrong with the first turn that cannot be used, "" if all can."""
    for place, turn in enumerate(turns):
        name = ("question", "answer")[place % 2] + ("" if place >= len(turns) - 2 else " in the history")
        if SEP in turn:
            return f"control character: U+001E in the {name}"
        if not words_of(turn):
            return f"empty {name}: no word in it"
    return ""


def _turns(record) -> list[str] | str:
    """The turns of a record, customer first and the answer last, or its fault."""
    if isinstance(record, dict) and "messages" in record:
        return _from_messages(record["messages"])
    missing = [key for key in ("instruction", "output") if not isinstance(record, dict) or key not in record]
    if missing:
        return f"missing key: {', '.join(missing)}; {NEEDED}"
    instruction, given, output = texts = [record.get(key) or "" for key in ("instruction", "input", "output")]
    if not all(isinstance(text, str) for text in texts):
        return f"not text: {NEEDED}"
    pairs = record.get("history") or []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and [*map(type, pair)] == [str, str] for pair in pairs):
        return "bad history: needed is a list of [question, answer]"
    question = "\n".join(part for part in (instruction.strip(), given.strip()) if part)  # Alpaca puts the input below the instruction
    return [turn for pair in pairs for turn in pair] + [question, output]


def _from_messages(found) -> list[str] | str:
    if not isinstance(found, list) or not all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in found):
        return 'no messages: needed is {"messages": [{"role": …, "content": text}, …]}'
    turns = [m for m in found if m.get("role") != "system"]
    roles = [m.get("role") for m in turns]
    if not turns or roles != ["user", "assistant"] * (len(turns) // 2):
        return f"turns do not alternate from user to assistant: {', '.join(map(str, roles)) or 'there is none'}"
    return [m["content"] for m in turns]


# --- writing -----------------------------------------------------------------------------------------------------

def write(path, dialogues: Iterable[Dialogue]) -> tuple[Path, Path | None]:
    """Write dialogues as the document's JSON list, with `scene` and `history` where there is one; what is written reads back the same.

    A different file that stood there is kept as name.bak, name.bak1, …: returns (path, that backup or None).
    """
    return rows.save(path, json.dumps([_record(dialogue) for dialogue in dialogues], ensure_ascii=False, indent=2) + "\n")


def _record(dialogue: Dialogue) -> dict:
    record = {"instruction": ASKED + dialogue.question, "input": "", "output": dialogue.answer}
    if dialogue.history:
        record["history"] = [list(pair) for pair in dialogue.history]
    return record | ({"scene": dialogue.scene} if dialogue.scene else {})


# --- feedback of the page -> training rows -----------------------------------------------------------------------

_UP = {"up": True, "1": True, "down": False, "-1": False}


def add_feedback(feedback_file, train_file, out) -> tuple[list[Dialogue], list[Problem]]:
    """Write the dialogues of train_file and the rated answers of the page to out (it may be train_file): (new or corrected ones, problems).

    A line of feedback: {"messages": up to the question, "answer", "rating": "up" or 1, "down" or -1, "correction": text or ""}; of
    several about the same answer the last one counts. A correction is learnt instead of the answer, also instead of the one in
    train_file; an answer rated down without a correction is left out. Every line not taken is among the problems, and so is every row
    of train_file that `read` leaves out. A different file at `out` is kept as .bak. Errors: as `read`, for either file.
    """
    dialogues, problems = read(train_file)
    lines, faults = _rated(feedback_file)
    places = {words_of(dialogue.text): place for place, dialogue in enumerate(dialogues)}
    new, file = {}, paths.shown(feedback_file)
    for row, learnt in lines:
        place = places.setdefault(words_of(row.text), len(dialogues))
        if place == len(dialogues):
            dialogues.append(_dialogue(place, row.text, _Answer(learnt)))
        else:
            known = dialogues[place].answer
            corrected = learnt not in (known, row.target.text)
            reason = "known already" if learnt == known else "correction" if corrected else "disagrees with a known answer"
            where = f"row {place} of what is written {'had' if corrected else 'has'} {_Answer(known)}"
            faults.append(row.problem(file, f"{reason}: {where}", "kept" if corrected else "left out"))
            if not corrected:
                continue
            dialogues[place] = replace(dialogues[place], row=place, answer=learnt)
        new[place] = dialogues[place]
    write(out, dialogues)
    return list(new.values()), problems + faults


def _rated(path) -> tuple[list[tuple[Row, str]], list[Problem]]:
    """([(row with the answer as rated, the answer to learn)], problems) of a file of feedback, in the order of the last ratings."""
    rows.require([path], "rate answers in the page first: python -m glmlab serve service")
    file, last, problems = paths.shown(path), {}, []
    for number, (line, record) in enumerate(rows.json_rows(rows.read_text(path), file)):
        row, learnt = _rating(line, record)
        row.number = number
        if row.fault:
            problems.append(row.problem(file, row.fault, "left out"))
            continue
        if earlier := last.pop((row.text, row.target), None):
            problems.append(earlier[0].problem(file, f"rated again: row {number} counts", "left out"))
        last[row.text, row.target] = row, learnt
    problems += [row.problem(file, f"rated down without a correction: {row.target}", "left out")
                 for row, learnt in last.values() if not learnt]
    return [(row, learnt) for row, learnt in last.values() if learnt], problems


def _rating(line: int | None, record) -> tuple[Row, str]:
    """(row with the answer as rated or a fault, the answer to learn: the correction, or the answer if rated up, or "")."""
    if isinstance(record, json.JSONDecodeError):
        return Row(line, fault=f"not JSON: {record.msg}, column {record.colno}"), ""
    if not isinstance(record, dict) or not isinstance(record.get("messages"), list) or not isinstance(record.get("correction") or "", str):
        return Row(line, fault="no rating: needed is {messages, answer, rating, correction}"), ""
    if record.get("task", "service") != "service":
        return Row(line, fault=f"another task: {record['task']}"), ""
    up = _UP.get(str(record.get("rating")))
    if up is None:
        return Row(line, fault=f"unknown rating: {record.get('rating')!r}, needed is up or down"), ""
    turns = _from_messages([*record["messages"], {"role": "assistant", "content": record.get("answer")}])
    if isinstance(turns, str):
        return Row(line, fault=turns), ""
    row = _row(line, turns, "")
    corrected = _row(line, [*turns[:-1], record.get("correction") or ""], "")
    if not corrected.fault:
        row.fault = ""  # at most the rated answer was at fault, empty for instance, and that is what was corrected
        return row, corrected.target.text
    return row, row.target.text if up else ""
