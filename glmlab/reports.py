"""What a run leaves behind: the result files of an evaluation, the comparison of systems, tables for notebooks and README.

Names and fields of the result files are those of the scripts this course replaces, so that tools written for them go on
working; `index` is the row of the test file, and rows without an answer count as wrong.
"""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from glmlab import metrics, paths
from glmlab.settings import pad, text_width
from glmlab.tasks import intent

NAMES = intent.NAMES
COMPARISON_FILE = "comparison.json"


# --- one system: scores and result files -------------------------------------------------------------------------

def evaluate(predictions, resamples: int = 2000, seed: int = 7) -> dict:
    """All scores of an `evaluation.Predictions`: `metrics.classification`, intervals, and with probabilities calibration and top-3."""
    truth, predicted = predictions.truth, predictions.predicted
    scores = metrics.classification(truth, predicted, len(NAMES))
    scores["intervals"] = metrics.bootstrap(truth, predicted, len(NAMES), resamples, seed)
    if predictions.probabilities is not None:
        scores["top3_accuracy"] = metrics.top_k(truth, predictions.ranked(3))
        scores["calibration"] = metrics.calibration(truth, predicted, predictions.confidence())
    return scores


def write_result_files(folder, predictions, calls: list, about: dict | None = None, title: str = "Confusion matrix",
                       resamples: int = 2000, seed: int = 7, log: Callable[[str], None] = print) -> dict:
    """Write results.json, failed_predictions.json, error_predictions.json, detailed_analysis.json and confusion_matrix.png.

    about: what was evaluated (run, checkpoint, mode …), stored in results.json. Each file is whole or not there; results.json
    comes last. Returns `evaluate(predictions)`. Errors: OSError with the remedy when the folder cannot be written.
    """
    from glmlab import figures
    folder, scores = Path(folder), evaluate(predictions, resamples, seed)
    failed = failed_rows(predictions, calls)
    files = {"failed_predictions.json": failed, "error_predictions.json": error_rows(predictions, calls),
             "detailed_analysis.json": detailed_analysis(scores, predictions, calls)}
    for name, content in files.items():
        paths.write_json(folder / name, content)
    figures.confusion_matrix(predictions.truth, predictions.predicted, NAMES, folder / "confusion_matrix.png", title)
    paths.write_json(folder / "results.json", _results(scores, predictions, calls, failed, about or {}))
    for name in ("results.json", *files, "confusion_matrix.png"):
        log(f"wrote {paths.shown(folder / name)}")
    return scores


def _summary(scores: dict) -> dict:
    return {"total_samples": scores["rows"], "successful_predictions": scores["answered"], "failed_predictions": scores["unanswered"],
            **{name: scores[name] for name in metrics.SCORES}}


def _results(scores: dict, predictions, calls: list, failed: list[dict], about: dict) -> dict:
    more = {name: scores[name] for name in ("top3_accuracy", "calibration") if name in scores}
    if predictions.probabilities is not None:
        more["top3"] = [[[label, round(float(row[label]), 4)] for label in best]
                        for row, best in zip(predictions.probabilities, predictions.ranked(3))]
    return {
        **_summary(scores), "evaluation_time": predictions.seconds, "avg_time_per_sample": predictions.seconds / scores["rows"],
        "intervals": scores["intervals"], "about": about, "classification_report": _class_report(scores, "f1-score"),
        "index": [call.row for call in calls], "predictions": predictions.predicted, "ground_truth": predictions.truth,
        "turns_dropped": predictions.turns_dropped, **more, "failed_samples": failed,
    }


def _class_report(scores: dict, f1_name: str) -> dict:
    """Per class and averaged, keyed by label name, as scikit-learn's report; averages over the labels present in the truth."""
    table = {NAMES[entry["label"]]: {"precision": entry["precision"], "recall": entry["recall"], f1_name: entry["f1_score"],
                                     "support": entry["support"]} for entry in scores["per_class"]}
    present = [entry for entry in table.values() if entry["support"]]
    averages = {"macro avg": [1] * len(present), "weighted avg": [entry["support"] for entry in present]}
    for name, weights in averages.items():
        means = {key: sum(entry[key] * weight for entry, weight in zip(present, weights)) / sum(weights)
                 for key in ("precision", "recall", f1_name)}
        table[name] = {**means, "support": scores["rows"]}
    return table


def failed_rows(predictions, calls: list) -> list[dict]:
    """The rows without a usable answer, with the reason and what was written instead."""
    rows = []
    for place, (call, label) in enumerate(zip(calls, predictions.predicted, strict=True)):
        if label is None:
            rows.append({
                "index": call.row, "error": predictions.errors.get(place, intent.NO_LABEL),
                "predicted_response": predictions.responses[place] if predictions.responses else None, "predicted_intent": None,
                "ground_truth": call.label,
                "sample": {"sentence_sep": call.text, "label_raw": NAMES[call.label], "c_numerical": call.label},
            })
    return rows


