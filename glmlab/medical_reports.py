"""What project 4 leaves behind: perplexity with interval and test, the document's log and JSON files, votes, the side-by-side page.

Measures are of what the model wrote; what people read (log, page) has the emergency's first line before it and the disclaimer above.
"""

import html
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from glmlab import answering, comparison, evaluation, metrics, paths, reports, text_reports, text_scores
from glmlab.tasks import medical
from glmlab.tasks.medical import Question
from glmlab.tasks.rows import Problem

#: Columns of the comparison: key of `comparison_row` -> title. The first is the main one.
SCORES = {"perplexity": "perplexity", "rouge_l": "ROUGE-L", "bleu_4": "BLEU-4", "similarity": "TF-IDF similarity",
          "density": "term density", "stopped": "stop rate"}
#: The document's four measures, and two of those it says are missing: key -> how the log prints it.
DOCUMENTED = {"length": "length {:.0f}", "density": "term density {:.3f}", "overlap": "overlap with the prompt {:.3f}",
              "seconds": "time {:.2f} s", "bleu_4": "BLEU-4 {:.1f}", "rouge_l": "ROUGE-L {:.1f}"}


# --- perplexity --------------------------------------------------------------------------------------------------

def perplexity(sums: Sequence[float], tokens: Sequence[int], seed: int = 7, resamples: int = 2000) -> dict:
    """{"mean", "interval" (95 %)} of the held-out perplexity: exp of the summed losses over the summed tokens, rows drawn again.

    A long answer weighs more than a short one, because the sum is over tokens. sums: nats of each row, tokens: its labels.
    """
    drawn, counts = metrics._draw(np.stack([sums, tokens], axis=1).astype(float), resamples, seed)
    values = np.exp(counts @ drawn[:, 0] / (counts @ drawn[:, 1]))
    return {"mean": answering.perplexity(list(sums), list(tokens)), "interval": metrics._interval(values, 0.95)}


def paired_perplexity(first: dict, second: dict, seed: int = 7, resamples: int = 2000, names=("first", "second")) -> dict:
    """The difference of two perplexities, first - second, rows drawn again in pairs; the fields of `text_scores.paired`.

    first, second: {"loss_sums", "loss_tokens"}, as `losses` gives them. Errors: ValueError unless both predicted the same tokens: with
    another tokenizer a perplexity is another measure.
    """
    tokens = first["loss_tokens"]
    if tokens != second["loss_tokens"] or not tokens:
        raise ValueError(f"{names[0]} and {names[1]} did not predict the same answer tokens: only perplexities over the same rows and the "
                         "same tokenizer can be compared")
    drawn, counts = metrics._draw(np.stack([first["loss_sums"], second["loss_sums"], tokens], axis=1).astype(float), resamples, seed)
    one, two = (np.exp(counts @ drawn[:, column] / (counts @ drawn[:, 2])) for column in (0, 1))
    means = [answering.perplexity(found["loss_sums"], tokens) for found in (first, second)]
    aside = min((one <= two * (1 + 1e-12)).sum(), (one >= two * (1 - 1e-12)).sum())  # rounding noise must not break a tie
    test = {"names": list(names), "measure": "perplexity", "rows": len(tokens), "resamples": resamples, "first": means[0],
            "second": means[1], "difference": means[0] - means[1], "change": (means[0] - means[1]) / means[1],
            "interval": metrics._interval(one - two, 0.95), "p": float(min(1, 2 * (aside + 1) / (resamples + 1)))}
    return test | {"reading": text_scores._reading(test)}


