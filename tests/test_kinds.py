"""common/kinds.py and transforms.py: which likelihood arrays get by type, range and axes; a model's rows, and back.

Through load_data on .npz and .npy files and tables, and as_dataset on arrays in memory.
"""

import contextlib
import copy
import io
import json
import tracemalloc

import avb
import vae_baseline
from common import arrays as arrays_module
from common import columns, data, run
from common.arrays import DataError, MappedImages
from common.columns import TableTransform
from common.data import as_dataset, load_data
from common.evaluation.reconstruction import constant_model
from common.files import RunError
from common.likelihoods import Gaussian
from common.transforms import (
    CountTransform,
    PixelTransform,
    RealTransform,
    as_record,
    likelihood_of,
    starting_likelihood,
    transform_of,
)

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

QUICK = settings(max_examples=60, deadline=None, derandomize=True)
FORMS = ["npz", "folder", "memory"]
FIELDS = ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test")
AXES = {"rows": (30, 6), "images": (30, 4, 5), "colour": (30, 4, 5, 3)}
FORM_OF = {"pixels": PixelTransform, "real": RealTransform, "table": TableTransform, "counts": CountTransform}


def random(seed=0):
    return np.random.default_rng(seed)


def integers(low, high, dtype):
    """Integers from low to high, both of which occur in the first image and the last one."""

    def array(shape):
        x = random().integers(low, high + 1, shape).astype(dtype)
        x.reshape(-1)[[0, -1]] = low, high
        return x

    return array


def reals(low, high):
    def array(shape):
        x = random().uniform(low, high, shape)
        x.reshape(-1)[[0, -1]] = low, high
        return x

    return array


def with_nan(shape):
    x = random().normal(size=shape)
    x.reshape(-1)[[3, -1]] = np.nan, -np.inf
    return x


def load(form, arrays, path, **options):
    """The Dataset of arrays in one of the FORMS, and what was printed."""
    path.mkdir()
    if form == "folder":
        for name, array in arrays.items():
            np.save(path / f"{name}.npy", array)
        source = path
    elif form == "npz":
        source = path / "mine.npz"
        np.savez(source, **arrays)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        loaded = as_dataset(arrays, **options) if form == "memory" else load_data(str(source), **options)
    return loaded, printed.getvalue()


@pytest.fixture
def loaded(tmp_path):
    """`load` into folders of their own."""
    numbers = iter(range(1000))
    return lambda form, arrays, **options: load(form, arrays, tmp_path / str(next(numbers)), **options)


# What is chosen, and what is refused

VALUES = {
    "uint8": integers(0, 255, np.uint8),
    "uint8, dark": integers(0, 40, np.uint8),
    "int64 to 255": integers(0, 255, np.int64),
    "int64 to 16": integers(0, 16, np.int64),
    "0 and 1": integers(0, 1, np.int32),
    "truth": lambda shape: integers(0, 1, np.uint8)(shape) == 1,
    "below 0": integers(-5, 5, np.int8),
    "16 bits": integers(0, 60_000, np.uint16),
    "[0, 1]": reals(0, 1),
    "steps of 1/255": lambda shape: integers(0, 255, np.uint8)(shape) / np.float32(255),
    "[-1, 1]": reals(-1, 1),
    "floats to 255": integers(0, 255, np.float32),
    "floats to 16": integers(0, 16, np.float64),
    "real": reals(-7, 300),
    "heights": reals(150, 210),
    "NaN": with_nan,
}
CHOICES = {  # initials of the form, and of the likelihood
    "p bernoulli": ("pixels", "bernoulli"),
    "p logistic": ("pixels", "logistic"),
    "p gaussian": ("pixels", "gaussian"),
    "r gaussian": ("real", "gaussian"),
    "t gaussian": ("table", "gaussian"),
    "c negative": ("counts", "negative_binomial"),
    "c poisson": ("counts", "poisson"),
}
REFUSED = {
    "range": "; rescale them to [0, 1], such as by ",
    "255?": "If 255 is white, save ",
    "/ 255": "; divide by 255 so that they lie in [0, 1]: ",
    "8 bits": "--likelihood logistic takes 8-bit pixels, but ",
    "whole": "--likelihood poisson takes whole numbers from 0, but ",
    "colour": "holds colour images, and --likelihood bernoulli takes black, white and grey; choose logistic or ",
    "counts": "--likelihood poisson takes counts, but x holds colour images; choose logistic or gaussian",
    "NaN p": "NaN or infinite pixels; leave out those images",
    "NaN v": "NaN or infinite values; leave out those rows, by ",
}
REQUESTS = ("auto", "bernoulli", "logistic", "gaussian", "poisson")
CASES = """
rows   | uint8          | p bernoulli | p bernoulli | p logistic | t gaussian | c poisson
rows   | uint8, dark    | p bernoulli | p bernoulli | p logistic | t gaussian | c poisson
rows   | int64 to 255   | p bernoulli | p bernoulli | p logistic | t gaussian | c poisson
rows   | int64 to 16    | c negative  | 255?        | 255?       | t gaussian | c poisson
rows   | 0 and 1        | p bernoulli | p bernoulli | 8 bits     | t gaussian | c poisson
rows   | truth          | p bernoulli | p bernoulli | 8 bits     | t gaussian | c poisson
rows   | below 0        | t gaussian  | range       | range      | t gaussian | whole
rows   | 16 bits        | c negative  | range       | range      | t gaussian | c poisson
rows   | [0, 1]         | p bernoulli | p bernoulli | 8 bits     | t gaussian | whole
rows   | steps of 1/255 | p bernoulli | p bernoulli | p logistic | t gaussian | whole
rows   | [-1, 1]        | t gaussian  | range       | range      | t gaussian | whole
rows   | floats to 255  | / 255       | / 255       | / 255      | t gaussian | c poisson
rows   | floats to 16   | c negative  | range       | range      | t gaussian | c poisson
rows   | real           | t gaussian  | range       | range      | t gaussian | whole
rows   | heights        | t gaussian  | / 255       | / 255      | t gaussian | whole
rows   | NaN            | NaN v       | NaN p       | NaN p      | NaN v      | NaN v
images | uint8          | p bernoulli | p bernoulli | p logistic | p gaussian | c poisson
images | uint8, dark    | p bernoulli | p bernoulli | p logistic | p gaussian | c poisson
images | int64 to 255   | p bernoulli | p bernoulli | p logistic | p gaussian | c poisson
images | int64 to 16    | 255?        | 255?        | 255?       | r gaussian | c poisson
images | 0 and 1        | p bernoulli | p bernoulli | 8 bits     | p gaussian | c poisson
images | truth          | p bernoulli | p bernoulli | 8 bits     | p gaussian | c poisson
images | below 0        | r gaussian  | range       | range      | r gaussian | whole
images | 16 bits        | r gaussian  | range       | range      | r gaussian | c poisson
images | [0, 1]         | p bernoulli | p bernoulli | 8 bits     | p gaussian | whole
images | steps of 1/255 | p bernoulli | p bernoulli | p logistic | p gaussian | whole
images | [-1, 1]        | r gaussian  | range       | range      | r gaussian | whole
images | floats to 255  | / 255       | / 255       | / 255      | r gaussian | c poisson
images | floats to 16   | r gaussian  | range       | range      | r gaussian | c poisson
images | real           | r gaussian  | range       | range      | r gaussian | whole
images | heights        | / 255       | / 255       | / 255      | r gaussian | whole
images | NaN            | NaN p       | NaN p       | NaN p      | NaN v      | NaN v
colour | uint8          | p logistic  | colour      | p logistic | p gaussian | counts
colour | uint8, dark    | p logistic  | colour      | p logistic | p gaussian | counts
colour | int64 to 255   | p logistic  | colour      | p logistic | p gaussian | counts
colour | int64 to 16    | r gaussian  | colour      | 255?       | r gaussian | counts
colour | 0 and 1        | p gaussian  | colour      | 8 bits     | p gaussian | counts
colour | truth          | p gaussian  | colour      | 8 bits     | p gaussian | counts
colour | below 0        | r gaussian  | colour      | range      | r gaussian | counts
colour | 16 bits        | r gaussian  | colour      | range      | r gaussian | counts
colour | [0, 1]         | p gaussian  | colour      | 8 bits     | p gaussian | counts
colour | steps of 1/255 | p gaussian  | colour      | p logistic | p gaussian | counts
colour | [-1, 1]        | r gaussian  | colour      | range      | r gaussian | counts
colour | floats to 255  | / 255       | colour      | / 255      | r gaussian | counts
colour | floats to 16   | r gaussian  | colour      | range      | r gaussian | counts
colour | real           | r gaussian  | colour      | range      | r gaussian | counts
colour | heights        | / 255       | colour      | / 255      | r gaussian | counts
colour | NaN            | NaN p       | colour      | NaN p      | NaN v      | counts
"""
TABLE = [[cell.strip() for cell in line.split(" | ")] for line in CASES.strip().splitlines()]
QUIET = {"uint8", "0 and 1", "truth"}  # rows that are surely pixels


