"""What projects 3 and 4 leave behind: measures of written answers on normalised texts, floors, tables, result files, comparison rows."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from glmlab import answering, paths, text_scores
from glmlab.reports import table
from glmlab.tasks import relations

#: Columns of a comparison: key of `comparison_row` -> title. The first is the main one.
SCORES = {"rouge_l": "ROUGE-L", "bleu_4": "BLEU-4", "right": "right answer", "stopped": "stop rate", "distinct_2": "distinct-2",
          "repetition": "repetition", "length": "length"}
#: Recall at k: key -> k. The first is the share of right answers.
RECALLS = {"right": 1, "recall_3": 3, "recall_5": 5}
#: Said wherever the measures are printed.
NORMALISED = ("References and answers are compared half-width (NFKC), because ChatGLM-6B's tokenizer writes ! and , where the reference has "
              "！ and ，. BLEU-4 counts characters, ROUGE and distinct jieba words, F1 x 100; an empty answer counts 0.")


def normalise(text: str) -> str:
    """A text as it is compared: `relations.normalise` line by line, without blank lines. Line breaks stay, for answers in points."""
    return "\n".join(filter(None, map(relations.normalise, text.splitlines())))


# --- one system --------------------------------------------------------------------------------------------------

def right_answers(references: Sequence[str], answers: Sequence[str], known: Sequence[str]) -> list[float]:
    """1.0 where the known answer that is most like the written one (TF-IDF cosine of characters) is the reference, else 0.0.

    known: every answer there is, the references among them or not. What is like none of them, a blank answer above all, is 0.0.
    """
    return recalls(references, answers, known)["right"]


def recalls(references: Sequence[str], answers: Sequence[str], known: Sequence[str]) -> dict[str, list[float]]:
    """Recall at k of each row: 1.0 where the reference is among the k known answers most like the written one, else 0.0.

    {"right": at 1, "recall_3", "recall_5"}; known as in `right_answers`.
    """
    known = sorted({*map(normalise, known), *map(normalise, references)})
    places = {text: place for place, text in enumerate(known)}
    found = text_scores.ranks(known, list(map(normalise, answers)), [places[normalise(reference)] for reference in references])
    return {name: [float(0 < rank <= k) for rank in found] for name, k in RECALLS.items()}


def score(references: Sequence[str], answers: Sequence[str], prompts: Sequence[str], known: Sequence[str], found: dict | None = None,
          **options) -> dict:
    """`text_scores.score` of the normalised texts, and `recalls`: the right answer at first, or among the first 3 or 5.

    found: facts of a model's answers, as `comparison.answered` gives them: stopped, first_token and seconds go into the measures, and
    with loss_sums and loss_tokens there is a `perplexity`. options: of `text_scores.score`.
    """
    facts = {name: found[name] for name in ("stopped", "first_token", "seconds")} if found else {}
    result = text_scores.score(*(list(map(normalise, texts)) for texts in (references, answers, prompts)), **facts, **options)
    drawn = {name: options[name] for name in ("seed", "resamples") if name in options}
    for name, values in recalls(references, answers, known).items():
        result["per_row"][name], result["means"][name] = values, text_scores.mean_interval(values, **drawn)
    if found and found.get("loss_tokens"):
        result["perplexity"] = answering.perplexity(found["loss_sums"], found["loss_tokens"])
    return result


def scores_table(result: dict) -> str:
    """The measures of `score` with their intervals, one a line, and below them what has no interval."""
    rows = []
    for name, (title, _) in text_scores.MEASURES.items():
        if name in result["means"]:
            entry = result["means"][name]
            rows.append([title, _figure(name, entry["mean"]), " .. ".join(_figure(name, end) for end in entry["interval"])])
    corpus = {"bleu": "corpus BLEU", "distinct_1": "distinct-1", "distinct_2": "distinct-2"}
    rows += [[title, _figure(name, result["corpus"][name]), ""] for name, title in corpus.items()]
    rows += [["held-out perplexity", f"{result['perplexity']:,.3f}", ""]] if "perplexity" in result else []
    return table(["measure", "value", "95 % interval"], [*rows, ["empty answers", str(result["empty"]), f"of {result['rows']:,}"]])


def _figure(name: str, value: float) -> str:
    """One digit for scales to 100 and for lengths, three for shares and seconds."""
    return f"{value:.1f}" if name.startswith(("bleu", "rouge", "length")) else f"{value:.3f}"


def groups_table(result: dict, groups: Sequence[str], measures: Sequence[str] = ("rouge_l", "bleu_4", "right", "length")) -> str:
    """Means of some measures for each group of rows (scene, department), the largest group first; groups: one name a row."""
    found = text_scores.by_group(result["per_row"], list(groups))
    return table(["group", "rows", *(text_scores.MEASURES[name][0] for name in measures)],
                 [[group, entry["rows"], *(_figure(name, entry[name]) for name in measures)] for group, entry in found.items()])


# --- result files ------------------------------------------------------------------------------------------------

def write_result_files(folder, rows: Sequence, prompts: Sequence[str], answers: Sequence[str], result: dict, about: dict | None = None,
                       groups: Sequence[str] | None = None, log: Callable[[str], None] = print) -> dict:
    """Write answers.jsonl (a line a row: index, question, reference, answer, its measures) and, last, results.json; returns the latter.

    rows: with the fields row and answer. prompts: the questions. result: of `score`. about: what was evaluated. groups: one name a
    row. Each file is whole or not there. Errors: ValueError for another number of rows; OSError with the remedy.
    """
    folder, lines = Path(folder), []
    for place, (row, prompt, answer) in enumerate(zip(rows, prompts, answers, strict=True)):
        measures = {name: values[place] for name, values in result["per_row"].items()}
        named = {"group": groups[place]} if groups else {}
        lines.append({"index": row.row, **named, "question": prompt, "reference": row.answer, "answer": answer, **measures})
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    log(f"wrote {paths.shown(paths.write_text(folder / 'answers.jsonl', text))}")
    content = {"about": about or {}, "normalised": NORMALISED, **{name: value for name, value in result.items() if name != "per_row"}}
    if groups:
        content["groups"] = text_scores.by_group(result["per_row"], list(groups))
    log(f"wrote {paths.shown(paths.write_json(folder / 'results.json', content))}")
    return content


# --- several systems ---------------------------------------------------------------------------------------------

def floors(train_prompts: Sequence[str], train_answers: Sequence[str], references: Sequence[str], prompts: Sequence[str],
           known: Sequence[str], **options) -> tuple[dict[str, list[str]], dict[str, dict]]:
    """(answers, results of `score`) of the three systems without a model, on the same rows: {"constant", "random", "nearest"}."""
    seed = {"seed": options["seed"]} if "seed" in options else {}
    found = text_scores.floors(list(train_prompts), list(train_answers), list(prompts), **seed)
    return found, {name: score(references, answers, prompts, known, **options) for name, answers in found.items()}


def comparison_row(name: str, result: dict, step: int | None = None) -> dict:
    """One system of a comparison: name, step, rows, SCORES and RECALLS with `<score>_interval`, perplexity, p50 and p95 of its seconds."""
    row = {"name": name, "step": step, "rows": result["rows"]}
    for key in dict.fromkeys([*SCORES, *RECALLS]):
        if key in result["means"]:
            row |= {key: result["means"][key]["mean"], f"{key}_interval": result["means"][key]["interval"]}
        elif key in result["corpus"]:
            row[key] = result["corpus"][key]
    times = {f"{measure}_{part}": value for measure, parts in result["latency"].items() for part, value in parts.items()}
    return row | ({"perplexity": result["perplexity"]} if "perplexity" in result else {}) | times
