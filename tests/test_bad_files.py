"""Damaged, lying and odd files of every format: each is taken for what it is or refused in one line, soon.

Formats are .npz, folders of pictures, IDX, CSV, Parquet, sparse matrices, and others that are only recognised. Nothing
in a file is executed, and no file is changed.
"""

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import os
import pickle
import random
import shutil
import struct
import tempfile
import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import NamedTuple

from common.arrays import DataError
from common.data import as_dataset, load_data
from common.likelihoods import LIKELIHOODS
from common.transforms import CountTransform

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import scipy.sparse
from fuzzing import Trap, Tried, damaged, images, is_dataset, npy, npz, numbers, outcome, quietly, tried_path, zipped
from PIL import EpsImagePlugin, Image, PngImagePlugin


@pytest.fixture(autouse=True)
def nothing_is_executed():
    yield
    assert not Trap.sprung.exists()


class Source(NamedTuple):
    """Files by their paths in a folder, which is given; a file that is alone is given itself."""

    files: dict[str, bytes]
    resize: tuple[int, int] | None = None


# Arrays, and formats that are not read

FOUR = {"x_train": images(), "y_train": np.arange(24) % 3, "x_test": images((9, 3, 2)), "y_test": np.arange(9) % 3}
ONE = {"x": images((24, 5), np.float64), "y": np.arange(24, dtype=np.uint8) % 2}
KEPT = {"train_images": images((24, 3, 2, 1), np.int64), "train_labels": np.eye(3)[np.arange(24) % 3]}
KEPT |= {"test_images": images((9, 3, 2, 1), np.int64), "test_labels": np.eye(3, dtype=bool)[np.arange(9) % 3]}
KEPT |= {"X_val": images((9, 3, 2, 1), np.int64), "Y_val": np.arange(9)[:, None] % 3}
WORDS = {"images": images((24, 1, 3, 2)) > 99, "labels": np.array(["cat", "dog", "ñandú"])[np.arange(24) % 3]}
COLOUR = {"x": images((24, 3, 4, 2)), "y": np.arange(24) % 2}
REAL = {"x": images((24, 3, 2), np.float32) * 1e3 - 7, "y": np.arange(24) % 2}
COUNTS = {"x": images((24, 4)).astype(np.int32) * 3}


def made_by(write) -> bytes:
    """What `write` leaves in a file."""
    with tempfile.TemporaryDirectory() as folder:
        write(str(Path(folder, "file")))
        return Path(folder, "file").read_bytes()


def in_hdf5(path):
    with h5py.File(path, "w") as file:
        file["x"], file["y"] = ONE["x"], ONE["y"]


def idx(array) -> bytes:
    kind = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}[array.dtype.str[1:]]
    sides = b"".join(struct.pack(">I", side) for side in array.shape)
    return struct.pack(">HBB", 0, kind, array.ndim) + sides + array.astype(array.dtype.newbyteorder(">")).tobytes()


def csv_of(end="\n") -> bytes:
    rows = [["label", "pixel 1", "pixel 2"], *([row % 3, row, 2 * row] for row in range(24))]
    return end.join(",".join(map(str, row)) for row in rows).encode()


def picture(array, form="PNG", mode=None, **options) -> bytes:
    file, image = io.BytesIO(), Image.fromarray(array)
    (image.convert(mode) if mode else image).save(file, form, **options)
    return file.getvalue()


POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 4\n%%EndComments\n(%pipe%touch sprung) (r) file\nshowpage\n"
)
WHOLE_FILES = {
    "npz": npz(**FOUR),
    "npz, deflated": npz(np.savez_compressed, **ONE),
    "npz, conversions": npz(**KEPT),
    "npz, words": npz(**WORDS),
    "npz, colour": npz(**COLOUR),
    "npz, real": npz(**REAL),
    "npz, counts": npz(**COUNTS),
    "npz, objects": npz(x=images(), y=np.array([Trap()] * 24)),
    "npy": npy(images()),
    "npy of floats": npy(np.asfortranarray(images(kind=np.float32))),
    "npy of objects": npy(np.array([Trap()] * 24)),
}
OTHER_FILES = {
    "hdf5": made_by(in_hdf5),
    "matlab": made_by(lambda path: scipy.io.savemat(path, {"x": ONE["x"], "y": ONE["y"]}, appendmat=False)),
    "idx, bz2": bz2.compress(idx(images())),
    "idx of labels": idx(np.arange(24, dtype=np.uint8)),
    "csv, xz": lzma.compress(csv_of()),
    "parquet, gzip": gzip.compress(made_by(lambda path: pq.write_table(pa.table({"a": np.arange(24.0)}), path))),
    "arrow": made_by(lambda path: pd.DataFrame({"a": np.arange(24.0)}).to_feather(path)),
    "pickle": pickle.dumps({"data": images(), "labels": [Trap()]}),
    "pickle, old": pickle.dumps({"data": [1, 2], "labels": [Trap()]}, protocol=0),
    "zip of a pickle": zipped({"data.pkl": pickle.dumps(Trap())}),
    "zip of pictures": zipped({"cat/1.png": b"\x89PNG\r\n\x1a\n", "dog/2.png": b"\x89PNG\r\n\x1a\n"}),
    "png": picture(images()[0]),
    "pgm": b"P5\n4 3\n255\n" + bytes(12),
    "json": json.dumps({"x": images().tolist()}).encode(),
    "a web page": b"<!DOCTYPE html><html><body>404</body></html>",
    "postscript": POSTSCRIPT,
}


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_whole_files_of_other_formats_are_refused(tmp_path, kind):
    (tmp_path / "mine.npz").write_bytes(OTHER_FILES[kind])
    assert tried_path(tmp_path / "mine.npz") == "refused"


# IDX

GREY, LABELS = images((24, 3, 2)), np.arange(24, dtype=np.uint8) % 3
MNIST = {"train-images-idx3-ubyte": idx(GREY), "train-labels-idx1-ubyte": idx(LABELS)}
MNIST |= {"t10k-images-idx3-ubyte": idx(GREY[:9]), "t10k-labels-idx1-ubyte": idx(LABELS[:9])}
IDX = {
    "idx": Source({"mine": idx(GREY)}),
    "idx, gzip": Source({"mine.gz": gzip.compress(idx(GREY))}),
    "idx, int32": Source({"mine.idx": idx(GREY.astype(np.int32))}),
    "idx, float": Source({"mine.idx": idx(images((24, 4), np.float64) - 0.5)}),
    "idx, colour": Source({"mine.idx": idx(images((24, 3, 4, 3)))}),
    "idx, labels": Source({"my-images-idx3-ubyte": idx(GREY), "my-labels-idx1-ubyte": idx(LABELS)}),
    "idx, four": Source(MNIST),
    "idx, four, gzip": Source({f"{name}.gz": gzip.compress(content) for name, content in MNIST.items()}),
}

# Pictures


def drawn(array, *forms, **options) -> list[bytes]:
    """Pictures in formats that take turns."""
    return [picture(each, forms[at % len(forms)], **options) for at, each in enumerate(array)]


def noted(array) -> bytes:
    """A PNG with texts, of which one is a pickle, and an EXIF note on the orientation."""
    texts, exif = PngImagePlugin.PngInfo(), Image.Exif()
    texts.add_text("Comment", pickle.dumps(Trap(), 0).decode("latin-1"), zip=True)
    texts.add(b"prVt", pickle.dumps(Trap()))
    exif[274] = 3
    return picture(array, pnginfo=texts, exif=exif)