def test_the_table_has_every_case():
    assert [(axes, kind) for axes, kind, *_ in TABLE] == [(axes, kind) for axes in AXES for kind in VALUES]
    assert {len(row) for row in TABLE} == {2 + len(REQUESTS)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("axes", "kind", "cells"), [(axes, kind, cells) for axes, kind, *cells in TABLE])
def test_kinds(loaded, form, axes, kind, cells):
    x = VALUES[kind](AXES[axes])
    for request, cell in zip(REQUESTS, cells, strict=True):
        if cell in REFUSED:
            with pytest.raises(DataError) as refusal:
                loaded(form, {"x": x}, likelihood=request)
            message = str(refusal.value)
            assert REFUSED[cell] in message and "\n" not in message
            assert ("--likelihood gaussian takes any numbers" in message) == (cell in ("range", "255?", "/ 255"))
            continue
        dataset, printed = loaded(form, {"x": x}, likelihood=request)
        kind_of, likelihood = CHOICES[cell]
        assert (dataset.likelihood, type(dataset.transform)) == (likelihood, FORM_OF[kind_of])
        shape = AXES[axes][1:]
        assert dataset.image_shape == ((np.prod(shape) + 1,) if kind_of == "counts" else shape)
        assert kind_of == "table" or dataset.transform.shape == shape
        assert printed.count("\n") <= 1 and printed.endswith("\n" * bool(printed))
        said = axes != "images" and kind not in QUIET if likelihood == "bernoulli" else True
        assert (f"the likelihood is {likelihood}" in printed) == (request == "auto" and said)
        splits = [dataset.x_train, dataset.x_val, dataset.x_test]
        assert all(rows[:].dtype == np.float32 and np.isfinite(rows[:]).all() for rows in splits)
        likelihood_of(dataset.likelihood, dataset.transform)
        assert as_dataset(dataset) is dataset


MATRICES = {
    "int64": (lambda x: x, "auto", ("counts", "negative_binomial")),
    "whole floats": (lambda x: x * 1.0, "auto", ("counts", "negative_binomial")),
    "truth": (lambda x: x > 0, "auto", ("pixels", "bernoulli")),
    "real": (lambda x: x * 0.37, "auto", ("table", "gaussian")),
    "[0, 1]": (lambda x: x / x.max(), "auto", ("table", "gaussian")),
    "below 0": (lambda x: -x, "auto", ("table", "gaussian")),
    "counts": (lambda x: x, "poisson", ("counts", "poisson")),
    "columns": (lambda x: x, "gaussian", ("table", "gaussian")),
    "black and white": (lambda x: (x > 0).astype(np.uint8), "bernoulli", ("pixels", "bernoulli")),
}


