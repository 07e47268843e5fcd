"""Figures from NumPy arrays: codes, samples, reconstructions and the course of training.

Every function returns a `Figure` built without pyplot, so that no backend is chosen and no figure stays open.
Each figure carries a title and, below it, a description of what is shown and of how many images.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import color_sequences, colormaps
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Patch
from matplotlib.patheffects import withStroke
from matplotlib.textpath import text_to_path
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from common.evaluation.plane import Plane
from common.files import whole

DPI = 128  # a power of two: whole pixels remain whole when they pass through inches
MARGIN = 0.125  # inches around everything
TITLE_SIZE, TEXT_SIZE, SMALL_SIZE = 12, 9, 8  # points
COLOURS = np.array(color_sequences["petroff10"])  # told apart by colour-blind readers as well
MARKERS = "o^sDvP*X"  # the first for classes 0 to 9, the second for 10 to 19, ...
HALO = [withStroke(linewidth=2.5, foreground="white")]
CURVES = (  # prefix in a history, label, line, marker of a lone value, colour
    ("", "training", "solid", "o", COLOURS[0]),
    ("val_", "validation", "dashed", "D", COLOURS[2]),
)
FORWARD = {"linestyle": "-", "marker": "o", "color": COLOURS[0]}
CLOUD_POINTS = 1000  # prior samples that are drawn one by one: enough to show where they lie, codes stay visible
CONTOURS = {0.5: "solid", 0.9: "dashed", 0.99: "dotted"}  # prior mass enclosed: line style


def save(figure: Figure, path: str | Path) -> None:
    """Write a PNG under `path` all at once or not at all, whatever interrupts it."""
    with whole(path) as unfinished:
        figure.savefig(unfinished, dpi=DPI, format="png")


def save_animation(animation: FuncAnimation, path: str | Path, frames_a_second: int = 12) -> None:
    """Write a GIF under `path` all at once or not at all."""
    with whole(path) as unfinished:
        animation.save(unfinished, writer=PillowWriter(frames_a_second), dpi=0.75 * DPI)


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


class Map(NamedTuple):
    """Points (n, 2) in `maps`, the names of the axes, and perhaps marked points (m, 2) that belong to none."""

    name: str
    points: np.ndarray
    axis_names: tuple[str, str]
    marked: np.ndarray | None = None


def maps(panels: Sequence[Map], labels: np.ndarray, title: str, description: str, marks: str = "") -> Figure:
    """Several maps of the same images, two a row, labels (n,) for all; `marks` says what marked points are."""
    side, left, up = 4.3, 0.75, 4.95
    rows, columns = -(-len(panels) // 2), min(2, len(panels))
    figure = new_figure((left + side) * columns + 1.45, up * rows + 0.05, title, description)
    for number, panel in enumerate(panels):
        row, column = divmod(number, 2)
        axes = place(figure, left + (left + side) * column, 0.5 + up * (rows - 1 - row), side, side)
        shown = [] if panel.marked is None else [panel.marked]
        draw_codes(axes, panel.points, labels, view(panel.points, *shown), panel.axis_names)
        for points in shown:
            style = {"s": 60, "color": "black", "marker": "+", "linewidths": 1.5, "zorder": 4}
            axes.scatter(*points.T, **style, path_effects=HALO)
        axes.set_title(panel.name, size=TEXT_SIZE, weight="bold")
        if number == columns - 1:
            marked = any(panel.marked is not None for panel in panels)
            entry = Line2D([], [], color="black", marker="+", linestyle="none", label=textwrap.fill(marks, 14))
            legends(axes, labels, [entry] if marked else [], 1.04)
    return figure


def image_grid(images: np.ndarray, title: str, description: str, columns: int = 10) -> Figure:
    """Images (n, h, w) or (n, d) in [0, 1] as tiles, in reading order."""
    figure, *_ = draw_tiles(in_rows(as_images(images), columns), title, description)
    return figure


def image_pairs(
    above: np.ndarray, below: np.ndarray, names: tuple[str, str], title: str, description: str, columns: int = 10
) -> Figure:
    """Each image above its partner, such as reconstruction and original; both (n, h, w) or (n, d) in [0, 1].

    names: of the upper and the lower of each pair.
    """
    pairs = [in_rows(as_images(images), columns) for images in (above, below)]
    tiles = np.stack(pairs, axis=1)  # (rows, 2, columns, h, w)
    tiles = tiles.reshape(-1, *tiles.shape[2:])
    figure, axes, _, y = draw_tiles(tiles, title, description, together=2, left=1.0)
    axes.set_yticks(y, list(names) * (len(tiles) // 2))
    return figure


def manifold(images: np.ndarray, percentiles: np.ndarray, title: str, description: str) -> Figure:
    """Decoder output on a grid over a 2-D code: images (n, n, h, w) in [0, 1], percentiles (n,) in percent.

    images[i, j] belongs to the i-th percentile of z₂ and the j-th of z₁. z₂ grows upwards, as in a scatter.
    """
    figure, axes, x, y = draw_tiles(as_tiles(images)[::-1], title, description, left=0.7, bottom=0.5)
    names = [f"{percentile:.3g}" for percentile in percentiles]
    axes.set_xticks(x, names)
    axes.set_yticks(y, names[::-1])
    axes.set_xlabel("z₁, percentile of prior (%)")
    axes.set_ylabel("z₂, percentile of prior (%)")
    return figure


def interpolations(images: np.ndarray, title: str, description: str) -> Figure:
    """Decoded points on the way between the codes of two held-out images: (rows, steps, h, w) in [0, 1].

    One pair of images a row.
    """
    figure, axes, x, _ = draw_tiles(as_tiles(images), title, description, bottom=0.5)
    axes.set_xticks(x, [f"{way:.2g}" for way in np.linspace(0, 1, len(x))])
    axes.set_xlabel("first code (0) to second code (1)")
    return figure


def named_tiles(
    images: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    x_label: str,
    title: str,
    description: str,
    together: int = 0,
    left: float = 0.8,
) -> Figure:
    """Images (rows, columns, h, w) or (rows, columns, d) in [0, 1] under the names of rows and columns; NaN is white.

    x_label: what the columns are. together: rows to a group, 0 for one group. left: inches for the rows' names.
    """
    figure, axes, x, y = draw_tiles(as_tiles(images), title, description, together, left=left, bottom=0.5)
    axes.set_xticks(x, columns)
    axes.set_yticks(y, rows)
    axes.set_xlabel(x_label)
    return figure


def codes_and_walks(
    codes: np.ndarray,
    labels: np.ndarray,
    prior_samples: np.ndarray,
    images: np.ndarray,
    axis_names: tuple[str, str],
    title: str,
    description: str,
) -> Figure:
    """Codes (n, 2) by class over prior samples (m, 2); beside them what is decoded on walks through the prior's modes.

    labels: (n,). images: (modes, steps, h, w) or (modes, steps, d) in [0, 1], a row a mode, named by its number in the
    colour of that class. axis_names: of the walk's steps, and of its rows.
    """
    canvas, _, y = canvas_of(as_tiles(images), width=660)
    side, left, gap, bottom = 4.5, 0.75, 0.75, 0.625  # eighths of an inch: whole pixels
    across, up = canvas.shape[1] / DPI, canvas.shape[0] / DPI
    clouds = {"codes": codes, "prior samples": prior_samples}
    limits = view(*clouds.values())
    description = description + not_shown(limits, clouds)
    height = bottom + max(side, up) + MARGIN
    figure = new_figure(left + side + gap + across + MARGIN, height, title, description)
    axes = place(figure, left, height - MARGIN - side, side, side)
    draw_codes(axes, codes, labels, limits, ("z₁", "z₂"))
    draw_cloud(axes, prior_samples[:CLOUD_POINTS], "prior samples")
    beside = place(figure, left + side + gap, height - MARGIN - up, across, up)
    show_canvas(beside, canvas)
    beside.set_yticks(y, range(len(y)))
    beside.set_xlabel(axis_names[0])
    beside.set_ylabel(axis_names[1])
    for number, name in enumerate(beside.get_yticklabels()):
        name.set(size=13, weight="bold", color=COLOURS[number % 10])
    return figure


def dots(panels: Mapping[str, Mapping], rows: Sequence[str], title: str, description: str) -> Figure:
    """Estimates with standard errors, a row a name, panels side by side.

    panels: name of the horizontal axis -> series -> row -> (value, standard error); a row may be missing in a series.
    """
    figure = new_figure(10.5, 0.42 * len(rows) + 1.6, title, description, layout="constrained")
    all_axes = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
    series_names = [name for series in panels.values() for name in series]
    for axes, (label, series) in zip(all_axes, panels.items(), strict=True):
        for number, (name, points) in enumerate(series.items()):
            at = np.array([rows.index(row) for row in points]) + 0.22 * (number - (len(series) - 1) / 2)
            values, errors = np.array(list(points.values())).reshape(-1, 2).T
            order = series_names.index(name)
            style = {"color": COLOURS[order], "marker": MARKERS[order], "markersize": 5, "linestyle": "none"}
            axes.errorbar(values, at, xerr=errors, capsize=3, label=name, **style)
        axes.set_xlabel(label)
        axes.grid(axis="y", color="0.9")
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=TEXT_SIZE)
        axes.legend(
            loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(series), frameon=False, fontsize=SMALL_SIZE
        )
    all_axes[0].set_yticks(range(len(rows)), rows)
    all_axes[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


class Spectrum(NamedTuple):
    """A row of `spectra`: values (d,), largest first; images (n, h, w) or (n, d) in [0, 1]; a line of numbers."""

    values: np.ndarray
    images: np.ndarray
    numbers: str


def spectra(
    rows: Mapping[str, Spectrum], originals: np.ndarray, title: str, description: str, x_label: str, y_label: str
) -> Figure:
    """A row a name: its values as bars on one logarithmic scale, from a thousandth, and its images beside them.

    originals: images (n, h, w) or (n, d) that stand above all.
    """
    strips = [in_rows(as_images(images), len(images)) for images in (originals, *(row.images for row in rows.values()))]
    canvases = [canvas_of(strip, width=760)[0] for strip in strips]
    across, up = canvases[0].shape[1] / DPI, canvases[0].shape[0] / DPI
    side, left, gap, bottom, down = 3.5, 2.0, 0.375, 0.5, 1.25
    figure = new_figure(left + side + gap + across + MARGIN, bottom + down * len(rows) + up, title, description)
    top = max(0.1, 2 * max(row.values.max() for row in rows.values()))  # of nothing at all as well
    for number, (name, row) in enumerate(rows.items()):
        low = bottom + down * (len(rows) - 1 - number)
        axes = place(figure, left, low, side, down - 0.375)
        axes.set(ylim=(1e-3, top), yscale="log", xlim=(0, len(row.values) + 1))
        axes.bar(np.arange(1, len(row.values) + 1), row.values, width=1.0, color=COLOURS[0])
        axes.yaxis.set_major_locator(LogLocator(numticks=9))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.minorticks_off()
        axes.tick_params(labelsize=SMALL_SIZE, labelbottom=number == len(rows) - 1)
        axes.set_ylabel(y_label, size=SMALL_SIZE)
        style = {"ha": "right", "va": "center", "size": TEXT_SIZE, "weight": "bold"}
        wrapped_name = "\n".join(textwrap.fill(line, 14) for line in name.splitlines())
        axes.text(-0.21, 0.5, wrapped_name, transform=axes.transAxes, **style)
        beside = place(figure, left + side + gap, low, across, up)
        show_canvas(beside, canvases[number + 1])
        beside.set_title(row.numbers, size=SMALL_SIZE, loc="left", pad=3)
    axes.set_xlabel(x_label, size=SMALL_SIZE)
    above = place(figure, left + side + gap, bottom + down * len(rows), across, up)
    show_canvas(above, canvases[0])
    above.set_ylabel("originals", size=SMALL_SIZE, rotation=0, ha="right", va="center")
    return figure


class Curve(NamedTuple):
    """A series in `bands`: x (n,), a row of values for each seed (seeds, n), and the style of its line, or "none"."""

    x: np.ndarray
    values: np.ndarray
    line: str = "solid"


def curve_of(runs: Sequence[Mapping[str, Sequence[float]]], key: str, factor: float = 1.0) -> Curve:
    """`factor` times `key` against "updates", a row a run; one that was stopped early goes on as NaN."""
    longest = max((run["updates"] for run in runs), key=len)
    values = [
        np.pad(np.array(run[key], float), (0, len(longest) - len(run[key])), constant_values=np.nan) for run in runs
    ]
    return Curve(np.array(longest), factor * np.array(values))


def bands(
    panels: Mapping[str, Mapping[str, Curve]],
    x_label: str,
    title: str,
    description: str,
    references: Mapping[str, Sequence[tuple[float, str]]] | None = None,
    x_scale: str = "linear",
    y_scale: str | Mapping[str, str] = "linear",
    skipped: float = 0.0,
    shared: bool = False,
) -> Figure:
    """Mean over seeds as a line and their range as a band, panels side by side.

    panels: name of the vertical axis -> series -> curve; a series keeps its colour through all panels, and what
    stands behind a colon shares that of what stands before. references: panel -> (value, name), ..., drawn as
    horizontal lines. x_scale, y_scale: "linear" or "log", the latter for all panels or panel -> scale; a vertical axis
    that holds a number of 0 or below stays linear. skipped: the first part of every curve, which the vertical axis need
    not hold. shared: one vertical scale for all panels.
    """
    figure = new_figure(max(6.5, 4.2 * len(panels) + 0.4), 4.4, title, description, layout="constrained")
    names = list(dict.fromkeys(name.split(":")[0] for series in panels.values() for name in series))
    all_axes = np.atleast_1d(figure.subplots(1, len(panels), sharey=shared))
    late = []
    for axes, (label, series) in zip(all_axes, panels.items(), strict=True):
        late = late if shared else []
        for name, curve in series.items():
            number = names.index(name.split(":")[0])
            colour, values = COLOURS[number % len(COLOURS)], np.asarray(curve.values, float)
            late.append(values[:, int(skipped * len(curve.x)) :].ravel())
            marker = MARKERS[number % len(MARKERS)] if len(curve.x) < 12 else None
            style = {"color": colour, "linestyle": curve.line, "marker": marker, "markersize": 4}
            axes.plot(curve.x, values.mean(axis=0), label=name, **style)
            if len(values) > 1 and curve.line == "none":
                axes.vlines(curve.x, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.5)
            elif len(values) > 1:
                axes.fill_between(curve.x, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0)
        for number, (value, name) in enumerate((references or {}).get(label, ())):
            line = (0, (1, 1 + 2 * number))
            text = f"{name}: {value:.3f}".replace("-", "−")
            axes.axhline(value, color="black", linewidth=1, linestyle=line, label=text)
            late.append([value])
        low, high = np.nanmin(np.concatenate(late)), np.nanmax(np.concatenate(late))
        margin = 0.05 * (high - low) or 1.0
        asked = y_scale if isinstance(y_scale, str) else y_scale.get(label, "linear")
        scale = asked if low > 0 else "linear"
        limits = (low - margin, high + margin) if scale == "linear" else (0.9 * low, 1.1 * high)
        axes.set(xlabel=x_label, ylabel=label, xscale=x_scale, yscale=scale, ylim=limits)
        if scale == "log":
            named = (1, 2, 3, 5) if high > 5 * low else range(1, 10)
            axes.yaxis.set_major_locator(LogLocator(subs=named))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(labelsize=TEXT_SIZE, which="both")
        if x_scale == "log":
            ticks = np.unique(np.concatenate([curve.x for curve in series.values()]))
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
    lines = [line for axes in all_axes for line in axes.get_legend_handles_labels()[0]]
    handles = {line.get_label(): line for line in lines}
    columns = max(1, int(figure.get_figwidth() / (0.075 * max(map(len, handles)) + 0.6)))
    place_of = {"loc": "outside lower center", "ncols": columns, "frameon": False, "fontsize": SMALL_SIZE}
    figure.legend(handles=list(handles.values()), **place_of)
    return figure


class Panel(NamedTuple):
    """A density in `densities`, (cells, cells), the exact log density to compare it with, and a line of numbers."""

    density: np.ndarray
    log_exact: np.ndarray
    note: str = ""


def densities(
    rows: Mapping[str, Mapping[str, Panel]], planes: Sequence[Plane], axis_names, title: str, description: str
) -> Figure:
    """Densities in the plane as shades, contours of the exact ones that enclose 50 and 95 % of their mass on top.

    rows: name -> column name -> panel. planes: one a row, where its densities lie; axis_names: two, or a pair a row.
    """
    columns = max(len(panels) for panels in rows.values())
    side, left, down = 1.75, 0.95, 2.35
    figure = new_figure(left + (side + 0.15) * columns + 0.1, down * len(rows) + 0.35, title, description)
    pairs = axis_names if isinstance(axis_names[0], tuple) else [tuple(axis_names)] * len(rows)
    for row, ((name, panels), plane, names) in enumerate(zip(rows.items(), planes, pairs, strict=True)):
        bottom = down * (len(rows) - 1 - row) + 0.45
        exacts = [np.exp(panel.log_exact) for panel in panels.values()]
        limits = bulk(sum(exacts), plane)
        for column, ((heading, panel), exact) in enumerate(zip(panels.items(), exacts, strict=True)):
            axes = place(figure, left + (side + 0.15) * column, bottom + 0.3, side, side)
            (west, south), (east, north) = plane.low, plane.high
            top = np.quantile(exact[exact > exact.max() / 100], 0.98)
            image = {"origin": "lower", "extent": (west, east, south, north), "aspect": "auto", "cmap": "Blues"}
            axes.imshow(panel.density.T, vmin=0, vmax=top, **image)
            order = np.sort(exact.ravel())[::-1]
            mass = np.cumsum(order) * plane.area
            levels = order[np.searchsorted(mass, [0.95, 0.5])]
            lines = {"colors": [COLOURS[1]], "linestyles": ["solid", "dashed"], "linewidths": 0.9}
            axes.contour(*np.moveaxis(plane.centres, -1, 0), exact, levels, **lines)
            axes.tick_params(labelsize=6, pad=1, labelleft=column == 0)
            axes.set(xlim=limits[0], ylim=limits[1])
            axes.set_xlabel(names[0], size=SMALL_SIZE, labelpad=1)
            axes.set_title(heading, size=SMALL_SIZE, weight="bold", pad=3)
            axes.text(0.03, 0.97, panel.note, size=6.5, va="top", transform=axes.transAxes, path_effects=HALO)
            if not column:
                axes.set_ylabel(f"{name}\n{names[1]}", size=SMALL_SIZE)
    shown = [Patch(color=colormaps["Blues"](0.7), label="density of the method")]
    for style, share in (("dashed", "50 %"), ("solid", "95 %")):
        shown.append(Line2D([], [], color=COLOURS[1], linestyle=style, label=f"{share} of the exact posterior"))
    figure.legend(handles=shown, loc="lower center", ncols=3, frameon=False, fontsize=SMALL_SIZE)
    return figure


def bulk(density: np.ndarray, plane: Plane) -> np.ndarray:
    """The part of the plane, (axis, low and high), that holds all but a thousandth of a density, and some more."""
    limits = []
    for axis, edges in enumerate(plane.edges):
        share = np.cumsum(density.sum(axis=1 - axis)) / density.sum()
        low, high = edges[np.searchsorted(share, 0.0005)], edges[np.searchsorted(share, 0.9995) + 1]
        limits.append(np.clip([low - 0.1 * (high - low), high + 0.1 * (high - low)], edges[0], edges[-1]))
    return np.array(limits)


def codes_in_motion(
    frames: np.ndarray, labels: np.ndarray, captions: Sequence[str], limit: float, title: str, description: str
) -> FuncAnimation:
    """Codes (frames, n, 2) coloured by labels (n,), a frame at a time with its caption, axes from -limit to limit."""
    figure = new_figure(5.6, 5.2, title, description)
    FigureCanvasAgg(figure)
    axes = place(figure, 0.6, 0.5, 4.5, 4.5)
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), xlabel="z₁", ylabel="z₂", aspect="equal")
    points = axes.scatter(*frames[0].T, s=5, c=COLOURS[labels % 10], linewidths=0)
    for radius, style in ((1.177, "solid"), (2.448, "dashed")):  # 50 % and 95 % of N(0, I)
        axes.add_patch(Circle((0, 0), radius, fill=False, linestyle=style, linewidth=0.8))
    caption = axes.text(0.02, 0.98, "", transform=axes.transAxes, va="top", size=TEXT_SIZE, path_effects=HALO)

    def draw(number):
        points.set_offsets(frames[number])
        caption.set_text(captions[number])

    return FuncAnimation(figure, draw, frames=len(frames))


class Column(NamedTuple):
    """A model in `side_by_side`: codes (n, 2), prior samples (m, 2), images in [0, 1], and numbers by their names."""

    name: str
    codes: np.ndarray
    prior_samples: np.ndarray
    samples: np.ndarray
    numbers: Mapping[str, str]


def side_by_side(
    columns: Sequence[Column], labels: np.ndarray | None, axis_names: Sequence[str], title: str, description: str
) -> Figure:
    """Models next to one another: codes by class over prior samples, samples, numbers. labels: (n,) or None."""
    width, side, gap = 2.15, 1.75, 0.6
    figure = new_figure(gap + width * len(columns) + 0.3, 2 * side + 2.0, title, description)
    for number, column in enumerate(columns):
        left = gap + number * width
        axes = place(figure, left, side + 1.7, side, side)
        limits = view(column.codes, column.prior_samples)
        draw_codes(axes, column.codes, labels, limits, (axis_names[0], "" if number else axis_names[1]), numbered=False)
        draw_cloud(axes, column.prior_samples[: CLOUD_POINTS // 4], "prior samples")
        axes.tick_params(labelsize=6)
        axes.xaxis.label.set_size(SMALL_SIZE)
        axes.yaxis.label.set_size(SMALL_SIZE)
        axes.set_title(column.name, size=TEXT_SIZE, weight="bold")
        axes = place(figure, left, 1.25, side, side)
        tiles = in_rows(as_images(column.samples), 6)
        rows, across, height, wide = tiles.shape
        axes.imshow(tiles.swapaxes(1, 2).reshape(rows * height, across * wide), "gray", vmin=0, vmax=1, aspect="auto")
        axes.set(xticks=[], yticks=[])
        for line, (name, value) in enumerate(column.numbers.items()):
            up = (1.05 - 0.22 * line) / figure.get_figheight()
            figure.text(left / figure.get_figwidth(), up, name, size=SMALL_SIZE, color="0.3")
            figure.text((left + side) / figure.get_figwidth(), up, value, size=SMALL_SIZE, ha="right")
    if labels is not None:
        classes = np.unique(labels)
        style = {"linestyle": "none", "markersize": 4}
        dots = [Line2D([], [], color=COLOURS[c % 10], marker=marker(c), label=c, **style) for c in classes]
        dots.append(Line2D([], [], color="black", marker="o", linestyle="none", markersize=2, label="prior"))
        place_of = {"loc": "lower right", "bbox_to_anchor": (1, (2 * side + 1.87) / figure.get_figheight())}
        style = {"fontsize": SMALL_SIZE, "columnspacing": 0.8, "handletextpad": 0.1, "handlelength": 1.2}
        figure.legend(handles=dots, ncols=len(dots), frameon=False, **style, **place_of)
    return figure


def annealing_curves(curve: Sequence[Mapping], title: str, description: str, test_images: str) -> Figure:
    """Annealed estimates of log p(x) in nats against the number of temperatures, with standard errors.

    Each point of the curve has "temperatures" and three pairs of value and standard error, which is that of the
    difference from the best estimate: "test", and for images of the model itself "simulated_lower" and
    "simulated_upper", between which their true value lies.
    """
    figure = new_figure(8.6, 4.2, title, description, layout="constrained")
    left, right = figure.subplots(1, 2)
    temperatures = [point["temperatures"] for point in curve]
    for axes, names in (
        (left, {"test": "forward"}),
        (right, {"simulated_upper": "reverse: above the truth", "simulated_lower": "forward: below the truth"}),
    ):
        for key, label in names.items():
            values, errors = np.array([point[key] for point in curve]).T
            down = {"linestyle": "--", "marker": "s", "color": COLOURS[2]} if key == "simulated_upper" else {}
            axes.errorbar(temperatures, values, errors, capsize=3, label=label, **FORWARD | down)
        axes.set(xscale="log", xlabel="temperatures between prior and posterior", ylabel="log p(x), nats per image")
        axes.set_xticks(temperatures, [f"{number:,}" for number in temperatures], minor=False)
        axes.minorticks_off()
    right.legend(loc="best", frameon=False, fontsize=TEXT_SIZE)
    left.set_title(f"test images of {test_images}, forward", size=TEXT_SIZE)
    right.set_title("images drawn from the model itself", size=TEXT_SIZE)
    return figure


def training_curves(
    history: Mapping[str, Sequence[float]],
    title: str,
    reference_lines: Mapping[str, Sequence[tuple[float, str]]] | None = None,
    description: str = "Each term of the objective, mean over the images of an epoch",
) -> Figure:
    """A panel a term, in nats per image: training solid, its `val_` twin dashed.

    history: name -> a value an epoch, with "epoch" (or "updates") for the horizontal axis.
    reference_lines: term -> (value in nats, name without the value), ...
    """
    unit = next((name for name in ("epoch", "updates") if name in history), "epoch")
    names = [name.removeprefix("val_") for name, values in history.items() if len(values)]
    terms = [name for name in dict.fromkeys(names) if name not in ("epoch", "updates")]
    columns = 2 if len(terms) in (2, 4) else max(1, min(3, len(terms)))
    rows = max(1, -(-len(terms) // columns))
    figure = new_figure(max(6.5, 3.9 * columns), 2.8 * rows + 0.3, title, description, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes, term in zip_longest(panels.flat, terms):
        if term is None:
            axes.set_axis_off()
        else:
            draw_term(axes, history, term, unit, (reference_lines or {}).get(term, ()))
    for axes in panels[:, 0]:
        axes.set_ylabel("nats per image")
    if terms:
        lines = [line for axes in panels.flat for line in axes.get_legend_handles_labels()[0]]
        handles = {line.get_label(): line for line in lines}
        figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=2, frameon=False)
    else:
        panels[0, 0].set_axis_on()
        panels[0, 0].set(xlabel=unit, xticks=[], yticks=[])
        panels[0, 0].text(0.5, 0.5, "untrained", ha="center", va="center", size=TITLE_SIZE)
    return figure


# Headings and places


def new_figure(width: float, height: float, title: str, description: str, **options) -> Figure:
    """A figure with `width` x `height` inches of room below a heading that is as high as its lines need."""
    title = wrapped(title, TITLE_SIZE, "bold", width - 2 * MARGIN)
    description = wrapped(description, TEXT_SIZE, "normal", width - 2 * MARGIN)
    below_title = MARGIN + lines_height(title, TITLE_SIZE)
    heading = np.ceil((below_title + lines_height(description, TEXT_SIZE) + MARGIN) * DPI) / DPI
    total = height + heading
    figure = Figure((width, total), dpi=DPI, **options)
    if figure.get_layout_engine():
        figure.get_layout_engine().set(rect=(0, 0, 1, height / total), w_pad=MARGIN, h_pad=MARGIN / 2)
    style = {"va": "top", "linespacing": 1.2}
    figure.text(MARGIN / width, 1 - MARGIN / total, title, size=TITLE_SIZE, weight="bold", **style)
    figure.text(MARGIN / width, 1 - below_title / total, description, size=TEXT_SIZE, color="0.3", **style)
    return figure


def lines_height(text: str, size: float) -> float:
    """Inches that lines of `size` points take."""
    return 1.3 * size / 72 * (text.count("\n") + 1)


def wrapped(text: str, size: float, weight: str, width: float) -> str:
    """`text` in as many lines as it needs to fit `width` inches."""
    font = FontProperties(weight=weight, size=size)
    length = text_to_path.get_text_width_height_descent(text or " ", font, ismath=False)[0] / 72
    characters = int(0.93 * width / max(length, 1e-9) * len(text))  # lines differ a little from the average
    return textwrap.fill(text, max(characters, 1))


def place(figure: Figure, left: float, bottom: float, width: float, height: float, **options) -> Axes:
    """Axes at a place given in inches from the figure's lower left corner."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up), **options)


