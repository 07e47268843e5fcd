"""Folders of pictures: arrays come back as they were drawn; broken, odd and mixed ones are refused by name."""

import io
import os
import struct
import warnings
import zlib

from common import pictures
from common.arrays import DataError
from common.data import load_data
from common.pictures import pictures_in
from common.sources import arrays_in

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

random = np.random.default_rng(0)
GREY = random.integers(0, 256, (12, 4, 5), np.uint8)
COLOUR = random.integers(0, 256, (12, 4, 5, 3), np.uint8)


def save(path, array, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)


def draw(folder, images, names=None, suffix=".png"):
    for at, image in enumerate(images):
        save(folder / f"{names[at] if names else f'{at:03}'}{suffix}", image)
    return folder


def read(folder, resize=None):
    with arrays_in(folder, resize) as arrays:
        assert all(array.header == (array.header.shape, array.header.dtype) for array in arrays.values())
        return {name: array.read() for name, array in arrays.items()}


def notes(folder):
    with arrays_in(folder) as arrays:
        return "; ".join(note for array in arrays.values() for note in array.notes)


@pytest.fixture
def lazy(monkeypatch):
    """Nothing stays in memory."""
    monkeypatch.setattr(pictures, "IN_MEMORY", 0)


SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 6), st.integers(1, 6))
IMAGES = hnp.arrays(np.uint8, SHAPES) | hnp.arrays(np.uint8, SHAPES.map(lambda shape: (*shape, 3)))


@given(IMAGES, st.sampled_from([".png", ".bmp", ".tif", ".PNG", ".ppm"]), st.booleans())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_arrays_come_back(tmp_path_factory, images, suffix, held):
    """As they were, but for colour pictures whose channels are all equal."""
    folder = draw(tmp_path_factory.mktemp("pictures"), images, suffix=suffix)
    grey = images.ndim == 3 or (images == images[..., :1]).all()
    expected = images[..., 0] if grey and images.ndim == 4 else images
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "IN_MEMORY", 2**28 if held else expected.nbytes - 1)
        with arrays_in(folder) as arrays:
            assert arrays.keys() == {"x"}
            x = arrays["x"]
            assert (x.path is None) == held and x.header == (expected.shape, np.uint8)
            mapped = x.mapped()
            assert (mapped.shape, mapped.ndim, len(mapped)) == (expected.shape, expected.ndim, len(expected))
            rows = np.arange(len(images))[::-1]
            for which in (slice(None), slice(1, None, 2), rows, rows % 2 == 0, 0, np.int64(-1), rows[:0]):
                np.testing.assert_array_equal(mapped[which], expected[which])
                assert mapped[which].dtype == np.uint8 and mapped[which].shape == expected[which].shape
            np.testing.assert_array_equal(x.read(), expected)


def test_one_colour_picture_makes_all_colour(tmp_path, lazy):
    draw(tmp_path, [*GREY[:5], COLOUR[0]])
    expected = np.stack([*np.repeat(GREY[:5, ..., None], 3, 3), COLOUR[0]])
    np.testing.assert_array_equal(read(tmp_path)["x"], expected)


def test_grey_pictures_in_colour_are_grey(tmp_path):
    draw(tmp_path, np.repeat(GREY[..., None], 3, 3))
    np.testing.assert_array_equal(read(tmp_path)["x"], GREY)


def test_threads_keep_the_order(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "SMALL", 0)
    monkeypatch.setattr(pictures, "THREADS", 3)
    for limit in (0, 2**28):
        monkeypatch.setattr(pictures, "IN_MEMORY", limit)
        np.testing.assert_array_equal(read(draw(tmp_path, COLOUR))["x"], COLOUR)


# Folders


def test_subfolders_are_classes(tmp_path):
    words = ["dog", "ant", "cat"]
    for at, image in enumerate(GREY):
        save(tmp_path / words[at % 3] / f"{at:02}" / "a.png", image)  # how deep in the folder does not matter
    found = read(tmp_path)
    np.testing.assert_array_equal(found["y"], np.repeat(["ant", "cat", "dog"], 4))
    np.testing.assert_array_equal(found["x"], np.concatenate([GREY[1::3], GREY[2::3], GREY[0::3]]))