def losses(wanted: comparison.System, rows: list[Question], bench: comparison.Bench, folder, split: str, max_length: int, form: str = "",
           recompute: bool = False, log: Callable[[str], None] = print) -> dict:
    """{"loss_sums", "loss_tokens"} of the right answers without writing any, row by row; remembered as `comparison.answered` does it."""
    form = form or wanted.form

    def compute() -> dict:
        model, tokenizer = bench.load(wanted)
        tell = evaluation.progress_lines(len(rows), f"losses of {wanted.name}", log, lines=1)
        sums, tokens = answering.answer_losses(model, tokenizer, medical.TASK, rows, form, max_length, progress=tell)
        return {"loss_sums": sums, "loss_tokens": tokens}

    asked = {"prompt": medical.TASK.messages(rows[0], "", False, form), "max_length": max_length, "only": "losses"}
    name = f"{split} losses {wanted.name}" + (f" {form}" if form != wanted.form else "")
    return reports.remembered(folder, name, comparison.about(wanted, rows, bench, asked), compute, recompute, log)


# --- one system, two systems -------------------------------------------------------------------------------------

def score(rows: list[Question], answers: list[str], found: dict | None = None, **options) -> dict:
    """`text_scores.score` of answers to questions on normalised texts (`text_reports.NORMALISED`), term density among its measures.

    found: facts of a model's answers, as `comparison.answered` gives them: their times and stops go into the measures; with losses
    `means` has a perplexity and the result `loss_sums` and `loss_tokens`. options: of `text_scores.score`.
    """
    facts = {name: found[name] for name in ("stopped", "first_token", "seconds")} if found else {}
    columns = [row.answer for row in rows], answers, [row.text for row in rows]
    texts = [list(map(text_reports.normalise, column)) for column in columns]
    result = text_scores.score(*texts, density=medical.term_density, **facts, **options)
    if found and found.get("loss_tokens"):
        drawn = {name: options[name] for name in ("seed", "resamples") if name in options}
        result |= {name: found[name] for name in ("loss_sums", "loss_tokens")}
        result["means"]["perplexity"] = perplexity(found["loss_sums"], found["loss_tokens"], **drawn)
    return result


def comparison_row(name: str, result: dict, step: int | None = None) -> dict:
    """`text_reports.comparison_row` with this project's SCORES and their intervals."""
    row = text_reports.comparison_row(name, result, step)
    for key in SCORES:
        if key in result["means"]:
            row |= {key: result["means"][key]["mean"], f"{key}_interval": result["means"][key]["interval"]}
    return row


def compare(first: dict, second: dict, names=("first", "second"), seed: int = 7, resamples: int = 2000) -> dict[str, dict]:
    """A paired test for every measure that two results of `score` share, perplexity first: {measure: test}."""
    found = {}
    if "loss_tokens" in first and "loss_tokens" in second:
        found["perplexity"] = paired_perplexity(first, second, seed, resamples, names)
    return found | text_scores.compare(first, second, names, seed, resamples)


def by_department(rows: list[Question], result: dict) -> dict[str, dict]:
    """`text_scores.by_group` over the departments (or kinds) of the rows, with each one's perplexity where there are losses."""
    groups = [row.department or "-" for row in rows]
    table = text_scores.by_group(result["per_row"], groups)
    for group, entry in table.items() if "loss_tokens" in result else ():
        own = [place for place, name in enumerate(groups) if name == group]
        entry["perplexity"] = answering.perplexity(*([result[name][place] for place in own] for name in ("loss_sums", "loss_tokens")))
    return table


def retained(rows: list[Question], answers: list[str]) -> list[float]:
    """1.0 where the right answer stands in what was written, marks and blanks left out, else 0.0: for short answers only."""
    return [float(medical.words_of(row.answer) in medical.words_of(answer)) for row, answer in zip(rows, answers, strict=True)]


def speed(found: dict) -> dict:
    """{"rows_per_second", "tokens_per_second", "tokens" (of an answer, mean)} of `comparison.answered`."""
    rows, tokens = len(found["texts"]), sum(found["tokens"])
    return {"rows_per_second": rows / found["total_seconds"], "tokens_per_second": tokens / found["total_seconds"], "tokens": tokens / rows}


