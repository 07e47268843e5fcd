"""Columns of a table as the model takes them, standardised numbers and one-hot categories, and the way back."""

import json
import math
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from common.arrays import CHUNK, DataError, readable, visible
from common.tables import LARGE, NUMBER, as_frame, require_disk

import numpy as np
import pandas as pd

FEW_INTEGERS = 10  # a column with at most so many different integers is a category
FARTHEST = 1e15  # deviations from the mean: beyond, the log density overflows in float32
MOST_WORDS = 100  # different words in a column
DATE = re.compile(r"\d{4}([-/])\d{1,2}\1\d{1,2}([ T].*)?$")
DATES = {"datetime64", "datetime", "date"}  # of pandas.api.types.infer_dtype
FLOATS = {"decimal", "integer", "integer-na", "mixed-integer-float"}  # Python's own numbers, in a column of objects


@dataclass(frozen=True)
class Column:
    """A column: of numbers, with mean and deviation of the training rows; or of a category, with its `values`.

    Values are words, integers or truth values in their order. The empty word stands for a missing one.
    """

    name: str
    mean: float = 0.0
    scale: float = 1.0
    values: tuple | None = None


@dataclass(frozen=True)
class TableTransform:
    """Rows of a table, m of d columns, as float32 (m, D), and back.

    In the model's row, numbers are first, in the order of the table. One-hot categories follow, the shortest first,
    and those of equal length in the order of the table.
    """

    noun: ClassVar[str] = "row"  # what a row is called
    columns: tuple[Column, ...]  # in the order of the table
    array: bool = False  # whether it was made from an array: `undo` then gives one

    @classmethod
    def fit(cls, rows, training_rows) -> "TableTransform":
        """The transform of a frame, or of an array (n, d) whose columns are all taken as numbers.

        Args:
            rows: all rows. Values of categories are those of all rows.
            training_rows: which of them give means and deviations: an array of indices or truth values, or a slice.
                A column that is constant in them gets the deviation 1.

        Raises:
            DataError: a column has missing or infinite numbers, more than 100 words, dates, or other objects.
        """
        frame = as_frame(rows)
        array = frame is None
        if array:
            frame = framed(rows, None)
            if any(dtype.kind not in "biuf" for dtype in frame.dtypes):
                raise DataError("an array of words or objects is no table of numbers; give pd.DataFrame(x)")
        training = np.zeros(len(frame), bool)
        training[training_rows] = True
        values = {name: None if array else values_of(frame[name]) for name in frame}
        names = [name for name in frame if values[name] is None]
        found = dict(zip(names, moments(frame, names, training), strict=True))
        columns = [Column(name, *found.get(name, ()), values=values[name]) for name in frame]
        return cls(tuple(columns), array)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, in the order of the table."""
        return tuple(column.name for column in self.columns)

    @property
    def shape(self) -> tuple[int, ...]:
        """(d,), that of the table's rows."""
        return (len(self.columns),)

    @property
    def ordered(self) -> list[Column]:
        """The columns in the order of the model's row."""
        return sorted(self.columns, key=lambda column: len(column.values or ()))

    @property
    def numbers(self) -> int:
        """How many columns are numbers."""
        return sum(column.values is None for column in self.columns)

    @property
    def categories(self) -> tuple[int, ...]:
        """How many values each category has, in the order of the model's row."""
        return tuple(len(column.values) for column in self.ordered[self.numbers :])

    @property
    def width(self) -> int:
        """Length D of the model's row."""
        return self.numbers + sum(self.categories)

    def fields(self) -> list[tuple[str, slice]]:
        """The name of each column, in the order of the table, and where it is in the model's row."""
        places, start = {}, 0
        for column in self.ordered:
            stop = start + (1 if column.values is None else len(column.values))
            places[column.name], start = slice(start, stop), stop
        return [(name, places[name]) for name in self.names]

    def apply(self, rows) -> np.ndarray:
        """Rows of a table as the model takes them: float32 (m, D).

        `rows` is a frame whose columns are in any order, perhaps beside others, or an array (m, d) in the order of the
        table. Raises DataError for a missing column, missing or infinite numbers, and unknown values of a category.
        """
        frame = as_frame(rows)
        if frame is not None and self.array and {*self.names} <= {*frame.columns}:
            frame = frame[list(self.names)]
        if frame is None or self.array:
            frame = framed(rows if frame is None else frame.to_numpy(), list(self.names))
            if self.array:
                return self._apply_array(frame)
        if missing := [visible(name) for name in self.names if name not in frame.columns]:
            raise DataError(f"has no column {', '.join(missing)[:200]}; give the columns of the training data")
        done = zeros((len(frame), self.width))
        for part in parts(frame):
            self._apply(frame.iloc[part], done[part])
        return done

    def _apply_array(self, frame) -> np.ndarray:
        """`apply` for a transform that was made from an array: all columns are numbers. Training batches come here."""
        values, scales = (
            numbers_of(frame, list(self.names)),
            np.array([(each.mean, each.scale) for each in self.columns]),
        )
        with np.errstate(over="ignore"):
            done = ((values - scales[:, 0]) / scales[:, 1]).astype(np.float32)
        check_range(done, self.columns)
        return done

    def _apply(self, frame, done):
        """Writes a part's rows into `done`, which is 0."""
        ordered, count = self.ordered, self.numbers
        if count:
            mean, scale = (np.array([getattr(each, key) for each in ordered[:count]]) for key in ("mean", "scale"))
            values = numbers_of(frame, [column.name for column in ordered[:count]])
            with np.errstate(over="ignore"):
                done[:, :count] = (values - mean) / scale
            check_range(done[:, :count], ordered)
        start = count
        for column in ordered[count:]:
            done[np.arange(len(frame)), start + positions(frame[column.name], column.values)] = 1.0
            start += len(column.values)

    rows = apply  # the name that all transforms have

    def undo(self, values):
        """Rows of the model, (m, D), in the units of the table, with each category's likeliest value.

        A DataFrame with the table's names and order: float64 numbers, integers, truth values and words. If the
        transform was made from an array, an array (m, d) of float64.
        """
        values = np.asarray(values)
        if values.ndim != 2 or values.shape[1] != self.width:
            raise DataError(f"rows have the shape {values.shape}; give (m, {self.width})")
        columns = {}
        for column, (name, place) in zip(self.columns, self.fields(), strict=True):
            if column.values is None:
                columns[name] = values[:, place.start].astype(np.float64) * column.scale + column.mean
            else:
                columns[name] = category(column.values).take(values[:, place].argmax(axis=1))
        if self.array:
            return np.stack(list(columns.values()), axis=1)
        return pd.DataFrame(columns)

    def as_json(self) -> dict:
        """Plain content for JSON, of which `from_json` makes the same transform."""
        columns = [
            {"name": column.name, "mean": column.mean, "scale": column.scale}
            if column.values is None
            else {"name": column.name, "values": list(column.values)}
            for column in self.columns
        ]
        return {"array": self.array, "columns": columns}

    @classmethod
    def from_json(cls, content) -> "TableTransform":
        """The transform that `as_json` described. Raises ValueError if the content is damaged."""
        if not isinstance(content, Mapping) or content.keys() != {"array", "columns"}:
            raise ValueError("a table's transform needs array and columns")
        array, entries = content["array"], content["columns"]
        if not isinstance(array, bool) or not isinstance(entries, list) or not entries:
            raise ValueError("array has to be true or false, and columns a list that is not empty")
        columns = tuple(map(column_of, entries))
        if len({column.name for column in columns}) < len(columns):
            raise ValueError("two columns have the same name")
        if array and any(column.values is not None for column in columns):
            raise ValueError("an array has no categories")
        return cls(columns, array)


