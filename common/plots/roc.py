"""Scores of normal and anomalous rows, and ROC curves."""

from collections.abc import Sequence
from typing import NamedTuple

from common.numbers import Estimate, plus_minus
from common.plots.curves import robust_range
from common.plots.figure import COLOURS, MARGIN, TEXT_SIZE, literal, name_axis, new_figure, own_style, place

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BINS = 40
SIDE, LEFT, GAP, BOTTOM = 2.9, 0.75, 0.95, 1.75  # inches: of a panel, left of it, between the two, and below them
LINES = ("solid", "dashed", "dashdot", "dotted", (0, (5, 1, 1, 1, 1, 1)))
REACH = 4.0  # how far beyond the normal rows a histogram goes at most, in units of their range
OFF_SCALE = "; the bars at the ends hold all scores beyond"


class Curve(NamedTuple):
    """The ROC curve of a score."""

    name: str
    normal_share: np.ndarray  # (k,), rising from 0 to 1: false alarms
    anomalous_share: np.ndarray  # (k,), rising from 0 to 1: anomalies that are found
    area: Estimate


@own_style()
def roc_curves(
    scores: np.ndarray, anomalous: np.ndarray, curves: Sequence[Curve], title: str, description: str, score: str
) -> Figure:
    """Histograms of the scores of normal and of anomalous rows; beside them, ROC curves with their areas.

    scores: (n,), higher for a more anomalous row; infinite ones are drawn at the end.
    anomalous: (n,) truth values, some of either kind.
    curves: one to ten.
    score: what the scores are, for the axis.
    """
    edges = np.linspace(*limits(scores, anomalous), BINS + 1)
    width = LEFT + 2 * SIDE + GAP + 0.35
    cut = scores.min() < edges[0] or scores.max() > edges[-1]
    below = max(BOTTOM, 0.6 + 0.18 * (len(curves) + 1) + MARGIN)
    figure = new_figure(width, below + SIDE + 0.15, title, description + OFF_SCALE * bool(cut))
    left = place(figure, LEFT, below, SIDE, SIDE)
    draw_histograms(left, scores, anomalous, edges, score)
    right = place(figure, LEFT + SIDE + GAP, below, SIDE, SIDE)
    draw_curves(right, curves)
    corner = {"loc": "upper left", "borderaxespad": 0, "frameon": False, "fontsize": TEXT_SIZE}
    for axes in (left, right):
        axes.tick_params(labelsize=TEXT_SIZE)
        axes.legend(bbox_to_anchor=(-0.05, -0.55 / SIDE), **corner)
    return figure


def limits(scores: np.ndarray, anomalous: np.ndarray) -> tuple[float, float]:
    """The range of the histograms: that of the normal rows without outliers, and of anomalous rows that are near it."""
    normal, others = (scores[kind & np.isfinite(scores)] for kind in (~anomalous, anomalous))
    if not len(normal):
        normal = others if len(others) else np.zeros(1)
    low, high = robust_range(normal)
    reach = REACH * max(high - low, 1e-6 * abs(high), 1e-6)
    bottom, top = np.quantile(others, (0.02, 0.98)) if len(others) else (low, high)
    return float(max(min(low, bottom), low - reach)), float(min(max(high, top, low + reach / REACH), high + reach))


def draw_histograms(axes: Axes, scores: np.ndarray, anomalous: np.ndarray, edges: np.ndarray, score: str) -> None:
    """The share of each kind of rows in each bin: normal ones filled, anomalous ones as a line."""
    shown = np.clip(scores, edges[0], edges[-1])
    for kind, name, style in (
        (~anomalous, "normal", {"fill": True, "color": COLOURS[0], "alpha": 0.5}),
        (anomalous, "anomalous", {"color": COLOURS[2], "linewidth": 1.5}),
    ):
        shares = np.histogram(shown[kind], edges)[0] / max(kind.sum(), 1)
        axes.stairs(shares, edges, label=f"{kind.sum():,} {name} rows", **style)
    axes.set(xlim=(edges[0], edges[-1]), ylim=(0, None))
    name_axis(axes.xaxis, literal(score, 1.2 * SIDE), (-3, 5), size=TEXT_SIZE)
    axes.set_ylabel("share of these rows", size=TEXT_SIZE)
    axes.spines[["top", "right"]].set_visible(False)


def draw_curves(axes: Axes, curves: Sequence[Curve]) -> None:
    """ROC curves over the diagonal of a score without information."""
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for number, curve in enumerate(curves):
        style = {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number % len(LINES)], "linewidth": 1.8}
        label = f"{literal(curve.name)}: {plus_minus(*curve.area, 3)}"
        axes.plot(curve.normal_share, curve.anomalous_share, label=label, **style)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_xlabel("share of normal rows above the threshold", size=TEXT_SIZE)
    axes.set_ylabel("share of anomalous rows above it", size=TEXT_SIZE)
    axes.spines[["top", "right"]].set_visible(False)
