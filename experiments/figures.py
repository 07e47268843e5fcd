"""Figures over seeds and models, for the experiments."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from common.files import whole
from common.plots.classes import class_entries, legends, looks
from common.plots.figure import COLOURS, DPI, HALO, MARGIN, MARKERS, SMALL_SIZE, TEXT_SIZE, new_figure, own_style, place
from common.plots.scatter import CLOUD_POINTS, draw_cloud, draw_codes, not_shown, view
from common.plots.tiles import as_images, as_tiles, canvas_of, draw_tiles, in_rows, show_canvas
from experiments.avb.plane import Plane

import numpy as np
from matplotlib import colormaps
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Patch
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter


@own_style()
def save_animation(animation: FuncAnimation, path: str | Path, frames_a_second: int = 12) -> None:
    """Write a GIF to `path`, atomically."""
    with whole(path) as unfinished:
        animation.save(unfinished, writer=PillowWriter(frames_a_second), dpi=0.75 * DPI)


# Maps of the code


class Map(NamedTuple):
    """A panel of `maps`: points (n, 2), names of the axes, and, if any, marked points (m, 2) without a class."""

    name: str
    points: np.ndarray
    axis_names: tuple[str, str]
    marked: np.ndarray | None = None


@own_style()
def maps(panels: Sequence[Map], labels: np.ndarray, title: str, description: str, marks: str = "") -> Figure:
    """Several maps of the same images with labels (n,), two per row; `marks` explains the marked points."""
    side, left, up = 4.3, 0.75, 4.95
    rows, columns = -(-len(panels) // 2), min(2, len(panels))
    figure = new_figure((left + side) * columns + 1.45, up * rows + 0.05, title, description)
    for number, panel in enumerate(panels):
        row, column = divmod(number, 2)
        axes = place(figure, left + (left + side) * column, 0.5 + up * (rows - 1 - row), side, side)
        draw_map(axes, panel, labels)
        if number == columns - 1:  # the legend is next to the last map of the first row
            marked = any(panel.marked is not None for panel in panels)
            entry = Line2D([], [], color="black", marker="+", linestyle="none", label=textwrap.fill(marks, 14))
            legends(axes, labels, [entry] if marked else [], 1.04)
    return figure


def draw_map(axes: Axes, panel: Map, labels: np.ndarray) -> None:
    """Draw a panel's points coloured by labels (n,), and crosses at its marked points."""
    marked = [] if panel.marked is None else [panel.marked]
    draw_codes(axes, panel.points, labels, view(panel.points, *marked), panel.axis_names)
    for points in marked:
        style = {"s": 60, "color": "black", "marker": "+", "linewidths": 1.5, "zorder": 4}
        axes.scatter(*points.T, **style, path_effects=HALO)
    axes.set_title(panel.name, size=TEXT_SIZE, weight="bold")


# Decoded images


@own_style()
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

    x_label: the meaning of the columns. together: rows per group, 0 for one group. left: inches for the rows' names.
    """
    figure, axes, x, y = draw_tiles(as_tiles(images), title, description, together, left=left, bottom=0.5)
    axes.set_xticks(x, columns)
    axes.set_yticks(y, rows)
    axes.set_xlabel(x_label)
    return figure


@own_style()
def codes_and_walks(
    codes: np.ndarray,
    labels: np.ndarray,
    prior_samples: np.ndarray,
    images: np.ndarray,
    axis_names: tuple[str, str],
    title: str,
    description: str,
) -> Figure:
    """Left: codes (n, 2) by class over prior samples (m, 2). Right: images decoded along walks through the modes.

    labels: (n,).
    images: (modes, steps, h, w) or (modes, steps, d) in [0, 1], one row per mode. A row's name is the mode's number in
        the colour of that class.
    axis_names: names for the steps and for the rows of the walks.
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
    walks = place(figure, left + side + gap, height - MARGIN - up, across, up)
    show_canvas(walks, canvas)
    walks.set_yticks(y, range(len(y)))
    walks.set(xlabel=axis_names[0], ylabel=axis_names[1])
    colours = {look.label: look.colour for look in looks(labels)}
    for number, name in enumerate(walks.get_yticklabels()):
        name.set(size=13, weight="bold", color=colours.get(number, "black"))
    return figure