def of_every_mode(array) -> dict[str, bytes]:
    """Colour pictures, (n, height, width, 3), of every format and mode."""
    forms = [("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
    forms += [("JPEG", mode) for mode in ("L", "RGB", "CMYK", "YCbCr")] + [("GIF", "P"), ("BMP", "RGB"), ("PPM", "L")]
    forms += [("TIFF", mode) for mode in ("L", "RGB", "CMYK", "I;16")] + [("WEBP", "RGB"), ("WEBP", "RGBA")]
    files = {}
    for at, (form, mode) in enumerate(forms):
        each = array[at % len(array)][: 3 + at % 2]
        deep = each[..., 0].astype(np.uint16) * 200
        content = picture(deep, form) if mode == "I;16" else picture(each, form, mode)
        files[f"{at}.{ {'JPEG': 'jpg', 'TIFF': 'tif'}.get(form, form.lower()) }"] = content
    frames = [Image.fromarray(each) for each in array[:3]]
    for name, form, more in (("a.gif", "GIF", {}), ("b.tiff", "TIFF", {"compression": "tiff_lzw"})):
        files[name] = picture(array[0], form, save_all=True, append_images=frames, **more)
    return files


COLOURS = images((24, 4, 5, 3))
PLACES = [f"{split}/{'cat' if at % 2 else 'dog'}/{at}" for split in ("train", "val", "test") for at in range(12)]
PICTURES = {
    "png": Source({f"{at}.png": content for at, content in enumerate(drawn(COLOURS[..., 0], "PNG"))}),
    "png, classes": Source({f"{'ab'[at % 2]}/{at}.png": each for at, each in enumerate(drawn(COLOURS, "PNG"))}),
    "png, notes": Source({f"{at}.png": noted(each) for at, each in enumerate(COLOURS)}),
    "jpeg, splits": Source({f"{place}.jpg": picture(COLOURS[at % 24], "JPEG") for at, place in enumerate(PLACES)}),
    "gif": Source({f"in/{at}.gif": content for at, content in enumerate(drawn(COLOURS, "GIF"))}),
    "tiff": Source({f"{at}.tif": each for at, each in enumerate(drawn(COLOURS, "TIFF", compression="tiff_deflate"))}),
    "webp": Source({f"{at}.webp": content for at, content in enumerate(drawn(COLOURS, "WEBP"))}),
    "ppm": Source({f"{at}.ppm": content for at, content in enumerate(drawn(COLOURS, "PPM"))}),
    "bmp": Source({f"{at}.bmp": content for at, content in enumerate(drawn(COLOURS[..., 0], "BMP"))}),
    "all pictures": Source(of_every_mode(COLOURS), resize=(4, 5)),
}


def odd_chunk(chance, content: bytes) -> bytes:
    """A PNG with damage to one of its chunks, whose checksum agrees."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    which = chance.randrange(len(chunks))
    name, body = chunks[which]
    if name == b"IDAT" and chance.random() < 0.7:
        body = zlib.compress(damaged(chance, zlib.decompress(body))[1])
    elif chance.random() < 0.1:
        name = chance.choice([b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"acTL", b"fdAT", b"IEND", b"IHDR"])
    else:
        body = damaged(chance, body or b"\0")[1]
    chunks[which] = name, body
    return content[:8] + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def test_a_program_that_is_called_a_picture_is_not_run(tmp_path, monkeypatch):
    path, started = saved(PICTURES["png"], tmp_path), []
    (path / "7.png").write_bytes(POSTSCRIPT)
    monkeypatch.setattr(
        EpsImagePlugin, "Ghostscript", lambda *given: started.append(given) or Image.new("L", (5, 4)).im
    )
    with Image.open(path / "7.png") as image:
        image.load()
    assert started.pop()
    assert tried_path(path) == "refused"
    assert not started


# Sparse matrices


def sparse_members(form: str, array) -> dict[str, np.ndarray]:
    """The arrays that scipy.sparse.save_npz writes."""
    file = io.BytesIO()
    scipy.sparse.save_npz(file, getattr(scipy.sparse, f"{form}_matrix")(array))
    with np.load(io.BytesIO(file.getvalue())) as arrays:
        return dict(arrays)


FEW_COUNTS = np.random.default_rng(0).poisson(2.5, (24, 6)) * (np.arange(6) < 5)  # the last column is empty
SPARSE = {form: sparse_members(form, FEW_COUNTS) for form in ("csr", "csc", "coo", "bsr", "dia")}
SPARSE |= {f"{form}, real": sparse_members(form, FEW_COUNTS * -1.5) for form in ("csr", "coo", "bsr")}
SPARSE_FILES = {f"sparse, {form}": Source({"mine.npz": npz(**members)}) for form, members in SPARSE.items()}
ODD_SHAPES = [(24, 5), (23, 6), (0, 6), (24, 0), (-1, 6), (2**31, 6), (24, 2**40), (2**63 - 1, 2**63 - 1), (24,)]
ODD_SHAPES += [(24, 6, 1), (24.0, 6.0), (10**6, 100), (30, 10**7), "24", ()]
ODD_FORMS = ["csr", "csc", "coo", "bsr", "dia", "lil", "dok", "", "npz", b"csr", b"\xff", "c\0r", 3, None, "toarray"]


def odd_member(chance, array: np.ndarray) -> np.ndarray:
    """An array of another length, order, shape or type."""
    kind = chance.choice(["f4", "f8", "u1", ">i4", "i8", "u8", "?", "c8", "O", "U3", "M8[s]"])
    others = [array[:-1], array[::-1], array[None], array[:0], np.concatenate([array, array]), np.sort(array)]
    with np.errstate(all="ignore"):
        return chance.choice([*others, np.array(Trap(), object), array.astype("O" if array.dtype == "O" else kind)])


def odd_matrix(chance, members: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A sparse matrix of which one or two arrays lie."""
    members = dict(members)
    for name in chance.choices(list(members), k=chance.choice([1, 1, 2])):
        array = members[name]
        if name == "shape":
            members[name] = np.array(chance.choice(ODD_SHAPES))
        elif name == "format":
            members[name] = np.array(chance.choice(ODD_FORMS))
        elif array.size and chance.random() < 0.5:
            array = array.copy()
            odd = chance.choice([-1, 0, 5, 6, 7, 24, 25, 2**31 - 1, -(2**31), array.size])
            array.flat[chance.randrange(array.size)] = odd
            members[name] = array
        else:
            members[name] = odd_member(chance, np.atleast_1d(array))
    if chance.random() < 0.1:
        members.pop(chance.choice(list(members)))
    return members


# Tables

ODD_TEXTS = ["=cmd|' /C calc'!A0", "=1+1", "@SUM(A1)", "a\nb", '"', "\x1b[2J", "ñ", "数据", "x" * 300, " ", "#N/A"]
ODD_TEXTS += ["\ud800"]
COLUMN_NAMES = ["a", "b", "size", "label", "class", "y", "id", "Unnamed: 0", "", " a", "a ", "ñ", "数据", "0", "1"]
COLUMN_NAMES += ["x" * 99, "=1+1", "a\nb", "\x1b", "1e5", "__index_level_0__", "\u2028", "a,b", "a;b", '"']
KINDS_OF_COLUMNS = [
    lambda chance, n: numbers(chance, n, -3, 3),
    lambda chance, n: numbers(chance, n, 0, 1),
    lambda chance, n: numbers(chance, n, 1e8, 1e8 + 1),
    lambda chance, n: numbers(chance, n, -1, 1) * 10.0 ** chance.choice([-320, -40, 20, 37, 150, 290, 307]),
    lambda chance, n: np.rint(numbers(chance, n, 0, 3)).astype(np.int64),
    lambda chance, n: np.rint(numbers(chance, n, 0, 999)).astype(np.int64),
    lambda chance, n: np.rint(numbers(chance, n, 0, 1)).astype(bool),
    lambda chance, n: np.arange(n) + chance.choice([0, 1, 10**15, -(2**62)]),
    lambda chance, n: np.full(n, chance.choice([0.0, 7.0, 1e300])),
    lambda chance, n: np.full(n, np.nan),
    lambda chance, n: np.where(numbers(chance, n, 0, 1) < 0.2, chance.choice([np.nan, np.inf, 1e300]), 1.5),
    lambda chance, n: np.array(chance.choices(["red", "green", "blé"], k=n), object),
    lambda chance, n: np.array(chance.choices(["red", "", None, "NA"], k=n), object),
    lambda chance, n: np.array(chance.choices(ODD_TEXTS, k=n), object),
    lambda chance, n: np.array([f"w{at}" for at in range(n)], object),
    lambda chance, n: np.array(chance.choices(["1", "2.5", "3,5", "x", "1e999", "0x1f", "1_0"], k=n), object),
    lambda chance, n: np.array([str(2**70 + at) for at in range(n)], object),
    lambda chance, n: np.datetime64("2020-01-01") + np.arange(n),
]


def odd_columns(chance) -> dict[str, np.ndarray]:
    """Columns of any kind, most of them usual ones."""
    rows = chance.choice([12, 24, 24, 40, 130]) if chance.random() < 0.9 else chance.choice([0, 1, 9])
    count, columns = chance.choice([1, 2, 3, 4, 6]), {}
    usual = chance.random() < 0.6
    for name in chance.sample(COLUMN_NAMES[:7] if usual else COLUMN_NAMES, count):
        kinds = [*KINDS_OF_COLUMNS[:3], *KINDS_OF_COLUMNS[4:8], KINDS_OF_COLUMNS[11]] if usual else KINDS_OF_COLUMNS
        columns[name] = chance.choice(kinds)(chance, rows)
    return columns


def as_csv(chance, columns: dict[str, np.ndarray]) -> bytes:
    """A CSV in one of many forms. Letters that its encoding lacks become question marks."""
    text, comma = io.StringIO(), chance.random() < 0.2
    delimiter = chance.choice(",,;\t|")
    quoting = chance.choice([csv.QUOTE_MINIMAL, csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=chance.choice(["\n", "\r\n", "\r"]))
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        cells = ["" if cell is None else str(cell) for cell in row]
        writer.writerow([cell.replace(".", ",") for cell in cells] if comma else cells)
    content = text.getvalue().encode(chance.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]), "replace")
    return gzip.compress(content) if chance.random() < 0.15 else content


def as_parquet(chance, columns: dict[str, np.ndarray]) -> bytes:
    """A Parquet file in one of many forms; of another type than the column's where that is possible."""
    arrays = [arrow_array(chance, column) for column in columns.values()]
    fields = [
        pa.field(name.encode("utf-8", "replace").decode(), array.type, metadata=EXTENSION)
        for name, array in zip(columns, arrays, strict=True)
    ]
    table = pa.table(arrays, pa.schema(fields, {"pandas": pickle.dumps(Trap())}))
    if chance.random() < 0.05:
        table = table.replace_schema_metadata({"ARROW:schema": chance.choice([b"", b"AAAA", pickle.dumps(Trap())])})
    options = {"compression": chance.choice(["none", "snappy", "gzip", "zstd", "brotli", "lz4"])}
    options |= {"use_dictionary": chance.random() < 0.5, "write_page_checksum": chance.random() < 0.2}
    options |= {"version": chance.choice(["1.0", "2.6"]), "row_group_size": chance.choice([5, 1000])}
    options["allow_truncated_timestamps"] = True
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


EXTENSION = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(Trap())}
ARROW_TYPES = [pa.float32(), pa.float16(), pa.int8(), pa.uint64(), pa.string(), pa.large_string(), pa.binary()]
ARROW_TYPES += [pa.decimal128(30, 2), pa.date32(), pa.timestamp("us", "UTC"), pa.time64("us"), pa.duration("s")]
ARROW_TYPES += [pa.dictionary(pa.int8(), pa.string()), pa.null(), pa.bool_(), pa.list_(pa.float64())]


