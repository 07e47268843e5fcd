"""Labels shape the prior of an adversarial autoencoder: each class fills its own mode (AAE paper, section 2.3, Fig. 4).

Makhzani et al., arXiv 1511.05644. The encoder is deterministic, z = encoder(x), and never sees a label. The prior p(z)
is a mixture of ten Gaussians or a swiss roll, and class y owns its k = y-th mode p(z|y), or tenth of the roll. The
discriminator sees a label beside the code: y as a one-hot vector of eleven, whose last stands for "unlabelled". A fifth
of the images has labels. Every network minimises its own terms, in nats per image, all in one step:

    encoder, decoder    E_x [ -log p(x|z) ]                                  reconstruction, summed over the pixels
    encoder             adversarial_weight E_x,y [ -log D(z, y) ]            generator
    discriminator       E_y,p(z|y) [ -log D(z, y) ] + E_x,y [ -log(1 - D(z, y)) ]

where p(z|unlabelled) is the whole prior. What comes out if the labels choose the prior's mode and never reach the
discriminator: `python -m experiments.known_mistakes --mistakes labels_unseen`.

Run: python -m experiments.aae_label_prior --data mnist.npz (--help lists every flag); --quick on the sample.
`--classes 0 1 2` leaves all other classes without labels. To expect: at least 93 % of held-out codes in their own mode
of the mixture. At the adversarial weight of aae_deterministic.py, 40, classes settle in one another's modes, and the
pixels hold them there; of 100, 200 and 400 the first was best on validation images (0.943, 0.940, 0.936 in their own
mode; 2 x 500 units, 3,000 updates, seed 100). Half of every batch has labels: with the fifth that has them, few updates
do not order the classes of the sample.
Leaves in results/aae_label_prior/<name>/: metrics.json and table.md (means and standard deviations over the seeds),
runs.json (every seed), and of the first seed a figure for each prior, <prior>.png, and its arrays, <prior>.npz. What is
there already is not made again.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import aae_deterministic
from common import networks, plots
from common.adversarial import discriminator_loss, frozen, generator_loss
from common.command import run_main
from common.config import Between, Count, Factor, PositiveCount, Seed, check
from common.data import Dataset, load_mnist
from common.evaluation import latent
from common.files import RunError, whole, write_json
from common.measure import test_terms
from common.model import binary_cross_entropy, to_numpy
from common.numbers import Estimate, flat, markdown, of_seeds, over_seeds, plus_minus, share_of
from common.priors import MODES, PRIORS
from common.training import Outcome, part_updates
from experiments import figures
from experiments.aae.categorical import LabelledBatches
from experiments.study import claim_folder, each_once, fit_part, quickened, require_images, require_labels

import keras
import numpy as np
from keras import ops

UNLABELLED = MODES  # the label of an image without one: the eleventh
LABELLED_SHARE = 0.5  # of a batch
WALK = 10  # images along each mode
CLASS_POINTS = 500  # codes, and as many draws of its mode, for a class's discrepancy
FEWEST_OF_A_CLASS = 4  # test images: with fewer a class gets no numbers
AXES = {  # prior: what a step of the walk is, what a row is
    "mixture": ("along the mode's long axis, outwards", "mode"),
    "swiss_roll": ("along the roll, outwards", "tenth of the roll"),
}
COLUMNS = {  # key: how the table calls it, digits
    "own_mode_share": ("codes in their own mode", 3),
    "code_c2st_accuracy": ("C2ST to prior", 3),
    "code_mmd_imq": ("MMD² to prior", 4),
    "class_c2st_accuracy": ("C2ST of a class to its mode", 3),
    "class_mmd_imq": ("MMD² of a class to its mode", 4),
    "test_reconstruction_nats": ("reconstruction, nats", 1),
}
QUICK = {"data": "sample", "hidden_units": (200, 200), "updates": 1000, "seeds": (0,)}


@dataclass(frozen=True)
class Config:
    """The paper's values where it gives them; whatever is not here is as in aae_deterministic.py."""

    data: str = "auto"  # auto, mnist, fashion_mnist, sample, or an .npz file; with labels from 0 to 9
    labelled_images: PositiveCount = 10_000  # of the training images (section 2.3); in proportion where there are fewer
    unlabelled_images: Count = 40_000  # of the training images (section 2.3)
    classes: tuple[Annotated[int, Between(0, MODES)], ...] = tuple(range(MODES))  # that have labels
    priors: tuple[Literal["mixture", "swiss_roll"], ...] = ("mixture", "swiss_roll")  # Fig. 4
    hidden_units: tuple[PositiveCount, ...] = (1000, 1000)  # ReLU units a layer, all networks (appendix A.1)
    adversarial_weight: Factor = 100.0  # on the generator's nats, against nats summed over all pixels
    updates: PositiveCount = 5000  # steps of the optimiser: labelled images are seen 25 times, the others 6
    seeds: tuple[Seed, ...] = (0, 1, 2)  # of weights, prior draws, order, and of who has a label
    quick: bool = False  # whatever is not asked for is small: sample, networks, one seed, 1000 updates
    results: str = "results"  # the folder of all runs
    name: str = ""  # the folder below results/aae_label_prior/; "default" or "quick" if empty
    resume: str = ""  # the folder of a run that was stopped: go on with it, and with its parameters


