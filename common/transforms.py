"""Transforms between rows as a user has them and rows as a model takes them; they are saved with a run.

A transform has a `shape`, that of the user's row as an array, and three methods. `rows(x)` gives the model's rows: it
can be sliced, and a slice is float32. `undo(values)` gives rows in the user's units. `as_json()` is what config.json
holds. `common.columns.TableTransform` is the one for tables.
"""

import math
import sys
from dataclasses import dataclass
from typing import ClassVar

from common.arrays import DataError, MappedImages, chunks
from common.columns import FARTHEST, TableTransform, numbers_of
from common.likelihoods import Bernoulli, Gaussian, Likelihood, Logistic, NegativeBinomial, Poisson, moments
from common.pixels import Pixels, as_array, in_shape
from common.preprocessing import value_range
from common.tables import as_frame

import numpy as np
import pandas as pd

COUNTS = {kind.name: kind for kind in (Poisson, NegativeBinomial)}


@dataclass(frozen=True)
class PixelTransform:
    """Images of pixels, (height, width), (height, width, 3) or (d,): integers up to `white`, or floats in [0, 1]."""

    noun: ClassVar[str] = "image"  # what a row is called
    shape: tuple[int, ...]
    white: int = 255  # the integer that stands for a pixel of 1

    def rows(self, x) -> Pixels:
        """Rows of float32 in [0, 1]. Raises DataError for other images."""
        return Pixels(x, self.shape, self.white)

    def undo(self, values: np.ndarray) -> np.ndarray:
        """Pixels in [0, 1]."""
        return values

    def as_json(self) -> dict:
        """Nothing: config.json holds shape and white beside it."""
        return {}


@dataclass(frozen=True)
class RealTransform:
    """Images of real numbers, all with one mean and one deviation: those of the training images."""

    noun: ClassVar[str] = "image"
    shape: tuple[int, ...]
    mean: float
    deviation: float

    @classmethod
    def fit(cls, images) -> "RealTransform":
        """The transform of these images, which may be read in parts. The deviation of constant images is 1."""
        low, high = value_range(images)
        if low == high:
            return cls(tuple(images.shape[1:]), float(low), 1.0)
        mean, variance = moments(images)
        centre = float(mean.mean())
        deviation = math.sqrt(float(variance.mean() + ((mean - centre) ** 2).mean()))
        return cls(tuple(images.shape[1:]), centre, deviation)

    def apply(self, images: np.ndarray) -> np.ndarray:
        """Standardised images, float32."""
        standardised = np.empty(images.shape, "float32")
        with np.errstate(over="ignore"):
            for few, done in zip(chunks(images), chunks(standardised), strict=True):
                done[:] = (few.astype("float64") - self.mean) / self.deviation
                if not (np.abs(done) < FARTHEST).all():
                    raise DataError(
                        f"x has values more than {FARTHEST:g} deviations from the training mean; leave those images out"
                    )
        return standardised

    def rows(self, x) -> np.ndarray:
        """Standardised images. Raises DataError for images of another shape, or with NaN."""
        x = in_shape(as_saved(x), self.shape)
        require_finite(x)
        return self.apply(x.reshape(-1, *self.shape))

    def undo(self, values: np.ndarray) -> np.ndarray:
        """Images in the user's units."""
        return (np.asarray(values, "float64") * self.deviation + self.mean).astype("float32")

    def as_json(self) -> dict:
        """What `transform_of` reads."""
        return {"mean": self.mean, "deviation": self.deviation}


@dataclass(frozen=True)
class CountTransform:
    """Counts, (d,) or (height, width), with the log of each row's size factor: its total over `total`."""

    noun: ClassVar[str] = "row"
    shape: tuple[int, ...]
    total: float  # the median total of the training rows
    names: tuple[str, ...] | None = None  # of the columns

    @classmethod
    def fit(cls, counts, names=None) -> "CountTransform":
        """The transform of these rows, which may be read in parts."""
        totals = [chunk.reshape(len(chunk), -1).sum(axis=1, dtype="float64") for chunk in chunks(counts)]
        return cls(tuple(counts.shape[1:]), float(max(1.0, np.median(np.concatenate(totals)))), names)

    def apply(self, counts: np.ndarray) -> np.ndarray:
        """Counts, and the log size factor in a last column: float32 (n, d + 1)."""
        flat = np.asarray(counts).reshape(len(counts), math.prod(self.shape))
        rows = np.empty((len(flat), flat.shape[1] + 1), "float32")
        with np.errstate(over="ignore"):
            sizes = np.maximum(flat.sum(axis=1, dtype="float64"), 1.0) / self.total  # a row of zeros has a size too
            rows[:, :-1], rows[:, -1] = flat, np.log(sizes)
        return rows

    def rows(self, x) -> np.ndarray:
        """The model's rows. Raises DataError unless x holds whole numbers from 0, (n, *shape)."""
        x = in_shape(as_saved(in_order(x, self.names)), self.shape)
        if x.size and not is_counts(x):
            raise DataError("x holds other numbers than counts: this model takes whole numbers from 0")
        return in_float32(self.apply(x.reshape(-1, *self.shape)))

    def undo(self, values: np.ndarray):
        """Counts; with names of columns as a DataFrame."""
        counts = values[:, :-1].reshape(-1, *self.shape)
        if self.names is None:
            return counts
        return pd.DataFrame(counts, columns=list(self.names))

    def as_json(self) -> dict:
        """What `transform_of` reads."""
        return {
            "shape": list(self.shape),
            "total": self.total,
            "names": self.names and list(self.names),
        }