def arrow_array(chance, column: np.ndarray) -> pa.Array:
    """The column, or what another type makes of it."""
    words = [each.encode("utf-8", "replace").decode() if isinstance(each, str) else each for each in column.tolist()]
    array = pa.array(words if column.dtype.kind == "O" else column)
    if chance.random() < 0.1:
        lists = pa.array([[each] for each in words])
        return chance.choice([pa.StructArray.from_arrays([array, lists], "ab"), lists])
    if chance.random() < 0.25:
        try:
            return array.cast(chance.choice(ARROW_TYPES), safe=False)
        except pa.ArrowException:
            pass
    return array


FRAME_TYPES = ["Int64", "boolean", "string", "category", "Sparse", "object", ">f8", ">i4", "float16", "longdouble"]
FRAME_TYPES += ["complex", "timedelta64[s]", "datetime64[s]", "datetime64[ns, UTC]", "period[D]", "int8", "uint64", str]
FRAME_NAMES = [0, 1, 2.5, None, True, b"a", ("a", 1), "\ud800", "", "a", Path("a"), float("nan"), np.int64(3)]


def odd_frame(chance):
    """A frame of pandas or pyarrow, some of whose columns have odd types, names or an odd index."""
    columns = odd_columns(chance)  # a Series makes words of objects unless it is told not to, and knows no days
    kinds = {name: object if each.dtype.kind == "O" else None for name, each in columns.items()}
    frame = pd.DataFrame({name: pd.Series(each, dtype=kinds[name]) for name, each in columns.items()})
    if chance.random() < 0.2:
        with contextlib.suppress(pa.ArrowException, UnicodeError):
            return pa.Table.from_pandas(frame, preserve_index=chance.random() < 0.5)
    for name in [name for name in frame if chance.random() < 0.3]:
        kind = chance.choice(FRAME_TYPES)
        try:
            frame[name] = pd.arrays.SparseArray(frame[name]) if kind == "Sparse" else frame[name].astype(kind)
        except (TypeError, ValueError, OverflowError):
            odd = chance.choice([Trap(), None, [1], {}, 10**30, 1.5, "a"])
            frame[name] = pd.Series([odd] * len(frame), dtype=object)
    if chance.random() < 0.1:
        with contextlib.suppress(TypeError, UnicodeError, pa.ArrowException):
            frame = frame.convert_dtypes(dtype_backend=chance.choice(["numpy_nullable", "pyarrow"]))
    if chance.random() < 0.15:
        frame.columns = pd.Index(chance.choices(FRAME_NAMES, k=frame.shape[1]), dtype=object)
    elif chance.random() < 0.1:
        frame.columns = pd.MultiIndex.from_arrays([["top"] * frame.shape[1], list(frame.columns)])
    if len(frame) and chance.random() < 0.2:
        frame.index = chance.choice([[3] * len(frame), pd.date_range("2020", periods=len(frame)), ["a"] * len(frame)])
    return frame


