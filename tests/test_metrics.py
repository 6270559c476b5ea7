"""Scores, intervals, paired tests and calibration against scikit-learn, naive resampling and sums done by hand."""

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from glmlab import metrics

N = 6  # labels; the last one never occurs in the truth


def _case(rows=200, seed=1, unanswered=0.1):
    rng = np.random.default_rng(seed)
    truth = rng.choice(N - 1, rows, p=[0.4, 0.3, 0.2, 0.08, 0.02])
    said = np.where(rng.random(rows) < 0.6, truth, rng.integers(0, N, rows))
    return truth.tolist(), [None if rng.random() < unanswered else int(label) for label in said]


def _by_hand(truth, predicted):
    """Accuracy, macro and weighted F1 from their definitions, with plain loops."""
    f1 = {}
    for label in set(truth):
        right = sum(t == label == p for t, p in zip(truth, predicted))
        total = truth.count(label) + predicted.count(label)
        f1[label] = 2 * right / total
    return {"accuracy": sum(t == p for t, p in zip(truth, predicted)) / len(truth), "f1_macro": sum(f1.values()) / len(f1),
            "f1_weighted": sum(f1[label] for label in truth) / len(truth)}


def test_scores_equal_the_definitions_and_scikit_learn():
    truth, predicted = _case()
    scores = metrics.classification(truth, predicted, N)
    for name, value in _by_hand(truth, predicted).items():
        assert scores[name] == pytest.approx(value, abs=1e-12)
    said = [-1 if label is None else label for label in predicted]
    assert scores["accuracy"] == accuracy_score(truth, said)
    assert scores["f1_macro"] == pytest.approx(f1_score(truth, said, average="macro", labels=range(N - 1)))
    table = precision_recall_fscore_support(truth, said, labels=range(N), zero_division=0)
    for label, entry in enumerate(scores["per_class"]):
        assert [entry[key] for key in ("precision", "recall", "f1_score", "support")] == [column[label] for column in table]
        assert entry["label"] == label and entry["predicted"] == predicted.count(label)
    assert scores["rows"] == 200 and scores["unanswered"] == predicted.count(None) > 0 and scores["labels_present"] == N - 1
    confusion = np.array(scores["confusion"])
    assert confusion.shape == (N, N + 1) and confusion.sum() == 200 and confusion[:, -1].sum() == predicted.count(None)
    assert confusion[0, 1] == sum(t == 0 and p == 1 for t, p in zip(truth, predicted))


def test_an_unanswered_row_is_wrong():
    answered = metrics.classification([0, 1, 1], [0, 1, 1], 2)
    one_missing = metrics.classification([0, 1, 1], [0, 1, None], 2)
    assert answered["accuracy"] == answered["f1_macro"] == 1
    assert one_missing["accuracy"] == pytest.approx(2 / 3) and one_missing["per_class"][1]["recall"] == 0.5
    assert metrics.classification([0, 1], [None, None], 2)["f1_macro"] == 0


def test_resampled_scores_equal_scikit_learn_on_the_drawn_rows():
    truth, predicted = _case(rows=60)
    true, said = metrics.as_ids(truth, predicted, N)
    pairs, counts = metrics._draw(np.stack([true, said], axis=1), 25, seed=3)
    assert (counts.sum(axis=1) == 60).all()
    scores = metrics._scores(pairs[:, 0], pairs[:, 1], counts, N)
    for number, drawn in enumerate(counts):
        rows = np.repeat(pairs, drawn, axis=0)
        present = np.unique(rows[:, 0])
        for name, average in (("f1_macro", "macro"), ("f1_weighted", "weighted")):
            assert scores[name][number] == pytest.approx(f1_score(rows[:, 0], rows[:, 1], average=average, labels=present, zero_division=0))
        assert scores["accuracy"][number] == pytest.approx((rows[:, 0] == rows[:, 1]).mean())


def test_intervals_are_those_of_naive_resampling():
    truth, predicted = _case()
    found = metrics.bootstrap(truth, predicted, N, resamples=4000)
    rng = np.random.default_rng(99)
    naive = {name: [] for name in found}
    for _ in range(1000):
        rows = rng.integers(0, len(truth), len(truth))
        for name, value in _by_hand([truth[i] for i in rows], [predicted[i] for i in rows]).items():
            naive[name].append(value)
    for name, (low, high) in found.items():
        assert low == pytest.approx(np.quantile(naive[name], 0.025), abs=0.012)
        assert high == pytest.approx(np.quantile(naive[name], 0.975), abs=0.012)
        assert low < _by_hand(truth, predicted)[name] < high
    assert found == metrics.bootstrap(truth, predicted, N, resamples=4000)
    wide = metrics.bootstrap(truth[:40], predicted[:40], N)["accuracy"]
    assert wide[1] - wide[0] > 1.5 * (found["accuracy"][1] - found["accuracy"][0])


def _paired():
    truth, first = _case(unanswered=0)
    rng = np.random.default_rng(8)
    second = [label if rng.random() < 0.8 else int(rng.integers(0, N)) for label in first]
    return truth, first, second


