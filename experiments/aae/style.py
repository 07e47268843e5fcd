"""Style apart from content: the label goes into the decoder of an adversarial autoencoder (AAE paper, Fig. 6 and 7).

Makhzani et al., arXiv 1511.05644. The decoder takes the one-hot label y beside the code, so the code need not say which
digit an image shows; what is left for it is how the digit is written. The encoder is deterministic, z = encoder(x), and
never sees a label; p(z) = N(0, I). Every network minimises its own terms, in nats per image, all in one step:

    encoder, decoder    E_x,y [ -log p(x|z, y) ]                 reconstruction, summed over the pixels
    encoder             adversarial_weight E_x [ -log D(z) ]     generator
    discriminator       E_p(z) [ -log D(z) ] + E_x [ -log(1 - D(z)) ]

Nothing in it forbids a class in z: the label only makes it needless. So there is a second version, ours, whose
discriminator sees the label too, D(z, y): its optimum is q(z|y) = p(z) for every y, a code that is independent of the
label. Beside both the same networks without any label: an unsupervised code of the same size. How much of the class is
left in a code is what fresh classifiers find there, trained on codes of training images and scored on those of test
images.

Run: python -m experiments.aae_supervised --data mnist.npz (--help lists every flag); --quick on the sample.
Leaves in results/aae_supervised/<name>/: metrics.json and table.md (means and standard deviations over the seeds),
runs.json (every seed), and of the first seed a figure and its arrays for each version with labels. The network that
names the generated digits is kept in results/aae_supervised/classifier. What is there already is not made again.
"""

from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import aae_deterministic
from common import networks, plots
from common.adversarial import discriminator_loss, frozen, generator_loss
from common.command import run_main
from common.config import Factor, PositiveCount, Seed, check
from common.data import Dataset, load_mnist
from common.evaluation import latent
from common.evaluation.probes import probe_accuracy
from common.evaluation.samples import Classifier
from common.files import whole, write_json
from common.measure import TRAINING_CODES
from common.model import bernoulli_log_likelihood, binary_cross_entropy, even_batch_size, to_numpy
from common.numbers import Estimate, flat, markdown, mean_of, of_seeds, over_seeds, plus_minus, share_of
from common.priors import PRIORS
from common.progress import TimeLeft
from common.training import part_updates
from experiments import figures
from experiments.aae.categorical import LabelledBatches
from experiments.study import claim_folder, each_once, fit_part, quickened, require_images, require_labels

import keras
import numpy as np
from keras import ops

VERSIONS = {  # name: whether the decoder, and whether the discriminator, is given the label
    "label into the decoder": (True, False),
    "and into the discriminator": (True, True),
    "no label": (False, False),
}
PROBES = ("knn", "logistic", "mlp")
STYLES = 7  # rows of the figure from test images, and as many from the prior
COLUMNS = {  # key: how the table calls it, digits
    "code_knn_accuracy": ("class in z, 15 neighbours", 3),
    "code_logistic_accuracy": ("class in z, linear", 3),
    "code_mlp_accuracy": ("class in z, network", 3),
    "code_c2st_accuracy": ("C2ST to prior", 3),
    "test_reconstruction_nats": ("reconstruction, nats", 1),
    "prior_consistency": ("digit is its label, z ~ p(z)", 3),
    "test_consistency": ("digit is its label, z of test images", 3),
}
QUICK = {"data": "sample", "hidden_units": (300, 300), "updates": 600, "seeds": (0,)}