def try_frame(chance, folder: Path) -> tuple[str, str]:
    """The kind and the outcome of a frame in memory, which stays as it is."""
    frame = odd_frame(chance)
    options = odd_options(chance, Source({}), [name for name in as_names(frame) if isinstance(name, str)])
    options.pop("resize", None)
    before = all_of(frame)
    result = outcome(lambda: quietly(lambda: as_dataset(frame, **options)), DataError, is_dataset)
    assert all_of(frame) == before
    return f"any {type(frame).__module__.split('.')[0]} frame", result


def as_names(frame) -> list:
    """The names of a frame's columns."""
    return list(frame.columns) if isinstance(frame, pd.DataFrame) else frame.column_names


def all_of(frame) -> str:
    """What is in a frame, and how it is called."""
    if not isinstance(frame, pd.DataFrame):
        return str(frame.schema) + str(frame.to_pylist())
    arrays = [np.asarray(frame.iloc[:, at]) for at in range(frame.shape[1])]
    cells = [array.tolist() if array.dtype.hasobject else array.tobytes() for array in arrays]
    return f"{as_names(frame)} {frame.dtypes.tolist()} {frame.index.tolist()} {cells}"


TABLE = {"size": numbers(random.Random(0), 24, 5, 9), "count": np.arange(24) * 3, "label": np.array(["a", "b"] * 12)}
TABLE |= {"colour": np.array(["red", "green", "blé"] * 8), "made": np.arange(24) % 4 + 1}