def perplexity_figure(rows: list[dict], path=None):
    """Perplexities of systems with their intervals on a log scale, for they differ a hundredfold. rows: `comparison_row`s that have one."""
    from glmlab.figures import COLOURS, _axes, save
    rows = [row for row in rows if row.get("perplexity") is not None]
    figure, axis = _axes(8, 0.45 * len(rows) + 1.3)
    for place, row in enumerate(rows):
        low, high = row["perplexity_interval"]
        axis.errorbar(row["perplexity"], place, xerr=[[max(0, row["perplexity"] - low)], [max(0, high - row["perplexity"])]], fmt="o",
                      color=COLOURS[place % 5], capsize=3)
        axis.annotate(f"{row['perplexity']:,.1f}", (row["perplexity"], place), (0, 7), textcoords="offset points", ha="center", fontsize=9)
    axis.set(xscale="log", yticks=range(len(rows)), ylim=(len(rows) - 0.5, -0.7), title="Held-out perplexity of the answers ↓",
             xlabel="perplexity (log scale; whiskers: 95 % interval)")
    axis.set_yticklabels([row["name"] for row in rows])
    axis.margins(x=0.12)
    return save(figure, path)


# --- the files of document 003 -----------------------------------------------------------------------------------

def write_document_files(folder, rows: list[Question], answers: dict[str, list[str]], results: dict[str, dict], tests: dict[str, dict],
                         about: dict | None = None) -> list[Path]:
    """Write chatglm_comparison.log and chatglm_comparison.json: prompt, both answers, the measures of each and their change, row by row.

    answers, results: {"base": …, "fine-tuned": …} as written and as `score` gave them, the first one before, the second one after.
    tests: of `compare`, second against first. Returns both paths.
    """
    entries = [_entry(place, row, answers, results) for place, row in enumerate(rows)]
    before, after = answers
    head = [f"chatglm_comparison: {before} before, {after} after, {len(rows)} questions", *medical.DISCLAIMER.values(),
            *(f"{name}: {value}" for name, value in (about or {}).items())]
    readings = [test["reading"] for name, test in tests.items() if name in DOCUMENTED or name == "perplexity"]
    log = "\n".join([*head, "", *(_log_entry(entry, before, after) for entry in entries), "=== all rows", *readings]) + "\n"
    content = {"disclaimer": medical.DISCLAIMER, "about": about or {}, "systems": [before, after], "tests": tests, "rows": entries}
    folder = Path(folder)
    return [paths.write_text(folder / "chatglm_comparison.log", log), paths.write_json(folder / "chatglm_comparison.json", content)]


def _entry(place: int, row: Question, answers: dict[str, list[str]], results: dict[str, dict]) -> dict:
    systems = {}
    for name, texts in answers.items():
        measures = results[name]["per_row"]
        systems[name] = {"answer": texts[place]} | {key: measures[key][place] for key in DOCUMENTED if key in measures}
    before, after = systems.values()
    change = {key: after[key] - before[key] for key in DOCUMENTED if key in before and key in after}
    change["length_share"] = change["length"] / before["length"] if before["length"] else None
    return {"index": row.row, "department": row.department, "prompt": row.text, "reference": row.answer,
            "emergency": medical.emergency(row.text), "systems": systems, "change": change}


def _log_entry(entry: dict, before: str, after: str) -> str:
    """One question for a reader."""
    parts = [f"=== row {entry['index']}, {entry['department'] or 'no department'}", f"prompt: {entry['prompt']}",
             f"reference: {entry['reference']}"]
    for name, found in entry["systems"].items():
        shown = medical.with_safety(entry["prompt"], found["answer"].strip() or "(empty)")
        parts += [f"--- {name}", shown, "; ".join(text.format(found[key]) for key, text in DOCUMENTED.items() if key in found)]
    change = entry["change"]
    share = "" if change["length_share"] is None else f" ({change['length_share']:+.0%})"
    parts.append(f"--- change from {before} to {after}: {change['length']:+.0f} characters{share}; " + "; ".join(
        DOCUMENTED[key].replace("{:", "{:+").format(change[key]) for key in DOCUMENTED if key in change and key != "length"))
    return "\n".join(parts) + "\n"


# --- votes of the A/B page ---------------------------------------------------------------------------------------

