"""When is it right to ignore the code? Data, decoders and code sizes for which q(z|x) = p(z) is a good answer.

A VAE maximises E_q(z|x) [ log p(x|z) ] - KL(q(z|x) || p(z)), which is log p(x) less KL(q(z|x) || p(z|x)). If the
decoder can model the images without z, then q(z|x) = p(z) makes the second term zero: a global optimum, and no bug
(Chen et al., "Variational lossy autoencoder", arXiv 1611.02731, section 2; Rubenstein, "Variational autoencoders are
not autoencoders"). Three questions:

    pixels     images whose pixels are independent draws from the data's mean image: a code says nothing of them
    decoder    an autoregressive decoder, p(x|z) = prod_i p(x_i | x_<i, z), which can model the digits alone; and what
               may bring the code back: KL annealing (Bowman et al., arXiv 1511.06349), free bits, sum_u max(lambda,
               E_x KL_u) (Kingma et al., arXiv 1606.04934), an AAE's discriminator on q(z) in place of the KL
    code_size  the models of this project with codes of 2 to 128 dimensions: how many of them does each use?

A dimension u is active if Var_x(E[z_u|x]) > 0.01 (Burda et al., arXiv 1509.00519). That counts dimensions of a few
hundredths of a nat, slow to fall silent; beside it stand, for code_size, those whose KL is above 0.1 nats.

Run: python -m experiments.posterior_collapse --data mnist.npz (--help lists every flag); --quick on the sample.
`--questions decoder` asks one of them. Leaves in results/posterior_collapse/<name>/: metrics.json and, a question each,
<question>.md (means and standard deviations over the seeds); runs.json (every seed), the course of every training, the
first seed's pictures as <version>.npz, and the figures decoder.png and code_size.png. What is there already is not
made again.
"""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import aae_deterministic
import aae_gaussian
import aae_universal
import avb
import vae_baseline
from common import networks, plots
from common.backend import compiled
from common.command import run_main
from common.config import AtLeast, Factor, Fraction, PositiveCount, Seed, check
from common.data import Dataset, binarise, load_mnist
from common.evaluation import latent, likelihood, probes, reconstruction
from common.files import RunError, whole, write_json
from common.measure import TRAINING_CODES, active_units, log_density, test_images, test_terms
from common.measure_likelihood import LikelihoodSettings, importance_weighted
from common.model import LatentModel, bernoulli_log_likelihood, gaussian_kl, to_numpy
from common.networks import seeded
from common.numbers import flat, markdown, of_seeds, over_seeds, plus_minus
from common.progress import TimeLeft
from common.training import planned_updates
from experiments import figures
from experiments.study import (
    claim_folder,
    each_once,
    quickened,
    require_images,
    require_in_memory,
    require_labels,
    train_part,
)

import keras
import numpy as np
from keras import layers, ops
from scipy.special import expit