@pytest.mark.parametrize("kind", MATRICES)
def test_sparse_matrices(tmp_path, kind):
    change, likelihood, expected = MATRICES[kind]
    x = change(random().poisson(0.4, (50, 7)))
    scipy.sparse.save_npz(tmp_path / "mine.npz", scipy.sparse.csr_matrix(x))
    dataset = load_data(str(tmp_path / "mine.npz"), likelihood=likelihood)
    assert (dataset.likelihood, type(dataset.transform)) == (expected[1], FORM_OF[expected[0]])
    held = as_dataset(scipy.sparse.csr_matrix(x), likelihood)
    for other in (as_dataset(x, dataset.likelihood), held):
        np.testing.assert_array_equal(dataset.x_train, other.x_train)
    assert held.likelihood == dataset.likelihood


COLOUR, GREY = AXES["colour"], AXES["images"]
MIXED = {  # x_train and x_test
    "8 bits and [0, 1]": (VALUES["uint8"](GREY), VALUES["[0, 1]"](GREY), "p bernoulli"),
    "8 bits and real": (VALUES["uint8"](GREY), VALUES["real"](GREY), "r gaussian"),
    "[0, 1] and below 0": (VALUES["[0, 1]"](GREY), VALUES["below 0"](GREY), "r gaussian"),
    "colour, 8 bits and floats": (VALUES["uint8"](COLOUR), VALUES["[0, 1]"](COLOUR), "p gaussian"),
    "colour, 8 bits and truth": (VALUES["uint8"](COLOUR), VALUES["truth"](COLOUR), "p gaussian"),
    "colour, 8 bits and 0 or 1": (VALUES["uint8"](COLOUR), VALUES["0 and 1"](COLOUR), "p logistic"),
    "colour, first and last": (
        np.moveaxis(VALUES["uint8"](COLOUR), 3, 1),
        VALUES["uint8"](COLOUR),
        "p logistic",
    ),
    "colour and three equal channels": (
        VALUES["uint8"](COLOUR),
        np.stack([VALUES["uint8"](GREY)] * 3, 3),
        "p logistic",
    ),
    "counts of two types": (
        VALUES["int64 to 16"](AXES["rows"]),
        VALUES["floats to 16"](AXES["rows"]),
        "c negative",
    ),
    "8 bits and more": (VALUES["uint8"](AXES["rows"]), VALUES["16 bits"](AXES["rows"]), "c negative"),
    "counts and reals": (VALUES["int64 to 16"](AXES["rows"]), VALUES["real"](AXES["rows"]), "t gaussian"),
    "counts and NaN": (VALUES["int64 to 16"](AXES["rows"]), VALUES["NaN"](AXES["rows"]), "NaN v"),
    "colour and grey": (
        VALUES["uint8"](COLOUR),
        VALUES["uint8"](GREY),
        "x_test holds grey images, but x_train colour ones; make three channels: "
        "x_test = np.stack([x_test] * 3, axis=3)",
    ),
    "grey, one channel first, and colour": (
        VALUES["uint8"](GREY)[:, None],
        VALUES["uint8"](COLOUR),
        "make three channels: x_train = np.repeat(x_train, 3, axis=1)",
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", MIXED)
def test_splits_of_different_types_are_of_one_kind(loaded, form, kind):
    train, test, expected = MIXED[kind]
    given_arrays = {"x_train": train, "x_test": test}
    if expected not in CHOICES:
        with pytest.raises(DataError) as refusal:
            loaded(form, given_arrays)
        assert REFUSED.get(expected, expected) in str(refusal.value)
        if "three channels" in expected:
            line = str(refusal.value).split("three channels: ")[1]
            exec(line, {"np": np} | given_arrays, given_arrays)
            assert loaded(form, given_arrays)[0].likelihood == "logistic"
        return
    dataset, _ = loaded(form, given_arrays)
    assert (type(dataset.transform), dataset.likelihood) == (
        FORM_OF[CHOICES[expected][0]],
        CHOICES[expected][1],
    )
    if kind.endswith("0 or 1"):  # where a trained model asks what is meant
        np.testing.assert_array_equal(dataset.x_test, test.astype(np.float32) / np.float32(255))
    else:
        np.testing.assert_array_equal(dataset.x_test, dataset.transform.rows(test)[:])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kinds", [("truth", "uint8"), ("uint8", "truth"), ("0 and 1", "uint8")])
def test_a_model_takes_the_integers_of_all_splits(loaded, form, kinds):
    given_arrays = {name: VALUES[kind](GREY) for name, kind in zip(("x_train", "x_test"), kinds, strict=True)}
    dataset, _ = loaded(form, given_arrays)
    assert dataset.white == dataset.transform.white == 255
    np.testing.assert_array_equal(dataset.transform.rows(given_arrays["x_test"])[:], dataset.x_test)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("axes", "line"), [((3, 3), 3), ((1, 1), 1), ((1, 3), 1)])
def test_the_line_that_makes_colour_grey(loaded, form, axes, line):
    x_train, x_test = VALUES["uint8"](COLOUR), VALUES["uint8"](COLOUR)[::2]
    given_arrays = {"x_train": np.moveaxis(x_train, 3, axes[0]), "x_test": np.moveaxis(x_test, 3, axes[1])}
    with pytest.raises(DataError, match=rf"x_train = x_train.mean\(axis={line}\).astype\(x_train.dtype\)") as refusal:
        loaded(form, given_arrays, likelihood="bernoulli")
    assert str(refusal.value).endswith(", and x_test likewise") == (axes[0] == axes[1])


@pytest.mark.parametrize(
    ("x", "note"),
    [
        (VALUES["uint8"](COLOUR), "colour images: the likelihood is logistic; --likelihood gaussian is another choice"),
        (VALUES["[0, 1]"](COLOUR), "colour images: the likelihood is gaussian; logistic takes integers from 0 to 255"),
        (
            VALUES["[-1, 1]"](COLOUR),
            "images with values from -1 to 1: the likelihood is gaussian; bernoulli takes grey pixels in [0, 1]",
        ),
        (VALUES["real"](AXES["rows"]), "columns of numbers from -7 to 300: the likelihood is gaussian"),
        (
            VALUES["int64 to 16"](AXES["rows"]),
            "whole numbers from 0 to 16, taken as counts: the likelihood is negative_binomial; --likelihood poisson or "
            "gaussian are other choices",
        ),
        (
            VALUES["[0, 1]"](AXES["rows"]),
            "rows of numbers from 0 to 1, taken as pixels: the likelihood is bernoulli; --likelihood gaussian takes "
            "columns of a table",
        ),
        (
            VALUES["int64 to 255"](AXES["rows"]),
            "rows of numbers from 0 to 255, taken as pixels: the likelihood is bernoulli; --likelihood gaussian takes "
            "columns of a table; negative_binomial takes counts; x is int64 from 0 to 255: taken as 8-bit pixels",
        ),
    ],
)
def test_what_auto_says(loaded, x, note):
    assert loaded("npz", {"x": x})[1] == f"mine: {note}\n"


# Rows that stay in their file

KINDS = {
    "grey": (VALUES["uint8"], GREY, "auto"),
    "colour, last": (VALUES["uint8"], COLOUR, "auto"),
    "colour, first": (lambda shape: np.moveaxis(VALUES["uint8"](shape), 3, 1), COLOUR, "auto"),
    "colour, floats": (VALUES["[0, 1]"], COLOUR, "gaussian"),
    "colour, real, first": (lambda shape: np.moveaxis(VALUES["real"](shape), 3, 1), COLOUR, "auto"),
    "real": (VALUES["real"], GREY, "auto"),
    "real, float16": (lambda shape: VALUES["real"](shape).astype(np.float16), GREY, "auto"),
    "real, Fortran's order": (lambda shape: np.asfortranarray(VALUES["real"](shape)), GREY, "auto"),
    "real, other byte order": (lambda shape: VALUES["real"](shape).astype(">f8"), GREY, "auto"),
    "table": (VALUES["real"], AXES["rows"], "auto"),
    "table, other byte order": (lambda shape: VALUES["real"](shape).astype(">f8"), AXES["rows"], "auto"),
    "table, Fortran's order": (lambda shape: np.asfortranarray(VALUES["real"](shape)), AXES["rows"], "auto"),
    "table of integers": (VALUES["below 0"], AXES["rows"], "auto"),
    "counts": (VALUES["int64 to 16"], AXES["rows"], "auto"),
    "counts, other byte order": (lambda shape: VALUES["int64 to 16"](shape).astype(">i4"), AXES["rows"], "auto"),
    "counts, images": (VALUES["uint8"], GREY, "poisson"),
    "counts, Fortran's order": (lambda shape: np.asfortranarray(VALUES["16 bits"](shape)), AXES["rows"], "auto"),
}


@pytest.mark.parametrize("one_piece", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_npy_and_npz_give_the_same_rows(loaded, monkeypatch, kind, one_piece):
    monkeypatch.setattr(arrays_module, "CHUNK", 200)  # three images of 60
    make, shape, likelihood = KINDS[kind]
    x, y = make(shape), np.arange(30) % 3
    given_arrays = {"x": x, "y": y}
    if not one_piece:
        given_arrays = {"x_train": x, "y_train": y, "x_val": x[5:9], "y_val": y[5:9], "x_test": x[:4], "y_test": y[:4]}
    (there, said), (here, also) = (loaded(form, given_arrays, likelihood=likelihood) for form in ("folder", "npz"))
    assert isinstance(there.x_train, MappedImages) and isinstance(there.x_train.stored, np.memmap)
    assert isinstance(here.x_train, np.ndarray) and here.x_train.flags.c_contiguous
    assert (there.likelihood, there.transform, there.sizes) == (here.likelihood, here.transform, here.sizes)
    assert there.checksum == here.checksum and said.split(": ", 1)[-1:] == also.split(": ", 1)[-1:]
    assert (there.x_train.shape, there.x_train.ndim) == (here.x_train.shape, here.x_train.ndim)
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(there, field)[:], getattr(here, field))
    for which in (0, -1, np.int64(3), slice(1, 9, 2), np.array([4, 4, 0]), [2, 1]):
        np.testing.assert_array_equal(there.x_train[which], here.x_train[which])
        assert there.x_train[which].dtype == np.float32
    start, other = (starting_likelihood(each).start for each in (there, here))
    assert (start is None) == (other is None)
    if start is not None:
        np.testing.assert_array_equal(start, other)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith(("grey", "colour, l", "colour, f"))])