def in_order(x, names):
    """The columns `names` of a table as an array; an array stays as it is. Raises DataError if a column is missing."""
    frame = None if names is None else as_frame(x)
    if frame is None:
        return x.toarray() if hasattr(x, "toarray") else x
    if missing := [name for name in names if name not in frame.columns]:
        raise DataError(f"the table has no column {missing[0]}; this model was trained on {len(names)} columns")
    return numbers_of(frame, list(names))


def as_saved(x) -> np.ndarray:
    """`as_array` of rows that are not the model's own. Raises DataError for those, which stay in their file."""
    if isinstance(x, MappedImages):
        raise DataError("x holds rows as the model takes them; give them as they are in their file")
    return as_array(x, "x")


def in_float32(rows: np.ndarray) -> np.ndarray:
    """The model's rows. Raises DataError if the user's numbers were too large for them."""
    if rows.size and not all(np.isfinite(chunk).all() for chunk in chunks(rows)):
        raise DataError("x has numbers that are too large for float32; leave out those rows")
    return rows


def require_finite(x: np.ndarray):
    """Raises DataError if a number is NaN or infinite."""
    if x.size and not all(np.isfinite(chunk).all() for chunk in chunks(x)):
        raise DataError(
            "x has NaN or infinite values; leave out those rows: x = x[np.isfinite(x).reshape(len(x), -1).all(axis=1)]"
        )


def is_counts(x) -> bool:
    """Whether all numbers are whole, and 0 or more; rows may be read in parts."""
    return all(chunk.dtype.kind in "bu" or (chunk.min() >= 0 and is_whole(chunk)) for chunk in chunks(x))


def is_whole(chunk: np.ndarray) -> bool:
    """Whether all numbers are whole."""
    return chunk.dtype.kind in "biu" or bool(np.isfinite(chunk).all() and (chunk == np.rint(chunk)).all())


TRANSFORMS = {"pixels": PixelTransform, "real": RealTransform, "table": TableTransform, "counts": CountTransform}


def as_record(transform) -> dict:
    """What config.json holds of a transform, beside the shape of a row and the white integer; see `transform_of`."""
    kind = next(name for name, kind in TRANSFORMS.items() if isinstance(transform, kind))
    return {"kind": kind} | transform.as_json()


def transform_of(saved: dict):
    """The transform of a run, by "data" of its config.json. Raises ValueError or KeyError if that is damaged."""
    shape, content = shape_of(saved), saved.get("transform", {"kind": "pixels"})
    if not isinstance(content, dict):
        raise ValueError(f"transform is {content!r}")
    kind = content["kind"]
    if kind == "pixels":
        if (white := saved.get("white", 255)) not in (1, 255):
            raise ValueError(f"white is {white!r}")
        return PixelTransform(shape, white)
    if kind == "table":
        table = TableTransform.from_json({key: value for key, value in content.items() if key != "kind"})
        if (table.width,) != shape:
            raise ValueError(f"columns of {table.width} values are not {shape}")
        return table
    if kind == "real":
        return RealTransform(shape, finite(content["mean"], False), finite(content["deviation"], positive=True))
    if kind != "counts":
        raise ValueError(f"transform is {kind!r}")
    names, own = content["names"], shape_of(content, "shape")
    if not (names is None or (isinstance(names, list | tuple) and all(isinstance(name, str) for name in names))):
        raise ValueError("names of columns are not a list of texts")
    if names is not None and (len(set(names)),) != own:
        raise ValueError(f"{len(set(names))} names are not those of {own} counts")
    "".join(names or ()).encode()  # raises UnicodeEncodeError, a ValueError, for half a letter
    if math.prod(own) + 1 != math.prod(shape):
        raise ValueError(f"{own} counts are not {shape}")
    return CountTransform(own, finite(content["total"], positive=True), names and tuple(names))


def shape_of(saved: dict, key: str = "image_shape") -> tuple[int, ...]:
    """The shape that is saved under a key. Raises ValueError if it is not a list of lengths above 0."""
    lengths = saved[key]
    if not (isinstance(lengths, list | tuple) and lengths and all(type(each) is int and each > 0 for each in lengths)):
        raise ValueError(f"{key} is {lengths!r}")
    return tuple(lengths)


def finite(number, positive: bool) -> float:
    """A finite number, above 0 if `positive`. Raises ValueError for other values."""
    if type(number) not in (int, float) or not abs(number) <= sys.float_info.max or (positive and number <= 0):
        raise ValueError(f"{number!r} is not a usable number")
    return float(number)


def likelihood_of(name: str, transform, start: np.ndarray | None = None) -> Likelihood:
    """The likelihood `name` of the rows that a transform gives. Raises ValueError if the two do not suit each other."""
    pixels, counts = isinstance(transform, PixelTransform), isinstance(transform, CountTransform)
    if counts and name in COUNTS:
        return COUNTS[name]((math.prod(transform.shape),), start)
    if pixels and name in ("bernoulli", "logistic"):
        return {"bernoulli": Bernoulli, "logistic": Logistic}[name](transform.shape, start)
    if name == "gaussian" and not counts:
        if isinstance(transform, TableTransform):
            width = transform.numbers + sum(transform.categories)
            return Gaussian((width,), start, table=True, categories=transform.categories)
        return Gaussian(transform.shape, start, pixels=pixels)
    raise ValueError(f"likelihood is {name!r}")


def starting_likelihood(dataset) -> Likelihood:
    """The likelihood of a `Dataset` with its `start`, parameters of the training rows without a code."""
    likelihood = likelihood_of(dataset.likelihood, dataset.transform)
    if not isinstance(likelihood, Bernoulli):  # whose networks have always started at random
        likelihood.start = likelihood.by_moments(dataset.x_train)
    return likelihood
