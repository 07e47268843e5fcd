"""Files in formats that are not read: recognises each by its first bytes, and says how to convert it."""

import bz2
import codecs
import contextlib
import csv
import lzma
import re
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

HEAD = 2**20  # bytes to read from a file: a row of a table can be long
ROWS = 20  # how many rows of a table are looked at
IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
PACKERS = {  # magic bytes: the module that opens a packed file, and a function that unpacks its first HEAD bytes
    b"\x1f\x8b": ("gzip", lambda head: zlib.decompressobj(31).decompress(head, HEAD)),
    b"BZh": ("bz2", lambda head: bz2.BZ2Decompressor().decompress(head, HEAD)),
    b"\xfd7zXZ\0": ("lzma", lambda head: lzma.LZMADecompressor(memlimit=2**27).decompress(head, HEAD)),
}

# In these lines of Python, OUT is the new .npz, and PARQUET a new .parquet, opened so that no file is overwritten. NEW
# is the name of a new .csv, PATH the file's name, FILE the open file, SOURCE either of them. A line with PATH cannot
# read a packed file. `Opened.filled` replaces the words.
MAKE = "make an .npz of it in Python: "
ARRAYS = "; np.savez(OUT, **dict(zip(d if len(d) > 1 else ['x'], d.values())))"  # a lone array is x
HDF5 = (
    "import h5py, numpy as np; d = {}; h5py.File(SOURCE).visititems(lambda k, v: d.update({k: v[()] if "
    "v.dtype.kind in 'biuf' else np.array(v.asstr()[()], str)}) if isinstance(v, h5py.Dataset) and k[0] != '#' "
    "and (v.dtype.kind in 'biuf' or h5py.check_string_dtype(v.dtype)) else None)"
)
MATLAB = (
    "import numpy as np, scipy.io; d = {k: v for k, v in scipy.io.loadmat(SOURCE, squeeze_me=True).items() "
    "if isinstance(v, np.ndarray) and v.dtype.kind in 'biufU'}"
)
LAST_AXIS = " # images along the last axis: np.moveaxis(x, -1, 0)"
NETCDF = (
    "import numpy as np, scipy.io; d = {k: v[...] for k, v in scipy.io.netcdf_file(FILE, mmap=False).variables.items()}"
)
SAFETENSORS = "import numpy as np; from safetensors.numpy import load_file; d = load_file(PATH)"
FITS = "import numpy as np; from astropy.io import fits; x = fits.getdata(FILE).astype('f4'); np.savez(OUT, x=x)"
NIFTI = "import numpy as np, nibabel; x = np.moveaxis(nibabel.load(PATH).get_fdata(), -1, 0); np.savez(OUT, x=x)"
DICOM = "one image; stack many: np.stack([pydicom.dcmread(p).pixel_array for p in paths]) (pip install pydicom)"
OBJECTS = (  # for a dictionary, an array, a pair (x, y), or pairs for training, test and perhaps validation
    "; d = d if isinstance(d, dict) else {'x': d} if not isinstance(d, tuple) else dict(zip(('x', 'y'), d)) "
    "if not isinstance(d[0], tuple) else dict(zip(('x_train', 'y_train', 'x_test', 'y_test', 'x_val', 'y_val'), "
    "d[0] + d[-1] + sum(d[1:-1], ()))); d = {{'data': 'x', 'labels': 'y'}.get(k, str(k)): np.asarray(v) "
    "for k, v in d.items()}; np.savez(OUT, **{k: v for k, v in d.items() if v.dtype != object})"
)
TO_CSV = ".to_csv(NEW, mode='x', index=False)"
MAKE_CSV = "make a CSV table of it in Python: import pandas as pd; pd."
FEATHER = "make a Parquet table of it in Python: import pandas as pd; pd.read_feather(PATH).to_parquet(PARQUET)"
MATRIX = MAKE + "import {}, scipy.sparse; scipy.sparse.save_npz(OUT, scipy.sparse.csr_matrix({}))"
NEVER, TRUST = ", never loaded here, since a pickle can run code", "if you trust it, " + MAKE
JSON = "import json, numpy as np; d = json.load(FILE)"
TORCH = TRUST + "import torch, numpy as np; d = torch.load(FILE, weights_only=True)" + OBJECTS
JOBLIB = TRUST + "import joblib, numpy as np; d = joblib.load(FILE)" + OBJECTS
PICKLE = TRUST + "import pickle, numpy as np; d = pickle.load(FILE, encoding='latin1')" + OBJECTS
ONE = "it is one image; give its folder, AROUND"
LIBSVM = (
    "import numpy as np; from sklearn.datasets import load_svmlight_file; x, y = load_svmlight_file(FILE); "
    "np.savez(OUT, x=x.toarray(), y=y.astype(int))"
)
GIVE = "give images, a table or counts, as docs/data.md says"
UNPACK = "unpack it, and give its content"
UNZIP = UNPACK + "; in Python: import zipfile; zipfile.ZipFile(PATH).extractall(STEM)"