PIXELS = "independent pixels"
PLAIN, ALONE = "VAE, independent pixels given z", "autoregressive decoder, no code"
AUTOREGRESSIVE = "VAE, autoregressive decoder"
ANNEALED, FREE, ADVERSARIAL = "the same, KL annealed", "the same, free bits", "Gaussian AAE, the same decoder"
LONGER = 3  # times the updates, for pixels and code_size: a dimension that buys nothing falls silent slowly
WITHOUT_CODE = 1000.0  # beta at which the code is dropped at once
SCRIPTS = {
    "VAE": vae_baseline,
    "deterministic AAE": aae_deterministic,
    "Gaussian AAE": aae_gaussian,
    "universal AAE": aae_universal,
    "AVB": avb,
}
TOLD = 0.1  # nats of KL above which code_size counts a dimension
KL_COUNTED = f"dimensions with KL > {TOLD:g} nats"
COLUMNS = {  # question: key: how the table calls it, digits
    "pixels": {
        "kl_nats": ("KL, nats", 3),
        "active_units": ("active units", 1),
        "negative_elbo_nats": ("−ELBO, nats", 2),
        "best_nats": ("−log p(x) by the true pixel means, nats", 2),
    },
    "decoder": {
        "kl_nats": ("KL, nats", 2),
        "active_units": ("active units", 1),
        "mutual_information_nats": ("I(x; z), nats", 2),
        "test_reconstruction_nats": ("reconstruction, nats", 1),
        "negative_elbo_nats": ("−ELBO, nats", 1),
        "elbo_binarised_nats": ("ELBO, fewer images, nats", 1),
        "importance_weighted_bound_nats": ("log p(x), bound, the same fewer, nats", 1),
        "mean_knn_accuracy": ("class by the mean code", 3),
        "code_c2st_accuracy": ("C2ST, code to prior", 3),
    },
    "code_size": {
        "active_units": ("active units", 1),
        "kl_dimensions": (KL_COUNTED, 1),
        "kl_nats": ("KL, closed form, nats", 1),
        "kl_estimated_nats": ("KL by T, nats", 1),
        "code_participation_ratio": ("participation ratio", 1),
        "test_reconstruction_nats": ("reconstruction, nats", 1),
        "code_c2st_accuracy": ("C2ST, code to prior", 3),
    },
}
KL_AXIS = "KL, nats (AVB: by T)"
WEIGHTED_SAMPLES = 500
SHOWN = 12  # images in the figure
QUICK = {
    "data": "sample",
    "hidden_units": (100, 100),
    "updates": 120,
    "seeds": (0,),
    "code_sizes": (2, 32),
    "weighted_images": 10,
}


@dataclass(frozen=True)
class Config:
    """What all share; whatever is not here is as in the models' scripts."""

    data: str = "auto"  # auto, mnist, fashion_mnist, sample, or the path of an .npz or .npy file
    questions: tuple[Literal["pixels", "decoder", "code_size"], ...] = ("pixels", "decoder", "code_size")
    latent_dim: PositiveCount = 8  # dimensions of z, but for code_size
    code_sizes: tuple[PositiveCount, ...] = (2, 8, 32, 128)  # dimensions of z for code_size
    hidden_units: tuple[PositiveCount, ...] = (300, 300)  # ReLU units a layer, all networks but the next
    recurrent_units: PositiveCount = 128  # of the autoregressive decoder, from row to row
    row_units: PositiveCount = 200  # ReLU units in each of its two layers within a row
    warm_up: Fraction = (
        0.5  # share of the epochs after which an annealed KL has its whole weight: here 0.4, 0.8, 1, ...
    )
    free_bits: Factor = 0.5  # nats of each dimension's KL that cost nothing, lambda
    # Not the scripts' 40, chosen for a 2-D code: the choice of experiments.aae_likelihood in 8-D, not tuned here.
    adversarial_weight: Factor = 8.0  # on the AAEs' generator's nats, against nats summed over all pixels
    updates: PositiveCount = 2750  # steps of the optimiser: 5 passes over MNIST; thrice as many but for decoder
    seeds: tuple[Seed, ...] = (0, 1, 2)  # of weights, noise, order and binarisation
    weighted_images: Annotated[int, AtLeast(2)] = 100  # test images of the importance-weighted bound
    quick: bool = False  # whatever is not asked for is small: sample, networks, 120 updates, one seed, two sizes
    results: str = "results"  # the folder of all runs
    name: str = ""  # the folder below results/posterior_collapse/; "default" or "quick" if empty
    resume: str = ""  # the folder of a run that was stopped: go on with it, and with its parameters


# A decoder that can do without a code


class MaskedDense(layers.Dense):
    """A dense layer in which `mask`, (inputs, units) of zeros and ones, says which output sees which input."""

    def __init__(self, mask: np.ndarray, **kwargs):
        super().__init__(mask.shape[1], **kwargs)
        self.mask = mask.astype("float32")

    def call(self, inputs):
        return ops.matmul(inputs, self.kernel * self.mask) + self.bias


