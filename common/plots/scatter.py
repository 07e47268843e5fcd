"""Scatter plots of latent codes over their prior."""

from collections.abc import Callable, Mapping, Sequence

from common.plots.figure import COLOURS, HALO, SMALL_SIZE, TEXT_SIZE, marker, new_figure, place, spread

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

CLOUD_POINTS = 1000  # prior samples that are drawn one by one: enough to show where they lie, codes stay visible
CONTOURS = {0.5: "solid", 0.9: "dashed", 0.99: "dotted"}  # prior mass enclosed: line style


def latent_scatter(
    codes: np.ndarray,
    labels: np.ndarray | None,
    title: str,
    prior_samples: np.ndarray,
    prior_log_prob: Callable[[np.ndarray], np.ndarray] | None = None,
    description: str = "",
) -> Figure:
    """Codes (n, 2) of held-out images over the prior, with the histograms of both along the axes.

    labels: (n,) class numbers, or None for one colour. prior_samples: (m, 2). prior_log_prob: (k, 2) -> (k,)
    nats, drawn as contours that enclose stated prior mass; without it up to CLOUD_POINTS of the samples.
    """
    clouds = {"codes": codes, "prior samples": prior_samples}
    limits = view(*clouds.values())
    description = description or f"Codes of {len(codes):,} held-out images and the prior p(z)"
    figure = new_figure(9.2, 6.9, title, description + not_shown(limits, clouds))
    axes = place(figure, 0.75, 0.6, 5.2, 5.2)
    draw_codes(axes, codes, labels, limits, ("z₁", "z₂"))
    if prior_log_prob is None:
        shown = draw_cloud(axes, prior_samples[:CLOUD_POINTS], "prior samples")
    else:
        shown = draw_contours(axes, prior_samples, prior_log_prob)
    above = place(figure, 0.75, 5.88, 5.2, 1.0, sharex=axes)
    beside = place(figure, 6.03, 0.6, 1.0, 5.2, sharey=axes)
    shown += draw_marginals(above, beside, codes, prior_samples)
    legends(axes, labels, shown, 1.24)
    return figure


def projection_scatter(
    points: np.ndarray,
    labels: np.ndarray | None,
    title: str,
    description: str,
    axis_names: tuple[str, str],
    prior_points: np.ndarray | None = None,
) -> Figure:
    """Codes of any size after a projection to two dimensions (n, 2), e.g. PCA or t-SNE, coloured by class.

    prior_points: (m, 2) prior samples through the same projection; up to CLOUD_POINTS are drawn, in black.
    """
    prior_points = None if prior_points is None else prior_points[:CLOUD_POINTS]
    clouds = {"codes": points} | ({} if prior_points is None else {"prior samples": prior_points})
    limits = view(*clouds.values())
    figure = new_figure(8.2, 6.3, title, description + not_shown(limits, clouds))
    axes = place(figure, 0.75, 0.6, 5.6, 5.6)
    draw_codes(axes, points, labels, limits, axis_names)
    shown = [] if prior_points is None else draw_cloud(axes, prior_points, "prior samples")
    legends(axes, labels, shown, 1.03)
    return figure


def view(*clouds: np.ndarray) -> np.ndarray:
    """Square limits, (axis, low and high), that hold 99.9 % of every cloud (n, 2) but not an outlier."""
    kept = np.concatenate([central(np.asarray(cloud, float)) for cloud in clouds])
    if not len(kept):
        return np.array([[-1.0, 1.0], [-1.0, 1.0]])
    low, high = kept.min(axis=0), kept.max(axis=0)
    half = 0.55 * (high - low).max() or 1.0
    return np.stack([(low + high) / 2 - half, (low + high) / 2 + half], axis=1)


def central(cloud: np.ndarray) -> np.ndarray:
    """The finite points of `cloud` (n, 2) without the 0.1 %, and at least one, that lie farthest out."""
    cloud = cloud[np.isfinite(cloud).all(axis=1)]
    if len(cloud) < 3:
        return cloud
    distance = np.abs(cloud - np.median(cloud, axis=0)).max(axis=1)
    return cloud[np.argsort(distance)[: -int(np.ceil(len(cloud) / 1000))]]


def not_shown(limits: np.ndarray, clouds: Mapping[str, np.ndarray]) -> str:
    """A sentence on the points that the axes leave out, or nothing."""
    counts = []
    for name, cloud in clouds.items():
        finite = np.isfinite(cloud).all(axis=1)
        outside = finite & ((cloud < limits[:, 0]) | (cloud > limits[:, 1])).any(axis=1)
        for number, fate in ((outside.sum(), "outside the axes"), ((~finite).sum(), "not finite")):
            if number:
                counts.append(f"{number:,} of {len(cloud):,} {name} {fate}")
    return f" · not shown: {', '.join(counts)}" if counts else ""