@dataclass(frozen=True)
class Config:
    """Whatever is not here is as in aae_deterministic.py; dimensions and weight were chosen on validation images."""

    data: str = "auto"  # auto, mnist, fashion_mnist, sample, or the path of an .npz or .npy file; with labels
    latent_dim: PositiveCount = 5  # dimensions of z: a point encoder fills no larger prior (paper: 15)
    hidden_units: tuple[PositiveCount, ...] = (500, 500)  # ReLU units a layer, all networks (paper: 1000)
    adversarial_weight: Factor = 8.0  # on the generator's nats, against nats summed over all pixels
    updates: PositiveCount = 5500  # steps of the optimiser: 10 passes over MNIST
    seeds: tuple[Seed, ...] = (0, 1, 2)  # of weights, prior draws and order
    quick: bool = False  # whatever is not asked for is small: the sample, small networks, one seed, 600 updates
    results: str = "results"  # the folder of all runs
    name: str = ""  # the folder below results/aae_supervised/; "default" or "quick" if empty
    resume: str = ""  # the folder of a run that was stopped: go on with it, and with its parameters


class StyleAAE(aae_deterministic.DeterministicAAE):
    """z = encoder(x); the decoder takes z and the one-hot label of `classes` if `to_decoder`, else z alone.

    So does the discriminator if `to_discriminator`. A batch is {"images", "labels"}; to encode, images are enough.
    """

    title = "Deterministic AAE, label into the decoder"

    def __init__(self, classes: int, to_decoder: bool, to_discriminator: bool, **kwargs):
        super().__init__(**kwargs)
        self.classes, self.to_decoder, self.to_discriminator = classes, to_decoder, to_discriminator

    def infer(self, x):
        return super().infer(x["images"] if isinstance(x, dict) else x)

    def call(self, x, training=False):
        inferred = self.infer(x)
        return inferred | {"logits": self.decoder(self.beside(inferred["z"], x["labels"], self.to_decoder))}

    def beside(self, z, labels, wanted: bool):
        """Codes, and their labels if `wanted`: (batch, latent_dim), (batch,) -> (batch, latent_dim + classes)."""
        if not wanted:
            return z
        return ops.concatenate([z, ops.one_hot(ops.cast(labels, "int32"), self.classes, dtype="float32")], axis=-1)

    def objective(self, x, outputs):
        def judged(z):
            return self.beside(z, x["labels"], self.to_discriminator)

        z = outputs["z"]
        return {
            "reconstruction": binary_cross_entropy(x["images"], outputs["logits"]),
            "generator": self.adversarial_weight * generator_loss(frozen(self.discriminator)(judged(z))),
            "discriminator": discriminator_loss(
                self.discriminator(judged(self.prior_like(z))), self.discriminator(judged(ops.stop_gradient(z)))
            ),
        }

    def decode(self, codes, labels) -> np.ndarray:
        """Pixel means of p(x|z, y), in [0, 1]: (n, latent_dim), (n,) -> (n, *image_shape)."""
        return super().decode(to_numpy(self.beside(ops.convert_to_tensor(codes, "float32"), labels, self.to_decoder)))


def configured(config: Config, seed: int) -> aae_deterministic.Config:
    """aae_deterministic.py's own parameters."""
    return aae_deterministic.Config(
        data=config.data,
        latent_dim=config.latent_dim,
        hidden_units=config.hidden_units,
        adversarial_weight=config.adversarial_weight,
        updates=config.updates,
        seed=seed,
    )


def build(config: aae_deterministic.Config, classes: int, version: str, image_shape) -> StyleAAE:
    """The untrained model: that of aae_deterministic.py but for `classes` more inputs where the label goes in."""
    random = np.random.default_rng(config.seed)
    to_decoder, to_discriminator = VERSIONS[version]
    return StyleAAE(
        classes=classes,
        to_decoder=to_decoder,
        to_discriminator=to_discriminator,
        adversarial_weight=config.adversarial_weight,
        prior=PRIORS[config.prior](config.latent_dim, config.prior_scale),
        seed=config.seed,
        encoder=networks.encoder(image_shape, config.latent_dim, config.hidden_units, random),
        decoder=networks.decoder(config.latent_dim + classes * to_decoder, image_shape, config.hidden_units, random),
        discriminator=networks.discriminator(
            config.latent_dim + classes * to_discriminator, config.hidden_units, random
        ),
    )


