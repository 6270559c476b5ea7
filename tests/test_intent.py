"""The intent task: prompts, answers, reading every file form and reporting every bad row, shortening, writing with backups."""

import csv
import io
import json
import random
import re
import time

import pytest

from glmlab import paths
from glmlab.tasks import intent
from glmlab.tasks.intent import Call, Problem
from glmlab.tasks.labels import LABELS, NAMES

HEADER = ["word_mf2", "label_raw", "c_numerical", "num_cnum", "sentence_sep"]
CALL = "您好请讲[SEP]我想把彩铃退了[SEP]好的已经为您取消"


def record(text, label, **changes):
    """One CSV row as {column: value}."""
    fields = [text.replace("[SEP]", ""), NAMES[label], str(label), str(LABELS[label].group), text]
    return dict(zip(HEADER, fields)) | changes


def write_csv(path, records, columns=HEADER, encoding="utf-8-sig", newline="\n"):
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator=newline, extrasaction="ignore", restval="x")
    writer.writeheader()
    writer.writerows(records)
    path.write_bytes(out.getvalue().encode(encoding))
    return path


# --- prompt and answers ------------------------------------------------------------------------------------------

def test_the_system_prompt_says_all_and_stays_short():
    prompt = intent.SYSTEM_PROMPT
    assert 450 <= len(prompt) <= 650
    assert re.findall(r"^(\d+):(.+)$", prompt, re.M) == [(str(label.id), label.name) for label in LABELS]
    for words in ("客服意图识别专家", "输入格式", "[SEP]", "判断提示", "放弃", "客服推荐", "咨询是", "投诉是", "办理是", "输出格式：意图："):
        assert words in prompt


def test_messages_of_both_forms():
    system, user, said = intent.messages(CALL, 1)
    assert system == {"role": "system", "content": intent.SYSTEM_PROMPT} and user == {"role": "user", "content": "对话：" + CALL}
    assert said == {"role": "assistant", "content": "意图：1：办理取消"}
    assert intent.messages(CALL) == [system, user]
    assert intent.messages(CALL, 1, "template") == [{"role": "user", "content": f"{intent.SYSTEM_PROMPT}\n对话：{CALL}"}, said]
    assert intent.TEMPLATE.count("{conversation}") == 1
    assert "{0}%s{x}" in intent.messages("{0}%s{x}", form="template")[0]["content"]
    assert intent.messages(CALL, form="system", prompt="短") == [{"role": "system", "content": "短"}, user]
    assert intent.messages(CALL, form="template", prompt="短") == [{"role": "user", "content": f"短\n对话：{CALL}"}]
    for form in ("system", "template"):
        assert intent.messages(CALL, form=form, prompt="") == [user]
    with pytest.raises(ValueError, match="form 'old': choose system or template"):
        intent.messages(CALL, form="old")


def test_an_answer_exists_for_labels_only():
    assert intent.ANSWERS == [f"意图：{label.id}：{label.name}" for label in LABELS] and len(set(intent.ANSWERS)) == 34
    for bad in (34, -1, None):
        with pytest.raises(ValueError, match="is none of 0 to 33"):
            intent.answer(bad)


@pytest.mark.parametrize("label", range(34))
def test_parse_finds_what_answer_wrote(label):
    full_width = str.maketrans("0123456789", "０１２３４５６７８９")
    for text in (intent.answer(label), intent.answer(label).replace("：", ":"), intent.answer(label).replace("（", "(").replace("）", ")"),
                 intent.answer(label).translate(full_width), intent.answer(label).replace("：", " ： "), f"意图：{label}", f"意图:{label}。",
                 f"{label}：{NAMES[label]}", f"{label}. {NAMES[label]}", f"{label}", f"{label} {NAMES[label]}"):
        for before, after in (("", ""), ("\n", "\n"), ("好的，", "。"), ("**", "**"), ("理由：他说了2027年的事。\n", "\n谢谢"), ("“", "”")):
            assert intent.parse(before + text + after) == label, before + text + after
    for end in range(len(f"意图：{label}"), len(intent.answer(label)) + 1):  # cut off by the token limit
        assert intent.parse(intent.answer(label)[:end]) == label