def test_rows_of_a_file_are_not_taken_for_the_users(loaded, kind):
    make, shape, likelihood = KINDS[kind]
    dataset, _ = loaded("folder", {"x": make(shape)}, likelihood=likelihood)
    if not isinstance(dataset.transform, TableTransform):
        with pytest.raises(DataError, match="x holds rows as the model takes them; give them as they are in their"):
            dataset.transform.rows(dataset.x_train)


# Transforms


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_transform_and_undone(loaded, form, kind):
    make, shape, likelihood = KINDS[kind]
    x = make(shape)
    dataset, _ = loaded(form, {"x_train": x, "x_val": x[3:9], "x_test": x[::2]}, likelihood=likelihood)
    for rows, saved in ((dataset.x_train[:], x), (dataset.x_val, x[3:9]), (dataset.x_test, x[::2])):
        np.testing.assert_array_equal(dataset.transform.rows(saved)[:], rows)
        undone, plain = dataset.transform.undo(rows), np.moveaxis(saved, 1, 3) if kind.endswith("first") else saved
        plain = plain / np.float32(255) if isinstance(dataset.transform, PixelTransform) and x.dtype == "u1" else plain
        # float32 has a relative rounding of 6e-8, of numbers that are at most 3 deviations from their mean
        np.testing.assert_allclose(undone, plain, rtol=1e-6, atol=1e-4 if "counts" not in kind else 0)


