"""What arrays hold: pixels in [0, 1], other real numbers, or counts; and the likelihood that suits them.

`auto` chooses by type, shape and range, and a note says what it chose. A likelihood by name must suit the arrays.
"""

import sys
from collections.abc import Mapping
from typing import Literal, NamedTuple

from common.arrays import DataError, MappedImages, as_floats, chunks
from common.likelihoods import LEVELS
from common.pictures import Pictures
from common.preprocessing import (
    DARK,
    NEAR_255,
    Range,
    check_floats,
    in_range,
    integer_white,
    likewise,
    mean_of_channels,
    value_range,
    without_channels,
)
from common.transforms import COUNTS, CountTransform, RealTransform, TableTransform, is_counts

import numpy as np

Form = Literal["pixels", "real", "table", "counts"]
LARGEST = 1e30  # of real values, whose squares then stay below the end of float64 and, standardised, of float32
OFF_GRID = 1e-3  # of a step of 1/255: rounding of float32


class Values(NamedTuple):
    """Rows of one array, in C order: float32 in [0, 1], or as stored if they stay in their file or are no pixels."""

    values: np.ndarray
    white: int  # the integer that is white, where the array has integers


class Kind(NamedTuple):
    """How rows are taken, and their likelihood."""

    form: Form
    likelihood: str


def values_of(
    arrays: dict, names: Mapping[str, str], requested: str, sparse: bool, notes: list[str]
) -> tuple[dict[str, Values], Kind]:
    """`Values` of checked arrays by role, and their `Kind`. Takes the arrays out of the dict.

    `names` has their names in the file, `requested` is a likelihood or "auto". `sparse`: whether the file held a sparse
    matrix, which holds counts more often than not. Adds a note on each conversion to `notes`. Raises DataError if the
    numbers do not suit the likelihood, or if they are not finite.
    """
    if colour := without_channels(arrays, names, notes):
        check_colour(requested, arrays, names, colour)
    ranges = {role: Range(names[role], x.dtype, *range_of(x)) for role, x in arrays.items()}
    kind = kind_of(requested, arrays, ranges, names, bool(colour), sparse, notes)
    if kind.form != "pixels":
        require_real(ranges, names)
        return {role: Values(arrays.pop(role), 255) for role in list(arrays)}, kind
    white = white_of(list(ranges.values()), bool(colour), notes)
    if kind.likelihood == "logistic":
        require_eight_bit(arrays, ranges, white)
    values = {}
    for role in list(arrays):
        x = arrays.pop(role)  # frees the bytes as stored
        scale = 1 if x.dtype.kind == "b" else white
        values[role] = Values(x if in_file(x) else as_floats(x, scale), scale)
    return values, kind


def range_of(x) -> tuple[float, float]:
    """`value_range`; that of 8-bit pixels for a large folder of pictures, which is not decoded for that."""
    return (0, LEVELS) if isinstance(x, Pictures) else value_range(x)


def in_file(x) -> bool:
    """Whether an array stays in its file, and is read in parts."""
    return isinstance(x, np.memmap) or not isinstance(x, np.ndarray)


def check_colour(requested: str, arrays: dict, names: Mapping[str, str], axes: Mapping[str, int]):
    """Raises DataError if the likelihood is for grey images, or if only some arrays are in colour.

    `axes` has the axis of the channels in the file, for arrays with one.
    """
    role, axis = next((role, axis) for role, axis in axes.items() if arrays[role].ndim == 4)
    name = names[role]
    if requested in COUNTS:
        raise DataError(
            f"--likelihood {requested} takes counts, but {name} holds colour images; choose logistic or gaussian"
        )
    if requested == "bernoulli":
        others = [names[each] for each in axes if arrays[each].ndim == 4 and axes[each] == axis and each != role]
        raise DataError(
            f"{name} holds colour images, and --likelihood bernoulli takes black, white and grey; choose logistic or "
            f"gaussian, or make them grey, such as by {name} = {mean_of_channels(name, axis, name, arrays[role].dtype)}"
            + (f", and {', '.join(others)} likewise" if others else "")
        )
    for role, x in arrays.items():
        if x.ndim == 3:
            grey = names[role]
            line = f"np.repeat({grey}, 3, axis={axes[role]})" if role in axes else f"np.stack([{grey}] * 3, axis=3)"
            raise DataError(f"{grey} holds grey images, but {name} colour ones; make three channels: {grey} = {line}")


