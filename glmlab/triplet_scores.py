"""Scores of extracted triples with intervals, a paired test, failure lists, and what a model has to beat: rules and nearest neighbour.

A prediction is a list of triples, or None for an answer that could not be read: nothing predicted. Both sides are normalised
(`triplets.normalise`), duplicates count once. A triple is right when head, relation and tail are.
"""

import re
from collections.abc import Mapping

import numpy as np

from glmlab import metrics
from glmlab.tasks.triplets import RELATIONS, Relation, Sentence, Triple, in_text, normal, normalise
from glmlab.triplet_rules import pattern_matcher

__all__ = ["SCORES", "failures", "in_words", "nearest", "paired", "pattern_matcher", "score"]

#: The scores with an interval: name -> how tables and figures call it.
SCORES = {"f1": "micro-F1", "precision": "precision", "recall": "recall", "exact_match": "exact rows", "relaxed_f1": "relaxed F1"}
#: Columns of the counts of a row.
RIGHT, WANTED, SAID, RELAXED, EXACT = range(5)


# --- scores ------------------------------------------------------------------------------------------------------

def score(truth: list[list[Triple]], predicted: list[list[Triple] | None], texts: list[str], relations: Mapping[str, Relation] = RELATIONS,
          resamples: int = 2000, seed: int = 7, level: float = 0.95) -> dict:
    """Every score of a system on the same rows, all 0..1, an empty division 0.

    precision, recall, f1: strict, micro over all triples. exact_match: rows whose set of triples is right as a whole. relaxed_*: the
    relation is right and both spans overlap the true ones in the text; one to one, the best assignment. per_relation: one dict a
    relation (known ones first, then any other that occurs) with precision, recall, f1_score, support, predicted. unparsable: share of
    rows with None. spans_in_text: share of predicted heads and tails that stand in the text (None without any). empty_right: share
    of the rows without triples for which [] was said (None without such rows), empty_rows: how many those are.
    intervals: percentile bootstrap over rows. Errors: ValueError for lists of different length, no rows, unlabelled rows.
    """
    true, said = _clean(truth, predicted, texts)
    counts = _counts(true, said, texts)
    whole = {name: float(values[0]) for name, values in _scores(counts, np.ones((1, len(counts)))).items()}
    distinct, drawn = metrics._draw(counts, resamples, seed)
    spans = [in_text(span, text) for row, text in zip(said, texts) for triple in row or () for span in (triple.head, triple.tail)]
    empty = [row is not None and not row for wanted, row in zip(true, said) if not wanted]
    return {
        "rows": len(true), "triples": int(counts[:, WANTED].sum()), "predicted": int(counts[:, SAID].sum()),
        "right": int(counts[:, RIGHT].sum()), **whole,
        "intervals": {name: metrics._interval(values, level) for name, values in _scores(distinct, drawn).items()},
        "per_relation": _per_relation(true, said, relations),
        "unparsable": sum(row is None for row in said) / len(said),
        "spans_in_text": sum(spans) / len(spans) if spans else None,
        "empty_right": sum(empty) / len(empty) if empty else None, "empty_rows": len(empty),
    }


def _clean(truth, predicted, texts) -> tuple[list[list[Triple]], list[list[Triple] | None]]:
    """Both sides normalised, without duplicates."""
    if not len(truth) == len(predicted) == len(texts):
        raise ValueError(f"{len(truth)} true rows, {len(predicted)} predictions, {len(texts)} texts: all must come from the same rows")
    if not len(truth):
        raise ValueError("no rows to score: the file or the selection is empty")
    if None in truth:
        raise ValueError(f"row {truth.index(None)} has no triples given: unlabelled rows cannot be scored")
    return ([list(dict.fromkeys(map(normal, row))) for row in truth],
            [None if row is None else list(dict.fromkeys(map(normal, row))) for row in predicted])


def _counts(true, said, texts) -> np.ndarray:
    """(rows, 5) integers: triples right, wanted, said, right in the relaxed sense, and whether the row is exactly right."""
    table = np.zeros((len(true), 5), dtype=int)
    for row, (wanted, given, text) in enumerate(zip(true, said, texts)):
        found = given or []
        table[row] = (len(set(wanted) & set(found)), len(wanted), len(found), len(_relaxed_pairs(wanted, found, text)),
                      given is not None and set(wanted) == set(found))
    return table


def _scores(counts: np.ndarray, drawn: np.ndarray) -> dict[str, np.ndarray]:
    """The scores of many resamples at once; counts: (rows, 5), drawn: (resamples, rows)."""
    right, wanted, said, relaxed, exact = (drawn @ counts.astype(float)).T

    def share(part, whole):
        return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)

    return {"f1": share(2 * right, wanted + said), "precision": share(right, said), "recall": share(right, wanted),
            "exact_match": exact / drawn.sum(axis=1), "relaxed_f1": share(2 * relaxed, wanted + said)}


def _per_relation(true, said, relations: Mapping[str, Relation]) -> list[dict]:
    table = []
    for relation in dict.fromkeys([*relations, *(triple.relation for row in [*true, *said] for triple in row or ())]):
        pairs = [({t for t in wanted if t.relation == relation}, {t for t in given or () if t.relation == relation})
                 for wanted, given in zip(true, said)]
        right, support, predicted = (sum(map(len, parts)) for parts in ([w & g for w, g in pairs], *zip(*pairs)))
        table.append({"relation": relation, "precision": right / max(1, predicted), "recall": right / max(1, support),
                      "f1_score": 2 * right / max(1, support + predicted), "support": support, "predicted": predicted})
    return table


def _places(span: str, text: str) -> list[range]:
    """Where a span stands in a text."""
    return [range(found.start(), found.start() + len(span)) for found in re.finditer(f"(?={re.escape(span)})", text)]


