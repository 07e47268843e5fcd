"""Images for a trained model: their shape and range are checked at once, and a slice is scaled when it is read."""

import math

from common.arrays import DataError, MappedImages, as_floats
from common.preprocessing import Range, check_floats, integer_white, one_channel, value_range

import numpy as np
from keras import ops


class Pixels:
    """Images as a model takes them: a slice is float32 in [0, 1], (rows, *image_shape). No copy of all images is made.

    Args:
        images: an array, a list or a tensor, (n, *image_shape). One channel, or three equal channels, may come before
            or after height and width. Values are floats in [0, 1], up to rounding; truth values; or integers from 0 to
            `white`.
        image_shape: (height, width), (height, width, 3) or (d,).
        white: the integer that stands for 1: 255, or 1 if the model was trained on integers 0 and 1.

    Raises DataError, in one line, for other images.
    """

    def __init__(self, images, image_shape: tuple[int, ...], white: int = 255):
        self.image_shape = tuple(image_shape)
        self.array = in_shape(as_array(images, "x"), self.image_shape)
        if len(self):
            require_range(self.array, white)
        self.white = 1 if self.array.dtype.kind == "b" else white

    def __len__(self):
        return len(self.array)

    def __getitem__(self, rows: slice) -> np.ndarray:
        batch = np.asarray(self.array[rows])
        return as_floats(batch.reshape(len(batch), *self.image_shape), self.white)


def as_array(rows, name: str):
    """`rows`, images or codes, as an array; MappedImages stay unchanged. Raises DataError if they are not numbers."""
    if isinstance(rows, MappedImages):
        return rows
    if np.ma.is_masked(rows):
        raise DataError(f"{name} has masked values; give {name}.filled(0)")
    try:
        rows = ops.convert_to_numpy(rows) if ops.is_tensor(rows) else np.asarray(rows)
    except ValueError as error:
        raise DataError(f"{name} is not an array ({error}); give rows of one shape") from error
    if rows.dtype.kind not in "biuf":
        raise DataError(f"{name} has dtype {rows.dtype}; give integers or floats")
    return rows


def require_shape(shape: tuple[int, ...], image_shape: tuple[int, ...]):
    """Raises DataError unless `shape` is the shape of images, perhaps with channels, or of an empty list."""
    usual = [image_shape]
    if len(image_shape) == 3:
        usual.append((image_shape[2], *image_shape[:2]))
    if len(image_shape) == 2:
        usual += [axes for channels in (1, 3) for axes in ((*image_shape, channels), (channels, *image_shape))]
    if (shape[1:] in usual and shape) or shape == (0,):
        return
    remedy = ""
    if shape in usual:
        remedy = "; for one image pass x[None]"
    elif math.prod(shape[1:]) == math.prod(image_shape):
        remedy = f"; pass x.reshape(-1, {', '.join(map(str, image_shape))})"
    raise DataError(f"x has shape {shape}; this model takes (n, {', '.join(map(str, image_shape))}){remedy}")


def in_shape(images, image_shape: tuple[int, ...]):
    """Images, (n, *image_shape), of images that may have other channels. Raises DataError as `require_shape` does."""
    require_shape(images.shape, image_shape)
    if len(images.shape) != 4 or images.shape[1:] == image_shape:
        return images
    if len(image_shape) == 3:
        return np.moveaxis(images, 1, 3)
    return one_channel(images, 3 if images.shape[1:3] == image_shape else 1, "x", notes=[])


def require_range(images, white: int):
    """Raises DataError if images are outside the range of their type by more than rounding."""
    if images.dtype.kind == "b" or isinstance(images, MappedImages):  # these were checked when they were loaded
        return
    low, high = value_range(images)
    if images.dtype.kind in "iu":
        if low < 0 or high > white:
            raise DataError(f"x has integers from {low} to {high}; this model takes 0 to {white}, or floats in [0, 1]")
        if high == 1 != white:  # divided by 255 they would be almost black
            raise DataError(
                f"x is {images.dtype} but goes only from 0 to 1; pass x.astype('float32') if 1 is white, or x / 255"
            )
        if white == 255:
            integer_white([Range("x", images.dtype, low, high)], notes=[])
    else:
        check_floats([Range("x", images.dtype, low, high)], notes=[])
