"""Pictures in a folder: every one is decoded and checked before any work; large folders are decoded as they are read.

They become 8-bit grey or RGB pixels. Transparent pictures are laid on white, and 16 bits are taken as 8 bits. Of
several frames or pages the first is taken. A camera's note on the orientation (EXIF) is followed; colour profiles are
not.
"""

import math
import os
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from common.arrays import CHUNK, DataError, Header, HeldArray, memory_available, readable
from common.preprocessing import SPLITS
from common.progress import TimeLeft

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")  # no others: for some, Pillow starts another program
IN_MEMORY = 2**28  # bytes of decoded pictures that stay in memory; larger folders are decoded again and again
THREADS = min(4, os.cpu_count() or 1)
SMALL = 64 * 64  # pixels: threads decode smaller pictures no faster, since they wait for each other
BYTES = 16  # of memory that a pixel can take while it is decoded: as RGBA, as a copy, on white and as RGB
TRANSPARENT = "transparent: laid on white"
DEEP_WHITE = 2**15  # a 16-bit picture without a pixel so bright may have another white, as microscopes do
DEEP = "of 16 bits: taken as 8 bits"
SEVERAL = "animated, or of several pages: the first is taken"


class SizeError(DataError):
    """A picture that is not as large as the first one."""


class Picture(NamedTuple):
    """A decoded picture: uint8, (height, width) if it is grey, else (height, width, 3); and what was converted."""

    pixels: np.ndarray
    notes: list[str]


@dataclass(frozen=True)
class Decoder:
    """Decodes pictures of a folder; `resize` and `size` are (height, width), `size` that of the picture `first`."""

    folder: Path
    resize: tuple[int, int] | None
    most: float  # pixels of one picture
    size: tuple[int, int] | None = None
    first: str = ""

    @property
    def small(self) -> bool:
        """Whether the pictures are known to be small."""
        return not self.resize and self.size is not None and math.prod(self.size) <= SMALL

    def __call__(self, name: str) -> Picture:
        """The picture. Raises DataError if it is broken, SizeError if its size differs from `size`."""
        try:
            with Image.open(self.folder / name, formats=FORMATS) as image:
                if image.width * image.height > self.most:
                    raise DataError(f"{name} has {image.height} x {image.width} pixels, too many for the memory")
                ImageOps.exif_transpose(image, in_place=True)
                plain, notes = converted(image)
                notes += [SEVERAL] * getattr(image, "is_animated", False)
        except DataError:
            raise
        except Exception as error:  # Pillow's plugins raise a dozen kinds of errors
            reason = f"not one of {', '.join(FORMATS)}" if isinstance(error, UnidentifiedImageError) else error
            reason = (str(reason) or type(error).__name__)[:200]
            raise DataError(f"{name} cannot be read as a picture ({reason}); save it again or remove it") from error
        if self.resize:
            plain = plain.resize(self.resize[::-1], Image.Resampling.LANCZOS)
        if self.size and plain.size != self.size[::-1]:
            raise SizeError(
                f"{name} has {plain.height} x {plain.width} pixels, {self.first} {self.size[0]} x {self.size[1]}; "
                "make all of one size by --resize HEIGHT WIDTH, such as --resize 64 64"
            )
        return Picture(one_channel(np.asarray(plain)), notes)