def column_of(entry) -> Column:
    """A column as `TableTransform.as_json` describes it. Raises ValueError if that is damaged."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise ValueError("a column has no name")
    json.dumps(entry, ensure_ascii=False).encode()  # raises UnicodeEncodeError, a ValueError, for half a letter
    if entry.keys() == {"name", "mean", "scale"}:
        mean, scale = entry["mean"], entry["scale"]
        if not all(type(each) is float and math.isfinite(each) for each in (mean, scale)) or scale <= 0:
            raise ValueError(f"column {entry['name']}: mean and scale have to be finite floats, and scale above 0")
        return Column(entry["name"], mean, scale)
    values = entry.get("values")
    if entry.keys() != {"name", "values"} or not isinstance(values, list) or not values:
        raise ValueError(f"column {entry['name']} needs mean and scale, or values")
    kinds = {type(value) for value in values}
    if len(kinds) > 1 or not kinds <= {str, int, bool} or len(set(values)) < len(values):
        raise ValueError(f"column {entry['name']}: values have to be different words, integers or truth values")
    if kinds == {int} and np.asarray(values).dtype.kind not in "iu":
        raise ValueError(f"column {entry['name']}: integers have to fit into 64 bits")
    return Column(entry["name"], values=tuple(values))


def zeros(shape: tuple[int, int]) -> np.ndarray:
    """An array of float32 zeros; a large one is in a temporary file that is deleted with it."""
    if math.prod(shape) <= LARGE:
        return np.zeros(shape, np.float32)
    with tempfile.TemporaryFile() as file:
        require_disk(4 * math.prod(shape))
        return np.memmap(file, np.float32, "w+", shape=shape)


def parts(frame: pd.DataFrame):
    """Consecutive slices of a frame's rows, each with at most CHUNK numbers, or with one row."""
    size = max(1, CHUNK // max(1, frame.shape[1]))
    return (slice(start, min(start + size, len(frame))) for start in range(0, len(frame), size))


def framed(rows, names: list[str] | None) -> pd.DataFrame:
    """An array (m, d) as a frame; without names they are x1 to xd. Raises DataError if it is another array."""
    with readable("the table"):
        values = np.asarray(rows)
        values = values.astype(values.dtype.newbyteorder("="), copy=False) if names else values  # for pandas
    if values.ndim != 2 or 0 in values.shape[1:] or values.shape[1] != len(names or values[:1].T):
        raise DataError(
            f"an array of shape {values.shape} is no table; give (rows, {len(names) if names else 'columns'})"
        )
    return pd.DataFrame(values, columns=names or [f"x{at + 1}" for at in range(values.shape[1])], copy=False)


# Numbers


def moments(frame: pd.DataFrame, names: list[str], training: np.ndarray) -> list[tuple[float, float]]:
    """Mean and deviation (of the population) of each column over the training rows; numbers of all rows are checked."""
    first = int(training.argmax())
    origin = numbers_of(frame.iloc[first : first + 1], names)[0]  # a constant column is 0 beside it, exactly
    count, total, squares = int(training.sum()), np.zeros(len(names)), np.zeros(len(names))
    with np.errstate(over="ignore", invalid="ignore"):
        for part in parts(frame):
            total += (numbers_of(frame.iloc[part], names)[training[part]] - origin).sum(axis=0)
        mean = origin + total / count
        for part in parts(frame):
            squares += np.square(numbers_of(frame.iloc[part], names)[training[part]] - mean).sum(axis=0)
    scale = np.sqrt(squares / count)
    for name, finite in zip(names, np.isfinite(mean + scale), strict=True):
        if not finite:
            raise DataError(
                f"column {visible(name)} has numbers that are too large; give it in another unit: df[{name!r}] /= 1e200"
            )
    return list(zip(mean.tolist(), np.where(scale > 0, scale, 1.0).tolist(), strict=True))


def numbers_of(frame: pd.DataFrame, names: list[str]) -> np.ndarray:
    """Columns of numbers as float64, (m, columns). Raises DataError for what is not a finite number."""
    try:
        chosen = frame[names]
        if others := [str(dtype) for dtype in chosen.dtypes if dtype.kind in "cmM"]:  # pandas would convert them
            raise TypeError(f"not {others[0]}")
        values = chosen.to_numpy(np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        for name in names if len(names) > 1 else []:
            numbers_of(frame[[name]], [name])
        raise DataError(f"column {visible(names[0])} should have numbers only ({str(error)[:100]})") from error
    if np.isfinite(values).all():
        return values
    at = int(np.argmin(np.isfinite(values).all(axis=0)))
    name, column = names[at], values[:, at]
    if not np.isnan(column).any():
        raise DataError(
            f"column {visible(name)} has infinite numbers; leave those rows out: df = df[np.isfinite(df[{name!r}])]"
        )
    if np.isnan(column).all():
        raise DataError(f"column {visible(name)} is empty; {left_out(name)}")
    raise DataError(
        f"column {visible(name)} has missing numbers; fill them: df = df.fillna(df.median(numeric_only=True))"
    )


def check_range(standardised: np.ndarray, columns: list[Column]) -> None:
    """Raises DataError if the square of a standardised number is near the end of float32."""
    near = (np.abs(standardised) < FARTHEST).all(axis=0)
    if not near.all():
        name = visible(columns[int(np.argmin(near))].name)
        raise DataError(
            f"column {name} has a number more than {FARTHEST:g} deviations from the training mean; leave it out"
        )


# Categories


def values_of(column: pd.Series) -> tuple | None:
    """The different values of a category, in their order; None for numbers. Raises DataError for another column."""
    name, dtype = column.name, column.dtype
    chosen = isinstance(dtype, pd.CategoricalDtype)
    if not chosen and dtype.kind == "f":
        return None
    kind = pd.api.types.infer_dtype(dtype.categories if chosen else column, skipna=True)
    objects = pd.api.types.is_object_dtype(dtype.categories if chosen else dtype)
    if kind == "floating" and not objects:
        return None
    if kind not in ("integer", "boolean", "string") or (kind == "integer" and objects):
        raise DataError(refusal(name, kind))
    found = column.unique()
    values = sorted(value for value in found.tolist() if not pd.isna(value))
    if not values:
        raise DataError(f"column {visible(name)} is empty; {left_out(name)}")
    missing = len(values) < len(found)
    if kind == "integer":
        return None if missing or len(values) > (MOST_WORDS if chosen else FEW_INTEGERS) else tuple(values)
    if kind == "boolean" and not missing:
        return tuple(values)
    words = sorted({*map(str, values), *[""] * missing})
    check_words(words, name)
    return tuple(words)


def check_words(words: list[str], name: str) -> None:
    """Raises DataError if words are no category: too many, dates, or numbers beside a few words."""
    numbers = [word for word in words if NUMBER.fullmatch(word)]
    others = [word for word in words if word and not NUMBER.fullmatch(word)]
    if others and len(numbers) > max(FEW_INTEGERS, len(others)):
        raise DataError(
            f"column {visible(name)} has numbers beside words such as {others[0][:30]!r}; if words mean missing "
            f"numbers: df[{name!r}] = pd.to_numeric(df[{name!r}], errors='coerce'); then fill these, or leave them out"
        )
    if others and all(DATE.match(word) for word in words if word):
        raise DataError(refusal(name, "date"))
    if len(words) <= MOST_WORDS:
        return
    if not others:
        raise DataError(
            f"column {visible(name)} has numbers written as words; make numbers of them: "
            f"df[{name!r}] = pd.to_numeric(df[{name!r}].str.replace(',', '.'))"
        )
    raise DataError(
        f"column {visible(name)} has {len(words):,} different words, more than the {MOST_WORDS} of a category; "
        f"{left_out(name)}"
    )


def left_out(name: str) -> str:
    """How to leave a column out."""
    return f"leave it out: df = df.drop(columns={name!r})"


def refusal(name: str, kind: str) -> str:
    """Why a column of another kind is refused, and what to do."""
    if kind in DATES:
        return (
            f"column {visible(name)} has dates; make days since 1970 of them: df[{name!r}] = (pd.to_datetime("
            f"df[{name!r}], utc=True) - pd.Timestamp(0, tz='UTC')) / pd.Timedelta(days=1)"
        )
    if kind in FLOATS:
        return (
            f"column {visible(name)} has numbers as Python objects; make floats of them: "
            f"df[{name!r}] = df[{name!r}].astype(float)"
        )
    if kind == "empty":
        return f"column {visible(name)} is empty; {left_out(name)}"
    return f"column {visible(name)} has neither numbers nor words, but objects of the kind {kind}; {left_out(name)}"


def positions(column: pd.Series, values: tuple) -> np.ndarray:
    """Where the column's cells are among the values of a category: (m,) integers. Raises DataError if one is unknown.

    1, 1.0 and "1" are the same value: whether a file's digits are words depends on the rest of their column.
    """
    known = {str(value): at for at, value in enumerate(values)} | {value: at for at, value in enumerate(values)}
    try:
        column = column.astype("category")
    except (TypeError, ValueError) as error:  # lists, or half a letter
        raise DataError(f"column {visible(column.name)} should have words, integers or truth values only") from error
    plain = [int(each) if isinstance(each, float) and each.is_integer() else each for each in column.cat.categories]
    found = [known.get(value, known.get(str(value), -1)) for value in plain]
    found = np.array([*found, known.get("", -1)])[column.cat.codes.to_numpy()]  # the code of a missing value is -1
    if len(found) and found.min() < 0:
        value = column.iloc[int(found.argmin())]
        shown = visible("" if pd.isna(value) else str(value)[:60])
        listed = ", ".join(visible(each) for each in values)[:200]
        raise DataError(f"column {visible(column.name)} has the unknown value {shown}; known are {listed}")
    return found


def category(values: tuple):
    """The values as an array to take from: of integers, truth values, or words, where the empty word is missing."""
    if isinstance(values[0], str):
        return pd.array([value or None for value in values], dtype="str")
    return np.array(values)