class MixedBatches(LabelledBatches):
    """`LabelledBatches` of which LABELLED_SHARE has labels: those images come round more often than the others."""

    def shuffle(self, epoch: int):
        self.epoch, random = epoch, np.random.default_rng([self.seed, epoch])
        labelled = self.labels != UNLABELLED
        count = round(LABELLED_SHARE * self.batch_size) if not labelled.all() else self.batch_size
        count = count if labelled.any() else 0
        parts = [
            np.resize(random.permutation(np.flatnonzero(chosen)), (len(self), size))
            for chosen, size in ((labelled, count), (~labelled, self.batch_size - count))
        ]
        self.order = np.concatenate(parts, axis=1).ravel()


class LabelPriorAAE(aae_deterministic.DeterministicAAE):
    """z = encoder(x), matched to the mode of its label by a discriminator that sees the label beside z.

    In training a batch is {"images", "labels"}, labels from 0 to 9 or UNLABELLED; elsewhere images are enough.
    """

    title = "Deterministic AAE, labels in its prior"

    def infer(self, x):
        return super().infer(x["images"] if isinstance(x, dict) else x)

    def prior_draws(self, labels):
        """A draw from the mode of each label, from the whole prior for UNLABELLED: (batch,) -> (batch, latent_dim)."""
        anywhere = keras.random.randint(ops.shape(labels), 0, MODES, seed=self.seed_generator)
        modes = ops.where(labels == UNLABELLED, anywhere, labels)
        return self.prior.sample(ops.shape(labels)[0], self.seed_generator, modes)

    def beside(self, z, labels):
        """What the discriminator takes: (batch, latent_dim), (batch,) -> (batch, latent_dim + 11)."""
        return ops.concatenate([z, ops.one_hot(labels, MODES + 1, dtype="float32")], axis=-1)

    def objective(self, x, outputs):
        z, labels = outputs["z"], ops.cast(x["labels"], "int32")
        return {
            "reconstruction": binary_cross_entropy(x["images"], outputs["logits"]),
            "generator": self.adversarial_weight * generator_loss(frozen(self.discriminator)(self.beside(z, labels))),
            "discriminator": discriminator_loss(
                self.discriminator(self.beside(self.prior_draws(labels), labels)),
                self.discriminator(self.beside(ops.stop_gradient(z), labels)),
            ),
        }


def configured(config: Config, prior: str, seed: int) -> aae_deterministic.Config:
    """aae_deterministic.py's own parameters."""
    return aae_deterministic.Config(
        data=config.data,
        hidden_units=config.hidden_units,
        prior=prior,
        adversarial_weight=config.adversarial_weight,
        updates=config.updates,
        seed=seed,
    )


def build(config: aae_deterministic.Config, image_shape) -> LabelPriorAAE:
    """The untrained model: that of aae_deterministic.py but for its discriminator, which has eleven more inputs."""
    random = np.random.default_rng(config.seed)
    return LabelPriorAAE(
        adversarial_weight=config.adversarial_weight,
        prior=PRIORS[config.prior](config.latent_dim, config.prior_scale),
        seed=config.seed,
        encoder=networks.encoder(image_shape, config.latent_dim, config.hidden_units, random),
        decoder=networks.decoder(config.latent_dim, image_shape, config.hidden_units, random),
        discriminator=networks.discriminator(config.latent_dim + MODES + 1, config.hidden_units, random),
    )


