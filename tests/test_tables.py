"""Tables: read as they were written, taken and given back in their own units, and refused in words."""

import gzip
import json
import mmap
import os
import pickle
import tempfile
from datetime import date
from decimal import Decimal
from pathlib import Path

from common import columns, tables
from common.arrays import DataError
from common.columns import Column, TableTransform
from common.tables import as_frame, is_table, read_table, split_labels

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import OneHotEncoder, StandardScaler

ROWS = 60
TRAINING = np.arange(0, 60, 2)
HALF_ULP = 2.0**-24  # relative error of a number that is rounded to float32


def example(seed=0, rows=ROWS):
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "length": random.normal(1e4, 3.0, rows),
            "doors": np.arange(rows) % 4 + 2,
            "colour": np.array(["red", "green", "blé"])[np.arange(rows) % 3],
            "sold": np.arange(rows) % 5 < 2,
            "price": random.lognormal(size=rows),
            "year": 1990 + np.arange(rows) % 30,
            "make": np.array(["a", "b", "c d"])[np.arange(rows) // 5 % 3],
        }
    )


def written(path: Path, frame: pd.DataFrame, **options) -> Path:
    if path.suffix == ".parquet":
        frame.to_parquet(path, **options)
    else:
        frame.to_csv(path, **{"index": False, **options})
    return path


def fitted(frame, training=TRAINING):
    return TableTransform.fit(frame, training)


FORMS = {
    "commas.csv": {},
    "semicolons.csv": {"sep": ";"},
    "decimals.csv": {"sep": ";", "decimal": ","},
    "tabs.tsv": {"sep": "\t", "decimal": ","},
    "bars.txt": {"sep": "|"},
    "marked.csv": {"encoding": "utf-8-sig"},
    "latin.csv": {"encoding": "latin-1"},
    "wide.csv": {"encoding": "utf-16", "sep": "\t"},
    "packed.csv.gz": {},
    "quoted.csv": {"quoting": 1},
    "old.csv": {"lineterminator": "\r"},
    "windows.csv": {"lineterminator": "\r\n"},
    "table.parquet": {},
}


# Files


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_file_gives_the_same_table(tmp_path, name):
    path = written(tmp_path / name, example(), **FORMS[name])
    assert is_table(path)
    pd.testing.assert_frame_equal(read_table(path), example(), check_exact=False, rtol=1e-15)  # pandas' own parser


def source_of(array):
    while isinstance(array, np.ndarray):
        array = array.base
    return array


@pytest.mark.parametrize("name", FORMS)
def test_a_table_read_in_parts_is_the_same_but_for_its_types(tmp_path, monkeypatch, name):
    frame = example()
    frame.loc[[3, 40], "make"] = None
    path = written(tmp_path / name, frame, **FORMS[name])
    whole = read_table(path)
    monkeypatch.setattr(tables, "LARGE", 10)
    monkeypatch.setattr(tables, "CHUNK", 7 * 9)
    monkeypatch.setattr(columns, "CHUNK", 7 * 11)
    large = read_table(path)
    assert list(large.columns) == list(whole.columns) and isinstance(large.colour.dtype, pd.CategoricalDtype)
    assert isinstance(source_of(large["length"].to_numpy()), mmap.mmap)
    np.testing.assert_array_equal(large["length"], whole["length"])
    first, second = fitted(whole), fitted(large)
    assert [(each.name, each.values) for each in first.columns] == [(each.name, each.values) for each in second.columns]
    np.testing.assert_array_equal(second.apply(whole), second.apply(large))
    np.testing.assert_allclose(first.apply(large), second.apply(large), rtol=1e-6, atol=1e-6)  # sums in another order


def test_numbers_that_become_words_in_a_later_part_are_named(tmp_path, monkeypatch):
    frame = example().assign(price=[str(at) for at in range(ROWS - 1)] + ["none left"])
    path = written(tmp_path / "t.csv", frame)
    monkeypatch.setattr(tables, "LARGE", 10)
    monkeypatch.setattr(tables, "CHUNK", 70)
    said = "column price has only numbers or gaps in one part, and words in another, near row 50"
    with pytest.raises(DataError, match=said):
        read_table(path)