@pytest.mark.parametrize("form", FORMS)
def test_transforms_know_the_training_rows_alone(loaded, form):
    images, rows, counts = VALUES["real"](GREY), VALUES["real"](AXES["rows"]), VALUES["16 bits"](AXES["rows"])
    real, table, total = (
        loaded(form, {"x_train": x, "x_val": x + 1000, "x_test": x + 5000})[0].transform
        for x in (images, rows, counts.astype(int))
    )
    assert (real.mean, real.deviation) == (pytest.approx(images.mean()), pytest.approx(images.std()))
    np.testing.assert_allclose([column.mean for column in table.columns], rows.mean(axis=0))
    np.testing.assert_allclose([column.scale for column in table.columns], rows.std(axis=0))
    assert total.total == np.median(counts.sum(axis=1, dtype=int))


@pytest.mark.parametrize("form", FORMS)
def test_transforms_know_the_training_rows_that_were_drawn(loaded, form):
    """Undone rows are known to 1e-6, the rounding of float32; the moments of all rows differ by far more."""
    images, rows, counts = (
        VALUES[kind](shape)[:29] for kind, shape in (("real", GREY), ("real", AXES["rows"]), ("16 bits", AXES["rows"]))
    )
    real, table, total = (loaded(form, {"x": x})[0] for x in (images, rows, counts))
    training = real.transform.undo(real.x_train[:])
    assert real.transform.mean == pytest.approx(training.mean(), rel=1e-6) != pytest.approx(images.mean(), rel=1e-4)
    assert real.transform.deviation == pytest.approx(training.std(), rel=1e-6)
    training = table.transform.undo(table.x_train[:]).mean(axis=0)
    np.testing.assert_allclose([column.mean for column in table.transform.columns], training, rtol=1e-6)
    assert (np.abs(training - rows.mean(axis=0)) > 0.1).all()
    training = total.transform.undo(total.x_train[:])
    assert total.transform.total == np.median(training.sum(axis=1)) != np.median(counts.sum(axis=1, dtype=int))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("axes", ["rows", "images"])
def test_counts_have_the_log_of_their_size_factor(loaded, form, axes):
    x = random().poisson(3.0, AXES[axes]) * (np.arange(30) % 7).reshape(-1, *[1] * (len(AXES[axes]) - 1))
    assert not x[0].any() and not x[7].any()  # rows without counts
    dataset, _ = loaded(form, {"x_train": x, "x_val": x[:5], "x_test": x[3:]}, likelihood="poisson")
    for rows, counts in ((dataset.x_train[:], x), (dataset.x_val, x[:5]), (dataset.x_test, x[3:])):
        flat = counts.reshape(len(counts), -1)
        np.testing.assert_array_equal(rows[:, :-1], flat)
        totals, median = np.maximum(flat.sum(axis=1), 1), np.median(x.reshape(30, -1).sum(axis=1))
        np.testing.assert_allclose(rows[:, -1], np.log(totals / median), rtol=1e-6, atol=1e-7)  # of float32
    assert dataset.transform.undo(dataset.x_val).shape == x[:5].shape


def test_nothing_but_zeros_are_counts():
    dataset = as_dataset(np.zeros((20, 3), int), "poisson")
    assert dataset.transform.total == 1.0 and not dataset.x_train.any()


@pytest.mark.parametrize("value", [3.1, -7.0, 1e9 + 0.1, 1e-3 - 1])
def test_constant_images_are_zeros(value):
    dataset = as_dataset(np.full((20, 3, 4), value))
    assert not dataset.x_train.any() and dataset.transform.deviation == 1.0
    np.testing.assert_allclose(dataset.transform.undo(dataset.x_test), value, rtol=1e-7)  # of float32


REALS = hnp.arrays(np.float64, (12, 2, 3), elements=st.floats(-1e6, 1e6, width=32))


@given(REALS)
@QUICK
def test_real_images_come_back(x):
    transform = RealTransform.fit(x)
    rows = transform.rows(x)
    assert rows.dtype == np.float32 and abs(rows.astype(float).mean()) < 1e-5
    largest = np.abs(x - x.mean()).max() + np.abs(x).max()
    np.testing.assert_allclose(transform.undo(rows), x, rtol=1e-6, atol=3e-7 * largest)  # two roundings of float32


@given(hnp.arrays(st.sampled_from([np.uint8, np.int64, np.float32]), (9, 4), elements=st.integers(0, 255)))
@QUICK
def test_counts_come_back(x):
    transform = CountTransform.fit(x)
    np.testing.assert_array_equal(transform.undo(transform.rows(x)), x)
    np.testing.assert_array_equal(transform.rows(scipy.sparse.csr_matrix(x)), transform.rows(x))


def test_real_images_for_a_model_may_have_their_channels_anywhere():
    x = VALUES["real"](COLOUR)
    colour, grey = RealTransform.fit(x), RealTransform.fit(x[..., 0])
    np.testing.assert_array_equal(colour.rows(np.moveaxis(x, 3, 1)), colour.rows(x))
    expected = grey.rows(x[..., 0])
    for channels in (x[..., :1], x[:, None, ..., 0], np.stack([x[..., 0]] * 3, 3), np.stack([x[..., 0]] * 3, 1)):
        np.testing.assert_array_equal(grey.rows(channels), expected)
    counts = CountTransform.fit(VALUES["uint8"](GREY))
    assert counts.rows(VALUES["uint8"](GREY)[:, None]).shape == (30, 21)
    for transform in (grey, counts):
        with pytest.raises(DataError, match="x holds colour images"):
            transform.rows(np.abs(np.rint(x)))
    for transform in (colour, grey, counts, PixelTransform((4, 5, 3))):
        assert len(transform.rows([])) == 0
        with pytest.raises(DataError, match=r"this model takes \(n, 4, 5"):
            transform.rows(np.zeros((3, 5, 4)))


