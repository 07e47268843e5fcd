"""Scatter plots of latent codes over their prior."""

from collections.abc import Callable, Mapping, Sequence

from common.plots.classes import OTHERS, Look, legend_width, legends, looks, not_told_apart
from common.plots.figure import (
    COLOURS,
    HALO,
    MARKERS,
    SMALL_SIZE,
    TEXT_SIZE,
    length,
    literal,
    name_axis,
    new_figure,
    own_style,
    place,
    spread,
)

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

CLOUD_POINTS = 1000  # prior samples that are drawn one by one: so few that the codes stay visible
POINTS_OF_A_NAME = 5  # a class with fewer points has no middle that a name could mark
MOST_WIDENINGS = 10  # the grid is widened at most so often, each time by a quarter, to hold a whole contour
CONTOURS = {0.5: "solid", 0.9: "dashed", 0.99: "dotted"}  # enclosed prior mass: line style


@own_style()
def latent_scatter(
    codes: np.ndarray,
    labels: np.ndarray | None,
    title: str,
    prior_samples: np.ndarray,
    prior_log_prob: Callable[[np.ndarray], np.ndarray] | None = None,
    description: str = "",
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Codes (n, 2) of held-out images over the prior, with the histograms of both along the axes.

    labels: (n,) class numbers, or None for one colour.
    prior_samples: (m, 2).
    prior_log_prob: (k, 2) -> (k,) nats, drawn as contours that enclose stated prior mass; without it, the figure shows
        up to CLOUD_POINTS samples.
    class_names: the name of class k at index k; a class without a name shows its number.
    """
    clouds = {"codes": codes, "prior samples": prior_samples}
    description = description or f"Codes of {len(codes):,} held-out images and the prior p(z)"
    prior = Density(prior_samples, prior_log_prob) if prior_log_prob and len(prior_samples) else None
    limits = view(*clouds.values(), *([prior.corners] if prior else []))
    notes = not_told_apart(labels) + not_shown(limits, clouds)
    side, left, right = 5.2, 0.75, 7.198  # of the legend
    figure = new_figure(max(9.2, right + legend_width(labels, class_names)), 6.9, title, description + notes)
    axes = place(figure, left, 0.6, side, side)
    draw_codes(axes, codes, labels, limits, ("z₁", "z₂"), class_names=class_names)
    shown = draw_contours(axes, prior) if prior else draw_cloud(axes, prior_samples[:CLOUD_POINTS], "prior samples")
    top_axes = place(figure, left, 5.88, side, 1.0, sharex=axes)
    side_axes = place(figure, 6.03, 0.6, 1.0, side, sharey=axes)
    shown += draw_marginals(top_axes, side_axes, codes, prior_samples)
    legends(axes, labels, shown, (right - left) / side, class_names)
    return figure


@own_style()
def latent_planes(
    codes: np.ndarray,
    labels: np.ndarray | None,
    title: str,
    prior_samples: np.ndarray,
    description: str = "",
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Codes (n, 3) of held-out images in the three coordinate planes, over up to CLOUD_POINTS prior samples (m, 3).

    labels: (n,) class numbers, or None for one colour.
    class_names: the name of class k at index k; a class without a name shows its number.
    """
    clouds = {"codes": codes, "prior samples": prior_samples}
    limits = view(*clouds.values())
    description = description or f"Codes of {len(codes):,} held-out images and the prior p(z): the coordinate planes"
    notes = not_told_apart(labels) + not_shown(limits, clouds)
    side, left, across = 3.3, 0.75, 3.95
    width = left + 3 * across + max(1.45, legend_width(labels, class_names))
    figure = new_figure(width, side + 0.6 + 0.05, title, description + notes)
    names = ("z₁", "z₂", "z₃")
    for number, plane in enumerate(([0, 1], [0, 2], [1, 2])):
        axes = place(figure, left + across * number, 0.6, side, side)
        axis_names = [names[axis] for axis in plane]
        draw_codes(axes, codes[:, plane], labels, limits[plane], axis_names, class_names=class_names)
        shown = draw_cloud(axes, prior_samples[:CLOUD_POINTS, plane], "prior samples")
    legends(axes, labels, shown, 1.05, class_names)
    return figure


@own_style()
def projection_scatter(
    points: np.ndarray,
    labels: np.ndarray | None,
    title: str,
    description: str,
    axis_names: tuple[str, str],
    prior_points: np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Codes of any size after a projection to two dimensions (n, 2), e.g. PCA or t-SNE, coloured by class.

    prior_points: (m, 2) prior samples through the same projection; up to CLOUD_POINTS are drawn, in black.
    class_names: the name of class k at index k; a class without a name shows its number.
    """
    prior_points = None if prior_points is None else prior_points[:CLOUD_POINTS]
    clouds = {"codes": points} | ({} if prior_points is None else {"prior samples": prior_points})
    limits = view(*clouds.values())
    notes = not_told_apart(labels) + not_shown(limits, clouds)
    side, left = 5.6, 0.75
    right = left + 1.03 * side
    figure = new_figure(max(8.2, right + legend_width(labels, class_names)), 6.3, title, description + notes)
    axes = place(figure, left, 0.6, side, side)
    draw_codes(axes, points, labels, limits, axis_names, class_names=class_names)
    shown = [] if prior_points is None else draw_cloud(axes, prior_points, "prior samples")
    legends(axes, labels, shown, 1.03, class_names)
    return figure


def view(*clouds: np.ndarray) -> np.ndarray:
    """Limits of equal lengths, (axis, low and high), that hold 99.9 % of every cloud (n, d), without outliers."""
    kept = np.concatenate([central(np.asarray(cloud, float)) for cloud in clouds])
    if not len(kept):
        return np.array([[-1.0, 1.0]] * kept.shape[1])
    low, high = kept.min(axis=0), kept.max(axis=0)
    middle, half = (low + high) / 2, 0.55 * (high - low).max()
    if half <= 1e-9 * np.abs(middle).max():  # an axis shows all points as one
        half = max(1.0, 0.05 * np.abs(middle).max())
    return np.stack([middle - half, middle + half], axis=1)


def central(cloud: np.ndarray) -> np.ndarray:
    """The finite points of `cloud` (n, d) without the outermost 0.1 %, which is at least one point."""
    cloud = cloud[np.isfinite(cloud).all(axis=1)]
    if len(cloud) < 3:
        return cloud
    distance = np.abs(cloud - np.median(cloud, axis=0)).max(axis=1)
    return cloud[np.argsort(distance)[: -int(np.ceil(len(cloud) / 1000))]]


def not_shown(limits: np.ndarray, clouds: Mapping[str, np.ndarray]) -> str:
    """Text for a description about points that the axes leave out; empty if there are none."""
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
    axis_names: Sequence[str],
    numbered: bool = True,
    class_names: Sequence[str] | None = None,
) -> None:
    """Draw codes (n, 2) coloured by class. If `numbered`, each class's name is written at its median."""
    axes.set(xlim=limits[0], ylim=limits[1], aspect="equal")
    axes.tick_params(labelsize=TEXT_SIZE)
    for axis, name in zip((axes.xaxis, axes.yaxis), axis_names, strict=True):
        name_axis(axis, literal(name))
    finite = np.flatnonzero(np.isfinite(codes).all(axis=1))
    shuffled = np.random.default_rng(0).permutation(finite)  # in order, the last class would cover the others
    codes = codes[shuffled]
    classes = looks(labels, class_names)
    style = {"s": np.clip(3e4 / max(len(codes), 1), 4, 25), "alpha": 0.65, "linewidths": 0, "zorder": 2}
    if not classes:
        axes.scatter(*codes.T, c=np.tile(COLOURS[:1], (len(codes), 1)), marker=MARKERS[0], **style)
        return
    ordered = [look.label for look in classes]
    labels = np.asarray(labels)[shuffled]
    ranks = np.searchsorted(ordered, labels).clip(max=len(ordered) - 1)
    others = np.asarray(ordered)[ranks] != labels
    if others.any():
        axes.scatter(*codes[others].T, color=OTHERS, marker="o", **style)
    for symbol in dict.fromkeys(look.marker for look in classes):
        alike = np.array([look.marker == symbol for look in classes])
        chosen = alike[ranks] & ~others
        colours = np.array([look.colour for look in classes])[ranks[chosen]]
        axes.scatter(*codes[chosen].T, c=colours, marker=symbol, **style)
    if numbered and not others.any():
        write_names(axes, [(look, codes[labels == look.label]) for look in classes])


def write_names(axes: Axes, groups: Sequence[tuple[Look, np.ndarray]]) -> None:
    """Write each class's name at the median of its codes (n, 2), unless names are so many or long that they hide codes.

    A class with fewer than POINTS_OF_A_NAME codes gets no name.
    """
    longest = max(len(look.name) for look, _ in groups)
    groups = [(look.name, codes) for look, codes in groups if len(codes) >= POINTS_OF_A_NAME]
    if not groups or len(groups) > (25 if longest <= 3 else 10) or longest > 12:
        return
    limits = np.array([axes.get_xlim(), axes.get_ylim()])
    inches = axes.get_position().width * axes.figure.get_figwidth()
    inch = np.ptp(limits[0]) / inches
    size = 13 if len(groups) <= 10 and longest <= 3 and inches > 4 else TEXT_SIZE
    distance = max(0.04 * np.ptp(limits[0]), 0.16 * inch)
    widths = [length(name, size, "bold") * inch for name, _ in groups]
    stretch = np.array([max(1.0, 1.4 * max(widths) / distance), 1.0])  # words are wider than high
    medians = np.stack([np.median(codes, axis=0) for _, codes in groups])
    places = spread(medians / stretch, distance) * stretch
    style = {"ha": "center", "va": "center", "size": size, "weight": "bold", "path_effects": HALO, "zorder": 5}
    edge = np.array([0.5 * max(widths), 0.5 * size / 72 * inch])
    inside = np.clip(places, limits[:, 0] + edge, limits[:, 1] - edge)
    for (name, _), position in zip(groups, inside, strict=True):
        axes.text(*position, name, **style)


def draw_cloud(axes: Axes, points: np.ndarray, name: str) -> list:
    """Draw points (m, 2) as small black dots, a colour that no class has; returns the legend's entry."""
    axes.scatter(*points.T, s=4, color="black", linewidths=0, zorder=3)
    return [Line2D([], [], color="black", marker="o", markersize=3, linestyle="none", label=f"{len(points):,} {name}")]


class Density:
    """A prior's log density on a grid that holds the whole outermost contour.

    levels: log densities of the contours, which enclose the masses of CONTOURS.
    masses: the shares of the samples that they really enclose.
    corners: (2, 2), the lowest and the highest point of the outermost contour.
    """

    def __init__(self, samples: np.ndarray, log_prob: Callable[[np.ndarray], np.ndarray]):
        """samples: (m, 2), m > 0. log_prob: (k, 2) -> (k,) nats."""
        at_samples = np.asarray(log_prob(samples), float)
        self.levels = contour_levels(at_samples[np.isfinite(at_samples)], list(CONTOURS))
        self.masses = [(at_samples >= level).mean() for level in self.levels]
        limits = view(samples)
        for _ in range(MOST_WIDENINGS):
            self.x, self.y = np.meshgrid(*(np.linspace(*axis, 300) for axis in limits))
            grid = np.stack([self.x.ravel(), self.y.ravel()], axis=1).astype(samples.dtype)
            density = np.asarray(log_prob(grid), float).reshape(self.x.shape)
            inside = density >= self.levels.min()
            if not (inside[[0, -1]].any() or inside[:, [0, -1]].any()):
                break
            limits = limits + 0.125 * np.ptp(limits, axis=1, keepdims=True) * [-1.0, 1.0]
        else:
            inside = np.zeros_like(inside)  # the contour has no near end: the axes do not try to hold it
        self.values = np.maximum(density, self.levels.min() - 10)  # contours cannot be drawn next to -inf
        enclosed = np.stack([self.x[inside], self.y[inside]], axis=1)
        self.corners = np.stack([enclosed.min(axis=0), enclosed.max(axis=0)]) if len(enclosed) else np.empty((0, 2))


def draw_contours(axes: Axes, prior: Density) -> list:
    """Draw the prior's highest-density regions; returns the legend's entries, with the mass that each encloses."""
    lines = []
    for level, mass, style in zip(prior.levels, prior.masses, CONTOURS.values(), strict=False):
        axes.contour(
            prior.x, prior.y, prior.values, [level], colors="black", linestyles=style, linewidths=1.2, zorder=3
        )
        label = f"{mass:.0%} of the prior".replace("%", " %")
        lines.append(Line2D([], [], color="black", linestyle=style, linewidth=1.2, label=label))
    return lines


def contour_levels(log_prob: np.ndarray, masses: Sequence[float]) -> np.ndarray:
    """Levels of log density: the stated masses of samples, whose log densities (m,) are given, lie above them.

    A flat prior has one level for all masses, which is then returned once.
    """
    levels = np.quantile(log_prob, 1 - np.asarray(masses)).round(4)
    return np.unique(levels)[::-1] - 1e-4  # a plateau lies above its contour


def draw_marginals(top_axes: Axes, side_axes: Axes, codes: np.ndarray, prior: np.ndarray) -> list:
    """Draw densities of codes and prior, both (n, 2), along the two axes; returns the legend's entries."""
    for axis, (axes, orientation) in enumerate(((top_axes, "vertical"), (side_axes, "horizontal"))):
        low, high = axes.get_xlim() if axis == 0 else axes.get_ylim()
        edges = np.linspace(low, high, 61)
        for points, style in ((codes, {"color": "0.85", "fill": True}), (prior, {"color": "black"})):
            # divided by the number of all points, also of those outside the axes
            density = np.histogram(points[:, axis], edges)[0] / (max(len(points), 1) * (edges[1] - edges[0]))
            axes.stairs(density, edges, orientation=orientation, **style)
        axes.tick_params(labelbottom=axis == 1, labelleft=axis == 0, labelsize=SMALL_SIZE)
        axes.spines[["top", "right"]].set_visible(False)
    top_axes.yaxis.set_major_locator(MaxNLocator(3))
    side_axes.xaxis.set_major_locator(MaxNLocator(3, prune="lower"))  # 0 would touch the scatter plot's last label
    name_axis(top_axes.yaxis, "density", (-4, 5), size=SMALL_SIZE)
    name_axis(side_axes.xaxis, "density", (-4, 5), size=SMALL_SIZE)
    names = ("codes, marginal", "prior, marginal")
    return [Patch(color="0.85", label=names[0]), Line2D([], [], color="black", label=names[1])]
