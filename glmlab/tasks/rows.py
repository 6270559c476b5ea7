"""What every task needs to take in and give out rows: text of a file, CSV and JSON records, reported problems, backups."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from glmlab import paths


@dataclass(frozen=True)
class Problem:
    """A row that is not as it should be, and what was done with it."""
    file: str
    row: int | None  # 0-based data row; None: the whole file
    reason: str      # "kind: what exactly, line 17"; problem_table counts the kinds
    action: str      # "left out" or "kept"

    def __str__(self) -> str:
        where = self.file if self.row is None else f"{self.file}, row {self.row}"
        return f"{where}: {self.reason} ({self.action})"


def problem_table(problems: Iterable[Problem], examples: int = 3) -> str:
    """The problems for a person: one line a file, kind and action with the count, below it the first few rows."""
    groups: dict[tuple, list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.file, problem.reason.partition(": ")[0], problem.action), []).append(problem)
    if not groups:
        return "no problems found"
    lines = []
    for (file, kind, action), members in groups.items():
        lines.append(f"{file}: {len(members):,} x {kind} ({action})")
        lines += [f"    row {member.row}: {member.reason.partition(': ')[2]}".rstrip(": ") for member in members[:examples]]
        if len(members) > examples:
            lines.append(f"    … and {len(members) - examples:,} more")
    return "\n".join(lines)


# --- checking rows -----------------------------------------------------------------------------------------------

@dataclass
class Row:
    """A row as a task found it in a file."""
    line: int | None               # from 1; None where it is not known
    text: str = ""
    target: object = None          # what is to be learnt from the text: a label, triplets, an answer
    fault: str = ""                # why the row cannot be used
    notes: tuple[str, ...] = ()    # what is odd but harmless
    number: int = 0                # 0-based data row, set by `checked`

    def problem(self, file: str, reason: str, action: str) -> Problem:
        """A problem of this row; the line is added to the reason."""
        if self.line is not None:
            reason += f"{',' if ': ' in reason else ':'} line {self.line}"
        return Problem(file, self.number, reason, action)


def checked(found: Iterable[Row], file: str, key: Callable[[str], str]) -> tuple[list[Row], list[Problem]]:
    """The usable rows of a file, numbered, and its problems. Of texts with the same key only the first row stays.

    Errors: ValueError with the problems when there is not one usable row.
    """
    kept, problems, first, count = [], [], {}, 0
    for count, row in enumerate(found, 1):
        row.number = count - 1
        fault = row.fault or _duplicate(row, first.setdefault(key(row.text), row))
        if fault:
            problems.append(row.problem(file, fault, "left out"))
        else:
            kept.append(row)
            problems += [row.problem(file, note, "kept") for note in row.notes]
    if not kept:
        what = f"not one of its {count:,} rows can be used:\n{problem_table(problems)}" if count else "there is a header, but no row"
        raise ValueError(f"{file}: {what}")
    return kept, problems


def _duplicate(row: Row, first: Row) -> str:
    if row is first:
        return ""
    if row.target == first.target:
        return f"duplicate: the same text as row {first.number}"
    return f"duplicate that disagrees: the same text as row {first.number}, which has {first.target}, this one {row.target}"


def without_later(splits: dict[str, list[Row]], files: dict, key: Callable[[str], str]) -> tuple[dict, dict[str, list[Problem]]]:
    """({split: rows that stand in no later split}, {split: problems}). Errors: ValueError if a split loses all its rows."""
    later: dict[str, tuple[str, Row]] = {}
    kept, problems = {}, {split: [] for split in splits}
    for split in reversed(splits):
        kept[split] = [row for row in splits[split] if key(row.text) not in later]
        for row in splits[split]:
            if (twin := later.get(key(row.text))) is not None:
                disagree = "" if twin[1].target == row.target else f", which has {twin[1].target}, this one {row.target}"
                reason = f"stands in two splits: in {twin[0]} too, {paths.shown(files[twin[0]])} row {twin[1].number}{disagree}"
                problems[split].append(row.problem(paths.shown(files[split]), reason, "left out"))
        if not kept[split]:
            raise ValueError(f"every row of {paths.shown(files[split])} ({split}) stands in a later split too; give different files")
        later |= {key(row.text): (split, row) for row in kept[split]}
    return {split: kept[split] for split in splits}, problems


def read(path, reader: Callable, made: Callable, remedy: str) -> tuple[list, list[Problem]]:
    """The rows of one file as the task calls them, and every bad row: what each task's `read` does; arguments as `read_splits`."""
    require([path], remedy)
    found, problems = reader(path)
    return made(found), problems


def read_splits(files: dict, reader: Callable, made: Callable, key: Callable[[str], str], remedy: str) -> tuple[dict[str, list], list[Problem]]:
    """The rows of several splits, in the order train, dev, test, and every bad row: what each task's `read_splits` does.

    reader: path -> (usable rows, problems). made: rows -> what the task calls them. key: text -> what makes two texts the same; a
    text that stands in two splits stays in the later one only. Errors: all missing files named together; those of reader.
    """
    require(files.values(), remedy)
    read_files = {split: reader(path) for split, path in files.items()}
    found, repeated = without_later({split: kept for split, (kept, _) in read_files.items()}, files, key)
    problems = [problem for split in files for problem in read_files[split][1] + repeated[split]]
    return {split: made(kept) for split, kept in found.items()}, problems


# --- files in ----------------------------------------------------------------------------------------------------