def converted(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """The picture in 8 bits, grey (mode L) or RGB, and a list of what was changed. Raises ValueError for others."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        deep = np.asarray(image).astype(np.int64).clip(0, 65535)
        if 0 < deep.max() < DEEP_WHITE:
            raise ValueError(
                f"its pixels have 16 bits, of which they use little: the brightest is {deep.max()} of 65535. Save the "
                "pictures as one array of numbers, numpy.save('x.npy', x), which keeps them"
            )
        return Image.fromarray(((deep + 128) // 257).astype(np.uint8)), [DEEP]
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are 32-bit numbers of an unknown scale")
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        if clear.getextrema()[3][0] < 255:
            white = Image.new("RGBA", clear.size, "white")
            white.alpha_composite(clear)
            return white.convert("RGB"), [TRANSPARENT]
    return image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"), []


def one_channel(pixels: np.ndarray) -> np.ndarray:
    """(height, width) if the three channels are equal, else as it is."""
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        return np.ascontiguousarray(pixels[..., 0])
    return pixels


def in_threads(task, items, small: bool) -> list:
    """[task(item) for item in items], in a few threads unless the pictures are small."""
    if small or len(items) < 2:
        return [task(item) for item in items]
    length = -(-len(items) // THREADS)
    blocks = [items[start : start + length] for start in range(0, len(items), length)]
    with ThreadPoolExecutor(THREADS) as pool:
        return [done for block in pool.map(lambda block: [task(item) for item in block], blocks) for done in block]


class Pictures:
    """Pictures that are decoded when an index, a slice or an array of indices reads them.

    It stands for a uint8 array of `shape`, (n, height, width) or (n, height, width, 3), that is never in memory as a
    whole. Raises DataError if a picture was changed since it was checked.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, decoder: Decoder, names: list[str], shape: tuple[int, ...]):
        self.decoder, self.names, self.shape = decoder, names, shape

    @property
    def ndim(self) -> int:
        """3 or 4, like that of an array."""
        return len(self.shape)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, which):
        rows = np.arange(len(self))[which]
        pixels = np.empty((rows.size, *self.shape[1:]), np.uint8)

        def decode(at):
            pixels[at] = self.picture(self.names[rows.flat[at]])

        with warnings.catch_warnings(action="ignore"):
            in_threads(decode, range(rows.size), self.decoder.small)
        return pixels.reshape(*rows.shape, *self.shape[1:])

    def picture(self, name: str) -> np.ndarray:
        """One picture in the shape of the others."""
        try:
            pixels = self.decoder(name).pixels
        except SizeError as error:
            raise DataError(f"{name} was changed during the run ({error})") from error
        if self.ndim == 4:
            return pixels if pixels.ndim == 3 else pixels[..., None]
        if pixels.ndim == 3:
            raise DataError(f"{name} was changed during the run: it was grey, now it has colours")
        return pixels


@dataclass
class PictureArray:
    """Pictures with the attributes of a `StoredArray`. `held` are their pixels, or None if they are too many.

    `notes` says what was converted, and how many other files are in the folder.
    """

    pictures: Pictures
    held: np.ndarray | None
    notes: tuple[str, ...] = ()
    sparse = False

    @property
    def header(self) -> Header:
        """Their shape and type."""
        return Header(self.pictures.shape, self.pictures.dtype)

    @property
    def path(self) -> Path | None:
        """The folder, if the pictures are decoded as they are read."""
        return None if self.held is not None else self.pictures.decoder.folder

    def read(self) -> np.ndarray:
        """All pictures, in memory. No reference to them stays here."""
        pixels, self.held = self.held, None
        return self.pictures[:] if pixels is None else pixels

    def mapped(self) -> Pictures:
        """The pictures, to be decoded as they are read."""
        return self.pictures


def pictures_in(folder: Path, resize: tuple[int, int] | None = None) -> dict[str, PictureArray | HeldArray] | None:
    """The pictures of a folder as x, or as x_train, x_test, ..., and the names of their folders as y; None without any.

    If the folders at the top are called train, test, val or the like, they are the splits. The classes are the folders
    at the top, or within those of the splits. A single folder is no class. `resize`, (height, width), is for all.

    Raises DataError if a picture is broken or differs in size, or if the folders are mixed.
    """
    with readable("the folder"):
        names, others = listed(folder)
    if not names:
        return None
    splits, classes = arranged(names)
    files = [os.path.join(*parts) for names in splits.values() for parts in names]
    decoder, grey, held, notes = checked(folder, files, resize)
    notes += [f"{others:,} other file{'s are' if others > 1 else ' is'} not used"] * bool(others)
    arrays, start = {}, 0
    for split, names in splits.items():
        rows = slice(start, start + len(names))
        shape = (len(names), *decoder.size) if grey else (len(names), *decoder.size, 3)
        pictures = Pictures(decoder, files[rows], shape)
        arrays[f"x{split}"] = PictureArray(pictures, None if held is None else stacked(held[rows], shape), tuple(notes))
        if split in classes:
            arrays[f"y{split}"] = HeldArray(np.array(classes[split]))
        start, notes = rows.stop, []
    return arrays


