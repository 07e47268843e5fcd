"""Tables: CSV and Parquet files, and frames in memory, as pandas DataFrames; and their column of labels.

A large table is read in parts. Its numbers then stay on disk, in a temporary file that is deleted with the frame.
Nothing in a file is ever executed.
"""

import csv
import gzip
import re
import shutil
import tempfile
import warnings
from functools import partial
from pathlib import Path

from common.arrays import CHUNK, DataError, memory_available, readable, visible
from common.formats import FORMATS, Opened, decoded, opened, quoted

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

LARGE = 2**26  # numbers; a table with more of them (256 MiB as float32) is read in parts
ROWS = 20  # rows that are looked at to find the delimiter
TEXT, PARQUET = {".csv", ".tsv"}, {".parquet", ".pq"}  # suffixes
LABELS = ("label", "labels", "class", "target", "y")  # names of a column of labels
COUNTS = {"", "id", "index", "unnamed: 0"}  # names of a column that may only number the rows
PANDAS_INDEX = re.compile(r"__index_level_\d+__")  # how pandas names an index in a Parquet file
NUMBER = re.compile(r"\s*[-+]?(\d+[.,]?\d*|[.,]\d+)([eE][-+]?\d+)?\s*")


def is_table(path) -> bool:
    """Whether a file is a CSV (perhaps packed by gzip) or Parquet, by its first bytes and its suffix."""
    path = Path(path)
    if not path.is_file():
        return False
    with readable("it"):
        file = opened(path)
    if is_parquet(file):
        return True
    other = any(re.match(signature, file.head, re.DOTALL) for signature, *_ in FORMATS)
    if not file.head or (other and not file.head.startswith(b"PAR1")):
        return False
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    if suffixes and suffixes[-1] in TEXT | PARQUET:
        return True
    return file.packer in ("", "gzip") and delimiter_of(lines_of(file)) is not None


def read_table(path) -> pd.DataFrame:
    """The table in a CSV or Parquet file.

    A CSV has a header, and commas, semicolons, tabs or bars between its cells. It is in UTF-8, UTF-16 or latin-1, and
    may be packed by gzip. Beside semicolons, tabs and bars, numbers may have a decimal comma. Numbers of a large table
    are float64 in a temporary file; its words are categories.

    Raises:
        DataError: the file is damaged, has no header, or is larger than the memory or the disk.
    """
    with readable("the table"):
        file = opened(Path(path))
        parquet = is_parquet(file) or file.path.suffix.lower() in PARQUET
        try:
            frame = read_parquet(file.path) if parquet else read_csv(file)
        except pd.errors.ParserWarning as error:
            remedy = "give each column a name, such as by write.csv in R"
            raise DataError(f"has rows with more cells than its header; {remedy}") from error
    if not len(frame):
        raise DataError("has a header, but no rows; copy or save the file again")
    return named(frame)


def is_parquet(file: Opened) -> bool:
    """Whether a file begins as Parquet does. A CSV's first column could be called PAR1."""
    return file.head.startswith(b"PAR1") and not decoded(file.head)[0]