def test_no_answer_is_read_as_another_label():
    """Every id with every name: the label where they agree, unanswered everywhere else."""
    for label in range(34):
        for other in range(34):
            for form in ("意图：{}：{}", "意图:{}:{}", "{}：{}", "{} {}"):
                expected = label if label == other else None
                assert intent.parse(form.format(label, NAMES[other])) == expected, form.format(label, NAMES[other])


@pytest.mark.parametrize("text, label", [
    ("意图：6：账户信息", 6), ("意图：6：咨询账户信息", 6), ("意图：0：业务规定", 0), ("意图：17：业务规定不满", 17),
    ("意图：0：业务规定不满", None),                   # the short name of 17
    ("意图：6：查话费", None), ("意图：99：办理取消", None), ("意图：34", None), ("意图：99", None),
    ("意图：6，因为客户查话费", 6), ("意图：6：咨询（含查询）账户信息，不是1：办理取消", 6), ("意图：编号：名称\n意图：1：办理取消", 1),
    ("意图：[6]：[咨询（含查询）账户信息]", 6), ("第6类", 6), ("在12:30说的", 12), ("概率0.95，选7", 7), ("2027年，选7", 7), ("20%", None),
    ("办理取消", None), ("我不知道", None), ("", None), ("意图：", None), ("意图：六", None), ("100", None), ("意图：" + "9" * 5000, None),
    ("9" * 5000 + "：办理取消", None),
])
def test_parse_of_free_text(text, label):
    assert intent.parse(text) == label


# --- CSV ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_the_real_format_with_and_without_byte_order_mark(tmp_path, encoding, newline):
    path = write_csv(tmp_path / "train_new.csv", [record(CALL, 1), record("您好[SEP]喂", 6)], encoding=encoding, newline=newline)
    assert intent.read(path) == ([Call(0, CALL, 1), Call(1, "您好[SEP]喂", 6)], [])


def test_the_shipped_files_have_no_bad_row():
    calls, problems = intent.read_splits({split: paths.data(f"intent/{split}_new.csv") for split in ("train", "dev", "test")})
    assert {split: len(found) for split, found in calls.items()} == {"train": 3000, "dev": 600, "test": 1000} and problems == []
    assert all(call.row == row and "[SEP]" in call.text and call.label in range(34) for found in calls.values() for row,
        call in enumerate(found))


def test_columns_in_any_order_and_extra_ones(tmp_path):
    columns = ["note", "sentence_sep", *HEADER[:4], "more"]
    path = write_csv(tmp_path / "a.csv", [record(CALL, 1, note="逗号,和\"引号\"")], columns)
    assert intent.read(path) == ([Call(0, CALL, 1)], [])


def test_a_file_without_labels(tmp_path):
    path = write_csv(tmp_path / "apply_new.csv", [record(CALL, 1, ID="7"), record("喂", 1, ID="8")], ["ID", "word_mf2", "sentence_sep"])
    assert intent.read(path) == ([Call(0, CALL, None), Call(1, "喂", None)], [])


def test_every_bad_row_is_reported_with_line_and_reason(tmp_path):
    good = [record(f"您好请讲[SEP]第{word}个问题", label) for word, label in zip("一二三四五", (1, 6, 12, 6, 6))]
    records = [
        good[0],
        record("您好[SEP]甲", 6, label_raw="查话费"),
        record("您好[SEP]乙", 6, c_numerical="34"),
        record("您好[SEP]丙", 6, c_numerical="1"),
        record("您好[SEP]丁", 6, label_raw="", c_numerical=""),
        record(" [SEP] ", 6),
        good[1] | {"num_cnum": "2"},
        good[2] | {"word_mf2": "别的话"},
        good[0],
        good[0] | record(good[0]["sentence_sep"].replace("个", "[SEP]个"), 6),
        good[3] | {"c_numerical": "6.0", "label_raw": " 咨询(含查询)账户信息 "},
    ]
    path = write_csv(tmp_path / "train_new.csv", records)
    short = "甲乙,办理取消,1,2\n\n" + "甲乙,办理取消,1,2,甲乙,丙\n"
    path.write_text(path.read_text(encoding="utf-8") + short, encoding="utf-8")
    calls, problems = intent.read(path)
    assert calls == [Call(0, good[0]["sentence_sep"], 1), Call(6, good[1]["sentence_sep"], 6), Call(7, good[2]["sentence_sep"], 12),
                     Call(10, good[3]["sentence_sep"], 6)]
    file = str(path)
    assert problems == [
        Problem(file, 1, "unknown label: label_raw '查话费' is none of the 34 names, line 3", "left out"),
        Problem(file, 2, "unknown label: c_numerical '34' is none of 0 to 33, line 4", "left out"),
        Problem(file, 3, "label_raw and c_numerical disagree: 咨询（含查询）账户信息 is 6, c_numerical is 1, line 5", "left out"),
        Problem(file, 4, "unknown label: label_raw '' is none of the 34 names, line 6", "left out"),
        Problem(file, 5, "empty call: line 7", "left out"),
        Problem(file, 6, "num_cnum disagrees with the label: '2' instead of 0 for 咨询（含查询）账户信息, line 8", "kept"),
        Problem(file, 7, "word_mf2 is not sentence_sep without marks: 3 and 9 characters; sentence_sep was used, line 9", "kept"),
        Problem(file, 8, "duplicate: the same text as row 0, line 10", "left out"),
        Problem(file, 9, "duplicate that disagrees: the same text as row 0, which has 1, this one 6, line 11", "left out"),
        Problem(file, 11, "wrong number of fields: 4, the header has 5, line 13", "left out"),
        Problem(file, 12, "wrong number of fields: 6, the header has 5, line 15", "left out"),
    ]


