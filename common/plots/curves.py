"""Curves: terms over training, and annealed estimates over the number of temperatures."""

import textwrap
from collections.abc import Mapping, Sequence
from itertools import zip_longest

from common.plots.figure import COLOURS, SMALL_SIZE, TEXT_SIZE, TITLE_SIZE, literal, new_figure, own_style, spread

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

CURVES = (  # prefix in a history, label, line, marker of a lone value, colour
    ("", "training", "solid", "o", COLOURS[0]),
    ("val_", "validation", "dashed", "D", COLOURS[2]),
)
FORWARD = {"linestyle": "-", "marker": "o", "color": COLOURS[0]}
REVERSE = {"linestyle": "--", "marker": "s", "color": COLOURS[2]}


@own_style()
def annealing_curves(
    curve: Sequence[Mapping], title: str, description: str, test_images: str, noun: str = "images"
) -> Figure:
    """Annealed estimates of log p(x) in nats against the number of temperatures, with standard errors.

    Each point of the curve has "temperatures" and three pairs of value and standard error. The error is that of the
    difference from the best estimate. "test" is for test images. "simulated_lower" and "simulated_upper" are for images
    of the model itself; the true value lies between them. Their gap says nothing of the error on test images.
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
            style = REVERSE if key == "simulated_upper" else FORWARD
            axes.errorbar(temperatures, values, errors, capsize=3, label=label, **style)
        axes.set(
            xscale="log", xlabel="temperatures between prior and posterior", ylabel=f"log p(x), nats per {noun[:-1]}"
        )
        axes.set_xticks(temperatures, [f"{number:,}" for number in temperatures], minor=False)
        axes.minorticks_off()
    right.legend(loc="best", frameon=False, fontsize=TEXT_SIZE)
    left.set_title(f"test {noun} of {literal(test_images, 1.9)}, forward", size=TEXT_SIZE)
    right.set_title(f"{noun} drawn from the model itself", size=TEXT_SIZE)
    return figure


@own_style()
def training_curves(
    history: Mapping[str, Sequence[float]],
    title: str,
    reference_lines: Mapping[str, Sequence[tuple[float, str]]] | None = None,
    noun: str = "image",
) -> Figure:
    """One panel per term, in nats per image: training images solid, validation images (`val_`) dashed.

    history: name -> one value per epoch, with "epoch" (or "updates") for the horizontal axis.
    reference_lines: term -> (value in nats, name without the value), ...
    noun: what is in a batch, such as image or row.
    """
    unit = next((name for name in ("epoch", "updates") if name in history), "epoch")
    names = [name.removeprefix("val_") for name, values in history.items() if len(values)]
    terms = [name for name in dict.fromkeys(names) if name not in ("epoch", "updates")]
    columns = 2 if len(terms) in (2, 4) else max(1, min(3, len(terms)))
    rows = max(1, -(-len(terms) // columns))
    description = f"Each term of the objective, mean over the {noun}s of an epoch"
    figure = new_figure(max(6.5, 3.9 * columns), 2.8 * rows + 0.3, title, description, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes, term in zip_longest(panels.flat, terms):
        if term is None:
            axes.set_axis_off()
        else:
            draw_term(axes, history, term, unit, (reference_lines or {}).get(term, ()))
    for axes in panels[:, 0]:
        axes.set_ylabel(f"nats per {noun}")
    if terms:
        lines = [line for axes in panels.flat for line in axes.get_legend_handles_labels()[0]]
        handles = {line.get_label(): line for line in lines}
        figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=2, frameon=False)
    else:
        panels[0, 0].set_axis_on()
        panels[0, 0].set(xlabel=unit, xticks=[], yticks=[])
        panels[0, 0].text(0.5, 0.5, "untrained", ha="center", va="center", size=TITLE_SIZE)
    return figure


def draw_term(
    axes: Axes,
    history: Mapping[str, Sequence[float]],
    term: str,
    unit: str,
    references: Sequence[tuple[float, str]],
) -> None:
    """One term's curves and reference values; a note below the axes lists values that they cannot show."""
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
            notes.append(f"{label} is not finite from {unit} {lost:,.0f} on")
    notes += scale_values(axes, np.concatenate(finite), references)
    axes.set_title(literal(term), loc="left", size=10, weight="bold")
    axes.set_xlabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.tick_params(labelsize=TEXT_SIZE)
    text = "\n".join(line for note in notes for line in textwrap.wrap(note, 48))
    below = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "top"}
    axes.annotate(text, (0, 0), (0, -34), size=SMALL_SIZE, color="0.3", **below)


def scale_values(axes: Axes, values: np.ndarray, references: Sequence[tuple[float, str]]) -> list[str]:
    """Fit the vertical axis to the curves' values and to near references; returns notes on values left out."""
    values = values if len(values) else np.array([value for value, _ in references] or [0.0])
    low, high = robust_range(values)
    reach = max(high - low, 0.1 * abs(high), 1e-6)
    references = [(value, literal(name)) for value, name in references]
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
    """The range of the values (n,) without outliers: up to a tenth at either end, if they lie far from the others."""
    ordered, tail = np.sort(values), len(values) // 10
    low, high = ordered[tail], ordered[-1 - tail]
    margin = 5 * max(high - low, 0.1 * abs(np.median(values)))
    return max(values.min(), low - margin), min(values.max(), high + margin)


def draw_references(axes: Axes, references: Mapping[float, str]) -> None:
    """One dotted line per value, with its name to the right of the axes, where no curve can cross it."""
    low, high = axes.get_ylim()
    heights = spread((np.array(list(references))[:, None] - low) / (high - low), 0.17)[:, 0]
    for (value, name), height in zip(references.items(), heights, strict=True):
        axes.axhline(value, color="0.3", linestyle="dotted", linewidth=1.2)
        text = f"{name}\n= {value:.4g}"
        axes.text(1.02, height, text, transform=axes.transAxes, va="center", size=SMALL_SIZE, color="0.3")