def kind_of(
    requested: str,
    arrays: dict,
    ranges: Mapping[str, Range],
    names: Mapping[str, str],
    colour: bool,
    sparse: bool,
    notes: list[str],
) -> Kind:
    """The kind of arrays with these ranges, both by role. Pixels may still be refused: their checks come later."""
    found = list(ranges.values())
    rows = next(iter(arrays.values())).ndim == 2
    real: Form = "table" if rows else "real"
    if requested in ("bernoulli", "logistic"):
        return Kind("pixels", requested)
    if requested in COUNTS:
        require_real(ranges, names)
        require_counts(requested, arrays, found)
        return Kind("counts", requested)
    pixels = are_pixels(found)
    if requested == "gaussian":
        return Kind("pixels" if pixels and not rows else real, "gaussian")
    if sparse and not whole(arrays):
        return chosen(real, "gaussian", found, notes)
    if sparse and max(each.high for each in found) > 1:  # else words that occur, or not: black and white
        return chosen("counts", "negative_binomial", found, notes)
    if pixels or are_unusable(arrays, found):
        if colour:
            return chosen("pixels", "logistic" if are_eight_bit(found) else "gaussian", found, notes)
        if pixels and rows and are_doubtful(found):
            return chosen("pixels", "bernoulli", found, notes)
        return Kind("pixels", "bernoulli")
    if rows and whole(arrays):
        return chosen("counts", "negative_binomial", found, notes)
    grey = not rows and not colour and all(each.dtype.kind in "bui" and each.low >= 0 for each in found)
    if grey and max(each.high for each in found) <= NEAR_255:
        return Kind("pixels", "bernoulli")  # which `integer_white` refuses: the white integer is not known
    return chosen(real, "gaussian", found, notes)


def chosen(form: Form, likelihood: str, ranges: list[Range], notes: list[str]) -> Kind:
    """The kind that `auto` chose, with a note."""
    low, high = min(each.low for each in ranges), max(each.high for each in ranges)
    numbers = f"from {low:.6g} to {high:.6g}"
    what, others = {
        ("pixels", "logistic"): ("colour images", "; --likelihood gaussian is another choice"),
        ("pixels", "gaussian"): ("colour images", "; logistic takes integers from 0 to 255"),
        ("pixels", "bernoulli"): (
            f"rows of numbers {numbers}, taken as pixels",
            "; --likelihood gaussian takes columns of a table"
            + "; negative_binomial takes counts" * all(each.dtype.kind in "ui" for each in ranges),
        ),
        ("real", "gaussian"): (f"images with values {numbers}", "; bernoulli takes grey pixels in [0, 1]"),
        ("table", "gaussian"): (f"columns of numbers {numbers}", ""),
        ("counts", "negative_binomial"): (
            f"whole numbers {numbers}, taken as counts",
            "; --likelihood poisson or gaussian are other choices",
        ),
    }[form, likelihood]
    notes.append(f"{what}: the likelihood is {likelihood}{others}")
    return Kind(form, likelihood)


def require_counts(requested: str, arrays: dict, ranges: list[Range]):
    """Raises DataError if the arrays hold other numbers than counts."""
    if not whole(arrays):
        low, high = min(each.low for each in ranges), max(each.high for each in ranges)
        raise DataError(
            f"--likelihood {requested} takes whole numbers from 0, but {ranges[0].name} has others, from {low:.6g} to "
            f"{high:.6g}; choose --likelihood gaussian"
        )


def whole(arrays: dict) -> bool:
    """Whether all arrays hold whole numbers from 0."""
    return all(is_counts(x) for x in arrays.values())


def are_pixels(ranges: list[Range]) -> bool:
    """Whether all arrays have the type and the range of pixels."""
    floats = [each for each in ranges if each.dtype.kind == "f"]
    integers = [each for each in ranges if each.dtype.kind in "ui"]
    low, high = min((each.low for each in integers), default=0), max((each.high for each in integers), default=0)
    eight_bit = all(each.dtype == np.uint8 for each in integers)
    return all(in_range(each, 0) for each in floats) and (
        low >= 0 and high <= 255 and (eight_bit or high <= 1 or high > NEAR_255)
    )