# fmt: off
FORMATS = [  # a regular expression for the first bytes, what the file is, what to do; the first match counts
    (rb"\x93NUMPY", "an .npy file", MAKE + "import numpy as np; x = np.load(FILE); np.savez(OUT, x=x)"),
    (rb"MATLAB 7\.3 MAT", "a MATLAB 7.3 file (HDF5)",
        MAKE + HDF5.replace("v[()]", "v[()].T.squeeze()") + ARRAYS + LAST_AXIS),
    (rb"MATLAB 5\.0 MAT", "a MATLAB 5 file", MAKE + MATLAB + ARRAYS + LAST_AXIS),
    (rb"(.{512})?\x89HDF\r\n\x1a\n", "an HDF5 file", MAKE + HDF5 + ARRAYS),
    (rb"CDF[\x01\x02]", "a NetCDF file", MAKE + NETCDF + ARRAYS),
    (rb"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.", "a PyTorch file" + NEVER, TORCH),
    (rb"(?=.{,500}joblib)\x80[\x02-\x05]|ZF0x|\x78[\x01\x5e\x9c\xda]", "a joblib pickle" + NEVER, JOBLIB),
    (rb"\x80[\x02-\x05]|\(?([dl]p\d+\r?\n|c[\w.]+\r?\n[\w.]+\r?\n|[}\]]q.)", "a pickle" + NEVER, PICKLE),
    (rb'.{5}\0{3}\{\s*"', "a safetensors file", MAKE + SAFETENSORS + ARRAYS + " # pip install safetensors"),
    (rb"ARROW1|FEA1", "an Arrow file", FEATHER),
    (rb"SIMPLE  = ", "a FITS file", MAKE + FITS + " # pip install astropy"),
    (rb".{344}(n\+1|ni1)\0", "a NIfTI file", MAKE + NIFTI + " # pip install nibabel"),
    (rb".{128}DICM", "a DICOM picture", DICOM),
    (rb"\x89PNG\r\n\x1a\n", "a PNG picture", ONE),
    (rb"\xff\xd8\xff", "a JPEG picture", ONE),
    (rb"GIF8[79]a", "a GIF picture", ONE),
    (rb"BM.{4}\0{4}", "a BMP picture", ONE),
    (rb"II[*+]\0|MM\0[*+]", "a TIFF picture", ONE),
    (rb"RIFF.{4}WEBP", "a WebP picture", ONE),
    (rb"P[1-6]\s+(#[^\n]*\n\s*)?\d+\s+\d+\s", "a PGM or PPM picture", ONE),
    (rb".{4}ftyp(hei|avi|mif1)", "a HEIC or AVIF picture", "save pictures as PNG, and give their folder"),
    (rb"RIFF.{4}WAVE|fLaC|OggS|ID3[\x02-\x04]|\xff[\xfb\xf3\xf2]", "an audio file, not images", GIVE),
    (rb"RIFF.{4}AVI |.{4}ftyp|\x1aE\xdf\xa3", "a video, not images", "save its frames as PNG in a folder"),
    (rb"%PDF-", "a PDF document, not images", GIVE),
    (rb"SQLite format 3\0", "an SQLite database, not images", GIVE),
    (rb"\s*(?i:<!doctype html|<html)", "a web page: the download failed", "download the file itself"),
    (rb"\s*<(\?xml|svg)", "an XML file, not images", GIVE),
    (rb"version https://git-lfs", "a Git LFS pointer: the file itself is elsewhere", "fetch it with `git lfs pull`"),
    (rb'\s*(\{\s*["}]|\[\s*[\[{"\d.-])', "a JSON file", MAKE + JSON + OBJECTS),
    (rb".{257}ustar", "a tar archive", "unpack it, and give its folder or file; in Python: import tarfile; "
        "tarfile.open(ARCHIVE).extractall(STEM, filter='data')"),
    (rb"\x28\xb5\x2f\xfd", "a file packed by zstd", UNPACK + " (zstd -d)"),
    (rb"Rar!\x1a\x07", "a RAR archive", UNPACK + " (unrar x)"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK + " (7z x)"),
]
ZIPS = [  # the same for archives, where the expression is for the names of their files, one per line
    (rb"(?m)^([^/\n]+/)?data\.pkl$", "a PyTorch file" + NEVER, TORCH),
    (rb"(?m)^model\.weights\.h5$", "a Keras model, not images", GIVE),
    (rb"(?m)^xl/workbook\.", "an Excel table", MAKE_CSV + "read_excel(PATH)" + TO_CSV + " # pip install openpyxl"),
    (rb"(?m)^(word|ppt)/", "a Word or PowerPoint document, not images", GIVE),
    (rb"(?mi)\.(png|jpe?g|gif|bmp|tiff?|webp|p[gp]m)$", "a zip archive of pictures", UNZIP),
    (rb"", "a zip archive without arrays", UNZIP),
]
HDF5_SUFFIXES = {  # what an HDF5 file with this suffix is, and what to do
    ".h5ad": ("an AnnData file", MATRIX.format("anndata", "anndata.read_h5ad(PATH).X") + " # pip install anndata"),
    ".loom": ("a Loom file", MATRIX.format("h5py", "h5py.File(SOURCE)['matrix'][()].T") + " # pip install h5py"),
}
# fmt: on


