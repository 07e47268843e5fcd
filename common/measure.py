"""The numbers of metrics.json, and the images that each instrument of `common.evaluation` measures.

Keys are flat and carry the unit, as `common.metrics` lists them; a number that came with an error has a twin,
`<key>_standard_error`. Where a quantity does not exist for a model, its value is None and `null_because` says why.
"""

from typing import NamedTuple

from common.data import Dataset, binarise, random_stream, targets
from common.evaluation import latent, probes, samples
from common.model import LatentModel, bernoulli_log_likelihood, in_batches, to_numpy
from common.numbers import Absent, flat, mean_of
from common.priors import GaussianPrior

import numpy as np
from keras import ops

TRAINING_CODES = 20_000  # known to probes and to the density of the aggregated posterior
CODES_FOR_ACTIVE_UNITS = 80_000  # over all images, in 8 to 32 draws each: fewer let noise pass for an active unit
NEIGHBOUR_IMAGES, NEIGHBOUR_DRAWS = 200, 1000  # z ~ q(z|x) for its entropy from nearest neighbours
NEAREST_IMAGES = 1000  # whose nearest training images are sought

NO_DENSITY = {  # posterior: why q(z|x) has no KL in closed form
    "point": "q(z|x) is a point: it has no density",
    "implicit": "q(z|x) has no known density",
    "gaussian": "no closed form for this prior",
}
COINCIDE = "draws of some q(z|x) coincide: single precision cannot tell how narrow it is"
NO_LABELS = "the data have no labels"


class Encoded(NamedTuple):
    """What most instruments look at: the test images, a code of each, and as many draws from the prior."""

    images: np.ndarray  # (n, *image_shape), as the model is given them
    codes: np.ndarray  # (n, latent_dim), one z ~ q(z|x) an image
    prior_codes: np.ndarray  # (n, latent_dim), z ~ p(z)


def test_images(dataset: Dataset, config) -> np.ndarray:
    """The test images in the binarisation that the model was trained on, the same for every model of one seed."""
    return targets(dataset.x_test, config, "test")


def encoded(model: LatentModel, images: np.ndarray) -> Encoded:
    """`Encoded` of the images, which `test_images` gives."""
    return Encoded(images, model.encode(images), model.prior_codes(len(images)))


def training_subset(dataset: Dataset, config) -> tuple[np.ndarray, np.ndarray | None]:
    """TRAINING_CODES training images as the model is given them, and their labels, (m,), or None: what probes know."""
    random = random_stream(config.seed, "training codes")
    chosen = random.permutation(len(dataset.x_train))[:TRAINING_CODES]
    labels = None if dataset.y_train is None else dataset.y_train[chosen]
    return binarise(dataset.x_train[chosen], config.binarisation, random), labels


# At the end of every run


def measure(model: LatentModel, dataset: Dataset, config, test: Encoded) -> dict:
    """What takes less than a minute on 10,000 test images: fit of the terms, match of code and prior, information."""
    images, training_labels = training_subset(dataset, config)
    training_codes = model.encode(images)
    numbers = test_terms(model, test.images) | code_numbers(test, training_codes, config.seed)
    numbers |= {"active_units": active_units(model, test.images)} | information(model, test.images, test.codes)
    for probe in ("knn", "logistic"):
        key = f"code_{probe}_accuracy"
        if training_labels is None:
            numbers[key] = Absent(NO_LABELS)
        else:
            known, asked = (training_codes, training_labels), (test.codes, dataset.y_test)
            numbers[key] = probes.probe_accuracy(probe, *known, *asked, config.seed)
    return flat(numbers)


def code_numbers(test: Encoded, training_codes: np.ndarray, seed: int) -> dict:
    """Does the code fill its prior? Codes of test images against the prior's, and against those of training images."""
    distances = latent.kolmogorov_smirnov(test.codes, test.prior_codes)
    return latent.moments(test.codes) | {
        "code_ks": distances,
        "code_ks_max": float(distances.max()),
        "code_ks_critical": latent.kolmogorov_smirnov_critical(len(test.codes), len(test.prior_codes)),
        "code_c2st_accuracy": latent.c2st_accuracy(test.codes, test.prior_codes, seed),
        "code_mmd_imq": latent.mmd(test.codes, test.prior_codes, "imq", seed=seed),
        "code_mmd_rbf": latent.mmd(test.codes, test.prior_codes, "rbf", seed=seed),
        "code_hole_fraction": latent.hole_fraction(training_codes, test.codes, test.prior_codes),
        "code_participation_ratio": latent.participation_ratio(test.codes),
    }