def test_a_single_folder_is_no_class(tmp_path):
    draw(tmp_path / "a" / "b", GREY)
    assert read(tmp_path).keys() == {"x"}
    draw(tmp_path / "a" / "c", GREY)
    assert set(read(tmp_path)["y"]) == {"b", "c"}


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "valid", "TESTING"), ("train", "test")])
@pytest.mark.parametrize("inside", [(), ("archive",)])
@pytest.mark.parametrize("classes", [False, True])
def test_folders_called_as_splits_are_splits(names, inside, classes, tmp_path):
    starts = range(0, 4 * len(names), 4)
    for name, start in zip(names, starts, strict=True):
        for at in range(start, start + 4):
            save(tmp_path.joinpath(*inside, name, *(["ab"[at % 2]] if classes else [])) / f"{at:02}.png", COLOUR[at])
    found = read(tmp_path)
    splits = ["train", "val", "test"] if len(names) == 3 else ["train", "test"]
    assert found.keys() == {f"{role}_{split}" for split in splits for role in ("xy" if classes else "x")}
    for split, start in zip(splits, starts, strict=True):
        rows = [start, start + 2, start + 1, start + 3] if classes else slice(start, start + 4)
        np.testing.assert_array_equal(found[f"x_{split}"], COLOUR[rows])
        if classes:
            np.testing.assert_array_equal(found[f"y_{split}"], ["a", "a", "b", "b"])


def test_grey_and_colour_are_found_over_all_splits(tmp_path):
    draw(tmp_path / "train", GREY)
    draw(tmp_path / "test", COLOUR[:3])
    assert read(tmp_path)["x_train"].shape == (12, 4, 5, 3)


def test_train_can_be_a_class(tmp_path):
    for word in ("bus", "car", "train"):
        draw(tmp_path / word, GREY[:2])
    np.testing.assert_array_equal(read(tmp_path)["y"], np.repeat(["bus", "car", "train"], 2))


def test_hidden_and_other_files_are_left_out(tmp_path):
    draw(tmp_path / "a", GREY[:3])
    draw(tmp_path / "b", GREY[:3])
    for name in (".DS_Store", "a/._000.png", ".git/0.png", "__MACOSX/._0.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"of a Mac")
    assert len(read(tmp_path)["x"]) == 6 and notes(tmp_path) == ""
    (tmp_path / "list.csv").write_text("a,b\n")
    assert notes(tmp_path) == "1 other file is not used"
    (tmp_path / "a" / "000.txt").write_text("a cat")
    assert notes(tmp_path) == "2 other files are not used"


def test_links_are_followed_but_not_in_circles(tmp_path):
    draw(tmp_path / "elsewhere", GREY)
    folder = draw(tmp_path / "here" / "a", GREY).parent
    (folder / "b").symlink_to(tmp_path / "elsewhere")
    (folder / "b" / "back").symlink_to(folder)
    np.testing.assert_array_equal(read(folder)["y"], np.repeat(["a", "b"], 12))
    (folder / "b" / "x.png").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"b/x.png is not a file \(a broken link\?\); remove it"):
        read(folder)


def test_npy_files_count_before_pictures(tmp_path):
    draw(tmp_path, GREY)
    np.save(tmp_path / "x.npy", COLOUR)
    np.testing.assert_array_equal(read(tmp_path)["x"], COLOUR)


def test_the_same_data_set_from_a_folder_and_from_an_npz(tmp_path, monkeypatch, capsys):
    """Whatever stays in the folder."""
    words = np.repeat(["ant", "cat"], 15)
    x = random.integers(0, 256, (30, 6, 5), np.uint8)
    for at, image in enumerate(x):
        save(tmp_path / "set" / words[at] / f"{at:02}.png", image)
    np.savez(tmp_path / "set.npz", x=x, y=words)
    expected = load_data(str(tmp_path / "set.npz")).checksum
    for limit in (2**28, 0):
        monkeypatch.setattr(pictures, "IN_MEMORY", limit)
        assert load_data(str(tmp_path / "set")).checksum == expected


# Pictures that are converted


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparent_pictures_are_laid_on_white(mode, tmp_path):
    """The formula of blending, to one level: Pillow rounds twice."""
    rgba = random.integers(0, 256, (4, 5, 4), np.uint8)
    if mode in ("PA", "P"):
        rgba[..., 3] = np.where(rgba[..., 3] > 99, 255, 0)
    image = Image.fromarray(rgba).convert("LA") if mode == "LA" else Image.fromarray(rgba)
    if mode in ("PA", "P"):
        image = image.quantize(9, method=Image.Quantize.FASTOCTREE)
    image.save(tmp_path / ("a.png"))
    with Image.open(tmp_path / "a.png") as stored:
        values = np.asarray(stored.convert("RGBA")).astype(float)
    share = values[..., 3:] / 255
    expected = share * values[..., :3] + (1 - share) * 255
    found = read(tmp_path)["x"][0]
    found = found if found.ndim == 3 else found[..., None]
    assert np.abs(found - expected).max() <= 1.001
    assert notes(tmp_path) == "1 picture is transparent: laid on white"