# Estimates and spectra, one row per model


@own_style()
def dots(panels: Mapping[str, Mapping], rows: Sequence[str], title: str, description: str) -> Figure:
    """Estimates with standard errors, one row per name, in panels side by side.

    panels: name of the horizontal axis -> series -> row -> (value, standard error). A series may lack some rows.
    """
    figure = new_figure(10.5, 0.42 * len(rows) + 1.6, title, description, layout="constrained")
    all_axes = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
    series_names = [name for series in panels.values() for name in series]
    legend = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "frameon": False, "fontsize": SMALL_SIZE}
    for axes, (label, series) in zip(all_axes, panels.items(), strict=True):
        for number, (name, points) in enumerate(series.items()):
            heights = np.array([rows.index(row) for row in points]) + 0.22 * (number - (len(series) - 1) / 2)
            values, errors = np.array(list(points.values())).reshape(-1, 2).T
            order = series_names.index(name)
            style = {"color": COLOURS[order], "marker": MARKERS[order], "markersize": 5, "linestyle": "none"}
            axes.errorbar(values, heights, xerr=errors, capsize=3, label=name, **style)
        axes.set_xlabel(label)
        axes.grid(axis="y", color="0.9")
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=TEXT_SIZE)
        axes.legend(ncols=len(series), **legend)
    all_axes[0].set_yticks(range(len(rows)), rows)
    all_axes[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


class Spectrum(NamedTuple):
    """A row of `spectra`: values (d,), largest first; images (n, h, w) or (n, d) in [0, 1]; a line of numbers."""

    values: np.ndarray
    images: np.ndarray
    numbers: str


@own_style()
def spectra(
    rows: Mapping[str, Spectrum], originals: np.ndarray, title: str, description: str, x_label: str, y_label: str
) -> Figure:
    """One row per name: its values as bars on a common logarithmic scale, from a thousandth, and its images.

    originals: images (n, h, w) or (n, d) above all rows.
    """
    strips = [in_rows(as_images(images), len(images)) for images in (originals, *(row.images for row in rows.values()))]
    canvases = [canvas_of(strip, width=760)[0] for strip in strips]
    across, up = canvases[0].shape[1] / DPI, canvases[0].shape[0] / DPI
    side, left, gap, bottom, down = 3.5, 2.0, 0.375, 0.5, 1.25
    figure = new_figure(left + side + gap + across + MARGIN, bottom + down * len(rows) + up, title, description)
    top = max(0.1, 2 * max(row.values.max() for row in rows.values()))  # above 0 even if all values are 0
    for number, (name, row) in enumerate(rows.items()):
        low = bottom + down * (len(rows) - 1 - number)
        axes = place(figure, left, low, side, down - 0.375)
        draw_spectrum(axes, name, row.values, top)
        axes.tick_params(labelsize=SMALL_SIZE, labelbottom=number == len(rows) - 1)
        axes.set_ylabel(y_label, size=SMALL_SIZE)
        pictures = place(figure, left + side + gap, low, across, up)
        show_canvas(pictures, canvases[number + 1])
        pictures.set_title(row.numbers, size=SMALL_SIZE, loc="left", pad=3)
    axes.set_xlabel(x_label, size=SMALL_SIZE)
    top_row = place(figure, left + side + gap, bottom + down * len(rows), across, up)
    show_canvas(top_row, canvases[0])
    top_row.set_ylabel("originals", size=SMALL_SIZE, rotation=0, ha="right", va="center")
    return figure


def draw_spectrum(axes: Axes, name: str, values: np.ndarray, top: float) -> None:
    """Draw values (d,) as bars on a logarithmic scale up to `top`, with the row's name to the left."""
    axes.set(ylim=(1e-3, top), yscale="log", xlim=(0, len(values) + 1))
    axes.bar(np.arange(1, len(values) + 1), values, width=1.0, color=COLOURS[0])
    axes.yaxis.set_major_locator(LogLocator(numticks=9))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.minorticks_off()
    style = {"ha": "right", "va": "center", "size": TEXT_SIZE, "weight": "bold"}
    wrapped_name = "\n".join(textwrap.fill(line, 14) for line in name.splitlines())
    axes.text(-0.21, 0.5, wrapped_name, transform=axes.transAxes, **style)


# Curves over several seeds


class Curve(NamedTuple):
    """A series in `bands`: x (n,), one row of values per seed (seeds, n), and the style of its line, or "none"."""

    x: np.ndarray
    values: np.ndarray
    line: str = "solid"


def curve_of(runs: Sequence[Mapping[str, Sequence[float]]], key: str, factor: float = 1.0) -> Curve:
    """`factor` times `key` against "updates", one row per run. If a run stopped early, its missing values are NaN."""
    longest = max((run["updates"] for run in runs), key=len)
    values = [
        np.pad(np.array(run[key], float), (0, len(longest) - len(run[key])), constant_values=np.nan) for run in runs
    ]
    return Curve(np.array(longest), factor * np.array(values))


@own_style()
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
    """Curves in panels side by side: the mean over seeds as a line, and the seeds' range as a band.

    panels: name of the vertical axis -> series -> curve. A series has one colour in all panels; "a: b" has that of "a".
    references: panel -> (value, name), ..., drawn as horizontal lines.
    x_scale: "linear" or "log".
    y_scale: the same for all panels, or panel -> scale. An axis with numbers of 0 or below stays linear.
    skipped: the share at the start of every curve that may leave the vertical axis.
    shared: whether all panels have one vertical scale.
    """
    figure = new_figure(max(6.5, 4.2 * len(panels) + 0.4), 4.4, title, description, layout="constrained")
    names = list(dict.fromkeys(name.split(":")[0] for series in panels.values() for name in series))
    all_axes = np.atleast_1d(figure.subplots(1, len(panels), sharey=shared))
    lines = {label: (references or {}).get(label, ()) for label in panels}
    values = {label: values_to_hold(series, lines[label], skipped) for label, series in panels.items()}
    for axes, (label, series) in zip(all_axes, panels.items(), strict=True):
        for name, curve in series.items():
            draw_band(axes, name, curve, names.index(name.split(":")[0]))
        draw_levels(axes, lines[label])
        axes.set(xlabel=x_label, ylabel=label, xscale=x_scale)
        scale = y_scale if isinstance(y_scale, str) else y_scale.get(label, "linear")
        scale_vertically(axes, np.concatenate(list(values.values())) if shared else values[label], scale)
        axes.tick_params(labelsize=TEXT_SIZE, which="both")
        if x_scale == "log":
            ticks = np.unique(np.concatenate([curve.x for curve in series.values()]))
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
    legend_below(figure)
    return figure


def values_to_hold(series: Mapping[str, Curve], references, skipped: float) -> np.ndarray:
    """The values that a vertical axis must hold, (n,): references, and each curve without its `skipped` share."""
    late = [np.asarray(curve.values, float)[:, int(skipped * len(curve.x)) :].ravel() for curve in series.values()]
    return np.concatenate([*late, [value for value, _ in references]])


def draw_band(axes: Axes, name: str, curve: Curve, number: int) -> None:
    """Draw a series in the colour of its `number`: the mean over seeds and, for several seeds, their range."""
    colour, values = COLOURS[number % len(COLOURS)], np.asarray(curve.values, float)
    marker = MARKERS[number % len(MARKERS)] if len(curve.x) < 12 else None
    style = {"color": colour, "linestyle": curve.line, "marker": marker, "markersize": 4}
    axes.plot(curve.x, values.mean(axis=0), label=name, **style)
    low, high = values.min(axis=0), values.max(axis=0)
    if len(values) > 1 and curve.line == "none":
        axes.vlines(curve.x, low, high, color=colour, alpha=0.5)
    elif len(values) > 1:
        axes.fill_between(curve.x, low, high, color=colour, alpha=0.2, linewidth=0)


def draw_levels(axes: Axes, references: Sequence[tuple[float, str]]) -> None:
    """Draw a dotted horizontal line for each (value, name); each has wider gaps than the one before."""
    for number, (value, name) in enumerate(references):
        text = f"{name}: {value:.3f}".replace("-", "−")
        axes.axhline(value, color="black", linewidth=1, linestyle=(0, (1, 1 + 2 * number)), label=text)


def scale_vertically(axes: Axes, values: np.ndarray, scale: str) -> None:
    """Set limits that hold the finite values. `scale` is "linear" or "log", which needs values above 0."""
    low, high = np.nanmin(values), np.nanmax(values)
    margin = 0.05 * (high - low) or 1.0
    scale = scale if low > 0 else "linear"
    limits = (low - margin, high + margin) if scale == "linear" else (0.9 * low, 1.1 * high)
    axes.set(yscale=scale, ylim=limits)
    if scale == "log":
        digits = (1, 2, 3, 5) if high > 5 * low else range(1, 10)
        axes.yaxis.set_major_locator(LogLocator(subs=digits))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def legend_below(figure: Figure) -> None:
    """Draw one legend for all panels, each name once, in as many columns as fit."""
    lines = [line for axes in figure.axes for line in axes.get_legend_handles_labels()[0]]
    handles = {line.get_label(): line for line in lines}
    columns = max(1, int(figure.get_figwidth() / (0.075 * max(map(len, handles)) + 0.6)))
    style = {"loc": "outside lower center", "ncols": columns, "frameon": False, "fontsize": SMALL_SIZE}
    figure.legend(handles=list(handles.values()), **style)


# Posteriors in the plane


class Panel(NamedTuple):
    """A panel of `densities`: a density (cells, cells), the exact log density, and a line of numbers."""

    density: np.ndarray
    log_exact: np.ndarray
    note: str = ""


@own_style()
def densities(
    rows: Mapping[str, Mapping[str, Panel]], planes: Sequence[Plane], axis_names, title: str, description: str
) -> Figure:
    """Densities in the plane as shades, under contours that enclose 50 and 95 % of the exact densities.

    rows: name -> column name -> panel.
    planes: one per row, the plane of its densities.
    axis_names: two names, or one pair per row.
    """
    columns = max(len(panels) for panels in rows.values())
    side, left, down = 1.75, 0.95, 2.35
    figure = new_figure(left + (side + 0.15) * columns + 0.1, down * len(rows) + 0.35, title, description)
    pairs = axis_names if isinstance(axis_names[0], tuple) else [tuple(axis_names)] * len(rows)
    for row, ((name, panels), plane, names) in enumerate(zip(rows.items(), planes, pairs, strict=True)):
        bottom = down * (len(rows) - 1 - row) + 0.45
        limits = bulk(sum(np.exp(panel.log_exact) for panel in panels.values()), plane)
        for column, (heading, panel) in enumerate(panels.items()):
            axes = place(figure, left + (side + 0.15) * column, bottom + 0.3, side, side)
            draw_density(axes, panel, plane)
            axes.tick_params(labelsize=6, pad=1, labelleft=column == 0)
            axes.set(xlim=limits[0], ylim=limits[1])
            axes.set_xlabel(names[0], size=SMALL_SIZE, labelpad=1)
            axes.set_title(heading, size=SMALL_SIZE, weight="bold", pad=3)
            if not column:
                axes.set_ylabel(f"{name}\n{names[1]}", size=SMALL_SIZE)
    entries = [Patch(color=colormaps["Blues"](0.7), label="density of the method")]
    for style, share in (("dashed", "50 %"), ("solid", "95 %")):
        entries.append(Line2D([], [], color=COLOURS[1], linestyle=style, label=f"{share} of the exact posterior"))
    figure.legend(handles=entries, loc="lower center", ncols=3, frameon=False, fontsize=SMALL_SIZE)
    return figure


def draw_density(axes: Axes, panel: Panel, plane: Plane) -> None:
    """Draw a panel's density as shades, the two contours of the exact density, and the line of numbers."""
    exact = np.exp(panel.log_exact)
    (west, south), (east, north) = plane.low, plane.high
    top = np.quantile(exact[exact > exact.max() / 100], 0.98)
    image = {"origin": "lower", "extent": (west, east, south, north), "aspect": "auto", "cmap": "Blues"}
    axes.imshow(panel.density.T, vmin=0, vmax=top, **image)
    order = np.sort(exact.ravel())[::-1]
    mass = np.cumsum(order) * plane.area
    levels = order[np.searchsorted(mass, [0.95, 0.5])]
    lines = {"colors": [COLOURS[1]], "linestyles": ["solid", "dashed"], "linewidths": 0.9}
    axes.contour(*np.moveaxis(plane.centres, -1, 0), exact, levels, **lines)
    axes.text(0.03, 0.97, panel.note, size=6.5, va="top", transform=axes.transAxes, path_effects=HALO)


def bulk(density: np.ndarray, plane: Plane) -> np.ndarray:
    """The part of the plane, (axis, low and high), that holds 99.9 % of a density, with a margin."""
    limits = []
    for axis, edges in enumerate(plane.edges):
        share = np.cumsum(density.sum(axis=1 - axis)) / density.sum()
        low, high = edges[np.searchsorted(share, 0.0005)], edges[np.searchsorted(share, 0.9995) + 1]
        limits.append(np.clip([low - 0.1 * (high - low), high + 0.1 * (high - low)], edges[0], edges[-1]))
    return np.array(limits)


@own_style()
def codes_in_motion(
    frames: np.ndarray, labels: np.ndarray, captions: Sequence[str], limit: float, title: str, description: str
) -> FuncAnimation:
    """An animation of codes (frames, n, 2) coloured by labels (n,), with a caption per frame.

    The axes go from -limit to limit.
    """
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


# Models side by side


class Column(NamedTuple):
    """A model in `side_by_side`: codes (n, 2), prior samples (m, 2), images in [0, 1], and numbers by their names."""

    name: str
    codes: np.ndarray
    prior_samples: np.ndarray
    samples: np.ndarray
    numbers: Mapping[str, str]


@own_style()
def side_by_side(
    columns: Sequence[Column], labels: np.ndarray | None, axis_names: Sequence[str], title: str, description: str
) -> Figure:
    """One column per model: codes by class over prior samples, samples, numbers. labels: (n,) or None."""
    width, side, gap = 2.15, 1.75, 0.6
    figure = new_figure(gap + width * len(columns) + 0.3, 2 * side + 2.0, title, description)
    for number, column in enumerate(columns):
        left = gap + number * width
        names = axis_names if number == 0 else (axis_names[0], "")
        draw_small_codes(place(figure, left, side + 1.7, side, side), column, labels, names)
        below = place(figure, left, 1.25, side, side, anchor="N")
        show_canvas(below, canvas_of(in_rows(as_images(column.samples), 6), width=side * DPI)[0], "auto")
        for line, (name, value) in enumerate(column.numbers.items()):
            up = (1.05 - 0.22 * line) / figure.get_figheight()
            figure.text(left / figure.get_figwidth(), up, name, size=SMALL_SIZE, color="0.3")
            figure.text((left + side) / figure.get_figwidth(), up, value, size=SMALL_SIZE, ha="right")
    if labels is not None:
        legend_of_classes(figure, labels, (2 * side + 1.87) / figure.get_figheight())
    return figure


def draw_small_codes(axes: Axes, column: Column, labels: np.ndarray | None, names: Sequence[str]) -> None:
    """Draw a model's codes over some of its prior samples, with small text."""
    limits = view(column.codes, column.prior_samples)
    draw_codes(axes, column.codes, labels, limits, names, numbered=False)
    draw_cloud(axes, column.prior_samples[: CLOUD_POINTS // 4], "prior samples")
    axes.tick_params(labelsize=6)
    axes.xaxis.label.set_size(SMALL_SIZE)
    axes.yaxis.label.set_size(SMALL_SIZE)
    axes.set_title(column.name, size=TEXT_SIZE, weight="bold")


def legend_of_classes(figure: Figure, labels: np.ndarray, height: float) -> None:
    """Draw a one-line legend of all classes and the prior, at the right edge and at a relative height."""
    dots = class_entries(labels)
    for dot in dots:
        dot.set_markersize(4)
    dots.append(Line2D([], [], color="black", marker="o", linestyle="none", markersize=2, label="prior"))
    style = {"fontsize": SMALL_SIZE, "columnspacing": 0.8, "handletextpad": 0.1, "handlelength": 1.2}
    figure.legend(handles=dots, ncols=len(dots), frameon=False, loc="lower right", bbox_to_anchor=(1, height), **style)
