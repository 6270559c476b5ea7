"""Scores of written answers: sums done by hand, a second implementation of each, blank answers, pairs, floors, pictures."""

import math
import random
import subprocess
import sys
import types
import warnings

import numpy as np
import pytest

from glmlab import metrics, text_figures, text_scores

SIGNS = "我你他的了是在不有人这中大来上国个到说们为子和地出道也时年得就那要下以生会自着去之过家学对可她里后小么心多天而能好都然没日于起还发成事只作"
MARKS = "，。！？：；、（）abcXYZ 019"


def _text(rng, least=1, most=60, marks=MARKS):
    return "".join(rng.choice(rng.choice((SIGNS, SIGNS, SIGNS, marks))) for _ in range(rng.randint(least, most))).strip() or "好"


def _pairs(count, seed=1, **options):
    """References, and answers that keep a part of them."""
    rng = random.Random(seed)
    for _ in range(count):
        reference = _text(rng, **options)
        start = rng.randrange(len(reference))
        kept = reference[start:start + rng.randint(1, len(reference))]
        yield reference, rng.choice((_text(rng, **options), kept, _text(rng, **options) + kept, reference))


# --- BLEU --------------------------------------------------------------------------------------------------------

def test_bleu_by_hand():
    assert text_scores.bleu4("今天天气好", "今天天气好") == pytest.approx(100)
    # 1-grams 3 of 4, 2-grams 2 of 3, 3-grams 1 of 2, 4-grams 0 of 1 -> 1/2
    assert text_scores.bleu4("甲乙丙丁", "甲乙丙戊") == pytest.approx(100 * (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25)
    # only one sign in common: 1 of 4, then 1/2 of 3, 1/4 of 2, 1/8 of 1
    assert text_scores.bleu4("甲乙丙丁", "甲子丑寅") == pytest.approx(100 * (1 / 4 * 1 / 6 * 1 / 8 * 1 / 8) ** 0.25)
    # a repeated sign matches as often as the reference has it: 1 of 4
    assert text_scores.bleu4("甲乙丙丁", "甲甲甲甲") == text_scores.bleu4("甲乙丙丁", "甲子丑寅")
    # too short for 3- and 4-grams; half as long as the reference: exp(1 - 4/2)
    assert text_scores.bleu4("甲乙丙丁", "甲乙") == pytest.approx(100 * math.exp(-1) * (1 / 2 * 1 / 4) ** 0.25)
    # a longer answer has no penalty of length
    assert text_scores.bleu4("甲乙丙丁", "甲乙丙丁戊") == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert text_scores.bleu4("甲乙", "丙丁") == text_scores.bleu4("甲乙", "") == text_scores.bleu4("甲乙", " \n") == 0


def test_bleu_is_sacrebleu_over_characters_with_exp_smoothing():
    from sacrebleu.metrics import BLEU
    second = BLEU(tokenize="char", smooth_method="exp", force=True)
    compared = 0
    for reference, answer in _pairs(500, marks=MARKS.replace(" ", "")):
        if len(answer) >= 4:  # below, sacrebleu gives 0
            assert text_scores.bleu4(reference, answer) == pytest.approx(second.sentence_score(answer, [reference]).score, abs=1e-9)
            compared += 1
    assert compared > 350


def test_corpus_bleu_counts_blank_answers():
    assert text_scores.corpus_bleu(["今天天气好", "你好世界"], ["今天天气好", "你好世界"]) == pytest.approx(100)
    # 5 of 9 signs written, all right: only the brevity penalty
    assert text_scores.corpus_bleu(["今天天气好", "你好世界"], ["今天天气好", ""]) == pytest.approx(100 * math.exp(1 - 9 / 5))
    assert text_scores.corpus_bleu(["今天天气好"], [""]) == 0


# --- ROUGE -------------------------------------------------------------------------------------------------------

def test_rouge_by_hand():
    found = text_scores.rouge("甲乙丙丁", "甲丙乙丁戊", "characters")
    assert found == {"rouge_1": pytest.approx(200 * 4 / 9), "rouge_2": 0, "rouge_l": pytest.approx(200 * 3 / 9)}
    # distinct n-grams in ROUGE-1 and -2, repetitions in ROUGE-L
    found = text_scores.rouge("甲甲甲乙", "甲乙", "characters")
    assert found == {"rouge_1": 100, "rouge_2": pytest.approx(200 * 1 / 3), "rouge_l": pytest.approx(200 * 2 / 6)}
    assert text_scores.units("我们在北京天安门 广场\n见面。") == ("我们", "在", "北京", "天安门", "广场", "见面", "。")
    assert text_scores.rouge("我们在北京见面", "我们在上海见面")["rouge_1"] == pytest.approx(200 * 3 / 8)
    nothing = {"rouge_1": 0, "rouge_2": 0, "rouge_l": 0}
    assert text_scores.rouge("甲乙", "") == text_scores.rouge("甲乙", " \n") == text_scores.rouge("甲乙", "丙丁") == nothing
    assert text_scores.rouge("好", "好")["rouge_2"] == 0
    with pytest.raises(ValueError, match="words or characters"):
        text_scores.rouge("甲", "甲", "letters")


@pytest.mark.parametrize("unit", ["words", "characters"])
def test_rouge_is_that_of_rouge_chinese(unit):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rouge_chinese import Rouge
    second = Rouge()
    for reference, answer in _pairs(400, seed=2):
        wanted, said = (" ".join(text_scores.units(text, unit)) for text in (reference, answer))
        expected = second.get_scores(said, wanted)[0]
        found = text_scores.rouge(reference, answer, unit)
        assert list(found.values()) == pytest.approx([100 * expected[name]["f"] for name in ("rouge-1", "rouge-2", "rouge-l")], abs=1e-5)


def test_what_rouge_chinese_does_otherwise():
    from rouge_chinese import Rouge
    second = Rouge()
    for blank in ("", "  "):
        with pytest.raises(ValueError, match="empty"):
            second.get_scores(blank, "你 好")
    # a line break behind a full stop, or behind another one, becomes an empty word there: five against three
    joined = " ".join(text_scores._jieba().cut("好。\n\n对"))
    raw = Rouge(metrics=["rouge-l"], raw_results=True).get_scores(joined, "好 。 对")[0]["rouge-l"]
    assert joined == "好 。 \n \n 对" and raw == {"hyp": 5, "ref": 3, "overlap": 3}
    assert text_scores.rouge("好。对", "好。\n\n对")["rouge_l"] == 100


def test_the_longest_common_subsequence_against_the_table():
    rng = random.Random(3)
    for _ in range(300):
        first, second = ("".join(rng.choice("甲乙丙丁") for _ in range(rng.randint(0, 25))) for _ in range(2))
        table = np.zeros((len(first) + 1, len(second) + 1), dtype=int)
        for i, one in enumerate(first):
            for j, other in enumerate(second):
                table[i + 1, j + 1] = table[i, j] + 1 if one == other else max(table[i, j + 1], table[i + 1, j])
        assert text_scores._common(first, second) == table[-1, -1] == text_scores._common(second, first)


def test_jieba_is_silent_and_leaves_nothing_behind(tmp_path):
    code = "from glmlab import text_scores; assert text_scores.units('我们在北京') == ('我们', '在', '北京')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                         env={"TMPDIR": str(tmp_path), "TEMP": str(tmp_path), "TMP": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"})
    assert run.stdout == run.stderr == "" and not list(tmp_path.iterdir())


