"""Converts arrays as people save them to images in [0, 1] and to class numbers.

Safe conversions are made, and a note says so. Everything else raises DataError, with the line of Python that corrects
it. The arrays of a data set are converted together: x_train and x_test have one scale, y_train and y_test the same
classes. `common.kinds` says whether arrays are images in [0, 1], other real numbers, or counts.
"""

import math
import re
import sys
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from common.arrays import DataError, chunks, visible

import numpy as np

IMAGES = ("x", "images", "image", "imgs", "img", "pictures", "pixels", "data", "features", "inputs", "samples", "")
LABELS = ("y", "labels", "label", "targets", "target", "classes", "class", "categories", "category")
SPLITS = {
    "training": "_train",
    "train": "_train",
    "validation": "_val",
    "valid": "_val",
    "val": "_val",
    "testing": "_test",
    "test": "_test",
    "tr": "_train",
    "te": "_test",
}
NEAR_255 = 200  # if the highest integer is above this, the array is taken for 8-bit pixels
DARK = 0.25  # share of white: if no pixel is brighter, the array may have another scale
ROUNDING = 1e-5  # values outside of [0, 1] by up to this are rounding, and not another scale


# Names of arrays


def roles(names: Iterable[str]) -> dict[str, str]:
    """Which array is x, y, x_train, y_train, x_val, y_val, x_test and y_test: role -> name in the file.

    Of several spellings of one role, the first in IMAGES or LABELS counts. A single array holds the images, unless its
    name has another meaning. `numpy.savez(file, x, y)` calls the two arrays arr_0 and arr_1.
    """
    names = list(names)
    if sorted(names) == ["arr_0", "arr_1"]:
        return {"x": "arr_0", "y": "arr_1"}
    ranked = {}
    for name in names:
        role, rank = role_of(name)
        if role:
            ranked[role] = min(ranked.get(role, (len(IMAGES),)), (rank, name != role, name))
    if not ranked and len(names) == 1:
        return {"x": names[0]}
    return {role: name for role, (*_, name) in ranked.items()}


def role_of(name: str) -> tuple[str | None, int]:
    """The role of an array by its name, or None, and the rank of this spelling: 0 is the most usual."""
    kind, split = re.sub("[^a-z]", "", name.lower()), ""
    for word, ending in SPLITS.items():
        if kind.startswith(word) or kind.endswith(word):
            kind, split = kind.removeprefix(word) if kind.startswith(word) else kind.removesuffix(word), ending
            break
    if kind in IMAGES and (kind or split):
        return f"x{split}", IMAGES.index(kind)
    if kind in LABELS:
        return f"y{split}", LABELS.index(kind)
    return None, 0


# Images