@pytest.mark.parametrize("broken", ['"您好,办理取消,1,2,您好[SEP]喂', '您好,办理取消,1,2,"您好[SEP]喂', '您好,办理取消,1,2,"您好"[SEP]喂'])
@pytest.mark.parametrize("last", ["您好乙,办理取消,1,2,您好[SEP]乙", '您好乙,办理取消,1,2,"您好[SEP]乙"'])
def test_a_quotation_mark_never_closed_costs_its_own_row_only(tmp_path, broken, last):
    path = tmp_path / "train_new.csv"
    path.write_text("\n".join([",".join(HEADER), "您好甲,办理取消,1,2,您好[SEP]甲", broken, last, "您好丙,办理取消,1,2,您好[SEP]丙"]), encoding="utf-8")
    calls, problems = intent.read(path)
    assert [(call.row, call.text) for call in calls] == [(0, "您好[SEP]甲"), (2, "您好[SEP]乙"), (3, "您好[SEP]丙")]
    assert [(problem.row, problem.action) for problem in problems] == [(1, "left out")] and "quotation marks" in problems[0].reason
    assert problems[0].reason.endswith("line 3")


def test_two_stray_quotation_marks_do_not_swallow_the_rows_between(tmp_path):
    path = tmp_path / "train_new.csv"
    rows = ['您好甲,办理取消,"1,2,您好[SEP]甲', "您好乙,办理取消,1,2,您好[SEP]乙", '您好丙,办理取消",1,2,您好[SEP]丙']
    path.write_text("\n".join([",".join(HEADER), *rows]), encoding="utf-8")
    calls, problems = intent.read(path)
    assert [call.row for call in calls] == [1, 2] and [problem.row for problem in problems] == [0]


def test_a_call_in_quotation_marks_may_have_line_breaks_and_rows_still_know_their_line(tmp_path):
    path = write_csv(tmp_path / "a.csv", [record("您好[SEP]甲\n乙", 1), record("您好", 1), record("您好", 1)])
    calls, problems = intent.read(path)
    assert [call.text for call in calls] == ["您好[SEP]甲\n乙", "您好"] and problems[0].reason.endswith("row 1, line 6")  # row 0 is lines 2 to 4


def test_a_call_of_200_000_characters(tmp_path):
    old = csv.field_size_limit(131_072)
    try:
        path = write_csv(tmp_path / "a.csv", [record("您好[SEP]" + "嗯我想想" * 50_000, 1)])
        assert len(intent.read(path)[0][0].text) > 200_000
    finally:
        csv.field_size_limit(old)


# --- JSON --------------------------------------------------------------------------------------------------------

LISTED = "\n\n业务类型：\n0:咨询 1:取消\n\n输出格式：\n意图：[最合适的]"
FOREIGN = {"call in the middle": "你是客服专家。\n\n对话内容：{}" + LISTED,
           "example behind": "你是客服专家。\n\n对话：{}" + LISTED + "\n\n示例：\n对话： \"您好请讲[SEP]我想取消业务\"\n意图：1",
           "example before": "示例：\n对话：您好请讲[SEP]我想取消业务\n意图：1\n" + LISTED + "\n\n对话:\n{}\n意图："}


