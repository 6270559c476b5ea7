"""The figures of the course. Each function returns the Figure and, given a path, also saves it as a 300 dpi PNG.

The figures are closed for pyplot, so a notebook cell shows one by ending with the call, once.
"""

import functools
import io
from collections import Counter

from glmlab import paths

DPI = 300
COLOURS = ("#2166ac", "#e08214", "#1b7837", "#762a83", "#b2182b")  # told apart by colour-blind readers, and in grey


@functools.cache
def use_chinese_font() -> str:
    """Make matplotlib draw Chinese with Noto Sans SC (SIL Open Font License), whatever fonts the machine has; its name.

    The font file comes with a package of requirements.txt. Errors: FileNotFoundError when that package is not installed.
    """
    from matplotlib import font_manager, rcParams
    try:
        from pylopdf_fonts_zh_cn import sans_path
    except ImportError as error:
        raise FileNotFoundError("the Chinese font is missing: install pylopdf-fonts-zh-cn (pip install -r requirements.txt)") from error
    font_manager.fontManager.addfont(sans_path())
    name = font_manager.FontProperties(fname=sans_path()).get_name()
    rcParams["font.family"] = [name, "DejaVu Sans"]  # the second for signs that the first has not
    return name


def _axes(width: float, height: float, rows: int = 1, columns: int = 1, **options):
    """A figure in inches and its axes, with the Chinese font."""
    import matplotlib.pyplot as plt
    use_chinese_font()
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained", **options)
    plt.close(figure)  # else a notebook shows it twice, and pyplot keeps it for ever
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure, path=None):
    """Save a figure as PNG, whole or not at all; returns the figure. path None: not saved."""
    if path is not None:
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
        paths.write_bytes(path, picture.getvalue())
    return figure


def _numbered(names) -> list[str]:
    return [f"{name}  {label}" for label, name in enumerate(names)]


# --- data --------------------------------------------------------------------------------------------------------

def class_counts(splits: dict, names, path=None, what: str = "rows", of: str = "class", plain: bool = False):
    """Bars: rows of each label in each split, on a log scale, because classes differ a thousandfold.

    splits: {"train": label ids, "dev": …}; None labels are left out. names: the name of each label id. what, of: what is counted of
    what. plain: a linear scale and no numbers before the names, for a few classes of like size.
    """
    figure, axis = _axes(11, 0.36 * len(names) + 1.6)
    height = 0.84 / len(splits)
    for number, (split, labels) in enumerate(splits.items()):
        counts = Counter(labels)
        bars = axis.barh([label + height * (number - (len(splits) - 1) / 2) for label in range(len(names))],
                         [counts[label] for label in range(len(names))], height, color=COLOURS[number % 5],
                         label=f"{split}: {sum(counts[label] for label in range(len(names))):,} {what}")
        axis.bar_label(bars, [counts[label] or "0" for label in range(len(names))], fontsize=6.5, padding=2, color="#444444")
    axis.set(yticks=range(len(names)), ylim=(len(names) - 0.4, -0.6), xlabel=what if plain else f"{what} (log scale)",
             title=f"{what.capitalize()} of each {of}")
    axis.set_yticklabels(names if plain else _numbered(names))
    if not plain:
        axis.set_xscale("log")
        axis.set_xlim(left=0.8, right=axis.get_xlim()[1] * 1.5)
    figure.legend(loc="outside lower center", ncols=len(splits), frameon=False)
    return save(figure, path)


def length_histogram(lengths: dict, unit: str = "characters", limit: int | None = None, path=None):
    """Histograms of lengths, one line a group: {"train": lengths, …}. limit: a vertical line, e.g. max_length."""
    import numpy as np
    figure, axis = _axes(9, 4.5)
    longest = max(max(values, default=1) for values in lengths.values())
    edges = np.linspace(0, longest + 1, 60)
    for number, (name, values) in enumerate(lengths.items()):
        weights = np.full(len(values), 100 / max(1, len(values)))  # shares, so that splits of different size compare
        axis.hist(values, edges, weights=weights, histtype="step", linewidth=1.8, color=COLOURS[number % 5],
                  label=f"{name}: mean {np.mean(values):,.0f}, 95 % below {np.quantile(values, 0.95):,.0f}, longest {max(values):,}")
    if limit:
        over = sum(value > limit for values in lengths.values() for value in values)
        total = sum(map(len, lengths.values()))
        axis.axvline(limit, color="#b2182b", linestyle="--", label=f"limit {limit:,}: {over:,} of {total:,} are longer")
    axis.set(xlabel=f"length in {unit}", ylabel="share of rows in %", xlim=0, title="Length of a row")
    figure.legend(loc="outside lower center", frameon=False)  # on the axes it would cover lines
    return save(figure, path)


