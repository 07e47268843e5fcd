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
    """Codes (n, 1) of held-out images over the prior's density; below, one row with a histogram for each class.

    labels: (n,) class numbers, or None for no rows.
    prior_samples: (m, 1).
    prior_log_prob: (k, 1) -> (k,) nats; without it, the figure shows a histogram of the samples.
    class_names: the name of class k at index k; a class without a name shows its number.
    """
    clouds = {"codes": codes, "prior samples": prior_samples}
    limits = view(*clouds.values())
    edges = np.linspace(*limits[0], BINS + 1)
    description = description or f"Codes of {len(codes):,} held-out images over the prior p(z)"
    if labels is not None:
        description += " · rows: the codes of each class, scaled to the same highest bar"
    rows = rows_of(codes, labels, class_names)
    left = 0.75 + max([0.0, *(length(name, TEXT_SIZE) - 0.3 for name, *_ in rows)])
    down = 0.6 + (ROW * len(rows) + 0.2 if rows else 0.0)
    notes = not_told_apart(labels) + not_shown(limits, clouds)
    figure = new_figure(left + 5.6 + 2.2, down + 2.85, title, description + notes)
    density_axes = place(figure, left, down, 5.6, 2.8)
    shown = draw_densities(density_axes, codes, prior_samples, prior_log_prob, edges)
    corner = {"loc": "upper left", "bbox_to_anchor": (1.02, 1), "borderaxespad": 0}
    density_axes.legend(handles=shown, frameon=False, fontsize=TEXT_SIZE, **corner)
    bottom_axes = density_axes
    if rows:
        density_axes.tick_params(labelbottom=False)
        bottom_axes = place(figure, left, 0.6, 5.6, ROW * len(rows), sharex=density_axes)
        draw_rows(bottom_axes, rows, edges)
    name_axis(bottom_axes.xaxis, "z")
    return figure


def rows_of(codes: np.ndarray, labels: np.ndarray | None, class_names: Sequence[str] | None) -> list[tuple]:
    """(name, colour, codes (k, 1)) of every class with a look of its own and, last, of all other classes."""
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
    """Draw the density of all codes (n, 1) as bars and the prior's as a line; returns the legend's entries."""
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
    """Histogram of a cloud (n, 1), divided by the number of all its points, also of those outside the edges."""
    return np.histogram(cloud, edges)[0] / (max(len(cloud), 1) * (edges[1] - edges[0]))


def draw_rows(axes: Axes, rows: Sequence[tuple], edges: np.ndarray) -> None:
    """Draw a histogram for each (name, colour, codes (k, 1)), the first at the top."""
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
