"""Project 4, medical questions (医疗问答): rows of three file forms -> questions, prompts, emergencies, term density. Text only.

A question is a short title, a longer description and an answer. Teaching material: nothing in here replaces a doctor.
"""

import bisect
import csv
import io
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from glmlab import paths
from glmlab.tasks import Task, rows
from glmlab.tasks.medical_safety import DISCLAIMER, emergency, with_safety
from glmlab.tasks.rows import Problem, Row, problem_table

__all__ = ["DISCLAIMER", "HEADER", "SYSTEM_PROMPT", "Problem", "Question", "emergency", "messages", "problem_table", "read", "read_splits",
           "shorten", "term_density", "title_and_ask", "with_safety", "write_lines", "write_table"]

HEADER = ("department", "title", "ask", "answer")
TEXT = Path(__file__).with_name("text")


@dataclass(frozen=True)
class Question:
    """One question: its 0-based data row in the file, short question, description ("" if none), answer, department ("" if unknown)."""
    row: int
    title: str
    ask: str
    answer: str
    department: str = ""

    @property
    def text(self) -> str:
        """The whole question, as a model gets it: title and description, parted by a blank unless the title ends with a mark."""
        return self.title + ("" if not (self.title and self.ask) or re.search(r"[^\w\s]$", self.title) else " ") + self.ask


# --- the prompt --------------------------------------------------------------------------------------------------

#: Optional: the tiny bases and ChatGLM3 answer without it as well.
SYSTEM_PROMPT = ("你是健康知识课上的教学助手，你的回答是教学材料，不是医疗建议。请谨慎回答：先说可能是什么，再说自己能做什么，最后说什么情况要看医生；"
                 "不下诊断，不开处方，不写药量。遇到紧急情况，先请对方拨打120。")
ROUND = "[Round 1]\n\n问：{question}\n\n答："


def messages(text: str, answer: str | None = None, form: str = "chat", system: bool = False) -> list[dict]:
    """The conversation of a question (`Question.text`), with its answer when one is given; system: SYSTEM_PROMPT before it.

    form: "chat" (the base's own role prompt) or "rounds" (the `[Round 1]` line of document 003 as plain text in the user turn).
    """
    if form not in ("chat", "rounds"):
        raise ValueError(f"form {form!r}: choose chat or rounds")
    asked = text if form == "chat" else ROUND.replace("{question}", text)
    found = [{"role": "system", "content": SYSTEM_PROMPT}] if system else []
    found.append({"role": "user", "content": asked})
    return found if answer is None else [*found, {"role": "assistant", "content": answer}]


def shorten(text: str, fits: Callable[[str], bool]) -> tuple[str, int]:
    """The question without as much of its middle as it takes to fit, and the characters that cost: `(text, characters cut)`.

    The head says what it is about, the end what is asked. Where not even two characters fit they are returned: the caller must check.
    """
    if fits(text):
        return text, 0

    def without(count: int) -> str:
        head = (len(text) - count + 1) // 2
        return text[:head] + text[head + count:]

    most = max(0, len(text) - 2)
    count = bisect.bisect_left(range(most), True, key=lambda count: fits(without(count)))
    return without(count), count


#: What encoding must know of this task; `cut` is counted in characters.
TASK = Task("medical", "questions", lambda question: question.text,
            lambda question, text, answered, form: messages(text, question.answer if answered else None, form), shorten)


# --- medical terms -----------------------------------------------------------------------------------------------

