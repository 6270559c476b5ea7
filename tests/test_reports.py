"""Result files with the names and fields of the scripts this course replaces; comparison; tables; baselines."""

import json
import random

import numpy as np
import pytest
from sklearn.metrics import classification_report

from glmlab import baselines, evaluation, metrics, paths, reports
from glmlab.settings import text_width
from glmlab.tasks import intent

NAMES = intent.NAMES
#: Rows 1, 3 and 4 of the file could not be read and were left out.
CALLS = [intent.Call(row, f"您好请讲[SEP]第{row}通电话{'嗯' * row}", label) for row, label in
         [(0, 6), (2, 6), (5, 1), (6, 1), (7, 1), (8, 12), (9, 0), (10, 33)]]
PREDICTED = [6, 1, 1, None, 6, 6, 0, None]
RESPONSES = ["意图：6：咨询（含查询）账户信息", "意图：1", "意图：1", "我不知道", "意图：6", "意图：6", "意图：0", None]


def _generated():
    return evaluation.Predictions([call.label for call in CALLS], list(PREDICTED), None, list(RESPONSES), [0, 0, 0, 2, 0, 0, 0, 0], 4.0,
                                  {3: intent.NO_LABEL, 7: "out of memory even with the call cut to 20 tokens"})


def _scored():
    probabilities = np.full((len(CALLS), 34), 0.2 / 33)
    predicted = [6, 1, 1, 1, 6, 6, 0, 33]
    probabilities[range(len(CALLS)), predicted] = 0.8
    return evaluation.Predictions([call.label for call in CALLS], predicted, probabilities, None, [0] * len(CALLS), 2.0)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder, lines = tmp_path_factory.mktemp("eval") / "run-5000", []
    about = {"run": "x", "checkpoint": 5000}
    scores = reports.write_result_files(folder, _generated(), CALLS, about, "x, step 5,000", 200, log=lines.append)
    return folder, scores, lines, {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")}


# --- result files ------------------------------------------------------------------------------------------------

def test_the_files_have_their_names(written):
    folder, _, lines, _ = written
    names = {"results.json", "failed_predictions.json", "error_predictions.json", "detailed_analysis.json", "confusion_matrix.png"}
    assert {path.name for path in folder.iterdir()} == names
    assert {line.rsplit("/", 1)[-1] for line in lines} == names and len(lines) == 5


def test_results_have_their_fields(written):
    _, scores, _, files = written
    found = files["results"]
    assert {"accuracy", "f1_macro", "f1_weighted", "total_samples", "successful_predictions", "failed_predictions", "evaluation_time",
            "avg_time_per_sample", "classification_report", "predictions", "ground_truth", "failed_samples"} <= set(found)
    assert (found["total_samples"], found["successful_predictions"], found["failed_predictions"]) == (8, 6, 2)
    assert found["accuracy"] == 3 / 8  # unanswered rows are wrong
    assert found["evaluation_time"] == 4.0 and found["avg_time_per_sample"] == 0.5
    assert found["predictions"] == PREDICTED and found["ground_truth"] == [call.label for call in CALLS]
    assert found["index"] == [0, 2, 5, 6, 7, 8, 9, 10]  # rows of the file, not places in the list
    assert found["about"] == {"run": "x", "checkpoint": 5000} and set(found["intervals"]) == set(metrics.SCORES)
    assert found["failed_samples"] == files["failed_predictions"]
    assert found["accuracy"] == scores["accuracy"] and found["intervals"] == scores["intervals"]
    assert "calibration" not in found and "top3" not in found


def test_the_report_per_class_is_scikit_learns(written):
    found = written[3]["results"]["classification_report"]
    said = [-1 if label is None else label for label in PREDICTED]
    present = sorted({call.label for call in CALLS})
    expected = classification_report([call.label for call in CALLS], said, labels=present, target_names=[NAMES[label] for label in present],
                                     output_dict=True, zero_division=0)
    assert set(found) == {*NAMES, "macro avg", "weighted avg"}
    for name in [*(NAMES[label] for label in present), "macro avg", "weighted avg"]:
        assert found[name] == pytest.approx(expected[name]), name
    detailed = written[3]["detailed_analysis"]["per_class_performance"]
    assert set(detailed[NAMES[6]]) == {"precision", "recall", "f1_score", "support"}
    assert detailed[NAMES[6]]["f1_score"] == found[NAMES[6]]["f1-score"] == pytest.approx(2 / 5)


def test_failed_predictions(written):
    found = written[3]["failed_predictions"]
    assert [set(entry) for entry in found] == [{"index", "error", "predicted_response", "predicted_intent", "ground_truth", "sample"}] * 2
    assert found[0] == {"index": 6, "error": intent.NO_LABEL, "predicted_response": "我不知道", "predicted_intent": None,
                        "ground_truth": 1, "sample": {"sentence_sep": CALLS[3].text, "label_raw": "办理取消", "c_numerical": 1}}
    assert found[1]["index"] == 10 and found[1]["error"].startswith("out of memory") and found[1]["predicted_response"] is None


def test_error_predictions(written):
    found = written[3]["error_predictions"]
    assert [entry["index"] for entry in found] == [2, 7, 8]
    assert found[0] == {"index": 2, "predicted_intent": 1, "predicted_label": "办理取消", "ground_truth_intent": 6,
                        "ground_truth_label": "咨询（含查询）账户信息", "error_type": "wrong_prediction"}


def test_detailed_analysis(written):
    found = written[3]["detailed_analysis"]
    assert set(found) == {"summary", "per_class_performance", "error_analysis"}
    assert found["summary"]["failed_predictions"] == 2 and found["summary"]["accuracy"] == 3 / 8
    errors = found["error_analysis"]
    assert set(errors) == {"most_confused_pairs", "class_with_most_errors", "class_with_least_errors", "total_errors", "error_rate",
                           "classes_with_errors", "error_distribution"}
    assert errors["most_confused_pairs"] == [
        {"true_intent": NAMES[true], "predicted_intent": NAMES[said], "count": 1} for true, said in ((1, 6), (6, 1), (12, 6))]
    assert errors["class_with_most_errors"] == {"intent_id": 1, "intent_name": "办理取消", "error_count": 2}
    assert errors["class_with_least_errors"] == {"intent_id": 0, "intent_name": NAMES[0], "error_count": 0}
    assert errors["total_errors"] == 5 and errors["error_rate"] == 5 / 8 and errors["classes_with_errors"] == 4
    assert errors["error_distribution"] == {NAMES[1]: 2, NAMES[6]: 1, NAMES[12]: 1, NAMES[33]: 1}


def test_the_picture_has_300_dpi(written):
    from PIL import Image
    with Image.open(written[0] / "confusion_matrix.png") as picture:
        assert [round(value) for value in picture.info["dpi"]] == [300, 300] and min(picture.size) > 3000


def test_probabilities_bring_calibration_and_top_3(tmp_path, monkeypatch):
    from glmlab import figures
    monkeypatch.setattr(figures, "confusion_matrix", lambda *args: None)  # drawn above
    scores = reports.write_result_files(tmp_path, _scored(), CALLS, resamples=100, log=lambda line: None)
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert scores["calibration"]["ece"] == pytest.approx(0.8 - 5 / 8) and found["calibration"] == scores["calibration"]
    assert [row[0] for row in found["top3"]] == [[label, 0.8] for label in _scored().predicted] and len(found["top3"][0]) == 3
    assert found["top3_accuracy"] == scores["top3_accuracy"] >= scores["accuracy"] == 5 / 8
    assert json.loads((tmp_path / "failed_predictions.json").read_text(encoding="utf-8")) == [] == found["failed_samples"]


def test_a_full_disk_leaves_the_files_that_were_there(tmp_path, monkeypatch):
    (tmp_path / "results.json").write_text("old", encoding="utf-8")
    from glmlab import figures
    monkeypatch.setattr(figures, "confusion_matrix", lambda *args: None)
    real = paths.os.replace

    def full(source, target):
        if str(target).endswith("results.json"):
            raise OSError(28, "No space left on device")
        real(source, target)
    monkeypatch.setattr(paths.os, "replace", full)
    with pytest.raises(OSError, match="results.json.*the disk is full"):
        reports.write_result_files(tmp_path, _scored(), CALLS, resamples=100, log=lambda line: None)
    assert (tmp_path / "results.json").read_text(encoding="utf-8") == "old" and not list(tmp_path.glob(".*"))


def test_lists_of_different_rows_are_refused(tmp_path):
    with pytest.raises(ValueError):
        reports.write_result_files(tmp_path, _scored(), CALLS[1:], resamples=100)
    assert not list(tmp_path.iterdir())


# --- what a reader sees ------------------------------------------------------------------------------------------

def test_most_confused_pairs_come_with_calls():
    predictions = _generated()
    predictions.predicted = [1, 1, 6, 6, 6, 6, 0, None]
    predictions.turns_dropped[2] = 5
    first, second, third = reports.most_confused(predictions, CALLS, 3)
    assert (first["true_id"], first["predicted_id"], first["count"], first["share"]) == (1, 6, 3, 1.0)
    assert first["examples"] == [{"index": row, "text": CALLS[place].text} for row, place in ((7, 4), (6, 3))]  # least cut first
    assert (second["true_id"], second["count"], third["count"]) == (6, 2, 1)
    text = reports.confused_text([first], width=40)
    assert text.splitlines()[0] == "3 x  办理取消 -> 咨询（含查询）账户信息  (100% of the true class)"
    assert "row 7: 您好请讲 / 第7通电话" in text
    assert all(text_width(line) <= 40 for line in text.splitlines()[1:])


def test_a_long_example_keeps_its_start_and_more_of_its_end():
    pair = {"count": 1, "true_intent": "a", "predicted_intent": "b", "share": 0.5,
            "examples": [{"index": 3, "text": "开" * 20 + "中" * 2000 + "完" * 60}]}
    lines = reports.confused_text([pair], width=44, lines=6).splitlines()[1:]
    assert len(lines) == 6 and lines[2].strip() == "…" and "开" in lines[0] and lines[-1].endswith("完")
    assert reports.wrap("ab 中文", 4) == ["ab", "中文"] and reports.wrap("", 4) == [""]


def test_tables_are_straight_with_chinese_names():
    scores = reports.evaluate(_scored(), resamples=100)
    lines = reports.per_class_table(scores).splitlines()
    assert len(lines) == 36 and {text_width(line) for line in lines} == {text_width(lines[0])} and text_width(lines[0]) <= 100
    assert lines[3].split() == ["1", "办理取消", "3", "3", "0.667", "0.667", "0.667"]
    assert lines[4].split()[-3:] == ["-", "-", "-"]  # not in the truth: nothing to say
    text = reports.scores_table(scores)
    assert "accuracy" in text and "0.625" in text and "calibration error (ECE)" in text and "0 " in text.splitlines()[-1]
    assert "among the first 3" not in reports.scores_table(reports.evaluate(_generated(), resamples=100))


# --- comparison --------------------------------------------------------------------------------------------------

def _rows():
    truth = [call.label for call in CALLS]
    systems = (("majority", [1] * 8, None), ("checkpoint 500", PREDICTED, 500), ("checkpoint 1,000", truth, 1000))
    return [reports.comparison_row(name, truth, predicted, step, resamples=200) for name, predicted, step in systems]


def test_comparison_rows():
    row = _rows()[1]
    assert set(row) == {"name", "step", "rows", "answered", *metrics.SCORES, *(f"{score}_interval" for score in metrics.SCORES)}
    assert (row["name"], row["step"], row["rows"], row["answered"], row["accuracy"]) == ("checkpoint 500", 500, 8, 6, 3 / 8)
    assert row["accuracy_interval"] == metrics.bootstrap([call.label for call in CALLS], PREDICTED, 34, 200)["accuracy"]


def test_the_best_checkpoint_is_the_earlier_of_two_equal_ones():
    rows = [{"step": None, "f1_macro": 0.9, "accuracy": 0.1}, {"step": 1500, "f1_macro": 0.5, "accuracy": 0.1},
            {"step": 500, "f1_macro": 0.5, "accuracy": 0.2}, {"step": 1000, "f1_macro": 0.4, "accuracy": 0.3}]
    assert reports.choose_best(rows) == 500 and reports.choose_best(rows, "accuracy") == 1000
    with pytest.raises(ValueError, match="no checkpoint to choose from"):
        reports.choose_best(rows[:1])


def test_tables_of_a_comparison():
    rows = _rows()
    lines = reports.text_table(rows).splitlines()
    assert lines[0].split("  ")[0] == "system" and lines[2].startswith("majority") and "0.375 (" in lines[2] and lines[3].endswith("2")
    markdown = reports.markdown_table(rows).splitlines()
    assert markdown[0] == "| system | rows | accuracy | macro-F1 | weighted F1 |" and len({line.count("|") for line in markdown}) == 1
    assert markdown[4] == "| checkpoint 1,000 | 8 | 1.000 (1.000..1.000) | 1.000 (1.000..1.000) | 1.000 (1.000..1.000) |"


def test_comparison_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="comparison.json is not there: run the project's comparison notebook"):
        reports.read_comparison(tmp_path)
    rows = _rows()
    test = metrics.paired_test([call.label for call in CALLS], PREDICTED, [1] * 8, 34, resamples=100)
    reports.write_comparison(tmp_path, {"test": "x.csv"}, rows, [test], best_step=500)
    found = reports.read_comparison(tmp_path)
    assert found["systems"] == rows and found["tests"] == [test] and found["best_step"] == 500 and found["about"] == {"test": "x.csv"}
    assert reports.markdown_table(found["systems"]) == reports.markdown_table(rows)
    (tmp_path / "comparison.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="is damaged"):
        reports.read_comparison(tmp_path)


def test_what_was_computed_for_the_same_rows_is_remembered(tmp_path):
    calls, lines = [], []

    def ask(about, recompute=False):
        compute = lambda: calls.append(1) or {"labels": [1, None]}  # noqa: E731
        return reports.remembered(tmp_path, "run/checkpoint 500", about, compute, recompute, lines.append)

    assert ask({"rows": (1, 2)}) == ask({"rows": (1, 2)}) == {"labels": [1, None]} and len(calls) == 1
    assert len(lines) == 1 and "run-checkpoint-500.json" in lines[0]
    ask({"rows": (1, 3)}), ask({"rows": (1, 3)}, recompute=True)
    assert len(calls) == 3
    (tmp_path / "predictions" / "run-checkpoint-500.json").write_text('{"about"', encoding="utf-8")
    ask({"rows": (1, 3)})
    assert len(calls) == 4


# --- baselines ---------------------------------------------------------------------------------------------------

def _talk(n, seed):
    """Calls of three labels; a label shows in a pair of characters whose order matters."""
    rng, words = random.Random(seed), {0: "规定", 1: "取消", 33: "定规"}
    calls = []
    for row in range(n):
        label = rng.choice([0, 1, 1, 33])
        noise = "".join(rng.choices("嗯啊好的那个取规", k=30))
        calls.append(intent.Call(row, noise[:15] + "[SEP]" + (words[label] if rng.random() < 0.9 else "") + noise[15:], label))
    return calls


def test_majority_is_the_most_frequent_label():
    train = [intent.Call(row, "x", label) for row, label in enumerate([5, 2, 5, 2, 7])]
    assert baselines.majority(train, CALLS) == [2] * len(CALLS)


def test_tfidf_learns_pairs_and_is_the_same_every_time():
    train, dev, test = _talk(150, 1), _talk(60, 2), _talk(80, 3)
    lines = []
    labels, probabilities = baselines.tfidf(train, test, 7, dev, lines.append)
    assert probabilities.shape == (80, 34) and np.abs(probabilities.sum(1) - 1).max() < 1e-9
    assert labels == probabilities.argmax(1).tolist() and set(labels) <= {0, 1, 33} and probabilities[:, 2:33].max() == 0
    right = sum(label == call.label for label, call in zip(labels, test)) / 80
    assert right > 0.75 > 1.2 * sum(call.label == 1 for call in test) / 80
    assert len(lines) == len(baselines.STRENGTHS) * len(baselines.CLASS_WEIGHTS) and "60 calls" in lines[0]
    again, same = baselines.tfidf(train, test, 7, dev)
    assert again == labels and (same == probabilities).all()
    alone, _ = baselines.tfidf(train, test, 7)  # without dev: a part of train chooses
    assert sum(label == call.label for label, call in zip(alone, test)) / 80 > 0.7
    with pytest.raises(ValueError, match="at least two labels"):
        baselines.tfidf([train[0]] * 3, test)


def test_tfidf_chooses_on_dev_and_fits_on_train_only(monkeypatch):
    train, dev = _talk(60, 1), _talk(40, 2)
    fitted, scored, real = [], [], baselines._classifier
    monkeypatch.setattr(baselines, "_classifier", lambda features, calls, *how: fitted.append((calls, how)) or real(features, calls, *how))
    monkeypatch.setattr(baselines, "_mean_score", lambda truth, predicted: scored.append(truth) or (len(scored) == 3))
    model = real(baselines._vectors(train)[1], train, baselines.STRENGTHS[2], None)
    vectorizer, _ = baselines._vectors(train)
    labels, probabilities = baselines.tfidf(train, dev, 7, dev)
    assert all(calls is train for calls, _ in fitted) and all(truth == [call.label for call in dev] for truth in scored)
    assert (probabilities[:, model.classes_] == model.predict_proba(vectorizer.transform(baselines._texts(dev)))).all()
    baselines.tfidf(train, dev, 7)  # without dev: four fifths choose, all of train is fitted in the end
    assert [len(calls) for calls, _ in fitted[8:]] == [48] * 8 + [60] and fitted[-1][1] in [how for _, how in fitted[8:-1]]
