"""Project 2, triplet extraction (三元组抽取): rows of the usual file formats -> sentences, prompts, answers -> triples. Text only.

The answer to learn is one `(主体, 关系, 客体)` a line in order of mention, or `无`.
"""

import bisect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from glmlab import paths
from glmlab.tasks import Task, rows
from glmlab.tasks.relations import NONE, RELATIONS, Relation, Triple, answer, in_order, in_text, normal, normalise, parse, restore
from glmlab.tasks.rows import Problem, Row, problem_table

__all__ = ["INSTRUCTION", "NONE", "RELATIONS", "TASK", "Problem", "Relation", "Sentence", "Triple", "answer", "as_lines", "convert",
           "in_order", "in_text", "labelled", "messages", "named", "normal", "normalise", "of_run", "parse", "problem_table", "prompt_head", "read",
           "read_splits", "relations_of", "restore", "shorten", "task_of", "write"]


# --- the prompt --------------------------------------------------------------------------------------------------

INSTRUCTION = "请从以下文本中抽取所有的三元组，格式为(主体, 关系, 客体)："


def prompt_head(form: str = "instruction", relations: Mapping[str, Relation] = RELATIONS) -> str:
    """What stands above the text in the user turn. form: "instruction", or "relations", which says also what each relation means."""
    if form == "instruction":
        return INSTRUCTION + "\n"
    if form == "relations":
        lines = "\n".join(f"{name}：{relation.description}" for name, relation in relations.items())
        return f"{INSTRUCTION}\n关系只有这些：\n{lines}\n否认、计划和传闻不算；没有三元组时回答：{NONE}\n文本：\n"
    raise ValueError(f"form {form!r}: choose instruction or relations")


def messages(text: str, triples=None, form: str = "instruction", relations: Mapping[str, Relation] = RELATIONS) -> list[dict]:
    """The conversation of a text, with its answer when triples are given; form and relations: as `prompt_head`."""
    found = [{"role": "user", "content": prompt_head(form, relations) + text}]
    return found if triples is None else [*found, {"role": "assistant", "content": answer(triples)}]


# --- a text that is too long -------------------------------------------------------------------------------------

def shorten(text: str, fits: Callable[[str], bool]) -> tuple[str, int]:
    """The text without as many sentences from its middle as it takes to fit, and how many those are.

    Where first and last sentence alone are too long, characters of their middle go too and count as one more. fits is asked
    about 20 times. Where nothing fits, the two outermost characters are returned: the caller must check.
    """
    if fits(text):
        return text, 0
    parts = re.findall(r"[^。！？!?；;\n]*[。！？!?；;\n]+|[^。！？!?；;\n]+", text)
    drops = range(1, max(1, len(parts) - 1))
    place = bisect.bisect_left(drops, True, key=lambda count: fits("".join(_without(parts, count))))
    if place < len(drops):
        return "".join(_without(parts, drops[place])), drops[place]
    rest = "".join(_without(parts, len(drops)))
    most = max(0, len(rest) - 2)
    cut = bisect.bisect_left(range(most), True, key=lambda count: fits(_without(rest, count)))
    return _without(rest, cut), len(drops) + 1


def _without(parts, count: int):
    head = (len(parts) - count + 1) // 2
    return parts[:head] + parts[head + count:]


# --- reading -----------------------------------------------------------------------------------------------------

REMEDY = "the shipped sentences are made by: python -m glmlab sentences; for your own give the paths (train_file, dev_file, test_file)"


@dataclass(frozen=True)
class Sentence:
    """One text with its triples: its 0-based data row in the file; triples are None in an unlabelled file."""
    row: int
    text: str
    triples: tuple[Triple, ...] | None


def task_of(relations: Mapping[str, Relation] = RELATIONS) -> Task:
    """The task over a list of relations, which the prompt of form "relations" names."""
    return Task("triplets", "sentences", lambda sentence: sentence.text,
                lambda sentence, text, answered, form: messages(text, sentence.triples if answered else None, form, relations), shorten)


