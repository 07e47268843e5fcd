"""Rows of tables and of counts: their profiles over the columns, and the columns against each other."""

from collections.abc import Sequence
from typing import NamedTuple

from common.arrays import visible
from common.plots.classes import SPACING, class_entries, columns, legend_width, not_told_apart
from common.plots.figure import COLOURS, MARGIN, SMALL_SIZE, TEXT_SIZE, length, literal, new_figure, own_style, place
from common.plots.scatter import draw_codes, not_shown, view

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, ScalarFormatter

STANDARDISED = "standard deviations from the mean"
MOST_ROWS, MOST_COLUMNS = 6, 300  # that one figure of profiles shows
MOST_MARKERS = 60  # columns that have a marker each: more markers would touch
DECADES = 100  # an axis that reaches so far is logarithmic
NAME_ROOM, NAME_PITCH = 1.7, 0.13  # inches: the longest name of a column, and from one vertical name to the next
MOST_POINTS = 2_000  # of the rows, and of the reconstructions, in a scatter matrix
BARS = 40  # of a histogram
GREY = "0.85"
LIGHT = 0.4 + 0.6 * COLOURS[0]  # a lighter shade of the rows' colour
GAP = 0.1  # inches between panels of a scatter matrix
ROW = {"color": COLOURS[0], "marker": "o", "markersize": 5, "linewidth": 1.4}
RECONSTRUCTION = {"color": "black", "marker": "D", "markersize": 3.2, "linewidth": 0.8, "markerfacecolor": "white"}
LEGEND = {"fontsize": SMALL_SIZE, "frameon": False, "borderaxespad": 0, "handletextpad": 0.5, "loc": "upper left"}


@own_style()
def profiles(
    rows: np.ndarray,
    reconstructions: np.ndarray | None,
    names: Sequence[str],
    title: str,
    description: str,
    row_names: Sequence[str] | None = None,
    deviations: np.ndarray | None = None,
    value_name: str = STANDARDISED,
    series: tuple[str, str] = ("row", "reconstruction"),
) -> Figure:
    """The first MOST_ROWS rows (n, d), a panel for each: its values and those of its reconstruction over the columns.

    Of more than MOST_COLUMNS columns, evenly spaced ones are shown.
    reconstructions: (n, d), or None for rows that have none, such as samples of the model.
    names: of the d columns. row_names: of the n rows, such as their classes.
    deviations: (d,) or (n, d), the decoder's standard deviations, drawn as a band around the reconstructions.
    value_name: of the vertical axis. If a value v reaches DECADES, the axis is log(1 + |v|) with the sign of v.
    series: the legend's names for a row and for a reconstruction.
    """
    few = np.unique(np.linspace(0, len(names) - 1, MOST_COLUMNS).round().astype(int))
    curves = [first_rows(values, few) for values in (rows, reconstructions) if values is not None]
    band = None if deviations is None else first_rows(np.broadcast_to(deviations, np.shape(rows)), few)
    header, scale = column_header([names[column] for column in few]), scale_of(np.concatenate(curves))
    notes = f" · the first {MOST_ROWS} of {len(rows):,} rows" if len(rows) > MOST_ROWS else ""
    notes += f" · {len(few)} of {len(names):,} columns, evenly spaced" if len(few) < len(names) else ""
    notes += f" · one column in {header.step} is named" if header.step > 1 else ""
    notes += " · logarithmic axis" if scale.logarithmic else ""
    lost = sum(np.isnan(values).sum() for values in curves)
    notes += f" · not shown: {lost:,} values that are not finite" if lost else ""
    figure, panels = stacked_panels(len(curves[0]), header, title, description + notes, row_names)
    places, tick_names, unit = ticks(scale, panels[0].get_position().height * figure.get_figheight() if panels else 1)
    for number, axes in enumerate(panels):
        draw_profile(axes, [values[number] for values in curves], None if band is None else band[number], scale)
        axes.set_yticks(places, tick_names)
        axes.set_ylim(scale.limits)
    styles = styles_of(len(few))
    entries = [Line2D([], [], label=literal(series[k], 0.9, SMALL_SIZE), **styles[k]) for k in range(len(curves))]
    if len(curves) == 2 and band is not None:
        entries.append(Patch(color=GREY, label="± one standard deviation of the decoder"))
    name_panels(figure, panels, value_name, unit, entries)
    return figure