def are_eight_bit(ranges: list[Range]) -> bool:
    """Whether pixels are integers up to 255, and not 0 and 1."""
    return all(each.dtype.kind in "ui" for each in ranges) and max(each.high for each in ranges) > 1


def are_doubtful(ranges: list[Range]) -> bool:
    """Whether rows of pixels may be something else: real numbers, or integers that are no usual 8-bit pixels."""
    high = max(each.high for each in ranges)
    eight_bit = high >= DARK * LEVELS and all(each.dtype == np.uint8 for each in ranges)
    number = any(each.dtype.kind == "f" or (each.dtype.kind in "ui" and high > 1) for each in ranges)
    return number and high > 0 and not eight_bit


def are_unusable(arrays: dict, ranges: list[Range]) -> bool:
    """Whether floats of images are not finite, or floats seem to be 8-bit pixels that were not divided by 255."""
    floats = [each for each in ranges if each.dtype.kind == "f"]
    if not floats:
        return False
    low, high = min(each.low for each in floats), max(each.high for each in floats)
    rows = next(iter(arrays.values())).ndim == 2
    if not (np.isfinite([each.low for each in floats]).all() and np.isfinite([each.high for each in floats]).all()):
        return not rows
    return low >= 0 and NEAR_255 < high <= LEVELS + 0.01 and (not rows or whole(arrays))


def white_of(ranges: list[Range], colour: bool, notes: list[str]) -> int:
    """The integer that is white in arrays of pixels. Raises DataError if their range is not that of pixels."""
    integers, floats = ([each for each in ranges if each.dtype.kind in kinds] for kinds in ("ui", "f"))
    try:
        white = integer_white(integers, notes) if integers else 255
        check_floats(floats, notes)
    except DataError as error:
        if not np.isfinite([number for each in ranges for number in (each.low, each.high)]).all():
            raise
        counts = " and negative_binomial counts" if min(each.low for each in ranges) >= 0 and not colour else ""
        raise DataError(f"{error}; --likelihood gaussian takes any numbers{counts}") from error
    notes += [f"{each.name} is bool: True is white" for each in ranges if each.dtype.kind == "b"]
    return white


def require_real(ranges: Mapping[str, Range], names: Mapping[str, str]):
    """Raises DataError if numbers are not finite, or too large for the squares of float64."""
    for role, (name, _, low, high) in ranges.items():
        if not np.isfinite([low, high]).all():
            labels = names.get(role.replace("x", "y"))
            kept = f"{name}, {labels} = {name}[keep], {labels}[keep]" if labels else f"{name} = {name}[keep]"
            raise DataError(
                f"{name} has NaN or infinite values; leave out those rows, by "
                f"keep = np.isfinite({name}).reshape(len({name}), -1).all(axis=1); {kept}"
            )
        if (most := max(abs(low), abs(high))) > LARGEST:
            line = f", such as by {name} = {name} / {most:.0e}{likewise(name, list(ranges.values()))}"
            beyond = most > sys.float_info.max  # of longdouble
            raise DataError(f"{name} has values beyond {LARGEST:g}; rescale them" + ("" if beyond else line))


def require_eight_bit(arrays: dict, ranges: dict, white: int):
    """Raises DataError unless all pixels are whole steps of 1/255."""
    for role, x in arrays.items():
        floats = x.dtype.kind == "f" and any(
            (np.abs(chunk * LEVELS - np.rint(chunk * LEVELS)) > OFF_GRID).any() for chunk in chunks(x)
        )
        if floats or white == 1 or x.dtype.kind == "b":
            raise DataError(
                f"--likelihood logistic takes 8-bit pixels, but {ranges[role].name} has others; choose gaussian"
                + (" or bernoulli" if x.ndim < 4 else "")
            )


def fitted_transform(kind: Kind, x: Values, training_rows):
    """The transform of rows of this kind, fitted on the training rows among them; None for pixels."""
    if kind.form == "pixels":
        return None  # `Dataset` makes one, with the integer that is white in any of the arrays
    if kind.form == "table":
        return TableTransform.fit(x.values, training_rows)
    training = MappedImages(x.values, training_rows, convert=np.asarray)
    return (RealTransform if kind.form == "real" else CountTransform).fit(training)