def error_rows(predictions, calls: list) -> list[dict]:
    """The rows that were answered, but wrongly."""
    return [{"index": call.row, "predicted_intent": label, "predicted_label": NAMES[label], "ground_truth_intent": call.label,
             "ground_truth_label": NAMES[call.label], "error_type": "wrong_prediction"}
            for call, label in zip(calls, predictions.predicted, strict=True) if label is not None and label != call.label]


def detailed_analysis(scores: dict, predictions, calls: list) -> dict:
    """The content of detailed_analysis.json. Errors are counted by their true class, rows without an answer included."""
    wrong = Counter(call.label for call, label in zip(calls, predictions.predicted, strict=True) if label != call.label)
    present = {entry["label"]: entry["support"] for entry in scores["per_class"] if entry["support"]}
    most, least = max(present, key=lambda label: wrong[label]), min(present, key=lambda label: (wrong[label], -present[label]))
    pairs = [{key: pair[key] for key in ("true_intent", "predicted_intent", "count")} for pair in most_confused(predictions, calls, 10)]
    return {
        "summary": {**_summary(scores), "intervals": scores["intervals"]},
        "per_class_performance": _class_report(scores, "f1_score"),
        "error_analysis": {
            "most_confused_pairs": pairs,
            "class_with_most_errors": _errors_of(most, wrong), "class_with_least_errors": _errors_of(least, wrong),
            "total_errors": wrong.total(), "error_rate": wrong.total() / scores["rows"], "classes_with_errors": len(wrong),
            "error_distribution": {NAMES[label]: count for label, count in wrong.most_common()},
        },
    }


def _errors_of(label: int, wrong: Counter) -> dict:
    return {"intent_id": label, "intent_name": NAMES[label], "error_count": wrong[label]}


def most_confused(predictions, calls: list, n: int = 10, examples: int = 2) -> list[dict]:
    """The n most frequent confusions: true and predicted label, count, share of the true class, and example calls.

    An example is {"index", "text"}; calls of which least was cut, and then short ones, come first: they are quickest to read.
    """
    support = Counter(call.label for call in calls)
    pairs: dict[tuple[int, int], list[int]] = {}
    for place, (call, label) in enumerate(zip(calls, predictions.predicted, strict=True)):
        if label is not None and label != call.label:
            pairs.setdefault((call.label, label), []).append(place)
    found = []
    for (true, said), places in sorted(pairs.items(), key=lambda item: (-len(item[1]), item[0]))[:n]:
        shown = sorted(places, key=lambda place: (predictions.turns_dropped[place], len(calls[place].text), place))[:examples]
        found.append({"true_intent": NAMES[true], "predicted_intent": NAMES[said], "true_id": true, "predicted_id": said,
                      "count": len(places), "share": len(places) / support[true],
                      "examples": [{"index": calls[place].row, "text": calls[place].text} for place in shown]})
    return found


# --- tables to read ----------------------------------------------------------------------------------------------

def table(header: list[str], rows: list[list]) -> str:
    """A table in a fixed-width font: text on the left, numbers on the right, Chinese two columns wide."""
    cells = [[str(cell) for cell in row] for row in rows]
    wide = [max(map(text_width, column)) for column in zip(header, *cells)]
    right = [all(re.fullmatch(r"[-+]?[\d.,]+ ?%?|-|", row[column]) for row in cells) for column in range(len(header))]

    def line(row: list[str]) -> str:
        return "  ".join(" " * (width - text_width(cell)) + cell if number else pad(cell, width)
                         for cell, width, number in zip(row, wide, right)).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in wide), *map(line, cells)])


def scores_table(scores: dict) -> str:
    """The scores of `evaluate` with their intervals, one a line."""
    rows = [[title, f"{scores[name]:.3f}", "{:.3f} .. {:.3f}".format(*scores["intervals"][name])] for name, title in metrics.SCORES.items()]
    if "top3_accuracy" in scores:
        rows.append(["right label among the first 3", f"{scores['top3_accuracy']:.3f}", ""])
        rows.append(["calibration error (ECE)", f"{scores['calibration']['ece']:.3f}", ""])
    rows.append(["rows without an answer", f"{scores['unanswered']:,}", f"of {scores['rows']:,}; counted wrong"])
    return table(["score", "value", "95 % interval"], rows)


def per_class_table(scores: dict) -> str:
    """Precision, recall and F1 of every class, with its rows in the truth and how often it was answered."""
    rows = [[entry["label"], NAMES[entry["label"]], f"{entry['support']:,}", f"{entry['predicted']:,}",
             *(f"{entry[name]:.3f}" if entry["support"] else "-" for name in ("precision", "recall", "f1_score"))]
            for entry in scores["per_class"]]
    return table(["id", "intent", "rows", "answered", "precision", "recall", "F1"], rows)


