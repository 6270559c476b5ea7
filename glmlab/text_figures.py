"""The figures of written answers: every measure with its interval, lengths, groups, latency. Style and files as in `figures`.

systems, everywhere: {name: a result of `text_scores.score`}, drawn in the given order; a measure that a system lacks is left out there.
"""

import math

from glmlab.figures import COLOURS, _axes, save
from glmlab.text_scores import MEASURES


def measure_bars(systems: dict[str, dict], path=None, measures: list[str] | None = None, columns: int = 3):
    """A panel a measure, a bar a system; whiskers are 95 % intervals. measures: default all that any system has."""
    measures = measures or [name for name in MEASURES if any(name in result["means"] for result in systems.values())]
    rows = math.ceil(len(measures) / columns)
    figure, axes = _axes(2.6 + 3.1 * columns, rows * (0.36 * len(systems) + 0.75), rows, columns, sharey=True, squeeze=False)
    for number, axis in enumerate(axes.flat):
        if number < len(measures):
            _bars(axis, systems, measures[number])
        else:
            axis.set_visible(False)
    axes[0, 0].set(yticks=range(len(systems)), ylim=(len(systems) - 0.45, -0.55))
    axes[0, 0].set_yticklabels(systems)
    return save(figure, path)


def _bars(axis, systems: dict[str, dict], measure: str) -> None:
    """The panel of one measure; its number stands behind the whisker."""
    label, better = MEASURES[measure]
    found = {place: result["means"][measure] for place, result in enumerate(systems.values()) if measure in result["means"]}
    for place, entry in found.items():
        mean, (low, high) = entry["mean"], entry["interval"]
        axis.barh(place, mean, 0.7, xerr=[[max(0, mean - low)], [max(0, high - mean)]], color=COLOURS[place % 5],
                  error_kw={"elinewidth": 1, "capsize": 2.5, "ecolor": "#333333"})
        axis.annotate(_short(mean), (max(mean, high), place), (4, 0), textcoords="offset points", va="center", fontsize=8.5)
    edge = max((max(entry["mean"], entry["interval"][1]) for entry in found.values()), default=0)
    axis.set_xlim(0, 1.28 * edge or 1)  # room for the numbers
    axis.xaxis.get_major_locator().set_params(nbins=4, prune="upper")
    axis.set_title(label + {1: " ↑", -1: " ↓", 0: ""}[better], fontsize=10.5)


def _short(value: float) -> str:
    """About three digits."""
    return f"{value:,.{next((digits for digits, least in enumerate((100, 10, 1)) if abs(value) >= least), 3)}f}"


def length_change(before: dict, after: dict, names=("base", "fine-tuned"), references: list[str] | None = None, path=None):
    """How long the answers are, and by how much each one changed. before, after: results of `text_scores.score` on the same rows."""
    import numpy as np
    from glmlab.text_scores import length
    lengths = {name: np.array(result["per_row"]["length"]) for name, result in zip(names, (before, after))}
    figure, (axis, beside) = _axes(10.5, 4.2 + 0.22 * (2 + bool(references)), 1, 2)
    groups = ({"reference": np.array(list(map(length, references)))} if references else {}) | lengths
    for (name, values), colour in zip(groups.items(), (["#666666"] if references else []) + list(COLOURS)):
        axis.ecdf(values, color=colour, linewidth=1.8, label=f"{name}: mean {values.mean():,.0f}")
    axis.set(xlim=0, ylim=(0, 1), xlabel="length in characters", ylabel="share of answers at most so long", title="Length of the answers")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), frameon=False)  # below: the curves may be anywhere
    change = lengths[names[1]] - lengths[names[0]]
    beside.hist(change, min(40, max(5, len(change) // 5)), color=COLOURS[1], alpha=0.7)
    beside.axvline(0, color="#333333", linewidth=1)
    mean = lengths[names[0]].mean()
    relative = f" ({change.mean() / mean:+.0%})" if mean else ""
    beside.axvline(change.mean(), color=COLOURS[4], linestyle="--")
    beside.set(xlabel=f"characters of {names[1]} less those of {names[0]}", ylabel="rows",
               title=f"Change of each answer: mean {change.mean():+,.1f} characters{relative}")
    return save(figure, path)


def by_group(tables: dict[str, dict], measure: str = "rouge_l", path=None):
    """Heat map of a measure: a row a group (department, scene), a column a system.

    tables: {system: a result of `text_scores.by_group`}, all of the same groups, in the order of the first one.
    """
    import seaborn
    first = next(iter(tables.values()))
    values = [[table[group][measure] for table in tables.values()] for group in first]
    longest = max(map(len, tables))
    figure, axis = _axes(2.8 + max(1.1, 0.1 * longest) * len(tables), 1.6 + 0.36 * len(first))
    seaborn.heatmap(values, annot=[[_short(value) for value in row] for row in values], fmt="", cmap="Blues", ax=axis, linewidths=0.5,
                    vmin=0, cbar_kws={"label": MEASURES[measure][0]}, xticklabels=list(tables),
                    yticklabels=[f"{group} ({entry['rows']:,} rows)" for group, entry in first.items()])
    axis.tick_params(length=0)
    axis.tick_params("x", rotation=0)
    axis.set_title(f"{MEASURES[measure][0]} by group")
    return save(figure, path)


def latency(systems: dict[str, dict], path=None):
    """The share of answers that began, and that were complete, within so many seconds: one curve a system, one panel a measure.

    Errors: ValueError when no system has times.
    """
    panels = [name for name in ("first_token", "seconds") if any(name in result["per_row"] for result in systems.values())]
    if not panels:
        raise ValueError("no system has times: give seconds (and first_token) to text_scores.score")
    figure, axes = _axes(5.2 * len(panels) + 0.3, 3.9 + 0.22 * len(systems), 1, len(panels), squeeze=False)
    for axis, measure in zip(axes[0], panels):
        for number, (name, result) in enumerate(systems.items()):
            if measure in result["per_row"]:
                part = result["latency"][measure]
                axis.ecdf(result["per_row"][measure], color=COLOURS[number % 5], linewidth=1.8,
                          label=f"{name}: p50 {part['p50']:.3g} s, p95 {part['p95']:.3g} s")
        axis.axhline(0.95, color="#999999", linestyle=":", linewidth=1)
        axis.set(xlim=0, ylim=(0, 1.02), xlabel=MEASURES[measure][0], ylabel="share of answers")
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=9)
    return save(figure, path)