def read_votes(path) -> tuple[list[dict], list[Problem]]:
    """The preferences that the web page wrote, and what of the file is unreadable.

    A preference: {"question", "models" (a, b), "preferred" (one of them, None for a tie)}.

    A line counts if it names both models and a choice, "a", "b" or "tie" (in `preferred` or `preference`). ([], []) without a file.
    """
    path = Path(path)
    votes, problems = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else ()):
        vote = _vote(line)
        if isinstance(vote, str):
            problems.append(Problem(paths.shown(path), number, vote, "left out"))
        else:
            votes.append(vote)
    return votes, problems


def _vote(line: str) -> dict | str:
    """A vote, or what is wrong with its line."""
    try:
        record = json.loads(line)
        models = tuple(record[side]["model"] if isinstance(record[side], dict) else record[side] for side in "ab")
        choice = record.get("preferred", record.get("preference"))
        asked = [message["content"] for message in record.get("messages", []) if message["role"] == "user"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"no vote: {type(error).__name__} {error}"
    if choice not in ("a", "b", "tie") or models[0] == models[1] or not all(isinstance(name, str) for name in models):
        return f"no vote: {choice!r} between {models[0]!r} and {models[1]!r}"
    return {"question": asked[-1] if asked else "", "models": models, "preferred": {"a": models[0], "b": models[1], "tie": None}[choice]}


def count_votes(votes: list[dict]) -> list[dict]:
    """For each pair of models: names, votes, first, second, ties, p (two-sided sign test without the ties) and a reading."""
    from scipy.stats import binomtest
    pairs: dict[tuple, Counter] = {}
    for vote in votes:
        pairs.setdefault(tuple(sorted(vote["models"])), Counter())[vote["preferred"]] += 1
    found = []
    for (one, two), counts in sorted(pairs.items()):
        decided = counts[one] + counts[two]
        p = float(binomtest(counts[one], decided).pvalue) if decided else 1.0
        higher = max((one, two), key=lambda name: counts[name])
        reading = (f"{higher} was preferred in {counts[higher]} of {decided} votes, with {counts[None]} ties; if nobody had a preference, "
                   f"a split at least so uneven would arise by chance in {metrics._frequency(p)}.")
        found.append({"names": [one, two], "votes": counts.total(), "first": counts[one], "second": counts[two], "ties": counts[None],
                      "p": p, "reading": reading})
    return found


# --- the page ----------------------------------------------------------------------------------------------------

STYLE = ("body{font:15px/1.6 system-ui,'PingFang SC','Microsoft YaHei','Noto Sans CJK SC',sans-serif;margin:1.5rem;max-width:110rem}"
         ".banner{background:#fff3cd;border:1px solid #e0c060;padding:.6rem 1rem}"
         "table{border-collapse:collapse;width:100%;table-layout:fixed}"
         "th,td{border:1px solid #ccc;padding:.5rem}th{background:#eef;position:sticky;top:0}")


def write_page(path, title: str, rows: list[Question], answers: dict[str, list[str]], results: dict[str, dict]) -> Path:
    """Write an HTML page of answers side by side with the disclaimer above; all text is escaped, nothing is fetched from elsewhere.

    answers: {system: texts}, results: {system: of `score`}. An emergency's fixed first line stands before every model's answer.
    """
    asked = [f"{row.department or 'no department'}, row {row.row}\n{row.text}" for row in rows]
    shown = {name: [medical.with_safety(row.text, text) for row, text in zip(rows, texts, strict=True)] for name, texts in answers.items()}
    table = text_scores.side_by_side(asked, [row.answer for row in rows], shown,
                                     {name: result["per_row"]["rouge_l"] for name, result in results.items()})
    banner = "".join(f'<p class="banner" lang="{language}">{html.escape(text)}</p>' for language, text in medical.DISCLAIMER.items())
    title = html.escape(title)
    page = (f'<!DOCTYPE html>\n<html lang="zh"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head>\n'
            f"<body><h1>{title}</h1>{banner}\n{table}\n</body></html>\n")
    return paths.write_text(path, page)
