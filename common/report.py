"""The results of a finished run in its folder: metrics.json and the figures, all on held-out images."""

import sys
from collections.abc import Callable
from pathlib import Path

from common import display, plots
from common.data import Dataset
from common.evaluation import reconstruction
from common.failures import Failures
from common.files import write_json
from common.measure import MEASURED, Encoded, encoded, measure, test_images
from common.model import LatentModel, to_numpy
from common.numbers import flat
from common.training import Outcome

import numpy as np
from keras import ops
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

POINTS_IN_TSNE = 2_000
TRAINING_FILE = "training.json"  # updates and cost of a training, on disk from its end until metrics.json exists


def report(model: LatentModel, dataset: Dataset, config, outcome: Outcome, folder: Path) -> dict:
    """Write every figure that suits the code's dimensions and, last, metrics.json; returns its content.

    A number that cannot be measured is null, and a figure that cannot be drawn is left out: see `Failures`. A run that
    has metrics.json is complete.
    """
    failures = Failures(folder)
    codes = failures.numbers(MEASURED, lambda: {"test": encoded(model, test_images(dataset, config))})
    test = codes.get("test")
    metrics = measure(model, dataset, config, test, failures) if test else flat(codes)
    metrics |= cost(outcome)
    draw(figures(model, dataset, outcome.history, outcome.updates, test), folder, failures)
    if failures.failed:
        metrics["failed"] = failures.failed
    complete(folder, metrics)
    return metrics


def complete(folder: Path, metrics: dict):
    """Write metrics.json, the last file of a run, and delete TRAINING_FILE, which metrics.json replaces."""
    write_json(folder / "metrics.json", metrics)
    (folder / TRAINING_FILE).unlink(missing_ok=True)


def draw(drawings: dict[str, Callable[[], Figure]], folder: Path, failures: Failures):
    """Save each figure as <name>.png. A figure that cannot be drawn is left out; a printed line says so."""
    for name, drawn in drawings.items():
        failures.figure(name, lambda drawn=drawn, name=name: plots.save(drawn(), folder / f"{name}.png"))


def figures(model: LatentModel, dataset: Dataset, history: dict, updates: int, test: Encoded | None) -> dict:
    """The figures of a run by name, each as a function that draws it. Without codes: only the training's curves.

    `history` has a list of numbers, one per epoch, for each term, for its value on validation images (`val_`), and for
    "updates".
    """
    epochs = len(history.get("updates", []))
    title = f"{model.title} · {dataset.name} · {epochs} epoch{'s' * (epochs != 1)}, {updates:,} updates"
    curves = ["updates", *(prefix + term for term in model.terms for prefix in ("", "val_"))]
    columns = {name: history.get(name, []) for name in curves}

    def training_figure():
        references = reference_lines(model, dataset, test.images) if test else {}
        return plots.training_curves(columns, title, references, dataset.transform.noun)

    drawings = {"training": training_figure}
    if test:
        drawings |= code_figures(model, dataset, title, test) | row_figures(model, dataset, title, test)
    return drawings


def cost(outcome: Outcome) -> dict:
    """The training's updates and its cost in time and memory."""
    return {
        "updates": outcome.updates,
        "train_seconds": round(outcome.seconds, 2),
        "samples_per_second": round(outcome.images / outcome.seconds, 1),
        "peak_memory_mib": peak_memory_mib(),
        "stopped_by": outcome.stopped_by,
    }


def peak_memory_mib() -> int | None:
    """The most memory that this process has held, in MiB; None if the system does not tell."""
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)


def reference_lines(model: LatentModel, dataset: Dataset, x_test) -> dict:
    """The values of terms if nothing is learned, or if nothing is left to learn, computed from the data in use."""
    lines = {
        "reconstruction": reconstruction_lines(model, dataset, x_test),
        "discriminator": [(2.0 * np.log(2.0), "2 log 2: no difference seen")],
    }
    return {term: lines[term] for term in model.terms if term in lines}


def reconstruction_lines(model: LatentModel, dataset: Dataset, x_test) -> list[tuple[float, str]]:
    """What a model without a code reaches and, for Bernoulli pixels, the lowest possible value."""
    if dataset.likelihood != "bernoulli":
        return [(reconstruction.constant_model(model.likelihood, dataset.x_train, x_test), "a constant model")]
    return [
        (reconstruction.cross_entropy_floor(x_test), "no model can be lower"),
        (reconstruction.mean_image_cross_entropy(dataset.x_train, dataset.x_test), "the mean image"),
    ]


def code_figures(model: LatentModel, dataset: Dataset, title: str, test: Encoded) -> dict:
    """Figures of the test codes: unprojected in one to three dimensions, by PCA and t-SNE in three and more."""
    dimensions, labels, names = model.prior.latent_dim, dataset.y_test, dataset.class_names
    images = f"{len(test.codes):,} test {dataset.transform.noun}s of {dataset.name}"
    density = density_of(model.prior)
    description = f"Codes of {images} over the prior p(z)"
    if dimensions <= 2:
        draw_latent = plots.latent_histogram if dimensions == 1 else plots.latent_scatter
        return {"latent": lambda: draw_latent(test.codes, labels, title, test.prior_codes, density, description, names)}
    drawings = {}
    if dimensions == 3:
        drawings["latent"] = lambda: plots.latent_planes(
            test.codes, labels, title, test.prior_codes, description, names
        )
    return drawings | {
        "latent_pca": lambda: pca_figure(dimensions, dataset, title, images, test),
        "latent_tsne": lambda: tsne_figure(dimensions, dataset, title, test),
    }


