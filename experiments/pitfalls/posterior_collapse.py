"""When is it right to ignore the code? Data, decoders and code sizes for which q(z|x) = p(z) is a good answer.

A VAE maximises E_q(z|x) [ log p(x|z) ] - KL(q(z|x) || p(z)), which is log p(x) minus KL(q(z|x) || p(z|x)). If the
decoder can model the images without z, then q(z|x) = p(z) makes the second term zero. This is a global optimum, and not
a bug (Chen et al., "Variational lossy autoencoder", arXiv 1611.02731, section 2). See also Rubenstein, "Variational
autoencoders are not autoencoders". Three questions:

    pixels     Images whose pixels are independent draws from the data's mean image: a code cannot tell anything about
               them.
    decoder    An autoregressive decoder, p(x|z) = prod_i p(x_i | x_<i, z), which can model the digits without a code.
               There are three remedies. One is KL annealing (Bowman et al., arXiv 1511.06349). Another is free bits,
               sum_u max(lambda, E_x KL_u) (Kingma et al., arXiv 1606.04934). The third is an AAE's discriminator on
               q(z) in place of the KL.
    code_size  The five scripts' models with codes of 2 to 128 dimensions: how many of them does each model use?

A dimension u is active if Var_x(E[z_u|x]) > 0.01 (Burda et al., arXiv 1509.00519). That counts dimensions with a few
hundredths of a nat too, which become inactive slowly. So code_size also counts dimensions with a KL above 0.1 nats.

Run: python -m experiments.pitfalls.posterior_collapse --data mnist.npz (--help lists every flag). --quick is a short
run on the sample. `--questions decoder` selects one question. Resumes if interrupted. Results in
results/pitfalls_posterior_collapse/<name>/:

    metrics.json, <question>.md   means and standard deviations over the seeds
    runs.json                     numbers of every seed
    decoder.png                   reconstructions and samples for the question decoder
    code_size.png                 numbers against the size of the code
    a folder per training         history.csv
"""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal, NamedTuple

import aae_gaussian
import vae_baseline
from common.config import AtLeast, Factor, Fraction, PositiveCount
from common.data import Dataset
from common.evaluation import latent, probes, reconstruction
from common.files import RunError
from common.measure import log_density, test_images, test_terms, training_inferred
from common.measure_likelihood import LikelihoodSettings, importance_weighted
from common.metrics import METRICS, Metric
from common.model import LatentModel
from common.numbers import of_seeds
from common.progress import TimeLeft
from common.training import image_batches
from experiments import figures, study
from experiments.pitfalls import code_size
from experiments.pitfalls.autoregressive import build_aae, build_vae, log_likelihood_of
from experiments.pitfalls.code_size import LONGER, own_config
from experiments.study import ImageStudyConfig, Part, Results, Study, run_study

import numpy as np

PIXELS = "independent pixels"
PLAIN, ALONE = "VAE, independent pixels given z", "autoregressive decoder, no code"
AUTOREGRESSIVE = "VAE, autoregressive decoder"
ANNEALED, FREE, ADVERSARIAL = "the same, KL annealed", "the same, free bits", "Gaussian AAE, the same decoder"
WITHOUT_CODE = 1000.0  # a beta with which the VAE ignores its code from the start
COLUMNS = {  # question -> key -> column; more digits where results are near 0, or near each other
    "pixels": {
        "kl_nats": METRICS["kl_nats"]._replace(digits=3),
        "active_units": METRICS["active_units"],
        "negative_elbo_nats": METRICS["negative_elbo_nats"]._replace(digits=2),
        "best_nats": Metric(
            "−log p(x) by the true pixel means", "nats", 2, "lower", "the least that a model can reach"
        ),
    },
    "decoder": {
        "kl_nats": METRICS["kl_nats"]._replace(digits=2),
        "active_units": METRICS["active_units"],
        "mutual_information_nats": METRICS["mutual_information_nats"]._replace(digits=2),
        "test_reconstruction_nats": METRICS["test_reconstruction_nats"],
        "negative_elbo_nats": METRICS["negative_elbo_nats"],
        "elbo_binarised_nats": METRICS["elbo_binarised_nats"],
        "importance_weighted_bound_nats": METRICS["importance_weighted_bound_nats"],
        "mean_knn_accuracy": METRICS["code_knn_accuracy"]._replace(title="class by 15 nearest mean codes"),
        "code_c2st_accuracy": METRICS["code_c2st_accuracy"],
    },
    "code_size": code_size.COLUMNS,
}
WEIGHTED_SAMPLES = 500  # draws for each image of the importance-weighted bound
SHOWN = 12  # images per row of the figure
QUICK = {
    "data": "sample",
    "hidden_units": (100, 100),
    "updates": 120,
    "seeds": (0,),
    "code_sizes": (2, 32),
    "weighted_images": 10,
}