def test_opaque_pictures_with_an_opacity_are_as_they_are(tmp_path):
    for image in (COLOUR[0], GREY[0]):
        save(tmp_path / "a.png", image, "RGBA" if image.ndim == 3 else "LA")
        np.testing.assert_array_equal(read(tmp_path)["x"][0], image)
    assert notes(tmp_path) == ""


def test_a_transparent_colour_is_white(tmp_path):
    image = COLOUR[0].copy()
    image[1, 2] = 9, 8, 7
    Image.fromarray(image).save(tmp_path / "a.png", transparency=(9, 8, 7))
    image[1, 2] = 255
    np.testing.assert_array_equal(read(tmp_path)["x"][0], image)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_become_eight(suffix, tmp_path):
    deep = random.integers(0, 2**16, (4, 5), np.uint16)
    deep[0, :4] = 0, 65535, 128, 129
    Image.fromarray(deep).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(read(tmp_path)["x"][0], np.rint(deep / 257))
    assert notes(tmp_path) == "1 picture is of 16 bits: taken as 8 bits"


def test_sixteen_bits_of_which_few_are_used_are_refused(tmp_path):
    Image.fromarray(random.integers(0, 2**12, (4, 5), np.uint16)).save(tmp_path / "a.png")  # a microscope's 12 bits
    with pytest.raises(DataError, match=r"a.png .*16 bits, of which they use little.*numpy.save\('x.npy', x\)"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("suffix", "mode"), [("png", "1"), ("png", "P"), ("gif", "P"), ("jpg", "CMYK"), ("tif", "CMYK"), ("tif", "YCbCr")]
)
def test_other_modes_are_as_pillow_converts_them(suffix, mode, tmp_path):
    save(tmp_path / f"a.{suffix}", COLOUR[0], mode)
    with Image.open(tmp_path / f"a.{suffix}") as image:
        expected = np.asarray(image.convert("L" if mode == "1" else "RGB"))
    np.testing.assert_array_equal(read(tmp_path)["x"][0], expected)
    assert notes(tmp_path) == ""


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_camera_is_followed(orientation, tmp_path):
    """The eight orientations of EXIF, by where the first row and column of the stored picture lie."""
    turned = [
        lambda a: a,
        lambda a: a[:, ::-1],
        lambda a: a[::-1, ::-1],
        lambda a: a[::-1],
        lambda a: a.T,
        lambda a: np.rot90(a, -1),
        lambda a: a[::-1, ::-1].T,
        lambda a: np.rot90(a),
    ][orientation - 1](GREY[0])
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "a.png", GREY[0], exif=exif)
    np.testing.assert_array_equal(read(tmp_path)["x"][0], turned)


def test_of_several_frames_the_first_is_taken(tmp_path):
    frames = [Image.fromarray(image) for image in GREY[:3]]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read(tmp_path)["x"], GREY[:1])
    assert notes(tmp_path) == "1 picture is animated, or of several pages: the first is taken"


# Sizes


def test_another_size_is_refused_by_name(tmp_path):
    draw(tmp_path, GREY)
    save(tmp_path / "005.png", np.zeros((5, 4), np.uint8))
    save(tmp_path / "007.png", np.zeros((9, 9), np.uint8))
    with pytest.raises(DataError, match=r"005.png has 5 x 4 pixels, 000.png 4 x 5; .* by --resize HEIGHT WIDTH, such"):
        read(tmp_path)