def test_no_temporary_file_is_left(tmp_path, monkeypatch):
    path = written(tmp_path / "t.csv", example())
    monkeypatch.setattr(tables, "LARGE", 10)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    frame = read_table(path)
    assert list((tmp_path / "temporary").iterdir()) == [] and len(frame) == ROWS


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.csv.gz"])
def test_a_table_larger_than_memory_or_disk_is_refused(tmp_path, monkeypatch, name):
    path = written(tmp_path / name, example())
    with monkeypatch.context() as patch:
        patch.setattr(tables, "memory_available", lambda: 5_000.0)
        with pytest.raises(DataError, match=r"needs .* GB for memory, but 0.0 GB are available; give fewer rows"):
            read_table(path)
    monkeypatch.setattr(tables, "LARGE", 10)
    monkeypatch.setattr(tables.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(DataError, match=r"for temporary files \(TMPDIR\)"):
        read_table(path)


def test_the_unpacked_size_counts(tmp_path, monkeypatch):
    path = tmp_path / "bomb.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n" + b"0,0\n" * 2_000_000))
    assert path.stat().st_size < 50_000
    monkeypatch.setattr(tables, "memory_available", lambda: 5e7)
    with pytest.raises(DataError, match="for memory"):
        read_table(path)


def text(tmp_path, content, name="t.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("1,2\n3,4\n", r"numbers in its first row \(1, 2\).*columns' names.*header=None.*add_prefix\('x'\)"),
        ("5.1,3.5,setosa\n4.9,3.0,setosa\n", r"first row \(5.1, 3.5\)"),
        ("a,b\n", "has a header, but no rows"),
        ("a,b\n1,2,3\n4,5,6\n", "has rows with more cells than its header"),
        ("a,b\n1,2,3\n2,4,5\n3,6,7\n", "has rows with more cells than its header"),
        ("a,b\n1,2\n1,2,3\n", "cannot be read .*Expected 2 fields in line 3, saw 3"),
        ('a,b\n1,"2\n', "cannot be read .*EOF inside string"),
        (b"a,b\n1,\0\n", "neither Parquet nor a text"),
        (b"\x00\x01\x02", "neither Parquet nor a text"),
        ("", "neither Parquet nor a text"),
    ],
)
def test_a_csv_that_cannot_be_used_is_refused_in_words(tmp_path, content, words):
    with pytest.raises(DataError, match=words):
        read_table(text(tmp_path, content))


def test_the_line_for_a_table_without_a_header_gives_it_one(tmp_path, monkeypatch):
    path = text(tmp_path, "5.1;3.5;setosa\n4.9;3.0;virginica\n", "no names.csv")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        read_table(path)
    line = str(caught.value).split("no names: ")[1].split("; then call")[0]
    exec(line, {})
    frame = read_table("named.csv")
    assert list(frame.columns) == ["x0", "x1", "x2"] and frame.x0.tolist() == [5.1, 4.9] and len(frame) == 2


@pytest.mark.parametrize("index", [False, True])
def test_names_that_count_from_0_are_names(tmp_path, index):
    path = written(tmp_path / "t.csv", pd.DataFrame(np.arange(12.0).reshape(3, 4) / 8), index=index)
    frame, labels, notes = split_labels(read_table(path))
    assert list(frame.columns) == ["0", "1", "2", "3"] and labels is None and len(notes) == index


def test_spaces_after_commas_empty_lines_and_commas_in_words(tmp_path):
    frame = read_table(text(tmp_path, 'a, b, "c"\n\n1, "x, y", 2.5\n2, z, 3\n\n'))
    assert list(frame.columns) == ["a", "b", "c"] and frame.b.tolist() == ["x, y", "z"] and frame.c.tolist() == [2.5, 3]


def test_semicolons_keep_a_decimal_point(tmp_path):
    frame = read_table(text(tmp_path, "a;b, EUR\n1.5;2\n2.5;3\n"))
    assert frame.a.tolist() == [1.5, 2.5] and list(frame.columns) == ["a", "b, EUR"]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"a b\n1 2\n", "t.txt"),
        (b"1 1:0.5 2:3\n0 1:1\n", "t.txt"),
        (b'{"a": 1, "b": 2}\n{"a": 3, "b": 4}\n', "t.csv"),
        (b"<html><p>a,b\n1,2\n", "t.csv"),
        (b"version https://git-lfs.github.com/spec/v1\noid a,b\n", "t.csv"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "t.csv"),
        (b"\x93NUMPY" + bytes(20), "t.parquet"),
        (b"", "t.csv"),
        (b"\x1f\x8b", "t.csv.gz"),
    ],
)
def test_other_files_are_no_tables(tmp_path, content, name):
    assert not is_table(text(tmp_path, content, name))