def test_words_added_elsewhere_change_no_score(tmp_path, monkeypatch):
    import jieba
    monkeypatch.setattr(jieba.dt, "tmp_dir", str(tmp_path))
    before = text_scores.units("泽拉图星球很远")
    assert "泽拉图星球" not in before
    jieba.add_word("泽拉图星球")
    text_scores.units.cache_clear()
    assert text_scores.units("泽拉图星球很远") == before


# --- answers by themselves ---------------------------------------------------------------------------------------

def test_distinct_repetition_length_overlap_by_hand():
    assert text_scores.distinct(["甲乙甲", "甲乙"], 1, "characters") == 2 / 5
    assert text_scores.distinct(["甲乙甲", "甲乙"], 2, "characters") == 2 / 3  # 甲乙 乙甲 甲乙; none across answers
    assert text_scores.distinct(["", "甲"], 2, "characters") == 0
    assert text_scores.distinct(["我们在北京", "我们在上海"], 1) == 4 / 6
    assert text_scores.repetition("好好好好好好") == pytest.approx(2 / 3)
    assert text_scores.repetition("甲乙丙丁戊己") == text_scores.repetition("甲乙") == text_scores.repetition("") == 0
    assert text_scores.length(" 你好\n再见\n") == 5 and text_scores.length(" ") == 0
    assert text_scores.overlap("我们在北京，见面", "我们在上海，见面。") == 3 / 4  # 我们 在 见面 of four words; marks do not count
    assert text_scores.overlap("你好", "，。") == text_scores.overlap("你好", "") == 0