ROWS_REFUSED = {
    "NaN": (
        RealTransform((2,), 0.0, 1.0),
        [[0.0, np.nan]],
        "x has NaN or infinite values; leave out those rows: x = x[",
    ),
    "words": (RealTransform((2,), 0.0, 1.0), [["a", "b"]], "x has dtype <U1"),
    "masked": (CountTransform((2,), 1.0), np.ma.masked_equal([[1, 2]], 2), "x has masked values"),
    "halves": (CountTransform((2,), 1.0), [[0.5, 1.0]], "x holds other numbers than counts: this model takes whole"),
    "below 0": (CountTransform((2,), 1.0), [[-1, 1]], "x holds other numbers than counts"),
    "NaN counts": (CountTransform((2,), 1.0), [[np.nan, 1]], "x holds other numbers than counts"),
    "a column less": (CountTransform((2,), 1.0, ("a", "b")), pd.DataFrame({"a": [1]}), "the table has no column b"),
    "one row": (CountTransform((2,), 1.0), [1, 2], "for one image pass x[None]"),
}


@pytest.mark.parametrize("kind", ROWS_REFUSED)
def test_rows_that_a_transform_refuses(kind):
    transform, x, message = ROWS_REFUSED[kind]
    with pytest.raises(DataError) as refusal:
        transform.rows(x)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


# Transforms in config.json

FRAME = pd.DataFrame(
    {"size": [1.5, 2.0, 4.0] * 9, "kind": ["a", "b", ""] * 9, "doors": [3, 5, 3] * 9, "new": [True] * 27}
)
SAVED = {
    "pixels": PixelTransform((4, 5)),
    "pixels, black and white": PixelTransform((4, 5, 3), 1),
    "real": RealTransform.fit(VALUES["real"](COLOUR)),
    "counts": CountTransform.fit(VALUES["16 bits"](GREY)),
    "counts with names": CountTransform.fit(VALUES["16 bits"]((9, 2)), ("a", "b\n")),
    "table": TableTransform.fit(FRAME, slice(None)),
    "table of an array": TableTransform.fit(VALUES["real"](AXES["rows"]), slice(3, 9)),
}
ROW_SHAPES = {"pixels": lambda t: t.shape, "real": lambda t: t.shape, "table": lambda t: (t.width,)}


def in_config(transform) -> dict:
    record = as_record(transform)
    shape = ROW_SHAPES.get(record["kind"], lambda t: (int(np.prod(t.shape)) + 1,))(transform)
    saved = {"image_shape": shape, "white": getattr(transform, "white", 255), "transform": record}
    return json.loads(json.dumps(saved, allow_nan=False))


@pytest.mark.parametrize("kind", SAVED)
def test_transforms_are_saved(kind):
    again = transform_of(in_config(SAVED[kind]))
    assert again == SAVED[kind] and type(again) is type(SAVED[kind])


def test_runs_of_older_versions_have_pixels():
    assert transform_of({"image_shape": [28, 28]}) == PixelTransform((28, 28))
    assert transform_of({"image_shape": [28, 28], "white": 1}) == PixelTransform((28, 28), 1)


JUNK = st.sampled_from(
    [None, True, "a", "", [], [1, 2], ["a"], {}, {"kind": "real"}, -1, 0, 7, 1.5, float("nan"), [[]]]
)


