"""The numbers of metrics.json, and the images on which each instrument of `common.evaluation` measures them.

Keys are flat and end with the unit, as `common.metrics` lists them. A number with an error has a second key,
`<key>_standard_error`. Where a quantity does not exist for a model, its value is None and `null_because` says why.
"""

import math
from collections.abc import Collection
from typing import NamedTuple

from common.arrays import MappedImages
from common.binarisation import binarise, random_stream, tagged_stream, targets
from common.data import Dataset
from common.evaluation import coverage, latent, neighbours, probes, samples
from common.evaluation.latent import NOT_FINITE
from common.evaluation.probes import nothing_to_tell
from common.evaluation.reconstruction import constant_model
from common.failures import STRICT
from common.likelihoods import Counts
from common.metrics import SCRIPT
from common.model import CODES_IN_MEMORY, Decoded, LatentModel, batch_slices, even_batch_size, to_numpy
from common.numbers import Absent, Estimate, flat, mean_of
from common.priors import GaussianPrior

import numpy as np
from keras import ops

TRAINING_CODES = 20_000  # training data of the probes, and of the density of the aggregated posterior
CODES_FOR_ACTIVE_UNITS = 80_000  # over all images, 8 to 32 draws each; with fewer draws, noise can look like a unit
NEIGHBOUR_IMAGES, NEIGHBOUR_DRAWS = 200, 1000  # images, and draws z ~ q(z|x) of each, for the entropy from neighbours
STATED_DRAWS = 16  # draws z ~ q(z|x) of each of these images, for the KL that the model states
NEAREST_IMAGES = 1000  # images whose nearest training images are searched
# The most numbers in one array of codes or images. Where there are more, fewer codes or images are measured.
MOST_CODE_NUMBERS = 2**24  # 20,000 codes up to 838 dimensions
MOST_DRAWN_NUMBERS = 2**26  # 200 images with 1,000 draws up to 335 dimensions
MOST_ENCODED_PIXELS = 2**32  # a limit on time: 200 images with 1,000 draws up to 146 x 146
MOST_PIXELS = 2**25  # 1,000 images up to 183 x 183, 42 of 512 x 512 x 3

NO_DENSITY = {  # posterior: why q(z|x) has no KL in closed form
    "point": "q(z|x) is a point: it has no density",
    "implicit": "q(z|x) has no known density",
    "gaussian": "no closed form for this prior",
}
CONSTANT = "constant_model_nats"  # of other likelihoods than Bernoulli, whose references are drawn in a figure
BITS = {  # the same numbers for 8-bit images
    "test_reconstruction_nats": "test_reconstruction_bits_per_dimension",
    "negative_elbo_nats": "negative_elbo_bits_per_dimension",
}
TERMS = ("test_reconstruction_nats", "kl_nats", "negative_elbo_nats")
OF_TRAINING_CODES = ("code_hole_mass", "code_knn_accuracy", "code_logistic_accuracy")
CLOSED_FORM = ("kl_per_dimension_nats", "mutual_information_nats", "marginal_kl_nats")
NEIGHBOURS = ("mutual_information_neighbour_nats", "kl_neighbour_nats", "marginal_kl_neighbour_nats")
STATED_KL = "stated_kl_of_neighbour_images_nats"
COST = ("updates", "train_seconds", "samples_per_second", "peak_memory_mib", "stopped_by", "null_because")
MEASURED = tuple(key for key in SCRIPT if key not in {*COST, *BITS.values(), CONSTANT})  # all that `measure` gives
NEAREST = ("sample_nearest_distance", "test_nearest_distance")
FEATURES = ("sample_frechet_distance", "sample_c2st_accuracy", "train_frechet_distance")
NO_TOTALS = "a sample of counts has no total of its own, and cannot be compared with rows that have theirs"
NO_CLASSIFIER = "the classifier could not be trained"
TOO_MANY_DIMENSIONS = "the code has too many dimensions for the draws of a posterior"


class Encoded(NamedTuple):
    """The input of most instruments: the test images, a code of each, and the same number of draws from the prior."""

    images: np.ndarray  # (n, *image_shape), as the model is given them
    codes: np.ndarray  # (n, latent_dim), one z ~ q(z|x) an image
    prior_codes: np.ndarray  # (n, latent_dim), z ~ p(z)


def test_images(dataset: Dataset, config) -> np.ndarray:
    """The test images in the model's binarisation; every model of one seed gets the same pixels."""
    return targets(dataset.x_test, config, "test")