class Opened(NamedTuple):
    """A file's first bytes, unpacked if it is packed; the module that unpacks it; whether these are all its bytes."""

    path: Path
    head: bytes
    packer: str = ""
    complete: bool = False

    def filled(self, line: str) -> str:
        """A line of the tables above with this file's names in it, so that it runs unchanged."""
        name, packer = quoted(self.path), self.packer
        stem = self.path.with_suffix("")
        opened = f"{packer}.open({name})" if packer else f"open({name}, 'rb')"
        words = {
            "OUT": f"open({quoted(unused(stem, '.npz'))}, 'xb')",
            "PARQUET": f"open({quoted(unused(stem, '.parquet'))}, 'xb')",
            "NEW": quoted(unused(stem, ".csv")),
            "STEM": quoted(unused(stem, "")),
            "PATH": name,
            "AROUND": quoted(self.path.parent),
            "ARCHIVE": name,
            "FILE": opened,
            "SOURCE": opened if packer else name,
        }
        if packer and re.search(r"\b(FILE|SOURCE)\b", line):
            line = line.replace("import ", f"import {packer}, ", 1)
        return re.sub(r"\b[A-Z]+\b", lambda word: words.get(word[0], word[0]), line)


def unused(stem: Path, suffix: str) -> Path:
    """`stem` with a suffix, and with a number if that file exists already."""
    stem = stem if stem.name not in ("", "..") else stem.resolve()
    stem = stem if stem.name else Path("images")  # the root folder has no name
    names = (stem.with_name(f"{stem.name}{number}{suffix}") for number in ("", *(f"_{n}" for n in range(2, 1000))))
    return next((name for name in names if not name.exists()), stem.with_name(f"{stem.name}_new{suffix}"))


