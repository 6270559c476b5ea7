"""Project 1, intent classification (意图识别): rows of the real file format -> calls, prompts, answers -> labels. Text only.

A call is one text in which `[SEP]` stands between the turns. It has one of the 34 labels of CMCC-34, and the answer to learn
is `意图：id：name`.
"""

import bisect
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from glmlab import paths
from glmlab.tasks import Task, rows
from glmlab.tasks.calls import HEADER, SEP
from glmlab.tasks.labels import GROUPS, LABELS, NAMES
from glmlab.tasks.rows import Problem, Row, problem_table

__all__ = ["ANSWERS", "LABELS", "NAMES", "SYSTEM_PROMPT", "TEMPLATE", "Call", "Problem", "answer", "messages", "parse", "problem_table",
           "read", "read_splits", "shorten", "write_messages"]


# --- the prompt --------------------------------------------------------------------------------------------------

SYSTEM_PROMPT = """你是客服意图识别专家，判断一通客服电话里客户的意图。
输入格式：“对话：”后面是整通电话，[SEP]隔开轮次，一般客服先说；语音转写，没有标点。
判断提示：客户可能先后提出几件事，以最后一件有了结果的为准；客户放弃的和客服推荐的都不算。咨询是打听，投诉是表示不满，办理是要客服办好。
意图列表：
""" + "\n".join(f"{label.id}:{label.name}" for label in LABELS) + """
输出格式：意图：编号：名称"""
#: The old form, one user turn. The call comes last, so that also here all prompts share their beginning.
TEMPLATE = SYSTEM_PROMPT + "\n对话：{conversation}"


def answer(label: int) -> str:
    """The answer to learn: `意图：1：办理取消`. Errors: ValueError for a number that is no label."""
    if label not in range(len(NAMES)):
        raise ValueError(f"label {label!r} is none of 0 to {len(NAMES) - 1}")
    return f"意图：{label}：{NAMES[label]}"


ANSWERS = [answer(label.id) for label in LABELS]


def messages(text: str, label: int | None = None, form: str = "system", prompt: str = SYSTEM_PROMPT) -> list[dict]:
    """The conversation of a call, with its answer when a label is given.

    form: "system" (system prompt, then `对话：` and the call) or "template" (both in one user turn). prompt: another one; empty: none.
    """
    if form == "system":
        found = [{"role": "system", "content": prompt}] * bool(prompt) + [{"role": "user", "content": f"对话：{text}"}]
    elif form == "template":
        found = [{"role": "user", "content": (f"{prompt}\n" if prompt else "") + f"对话：{text}"}]
    else:
        raise ValueError(f"form {form!r}: choose system or template")
    return found if label is None else [*found, {"role": "assistant", "content": answer(label)}]


# --- an answer -> its label --------------------------------------------------------------------------------------

def _plain(text: str) -> str:
    """Full-width colons, digits, brackets and commas as ASCII; marks that only decorate an answer removed."""
    return re.sub(r'[*_`#"“”\[\]【】<>《》]', "", unicodedata.normalize("NFKC", text))


def _wordings(label) -> tuple[str, ...]:
    """What a label may be called: in full, without the bracket, without the group."""
    short = label.name.removeprefix(GROUPS[label.group])
    return tuple(map(_plain, (label.name, label.name[:2] + short, short)))


WORDINGS = [_wordings(label) for label in LABELS]
IDS = {_plain(label.name): label.id for label in LABELS}
_LONGEST_FIRST = sorted(((words, label) for label, names in enumerate(WORDINGS) for words in names), key=lambda pair: -len(pair[0]))
_NAME = r"([^\s,.;。、]+)"


#: Why an answer that `parse` gives None for does not count.
NO_LABEL = "no label in the answer, or a number and a name that disagree"