TASK = task_of()


def labelled(sentences: list[Sentence], what: str = "sentences") -> list[Sentence]:
    """The sentences whose triples are given, none included: those one can learn from and be measured on. Errors: ValueError for not one."""
    found = [sentence for sentence in sentences if sentence.triples is not None]
    if sentences and not found:
        raise ValueError(f"none of the {len(sentences)} {what} has its triples given: nothing can be learnt from them or measured on them; "
                         "add the answers (output or spo_list; 无 where there is none)")
    return found


def relations_of(sentences: list[Sentence], known: Mapping[str, Relation] = RELATIONS) -> dict[str, Relation]:
    """The known relations and those that only these sentences use, for prompt, parser and scores of a set with relations of its own."""
    return {**known, **named([triple.relation for sentence in sentences for triple in sentence.triples or ()], known)}


def named(names: Iterable[str], known: Mapping[str, Relation] = RELATIONS) -> dict[str, Relation]:
    """The relations of these names, each once; one that is not known means what it is called."""
    return {name: known.get(name, Relation(name)) for name in names}


def of_run(recorded: Iterable[str]) -> dict[str, Relation]:
    """The relations that a run was trained on, of the names it recorded; those of the course where it recorded none."""
    return named(recorded) or dict(RELATIONS)


def read(path, relations: Mapping[str, Relation] = RELATIONS) -> tuple[list[Sentence], list[Problem]]:
    """The sentences of a file of JSON lines or a JSON array, and every bad or odd row. Four forms, told by their fields:

    {"instruction", "input", "output"} of the course; {"text", "spo_list"} of DuIE and CMeIE; IEPile, whose output is JSON and whose
    rows may ask one text for different relations (they are joined); {"messages": […]}.
    Errors: one FileNotFoundError or ValueError for what spoils a whole file: missing, empty, not UTF-8, no JSON, not one usable row.
    """
    return rows.read(path, lambda path: _read(path, relations), _sentences, REMEDY)


def read_splits(files: dict[str, str | Path],
                relations: Mapping[str, Relation] = RELATIONS) -> tuple[dict[str, list[Sentence]], list[Problem]]:
    """The sentences of several splits in the order train, val, test, and every bad row.

    A text that stands in two splits stays in the later one only. Errors: as `read`; all missing files are named together.
    """
    return rows.read_splits(files, lambda path: _read(path, relations), _sentences, normalise, REMEDY)


def _read(path, relations: Mapping[str, Relation]) -> tuple[list[Row], list[Problem]]:
    name, text = paths.shown(path), rows.read_text(path)
    if not rows.is_json(text):
        raise ValueError(f"{name} holds no JSON: needed are JSON lines or an array, for instance "
                         '{"instruction": …, "input": text, "output": "(主体, 关系, 客体)"}')
    return rows.checked(_joined(_from_json(line, record, relations) for line, record in rows.json_rows(text, name)), name, normalise)


def _sentences(found: list[Row]) -> list[Sentence]:
    return [Sentence(row.number, row.text, row.target) for row in found]


def _joined(found: Iterator[tuple[Row, bool]]) -> list[Row]:
    """The rows; one that asks a text for other relations than a row before (IEPile) gives its triples to that row."""
    first: dict[str, Row] = {}
    every = []
    for number, (row, is_part) in enumerate(found):
        every.append(row)
        row.number = number
        whole = first.setdefault(normalise(row.text), row) if is_part and not row.fault else row
        if whole is not row:
            whole.target = tuple(in_order(whole.text, whole.target + row.target))
            row.fault = f"part of another row: its triples were added to row {whole.number}, which has the same text"
    return every