def first_rows(rows: np.ndarray, few: np.ndarray) -> np.ndarray:
    """The values of the first MOST_ROWS rows in a few columns, as float64; NaN where they are not finite."""
    values = np.asarray(np.asarray(rows)[:MOST_ROWS, few], float)
    return np.where(np.isfinite(values), values, np.nan)


class Header(NamedTuple):
    """The names of columns below panels: one in `step` is written, upright or not; sizes in inches."""

    names: list[str]
    step: int
    upright: bool
    width: float
    height: float


def column_header(names: Sequence[str]) -> Header:
    """As wide as these columns need, within limits. Names stand upright if only so all, or most, find room."""
    names = [literal(visible(name), NAME_ROOM, SMALL_SIZE) for name in names]
    width = float(np.clip(0.27 * len(names), 5.0, 8.6))
    longest = max(length(name, SMALL_SIZE) for name in names)
    lying, standing = (int(np.ceil(room * len(names) / width)) for room in (longest + 0.12, NAME_PITCH))
    upright = lying > 1 and not (standing > 1 and longest < 0.35)
    return Header(names, standing if upright else lying, upright, width, longest if upright else 0.12)


def stacked_panels(
    count: int, header: Header, title: str, description: str, panel_names: Sequence[str] | None
) -> tuple[Figure, list[Axes]]:
    """A figure with panels one above the other, names of columns below them, and room for a legend above."""
    high = max(0.95, 2.4 / max(count, 1))
    pitch = high + (0.16 if panel_names is None else 0.28)
    left, bottom, wide = 0.85, header.height + 0.2, len(header.names)
    figure = new_figure(max(left + header.width + 0.3, 6.3), bottom + pitch * count + 0.1, title, description)
    shown = np.arange(0, wide, header.step)
    panels = []
    for number in range(count):
        last = number == count - 1
        axes = place(figure, left, bottom + pitch * (count - 1 - number), header.width, high)
        texts = [header.names[column] if last else "" for column in shown]
        axes.set_xticks(shown, texts, rotation=90 if header.upright else 0)
        axes.set_xlim(-0.5, wide - 0.5)
        axes.tick_params(labelsize=SMALL_SIZE)
        axes.tick_params(axis="x", length=3 if last else 0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="0.92", linewidth=0.8, zorder=0)
        if panel_names is not None:
            name = literal(visible(panel_names[number]), 0.9 * header.width, SMALL_SIZE)
            axes.set_title(name, loc="left", size=SMALL_SIZE, weight="bold", pad=3)
        panels.append(axes)
    return figure, panels


def draw_profile(axes: Axes, curves: Sequence[np.ndarray], band: np.ndarray | None, scale: "Scale") -> None:
    """Draw a row (d,) and, if it has one, its reconstruction (d,) within a band of deviations (d,)."""
    wide = len(curves[0])
    if len(curves) == 2 and band is not None:
        low, high = (scale.place(curves[1] + sign * band) for sign in (-1, 1))
        x = (np.arange(wide)[:, None] + [-0.5, 0.5, 0.5]).ravel()  # steps, with a gap where a value is missing
        low, high = (np.repeat(edge, 3) for edge in (low, high))
        axes.fill_between(x, low, high, where=np.isfinite(low + high), color=GREY, linewidth=0, zorder=1)
    axes.axhline(0, color="0.6", linewidth=0.8, zorder=1.5)
    for number, (values, style) in enumerate(zip(curves, styles_of(wide), strict=False)):
        axes.plot(np.arange(wide), scale.place(values), **style, zorder=2 + number)


def styles_of(wide: int) -> list[dict]:
    """How the lines of a row and of its reconstruction over so many columns look: markers and line."""
    if wide <= MOST_MARKERS:
        return [ROW, RECONSTRUCTION]
    return [ROW | {"marker": "", "linewidth": 2.2}, RECONSTRUCTION | {"marker": "", "linewidth": 0.7}]