def table_csv(columns=TABLE, encoding="utf-8", pack=bytes, **options) -> Source:
    text = pd.DataFrame(columns).to_csv(index=False, **options)
    return Source({"mine.csv": pack(text.encode(encoding))})


def trapped_table() -> pa.Table:
    """TABLE with pickles where pandas and older versions of pyarrow look for notes of their own."""
    table = pa.Table.from_pandas(pd.DataFrame(TABLE))
    fields = [field.with_metadata(EXTENSION) for field in table.schema]
    return table.cast(pa.schema(fields)).replace_schema_metadata({"pandas": pickle.dumps(Trap())})


TABLES = {
    "csv": table_csv(),
    "csv, semicolons": table_csv(sep=";", decimal=","),
    "csv, tabs": table_csv(sep="\t", lineterminator="\r\n"),
    "csv, gzip": table_csv(pack=gzip.compress),
    "csv, UTF-16": table_csv(encoding="utf-16"),
    "csv, latin-1": table_csv(encoding="latin-1"),
    "csv, formulas": table_csv(TABLE | {"colour": np.array(["=cmd|' /C calc'!A0", "=1+1", "@SUM(A1)"] * 8)}),
    "parquet": Source({"mine": made_by(pd.DataFrame(TABLE).to_parquet)}),
    "parquet, traps": Source({"mine": made_by(partial(pq.write_table, trapped_table()))}),
}

