"""Arrays that figures are made of in tests, and what is required of every figure."""

from unittest.mock import patch

from common.plots.figure import DPI, own_style

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text

RANDOM = np.random.default_rng(0)
CODES = RANDOM.normal(size=(300, 2))
LABELS = np.arange(300) % 10
PRIOR = RANDOM.normal(size=(500, 2))
IMAGES = RANDOM.random((7, 4, 4))
LONG = "A Gaussian adversarial autoencoder on MNIST, adversarial weight 100, learning rate 0.0002 · " * 3


def tile_values(figure: Figure, rows: int, columns: int) -> np.ndarray:
    """The value in the middle of each tile, (rows, columns), top row first."""
    canvas = figure.axes[0].images[0].get_array().filled(np.nan)
    down, right = (
        ((np.arange(count) + 0.5) / count * size).astype(int)
        for count, size in zip((rows, columns), canvas.shape, strict=True)
    )
    return canvas[np.ix_(down, right)]


def require_readable(figure: Figure, x_label: bool = True, y_label: bool = True):
    """Title LONG and description stand above all axes, nothing is cut off, and the first axes have these labels."""
    figure.draw_without_rendering()
    title, description = figure.texts
    assert title.get_text().split() == LONG.split() and description.get_text()
    assert (bool(figure.axes[0].get_xlabel()), bool(figure.axes[0].get_ylabel())) == (x_label, y_label)
    require_whole(figure)
    below = max(axes.get_tightbbox().y1 for axes in figure.axes)
    assert title.get_window_extent().y0 >= description.get_window_extent().y1
    assert description.get_window_extent().y0 >= below


def require_whole(figure: Figure):
    """Nothing that was drawn leaves the figure."""
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert drawn.x0 >= 0 and drawn.y0 >= 0 and drawn.x1 <= width and drawn.y1 <= height


def require_legible(figure: Figure):
    """Nothing leaves the figure, no two texts overlap, and it is below 3,000 pixels across and down."""
    written = []
    with own_style(), patch.object(Text, "draw", lambda text, renderer: written.append(text)):
        figure.draw_without_rendering()  # of ticks it draws those inside of the axes
    with own_style():
        require_whole(figure)
    assert max(pixels(figure)) < 3000, pixels(figure)
    written = [text for text in written if text.get_visible() and text.get_text().strip()]
    boxes = np.array([text.get_window_extent().extents for text in written])
    room = np.array([0.15 * text.get_size() * figure.dpi / 72 for text in written])  # above and below the letters
    boxes += np.stack([0 * room, room, 0 * room, -room], axis=1)
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    common = np.minimum(high, high.swapaxes(0, 1)) - np.maximum(low, low.swapaxes(0, 1))  # (n, n, axis)
    overlap = np.triu((common > 1).all(axis=-1), 1)  # more than a pixel
    assert not overlap.any(), [[written[i].get_text() for i in pair] for pair in np.argwhere(overlap)]


def pixels(figure: Figure) -> list[int]:
    """Width and height of the figure when it is saved."""
    return (figure.get_size_inches() * DPI).round().astype(int).tolist()