def test_a_resize_is_for_all(tmp_path, monkeypatch):
    draw(tmp_path, [GREY[0], COLOUR[1], np.full((7, 9, 3), 50, np.uint8)])
    for limit in (0, 2**28):
        monkeypatch.setattr(pictures, "IN_MEMORY", limit)
        found = read(tmp_path, (3, 2))["x"]
        assert found.shape == (3, 3, 2, 3) and (found[2] == 50).all()
        expected = Image.fromarray(COLOUR[1]).resize((2, 3), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(found[1], np.asarray(expected))


def test_a_smaller_picture_is_an_average(tmp_path):
    """Antialiased: stripes of one pixel become grey, and not one of the stripes."""
    save(tmp_path / "a.png", np.tile(np.array([0, 255], np.uint8), (64, 32)))
    found = read(tmp_path, (8, 8))["x"]
    assert found.shape == (1, 8, 8) and 110 < found.min() <= found.max() < 145


def test_a_resize_is_only_for_pictures(tmp_path):
    np.save(tmp_path / "x.npy", GREY)
    for path in (tmp_path, tmp_path / "x.npy"):
        with pytest.raises(DataError, match=r"is no folder of pictures, .* leave out --resize"):
            read(path, (8, 8))


def test_a_resize_that_does_not_fit_into_memory_is_refused(tmp_path):
    draw(tmp_path, GREY)
    with pytest.raises(
        DataError, match=r"--resize 10000000 10000000 makes pictures too large for the memory; give less"
    ):
        read(tmp_path, (10**7, 10**7))


# Folders that are refused


def png(width, height):
    """The header of a PNG of any size."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def real(path):
    Image.fromarray(np.zeros((4, 5), np.float32)).save(path, "TIFF")


PNG = io.BytesIO()
Image.fromarray(COLOUR[0]).save(PNG, "PNG")
BROKEN = {
    "cut": (lambda path: path.write_bytes(PNG.getvalue()[:-40]), "truncated|broken"),
    "empty": (lambda path: path.write_bytes(b""), "not one of PNG, JPEG"),
    "a web page": (lambda path: path.write_bytes(b"<html></html>"), "not one of PNG, JPEG"),
    "PostScript": (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 4\n"), "not one of"),
    "real values": (real, "its pixels are 32-bit numbers of an unknown scale"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_picture_is_named(case, tmp_path):
    write, reason = BROKEN[case]
    draw(tmp_path / "a", GREY)
    draw(tmp_path / "b", GREY)
    write(tmp_path / "b" / "003.png")
    with pytest.raises(
        DataError, match=rf"^b/003.png cannot be read as a picture \(.*({reason}).*\); save it again or"
    ):
        read(tmp_path)


def test_broken_pictures_are_counted(tmp_path):
    draw(tmp_path, GREY)
    for at in (0, 4, 7):
        (tmp_path / f"{at:03}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"^000.png cannot be read .*; 2 more are broken: 004.png, 007.png$"):
        read(tmp_path)


@pytest.mark.parametrize("side", [10_000, 15_000, 60_000])
def test_a_picture_that_grows_is_refused_before_it_is_unpacked(side, tmp_path):
    """Without a warning on the way."""
    draw(tmp_path, GREY[:2])
    (tmp_path / "000.png").write_bytes(png(side, side))
    with (
        warnings.catch_warnings(action="error"),
        pytest.raises(DataError, match=r"^000.png .*(too many|exceeds limit)"),
    ):
        read(tmp_path)


def test_pictures_too_large_for_the_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "memory_available", lambda: 10**5)
    save(tmp_path / "a.png", np.zeros((99, 99), np.uint8))
    with pytest.raises(DataError, match=r"a.png has 99 x 99 pixels, too many for the memory"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["a/0", "0"], "has pictures in folders and beside them, such as 0.png; move each into its class's folder"),
        (["train/a/0", "train/0", "test/a/0"], "in folders and beside them, such as train/0.png; move"),
        (["train/0", "test/0", "0"], "has pictures beside its folders test, train, such as 0.png; move them"),
        (["train/0", "val/0"], "has the folders train, val; move pictures into one called test too"),
        (["test/0", "valid/0"], "has the folders test, valid; move pictures into one called train too"),
        (
            ["train/0", "test/0", "more/0"],
            "has the folders more, test, train; move more elsewhere, since it is no split",
        ),
    ],
)
def test_mixed_folders_are_refused(files, words, tmp_path):
    draw(tmp_path, [GREY[0]] * len(files), files)
    with pytest.raises(DataError, match=words):
        read(tmp_path)


def test_a_folder_of_nothing_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DataError, match=r"is a folder without .npy files, pictures or MNIST's IDX files; give one"):
        read(tmp_path)
    assert pictures_in(tmp_path) is None


def test_a_picture_that_changes_during_the_run_is_named(tmp_path, lazy):
    with arrays_in(draw(tmp_path, GREY)) as arrays:
        mapped = arrays["x"].mapped()
    for image, words in ((COLOUR[0], "003.png was changed .* it was grey"), (GREY[0].T.copy(), "003.png was changed")):
        save(tmp_path / "003.png", image)
        with pytest.raises(DataError, match=words):
            _ = mapped[2:5]
    os.remove(tmp_path / "003.png")
    with pytest.raises(DataError, match=r"003.png cannot be read as a picture"):
        _ = mapped[3]


# Damage


def encoded(form, image=COLOUR[0]):
    file = io.BytesIO()
    Image.fromarray(image).save(file, form)
    return file.getvalue()


CONTENTS = [encoded(form) for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")]


@given(
    st.sampled_from(CONTENTS),
    st.integers(0, 1500),
    st.binary(max_size=4),
    st.sampled_from([0, 1, 4, 10**6]),
)
@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_damaged_pictures_give_arrays_or_are_refused(tmp_path_factory, content, at, new, cut):
    folder = tmp_path_factory.mktemp("damaged")
    at %= len(content)
    (folder / "0.png").write_bytes(content[:at] + new + content[at + cut :])
    try:
        assert read(folder)["x"].dtype == np.uint8
    except DataError as error:
        assert "0.png" in str(error)