def _overlap(one: str, other: str, text: str) -> bool:
    """Whether two spans are equal or share a character of the text, wherever they stand in it."""
    if one == other:
        return True
    return any(a.start < b.stop and b.start < a.stop for a in _places(one, text) for b in _places(other, text))


def _relaxed_pairs(wanted: list[Triple], given: list[Triple], text: str) -> list[tuple[int, int]]:
    """Places (true, predicted) of the triples that belong together: a largest one-to-one assignment, exact pairs first."""
    from scipy.optimize import linear_sum_assignment
    if not wanted or not given:
        return []
    plain = normalise(text)
    fits = np.array([[1000 + (true == said) if true.relation == said.relation and _overlap(true.head, said.head, plain)
                      and _overlap(true.tail, said.tail, plain) else 0 for said in given] for true in wanted])
    return [(int(row), int(column)) for row, column in zip(*linear_sum_assignment(fits, maximize=True)) if fits[row, column]]


# --- two systems on the same rows --------------------------------------------------------------------------------

def paired(truth, first, second, texts, names=("first", "second"), measure: str = "f1", resamples: int = 2000, seed: int = 7,
           level: float = 0.95) -> dict:
    """The difference first - second of a score, rows drawn again in pairs; the conventions of `metrics.paired_bootstrap`.

    measure: one of SCORES. Returns names, measure, rows, resamples, first, second, difference, interval, p (two-sided) and reading, a
    sentence for people. Errors: as `score`.
    """
    tables = [_counts(*_clean(truth, said, texts), texts) for said in (first, second)]
    distinct, drawn = metrics._draw(np.concatenate(tables, axis=1), resamples, seed)
    width = tables[0].shape[1]
    differences = _scores(distinct[:, :width], drawn)[measure] - _scores(distinct[:, width:], drawn)[measure]
    one, two = (float(_scores(table, np.ones((1, len(table))))[measure][0]) for table in tables)
    # rounding noise must not decide whether two equal scores count as a tie
    aside = min((differences <= 1e-12).sum(), (differences >= -1e-12).sum())
    test = {"names": list(names), "measure": measure, "rows": len(truth), "resamples": resamples, "first": one, "second": two,
            "difference": one - two, "interval": metrics._interval(differences, level),
            "p": float(min(1, 2 * (aside + 1) / (resamples + 1)))}
    return test | {"reading": in_words(test)}


def in_words(test: dict) -> str:
    """One sentence that says what `paired` found, for a reader who knows no statistics; 5 % is the limit, as in `metrics.in_words`."""
    (better, other), difference, (low, high) = test["names"], test["difference"], test["interval"]
    if difference < 0:
        better, other, difference, low, high = other, better, -difference, -high, -low
    what = SCORES[test["measure"]]
    numbers = f"{difference:.3f} (95 % interval {low + 0.0:.3f}..{high + 0.0:.3f})"
    chance = f"if both were equally good, a difference this large would arise by chance in {metrics._frequency(test['p'])}"
    if test["p"] < 0.05:
        return f"{better} is better than {other} in {what} by {numbers}; {chance}."
    return f"{better} and {other} cannot be told apart in {what} on these {test['rows']:,} rows: they differ by {numbers}, and {chance}."


# --- what went wrong ---------------------------------------------------------------------------------------------

def failures(rows: list[Sentence], predicted: list[list[Triple] | None]) -> list[dict]:
    """The rows that are not exactly right, each with its errors: {"index", "text", "truth", "predicted", "errors"}.

    An error is {"kind", "truth", "predicted"}: unparsable (the row); wrong relation (same head and tail); boundary (same relation,
    overlapping spans); missed (truth only); invented (predicted only). Every wrong triple stands in one error.
    """
    texts = [row.text for row in rows]
    true, said = _clean([row.triples for row in rows], predicted, texts)
    found = []
    for row, wanted, given in zip(rows, true, said):
        errors = [{"kind": "unparsable", "truth": None, "predicted": None}] if given is None else []
        errors += _errors(wanted, given or [], row.text)
        if errors:
            found.append({"index": row.row, "text": row.text, "truth": [list(triple) for triple in wanted],
                          "predicted": None if given is None else [list(triple) for triple in given], "errors": errors})
    return found


def _errors(wanted: list[Triple], given: list[Triple], text: str) -> list[dict]:
    lost = [triple for triple in wanted if triple not in given]
    extra = [triple for triple in given if triple not in wanted]
    errors = []

    def pair(kind: str, true: Triple | None, said: Triple | None) -> None:
        errors.append({"kind": kind, "truth": true and list(true), "predicted": said and list(said)})
        if true in lost:
            lost.remove(true)
        if said in extra:
            extra.remove(said)

    for true in list(lost):
        same = next((said for said in extra if (said.head, said.tail) == (true.head, true.tail)), None)
        if same:
            pair("wrong relation", true, same)
    for true, said in [(lost[one], extra[other]) for one, other in _relaxed_pairs(lost, extra, text)]:
        pair("boundary", true, said)
    for true in list(lost):
        pair("missed", true, None)
    for said in list(extra):
        pair("invented", None, said)
    return errors


# --- what a model has to beat: the nearest neighbour -------------------------------------------------------------

def nearest(train: list[Sentence], texts: list[str]) -> list[list[Triple]]:
    """The triples of the training sentence with the highest TF-IDF cosine (characters, pairs), as they are; of equals the first."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), sublinear_tf=True)
    known = vectorizer.fit_transform([normalise(row.text) for row in train])
    cosines = (vectorizer.transform(map(normalise, texts)) @ known.T).toarray()
    return [list(train[place].triples) for place in np.round(cosines, 9).argmax(axis=1)]  # rounded: noise must not choose between equals
