"""Triple scores against a brute-force computation, intervals and the paired test against naive resampling, failures, baselines."""

import itertools
import random

import numpy as np
import pytest

from glmlab import triplet_scores
from glmlab.tasks import sentences
from glmlab.tasks.triplets import RELATIONS, Sentence, Triple

TEXT = "张三是云帆（苏州）科技总经理，毕业于青石大学。"


def triple(text):
    return Triple(*text.split("|"))


def _case(rows=60, seed=3):
    """Random truth and predictions over a text of twelve characters, with near misses, duplicates and unreadable rows."""
    rng = random.Random(seed)
    texts, truth, said = [], [], []
    for _ in range(rows):
        text = "".join(rng.sample("甲乙丙丁戊己庚辛壬癸子丑", 12))

        def span():
            start = rng.randrange(11)
            return text[start:start + rng.randint(1, 3)]

        wanted = [Triple(span(), rng.choice(["创立", "位于"]), span()) for _ in range(rng.randint(0, 4))]
        given = [rng.choice([one, one, one._replace(tail=span()), one._replace(relation="担任"), Triple(span(), one.relation, span())])
                 for one in wanted]
        given += [Triple(span(), "创立", "空")] * rng.randint(0, 1) + given[:rng.randint(0, 1)]
        texts.append(text)
        truth.append(wanted)
        said.append(None if rng.random() < 0.1 else given)
    return truth, said, texts


def _relaxed_by_force(wanted, given, text):
    """The most pairs of any one-to-one assignment, every one of them tried; spans of these texts stand in one place."""
    def fits(a, b):
        def near(one, other):
            if one not in text or other not in text:
                return one == other
            places = [set(range(text.index(part), text.index(part) + len(part))) for part in (one, other)]
            return bool(places[0] & places[1])
        return a.relation == b.relation and near(a.head, b.head) and near(a.tail, b.tail)

    small, large = sorted((wanted, given), key=len)
    return max((sum(fits(a, b) for a, b in zip(small, order)) for order in itertools.permutations(large, len(small))), default=0)


def _by_force(truth, said, texts):
    """The scores from their definitions, with plain loops."""
    right = wanted_all = said_all = exact = relaxed = 0
    for wanted, given, text in zip(truth, said, texts):
        wanted, given_set = set(wanted), set(given or [])
        right += len([one for one in given_set if one in wanted])
        wanted_all, said_all = wanted_all + len(wanted), said_all + len(given_set)
        exact += given is not None and wanted == given_set
        relaxed += _relaxed_by_force(sorted(wanted), sorted(given_set), text)
    return {"precision": right / said_all, "recall": right / wanted_all, "f1": 2 * right / (said_all + wanted_all),
            "exact_match": exact / len(truth), "relaxed_f1": 2 * relaxed / (said_all + wanted_all)}


def test_scores_equal_the_definitions():
    for seed in range(5):
        truth, said, texts = _case(seed=seed)
        scores = triplet_scores.score(truth, said, texts, resamples=10)
        for name, value in _by_force(truth, said, texts).items():
            assert scores[name] == pytest.approx(value, abs=1e-12), name
        assert scores["f1"] < scores["relaxed_f1"] < 1
        for entry in scores["per_relation"]:
            own = [[[one for one in row or [] if one.relation == entry["relation"]] for row in side] for side in (truth, said)]
            counts = [sum(len(set(row)) for row in side) for side in own]
            right = sum(len(set(a) & set(b)) for a, b in zip(*own))
            assert (entry["support"], entry["predicted"]) == tuple(counts)
            assert entry["f1_score"] == (2 * right / sum(counts) if sum(counts) else 0)
            assert entry["precision"] == (right / counts[1] if counts[1] else 0)
            assert entry["recall"] == (right / counts[0] if counts[0] else 0)
        assert [entry["relation"] for entry in scores["per_relation"]] == list(RELATIONS)
        assert scores["unparsable"] == said.count(None) / len(said) > 0
        spans = [span in text for row, text in zip(said, texts) for one in dict.fromkeys(row or []) for span in (one.head, one.tail)]
        assert scores["spans_in_text"] == sum(spans) / len(spans) < 1
        empty = [given == [] for wanted, given in zip(truth, said) if not wanted]
        assert (scores["empty_rows"], scores["empty_right"]) == (len(empty), sum(empty) / len(empty))


