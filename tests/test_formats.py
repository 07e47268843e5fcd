"""Files that are no .npz: each is named as what it is, and the line of Python that its message gives makes an .npz."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import re
import struct
import tarfile
import zipfile
from pathlib import Path

from common.data import load_data
from common.formats import remedy
from common.sources import arrays_in

import h5py
import joblib
import numpy as np
import pytest
import scipy.io
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


def made(path: Path, message: str) -> dict:
    """The arrays that the message's line makes; nothing else is written, but what the line says."""
    before = set(path.parent.rglob("*"))
    exec(message.split("in Python: ", 1)[1], {})
    (new,) = set(path.parent.rglob("*")) - before
    assert new.suffix == ".npz"
    with np.load(new, allow_pickle=False) as arrays:
        return dict(arrays)


def idx(array, code=8):
    return struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape) + array.tobytes()


def csv(x, y=None, header=True, delimiter=",", end="\r\n", last=False, label="label", shown=str):
    names = [f"pixel{at}" for at in range(x.shape[1])]
    rows = [[shown(value) for value in row] for row in x.tolist()]
    if y is not None:
        columns = [label, *(str(value) for value in y)]
        rows = [[*row, cell] if last else [cell, *row] for row, cell in zip(rows, columns[1:], strict=True)]
        names = [*names, label] if last else [label, *names]
    return "".join(delimiter.join(row) + end for row in ([names] if header else []) + rows).encode()


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
SQUARE = random.integers(0, 256, (20, 16), np.uint8)
SPLIT = {"x_train": FLAT, "y_train": Y, "x_test": FLAT[:5], "y_test": Y[:5], "x_val": FLAT[5:8], "y_val": Y[5:8]}
THREE = ((FLAT, Y), (FLAT[5:8], Y[5:8]), (FLAT[:5], Y[:5]))
BOTH = {"x": FLAT, "y": Y}
NAMED = {"x": FLAT, "y": WORDS}
IMAGES = {"x": X, "y": Y}