def quoted(path: Path) -> str:
    """The name as Python reads it. Spaces side by side are escaped: a message keeps only one of them."""
    return re.sub(" (?= )|(?<= ) ", r"\\x20", repr(str(path)))


def remedy(path: Path) -> str | None:
    """What a file is, and how to convert it: one line, to be read after its path.

    Only first bytes are read, and of an archive the names in it. Nothing is executed. None for an .npz, an .npy, a
    folder, a pipe, or an unknown format.
    """
    path = Path(path)
    with contextlib.suppress(OSError):  # if it cannot be read, its reader has a message for that
        if path.is_file():
            return of_file(path)
    return None


def opened(path: Path) -> Opened:
    """A file's first bytes; no bytes if the file is packed and damaged."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    for magic, (module, unpack) in PACKERS.items():
        if head.startswith(magic):
            try:
                return Opened(path, unpack(head), module)
            except (OSError, EOFError, ValueError, MemoryError, zlib.error, lzma.LZMAError):
                return Opened(path, b"", module)
    return Opened(path, head, complete=len(head) < HEAD)


def of_file(path: Path) -> str | None:
    """`remedy` of a file."""
    file = opened(path)
    if not file.head:
        what = f"is packed by {file.packer}, and empty or damaged" if file.packer else "is empty (0 bytes)"
        return f"{what}; copy or download it again"
    if file.packer:
        return of_bytes(file) or f"is packed by {file.packer}; " + file.filled(
            f"{UNPACK}; in Python: import shutil, {file.packer}; "
            f"shutil.copyfileobj({file.packer}.open(ARCHIVE), open(STEM, 'xb'))"
        )
    if file.head.startswith(b"\x93NUMPY"):
        return None
    return of_zip(file) if file.head.startswith((b"PK\3\4", b"PK\5\6", b"PK\7\x08")) else of_bytes(file)


def of_zip(file: Opened) -> str | None:
    """`remedy` of a zip archive: None if it holds arrays, or is empty."""
    try:
        with zipfile.ZipFile(file.path) as archive:
            names = archive.namelist()
    except Exception:  # zipfile raises several kinds of errors
        return "is a damaged zip archive (cut short?); copy, download or save it again"
    if not names or any(name.endswith(".npy") for name in names):
        return None
    listing = "\n".join(names).encode(errors="replace")
    name, line = next((name, line) for signature, name, line in ZIPS if re.search(signature, listing))
    return f"is {name}; {file.filled(line)}"


def of_bytes(file: Opened) -> str | None:
    """`remedy` of a file that is neither an .npz nor an .npy."""
    packed = f", packed by {file.packer}" if file.packer else ""
    for signature, name, line in FORMATS:
        if re.match(signature, file.head, re.DOTALL):
            if name == "an HDF5 file":
                name, line = HDF5_SUFFIXES.get(file.path.suffix.lower(), (name, line))
            if packed and re.search("PATH|AROUND", line):
                return None
            return f"is {name}{packed}; {file.filled(line)}"
    described = of_idx(file) or of_text(file)
    return described and f"is {described[0]}{packed}; {described[1]}"


def idx_header(file: Opened) -> tuple[str, tuple[int, ...]] | None:
    """The type and the shape of an IDX file's array; None if the file is not an IDX file."""
    head = file.head
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in IDX_TYPES or not 1 <= head[3] <= 4:
        return None
    if len(head) < 4 + 4 * head[3]:
        return None
    return IDX_TYPES[head[2]], tuple(int.from_bytes(head[at : at + 4]) for at in range(4, 4 + 4 * head[3], 4))


def idx_line(file: Opened) -> str:
    """The Python expression that reads the array of an IDX file."""
    dtype, shape = idx_header(file)
    return file.filled(f"np.frombuffer(FILE.read(), {dtype!r}, offset={4 + 4 * len(shape)}).reshape({shape})")