# Numbers


def measured(model: StyleAAE, dataset: Dataset, classifier: Classifier, seed: int) -> dict:
    """What the code of test images says of their class, its match with the prior, and what the decoder makes of it."""
    near = np.random.default_rng([seed, 2]).permutation(len(dataset.x_train))[:TRAINING_CODES]
    training_codes, codes = model.encode(dataset.x_train[near]), model.encode(dataset.x_test)
    prior = to_numpy(model.prior.sample(len(codes), model.seed_generator))
    found = {
        f"code_{probe}_accuracy": probe_accuracy(
            probe, training_codes, dataset.y_train[near], codes, dataset.y_test, seed
        )
        for probe in PROBES
    }
    found |= {
        "code_c2st_accuracy": latent.c2st_accuracy(codes, prior, seed),
        "test_reconstruction_nats": mean_of(reconstruction(model, dataset.x_test, dataset.y_test)),
    }
    if model.to_decoder:
        found["prior_consistency"] = consistency(model, prior, classifier)
        found["test_consistency"] = consistency(model, codes, classifier)
    return flat(found)


def reconstruction(model: StyleAAE, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """-log p(x|z, y) in nats for each image, summed over the pixels: (n, *image_shape), (n,) -> (n,)."""
    size, found = even_batch_size(len(images)), []
    for start in range(0, len(images), size):
        batch = {"images": images[start : start + size], "labels": labels[start : start + size]}
        logits = model(batch)["logits"]
        found.append(to_numpy(-bernoulli_log_likelihood(ops.convert_to_tensor(batch["images"]), logits)))
    return np.concatenate(found)


def consistency(model: StyleAAE, codes: np.ndarray, classifier: Classifier) -> Estimate:
    """Fraction of codes, (n, latent_dim), that the decoder draws as the digit it was told to: every label in turn."""
    labels = np.resize(classifier.labels, len(codes))
    return share_of(classifier.classes(model.decode(codes, labels)) == labels)


# The experiment


def trained_and_measured(config: Config, dataset: Dataset, version: str, seed: int, folder: Path, classifier) -> dict:
    """Train a version and measure it on test images; what the figure needs goes into `folder` if the seed is first.

    `classifier` is a function without arguments that gives the `Classifier`.
    """
    print(f"{version}, seed {seed}", flush=True)
    asked = configured(config, seed)
    model = build(asked, dataset.classes, version, dataset.image_shape)
    batches = LabelledBatches(dataset.x_train, dataset.y_train, asked.batch_size, asked.binarisation, seed)
    validation = {"images": dataset.x_val, "labels": dataset.y_val}
    outcome = fit_part(model, batches, validation, asked, folder / f"{slug(version)}-{seed}")
    if model.to_decoder and seed == config.seeds[0]:
        with whole(folder / f"{slug(version)}.npz") as unfinished:
            np.savez_compressed(unfinished, **pictures(model, dataset, classifier().labels))
    found = measured(model, dataset, classifier(), seed)
    keras.utils.clear_session()
    return found | {"updates": outcome.updates, "stopped_by": outcome.stopped_by}


def slug(version: str) -> str:
    """A name for a version's files."""
    return version.replace(" ", "_")


def pictures(model: StyleAAE, dataset: Dataset, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Each style with every label: (2 STYLES, labels, *image_shape), and the test images of the first STYLES rows."""
    order = np.random.default_rng(0).permutation(len(dataset.x_test))
    firsts = np.sort(np.unique(dataset.y_test[order], return_index=True)[1])  # an image a class comes before the others
    chosen = order[np.concatenate([firsts, np.delete(np.arange(len(order)), firsts)])][:STYLES]
    prior = to_numpy(model.prior.sample(STYLES, model.seed_generator))
    codes = np.concatenate([model.encode(dataset.x_test[chosen]), prior])
    images = model.decode(np.repeat(codes, len(labels), axis=0), np.tile(labels, len(codes)))
    images = images.reshape(len(codes), len(labels), *dataset.image_shape)
    return {"images": images, "originals": dataset.x_test[chosen], "labels": labels}


def main(config: Config = Config()) -> dict:
    """Train and measure what is not there yet; returns what metrics.json holds."""
    check(config)
    if config.quick:
        config = quickened(config, QUICK)
    dataset = load_mnist(config.data)
    require_labels(dataset)
    require_images(dataset, aae_deterministic.Config().batch_size)
    folder = Path(config.results) / "aae_supervised" / (config.name or ("quick" if config.quick else "default"))
    updates = part_updates(configured(config, config.seeds[0]), len(dataset.x_train))
    claim_folder(folder, "aae_supervised", config, dataset, updates)
    classifier = cache(partial(Classifier, dataset, folder.parent / "classifier", TimeLeft()))
    parts = {
        f"{version}, seed {seed}": partial(
            trained_and_measured, config, dataset, version, seed, folder, classifier=classifier
        )
        for seed in config.seeds
        for version in VERSIONS
    }
    runs = each_once(folder, parts)
    metrics = {}
    for version in VERSIONS:
        of_version = [runs[f"{version}, seed {seed}"] for seed in config.seeds]
        metrics[version] = over_seeds(of_version, (*COLUMNS, "updates"))
    with whole(folder / "table.md") as unfinished:
        unfinished.write_text(table(metrics))
    write_json(folder / "metrics.json", metrics)
    for version, (to_decoder, _) in VERSIONS.items():
        if to_decoder:
            plots.save(figure(metrics, version, config, dataset, folder), folder / f"{slug(version)}.png")
    print(table(metrics))
    print(folder)
    return metrics


def table(metrics: dict) -> str:
    """A row a version, mean ± standard deviation over the seeds."""
    rows = [
        [row_title(version, found), *(plus_minus(found[key], found[f"{key}_sd"], COLUMNS[key][1]) for key in COLUMNS)]
        for version, found in metrics.items()
    ]
    return markdown(["", *(title for title, _ in COLUMNS.values())], rows)


def figure(metrics: dict, version: str, config: Config, dataset: Dataset, folder: Path):
    """A row a style, a column a content, of the first seed; before them the test images whose styles they are."""
    with np.load(folder / f"{slug(version)}.npz") as arrays:
        images, originals, labels = (arrays[key] for key in ("images", "originals", "labels"))
    first = np.full_like(images[:, :1], np.nan)
    first[: len(originals), 0] = originals
    styles = ["" for _ in images]
    styles[len(originals) // 2], styles[(len(originals) + len(images)) // 2] = "z of a\ntest image", "z ~ p(z)"
    found = {"with": metrics[version], "without": metrics["no label"]}
    probes = {name: f"{100 * numbers['code_mlp_accuracy']:.0f} %" for name, numbers in found.items()}
    both = VERSIONS[version][1]
    right = f"{100 * found['with']['prior_consistency']:.1f} %"
    return figures.named_tiles(
        np.concatenate([first, images], axis=1),
        styles,
        ["image", *map(str, labels)],
        "label given to the decoder",
        f"Style and content: AAE on {dataset.name}, label into the decoder{' and the discriminator' * both}",
        f"The decoder's pixel means: one z a row, one label a column. Above, z of the test image on the left; below, "
        f"z ~ p(z) in {config.latent_dim}-D. Pictures of seed {config.seeds[0]}, {found['with']['updates']:,.0f} "
        f"updates. A network finds the class of {probes['with']} of {len(dataset.x_test):,} test images in z, of "
        f"{probes['without']} where the decoder has no label; of z ~ p(z), {right} are drawn "
        f"as the digit asked for ({of_seeds('means', config.seeds)})",
        together=len(originals),
    )


if __name__ == "__main__":
    run_main(main, Config)
