"""Files in formats that are not read: recognises each by its first bytes, and says how to convert it."""

import bz2
import codecs
import contextlib
import csv
import lzma
import math
import re
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

HEAD = 2**20  # bytes to read from a file: a row of a table can be long
ROWS = 20  # how many rows of a table are looked at
LABELS = {"label", "labels", "class", "target", "y"}  # names of a column
COUNTS = {"", "id", "index", "unnamed: 0"}  # names of a column that numbers the rows
IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
PACKERS = {  # magic bytes: the module that opens a packed file, and a function that unpacks its first HEAD bytes
    b"\x1f\x8b": ("gzip", lambda head: zlib.decompressobj(31).decompress(head, HEAD)),
    b"BZh": ("bz2", lambda head: bz2.BZ2Decompressor().decompress(head, HEAD)),
    b"\xfd7zXZ\0": ("lzma", lambda head: lzma.LZMADecompressor(memlimit=2**27).decompress(head, HEAD)),
}

# In these lines of Python, OUT is the new .npz, opened so that no file is overwritten. PATH is the file's name, FILE
# the open file, SOURCE either of them. A line with PATH cannot read a packed file. `Opened.filled` replaces the words.
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
FRAME = (
    "; y = [c for c in t if str(c).lower() in ('label', 'labels', 'class', 'target', 'y')][:1]; "
    "np.savez(OUT, x=t.drop(columns=y).to_numpy(), **{'y': t[c].to_numpy() for c in y})"
)
PANDAS = MAKE + "import numpy as np, pandas as pd; t = pd."
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
GIVE = "give images, as .npz or .npy"
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
    (rb"PAR1", "a Parquet file", PANDAS + "read_parquet(PATH)" + FRAME + " # pip install pandas pyarrow"),
    (rb"ARROW1|FEA1", "an Arrow file", PANDAS + "read_feather(PATH)" + FRAME + " # pip install pandas pyarrow"),
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
    (rb"(?m)^xl/workbook\.", "an Excel table", PANDAS + "read_excel(PATH)" + FRAME + " # pip install pandas openpyxl"),
    (rb"(?m)^(word|ppt)/", "a Word or PowerPoint document, not images", GIVE),
    (rb"(?mi)\.(png|jpe?g|gif|bmp|tiff?|webp|p[gp]m)$", "a zip archive of pictures", UNZIP),
    (rb"", "a zip archive without arrays", UNZIP),
]
# fmt: on


class Opened(NamedTuple):
    """A file's first bytes, unpacked if it is packed; the module that unpacks it; whether these are all its bytes."""

    path: Path
    head: bytes
    packer: str = ""
    complete: bool = False

    def filled(self, line: str, encoding: str = "") -> str:
        """A line of the tables above with this file's names in it, so that it runs unchanged."""
        name, packer = quoted(self.path), self.packer
        stem = self.path.with_suffix("")
        opened = f"{packer}.open({name})" if packer else f"open({name}, 'rb')"
        text = f"{name}, encoding={encoding!r}" if encoding else name
        words = {
            "OUT": f"open({quoted(unused(stem, '.npz'))}, 'xb')",
            "STEM": quoted(unused(stem, "")),
            "PATH": name,
            "AROUND": quoted(self.path.parent),
            "ARCHIVE": name,
            "FILE": opened,
            "SOURCE": opened if packer else name,
            "TEXT": f"{packer}.open({name}, 'rt', encoding={encoding or 'utf-8'!r})" if packer else text,
        }
        if packer and re.search(r"\b(FILE|SOURCE|TEXT)\b", line):
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


def number(cell: str) -> float | None:
    """A cell's number, with a decimal point or comma; NaN if the cell is empty, None if it is not a number."""
    try:
        return float(cell.strip().replace(",", ".") or "nan")
    except ValueError:
        return None


def numeric(cells) -> bool:
    """Whether the cells are numbers, of which some may be missing."""
    return all(number(cell) is not None for cell in cells) and any(cell.strip() for cell in cells)


def are_whole(cells, high: float = math.inf) -> bool:
    """Whether the cells are whole numbers from 0 to `high`."""
    return all((value := number(cell)) is not None and 0 <= value <= high and value % 1 == 0 for cell in cells)


def rows_of(lines: list[str], delimiter: str | None) -> list[list[str]] | None:
    """Cells of a table's lines. None if lines differ in length, or less than half of the last line are numbers."""
    try:
        rows = [next(csv.reader([line], delimiter=delimiter)) if delimiter else line.split() for line in lines]
    except (csv.Error, StopIteration):
        return None
    if {len(row) for row in rows} != {len(rows[0])} or (delimiter and len(rows[0]) < 2):
        return None
    return rows if 2 * sum(number(cell) is not None for cell in rows[-1]) >= len(rows[-1]) else None