# What a file is said to be, its content, and the arrays of the .npz.
CASES = {
    "csv": ("a CSV table with labels in column 1", csv(FLAT, Y), BOTH),
    "csv, unix": ("a CSV table with labels", csv(FLAT, Y, end="\n"), BOTH),
    "csv, old mac": ("a CSV table with labels", csv(FLAT, Y, end="\r"), BOTH),
    "csv, label last": ("a CSV table with labels in column 21", csv(FLAT, Y, last=True, label="Target"), BOTH),
    "csv, no labels": ("a CSV table;", csv(FLAT), {"x": FLAT}),
    "csv, no header": ("a CSV table;", csv(FLAT, header=False), {"x": FLAT}),
    "csv, square": ("labels in column 1;", csv(SQUARE, Y, header=False), {"x": SQUARE, "y": Y}),
    "csv, words": ("a CSV table with labels", csv(FLAT, WORDS, label="species", last=True), NAMED),
    "csv, words, no header": ("a CSV table with labels", csv(FLAT, WORDS, header=False), NAMED),
    "csv, quoted": ("a CSV table with labels", csv(FLAT, [f'"{w}, a"' for w in WORDS], label='"y"'), None),
    "csv, floats": ("a CSV table with labels", csv(UNIT, Y), {"x": UNIT, "y": Y}),
    "csv, float labels": ("a CSV table with labels", csv(UNIT, Y.astype(float)), {"x": UNIT, "y": Y}),
    "csv, no classes": ("(without column 1: its values number no classes)", csv(FLAT, Y + 0.5), {"x": FLAT}),
    "csv, bom": ("a CSV table with labels", b"\xef\xbb\xbf" + csv(FLAT, Y), BOTH),
    "csv, utf-16": ("table separated by tabs", csv(FLAT, Y, delimiter="\t").decode().encode("utf-16"), BOTH),
    "csv, latin": ("a CSV table with labels", csv(FLAT, Y).replace(b"pixel0,", b"gr\xfcn,"), BOTH),
    "csv, pandas": ("a CSV table;", csv(FLAT, range(20), label="").replace(b"pixel", b""), {"x": FLAT}),
    "csv, numbered": ("a CSV table;", csv(FLAT).replace(b"pixel", b""), {"x": FLAT}),
    "csv, comment": ("a CSV table with labels", b"# of 2020\n\n" + csv(FLAT, Y), BOTH),
    "csv, beyond uint8": ("a CSV table;", csv(np.vstack([FLAT.astype(int)] * 2 + [FLAT.astype(int) + 300])), None),
    "csv, binary": ("a CSV table;", csv((FLAT > 99).astype(int)), {"x": (FLAT > 99).astype(float)}),
    "csv, trailing comma": ("a CSV table;", csv(FLAT, end=",\n", header=False), {"x": FLAT}),
    "csv, missing": ("a CSV table;", csv(UNIT).replace(b"\n" + str(UNIT[0, 0]).encode(), b"\n", 1), None),
    "tsv": ("a table separated by tabs (TSV)", csv(FLAT, Y, delimiter="\t"), BOTH),
    "semicolons": ("a CSV table with semicolons", csv(FLAT, Y, delimiter=";"), BOTH),
    "decimal commas": (
        "a CSV table with semicolons",
        csv(UNIT, Y, delimiter=";", shown=lambda value: str(value).replace(".", ",")),
        {"x": UNIT, "y": Y},
    ),
    "spaces": ("a table of numbers", csv(UNIT, header=False, delimiter=" "), {"x": UNIT}),
    "one column": ("a table of numbers", csv(UNIT[:, :1], header=False), {"x": UNIT[:, :1]}),
    "libsvm": ("LIBSVM", b"".join(b"%d 1:%d 3:1\n" % (y, 7) for y in Y), {"x": np.tile([7, 0, 1], (20, 1)), "y": Y}),
    "csv.gz": ("a CSV table with labels in column 1, packed by gzip", gzip.compress(csv(FLAT, Y)), BOTH),
    "csv.bz2": ("packed by bz2", bz2.compress(csv(FLAT, Y)), BOTH),
    "csv.xz": ("packed by lzma", lzma.compress(csv(FLAT, Y)), BOTH),
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
    if arrays is None:
        return
    found = made(path, message)
    assert found.keys() == arrays.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(found[key], array)
        assert array.dtype != np.uint8 or found[key].dtype in (np.uint8, np.int64)  # JSON has no types
    assert path.read_bytes() == content
    if "x_test" not in found and found["x"].dtype == np.uint8 and found.get("y", Y).dtype.kind in "iu":
        new = next(tmp_path.glob("*.npz"))
        assert load_data(str(new)).x_train.shape == (16, *found["x"].shape[1:])


def test_a_line_takes_a_table_as_pixels_only_if_all_of_it_is(tmp_path):
    """Its first rows are whole numbers to 255, one that was not looked at is 300 more."""
    (tmp_path / "a.csv").write_bytes(CASES["csv, beyond uint8"][1])
    x = made(tmp_path / "a.csv", remedy(tmp_path / "a.csv"))["x"]
    assert x.dtype == float and x.max() > 255


def test_missing_and_quoted_cells_are_read(tmp_path):
    (tmp_path / "a.csv").write_bytes(CASES["csv, missing"][1])
    x = made(tmp_path / "a.csv", remedy(tmp_path / "a.csv"))["x"]
    assert np.isnan(x).sum() == 1
    (tmp_path / "b.csv").write_bytes(CASES["csv, quoted"][1])
    arrays = made(tmp_path / "b.csv", remedy(tmp_path / "b.csv"))
    np.testing.assert_array_equal(arrays["x"], FLAT)
    np.testing.assert_array_equal(arrays["y"], [f"{word}, a" for word in WORDS])
    (tmp_path / "c.csv").write_bytes(csv(UNIT, WORDS).replace(b",0.", b",", 1).replace(b"\r\ncat,", b"\r\ncat,,", 1))
    assert (
        remedy(tmp_path / "c.csv") == "is a text file, not a table of numbers; give images, as .npz or .npy"
    )  # ragged
    content = csv(UNIT, WORDS).replace(b",%s," % str(UNIT[1, 1]).encode(), b",,", 1)
    (tmp_path / "d.csv").write_bytes(content)
    arrays = made(tmp_path / "d.csv", remedy(tmp_path / "d.csv"))
    assert np.isnan(arrays["x"]).sum() == 1
    np.testing.assert_array_equal(arrays["y"], WORDS)


def test_rows_of_20000_numbers_are_seen(tmp_path):
    path = tmp_path / "genes.csv"
    path.write_bytes(csv(random.random((12, 20_000)), range(12)))
    found = made(path, remedy(path))
    assert found["x"].shape == (12, 20_000)
    np.testing.assert_array_equal(found["y"], range(12))


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


def test_no_file_is_overwritten(tmp_path):
    path = tmp_path / "set.npz"  # as a download is called at times
    path.write_bytes(csv(FLAT, Y))
    message = remedy(path)
    assert "set_2.npz" in message
    made(path, message)
    with pytest.raises(FileExistsError):
        exec(message.split("in Python: ")[1], {})
    assert path.read_bytes() == csv(FLAT, Y)


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
    "a Parquet file": b"PAR1\x15\x04",
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


def test_an_excel_table_is_read_as_pandas_reads_it(tmp_path, monkeypatch):
    """pandas reads the three kinds of table, each with a package of its own."""
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(FLAT).assign(Label=Y)
    for name, said in {
        "read_excel": "an Excel table",
        "read_parquet": "a Parquet file",
        "read_feather": "an Arrow file",
    }.items():
        monkeypatch.setattr(pandas, name, lambda path: table)
        path = tmp_path / name
        path.write_bytes(OTHERS[said])
        found = made(path, remedy(path))
        np.testing.assert_array_equal(found["x"], FLAT)
        np.testing.assert_array_equal(found["y"], Y)


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


CONTENTS = [content for _, content, _ in CASES.values()] + [*OTHERS.values(), tarred("w:gz")]
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
