"""One-dimensional codes over their prior, all together and by class."""

from collections.abc import Callable, Sequence

from common.plots.classes import OTHERS, looks, not_told_apart, other_classes
from common.plots.figure import TEXT_SIZE, length, name_axis, new_figure, own_style, place
from common.plots.scatter import not_shown, view

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

BINS = 60
ROW = 0.25  # inches of a class
ALL_CODES = "0.85"  # grey, as in the marginals of a scatter plot


@own_style()
def latent_histogram(
    codes: np.ndarray,
    labels: np.ndarray | None,
    title: str,
    prior_samples: np.ndarray,
    prior_log_prob: Callable[[np.ndarray], np.ndarray] | None = None,
    description: str = "",
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Codes (n, 1) of held-out images over the prior's density; below, a histogram for each class, one to a row.

    labels: (n,) class numbers, or None for no rows. prior_samples: (m, 1). prior_log_prob: (k, 1) -> (k,) nats;
    without it the histogram of the samples. class_names: the name of class k at index k, else its number.
    """
    clouds = {"codes": codes, "prior samples": prior_samples}
    limits = view(*clouds.values())
    edges = np.linspace(*limits[0], BINS + 1)
    description = description or f"Codes of {len(codes):,} held-out images over the prior p(z)"
    if labels is not None:
        description += " · rows: the codes of each class, its highest bar to full height"
    rows = rows_of(codes, labels, class_names)
    left = 0.75 + max([0.0, *(length(name, TEXT_SIZE) - 0.3 for name, *_ in rows)])
    down = 0.6 + (ROW * len(rows) + 0.2 if rows else 0.0)
    notes = not_told_apart(labels) + not_shown(limits, clouds)
    figure = new_figure(left + 5.6 + 2.2, down + 2.85, title, description + notes)
    above = place(figure, left, down, 5.6, 2.8)
    shown = draw_densities(above, codes, prior_samples, prior_log_prob, edges)
    corner = {"loc": "upper left", "bbox_to_anchor": (1.02, 1), "borderaxespad": 0}
    above.legend(handles=shown, frameon=False, fontsize=TEXT_SIZE, **corner)
    lowest = above
    if rows:
        above.tick_params(labelbottom=False)
        lowest = place(figure, left, 0.6, 5.6, ROW * len(rows), sharex=above)
        draw_rows(lowest, rows, edges)
    name_axis(lowest.xaxis, "z")
    return figure


def rows_of(codes: np.ndarray, labels: np.ndarray | None, class_names: Sequence[str] | None) -> list[tuple]:
    """(name, colour, codes (k, 1)) of every class with a look of its own and, last, of all others."""
    classes = looks(labels, class_names)
    rows = [(look.name, look.colour, codes[labels == look.label]) for look in classes]
    others = other_classes(labels)
    if others:
        rest = ~np.isin(labels, [look.label for look in classes])
        rows.append((f"{others:,} others", OTHERS, codes[rest]))
    return rows


def draw_densities(
    axes: Axes,
    codes: np.ndarray,
    prior_samples: np.ndarray,
    log_prob: Callable[[np.ndarray], np.ndarray] | None,
    edges: np.ndarray,
) -> list:
    """Density of all codes (n, 1) as bars, the prior's as a line; returns the legend's entries."""
    axes.stairs(density(codes, edges), edges, color=ALL_CODES, fill=True)
    if log_prob is None:
        axes.stairs(density(prior_samples, edges), edges, color="black")
        name = f"{len(prior_samples):,} prior samples"
    else:
        z = np.linspace(edges[0], edges[-1], 1000)
        axes.plot(z, np.exp(np.asarray(log_prob(z[:, None].astype(prior_samples.dtype)), float)), color="black")
        name = "prior p(z)"
    axes.set(xlim=(edges[0], edges[-1]), ylim=(0, None))
    axes.tick_params(labelsize=TEXT_SIZE)
    name_axis(axes.yaxis, "density", (-4, 5))
    axes.spines[["top", "right"]].set_visible(False)
    return [Patch(color=ALL_CODES, label=f"{len(codes):,} codes"), Line2D([], [], color="black", label=name)]


def density(cloud: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Histogram of a cloud (n, 1), divided by all of its points, whether the edges hold them or not."""
    return np.histogram(cloud, edges)[0] / (max(len(cloud), 1) * (edges[1] - edges[0]))


def draw_rows(axes: Axes, rows: Sequence[tuple], edges: np.ndarray) -> None:
    """A histogram for each (name, colour, codes (k, 1)), the first on top."""
    for number, (_, colour, codes) in enumerate(rows):
        heights = np.histogram(codes, edges)[0]
        bottom = len(rows) - 1 - number
        tops = bottom + 0.85 * heights / max(heights.max(), 1)
        axes.stairs(tops, edges, baseline=bottom, fill=True, color=colour)
        axes.axhline(bottom, color="0.6", linewidth=0.5)
    axes.set(ylim=(0, len(rows)), ylabel="class")
    axes.set_yticks(np.arange(len(rows))[::-1] + 0.4, [name for name, *_ in rows])
    axes.tick_params(labelsize=TEXT_SIZE)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)
