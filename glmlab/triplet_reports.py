"""What project 2 leaves behind: result files of an evaluation, tables, the knowledge graph (知识图谱) of a document as picture and file."""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from glmlab import paths, triplet_scores
from glmlab.reports import table, wrap
from glmlab.tasks.triplets import NONE, RELATIONS, Relation, Sentence, Triple, answer, normalise
from glmlab.triplet_scores import SCORES

#: Kinds of errors in the order of `triplet_scores.failures`, with what each means.
KINDS = {"unparsable": "nothing could be read in the answer", "wrong relation": "head and tail right, relation wrong",
         "boundary": "relation right, a name too long or too short", "missed": "in the sentence, not in the answer",
         "invented": "in the answer only"}
#: Inches from a column of a graph's picture to the next, and from row to row.
COLUMN, ROW = 2.7, 0.42
#: Control characters and the like, which no XML file may hold.
_NO_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


# --- one system --------------------------------------------------------------------------------------------------

def write_result_files(folder, rows: list[Sentence], predicted: list[list[Triple] | None], answers: list[str], seconds: float,
                       about: dict | None = None, relations: Mapping[str, Relation] = RELATIONS, resamples: int = 2000, seed: int = 7,
                       log: Callable[[str], None] = print) -> dict:
    """Write failures.json (`triplet_scores.failures`) and, last, results.json: scores, and row by row index, truth, prediction, answer.

    predicted: triples read from the answers, None for one that could not be read. seconds: of all rows. about: what was evaluated.
    Each file is whole or not there. Returns `triplet_scores.score`. Errors: as there, and OSError with the remedy.
    """
    truth, folder = [row.triples for row in rows], Path(folder)
    scores = triplet_scores.score(truth, predicted, [row.text for row in rows], relations, resamples, seed)
    files = {
        "failures.json": triplet_scores.failures(rows, predicted),
        "results.json": {**scores, "about": about or {}, "evaluation_time": seconds, "avg_time_per_sample": seconds / len(rows),
                         "index": [row.row for row in rows], "ground_truth": truth, "predictions": predicted, "answers": answers}}
    for name, content in files.items():
        log(f"wrote {paths.shown(paths.write_json(folder / name, content))}")
    return scores


def scores_table(scores: dict) -> str:
    """The scores of `triplet_scores.score` with their intervals, one a line, and what has no interval below."""
    cells = [[title, f"{scores[name]:.3f}", "{:.3f} .. {:.3f}".format(*scores["intervals"][name])] for name, title in SCORES.items()]
    shares = {"unreadable answers": scores["unparsable"], "names that stand in the sentence": scores["spans_in_text"],
              f"right 无, of {scores['empty_rows']} rows without triples": scores["empty_right"]}
    cells += [[title, "-" if share is None else f"{share:.3f}", ""] for title, share in shares.items()]
    return table(["score", "value", "95 % interval"], cells)


def relations_table(scores: dict) -> str:
    """Precision, recall and F1 of every relation."""
    return table(["relation", "triples", "predicted", "precision", "recall", "F1"],
                 [[entry["relation"], entry["support"], entry["predicted"],
                   *(f"{entry[name]:.3f}" if entry["support"] else "-" for name in ("precision", "recall", "f1_score"))]
                  for entry in scores["per_relation"]])


def kinds_table(systems: dict[str, list[dict]]) -> str:
    """How often each kind of error occurs, and what the kinds are: {system: its `triplet_scores.failures`}."""
    counts = {name: Counter(error["kind"] for row in found for error in row["errors"]) for name, found in systems.items()}
    rows = [[kind, *(count[kind] for count in counts.values())] for kind in KINDS]
    return "\n".join([table(["error", *systems], rows), "", *(f"{kind} = {meaning}" for kind, meaning in KINDS.items())])


def failures_text(failures: list[dict], kind: str, count: int = 3, width: int = 110) -> str:
    """The first failures of a kind for a notebook: sentence, then truth and prediction of its errors of that kind."""
    out = []
    for row in [row for row in failures if any(error["kind"] == kind for error in row["errors"])][:count]:
        out += wrap(f"row {row['index']}: {row['text']}", width)
        for error in row["errors"]:
            if error["kind"] == kind:
                said, true = ("-" if triple is None else f"({', '.join(triple)})" for triple in (error["predicted"], error["truth"]))
                out.append(f"    {kind}: truth {true}, predicted {said}")
    return "\n".join(out) or f"no {kind} errors"


# --- what the loss is made of ------------------------------------------------------------------------------------

#: Kinds of tokens of an answer, with what a model must do to get them right.
PARTS = {"form": "brackets, commas, line ends, the stop id", "relation": "one of a short list",
         "name begins": "its first token: which name of the sentence?", "name goes on": "its other tokens: as in the sentence"}