def require(files: Iterable, remedy: str) -> None:
    """Errors: one FileNotFoundError that names all missing files and where they were looked for; IsADirectoryError."""
    files = [Path(file) for file in files]
    missing = [file for file in files if not file.exists()]
    if missing:
        kind = "CSV files" if all(file.suffix.lower() == ".csv" for file in missing) else "files"
        folders = ", ".join(dict.fromkeys(str(file.absolute().parent) for file in missing))
        raise FileNotFoundError(f"missing {kind}: {', '.join(file.name for file in missing)} (looked in {folders}); {remedy}")
    for file in files:
        if file.is_dir():
            raise IsADirectoryError(f"{paths.shown(file)} is a folder; give the file in it")


def read_text(path) -> str:
    """The text of a UTF-8 file, without its byte order mark. Errors: ValueError with file, place and remedy if there is none."""
    name, raw = paths.shown(path), Path(path).read_bytes()
    try:
        text = raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        at, line = error.start, raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{name} is not UTF-8: byte {at:,} (line {line:,}) is 0x{raw[at]:02X}; {_advice(raw, at)}") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        advice = _advice(raw, 0) if b"\0" in raw[:2] else "that place is damaged; copy the file again"
        raise ValueError(f"{name} holds NUL characters from line {line:,} on; {advice}")
    if not text.strip():
        raise ValueError(f"{name} is empty")
    return text


def _convert(encoding: str) -> str:
    return (f"it looks like {encoding}; convert it: iconv -f {encoding} -t UTF-8 old.csv > new.csv "
            "(or save it as CSV UTF-8 in your spreadsheet program)")


def _advice(raw: bytes, start: int) -> str:
    """What a file that is not UTF-8 is, most likely, and what to do."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in raw[:2]:  # a header in ASCII: every second byte is 0
        return _convert("UTF-16LE" if raw[1:2] == b"\0" else "UTF-16BE" if raw[:1] == b"\0" else "UTF-16")
    if raw.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        return "it is an Excel workbook or an archive; save the sheet as CSV UTF-8"
    if not any("\u4e00" <= character <= "\u9fff" for character in raw[:start].decode("utf-8")):
        sample = raw[raw.rfind(b"\n", 0, start) + 1:][:4000].decode("gb18030", errors="replace")
        if sample.count("\ufffd") <= 1:  # one, where the sample ends
            return _convert("GB18030")
        return "it is no text in an encoding known here; save it as UTF-8"
    if len(raw) - start < 4:
        return "the file ends in the middle of a character, so it is cut off; copy it again"
    return "what stands before is UTF-8, so that place is damaged or in another encoding; correct that line"


# --- CSV ---------------------------------------------------------------------------------------------------------

def csv_rows(text: str) -> tuple[list[str], Iterator[tuple[int, list[str] | None]]]:
    """(column names, (line number from 1, fields) a row); fields are None where quotation marks are broken."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # the default of 131,072 characters refuses a very long call
    lines = list(io.StringIO(text, newline=""))
    start = next(place for place, line in enumerate(lines) if line.strip())
    header = [column.strip() for column in next(csv.reader([lines[start]]))]
    return header, _records(lines, start + 1, len(header))


def _records(lines: list[str], at: int, width: int) -> Iterator[tuple[int, list[str] | None]]:
    """A quotation mark that is never closed would swallow the rows behind it; only its own line is given up."""
    while at < len(lines):
        reader, used = csv.reader(lines[at:], strict=True), 0
        try:
            for fields in reader:
                first, at, used = at, at + reader.line_num - used, reader.line_num
                if at - first > 1 and len(fields) != width:
                    at = first + 1
                    yield at, None
                    break
                if len(fields) > 1 or any(field.strip() for field in fields):  # else a blank line
                    yield first + 1, fields
        except csv.Error:
            at += 1
            yield at, None


# --- JSON --------------------------------------------------------------------------------------------------------

def is_json(text: str) -> bool:
    """Whether the text is JSON (an array, or objects) rather than CSV: the name of a file does not tell."""
    return text.lstrip()[:1] in ("[", "{")


def json_rows(text: str, name: str) -> Iterator[tuple[int | None, object]]:
    """(line number or None, record) of an array or of JSON lines; a line that is no JSON gives its JSONDecodeError as record.

    Errors: ValueError with line and column where an array is broken.
    """
    whole = _json_or_error(text)
    if isinstance(whole, list):
        yield from ((None, record) for record in whole)
    elif not isinstance(whole, json.JSONDecodeError):
        yield None, whole
    elif text.lstrip()[0] == "[":
        raise ValueError(f"{name} is no valid JSON array: line {whole.lineno:,}, column {whole.colno:,}: {whole.msg}; "
                         "if the file ends there it was cut off: make it again")
    else:
        yield from ((number, _json_or_error(line)) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _json_or_error(text: str):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return error


# --- files out ---------------------------------------------------------------------------------------------------

def save(path, text: str) -> tuple[Path, Path | None]:
    """Write a text; a different file that stood there is kept as name.bak, name.bak1, … Returns (path, backup or None).

    An existing backup with the same content is not made twice. Errors: as `paths.write_bytes`; nothing is lost then.
    """
    path, content = Path(path), text.encode("utf-8")
    old = path.read_bytes() if path.is_file() else None
    if old == content:
        return path, None
    backup = None if old is None else _backup(path, old)
    return paths.write_bytes(path, content), backup


def _backup(path: Path, content: bytes) -> Path:
    number = 0
    while True:
        backup = path.with_name(f"{path.name}.bak{number or ''}")
        if not backup.exists():
            return paths.write_bytes(backup, content)
        if backup.is_file() and backup.read_bytes() == content:
            return backup
        number += 1