def read_parquet(path: Path) -> pd.DataFrame:
    """The table of a Parquet file. What pandas wrote about itself into the file is not read."""
    options = {"page_checksum_verification": True, "pre_buffer": False, "buffer_size": 2**20}  # little memory
    with path.open("rb") as source, pq.ParquetFile(source, **options) as file:
        groups = [file.metadata.row_group(at) for at in range(file.metadata.num_row_groups)]
        columns = max(1, len(file.schema_arrow.names))
        large = check_size(file.metadata.num_rows * columns, sum(group.total_byte_size for group in groups))
        batches = file.iter_batches(max(1, CHUNK // columns)) if large else [file.read()]
        frames = (batch.replace_schema_metadata(None).to_pandas() for batch in batches)
        return on_disk(frames) if large else next(frames)


def read_csv(file: Opened) -> pd.DataFrame:
    """The table of a CSV file."""
    text, encoding = decoded(file.head)
    if file.packer not in ("", "gzip") or not text:
        raise DataError("is neither Parquet nor a text in UTF-8, UTF-16 or latin-1; save it as CSV in UTF-8")
    lines = lines_of(file)
    delimiter = delimiter_of(lines) or max("\t;|,", key=lambda each: len(cells_of(lines[:1], each)[0]))
    names = cells_of(lines[:1], delimiter)[0]
    check_header(names, file.path)
    with gzip.open(file.path) if file.packer else file.path.open("rb") as stream:
        size = sum(map(len, iter(partial(stream.read, 2**20), b"")))  # no header says how large the unpacked text is
        stream.seek(0)
        share = len(re.findall(rf"[\n\r{re.escape(delimiter)}]", text)) / len(file.head)
        large = check_size(int(size * share), size)
        options = {"sep": delimiter, "decimal": decimal_of(text, delimiter), "encoding": encoding or "utf-8"}
        options |= {
            "low_memory": False,
            "skipinitialspace": True,
            "index_col": False,
        }  # types are those of whole columns
        with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):  # as if a cell were left out
            if not large:
                return pd.read_csv(stream, **options)
            with pd.read_csv(stream, **options, chunksize=max(1, CHUNK // len(names))) as frames:
                return on_disk(frames)


def check_size(numbers: int, size: int) -> bool:
    """Whether a table is read in parts. Raises DataError if it cannot be read: `size` bytes of a file, `numbers`."""
    large = numbers > LARGE
    # pandas keeps the text, where each of its cells begins and ends, and the numbers, which it copies once.
    require_room("memory", memory_available(), 6 * 8 * CHUNK if large else 32 * numbers + 2 * size)
    if large:
        require_disk(8 * numbers)
    return large


def require_disk(needed: int):
    """Raises DataError unless so many bytes can be written into a temporary file."""
    require_room("temporary files (TMPDIR)", shutil.disk_usage(tempfile.gettempdir()).free, needed)


def require_room(place: str, available: float, needed: int):
    """Raises DataError if more bytes are needed than a place has."""
    if needed > available:
        raise DataError(
            f"needs {needed / 1e9:,.1f} GB for {place}, but {available / 1e9:,.1f} GB are available; give fewer "
            "rows or columns"
        )


def on_disk(parts) -> pd.DataFrame:
    """One frame of many: numbers are float64 in a temporary file, words are categories in memory.

    Columns of at most 10 different integers are integers in memory, since they may be categories too.
    """
    numeric, names, words, integers, rows = None, (), {}, {}, 0
    with tempfile.TemporaryFile() as file:
        for part in parts:
            if numeric is not None:  # pandas takes a part without a word for missing numbers
                empty = [name for name in names[~numeric] if part[name].isna().all()]
                part = part.astype(dict.fromkeys(empty, "str"))
            kinds = np.array([dtype.kind in "iuf" for dtype in part.dtypes])
            if numeric is None:
                numeric, names = kinds, part.columns
            if (kinds != numeric).any():
                name = visible(names[np.argmax(kinds != numeric)])
                raise DataError(
                    f"column {name} has only numbers or gaps in one part, and words in another, near row {rows}; save "
                    "the table as Parquet, which knows the types"
                )
            part.loc[:, numeric].to_numpy(np.float64, na_value=np.nan).tofile(file)
            for name in names[~numeric]:
                words.setdefault(name, []).append(part[name].astype("category"))
            for name in names[numeric]:
                found = integers.get(name, set())
                if found is not None:
                    found = found | set(part[name].unique()) if part[name].dtype.kind in "iu" else None
                    integers[name] = found if found and len(found) <= 10 else None
            rows += len(part)
        file.flush()
        shape = rows, int(numeric.sum())
        numbers = np.memmap(file, np.float64, "r", shape=shape) if min(shape) else np.empty(shape)
    frame = pd.DataFrame(numbers, columns=names[numeric], copy=False)
    for name in (name for name, found in integers.items() if found):
        frame[name] = pd.to_numeric(frame[name], downcast="integer")
    for at, name in enumerate(names):
        if name in words:
            frame.insert(at, name, pd.api.types.union_categoricals(words.pop(name)))
    return frame


# The form of a CSV


def lines_of(file: Opened) -> list[str]:
    """The first lines of a text that are not empty, without a last one that may be cut short."""
    lines = re.split(r"\r\n|\r|\n", decoded(file.head)[0])
    if not file.complete and len(lines) > 2:
        lines.pop()
    return [line for line in lines if line.strip()][:ROWS]


def cells_of(lines: list[str], delimiter: str) -> list[list[str]]:
    """The cells of lines. Empty if the csv module cannot read them."""
    try:
        return list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True))
    except csv.Error:
        return [[]]


def delimiter_of(lines: list[str]) -> str | None:
    """What is between the cells: the first of tab, semicolon, bar and comma that every line has as often."""
    for delimiter in "\t;|,":
        lengths = {len(cells) for cells in cells_of(lines, delimiter)}
        if len(lines) > 1 and len(lengths) == 1 and min(lengths) > 1:
            return delimiter
    return None


def decimal_of(text: str, delimiter: str) -> str:
    """The sign before decimals: a comma, if more cells have a number with a comma than one with a point."""
    if delimiter == ",":
        return "."
    cell = rf"""(?<=[\n\r"{re.escape(delimiter)}]) *[-+]?\d*%s\d+(?=[\n\r"{re.escape(delimiter)} eE]|$)"""
    commas, points = (len(re.findall(cell % re.escape(sign), text)) for sign in ",.")
    return "," if commas > points else "."


def check_header(names: list[str], path: Path) -> None:
    """Raises DataError if a column's name is a number, unless names count from 0, as pandas writes them."""
    given = [name.strip() for name in names if name.strip()]
    numbers = [name for name in given if NUMBER.fullmatch(name)]
    counted = len(given) > 1 and [name for name in given if name.lower() not in LABELS] == [
        str(at) for at in range(len(numbers))
    ]
    if numbers and not counted:
        raise DataError(
            f"has numbers in its first row ({', '.join(numbers)[:60]}), which should be the columns' names, with a "
            f"letter in each. If it has no names: import pandas as pd; pd.read_csv({quoted(path)}, sep=None, "
            "engine='python', header=None).add_prefix('x').to_csv('named.csv', index=False); then call the column of "
            "labels label"
        )


# Frames


def as_frame(data) -> pd.DataFrame | None:
    """A frame of pandas, polars or pyarrow (`__arrow_c_stream__`) as a DataFrame with words as names; else None.

    Raises DataError if two columns have the same name, or the frame cannot be read.
    """
    if isinstance(data, pd.DataFrame):
        return named(data)
    if not hasattr(data, "__arrow_c_stream__"):
        return None
    if getattr(data, "ndim", 2) == 1:
        raise DataError("is one column or one row; give a table, such as df.iloc[[0]] for one row")
    with readable("the table"):
        return named(pa.table(data).replace_schema_metadata(None).to_pandas())


def named(frame: pd.DataFrame) -> pd.DataFrame:
    """The same columns under their names as text. Raises DataError if two are the same."""
    names = [name if type(name) is str else str(name) for name in frame.columns]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"two columns are called {visible(twice)}; give each column a name of its own")
    if not names:
        raise DataError("has no columns; copy or save the table again")
    frame = frame.copy(deep=False)
    with readable("a column's name"):  # half a letter
        frame.columns = names
    for name, dtype in frame.dtypes.items():  # pandas makes no array of some columns, and cannot search others
        with readable(f"column {visible(name)}"):
            if isinstance(dtype, pd.SparseDtype):
                frame[name] = frame[name].sparse.to_dense()
            elif isinstance(dtype, np.dtype) and not dtype.isnative:
                frame[name] = frame[name].astype(dtype.newbyteorder("="))
    return frame