def stacked(held: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Pictures, of which some may be grey, as one array."""
    pixels = np.empty(shape, np.uint8)
    for at, picture in enumerate(held):
        pixels[at] = picture if picture.ndim == len(shape) - 1 else picture[..., None]
    return pixels


def listed(folder: Path) -> tuple[list[tuple[str, ...]], int]:
    """The pictures in a folder and below it, as sorted parts of their paths; and how many other files there are.

    Hidden files and folders are left out. Raises DataError if a picture is a broken link or a pipe.
    """

    def refuse(error):
        raise error

    names, others, seen = [], 0, {os.path.realpath(folder)}
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = {each: os.path.realpath(os.path.join(place, each)) for each in folders if each[0] != "."}
        folders[:] = sorted(each for each in real if real[each] not in seen)  # links can go in a circle
        seen |= {real[each] for each in folders}
        below = Path(place).relative_to(folder).parts
        for name in files:
            if name[0] == ".":
                continue
            if not name.lower().endswith(SUFFIXES):
                others += 1
            elif not os.path.isfile(os.path.join(place, name)):
                raise DataError(f"{os.path.join(*below, name)} is not a file (a broken link?); remove it")
            else:
                names.append((*below, name))
    return sorted(names), others


def arranged(names: list[tuple[str, ...]]) -> tuple[dict[str, list], dict[str, list[str]]]:
    """Pictures by split, and the class of each by split: {"": [...]} or {"_train": [...], "_test": [...]}.

    Raises DataError if folders of splits are mixed with others, or one is missing.
    """
    depth = 0  # of the folder below which the pictures part
    while all(len(parts) > depth + 1 and parts[depth] == names[0][depth] for parts in names):
        depth += 1
    tops = sorted({parts[depth] for parts in names if len(parts) > depth + 1})
    roles = {top: SPLITS.get(top.lower()) for top in tops}
    splits = {"": names}
    if len({*roles.values()}) > 1 and all(roles.values()):
        missing = {"_train": "train", "_test": "test"}.keys() - {*roles.values()}
        if missing:
            word = missing.pop()[1:]
            raise DataError(f"has the folders {', '.join(tops)}; move pictures into one called {word} too")
        if beside := [parts for parts in names if len(parts) == depth + 1]:
            raise DataError(f"has pictures beside its folders {', '.join(tops)}, such as {beside[0][-1]}; move them")
        splits = {}
        for parts in names:
            splits.setdefault(roles[parts[depth]], []).append(parts)
        depth += 1
    elif {"_train", "_test"} <= {*roles.values()}:
        other = next(top for top in tops if not roles[top])
        raise DataError(f"has the folders {', '.join(tops)[:200]}; move {other} elsewhere, since it is no split")
    classes = {split: found for split, names in splits.items() if (found := classes_of(names, depth))}
    single = len({word for words in classes.values() for word in words}) < 2
    return splits, {} if single else classes


def classes_of(names: list[tuple[str, ...]], depth: int) -> list[str]:
    """The folder of each picture, `depth` folders down; empty if they lie in none. Raises DataError if only some do."""
    inner = [parts[depth] for parts in names if len(parts) > depth + 1]
    if inner and len(inner) < len(names):
        beside = next(parts for parts in names if len(parts) == depth + 1)
        raise DataError(
            f"has pictures in folders and beside them, such as {os.path.join(*beside)}; move each into its class's "
            "folder"
        )
    return inner


def checked(folder: Path, names: list[str], resize) -> tuple[Decoder, bool, list[np.ndarray] | None, list[str]]:
    """Decodes every picture once: a decoder for their size, whether all are grey, their pixels or None, and notes.

    Raises DataError that names the broken pictures, or the first one of another size.
    """
    decoder = Decoder(folder, resize, min(Image.MAX_IMAGE_PIXELS or math.inf, memory_available() / (BYTES * THREADS)))
    if resize and resize[0] * resize[1] > decoder.most:
        raise DataError(f"--resize {resize[0]} {resize[1]} makes pictures too large for the memory; give less")
    progress, notes, broken = TimeLeft(), Counter(), []
    grey, held, size, at, step = True, [], 0, 0, 1
    with warnings.catch_warnings(action="ignore"):
        while at < len(names):
            for found in in_threads(partial(tried, decoder), names[at : at + step], decoder.small):
                at += 1
                progress("checking pictures", at, len(names))
                if isinstance(found, DataError):
                    broken.append((names[at - 1], found))
                    continue
                pixels = found.pixels
                if decoder.size is None:
                    decoder = replace(decoder, size=pixels.shape[:2], first=names[at - 1])
                    step = max(THREADS, CHUNK // (3 * pixels.shape[0] * pixels.shape[1]))
                grey, size = grey and pixels.ndim == 2, size + pixels.nbytes
                held = None if size > IN_MEMORY else held
                if held is not None:
                    held.append(pixels)
                notes.update(found.notes)
    if broken:
        others = f"; {len(broken) - 1:,} more are broken: {', '.join(name for name, _ in broken[1:5])}"
        raise DataError(f"{broken[0][1]}{others * (len(broken) > 1)}")
    if not grey and 3 * len(names) * math.prod(decoder.size) > IN_MEMORY:  # some of the held ones may be grey
        held = None
    texts = [f"{count:,} picture{'s are' if count > 1 else ' is'} {note}" for note, count in sorted(notes.items())]
    return decoder, grey, held, texts


def tried(decoder: Decoder, name: str) -> Picture | DataError:
    """The picture, or the error if it is broken."""
    try:
        return decoder(name)
    except SizeError:
        raise
    except DataError as error:
        return error
