"""Reports of medical answers: perplexity and its test, the document's files, votes of any quality, a page that escapes."""

import json
import math
import random

import pytest

from glmlab import chats, medical_reports, paths, reports, text_figures, text_scores
from glmlab.tasks import medical
from glmlab.tasks.medical import Question

ROWS = [Question(4, "胸口突然剧痛怎么办？", "我爸胸口压着疼，出冷汗。", "可能是心脏的急症，请立即拨打120，不要走动。", "急诊科"),
        Question(7, "皮肤干痒怎么护理？", "冬天小腿痒。", "多半是皮肤干燥，洗澡水不要太热，多涂润肤乳，不好就看皮肤科。", "皮肤科"),
        Question(9, "湿疹能洗澡吗？", "孩子脸上有湿疹。", "可以洗，水温不要高，洗完涂润肤霜，加重就到皮肤科就诊。", "皮肤科")]
BASE = ["您好，请提供订单号。", "", "可以<script>alert(1)</script>洗。"]
TUNED = ["可能是心脏的问题，请立即拨打120。", "皮肤干燥，多涂润肤乳。", "可以洗，水温不要高。"]
OPTIONS = {"resamples": 200}


def facts(sums=(6.0, 3.0, 3.0)) -> dict:
    return {"texts": BASE, "stopped": [True, True, False], "tokens": [9, 1, 8], "first_token": [0.1, 0.1, 0.2], "seconds": [1.0, 0.2, 2.0],
            "total_seconds": 2.0, "loss_sums": list(sums), "loss_tokens": [3, 2, 1]}


@pytest.fixture(scope="module")
def results() -> dict:
    return {"base": medical_reports.score(ROWS, BASE, facts(), **OPTIONS),
            "tuned": medical_reports.score(ROWS, TUNED, facts((1.0, 1.0, 1.0)), **OPTIONS)}


# --- perplexity --------------------------------------------------------------------------------------------------

def test_perplexity_is_a_ratio_of_sums():
    found = medical_reports.perplexity([6.0, 3.0, 3.0], [3, 2, 1], resamples=500)
    assert found["mean"] == pytest.approx(math.exp(12 / 6))
    assert math.exp(3 / 2) <= found["interval"][0] < found["mean"] < found["interval"][1] <= math.exp(3)
    short = medical_reports.perplexity([0.0] * 9 + [5.0], [100] * 9 + [1], resamples=500)
    assert short["interval"][1] < 1.1  # the one short answer weighs one token of 901, not one row of ten
    one = medical_reports.perplexity([4.0, 4.0], [2, 2], resamples=100)
    assert one["interval"] == pytest.approx([math.exp(2)] * 2)  # rows that agree leave nothing to chance


def test_the_paired_test_of_perplexities():
    drawn = random.Random(1)
    tokens = [drawn.randint(40, 90) for _ in range(60)]
    base = [count * drawn.uniform(2, 4) for count in tokens]  # rows differ much, systems little but always
    first, second = ({"loss_sums": [value - shift * count for value, count in zip(base, tokens)], "loss_tokens": tokens}
                     for shift in (0.1, 0.0))
    test = medical_reports.paired_perplexity(first, second, names=("tuned", "base"))
    assert test["difference"] == pytest.approx(test["first"] - test["second"]) and test["change"] == pytest.approx(math.exp(-0.1) - 1)
    assert test["p"] == pytest.approx(2 / 2001) and test["interval"][1] < 0
    assert test["reading"].startswith("tuned is better (lower) than base in held-out perplexity by")
    same = medical_reports.paired_perplexity(first, first)
    assert same["p"] == 1 and same["difference"] == 0 and "cannot be told apart" in same["reading"]


def test_perplexities_over_other_tokens_are_refused():
    with pytest.raises(ValueError, match="same rows and the same tokenizer"):
        medical_reports.paired_perplexity({"loss_sums": [1.0], "loss_tokens": [2]}, {"loss_sums": [1.0], "loss_tokens": [3]})


# --- one and two systems -----------------------------------------------------------------------------------------

