"""Can the code hold style without content if the decoder knows the label? (AAE paper, Fig. 6 and 7)

Makhzani et al., arXiv 1511.05644. The decoder takes the code and the one-hot label y. So the code need not tell which
digit an image shows, only how it is written. The encoder is deterministic, z = encoder(x), and never sees a label. The
prior is p(z) = N(0, I). Every network minimises its own terms, in nats per image, all in one step:

    encoder, decoder    E_x,y [ -log p(x|z, y) ]                 reconstruction, summed over the pixels
    encoder             adversarial_weight E_x [ -log D(z) ]     generator
    discriminator       E_p(z) [ -log D(z) ] + E_x [ -log(1 - D(z)) ]

With this objective, z can still hold the class: the label only makes that unnecessary. So there is a second version,
ours, whose discriminator sees the label too, D(z, y). Its optimum is q(z|y) = p(z) for every y, which makes the code
independent of the label. The baseline has the same networks without any label: an unsupervised code of the same size.
New classifiers (probes) measure how much of the class a code holds. They train on codes of training images, and are
tested on codes of test images.

Run: python -m experiments.aae.style --data mnist.npz (--help lists every flag). --quick is a short run on the sample.
Resumes if interrupted. Results in results/aae_style/<name>/:

    metrics.json, table.md      means and standard deviations over the seeds
    runs.json                   numbers of every seed
    <version>.png               decoded styles and contents, of the first seed
    a folder per training       history.csv

The classifier of the generated digits is kept in results/aae_style/classifier.
"""

from dataclasses import dataclass
from functools import cache, partial

import aae_deterministic
from common import networks
from common.adversarial import discriminator_loss, frozen, generator_loss
from common.config import Factor, PositiveCount, Seed
from common.data import Dataset
from common.evaluation import latent
from common.evaluation.probes import probe_accuracy
from common.evaluation.samples import Classifier
from common.likelihoods import bernoulli_log_likelihood, binary_cross_entropy
from common.measure import encoded, training_inferred
from common.metrics import METRICS, Metric
from common.model import to_numpy
from common.numbers import Estimate, mean_of, of_seeds, share_of
from common.priors import PRIORS
from common.progress import TimeLeft
from experiments import figures, study
from experiments.aae.categorical import LabelledBatches
from experiments.study import ImageStudyConfig, Part, Results, Study, run_study

import numpy as np
from keras import ops

VERSIONS = {  # name: whether the decoder, and whether the discriminator, sees the label
    "label into the decoder": (True, False),
    "and into the discriminator": (True, True),
    "no label": (False, False),
}
PROBES = ("knn", "logistic", "mlp")
STYLES = 7  # rows of the figure from test images, and the same number from the prior
CONSISTENCY = "share of decoded digits that a classifier names as the label given to the decoder"
COLUMNS = {
    key: METRICS[key]
    for key in (*(f"code_{probe}_accuracy" for probe in PROBES), "code_c2st_accuracy", "test_reconstruction_nats")
} | {
    "prior_consistency": Metric("digit is its label, z ~ p(z)", "", 3, "higher", CONSISTENCY),
    "test_consistency": Metric("digit is its label, z of test images", "", 3, "higher", CONSISTENCY),
}
QUICK = {"data": "sample", "hidden_units": (300, 300), "updates": 600, "seeds": (0,)}


@dataclass(frozen=True)
class Config(ImageStudyConfig):
    """All other parameters are as in aae_deterministic.py. Dimensions and weight were chosen on validation images."""

    data: str = "auto"  # auto, mnist, fashion_mnist, sample, or the path of an .npz or .npy file; with labels
    latent_dim: PositiveCount = 5  # dimensions of z; a deterministic encoder does not fill a larger prior (paper: 15)
    hidden_units: tuple[PositiveCount, ...] = (500, 500)  # ReLU units per layer, all networks (paper: 1000)
    adversarial_weight: Factor = 8.0  # factor on the generator's loss; the reconstruction is a sum over all pixels
    updates: PositiveCount = 5500  # optimiser steps: 10 passes over MNIST
    seeds: tuple[Seed, ...] = (0, 1, 2)  # random seeds of weights, prior draws and order