def _from_json(line: int | None, record, relations: Mapping[str, Relation]) -> tuple[Row, bool]:
    """(the row, whether it may be a part of a text that other rows hold too)."""
    if isinstance(record, json.JSONDecodeError):
        return Row(line, fault=f"not JSON: {record.msg}, column {record.colno}"), False
    is_part = False
    try:
        if not isinstance(record, dict):
            raise _Unreadable(f"no object: {str(record)[:60]}")
        if "spo_list" in record:
            text, found, notes = _from_spo_list(record)
        elif "messages" in record:
            text, found, notes = _from_messages(record["messages"], relations)
        elif (asked := _asked(record)) is not None:
            text, found, notes = *_from_schema(asked, record), []
            is_part = True
        else:
            text, found, notes = _from_instruction(record, relations)
    except _Unreadable as error:
        return Row(line, fault=str(error)), False
    if not text.strip():
        return Row(line, fault="empty text"), False
    return _checked_row(line, text.strip(), found, notes, relations), is_part


class _Unreadable(Exception):
    """Why a record gives no sentence."""


def _checked_row(line: int | None, text: str, found: list | None, notes: list[str], relations: Mapping[str, Relation]) -> Row:
    """The row with what is odd about its triples noted; the triples stay as they are, in order of mention, each once."""
    if found is None:
        return Row(line, text, None)
    triples = [Triple(*(" ".join(part.split()) for part in triple)) for triple in found]
    if any(not part for triple in triples for part in triple):
        return Row(line, fault=f"empty name: {next(tuple(triple) for triple in triples if not all(triple))}")
    kept = list({normal(triple): triple for triple in reversed(triples)}.values())[::-1]
    if len(kept) < len(triples):
        notes = [*notes, f"duplicate triples: {len(triples) - len(kept)} of {len(triples)} were left out"]
    unknown = sorted({triple.relation for triple in kept} - set(relations))
    if unknown:
        notes = [*notes, f"unknown relation: {', '.join(unknown)}"]
    missing = [span for triple in kept for span in (triple.head, triple.tail) if not in_text(span, text)]
    if missing:
        notes = [*notes, f"span not in the text: {', '.join(dict.fromkeys(missing))}"]
    return Row(line, text, tuple(in_order(text, kept)), notes=tuple(notes))


def _string(record: dict, *fields: str) -> str:
    """The first of the fields that is there. Errors: _Unreadable if none is, or if it holds no text."""
    value = next((record[field] for field in fields if field in record), None)
    if isinstance(value, dict) and "@value" in value:  # DuIE 2: an object with further parts
        value = value["@value"]
    if not isinstance(value, str):
        raise _Unreadable(f"no {' or '.join(fields)}: a text is needed, found {str(value)[:60]}")
    return value


def _from_spo_list(record: dict) -> tuple[str, list[Triple], list[str]]:
    text, found = _string(record, "text"), record["spo_list"]
    if not isinstance(found, list) or not all(isinstance(spo, dict) for spo in found):
        raise _Unreadable("no triples: spo_list must be a list of {subject, predicate, object}")
    triples = [Triple(_string(spo, "subject"), _string(spo, "predicate"), _string(spo, "object")) for spo in found]
    parts = [part for spo in found if isinstance(spo["object"], dict) for part in spo["object"] if part != "@value"]
    return text, triples, [f"parts of an object left out: {', '.join(parts)}"] if parts else []


def _asked(record: dict) -> dict | None:
    """The {"instruction", "schema", "input"} that an IEPile row holds as JSON in its instruction, {} for a bare output of that kind."""
    asked, output = _json_object(record.get("instruction")), _json_object(record.get("output"))
    return asked if asked and "input" in asked else {} if output is not None else None


def _json_object(value) -> dict | None:
    try:
        found = json.loads(value) if isinstance(value, str) and value.lstrip()[:1] == "{" else value
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def _from_schema(asked: dict, record: dict) -> tuple[str, list[Triple]]:
    """The text and triples of an IEPile row: output {relation: [{"subject", "object"}, …]}."""
    output = _json_object(record.get("output"))
    if output is None or not all(isinstance(pairs, list) and all(isinstance(pair, dict) for pair in pairs) for pairs in output.values()):
        raise _Unreadable('no triples: output must be JSON of the form {relation: [{"subject": …, "object": …}, …]}')
    triples = [Triple(_string(pair, "subject", "head"), relation, _string(pair, "object", "tail"))
               for relation, pairs in output.items() for pair in pairs]
    return _string(asked if "input" in asked else record, "input"), triples


