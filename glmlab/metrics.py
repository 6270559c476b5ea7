"""Scores of a classification with intervals, paired tests of two systems on the same rows, calibration.

A prediction is a label id, or None where the system gave no usable answer: such a row counts as wrong everywhere.
"""

import numpy as np

UNANSWERED = -1  # the class of None inside the counts: no label has it, so it is never right
SCORES = {"accuracy": "accuracy", "f1_macro": "macro-F1", "f1_weighted": "weighted F1"}


def as_ids(truth, predicted, n_labels: int):
    """Truth and predictions as integer arrays, None as UNANSWERED. Errors: ValueError that names the row."""
    if len(truth) != len(predicted):
        raise ValueError(f"{len(truth)} true labels but {len(predicted)} predictions: both must come from the same rows")
    if not len(truth):
        raise ValueError("no rows to score: the file or the selection is empty")
    for row, label in enumerate(truth):
        if label is None or not 0 <= label < n_labels:
            raise ValueError(f"row {row} has the true label {label}, not one of 0..{n_labels - 1}: unlabelled rows cannot be scored")
    for row, label in enumerate(predicted):
        if label is not None and not 0 <= label < n_labels:
            raise ValueError(f"row {row} has the prediction {label}, not one of 0..{n_labels - 1}; use None for an unusable answer")
    return (np.array([int(label) for label in truth]),
            np.array([UNANSWERED if label is None else int(label) for label in predicted]))


def classification(truth, predicted, n_labels: int) -> dict:
    """Accuracy, macro-F1 (mean over the labels present in the truth), weighted F1, and the table per class.

    per_class: one dict a label id with precision, recall, f1_score, support, predicted (how often it was answered).
    confusion: n_labels rows (truth) x n_labels + 1 columns (prediction, the last one for unanswered rows).
    An empty division counts as 0. Errors: as `as_ids`.
    """
    from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support
    true, said = as_ids(truth, predicted, n_labels)
    present = np.unique(true)
    precision, recall, f1, support = precision_recall_fscore_support(true, said, labels=range(n_labels), zero_division=0)
    counts = np.zeros((n_labels, n_labels + 1), dtype=int)
    np.add.at(counts, (true, said), 1)  # column -1 is the last one
    return {
        "rows": len(true),
        "answered": int((said != UNANSWERED).sum()),
        "unanswered": int((said == UNANSWERED).sum()),
        "accuracy": float(accuracy_score(true, said)),
        "f1_macro": float(f1_score(true, said, labels=present, average="macro", zero_division=0)),
        "f1_weighted": float(f1_score(true, said, labels=present, average="weighted", zero_division=0)),
        "labels_present": len(present),
        "per_class": [{"label": label, "precision": float(precision[label]), "recall": float(recall[label]),
                       "f1_score": float(f1[label]), "support": int(support[label]),
                       "predicted": int(counts[:, label].sum())} for label in range(n_labels)],
        "confusion": counts.tolist(),
    }


# --- intervals: draw rows again, with replacement ----------------------------------------------------------------

def bootstrap(truth, predicted, n_labels: int, resamples: int = 2000, seed: int = 7, level: float = 0.95) -> dict:
    """Percentile intervals of accuracy, macro-F1 and weighted F1: `{score: [low, high]}`.

    Drawing n rows with replacement is one multinomial draw over the distinct (truth, prediction) pairs, so all resamples are
    one array: 2,000 resamples of 1,000 rows and 34 labels take a fraction of a second. Source: Efron & Tibshirani 1993, ch. 13.
    """
    true, said = as_ids(truth, predicted, n_labels)
    pairs, counts = _draw(np.stack([true, said], axis=1), resamples, seed)
    return {name: _interval(values, level) for name, values in _scores(pairs[:, 0], pairs[:, 1], counts, n_labels).items()}