def parse(text: str) -> int | None:
    """The label an answer gives, None if it gives none. The first rule that finds something decides.

    1. `意图：id：name`  2. `意图：id`  3. `id：name` (also `id name`, `id. name`)  4. any number from 0 to 33. Full-width and ASCII alike.
    A name must be that of its id: whole, cut off, or without 含查询, 含抱怨 or the group. Where id and name disagree the answer
    gives two labels or half of one; taking either would be a guess in the model's favour, so it is unanswered.
    """
    plain = _plain(text)
    if found := re.search(rf"意图\s*:\s*([0-9]{{1,4}})(?![0-9])(?:\s*:\s*{_NAME})?", plain):
        label = int(found[1])
        return label if label < len(LABELS) and _agrees(label, found[2] or "") else None
    for found in re.finditer(rf"(?<![0-9.])([0-9]{{1,4}})(?![0-9])\s*[-:.、—]?\s*{_NAME}", plain):
        named = _named(found[2])
        if named is not None:
            return named if named == int(found[1]) else None
    numbers = [int(number) for number in re.findall(r"(?<![0-9.])[0-9]{1,2}(?!\.?[0-9]|%)", plain)]
    return next((number for number in numbers if number < len(LABELS)), None)


def _named(words: str) -> int | None:
    """The label whose name these words begin with."""
    return next((label for name, label in _LONGEST_FIRST if words.startswith(name)), None)


def _agrees(label: int, words: str) -> bool:
    named = _named(words)
    return named == label or named is None and any(name.startswith(words) for name in WORDINGS[label])


# --- rare labels ---

def balanced(calls: list, power: float) -> list[int]:
    """Places of the calls to train on, those of rare labels repeated: n calls of a label become about n (most / n) ^ power of them.

    0 leaves the shares as they are, 1 makes all labels equally frequent. In the order of the calls, copies next to each other.
    """
    counts = Counter(call.label for call in calls)
    most = max(counts.values(), default=0)
    seen, places = Counter(), []
    for place, call in enumerate(calls):
        times = (most / counts[call.label]) ** power
        # as many copies as bring the label up to its share so far: the fractions are spread evenly over its calls
        copies = round(times * (seen[call.label] + 1)) - round(times * seen[call.label])
        seen[call.label] += 1
        places += [place] * copies
    return places


# --- a call that is too long -------------------------------------------------------------------------------------

def shorten(text: str, fits: Callable[[str], bool]) -> tuple[str, int]:
    """The call without as much of its middle as it takes to fit, and how many turns that cost: `(text, turns dropped)`.

    First and last turn stay: they say what the call is about and how it ended. Turns go in pairs where possible, so that the
    speakers still alternate. A turn longer than all others together loses its middle instead, and counts as one turn.
    fits is asked 20 to 40 times, whatever the length. Where not even the ends of first and last turn fit, they are returned:
    the caller must check.
    """
    if fits(text):
        return text, 0
    turns = text.split(SEP)
    longest = max(range(len(turns)), key=lambda place: len(turns[place]))
    if 2 * len(turns[longest]) > len(text):
        text = _cut(turns, longest, fits, keep=40)
        if fits(text):
            return text, 1
        turns = text.split(SEP)
    drops = sorted({*range(2, len(turns) - 1, 2), len(turns) - 2} - {0, -1})
    place = bisect.bisect_left(drops, True, key=lambda count: fits(_without(turns, count)))
    if place < len(drops):
        return _without(turns, drops[place]), drops[place]
    ends = [turns[0], turns[-1]] if len(turns) > 1 else turns
    for place in sorted(range(len(ends)), key=lambda place: -len(ends[place])):
        text = _cut(ends, place, fits, keep=2)
        if fits(text):
            break
        ends = text.split(SEP)
    return text, max(1, len(turns) - 2)


def _without(turns: list[str], count: int) -> str:
    """The turns without `count` from the middle; where one half must be longer, the end."""
    head = (len(turns) - count) // 2
    return SEP.join(turns[:head] + turns[head + count:])