@cache
def terms() -> tuple[str, ...]:
    """The course's lexicon of medical terms, text/medical_terms.yaml, sorted."""
    import yaml
    groups = yaml.load((TEXT / "medical_terms.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)
    return tuple(sorted(term for group in groups.values() for term in group.split()))


def term_density(text: str) -> float:
    """Share of the characters (blanks left out) that belong to a medical term, 0 to 1; of overlapping terms the longest counts.

    It tells medical text from other text, not right answers from wrong ones. 0 for a text without characters.
    """
    plain = "".join(text.split())
    return sum(len(found) for found in _terms_pattern().findall(plain)) / len(plain) if plain else 0.0


@cache
def _terms_pattern() -> re.Pattern:
    return re.compile("|".join(map(re.escape, sorted(terms(), key=len, reverse=True))))


# --- reading -----------------------------------------------------------------------------------------------------

REMEDY = "the shipped questions are made by: python -m glmlab questions; for your own give the paths (train_file, dev_file, test_file)"


@dataclass(frozen=True)
class _Found:
    """What a row says; two of them are the same when their answers are."""
    title: str = field(compare=False)
    ask: str = field(compare=False)
    answer: str
    department: str = field(compare=False, default="")

    def __str__(self) -> str:
        return f"the answer {self.answer[:20]}…"


def read(path) -> tuple[list[Question], list[Problem]]:
    """The questions of a file of lines, a table or JSON (told by the content), and every row that cannot be used or is odd.

    Lines: `简短问题？ 详细问题描述,回答`; the last ASCII comma of a line parts question and answer. Table: CSV with title, ask, answer
    and, if known, department. JSON array or lines of {"instruction", "input", "output"} or {"messages": …}. UTF-8 or GB18030.
    Errors: one FileNotFoundError or ValueError for what spoils a whole file: missing, empty, another encoding, a missing column, a
    broken array, or not one usable row.
    """
    return rows.read(path, _read, _questions, REMEDY)


def read_splits(files: dict[str, str | Path]) -> tuple[dict[str, list[Question]], list[Problem]]:
    """The questions of several splits in the order train, dev, test, and every bad row; errors as `read`.

    A question that stands in two splits stays in the later one only, so that the test rows remain whole and unseen.
    """
    return rows.read_splits(files, _read, _questions, words_of, REMEDY)


def _read(path) -> tuple[list[Row], list[Problem]]:
    file = paths.shown(path)
    text, notes = _text(path, file)
    if re.match(r'\s*(\[\s*)?\{\s*"', text):
        found = _json(text, file)
    else:
        found = _table(text, file) if _is_header(text) else _lines(text)
    kept, problems = rows.checked(found, file, words_of)
    return kept, notes + problems


def _questions(found: list[Row]) -> list[Question]:
    return [Question(row.number, row.target.title, row.target.ask, row.target.answer, row.target.department) for row in found]


def words_of(text: str) -> str:
    """A question without marks, blanks and letter case: what makes two questions the same."""
    return "".join(character for character in unicodedata.normalize("NFKC", text).lower() if character.isalnum())


def _text(path, file: str) -> tuple[str, list[Problem]]:
    """(text, notes) of a UTF-8 or GB18030 file; one that begins with Chinese in UTF-8 is damaged UTF-8. Errors: as `rows.read_text`."""
    raw = Path(path).read_bytes()
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if b"\0" not in raw and not re.search("[\u4e00-\u9fff]", raw[:error.start].decode("utf-8")):
            try:
                return raw.decode("gb18030"), [Problem(file, None, "encoding: GB18030, read as such", "kept")]
            except UnicodeDecodeError:
                pass  # rows.read_text says what it is
    return rows.read_text(path), []


def _row(line: int | None, title: str, ask: str, answer: str, department: str = "", notes: tuple = ()) -> Row:
    """A row with the fault that an empty title or answer is."""
    found = _Found(title.strip(), ask.strip(), answer.strip(), department.strip())
    empty = [name for name in ("title", "answer") if not words_of(getattr(found, name))]
    fault = f"empty {empty[0]}: no word in it" if empty else ""
    return Row(line, Question(0, found.title, found.ask, "").text, found, fault, notes)


# --- lines ---

def title_and_ask(text: str) -> tuple[str, str, str]:
    """(short question with its mark, description, note) of a question: parted behind the first question mark, else at the first blank."""
    text = text.strip()
    if found := re.match(r"[^？?]*[？?]+", text):
        title = found[0]
        note = "blank before the question mark: the short question may end there" if re.search(r"\S\s+\S", title) else ""
        return title, text[found.end():].strip(), note
    title, ask = (*text.split(maxsplit=1), "", "")[:2]
    return title, ask, f"no question mark: the short question is {'what stands before the first blank' if ask else 'the whole text'}"


def _lines(text: str) -> Iterator[Row]:
    for number, line in enumerate(re.split(r"\r\n|\r|\n", re.sub(r"(\r\n|\r|\n)\Z", "", text)), 1):
        question, comma, answer = line.rpartition(",")
        if fault := _line_fault(line, question, comma, answer):
            yield Row(number, fault=fault)
        else:
            title, ask, note = title_and_ask(question)
            yield _row(number, title, ask, answer, notes=(note,) if note else ())


def _line_fault(line: str, question: str, comma: str, answer: str) -> str:
    if not line.strip():
        return "blank line"
    if '"""' in line or question.count('"') % 2 or answer.count('"') % 2:
        return "debris of a CSV conversion: quotation marks that open and do not close"
    if not comma:
        return "no answer: there is no ASCII comma in the line"
    if re.search(r"[0-9]$", question) and re.match(r"[0-9]", answer):
        return "no answer: the last ASCII comma stands inside a number"
    return ""


# --- table and JSON ---

def _is_header(text: str) -> bool:
    """Whether the first line is column names parted by commas (a Chinese header must be refused, not read as a question)."""
    names = [name.strip(' "') for name in text.strip().split("\n")[0].split(",")]
    english = all(re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) for name in names)
    return len(names) > 1 and (english or names[-1] in ("回答", "答案", "答复"))


def _table(text: str, file: str) -> Iterator[Row]:
    header, records = rows.csv_rows(text)
    missing = [column for column in HEADER[1:] if column not in header]
    if missing or len(set(header)) != len(header):
        wrong = f"column {', '.join(missing)} is missing" if missing else "a column stands twice"
        raise ValueError(f"{file}: {wrong}; found: {', '.join(header[:12])}; needed: title, ask, answer (and department, if known)")
    for line, fields in records:
        if fields is None:
            yield Row(line, fault="broken quotation marks: one is opened and not closed, or text follows the closing one")
        elif len(fields) != len(header):
            yield Row(line, fault=f"wrong number of fields: {len(fields)}, the header has {len(header)}")
        else:
            row = dict(zip(header, fields))
            note = () if re.search("[？?]", row["title"]) else ("no question mark in the title",)
            yield _row(line, row["title"], row["ask"], row["answer"], row.get("department", ""), note)


def _json(text: str, file: str) -> Iterator[Row]:
    for line, record in rows.json_rows(text, file):
        if isinstance(record, json.JSONDecodeError):
            yield Row(line, fault=f"not JSON: {record.msg}, column {record.colno}")
            continue
        parts = _from_record(record)
        yield Row(line, fault=parts) if isinstance(parts, str) else _row(line, *parts, str(record.get("department") or ""))


def _from_record(record) -> tuple[str, str, str] | str:
    """(title, ask, answer) of a JSON record, or its fault. An instruction with an input is the title, the input the description."""
    keys = ("instruction", "input", "output")
    if isinstance(record, dict) and isinstance(record.get("messages"), list):
        return _from_messages(record["messages"])
    if not isinstance(record, dict) or "output" not in record or not all(isinstance(record.get(key) or "", str) for key in keys):
        return 'unknown record: needed is {"instruction", "input", "output": text} or {"messages": [{"role", "content": text}, …]}'
    instruction, given, output = (record.get(key) or "" for key in keys)
    if instruction.strip() and given.strip():
        return instruction, given, output
    return (*title_and_ask(instruction or given)[:2], output)


def _from_messages(found: list) -> tuple[str, str, str] | str:
    if not all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in found):
        return 'no messages: needed is {"messages": [{"role": …, "content": text}, …]}'
    users, answers = ([m["content"] for m in found if m.get("role") == role] for role in ("user", "assistant"))
    if len(users) != 1 or len(answers) != 1:
        return f"not one question and one answer: {len(users)} user turns and {len(answers)} answers"
    head, end = ROUND.split("{question}")
    return (*title_and_ask(users[0].removeprefix(head).removesuffix(end))[:2], answers[0])


