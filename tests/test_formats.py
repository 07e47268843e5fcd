"""Files that are not read: each is named as what it is, and its message has a line of Python that converts it."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import re
import struct
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

from common.data import load_data
from common.formats import remedy
from common.sources import arrays_in
from common.tables import is_table, read_table

import h5py
import joblib
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

random = np.random.default_rng(0)
X = random.integers(0, 256, (20, 4, 5), np.uint8)
X[0, 0, :2] = 0, 255
FLAT = X.reshape(20, 20)
Y = np.arange(20) % 3
WORDS = np.array(["cat", "dog", "ant"])[Y]
UNIT = (FLAT / 255).round(4)


def new_file(path: Path, message: str) -> Path:
    """The file that the message's line writes, and nothing else."""
    before = set(path.parent.rglob("*"))
    exec(message.split("in Python: ", 1)[1], {})
    (new,) = set(path.parent.rglob("*")) - before
    return new


def made(path: Path, message: str) -> dict:
    """The arrays of the .npz that the message's line writes."""
    new = new_file(path, message)
    assert new.suffix == ".npz"
    with np.load(new, allow_pickle=False) as arrays:
        return dict(arrays)


def idx(array, code=8):
    return struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape) + array.tobytes()


def text(x, header=None, before="", delimiter=" ", end="\n"):
    """A table's text; `before` begins each row."""
    lines = [] if header is None else [header]
    return "".join(line + end for line in [*lines, *(before + delimiter.join(map(str, row)) for row in x)]).encode()


def hdf5(**arrays):
    file = io.BytesIO()
    with h5py.File(file, "w") as stored:
        for key, array in arrays.items():
            stored[key] = array
    return file.getvalue()


def mat(**arrays):
    file = io.BytesIO()
    scipy.io.savemat(file, arrays)
    return file.getvalue()


def mat_73(**arrays):
    file = io.BytesIO()
    with h5py.File(file, "w", userblock_size=512) as stored:
        for key, array in arrays.items():
            stored[key] = np.atleast_2d(array).T
    return b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512) + file.getvalue()[512:]


def netcdf(x):
    file = io.BytesIO()
    with scipy.io.netcdf_file(file, "w") as stored:
        for side, length in zip("nhw", x.shape, strict=True):
            stored.createDimension(side, length)
        stored.createVariable("x", "f", tuple("nhw"))[:] = x
        stored.flush()
        return file.getvalue()


