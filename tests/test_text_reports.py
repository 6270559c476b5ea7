"""Reports of written answers: both signs are one, the right answer among all, files that read back, rows of a comparison."""

import json
from collections import namedtuple

import pytest

from glmlab import reports, text_reports, text_scores

Row = namedtuple("Row", "row answer")
ANSWERS = ["您好！\n1. 登录账户，打开订单\n2. 点击“退货”\n请稍等。", "您好！\n- 现货24小时内发货\n- 预售以页面为准\n感谢您的理解。",
           "您好！\n1. 重启路由器\n2. 检查网线\n如仍有问题请联系我们。"]
QUESTIONS = ["怎么退货？", "多久发货？", "网络断了怎么办？"]
HALF = "您好!\n1. 登录账户,打开订单\n2. 点击\"退货\"\n请稍等。"
OPTIONS = {"resamples": 100}


def test_normalise_makes_one_of_both_signs_and_keeps_the_lines():
    assert text_reports.normalise(ANSWERS[0]) == text_reports.normalise(HALF) == '您好!\n1.登录账户,打开订单\n2.点击"退货"\n请稍等。'
    assert text_reports.normalise(" \n甲\r\n\n 乙 ") == "甲\n乙" and text_reports.normalise("\n") == ""


def test_the_right_answer_is_the_nearest_of_all():
    written = [HALF, ANSWERS[1][:14], ANSWERS[0], "", "xyz"]
    references = [ANSWERS[0], ANSWERS[1], ANSWERS[2], ANSWERS[0], ANSWERS[0]]
    assert text_reports.right_answers(references, written, ANSWERS) == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert text_reports.right_answers(references, written, ANSWERS[::-1] * 2) == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert text_reports.right_answers([ANSWERS[0]], [HALF], []) == [1.0]  # the reference is known in any case
    for place in range(3):  # what is like no known answer must not count as the one that stands first
        assert text_reports.right_answers([ANSWERS[place]], ["xyz"], ANSWERS) == [0.0]


def test_recall_at_k():
    known = ["甲乙丙丁", "甲乙丙", "甲乙", "甲", "甲戊己庚辛", "壬癸"]
    found = text_reports.recalls(known, ["甲乙丙丁"] * 6, known)
    places = {text: text_scores.ranks(sorted(known), ["甲乙丙丁"], [sorted(known).index(text)])[0] for text in known}
    assert places == {"甲乙丙丁": 1, "甲乙丙": 2, "甲乙": 3, "甲": 4, "甲戊己庚辛": 5, "壬癸": 0}
    assert found == {"right": [1, 0, 0, 0, 0, 0], "recall_3": [1, 1, 1, 0, 0, 0], "recall_5": [1, 1, 1, 1, 1, 0]}
    result = text_reports.score(known, ["甲乙丙丁"] * 6, ["问"] * 6, known, **OPTIONS)
    assert [result["means"][name]["mean"] for name in ("right", "recall_3", "recall_5")] == [1 / 6, 1 / 2, 5 / 6]
    row = text_reports.comparison_row("x", result)
    assert row["recall_3"] == 1 / 2 and row["recall_5_interval"] == result["means"]["recall_5"]["interval"]
    assert any(line.split()[:4] == ["recall", "at", "3", "0.500"] for line in text_reports.scores_table(result).splitlines())


def test_score_is_that_of_the_normalised_texts():
    written = [HALF, "", ANSWERS[1]]
    found = text_reports.score(ANSWERS, written, QUESTIONS, ANSWERS, **OPTIONS)
    assert found["per_row"]["rouge_l"][:2] == [100.0, 0.0] and found["per_row"]["bleu_4"][0] == pytest.approx(100)
    assert found["per_row"]["right"] == [1.0, 0.0, 0.0] and found["means"]["right"]["mean"] == pytest.approx(1 / 3)
    assert found["empty"] == 1 and "perplexity" not in found and "stopped" not in found["means"]
    plain = text_scores.score([*map(text_reports.normalise, ANSWERS)], [*map(text_reports.normalise, written)],
                              [*map(text_reports.normalise, QUESTIONS)], **OPTIONS)
    assert {name: found["per_row"][name] for name in plain["per_row"]} == plain["per_row"]


def facts():
    return {"stopped": [True, False, True], "first_token": [0.1, 0.2, 0.3], "seconds": [1.0, 2.0, 3.0],
            "loss_sums": [2.0, 1.0, 0.0], "loss_tokens": [1, 1, 1]}