def of_text(file: Opened) -> tuple[str, str] | None:
    """The name and the remedy of a text: a table of numbers, perhaps with labels, or another text; else None."""
    text, encoding = decoded(file.head)
    if not text:
        return None
    lines = re.split(r"\r\n|\r|\n", text)
    if not file.complete and len(lines) > 2:
        lines.pop()  # the last line may be cut short
    filled = [(at, line) for at, line in enumerate(lines) if line.strip() and not line.startswith("#")][:ROWS]
    if filled and re.match(r"[-+.\de]+( \d+:[-+.\de]+)+ *$", filled[0][1]):
        return "a table in LIBSVM's format", file.filled(MAKE + LIBSVM)
    for delimiter in ("\t", ";", ",", "|", None) if filled else ():
        rows = rows_of([line for _, line in filled], delimiter)
        described = rows and of_table(rows, delimiter, filled)
        if described:
            return described[0], MAKE + file.filled(described[1], encoding)
    return "a text file, not a table of numbers", GIVE


def of_table(rows: list[list[str]], delimiter: str | None, lines: list[tuple[int, str]]) -> tuple[str, str] | None:
    """The name of a table and the Python to read it, from its first rows and their lines (number, text).

    None if no column has numbers.
    """
    names = [name.strip().lower() for name in rows[0]]
    below = list(zip(*rows[1:], strict=True)) or [()] * len(names)
    counted = [name for name in names if name] == [str(at) for at in range(sum(map(bool, names)))]
    headed = (counted and len(names) > 2) or any(
        numeric(cells) and number(name) is None for name, cells in zip(names, below, strict=True)
    )
    columns = below if headed else list(zip(*rows, strict=True))
    names = names if headed else ["-"] * len(names)
    numbers = [at for at, cells in enumerate(columns) if numeric(cells) and names[at] not in COUNTS]
    label = label_column(names, columns, numbers)
    pixels = [at for at in numbers if at != label and names[at] not in LABELS]
    if not pixels:
        return None
    cells = [cell for at in pixels for cell in columns[at]]
    options = [f"delimiter={delimiter!r}"] * bool(delimiter)
    options += [f"skiprows={lines[headed][0]}"] * bool(lines[headed][0])
    options += ["quotechar='\"'"] * any('"' in line for _, line in lines)
    plain = ", ".join(["", *options])
    if any("," in cell or not cell.strip() for cell in cells):
        options.append("converters=lambda cell: float(cell.replace(',', '.') or 'nan')")
    used = f"range({pixels[0]}, {pixels[-1] + 1})"
    if len(pixels) <= pixels[-1] - pixels[0]:
        used = f"[c for c in {used} if c not in {sorted({*range(pixels[0], pixels[-1])} - {*pixels})}]"
    line = f"import numpy as np; x = np.loadtxt(TEXT, usecols={used}, ndmin=2{', '.join(['', *options])})"
    if are_whole(cells, 255):
        line += "; x = x.astype(np.uint8) if x.max() > 1 and np.array_equal(x, x.clip(0, 255) // 1) else x"
    kind = {"\t": "table separated by tabs (TSV)", ";": "CSV table with semicolons", ",": "CSV table"}
    name = f"a {kind.get(delimiter, 'table of numbers')}"
    if label is None:
        left = [str(at + 1) for at in numbers if names[at] in LABELS]
        name += f" (without column {', '.join(left)}: its values number no classes)" * bool(left)
        return name, f"{line}; np.savez(OUT, x=x)"
    end = ").astype(int)" if are_whole(columns[label]) else ", dtype=str)"
    y = f"np.loadtxt(TEXT, usecols={label}{plain}{end}"
    return f"{name} with labels in column {label + 1}", f"{line}; y = {y}; np.savez(OUT, x=x, y=y)"


def label_column(names: list[str], columns: list[tuple[str, ...]], numbers: list[int]) -> int | None:
    """The column of a table's labels: the one named so, the only one with words, or one at an end of a square image."""
    others = sorted({*range(len(names))} - {*numbers})
    words = [at for at in others if names[at] not in COUNTS and any(map(str.strip, columns[at]))]
    named = [
        at for at in words + numbers if names[at] in LABELS and (not numeric(columns[at]) or are_whole(columns[at]))
    ]
    if named or len(words) == 1:
        return (named or words)[0]
    side = math.isqrt(max(0, len(numbers) - 1))
    if side < 4 or side**2 != len(numbers) - 1:
        return None
    ends = [at for at in (numbers[0], numbers[-1]) if are_whole(columns[at])]
    return next((at for at in ends if len(set(columns[at])) > 1), None)