def test_a_folder_or_nothing_is_no_table(tmp_path):
    assert not is_table(tmp_path) and not is_table(tmp_path / "none.csv")


def test_a_csv_whose_first_column_is_par1_is_text(tmp_path):
    path = text(tmp_path, "PAR1,PAR2\n1.5,2\n2.5,3\n")
    assert is_table(path) and read_table(path).PAR1.tolist() == [1.5, 2.5]


def test_a_parquet_file_without_its_first_bytes_is_named(tmp_path):
    path = written(tmp_path / "t.parquet", example())
    path.write_bytes(b"\0" + path.read_bytes()[5:-4])
    assert is_table(path)
    with pytest.raises(DataError, match="Parquet magic bytes not found"):
        read_table(path)


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "w.csv", "t.parquet", "plain.parquet"])
def test_a_damaged_file_gives_a_table_or_a_message(tmp_path, name):
    options = {"w.csv": {"encoding": "utf-16"}, "plain.parquet": {"compression": None}}.get(name, {})
    whole, random, ends = written(tmp_path / name, example(), **options).read_bytes(), np.random.default_rng(0), set()
    for _ in range(120):
        damaged = bytearray(whole)
        at = int(random.integers(len(whole)))
        action = random.integers(4)
        if action == 0:
            del damaged[at:]
        elif action == 1:
            damaged[at] ^= 1 << int(random.integers(8))
        elif action == 2:
            damaged[at:at] = random.bytes(int(random.integers(1, 30)))
        else:
            damaged[-1 - int(random.integers(min(700, len(whole)))) :] = random.bytes(20)
        path = text(tmp_path, bytes(damaged), f"damaged_{name}")
        try:
            is_table(path)
            frame, _, _ = split_labels(read_table(path))
            transform = TableTransform.fit(frame, slice(0, 10))
            assert np.isfinite(transform.apply(frame)).all()
            ends.add("table")
        except DataError as error:
            assert "\n" not in str(error) and len(str(error)) < 700
            ends.add("message")
    assert "message" in ends


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_file_is_executed(tmp_path):
    trap = pickle.dumps(Trap(tmp_path / "sprung"), 0)
    formula = f"=cmd|'/c mkdir {tmp_path}/sprung'!A1"
    path = written(tmp_path / "t.csv", example().assign(make=formula, colour=trap.decode(), **{formula: 1.5}))
    frame = read_table(path)
    assert frame.make.tolist() == [formula] * ROWS and formula in frame.columns
    fitted(frame).apply(frame)
    keys = [b"ARROW:extension:name", b"ARROW:extension:metadata"]
    field = pa.field("a", pa.float64(), metadata=dict(zip(keys, [b"arrow.py_extension_type", trap], strict=True)))
    table = pa.Table.from_arrays([pa.array(np.arange(20.0))], schema=pa.schema([field], {b"pandas": trap}))
    pq.write_table(table, tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").a.tolist() == list(range(20))
    assert read_table(written(tmp_path / "objects.parquet", pd.DataFrame({"a": [trap] * 20}))).a[0] == trap
    with pytest.raises(DataError, match="a has neither numbers nor words, but objects of the kind bytes"):
        fitted(read_table(tmp_path / "objects.parquet"), slice(5))
    assert not (tmp_path / "sprung").exists()
    pickle.loads(trap)
    assert (tmp_path / "sprung").exists()


# Frames and labels


def test_frames_of_other_libraries():
    frame = example()
    others = {
        "pyarrow": pa.Table.from_pandas(frame),
        "nullable": frame.convert_dtypes(),
        "arrow": frame.convert_dtypes(dtype_backend="pyarrow"),
        "categories": frame.astype({"colour": "category", "doors": "category"}),
        "objects": frame.astype({"colour": object}),
    }
    expected = fitted(frame)
    for name, other in others.items():
        transform = fitted(other)
        assert transform == expected, name
        np.testing.assert_array_equal(transform.apply(other), expected.apply(frame))


def test_polars():
    polars = pytest.importorskip("polars")
    frame = polars.from_pandas(example())
    assert fitted(frame) == fitted(example())
    np.testing.assert_array_equal(fitted(frame).apply(frame), fitted(example()).apply(example()))
    categorical = frame.with_columns(polars.col("colour").cast(polars.Categorical))
    assert fitted(categorical) == fitted(example())


@pytest.mark.parametrize("data", [np.zeros((3, 2)), [[1.0]], "a", {"x": np.zeros(3)}, None])
def test_other_data_are_no_frame(data):
    assert as_frame(data) is None


def test_a_frame_is_not_changed():
    frame = example().rename(columns={"length": 7})
    before = frame.copy()
    rest, _, _ = split_labels(as_frame(frame), "make")
    fitted(rest).apply(rest)
    pd.testing.assert_frame_equal(frame, before)
    assert next(iter(rest.columns)) == "7"


@pytest.mark.parametrize(
    ("names", "words"), [(["a", "a"], "two columns are called a"), ([1, "1"], "two columns are called 1")]
)
def test_names_have_to_differ(names, words):
    with pytest.raises(DataError, match=words):
        as_frame(pd.DataFrame(np.zeros((3, 2)), columns=names))
    with pytest.raises(DataError, match="has no columns"):
        as_frame(pd.DataFrame(index=[1, 2]))


@pytest.mark.parametrize("name", ["label", "Class", "TARGET", " y "])
@pytest.mark.parametrize("values", [["a", "b", "a"], [3, 1, 1], [1.0, 0.0, 2.0], [True, False, True]])
def test_labels_are_found_by_name(name, values):
    frame = as_frame(pd.DataFrame({"a": [1.5, 2.5, 3.5], name: values, "b": [0.1, 0.2, 0.3]}))
    rest, labels, notes = split_labels(frame)
    assert list(rest.columns) == ["a", "b"] and labels.tolist() == values and labels.dtype.kind in "biufU"
    assert notes == [f"labels are column {tables.visible(name)}"]


def test_real_numbers_are_no_labels():
    frame = pd.DataFrame({"a": [1.5, 2.5], "y": [0.5, 1.0], "words": ["u", "v"]})
    rest, labels, notes = split_labels(frame)
    assert labels is None and list(rest.columns) == list(frame.columns)
    assert notes == ["column y has real numbers: a column like the others, and no labels"]
    with pytest.raises(DataError, match=r"y has real numbers, and labels are classes; .* pd\.cut\(df\['y'\], 4\)"):
        split_labels(frame, "y")
    rest, labels, _ = split_labels(frame, "words")
    assert list(rest.columns) == ["a", "y"] and labels.tolist() == ["u", "v"]
    with pytest.raises(DataError, match="has no column kind for labels; its columns are a, y, words"):
        split_labels(frame, "kind")


def test_missing_labels_and_a_table_of_labels_alone_are_refused():
    with pytest.raises(DataError, match=r"y has 1 missing labels; .*df.dropna\(subset=\['y'\]\)"):
        split_labels(pd.DataFrame({"a": [1.5, 2.5], "y": ["u", None]}))
    with pytest.raises(DataError, match="no columns beside labels"):
        split_labels(pd.DataFrame({"id": [0, 1], "y": ["u", "v"]}))


@pytest.mark.parametrize("name", ["", "ID", "index", "Unnamed: 0"])
def test_columns_that_number_the_rows_are_left_out(name):
    for start, left in [(0, True), (1, True), (2, False)]:
        rest, _, notes = split_labels(pd.DataFrame({name: start + np.arange(5), "a": np.arange(5.0)}))
        assert (name not in rest) == left == any("names or numbers the rows" in note for note in notes)
    rest, _, _ = split_labels(pd.DataFrame({name: [0, 2, 1], "a": np.arange(3.0)}))
    assert name in rest


def test_an_index_that_pandas_wrote_is_left_out(tmp_path):
    path = written(tmp_path / "t.parquet", example().sample(frac=0.5, random_state=0))
    rest, _, notes = split_labels(read_table(path))
    assert list(rest.columns) == list(example().columns) and "__index_level_0__ is left out" in notes[0]


# The transform


def test_numbers_and_categories_against_scikit_learn():
    frame = example()
    transform = fitted(frame)
    rows = transform.apply(frame)
    assert rows.dtype == np.float32 and transform.numbers == 3 and transform.categories == (2, 3, 3, 4)
    numbers = ["length", "price", "year"]
    scaler = StandardScaler().fit(frame[numbers].iloc[TRAINING])
    # One rounding to float32, and the rounding of two means near 1e4 and 2e3 in float64.
    np.testing.assert_allclose(rows[:, :3], scaler.transform(frame[numbers]), rtol=2 * HALF_ULP, atol=1e-11)
    order = ["sold", "colour", "make", "doors"]  # by the number of values; equal ones as in the table
    np.testing.assert_array_equal(rows[:, 3:], OneHotEncoder(sparse_output=False).fit_transform(frame[order]))
    fields = dict(transform.fields())
    assert list(fields) == list(frame.columns) == list(transform.names) and transform.width == rows.shape[1]
    assert fields["year"] == slice(2, 3) and fields["doors"] == slice(11, 15) and fields["colour"] == slice(5, 8)
    assert sorted(at for place in fields.values() for at in range(place.start, place.stop)) == list(range(15))


def test_moments_use_training_rows_only():
    frame, other = example(), example()
    held_out = np.setdiff1d(np.arange(ROWS), TRAINING)
    other.loc[held_out, "length"] += 1e6
    other.loc[held_out, "price"] *= -3
    assert fitted(frame) == fitted(other)
    other.loc[TRAINING[:1], "price"] += 1
    assert fitted(frame) != fitted(other)


def test_training_rows_in_every_form():
    mask = np.zeros(ROWS, bool)
    mask[TRAINING] = True
    assert fitted(example(), mask) == fitted(example(), slice(None, None, 2)) == fitted(example(), TRAINING[::-1])


@pytest.mark.parametrize("value", [0.1, 1e9 + 0.1, -1e-300])
def test_a_constant_column_has_the_deviation_1(value):
    frame = pd.DataFrame({"a": np.full(1001, value), "b": np.arange(1001.0)})
    frame.loc[1000, "a"] = value + 1
    transform = fitted(frame, slice(1000))
    assert transform.columns[0] == Column("a", value, 1.0)
    np.testing.assert_allclose(transform.apply(frame)[-2:, 0], [0, 1], atol=1e-6)


def test_the_deviation_is_stable_far_from_0():
    values = 1e9 + np.random.default_rng(0).normal(size=(5000, 1))
    transform = fitted(values, slice(None))
    # 1e9 has a step of 1.2e-7 in float64: deviations of that size are exact in NumPy's extended precision.
    assert transform.columns[0].scale == pytest.approx(float(values.astype(np.longdouble).std()), rel=1e-12)


words = st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), min_size=1, max_size=8).filter(
    lambda word: not any(map(str.isdigit, word)) and word not in pd.io.parsers.readers.STR_NA_VALUES and '"' not in word
)
reals = st.floats(-1e30, 1e30).map(lambda value: value if abs(value) > 1e-30 else 0.0)
table_columns = st.sampled_from(["numbers", "integers", "words", "truth"])


