"""The triplet task: prompt and answer, the parser by round trip and on messy answers, every file format with its bad rows, shortening."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmlab import triplet_scores
from glmlab.tasks import triplets
from glmlab.tasks.triplets import INSTRUCTION, RELATIONS, Problem, Relation, Sentence, Triple, normal, parse

TEXT = "马云是阿里巴巴的创始人，阿里巴巴总部位于杭州。"
TRIPLES = (Triple("马云", "创立", "阿里巴巴"), Triple("阿里巴巴", "总部在", "杭州"))
ANSWER = "(马云, 创立, 阿里巴巴)\n(阿里巴巴, 总部在, 杭州)"


def triple(text):
    return Triple(*text.split("|"))


# --- prompt and answer -------------------------------------------------------------------------------------------

def test_the_prompt_is_the_documents():
    assert triplets.messages(TEXT, TRIPLES) == [
        {"role": "user", "content": "请从以下文本中抽取所有的三元组，格式为(主体, 关系, 客体)：\n" + TEXT},
        {"role": "assistant", "content": ANSWER}]
    assert len(triplets.messages(TEXT)) == 1 and triplets.messages(TEXT, [])[1]["content"] == "无"
    with pytest.raises(ValueError, match="form 'template': choose instruction or relations"):
        triplets.messages(TEXT, form="template")


def test_the_longer_prompt_says_what_each_relation_means():
    more = {**RELATIONS, "获得": Relation("人或单位得了什么奖", "人或单位", "奖项")}
    content = triplets.messages(TEXT, form="relations", relations=more)[0]["content"]
    assert content.startswith(INSTRUCTION) and content.endswith("\n" + TEXT)
    assert all(f"\n{name}：{relation.description}\n" in content for name, relation in more.items())
    assert list(RELATIONS) == "工作于 担任 位于 毕业于 创立 总部在 任职".split()


def test_an_answer_that_could_not_be_read_again_is_refused():
    for bad in ("|创立|甲", "甲\n乙|创立|丙", "甲|创立|丙\u2028"):
        with pytest.raises(ValueError, match="cannot be written as one line"):
            triplets.answer([triple(bad)])


def test_triples_are_put_in_order_of_mention():
    text = "腾讯首席技术官张三毕业于清华大学，深圳是腾讯的总部所在地。"
    wanted = [triple("张三|工作于|腾讯"), triple("张三|担任|首席技术官"), triple("张三|毕业于|清华大学"), triple("腾讯|总部在|深圳")]
    assert triplets.in_order(text, [*wanted[::-1], wanted[0]]) == wanted


# --- the parser --------------------------------------------------------------------------------------------------

FULL = str.maketrans("(),", "（），")
_plain = st.text("云帆星河恒鼎张三李研发A1b ,，、", min_size=1, max_size=6)
_words = st.text("云帆星河 ,，、", min_size=1, max_size=5)  # no digit: "(1)" at the beginning of a line is its number
_closed = st.recursive(_plain, lambda inner: st.one_of(
    st.builds(lambda a, pair, b, c: a + pair[0] + b + pair[1] + c, inner, st.sampled_from(["()", "（）", "《》"]), inner, st.just("")),
    st.builds("{}{}".format, inner, inner)), max_leaves=4)
#: A name with commas and matching brackets, also at its ends.
names = st.one_of(_closed, *(_closed.map(form.format) for form in ("（{}）", "“{}”", "'{}'", '"{}"'))).map(lambda name: " ".join(name.split())).filter(triplets.normalise)
triple_lists = st.lists(st.builds(Triple, names, st.sampled_from(list(RELATIONS)), names), min_size=1, max_size=5)


@settings(max_examples=400, deadline=None)
@given(triple_lists, st.sampled_from(["", "1. ", "(2) ", "- ", "③", "• ", "3）"]), st.sampled_from(["", "。", "；", ", "]), st.booleans(),
       st.booleans())
def test_every_answer_is_read_back(found, lead, end, full_width, one_line):
    lines = triplets.answer(found).translate(FULL if full_width else {}).splitlines()
    written = "，".join(lines) if one_line else "\n".join(lead + line + end for line in lines)
    assert parse(written) == list(dict.fromkeys(map(normal, found)))


@settings(max_examples=200, deadline=None)
@given(triple_lists)
def test_words_around_the_triples_do_no_harm(found):
    lines = triplets.answer(found).splitlines()
    text = "好的，抽取结果如下：\n" + "\n".join(f"三元组：{line}，见原文。" for line in lines) + "\n以上就是全部内容（共一段）。"
    assert parse(text) == list(dict.fromkeys(map(normal, found)))


@settings(max_examples=200, deadline=None)
@given(_words, st.sampled_from("()（）"), _words, names, st.booleans())
def test_a_lone_bracket_in_a_name_is_read_back(a, bracket, b, other, first):
    own, other = " ".join((a + bracket + b).split()), " ".join(other.split())
    found = Triple(own, "创立", other) if first else Triple(other, "位于", own)
    assert parse(triplets.answer([found])) == [normal(found)]


@pytest.mark.parametrize("text, wanted", [
    ("(张三, 担任, 副总裁（研发, 市场）)", ["张三|担任|副总裁(研发,市场)"]),
    ("（张三，任职，副总裁（研发，市场））。", ["张三|任职|副总裁(研发,市场)"]),
    ("(Northwind, Inc., 总部在, 杭州)", ["Northwind,Inc.|总部在|杭州"]),
    ("张三，创立，云帆（苏州）科技", ["张三|创立|云帆(苏州)科技"]),
    ("张三，创立，云帆；云帆，总部在，杭州。", ["张三|创立|云帆", "云帆|总部在|杭州"]),
    ("(张三, 创立, 云帆), (云帆, 总部在, 杭州)", ["张三|创立|云帆", "云帆|总部在|杭州"]),
    ("(张三, 创立, 云帆)(张三, 创立, 云帆)", ["张三|创立|云帆"]),
    ("1、(张三、创立、云帆)", ["张三|创立|云帆"]),
    ("⑴（张三；创立；云帆）", ["张三|创立|云帆"]),
    ('["张三", "创立", "云帆"]', ["张三|创立|云帆"]),
    ("【张三，创立，云帆】", ["张三|创立|云帆"]),
    ("本句说明(张三, 创立, 云帆(苏州)公司)这一点（见上文）。", ["张三|创立|云帆(苏州)公司"]),
    ("(张三, 创立, 云帆)\n(云帆, 总部在, 杭", ["张三|创立|云帆", "云帆|总部在|杭"]),
    ("张三, 创立, 云帆)", ["张三|创立|云帆"]),
    ("(张三, 收购, 云帆)", ["张三|收购|云帆"]),
    ("(张三, 创立, )\n(李四, 创立, 云帆)", ["李四|创立|云帆"]),
])
def test_messy_answers(text, wanted):
    assert parse(text) == [triple(line) for line in wanted]


@pytest.mark.parametrize("text", ["无", "无。", " （无）", "没有三元组", "文中没有任何三元组。", "文本中没有可抽取的三元组", "", " \n", "[]", "答案：无", "None"])
def test_an_empty_answer_is_no_triple(text):
    assert parse(text) == []


@pytest.mark.parametrize("text", ["马云创立了阿里巴巴。", "(马云, 阿里巴巴)", "三元组", "(马云, 创立", "无法回答这个问题", "(注：以上, 仅供)"])
def test_what_holds_no_triple_is_unparsable(text):
    assert parse(text) is None


def test_a_new_relation_needs_only_its_entry():
    text = "(张三, 获得, 银杏奖(一等, 青年组))"
    assert parse(text, {**RELATIONS, "获得": Relation("")}) == [Triple("张三", "获得", "银杏奖(一等,青年组)")]
    assert parse(text) is None  # an unknown relation is taken only where the commas leave no doubt


@pytest.mark.parametrize("name", ["“星光”", "‘星光’", '"星光"', "「星光」", "“星光”与“月亮”", '"', '"“星”"'])
def test_quotation_marks_around_a_name_are_no_difference(name):
    """Truth and answer pass through `normal`: what a model writes as it stands in the text is right."""
    found = Triple(name, "创立", "甲公司")
    assert parse(triplets.answer([found])) == [normal(found)] and normal(normal(found)) == normal(found)
    assert triplet_scores.score([[found]], [parse(triplets.answer([found]))], [f"{name}创立了甲公司"], resamples=20)["f1"] == 1
    assert normal(found).head == {"“星光”": "星光", "‘星光’": "星光", '"星光"': "星光", '"“星”"': '""星""', "“星光”与“月亮”": '"星光"与"月亮"'}.get(name, name)


def test_a_missing_file_names_the_parameters_of_the_notebooks(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"\(train_file, dev_file, test_file\)"):
        triplets.read(tmp_path / "nowhere.jsonl")


def test_normalise_and_back():
    assert triplets.normalise(" 云帆（苏州）　科技 ，Ｉｎｃ． Blue  Hill “甲” ") == '云帆(苏州)科技,Inc.Blue Hill"甲"'
    text = "张三（男）是云帆（苏州）科技、 Blue Hill, Inc.的总监。"
    found = parse("(张三(男), 工作于, 云帆(苏州)科技)\n(张三(男), 工作于, BlueHill,Inc.)\n(张三(男), 担任, 主管)")
    assert triplets.restore(text, found) == [Triple("张三（男）", "工作于", "云帆（苏州）科技"), Triple("张三（男）", "工作于", "Blue Hill, Inc."),
                                             Triple("张三（男）", "担任", "主管")]
    assert triplets.in_text("云帆(苏州)科技", text) and not triplets.in_text("云帆（杭州）", text)


# --- shortening --------------------------------------------------------------------------------------------------

def test_a_long_text_loses_sentences_from_its_middle():
    text = "".join(f"第{number}句话有些字。" for number in range(1, 8))
    assert triplets.shorten(text, lambda part: True) == (text, 0)
    assert triplets.shorten(text, lambda part: len(part) <= 24) == ("第1句话有些字。第2句话有些字。第7句话有些字。", 4)
    assert triplets.shorten(text, lambda part: len(part) <= 16) == ("第1句话有些字。第7句话有些字。", 5)
    short, cut = triplets.shorten(text, lambda part: len(part) <= 9)
    assert (len(short), cut) == (9, 6) and short[0] == "第" and short[-1] == "。"
    assert triplets.shorten("一句没有标点的话", lambda part: len(part) <= 4) == ("一句的话", 1)
    assert triplets.shorten(text, lambda part: False)[0] == "第。"


# --- files -------------------------------------------------------------------------------------------------------

def lines(path, *records):
    written = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("".join(line + "\n" for line in written), encoding="utf-8")
    return path


def ours(text, output, **more):
    return {"instruction": INSTRUCTION, "input": text, "output": output} | more


PAIR = {"subject": "马云", "object": "阿里巴巴"}
IEPILE = {"instruction": json.dumps({"instruction": "抽取关系", "schema": ["创立"], "input": TEXT}, ensure_ascii=False),
          "output": json.dumps({"创立": [PAIR]}, ensure_ascii=False)}


@pytest.mark.parametrize("record", [
    ours(TEXT, ANSWER), {"instruction": INSTRUCTION + "\n" + TEXT, "input": "", "output": ANSWER}, {"text": TEXT, "output": ANSWER},
    {"text": TEXT, "spo_list": [{"subject": t.head, "predicate": t.relation, "object": t.tail} for t in TRIPLES]},
    {"text": TEXT, "spo_list": [{"subject": t.head, "predicate": t.relation, "object": {"@value": t.tail}} for t in TRIPLES[::-1]]},
    {"input": TEXT, "output": {"总部在": [{"head": "阿里巴巴", "tail": "杭州"}], "创立": [PAIR], "位于": []}},
    {"messages": triplets.messages(TEXT, TRIPLES)}, {"messages": triplets.messages(TEXT, TRIPLES, form="relations")},
    {"messages": [{"role": "user", "content": "抽取三元组:\n" + TEXT}, {"role": "assistant", "content": ANSWER}]},
    {"messages": [{"role": "system", "content": "抽取三元组"}, {"role": "user", "content": TEXT}, {"role": "assistant", "content": ANSWER}]},
])
def test_every_format_gives_the_same_sentence(tmp_path, record):
    assert triplets.read(lines(tmp_path / "a.jsonl", record)) == ([Sentence(0, TEXT, TRIPLES)], [])
    (tmp_path / "b.json").write_text("\ufeff" + json.dumps([record]), encoding="utf-8")
    assert triplets.read(tmp_path / "b.json")[0] == [Sentence(0, TEXT, TRIPLES)]


def test_unlabelled_and_empty_rows(tmp_path):
    file = lines(tmp_path / "a.jsonl", {"input": TEXT}, ours("今天下雨。", ""), ours("今天刮风。", "无"), {"text": "今天天晴。", "spo_list": []})
    found, problems = triplets.read(file)
    assert [row.triples for row in found] == [None, (), (), ()] and problems == []


def test_parts_of_one_text_are_joined(tmp_path):
    other = {"instruction": IEPILE["instruction"].replace("创立", "总部在"),
             "output": json.dumps({"总部在": [{"subject": "阿里巴巴", "object": "杭州"}]})}
    found, problems = triplets.read(lines(tmp_path / "a.jsonl", ours("今天下雨。", "无"), IEPILE, other))
    assert found[1] == Sentence(1, TEXT, TRIPLES)
    assert [(p.row, p.action) for p in problems] == [(2, "left out")] and "its triples were added to row 1" in problems[0].reason


BAD = [
    ("{broken", "not JSON: Expecting property name enclosed in double quotes, column 2"),
    (["a list"], "no object: ['a list']"),
    ({"text": 3}, "no input or text: a text is needed, found 3"),
    ({"instruction": "抽取三元组", "input": "", "output": "无"}, "no text: the user turn must be an instruction"),
    ({"input": " ", "output": "无"}, "empty text"),
    (ours("甲乙丙。", "甲创立了乙"), "unreadable output: '甲创立了乙' holds no (主体, 关系, 客体)"),
    ({"text": "甲。", "spo_list": {"subject": "甲"}}, "no triples: spo_list must be a list"),
    ({"text": "甲。", "spo_list": [{"subject": "甲", "predicate": "创立"}]}, "no object: a text is needed, found None"),
    ({"text": "甲。", "spo_list": [{"subject": " ", "predicate": "创立", "object": "乙"}]}, "empty name: ('', '创立', '乙')"),
    ({**IEPILE, "output": "无"}, "no triples: output must be JSON"),
    ({"input": "甲。", "output": {"创立": "乙"}}, "no triples: output must be JSON"),
    ({"messages": "甲"}, "no messages: needed is"),
    ({"messages": triplets.messages("甲。") * 2}, "not one text: 2 user turns and 0 answers"),
    ({"messages": [{"role": "user", "content": "甲创立了乙。"}]}, "no text: the user turn must be an instruction"),
    (ours(TEXT, ANSWER), "duplicate: the same text as row 0"),
    (ours(TEXT, "无"), "duplicate that disagrees: the same text as row 0"),
]


def test_every_unreadable_row_is_reported_with_its_place_and_reason(tmp_path):
    found, problems = triplets.read(lines(tmp_path / "bad.jsonl", ours(TEXT, ANSWER), *(record for record, _ in BAD)))
    assert found == [Sentence(0, TEXT, TRIPLES)]
    assert len(problems) == len(BAD)
    for number, (problem, (_, reason)) in enumerate(zip(problems, BAD), 1):
        assert problem == Problem(str(tmp_path / "bad.jsonl"), number, problem.reason, "left out")
        assert problem.reason.startswith(reason) and problem.reason.endswith(f" line {number + 1}"), problem


@pytest.mark.parametrize("record, note", [
    (ours(TEXT, "(马云, 收购, 阿里巴巴)"), "unknown relation: 收购"),
    (ours(TEXT, "(马化腾, 创立, 阿里巴巴)"), "span not in the text: 马化腾"),
    (ours(TEXT, ANSWER + "\n" + ANSWER), "duplicate triples: 2 of 4 were left out"),
    ({"text": TEXT, "spo_list": [{"subject": "马云", "predicate": "创立", "object": "阿里巴巴"}] * 2}, "duplicate triples: 1 of 2 were left out"),
    (ours(TEXT, "结果：" + ANSWER), "output in another form: '结果：(马云, 创立, 阿里巴巴)"),
    (ours(TEXT, "没有三元组"), "output in another form: '没有三元组' was read as '无'"),
    ({"text": TEXT, "spo_list": [{"subject": "马云", "predicate": "创立", "object": {"@value": "阿里巴巴", "inDate": "1999"}}]},
     "parts of an object left out: inDate"),
])
def test_odd_rows_are_kept_and_noted(tmp_path, record, note):
    found, problems = triplets.read(lines(tmp_path / "a.jsonl", record))
    assert len(found) == 1 and [p.action for p in problems] == ["kept"] and problems[0].reason.startswith(note)


def test_full_width_names_come_back_as_the_text_has_them(tmp_path):
    text = "李四在云帆（苏州）科技担任副总裁（研发）。"
    found, problems = triplets.read(lines(tmp_path / "a.jsonl", ours(text, "（李四，工作于，云帆（苏州）科技）\n（李四，担任，副总裁（研发））")))
    assert found[0].triples == (Triple("李四", "工作于", "云帆（苏州）科技"), Triple("李四", "担任", "副总裁（研发）")) and problems == []


def test_whole_files_that_cannot_be_used(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing files: none\.jsonl .*python -m glmlab sentences"):
        triplets.read(tmp_path / "none.jsonl")
    (tmp_path / "a.csv").write_text("text,triples\n甲,乙\n", encoding="utf-8")
    with pytest.raises(ValueError, match="a.csv holds no JSON: needed are JSON lines or an array"):
        triplets.read(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="not one of its 1 rows can be used"):
        triplets.read(lines(tmp_path / "b.jsonl", {"x": 1}))


def test_a_text_in_two_splits_stays_in_the_later_one(tmp_path):
    files = {"train": lines(tmp_path / "train.jsonl", ours("甲来了。", "无"), ours(TEXT, ANSWER)),
             "test": lines(tmp_path / "test.jsonl", ours(TEXT.replace("，", ","), ANSWER))}
    found, problems = triplets.read_splits(files)
    assert {split: len(rows) for split, rows in found.items()} == {"train": 1, "test": 1}
    assert len(problems) == 1 and problems[0].row == 1 and problems[0].reason.startswith("stands in two splits: in test too")


def test_relations_of_a_users_own_set(tmp_path):
    file = lines(tmp_path / "a.jsonl", {"text": "甲娶了乙。", "spo_list": [{"subject": "甲", "predicate": "配偶", "object": "乙"}]})
    found, _ = triplets.read(file)
    relations = triplets.relations_of(found)
    assert list(relations) == [*RELATIONS, "配偶"] and relations["担任"] is RELATIONS["担任"]
    assert triplets.read(file, relations)[1] == []
    again = triplets.of_run(relations)
    assert again == relations and triplets.of_run(()) == RELATIONS and triplets.named(["配偶", "配偶"]) == {"配偶": Relation("配偶")}
    assert "配偶：配偶" in triplets.task_of(again).messages(found[0], "甲。", False, "relations")[0]["content"]


def test_only_rows_with_triples_given_are_learnt(tmp_path):
    rows = [Sentence(0, "甲。", ()), Sentence(1, "乙。", None), Sentence(2, TEXT, TRIPLES)]
    assert triplets.labelled(rows) == [rows[0], rows[2]] and triplets.labelled([]) == []
    with pytest.raises(ValueError, match="none of the 1 sentences has its triples given"):
        triplets.labelled(rows[1:2])


def test_write_and_convert(tmp_path):
    rows = [Sentence(0, TEXT, TRIPLES), Sentence(1, "今天下雨。", ()), Sentence(2, "今天刮风。", None)]
    path, backup = triplets.write(tmp_path / "out.jsonl", rows)
    assert backup is None and triplets.read(path) == (rows, [])
    first = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert first == {"instruction": INSTRUCTION, "input": TEXT, "output": ANSWER}
    source = lines(tmp_path / "duie.jsonl", {"text": TEXT, "spo_list": []}, "{")
    path, backup, problems = triplets.convert(source, tmp_path / "out.jsonl")
    assert backup == tmp_path / "out.jsonl.bak" and len(problems) == 1
    assert triplets.read(path) == ([Sentence(0, TEXT, ())], [])


def test_the_task_builds_the_prompt_from_a_row():
    row = Sentence(0, TEXT, TRIPLES)
    task = triplets.TASK
    assert task.text(row) == TEXT and task.messages(row, TEXT, True, "relations") == triplets.messages(TEXT, TRIPLES, "relations")
    assert task.messages(row, "短。", False, "instruction") == triplets.messages("短。") and task.shorten is triplets.shorten