def test_mcnemar_is_the_exact_binomial():
    truth, first, second = _paired()
    found = metrics.mcnemar(truth, first, second)
    b = sum(f == t != s for t, f, s in zip(truth, first, second))
    c = sum(s == t != f for t, f, s in zip(truth, first, second))
    assert (found["only_first"], found["only_second"]) == (b, c) and b > c > 0
    tail = sum(math.comb(b + c, k) for k in range(max(b, c), b + c + 1)) / 2 ** (b + c)
    assert found["p"] == pytest.approx(min(1, 2 * tail))
    assert found["both_right"] + b + c + found["both_wrong"] == len(truth)
    assert metrics.mcnemar(truth, first, first)["p"] == 1
    assert metrics.mcnemar([1, 1, 0], [1, 1, 0], [None, 0, 0])["p"] == 0.5  # 2 of 2: twice 1/4


def test_paired_bootstrap_resamples_the_same_rows():
    truth, first, second = _paired()
    found = metrics.paired_bootstrap(truth, first, second, N, resamples=3000)
    for name, value in _by_hand(truth, first).items():
        assert found[name]["first"] == pytest.approx(value)
        assert found[name]["difference"] == pytest.approx(value - _by_hand(truth, second)[name])
    rng = np.random.default_rng(4)
    naive = []
    for _ in range(1000):
        rows = rng.integers(0, len(truth), len(truth))
        t, f, s = ([labels[i] for i in rows] for labels in (truth, first, second))
        naive.append(_by_hand(t, f)["f1_macro"] - _by_hand(t, s)["f1_macro"])
    low, high = found["f1_macro"]["interval"]
    assert low == pytest.approx(np.quantile(naive, 0.025), abs=0.015) and high == pytest.approx(np.quantile(naive, 0.975), abs=0.015)
    assert found["f1_macro"]["p"] == pytest.approx(2 * np.mean(np.array(naive) <= 0), abs=0.02)
    # unpaired intervals would be much wider: most rows are the same in both
    alone = metrics.bootstrap(truth, first, N)["f1_macro"]
    assert high - low < 0.9 * (alone[1] - alone[0])
    same = metrics.paired_bootstrap(truth, first, first, N)
    assert same["f1_macro"]["p"] == 1 and same["accuracy"]["difference"] == 0
    assert metrics.paired_bootstrap(truth, truth, second, N, resamples=999)["accuracy"]["p"] == 2 / 1000  # never 0


def test_in_words_says_who_is_better_and_when_nobody_knows():
    truth, first, second = _paired()
    test = metrics.paired_test(truth, second, first, N, ("small", "large"))
    assert metrics.p_value(test, "accuracy") == test["mcnemar"]["p"] < 0.05
    assert metrics.in_words(test, "accuracy").startswith("large is better than small in accuracy by 0.")
    assert "95 % interval" in metrics.in_words(test) and "macro-F1" in metrics.in_words(test)
    same = metrics.paired_test(truth, first, first, N, ("one", "two"))
    assert metrics.in_words(same).startswith("one and two cannot be told apart in macro-F1 on these 200 rows")
    assert "nearly every test" in metrics.in_words(same) and "-0.0" not in metrics.in_words(same)


def test_calibration_by_hand():
    truth, predicted = [0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 0, None]
    found = metrics.calibration(truth, predicted, [0.9, 0.55, 0.6, 1.0, 0.1, None], bins=10)
    assert found["left_out"] == 1 and found["accuracy"] == pytest.approx(3 / 5)
    assert [(entry["low"], entry["rows"], entry["accuracy"]) for entry in found["bins"]] == [
        (0.0, 1, 0.0), (0.5, 2, 0.5), (0.8, 1, 1.0), (0.9, 1, 1.0)]  # closed above: 0.1 in the first bin, 0.6 with 0.55, 0.9 below 1.0
    assert found["ece"] == pytest.approx((1 * 0.1 + 2 * abs(0.5 - 0.575) + 1 * 0.1 + 0) / 5)
    assert found["mean_probability"] == pytest.approx((0.9 + 0.55 + 0.6 + 1.0 + 0.1) / 5)
    low, high = found["bins"][1]["interval"]  # Wilson, 1 of 2
    z = 1.959963985
    half = z * math.sqrt(0.25 / 2 + z * z / 16) / (1 + z * z / 2)
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)
    with pytest.raises(ValueError, match="row 1 has the probability 1.2"):
        metrics.calibration([0, 0], [0, 0], [0.5, 1.2])


def test_top_k():
    assert metrics.top_k([0, 1, 2], [[0, 1], [2, 1], [0, 1]], 2) == pytest.approx(2 / 3)
    assert metrics.top_k([0, 1], [[1, 0], []], 1) == 0


@pytest.mark.parametrize("truth, predicted, message", [
    ([0, 1], [0], "2 true labels but 1 predictions"), ([], [], "no rows to score"), ([0, None], [0, 0], "row 1 has the true label None"),
    ([0, 9], [0, 0], "row 1 has the true label 9"), ([0, 1], [0, 6], "row 1 has the prediction 6"),
])
def test_what_cannot_be_scored_is_named(truth, predicted, message):
    with pytest.raises(ValueError, match=message):
        metrics.classification(truth, predicted, N)