def of_idx(file: Opened) -> tuple[str, str] | None:
    """The name and the remedy of an IDX file, with the labels of its images if their file is in the same folder.

    `common.idx` reads images that are plain or packed by gzip; this is for the others.
    """
    header = idx_header(file)
    if header is None:
        return None
    dtype, shape = header
    if len(shape) == 1:
        return f"an IDX file of {shape[0]} labels, without images", "give the IDX file of the images"
    labels = labels_file(file, shape[0])
    read = f"x = {idx_line(file)}; " + (f"y = {idx_line(labels)}; " if labels else "")
    packers = "".join(sorted({f", {one.packer}" for one in (file, labels) if one and one.packer}))
    line = f"{MAKE}import numpy as np{packers}; {read}np.savez({file.filled('OUT')}, x=x{', y=y' * bool(labels)})"
    return f"an IDX file of shape {shape}, type {dtype}" + (", labels in the same folder" if labels else ""), line


def labels_file(images: Opened, count: int) -> Opened | None:
    """The IDX file of `count` labels that has the name of the images' file, with "labels" in place of "images"."""
    path = images.path.with_name(images.path.name.replace("images", "labels").replace("idx3", "idx1"))
    if path == images.path or not path.is_file():
        return None
    labels = opened(path)
    header = idx_header(labels)
    return labels if header and header[1] == (count,) else None


def decoded(head: bytes) -> tuple[str, str]:
    """Text and its encoding, which is empty for UTF-8; no text if the bytes are not text."""
    marks = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    marked = next((marks[mark] for mark in marks if head.startswith(mark)), None)
    for encoding in [marked] if marked else ["utf-8", "latin-1"]:
        with contextlib.suppress(UnicodeDecodeError):
            text = codecs.getincrementaldecoder(encoding)().decode(head)  # the bytes may end within a letter
            foreign = encoding == "latin-1" and sum(map(str.isascii, text)) < len(text) / 2
            if foreign or re.search(r"[\0-\x08\x0e-\x1f\x7f-\x9f]", text):
                return "", ""
            return text, "" if encoding == "utf-8" else encoding
    return "", ""


def of_text(file: Opened) -> tuple[str, str] | None:
    """The name and the remedy of a text; None if it is no text, or packed so that it has to be unpacked first.

    `common.tables` reads the other tables.
    """
    text, encoding = decoded(file.head)
    if not text:
        return None
    lines = re.split(r"\r\n|\r|\n", text)
    if not file.complete and len(lines) > 2:
        lines.pop()  # the last line may be cut short
    filled = [line for line in lines if line.strip() and not line.startswith("#")][:ROWS]
    if filled and re.match(r"[-+.\de]+( \d+:[-+.\de]+)+ *$", filled[0]):
        return "a table in LIBSVM's format", file.filled(MAKE + LIBSVM)
    if filled and (headed := has_header(filled)) is not None:
        options = f", encoding={encoding!r}" if encoding else ""
        options += ", comment='#'" if any(line.startswith("#") for line in lines) else ""
        options += ")" if headed else ", header=None).add_prefix('x')"
        return "a table of numbers separated by blanks", file.filled(
            f"{MAKE_CSV}read_csv(FILE, sep=r'\\s+'{options}{TO_CSV}"
        )
    return ("a text file, not a table of numbers", GIVE) if file.packer in ("", "gzip") else None


def has_header(lines: list[str]) -> bool | None:
    """Whether a table, whose cells are separated by blanks, begins with the columns' names.

    Names of rows, as R writes them, have no name themselves. None if lines differ in length, or if less than half of
    the last line are numbers.
    """
    try:
        rows = [next(csv.reader([" ".join(line.split())], delimiter=" ")) for line in lines]
    except csv.Error:
        return None
    first, last = rows[0], rows[-1]
    numbers = [is_number(cell) for cell in last]
    others = {len(row) for row in rows[1:]} - {len(last)}
    if others or len(last) - len(first) not in (0, 1) or 2 * sum(numbers) < len(last):
        return None
    return [is_number(cell) for cell in first] != numbers


def is_number(cell: str) -> bool:
    """Whether Python reads a cell as a number."""
    try:
        float(cell)
    except ValueError:
        return False
    return True