@st.composite
def frames(draw):
    count = draw(st.integers(4, 12))
    content = {}
    for at, kind in enumerate(draw(st.lists(table_columns, min_size=1, max_size=5))):
        value = {
            "numbers": reals,
            "integers": st.integers(-(2**40), 2**40),
            "truth": st.booleans(),
            "words": st.sampled_from(draw(st.lists(words, min_size=1, max_size=4))),
        }[kind]
        values = draw(st.lists(value, min_size=count, max_size=count))
        content[f"{kind} {at}"] = np.array(values, float) if kind == "numbers" else values
        if kind == "words" and all(str(each).lower() in ("true", "false", "inf") for each in values):
            content[f"{kind} {at}"] = ["word"] * count
    return pd.DataFrame(content)


@given(frames(), st.sampled_from(["t.csv", "t.parquet", "t.tsv"]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_from_a_frame_to_a_file_to_rows_and_back(tmp_path, frame, name):
    path = written(tmp_path / name, frame, **({"sep": "\t"} if name == "t.tsv" else {}))
    read = read_table(path)
    transform = TableTransform.from_json(json.loads(json.dumps(fitted(read, slice(None)).as_json())))
    rows = transform.apply(read)
    back = transform.undo(rows)
    assert list(back.columns) == list(frame.columns)
    assert rows.shape == (len(frame), transform.numbers + sum(transform.categories))
    np.testing.assert_array_equal(rows[:, transform.numbers :].sum(axis=1), len(transform.categories))
    for column in transform.columns:
        given_values, found = frame[column.name].to_numpy(), back[column.name].to_numpy()
        if column.values is None:
            # A standardised number is rounded to float32. The rest is float64: its rounding is that of the mean.
            standardised = np.abs(given_values.astype(float) - column.mean)
            error = 1.01 * HALF_ULP * standardised + 1e-14 * np.abs(given_values) + 1e-14 * abs(column.mean)
            assert (np.abs(found - given_values.astype(float)) <= error + 1e-44 * column.scale).all()
        else:
            assert found.tolist() == given_values.tolist()
            assert back[column.name].dtype == read[column.name].dtype


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=64), min_size=2, max_size=6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_json_keeps_every_bit(values, array):
    scale = [abs(value) or 1.0 for value in values[::-1]]
    made = [Column(f"c{at}", *pair) for at, pair in enumerate(zip(values, scale, strict=True))]
    extra = (
        []
        if array
        else [Column("é", values=("", "a", "ü")), Column("k", values=(-1, 2**60)), Column("t", values=(True,))]
    )
    transform = TableTransform((*made, *extra), array)
    assert TableTransform.from_json(json.loads(json.dumps(transform.as_json(), allow_nan=False))) == transform


NUMBERS, WORDS = {"name": "a", "mean": 0.5, "scale": 2.0}, {"name": "b", "values": ["u", "v"]}


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        {},
        {"array": False},
        {"array": 0, "columns": [NUMBERS]},
        {"array": False, "columns": []},
        {"array": False, "columns": {"a": 1}},
        {"array": False, "columns": [NUMBERS, NUMBERS]},
        {"array": True, "columns": [WORDS]},
        {"array": False, "columns": [NUMBERS], "more": 1},
        *(
            {"array": False, "columns": [entry]}
            for entry in [
                1,
                {"name": 1, "mean": 0.5, "scale": 2.0},
                {"mean": 0.5, "scale": 2.0},
                {"name": "a", "mean": 0.5},
                NUMBERS | {"scale": 0.0},
                NUMBERS | {"scale": -1.0},
                NUMBERS | {"scale": float("nan")},
                NUMBERS | {"mean": float("inf")},
                NUMBERS | {"mean": "0"},
                NUMBERS | {"mean": True},
                NUMBERS | {"mean": 1},
                NUMBERS | {"name": "\udc80"},
                WORDS | {"values": ["\udc80"]},
                NUMBERS | {"mean": 10**400},
                NUMBERS | {"values": ["u"]},
                WORDS | {"values": []},
                WORDS | {"values": "uv"},
                WORDS | {"values": ["u", "u"]},
                WORDS | {"values": ["u", 1]},
                WORDS | {"values": [True, 1]},
                WORDS | {"values": [1.5]},
                WORDS | {"values": [["u"]]},
                WORDS | {"values": [None]},
                WORDS | {"values": [2**80]},
                WORDS | {"values": [-1, 2**63]},
            ]
        ),
    ],
)
def test_a_damaged_description_is_a_value_error(content):
    with pytest.raises(ValueError):
        TableTransform.from_json(content)


