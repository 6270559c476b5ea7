"""The service task: prompts, shortening, reading every form, feedback; the course's own dialogues, their splits and what they share."""

import hashlib
import json
import random
from collections import Counter

import pytest

from glmlab import chat, chats, encoding, paths
from glmlab.tasks import service, service_data
from glmlab.tasks.service import Dialogue, read, read_splits

HISTORY = (("怎么退货？", "您好！在订单里申请。"), ("申请好了。", "您好！请等待审核。"))
DIALOGUE = Dialogue(0, "那要多久？", "您好！\n- 审核1至2个工作日\n请您稍等。", HISTORY, "shop")


def record(question="用户问：如何退货？", answer="您好！\n1. 申请售后\n谢谢。", **more):
    return {"instruction": question, "input": "", "output": answer} | more


@pytest.fixture
def write(tmp_path):
    def write(content, name="service.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return path
    return write


def reasons(problems):
    return [(problem.row, problem.reason.partition(":")[0], problem.action) for problem in problems]


# --- the prompt --------------------------------------------------------------------------------------------------

def test_messages_in_both_forms():
    assert service.messages("你好？") == [{"role": "user", "content": "你好？"}]
    found = service.messages("那要多久？", HISTORY, "一天。", "document")
    assert [m["role"] for m in found] == ["user", "assistant"] * 3
    assert [m["content"] for m in found[::2]] == ["用户问：怎么退货？", "用户问：申请好了。", "用户问：那要多久？"]
    assert [m["content"] for m in found[1::2]] == ["您好！在订单里申请。", "您好！请等待审核。", "一天。"]
    assert service.messages("你好？", system=True)[0] == {"role": "system", "content": service.SYSTEM_PROMPT}
    with pytest.raises(ValueError, match="choose chat or document"):
        service.messages("你好？", form="rounds")


def test_a_conversation_keeps_its_own_system_turn_and_is_not_changed():
    turns = [{"role": "system", "content": "简短回答。"}, {"role": "user", "content": "怎么退货？"}]
    assert service.in_form(turns, "document", system=True) == [turns[0], {"role": "user", "content": "用户问：怎么退货？"}]
    assert turns[1]["content"] == "怎么退货？"


def test_task_makes_the_messages_of_the_dialogue():
    task = service.TASK
    for form in ("chat", "document"):
        assert task.messages(DIALOGUE, task.text(DIALOGUE), True, form) == service.messages("那要多久？", HISTORY, DIALOGUE.answer, form)
    assert task.messages(DIALOGUE, "那要多久？", False, "chat") == service.messages("那要多久？")
    assert task.messages(DIALOGUE, "", False, "chat") == service.messages("")


def test_shorten_drops_the_oldest_exchange_first():
    text = DIALOGUE.text
    newer = service.SEP.join(("申请好了。", "您好！请等待审核。", "那要多久？"))
    assert service.shorten(text, lambda part: True) == (text, 0)
    assert service.shorten(text, lambda part: len(part) < len(text)) == (newer, 1)
    assert service.shorten(text, lambda part: len(part) < len(newer)) == ("那要多久？", 2)
    assert service.shorten(text, lambda part: len(part) <= 4) == ("那要久？", 3)
    assert service.shorten(text, lambda part: False) == ("那？", 3)
    asked = []
    assert service.shorten("头" + "长" * 9998 + "尾", lambda part: asked.append(part) or len(part) <= 100) == ("头" + "长" * 98 + "尾", 1)
    assert len(asked) < 25


def test_shortened_samples_keep_question_and_answer(tokenizer):
    bare = len(chat.encode(tokenizer, service.messages(DIALOGUE.question, (), DIALOGUE.answer)).ids)
    (sample,), shortened = encoding.samples(tokenizer, service.TASK, [DIALOGUE], bare, "chat")
    assert shortened == 1 and sample.ids == chat.encode(tokenizer, service.messages(DIALOGUE.question, (), DIALOGUE.answer)).ids


# --- reading -----------------------------------------------------------------------------------------------------

def test_reads_the_document_form_and_its_variants(write):
    path = write([record(), record("如何换货？", "客服回答：请申请换货。"), record("用户:开发票", "客服：可以。", input="单位：某某公司"),
                  record("用户问：那要多久？", "三天。", history=[["用户问：怎么退货？", "客服：请申请。"]], scene="shop"), record("", "在。", input="在吗")])
    dialogues, problems = read(path)
    assert problems == []
    assert [(d.question, d.answer) for d in dialogues] == [("如何退货？", "您好！\n1. 申请售后\n谢谢。"), ("如何换货？", "请申请换货。"),
                                                           ("开发票\n单位：某某公司", "可以。"), ("那要多久？", "三天。"), ("在吗", "在。")]
    assert dialogues[3] == Dialogue(3, "那要多久？", "三天。", (("怎么退货？", "请申请。"),), "shop")


def test_reads_lines_and_messages(write):
    turns = [{"role": "system", "content": "x"}, *service.messages("那要多久？", HISTORY, "三天。", "document")]
    lines = [json.dumps(record(), ensure_ascii=False), "", json.dumps({"messages": turns, "scene": "shop"}, ensure_ascii=False), "{坏"]
    dialogues, problems = read(write("\ufeff" + "\n".join(lines)))
    assert dialogues == [Dialogue(0, "如何退货？", "您好！\n1. 申请售后\n谢谢。"), Dialogue(1, "那要多久？", "三天。", HISTORY, "shop")]
    assert reasons(problems) == [(2, "not JSON", "left out")] and problems[0].reason.endswith("line 4")


def test_every_bad_row_is_reported(write):
    good = record()
    bad = [
        (7, "missing key"), ({"instruction": "甲"}, "missing key"), (record("用户问：？"), "empty question"),
        (record(answer="客服："), "empty answer"), (record(answer=["甲"]), "not text"),
        (good, "duplicate"), (record("如何退货", scene="shop"), "duplicate"), (record(answer="不能。"), "duplicate that disagrees"),
        (record("那呢？", history=[["甲"]]), "bad history"), (record("那呢？", history="甲"), "bad history"),
        (record("那呢？", history=[["甲", 1]]), "bad history"), (record("那呢？", history=[["甲", "。"]]), "empty answer in the history"),
        (record("那\x1e呢？"), "control character"), ({"messages": 3}, "no messages"),
        ({"messages": []}, "turns do not alternate from user to assistant"),
        ({"messages": [{"role": "user", "content": "甲"}]}, "turns do not alternate from user to assistant")]
    dialogues, problems = read(write([good, *(row for row, _ in bad)]))
    assert [d.question for d in dialogues] == ["如何退货？"]
    assert reasons(problems) == [(row, reason, "left out") for row, (_, reason) in enumerate(bad, 1)]
    assert "which has the answer 您好！ 1. 申请售后 谢谢。…, this one the answer 不能。…" in problems[7].reason


def test_the_same_question_after_another_history_is_another_row(write):
    rows = [record("那要多久？", "三天。", history=[["退货？", "请申请。"]]), record("那要多久？", "一周。", history=[["维修？", "请寄来。"]]),
            record("那要多久？", "两天。")]
    assert [d.answer for d in read(write(rows))[0]] == ["三天。", "一周。", "两天。"]


def test_masks_of_real_logs_are_counted_and_kept(write):
    dialogues, problems = read(write([record("订单[ORDERID_10000029]呢", "您好，[姓名x]，[数字x]天到#E-s[数字x]"), record("[链接x]", "看到了"),
                                      record("［好］", "[好的]")]))
    assert dialogues[0].answer == "您好，[姓名x]，[数字x]天到#E-s[数字x]" and dialogues[1].question == "[链接x]"
    assert reasons(problems) == [(0, "masked code", "kept"), (1, "masked code", "kept")]
    assert problems[0].reason == "masked code: 4, such as [ORDERID_10000029]"


def test_what_spoils_a_whole_file(write, tmp_path):
    with pytest.raises(ValueError, match="is no JSON: it begins with 'instruction,output"):
        read(write("instruction,output\n甲,乙\n"))
    with pytest.raises(ValueError, match=r"line 2, column 36.*straight quotation marks inside a text"):
        read(write('[\n{"instruction": "甲", "output": "进入"我的订单"页面"}]'))
    with pytest.raises(ValueError, match="not one of its 1 rows can be used"):
        read(write([record("。")]))
    with pytest.raises(FileNotFoundError, match="missing files: a.json, b.json .*glmlab dialogues"):
        read_splits({"train": tmp_path / "a.json", "dev": tmp_path / "b.json"})


def test_a_question_in_two_splits_stays_in_the_later_one(write):
    files = {"train": write([record(), record("甲？"), record("乙？")], "a.json"), "test": write([record(answer="不能。"), record("乙")], "b.json")}
    splits, problems = read_splits(files)
    assert [d.question for d in splits["train"]] == ["甲？"] and len(splits["test"]) == 2
    assert reasons(problems) == [(0, "stands in two splits", "left out"), (2, "stands in two splits", "left out")]


def test_what_is_written_reads_back_the_same(tmp_path):
    rng = random.Random(5)
    for _ in range(30):
        def text():
            return "字" + "".join(rng.choices("甲乙\n\"\\，。：用户问客服 a1[数字x]", k=rng.randint(0, 30))) + "末"
        dialogues = [Dialogue(row, f"{row}{text()}", text(), tuple((text(), text()) for _ in range(rng.randint(0, 3))),
                              rng.choice(["", "shop"])) for row in range(5)]
        path, _ = service.write(tmp_path / "x.json", dialogues)
        assert read(path)[0] == dialogues


# --- feedback ----------------------------------------------------------------------------------------------------

def rated(question, answer, rating, correction="", history=(), **more):
    line = {"time": "2026-01-31T12:00:00+0800", "task": "service", "model": "base", "messages": service.messages(question, history),
            "answer": answer, "rating": rating, "correction": correction}
    return json.dumps(line | more, ensure_ascii=False)


def test_feedback_becomes_training_rows(write):
    train = write([record(), record("。"), record("如何换货？", "请申请。", scene="shop")], "train.json")
    before = train.read_bytes()
    feedback = write("\n".join([
        rated("能开发票吗", "可以。", 1), rated("几点下班", "不知道。", -1, "客服回答：晚上十点。"), rated("在吗", "滚。", "down"),
        rated("如何退货", "您好！\n1. 申请售后\n谢谢。", "up"), rated("如何换货？", "换不了。", "down", "您好！七天内可以换。"),
        rated("如何换货？", "可以换。", "up"), rated("那要多久？", "三天。", "up", history=HISTORY),
        rated("多少钱", "十块。", "down"), rated("多少钱", "十块。", "down", "八块。"),
        rated("甲", "乙", 0), "{", "7", rated("甲", "乙", 1, task="medical"), rated("甲", "。", 1),
        rated("甲", "乙", 1, messages=[])]), "feedback.jsonl")
    added, problems = service.add_feedback(feedback, train, train)
    assert [(d.row, d.question, d.answer) for d in added] == [
        (2, "能开发票吗", "可以。"), (3, "几点下班", "晚上十点。"), (1, "如何换货？", "您好！七天内可以换。"), (4, "那要多久？", "三天。"),
        (5, "多少钱", "八块。")]
    assert added[3].history == HISTORY and added[2].scene == "shop"
    assert Counter((problem.row, problem.reason.partition(":")[0], problem.action) for problem in problems) == Counter([
        (1, "empty question", "left out"), (9, "unknown rating", "left out"), (10, "not JSON", "left out"), (11, "no rating", "left out"),
        (12, "another task", "left out"), (13, "empty answer", "left out"),
        (14, "turns do not alternate from user to assistant", "left out"),
        (7, "rated again", "left out"), (2, "rated down without a correction", "left out"), (3, "known already", "left out"),
        (4, "correction", "kept"), (5, "disagrees with a known answer", "left out")])
    written, bad = read(train)
    assert bad == [] and [d.row for d in written] == list(range(6)) and all(d in written for d in added)
    assert train.with_name("train.json.bak").read_bytes() == before
    again, _ = service.add_feedback(feedback, train, train)
    assert again == [] and read(train)[0] == written


def test_the_last_correction_of_a_question_counts(write, tmp_path):
    lines = [rated("几点下班", answer, "down", right) for answer, right in [("甲", "八点。"), ("乙", "九点。"), ("甲", "十点。")]]
    added, problems = service.add_feedback(write("\n".join(lines), "feedback.jsonl"), write([record()]), tmp_path / "out.json")
    assert added == [Dialogue(1, "几点下班", "十点。")]
    assert reasons(problems) == [(0, "rated again", "left out"), (2, "correction", "kept")]


def test_an_empty_answer_that_was_corrected_is_learnt(write, tmp_path):
    lines = [rated("几点下班", "", "down", "八点。"), rated("在吗", "", "down"), rated("周日呢", "", "up"), rated("", "", "down", "八点。")]
    added, problems = service.add_feedback(write("\n".join(lines), "feedback.jsonl"), write([record()]), tmp_path / "out.json")
    assert added == [Dialogue(1, "几点下班", "八点。")]
    assert reasons(problems) == [(1, "empty answer", "left out"), (2, "empty answer", "left out"), (3, "empty question", "left out")]


def test_feedback_as_the_page_writes_it(write, tmp_path, monkeypatch):
    monkeypatch.setenv("GLMLAB_HOME", str(tmp_path))
    asked = service.messages("能开发票吗")
    chats.rate("service", "base", asked, "不能。", "up")
    chats.rate("service", "base", asked, "不能。", "down")
    path = chats.rate("service", "base", asked, "不能。", "down", "可以。")
    added, problems = service.add_feedback(path, write([record()]), tmp_path / "new" / "train.json")
    assert added == [Dialogue(1, "能开发票吗", "可以。")] and [problem.reason.partition(":")[0] for problem in problems] == ["rated again"] * 2
    with pytest.raises(FileNotFoundError, match="rate answers in the page first"):
        service.add_feedback(tmp_path / "none.jsonl", write([record()]), tmp_path / "x.json")


# --- the course's own dialogues ----------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def entries():
    return service_data.entries()


@pytest.fixture(scope="module")
def splits(entries):
    return service_data.split(entries)


def test_the_audit_finds_nothing():
    assert service_data.audit() == []


def test_counts(entries, splits):
    single, multi = ([entry for entry in entries if bool(entry["history"]) == several] for several in (False, True))
    assert min(Counter(entry["scene"] for entry in single).values()) >= 48 and len(single) >= 144
    assert Counter(entry["scene"] for entry in multi) == {"shop": 10, "support": 10, "finance": 10}
    assert all(2 <= len(entry["history"]) + 1 <= 3 for entry in multi)
    assert len({entry["answer"] for entry in entries}) == len(entries)
    assert len(splits["train"]) >= 600 and all(len({d.answer for d in splits[name]}) == len(entries) for name in service_data.SPLITS)
    assert all(set(service.SCENES) == {d.scene for d in split[:20]} for split in splits.values())  # the head of a file holds every scene


def test_answers_are_polite_multi_line_and_of_readable_length(entries):
    for entry in entries:
        answer = entry["answer"]
        assert 60 <= len(answer) <= 220 and answer.count("\n") >= 2 and answer.startswith("您好") and answer[-1] in "。！", entry["id"]
    wealth = [entry for entry in entries if entry["id"].startswith(("wealth", "fund"))]
    assert len(wealth) == 7 and all("投资须谨慎" in entry["answer"] for entry in wealth)


def test_dev_and_test_questions_are_unseen(splits):
    train = {service.words_of(text) for d in splits["train"] for text in (d.question, *(question for question, _ in d.history))}
    runs = {words[start:start + 8] for words in train for start in range(len(words) - 7)}
    for name in ("dev", "test"):
        for dialogue in splits[name]:
            words = service.words_of(dialogue.question)
            assert not any(words in seen for seen in train), dialogue.question
            assert not any(words[start:start + 8] in runs for start in range(len(words) - 7)), dialogue.question
    assert not {service.words_of(d.text) for d in splits["dev"]} & {service.words_of(d.text) for d in splits["test"]}


def test_leaks_are_found():
    train = [Dialogue(0, "您好，我想问一下怎么退货呢？", "甲", (("东西坏了，怎么办？", "乙"),))]
    asked = ["怎么退货", "想问一下，怎么退换", "请问一下怎么退货", "东西坏了怎么办", "换货", "请问一下怎么退货呢"]
    problems = service_data.leaks({"train": train, "dev": [], "test": [Dialogue(row, text, "甲") for row, text in enumerate(asked)]})
    assert [problem.row for problem in problems] == [0, 3, 5]
    dev = [Dialogue(row, text, "甲") for row, text in enumerate(asked[1:3])]
    assert [problem.row for problem in service_data.leaks({"train": train, "dev": dev, "test": []}, run=6)] == [0, 1]


def test_shipped_files_are_what_is_written_every_time(tmp_path, splits):
    written = service_data.write(tmp_path)
    assert [path.name for path in written] == ["train.json", "dev.json", "test.json"]
    for path in written:
        made, shipped = (hashlib.sha256(file.read_bytes()).hexdigest() for file in (path, paths.data("service", path.name)))
        assert made == shipped, path.name
    found, problems = read_splits({path.stem: path for path in written})
    assert problems == [] and found == splits
    first = json.loads(written[0].read_text(encoding="utf-8"))[0]
    assert list(first) == ["instruction", "input", "output", "scene"] and first["instruction"].startswith("用户问：") and first["input"] == ""
    assert service_data.split(service_data.entries(), seed=1) != splits


def test_broken_yaml_is_named(tmp_path):
    for scene in service.SCENES:
        (tmp_path / f"service_{scene}.yaml").write_bytes((service_data.TEXT / f"service_{scene}.yaml").read_bytes())
    shop = tmp_path / "service_shop.yaml"
    text = shop.read_text(encoding="utf-8")
    for old, new, reason in [("[怎么取消订单？,", "[我的订单怎么查？,", "order_cancel: '我的订单怎么查' stands in .*order_where"),
                             ("- id: order_cancel", "- id: order_where", "'order_where' stands in"),
                             ("[怎么取消订单？,", "[12345,", "order_cancel: a text is empty"),
                             ("scene: shop", "scene: bank", "needed are scene: shop"),
                             ("- id: order_cancel", "- name: x", "questions 1: needed are the keys"),
                             ("[怎么取消订单？,", "[[怎么取消订单？,", "no valid YAML")]:
        assert old in text
        shop.write_text(text.replace(old, new, 1), encoding="utf-8")
        with pytest.raises(ValueError, match=reason):
            service_data.entries(tmp_path)
    for old, new in [("您好！查看订单的步骤如下", "步骤"), ("[怎么取消订单？,", "["), ("手滑点了购买，想反悔怎么弄", "刚下的单我想取消掉哦")]:
        text = text.replace(old, new, 1)
    shop.write_text(text, encoding="utf-8")
    found = [problem.reason.partition(":")[0] for problem in service_data.audit(tmp_path)]
    assert found == ["no greeting", "only 4 phrasings for train", "leak"]


def test_adding_a_question(tmp_path, splits):
    found = service_data.with_question(splits["train"], "能送礼品卡吗？", "您好！\n- 可以\n谢谢。", ["礼品卡怎么买", "有没有礼品卡"], "shop")
    assert found[:-3] == splits["train"] and [d.row for d in found] == list(range(len(found)))
    assert found[-1] == Dialogue(len(found) - 1, "有没有礼品卡", "您好！\n- 可以\n谢谢。", (), "shop")
    assert read(service.write(tmp_path / "train.json", found)[0]) == (found, [])
    for question, answer, phrasings, scene, reason in [
            ("如何退货", "甲", [], "shop", "'如何退货' is row [0-9]+ already"), ("新的？", "。", [], "shop", "is empty"),
            ("新的？", "甲", ["新的"], "shop", "is row 855 already"), ("新的？", "甲", ["？"], "shop", "an empty phrasing"),
            ("新的？", "甲", [], "bank", "choose shop, support, finance")]:
        with pytest.raises(ValueError, match=reason):
            service_data.with_question(splits["train"], question, answer, phrasings, scene)