def _draw(rows, resamples: int, seed: int):
    """Distinct rows of a table, and how often each was drawn: (distinct, columns), (resamples, distinct)."""
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(rows), counts / len(rows), size=resamples)
    return distinct, drawn


def _scores(true, said, counts, n_labels: int) -> dict:
    """The three scores of many resamples at once; true, said: (pairs,), counts: (resamples, pairs)."""
    counts = counts.astype(float)
    labels = np.arange(n_labels)
    is_true = (true[:, None] == labels).astype(float)  # (pairs, labels)
    is_said = (said[:, None] == labels).astype(float)
    support = counts @ is_true  # (resamples, labels)
    right = counts @ (is_true * is_said)
    total = support + counts @ is_said
    f1 = np.divide(2 * right, total, out=np.zeros_like(total), where=total > 0)
    rows = support.sum(axis=1)
    return {
        "accuracy": right.sum(axis=1) / rows,
        "f1_macro": f1.sum(axis=1, where=support > 0) / (support > 0).sum(axis=1),
        "f1_weighted": (f1 * support).sum(axis=1) / rows,
    }


def _interval(values, level: float) -> list[float]:
    outside = (1 - level) / 2
    return [float(edge) for edge in np.quantile(values, [outside, 1 - outside])]


# --- two systems on the same rows --------------------------------------------------------------------------------

def mcnemar(truth, first, second) -> dict:
    """Exact McNemar test: of the rows that only one system gets right, is the split compatible with a fair coin?

    Returns both_right, only_first, only_second, both_wrong (rows) and p (two-sided). Source: McNemar 1947, exact binomial form.
    """
    from scipy.stats import binomtest
    if not len(truth) == len(first) == len(second):
        raise ValueError(f"{len(truth)} true labels, {len(first)} and {len(second)} predictions: a paired test needs the same rows")
    first, second = (np.array([label is not None and label == true for label, true in zip(labels, truth)], dtype=bool)
                     for labels in (first, second))
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    decided = only_first + only_second
    return {"both_right": int((first & second).sum()), "only_first": only_first, "only_second": only_second,
            "both_wrong": int((~first & ~second).sum()),
            "p": float(binomtest(only_first, decided).pvalue) if decided else 1.0}


def paired_bootstrap(truth, first, second, n_labels: int, resamples: int = 2000, seed: int = 7, level: float = 0.95) -> dict:
    """Differences first - second, both scored on the same resampled rows.

    Returns for accuracy, f1_macro and f1_weighted: first, second, difference, interval [low, high] and p, the two-sided
    bootstrap p-value: twice the share of resamples on the other side of 0, which is never below 2 / (resamples + 1).
    """
    true, said_first = as_ids(truth, first, n_labels)
    _, said_second = as_ids(truth, second, n_labels)
    rows, counts = _draw(np.stack([true, said_first, said_second], axis=1), resamples, seed)
    resampled = [_scores(rows[:, 0], rows[:, column], counts, n_labels) for column in (1, 2)]
    whole = [classification(truth, labels, n_labels) for labels in (first, second)]
    result = {}
    for name in SCORES:
        difference = resampled[0][name] - resampled[1][name]
        # rounding noise must not decide whether two equal scores count as a tie
        aside = min((difference <= 1e-12).sum(), (difference >= -1e-12).sum())
        result[name] = {
            "first": whole[0][name], "second": whole[1][name], "difference": whole[0][name] - whole[1][name],
            "interval": _interval(difference, level), "p": float(min(1, 2 * (aside + 1) / (resamples + 1))),
        }
    return result


def paired_test(truth, first, second, n_labels: int, names=("first", "second"), resamples: int = 2000, seed: int = 7) -> dict:
    """Everything about two systems on the same rows: names, rows, mcnemar, and the scores of `paired_bootstrap`."""
    return {"names": list(names), "rows": len(truth), "resamples": resamples, "mcnemar": mcnemar(truth, first, second),
            **paired_bootstrap(truth, first, second, n_labels, resamples, seed)}