def name_panels(figure: Figure, panels: Sequence[Axes], value_name: str, unit: str, entries: list) -> None:
    """Write the name of the vertical axis left of all panels, and the legend above them."""
    if not panels:
        return
    up = figure.get_figheight()
    top, bottom = panels[0].get_position().y1, panels[-1].get_position().y0
    first = panels[0].get_position()
    name = literal(value_name, (top - bottom) * up - length(unit, TEXT_SIZE), TEXT_SIZE) + unit
    panels[0].set_ylabel(name, size=TEXT_SIZE)
    middle = ((top + bottom) / 2 - first.y0) / first.height
    panels[0].yaxis.set_label_coords(-0.6 / (first.width * figure.get_figwidth()), middle)
    above = 0.22 + 0.14 * bool(panels[0].get_title(loc="left"))
    corner = first.x0, top + above / up
    figure.legend(handles=entries, ncols=3, bbox_to_anchor=corner, columnspacing=1.5, **LEGEND)


class Scale(NamedTuple):
    """An axis of values: linear, or log(1 + |v|) with the sign of v; its limits are in its own units."""

    logarithmic: bool
    limits: tuple[float, float]

    def place(self, values: np.ndarray) -> np.ndarray:
        """Values in the units of the axis."""
        return log_distance(values) if self.logarithmic else values

    def undo(self, places: np.ndarray) -> np.ndarray:
        """Values of places in the units of the axis."""
        return np.sign(places) * np.expm1(np.abs(places)) if self.logarithmic else places


def log_distance(values: np.ndarray) -> np.ndarray:
    """log(1 + |v|) with the sign of v."""
    return np.sign(values) * np.log1p(np.abs(values))


def scale_of(values: np.ndarray) -> Scale:
    """A scale that holds all values, of any shape, that are finite; it is logarithmic if they reach DECADES."""
    finite = values[np.isfinite(values)]
    logarithmic = bool((np.abs(finite) >= DECADES).any())
    finite = log_distance(finite) if logarithmic else finite
    low, high = (finite.min(), finite.max()) if len(finite) else (-1.0, 1.0)
    edge = 0.07 * max(high - low, 0.1 * abs(high), 1e-6)
    return Scale(logarithmic, (low - edge, high + edge))