# --- training ----------------------------------------------------------------------------------------------------

def loss_curve(log: list[dict], path=None):
    """Training loss (single steps and their moving mean), evaluation loss, and the learning rate below.

    log: the entries of a run's log.jsonl; those with step and loss, eval_loss or learning_rate are drawn.
    Errors: ValueError for a log without any loss.
    """
    import numpy as np
    series = {key: [(entry["step"], entry[key]) for entry in log if entry.get(key) is not None and "step" in entry]
              for key in ("loss", "eval_loss", "learning_rate")}
    if not series["loss"] and not series["eval_loss"]:
        raise ValueError("the log holds no loss yet: train at least until its first logged step")
    if series["learning_rate"]:
        figure, (axis, below) = _axes(9, 5.5, 2, sharex=True, height_ratios=(4, 1))
        below.plot(*zip(*series["learning_rate"]), color="#444444")
        below.set(ylabel="learning rate", ylim=0, xlabel="step")
    else:
        figure, axis = _axes(9, 4.5)
        axis.set_xlabel("step")
    if series["loss"]:
        steps, loss = np.array(series["loss"], dtype=float).T
        window = max(1, len(loss) // 20)
        sums = np.cumsum(np.insert(loss, 0, 0.0))
        start = np.maximum(0, np.arange(len(loss)) + 1 - window)
        axis.plot(steps, loss, color=COLOURS[0], alpha=0.3, linewidth=0.9)
        axis.plot(steps, (sums[1:] - sums[start]) / (np.arange(len(loss)) + 1 - start), color=COLOURS[0],
                  label=f"training, mean of {window} log entries" if window > 1 else "training")
    if series["eval_loss"]:
        axis.plot(*zip(*series["eval_loss"]), color=COLOURS[1], marker="o", label="evaluation (dev)")
    axis.set(ylabel="loss per answer token (nats)", title="Loss", ylim=0)
    axis.legend()
    return save(figure, path)


def pack_mask(batch: dict, path=None, what: str = "call"):
    """Who sees whom in a batch of `packing.pack`: a row is a token, a coloured column one it sees; below, positions and labels."""
    import numpy as np
    from matplotlib.colors import ListedColormap

    from glmlab.packing import token_mask
    seen = token_mask(batch["family"], batch["segments"]).cpu().numpy()  # (tokens, tokens)
    segments, positions, keep = (batch[name].cpu().numpy().ravel() for name in ("segments", "position_ids", "keep"))
    prefix = bool(batch["family"][-1, 0]) and len(batch["family"]) > 1  # the first segment, which the others see
    calls, size = len(batch["family"]) - prefix, len(segments)
    edges = [0, *(np.flatnonzero(np.diff(segments)) + 1).tolist(), size]
    figure, (axis, below) = _axes(6.5, 8, 2, height_ratios=(4, 1), sharex=True)
    shades = np.where(segments == 0, 1, 2) if prefix else np.full(size, 2)
    axis.imshow(shades * seen, cmap=ListedColormap(["white", "#a6c8e4", COLOURS[0]]), vmin=0, vmax=2, aspect="auto",
                interpolation="nearest", extent=(0, size, size, 0))
    for edge in edges[1:-1]:
        axis.axhline(edge, color="#999999", linewidth=0.6)
        axis.axvline(edge, color="#999999", linewidth=0.6)
    axis.set_yticks([(start + end) / 2 for start, end in zip(edges, edges[1:])],
                    ["prefix"] * prefix + [f"{what} {number}" for number in range(1, calls + 1)])
    axis.set_title(f"A pack of {calls} {what}s, {size:,} tokens: a row sees the coloured columns")
    for start, end in zip(edges, edges[1:]):
        below.plot(np.arange(start, end), positions[start:end], color="#444444", label="" if start else "position")
    below.plot(np.flatnonzero(keep), positions[keep], ".", color=COLOURS[1], markersize=4, label="predicts a label")
    below.set(ylabel="position", xlabel="place in the pack", xlim=(0, size), ylim=0)
    below.legend(loc="upper left")
    return save(figure, path)


# --- evaluation --------------------------------------------------------------------------------------------------

def confusion_matrix(truth, predicted, names, path=None, title: str = "Confusion matrix"):
    """Heat map: a row is a true label, a column a prediction; colour is the share of the row, the number counts rows.

    predicted may hold None: these rows stand in a last column. All labels are drawn, with their row and column sums.
    """
    import numpy as np
    import seaborn as sns

    from glmlab.metrics import UNANSWERED, as_ids
    true, said = as_ids(truth, predicted, len(names))
    counts = np.zeros((len(names), len(names) + 1), dtype=int)
    np.add.at(counts, (true, said), 1)
    columns = _numbered(names) + ["unanswered"]
    if (said != UNANSWERED).all():
        counts, columns = counts[:, :-1], columns[:-1]
    # large signs: a notebook shows 22 inches in the width of a page
    figure, axis = _axes(0.44 * len(columns) + 7, 0.44 * len(names) + 5)
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    sns.heatmap(share, ax=axis, cmap="Blues", vmin=0, vmax=1, annot=np.where(counts > 0, counts.astype(str), ""), fmt="",
                annot_kws={"fontsize": 12}, linewidths=0.4, linecolor="#dddddd", square=True,
                cbar_kws={"shrink": 0.5})
    axis.collections[0].colorbar.ax.tick_params(labelsize=12)
    axis.collections[0].colorbar.set_label("share of the true class", fontsize=14)
    axis.set_xticks(np.arange(len(columns)) + 0.5, [f"{name} ({total})" for name, total in zip(columns, counts.sum(axis=0))],
                    rotation=90, fontsize=13)
    axis.set_yticks(np.arange(len(names)) + 0.5, [f"{name} ({total})" for name, total in zip(_numbered(names), counts.sum(axis=1))],
                    rotation=0, fontsize=13)
    axis.set_xlabel("predicted (rows predicted so)", fontsize=16)
    axis.set_ylabel("truth (rows)", fontsize=16)
    axis.set_title(f"{title}: {int((true == said).sum()):,} of {len(true):,} rows on the diagonal", fontsize=18)
    return save(figure, path)


def reliability(calibration: dict, path=None, title: str = "Reliability"):
    """Reliability diagram of `metrics.calibration`: accuracy against probability, with 95 % intervals; rows per bin below."""
    figure, (axis, below) = _axes(5.5, 6.2, 2, sharex=True, height_ratios=(4, 1))
    table = calibration["bins"]
    width = table[0]["high"] - table[0]["low"] if table else 0.1
    axis.plot([0, 1], [0, 1], color="#888888", linestyle="--", label="perfectly calibrated")
    probability = [entry["mean_probability"] for entry in table]
    accuracy = [entry["accuracy"] for entry in table]
    errors = [[entry["accuracy"] - entry["interval"][0] for entry in table], [entry["interval"][1] - entry["accuracy"] for entry in table]]
    axis.errorbar(probability, accuracy, [[max(0, value) for value in side] for side in errors], fmt="o-", color=COLOURS[0], capsize=3,
                  label=f"this model, ECE {calibration['ece']:.3f}")
    axis.set(ylabel="share of right answers", xlim=(0, 1), ylim=(0, 1.02), title=title)
    axis.legend(loc="best")
    below.bar([entry["low"] for entry in table], [entry["rows"] for entry in table], width, align="edge", color=COLOURS[0], alpha=0.5,
              edgecolor="white")
    below.set(ylabel="rows", xlabel="probability of the answer")
    return save(figure, path)


# --- comparison --------------------------------------------------------------------------------------------------

def score_against_step(rows: list[dict], baselines: dict | None = None, path=None, score: str = "f1_macro", title: str = ""):
    """A score of the checkpoints against their step, with intervals; baselines as horizontal lines.

    rows: `reports.comparison_row` dicts with a step. baselines: {name: score}. title: of a score that is none of a classification.
    """
    from glmlab.metrics import SCORES
    title = title or SCORES[score]
    rows = sorted((row for row in rows if row.get("step") is not None), key=lambda row: row["step"])
    figure, axis = _axes(8, 4.6)
    steps, values = [row["step"] for row in rows], [row[score] for row in rows]
    axis.plot(steps, values, "o-", color=COLOURS[0], label="checkpoints (95 % interval)")
    if all(f"{score}_interval" in row for row in rows):
        axis.fill_between(steps, *zip(*(row[f"{score}_interval"] for row in rows)), color=COLOURS[0], alpha=0.15)
    digits = 3 if max([*values, *(baselines or {}).values()]) <= 1 else 1  # a share, or a score of 0 to 100
    for number, (name, value) in enumerate((baselines or {}).items()):
        axis.axhline(value, color=COLOURS[1 + number % 4], linestyle="--", label=f"{name} {value:.{digits}f}")
    axis.set(xlabel="step", ylabel=title, title=f"{title} against step", **({"ylim": (0, 1)} if score in SCORES else {}))
    axis.legend(loc="best")
    return save(figure, path)


def comparison_bars(rows: list[dict], path=None, scores=("accuracy", "f1_macro")):
    """Bars with 95 % intervals of several systems; rows: `reports.comparison_row` dicts, drawn in the given order.

    scores: names of a classification's scores, or {key of a row: its title}, all between 0 and 1.
    """
    from glmlab.metrics import SCORES
    titles = scores if isinstance(scores, dict) else {score: SCORES[score] for score in scores}
    figure, axis = _axes(9, (0.2 + 0.3 * len(scores)) * len(rows) + 1.4)
    height = 0.8 / len(scores)
    for number, score in enumerate(scores):
        places = [place + height * (number - (len(scores) - 1) / 2) for place in range(len(rows))]
        values = [row[score] for row in rows]
        ends = [row.get(f"{score}_interval", (row[score], row[score])) for row in rows]
        errors = [[max(0, value - low) for value, (low, _) in zip(values, ends)],
                  [max(0, high - value) for value, (_, high) in zip(values, ends)]]
        axis.barh(places, values, height, xerr=errors, color=COLOURS[number % 5], label=titles[score],
                  error_kw={"elinewidth": 1, "capsize": 2.5, "ecolor": "#333333"})
        for place, value, (_, high) in zip(places, values, ends):
            axis.text(max(value, high) + 0.012, place, f"{value:.3f}", va="center", fontsize=9)
    axis.set(yticks=range(len(rows)), ylim=(len(rows) - 0.45, -0.55), xlim=(0, 1.08), xlabel="score (whiskers: 95 % interval)")
    axis.set_yticklabels([row["name"] for row in rows])
    figure.legend(loc="outside lower center", ncols=len(scores), frameon=False)
    return save(figure, path)


# --- the generations ---------------------------------------------------------------------------------------------

def attention_masks(panels: dict, path=None):
    """Who sees whom, one square a generation, side by side: a row is a token, a coloured column a token that it sees.

    panels: {title: (the tokens' texts, mask bool (tokens, tokens), tokens of the prompt)}; a line parts prompt and answer.
    """
    import numpy as np
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch
    colours = ("white", "#a6c8e4", COLOURS[1])
    sizes = [len(tokens) for tokens, _, _ in panels.values()]
    width = max(9.5, 0.33 * sum(sizes) + 1.1 * len(panels))  # the legend needs that much
    figure, axes = _axes(width, 0.33 * max(sizes) + 2.0, 1, len(panels), squeeze=False, width_ratios=sizes)
    for axis, (title, (tokens, mask, prompt)) in zip(axes[0], panels.items()):
        seen = np.asarray(mask, dtype=int)
        seen += np.triu(seen, 1)  # 2: a token that comes later
        axis.imshow(seen, cmap=ListedColormap(colours), vmin=0, vmax=2)
        _token_ticks(axis, tokens)
        axis.set_yticks(range(len(tokens)), tokens, fontsize=9)
        axis.set_xticks(np.arange(len(tokens)) - 0.5, minor=True)
        axis.set_yticks(np.arange(len(tokens)) - 0.5, minor=True)
        axis.grid(which="minor", color="#dddddd", linewidth=0.6)
        axis.tick_params(which="both", length=0)
        for line in (axis.axhline, axis.axvline):
            line(prompt - 0.5, color="#333333", linewidth=1.2)
        axis.set_title(title)
    figure.legend(handles=[Patch(facecolor=colours[1], edgecolor="#999999", label="sees itself and what came before"),
                           Patch(facecolor=colours[2], edgecolor="#999999", label="sees what comes later"),
                           Patch(facecolor="white", edgecolor="#333333", label="the line: prompt before, answer behind it")],
                  loc="outside lower center", ncols=3, frameon=False)
    return save(figure, path)


def positions(panels: dict, path=None):
    """The positions of each token, one picture a generation: {title: (the tokens' texts, {name of a row of positions: numbers})}."""
    longest = max(len(tokens) for tokens, _ in panels.values())
    figure, axes = _axes(0.42 * longest + 2.5, 2.5 * len(panels), len(panels), squeeze=False)
    for axis, (title, (tokens, rows)) in zip(axes[:, 0], panels.items()):
        for number, (name, values) in enumerate(rows.items()):
            axis.plot(range(len(tokens)), values, ("o-", "s--")[number % 2], color=COLOURS[number % 5], markersize=5, label=name)
        _token_ticks(axis, tokens)
        axis.yaxis.get_major_locator().set_params(integer=True)
        axis.set(xlim=(-0.6, longest - 0.4), ylim=(-0.8, None), ylabel="position", title=title)
        axis.grid(axis="y", color="#eeeeee")
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return save(figure, path)


def _token_ticks(axis, tokens: list[str]) -> None:
    """A tick a token; short texts stand upright."""
    axis.set_xticks(range(len(tokens)), tokens, fontsize=9)
    for label in axis.get_xticklabels():
        label.set_rotation(0 if len(label.get_text()) <= 2 else 90)


def rotary_angles(panels: dict, path=None):
    """How far each pair of numbers of a head is turned at each token: the cosine of the angle, one picture a generation.

    panels: {title: (cosines float (pairs, tokens), tokens of the prompt)}. White pairs are not turned at all.
    """
    longest = max(cosines.shape[1] for cosines, _ in panels.values())
    figure, axes = _axes(10, 3.0 * len(panels) + 0.5, len(panels), sharex=True, squeeze=False)
    for axis, (title, (cosines, prompt)) in zip(axes[:, 0], panels.items()):
        picture = axis.imshow(cosines, cmap="Blues_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest",
                              extent=(0, cosines.shape[1], cosines.shape[0], 0))
        axis.axhline(cosines.shape[0] / 2, color="#333333", linewidth=0.8)
        axis.axvline(prompt, color=COLOURS[1], linewidth=2)
        axis.set(xlim=(0, longest), ylabel="pair of a head", title=title)
    axes[-1, 0].set_xlabel("token (behind the orange line: the answer)")
    figure.colorbar(picture, ax=axes, shrink=0.6, label="cosine of the angle (1: not turned)")
    return save(figure, path)


def layer_diagrams(path=None):
    """One layer of each generation, from its input below to its output above: where the norms stand and what is added."""
    figure, axes = _axes(12.5, 7.6, 1, 3)
    _layer(axes[0], "ChatGLM-6B: norm after every sum", _on_the_line,
           [("LayerNorm\ninput_layernorm", "attention"), ("LayerNorm\npost_attention_layernorm", "feed-forward\nGELU, 4 x wide")])
    _layer(axes[1], "ChatGLM2, ChatGLM3: pre-norm", _on_a_branch,
           [("RMSNorm\ninput_layernorm", "attention", ""), ("RMSNorm\npost_attention_layernorm", "feed-forward\nSwiGLU", "")])
    _layer(axes[2], "GLM-4-0414: sandwich norms", _on_a_branch,
           [("RMSNorm\ninput_layernorm", "attention", "RMSNorm\npost_self_attn_layernorm"),
            ("RMSNorm\npost_attention_layernorm", "feed-forward\nSwiGLU", "RMSNorm\npost_mlp_layernorm")])
    return save(figure, path)


SUM_AT = 5.2  # height of one half of a layer, up to the sum that ends it


def _layer(axis, title: str, half, parts: list[tuple]) -> None:
    """Both halves of a layer, one above the other."""
    axis.set(xlim=(-2.2, 6.4), ylim=(-1.1, 2 * SUM_AT + 1.4), xticks=[], yticks=[], title=title)
    axis.axis("off")
    axis.text(0, -0.75, "input", ha="center", va="center")
    _arrow(axis, (0, -0.45), (0, 0))
    for number, names in enumerate(parts):
        half(axis, number * SUM_AT, *names)
        axis.text(0, (number + 1) * SUM_AT, "+", ha="center", va="center", fontsize=12, zorder=3,
                  bbox={"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "#333333"})
    _arrow(axis, (0, 2 * SUM_AT + 0.3), (0, 2 * SUM_AT + 0.9))
    axis.text(0, 2 * SUM_AT + 1.15, "output", ha="center", va="center")


def _on_a_branch(axis, low: float, before: str, inside: str, after: str) -> None:
    """The sum carries the input as it is; the norms stand on the branch beside it."""
    _line(axis, (0, low), (0, low + SUM_AT))
    _line(axis, (0, low + 0.55), (3.6, low + 0.55), (3.6, low + SUM_AT))
    _arrow(axis, (3.6, low + SUM_AT), (0.35, low + SUM_AT))
    _box(axis, 3.6, low + 1.3, before, COLOURS[0])
    _box(axis, 3.6, low + 2.65, inside, "#666666")
    if after:
        _box(axis, 3.6, low + 4.0, after, COLOURS[1])


def _on_the_line(axis, low: float, before: str, inside: str) -> None:
    """The norm stands before the branch begins: the sum carries the normalised input, times alpha."""
    _line(axis, (0, low), (0, low + SUM_AT))
    _line(axis, (0, low + 2.2), (3.9, low + 2.2), (3.9, low + SUM_AT))
    _arrow(axis, (3.9, low + SUM_AT), (0.35, low + SUM_AT))
    _box(axis, 0, low + 1.3, before, COLOURS[0], wide=4.2)
    _box(axis, 0, low + 3.4, "× α", COLOURS[4], wide=1.4)
    _box(axis, 3.9, low + 3.4, inside, "#666666", wide=3.8)


def _box(axis, x: float, y: float, text: str, colour: str, wide: float = 5.0) -> None:
    from matplotlib.patches import FancyBboxPatch
    axis.add_patch(FancyBboxPatch((x - wide / 2, y - 0.45), wide, 0.9, "round,pad=0,rounding_size=0.15", facecolor="white",
                                  edgecolor=colour, linewidth=1.6, zorder=2))
    axis.text(x, y, text, ha="center", va="center", fontsize=8.5, color=colour, zorder=3)


def _line(axis, *points) -> None:
    axis.plot(*zip(*points), color="#333333", linewidth=1.2, zorder=1)


def _arrow(axis, start, end) -> None:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#333333", "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0})


def loss_lines(series: dict, path=None, unit: str = "nats"):
    """The training loss of several runs: {name: [(step, loss), …]}."""
    figure, axis = _axes(9, 4.2)
    for number, (name, points) in enumerate(series.items()):
        axis.plot(*zip(*points), ("o-", "s--", "^:")[number % 3], color=COLOURS[number % 5], markersize=4, label=name)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set(xlabel="step", ylabel=f"training loss ({unit})", ylim=0, title="Loss")
    axis.legend(loc="upper right")
    return save(figure, path)
