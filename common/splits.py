"""Splits a data set into training, validation and test rows that do not overlap."""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
from sklearn.model_selection import train_test_split

VALIDATION_IMAGES = 5000  # at most; a tenth of a smaller training set
MOST_HELD_OUT = 10_000  # images of an unsplit data set, for validation and for test each; a tenth of a smaller set
SPLITS = ("train", "val", "test")
SPLIT_SEED = 0


class Part(NamedTuple):
    """A split: the array that it comes from, x, x_train, x_val or x_test, and which of its rows it has."""

    role: str
    rows: np.ndarray | slice


def split(counts: Mapping[str, int], labels: Mapping[str, np.ndarray], shuffled: bool) -> dict[str, Part]:
    """The parts of a data set by the names of SPLITS. `counts` are rows, `labels` class numbers, both by role.

    An unsplit data set is shuffled and split 80 / 10 / 10 %, stratified by class if there are labels. If there are test
    images, a tenth of the training images, 5,000 at most, is for validation. They are drawn in the same way. Without
    `shuffled`, they are the last images in the saved order. A data set that has validation images keeps them.
    """
    source = "x" if "x" in counts else "x_train"
    y, order, tenth = labels.get(source.replace("x", "y")), np.arange(counts[source]), counts[source] // 10
    held_out = {role: Part(f"x_{role}", slice(None)) for role in ("val", "test") if f"x_{role}" in counts}
    if source == "x":
        train, rest = split_off(order, 2 * min(MOST_HELD_OUT, tenth), y)
        val, test = split_off(rest, min(MOST_HELD_OUT, tenth), y)
        held_out = {"val": Part("x", val), "test": Part("x", test)}
    elif "val" in held_out:
        train = slice(None)
    elif shuffled:
        train, val = split_off(order, min(VALIDATION_IMAGES, tenth), y)
        held_out["val"] = Part(source, val)
    else:
        cut = len(order) - min(VALIDATION_IMAGES, tenth)
        train, held_out["val"] = slice(cut), Part(source, slice(cut, None))
    return {"train": Part(source, train)} | held_out


def split_off(indices: np.ndarray, size: int, y: np.ndarray | None):
    """Two parts of the indices, drawn at random; the second has `size` of them. They are stratified by class."""
    drawn = partial(train_test_split, indices, test_size=size, random_state=SPLIT_SEED)
    try:
        return drawn(stratify=None if y is None else y[indices])
    except ValueError:  # a class too small to be in both parts
        return drawn()
