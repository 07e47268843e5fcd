"""The frame of every figure: sizes in inches, colours, literal text, headings that wrap, atomic PNG files."""

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
FONT = "DejaVu Sans"  # the font of matplotlib's own style; it comes with matplotlib
MOST_LINES = 16  # lines of a title, and of a description
COLOURS = np.array(color_sequences["petroff10"])  # colour-blind readers can tell these apart too
MARKERS = "o^sDvP*X"  # the first for the first ten classes, the second for the next ten, ...
HALO = [withStroke(linewidth=2.5, foreground="white")]

# A decorator, and a context, in which a reader's matplotlibrc (usetex, colours, fonts) changes no figure. Functions
# that make a figure and functions that save it need this, since matplotlib reads its settings at both times.
own_style = functools.partial(style.context, "default")


@own_style()
def save(figure: Figure, path: str | Path) -> None:
    """Write a PNG to `path`, atomically."""
    with whole(path) as unfinished:
        figure.savefig(unfinished, dpi=DPI, format="png")


def new_figure(width: float, height: float, title: str, description: str, **options) -> Figure:
    """A figure with `width` x `height` inches of space below its heading, which is as high as its lines need."""
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
    """`text` in as many lines as it needs to fit `width` inches, at most MOST_LINES; no character is markup."""
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
    """A string that matplotlib draws as `text` itself, on one line: no mathematics, no character that the font lacks.

    width: inches; a longer text loses its middle, so that names that differ at either end stay different.
    Call this once per text: a second call would show the backslashes of the first.
    """
    text = printable(text)
    kept = len(text)
    shown = text
    while width is not None and kept > 1 and length(shown, size) > width:
        kept = min(kept - 1, int(kept * width / length(shown, size)) + 2)
        shown = f"{text[: kept - kept // 3]}…{text[len(text) - kept // 3 :]}"
    return escaped(shown)


def escaped(text: str) -> str:
    """`text` with dollar signs that matplotlib draws as such, and not as the start of a formula."""
    return text.replace("$", r"\$")


def printable(text) -> str:
    """`text` on one line: control characters as spaces, invisible ones left out, others that the font lacks as "?"."""
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
    """Code points that both fonts of a figure, regular and bold, can draw."""
    fonts = [get_font(findfont(FontProperties(family=FONT, weight=weight))) for weight in ("normal", "bold")]
    return set.intersection(*(set(font.get_charmap()) for font in fonts))


def place(figure: Figure, left: float, bottom: float, width: float, height: float, **options) -> Axes:
    """Axes at a position in inches from the figure's lower left corner."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up), **options)


def name_axis(axis: Axis, name: str, powers: tuple[int, int] = (-2, 4), **text) -> None:
    """Label an axis whose limits are set, with the power of ten or the offset that its tick numbers leave out.

    matplotlib writes these beside the axis, where other axes may lie. powers: where such numbers begin.
    """
    formatter = axis.get_major_formatter()
    formatter.set_powerlimits(powers)
    formatter.set_locs(axis.get_majorticklocs())
    offset = formatter.get_offset()
    axis.get_offset_text().set_visible(False)
    sign = "×" if offset[:1].isdigit() else ""
    axis.set_label_text(f"{name} ({sign}{offset})" if offset else name, **text)


def spread(positions: np.ndarray, distance: float) -> np.ndarray:
    """Positions (n, d), moved until almost none are nearer than `distance` to another, so that text is legible."""
    positions = positions + 1e-3 * distance * np.random.default_rng(0).normal(size=positions.shape)
    for _ in range(100):
        difference = positions[:, None] - positions[None]  # (n, n, d)
        length = np.linalg.norm(difference, axis=-1, keepdims=True)
        push = np.maximum(distance - length, 0) / 2 * difference / np.maximum(length, 1e-12 * distance)
        positions = positions + 0.5 * push.sum(axis=1)
    return positions