def confused_text(pairs: list[dict], width: int = 100, lines: int = 8) -> str:
    """`most_confused` for a notebook: a line a pair, below it its example calls, ` / ` between turns, at most `lines` lines each."""
    out = []
    for pair in pairs:
        out.append(f"{pair['count']} x  {pair['true_intent']} -> {pair['predicted_intent']}  ({pair['share']:.0%} of the true class)")
        for example in pair["examples"]:
            wrapped = wrap(f"row {example['index']}: " + example["text"].replace("[SEP]", " / "), width - 4)
            if len(wrapped) > lines:  # what decides stands late in a call, so more of its end stays
                wrapped = [*wrapped[: lines // 3], "…", *wrapped[lines // 3 + 1 - lines:]]
            out += ["    " + line for line in wrapped]
    return "\n".join(out)


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns of a fixed-width font; Chinese may break anywhere."""
    found, line, used = [], "", 0
    for character in text:
        columns = text_width(character)
        if used + columns > width:
            found.append(line.rstrip())
            line, used = "", 0
        if line or character != " ":
            line, used = line + character, used + columns
    return [*found, line]


# --- several systems ---------------------------------------------------------------------------------------------

def comparison_row(name: str, truth: list[int], predicted: list, step: int | None = None, resamples: int = 2000, seed: int = 7) -> dict:
    """One system of a comparison: name, step, rows, answered, the scores and `<score>_interval` of each."""
    scores = metrics.classification(truth, predicted, len(NAMES))
    intervals = metrics.bootstrap(truth, predicted, len(NAMES), resamples, seed)
    row = {"name": name, "step": step, "rows": scores["rows"], "answered": scores["answered"]}
    for score in metrics.SCORES:
        row |= {score: scores[score], f"{score}_interval": intervals[score]}
    return row


def choose_best(rows: list[dict], score: str = "f1_macro") -> int:
    """The step with the best score of `comparison_row`s of dev; the earlier of two equal ones. Errors: ValueError without steps."""
    steps = [row for row in rows if row.get("step")]
    if not steps:
        raise ValueError("no checkpoint to choose from: none of the rows has a step")
    return max(steps, key=lambda row: (row[score], -row["step"]))["step"]


def text_table(rows: list[dict], scores: dict[str, str] = metrics.SCORES) -> str:
    """Systems with their 95 % intervals, for a notebook or a terminal. rows: as `comparison_row`; scores: {key of a row: its title}."""
    counted = all("answered" in row for row in rows)
    cells = [[row["name"], *(_with_interval(row, score) for score in scores), *([row["rows"] - row["answered"]] if counted else [])] for row in rows]
    return table(["system", *scores.values(), *(["unanswered"] if counted else [])], cells)


def markdown_table(rows: list[dict], scores: dict[str, str] = metrics.SCORES) -> str:
    """The same for README.md, with the number of rows."""
    lines = ["| system | rows | " + " | ".join(scores.values()) + " |", "|---|---:|" + "---:|" * len(scores)]
    for row in rows:
        cells = " | ".join(_with_interval(row, score) for score in scores)
        lines.append(f"| {row['name'].replace('|', '/')} | {row['rows']:,} | {cells} |")
    return "\n".join(lines) + "\n"


def _with_interval(row: dict, score: str) -> str:
    """0.818 (0.795..0.843); figures above 1 with one digit; - where a system has no such score."""
    if row.get(score) is None:
        return "-"
    digits = ".3f" if abs(row[score]) <= 1 else ".1f"
    interval = row.get(f"{score}_interval")
    return format(row[score], digits) + (f" ({interval[0]:{digits}}..{interval[1]:{digits}})" if interval else "")


def write_comparison(folder, about: dict, systems: list[dict], tests: list[dict] = (), **more) -> Path:
    """Write comparison.json: what was compared, `comparison_row`s of the systems, `metrics.paired_test`s, and more: best_step, or for
    scores other than a classification's `scores`, {key of a row: its title}."""
    return paths.write_json(Path(folder) / COMPARISON_FILE, {"about": about, "systems": list(systems), "tests": list(tests), **more})


def read_comparison(folder) -> dict:
    """What `write_comparison` wrote. Errors: FileNotFoundError or ValueError that says how to make it."""
    path = Path(folder) / COMPARISON_FILE
    found = _json_or_none(path)
    if found is None:
        kind, why = (ValueError, "is damaged") if path.exists() else (FileNotFoundError, "is not there")
        raise kind(f"{paths.shown(path)} {why}: run the project's comparison notebook with this output_dir")
    return {"scores": metrics.SCORES} | found


def remembered(folder, name: str, about: dict, compute: Callable[[], dict], recompute: bool = False,
               log: Callable[[str], None] = print) -> dict:
    """`compute()`, or what it gave the last time for the same `about`, kept in folder/predictions/<name>.json.

    about: all that decides the result (file checksums, rows, max_length …). compute gives a dict that JSON can hold.
    """
    path = Path(folder) / "predictions" / (re.sub(r"[^\w.-]+", "-", name) + ".json")
    about = json.loads(json.dumps(about))  # as it looks after a round through the file
    kept = None if recompute else _json_or_none(path)
    if kept is not None and kept.get("about") == about:
        log(f"{name}: taken from {paths.shown(path)} (recompute scores again)")
        return kept["result"]
    result = compute()
    paths.write_json(path, {"about": about, "result": result})
    return result


def _json_or_none(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