@dataclass(frozen=True)
class Config(ImageStudyConfig):
    """Parameters that all models share. All other parameters are as in the models' scripts."""

    # questions to answer: independent pixels, an autoregressive decoder, the size of the code
    questions: tuple[Literal["pixels", "decoder", "code_size"], ...] = ("pixels", "decoder", "code_size")
    latent_dim: PositiveCount = 8  # dimensions of z, for pixels and decoder
    code_sizes: tuple[PositiveCount, ...] = (2, 8, 32, 128)  # dimensions of z, for code_size
    hidden_units: tuple[PositiveCount, ...] = (300, 300)  # ReLU units per layer, except the autoregressive decoder
    recurrent_units: PositiveCount = 128  # recurrent units of the autoregressive decoder, from row to row
    row_units: PositiveCount = 200  # ReLU units in each of the autoregressive decoder's two layers within a row
    warm_up: Fraction = 0.5  # share of the epochs in which an annealed KL's weight rises to 1: here 0.4, 0.8, 1, ...
    free_bits: Factor = 0.5  # lambda: nats of each dimension's KL that have no cost
    # factor on the loss of the AAEs' generator. The scripts' 40 was chosen for a 2-D code; this value is that of
    # experiments.comparison.likelihoods for 8-D, and was not tuned here
    adversarial_weight: Factor = 8.0
    updates: PositiveCount = 2750  # optimiser steps: 5 passes over MNIST for decoder, 15 for pixels and code_size
    weighted_images: Annotated[int, AtLeast(2)] = 100  # test images for the importance-weighted bound


# Question `pixels`


def independent_pixels(dataset: Dataset) -> Dataset:
    """A data set of the same size whose images are all the mean image: binarised, their pixels are independent."""
    mean = dataset.x_train.mean(axis=0, dtype="float64").astype("float32")
    splits = ("x_train", "x_val", "x_test")
    images = {split: np.broadcast_to(mean, getattr(dataset, split).shape) for split in splits}
    labels = dict.fromkeys(("y_train", "y_val", "y_test"))
    name = f"independent pixels of {dataset.name}'s mean image"
    return replace(dataset, **images, **labels, name=name, is_mnist=False)


def pixels_case(part: Part) -> dict:
    """Train and measure a VAE on independent pixels."""
    dataset = independent_pixels(part.dataset)
    own = own_config(vae_baseline, part.config, part.seed, updates=LONGER * part.config.updates)
    model = vae_baseline.build(own, dataset.image_shape)
    part.train(model, own, *image_batches(dataset, own))
    x_test = test_images(dataset, own)
    best = reconstruction.mean_image_cross_entropy(dataset.x_train, x_test)
    return gaussian_numbers(model, x_test) | {"best_nats": best}


def gaussian_numbers(model: LatentModel, x_test: np.ndarray) -> dict:
    """Terms, active dimensions and information of a model whose q(z|x) is Gaussian, on binarised test images."""
    inferred = model.inferred(x_test)
    means, log_vars, codes = (inferred[key] for key in ("mean", "log_var", "z"))
    numbers = test_terms(model, x_test) | {"active_units": int(latent.active_dimensions(means).sum())}
    numbers["kl_per_dimension_nats"] = latent.kl_per_dimension(means, log_vars, model.prior.scale)
    return numbers | latent.elbo_surgery(means, log_vars, codes, log_density(model.prior)(codes))


# Question `decoder`


class Version(NamedTuple):
    """A model of the question `decoder`: its script, parameters that differ from the script's, and its builder."""

    script: object
    own: dict
    build: Callable  # (Config of the script, image shape) -> model


def versions(config: Config) -> dict[str, Version]:
    """A plain VAE, the autoregressive decoder without and with a code, and three remedies that make it use a code."""
    units = config.recurrent_units, config.row_units
    vae = partial(build_vae, units)
    return {
        PLAIN: Version(vae_baseline, {}, vae_baseline.build),
        ALONE: Version(vae_baseline, {"beta": WITHOUT_CODE}, vae),
        AUTOREGRESSIVE: Version(vae_baseline, {}, vae),
        ANNEALED: Version(vae_baseline, {"warm_up": config.warm_up}, vae),
        FREE: Version(vae_baseline, {}, partial(vae, free_bits=config.free_bits)),
        ADVERSARIAL: Version(aae_gaussian, {}, partial(build_aae, units)),
    }


def decoder_case(version: Version, part: Part) -> dict:
    """Train a version and measure how much it uses its code."""
    config, dataset = part.config, part.dataset
    own = own_config(version.script, config, part.seed, **version.own)
    model = version.build(own, dataset.image_shape)
    part.train(model, own)
    x_test = test_images(dataset, own)
    numbers = gaussian_numbers(model, x_test)
    weighted = LikelihoodSettings(0, 0, (), config.weighted_images, WEIGHTED_SAMPLES)
    numbers |= importance_weighted(model, dataset, weighted, TimeLeft(), log_likelihood_of(model))[0]
    known, labels = training_inferred(model, dataset, own, ("mean",))
    inferred = model.inferred(x_test)
    numbers["mean_knn_accuracy"] = probes.probe_accuracy("knn", known["mean"], labels, inferred["mean"], dataset.y_test)
    prior = model.prior_codes(len(x_test))
    numbers["code_c2st_accuracy"] = latent.c2st_accuracy(inferred["z"], prior, part.seed)
    if part.first:
        shown = shown_images(dataset)
        part.keep(reconstructions=model.decode(inferred["z"][:shown]), samples=model.decode(prior[:shown]))
    return numbers