# Whole sources

SOURCES = IDX | PICTURES | SPARSE_FILES | TABLES


def saved(source: Source, folder: Path) -> Path:
    """The path of a source's files: the folder, or a file that is alone or has labels beside it."""
    for name, content in source.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    first = folder / next(iter(source.files))
    return first if len(source.files) == 1 or first.name.startswith("my-images") else folder


@pytest.mark.parametrize("kind", SOURCES)
def test_whole_files_are_taken_once(tmp_path, kind):
    """Every row is in one split, and nothing is lost."""
    dataset = quietly(lambda: load_data(str(saved(SOURCES[kind], tmp_path / "mine")), resize=SOURCES[kind].resize))
    is_dataset(dataset)
    count = {"idx, four": 33, "idx, four, gzip": 33, "jpeg, splits": 36, "all pictures": 22}.get(kind, 24)
    assert sum(dataset.sizes.values()) == count
    rows = np.concatenate([dataset.x_train[:], dataset.x_val, dataset.x_test]).reshape(count, -1)
    if count == 24:
        assert len(np.unique(rows, axis=0)) == 24
    if isinstance(dataset.transform, CountTransform):
        assert sorted(map(tuple, rows[:, :-1])) == sorted(map(tuple, FEW_COUNTS))


# Damage

NAMES_OF_FILES = ["mine", "mine.npz", "mine.csv", "mine.parquet", "mine.png", "mine.csv.gz", "mine.idx", "mine\n.tsv"]
ODD_PLACES = ["a.png", "train/a.png", "test/b/c/a.png", "ñ\n.png", "\udcff.png", "\udcff/a.png", ".a.png", "a.PNG"]
ODD_PLACES += ["x.npy", "train-images-idx3-ubyte", "x.npz", "notes.txt", "a.png/b.png", "\x1b[2J/a.jpg", "a.svg"]
ODD_PLACES += ["x" * 200 + ".png"]


def odd_files(chance, files: dict[str, bytes]) -> tuple[str, dict[str, bytes]]:
    """Files of which one is damaged, also in a way that checksums do not tell."""
    files = dict(files)
    name = chance.choice(list(files))
    content = files[name]
    if content.startswith(b"\x89PNG") and chance.random() < 0.6:
        files[name] = odd_chunk(chance, content)
        return "png, inside", files
    if content.startswith(b"\x1f\x8b") and chance.random() < 0.7:
        damage, content = damaged(chance, gzip.decompress(content))
        files[name] = gzip.compress(content)
        return f"gzip, inside, {damage}", files
    damage, files[name] = damaged(chance, content)
    return damage, files


def odd_folder(chance, folder: Path) -> str:
    """Another thing in place of a file, or beside the files."""
    file = chance.choice([path for path in sorted(folder.rglob("*")) if path.is_file()])
    place = folder / chance.choice(ODD_PLACES)
    kind = chance.choice(["gone", "moved", "copied", "a folder", "a broken link", "a circle", "a pipe", "a link"])
    if kind in ("moved", "copied") and not place.exists() and not any(each.is_file() for each in place.parents):
        place.parent.mkdir(parents=True, exist_ok=True)
        (shutil.move if kind == "moved" else shutil.copy)(file, place)
        return kind
    if kind == "copied":
        return kind
    file.unlink()
    if kind == "a folder":
        file.mkdir()
    elif kind in ("a broken link", "a circle", "a link"):
        targets = {"a broken link": "nothing", "a circle": folder, "a link": "/dev/zero"}
        file.symlink_to(targets[kind])
    elif kind == "a pipe":
        os.mkfifo(file)
    return kind


def odd_options(chance, source: Source, columns=()) -> dict:
    """Options of `load_data`, most of them the usual ones."""
    options = {"likelihood": "auto" if chance.random() < 0.6 else chance.choice(list(LIKELIHOODS))}
    if chance.random() < (0.2 if columns else 0.03):
        options["label_column"] = chance.choice([*columns, "nothing", "a\nb"])
    resize = source.resize if chance.random() < 0.8 else chance.choice([(1, 1), (7, 3), (10**6, 10**6), None, (300, 2)])
    if resize and (source.resize or chance.random() < 0.3):
        options["resize"] = resize
    return options