def autoregressive_decoder(latent_dim: int, image_shape, recurrent_units: int, row_units: int, random):
    """Logits of p(x_i | x_<i, z), pixels in reading order: (batch, h, w), (batch, latent_dim) -> (batch, h, w).

    A recurrent layer reads the rows above, its state at the first one a function of the code (as Bowman et al.'s for
    sentences); within a row, masked layers see the pixels to the left (MADE; Germain et al., arXiv 1502.03509). What
    the code tells has to pass through the recurrent state. Raises ValueError if images are not (height, width).
    """
    networks.require_plane_images(image_shape)
    images, z = layers.Input(image_shape, name="images"), layers.Input((latent_dim,), name="code")
    above = layers.ZeroPadding1D((1, 0))(images[:, :-1])  # (batch, h, w): row i is the image's row i - 1
    state = layers.Dense(recurrent_units, activation="tanh", kernel_initializer=seeded(random))(z)
    orthogonal = keras.initializers.Orthogonal(seed=int(random.integers(2**31)))
    recurrent = layers.GRU(
        recurrent_units, return_sequences=True, kernel_initializer=seeded(random), recurrent_initializer=orthogonal
    )
    context = layers.Concatenate()([recurrent(above, initial_state=state), above])
    columns = np.arange(image_shape[1])
    # A hidden unit of degree m sees columns below m; column c sees units of a degree of at most c.
    degrees = np.arange(row_units) * len(columns) // row_units
    row = images
    for sees in (degrees > columns[:, None], degrees >= degrees[:, None]):
        masked = MaskedDense(sees, kernel_initializer=seeded(random))(row)
        row = layers.Activation("relu")(masked + layers.Dense(row_units, kernel_initializer=seeded(random))(context))
    logits = MaskedDense(columns >= degrees[:, None], kernel_initializer=seeded(random), name="logits")(row)
    return keras.Model([images, z], logits, name="decoder")


class Autoregressive:
    """Put before a model of this project, for a decoder that sees the image beside the code."""

    def call(self, x, training=False):
        inferred = self.infer(x)
        return inferred | {"logits": self.decoder([x, inferred["z"]])}

    def decode(self, codes) -> np.ndarray:
        """One image x ~ p(x|z) for each code, pixel by pixel, for want of pixel means: (n, latent_dim) -> (n, h, w)."""
        logits_of = compiled(lambda images, z: self.decoder([images, z]))
        z = ops.convert_to_tensor(codes, "float32")
        images = np.zeros((len(codes), *self.decoder.output.shape[1:]), "float32")
        noise = to_numpy(keras.random.uniform(images.shape, seed=self.seed_generator))
        for row, column in np.ndindex(images.shape[1:]):
            logits = to_numpy(logits_of(ops.convert_to_tensor(images), z))[:, row, column]
            images[:, row, column] = noise[:, row, column] < expit(logits)
        return images