def plane_shape(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape of an array as grey images, (n, height, width) or (n, d); None if it cannot hold images.

    An axis of one or three channels, the last axis or the second, is left out. Colour images have it last.
    """
    if len(shape) == 4 and shape[3] in (1, 3):
        return shape[:3]
    if len(shape) == 4 and shape[1] in (1, 3):
        return shape[:1] + shape[2:]
    return shape if len(shape) in (2, 3) else None


def check_images(header, name: str):
    """Raises DataError unless an array of this shape and dtype can hold images."""
    shape, dtype = header.shape, header.dtype
    if dtype.kind not in "buif":
        raise DataError(
            f"{name} has dtype {dtype}; save it as uint8 or float in [0, 1], such as by {name}.astype(float)"
        )
    if len(shape) == 4 and 0 not in shape and not plane_shape(shape):
        channel = 1 if shape[1] in (2, 4) and shape[3] not in (2, 4) else 3
        axes = ":" if channel == 1 else "..."
        which = ":3" if shape[channel] == 4 else "0"  # the fourth channel is the opacity
        raise DataError(
            f"{name} has shape {shape}, {shape[channel]} channels; give grey or colour images, such as by "
            f"{name} = {name}[{axes}, {which}]"
        )
    if not plane_shape(shape) or 0 in shape:
        raise DataError(f"{name} has shape {shape}; give (n, height, width) or (n, d), without a 0")


def without_channels(arrays: dict, names: Mapping[str, str], notes: list[str]) -> dict[str, int]:
    """Brings images of four axes into the form (n, height, width) or, if they are in colour, (n, height, width, 3).

    Changes the arrays in the dict, by role. Three equal channels in all arrays are grey. `names` has their names in the
    file. Returns the axis of the channels in the file, by role, if any array is in colour; else an empty dict.
    """
    channels = {role: 3 if x.shape[3] in (1, 3) else 1 for role, x in arrays.items() if x.ndim == 4}
    colour = any(not equal_channels(arrays[role], axis) for role, axis in channels.items())
    for role, axis in channels.items():
        x, name = arrays[role], names[role]
        if colour and x.shape[axis] == 3:
            arrays[role] = np.moveaxis(x, 1, 3) if axis == 1 else x
            if axis == 1:
                notes.append(f"{name} has its channels first: {x.shape} is taken as {arrays[role].shape}")
        else:
            arrays[role] = one_channel(x, axis, name, notes)
    return channels if colour else {}


def equal_channels(x, axis: int) -> bool:
    """Whether images, which may be read in parts, have one channel or equal channels on this axis."""
    return x.shape[axis] == 1 or all((chunk == np.take(chunk, [0], axis)).all() for chunk in chunks(x))


def one_channel(x: np.ndarray, axis: int, name: str, notes: list[str]) -> np.ndarray:
    """`x`, of four axes, without its axis of 1 or 3 channels. Raises DataError if the channels differ."""
    first = x[..., 0] if axis == 3 else x[:, 0]
    if x.shape[axis] == 1:
        notes.append(f"{name} has one channel: {x.shape} is taken as {first.shape}")
        return first
    if not equal_channels(x, axis):
        grey = mean_of_channels(name, axis, name, x.dtype)
        raise DataError(f"{name} holds colour images, {x.shape}; make them grey, such as by {name} = {grey}")
    notes.append(f"{name} has three equal channels: one is taken")
    return first


def mean_of_channels(channels: str, axis: int, name: str, dtype) -> str:
    """Python code for the mean over the axis, in the type of the array `name`: integers stay integers."""
    return f"{channels}.mean(axis={axis})" + f".astype({name}.dtype)" * (dtype.kind in "ui")


class Range(NamedTuple):
    """The lowest and the highest value of an array of images; NaN if any value is NaN."""

    name: str
    dtype: np.dtype
    low: float
    high: float


def value_range(x: np.ndarray) -> tuple[float, float]:
    """The lowest and the highest value; NaN if any value is NaN."""
    with np.errstate(invalid="ignore"):
        lows, highs = zip(*((chunk.min(), chunk.max()) for chunk in chunks(x)), strict=True)
        return np.min(lows).item(), np.max(highs).item()


def integer_white(ranges: list[Range], notes: list[str]) -> int:
    """The integer that is white in all arrays of integers: 255, or 1 if they have only 0 and 1."""
    lowest, highest = min(ranges, key=lambda each: each.low), max(ranges, key=lambda each: each.high)
    low, high = lowest.low, highest.high
    if low < 0 or high > 255:
        name = lowest.name if low < 0 else highest.name
        raise DataError(f"{name} has pixels from {low} to {high}; {rescaling(name, ranges)}")
    if high == 1:
        notes.append(f"{highest.name} has only 0 and 1: 1 is white")
        return 1
    wide = [each for each in ranges if each.dtype != np.uint8]
    if wide and 0 < high <= NEAR_255:
        name = wide[0].name
        raise DataError(
            f"{name} has dtype {wide[0].dtype} and goes from {low} to {high}. If 255 is white, save "
            f"{name}.astype(np.uint8); if {high} is white, save {name} / {high}{likewise(name, ranges)}"
        )
    for name, dtype, lowest, highest in wide:
        notes.append(f"{name} is {dtype} from {lowest} to {highest}: taken as 8-bit pixels")
    notes += dark(ranges, 255)
    return 255


def check_floats(ranges: list[Range], notes: list[str]):
    """Raises DataError unless floats lie in [0, 1], up to rounding."""
    for name, _, *both in ranges:
        if not np.isfinite(both).all():
            raise DataError(
                f"{name} has NaN or infinite pixels; leave out those images, or make those pixels black, by "
                f"{name} = np.where(np.isfinite({name}), {name}, 0)"
            )
        if max(map(abs, both)) > sys.float_info.max:
            raise DataError(f"{name} has pixels beyond the range of float64; rescale them to [0, 1]")
    if outside := [each for each in ranges if not in_range(each, 0)]:
        name, _, low, high = outside[0]
        if min(each.low for each in outside) >= 0 and NEAR_255 < max(each.high for each in outside) <= 255.01:
            remedy = f"divide by 255 so that they lie in [0, 1]: {name} = {name} / 255{likewise(name, outside)}"
        elif all(in_range(each, -1) for each in outside):
            line = f"{name} = ({name} + 1) / 2{likewise(name, outside)}"
            remedy = f"rescale them to [0, 1], such as by {line}, if -1 is black"
        else:
            remedy = rescaling(name, outside)
        raise DataError(f"{name} has pixels from {low} to {high}; {remedy}")
    for name, _, low, high in ranges:
        if low < 0 or high > 1:
            notes.append(f"{name} goes from {low:.8g} to {high:.8g}: rounding, clipped to [0, 1]")
    notes += dark(ranges, 1)


def in_range(values: Range, black: int) -> bool:
    """Whether floats lie in [black, 1], up to rounding in their type."""
    rounding = max(ROUNDING, 2.0 * float(np.finfo(values.dtype).eps))
    return values.low >= black - rounding and values.high <= 1 + rounding


def dark(ranges: list[Range], white: int) -> list[str]:
    """A note on each array without a pixel as bright as a quarter of `white`: it may have another scale."""
    highest = max((each.high for each in ranges), default=0)
    notes = []
    for name, _, _, high in ranges:
        if 0 < high < DARK * white:
            remedy = f"; if {highest:.9g} is white, save {name} / {highest:.9g}" * (highest < DARK * white)
            notes.append(f"{name}: the brightest pixel is {high:.4g} of {white}{remedy}")
    return notes


def rescaling(name: str, ranges: list[Range]) -> str:
    """The line of Python that rescales the arrays of these ranges to [0, 1], all alike, for the array `name`."""
    low, high = min(0, *(each.low for each in ranges)), max(each.high for each in ranges)
    high = high if high > low else low + 1
    digits = 17 if -low > 1000 * (high - low) else 9  # a difference of large numbers needs more digits
    # The array's own type may be too narrow for the sum.
    narrow = any(each.dtype.kind != "f" or high - low > float(np.finfo(each.dtype).max) / 2 for each in ranges)
    shifted = f"({name}{'.astype(float)' * narrow} + {-low:.{digits}g})" if low < 0 else name
    line = f"{name} = {shifted} / {high - low:.{digits}g}"
    return f"rescale them to [0, 1], such as by {line}{likewise(name, ranges)}"


def likewise(name: str, ranges: list[Range]) -> str:
    """The other arrays to which a remedy applies, as text to append."""
    others = ", ".join(each.name for each in ranges if each.name != name)
    return f", and {others} likewise" if others else ""


# Labels


def check_labels(header, count: int, name: str):
    """Raises DataError unless an array of this shape and dtype can hold the labels of `count` images."""
    shape, dtype = header.shape, header.dtype
    if dtype.kind not in "buifUS":
        raise DataError(f"{name} has dtype {dtype}; save labels as integers or words, such as by {name}.astype(str)")
    if len(shape) not in (1, 2) or shape[0] != count or 0 in shape:
        remedy = f", such as by {name}.reshape(-1)" * (math.prod(shape) == count > 0)
        raise DataError(f"{name} has shape {shape}; give ({count},), one label for each image{remedy}")
    if len(shape) == 2 and shape[1] > 1 and dtype.kind in "US":
        raise DataError(f"{name} has shape {shape}; give ({count},), one label for each image, such as by {name}[:, 0]")


def labels_of(arrays: Mapping, names: Mapping[str, str], notes: list[str]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Class numbers from 0, int64 (n,), by role; and the label of each class in the file, (classes,).

    Labels are integers from any start, words, truth values, or one-hot rows. Adds a note on each conversion to `notes`.
    Raises DataError for other labels.
    """
    plain = {role: plain_labels(y, names[role], names[role.replace("y", "x")], notes) for role, y in arrays.items()}
    if len({y.dtype.kind for y in plain.values()}) > 1:
        kinds = ", ".join(f"{names[role]} has {y.dtype}" for role, y in plain.items())
        integers = next(names[role] for role, y in plain.items() if y.dtype.kind != "U")
        raise DataError(f"{kinds}; save the labels of all splits in one type, such as by {integers}.astype(str)")
    values = np.unique(np.concatenate(list(plain.values())))
    if values.dtype.kind == "U" and all(re.fullmatch(r"-?[0-9]{1,15}", value) for value in values):
        numbers = np.unique(values.astype(np.int64))
        if len(numbers) == len(values):  # 1 and 01 would be one class
            notes.append("labels are numbers written as words: taken as integers")
            plain, values = {role: y.astype(np.int64) for role, y in plain.items()}, numbers
    if values.dtype.kind == "U" or not np.array_equal(values, np.arange(len(values))):
        notes.append(f"{len(values)} class{'es' * (len(values) > 1)}: {shortened(values)}")
    return {role: np.searchsorted(values, y) for role, y in plain.items()}, values


def plain_labels(y: np.ndarray, name: str, x_name: str, notes: list[str]) -> np.ndarray:
    """Labels as int64 or words, (n,), of the images `x_name`. Raises DataError unless they are classes or one-hot."""
    if y.ndim == 2 and y.shape[1] == 1:
        notes.append(f"{name} has one column: {y.shape} is taken as ({len(y)},)")
        y = y[:, 0]
    elif y.ndim == 2:
        return from_one_hot(y, name, notes)
    if y.dtype.kind == "S":
        return np.char.decode(y, "utf-8", "backslashreplace")
    if y.dtype.kind == "U":
        return readable_words(y, name)
    if y.dtype.kind == "f":
        if missing := np.isnan(y).sum():
            raise DataError(
                f"{name} has no label (NaN) for {missing:,} of {len(y):,} images; leave these images out, by "
                f"keep = ~np.isnan({name}).ravel(); {x_name}, {name} = {x_name}[keep], {name}[keep]"
            )
        with np.errstate(invalid="ignore"):  # infinite ones
            odd = y[~((np.abs(y) < np.float64(2**53)) & (y == np.rint(y)))]
        if len(odd):
            raise DataError(
                f"{name} has real numbers, such as {odd[0]}, but a class is an integer or a word. Leave {name} out, or "
                f"make classes, such as by np.digitize({name}, [0.5])"
            )
        notes.append(f"{name} is {y.dtype} of whole numbers: taken as integers")
    if y.dtype.kind == "b":
        notes.append(f"{name} is bool: False is 0, True is 1")
    if y.dtype.kind == "u" and y.max() > np.iinfo(np.int64).max:
        raise DataError(f"{name} has labels beyond int64; save them as words, by {name}.astype(str)")
    return y.astype(np.int64)


def readable_words(y: np.ndarray, name: str) -> np.ndarray:
    """The words. Raises DataError if a damaged file has code points in them that do not exist."""
    numbers = np.ascontiguousarray(y).view(f"{y.dtype.byteorder}u4") if y.dtype.itemsize else np.zeros(1)
    if numbers.max() > sys.maxunicode:
        raise DataError(f"{name} has words with letters that do not exist; copy or save the file again")
    return y


def from_one_hot(y: np.ndarray, name: str, notes: list[str]) -> np.ndarray:
    """The column of the 1 in each row, int64 (n,). Raises DataError unless each row has a single 1, and 0 elsewhere."""
    one_hot = y.dtype.kind in "buif" and ((y == 0) | (y == 1)).all() and ((y == 1).sum(axis=1) == 1).all()
    if not one_hot:
        raise DataError(
            f"{name} has shape {y.shape}; give ({len(y)},), one label for each image, or one-hot rows, such as by "
            f"{name}.argmax(axis=1)"
        )
    notes.append(f"{name} is one-hot: {y.shape[1]} classes")
    return y.argmax(axis=1)


def shortened(values) -> str:
    """The first few values, as text."""
    words = [visible(value) for value in values[:5]]
    return ", ".join(word if len(word) <= 20 else f"{word[:19]}…" for word in words) + ", ..." * (len(values) > 5)