def test_facts_of_a_model_go_into_the_measures():
    found = text_reports.score(ANSWERS, ANSWERS, QUESTIONS, [], facts(), **OPTIONS)
    assert found["perplexity"] == pytest.approx(2.718281828) and found["means"]["stopped"]["mean"] == pytest.approx(2 / 3)
    assert found["latency"]["seconds"]["p50"] == 2.0
    assert "perplexity" not in text_reports.score(ANSWERS, ANSWERS, QUESTIONS, [], facts() | {"loss_tokens": []}, **OPTIONS)
    lines = text_reports.scores_table(found).splitlines()
    assert any(line.split() == ["right", "answer", "1.000", "1.000", "..", "1.000"] for line in lines)
    assert any(line.split() == ["held-out", "perplexity", "2.718"] for line in lines)


def test_groups_and_pairs():
    found = text_reports.score(ANSWERS, [HALF, "", ANSWERS[2]], QUESTIONS, [], **OPTIONS)
    table = text_reports.groups_table(found, ["shop", "shop", "support"], ("right", "rouge_l")).splitlines()
    assert table[2].split() == ["shop", "2", "0.500", "50.0"] and table[3].split() == ["support", "1", "1.000", "100.0"]
    tests = text_scores.compare(found, text_reports.score(ANSWERS, ANSWERS, QUESTIONS, [], **OPTIONS), ("a", "b"), resamples=100)
    assert tests["right"]["difference"] == pytest.approx(-1 / 3) and "right answer" in tests["right"]["reading"]


def test_result_files_read_back(tmp_path):
    rows, written = [Row(4, ANSWERS[0]), Row(7, ANSWERS[1]), Row(9, ANSWERS[2])], [HALF, "", ANSWERS[2]]
    result = text_reports.score(ANSWERS, written, QUESTIONS, [], facts(), **OPTIONS)
    log = []
    content = text_reports.write_result_files(tmp_path, rows, QUESTIONS, written, result, {"run": "x"}, ["shop", "shop", "support"], log.append)
    assert len(log) == 2 and json.loads((tmp_path / "results.json").read_text(encoding="utf-8")) == content
    assert content["about"] == {"run": "x"} and "NFKC" in content["normalised"] and "per_row" not in content
    assert content["groups"]["shop"]["rows"] == 2 and content["means"]["right"]["mean"] == pytest.approx(2 / 3)
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["index"] for line in lines] == [4, 7, 9] and lines[1]["answer"] == "" and lines[0]["reference"] == ANSWERS[0]
    assert lines[2] | {"group": "support", "stopped": 1.0, "seconds": 3.0, "right": 1.0} == lines[2]
    with pytest.raises(ValueError, match="zip"):
        text_reports.write_result_files(tmp_path, rows[:2], QUESTIONS, written, result, log=log.append)


def test_floors_on_the_same_rows():
    texts, results = text_reports.floors(["怎样退货", "何时发货", "网断了"], ANSWERS, ANSWERS, QUESTIONS, ANSWERS, seed=3, **OPTIONS)
    assert list(texts) == list(results) == ["constant", "random", "nearest"]
    assert texts["nearest"] == ANSWERS and results["nearest"]["means"]["right"]["mean"] == 1
    assert len(set(texts["constant"])) == 1 and results["constant"]["means"]["right"]["mean"] == pytest.approx(1 / 3)


def test_a_row_of_a_comparison():
    result = text_reports.score(ANSWERS, [HALF, "", ANSWERS[2]], QUESTIONS, [], facts(), **OPTIONS)
    row = text_reports.comparison_row("tuned", result, 5)
    assert {"name": "tuned", "step": 5, "rows": 3}.items() <= row.items() and row["seconds_p50"] == 2.0 and row["perplexity"] > 1
    assert row["right"] == pytest.approx(2 / 3) and row["right_interval"] == result["means"]["right"]["interval"]
    assert row["distinct_2"] == result["corpus"]["distinct_2"]
    floor = text_reports.comparison_row("constant", text_reports.score(ANSWERS, ANSWERS, QUESTIONS, [], **OPTIONS))
    assert "stopped" not in floor and "seconds_p50" not in floor
    lines = reports.text_table([row, floor], text_reports.SCORES).splitlines()
    assert "stop rate" in lines[0] and lines[3].split()[0] == "constant" and " - " in lines[3]
    assert reports.choose_best([row | {"step": 5, "rouge_l": 2.0}, row | {"step": 9, "rouge_l": 1.0}], "rouge_l") == 5
