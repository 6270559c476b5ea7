"""Result files, tables, kinds of answer tokens, and the knowledge graph: what it holds, where it is drawn, what other tools read."""

import csv
import json

import networkx
import pytest

from glmlab import chat, reports, triplet_reports, triplet_scores
from glmlab.tasks.triplets import Relation, Sentence, Triple


def triple(text):
    return Triple(*text.split("|"))


ROWS = [
    Sentence(3, "张思源是云帆（苏州）科技的总经理，毕业于青石大学。", (triple("张思源|担任|总经理"), triple("张思源|毕业于|青石大学"))),
    Sentence(4, "竹山大学位于杭州，校长是李雷。", (triple("竹山大学|位于|杭州"), triple("李雷|担任|校长"))),
    Sentence(5, "今天下雨。", ()),
    Sentence(9, "王五创立了春山公司。", (triple("王五|创立|春山公司"),)),
]
SAID = [[triple("张思源|任职|总经理"), triple("张思源|毕业于|青石")], [triple("竹山大学|位于|杭州")], [triple("雨|位于|今天")], None]
ANSWERS = ["(张思源, 任职, 总经理)\n(张思源, 毕业于, 青石)", "(竹山大学, 位于, 杭州)", "(雨, 位于, 今天)", "不知道"]


# --- one system --------------------------------------------------------------------------------------------------

def test_the_result_files(tmp_path):
    lines = []
    scores = triplet_reports.write_result_files(tmp_path / "out", ROWS, SAID, ANSWERS, 2.0, {"run": "x"}, resamples=100, log=lines.append)
    assert [line.split("/")[-1] for line in lines] == ["failures.json", "results.json"]  # the last one counts
    kept = json.loads((tmp_path / "out/results.json").read_text(encoding="utf-8"))
    assert kept["index"] == [3, 4, 5, 9] and kept["answers"] == ANSWERS and kept["about"] == {"run": "x"}
    assert kept["predictions"][3] is None and kept["predictions"][1] == kept["ground_truth"][1][:1] == [["竹山大学", "位于", "杭州"]]
    assert (kept["right"], kept["predicted"], kept["triples"]) == (1, 4, 5) and kept["f1"] == scores["f1"] == pytest.approx(2 / 9)
    assert (kept["evaluation_time"], kept["avg_time_per_sample"], kept["unparsable"]) == (2.0, 0.5, 0.25)
    failures = json.loads((tmp_path / "out/failures.json").read_text(encoding="utf-8"))
    assert failures == triplet_scores.failures(ROWS, SAID)
    assert [sorted(error["kind"] for error in row["errors"]) for row in failures] == [
        ["boundary", "wrong relation"], ["missed"], ["invented"], ["missed", "unparsable"]]


def test_the_tables():
    scores = triplet_scores.score([row.triples for row in ROWS], SAID, [row.text for row in ROWS], resamples=100)
    text = triplet_reports.scores_table(scores)
    assert "micro-F1" in text and "0.222" in text and "right 无, of 1 rows without triples  0.000" in text
    by_relation = {line.split()[0]: line.split()[1:] for line in triplet_reports.relations_table(scores).splitlines()[2:]}
    assert by_relation["位于"] == ["1", "2", "0.500", "1.000", "0.667"] and by_relation["总部在"] == ["0", "0", "-", "-", "-"]
    failures = triplet_scores.failures(ROWS, SAID)
    counted = {line[:15].strip(): line[15:].split()[:2] for line in triplet_reports.kinds_table({"one": failures, "none": []}).splitlines()[2:7]}
    assert counted == {"unparsable": ["1", "0"], "wrong relation": ["1", "0"], "boundary": ["1", "0"], "missed": ["2", "0"], "invented": ["1", "0"]}
    assert set(counted) == set(triplet_reports.KINDS)


def test_failures_to_read():
    failures = triplet_scores.failures(ROWS, SAID)
    assert triplet_reports.failures_text(failures, "wrong relation") == (
        "row 3: 张思源是云帆（苏州）科技的总经理，毕业于青石大学。\n    wrong relation: truth (张思源, 担任, 总经理), predicted (张思源, 任职, 总经理)")
    assert triplet_reports.failures_text(failures, "missed", count=1).count("row") == 1
    assert "truth -, predicted (雨, 位于, 今天)" in triplet_reports.failures_text(failures, "invented")
    assert triplet_reports.failures_text([], "missed") == "no missed errors"


