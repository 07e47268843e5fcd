"""Images as tiles: samples, reconstructions, interpolations, the decoder's manifold.

Grey images are (n, h, w) or (n, d), colour images (n, h, w, 3) with red, green and blue. A grid of images has one axis
more than these: (rows, columns, h, w) is a grid of grey images, (rows, columns, h, w, 3) one of colour images. So the
number of axes tells them apart. Values that are not finite are white.
"""

from common.plots.figure import DPI, MARGIN, SMALL_SIZE, TEXT_SIZE, length, literal, new_figure, own_style, place

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

MOST_PIXELS = 2000  # of all tiles together, in width and in height
LONGEST_STRIP = 100  # numbers in one line of pixels; longer rows are wrapped
SHORTEST_SIDE = 16  # pixels that a side keeps, however long the other side is
UNIT_RANGE = (0.0, 1.0)  # the values from black to white, unless a caller says otherwise
BAR, BAR_ROOM = (1.6, 0.125), 0.3125  # inches: width and height of a colour bar, and the height that it takes below


def thumbnails(images: np.ndarray, columns: int, rows: int = 1) -> np.ndarray:
    """Images (n, h, w), (n, h, w, 3) or (n, d) as small as a figure of `columns` x `rows` shows them: means of blocks.

    The result is (n, h', w') or (n, h', w', 3). Small images stay unchanged. So images can be decoded and reduced in
    batches, and the functions below accept the thumbnails. `tile_note` describes the reduction.
    """
    images = as_images(images)
    images = images.astype(np.result_type(images.dtype, np.float32), copy=False)
    count, high, wide, *channels = images.shape
    down, across = blocks((high, wide), columns, rows)
    if down == across == 1:
        return images
    small = np.empty((count, -(-high // down), -(-wide // across), *channels), images.dtype)
    for number, image in enumerate(images):
        small[number] = block_means(image, down, across)
    return small


def tile_note(shape: tuple[int, ...], columns: int, rows: int = 1) -> str:
    """Text for a description on how `thumbnails` changes images of a shape; empty if it does not.

    shape: (h, w), (h, w, 3) or (d,).
    """
    high, wide, *channels = as_images(np.empty((0, *shape))).shape[1:]
    down, across = blocks((high, wide), columns, rows)
    numbers = int(np.prod(shape[: len(shape) - len(channels)]))
    square = len(shape) == 1 and high == wide and high * wide == numbers
    wrapped = high > 1 and (high, wide, *channels) != tuple(shape) and not square
    parts = "pixels" if channels else "numbers"
    notes = [f"rows of {numbers:,} {parts} in lines of {wide:,}"] if wrapped else []
    notes += [f"each pixel shown is the mean of {down} × {across}"] if (down, across) != (1, 1) else []
    return "".join(f" · {note}" for note in notes)


def blocks(shape: tuple[int, int], columns: int, rows: int) -> tuple[int, int]:
    """Height and width of the blocks of an image (h, w) whose means a thumbnail shows, so that all fit MOST_PIXELS.

    Both are the same, except that a side that fits keeps SHORTEST_SIDE pixels.
    """
    room = [max(1, MOST_PIXELS // count - 1) for count in (rows, columns)]
    least = [-(-side // most) for side, most in zip(shape, room, strict=True)]
    down, across = (max(own, min(max(least), side // SHORTEST_SIDE)) for side, own in zip(shape, least, strict=True))
    return down, across


def block_means(image: np.ndarray, down: int, across: int) -> np.ndarray:
    """Means of blocks of an image, (h, w) or (h, w, 3), without its pixels that are NaN; last blocks may be smaller."""
    shown = ~np.isnan(image)
    sums, counts = (
        np.add.reduceat(
            np.add.reduceat(part, np.arange(0, image.shape[0], down), axis=0),
            np.arange(0, image.shape[1], across),
            axis=1,
        )
        for part in (np.where(shown, image, 0), shown.astype(image.dtype))
    )
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).astype(image.dtype)


@own_style()
def image_grid(
    images: np.ndarray,
    title: str,
    description: str,
    columns: int = 10,
    limits: tuple[float, float] = UNIT_RANGE,
    value_name: str = "",
) -> Figure:
    """A figure of images (n, h, w), (n, h, w, 3) or (n, d) as tiles, in reading order.

    limits: the values that are black and white. If they are not 0 and 1, a colour bar with `value_name` shows them.
    """
    figure, *_ = draw_tiles(in_rows(images, columns), title, description, limits=limits, value_name=value_name)
    return figure


@own_style()
def image_pairs(
    upper: np.ndarray,
    lower: np.ndarray,
    names: tuple[str, str],
    title: str,
    description: str,
    columns: int = 10,
    limits: tuple[float, float] = UNIT_RANGE,
    value_name: str = "",
) -> Figure:
    """Each image above its partner, such as reconstruction and original; both (n, h, w), (n, h, w, 3) or (n, d).

    names: of the upper and the lower image of each pair.
    limits, value_name: see `image_grid`.
    """
    pairs = [in_rows(images, columns) for images in (upper, lower)]
    tiles = np.stack(pairs, axis=1)  # (rows, 2, columns, *shape)
    tiles = tiles.reshape(-1, *tiles.shape[2:])
    scale = {"limits": limits, "value_name": value_name}
    figure, axes, _, y = draw_tiles(tiles, title, description, together=2, left=1.0, **scale)
    axes.set_yticks(y, [literal(name, 0.85, SMALL_SIZE) for name in names] * (len(tiles) // 2))
    return figure


@own_style()
def manifold(
    images: np.ndarray,
    percentiles: np.ndarray,
    title: str,
    description: str,
    limits: tuple[float, float] = UNIT_RANGE,
    value_name: str = "",
) -> Figure:
    """Decoder output on a grid over a 2-D code: images (n, n, h, w) or (n, n, h, w, 3), percentiles (n,) in percent.

    images[i, j] belongs to the i-th percentile of z₂ and the j-th of z₁. z₂ grows upwards, as in a scatter.
    limits, value_name: see `image_grid`.
    """
    scale = {"limits": limits, "value_name": value_name}
    figure, axes, x, y = draw_tiles(images[::-1], title, description, left=0.7, bottom=0.5, **scale)
    names = [f"{percentile:.3g}" for percentile in percentiles]
    axes.set_xticks(x, sparse(names, x, 28))
    axes.set_yticks(y, sparse(names, y, 16)[::-1])
    name_columns(axes, "z₁, percentile of prior (%)")
    axes.set_ylabel("z₂, percentile of prior (%)")
    return figure


@own_style()
def interpolations(
    images: np.ndarray,
    title: str,
    description: str,
    limits: tuple[float, float] = UNIT_RANGE,
    value_name: str = "",
) -> Figure:
    """Decoded points on the line between the codes of two held-out images: (rows, steps, h, w) or with three channels.

    There is one row per pair of images.
    limits, value_name: see `image_grid`.
    """
    figure, axes, x, _ = draw_tiles(images, title, description, bottom=0.5, limits=limits, value_name=value_name)
    axes.set_xticks(x, sparse([f"{way:.2g}" for way in np.linspace(0, 1, len(x))], x, 28))
    name_columns(axes, "first code (0) to second code (1)")
    return figure


def name_columns(axes: Axes, name: str) -> None:
    """Label the horizontal axis; if the name is longer than the axis, it starts at the left end."""
    width = axes.get_position().width * axes.figure.get_figwidth()
    axes.set_xlabel(name, loc="center" if length(name, TEXT_SIZE) < width else "left")


def sparse(names: list[str], places: np.ndarray, distance: float) -> list[str]:
    """Names of ticks. A name is empty if it would be nearer than `distance` pixels to the one before."""
    pitch = places[1] - places[0] if len(places) > 1 else distance
    step = int(np.ceil(distance / pitch))
    return [name if number % step == 0 else "" for number, name in enumerate(names)]


def as_images(images: np.ndarray) -> np.ndarray:
    """(n, h, w) and (n, h, w, 3) unchanged; (n, d) as squares if d is a square number, else as strips (n, 1, d).

    More than LONGEST_STRIP pixels in a row, or in an image with a side of 1, are wrapped into lines. The last line is
    filled up with NaN.
    """
    channels = images.shape[3:] if images.ndim == 4 and images.shape[3] == 3 else ()
    numbers = int(np.prod(images.shape[1 : images.ndim - len(channels)]))
    if images.ndim == 3 + len(channels) and (1 not in images.shape[1:3] or numbers <= LONGEST_STRIP):
        return images
    rows = images.reshape(len(images), numbers, *channels)
    side = int(np.sqrt(numbers) + 0.5)
    if side**2 == numbers:
        return rows.reshape(len(rows), side, side, *channels)
    if numbers <= LONGEST_STRIP:
        return rows.reshape(len(rows), 1, numbers, *channels)
    wide = int(np.ceil(np.sqrt(numbers)))
    lines = -(-numbers // wide)
    rows = rows.astype(np.result_type(rows.dtype, np.float32), copy=False)
    missing = ((0, 0), (0, lines * wide - numbers), *((0, 0) for _ in channels))
    return np.pad(rows, missing, constant_values=np.nan).reshape(len(rows), lines, wide, *channels)


def as_tiles(images: np.ndarray) -> np.ndarray:
    """(rows, columns, h, w) and (rows, columns, h, w, 3) unchanged; (rows, columns, d) as `as_images` shows them."""
    tiles = as_images(images.reshape(-1, *images.shape[2:]))
    return tiles.reshape(*images.shape[:2], *tiles.shape[1:])


def in_rows(images: np.ndarray, columns: int) -> np.ndarray:
    """Images (n, *shape) in reading order as (rows, columns, *shape), the last row filled up with NaN."""
    columns = max(1, min(columns, len(images)))
    missing = columns * max(1, -(-len(images) // columns)) - len(images)
    images = images.astype(np.result_type(images.dtype, np.float32), copy=False)
    if missing:
        empty = np.full((missing, *images.shape[1:]), np.nan, images.dtype)
        images = np.concatenate([images, empty])
    return images.reshape(-1, columns, *images.shape[1:])


@own_style()
def draw_tiles(
    tiles: np.ndarray,
    title: str,
    description: str,
    together: int = 0,
    left: float = MARGIN,
    bottom: float = MARGIN,
    limits: tuple[float, float] = UNIT_RANGE,
    value_name: str = "",
) -> tuple[Figure, Axes, np.ndarray, np.ndarray]:
    """Tiles (rows, columns, *shape) with hairlines between them, in groups of `together` rows.

    left, bottom: inches of space for labels. limits, value_name: see `image_grid`. Returns figure, axes, and the
    centres of columns and of rows. Each pixel of a tile covers a whole number of the figure's pixels: nothing is
    blurred, and hairlines are even. If tiles are reduced or wrapped, the description says so.
    """
    note = tile_note(tiles.shape[2:], tiles.shape[1], tiles.shape[0])
    canvas, x, y = canvas_of(as_tiles(tiles), together)
    scaled = tuple(limits) != UNIT_RANGE
    bottom += BAR_ROOM * scaled
    left, bottom = (round(inches * DPI) / DPI for inches in (left, bottom))
    across, up = canvas.shape[1] / DPI, canvas.shape[0] / DPI
    figure = new_figure(max(left + across + MARGIN, 5), bottom + up, title, description + note)
    axes = place(figure, left, bottom, across, up)
    show_canvas(axes, canvas, limits=limits)
    if scaled:
        draw_bar(figure, left, limits, value_name)
    return figure, axes, x, y


def draw_bar(figure: Figure, left: float, limits: tuple[float, float], value_name: str) -> None:
    """A bar from black to white below everything, `left` inches from the edge, between the values of both."""
    low, high = (
        (f"{value:,.0f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.3g}").replace("-", "−")
        for value in map(float, limits)
    )
    start, bottom = left + length(low, SMALL_SIZE) + 0.06, 0.1
    axes = place(figure, start, bottom, *BAR)
    show_canvas(axes, np.linspace(0, 1, 256)[None])
    axes.set_aspect("auto")
    axes.spines[:].set(visible=True, color="0.5", linewidth=0.5)
    room = figure.get_figwidth() - MARGIN - start - BAR[0] - length(high, SMALL_SIZE) - 0.2
    name = literal(value_name, room, SMALL_SIZE)
    style = {"size": SMALL_SIZE, "va": "center", "transform": axes.transAxes}
    axes.text(-0.04, 0.5, low, ha="right", **style)
    axes.text(1.04, 0.5, f"{high}  {name}".rstrip(), **style)


def canvas_of(tiles: np.ndarray, together: int = 0, width: int = 900) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tiles (rows, columns, h, w) as one image about `width` pixels across, and the centres of columns and of rows.

    Colour tiles (rows, columns, h, w, 3) give a colour image. Large tiles are reduced: see `thumbnails`.
    """
    rows, columns = tiles.shape[:2]
    small = thumbnails(tiles.reshape(-1, *tiles.shape[2:]), columns, rows)
    _, high, wide, *channels = small.shape
    scale = max(1, min(12, round(width / (columns * wide)), MOST_PIXELS // (rows * high)))
    tall = max(scale, 16 // high)  # strips of a single row stay visible
    broad = max(scale, min(12, 16 // wide))  # narrow columns stay visible
    small = small.reshape(rows, columns, high, wide, *channels)
    x = np.arange(columns) * (wide * broad + 1)
    y = np.arange(rows) * (high * tall + 1) + (8 * (np.arange(rows) // together) if together else 0)
    canvas = np.full((y[-1] + high * tall, x[-1] + wide * broad, *channels), np.nan, small.dtype)
    for row, column in np.ndindex(rows, columns):
        enlarged = small[row, column].repeat(tall, axis=0).repeat(broad, axis=1)
        canvas[y[row] : y[row] + high * tall, x[column] : x[column] + wide * broad] = enlarged
    return canvas, x + (wide * broad - 1) / 2, y + (high * tall - 1) / 2


def show_canvas(
    axes: Axes, canvas: np.ndarray, interpolation: str = "nearest", limits: tuple[float, float] = UNIT_RANGE
) -> None:
    """Show the image of `canvas_of`, with NaN as white, in axes of the same size, or of any size with "auto".

    limits: the values that are black and white, or no and all light of a colour.
    """
    if canvas.ndim == 3:
        axes.imshow(as_bytes(canvas, limits), interpolation=interpolation)
    else:
        low, high = limits
        grey = colormaps["gray"].with_extremes(bad="white")
        axes.imshow(canvas, grey, vmin=low, vmax=high, interpolation=interpolation)
    axes.spines[:].set_visible(False)
    axes.set(xticks=[], yticks=[])
    axes.tick_params(length=0, labelsize=SMALL_SIZE)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_size(TEXT_SIZE)


def as_bytes(canvas: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """A colour image (h, w, 3) as bytes, 0 to 255 for the values between the limits; what is not finite is white."""
    low, high = limits
    light = (np.clip(canvas, low, high) - low) / max(high - low, 1e-30)
    finite = np.isfinite(canvas) & np.isfinite(light)
    return np.rint(255 * np.where(finite.all(axis=-1, keepdims=True), light, 1)).astype(np.uint8)