# Scatter plots


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


def marker(label: int) -> str:
    return MARKERS[label // 10 % len(MARKERS)]


def spread(positions: np.ndarray, distance: float) -> np.ndarray:
    """Positions (n, d) moved apart until hardly two are nearer than `distance`, so that text is legible."""
    positions = positions + 1e-3 * distance * np.random.default_rng(0).normal(size=positions.shape)
    for _ in range(100):
        difference = positions[:, None] - positions[None]  # (n, n, d)
        length = np.linalg.norm(difference, axis=-1, keepdims=True)
        push = np.maximum(distance - length, 0) / 2 * difference / np.maximum(length, 1e-12 * distance)
        positions = positions + 0.5 * push.sum(axis=1)
    return positions


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


# Tiles


def as_images(images: np.ndarray) -> np.ndarray:
    """(n, h, w) as it is; (n, d) as squares where d is a square number, else as strips (n, 1, d)."""
    if images.ndim == 3:
        return images
    side = int(np.sqrt(images.shape[1]) + 0.5)
    return images.reshape(len(images), side if side**2 == images.shape[1] else 1, -1)


def as_tiles(images: np.ndarray) -> np.ndarray:
    """(rows, columns, h, w) as it is; (rows, columns, d) as `as_images` shows them."""
    tiles = as_images(images.reshape(-1, *images.shape[2:]))
    return tiles.reshape(*images.shape[:2], *tiles.shape[1:])


def in_rows(images: np.ndarray, columns: int) -> np.ndarray:
    """Images (n, h, w) in reading order as (rows, columns, h, w), the last row filled up with NaN."""
    columns = min(columns, len(images))
    missing = -len(images) % columns
    filled = np.pad(images.astype(float), ((0, missing), (0, 0), (0, 0)), constant_values=np.nan)
    return filled.reshape(-1, columns, *images.shape[1:])


def draw_tiles(
    tiles: np.ndarray,
    title: str,
    description: str,
    together: int = 0,
    left: float = MARGIN,
    bottom: float = MARGIN,
) -> tuple[Figure, Axes, np.ndarray, np.ndarray]:
    """Tiles (rows, columns, h, w) in [0, 1] with hairlines between, `together` rows to a group.

    left, bottom: inches of room for labels. Returns figure, axes, and the centres of columns and of rows.
    Each pixel of a tile covers a whole number of the figure's: nothing is blurred, and hairlines are even.
    """
    canvas, x, y = canvas_of(tiles, together)
    left, bottom = (round(inches * DPI) / DPI for inches in (left, bottom))
    across, up = canvas.shape[1] / DPI, canvas.shape[0] / DPI
    figure = new_figure(max(left + across + MARGIN, 5), bottom + up, title, description)
    axes = place(figure, left, bottom, across, up)
    show_canvas(axes, canvas)
    return figure, axes, x, y


def canvas_of(tiles: np.ndarray, together: int = 0, width: int = 900) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tiles (rows, columns, h, w) as one image about `width` pixels across, and the centres of columns and of rows."""
    rows, columns, high, wide = tiles.shape
    scale = max(1, min(12, round(width / (columns * wide))))
    tall = max(scale, 16 // high)  # strips of a single row stay visible
    x = np.arange(columns) * (wide * scale + 1)
    y = np.arange(rows) * (high * tall + 1) + (8 * (np.arange(rows) // together) if together else 0)
    canvas = np.full((y[-1] + high * tall, x[-1] + wide * scale), np.nan)
    enlarged = np.repeat(np.repeat(tiles, tall, axis=2), scale, axis=3)
    for row, column in np.ndindex(rows, columns):
        canvas[y[row] : y[row] + high * tall, x[column] : x[column] + wide * scale] = enlarged[row, column]
    return canvas, x + (wide * scale - 1) / 2, y + (high * tall - 1) / 2


def show_canvas(axes: Axes, canvas: np.ndarray) -> None:
    """The image of `canvas_of`, NaN white, in axes of as many pixels."""
    axes.imshow(canvas, colormaps["gray"].with_extremes(bad="white"), vmin=0, vmax=1, interpolation="nearest")
    axes.spines[:].set_visible(False)
    axes.set(xticks=[], yticks=[])
    axes.tick_params(length=0, labelsize=SMALL_SIZE)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_size(TEXT_SIZE)


# Curves


def draw_term(
    axes: Axes,
    history: Mapping[str, Sequence[float]],
    term: str,
    unit: str,
    references: Sequence[tuple[float, str]],
) -> None:
    """One term's curves and reference values; what the axes cannot show is said below them."""
    finite, notes = [], []
    for prefix, label, line, dot, colour in CURVES:
        values = np.array(history.get(prefix + term, ()), float)
        x = np.asarray(history.get(unit, 1 + np.arange(len(values))))[: len(values)]
        shown = np.isfinite(values)
        finite.append(values[shown])
        if len(values):
            style = {"color": colour, "linestyle": line, "marker": dot if shown.sum() == 1 else None}
            axes.plot(x[shown], values[shown], label=label, **style)
        if len(values) and not shown[-1]:
            lost = x[np.flatnonzero(shown)[-1] + 1] if shown.any() else x[0]
            notes.append(f"{label} not finite from {unit} {lost:,.0f} on")
    notes += scale_values(axes, np.concatenate(finite), references)
    axes.set_title(term, loc="left", size=10, weight="bold")
    axes.set_xlabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.tick_params(labelsize=TEXT_SIZE)
    text = "\n".join(line for note in notes for line in textwrap.wrap(note, 48))
    below = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "top"}
    axes.annotate(text, (0, 0), (0, -34), size=SMALL_SIZE, color="0.3", **below)