def as_messages(text, label, form):
    if form in FOREIGN:
        return [{"role": "user", "content": FOREIGN[form].format(text)}, {"role": "assistant", "content": intent.answer(label)}]
    return intent.messages(text, label, form)


@pytest.mark.parametrize("form", ["system", "template", *FOREIGN])
@pytest.mark.parametrize("layout, name", [("array", "train.jsonl"), ("array", "train_new.csv"), ("lines", "train.jsonl"),
    ("lines", "train"),
                                          ("lines with blanks between", "train.json"), ("pretty single", "train.json")])
def test_json_is_told_by_its_content(tmp_path, form, layout, name):
    calls = [Call(0, CALL, 1), Call(1, "您好请讲[SEP]我还剩多少钱", 6)][: 1 if layout == "pretty single" else 2]
    records = [{"messages": as_messages(call.text, call.label, form)} for call in calls]
    text = {"array": json.dumps(records, ensure_ascii=False, indent=2), "lines": "\n".join(json.dumps(r) for r in records),
            "lines with blanks between": "\ufeff\n\n" + "\r\n\r\n".join(json.dumps(r, ensure_ascii=False) for r in records) + "\n",
            "pretty single": json.dumps(records[0], indent=1)}[layout]
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    assert intent.read(path) == (calls, [])


def test_every_bad_json_row_is_reported(tmp_path):
    rows = [
        {"messages": intent.messages(CALL, 1)}, {"conversations": []}, {"messages": intent.messages("甲")[:1]},
        {"messages": [{"role": "user", "content": "您好"}, {"role": "assistant", "content": "意图：1：办理取消"}]},
        {"messages": [*intent.messages("乙"), {"role": "assistant", "content": "意图：6：办理取消"}]},
        {"messages": [*intent.messages("丙"), {"role": "assistant", "content": "意图：6:咨询账户信息"}]},
        {"messages": intent.messages(" [SEP]", 1)}, {"messages": intent.messages(CALL, 6)},
        {"messages": [{"role": "user", "content": None}]}, 7,
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join([*lines, lines[0][:-9]]), encoding="utf-8")
    calls, problems = intent.read(path)
    assert calls == [Call(0, CALL, 1), Call(5, "丙", 6)]
    assert [(p.row, p.reason.partition(": ")[0], p.action) for p in problems] == [
        (1, "no messages", "left out"), (2, "not one call", "left out"), (3, "no call", "left out"), (4, "unknown label", "left out"),
        (5, "answer in another form", "kept"), (6, "empty call", "left out"), (7, "duplicate that disagrees", "left out"),
        (8, "no messages", "left out"), (9, "no messages", "left out"), (10, "not JSON", "left out")]
    assert all(p.reason.endswith(f"line {p.row + 1}") for p in problems) and "意图：6：办理取消" in problems[3].reason
    array = tmp_path / "array.jsonl"
    array.write_text(json.dumps(rows, ensure_ascii=False, indent=2), encoding="utf-8")
    assert [p.reason for p in intent.read(array)[1]] == [p.reason.rpartition(", line")[0] or "empty call" for p in problems[:-1]]


# --- whole files that cannot be read -----------------------------------------------------------------------------

def test_missing_files_are_named_together(tmp_path):
    test = write_csv(tmp_path / "test_new.csv", [record(CALL, 1)])
    splits = {"train": tmp_path / "train_new.csv", "dev": tmp_path / "dev_new.csv", "test": test}
    with pytest.raises(FileNotFoundError) as error:
        intent.read_splits(splits)
    assert str(error.value).startswith(f"missing CSV files: train_new.csv, dev_new.csv (looked in {tmp_path})")
    assert "python -m glmlab calls" in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"missing files: train.jsonl \(looked in "):
        intent.read(tmp_path / "train.jsonl")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        intent.read(tmp_path)


@pytest.mark.parametrize("gone", HEADER)
def test_a_missing_column_is_named_with_those_found_and_needed(tmp_path, gone):
    columns = [column for column in HEADER if column != gone]
    with pytest.raises(ValueError) as error:
        intent.read(write_csv(tmp_path / "train_new.csv", [record(CALL, 1)], columns))
    assert f"train_new.csv: column {gone} is missing; found: {', '.join(columns)}; needed: {', '.join(HEADER)}" in str(error.value)