def _cut(turns: list[str], place: int, fits: Callable[[str], bool], keep: int) -> str:
    """The call with as much cut from the middle of one turn as it takes; `keep` characters of that turn stay, even if that is too long."""
    turn = turns[place]

    def without(count: int) -> str:
        head = (len(turn) - count) // 2
        return SEP.join([*turns[:place], turn[:head] + turn[head + count:], *turns[place + 1:]])

    most = max(0, len(turn) - keep)
    return without(bisect.bisect_left(range(most), True, key=lambda count: fits(without(count))))


#: What encoding must know of this task; `cut` is counted in turns.
TASK = Task("intent", "calls", lambda call: call.text,
            lambda call, text, answered, form: messages(text, call.label if answered else None, form), shorten)


# --- reading -----------------------------------------------------------------------------------------------------

REMEDY = "the shipped calls are made by: python -m glmlab calls; for your own give the paths (train_file, dev_file, test_file)"
LABEL_COLUMNS = ("label_raw", "c_numerical", "num_cnum")


@dataclass(frozen=True)
class Call:
    """One call: its 0-based data row in the file, its text with `[SEP]`, its label (None in an unlabelled file)."""
    row: int
    text: str
    label: int | None


def read(path) -> tuple[list[Call], list[Problem]]:
    """The calls of a CSV file, a JSON array or JSON lines of messages (told by their content), and every bad row.

    Errors: one FileNotFoundError or ValueError for what spoils a whole file: missing, empty, not UTF-8, a missing column, a
    broken array, or not one usable row.
    """
    return rows.read(path, _read, _calls, REMEDY)


def read_splits(files: dict[str, str | Path]) -> tuple[dict[str, list[Call]], list[Problem]]:
    """The calls of several splits in the order train, dev, test, and every bad row.

    A call that stands in two splits stays in the later one only, so that the test rows remain whole and unseen.
    Errors: as `read`; all missing files are named together.
    """
    return rows.read_splits(files, _read, _calls, _words, REMEDY)


def _read(path) -> tuple[list[Row], list[Problem]]:
    file, text = paths.shown(path), rows.read_text(path)
    return rows.checked(_json(text, file) if rows.is_json(text) else _csv(text, file), file, _words)


def _calls(found: list[Row]) -> list[Call]:
    return [Call(row.number, row.text.strip(), row.target) for row in found]


def says_anything(text: str) -> bool:
    """Whether a call has a word outside its `[SEP]`."""
    return bool(_words(text))


def _words(text: str) -> str:
    """A call without marks and blanks: what makes two calls the same."""
    return "".join(text.replace(SEP, "").split())


def _csv(text: str, file: str) -> Iterator[Row]:
    header, records = rows.csv_rows(text)
    labelled = any(column in header for column in LABEL_COLUMNS)
    _check_columns(header, HEADER if labelled else ("word_mf2", "sentence_sep"), file)
    for line, fields in records:
        if fields is None:
            yield Row(line, fault="broken quotation marks: one is opened and not closed, or text follows the closing one")
        elif len(fields) != len(header):
            yield Row(line, fault=f"wrong number of fields: {len(fields)}, the header has {len(header)}")
        else:
            yield _from_columns(line, dict(zip(header, fields)), labelled)


def _check_columns(header: list[str], needed: tuple[str, ...], file: str) -> None:
    missing = [column for column in needed if column not in header]
    if not missing and len(set(header)) == len(header):
        return
    wrong = f"column {', '.join(missing)} is missing" if missing else "a column stands twice"
    found = ", ".join(column if len(column) <= 40 else column[:40] + "…" for column in header[:12])
    hint = "; separate the columns with commas" if len(header) == 1 and re.search(r"[;\t|]", header[0]) else ""
    raise ValueError(f"{file}: {wrong}; found: {found}; needed: {', '.join(needed)} (a file without labels: word_mf2, sentence_sep){hint}")