def training_images(dataset: Dataset, config: Config, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The images of a seed, drawn at random, and their labels, (n,), UNLABELLED where they have none.

    As many as the config asks for or, from a smaller data set, all of them in the same proportion.
    """
    asked = config.labelled_images + config.unlabelled_images
    order = np.random.default_rng([seed, 5]).permutation(len(dataset.x_train))[:asked]
    labelled = labelled_count(dataset, config)
    labels = np.full(len(order), UNLABELLED)
    labels[:labelled] = shown_labels(dataset.y_train[order[:labelled]], config)
    return dataset.x_train[order], labels


def labelled_count(dataset: Dataset, config: Config) -> int:
    """How many images of a training have labels, or would if all classes had some."""
    asked = config.labelled_images + config.unlabelled_images
    return min(asked, len(dataset.x_train)) * config.labelled_images // asked


def shown_labels(labels: np.ndarray, config: Config) -> np.ndarray:
    """Labels (n,) as the discriminator is given them: UNLABELLED for the classes that have none."""
    return np.where(np.isin(labels, config.classes), labels, UNLABELLED)


# Numbers


def own_mode_share(prior, codes: np.ndarray, labels: np.ndarray) -> Estimate:
    """Fraction of codes, (n, 2), that lie in the mode of their label, (n,)."""
    return share_of(to_numpy(prior.mode_of(ops.convert_to_tensor(codes, "float32"))) == labels)


def measured(model: LabelPriorAAE, dataset: Dataset, config: Config, seed: int) -> dict:
    """Codes of the test images against the prior as a whole, and each labelled class against its own mode."""
    codes, labels = model.encode(dataset.x_test), dataset.y_test
    prior = to_numpy(model.prior.sample(len(codes), model.seed_generator))
    own = to_numpy(model.prior.sample(len(codes), model.seed_generator, labels))  # a draw for each code's label
    counted = np.isin(labels, config.classes)
    found = {
        "own_mode_share": own_mode_share(model.prior, codes[counted], labels[counted]),
        "prior_own_mode_share": own_mode_share(model.prior, own[counted], labels[counted]),
        "code_c2st_accuracy": latent.c2st_accuracy(codes, prior, seed),
        "code_mmd_imq": latent.mmd(codes, prior, seed=seed),
        "test_reconstruction_nats": test_terms(model, dataset.x_test)["test_reconstruction_nats"],
    }
    return flat(found | of_classes(codes[counted], own[counted], labels[counted], seed))


def of_classes(codes: np.ndarray, own: np.ndarray, labels: np.ndarray, seed: int) -> dict:
    """The codes of each class against draws from its mode, both (n, 2) with labels (n,): each class's, and the mean."""
    classes, counts = np.unique(labels, return_counts=True)
    classes = classes[counts >= FEWEST_OF_A_CLASS]
    pairs = [(codes[labels == label], own[labels == label]) for label in classes]
    found = {
        "class_c2st_accuracy": [latent.c2st_accuracy(*pair, seed).value for pair in pairs],
        "class_mmd_imq": [latent.mmd(*pair, points=CLASS_POINTS, seed=seed).value for pair in pairs],
    }
    means = {key: float(np.mean(values)) if values else None for key, values in found.items()}
    each = {f"{key}_each": values for key, values in found.items()}
    return means | each | {"classes": classes.tolist()}


# The experiment


def trained_and_measured(config: Config, dataset: Dataset, prior: str, seed: int, folder: Path) -> dict:
    """Train on a prior and measure on test images; what its figure needs goes into `folder` if the seed is first."""
    print(f"{prior}, seed {seed}", flush=True)
    asked = configured(config, prior, seed)
    model = build(asked, dataset.image_shape)
    outcome = trained(model, dataset, config, asked, folder / f"{prior}-{seed}")
    if seed == config.seeds[0]:
        with whole(folder / f"{prior}.npz") as unfinished:
            np.savez_compressed(unfinished, **pictures(model, dataset))
    found = measured(model, dataset, config, seed)
    keras.utils.clear_session()
    return found | {"updates": outcome.updates, "stopped_by": outcome.stopped_by}


def trained(
    model: LabelPriorAAE, dataset: Dataset, config: Config, asked: aae_deterministic.Config, folder: Path
) -> Outcome:
    """Train the model of `asked` on the images and labels of its seed; history.csv goes into `folder`."""
    images, labels = training_images(dataset, config, asked.seed)
    batches = MixedBatches(images, labels, asked.batch_size, asked.binarisation, asked.seed)
    validation = {"images": dataset.x_val, "labels": shown_labels(dataset.y_val, config)}
    return fit_part(model, batches, validation, asked, folder)


def pictures(model: LabelPriorAAE, dataset: Dataset) -> dict[str, np.ndarray]:
    """Codes of the test images, (n, 2), prior draws, (1000, 2), and decoded walks, (modes, WALK, *image_shape)."""
    walk = to_numpy(model.prior.walk(WALK))
    images = model.decode(walk.reshape(-1, 2)).reshape(MODES, WALK, *dataset.image_shape)
    prior = to_numpy(model.prior.sample(plots.CLOUD_POINTS, model.seed_generator))
    return {"codes": model.encode(dataset.x_test), "prior": prior, "walks": images}


def require_modes(dataset: Dataset, config: Config):
    """Raises RunError unless every class has a mode, and the images of a training fill a batch."""
    require_labels(dataset)
    highest = max(labels.max() for labels in (dataset.y_train, dataset.y_val, dataset.y_test))
    if highest >= MODES:
        raise RunError(f"{dataset.name} has a label {highest}, and the priors {MODES} modes, for labels from 0")
    if not np.isin(dataset.y_test, config.classes).any():
        raise RunError(f"{dataset.name} has no test image of --classes {' '.join(map(str, config.classes))}")
    batch = aae_deterministic.Config().batch_size
    require_images(dataset, batch)
    if config.labelled_images + config.unlabelled_images < batch:
        raise RunError(f"--labelled-images and --unlabelled-images must be {batch} or more together")
    if not labelled_count(dataset, config):
        raise RunError(f"of {len(dataset.x_train)} training images none would have a label; raise --labelled-images")


def main(config: Config = Config()) -> dict:
    """Train and measure what is not there yet; returns what metrics.json holds."""
    check(config)
    if config.quick:
        config = quickened(config, QUICK)
    dataset = load_mnist(config.data)
    require_modes(dataset, config)
    folder = Path(config.results) / "aae_label_prior" / (config.name or ("quick" if config.quick else "default"))
    images = min(config.labelled_images + config.unlabelled_images, len(dataset.x_train))
    updates = part_updates(configured(config, config.priors[0], config.seeds[0]), images)
    claim_folder(folder, "aae_label_prior", config, dataset, updates)
    parts = {
        f"{prior}, seed {seed}": partial(trained_and_measured, config, dataset, prior, seed, folder)
        for seed in config.seeds
        for prior in config.priors
    }
    runs = each_once(folder, parts)
    metrics = {}
    for prior in config.priors:
        of_prior = [runs[f"{prior}, seed {seed}"] for seed in config.seeds]
        metrics[prior] = over_seeds(of_prior, (*COLUMNS, "prior_own_mode_share", "updates"))
        plots.save(figure(metrics[prior], prior, config, dataset, folder), folder / f"{prior}.png")
    with whole(folder / "table.md") as unfinished:
        unfinished.write_text(table(metrics))
    write_json(folder / "metrics.json", metrics)
    print(table(metrics))
    print(folder)
    return metrics


def table(metrics: dict) -> str:
    """A row a prior, mean ± standard deviation over the seeds."""
    rows = [
        [
            row_title(prior.replace("_", " "), found),
            *(plus_minus(found[key], found[f"{key}_sd"], COLUMNS[key][1]) for key in COLUMNS),
        ]
        for prior, found in metrics.items()
    ]
    return markdown(["", *(title for title, _ in COLUMNS.values())], rows)


def figure(found: dict, name: str, config: Config, dataset: Dataset, folder: Path):
    """Codes over their prior, and what the decoder makes of walks through it, of the first seed."""
    with np.load(folder / f"{name}.npz") as arrays:
        codes, prior, walks = (arrays[key] for key in ("codes", "prior", "walks"))
    _, labels = training_images(dataset, config, config.seeds[0])
    own, best = (f"{100 * found[key]:.1f} %" for key in ("own_mode_share", "prior_own_mode_share"))
    return figures.codes_and_walks(
        codes,
        dataset.y_test,
        prior,
        walks,
        AXES[name],
        f"AAE on {dataset.name}, {name.replace('_', ' ')} prior, labels seen by the discriminator",
        f"Left: codes of {len(codes):,} test images by class, each class's number at its median; prior draws in black. "
        f"Right: the decoder's pixel means on a walk through each mode, the number and colour those of its class. "
        f"{np.sum(labels != UNLABELLED):,} labelled and {np.sum(labels == UNLABELLED):,} unlabelled training images, "
        f"{found['updates']:,.0f} updates, pictures of seed {config.seeds[0]}. Codes in their own mode: {own} "
        f"({of_seeds('mean', config.seeds)}); of the prior's own draws {best}",
    )


if __name__ == "__main__":
    run_main(main, Config)