def shown_images(dataset: Dataset) -> int:
    """The number of images per row of the figure."""
    return min(SHOWN, len(dataset.x_test) // 2)


# The experiment


def cases_of(question: str, config: Config) -> dict[str, Callable]:
    """The cases of a question, which are the rows of its table."""
    if question == "pixels":
        return {PIXELS: pixels_case}
    if question == "decoder":
        return {name: partial(decoder_case, version) for name, version in versions(config).items()}
    return code_size.cases(config)


def cases(config: Config, dataset: Dataset) -> dict:
    """The cases of all requested questions."""
    return {name: case for question in config.questions for name, case in cases_of(question, config).items()}


def requires(config: Config, dataset: Dataset):
    """Raises RunError if the images do not suit the questions."""
    study.require_in_memory(dataset)
    study.require_batch(dataset, vae_baseline.Config().batch_size)
    if "decoder" in config.questions:
        study.require_labels(dataset)
        if len(dataset.image_shape) != 2:
            raise RunError(
                f"{dataset.name} has images {dataset.image_shape}, but the autoregressive decoder reads rows of "
                "(height, width); leave decoder out of --questions"
            )


def rows(declared: Study, results: Results) -> dict:
    """Means and standard deviations of every column: question -> row -> numbers."""
    return {
        question: {
            case: results.means(case, (*COLUMNS[question], "updates")) for case in cases_of(question, results.config)
        }
        for question in results.config.questions
    }


def tables(declared: Study, results: Results, metrics: dict) -> dict[str, str]:
    """A table for each question."""
    texts = {f"{question}.md": study.table(means, COLUMNS[question]) for question, means in metrics.items()}
    if "decoder" in metrics:
        texts["decoder.md"] += notes(results.config, results.dataset)
    return texts


def notes(config: Config, dataset: Dataset) -> str:
    """A note below the table of `decoder` on the images and draws of its columns."""
    images, few = len(dataset.x_test), min(config.weighted_images, len(dataset.x_test))
    return (
        f"\n{images:,} binarised test images. ELBO and bound on log p(x): {few:,} images, {WEIGHTED_SAMPLES:,} draws "
        f"each. I(x; z) by ELBO surgery is at most log {images:,} = {np.log(images):.1f} nats.\n"
    )


def all_figures(results: Results, metrics: dict) -> dict:
    """Pictures of the versions of `decoder`, and curves over the code's size; `pixels` has no figure."""
    made = {}
    if "decoder" in metrics:
        made["decoder"] = decoder_figure(results, metrics["decoder"])
    if "code_size" in metrics:
        made["code_size"] = code_size.figure(results)
    return made


def decoder_figure(results: Results, metrics: dict):
    """Images from the codes of test images, and samples, one row per version."""
    config, dataset, columns = results.config, results.dataset, COLUMNS["decoder"]
    shown = shown_images(dataset)
    pictures = [results.pictures(name) for name in metrics]
    reconstructions = [dataset.x_test[:shown], *(picture["reconstructions"] for picture in pictures)]
    samples = [dataset.x_test[shown : 2 * shown], *(picture["samples"] for picture in pictures)]
    keys = ("kl_nats", "importance_weighted_bound_nats")
    texts = [f"{name}: {', '.join(columns[key].cell(means, key) for key in keys)}" for name, means in metrics.items()]
    names = ["test image", *(textwrap.fill(name, 18) for name in metrics)]
    return figures.named_tiles(
        np.stack(reconstructions + samples),
        [*names, *names],
        [str(number) for number in range(1, shown + 1)],
        "test image, or sample",
        f"Does the decoder need the code? On {dataset.name}",
        f"Upper rows: grey test images and, below each, x ~ p(x|z) with z ~ q(z|x), x binarised. A version that shows "
        f"another digit ignores its code. Lower rows: other test images, and x ~ p(x|z) with z ~ p(z). The first model "
        f"shows pixel means; the others draw pixel after pixel. {config.latent_dim}-D codes, "
        f"{results.updates(*metrics)}, {len(dataset.x_test):,} test images. Pictures: seed {config.seeds[0]}. "
        f"Numbers: {of_seeds('mean ± standard deviation', config.seeds)}. KL, and bound on log p(x) of "
        f"{min(config.weighted_images, len(dataset.x_test)):,} images, in nats. {'; '.join(texts)}",
        together=len(names),
        left=1.6,
    )


ALL_COLUMNS = {key: metric for columns in COLUMNS.values() for key, metric in columns.items()}
STUDY = Study("pitfalls.posterior_collapse", cases, ALL_COLUMNS, all_figures, QUICK, requires, rows=rows, tables=tables)


def main(config: Config = Config()) -> dict:
    """Run the experiment; returns the content of metrics.json: question -> row -> numbers."""
    return study.run(STUDY, config)


if __name__ == "__main__":
    run_study(STUDY, Config)
