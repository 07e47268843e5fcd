"""What a finished run leaves in its folder: metrics.json and the figures, all on held-out images."""

import sys
from pathlib import Path

from common import plots
from common.data import Dataset
from common.evaluation import reconstruction
from common.files import write_json
from common.measure import Encoded, encoded, measure, test_images
from common.model import LatentModel, to_numpy
from common.training import Outcome

import numpy as np
from keras import ops
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

POINTS_IN_TSNE = 2_000


def report(model: LatentModel, dataset: Dataset, config, outcome: Outcome, folder: Path) -> dict:
    """Write every figure that the model's code admits and, last, metrics.json; returns what that holds.

    A run that has metrics.json is complete.
    """
    test = encoded(model, test_images(dataset, config))
    metrics = measure(model, dataset, config, test) | cost(outcome)
    epochs = len(outcome.history.get("updates", []))
    title = f"{model.title} · {dataset.name} · {epochs} epoch{'s' * (epochs != 1)}, {outcome.updates:,} updates"
    references = reference_lines(model, dataset, test.images)
    curves = ["updates", *(prefix + term for term in model.terms for prefix in ("", "val_"))]
    history = {name: outcome.history.get(name, []) for name in curves}
    figures = {"training": plots.training_curves(history, title, references)}
    figures |= code_figures(model, dataset, title, test) | image_figures(model, dataset, title, test)
    for name, figure in figures.items():
        plots.save(figure, folder / f"{name}.png")
    write_json(folder / "metrics.json", metrics)
    return metrics


def cost(outcome: Outcome) -> dict:
    """What the training made, and what it took."""
    return {
        "updates": outcome.updates,
        "train_seconds": round(outcome.seconds, 2),
        "samples_per_second": round(outcome.images / outcome.seconds, 1),
        "peak_memory_mib": peak_memory_mib(),
        "stopped_by": outcome.stopped_by,
    }


def peak_memory_mib() -> int | None:
    """The most memory that this process has held, in MiB; None where the system does not say."""
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)


def reference_lines(model: LatentModel, dataset: Dataset, x_test) -> dict:
    """Where a term stands if nothing is learned or nothing is left to learn, computed from the data in use."""
    lines = {
        "reconstruction": [
            (reconstruction.cross_entropy_floor(x_test), "no model can be lower"),
            (reconstruction.mean_image_cross_entropy(dataset.x_train, dataset.x_test), "the mean image"),
        ],
        "discriminator": [(2.0 * np.log(2.0), "2 log 2, nothing to tell apart")],
    }
    return {term: lines[term] for term in model.terms if term in lines}


def code_figures(model: LatentModel, dataset: Dataset, title: str, test: Encoded) -> dict:
    """Scatter plots of the test codes: as they are in two dimensions, by PCA and t-SNE in more."""
    images = f"{len(test.codes):,} test images of {dataset.name}"
    if model.prior.latent_dim == 1:
        return {}
    if model.prior.latent_dim > 2:
        return projections(model.prior.latent_dim, dataset, title, images, test)
    log_prob = getattr(model.prior, "log_prob", None)
    density = log_prob and (lambda z: to_numpy(log_prob(ops.convert_to_tensor(z, "float32"))))
    description = f"Codes of {images} over the prior p(z)"
    arguments = (test.codes, dataset.y_test, title, test.prior_codes, density, description)
    return {"latent": plots.latent_scatter(*arguments)}


def projections(latent_dim: int, dataset: Dataset, title: str, images: str, test: Encoded) -> dict:
    """Test codes of more than two dimensions in the plane of their largest variance, and by t-SNE."""
    pca = PCA(2).fit(test.codes)
    share = pca.explained_variance_ratio_.sum()
    few = test.codes[:POINTS_IN_TSNE]
    few_labels = None if dataset.y_test is None else dataset.y_test[:POINTS_IN_TSNE]
    return {
        "latent_pca": plots.projection_scatter(
            pca.transform(test.codes),
            dataset.y_test,
            title,
            f"{latent_dim}-dimensional codes of {images}: the plane of the largest variance ({share:.0%})",
            ("first principal component", "second principal component"),
            prior_points=pca.transform(test.prior_codes),
        ),
        "latent_tsne": plots.projection_scatter(
            TSNE(random_state=0, perplexity=min(30, (len(few) - 1) / 3)).fit_transform(few),
            few_labels,
            title,
            f"t-SNE of the {latent_dim}-dimensional codes of {len(few):,} test images of {dataset.name}",
            ("t-SNE 1", "t-SNE 2"),
        ),
    }


def image_figures(model: LatentModel, dataset: Dataset, title: str, test: Encoded) -> dict:
    """Samples, reconstructions, interpolations and, for a 2-D code, the decoder's manifold."""
    shown, codes, prior_codes = test.images[:20], test.codes, test.prior_codes
    first, second = codes[:16:2, None], codes[1:16:2, None]  # (8, 1, latent_dim)
    between = first + np.linspace(0.0, 1.0, 11)[None, :, None] * (second - first)
    figures = {
        "samples": plots.image_grid(
            model.decode(prior_codes[:100]), title, f"Decoder's pixel means for {min(100, len(codes))} draws z ~ p(z)"
        ),
        "reconstructions": plots.image_pairs(
            model.decode(codes[:20]),
            shown,
            ("reconstruction", "original"),
            title,
            f"{len(shown)} test images of {dataset.name}, z ~ q(z|x)",
        ),
        "interpolations": plots.interpolations(
            decode_grid(model, between),
            title,
            f"Straight lines between the codes of {len(between)} pairs of test images of {dataset.name}",
        ),
    }
    if model.prior.latent_dim == 2:
        percentiles = np.linspace(5, 95, 19)
        z1, z2 = np.percentile(prior_codes, percentiles, axis=0).T
        grid = np.stack(np.meshgrid(z1, z2), axis=-1)  # (rows z2, columns z1, 2)
        figures["manifold"] = plots.manifold(
            decode_grid(model, grid), percentiles, title, "Decoder's pixel means over the percentiles of the prior"
        )
    return figures


def decode_grid(model: LatentModel, codes) -> np.ndarray:
    """(rows, columns, latent_dim) -> (rows, columns, *image_shape)."""
    images = model.decode(codes.reshape(-1, codes.shape[-1]))
    return images.reshape(*codes.shape[:2], *images.shape[1:])