def answer_parts(tokenizer, triples: list[Triple]) -> list[str]:
    """The kind of each id of an answer as `chat.answer_ids` makes it: one of PARTS, by the first sign of the token."""
    from glmlab import chat
    from glmlab.constrained import tokens, written
    marked = [(b"(", "form")] if triples else [(NONE.encode(), "form")]
    for triple in triples:
        head, relation, tail = (written(tokenizer, part) for part in triple)
        marked += [(head[:1], "name begins"), (head[1:], "name goes on"), (b", ", "form"), (relation, "relation"), (b", ", "form"),
                   (tail[:1], "name begins"), (tail[1:], "name goes on"), (b")\n(", "form")]
    kinds = [kind for text, kind in marked for _ in text][:-2 if triples else None]  # one a byte; the last line ends with ")"
    texts = [tokens(tokenizer).by_id.get(number, b"") for number in chat.answer_ids(tokenizer, answer(triples))]
    found, place = [], len(kinds) - sum(map(len, texts))  # below 0: what stands before an answer
    for text in texts:
        at = place + len(text) - len(text.lstrip(b" "))
        found.append(kinds[at] if text.strip() and at >= 0 else "form")
        place += len(text)
    return found


# --- several systems ---------------------------------------------------------------------------------------------

def comparison_row(name: str, rows: list[Sentence], predicted: list[list[Triple] | None], step: int | None = None,
                   relations: Mapping[str, Relation] = RELATIONS, resamples: int = 2000, seed: int = 7) -> dict:
    """One system of a comparison: name, step, rows, the SCORES with `<score>_interval` each, and the shares without interval."""
    scores = triplet_scores.score([row.triples for row in rows], predicted, [row.text for row in rows], relations, resamples, seed)
    row = {"name": name, "step": step, "rows": scores["rows"]}
    for score in SCORES:
        row |= {score: scores[score], f"{score}_interval": scores["intervals"][score]}
    return row | {share: scores[share] for share in ("unparsable", "spans_in_text", "empty_right")}


# --- the knowledge graph -----------------------------------------------------------------------------------------

def knowledge_graph(triples: Iterable[Triple], relations: Mapping[str, Relation] = RELATIONS):
    """The triples as a networkx.MultiDiGraph: a node a name (its kind: 人, 单位 …), an edge a triple (relation, times it was told).

    Names that are equal once normalised are one node, called as it was first.
    """
    import networkx
    graph, names, told = networkx.MultiDiGraph(), {}, Counter()
    for head, relation, tail in triples:
        known = relations.get(relation, Relation(""))
        ends = []
        for name, kind in ((head, known.head), (tail, known.tail)):
            node = names.setdefault(normalise(name), name)
            if node not in graph or "、" in graph.nodes[node]["kind"]:  # 单位、学校或设施 until it is known which
                graph.add_node(node, label=node, kind=kind)
            ends.append(node)
        told[(*ends, relation)] += 1
    for number, ((head, tail, relation), times) in enumerate(told.items()):  # keys of their own: files take them as ids of the edges
        graph.add_edge(head, tail, f"e{number}", relation=relation, label=relation, times=times)
    return graph


def graph_figure(graph, path=None, title: str = "", width: float = 14.5):
    """The picture of a `knowledge_graph`: parts that hang together stand together, the largest first; colours are kinds of names.

    width: inches it may take; a part whose columns need more takes more. Errors: ValueError for a graph without nodes.
    """
    from matplotlib.patches import FancyArrowPatch, Patch

    from glmlab.figures import COLOURS, _axes, save
    if not graph:
        raise ValueError("no triples to draw: the document has none, or none was found")
    places, (right, top) = _places(graph, width)
    figure, axis = _axes(max(min(5, width), right), top + 0.8)
    kinds = list(dict.fromkeys(kind for _, kind in graph.nodes(data="kind")))
    colours = {kind: (*COLOURS, "#666666")[min(number, len(COLOURS))] for number, kind in enumerate(kinds)}
    axis.set(xlim=(0, right), ylim=(0, top), xticks=[], yticks=[], title=title)
    axis.axis("off")
    figure.legend(handles=[Patch(color=colours[kind], label=kind) for kind in kinds], loc="outside lower center", ncols=len(kinds), frameon=False)
    boxes = {node: axis.text(*places[node], node, ha="center", va="center", fontsize=9, color="white", zorder=3,
                             bbox={"boxstyle": "round,pad=0.3", "facecolor": colours[kind], "edgecolor": "none"})
             for node, kind in graph.nodes(data="kind")}
    figure.canvas.draw()  # the boxes have a size only now, and arrows end at their borders
    pairs: dict[tuple, list[str]] = {}
    for head, tail, relation in graph.edges(data="relation"):
        pairs.setdefault((head, tail), []).append(relation)
    for (head, tail), names in pairs.items():
        (x, y), (to_x, to_y) = places[head], places[tail]
        bend = 0.15 if (tail, head) in pairs else 0.0  # two arrows between the same names must not lie on each other
        axis.add_patch(FancyArrowPatch((x, y), (to_x, to_y), arrowstyle="-|>", mutation_scale=11, color="#888888", shrinkA=1, shrinkB=1,
                                       patchA=boxes[head].get_bbox_patch(), patchB=boxes[tail].get_bbox_patch(),
                                       connectionstyle=f"arc3,rad={bend}", zorder=1))
        shift = bend / 2  # the top of an arc
        axis.text((x + to_x) / 2 + shift * (to_y - y), (y + to_y) / 2 - shift * (to_x - x), "、".join(names), ha="center", va="center",
                  fontsize=8, color="#444444", bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5}, zorder=2)
    return save(figure, path)