def test_score_has_all_measures_and_the_term_density(results):
    found = results["tuned"]
    assert found["per_row"]["density"][1] == medical.term_density(TUNED[1]) > 0 == medical.term_density(BASE[0])
    assert found["means"]["perplexity"]["mean"] == pytest.approx(math.exp(3 / 6))
    assert found["means"]["stopped"]["mean"] == pytest.approx(2 / 3)
    floor = medical_reports.score(ROWS, TUNED, **OPTIONS)
    assert "perplexity" not in floor["means"] and "seconds" not in floor["per_row"]
    assert floor["per_row"]["rouge_l"] == found["per_row"]["rouge_l"]


def test_a_row_of_the_comparison(results):
    row = medical_reports.comparison_row("tuned", results["tuned"], 65)
    assert all(row[f"{key}_interval"][0] <= row[key] <= row[f"{key}_interval"][1] for key in medical_reports.SCORES)
    floor = medical_reports.comparison_row("nearest", medical_reports.score(ROWS, TUNED, **OPTIONS))
    assert "perplexity" not in floor and floor["rouge_l"] == row["rouge_l"]
    table = reports.text_table([row, floor], medical_reports.SCORES).splitlines()
    assert table[0].split()[:2] == ["system", "perplexity"] and table[3].split()[:2] == ["nearest", "-"]


def test_compare_tests_every_measure(results):
    tests = medical_reports.compare(results["tuned"], results["base"], ("tuned", "base"), **OPTIONS)
    assert list(tests)[0] == "perplexity" and set(tests) == {"perplexity", *results["base"]["per_row"]}
    assert tests["rouge_l"] == text_scores.compare(results["tuned"], results["base"], ("tuned", "base"), **OPTIONS)["rouge_l"]
    assert "perplexity" not in medical_reports.compare(results["tuned"], medical_reports.score(ROWS, BASE, **OPTIONS), **OPTIONS)


def test_departments_with_their_perplexity(results):
    found = medical_reports.by_department(ROWS, results["base"])
    assert list(found) == ["皮肤科", "急诊科"] and found["皮肤科"]["rows"] == 2
    assert found["皮肤科"]["perplexity"] == pytest.approx(math.exp(6 / 3)) and found["急诊科"]["perplexity"] == pytest.approx(math.exp(2))
    assert "perplexity" not in medical_reports.by_department(ROWS, medical_reports.score(ROWS, BASE, **OPTIONS))["急诊科"]
    text_figures.by_group({"base": found, "tuned": medical_reports.by_department(ROWS, results["tuned"])}, "perplexity")


def test_what_is_retained_stands_in_the_answer():
    rows = [Question(0, "8元三支多少钱？", "", "24元。"), Question(1, "首都？", "", "北京。")]
    assert medical_reports.retained(rows, ["一共24 元", "东京"]) == [1.0, 0.0]


def test_speed():
    assert medical_reports.speed(facts()) == {"rows_per_second": 1.5, "tokens_per_second": 9.0, "tokens": 6.0}


def test_the_perplexity_figure_leaves_floors_out(results, tmp_path):
    rows = [medical_reports.comparison_row(name, result) for name, result in results.items()]
    figure = medical_reports.perplexity_figure([*rows, {"name": "nearest"}], tmp_path / "perplexity.png")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["base", "tuned"]
    assert (tmp_path / "perplexity.png").stat().st_size > 10_000


# --- files -------------------------------------------------------------------------------------------------------

def test_the_documents_files_hold_prompt_answers_and_measures(results, tmp_path):
    tests = medical_reports.compare(results["tuned"], results["base"], ("tuned", "base"), **OPTIONS)
    log, content = medical_reports.write_document_files(tmp_path, ROWS, {"base": BASE, "tuned": TUNED}, results, tests, {"run": "x"})
    text, found = log.read_text(encoding="utf-8"), json.loads(content.read_text(encoding="utf-8"))
    assert (log.name, content.name) == ("chatglm_comparison.log", "chatglm_comparison.json")
    expected = (*medical.DISCLAIMER.values(), "run: x", ROWS[0].text, TUNED[2], "(empty)", tests["rouge_l"]["reading"])
    assert all(part in text for part in expected)
    assert text.count(medical.emergency(ROWS[0].text)) == 2  # before both answers, and only there
    assert "--- change from base to tuned: +11 characters; " in text.split("=== ")[2]  # an empty answer has no share
    row = found["rows"][0]
    assert row["index"] == 4 and row["emergency"] == medical.emergency(ROWS[0].text) and found["rows"][1]["emergency"] is None
    measures = {key: results["tuned"]["per_row"][key][0] for key in medical_reports.DOCUMENTED}
    assert row["systems"]["tuned"] == {"answer": TUNED[0], **measures}
    assert row["change"]["length"] == len(TUNED[0]) - len(BASE[0]) and row["change"]["length_share"] == pytest.approx(0.8)
    assert found["rows"][1]["change"]["length_share"] is None and found["tests"]["perplexity"]["p"] == tests["perplexity"]["p"]


