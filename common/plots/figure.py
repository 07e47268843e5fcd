"""The frame of every figure: sizes in inches, colours, text as it is written, headings that wrap, whole PNG files."""

import functools
import textwrap
import unicodedata
from pathlib import Path

from common.files import whole

import numpy as np
from matplotlib import color_sequences, style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patheffects import withStroke
from matplotlib.textpath import text_to_path

DPI = 128  # a power of two: whole pixels remain whole when they pass through inches
MARGIN = 0.125  # inches around everything
TITLE_SIZE, TEXT_SIZE, SMALL_SIZE = 12, 9, 8  # points
FONT = "DejaVu Sans"  # that of matplotlib's own style, which it brings along
MOST_LINES = 16  # of a title, and of a description
COLOURS = np.array(color_sequences["petroff10"])  # told apart by colour-blind readers as well
MARKERS = "o^sDvP*X"  # the first for the first ten classes, the second for the next ten, ...
HALO = [withStroke(linewidth=2.5, foreground="white")]

# Decorator, and context, in which a reader's matplotlibrc (usetex, colours, fonts) changes no figure; it is as it was
# afterwards. What makes a figure and what saves it need this, since matplotlib reads its settings at both times.
own_style = functools.partial(style.context, "default")


@own_style()
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
    """`text`, as it is written, in as many lines as it needs to fit `width` inches, at most MOST_LINES."""
    text = printable(text)
    characters = int(0.93 * width / max(length(text, size, weight), 1e-9) * len(text))  # lines differ from the mean
    while True:
        lines = textwrap.wrap(text, max(characters, 1), max_lines=MOST_LINES, placeholder="…")
        widest = max((length(line, size, weight) for line in lines), default=0.0)
        if characters <= 1 or widest <= 0.975 * width:  # drawn, a line of narrow letters is 2 % longer
            return "\n".join(map(escaped, lines))
        characters = int(0.9 * characters)


@functools.lru_cache(4096)
def length(text: str, size: float, weight: str = "normal") -> float:
    """Inches that a line of text takes; `size` in points."""
    font = FontProperties(family=FONT, weight=weight, size=size)
    return text_to_path.get_text_width_height_descent(text or " ", font, ismath=False)[0] / 72


def literal(text, width: float | None = None, size: float = TEXT_SIZE) -> str:
    """What matplotlib draws as `text` itself, on one line: no mathematics, no character that the font lacks.

    width: inches; a longer text loses its middle, so that names that differ at either end stay apart.
    To be called once a text: a second call would show the first one's backslashes.
    """
    text = printable(text)
    kept = len(text)
    shown = text
    while width is not None and kept > 1 and length(shown, size) > width:
        kept = min(kept - 1, int(kept * width / length(shown, size)) + 2)
        shown = f"{text[: kept - kept // 3]}…{text[len(text) - kept // 3 :]}"
    return escaped(shown)


def escaped(text: str) -> str:
    """A dollar that matplotlib draws as one, not as the start of a formula."""
    return text.replace("$", r"\$")


def printable(text) -> str:
    """`text` on one line: control characters as spaces, invisible ones left out, what the font lacks as "?"."""
    glyphs = characters_of_fonts()
    shown = []
    for character in unicodedata.normalize("NFC", str(text)):
        category = unicodedata.category(character)
        if category in ("Cc", "Zl", "Zp"):
            shown.append(" ")
        elif category != "Cf":  # such as joiners and marks of direction
            shown.append(character if ord(character) in glyphs else "?")
    return "".join(shown)


@functools.cache
def characters_of_fonts() -> set[int]:
    """Code points of which both fonts of a figure, regular and bold, have the glyph."""
    fonts = [get_font(findfont(FontProperties(family=FONT, weight=weight))) for weight in ("normal", "bold")]
    return set.intersection(*(set(font.get_charmap()) for font in fonts))


def place(figure: Figure, left: float, bottom: float, width: float, height: float, **options) -> Axes:
    """Axes at a place given in inches from the figure's lower left corner."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up), **options)


def name_axis(axis: Axis, name: str, powers: tuple[int, int] = (-2, 4), **text) -> None:
    """Label an axis whose limits are set, with the power of ten or the offset that its numbers are without.

    Beside the axis, where matplotlib writes them, other axes may lie. powers: where such numbers begin.
    """
    formatter = axis.get_major_formatter()
    formatter.set_powerlimits(powers)
    formatter.set_locs(axis.get_majorticklocs())
    offset = formatter.get_offset()
    axis.get_offset_text().set_visible(False)
    sign = "×" if offset[:1].isdigit() else ""
    axis.set_label_text(f"{name} ({sign}{offset})" if offset else name, **text)


def spread(positions: np.ndarray, distance: float) -> np.ndarray:
    """Positions (n, d) moved apart until hardly two are nearer than `distance`, so that text is legible."""
    positions = positions + 1e-3 * distance * np.random.default_rng(0).normal(size=positions.shape)
    for _ in range(100):
        difference = positions[:, None] - positions[None]  # (n, n, d)
        length = np.linalg.norm(difference, axis=-1, keepdims=True)
        push = np.maximum(distance - length, 0) / 2 * difference / np.maximum(length, 1e-12 * distance)
        positions = positions + 0.5 * push.sum(axis=1)
    return positions