def encoded(model: LatentModel, images: np.ndarray) -> Encoded:
    """`Encoded` of `images`, which come from `test_images`."""
    return Encoded(images, model.draw_codes(images), model.prior_codes(len(images)))


def fitting(count: int, numbers: int, most: int) -> int:
    """How many of `count` rows, each of `numbers` numbers, fit into an array of `most` numbers; at least one."""
    return min(count, max(1, most // numbers))


def training_inferred(
    model: LatentModel, dataset: Dataset, config, keys: Collection[str] = ("z",)
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """The training data of the probes: what the model infers of TRAINING_CODES images, and labels, (m,), or None.

    The images are binarised batch by batch, as in the training. If codes are large, there are fewer images.
    """
    random = random_stream(config.seed, "training codes")
    chosen = random.permutation(len(dataset.x_train))
    chosen = chosen[: fitting(TRAINING_CODES, model.prior.latent_dim, MOST_CODE_NUMBERS)]
    batches = (
        binarise(dataset.x_train[chosen[rows]], config.binarisation, random) for rows in model.batches(len(chosen))
    )
    return model.infer_batches(batches, keys), None if dataset.y_train is None else dataset.y_train[chosen]


def memory_needed(image_shape, latent_dim: int, train: int, test: int, binarised: bool = True) -> int:
    """Bytes that `measure` needs at most, beside model and data, for these numbers of training and test images.

    `binarised`: whether there is a binarised copy of the test images. This copy and the codes of the test images grow
    with the data; everything else is bounded.
    """
    pixels, few = math.prod(image_shape), fitting(test, latent_dim, MOST_CODE_NUMBERS)
    known = fitting(min(train, TRAINING_CODES), latent_dim, MOST_CODE_NUMBERS)
    row = max(pixels, CODES_IN_MEMORY * latent_dim)
    images = min(NEIGHBOUR_IMAGES, test) if neighbours.LEAST_POINTS * latent_dim <= NEIGHBOUR_DRAWS else 0
    draws = max(NEIGHBOUR_DRAWS * images, min(max(CODES_FOR_ACTIVE_UNITS, 8 * test), 32 * test)) * latent_dim
    numbers = {  # as float32
        "test images and codes": test * (binarised * pixels + 4 * latent_dim),
        "a batch in the networks": 12 * even_batch_size(max(train, test), numbers=row) * row,
        "draws": 5 * min(draws, MOST_DRAWN_NUMBERS),
        "instruments of codes": (16 * few + 6 * known) * latent_dim,
        "kernels": 12 * min(4000, 2 * few) ** 2,
        "densities": 8 * latent.ROWS * few,
    }
    return 2**26 + 4 * sum(numbers.values())


# At the end of every run


def measure(model: LatentModel, dataset: Dataset, config, test: Encoded, failures=STRICT) -> dict:
    """All that takes less than a minute on 10,000 test images: terms, match of code and prior, information.

    Each instrument is one of the attempts of `failures`: if it fails, the others still run.
    """
    attempt, few = failures.numbers, fitting(len(test.images), model.prior.latent_dim, MOST_CODE_NUMBERS)
    some, labels = Encoded(*(array[:few] for array in test)), None if dataset.y_test is None else dataset.y_test[:few]
    known = attempt(OF_TRAINING_CODES, lambda: {"codes": training_inferred(model, dataset, config)})
    numbers = attempt(TERMS, lambda: test_terms(model, test.images))
    if dataset.likelihood != "bernoulli":
        numbers |= attempt(
            [CONSTANT], lambda: {CONSTANT: constant_model(model.likelihood, dataset.x_train, test.images)}
        )
    numbers |= code_numbers(some, config.seed, failures)
    if "codes" not in known:
        numbers |= known
    else:
        inferred, training_labels = known["codes"]
        codes = inferred["z"]
        numbers |= attempt(OF_TRAINING_CODES[:1], lambda: holes(model, codes, some, config.seed))
    numbers |= attempt(["active_units"], lambda: {"active_units": active_units(model, some.images)})
    numbers |= information(model, some.images, some.codes, failures)
    for probe in ("knn", "logistic") if "codes" in known else ():
        arguments = (probe, codes, training_labels, some.codes, labels, config.seed)
        key = f"code_{probe}_accuracy"
        numbers |= attempt([key], lambda key=key, known=arguments: {key: probes.probe_accuracy(*known)})
    return flat(numbers)


def code_numbers(test: Encoded, seed: int, failures=STRICT) -> dict:
    """Does the code fill its prior? Compares the codes of the test images with the same number of prior draws."""
    codes, prior_codes = test.codes, test.prior_codes
    instruments = {  # by the keys of their numbers
        ("code_mean_norm", "code_std_min", "code_std_max"): lambda: latent.moments(codes),
        ("code_ks", "code_ks_max", "code_ks_critical"): lambda: marginal_distances(codes, prior_codes),
        ("code_c2st_accuracy",): lambda: {"code_c2st_accuracy": latent.c2st_accuracy(codes, prior_codes, seed)},
        ("code_mmd_imq",): lambda: {"code_mmd_imq": latent.mmd(codes, prior_codes, "imq", seed=seed)},
        ("code_mmd_rbf",): lambda: {"code_mmd_rbf": latent.mmd(codes, prior_codes, "rbf", seed=seed)},
        ("code_coverage",): lambda: {"code_coverage": coverage.coverage(codes, prior_codes)},
        ("code_participation_ratio",): lambda: {"code_participation_ratio": latent.participation_ratio(codes)},
    }
    finite, numbers = np.isfinite(codes).all() and np.isfinite(prior_codes).all(), {}
    for keys, instrument in instruments.items():
        numbers |= failures.numbers(keys, instrument) if finite else dict.fromkeys(keys, Absent(NOT_FINITE))
    return numbers


def marginal_distances(codes: np.ndarray, prior_codes: np.ndarray) -> dict:
    """Kolmogorov-Smirnov distances in all dimensions of the code, and the critical value of the largest of them."""
    distances = latent.kolmogorov_smirnov(codes, prior_codes)
    return {
        "code_ks": distances,
        "code_ks_max": float(distances.max()),
        "code_ks_critical": latent.kolmogorov_smirnov_critical(len(codes), len(prior_codes), codes.shape[1]),
    }


def holes(model: LatentModel, training_codes: np.ndarray, test: Encoded, seed: int) -> dict:
    """The share of the prior in holes of the code. The classifiers' prior samples have a random stream of their own."""
    if not all(np.isfinite(codes).all() for codes in (test.codes, test.prior_codes, training_codes)):
        return {"code_hole_mass": Absent(NOT_FINITE)}
    own = int(tagged_stream("holes", seed).integers(2**31))
    prior_codes = to_numpy(model.prior.sample(len(training_codes), own))
    return {"code_hole_mass": coverage.hole_mass(training_codes, prior_codes, test.codes, test.prior_codes, seed)}


def active_units(model: LatentModel, x_test) -> int | Absent:
    """Active dimensions of the code, from 8 to 32 draws z ~ q(z|x) for each image, in units of the prior's scale."""
    dimensions = model.prior.latent_dim
    count = min(CODES_FOR_ACTIVE_UNITS // len(x_test), MOST_DRAWN_NUMBERS // (len(x_test) * dimensions))
    count = int(np.clip(count, 8, 32))
    x_test = x_test[: fitting(len(x_test), count * dimensions, MOST_DRAWN_NUMBERS)]
    draws = np.stack([model.draw_codes(x_test) for _ in range(count)])
    draws /= model.prior.scale
    return latent.active_units(draws) if np.isfinite(draws).all() else Absent(NOT_FINITE)


def test_terms(model: LatentModel, x_test) -> dict:
    """Reconstruction and divergence from the prior in nats per image, one draw z ~ q(z|x) for each image."""
    values: dict[str, list] = {}
    for rows in model.batches(len(x_test)):
        batch = ops.convert_to_tensor(x_test[rows], "float32")
        outputs = model(batch)
        terms = {"test_reconstruction_nats": -model.likelihood.log_prob(batch, outputs["parameters"])}
        for key, value in (terms | model.divergences(batch, outputs)).items():
            values.setdefault(key, []).append(to_numpy(value))
    arrays = {key: np.concatenate(parts) for key, parts in values.items()}
    reason = Absent(NO_DENSITY[model.posterior])
    for kl, bound in (("kl_nats", "negative_elbo_nats"), ("kl_estimated_nats", "negative_elbo_estimated_nats")):
        if kl in arrays:
            arrays[bound] = arrays["test_reconstruction_nats"] + arrays[kl]
    for key in ("test_reconstruction_nats", "negative_elbo_nats"):
        bits = None if key not in arrays else model.likelihood.bits_per_dimension(arrays[key])
        if bits is not None:
            arrays[BITS[key]] = bits
    absent = {"kl_nats": reason, "negative_elbo_nats": reason}
    return absent | {key: mean_of(array) for key, array in arrays.items()}


def information(model: LatentModel, x_test, codes, failures=STRICT) -> dict:
    """The information of the code about the image, and the code's distance from the prior, in nats.

    Where q(z|x) has a density: the KL of each dimension, and ELBO surgery over the N test images. For every model: the
    same quantities from nearest neighbours, without the bound log N.
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
        numbers |= failures.numbers(CLOSED_FORM, lambda: closed_form_information(model, x_test, density, no_prior))
    images = neighbour_images(model, x_test)
    numbers |= failures.numbers(
        NEIGHBOURS, lambda: neighbour_information(model, images, codes, density, no_posterior, no_prior)
    )
    return numbers | failures.numbers([STATED_KL], lambda: stated_kl(model, images))


def closed_form_information(model: LatentModel, x_test, density, no_prior: Absent | None) -> dict:
    """The part of `information` that a Gaussian q(z|x) gives."""
    inferred = model.inferred_rows(x_test)
    means, log_vars, codes = (inferred[key] for key in ("mean", "log_var", "z"))
    numbers = {}
    if isinstance(model.prior, GaussianPrior):
        numbers["kl_per_dimension_nats"] = latent.kl_per_dimension(means, log_vars, model.prior.scale)
    numbers |= latent.elbo_surgery(means, log_vars, codes, density(codes) if density else np.zeros(len(x_test)))
    return numbers if density else numbers | {"marginal_kl_nats": no_prior}


def neighbour_information(model: LatentModel, images, codes, density, no_posterior, no_prior: Absent | None) -> dict:
    """The part of `information` from nearest neighbours: of one code per image, and of many codes for some `images`."""
    entropy = neighbours.neighbour_entropy(codes)
    numbers = {
        "mutual_information_neighbour_nats": no_posterior,
        "kl_neighbour_nats": no_prior or no_posterior,
        "marginal_kl_neighbour_nats": no_prior or neighbours.neighbour_kl(entropy, density(codes)),
    }
    if model.posterior == "point":
        return numbers
    if neighbours.LEAST_POINTS * model.prior.latent_dim > NEIGHBOUR_DRAWS:
        absent = Absent(TOO_MANY_DIMENSIONS)
        return numbers | {"mutual_information_neighbour_nats": absent, "kl_neighbour_nats": no_prior or absent}
    draws = posterior_draws(model, images, NEIGHBOUR_DRAWS)
    entropies = neighbours.neighbour_entropies(draws)
    numbers["mutual_information_neighbour_nats"] = neighbours.neighbour_information(entropy, entropies)
    if density:
        known = not isinstance(entropies, Absent)  # a prior may have no log p of draws that are not finite
        numbers["kl_neighbour_nats"] = neighbours.neighbour_kl(entropies, density(draws)) if known else entropies
    return numbers


def neighbour_images(model: LatentModel, x_test) -> np.ndarray:
    """The images whose q(z|x) neighbours measure, (n, *image_shape), as many as memory and time allow.

    They are spread over all test images: the first test digits of MNIST are the easiest.
    """
    count = fitting(NEIGHBOUR_IMAGES, NEIGHBOUR_DRAWS * model.prior.latent_dim, MOST_DRAWN_NUMBERS)
    count = max(2, fitting(count, NEIGHBOUR_DRAWS * math.prod(model.image_shape), MOST_ENCODED_PIXELS))
    return x_test[:: max(1, len(x_test) // count)][:count]


def stated_kl(model: LatentModel, images) -> dict:
    """The KL that the model states of the images whose KL neighbours estimate, to compare both; else nothing."""
    terms = stated_terms(model, images)
    return {STATED_KL: mean_of(terms["kl"].mean(axis=0))} if terms else {}


def stated_terms(model: LatentModel, images) -> dict[str, np.ndarray]:
    """Reconstruction and KL in nats, (STATED_DRAWS, n) each, as the model states them: for some draws of each image.

    The KL is in closed form or by T. A model without a KL of each image has no terms. The model's random numbers
    continue as if there were none.
    """
    before, terms = to_numpy(model.seed_generator.state), {"reconstruction": [], "kl": []}
    for rows in (rows for _ in range(STATED_DRAWS) for rows in model.batches(len(images))):
        batch = ops.convert_to_tensor(images[rows], "float32")
        outputs = model(batch)
        kl = next(iter(model.divergences(batch, outputs).values()), None)
        if kl is None:
            break
        terms["kl"].append(to_numpy(kl))
        terms["reconstruction"].append(-to_numpy(model.likelihood.log_prob(batch, outputs["parameters"])))
    model.seed_generator.state.assign(before)
    return {key: np.concatenate(values).reshape(STATED_DRAWS, -1) for key, values in terms.items() if values}


def posterior_draws(model: LatentModel, images, draws: int) -> np.ndarray:
    """`draws` codes z ~ q(z|x) for each image, as the model takes it: (draws, images, latent_dim)."""
    rows = np.tile(np.arange(len(images)), draws)
    batches = (images[rows[some]] for some in model.batches(len(rows)))
    return model.infer_batches(batches, ("z",))["z"].reshape(draws, len(images), -1)


def log_density(prior):
    """log p(z), arrays (..., latent_dim) -> (...); None for a prior without a density."""
    if not hasattr(prior, "log_prob"):
        return None
    return lambda z: to_numpy(prior.log_prob(ops.convert_to_tensor(z.reshape(-1, z.shape[-1])))).reshape(z.shape[:-1])


# Sample quality, and a stronger probe: needs a trained classifier


def measure_samples(
    model: LatentModel, dataset: Dataset, config, classifier: samples.Classifier | None, failures=STRICT
) -> dict:
    """The distance of samples from real images, and the accuracy of an MLP on the codes of the other probes.

    Samples are the decoder's means, and real images are not binarised. So `sample_` metrics judge the images that
    figures show. Counts have none of them. Each instrument is one of the attempts of `failures`.
    """
    random, attempt = random_stream(config.seed, "samples"), failures.numbers
    count = len(dataset.x_test)
    decoded = Decoded(model, model.prior_codes(count))
    chosen = random.permutation(len(dataset.x_train))[:TRAINING_CODES][:count]
    held_out = random.permutation(count)
    counts = isinstance(model.likelihood, Counts)
    numbers = {key: Absent(NO_TOTALS) for key in (*NEAREST, *FEATURES)}
    if not counts:
        numbers |= attempt(NEAREST, lambda: nearest_numbers(decoded, dataset, held_out))
    if reason := nothing_to_tell(dataset.y_train) or ("" if classifier else NO_CLASSIFIER):
        return flat(numbers | {key: Absent(reason) for key in ("code_mlp_accuracy", "classifier_accuracy", *FEATURES)})
    numbers |= attempt(["code_mlp_accuracy"], lambda: mlp_accuracy(model, dataset, config))
    if not counts:
        numbers |= attempt(FEATURES, lambda: feature_numbers(classifier, decoded, dataset, chosen, config.seed))
    return flat(numbers | {"classifier_accuracy": classifier.accuracy})


def nearest_numbers(decoded: Decoded, dataset: Dataset, held_out: np.ndarray) -> dict:
    """Distances of samples, and of the first `held_out` test images, to their nearest training images."""
    pixels = math.prod(dataset.image_shape)
    nearest = fitting(NEAREST_IMAGES, pixels, MOST_PIXELS)
    first = batch_slices(len(decoded), pixels)  # the same batches as for the features below
    some = np.concatenate([decoded[rows] for rows in first if rows.start < nearest])[:nearest]
    return {
        "sample_nearest_distance": nearest_distance(some, dataset.x_train),
        "test_nearest_distance": nearest_distance(dataset.x_test[held_out[:nearest]], dataset.x_train),
    }


def mlp_accuracy(model: LatentModel, dataset: Dataset, config) -> dict:
    """The accuracy of an MLP that predicts the class of test images from their codes."""
    known, labels = training_inferred(model, dataset, config)
    few = fitting(len(dataset.x_test), model.prior.latent_dim, MOST_CODE_NUMBERS)
    codes = model.draw_codes(test_images(dataset, config))[:few]
    arguments = ("mlp", known["z"], labels, codes, dataset.y_test[:few], config.seed)
    return {"code_mlp_accuracy": probes.probe_accuracy(*arguments)}


def feature_numbers(classifier, decoded: Decoded, dataset: Dataset, chosen: np.ndarray, seed: int) -> dict:
    """How samples, and the `chosen` training images, differ from test images in the classifier's features."""
    sample_features, test_features = classifier.features(decoded), classifier.features(dataset.x_test)
    train_images = MappedImages(dataset.x_train, chosen, convert=np.asarray)  # which are read in parts
    train_features = classifier.features(train_images)
    return {
        "sample_frechet_distance": samples.frechet_estimate(sample_features, test_features),
        "sample_c2st_accuracy": latent.c2st_accuracy(sample_features, test_features, seed),
        "train_frechet_distance": samples.frechet_estimate(train_features, test_features),
    }


def nearest_distance(images: np.ndarray, train_images) -> Estimate | Absent:
    """Mean distance of the images to their nearest training image; `Absent` if some images are not finite."""
    if not np.isfinite(images).all():
        return Absent(samples.NOT_FINITE)
    return mean_of(samples.nearest_images(images, train_images)[1])