def test_an_array_comes_back_as_an_array():
    values = np.random.default_rng(0).integers(0, 3, (20, 4))
    transform = fitted(values, slice(10))
    assert transform.names == ("x1", "x2", "x3", "x4") and transform.categories == () and transform.numbers == 4
    back = transform.undo(transform.apply(values))
    assert isinstance(back, np.ndarray) and back.dtype == np.float64
    np.testing.assert_allclose(back, values, atol=4 * HALF_ULP)  # deviations are below 4
    frame = pd.DataFrame(values, columns=list("abcd"))
    np.testing.assert_array_equal(transform.apply(frame), transform.apply(values))
    assert transform.apply(values[:0]).shape == (0, 4)


def test_columns_in_another_order_beside_others():
    frame, transform = example(), fitted(example())
    shuffled = frame[frame.columns[::-1]].assign(more="x")
    np.testing.assert_array_equal(transform.apply(shuffled), transform.apply(frame))
    with pytest.raises(DataError, match="has no column doors, sold; give the columns of the training data"):
        transform.apply(frame.drop(columns=["doors", "sold"]))
    assert transform.apply(frame[:0]).shape == (0, 15)
    np.testing.assert_array_equal(transform.apply(frame.to_numpy()), transform.apply(frame))
    np.testing.assert_array_equal(transform.apply(frame.to_numpy().astype(str)), transform.apply(frame))