def saved(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def dumped(content, compress=0):
    file = io.BytesIO()
    joblib.dump(content, file, compress=compress)
    return file.getvalue()


def torched(content, legacy):
    torch = pytest.importorskip("torch")
    file = io.BytesIO()
    torch.save(content(torch), file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def picture(form, image=X[0]):
    file = io.BytesIO()
    Image.fromarray(image).save(file, form)
    return file.getvalue()


def zipped(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


PICTURES = {f"{word}/{at:02}.png": picture("PNG", image) for at, (word, image) in enumerate(zip(WORDS, X, strict=True))}
SPLIT = {"x_train": FLAT, "y_train": Y, "x_test": FLAT[:5], "y_test": Y[:5], "x_val": FLAT[5:8], "y_val": Y[5:8]}
THREE = ((FLAT, Y), (FLAT[5:8], Y[5:8]), (FLAT[:5], Y[:5]))
BOTH = {"x": FLAT, "y": Y}
IMAGES = {"x": X, "y": Y}

# What a file is said to be, its content, and the arrays of the .npz.
CASES = {
    "libsvm": ("LIBSVM", b"".join(b"%d 1:%d 3:1\n" % (y, 7) for y in Y), {"x": np.tile([7, 0, 1], (20, 1)), "y": Y}),
    "hdf5": ("an HDF5 file", hdf5(**IMAGES), IMAGES),
    "hdf5, lone": ("an HDF5 file", hdf5(pictures=X), {"x": X}),
    "hdf5, words": ("an HDF5 file", hdf5(x=X, y=WORDS.astype("S")), {"x": X, "y": WORDS}),
    "hdf5, packed": ("an HDF5 file, packed by gzip", gzip.compress(hdf5(**IMAGES)), IMAGES),
    "matlab 5": ("a MATLAB 5 file", mat(**IMAGES), IMAGES),
    "matlab 5, lone": ("a MATLAB 5 file", mat(ff=X), {"x": X}),
    "matlab 7.3": ("a MATLAB 7.3 file", mat_73(**IMAGES), IMAGES),
    "netcdf": ("a NetCDF file", netcdf(UNIT.reshape(X.shape)), {"x": UNIT.reshape(X.shape).astype("f4")}),
    "idx.bz2": ("an IDX file of shape (20, 4, 5), type u1, packed by bz2", bz2.compress(idx(X)), {"x": X}),
    "idx.xz": ("type >f4, packed by lzma", lzma.compress(idx(UNIT.astype(">f4"), 13)), {"x": UNIT.astype("f4")}),
    "npy.gz": ("an .npy file, packed by gzip", gzip.compress(saved(X)), {"x": X}),
    "json": ("a JSON file", json.dumps({"x": X.tolist(), "y": Y.tolist()}).encode(), IMAGES),
    "json list": ("a JSON file", json.dumps(UNIT.tolist()).encode(), {"x": UNIT}),
    "joblib": ("a joblib pickle, never", dumped(IMAGES), IMAGES),
    "joblib, packed": ("a joblib pickle, never", dumped(IMAGES, 3), IMAGES),
    "pickle of an array": ("a pickle, never", pickle.dumps(X), {"x": X}),
    "pickle of a pair": ("a pickle, never", pickle.dumps((X, Y)), IMAGES),
    "pickle of splits": ("a pickle, never", gzip.compress(pickle.dumps(THREE)), SPLIT),
    "pickle of lists": (
        "a pickle, never",
        pickle.dumps({"data": X, "labels": Y.tolist(), "from": None}, 2),
        IMAGES,
    ),
} | {
    f"pickle, protocol {protocol}": ("a pickle, never", pickle.dumps({"data": X, "labels": Y}, protocol), IMAGES)
    for protocol in range(6)
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["set.dat", "a$b  'OUT\" данные"])
def test_the_line_makes_the_arrays(case, name, tmp_path):
    said, content, arrays = CASES[case]
    path = tmp_path / name
    path.write_bytes(content)
    message = remedy(path)
    assert message.startswith("is a") and said in message
    assert message == " ".join(message.split()) and message.isprintable()  # as a DataError would change it
    found = made(path, message)
    assert found.keys() == arrays.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(found[key], array)
        assert array.dtype != np.uint8 or found[key].dtype in (np.uint8, np.int64)  # JSON has no types
    assert path.read_bytes() == content
    if "x_test" not in found and found["x"].dtype == np.uint8 and found.get("y", Y).dtype.kind in "iu":
        new = next(tmp_path.glob("*.npz"))
        assert load_data(str(new)).x_train.shape == (16, *found["x"].shape[1:])


TABLE = UNIT[:, :3].tolist()
COLUMNS = pd.DataFrame({"a": UNIT[:, 0], "b": UNIT[:, 1] - 5, "label": WORDS})
PLAIN = pd.DataFrame(TABLE, columns=["x0", "x1", "x2"])
NAMED = COLUMNS.to_csv(sep=" ", index=False)
TABLES = {  # texts of tables whose cells are separated by blanks, and these tables
    "names": (NAMED.encode(), COLUMNS),
    "no names": (text(TABLE), PLAIN),
    "old mac": (text(TABLE, end="\r"), PLAIN),
    "columns that are aligned": (COLUMNS.to_string(index=False).encode(), COLUMNS),
    "indented, tabs": (text(TABLE, before="  ", delimiter=" \t "), PLAIN),
    "one column": (text(UNIT[:, :1]), PLAIN[["x0"]]),
    "one column with a name": (text(UNIT[:, :1], header="height"), PLAIN[["x0"]].set_axis(["height"], axis=1)),
    "a comment": (text(TABLE, header="# made in 2020"), PLAIN),
    "a comment and names": (b"# made in 2020\n\n" + NAMED.encode(), COLUMNS),
    "words without names": (text(UNIT[:, :2], before="cat "), PLAIN[["x0", "x1"]].set_axis(["x1", "x2"], axis=1)),
    "names of rows, as R writes": (COLUMNS.to_csv(sep=" ", quoting=2).replace('"" ', "", 1).encode(), COLUMNS),
    "words with blanks": (NAMED.replace("cat", '"a cat"').encode(), COLUMNS.replace("cat", "a cat")),
    "utf-16": (NAMED.encode("utf-16"), COLUMNS),
    "latin": (NAMED.replace("a ", "gr\xfcn ", 1).encode("latin-1"), COLUMNS.rename(columns={"a": "gr\xfcn"})),
    "gzip": (gzip.compress(NAMED.encode()), COLUMNS),
    "bz2": (bz2.compress(text(TABLE)), PLAIN),
    "xz": (lzma.compress(NAMED.encode("utf-16")), COLUMNS),
}


@pytest.mark.parametrize("case", TABLES)
def test_the_line_makes_a_csv(case, tmp_path):
    content, table = TABLES[case]
    path = tmp_path / "a$b  'NEW\" table.txt"
    path.write_bytes(content)
    message = remedy(path)
    assert message.startswith("is a table of numbers separated by blanks") and message == " ".join(message.split())
    check_table(new_file(path, message), path.with_suffix(".csv"), table)


def check_table(new: Path, path: Path, table):
    """The new file is at the path, and is taken as a table with these columns."""
    assert new == path and is_table(new)
    pd.testing.assert_frame_equal(read_table(new)[table.columns], table, check_dtype=path.suffix == ".parquet")
    assert load_data(str(new)).x_train.shape[0] == 16


@pytest.mark.parametrize("packed", [bz2.compress, lzma.compress])
def test_a_packed_csv_is_unpacked_and_then_read(packed, tmp_path):
    (tmp_path / "a.csv.packed").write_bytes(packed(COLUMNS.to_csv(index=False).encode()))
    check_table(new_file(tmp_path / "a.csv.packed", remedy(tmp_path / "a.csv.packed")), tmp_path / "a.csv", COLUMNS)


@pytest.mark.parametrize(
    "content", [text([["a", 1], ["b"]]), text([[1, 2, 3], [4, 5]]), text([["a", "b"], [1, 2], ["c", "d"]])]
)
def test_other_texts_are_no_tables(content, tmp_path):
    (tmp_path / "a").write_bytes(content)
    assert remedy(tmp_path / "a").startswith("is a text file, not a table of numbers; give images")


def test_rows_of_20000_numbers_are_seen(tmp_path):
    path = tmp_path / "genes"
    path.write_bytes(text(random.random((12, 20_000))))
    assert read_table(new_file(path, remedy(path))).shape == (12, 20_000)


@pytest.mark.parametrize("table", [COLUMNS, COLUMNS.astype({"label": "category"}).drop(columns="b"), PLAIN])
def test_an_arrow_table_becomes_parquet(table, tmp_path):
    path = tmp_path / "a$b  'PARQUET\" table.feather"
    table.to_feather(path)
    message = remedy(path)
    assert message.startswith("is an Arrow file; make a Parquet table of it")
    check_table(new_file(path, message), path.with_suffix(".parquet"), table)
    with pytest.raises(FileExistsError):
        exec(message.split("in Python: ")[1], {})


@pytest.mark.parametrize("real", [True, False])
def test_an_excel_table_becomes_a_csv(real, tmp_path, monkeypatch):
    """A column with words and numbers is taken. pandas reads the file by a package that may not be there."""
    table = COLUMNS.assign(size=[1, "large"] * 10)
    path = tmp_path / "table.xlsx"
    if real:
        pytest.importorskip("openpyxl")
        table.to_excel(path, index=False)
    else:
        path.write_bytes(OTHERS["an Excel table"])
        monkeypatch.setattr(pd, "read_excel", lambda path: table)
    message = remedy(path)
    assert message.startswith("is an Excel table; make a CSV table of it")
    check_table(new_file(path, message), tmp_path / "table.csv", table.astype({"size": str}))


COUNTS = random.poisson(2, (20, 7)).astype(np.float32)


@pytest.mark.parametrize("real", [True, False])
@pytest.mark.parametrize("stored", [np.asarray, scipy.sparse.csr_matrix, scipy.sparse.csc_matrix])
def test_anndata_becomes_a_sparse_matrix(stored, real, tmp_path, monkeypatch):
    """With words beside its counts, it is no .npz of arrays. The package anndata may not be there."""
    path = tmp_path / "cells.h5ad"
    if real:
        anndata = pytest.importorskip("anndata")
        with pd.option_context("future.infer_string", False):  # anndata 0.12 writes no strings of pandas 3
            anndata.AnnData(stored(COUNTS), obs=pd.DataFrame({"cell": WORDS})).write_h5ad(path)
    else:
        path.write_bytes(hdf5(X=COUNTS))
        anndata = SimpleNamespace(read_h5ad=lambda path: SimpleNamespace(X=stored(COUNTS)))
        monkeypatch.setitem(sys.modules, "anndata", anndata)
    message = remedy(path)
    assert message.startswith("is an AnnData file; make an .npz of it")
    check_matrix(new_file(path, message))


def test_loom_becomes_a_sparse_matrix_of_cells(tmp_path):
    """Its rows are genes, which are columns here."""
    path = tmp_path / "cells.loom"
    path.write_bytes(hdf5(**{"matrix": COUNTS.T, "col_attrs/cell": WORDS.astype("S")}))
    message = remedy(path)
    assert message.startswith("is a Loom file; make an .npz of it")
    check_matrix(new_file(path, message))


def check_matrix(new: Path):
    assert new.name == "cells.npz"
    np.testing.assert_array_equal(scipy.sparse.load_npz(new).toarray(), COUNTS)
    assert load_data(str(new), likelihood="negative_binomial").x_train.shape == (16, 8)


@pytest.mark.parametrize("legacy", [False, True])
def test_pytorch_files(legacy, tmp_path):
    path = tmp_path / "training.pt"
    path.write_bytes(torched(lambda torch: (torch.tensor(X), torch.tensor(Y)), legacy))
    message = remedy(path)
    assert message.startswith("is a PyTorch file, never loaded here")
    found = made(path, message)
    np.testing.assert_array_equal(found["x"], X)
    np.testing.assert_array_equal(found["y"], Y)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("PNG", "PNG"),
        ("JPEG", "JPEG"),
        ("GIF", "GIF"),
        ("BMP", "BMP"),
        ("TIFF", "TIFF"),
        ("WEBP", "WebP"),
        ("PPM", "PGM"),
    ],
)
def test_one_picture_is_one_image(form, said, tmp_path):
    path = tmp_path / f"0.{'jpg' if form == 'JPEG' else form.lower()}"
    path.write_bytes(picture(form))
    assert re.fullmatch(f"is a {said}.* picture; it is one image; give its folder, {str(tmp_path)!r}", remedy(path))
    with arrays_in(tmp_path) as arrays:
        assert arrays["x"].read().shape[:3] == (1, 4, 5)  # lossy formats make grey colourful


def test_labels_beside_packed_images_are_taken(tmp_path):
    """As the four files of MNIST are called; labels alone, and labels of other images, are not."""
    images, labels = (tmp_path / f"train-{name}-ubyte.bz2" for name in ("images-idx3", "labels-idx1"))
    images.write_bytes(bz2.compress(idx(X)))
    labels.write_bytes(bz2.compress(idx(Y.astype(np.uint8))))
    found = made(images, remedy(images))
    np.testing.assert_array_equal(found["x"], X)
    np.testing.assert_array_equal(found["y"], Y)
    assert "an IDX file of 20 labels, without images" in remedy(labels)
    labels.write_bytes(bz2.compress(idx(Y[:9].astype(np.uint8))))
    assert made(images, remedy(images)).keys() == {"x"}


@pytest.mark.parametrize(("content", "suffix"), [(hdf5(**IMAGES), ".npz"), (text(TABLE), ".csv")])
def test_no_file_is_overwritten(content, suffix, tmp_path):
    path = (tmp_path / "set").with_suffix(suffix)  # as a download is called at times
    path.write_bytes(content)
    message = remedy(path)
    assert new_file(path, message).name == f"set_2{suffix}"
    with pytest.raises(FileExistsError):
        exec(message.split("in Python: ")[1], {})
    assert path.read_bytes() == content


def tarred(mode):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in PICTURES.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


@pytest.mark.parametrize(
    ("said", "content"),
    [
        ("is a tar archive;", tarred("w")),
        ("is a tar archive, packed by gzip;", tarred("w:gz")),
        ("is packed by gzip;", gzip.compress(zipped(PICTURES))),
        ("is packed by lzma;", lzma.compress(picture("PNG"))),
        ("is a zip archive of pictures;", zipped(PICTURES)),
        ("is a zip archive without arrays", zipped({"notes.txt": b"text"})),
    ],
)
def test_archives_are_unpacked_by_their_line(said, content, tmp_path):
    path = tmp_path / "set.archive"
    path.write_bytes(content)
    message = remedy(path)
    assert message.startswith(said) and "unpack it" in message
    exec(message.split("in Python: ")[1], {})
    assert (tmp_path / "set").exists() and path.read_bytes() == content


OTHERS = {  # what a file is said to be: its first bytes
    "empty (0 bytes)": b"",
    "a web page: the download failed": b"\n<!DOCTYPE html><html>",
    "an XML file, not images": b"<?xml version='1.0'?>",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
    "a text file": b"Once upon a time, there was a set.\nIt had no numbers.\n",
    "a safetensors file": struct.pack("<Q", 60) + b'{"x":{"dtype":"U8"',
    "an Arrow file": b"ARROW1\0\0",
    "a FITS file": b"SIMPLE  =                    T",
    "a NIfTI file": bytes(344) + b"n+1\0",
    "a DICOM picture": bytes(128) + b"DICM",
    "a HEIC or AVIF picture": b"\0\0\0\x20ftypheic",
    "an audio file, not images": b"RIFF\0\0\1\0WAVEfmt ",
    "a video, not images": b"\0\0\0\x20ftypisom",
    "a PDF document, not images": b"%PDF-1.7",
    "an SQLite database": b"SQLite format 3\0",
    "a file packed by zstd": b"\x28\xb5\x2f\xfd\0",
    "a RAR archive": b"Rar!\x1a\x07\0",
    "a 7z archive": b"7z\xbc\xaf\x27\x1c",
    "a Keras model, not images": zipped({"config.json": b"{}", "model.weights.h5": b""}),
    "an Excel table": zipped({"[Content_Types].xml": b"", "xl/workbook.xml": b""}),
    "a Word or PowerPoint document": zipped({"word/document.xml": b""}),
    "a zip archive without arrays": zipped({"\n": b""}),
    "a damaged zip archive": zipped(PICTURES)[:-30],
    "packed by gzip, and empty or damaged": b"\x1f\x8b\x08\xff\xff",
    "labels, without images": idx(Y.astype(np.uint8)),
}


@pytest.mark.parametrize("said", OTHERS)
def test_others_are_named(said, tmp_path):
    path = tmp_path / "set"
    path.write_bytes(OTHERS[said])
    message = remedy(path)
    assert message.startswith("is ") and said in message
    if "in Python: " in message:  # its package may not be there
        compile(message.split("in Python: ")[1], "line", "exec")


def test_what_is_known_by_nothing_is_not_named(tmp_path):
    path = tmp_path / "set"
    path.write_bytes(bytes(range(128, 256)) * 9)
    assert remedy(path) is None
    np.savez(tmp_path / "a.npz", x=X)
    np.savez(tmp_path / "none.npz")
    np.save(tmp_path / "a.npy", X)
    os.mkfifo(tmp_path / "pipe")
    for name in ("a.npz", "none.npz", "a.npy", "pipe", "nowhere", "."):
        assert remedy(tmp_path / name) is None


class Trap:
    """Pickled, it is a call that touches a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_run(protocol, tmp_path):
    content = pickle.dumps(Trap(tmp_path / "touched"), protocol)
    for number, held in enumerate(
        (content, gzip.compress(content), zipped({"a/data.pkl": content}), dumped(Trap(tmp_path / "touched")))
    ):
        path = tmp_path / f"{number}.pkl"
        path.write_bytes(held)
        assert "never loaded here, since a pickle can run code" in remedy(path)
    assert not (tmp_path / "touched").exists()
    pickle.loads(content)
    assert (tmp_path / "touched").exists()  # so it was a trap


CONTENTS = [case[-2] for case in (*CASES.values(), *TABLES.values())] + [*OTHERS.values(), tarred("w:gz")]
PACKED = st.sampled_from([bytes, gzip.compress, bz2.compress, lzma.compress])


@st.composite
def damaged(draw):
    """A file of some kind, with bytes changed, cut out or cut off, perhaps packed; or any bytes, any text."""
    content = draw(st.sampled_from(CONTENTS) | st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, min(len(content), draw(st.sampled_from([16, 600, 10**6])))))
        content = content[:at] + draw(st.binary(max_size=4)) + content[at + draw(st.sampled_from([0, 1, 4, 10**6])) :]
    return draw(PACKED)(content)


@given(content=damaged())
@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_damaged_files_are_named_or_not_but_raise_nothing(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    message = remedy(path)
    assert message is None or (message.startswith("is ") and message == " ".join(message.split()))
    if message and "in Python: " in message:
        compile(message.split("in Python: ")[1], "line", "exec")
    assert path.read_bytes() == content