def ticks(scale: Scale, inches: float, room: float = 0.2) -> tuple[np.ndarray, list[str], str]:
    """Places and names of an axis's ticks, with `room` inches for each, and what the names leave out: " (×1e5)"."""
    low, high = scale.limits
    if scale.logarithmic:
        return *decades(scale, room / inches * (high - low)), ""
    places = MaxNLocator(int(np.clip(inches / room, 1, 5)), steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    places = places[(places >= low) & (places <= high)]
    formatter = ScalarFormatter()
    formatter.create_dummy_axis()
    formatter.axis.set_view_interval(low, high)
    formatter.set_powerlimits((-4, 5))
    names = formatter.format_ticks(places)
    offset = formatter.get_offset()
    return places, names, f" ({'×' if offset[:1].isdigit() else ''}{offset})" if offset else ""


def decades(scale: Scale, distance: float) -> tuple[np.ndarray, list[str]]:
    """Places and names of ticks on a logarithmic axis: 0 and powers of ten, none nearer than `distance` to another.

    An axis that holds fewer than two of these has round numbers instead.
    """
    kept = [0.0]
    for power in 10.0 ** np.arange(308):
        if np.log1p(power) - np.log1p(kept[-1]) >= distance:
            kept.append(power)
    low, high = scale.limits
    values = np.array([-value for value in kept[:0:-1]] + kept)
    values = values[(scale.place(values) >= low) & (scale.place(values) <= high)]
    if len(values) < 2:
        values = MaxNLocator(3).tick_values(scale.undo(low), scale.undo(high))
        values = values[(scale.place(values) >= low) & (scale.place(values) <= high)]
    names = [f"{value:,.0f}" if value == round(value) and abs(value) < 1e5 else f"{value:.5g}" for value in values]
    return scale.place(values), [name.replace("e+", "e").replace("-", "−") for name in names]


@own_style()
def scatter_matrix(
    rows: np.ndarray,
    reconstructions: np.ndarray,
    names: Sequence[str],
    title: str,
    description: str,
    classes: np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
    counts: bool = False,
    series: tuple[str, str] = ("rows", "reconstructions"),
) -> Figure:
    """A few columns of rows (n, k) and of reconstructions or samples (m, k) against each other; k is at most five.

    Diagonal: histograms of both, scaled to the same highest bar. Below it: MOST_POINTS points of each at most.
    names: of the k columns. classes: (n,) class numbers of the rows, or None for one colour.
    class_names: the name of class k at index k; a class without a name shows its number.
    counts: the axes of columns that reach DECADES are log(1 + count).
    series: the legend's names for the rows and the reconstructions.
    """
    clouds = [np.asarray(cloud, float) for cloud in (rows, reconstructions)]
    scales = [column_scale([cloud[:, [column]] for cloud in clouds], counts) for column in range(len(names))]
    clouds = [np.stack([scale.place(cloud[:, k]) for k, scale in enumerate(scales)], axis=1) for cloud in clouds]
    limits = np.array([scale.limits for scale in scales])
    notes = f" · at most {MOST_POINTS:,} points of each" if max(map(len, clouds)) > MOST_POINTS else ""
    notes += not_told_apart(classes) + not_shown(limits, dict(zip(series, clouds, strict=True)))
    fill = LIGHT if classes is None else GREY
    entries = entries_of(series, clouds, classes is not None)
    figure, panels = matrix_panels(len(names), title, description + notes, entries, classes, class_names)
    few = [thinned(cloud) for cloud in clouds]
    for (down, right), axes in panels.items():
        if down == right:
            draw_histograms(axes, [cloud[:, down] for cloud in clouds], scales[down], fill)
        else:
            draw_codes(axes, few[0][:, [right, down]], classes, limits[[right, down]], ("", ""), numbered=False)
            for drawn in axes.collections:
                drawn.set_sizes([np.clip(5_000 / max(len(rows), 1), 4, 12)])
            size = np.clip(2_000 / max(len(few[1]), 1), 1.5, 4)
            axes.scatter(*few[1][:, [right, down]].T, s=size, color="black", alpha=0.6, linewidths=0, zorder=3)
        name_pair(axes, scales, names, (down, right))
    return figure


def column_scale(columns: Sequence[np.ndarray], counts: bool) -> Scale:
    """The scale of a column of the rows and of the reconstructions, each (n, 1): see `view` for its limits."""
    logarithmic = counts and scale_of(np.concatenate(columns)).logarithmic
    scale = Scale(logarithmic, (0.0, 1.0))
    return Scale(logarithmic, tuple(view(*map(scale.place, columns))[0]))


def thinned(cloud: np.ndarray) -> np.ndarray:
    """A cloud (n, k) with NaN in place of all points but MOST_POINTS of them, chosen at random."""
    order = np.random.default_rng(0).permutation(len(cloud))
    return np.where((order < MOST_POINTS)[:, None], cloud, np.nan)


def entries_of(series: tuple[str, str], clouds: Sequence[np.ndarray], classified: bool) -> list:
    """The legend's entries for rows and reconstructions."""
    names = [literal(f"{len(cloud):,} {name}", 1.9, TEXT_SIZE) for name, cloud in zip(series, clouds, strict=True)]
    dot = {"linestyle": "none", "marker": "o"}
    first = Patch(color=GREY) if classified else Line2D([], [], color=COLOURS[0], markersize=5, **dot)
    first.set_label(names[0])
    return [first, Line2D([], [], color="black", markersize=3, label=names[1], **dot)]


def side_of(count: int) -> float:
    """Inches of a panel's side in a matrix of so many columns."""
    return float(np.clip(7.5 / max(count, 1), 1.5, 2.6))


def matrix_panels(
    count: int,
    title: str,
    description: str,
    entries: list,
    classes: np.ndarray | None,
    class_names: Sequence[str] | None,
) -> tuple[Figure, dict[tuple[int, int], Axes]]:
    """A figure with panels (row, column) on and below the diagonal, and legends to the right of the diagonal."""
    side = side_of(count)
    pitch, left, bottom = side + GAP, 0.85, 0.5
    of_classes = class_entries(classes, class_names)
    lines = -(-len(of_classes) // columns(len(of_classes))) if of_classes else 0
    tall = 0.75 + 1.55 * TEXT_SIZE / 72 * lines
    wide = max([legend_width(classes, class_names)] + [length(entry.get_label(), TEXT_SIZE) + 0.6 for entry in entries])
    beside = left + min(int(np.ceil(tall / pitch)), count) * pitch + 0.1  # right of the diagonal as far down as `tall`
    high = max(bottom + count * pitch, bottom + tall)
    figure = new_figure(max(left + count * pitch + MARGIN, beside + wide, 5.0), high, title, description)
    panels = {
        (row, column): place(figure, left + column * pitch, high - (row + 1) * pitch + GAP, side, side)
        for row in range(count)
        for column in range(row + 1)
    }
    across, up = figure.get_size_inches()
    style = LEGEND | {"fontsize": TEXT_SIZE}
    figure.legend(handles=entries, bbox_to_anchor=(beside / across, high / up), **style)
    if of_classes:
        corner, parts = (beside / across, (high - 0.5) / up), columns(len(of_classes))
        style |= {"title": "class", "alignment": "left", "columnspacing": SPACING}
        figure.legend(handles=of_classes, bbox_to_anchor=corner, ncols=parts, **style)
    return figure, panels


def draw_histograms(axes: Axes, columns: Sequence[np.ndarray], scale: Scale, colour) -> None:
    """Densities of a column of the rows (n,), filled, and of the reconstructions (m,), both to the same height."""
    finite = [values[np.isfinite(values)] for values in columns]
    edges = bars_of(finite[0], scale)
    for values, style in zip(finite, ({"color": colour, "fill": True}, {"color": "black"}), strict=True):
        heights = np.histogram(values, edges)[0] / np.diff(edges)
        axes.stairs(heights / max(heights.max(), 1e-30), edges, **style)
    axes.set(xlim=scale.limits, ylim=(0, 1.08))


def bars_of(values: np.ndarray, scale: Scale) -> np.ndarray:
    """The edges of a histogram's bars, in the units of the axis, for values (n,) in these units.

    If all values are whole numbers, edges lie halfway between whole numbers, so that no bar is empty by rounding.
    """
    edges = np.linspace(*scale.limits, BARS + 1)
    numbers, bounds = scale.undo(values), scale.undo(edges)
    whole = len(values) > 0 and np.allclose(numbers, np.rint(numbers), rtol=1e-9, atol=1e-6)
    if not whole or np.abs(bounds).max() > 1e12:  # a half is lost beside such numbers
        return edges
    halves = np.unique(np.floor(bounds)) + 0.5
    return scale.place(np.append(halves[0] - 1, halves))


def name_pair(axes: Axes, scales: Sequence[Scale], names: Sequence[str], place_in_matrix: tuple[int, int]) -> None:
    """Ticks of a panel (row, column), and the names of columns on the left and at the bottom of the matrix only."""
    down, right = place_in_matrix
    side = side_of(len(names))
    axes.set_aspect("auto")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL_SIZE, length=2.5)
    axes.set(xlabel="", ylabel="")
    outer = [(axes.xaxis, right, down == len(names) - 1)]
    if down == right:
        axes.set_yticks([])
    else:
        outer.append((axes.yaxis, down, right == 0))
    for axis, column, named in outer:
        places, labels, unit = outer_ticks(scales[column], side, axis is axes.xaxis)
        axis.set_ticks(places, labels if named else [""] * len(labels))
        if named:
            name = literal(visible(names[column]), side - length(unit, TEXT_SIZE), TEXT_SIZE)
            axis.set_label_text(name + unit, size=TEXT_SIZE)
    axes.xaxis.set_label_coords(0.5, -0.27 / side)
    axes.yaxis.set_label_coords(-0.6 / side, 0.5)


def outer_ticks(scale: Scale, side: float, across: bool) -> tuple[np.ndarray, list[str], str]:
    """`ticks` whose names, side by side if `across`, touch neither each other nor those of the next panel."""
    low, high = scale.limits
    for room in (0.35, 0.5, 0.8):
        places, names, unit = ticks(scale, side, room)
        half = np.array([length(name, SMALL_SIZE) / 2 if across else 0.06 for name in names])
        inches = (places - low) / (high - low) * side
        inside = (inches - half > -GAP / 2) & (inches + half < side + GAP / 2)
        if (np.diff(inches) > half[:-1] + half[1:] + 0.05).all():
            break
    return places[inside], [name for name, kept in zip(names, inside, strict=True) if kept], unit