def test_both_sides_are_normalised_and_duplicates_count_once():
    truth = [[triple("张三|工作于|云帆（苏州）科技"), triple("张三|毕业于|青石大学")]]
    said = [[triple("张三|工作于|云帆(苏州)科技"), triple(" 张三|工作于|云帆（苏州）科技"), triple("张三|毕业于|青石大学")]]
    scores = triplet_scores.score(truth, said, [TEXT])
    assert scores["f1"] == scores["exact_match"] == scores["relaxed_f1"] == scores["spans_in_text"] == 1
    assert (scores["triples"], scores["predicted"], scores["right"]) == (2, 2, 2) and scores["intervals"]["f1"] == [1, 1]


def test_nothing_said_and_nothing_wanted():
    scores = triplet_scores.score([[], [triple("张三|创立|云帆")]], [[], None], [TEXT, TEXT])
    assert (scores["f1"], scores["precision"], scores["exact_match"], scores["unparsable"]) == (0, 0, 0.5, 0.5)
    assert scores["spans_in_text"] is None and (scores["empty_right"], scores["empty_rows"]) == (1, 1)
    assert triplet_scores.score([[]], [None], [TEXT])["exact_match"] == 0  # an unreadable answer is never right
    other = triplet_scores.score([[]], [[triple("张三|收购|云帆")]], [TEXT])
    assert other["per_relation"][-1]["relation"] == "收购" and other["per_relation"][-1]["predicted"] == 1


def test_a_relaxed_match_is_one_to_one_and_needs_a_common_place():
    def relaxed(wanted, given, text):
        return triplet_scores.score([[triple(one) for one in wanted]], [[triple(one) for one in given]], [text])["relaxed_f1"]

    assert relaxed(["张三|担任|总经理"], ["张三|担任|经理"], TEXT) == 1 and relaxed(["张三|担任|总经理"], ["张三|任职|总经理"], TEXT) == 0
    assert relaxed(["张三|担任|总经理"], ["张三|担任|总经理", "张三|担任|经理"], TEXT) == pytest.approx(2 / 3)
    assert relaxed(["甲公司|位于|苏州"], ["乙公司|位于|苏州"], "甲公司和乙公司都在苏州") == 0  # 公司 stands in both, but elsewhere
    # the greedy choice (first fits first) would leave one of these two alone
    assert relaxed(["张三|担任|总经理", "张三|担任|总"], ["张三|担任|总经", "张三|担任|经理"], "张三任总经理") == 1


def test_errors_name_the_row():
    with pytest.raises(ValueError, match="1 true rows, 2 predictions, 1 texts"):
        triplet_scores.score([[]], [[], []], [TEXT])
    with pytest.raises(ValueError, match="no rows to score"):
        triplet_scores.score([], [], [])
    with pytest.raises(ValueError, match="row 1 has no triples given"):
        triplet_scores.score([[], None], [[], []], [TEXT, TEXT])


# --- intervals and the paired test -------------------------------------------------------------------------------

def test_intervals_are_those_of_naive_resampling():
    truth, said, texts = _case(rows=80)
    intervals = triplet_scores.score(truth, said, texts, resamples=4000)["intervals"]
    rng, drawn = np.random.default_rng(1), []
    for _ in range(300):
        rows = rng.integers(0, 80, 80)
        drawn.append(_by_force(*([side[row] for row in rows] for side in (truth, said, texts))))
    for name, (low, high) in intervals.items():
        naive = np.quantile([one[name] for one in drawn], [0.025, 0.975])
        assert low == pytest.approx(naive[0], abs=0.03) and high == pytest.approx(naive[1], abs=0.03), name
    assert intervals == triplet_scores.score(truth, said, texts, resamples=4000)["intervals"]


def test_the_paired_test_tells_better_from_alike():
    truth, said, texts = _case(rows=150)
    perfect = triplet_scores.paired(truth, truth, said, texts, names=("A", "B"))
    whole = triplet_scores.score(truth, said, texts, resamples=10)
    assert (perfect["first"], perfect["second"]) == (1, whole["f1"]) and perfect["difference"] == 1 - whole["f1"]
    assert perfect["interval"][0] > 0 and perfect["p"] < 0.01
    assert perfect["reading"].startswith("A is better than B in micro-F1 by 0.") and "fewer than 1 of 1,000" in perfect["reading"]
    turned = triplet_scores.paired(truth, said, truth, texts, names=("B", "A"))
    assert turned["difference"] == -perfect["difference"] and turned["reading"].startswith("A is better than B in micro-F1 by 0.")
    same = triplet_scores.paired(truth, said, said, texts, measure="exact_match")
    assert (same["difference"], same["interval"], same["p"]) == (0, [0, 0], 1)
    assert "cannot be told apart in exact rows on these 150" in same["reading"]