def draw_codes(
    axes: Axes,
    codes: np.ndarray,
    labels: np.ndarray | None,
    limits: np.ndarray,
    names: Sequence[str],
    numbered: bool = True,
) -> None:
    """Codes (n, 2) coloured by class, each class's number written at its median unless not `numbered`."""
    axes.set(xlim=limits[0], ylim=limits[1], xlabel=names[0], ylabel=names[1], aspect="equal")
    axes.tick_params(labelsize=TEXT_SIZE)
    finite = np.flatnonzero(np.isfinite(codes).all(axis=1))
    shuffled = np.random.default_rng(0).permutation(finite)  # sorted, the last class would cover the others
    codes = codes[shuffled]
    classes = np.zeros(len(codes), int) if labels is None else labels[shuffled]
    style = {"s": np.clip(3e4 / max(len(codes), 1), 4, 25), "alpha": 0.65, "linewidths": 0, "zorder": 2}
    for tens in np.unique(classes // 10):
        chosen = classes // 10 == tens
        axes.scatter(*codes[chosen].T, c=COLOURS[classes[chosen] % 10], marker=marker(10 * tens), **style)
    if numbered and labels is not None and len(codes):
        present = np.unique(classes)
        medians = np.stack([np.median(codes[classes == label], axis=0) for label in present])
        style = {"size": 13 if len(present) <= 10 else 9, "weight": "bold", "path_effects": HALO, "zorder": 5}
        for label, position in zip(present, spread(medians, 0.04 * np.ptp(limits[0])), strict=True):
            axes.text(*position, label, ha="center", va="center", **style)


def draw_cloud(axes: Axes, points: np.ndarray, name: str) -> list:
    """Points (m, 2) as small black dots, black being no class's colour; returns the legend's entry."""
    axes.scatter(*points.T, s=4, color="black", linewidths=0, zorder=3)
    return [Line2D([], [], color="black", marker="o", markersize=3, linestyle="none", label=f"{len(points):,} {name}")]


def draw_contours(axes: Axes, samples: np.ndarray, log_prob: Callable[[np.ndarray], np.ndarray]) -> list:
    """The prior's highest-density regions; returns the legend's entries, with the mass that each encloses."""
    at_samples = np.asarray(log_prob(samples), float)
    levels = contour_levels(at_samples, list(CONTOURS))
    (left, right), (bottom, top) = view(samples)
    x, y = np.meshgrid(np.linspace(left, right, 300), np.linspace(bottom, top, 300))
    grid = np.stack([x.ravel(), y.ravel()], axis=1).astype(samples.dtype)
    density = np.asarray(log_prob(grid), float).reshape(x.shape)
    density = np.maximum(density, levels.min() - 10)  # contours cannot be drawn beside -inf
    lines = []
    for level, style in zip(levels, CONTOURS.values(), strict=False):
        axes.contour(x, y, density, [level], colors="black", linestyles=style, linewidths=1.2, zorder=3)
        label = f"{(at_samples >= level).mean():.0%} of the prior".replace("%", " %")
        lines.append(Line2D([], [], color="black", linestyle=style, linewidth=1.2, label=label))
    return lines


def contour_levels(log_prob: np.ndarray, masses: Sequence[float]) -> np.ndarray:
    """The log densities above which lie the stated masses of the samples whose log densities (m,) are given.

    A flat prior has one level for all masses; it is then given once.
    """
    levels = np.quantile(log_prob, 1 - np.asarray(masses)).round(4)
    return np.unique(levels)[::-1] - 1e-4  # a plateau lies above its contour


def draw_marginals(above: Axes, beside: Axes, codes: np.ndarray, prior: np.ndarray) -> list:
    """Densities of codes and prior, both (n, 2), along the two axes; returns the legend's entries."""
    for axis, (axes, orientation) in enumerate(((above, "vertical"), (beside, "horizontal"))):
        low, high = axes.get_xlim() if axis == 0 else axes.get_ylim()
        edges = np.linspace(low, high, 61)
        for points, style in ((codes, {"color": "0.85", "fill": True}), (prior, {"color": "black"})):
            # divided by all points, whether the axes show them or not
            density = np.histogram(points[:, axis], edges)[0] / (len(points) * (edges[1] - edges[0]))
            axes.stairs(density, edges, orientation=orientation, **style)
        axes.tick_params(labelbottom=axis == 1, labelleft=axis == 0, labelsize=SMALL_SIZE)
        axes.spines[["top", "right"]].set_visible(False)
    above.yaxis.set_major_locator(MaxNLocator(3))
    beside.xaxis.set_major_locator(MaxNLocator(3, prune="lower"))  # 0 would touch the scatter plot's last label
    above.set_ylabel("density", size=SMALL_SIZE)
    beside.set_xlabel("density", size=SMALL_SIZE)
    names = ("codes, marginal", "prior, marginal")
    return [Patch(color="0.85", label=names[0]), Line2D([], [], color="black", label=names[1])]


def legends(axes: Axes, labels: np.ndarray | None, shown: list, x: float) -> None:
    """Right of the axes, from `x` in their widths: the classes above, whatever else is shown below."""
    style = {"frameon": False, "fontsize": TEXT_SIZE, "borderaxespad": 0, "handletextpad": 0.5}
    if shown:
        corner = {"loc": "lower left", "bbox_to_anchor": (x, 0), "bbox_transform": axes.transAxes}
        axes.figure.legend(handles=shown, **corner, **style)  # axes have room for one legend only
    if labels is not None:
        classes = np.unique(labels)
        dots = [
            Line2D([], [], color=COLOURS[label % 10], marker=marker(label), linestyle="none", label=label)
            for label in classes
        ]
        style |= {"title": "class", "alignment": "left", "ncols": -(-len(classes) // 15)}
        axes.legend(handles=dots, loc="upper left", bbox_to_anchor=(x, 1), **style)