class AutoregressiveVAE(Autoregressive, vae_baseline.VAE):
    """The VAE with that decoder; `free_bits` nats of the KL of each dimension, a batch's mean, cost nothing."""

    def __init__(self, free_bits: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.free_bits = free_bits

    def objective(self, x, outputs):
        mean, log_var = (ops.expand_dims(outputs[name], -1) for name in ("mean", "log_var"))
        each = ops.mean(gaussian_kl(mean, log_var, self.prior.scale), axis=0)  # (latent_dim,)
        kl = self.beta * self.warm_up_weight * ops.sum(ops.maximum(each, self.free_bits))
        return super().objective(x, outputs) | {"kl": kl}


class AutoregressiveAAE(Autoregressive, aae_gaussian.GaussianAAE):
    """The Gaussian AAE with that decoder."""


class Version(NamedTuple):
    """A model of the question `decoder`: its script's parameters, and what builds it."""

    parameters: dict
    build: Callable


def versions(config: Config) -> dict[str, Version]:
    """A plain VAE, the autoregressive decoder without and with a code, and three ways to make it use one."""
    vae = partial(autoregressive, config, vae_baseline, AutoregressiveVAE, ("beta",))
    aae = partial(autoregressive, config, aae_gaussian, AutoregressiveAAE, ("adversarial_weight",))
    return {
        PLAIN: Version({}, vae_baseline.build),
        ALONE: Version({"beta": WITHOUT_CODE}, vae),
        AUTOREGRESSIVE: Version({}, vae),
        ANNEALED: Version({"warm_up": config.warm_up}, vae),
        FREE: Version({}, partial(vae, free_bits=config.free_bits)),
        ADVERSARIAL: Version({"adversarial_weight": config.adversarial_weight}, aae),
    }


def autoregressive(config: Config, script, model_class, weights: tuple, own, image_shape, **parameters) -> LatentModel:
    """`script`'s model as `model_class`, its decoder exchanged; `weights` are taken from `own`, the script's Config."""
    right = script.build(own, image_shape)
    random = np.random.default_rng([own.seed, 6])
    units = config.recurrent_units, config.row_units
    decoder = autoregressive_decoder(own.latent_dim, image_shape, *units, random)
    parameters |= {weight: getattr(own, weight) for weight in weights}
    return model_class(prior=right.prior, seed=own.seed, **parameters, **right.networks | {"decoder": decoder})


# Parts


def configured(script, config: Config, seed: int, **parameters):
    """The Config of a model's own script."""
    shared = {"data": config.data, "binarisation": "dynamic", "hidden_units": config.hidden_units}
    if script is avb:
        shared["discriminator_units"] = config.hidden_units
    if "adversarial_weight" in script.Config.__dataclass_fields__:
        shared["adversarial_weight"] = config.adversarial_weight
    shared |= {"latent_dim": config.latent_dim, "updates": config.updates, "seed": seed}
    return script.Config(**shared | parameters)


def independent_pixels(dataset: Dataset) -> Dataset:
    """As many images as there are, each the mean of the training images: binarised, their pixels are independent."""
    mean = dataset.x_train.mean(axis=0, dtype="float64").astype("float32")
    images = (np.broadcast_to(mean, split.shape) for split in (dataset.x_train, dataset.x_val, dataset.x_test))
    x_train, x_val, x_test = images
    name = f"independent pixels of {dataset.name}'s mean image"
    return replace(
        dataset, x_train=x_train, y_train=None, x_val=x_val, y_val=None, x_test=x_test, y_test=None, name=name
    )


def of_pixels(config: Config, dataset: Dataset, seed: int, folder: Path) -> dict:
    """A VAE on independent pixels."""
    dataset = independent_pixels(dataset)
    asked = configured(vae_baseline, config, seed, updates=LONGER * config.updates)
    model = vae_baseline.build(asked, dataset.image_shape)
    outcome = train_part(model, dataset, asked, folder / f"pixels-seed-{seed}")
    x_test = test_images(dataset, asked)
    found = of_gaussian(model, x_test)
    found["best_nats"] = reconstruction.mean_image_cross_entropy(dataset.x_train, x_test)
    keras.utils.clear_session()
    return flat(found) | {"stopped_by": outcome.stopped_by}


def of_gaussian(model: LatentModel, x_test: np.ndarray) -> dict:
    """Terms, active dimensions and information of a model whose q(z|x) is Gaussian, on binarised test images."""
    inferred = model.inferred(x_test)
    means, log_vars, codes = (inferred[key] for key in ("mean", "log_var", "z"))
    found = test_terms(model, x_test) | {"active_units": int(latent.active_dimensions(means).sum())}
    found["kl_per_dimension_nats"] = latent.kl_per_dimension(means, log_vars, model.prior.scale)
    return found | latent.elbo_surgery(means, log_vars, codes, log_density(model.prior)(codes))


def of_decoder(config: Config, dataset: Dataset, name: str, seed: int, folder: Path) -> dict:
    """A version of the question `decoder`; the first seed's pictures go into `folder`."""
    version = versions(config)[name]
    asked = configured(aae_gaussian if name == ADVERSARIAL else vae_baseline, config, seed, **version.parameters)
    model = version.build(asked, dataset.image_shape)
    outcome = train_part(model, dataset, asked, folder / f"{slug(name)}-seed-{seed}")
    x_test = test_images(dataset, asked)
    weighted = LikelihoodSettings(0, 0, (), config.weighted_images, WEIGHTED_SAMPLES)
    found = of_gaussian(model, x_test)
    found |= importance_weighted(model, dataset, weighted, TimeLeft(), log_likelihood_of(model))[0]
    random = np.random.default_rng([seed, 2])
    near = random.permutation(len(dataset.x_train))[:TRAINING_CODES]
    known, inferred = (
        model.inferred(images) for images in (binarise(dataset.x_train[near], asked.binarisation, random), x_test)
    )
    labels = dataset.y_train[near], dataset.y_test
    found["mean_knn_accuracy"] = probes.probe_accuracy("knn", known["mean"], labels[0], inferred["mean"], labels[1])
    prior = to_numpy(model.prior.sample(len(x_test), model.seed_generator))
    found["code_c2st_accuracy"] = latent.c2st_accuracy(inferred["z"], prior, seed)
    if seed == config.seeds[0]:
        with whole(folder / f"{slug(name)}.npz") as unfinished:
            given, samples = (model.decode(some[: shown_images(dataset)]) for some in (inferred["z"], prior))
            np.savez_compressed(unfinished, given=given, samples=samples)
    keras.utils.clear_session()
    return flat(found) | {"stopped_by": outcome.stopped_by}


def shown_images(dataset: Dataset) -> int:
    """How many images a row of the figure has."""
    return min(SHOWN, len(dataset.x_test) // 2)


def log_likelihood_of(model: LatentModel) -> Callable:
    """log p(x|z), images and codes to (n,) nats, for `common.evaluation.likelihood`."""
    if isinstance(model, Autoregressive):
        return lambda images, codes: bernoulli_log_likelihood(images, model.decoder([images, codes]))
    return likelihood.of_decoder(model.decoder)


def of_code_size(config: Config, dataset: Dataset, name: str, size: int, seed: int, folder: Path) -> dict:
    """A model of this project with a code of `size` dimensions."""
    script = SCRIPTS[name]
    asked = configured(script, config, seed, latent_dim=size, updates=LONGER * config.updates)
    model = script.build(asked, dataset.image_shape)
    outcome = train_part(model, dataset, asked, folder / f"{script.__name__}-{size}-seed-{seed}")
    x_test = test_images(dataset, asked)
    codes, prior = model.encode(x_test), to_numpy(model.prior.sample(len(x_test), model.seed_generator))
    found = test_terms(model, x_test) | {"active_units": active_units(model, x_test)}
    found["code_participation_ratio"] = latent.participation_ratio(codes)
    found["code_c2st_accuracy"] = latent.c2st_accuracy(codes, prior, seed)
    found["kl_dimensions"] = found["kl_nats"]  # absent for the same reason, unless q(z|x) is Gaussian
    if model.posterior == "gaussian":
        inferred = model.inferred(x_test)
        each = latent.kl_per_dimension(inferred["mean"], inferred["log_var"], model.prior.scale)
        found |= {"kl_per_dimension_nats": each, "kl_dimensions": int((each > TOLD).sum())}
    keras.utils.clear_session()
    return flat(found) | {"stopped_by": outcome.stopped_by}


# The experiment


def parts_of(question: str, config: Config, dataset: Dataset) -> dict[str, Callable]:
    """The rows of a question's table, and what trains and measures each, given a seed and a folder."""
    if question == "pixels":
        return {PIXELS: partial(of_pixels, config, dataset)}
    if question == "decoder":
        return {name: partial(of_decoder, config, dataset, name) for name in versions(config)}
    sizes = ((name, size) for size in config.code_sizes for name in SCRIPTS)
    return {sized(name, size): partial(of_code_size, config, dataset, name, size) for name, size in sizes}


def sized(name: str, size: int) -> str:
    return f"{name}, {size}-D"


def main(config: Config = Config()) -> dict:
    """Train and measure what is not there yet; returns what metrics.json holds: question -> row -> numbers."""
    check(config)
    if config.quick:
        config = quickened(config, QUICK)
    dataset = load_mnist(config.data)
    require_in_memory(dataset)
    refuse_unusable(dataset, config)
    folder = Path(config.results) / "posterior_collapse" / (config.name or ("quick" if config.quick else "default"))
    updates = planned_updates(configured(vae_baseline, config, config.seeds[0]), len(dataset.x_train))
    claim_folder(folder, "posterior_collapse", config, dataset, updates)
    rows = {question: parts_of(question, config, dataset) for question in config.questions}
    parts = {
        f"{row}, seed {seed}": partial(make, seed, folder)
        for seed in config.seeds
        for of_question in rows.values()
        for row, make in of_question.items()
    }
    runs = each_once(folder, parts)
    metrics = {}
    for question, of_question in rows.items():
        metrics[question] = {
            row: over_seeds([runs[f"{row}, seed {seed}"] for seed in config.seeds], COLUMNS[question])
            for row in of_question
        }
        with whole(folder / f"{question}.md") as unfinished:
            unfinished.write_text(table(question, metrics[question]) + notes(question, config, dataset))
        print(table(question, metrics[question]) + notes(question, config, dataset))
    write_json(folder / "metrics.json", metrics)
    if "decoder" in metrics:
        plots.save(decoder_figure(metrics["decoder"], config, dataset, folder, updates), folder / "decoder.png")
    if "code_size" in metrics:
        plots.save(code_size_figure(runs, config, dataset), folder / "code_size.png")
    print(folder)
    return metrics


def refuse_unusable(dataset: Dataset, config: Config):
    """Raises RunError if the images do not suit the questions."""
    require_images(dataset, configured(vae_baseline, config, config.seeds[0]).batch_size)
    if "decoder" in config.questions:
        require_labels(dataset)
        if len(dataset.image_shape) != 2:
            raise RunError(
                f"{dataset.name} has images {dataset.image_shape}, and the autoregressive decoder reads rows of "
                "(height, width); leave decoder out of --questions"
            )


def slug(name: str) -> str:
    """A name for a version's files."""
    return name.lower().replace(",", "").replace(" ", "-")


def cell(question: str, found: dict, key: str) -> str:
    return plus_minus(found[key], found[f"{key}_sd"], COLUMNS[question][key][1])


def table(question: str, metrics: dict) -> str:
    """A row a model, mean ± standard deviation over the seeds."""
    columns = COLUMNS[question]
    rows = [[row_title(row, found), *(cell(question, found, key) for key in columns)] for row, found in metrics.items()]
    return markdown(["", *(title for title, _ in columns.values())], rows)


def notes(question: str, config: Config, dataset: Dataset) -> str:
    """What the columns of a table rest on."""
    if question != "decoder":
        return ""
    images, few = len(dataset.x_test), min(config.weighted_images, len(dataset.x_test))
    return (
        f"\nOf {images:,} binarised test images; ELBO and bound, last columns but two, of {few:,}, "
        f"{WEIGHTED_SAMPLES:,} draws each. I(x; z) by ELBO surgery, at most log {images:,} = {np.log(images):.1f} "
        "nats.\n"
    )


def decoder_figure(metrics: dict, config: Config, dataset: Dataset, folder: Path, updates: int):
    """Images given the code of a test image, and samples, a row a version."""
    shown = shown_images(dataset)
    given, samples, texts = [dataset.x_test[:shown]], [dataset.x_test[shown : 2 * shown]], []
    for name, found in metrics.items():
        with np.load(folder / f"{slug(name)}.npz") as arrays:
            given.append(arrays["given"])
            samples.append(arrays["samples"])
        numbers = ", ".join(cell("decoder", found, key) for key in ("kl_nats", "importance_weighted_bound_nats"))
        texts.append(f"{name}: {numbers}")
    names = ["test image", *(textwrap.fill(name, 18) for name in metrics)]
    return figures.named_tiles(
        np.stack(given + samples),
        [*names, *names],
        [str(number) for number in range(1, shown + 1)],
        "test image, or sample",
        f"Does the decoder need the code? On {dataset.name}",
        f"Upper rows: grey test images and, under each, x ~ p(x|z) with z ~ q(z|x) from the code of its binarisation: "
        f"where that is another digit, the code is ignored. Lower rows: other test images; x ~ p(x|z) with z ~ p(z). "
        f"Pixel means for the first model, pixels drawn one after the other for the others. {config.latent_dim}-D "
        f"codes, {updates:,} updates, {len(dataset.x_test):,} test images; pictures of seed {config.seeds[0]}, "
        f"numbers: {of_seeds('mean ± standard deviation', config.seeds)}. KL, and bound on log p(x) of "
        f"{min(config.weighted_images, len(dataset.x_test)):,} images, nats: {'; '.join(texts)}",
        together=len(names),
        left=1.6,
    )


def code_size_figure(runs: dict, config: Config, dataset: Dataset):
    """Numbers against the size of the code, a line a model."""
    asked = configured(vae_baseline, config, config.seeds[0], updates=LONGER * config.updates)
    updates = planned_updates(asked, len(dataset.x_train))
    sizes = sorted(config.code_sizes)

    def curves(number: Callable, line: str = "solid", suffix: str = "") -> dict[str, figures.Curve]:
        """A curve for each model that has the number."""
        found = {
            name: [[number(runs[f"{sized(name, size)}, seed {seed}"]) for size in sizes] for seed in config.seeds]
            for name in SCRIPTS
        }
        return {
            name + suffix: figures.Curve(np.array(sizes), np.array(values, float), line)
            for name, values in found.items()
            if values[0][0] is not None
        }

    titles = {key: title for key, (title, _) in COLUMNS["code_size"].items()}
    active = curves(itemgetter("active_units")) | curves(itemgetter("kl_dimensions"), "dashed", ": " + KL_COUNTED)
    panels = {titles["active_units"]: active, KL_AXIS: curves(stated_kl)}
    for key in ("test_reconstruction_nats", "code_c2st_accuracy"):
        panels[titles[key]] = curves(itemgetter(key))
    return figures.bands(
        panels,
        "dimensions of the code",
        f"How much of the code does each model use? On {dataset.name}",
        f"{updates:,} updates, networks of {' + '.join(map(str, config.hidden_units))} units, "
        f"{len(dataset.x_test):,} binarised test images; {of_seeds('mean and range', config.seeds)}. A dimension is "
        "active if the variance of E[z|x] over images is above 0.01. The KL of a point has no value, that of a "
        f"universal AAE is not known. Adversarial weight {config.adversarial_weight:g} for every size",
        x_scale="log",
        y_scale={KL_AXIS: "log", titles["active_units"]: "log"},
    )


def stated_kl(run: dict) -> float | None:
    """The KL in closed form, else by the model's T."""
    return run.get("kl_nats") if run.get("kl_nats") is not None else run.get("kl_estimated_nats")


if __name__ == "__main__":
    run_main(main, Config)
