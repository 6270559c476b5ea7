"""Figures: Chinese that really renders, 300 dpi, nothing cut off or written over, files whole or not at all."""

import random
import warnings
from importlib import metadata

import numpy as np
import pytest

from glmlab import chat, figures, metrics, packing
from glmlab.tasks.labels import NAMES

matplotlib = pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.text import Text  # noqa: E402


def _rows(unanswered=True):
    rng = random.Random(2)
    truth = [label for label in range(34) for _ in range(1 + 120 // (label + 1))]
    return truth, [None if unanswered and rng.random() < 0.05 else label if rng.random() < 0.5 else rng.randrange(34) for label in truth]


def _systems():
    names = ["untuned base", "TF-IDF + logistic regression", "intent-reference, checkpoint 5,000"]
    return [{"name": name, "step": step, "accuracy": value, "accuracy_interval": [value - 0.05, value + 0.04], "f1_macro": value * 0.7,
             "f1_macro_interval": [value * 0.6, value * 0.8]} for name, step, value in zip(names, (None, 500, 1000), (0.05, 0.5, 0.9))]


LOG = [{"step": step, "loss": 3 / step, "learning_rate": 1e-3 / step} for step in range(1, 60)] + [{"step": 50, "eval_loss": 0.2}]
SPLITS = {"train": _rows()[0], "dev": [0, 1, None, 33]}
PACK = [chat.Sample([*range(300), *range(own)], 300 + own - 9) for own in (150, 400, 60)]
TOKENS = ["␣", "查", "话费", "[gMASK]", "<sop>", "好的", "⏎", "<eop>"]
MASKS = {"both ways": (TOKENS, (np.tri(8) > 0) | (np.arange(8) < 4), 5), "causal": (TOKENS[:6], np.tri(6) > 0, 4)}
STILL = np.ones((8, 12))
PLACES = {"place": [0, 1, 2, 3, 3, 3, 3, 3], "place in the answer": [0, 0, 0, 0, 1, 2, 3, 4]}
FIGURES = {
    "masks": lambda path=None: figures.attention_masks(MASKS, path),
    "positions": lambda path=None: figures.positions({"twice": (TOKENS, PLACES), "once": (TOKENS[:3], {"place": [0, 1, 2]})}, path),
    "rotary": lambda path=None: figures.rotary_angles({"turned": (np.cos(np.outer(range(8), range(30))), 20), "still": (STILL, 9)}, path),
    "layers": lambda path=None: figures.layer_diagrams(path),
    "losses": lambda path=None: figures.loss_lines({"glm4-tiny": [(1, 80.0), (4, 9.5)], "chatglm-tiny": [(1, 70.0), (4, 20.0)]}, path),
    "pack": lambda path=None: figures.pack_mask(packing.pack(PACK, 300), path),
    "pack, nothing shared": lambda path=None: figures.pack_mask(packing.pack(PACK, 0), path),
    "confusion": lambda path=None: figures.confusion_matrix(*_rows(), NAMES, path, "办理取消 checkpoint 5,000"),
    "confusion, all answered": lambda path=None: figures.confusion_matrix(*_rows(False), NAMES, path),
    "reliability": lambda path=None: figures.reliability(metrics.calibration([0, 1] * 50, [0] * 100, [i / 100 for i in range(100)]), path),
    "bars": lambda path=None: figures.comparison_bars(_systems(), path),
    "step": lambda path=None: figures.score_against_step(_systems(), {"majority": 0.01}, path),
    "classes": lambda path=None: figures.class_counts(SPLITS, NAMES, path),
    "triples": lambda path=None: figures.class_counts(SPLITS, NAMES, path, "triples", "relation", plain=True),
    "lengths": lambda path=None: figures.length_histogram({"train": [3, 400, 90], "dev": [7]}, limit=300, path=path),
    "loss": lambda path=None: figures.loss_curve(LOG, path),
}


@pytest.fixture(scope="module")
def drawn():
    """Every figure, laid out, with the texts that can be seen and their boxes."""
    found = {}
    for name, make in FIGURES.items():
        figure = make()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a missing glyph is a warning of matplotlib
            FigureCanvasAgg(figure).draw()
        texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
        found[name] = figure, texts
    return found


def test_a_line_has_the_digits_of_its_scale():
    rows = [{"step": step, "f1_macro": step / 10, "rouge_l": 20.0 + step} for step in (1, 2)]
    shares = figures.score_against_step(rows, {"majority": 0.0123})
    points = figures.score_against_step(rows, {"nearest": 24.426}, score="rouge_l", title="ROUGE-L")
    assert [text.get_text() for figure in (shares, points) for text in figure.axes[0].get_legend().get_texts()[1:]] == ["majority 0.012", "nearest 24.4"]


def test_bars_say_what_they_count():
    (rows,), (triples,) = (figures.class_counts({"train": [0, 1, 1]}, ["工作于", "担任"], None, *more).axes for more in ((), ("triples", "relation", True)))
    assert [(axis.get_title(), axis.get_xlabel(), axis.get_xscale()) for axis in (rows, triples)] == [
        ("Rows of each class", "rows (log scale)", "log"), ("Triples of each relation", "triples", "linear")]
    assert [[text.get_text() for text in axis.get_yticklabels()] for axis in (rows, triples)] == [["工作于  0", "担任  1"], ["工作于", "担任"]]
    assert triples.figure.legends[0].get_texts()[0].get_text() == "train: 3 triples"


def test_the_legend_of_lengths_lies_beside_the_lines():
    figure = figures.length_histogram({"train": [3, 400, 90], "dev": [7, 508]}, limit=512)
    FigureCanvasAgg(figure).draw()
    legend, axis = figure.legends[0].get_window_extent(), figure.axes[0]
    assert axis.get_legend() is None and legend.y1 < axis.get_window_extent().y0


def _glyphs(path):
    return set(matplotlib.ft2font.FT2Font(str(path)).get_charmap())


def test_the_font_is_the_packaged_one_and_may_be_shared():
    from pylopdf_fonts_zh_cn import sans_path
    assert figures.use_chinese_font() == "Noto Sans SC"
    assert matplotlib.rcParams["font.family"] == ["Noto Sans SC", "DejaVu Sans"]
    found = matplotlib.font_manager.findfont("Noto Sans SC")
    assert found == str(sans_path())
    licence = next(file for file in metadata.files("pylopdf-fonts-zh-cn") if file.name.startswith("LICENSE"))
    assert "SIL OPEN FONT LICENSE Version 1.1" in licence.read_text()


def test_the_font_has_every_sign_of_the_labels_and_of_the_figures(drawn):
    from pylopdf_fonts_zh_cn import sans_path
    glyphs = _glyphs(sans_path())
    assert not {sign for name in NAMES for sign in name if ord(sign) not in glyphs}
    assert ord("\U0001f600") not in glyphs  # the check can fail
    for name, (_, texts) in drawn.items():
        said = {sign for text in texts for sign in text.get_text() if not sign.isspace() and not text.get_text().startswith("$")}
        missing = {sign for sign in said if ord(sign) not in glyphs}
        assert not missing, (name, missing)
        assert all(text.get_fontname() == "Noto Sans SC" for text in texts), name


def test_nothing_is_cut_off_and_no_two_texts_meet(drawn):
    for name, (figure, texts) in drawn.items():
        width, height = figure.canvas.get_width_height()
        unseen = _ticks_outside(figure)
        boxes = [(text.get_text(), text.get_window_extent().extents) for text in texts if text not in unseen]
        assert len(boxes) > 5, name
        table = np.array([box for _, box in boxes])  # (texts, x0 y0 x1 y1)
        cut = (table[:, :2] < -1).any(axis=1) | (table[:, 2] > width + 1) | (table[:, 3] > height + 1)
        assert not cut.any(), (name, [boxes[i][0] for i in cut.nonzero()[0]])
        shared = np.minimum(table[:, None, 2:], table[None, :, 2:]) - np.maximum(table[:, None, :2], table[None, :, :2])
        meet = np.triu((shared > 1).all(axis=-1), k=1)  # more than a pixel in both directions
        assert not meet.any(), (name, [(boxes[i][0], boxes[j][0]) for i, j in np.argwhere(meet)])


def _ticks_outside(figure):
    """Labels of ticks beyond the limits of an axis: they exist but are not drawn."""
    found = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not low <= tick.get_loc() <= high:
                    found |= {tick.label1, tick.label2}
    return found


def test_confusion_matrix_shows_counts_sums_and_unanswered_rows(drawn):
    truth, predicted = _rows()
    figure, texts = drawn["confusion"]
    axis = figure.axes[0]
    rows = [label.get_text() for label in axis.get_yticklabels()]
    columns = [label.get_text() for label in axis.get_xticklabels()]
    assert rows == [f"{name}  {label} ({truth.count(label)})" for label, name in enumerate(NAMES)]
    assert len(columns) == 35 and columns[0] == f"{NAMES[0]}  0 ({predicted.count(0)})"
    assert columns[-1] == f"unanswered ({predicted.count(None)})"
    counts = {(round(text.get_position()[1] - 0.5), round(text.get_position()[0] - 0.5)): text.get_text() for text in axis.texts}
    for true in (0, 5, 33):
        for said in (0, 5, 33, None):
            count = sum(t == true and p == said for t, p in zip(truth, predicted))
            assert counts[true, 34 if said is None else said] == (str(count) if count else "")
    right = sum(t == p for t, p in zip(truth, predicted))
    assert axis.get_title() == f"办理取消 checkpoint 5,000: {right} of {len(truth)} rows on the diagonal"
    assert len(drawn["confusion, all answered"][0].axes[0].get_xticklabels()) == 34


def test_masks_show_what_is_seen_before_and_later(drawn):
    both, causal = (axis.images[0].get_array() for axis in drawn["masks"][0].axes)
    assert [list(row) for row in causal] == [[int(column <= row) for column in range(6)] for row in range(6)]
    assert [list(row) for row in both] == [[1 if column <= row else 2 if column < 4 else 0 for column in range(8)] for row in range(8)]
    assert [label.get_text() for label in drawn["masks"][0].axes[0].get_yticklabels()] == TOKENS


def test_positions_and_angles_stand_at_their_tokens(drawn):
    twice, once = drawn["positions"][0].axes
    assert {line.get_label(): list(line.get_ydata()) for line in twice.lines} == PLACES
    assert list(once.lines[0].get_xdata()) == [0, 1, 2] and once.get_xlim() == twice.get_xlim()
    assert [axis.get_xlim() for axis in drawn["rotary"][0].axes[:2]] == [(0, 30), (0, 30)]  # the longer one is not cut


def test_the_diagram_has_the_norms_of_each_generation(drawn):
    texts = [[text.get_text() for text in axis.texts] for axis in drawn["layers"][0].axes]
    assert [sum("Norm\n" in text for text in column) for column in texts] == [2, 2, 4]
    assert [column.count("× α") for column in texts] == [2, 0, 0] and all(column.count("+") == 2 for column in texts)


def test_the_file_is_a_300_dpi_png_and_the_figure_is_not_kept(tmp_path):
    from matplotlib import pyplot
    from PIL import Image
    path = tmp_path / "new" / "bars.png"
    figure = FIGURES["bars"](path)
    with Image.open(path) as picture:
        assert picture.format == "PNG" and [round(value) for value in picture.info["dpi"]] == [300, 300]
        assert picture.size == tuple(round(inches * 300) for inches in figure.get_size_inches())
        assert len(picture.convert("L").getcolors(256)) > 20
    assert not pyplot.get_fignums() and sorted(file.name for file in path.parent.iterdir()) == ["bars.png"]


def test_a_log_without_loss_is_refused():
    with pytest.raises(ValueError, match="no loss yet"):
        figures.loss_curve([{"step": 1, "learning_rate": 0.1}])


def test_a_missing_font_says_what_to_install(monkeypatch):
    import sys
    figures.use_chinese_font.cache_clear()
    monkeypatch.setitem(sys.modules, "pylopdf_fonts_zh_cn", None)
    with pytest.raises(FileNotFoundError, match="pip install -r requirements.txt"):
        figures.use_chinese_font()