def _from_messages(found, relations: Mapping[str, Relation]) -> tuple[str, list[Triple] | None, list[str]]:
    if not isinstance(found, list) or not all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in found):
        raise _Unreadable('no messages: needed is {"messages": [{"role": …, "content": text}, …]}')
    users, answers = ([m["content"] for m in found if m.get("role") == role] for role in ("user", "assistant"))
    if len(users) != 1 or len(answers) > 1:
        raise _Unreadable(f"not one text: {len(users)} user turns and {len(answers)} answers; needed: 1, and at most 1")
    text = users[0] if any(m.get("role") == "system" for m in found) else _below_instruction(users[0], relations)
    return text, *_from_answer(answers[0] if answers else None, text, relations)


def _below_instruction(content: str, relations: Mapping[str, Relation]) -> str:
    """The text below a prompt of ours, or below a first line that ends in a colon."""
    heads = [prompt_head(form, relations).rstrip("\n") for form in ("relations", "instruction")]
    head = next((head for head in heads if content.startswith(head)), None)
    if head is None and (found := re.match(r"[^\n]*[：:][ \t]*\n(?=.)", content)):
        head = found[0]
    if head is None:
        raise _Unreadable("no text: the user turn must be an instruction that ends in a colon, a line break, and the text")
    return content[len(head):]


def _from_instruction(record: dict, relations: Mapping[str, Relation]) -> tuple[str, list[Triple] | None, list[str]]:
    text = _string(record, "input", "text")
    if not text.strip() and record.get("instruction"):
        text = _below_instruction(_string(record, "instruction"), relations)
    return text, *_from_answer(_string(record, "output") if "output" in record else None, text, relations)


def _from_answer(written: str | None, text: str, relations: Mapping[str, Relation]) -> tuple[list[Triple] | None, list[str]]:
    """The triples of a written answer, their names as the text has them, and a note where the answer is in another form than ours."""
    if written is None:
        return None, []
    parsed = parse(written, relations)
    if parsed is None:
        raise _Unreadable(f"unreadable output: {written[:60]!r} holds no (主体, 关系, 客体)")
    given = [normalise(line) for line in written.splitlines() if line.strip()]
    wanted = [normalise(line) for line in answer(parsed).splitlines()]
    triples, notes = restore(text, parsed), []
    if given and list(dict.fromkeys(given)) != wanted:
        notes.append(f"output in another form: {written[:60]!r} was read as {answer(triples)!r}")
    elif len(given) > len(wanted):
        notes.append(f"duplicate triples: {len(given) - len(wanted)} of {len(given)} were left out")
    return triples, notes


# --- writing -----------------------------------------------------------------------------------------------------

def write(path, sentences: list[Sentence]) -> tuple[Path, Path | None]:
    """Write sentences as JSON lines of {"instruction", "input", "output"}; a sentence without triples known gets no output.

    A different file that stood there is kept as name.bak, name.bak1, …: returns (path, that backup or None).
    """
    return rows.save(path, as_lines(sentences))


def as_lines(sentences: list[Sentence]) -> str:
    """The text of a file of JSON lines in the course's format."""
    records = ({"instruction": INSTRUCTION, "input": sentence.text}
               | ({} if sentence.triples is None else {"output": answer(sentence.triples)}) for sentence in sentences)
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def convert(source, target, relations: Mapping[str, Relation] = RELATIONS) -> tuple[Path, Path | None, list[Problem]]:
    """Read a file in any form that `read` knows and write it in the course's: (path, backup or None, problems). Errors: as `read`."""
    sentences, problems = read(source, relations)
    return *write(target, sentences), problems