def test_similarity_by_tfidf_is_a_cosine():
    references = ["退货要几天", "怎么改密码", "退款多久到账"]
    assert text_scores.similarity(references, references) == pytest.approx([1, 1, 1])
    assert text_scores.similarity(references, ["", "天气不错啊", " "]) == [0, 0, 0]
    close, far, _ = text_scores.similarity(references, ["退货几天到", "改地址", "退款"])
    assert 0.3 < far < close < 1
    # the scores of a row depend on the list the weights are fitted on, not on the other answers
    alone = text_scores.similarity(references[:1], ["退货几天到"], fitted_on=references)
    assert alone == pytest.approx([close])
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics.pairwise import cosine_similarity
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), sublinear_tf=True).fit(references)
    expected = cosine_similarity(vectorizer.transform(references), vectorizer.transform(["退货几天到", "改地址", "退款"])).diagonal()
    assert text_scores.similarity(references, ["退货几天到", "改地址", "退款"]) == pytest.approx(expected.tolist())
    with pytest.raises(ValueError, match="no text"):
        text_scores.similarity(references, references, fitted_on=[])


def test_similarity_by_vectors():
    def embed(texts):
        return np.array([[text.count("甲"), text.count("乙")] for text in texts])

    found = text_scores.similarity(["甲", "甲", "甲", "甲"], ["甲甲", "乙", "甲乙", ""], embed=embed)
    assert found == pytest.approx([1, 0, 0.5 ** 0.5, 0])


def test_hidden_states_of_a_model_are_a_similarity():
    from glmlab import models
    for base in ("glm4-tiny", "chatglm-tiny"):
        embed = text_scores.embedder(*models.load_base(base, "none", "float32", "cpu"))
        assert embed(["你好", ""]).shape[0] == 2
        same, close, far, blank = text_scores.similarity(["我要查话费"] * 4, ["我要查话费", "我要查流量", "The end.", ""], embed=embed)
        assert same == pytest.approx(1) and same > close > far and blank == 0


def test_a_sentence_model_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match="pip install sentence-transformers"):
        text_scores.sentence_similarity(["甲"], ["甲"], "some-model")

    class SentenceTransformer:
        def __init__(self, name):
            assert name == "some-model"

        def encode(self, texts):
            return np.array([[len(text), 1.0] for text in texts])

    monkeypatch.setitem(sys.modules, "sentence_transformers", types.SimpleNamespace(SentenceTransformer=SentenceTransformer))
    assert text_scores.sentence_similarity(["甲", "甲"], ["乙", ""], "some-model") == pytest.approx([1, 0])


# --- a system ----------------------------------------------------------------------------------------------------

def _density(text):
    return text.count("的") / max(1, len(text))


def _case(rows=40, seed=5):
    pairs = list(_pairs(rows, seed))
    rng = random.Random(seed)
    return {"references": [reference for reference, _ in pairs], "answers": [answer for _, answer in pairs],
            "prompts": [_text(rng) for _ in pairs], "stopped": [rng.random() < 0.9 for _ in pairs],
            "seconds": [1 + rng.random() for _ in pairs], "first_token": [rng.random() for _ in pairs]}