def test_a_row_of_a_comparison(tmp_path):
    row = triplet_reports.comparison_row("w 5", ROWS, SAID, 5, resamples=100)
    assert (row["name"], row["step"], row["rows"], row["unparsable"], row["empty_right"]) == ("w 5", 5, 4, 0.25, 0)
    assert row["f1"] == pytest.approx(2 / 9) and set(triplet_scores.SCORES) < set(row) and len(row["f1_interval"]) == 2
    reports.write_comparison(tmp_path, {}, [row], scores=triplet_scores.SCORES)
    found = reports.read_comparison(tmp_path)
    assert "0.222" in reports.text_table(found["systems"], found["scores"]) and reports.choose_best(found["systems"], "f1") == 5


# --- kinds of answer tokens --------------------------------------------------------------------------------------

@pytest.mark.parametrize("generation", ["chatglm", "chatglm2", "chatglm3", "glm4"])
def test_the_kind_of_every_answer_token(family, generation):
    tokenizer = family[generation]
    triples = [triple("张思源|工作于|云帆（苏州）科技"), triple("A, Inc.|位于|上海")]
    ids = chat.answer_ids(tokenizer, "(张思源, 工作于, 云帆（苏州）科技)\n(A, Inc., 位于, 上海)")
    kinds = triplet_reports.answer_parts(tokenizer, triples)
    assert len(kinds) == len(ids) and set(kinds) == set(triplet_reports.PARTS)
    said = {kind: tokenizer.decode([number for number, own in zip(ids, kinds) if own == kind]).replace(" ", "") for kind in triplet_reports.PARTS}
    assert said["relation"] == "工作于位于"
    names = [tokenizer.decode([number for number, own in zip(ids, kinds) if own.startswith("name")]).replace(" ", "")]
    assert names[0].replace("（", "(").replace("）", ")") == "张思源云帆(苏州)科技A,Inc.上海"
    begun = "".join(tokenizer.decode([number]).strip()[:1] for number, own in zip(ids, kinds) if own == "name begins")
    assert begun == "张云A上" or "\ufffd" in begun  # the first token of each name, which may be a part of a character
    assert kinds.count("name begins") == 4
    assert set(said["form"].replace(tokenizer.decode(ids[-1:]), "")) <= set("(),\n")
    assert set(triplet_reports.answer_parts(tokenizer, [])) == {"form"}


# --- the knowledge graph -----------------------------------------------------------------------------------------

FACTS = [triple("张思源|工作于|云帆（苏州）科技"), triple("张思源|创立|云帆(苏州)科技"), triple("云帆（苏州）科技|总部在|苏州"), triple("云帆（苏州）科技|位于|苏州"),
         triple("李雷|毕业于|竹山大学"), triple("竹山大学|位于|杭州"), triple("李雷|毕业于|竹山大学"), triple("春山|认识|秋水")]


def test_a_name_is_a_node_and_a_triple_an_arrow():
    graph = triplet_reports.knowledge_graph(FACTS)
    assert list(graph) == ["张思源", "云帆（苏州）科技", "苏州", "李雷", "竹山大学", "杭州", "春山", "秋水"]  # full and half width: one name
    assert sorted(relation for _, _, relation in graph.edges(["张思源"], data="relation")) == ["创立", "工作于"]
    assert dict(graph.nodes(data="kind")) == {"张思源": "人", "云帆（苏州）科技": "单位", "苏州": "地点", "李雷": "人", "竹山大学": "学校", "杭州": "地点",
                                              "春山": "名称", "秋水": "名称"}
    assert [edge["times"] for _, _, edge in graph.edges(["李雷"], data=True)] == [2] and graph.number_of_edges() == 7
    other = triplet_reports.knowledge_graph([triple("春山|认识|秋水")], {"认识": Relation("", "人", "人")})
    assert set(dict(other.nodes(data="kind")).values()) == {"人"}


def test_a_kind_is_told_as_exactly_as_any_triple_tells_it():
    first, second = (dict(triplet_reports.knowledge_graph(facts).nodes(data="kind"))["竹山大学"] for facts in (FACTS[4:6], FACTS[5:3:-1]))
    assert first == second == "学校"
    assert dict(triplet_reports.knowledge_graph([FACTS[5]]).nodes(data="kind"))["竹山大学"] == "单位、学校或设施"