def _places(graph, limit: float = 14.5) -> tuple[dict, tuple[float, float]]:
    """(node -> (x, y), (width, height)) in inches: each part laid out by itself, the parts side by side in rows of at most `limit`."""
    import networkx
    order = {node: place for place, node in enumerate(graph)}
    parts = [sorted(part, key=order.get) for part in networkx.weakly_connected_components(graph)]
    places, x, y, tall, widest = {}, 0.0, 0.0, 0.0, 0.0
    for part in sorted(parts, key=lambda part: (-len(part), order[part[0]])):
        columns = _columns(graph, part)
        needed = 0.8 + 0.125 * max(map(len, part))  # half a box on each side, and an arrow between them
        column_width = min(COLUMN, max(needed, (limit - 2.05) / max(1, len(columns) - 1)))
        wide, high = column_width * (len(columns) - 1) + 2.05, ROW * (max(map(len, columns)) + 0.7)
        if x and x + wide > limit:
            x, y, tall = 0.0, y + tall, 0.0
        for number, column in enumerate(columns):
            for row, node in enumerate(column):
                places[node] = (x + column_width * number + 0.95, y + high / 2 + ROW * (row - (len(column) - 1) / 2))
        x, tall, widest = x + wide, max(tall, high), max(widest, x + wide)
    height = y + tall
    return {node: (across, height - down) for node, (across, down) in places.items()}, (widest, height)


def _columns(graph, part: list) -> list[list]:
    """The nodes of a part from left to right: a head left of its tails, where no circle forbids it; each column in the order of its heads."""
    column = dict.fromkeys(part, 0)
    for _ in range(min(len(part), 5)):  # longest way from a node that is no tail; a circle ends somewhere
        for head, tail in graph.edges(part):
            column[tail] = max(column[tail], min(column[head] + 1, 4))
    found: list[list] = [[] for _ in range(max(column.values()) + 1)]
    for node in part:
        found[column[node]].append(node)
    found = [nodes for nodes in found if nodes]
    place: dict = {}
    for nodes in found:
        heads = {node: [place[head] for head, _ in graph.in_edges(node) if head in place] for node in nodes}
        nodes.sort(key=lambda node: sum(heads[node]) / len(heads[node]) if heads[node] else 0)
        place |= {node: (row + 0.5) / len(nodes) for row, node in enumerate(nodes)}
    return found


def write_graphml(graph, path) -> Path:
    """Write a `knowledge_graph` as GraphML, which Gephi, Cytoscape, yEd and, with its APOC procedures, Neo4j read.

    Signs that XML forbids (control characters) are replaced, else nobody could read the file.
    """
    import networkx
    readable, content = networkx.MultiDiGraph(), io.BytesIO()
    for node, facts in graph.nodes(data=True):
        readable.add_node(_xml(node), **{name: _xml(value) for name, value in facts.items()})
    for head, tail, key, facts in graph.edges(keys=True, data=True):
        readable.add_edge(_xml(head), _xml(tail), key, **{name: _xml(value) for name, value in facts.items()})
    networkx.write_graphml_xml(readable, content, encoding="utf-8", prettyprint=True)
    return paths.write_bytes(path, content.getvalue())


def _xml(value):
    return _NO_XML.sub("\ufffd", value) if isinstance(value, str) else value


def write_csv(graph, path) -> Path:
    """Write the edges of a `knowledge_graph` as a table: Gephi reads Source and Target, Neo4j any column (LOAD CSV WITH HEADERS)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["Source", "Target", "Label", "Type", "Weight", "SourceKind", "TargetKind"])
    for head, tail, edge in graph.edges(data=True):
        writer.writerow([head, tail, edge["relation"], "Directed", edge["times"], graph.nodes[head]["kind"], graph.nodes[tail]["kind"]])
    return paths.write_text(path, text.getvalue())
