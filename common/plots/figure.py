"""The frame of every figure: sizes in inches, colours, headings that wrap, whole PNG files."""

import textwrap
from pathlib import Path

from common.files import whole

import numpy as np
from matplotlib import color_sequences
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patheffects import withStroke
from matplotlib.textpath import text_to_path

DPI = 128  # a power of two: whole pixels remain whole when they pass through inches
MARGIN = 0.125  # inches around everything
TITLE_SIZE, TEXT_SIZE, SMALL_SIZE = 12, 9, 8  # points
COLOURS = np.array(color_sequences["petroff10"])  # told apart by colour-blind readers as well
MARKERS = "o^sDvP*X"  # the first for classes 0 to 9, the second for 10 to 19, ...
HALO = [withStroke(linewidth=2.5, foreground="white")]


def save(figure: Figure, path: str | Path) -> None:
    """Write a PNG under `path` all at once or not at all, whatever interrupts it."""
    with whole(path) as unfinished:
        figure.savefig(unfinished, dpi=DPI, format="png")


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
    characters = int(0.93 * width / max(length, 1e-9) * len(text))  # lines differ a little from the mean
    return textwrap.fill(text, max(characters, 1))


def place(figure: Figure, left: float, bottom: float, width: float, height: float, **options) -> Axes:
    """Axes at a place given in inches from the figure's lower left corner."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up), **options)


def marker(label: int) -> str:
    """Of a class: one for every ten of them."""
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