def test_heads_stand_left_of_their_tails_and_no_name_on_another():
    graph = triplet_reports.knowledge_graph(FACTS)
    places, (width, height) = triplet_reports._places(graph)
    assert all(places[head][0] + triplet_reports.COLUMN <= places[tail][0] + 1e-9 for head, tail in graph.edges())
    for one in graph:
        assert 0 < places[one][0] < width and 0 < places[one][1] < height
        for other in graph:
            apart = abs(places[one][0] - places[other][0]), abs(places[one][1] - places[other][1])
            assert one == other or apart[0] > 2 or apart[1] >= triplet_reports.ROW - 1e-9, (one, other)
    circle = triplet_reports.knowledge_graph([triple("甲|位于|乙"), triple("乙|位于|丙"), triple("丙|位于|甲"), triple("丁|位于|丁")])
    assert len(set(triplet_reports._places(circle)[0].values())) == 4


def test_a_narrow_picture():
    chain = triplet_reports.knowledge_graph([triple("张三|工作于|春山科技"), triple("春山科技|总部在|苏州"), triple("李四|毕业于|竹山大学")])
    places, (width, _) = triplet_reports._places(chain, 5.0)
    assert width <= 5 and triplet_reports._places(chain)[1][0] > 9  # side by side where there is room, else one below the other
    assert all(places[head][0] + 1.3 <= places[tail][0] for head, tail in chain.edges())
    figure = triplet_reports.graph_figure(chain, width=5.0)
    assert figure.get_figwidth() == 5 and triplet_reports.graph_figure(chain).get_figwidth() > 9
    long = triplet_reports.knowledge_graph([triple("张三|工作于|春山智能机器人科技公司"), triple("春山智能机器人科技公司|总部在|苏州")])
    assert 5 < triplet_reports._places(long, 5.0)[1][0] < triplet_reports._places(long)[1][0]  # its names need the room


def test_the_picture(tmp_path):
    figure = triplet_reports.graph_figure(triplet_reports.knowledge_graph(FACTS), tmp_path / "graph.png", "事实")
    written = [text.get_text() for text in figure.axes[0].texts]
    assert {"张思源", "云帆（苏州）科技", "工作于、创立", "总部在、位于", "认识"} <= set(written) and len(written) == 8 + 5
    assert (tmp_path / "graph.png").stat().st_size > 20_000 and figure.axes[0].get_title() == "事实"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["人", "单位", "地点", "学校", "名称"]
    with pytest.raises(ValueError, match="no triples to draw"):
        triplet_reports.graph_figure(triplet_reports.knowledge_graph([]))


def test_graphml_comes_back_as_the_same_graph(tmp_path):
    graph = triplet_reports.knowledge_graph(FACTS)
    path = triplet_reports.write_graphml(graph, tmp_path / "graph.graphml")
    again = networkx.read_graphml(path, force_multigraph=True)
    assert dict(again.nodes(data=True)) == dict(graph.nodes(data=True))
    assert sorted(again.edges(keys=True, data="relation")) == sorted(graph.edges(keys=True, data="relation"))
    assert len({key for _, _, key in again.edges(keys=True)}) == graph.number_of_edges()  # ids of edges: Gephi drops those that repeat


def test_graphml_of_a_text_with_control_characters_can_be_read(tmp_path):
    graph = triplet_reports.knowledge_graph([Triple("甲\x01", "创\x0b立", "乙&<>\"🎉\ud800"), Triple("甲", "创立", "丙")])
    again = networkx.read_graphml(triplet_reports.write_graphml(graph, tmp_path / "graph.graphml"), force_multigraph=True)
    assert set(again) == {"甲\ufffd", "乙&<>\"🎉\ufffd", "甲", "丙"}
    assert [edge["relation"] for *_, edge in again.edges(data=True)] == ["创\ufffd立", "创立"]
    assert "甲\x01" in graph  # the graph itself stays as it is


def test_the_table_of_edges(tmp_path):
    path = triplet_reports.write_csv(triplet_reports.knowledge_graph([*FACTS, triple("A, \"B\"|位于|苏州")]), tmp_path / "graph.csv")
    with path.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert found[0] == {"Source": "张思源", "Target": "云帆（苏州）科技", "Label": "工作于", "Type": "Directed", "Weight": "1", "SourceKind": "人", "TargetKind": "单位"}
    assert found[-1]["Source"] == 'A, "B"' and [row["Weight"] for row in found if row["Source"] == "李雷"] == ["2"] and len(found) == 8