def test_other_headers_that_do_not_work(tmp_path):
    path = tmp_path / "a.csv"
    for text, message in [("\t".join(HEADER) + "\n1\t2", "separate the columns with commas"),
        (",".join([*HEADER, "label_raw"]) + "\n1", "stands twice"),
                          (f"{CALL * 30},办理取消\n", "column word_mf2, sentence_sep is missing; found: 您好请讲"),
                          (",".join(HEADER) + "\n", "there is a header, but no row"),
                          (",".join(HEADER) + "\n您好,取消,1,2,您好\n", r"not one of its 1 rows can be used:\n.*unknown label")]:
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message) as error:
            intent.read(path)
        assert "a.csv" in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b" \n\n"])
def test_an_empty_file(tmp_path, content):
    (tmp_path / "dev_new.csv").write_bytes(content)
    with pytest.raises(ValueError, match="dev_new.csv is empty"):
        intent.read(tmp_path / "dev_new.csv")


def test_a_file_that_is_not_utf8_is_located_and_explained(tmp_path):
    path = write_csv(tmp_path / "train_new.csv", [record(CALL, 1)] * 3, encoding="utf-8")
    good = path.read_bytes()
    gbk = good.decode("utf-8").encode("gb18030")
    second = good.index("您".encode(), 200)
    for content, place, advice in [
        (gbk, rf"byte {good.index('您'.encode())} \(line 2\) is 0xC4",
        "it looks like GB18030; convert it: iconv -f GB18030 -t UTF-8 old.csv > new.csv"),
        (good.decode("utf-8").encode("utf-16"), r"byte 0 \(line 1\) is 0xFF", "looks like UTF-16"),
        (good.decode("utf-8").encode("utf-16-le"), "", "looks like UTF-16LE"),
        (",".join(HEADER).encode("utf-16-be"), "NUL characters from line 1", "looks like UTF-16BE"),
        (good[:second] + b"\0\0" + good[second:], r"NUL characters from line [23]", "damaged; copy the file again"),
        (bytes(range(128, 256)) * 9, "byte 0", "no text in an encoding known here"),
        (b"PK\x03\x04\xff\xff" + gbk, r"line 1", "Excel"),
        (good[:-2], rf"byte {len(good) - 4} \(line 4\)", "cut off"),
        (good[:second] + "您".encode("gb18030") + good[second + 3:], rf"byte {second} \(line [23]\)", "damaged or in another encoding"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="train_new.csv") as error:
            intent.read(path)
        assert re.search(place, str(error.value)) and advice in str(error.value), str(error.value)


def test_a_broken_json_array_says_where(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps([{"messages": intent.messages(CALL, 1)}], indent=2)[:-5], encoding="utf-8")
    with pytest.raises(ValueError, match=r"train.jsonl is no valid JSON array: line \d+, column \d+.*cut off"):
        intent.read(path)


# --- several splits ----------------------------------------------------------------------------------------------

def test_a_call_in_two_splits_stays_in_the_later_one(tmp_path):
    sets = {"train": [("甲[SEP]一", 1), ("乙", 1), ("丙", 1), ("丁", 1)], "dev": [("丙", 1), ("戊", 6), ("甲[SEP]一", 1)],
        "test": [("己", 2), ("甲一", 6), ("己", 2)]}
    files = {split: write_csv(tmp_path / f"{split}_new.csv", [record(*row) for row in found]) for split, found in sets.items()}
    calls, problems = intent.read_splits(files)
    assert calls == {"train": [Call(1, "乙", 1), Call(3, "丁", 1)], "dev": [Call(0, "丙", 1), Call(1, "戊", 6)],
        "test": [Call(0, "己", 2), Call(1, "甲一", 6)]}
    test, dev = files["test"], files["dev"]
    assert [(p.file, p.row, p.reason, p.action) for p in problems] == [
        (str(files["train"]), 0, f"stands in two splits: in test too, {test} row 1, which has 6, this one 1, line 2", "left out"),
        (str(files["train"]), 2, f"stands in two splits: in dev too, {dev} row 0, line 4", "left out"),
        (str(dev), 2, f"stands in two splits: in test too, {test} row 1, which has 6, this one 1, line 4", "left out"),
        (str(test), 2, "duplicate: the same text as row 0, line 4", "left out")]
    with pytest.raises(ValueError, match=r"every row of .*dev_new.csv \(train\) stands in a later split too"):
        intent.read_splits({"train": files["dev"], "dev": files["dev"]})


def test_the_table_counts_each_reason_and_lists_the_first(tmp_path):
    problems = [Problem("train_new.csv", row, f"unknown label: c_numerical '{row}' is none of 0 to 33, line {row + 2}",
        "left out") for row in range(40, 1240)]
    problems += [Problem("dev_new.csv", 3, "empty call", "left out"),
        Problem("train_new.csv", 5, "num_cnum disagrees with the label: '2', line 7", "kept")]
    assert intent.problem_table(problems, examples=2).splitlines() == [
        "train_new.csv: 1,200 x unknown label (left out)", "    row 40: c_numerical '40' is none of 0 to 33, line 42",
        "    row 41: c_numerical '41' is none of 0 to 33, line 43", "    … and 1,198 more", "dev_new.csv: 1 x empty call (left out)",
        "    row 3",
        "train_new.csv: 1 x num_cnum disagrees with the label (kept)", "    row 5: '2', line 7"]
    assert intent.problem_table([]) == "no problems found"
    assert str(problems[-2]) == "dev_new.csv, row 3: empty call (left out)"


# --- writing -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("form", ["system", "template"])
def test_what_is_written_is_read_again(tmp_path, form):
    calls = [Call(0, CALL, 1), Call(1, "您好[SEP]他说对话：“好的”\n第二行\u2028还是", 6), Call(2, "喂[SEP]{conversation}", None)]
    path, backup = intent.write_messages(tmp_path / "new" / "train.jsonl", calls, form)
    assert backup is None and intent.read(path) == (calls, [])
    assert [list(json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n")[:-1]] == [["messages"]] * 3


def test_a_different_file_is_kept_as_backup(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("mine", encoding="utf-8")
    one, two = [Call(0, CALL, 1)], [Call(0, CALL, 6)]
    assert intent.write_messages(path, one) == (path, tmp_path / "train.jsonl.bak")
    first = path.read_bytes()
    assert intent.write_messages(path, one) == (path, None)  # the same content: nothing to keep
    assert intent.write_messages(path, two) == (path, tmp_path / "train.jsonl.bak1")
    assert intent.write_messages(path, one) == (path, tmp_path / "train.jsonl.bak2")
    assert intent.write_messages(path, two) == (path, tmp_path / "train.jsonl.bak1")  # that content is kept already
    assert (tmp_path / "train.jsonl.bak").read_text(encoding="utf-8") == "mine" and (tmp_path / "train.jsonl.bak1").read_bytes() == first
    assert len(list(tmp_path.iterdir())) == 4


def test_when_the_new_file_cannot_be_written_the_old_one_stays(tmp_path, monkeypatch):
    path = tmp_path / "train.jsonl"
    path.write_text("mine", encoding="utf-8")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="the disk is full"):
        intent.write_messages(path, [Call(0, CALL, 1)])
    assert path.read_text(encoding="utf-8") == "mine" and list(tmp_path.iterdir()) == [path]


# --- a call that is too long -------------------------------------------------------------------------------------

class Room:
    """`fits` for so many characters; counts how often it was asked."""

    def __init__(self, characters):
        self.characters, self.asked = characters, 0

    def __call__(self, text):
        self.asked += 1
        return len(text) <= self.characters


def numbered(count):
    return [f"第{number:04}轮" for number in range(count)]


def test_a_call_that_fits_is_left_alone():
    assert intent.shorten(CALL, Room(len(CALL))) == (CALL, 0)


@pytest.mark.parametrize("count", [3, 4, 5, 6, 17, 100, 101])
def test_turns_go_from_the_middle_and_no_more_than_needed(count):
    turns = numbered(count)
    text = "[SEP]".join(turns)
    for room in range(17, len(text)):
        shorter, dropped = intent.shorten(text, Room(room))
        kept = shorter.split("[SEP]")
        assert len(shorter) <= room and len(kept) == count - dropped and kept[0] == turns[0] and kept[-1] == turns[-1]
        head = next((place for place, (a, b) in enumerate(zip(kept, turns)) if a != b), len(kept))
        assert kept[head:] == turns[dropped + head:] and 0 <= (count - dropped - head) - head <= 1  # the middle, the end a little longer
        assert dropped % 2 == 0 or dropped == count - 2  # agent and customer still alternate
        assert dropped == 1 or room < len(shorter) + 2 * 11 + 11  # no pair more than needed


def test_an_endless_turn_loses_its_middle_and_the_others_stay():
    turns = numbered(9)
    turns[3] = "始" + "嗯" * 100_000 + "终"
    shorter, dropped = intent.shorten("[SEP]".join(turns), room := Room(300))
    kept = shorter.split("[SEP]")
    assert dropped == 1 and len(shorter) == 300 and kept[:3] + kept[4:] == turns[:3] + turns[4:] and room.asked < 30
    assert kept[3][0] == "始" and kept[3][-1] == "终"


@pytest.mark.parametrize("text", ["始" + "嗯" * 100_000 + "终", "始好[SEP]" + "嗯" * 100_000 + "终",
    "始" + "嗯" * 50_000 + "[SEP]" + "啊" * 50_000 + "终",
                                  "始" + "嗯" * 40_000 + "[SEP]好[SEP]" + "啊" * 50_000 + "终"])
def test_first_and_last_turn_lose_their_middle_when_nothing_else_is_left(text):
    for characters in (100, 30):
        shorter, dropped = intent.shorten(text, room := Room(characters))
        assert len(shorter) <= characters and shorter[0] == "始" and shorter[-1] == "终" and dropped >= 1 and room.asked < 60
    assert len(shorter) >= 20


def test_an_endless_turn_among_too_many():
    turns = numbered(400)
    turns[1] = "长" * 6000
    shorter, dropped = intent.shorten("[SEP]".join(turns), Room(500))
    kept = shorter.split("[SEP]")
    assert len(shorter) <= 500 and len(kept) > 35 and kept[1] == "长" * 40 and kept[-15:] == turns[-15:] and dropped == 400 - len(kept)


def test_shortening_100_000_characters_is_fast():
    rng = random.Random(1)
    text = "[SEP]".join("".join(rng.choices("您好请问我想查一下话费", k=rng.randrange(1, 40))) for _ in range(5000))
    assert len(text) > 100_000
    room, started = Room(900), time.perf_counter()
    shorter, dropped = intent.shorten(text, room)
    assert 700 < len(shorter) <= 900 and dropped > 4900 and room.asked < 25 and time.perf_counter() - started < 1


def test_what_cannot_fit_is_returned_as_short_as_possible():
    assert len(intent.shorten("甲" * 50 + "[SEP]" + "乙" * 50 + "[SEP]" + "丙" * 50, Room(3))[0]) < 20


def test_fit_cuts_a_very_long_call_within_the_token_limit(tokenizer):
    from glmlab import chat
    bare = len(chat.prompt_ids(tokenizer, intent.messages("")))
    for text in ("[SEP]".join(numbered(8000)), "您好[SEP]" + "嗯我再想一想" * 17_000 + "[SEP]再见"):
        started = time.perf_counter()
        sample, dropped = chat.fit(tokenizer, lambda part: intent.messages(part, 1), text, bare + 200, intent.shorten)
        assert bare + 150 < len(sample.ids) <= bare + 200 and dropped >= 1 and time.perf_counter() - started < 10
        assert tokenizer.decode(sample.ids).endswith("意图：1：办理取消<|user|>")


def test_balanced_repeats_rare_labels_only():
    calls = [intent.Call(row, "一", label) for row, label in enumerate([0] * 12 + [1] * 5 + [2])]
    assert intent.balanced(calls, 0) == list(range(18))
    places = intent.balanced(calls, 1)
    assert places == sorted(places) and set(places) == set(range(18))
    assert [sum(calls[place].label == label for place in places) for label in range(3)] == [12, 12, 12]
    assert {places.count(place) for place in range(12, 17)} == {2, 3}  # 12 copies of 5 calls, evenly
    half = intent.balanced(calls, 0.5)
    assert [sum(calls[place].label == label for place in half) for label in range(3)] == [12, 8, 3]
    assert intent.balanced([], 1) == []