def test_unknown_values_are_named():
    transform = fitted(example())
    with pytest.raises(DataError, match="column colour has the unknown value mauve; known are blé, green, red"):
        transform.apply(example().replace({"colour": {"red": "mauve"}}))
    with pytest.raises(DataError, match="column doors has the unknown value 9; known are 2, 3, 4, 5"):
        transform.apply(example().replace({"doors": {3: 9}}))
    with pytest.raises(DataError, match=r"column make has the unknown value \(empty\)"):
        transform.apply(example().assign(make=None))
    with pytest.raises(DataError, match="column make should have words"):
        transform.apply(example().assign(make=[[1]] * ROWS))
    with pytest.raises(DataError, match="column price should have numbers only"):
        transform.apply(example().assign(price="cheap"))
    with pytest.raises(DataError, match="column price should have numbers only"):
        transform.apply(example().assign(price=1 + 2j))
    with pytest.raises(DataError, match="column price should have numbers only"):
        transform.apply(example().assign(price=pd.Timestamp(0)))
    with pytest.raises(DataError, match=r"column price has a number more than 1e\+15 deviations"):
        transform.apply(example().assign(price=1e300))


def test_digits_are_the_same_as_words_and_as_numbers():
    frame = pd.DataFrame({"rooms": ["1", "2", "3+", "1"], "a": [0.5, 1.5, 2.5, 3.5]})
    transform = fitted(frame, slice(None))
    np.testing.assert_array_equal(transform.apply(frame[:2].astype({"rooms": int})), transform.apply(frame[:2]))