def try_source(chance, folder: Path) -> tuple[str, str]:
    """The kind and the outcome of a damaged source."""
    form, source = chance.choice(list(SOURCES.items()))
    if form in PICTURES and chance.random() < 0.25:
        path = saved(source, folder)
        return f"{form}: {odd_folder(chance, folder)}", tried_path(path, **odd_options(chance, source))
    damage, files = odd_files(chance, source.files)
    if len(files) == 1 and form not in PICTURES and chance.random() < 0.3:
        files = {chance.choice(NAMES_OF_FILES): next(iter(files.values()))}
    path = saved(Source(files), folder)
    columns = TABLE if form in TABLES else ()
    return f"{form}: {damage}", tried_path(path, **odd_options(chance, source, columns))


def try_matrix(chance, folder: Path) -> tuple[str, str]:
    """The same for a sparse matrix whose arrays lie or are damaged; the checksums of the zip agree."""
    form, members = chance.choice(list(SPARSE.items()))
    if chance.random() < 0.3:
        contents = {f"{name}.npy": npy(array) for name, array in members.items()}
        name = chance.choice(list(contents))
        damage, contents[name] = damaged(chance, contents[name])
    else:
        damage, contents = "lies", {f"{name}.npy": npy(array) for name, array in odd_matrix(chance, members).items()}
    source = Source({"mine.npz": zipped(contents, chance.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))})
    return f"sparse, {form}: {damage}", tried_path(saved(source, folder), **odd_options(chance, source))


def try_table(chance, folder: Path) -> tuple[str, str]:
    """The same for a table of any columns, in a file, which may be damaged."""
    columns, form = odd_columns(chance), chance.choice(["csv", "parquet"])
    content, damage = (as_csv if form == "csv" else as_parquet)(chance, columns), "whole"
    if chance.random() < 0.5:
        damage, content = damaged(chance, content)
    source = Source({chance.choice([f"mine.{form}", *NAMES_OF_FILES]): content})
    return f"any {form}: {damage}", tried_path(saved(source, folder), **odd_options(chance, source, columns))


def try_array_file(chance, folder: Path) -> tuple[str, str]:
    """The same for whole .npz and .npy files, other formats, and arrays within an .npz whose checksums agree."""
    which = chance.randrange(3)
    if which == 0:
        kind, arrays = "npz, inside", dict(chance.choice([FOUR, ONE, KEPT, WORDS, COLOUR, REAL, COUNTS]))
        members = {f"{key}.npy": npy(array) for key, array in arrays.items()}
        key = chance.choice(list(members))
        damage, members[key] = damaged(chance, members[key])
        content = zipped(members, chance.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    elif which == 1:
        kind, content = "another format", chance.choice(list(OTHER_FILES.values()))
        damage, content = damaged(chance, content)
    else:
        kind, content = chance.choice(list(WHOLE_FILES.items()))
        damage, content = damaged(chance, content)
    source = Source({"mine.npz": content})
    options = odd_options(chance, source) if chance.random() < 0.5 else {}
    return f"{kind}: {damage}", tried_path(saved(source, folder), **options)


FUZZERS = (try_source, try_source, try_matrix, try_table, try_frame, try_array_file)


def try_files(count: int, folder: Path, fuzzers=FUZZERS) -> Tried:
    """Damaged and lying files of all formats."""
    tried, chance = Tried(), random.Random(count)
    for number in range(count):
        place = folder / f"{number}"
        place.mkdir()
        tried.add(*fuzzers[number % len(fuzzers)](chance, place))
        shutil.rmtree(place)
    return tried


def test_damaged_files(tmp_path):
    tried = try_files(350, tmp_path)
    assert tried.results == {"taken", "refused"}


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_twenty_thousand_files(tmp_path, capsys):
    tried = try_files(21_000, tmp_path)
    with capsys.disabled():
        print("", tried, sep="\n\n")
    assert tried.counts.total() == 21_000