def test_score_holds_every_measure_row_by_row():
    case = _case()
    case["answers"][3], case["answers"][7] = None, " \n"
    found = text_scores.score(**case, density=_density, embed=lambda texts: np.ones((len(texts), 2)))
    assert found["rows"] == 40 and found["empty"] == 2
    assert set(found["per_row"]) == set(text_scores.MEASURES) - {"similarity_sentence", "right", "recall_3", "recall_5", "perplexity"} == set(found["means"])
    assert all(len(values) == 40 for values in found["per_row"].values())
    for name in set(found["per_row"]) - {"stopped", "seconds", "first_token"}:
        assert found["per_row"][name][3] == found["per_row"][name][7] == 0, name
    row = 11
    assert found["per_row"]["bleu_4"][row] == text_scores.bleu4(case["references"][row], case["answers"][row])
    assert found["per_row"]["rouge_2"][row] == text_scores.rouge(case["references"][row], case["answers"][row])["rouge_2"]
    assert found["per_row"]["overlap"][row] == text_scores.overlap(case["prompts"][row], case["answers"][row])
    assert found["means"]["stopped"]["mean"] == sum(case["stopped"]) / 40
    assert found["latency"]["seconds"] == pytest.approx({"p50": np.median(case["seconds"]), "p95": np.quantile(case["seconds"], 0.95)})
    for name, entry in found["means"].items():
        low, high = entry["interval"]
        assert low <= entry["mean"] <= high and entry["mean"] == pytest.approx(np.mean(found["per_row"][name]))
    written = [answer or "" for answer in case["answers"]]
    assert found["corpus"] == {"bleu": text_scores.corpus_bleu(case["references"], written), "distinct_1": text_scores.distinct(written, 1),
                               "distinct_2": text_scores.distinct(written, 2)}


def test_the_order_of_the_rows_changes_no_mean_and_no_interval():
    case = _case()
    order = random.Random(1).sample(range(40), 40)
    turned = {name: [values[row] for row in order] for name, values in case.items()}
    found, again = text_scores.score(**case), text_scores.score(**turned)
    for name, entry in found["means"].items():
        assert again["means"][name]["mean"] == pytest.approx(entry["mean"], rel=1e-12)
        assert again["means"][name]["interval"] == pytest.approx(entry["interval"], rel=1e-9)
    for part in ("corpus", "latency", "rows", "empty"):
        assert again[part] == found[part]
    assert again["per_row"]["rouge_l"] == [found["per_row"]["rouge_l"][row] for row in order]


def test_a_floor_has_no_times():
    case = _case(12)
    found = text_scores.score(case["references"], case["answers"], case["prompts"])
    assert "seconds" not in found["per_row"] and "stopped" not in found["means"] and found["latency"] == {}


@pytest.mark.parametrize("change, message", [
    ({"answers": ["甲"]}, "12 references but 1 answers"),
    ({"seconds": [1.0] * 11}, "12 references but 11 seconds"),
    ({"seconds": [1.0] * 11 + [-1.0]}, "row 11 has the value -1.0 in seconds"),
    ({"first_token": [1.0] * 11 + [None]}, "row 11 has the value nan in first_token"),
    ({"references": ["甲"] * 5 + [" "] + ["甲"] * 6}, "row 5 has a blank reference"),
    ({"references": [], "answers": [], "prompts": []}, "no rows"),
])
def test_rows_that_cannot_be_scored_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        text_scores.score(**_case(12) | change)


def test_intervals_are_those_of_naive_resampling():
    rng = np.random.default_rng(4)
    values = rng.gamma(2.0, 10.0, 150)
    found = text_scores.mean_interval(values, resamples=4000)
    naive = [values[rng.integers(0, 150, 150)].mean() for _ in range(4000)]
    assert found["mean"] == pytest.approx(values.mean())
    assert found["interval"] == pytest.approx(np.quantile(naive, [0.025, 0.975]).tolist(), abs=0.25)
    assert text_scores.mean_interval([3.0] * 9) == {"mean": 3.0, "interval": [3.0, 3.0]}


def test_groups():
    found = text_scores.by_group({"rouge_l": [1.0, 2.0, 6.0, 5.0], "length": [1.0, 1.0, 1.0, 4.0]}, ["儿科", "急诊", "急诊", "慢病"])
    assert found == {"急诊": {"rows": 2, "rouge_l": 4, "length": 1}, "儿科": {"rows": 1, "rouge_l": 1, "length": 1},
                     "慢病": {"rows": 1, "rouge_l": 5, "length": 4}}
    assert list(found)[0] == "急诊"
    with pytest.raises(ValueError, match="1 rows of x but 2 groups"):
        text_scores.by_group({"x": [1.0]}, ["甲", "乙"])


# --- two systems -------------------------------------------------------------------------------------------------