def test_the_page_escapes_and_warns(results, tmp_path):
    page = medical_reports.write_page(tmp_path / "page.html", "base & tuned", ROWS, {"base": BASE, "tuned": TUNED}, results)
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text and "&lt;script&gt;" in text and text.count("base &amp; tuned") == 2 and "http" not in text
    assert all(line in text for line in medical.DISCLAIMER.values())
    assert text.count(medical.emergency(ROWS[0].text)) == 2 and text.count("ROUGE-L") == 6


# --- votes -------------------------------------------------------------------------------------------------------

def test_votes_as_the_page_writes_them(tmp_path, monkeypatch):
    monkeypatch.setenv("GLMLAB_HOME", str(tmp_path))
    asked = [{"role": "user", "content": "头痛怎么办？"}]
    base, run = ("base", "x"), ("run 65", "y")
    for answers, choice in (([base, run], "b"), ([run, base], "a"), ([base, run], "tie")):
        path = chats.vote("medical", asked, answers, choice)
    votes, problems = medical_reports.read_votes(path)
    assert problems == [] and [vote["preferred"] for vote in votes] == ["run 65", "run 65", None] and votes[0]["question"] == "头痛怎么办？"
    counted, = medical_reports.count_votes(votes)
    assert {"names": ["base", "run 65"], "votes": 3, "first": 0, "second": 2, "ties": 1, "p": 0.5}.items() <= counted.items()
    assert counted["reading"].startswith("run 65 was preferred in 2 of 2 votes, with 1 ties")


def test_damaged_votes_are_named_and_left_out(tmp_path):
    path = tmp_path / "votes.jsonl"
    lines = ["{", '"text"', "[]", '{"a": {"model": "x"}, "b": {"model": "x"}, "preferred": "a"}', '{"a": "x", "b": "y", "preference": "b"}',
             '{"a": "x", "b": "y", "preferred": "c"}', '{"a": {"answer": "x"}, "b": "y", "preferred": "a"}', ""]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    votes, problems = medical_reports.read_votes(path)
    assert votes == [{"question": "", "models": ("x", "y"), "preferred": "y"}]
    assert [problem.row for problem in problems] == [0, 1, 2, 3, 5, 6, 7]
    assert all(problem.reason.startswith("no vote: ") for problem in problems)
    assert medical_reports.read_votes(tmp_path / "nothing.jsonl") == ([], []) and medical_reports.count_votes([]) == []


# --- losses, remembered ------------------------------------------------------------------------------------------

def test_losses_are_those_of_the_model_and_are_remembered(tmp_path):
    from glmlab import answering, comparison
    rows, _ = medical.read(paths.data("medical", "dev.csv"))
    wanted, bench, said = comparison.system("medical-reference", 0), comparison.Bench("cpu", "fp32"), []
    found = medical_reports.losses(wanted, rows[:2], bench, tmp_path, "dev", 1024, log=said.append)
    model, tokenizer = bench.load(wanted)
    sums, tokens = answering.answer_losses(model, tokenizer, medical.TASK, rows[:2], "chat", 1024)
    assert found == {"loss_sums": sums, "loss_tokens": tokens}
    assert medical_reports.losses(wanted, rows[:2], bench, tmp_path, "dev", 1024, log=said.append) == found and "taken from" in said[-1]
    rounds = medical_reports.losses(wanted, rows[:2], bench, tmp_path, "dev", 1024, "rounds", log=said.append)
    assert rounds["loss_tokens"] == tokens and rounds["loss_sums"] != sums
    medical_reports.losses(wanted, rows[:2], bench, tmp_path, "dev", 1024, log=said.append)
    assert "taken from" in said[-1]  # the other form did not overwrite it
