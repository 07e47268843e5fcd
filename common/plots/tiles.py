"""Images as tiles: samples, reconstructions, interpolations, the decoder's manifold."""

from common.plots.figure import DPI, MARGIN, SMALL_SIZE, TEXT_SIZE, new_figure, place

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure


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


def show_canvas(axes: Axes, canvas: np.ndarray, interpolation: str = "nearest") -> None:
    """The image of `canvas_of`, NaN white, in axes of as many pixels, or of any size with interpolation "auto"."""
    axes.imshow(canvas, colormaps["gray"].with_extremes(bad="white"), vmin=0, vmax=1, interpolation=interpolation)
    axes.spines[:].set_visible(False)
    axes.set(xticks=[], yticks=[])
    axes.tick_params(length=0, labelsize=SMALL_SIZE)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_size(TEXT_SIZE)