def test_the_paired_test_has_the_sign_of_first_less_second():
    rng = np.random.default_rng(6)
    second = rng.random(80) * 20
    first = second + rng.normal(3, 2, 80)
    found = text_scores.paired(first, second, names=("fine-tuned", "base"))
    assert found["difference"] == pytest.approx((first - second).mean()) and found["difference"] > 0
    assert found["change"] == pytest.approx((first.mean() - second.mean()) / second.mean())
    assert 2 < found["interval"][0] < found["difference"] < found["interval"][1] < 4
    assert found["p"] == 2 / 2001 and found["rows"] == 80
    assert found["reading"].startswith("fine-tuned is better than base in ROUGE-L by ")
    assert found["reading"].endswith("; if both were equal, a difference this large would arise by chance in fewer than 1 of 1,000 tests.")
    other = text_scores.paired(second, first, names=("base", "fine-tuned"))
    assert other["difference"] == -found["difference"] and other["p"] == found["p"]
    assert other["reading"].startswith("fine-tuned is better than base in ROUGE-L by ")
    for measure, expected in (("seconds", "second is better (lower) than first in seconds in all by"),
                              ("length", "first is higher than second in length in characters by")):
        assert text_scores.paired(first, second, measure=measure)["reading"].startswith(expected)


def test_equal_rows_cannot_be_told_apart():
    found = text_scores.paired([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert (found["difference"], found["interval"], found["p"]) == (0, [0, 0], 1)
    assert "cannot be told apart in ROUGE-L on these 3 rows: they differ by 0.000 (95 % interval 0.000..0.000)" in found["reading"]
    assert text_scores.paired([1.0], [0.0])["change"] is None
    with pytest.raises(ValueError, match="the same rows"):
        text_scores.paired([1.0], [1.0, 2.0])


def test_pairs_tell_more_than_two_intervals_and_order_does_not_matter():
    rng = np.random.default_rng(7)
    second = rng.random(60) * 50
    first = second + rng.normal(1, 1, 60)
    found = text_scores.paired(first, second)
    alone = text_scores.mean_interval(first)["interval"]
    assert found["p"] < 0.01 and alone[0] < second.mean() < alone[1]
    order = rng.permutation(60)
    again = text_scores.paired(first[order], second[order])
    assert again["interval"] == pytest.approx(found["interval"]) and again["p"] == found["p"]


def test_the_paired_test_on_right_and_wrong_is_that_of_metrics():
    rng = random.Random(8)
    truth = [1] * 60  # a prediction of 1 is right
    first, second = ([int(rng.random() < share) for _ in truth] for share in (0.75, 0.5))
    expected = metrics.paired_bootstrap(truth, first, second, 2)["accuracy"]
    found = text_scores.paired(first, second)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value), name


def test_compare_takes_what_both_have():
    case = _case(20)
    timed, floor = text_scores.score(**case), text_scores.score(case["references"], case["prompts"], case["prompts"])
    found = text_scores.compare(timed, floor, ("model", "prompt"))
    assert list(found) == [name for name in timed["per_row"] if name in floor["per_row"]] and "seconds" not in found
    assert found["rouge_l"]["difference"] == pytest.approx(timed["means"]["rouge_l"]["mean"] - floor["means"]["rouge_l"]["mean"])
    assert found["overlap"]["reading"].startswith("prompt is higher than model")


# --- floors ------------------------------------------------------------------------------------------------------

QUESTIONS = ["怎么退货", "退款多久到账", "忘记密码怎么办", "快递到哪里了", "信用卡怎么还款"]
ANSWERS = ["您好，请在订单页申请退货。", "您好，退款一般三天到账。", "请点忘记密码。", "您好，请在订单页查看物流。", "请在手机银行还款。"]


def test_floors():
    asked = ["我想退货怎么弄", "密码忘记了", "退款到账要多久"]
    found = text_scores.floors(QUESTIONS, ANSWERS, asked, seed=7)
    assert found["nearest"] == [ANSWERS[0], ANSWERS[2], ANSWERS[1]]
    assert set(found["random"]) <= set(ANSWERS) and set(map(len, found.values())) == {3}
    means = {answer: np.mean([text_scores.rouge(other, answer)["rouge_l"] for other in ANSWERS]) for answer in ANSWERS}
    assert found["constant"] == [ANSWERS[3]] * 3 and means[ANSWERS[3]] == pytest.approx(max(means.values()))


def test_floors_do_not_depend_on_the_order_of_rows():
    asked = ["我想退货怎么弄", "密码忘记了", "退款到账要多久"] * 5
    found = text_scores.floors(QUESTIONS, ANSWERS, asked, seed=7, sample=3)
    order = [3, 0, 4, 1, 2]
    assert text_scores.floors([QUESTIONS[i] for i in order], [ANSWERS[i] for i in order], asked, seed=7, sample=3) == found
    turned = text_scores.floors(QUESTIONS, ANSWERS, asked[::-1], seed=7, sample=3)
    assert {name: answers[::-1] for name, answers in turned.items()} == found
    drawn = [text_scores.floors(QUESTIONS, ANSWERS, [str(number) for number in range(40)], seed)["random"] for seed in (7, 8)]
    assert drawn[0] != drawn[1] and set(drawn[0]) == set(ANSWERS)


def test_a_fixed_sentence_may_be_the_constant():
    best = "您好，请在订单页申请。"
    assert text_scores.floors(QUESTIONS, ANSWERS, ["甲"], sentences=[best])["constant"] == [best]
    assert text_scores.floors(QUESTIONS, ANSWERS, ["甲"], sentences=["天气不错"])["constant"] != ["天气不错"]
    twice = text_scores.floors(["甲", "甲"], ["乙", "丙"], ["甲", "丁"])  # equals: the first in code order
    assert twice["nearest"] == ["丙", "丙"] and twice["constant"] == ["丙", "丙"]
    with pytest.raises(ValueError, match="2 training questions, 1 answers"):
        text_scores.floors(["甲", "乙"], ["丙"], ["丁"])


def test_ranks_are_those_of_sorting():
    rng = random.Random(11)
    known = sorted({_text(rng, 2, 8) for _ in range(30)})
    answers = [rng.choice((rng.choice(known) + _text(rng, 1, 3), _text(rng, 1, 4), "")) for _ in range(200)]
    wanted = [rng.randrange(len(known)) for _ in answers]
    found = text_scores.ranks(known, answers, wanted)
    for answer, place, rank in zip(answers, wanted, found, strict=True):
        cosines = [round(value, 9) for value in text_scores.similarity(known, [answer] * len(known), fitted_on=known)]
        order = sorted(range(len(known)), key=lambda other: (-cosines[other], other))
        assert rank == (order.index(place) + 1 if cosines[place] > 0 else 0)
    assert {0, 1, 2, 3} <= set(found)
    assert text_scores.ranks(["甲乙", "甲丙"], ["甲"], [1]) == [2] and text_scores.ranks(["甲乙", "甲丙"], ["甲"], [0]) == [1]  # equals


# --- for the eye -------------------------------------------------------------------------------------------------

def test_side_by_side_escapes_everything():
    bad = "<script>alert('x')</script>&\"$x$"
    page = text_scores.side_by_side([bad], [bad], {"<b>": [bad], "微调后": [" "]}, {"<b>": [12.34]})
    assert "<script" not in page and "<b>" not in page and "'x'" not in page
    assert page.count("&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&amp;&quot;$x$") == 3
    assert "<th>&lt;b&gt;</th><th>微调后</th>" in page and "<em>(empty)</em>" in page and page.count("ROUGE-L 12.3") == 1
    assert 'class="tex2jax_ignore mathjax_ignore"' in page
    text = text_scores.side_by_side_text(["问\n题"], ["答"], {"base": [""], "微调后": ["好"]})
    assert text == "--- row 0\n[question]\n问\n题\n[reference]\n答\n[base]\n(empty)\n[微调后]\n好"


# --- figures -----------------------------------------------------------------------------------------------------

def _systems():
    case = _case(60)
    rng = random.Random(9)
    base = {**case, "answers": [_text(rng, 3, 90) for _ in case["answers"]], "seconds": [value * 1.5 for value in case["seconds"]],
            "first_token": [value * 0.8 for value in case["first_token"]]}
    floor = text_scores.score(case["references"], [case["references"][0]] * 60, case["prompts"], density=_density)
    return case, {"untuned chatglm-tiny": text_scores.score(**base, density=_density),
                  "微调后 service-reference 500": text_scores.score(**case, density=_density), "constant": floor}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    case, systems = _systems()
    before, after, _ = systems.values()
    groups = [("急诊", "慢性病", "心血管内科", "儿科")[row % 7 % 4] for row in range(60)]
    tables = {name: text_scores.by_group(result["per_row"], groups) for name, result in systems.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing glyph is a warning of matplotlib
        return folder, systems, {
            "bars": text_figures.measure_bars(systems, folder / "bars.png"),
            "length": text_figures.length_change(before, after, references=case["references"], path=folder / "length.png"),
            "groups": text_figures.by_group(tables, path=folder / "groups.png"),
            "latency": text_figures.latency(systems, folder / "latency.png"),
        }


def test_figures_are_files_with_nothing_cut_off_or_written_over(drawn):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text
    folder, _, made = drawn
    assert sorted(file.name for file in folder.iterdir()) == ["bars.png", "groups.png", "latency.png", "length.png"]
    for name, figure in made.items():
        FigureCanvasAgg(figure).draw()
        width, height = figure.canvas.get_width_height()
        boxes = [(text.get_text(), text.get_window_extent().extents) for text in _seen(figure, Text)]
        table = np.array([box for _, box in boxes])  # (texts, x0 y0 x1 y1)
        cut = (table[:, :2] < -1).any(axis=1) | (table[:, 2] > width + 1) | (table[:, 3] > height + 1)
        assert not cut.any(), (name, [boxes[i][0] for i in cut.nonzero()[0]])
        shared = np.minimum(table[:, None, 2:], table[None, :, 2:]) - np.maximum(table[:, None, :2], table[None, :, :2])
        meet = np.triu((shared > 1).all(axis=-1), k=1)
        assert not meet.any(), (name, [(boxes[i][0], boxes[j][0]) for i, j in np.argwhere(meet)])


def _seen(figure, kind):
    unseen = set()
    for axes in figure.axes:
        unseen |= set() if axes.get_visible() else set(axes.findobj(kind))
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                unseen |= set() if low <= tick.get_loc() <= high else {tick.label1, tick.label2}
    return [text for text in figure.findobj(kind) if text.get_visible() and text.get_text().strip() and text not in unseen]


def test_bars_show_the_means_of_the_systems_that_have_them(drawn):
    _, systems, made = drawn
    panels = {axis.get_title(): axis for axis in made["bars"].axes if axis.get_visible()}
    names = list(panels)
    assert names[:4] == ["BLEU-4 ↑", "ROUGE-1 ↑", "ROUGE-2 ↑", "ROUGE-L ↑"] and {"repetition ↓", "length in characters"} < set(names)
    means = [result["means"]["rouge_l"]["mean"] for result in systems.values()]
    assert [patch.get_width() for patch in panels["ROUGE-L ↑"].patches] == means
    assert len(panels["seconds in all ↓"].patches) == 2  # the floor has no times
    assert [label.get_text() for label in made["bars"].axes[0].get_yticklabels()] == list(systems)


def test_figures_of_groups_length_and_latency_say_what_they_show(drawn):
    _, systems, made = drawn
    rows = [label.get_text() for label in made["groups"].axes[0].get_yticklabels()]
    assert rows == ["心血管内科 (17 rows)", "急诊 (17 rows)", "慢性病 (17 rows)", "儿科 (9 rows)"]
    before, after, _ = (np.array(result["per_row"]["length"]) for result in systems.values())
    assert f": mean {(after - before).mean():+,.1f} characters (" in made["length"].axes[1].get_title()
    axis = made["length"].axes[0]
    assert len(axis.lines) == 3 and axis.get_legend().get_window_extent().y1 < axis.get_window_extent().y0  # not on the curves
    texts = [text.get_text() for text in made["latency"].axes[1].get_legend().get_texts()]
    part = systems["untuned chatglm-tiny"]["latency"]["seconds"]
    assert len(texts) == 2 and texts[0] == f"untuned chatglm-tiny: p50 {part['p50']:.3g} s, p95 {part['p95']:.3g} s"
    with pytest.raises(ValueError, match="no system has times"):
        text_figures.latency({"constant": systems["constant"]})
