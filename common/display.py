"""How a figure shows rows of a data set: as pictures, or as profiles of a table's columns."""

import math
from dataclasses import dataclass

from common import plots
from common.arrays import visible
from common.data import Dataset
from common.measure import Encoded
from common.model import LatentModel, to_numpy
from common.transforms import CountTransform, PixelTransform, RealTransform, TableTransform

import numpy as np
from keras import ops

WORST = 5  # columns of the scatter matrix
ROWS = 6  # profiles in a figure


@dataclass(frozen=True)
class Pictures:
    """Rows as pictures: their `shape`, the `scale` of a figure, and what the decoder's means are called."""

    transform: PixelTransform | RealTransform | CountTransform
    scale: dict  # limits and value_name of the figures of common.plots.tiles
    means: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.transform.shape

    def pictures(self, rows: np.ndarray) -> np.ndarray:
        """Rows as the model takes them, (n, ...), in the user's units: (n, *shape)."""
        return self.transform.undo(rows)


def shown_as(dataset: Dataset) -> Pictures | None:
    """How rows are shown as pictures; None for tables, and for counts that are no pictures."""
    transform = dataset.transform
    if isinstance(transform, PixelTransform):
        return Pictures(transform, {}, "pixel means")
    if isinstance(transform, TableTransform) or (isinstance(transform, CountTransform) and not is_picture(transform)):
        return None
    values = transform.undo(dataset.x_test)
    name = "count" if isinstance(transform, CountTransform) else "value"
    low, high = (0.0 if name == "count" else float(values.min())), float(values.max())
    return Pictures(transform, {"limits": (low, high), "value_name": name}, f"mean {name}s")


def is_picture(transform: CountTransform) -> bool:
    """Whether counts are the pixels of a picture: (height, width), or a square number of columns without names."""
    numbers = math.prod(transform.shape)
    return len(transform.shape) == 2 or (transform.names is None and math.isqrt(numbers) ** 2 == numbers)


def reconstructed(model: LatentModel, codes, rows) -> np.ndarray:
    """E[x|z] for codes z of rows, as the model takes rows. Counts have the size factors of the rows."""
    parts = []
    for some, parameters in zip(model.batches(len(codes)), model.parameters_of(codes), strict=True):
        parts.append(to_numpy(model.likelihood.mean(parameters, rows[some])))
    return np.concatenate(parts)


def table_figures(model: LatentModel, dataset: Dataset, title: str, test: Encoded) -> dict:
    """Profiles of rows with their reconstructions and of samples, and the columns that are reconstructed worst."""
    labels = dataset.y_test is not None and [f"class {dataset.class_names[label]}" for label in dataset.y_test[:ROWS]]

    def reconstructions():
        rows, own = test.images[:ROWS], reconstructed(model, test.codes[:ROWS], test.images[:ROWS])
        options = {"row_names": labels or None, "deviations": learned_deviations(model)}
        return profiles(dataset, rows, own, title, f"{len(rows)} test rows of {dataset.name}, z ~ q(z|x)", **options)

    def samples():
        text, rows = f"Decoder's means for {ROWS} draws z ~ p(z)", model.means(test.prior_codes[:ROWS])
        return profiles(dataset, rows, None, title, text, series=("sample", ""))

    drawings = {"reconstructions": reconstructions, "samples": samples}
    if isinstance(dataset.transform, CountTransform) or dataset.transform.numbers:
        drawings["columns"] = lambda: worst_columns(model, dataset, title, test)
    return drawings


def profiles(dataset: Dataset, rows, others, title: str, description: str, **options):
    """`plots.profiles` of rows as the model takes them, each with one of `others`, such as its reconstruction."""
    names, transform = column_names(dataset.transform), dataset.transform
    if isinstance(transform, CountTransform):
        options["value_name"] = "count"
    elif transform.categories:
        options["value_name"] = "standard deviations from the mean; shares of categories"
    shown = [None if each is None else each[:, : len(names)] for each in (rows, others)]  # without a size factor
    return plots.profiles(*shown, names, title, description, **options)


def column_names(transform: TableTransform | CountTransform) -> list[str]:
    """The name of each number in the model's row; for a value of a category, "column = value"."""
    if isinstance(transform, CountTransform):
        return list(transform.names or (f"x{number + 1}" for number in range(math.prod(transform.shape))))
    names = [""] * transform.width
    for column, (name, place) in zip(transform.columns, transform.fields(), strict=True):
        values = [name] if column.values is None else [f"{name} = {visible(value)}" for value in column.values]
        names[place] = values
    return names


def learned_deviations(model: LatentModel) -> np.ndarray | None:
    """The decoder's deviation of each column, in standardised units; 0 for the values of categories: (D,).

    None for counts.
    """
    if model.likelihood.name != "gaussian":
        return None
    parameters = to_numpy(model.decoder(ops.zeros((1, model.prior.latent_dim))))[0]
    deviations = np.exp(parameters[:, 1])
    deviations[model.likelihood.numbers :] = 0.0
    return deviations


def worst_columns(model: LatentModel, dataset: Dataset, title: str, test: Encoded):
    """A scatter matrix of the columns of numbers whose reconstructions explain least of their variance."""
    transform, counts = dataset.transform, isinstance(dataset.transform, CountTransform)
    rows, own = test.images, reconstructed(model, test.codes, test.images)
    numbers = rows.shape[1] - 1 if counts else transform.numbers
    compared = (np.log1p(rows[:, :numbers]), np.log1p(own[:, :numbers])) if counts else (rows, own)
    errors = ((compared[0] - compared[1])[:, :numbers] ** 2).mean(axis=0)
    variance = compared[0][:, :numbers].var(axis=0)
    unexplained = np.where(variance > 0, errors / np.maximum(variance, 1e-12), -1.0)  # without constant columns
    worst = np.sort(np.argsort(-unexplained, kind="stable")[: min(WORST, max(1, (variance > 0).sum()))])
    names = column_names(transform)
    data, decoded = (in_units(transform, each, worst) for each in (rows, own))
    best = 1.0 - unexplained[worst].min()
    share = f"{best:.0%} of their variance or less" if best > 0 else "none of their variance"
    return plots.scatter_matrix(
        data,
        decoded,
        [names[column] for column in worst],
        title,
        f"The {len(worst)} of {numbers} columns that are reconstructed worst: {share} is explained"
        f"{' (of log(1 + count))' if counts else ''} · {len(rows):,} test rows of {dataset.name}",
        classes=dataset.y_test,
        class_names=dataset.class_names,
        counts=counts,
    )


def in_units(transform, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Some columns of numbers of the model's rows, in the user's units: (n, k)."""
    if isinstance(transform, CountTransform):
        return rows[:, columns]
    scales = np.array([(each.mean, each.scale) for each in transform.ordered[: transform.numbers]])[columns]
    return rows[:, columns] * scales[:, 1] + scales[:, 0]