def density_of(prior):
    """The log density of a prior for figures, (k, latent_dim) -> (k,) nats in NumPy; None if it has none."""
    log_prob = getattr(prior, "log_prob", None)
    return log_prob and (lambda z: to_numpy(log_prob(ops.convert_to_tensor(z, "float32"))))


def pca_figure(dimensions: int, dataset: Dataset, title: str, images: str, test: Encoded) -> Figure:
    """Test codes in the plane of their largest variance."""
    pca = PCA(2).fit(test.codes)
    share = pca.explained_variance_ratio_.sum()
    return plots.projection_scatter(
        pca.transform(test.codes),
        dataset.y_test,
        title,
        f"{dimensions}-dimensional codes of {images}: the plane of the largest variance ({share:.0%})",
        ("first principal component", "second principal component"),
        prior_points=pca.transform(test.prior_codes),
        class_names=dataset.class_names,
    )


def tsne_figure(dimensions: int, dataset: Dataset, title: str, test: Encoded) -> Figure:
    """Some test codes by t-SNE."""
    few = test.codes[:POINTS_IN_TSNE]
    return plots.projection_scatter(
        TSNE(random_state=0, perplexity=min(30, (len(few) - 1) / 3)).fit_transform(few),
        None if dataset.y_test is None else dataset.y_test[:POINTS_IN_TSNE],
        title,
        f"t-SNE of the {dimensions}-dimensional codes of {len(few):,} test {dataset.transform.noun}s of {dataset.name}",
        ("t-SNE 1", "t-SNE 2"),
        class_names=dataset.class_names,
    )


def row_figures(model: LatentModel, dataset: Dataset, title: str, test: Encoded) -> dict:
    """Samples and reconstructions, as pictures where rows are images, else as profiles of a table's columns."""
    shown = display.shown_as(dataset)
    if shown is None:
        return display.table_figures(model, dataset, title, test)
    return image_figures(model, dataset, title, test, shown)


def image_figures(model: LatentModel, dataset: Dataset, title: str, test: Encoded, shown: display.Pictures) -> dict:
    """Samples, reconstructions, interpolations and, for a 2-D code, the decoder's manifold."""
    codes, prior_codes, scale = test.codes, test.prior_codes[:100], shown.scale
    originals = shown.pictures(test.images[:20])
    first, second = codes[:16:2, None], codes[1:16:2, None]  # (8, 1, latent_dim)
    between = first + np.linspace(0.0, 1.0, 11)[None, :, None] * (second - first)
    drawings = {
        "samples": lambda: plots.image_grid(
            thumbnails(model, shown, prior_codes, 10, 10),
            title,
            f"Decoder's {shown.means} for {len(prior_codes)} draws z ~ p(z)" + plots.tile_note(shown.shape, 10, 10),
            **scale,
        ),
        "reconstructions": lambda: plots.image_pairs(
            shown.pictures(display.reconstructed(model, codes[:20], test.images[:20])),
            originals,
            ("reconstruction", "original"),
            title,
            f"{len(originals)} test images of {dataset.name}, z ~ q(z|x)",
            **scale,
        ),
        "interpolations": lambda: plots.interpolations(
            grid_of_thumbnails(model, shown, between),
            title,
            f"Straight lines between the codes of {len(between)} pairs of test images of {dataset.name}"
            + plots.tile_note(shown.shape, 11, 8),
            **scale,
        ),
    }
    if model.prior.latent_dim == 2:
        percentiles = np.linspace(5, 95, 19)
        z1, z2 = np.percentile(test.prior_codes, percentiles, axis=0).T
        grid = np.stack(np.meshgrid(z1, z2), axis=-1)  # (rows z2, columns z1, 2)
        drawings["manifold"] = lambda: plots.manifold(
            grid_of_thumbnails(model, shown, grid),
            percentiles,
            title,
            f"Decoder's {shown.means} over the percentiles of the prior" + plots.tile_note(shown.shape, 19, 19),
            **scale,
        )
    return drawings


def thumbnails(model: LatentModel, shown: display.Pictures, codes, columns: int, rows: int) -> np.ndarray:
    """Decoded images of codes, (n, latent_dim), as small as a figure shows them: (n, h, w). Decodes in batches."""
    parts = [
        plots.thumbnails(shown.pictures(model.means(codes[part])), columns, rows) for part in model.batches(len(codes))
    ]
    return np.concatenate(parts)


def grid_of_thumbnails(model: LatentModel, shown: display.Pictures, codes) -> np.ndarray:
    """`thumbnails` of a grid of codes: (rows, columns, latent_dim) -> (rows, columns, h, w)."""
    rows, columns = codes.shape[:2]
    images = thumbnails(model, shown, codes.reshape(rows * columns, -1), columns, rows)
    return images.reshape(rows, columns, *images.shape[1:])