class StyleAAE(aae_deterministic.DeterministicAAE):
    """z = encoder(x). If `to_decoder`, the decoder takes z and the one-hot label of `classes`, else z alone.

    The same holds for the discriminator with `to_discriminator`. A batch is {"images", "labels"}; to encode, images are
    enough. `decode` takes the decoder's input: z, (n, latent_dim), followed by the one-hot label, (n, classes), if
    `to_decoder`. `decode_as` appends the label.
    """

    title = "Deterministic AAE, label into the decoder"

    def __init__(self, classes: int, to_decoder: bool, to_discriminator: bool, **kwargs):
        super().__init__(**kwargs)
        self.classes, self.to_decoder, self.to_discriminator = classes, to_decoder, to_discriminator

    def infer(self, x):
        return super().infer(x["images"] if isinstance(x, dict) else x)

    def call(self, x, training=False):
        inferred = self.infer(x)
        return inferred | {"parameters": self.decoder(self.joined(inferred["z"], x["labels"], self.to_decoder))}

    def joined(self, z, labels, with_labels: bool):
        """Codes, and their labels if `with_labels`: (batch, latent_dim), (batch,) -> (batch, latent_dim + classes)."""
        if not with_labels:
            return z
        return ops.concatenate([z, ops.one_hot(ops.cast(labels, "int32"), self.classes, dtype="float32")], axis=-1)

    def objective(self, x, outputs):
        def judged(z):
            return self.joined(z, x["labels"], self.to_discriminator)

        z = outputs["z"]
        return {
            "reconstruction": binary_cross_entropy(x["images"], outputs["parameters"]),
            "generator": self.adversarial_weight * generator_loss(frozen(self.discriminator)(judged(z))),
            "discriminator": discriminator_loss(
                self.discriminator(judged(self.prior_like(z))), self.discriminator(judged(ops.stop_gradient(z)))
            ),
        }

    def decode_as(self, codes, labels) -> np.ndarray:
        """Pixel means of p(x|z, y), in [0, 1]: codes (n, latent_dim), labels (n,) -> (n, *image_shape)."""
        return self.decode(to_numpy(self.joined(ops.convert_to_tensor(codes, "float32"), labels, self.to_decoder)))

    def sample(self, count: int) -> np.ndarray:
        """Pixel means of p(x|z, y) for `count` draws z ~ p(z), every label y in turn: (count, *image_shape)."""
        return self.decode_as(self.prior_codes(count), np.arange(count) % self.classes)


def configured(config: Config, seed: int) -> aae_deterministic.Config:
    """The Config of aae_deterministic.py."""
    return study.script_config(aae_deterministic, config, seed, adversarial_weight=config.adversarial_weight)


def build(config: aae_deterministic.Config, classes: int, version: str, image_shape) -> StyleAAE:
    """The untrained model: as in aae_deterministic.py, with `classes` more inputs where a network sees the label."""
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


def measured(model: StyleAAE, dataset: Dataset, classifier: Classifier, config: aae_deterministic.Config) -> dict:
    """How much of the class the codes hold, how well they match the prior, and which digits the decoder draws."""
    known, known_labels = training_inferred(model, dataset, config)
    test = encoded(model, dataset.x_test)
    numbers = {
        f"code_{probe}_accuracy": probe_accuracy(
            probe, known["z"], known_labels, test.codes, dataset.y_test, config.seed
        )
        for probe in PROBES
    }
    numbers |= {
        "code_c2st_accuracy": latent.c2st_accuracy(test.codes, test.prior_codes, config.seed),
        "test_reconstruction_nats": mean_of(reconstruction(model, test.images, dataset.y_test)),
    }
    if model.to_decoder:
        numbers["prior_consistency"] = consistency(model, test.prior_codes, classifier)
        numbers["test_consistency"] = consistency(model, test.codes, classifier)
    return numbers