def test_rows_are_drawn_in_pairs():
    """Two systems that fail on the same rows differ by little in every resample, however much the rows differ."""
    truth = [[triple("张三|创立|云帆")]] * 100
    first = [[] if row < 50 else truth[0] for row in range(100)]
    second = [[] if row < 52 else truth[0] for row in range(100)]
    low, high = triplet_scores.paired(truth, first, second, [TEXT] * 100)["interval"]
    assert 0 <= low < high < 0.07


# --- failures ----------------------------------------------------------------------------------------------------

def test_failures_say_what_kind_of_error_it_is():
    truth = ("张三|工作于|云帆(苏州)科技", "张三|担任|总经理", "张三|毕业于|青石大学")
    rows = [Sentence(7, TEXT, tuple(map(triple, truth))), Sentence(8, TEXT, ()), Sentence(9, TEXT, (triple(truth[0]),))]
    said = [[triple("张三|任职|总经理"), triple("张三|工作于|云帆"), triple("李四|创立|青石大学")], [], None]
    first, last = triplet_scores.failures(rows, said)
    assert [(error["kind"], *("|".join(error[side]) if error[side] else None for side in ("truth", "predicted"))) for error in first["errors"]] == [
        ("wrong relation", truth[1], "张三|任职|总经理"), ("boundary", truth[0], "张三|工作于|云帆"),
        ("missed", truth[2], None), ("invented", None, "李四|创立|青石大学")]
    assert (first["index"], first["text"], len(first["truth"])) == (7, TEXT, 3)
    assert last["index"] == 9 and last["predicted"] is None and [error["kind"] for error in last["errors"]] == ["unparsable", "missed"]


def test_every_wrong_triple_stands_in_one_error():
    truth, said, texts = _case()
    rows = [Sentence(number, text, tuple(wanted)) for number, (text, wanted) in enumerate(zip(texts, truth))]
    found = {row["index"]: row["errors"] for row in triplet_scores.failures(rows, said)}
    for number, (wanted, given) in enumerate(zip(truth, said)):
        errors = found.get(number, [])
        assert sorted(tuple(e["truth"]) for e in errors if e["truth"]) == sorted(set(wanted) - set(given or []))
        assert sorted(tuple(e["predicted"]) for e in errors if e["predicted"]) == sorted(set(given or []) - set(wanted))
    assert {e["kind"] for errors in found.values() for e in errors} == {"unparsable", "wrong relation", "boundary", "missed", "invented"}


# --- baselines ---------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def splits():
    return {split: sentences.sentences(sentences.make(split, 200)) for split in sentences.SPLITS}


def test_the_rules_read_the_documents_sentences():
    said = triplet_scores.pattern_matcher([
        "马云是恒岳科技的创始人，恒岳科技总部位于杭州。", "张三毕业于青石大学，现在在鼎翼软件担任CTO职位。", "吴海帆曾任恒岳科技财务部主管，他没有加入鼎翼软件。", "今天下雨。"])
    assert said == [[triple("马云|创立|恒岳科技"), triple("恒岳科技|总部在|杭州")],
                    [triple("张三|毕业于|青石大学"), triple("张三|工作于|鼎翼软件"), triple("张三|担任|CTO")],
                    [triple("吴海帆|工作于|恒岳科技"), triple("吴海帆|任职|财务部主管")], []]


def test_the_rules_are_no_straw_man(splits):
    """They were written from training sentences: good there, and well above the nearest neighbour on unseen ones."""
    scores = {split: triplet_scores.score([row.triples for row in rows], triplet_scores.pattern_matcher([row.text for row in rows]),
                                          [row.text for row in rows], resamples=10) for split, rows in splits.items()}
    assert scores["train"]["f1"] > 0.85 and scores["val"]["f1"] > 0.4 and scores["test"]["f1"] > 0.3
    assert all(entry["f1_score"] > 0.7 for entry in scores["train"]["per_relation"])


def test_the_nearest_neighbour_gives_its_triples_as_they_are(splits):
    train = splits["train"]
    assert triplet_scores.nearest(train, [row.text for row in train]) == [list(row.triples) for row in train]
    near = train[5].text.replace("。", "！")
    assert triplet_scores.nearest(train, [near]) == [list(train[5].triples)]