def split_labels(frame: pd.DataFrame, label_column: str = "") -> tuple[pd.DataFrame, np.ndarray | None, list[str]]:
    """The other columns, the labels, (n,) integers, floats or words, or None, and notes on what was done.

    Labels are the column `label_column`. Without it, they are a column called label, labels, class, target or y, if it
    has words or whole numbers. Columns that only number the rows are left out.

    Raises:
        DataError: there is no such column, some labels are missing, or no other column is left.
    """
    if label_column and label_column not in frame.columns:
        names = ", ".join(map(visible, frame.columns))
        raise DataError(f"has no column {visible(label_column)} for labels; its columns are {names[:300]}")
    notes, rest, labels = [], frame.copy(deep=False), None
    called = [label_column] if label_column else [name for name in frame if name.strip().lower() in LABELS]
    if label_column and not are_classes(frame[label_column]):
        raise DataError(
            f"column {visible(label_column)} has real numbers, and labels are classes; choose another --label-column, "
            f"or make classes: df[{label_column!r}] = pd.cut(df[{label_column!r}], 4).astype(str)"
        )
    for name in called:
        if label_column or are_classes(frame[name]):
            labels = labels_in(frame[name])
            notes.append(f"labels are column {visible(name)}")
            del rest[name]  # where drop would copy all columns
            break
        notes.append(f"column {visible(name)} has real numbers: a column like the others, and no labels")
    for name in [name for name in rest if PANDAS_INDEX.fullmatch(name) or numbers_rows(rest[name])]:
        notes.append(f"column {visible(name)} is left out, since it names or numbers the rows")
        del rest[name]
    if not rest.shape[1]:
        raise DataError("has no columns beside labels and numbers of rows; give the columns to model")
    return rest, labels, notes