# --- writing -----------------------------------------------------------------------------------------------------

def write_table(path, questions: Iterable[Question]) -> tuple[Path, Path | None]:
    """Write questions as CSV, UTF-8 with LF. Returns (path, backup of a different file that stood there or None)."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows([getattr(question, column) for column in HEADER] for question in questions)
    return rows.save(path, out.getvalue())


def write_lines(path, questions: Iterable[Question]) -> tuple[Path, Path | None, list[Problem]]:
    """Write questions in the line form; departments are lost. Returns (path, backup or None, what had to be changed, one Problem each).

    The form knows no escape: ASCII commas of an answer become ，, ASCII quotation marks ”, line breaks blanks; a title gets one question
    mark, at its end. What is written reads back the same. Errors: ValueError for a question without title or answer.
    """
    lines, changes = [], []
    for number, question in enumerate(questions):
        parts = title, ask, answer = _in_a_line(question)
        if not words_of(title) or not words_of(answer):
            raise ValueError(f"question {number} of {paths.shown(path)} has no {'answer' if words_of(title) else 'title'}: leave it out")
        if parts != (question.title, question.ask, question.answer):
            changes.append(Problem(paths.shown(path), number, "changed for the line form: commas, marks or blanks", "kept"))
        blank = " " if re.search("[0-9]$", ask) and answer[0].isdigit() else ""
        lines.append(f"{title}{' ' if ask else ''}{ask},{blank}{answer}\n")
    return (*rows.save(path, "".join(lines)), changes)


def _in_a_line(question: Question) -> tuple[str, str, str]:
    title, ask, answer = (" ".join(part.replace('"', "”").split()) for part in (question.title, question.ask, question.answer))
    bare = re.sub(r"[？?]+", "，", title.rstrip("？? "))
    mark = re.search(r"[？?]+$", title)
    return bare + (mark[0] if mark else "？"), ask, answer.replace(",", "，").strip()