def _from_columns(line: int, row: dict[str, str], labelled: bool) -> Row:
    text = row["sentence_sep"]
    if not _words(text):
        return Row(line, fault="empty call")
    label, fault = _label(row["label_raw"].strip(), row["c_numerical"].strip()) if labelled else (None, "")
    notes = []
    if label is not None and row["num_cnum"].strip() != str(LABELS[label].group):
        notes.append(f"num_cnum disagrees with the label: {row['num_cnum']!r} instead of {LABELS[label].group} for {NAMES[label]}")
    if _words(row["word_mf2"]) != _words(text):
        notes.append(f"word_mf2 is not sentence_sep without marks: {len(_words(row['word_mf2']))} and {len(_words(text))} characters; "
                     "sentence_sep was used")
    return Row(line, text, label, fault, tuple(notes))


def _label(name: str, number: str) -> tuple[int | None, str]:
    """(label, fault) of the columns label_raw and c_numerical; `6.0` is taken for 6, as pandas writes it."""
    by_name = IDS.get(_plain(name))
    by_number = int(float(number)) if re.fullmatch(r"[0-9]{1,2}(\.0)?", number) else None
    if by_name is None:
        return None, f"unknown label: label_raw {name!r} is none of the {len(LABELS)} names"
    if by_number is None or by_number >= len(LABELS):
        return None, f"unknown label: c_numerical {number!r} is none of 0 to {len(LABELS) - 1}"
    if by_name != by_number:
        return None, f"label_raw and c_numerical disagree: {name} is {by_name}, c_numerical is {number}"
    return by_name, ""


def _json(text: str, file: str) -> Iterator[Row]:
    for line, record in rows.json_rows(text, file):
        if isinstance(record, json.JSONDecodeError):
            yield Row(line, fault=f"not JSON: {record.msg}, column {record.colno}")
        else:
            yield _from_messages(line, record)


def _from_messages(line: int | None, record) -> Row:
    found = record.get("messages") if isinstance(record, dict) else None
    if not isinstance(found, list) or not all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in found):
        return Row(line, fault='no messages: needed is {"messages": [{"role": …, "content": text}, …]}')
    users, answers = ([m["content"] for m in found if m.get("role") == role] for role in ("user", "assistant"))
    if len(users) != 1 or len(answers) > 1:
        return Row(line, fault=f"not one call: {len(users)} user turns and {len(answers)} answers; needed: 1, and at most 1")
    text = _call_text(users[0])
    if text is None or not _words(text):
        return Row(line, fault="no call: the user turn holds no 对话：" if text is None else "empty call")
    label = parse(answers[0]) if answers else None
    if answers and label is None:
        return Row(line, fault=f"unknown label: the answer {answers[0][:60]!r} gives none; needed: 意图：id：name")
    odd = answers and "".join(_plain(answers[0]).split()) != _plain(answer(label))
    return Row(line, text, label, notes=(f"answer in another form: {answers[0][:60]!r} was read as {answer(label)}",) if odd else ())


def _call_text(content: str) -> str | None:
    """The call in a user turn: all behind a leading `对话：`, else what stands on the line of the last `对话：` or `对话内容：`.

    In quotation marks it is an example of the old templates.
    """
    content = content.strip().removeprefix(SYSTEM_PROMPT).lstrip()  # TEMPLATE
    if lead := re.match(r"对话[：:]", content):
        return content[lead.end():]
    found = re.findall(r"对话(?:内容)?[：:][ \t]*+\n?+(?![\"“”])(.*)", content)
    return found[-1] if found else None


# --- writing -----------------------------------------------------------------------------------------------------

def write_messages(path, calls: list[Call], form: str = "system") -> tuple[Path, Path | None]:
    """Write calls as JSON lines of {"messages": …}; calls without label get no answer.

    A different file that stood there is kept as name.bak, name.bak1, …: returns (path, that backup or None).
    """
    lines = [json.dumps({"messages": messages(call.text, call.label, form)}, ensure_ascii=False) + "\n" for call in calls]
    return rows.save(path, "".join(lines))