def are_classes(column: pd.Series) -> bool:
    """Whether a column has words, truth values or whole numbers."""
    if not pd.api.types.is_float_dtype(column.dtype):
        return True
    values = column.dropna().to_numpy(np.float64)
    return len(values) > 0 and bool(np.isfinite(values).all() and (values == np.floor(values)).all())


def labels_in(column: pd.Series) -> np.ndarray:
    """A column as an array of numbers, truth values or words."""
    if missing := int(column.isna().sum()):
        name = str(column.name)
        raise DataError(
            f"column {visible(name)} has {missing} missing labels; leave those rows out: df = df.dropna(subset="
            f"[{name!r}])"
        )
    values = np.asarray(column)
    if values.dtype.kind == "O" and pd.api.types.infer_dtype(values) in ("integer", "boolean"):
        values = np.array(values.tolist())
    try:
        return values if values.dtype.kind in "biuf" else values.astype(str)
    except ValueError as error:
        raise DataError(f"column {visible(column.name)} has lists as labels; give words or whole numbers") from error


def numbers_rows(column: pd.Series) -> bool:
    """Whether a column has a name such as id, and counts from 0 or from 1."""
    name = column.name.strip().lower()
    if not (name in COUNTS or re.search(r"[^a-z](id|index)$", name)) or column.dtype.kind not in "iuf":
        return False
    values = np.asarray(column)
    return len(values) > 0 and values[0] in (0, 1) and np.array_equal(values, values[0] + np.arange(len(values)))


def is_constant(column):
    """Whether all cells of a column are the same."""
    try:
        return column.nunique(dropna=False) == 1
    except TypeError:  # cells are lists: the column will be refused
        return False


def with_frame(message: str, path: str) -> str:
    """A message on a file's table; if its remedy changes `df`, with the lines that read and save that frame."""
    if not re.search(r"\bdf\b", message):
        return message
    return f"{message}; df = pd.read_csv({path!r}) reads the table, and df.to_csv('mended.csv', index=False) saves it"