def reconstruction(model: StyleAAE, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """-log p(x|z, y) in nats for each image, summed over the pixels: (n, *image_shape), (n,) -> (n,)."""
    parts = []
    for rows in model.batches(len(images)):
        batch = {"images": images[rows], "labels": labels[rows]}
        logits = model(batch)["parameters"]
        parts.append(to_numpy(-bernoulli_log_likelihood(ops.convert_to_tensor(batch["images"]), logits)))
    return np.concatenate(parts)


def consistency(model: StyleAAE, codes: np.ndarray, classifier: Classifier) -> Estimate:
    """Fraction of codes, (n, latent_dim), that the decoder draws as the digit of the label; labels come in turn."""
    labels = np.resize(classifier.labels, len(codes))
    return share_of(classifier.classes(model.decode_as(codes, labels)) == labels)


# The experiment


def case(version: str, classifier, part: Part) -> dict:
    """Train a version and measure it on test images; `classifier(folder)` returns the `Classifier` in a folder."""
    dataset, own = part.dataset, configured(part.config, part.seed)
    model = build(own, dataset.classes, version, dataset.image_shape)
    batches = LabelledBatches(dataset.x_train, dataset.y_train, own.batch_size, own.binarisation, own.seed)
    part.train(model, own, batches, {"images": dataset.x_val, "labels": dataset.y_val})
    judge = classifier(part.folder.parent.parent / "classifier")
    if model.to_decoder and part.first:
        part.keep(**pictures(model, dataset, judge.labels))
    return measured(model, dataset, judge, own)


def pictures(model: StyleAAE, dataset: Dataset, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Each style with every label: (2 STYLES, labels, *image_shape), and the test images of the first STYLES rows."""
    order = np.random.default_rng(0).permutation(len(dataset.x_test))
    firsts = np.sort(np.unique(dataset.y_test[order], return_index=True)[1])  # first one image of each class
    chosen = order[np.concatenate([firsts, np.delete(np.arange(len(order)), firsts)])][:STYLES]
    prior = model.prior_codes(STYLES)
    codes = np.concatenate([model.encode(dataset.x_test[chosen]), prior])
    images = model.decode_as(np.repeat(codes, len(labels), axis=0), np.tile(labels, len(codes)))
    images = images.reshape(len(codes), len(labels), *dataset.image_shape)
    return {"images": images, "originals": dataset.x_test[chosen], "labels": labels}


def cases(config: Config, dataset: Dataset) -> dict:
    """A case for each version. All share one classifier, which is trained when it is first needed."""
    classifier = cache(lambda folder: Classifier(dataset, folder, TimeLeft()))
    return {version: partial(case, version, classifier) for version in VERSIONS}


def requires(config: Config, dataset: Dataset):
    """Raises RunError unless there are labels, and training images for a batch."""
    study.require_labels(dataset)
    study.require_batch(dataset, aae_deterministic.Config().batch_size)


def all_figures(results: Results, rows: dict) -> dict:
    """A figure for each version with labels."""
    return {
        version.replace(" ", "_"): figure(rows, version, results)
        for version, (to_decoder, _) in VERSIONS.items()
        if to_decoder
    }


def figure(rows: dict, version: str, results: Results):
    """One row per style, one column per label, of the first seed; the first column has the test images."""
    config, dataset, saved = results.config, results.dataset, results.pictures(version)
    images, originals = saved["images"], saved["originals"]
    first = np.full_like(images[:, :1], np.nan)
    first[: len(originals), 0] = originals
    styles = ["" for _ in images]
    styles[len(originals) // 2], styles[(len(originals) + len(images)) // 2] = "z of a\ntest image", "z ~ p(z)"
    with_label, without = (f"{100 * rows[name]['code_mlp_accuracy']:.0f} %" for name in (version, "no label"))
    drawn = f"{100 * rows[version]['prior_consistency']:.1f} %"
    both = VERSIONS[version][1]
    return figures.named_tiles(
        np.concatenate([first, images], axis=1),
        styles,
        ["image", *map(str, saved["labels"])],
        "label given to the decoder",
        f"Style and content: AAE on {dataset.name}, label into the decoder{' and the discriminator' * both}",
        f"The decoder's pixel means: one z per row, one label per column. Top: z of the test image at the left. Below: "
        f"z ~ p(z) in {config.latent_dim}-D. Pictures: seed {config.seeds[0]}, {results.updates(version)}. An MLP "
        f"predicts the class from z for {with_label} of {len(dataset.x_test):,} test images, and for {without} if the "
        f"decoder has no label. The decoder draws {drawn} of z ~ p(z) as the digit of the label "
        f"({of_seeds('means', config.seeds)})",
        together=len(originals),
    )


STUDY = Study("aae.style", cases, COLUMNS, all_figures, QUICK, requires)


def main(config: Config = Config()) -> dict:
    """Run the experiment; returns the content of metrics.json."""
    return study.run(STUDY, config)


if __name__ == "__main__":
    run_study(STUDY, Config)
