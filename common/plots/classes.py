"""The classes in a figure: their selection, their look and their legend."""

from collections.abc import Sequence
from typing import NamedTuple

from common.arrays import visible
from common.plots.figure import COLOURS, MARGIN, MARKERS, TEXT_SIZE, length, literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

MOST_CLASSES = 60  # classes with a colour and marker of their own: six markers in ten colours
ROWS_IN_LEGEND = 15
NAME_WIDTH = 1.65  # inches: a number of 20 digits, or about as many letters; longer names are shortened
SPACING = 1.2  # between columns, in letter heights
OTHERS = "0.7"  # grey


class Look(NamedTuple):
    """How a figure shows one class: its label, its name in the form of `literal`, its colour and its marker."""

    label: int
    name: str
    colour: np.ndarray
    marker: str


def looks(labels: np.ndarray | None, class_names: Sequence[str] | None = None) -> list[Look]:
    """The looks of the classes in labels (n,), in order; of the largest classes if there are more than MOST_CLASSES.

    A class's rank determines colour and marker, since labels can be negative or far apart.
    class_names: the name of class k at index k; a class without a name shows its number.
    """
    if labels is None:
        return []
    present, counts = np.unique(labels, return_counts=True)
    chosen = np.sort(present[np.argsort(-counts, kind="stable")[:MOST_CLASSES]])
    names = () if class_names is None else class_names
    return [
        Look(
            label,
            literal(visible(names[label] if 0 <= label < len(names) else label), NAME_WIDTH),
            COLOURS[rank % len(COLOURS)],
            MARKERS[rank // len(COLOURS)],
        )
        for rank, label in enumerate(map(int, chosen))
    ]


def other_classes(labels: np.ndarray | None) -> int:
    """The number of classes in labels (n,) that have no look of their own."""
    return 0 if labels is None else max(0, len(np.unique(labels)) - MOST_CLASSES)


def not_told_apart(labels: np.ndarray | None) -> str:
    """Text for a description about classes without a look of their own; empty if there are none."""
    others = other_classes(labels)
    return f" · in colour: the {MOST_CLASSES} largest of {MOST_CLASSES + others:,} classes" if others else ""


def class_entries(labels: np.ndarray | None, class_names: Sequence[str] | None = None) -> list[Line2D]:
    """Legend entries: one for every class with a look of its own, and one for all other classes."""
    style = {"linestyle": "none"}
    entries = [
        Line2D([], [], color=look.colour, marker=look.marker, label=look.name, **style)
        for look in looks(labels, class_names)
    ]
    others = other_classes(labels)
    if others:
        name = f"{others:,} other class{'es' * (others > 1)}"
        entries.append(Line2D([], [], color=OTHERS, marker="o", label=name, **style))
    return entries


def legends(
    axes: Axes, labels: np.ndarray | None, shown: list, x: float, class_names: Sequence[str] | None = None
) -> None:
    """Draw legends right of the axes, from `x` in axes widths: the classes at the top, `shown` at the bottom."""
    style = {"frameon": False, "fontsize": TEXT_SIZE, "borderaxespad": 0, "handletextpad": 0.5}
    if shown:
        corner = {"loc": "lower left", "bbox_to_anchor": (x, 0), "bbox_transform": axes.transAxes}
        axes.figure.legend(handles=shown, **corner, **style)  # axes have room for one legend only
    entries = class_entries(labels, class_names)
    if entries:
        style |= {"title": "class", "alignment": "left", "columnspacing": SPACING, "ncols": columns(len(entries))}
        axes.legend(handles=entries, loc="upper left", bbox_to_anchor=(x, 1), **style)


def legend_width(labels: np.ndarray | None, class_names: Sequence[str] | None = None) -> float:
    """Inches that `legends` and the margin beside them need for the classes."""
    widths = [length(entry.get_label(), TEXT_SIZE) for entry in class_entries(labels, class_names)]
    if not widths:
        return 0.0
    letter, parts = TEXT_SIZE / 72, np.array_split(widths, columns(len(widths)))
    extra = 2.5 * len(parts) + SPACING * (len(parts) - 1) + 0.8  # symbols, gaps, and the legend's own edge
    return sum(part.max() for part in parts) + extra * letter + MARGIN


def columns(entries: int) -> int:
    """The number of columns of a legend."""
    return -(-entries // ROWS_IN_LEGEND)