def places(node, path=()):
    """The path of every value in nested dicts and lists."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield (*path, key)
        yield from places(value, (*path, key))


@pytest.mark.parametrize("kind", SAVED)
@given(drawn=st.data())
@settings(QUICK, max_examples=150)
def test_damaged_transforms_are_refused(kind, drawn):
    saved = in_config(SAVED[kind])
    for _ in range(drawn.draw(st.integers(1, 2))):
        *path, last = drawn.draw(st.sampled_from(list(places(saved))))
        node = saved
        for key in path:
            node = node[key]
        if isinstance(node, dict) and drawn.draw(st.booleans()):
            del node[last]
        else:
            node[last] = copy.deepcopy(drawn.draw(JUNK))
    with contextlib.suppress(ValueError, KeyError):
        assert type(transform_of(saved)) in FORM_OF.values()


@pytest.mark.parametrize("kind", ["real", "counts"])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), 0, -1.0, 10**400, "1", None, True, [1.0]])
def test_numbers_that_no_transform_has(kind, number):
    saved = in_config(SAVED[kind])
    saved["transform"]["deviation" if kind == "real" else "total"] = number
    with pytest.raises(ValueError, match="is not a usable number"):
        transform_of(saved)


# What is refused, and the lines that mend it


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("names", [("x",), ("x", "y"), ("x_train", "y_train"), ("images",), ("data", "labels")])
@pytest.mark.parametrize(
    ("axes", "likelihood"), [("rows", "auto"), ("rows", "poisson"), ("images", "gaussian"), ("colour", "gaussian")]
)
def test_the_line_that_leaves_out_nan(loaded, form, names, axes, likelihood):
    x = np.rint(np.abs(VALUES["real"](AXES[axes])))
    x.reshape(30, -1)[[3, 17, 17], [0, 1, 2]] = np.nan, np.inf, np.nan
    given_arrays = dict(zip(names, (x, np.arange(30) % 3), strict=False))
    if names[0].endswith("_train"):
        given_arrays |= {"x_test": np.nan_to_num(x, posinf=0.0), "y_test": given_arrays["y_train"]}
    with pytest.raises(DataError, match="has NaN or infinite values; leave out those rows, by ") as refusal:
        loaded(form, given_arrays, likelihood=likelihood)
    exec(str(refusal.value).split("those rows, by ")[1], {"np": np}, given_arrays)
    del given_arrays["keep"]
    dataset, _ = loaded(form, given_arrays, likelihood=likelihood)
    assert sum(dataset.sizes.values()) == 28 + len(given_arrays.get("x_test", []))
    if names[1:]:
        y = dataset.y_train if dataset.class_values is None else dataset.class_values[dataset.y_train]
        kept = np.delete(np.arange(30) % 3, [3, 17])
        assert "x_test" in given_arrays or np.bincount(np.concatenate([y, dataset.y_val, dataset.y_test])).tolist() == (
            np.bincount(kept).tolist()
        )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("axes", AXES)
def test_the_line_that_rescales_large_numbers(loaded, form, axes):
    given_arrays = {"x_train": reals(-1, 1)(AXES[axes]) * 4e35, "x_test": reals(-1, 1)(AXES[axes])}
    with pytest.raises(DataError, match=r"x_train has values beyond 1e\+30; rescale them, such as by ") as refusal:
        loaded(form, given_arrays)
    line, others = str(refusal.value).split("such as by ")[1].split(", and ")
    assert (line, others) == ("x_train = x_train / 4e+35", "x_test likewise")
    exec(line, {}, given_arrays)
    assert loaded(form, given_arrays)[0].likelihood == "gaussian"


@pytest.mark.parametrize(
    ("make", "names"),
    [(VALUES["uint8"], "x"), (VALUES["real"], "x"), (VALUES["int64 to 16"], "x_train"), (VALUES["16 bits"], "x_train")],
)
@pytest.mark.parametrize("axes", ["rows", "colour"])
def test_what_does_not_fit_into_memory_is_refused(tmp_path, monkeypatch, make, names, axes):
    x = np.repeat(make(AXES[axes]), 2000, axis=0)
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, **{names: x} | ({"x_test": x[:10]} if names == "x_train" else {}))
    monkeypatch.setattr(data, "memory_available", lambda: x.size * 4.0)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"mine.npz: needs [\d.]+ GB of memory, but [\d.]+ GB are available"):
        load_data(str(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6  # the first MiB of the file is read three times, to recognise other formats


@pytest.mark.parametrize("one_piece", [True, False])
@pytest.mark.parametrize(
    ("kind", "dtype", "axes"),
    [
        ("uint8", "u1", "colour"),
        ("[0, 1]", "f4", "colour"),
        ("real", "f8", "images"),
        ("real", "f4", "images"),
        ("real", "f8", "rows"),
        ("real", "f4", "rows"),
        ("int64 to 16", "i8", "rows"),
        ("int64 to 16", "i4", "rows"),
    ],
)
def test_memory_is_what_was_thought_to_be_needed(tmp_path, monkeypatch, kind, dtype, axes, one_piece):
    for module in (arrays_module, columns):
        monkeypatch.setattr(module, "CHUNK", 2**14)  # whose parts do not count
    shape = {"colour": (15_000, 8, 8, 3), "images": (40_000, 8, 8), "rows": (40_000, 64)}[axes]
    path, x = tmp_path / "mine.npz", VALUES[kind](shape).astype(dtype)
    np.savez(path, **({"x": x} if one_piece else {"x_train": x, "x_test": x[:100]}))
    needed, estimate = [], data._memory_needed
    monkeypatch.setattr(data, "_memory_needed", lambda *known: needed.append(estimate(*known)) or needed[0])
    load_data(str(path))
    tracemalloc.start()
    load_data(str(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.9 * peak < needed[0] < 1.6 * peak


# Tables


def table(count=60):
    """Real numbers, whole ones, words and labels."""
    return pd.DataFrame(
        {
            "height": random(1).normal(170, 9, count),
            "age": random(2).integers(18, 80, count),
            "eyes": random(3).choice(["blue", "brown"], count),
            "label": np.array(["ill", "well", "well"])[np.arange(count) % 3],
        }
    )


@pytest.fixture(params=["csv", "frame"])
def load_table(request, tmp_path):
    """Load a frame, from a CSV or as it is: the Dataset and what was printed."""

    def write_and_load(frame, **options):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            if request.param == "frame":
                return as_dataset(frame, **options), printed
            frame.to_csv(tmp_path / "mine.csv", index=False)
            return load_data(str(tmp_path / "mine.csv"), **options), printed

    def with_text(frame, **options):
        dataset, printed = write_and_load(frame, **options)
        return dataset, printed.getvalue()

    return with_text


def test_tables(load_table):
    frame = table()
    dataset, printed = load_table(frame)
    assert dataset.likelihood == "gaussian" and dataset.image_shape == (4,)
    assert dataset.class_names == ["ill", "well"] and dataset.sizes == {"train": 48, "validation": 6, "test": 6}
    for field, counts in (("y_train", [16, 32]), ("y_val", [2, 4]), ("y_test", [2, 4])):
        assert np.bincount(getattr(dataset, field)).tolist() == counts  # stratified
    assert printed.count("\n") == 1 and printed.split(": ", 1)[1] == (
        "labels are column label; 2 classes: ill, well; 2 columns of numbers, 1 of categories (eyes): "
        "the likelihood is gaussian\n"
    )
    undone = dataset.transform.undo(dataset.x_train)
    assert list(undone) == ["height", "age", "eyes"]
    assert set(undone["eyes"]) == {"blue", "brown"}
    np.testing.assert_allclose(dataset.x_train[:, :2].mean(axis=0), 0, atol=1e-5)  # of float32
    np.testing.assert_allclose(dataset.x_train[:, :2].std(axis=0), 1, atol=1e-5)
    rows = np.concatenate([dataset.x_train, dataset.x_val, dataset.x_test])
    labels = np.concatenate([dataset.y_train, dataset.y_val, dataset.y_test])
    back = dataset.transform.undo(rows).assign(label=np.array(["ill", "well"])[labels])
    for each in (back, frame):  # every row once, with its label
        each["age"] = each["age"].astype(float).round()
    found, expected = (each.sort_values(["age", "height"], ignore_index=True) for each in (back, frame))
    np.testing.assert_allclose(found["height"], expected["height"], rtol=1e-6)  # of float32
    assert found["label"].tolist() == expected["label"].tolist() and found["eyes"].tolist() == expected["eyes"].tolist()


def test_a_column_of_labels_by_name(load_table):
    dataset, printed = load_table(table(), label_column="eyes")
    assert dataset.class_names == ["blue", "brown"] and dataset.transform.names == ("height", "age", "label")
    assert "labels are column eyes; 2 classes: blue, brown" in printed
    with pytest.raises(DataError, match="has no column eye for labels; its columns are height, age, eyes, label"):
        load_table(table(), label_column="eye")


def test_tables_without_labels(load_table):
    dataset, printed = load_table(table().drop(columns="label"))
    assert dataset.y_train is dataset.y_val is dataset.y_test is None and dataset.class_names is None
    assert "labels" not in printed
    assert sum(dataset.sizes.values()) == 60


def test_small_tables(load_table):
    assert sum(load_table(table(10))[0].sizes.values()) == 10
    for likelihood in ("auto", "poisson"):
        with pytest.raises(
            DataError, match=r"has 9 (images|rows), so a split would be empty; give at least 10"
        ) as refusal:
            load_table(table(9)[["age"]], likelihood=likelihood)
        assert "\n" not in str(refusal.value)


def test_pixels_in_a_table(load_table):
    x, y = VALUES["uint8"]((60, 6)), np.arange(60) % 3
    frame = pd.DataFrame(x, columns=[f"pixel{at}" for at in range(6)]).assign(label=y)
    dataset, _ = load_table(frame, likelihood="bernoulli")
    expected = as_dataset((x, y), "bernoulli")
    assert dataset.checksum == expected.checksum and dataset.transform == expected.transform
    assert load_table(frame)[0].likelihood == "gaussian"
    said = "all numbers are whole, and 0 or more: --likelihood negative_binomial takes them as counts"
    assert f"{said} and bernoulli as pixels" in load_table(frame)[1]


@pytest.mark.parametrize("likelihood", ["poisson", "negative_binomial"])
def test_counts_in_a_table(load_table, likelihood):
    x, y = VALUES["16 bits"]((60, 3)), np.arange(60) % 2
    frame = pd.DataFrame(x, columns=["gene a", "b", "c"])
    dataset, _ = load_table(frame.assign(label=y), likelihood=likelihood)
    expected = as_dataset((x, y), likelihood)
    assert dataset.checksum == expected.checksum and dataset.likelihood == likelihood
    assert dataset.transform.names == ("gene a", "b", "c")
    np.testing.assert_array_equal(dataset.transform.rows(frame[["c", "gene a", "b"]]), expected.transform.rows(x))
    pd.testing.assert_frame_equal(dataset.transform.undo(dataset.transform.rows(frame)), frame.astype("float32"))
    with pytest.raises(DataError, match=f"--likelihood {likelihood} takes whole numbers from 0, but x has others"):
        load_table(frame / 2, likelihood=likelihood)


@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson"])
def test_words_are_no_pixels_and_no_counts(load_table, likelihood):
    with pytest.raises(DataError, match="takes a table of numbers, and column eyes holds others; choose gaussian"):
        load_table(table(), likelihood=likelihood)


@pytest.mark.parametrize("likelihood", ["poisson", "bernoulli"])
@pytest.mark.parametrize(
    "change", [lambda f: f.assign(c=f["a"] > 0), lambda f: f.astype("Int64")], ids=["truth", "Int64"]
)
def test_integers_of_pandas(change, likelihood):
    frame = change(pd.DataFrame({"a": np.arange(60) % 2, "b": np.arange(60) % 3 // 2}))
    dataset = as_dataset(frame, likelihood)
    np.testing.assert_array_equal(dataset.x_train, as_dataset(frame.to_numpy().astype(int), likelihood).x_train)


def test_a_column_of_labels_is_for_tables_alone(tmp_path):
    np.savez(tmp_path / "mine.npz", x=VALUES["uint8"](GREY), y=np.arange(30))
    with pytest.raises(
        DataError, match=r"mine.npz: is no table, so that --label-column has no meaning; give labels as"
    ):
        load_data(str(tmp_path / "mine.npz"), label_column="y")


def test_columns_that_are_constant_in_the_training_rows_are_left_out(capsys):
    frame = pd.DataFrame({"a": np.linspace(0, 1, 60), "same": 101325.0, "word": "yes"})
    dataset = as_dataset(frame)
    assert dataset.transform.names == ("a",)
    printed = capsys.readouterr().out
    assert all(f"column {name} is left out, since it is constant" in printed for name in ("same", "word"))
    with pytest.raises(DataError, match="all columns are constant"):
        as_dataset(frame[["same"]])


def test_a_dataset_keeps_its_likelihood():
    dataset = as_dataset(np.random.default_rng(0).random((60, 4, 4)))
    assert as_dataset(dataset, "bernoulli") is dataset
    for options in ({"likelihood": "poisson"}, {"label_column": "kind"}):
        with pytest.raises(DataError, match="is a Dataset, whose likelihood is bernoulli"):
            as_dataset(dataset, **options)


@pytest.mark.parametrize("script", [avb, vae_baseline])
def test_other_likelihoods_are_not_binarised(script):
    """AVB's default would make colours black and white; a choice that does so is refused."""
    dataset = as_dataset(np.random.default_rng(0).integers(0, 256, (300, 4, 4, 3), np.uint8))
    assert run.fitted(script.Config(batch_size=20), dataset).binarisation == "none"
    with pytest.raises(RunError, match="--binarisation threshold is for black and white pixels"):
        run.fitted(script.Config(batch_size=20, binarisation="threshold"), dataset)


def test_a_model_without_a_code_knows_the_training_rows_alone():
    random = np.random.default_rng(0)
    train, test = random.normal(0.0, 2.0, (400, 3)), random.normal(1.0, 3.0, (200, 3))
    expected = -stats.norm(train.mean(axis=0), train.std(axis=0)).logpdf(test).sum(axis=1).mean()
    found = constant_model(Gaussian((3,), table=True), train.astype("float32"), test.astype("float32"))
    assert found == pytest.approx(expected, rel=1e-5)  # float32