def active_units(model: LatentModel, x_test) -> int:
    """Active dimensions of the code, from 8 to 32 draws z ~ q(z|x) for each image, in units of the prior's scale."""
    count = int(np.clip(CODES_FOR_ACTIVE_UNITS // len(x_test), 8, 32))
    return latent.active_units(np.stack([model.encode(x_test) for _ in range(count)]) / model.prior.scale)


def test_terms(model: LatentModel, x_test) -> dict:
    """Reconstruction and divergence from the prior in nats per image, one draw z ~ q(z|x) for each image."""
    values: dict[str, list] = {}
    for batch in in_batches(x_test):
        outputs = model(batch)
        terms = {"test_reconstruction_nats": -bernoulli_log_likelihood(batch, outputs["logits"])}
        for key, value in (terms | model.divergences(batch, outputs)).items():
            values.setdefault(key, []).append(to_numpy(value))
    arrays = {key: np.concatenate(parts) for key, parts in values.items()}
    reason = Absent(NO_DENSITY[model.posterior])
    for kl, bound in (("kl_nats", "negative_elbo_nats"), ("kl_estimated_nats", "negative_elbo_estimated_nats")):
        if kl in arrays:
            arrays[bound] = arrays["test_reconstruction_nats"] + arrays[kl]
    absent = {"kl_nats": reason, "negative_elbo_nats": reason}
    return absent | {key: mean_of(array) for key, array in arrays.items()}


def information(model: LatentModel, x_test, codes) -> dict:
    """What the code says of the image, and how far it is from the prior, in nats.

    With q(z|x)'s density, where it has one: KL of each dimension, ELBO surgery over the N test images. From nearest
    neighbours, for every model alike: the same quantities without the bound log N.
    """
    density = log_density(model.prior)
    no_posterior = Absent(NO_DENSITY[model.posterior])
    no_prior = None if density else Absent(model.prior.no_density)
    numbers = {
        "kl_per_dimension_nats": no_posterior,
        "mutual_information_nats": no_posterior,
        "mutual_information_images": len(x_test),
        "marginal_kl_nats": no_posterior,
    }
    if model.posterior == "gaussian":
        numbers |= closed_form_information(model, x_test, density, no_prior)
    return numbers | neighbour_information(model, x_test, codes, density, no_posterior, no_prior)


def closed_form_information(model: LatentModel, x_test, density, no_prior: Absent | None) -> dict:
    """The part of `information` that a Gaussian q(z|x) gives."""
    inferred = model.inferred(x_test)
    means, log_vars, codes = (inferred[key] for key in ("mean", "log_var", "z"))
    numbers = {}
    if isinstance(model.prior, GaussianPrior):
        numbers["kl_per_dimension_nats"] = latent.kl_per_dimension(means, log_vars, model.prior.scale)
    numbers |= latent.elbo_surgery(means, log_vars, codes, density(codes) if density else np.zeros(len(x_test)))
    return numbers if density else numbers | {"marginal_kl_nats": no_prior}


def neighbour_information(model: LatentModel, x_test, codes, density, no_posterior, no_prior: Absent | None) -> dict:
    """The part of `information` from nearest neighbours, of one code an image and of many codes for some images."""
    entropy = latent.neighbour_entropy(codes)
    numbers = {
        "mutual_information_neighbour_nats": no_posterior,
        "kl_neighbour_nats": no_prior or no_posterior,
        "marginal_kl_neighbour_nats": no_prior or latent.neighbour_kl(entropy, density(codes)),
    }
    if model.posterior == "point":
        return numbers
    # Spread over all of them: the first test digits of MNIST are the easiest.
    spread = x_test[:: max(1, len(x_test) // NEIGHBOUR_IMAGES)][:NEIGHBOUR_IMAGES]
    draws = posterior_draws(model, spread, NEIGHBOUR_DRAWS)
    entropies = np.array([latent.neighbour_entropy(each).value for each in draws.swapaxes(0, 1)])
    known = np.isfinite(entropies).all()
    mutual = latent.neighbour_information(entropy, entropies) if known else Absent(COINCIDE)
    numbers["mutual_information_neighbour_nats"] = mutual
    if density:
        kl = mean_of(-entropies - density(draws).mean(axis=0)) if known else Absent(COINCIDE)
        numbers["kl_neighbour_nats"] = kl
    return numbers


def posterior_draws(model: LatentModel, images, draws: int) -> np.ndarray:
    """`draws` codes z ~ q(z|x) for each image: (draws, images, latent_dim)."""
    return model.encode(np.tile(images, (draws, *(1 for _ in images.shape[1:])))).reshape(draws, len(images), -1)


def log_density(prior):
    """log p(z), arrays (..., latent_dim) -> (...); None for a prior without a density."""
    if not hasattr(prior, "log_prob"):
        return None
    return lambda z: to_numpy(prior.log_prob(ops.convert_to_tensor(z.reshape(-1, z.shape[-1])))).reshape(z.shape[:-1])


# Sample quality, and a stronger probe: needs a trained classifier


def measure_samples(model: LatentModel, dataset: Dataset, config, classifier: samples.Classifier | None) -> dict:
    """How far samples are from real images, and the class by an MLP on the codes that the other probes see.

    Samples are the decoder's pixel means, real images are grey: `sample_` metrics judge what the figures show.
    """
    random = random_stream(config.seed, "samples")
    decoded = model.sample(len(dataset.x_test))
    chosen = random.permutation(len(dataset.x_train))[:TRAINING_CODES]
    some, held_out = decoded[:NEAREST_IMAGES], random.permutation(dataset.x_test)[:NEAREST_IMAGES]
    numbers = {
        "sample_nearest_distance": mean_of(samples.nearest_images(some, dataset.x_train)[1]),
        "test_nearest_distance": mean_of(samples.nearest_images(held_out, dataset.x_train)[1]),
    }
    if classifier is None:
        keys = ("code_mlp_accuracy", "classifier_accuracy", "sample_frechet_distance", "sample_c2st_accuracy")
        return flat(numbers | {key: Absent(NO_LABELS) for key in (*keys, "train_frechet_distance")})
    images, labels = training_subset(dataset, config)
    known, codes = model.encode(images), model.encode(test_images(dataset, config))
    of_samples, of_test, of_train = (
        classifier.features(images) for images in (decoded, dataset.x_test, dataset.x_train[chosen[: len(decoded)]])
    )
    return flat(
        numbers
        | {
            "code_mlp_accuracy": probes.probe_accuracy("mlp", known, labels, codes, dataset.y_test, config.seed),
            "classifier_accuracy": classifier.accuracy,
            "sample_frechet_distance": samples.frechet_estimate(of_samples, of_test),
            "sample_c2st_accuracy": latent.c2st_accuracy(of_samples, of_test, config.seed),
            "train_frechet_distance": samples.frechet_estimate(of_train, of_test),
        }
    )