def p_value(test: dict, score: str = "f1_macro") -> float:
    """The p-value that belongs to a score of `paired_test`: McNemar's for accuracy, the bootstrap's for the F1 scores."""
    return test["mcnemar"]["p"] if score == "accuracy" else test[score]["p"]


def in_words(test: dict, score: str = "f1_macro") -> str:
    """One sentence that says what a `paired_test` found, for a reader who knows no statistics. 5 % is the limit."""
    (better, other), found = test["names"], test[score]
    difference, (low, high) = found["difference"], found["interval"]
    if difference < 0:
        better, other, difference, low, high = other, better, -difference, -high, -low
    p, what = p_value(test, score), SCORES[score]
    digits = 2 if difference >= 0.1 else 3
    difference, low, high = (f"{round(value, digits) + 0.0:.{digits}f}" for value in (difference, low, high))  # + 0.0: no "-0.00"
    numbers = f"{difference} (95 % interval {low}..{high})"
    chance = f"if both were equally good, a difference this large would arise by chance in {_frequency(p)}"
    if p < 0.05:
        return f"{better} is better than {other} in {what} by {numbers}; {chance}."
    return f"{better} and {other} cannot be told apart in {what} on these {test['rows']:,} rows: they differ by {numbers}, and {chance}."


def _frequency(p: float) -> str:
    if p < 0.001:
        return "fewer than 1 of 1,000 tests"
    if p < 0.0095:
        return f"about {round(p * 1000)} of 1,000 tests"
    return f"about {round(p * 100)} of 100 tests" if p < 0.995 else "nearly every test"


# --- probabilities -----------------------------------------------------------------------------------------------

def top_k(truth, ranked, k: int = 3) -> float:
    """Share of rows whose true label is among the first k of its ranked label ids; an empty ranking counts as wrong."""
    return sum(label in list(best)[:k] for label, best in zip(truth, ranked, strict=True)) / len(truth)


def calibration(truth, predicted, probability, bins: int = 10) -> dict:
    """Does a probability of 0.8 mean right in 80 of 100 rows? Expected calibration error over equal-width bins.

    probability: of each row's predicted label, 0..1; rows with None are left out and counted in left_out.
    Returns ece, mean_probability, accuracy (of these rows), left_out, and bins: low, high, rows, mean_probability, accuracy,
    interval (Wilson, 95 %) of each non-empty bin, closed above. Source: Guo et al. 2017, arXiv 1706.04599.
    """
    if not len(truth) == len(predicted) == len(probability):
        raise ValueError(f"{len(truth)} true labels, {len(predicted)} predictions, {len(probability)} probabilities: not the same rows")
    kept = [row for row, value in enumerate(probability) if value is not None]
    sure = np.array([probability[row] for row in kept], dtype=float)
    right = np.array([predicted[row] is not None and predicted[row] == truth[row] for row in kept], dtype=float)
    bad = ~((sure >= 0) & (sure <= 1 + 1e-6))
    if bad.any():
        raise ValueError(f"row {kept[int(bad.argmax())]} has the probability {sure[bad][0]}: probabilities lie in 0..1")
    where = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    table = [_bin(right[where == number], sure[where == number], number, bins) for number in range(bins) if (where == number).any()]
    ece = sum(entry["rows"] * abs(entry["accuracy"] - entry["mean_probability"]) for entry in table) / max(1, len(kept))
    return {"ece": ece, "mean_probability": float(sure.mean()) if kept else 0.0, "accuracy": float(right.mean()) if kept else 0.0,
            "left_out": len(truth) - len(kept), "bins": table}


def _bin(right, sure, number: int, bins: int) -> dict:
    from scipy.stats import binomtest
    interval = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    return {"low": number / bins, "high": (number + 1) / bins, "rows": len(right), "mean_probability": float(sure.mean()),
            "accuracy": float(right.mean()), "interval": [float(interval.low), float(interval.high)]}