def test_missing_words_are_a_value():
    frame = pd.DataFrame({"a": ["u", None, "v", ""], "b": [True, None, False, True], "c": [0.5, 1.0, 2.0, 3.0]})
    transform = fitted(frame, slice(None))
    assert transform.columns[0].values == ("", "u", "v") and transform.columns[1].values == ("", "False", "True")
    back = transform.undo(transform.apply(frame))
    assert back.a.isna().tolist() == [False, True, False, True] and back.a[0] == "u"
    assert back.b.isna().tolist() == [False, True, False, False]


def test_undo_gives_the_likeliest_value():
    transform = TableTransform((Column("w", values=("a", "b", "c")), Column("n", 10.0, 2.0)))
    back = transform.undo(np.array([[0.5, 0.2, 0.5, 0.3], [-1.0, 0.1, 0.2, 0.7]], np.float32))
    assert back.to_dict("list") == {"w": ["b", "c"], "n": [11.0, 8.0]}
    with pytest.raises(DataError, match=r"rows have the shape \(2, 3\); give \(m, 4\)"):
        transform.undo(np.zeros((2, 3)))


A = pd.DataFrame({"a": np.arange(120.0)})
DAYS = pd.date_range("2020-01-01", periods=120)


@pytest.mark.parametrize(
    ("column", "line"),
    [
        (A.a.where(A.a != 7), "df = df.fillna(df.median(numeric_only=True))"),
        (A.a.astype("Int64").where(A.a != 7), "df = df.fillna(df.median(numeric_only=True))"),
        (A.a.where(A.a != 7, np.inf), "df = df[np.isfinite(df['a'])]"),
        (A.a.astype(int).astype(object).where(A.a >= 0), "df['a'] = df['a'].astype(float)"),
        (A.a.map(lambda value: Decimal(int(value)) / 4), "df['a'] = df['a'].astype(float)"),
        (A.a.map(lambda value: f"{value:g}," + "5"), "df['a'] = pd.to_numeric(df['a'].str.replace(',', '.'))"),
        (DAYS.to_series(index=A.index), "the line of days"),
        (DAYS.tz_localize("Europe/Paris").to_series(index=A.index), "the line of days"),
        (DAYS.strftime("%Y-%m-%d").to_series(index=A.index), "the line of days"),
        (pd.Series([date(2020, 1, 1)] * 119 + [date(2021, 2, 3)]), "the line of days"),
        (A.a.map(lambda value: f"w{value}"), "df = df.drop(columns='a')"),
        (A.a * np.nan, "df = df.drop(columns='a')"),
        (pd.Series([None] * 120), "df = df.drop(columns='a')"),
        (A.a + 1j, "df = df.drop(columns='a')"),
        (A.a.map(lambda value: [value]), "df = df.drop(columns='a')"),
        (A.a.map(lambda value: value if value % 2 else "w"), "df = df.drop(columns='a')"),
        (pd.to_timedelta(A.a, unit="D"), "df = df.drop(columns='a')"),
    ],
)
def test_a_refused_column_is_named_and_its_line_mends_it(column, line):
    df = pd.DataFrame({"a": column.to_numpy() if column.dtype.kind == "c" else column, "b": np.arange(120.0)})
    with pytest.raises(DataError, match=r"^column a ") as caught:
        fitted(df)
    line = line.replace("the line of days", "df['a'] = (pd.to_datetime(df['a'], utc=True) - pd.Timestamp(0, tz='UTC'))")
    assert line in str(caught.value)
    space = {"df": df, "pd": pd, "np": np}
    exec(line if "days" not in str(caught.value) else str(caught.value).split("of them: ")[1], space)
    assert np.isfinite(fitted(space["df"], slice(0, 60)).apply(space["df"])).all()
    if "days" in str(caught.value):
        assert space["df"].a.iloc[0] in (18262.0, 18262.0 - 1 / 24)  # 2020-01-01, in Paris an hour earlier


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([f"w{at}" for at in range(101)], "has 101 different words, more than the 100 of a category"),
        ([*map(str, range(60)), "?"], "has numbers beside words such as '\\?'; if words mean missing numbers"),
        ([1e200, -1e200, 1e308], "has numbers that are too large"),
        ([1j], "objects of the kind complex"),
        ([[1]], "objects of the kind mixed"),
    ],
)
def test_refusals(values, words):
    with pytest.raises(DataError, match=f"column a {words}|column a .*{words}"):
        fitted(pd.DataFrame({"a": values}), slice(None))