def scale_values(axes: Axes, values: np.ndarray, references: Sequence[tuple[float, str]]) -> list[str]:
    """Fit the vertical axis to the curves' values and the references near them; returns what is left out."""
    values = values if len(values) else np.array([value for value, _ in references] or [0.0])
    low, high = robust_range(values)
    reach = max(high - low, 0.1 * abs(high), 1e-6)
    near = {value: name for value, name in references if low - reach <= value <= high + reach}
    far = [f"{name} = {value:.4g}" for value, name in references if value not in near]
    bottom, top = min(low, *near, low), max(high, *near, high)
    edge = 0.06 * max(top - bottom, reach)
    axes.set_ylim(bottom - edge, top + edge)
    draw_references(axes, near)
    cut = values[(values < low) | (values > high)]
    notes = [f"off the axis: {', '.join(far)}"] if far else []
    if len(cut):
        farthest = cut[np.abs(cut).argmax()]
        notes.append(f"off the axis: {len(cut)} of {len(values)} values, as far as {farthest:.3g}")
    return notes


def robust_range(values: np.ndarray) -> tuple[float, float]:
    """Lowest and highest of the values (n,), but for a tenth at either end that would squash all others."""
    ordered, tail = np.sort(values), len(values) // 10
    low, high = ordered[tail], ordered[-1 - tail]
    margin = 5 * max(high - low, 0.1 * abs(np.median(values)))
    return max(values.min(), low - margin), min(values.max(), high + margin)


def draw_references(axes: Axes, references: Mapping[float, str]) -> None:
    """A dotted line a value, its name to the right of the axes, where no curve can cross it."""
    low, high = axes.get_ylim()
    heights = spread((np.array(list(references))[:, None] - low) / (high - low), 0.17)[:, 0]
    for (value, name), height in zip(references.items(), heights, strict=True):
        axes.axhline(value, color="0.3", linestyle="dotted", linewidth=1.2)
        text = f"{name}\n= {value:.4g}"
        axes.text(1.02, height, text, transform=axes.transAxes, va="center", size=SMALL_SIZE, color="0.3")