def test_limits_of_categories():
    frame = pd.DataFrame(
        {"ten": np.arange(100) % 10, "eleven": np.arange(100) % 11, "w": [f"w{at}" for at in range(100)]}
    )
    frame["chosen"] = pd.Categorical(np.arange(100) % 20)
    assert fitted(frame, slice(None)).categories == (10, 20, 100) and fitted(frame, slice(None)).numbers == 1


@pytest.mark.parametrize("array", [np.array([["a", "b"]]), np.array([[1, None]], object), np.array([[1j]])])
def test_an_array_of_words_is_refused(array):
    with pytest.raises(DataError, match=r"give pd.DataFrame\(x\)"):
        fitted(array, slice(None))


@pytest.mark.parametrize("shape", [(3, 3), (3,), (3, 2, 1)])
def test_rows_of_another_shape_are_refused(shape):
    with pytest.raises(DataError, match=r"is no table; give \(rows, 2\)"):
        fitted(np.ones((5, 2)), slice(None)).apply(np.ones(shape))


def test_commas_at_the_end_of_rows_are_no_cells(tmp_path):
    frame = read_table(text(tmp_path, "a,b\n1,2,\n3,4,\n"))
    assert frame.to_dict("list") == {"a": [1, 3], "b": [2, 4]}


def test_half_letters_are_refused():
    with pytest.raises(DataError, match="a column's name cannot be read"):
        as_frame(pd.DataFrame(np.ones((2, 1)), columns=pd.Index(["\udc80"], dtype=object)))
    with pytest.raises(DataError, match="column a should have words"):
        frame = pd.DataFrame({"a": np.array(["\udc80", "b"], object)}, dtype=object)
        fitted(frame, slice(None)).apply(frame)


@pytest.mark.parametrize("name", ["sample_id", "patient-id", "row index", "id"])
def test_columns_of_identities_are_left_out(name):
    frame = pd.DataFrame({name: range(1, 21), "a": np.linspace(0, 1, 20)})
    rest, _, notes = split_labels(frame)
    assert list(rest.columns) == ["a"] and "names or numbers the rows" in notes[0]
    assert list(split_labels(frame.assign(**{name: range(5, 25)}))[0].columns) == [name, "a"]


def test_few_dates_are_no_category():
    frame = pd.DataFrame({"a": np.linspace(0, 1, 30), "seen": ["2024-01-02", "2024-01-03", "2024-02-29"] * 10})
    with pytest.raises(DataError, match="column seen has dates"):
        fitted(frame, slice(None))


def test_a_row_alone_is_no_table():
    with pytest.raises(DataError, match=r"give a table, such as df.iloc\[\[0\]\] for one row"):
        as_frame(example().iloc[0])


def test_a_remedy_of_a_files_table_says_what_df_is():
    message = tables.with_frame("column a is empty; leave it out: df = df.drop(columns='a')", "mine.csv")
    assert message.endswith(
        "; df = pd.read_csv('mine.csv') reads the table, and df.to_csv('mended.csv', index=False) saves it"
    )
    assert tables.with_frame("has no columns", "mine.csv") == "has no columns"
