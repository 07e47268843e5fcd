"""The numbers of metrics.json: which instrument of `common.evaluation` is turned on which images of a trained model.

Keys are flat and carry the unit; a number that came with an error has a twin, `<key>_standard_error`. Where a quantity
does not exist for a model, its value is None and `null_because` says why.
"""

from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

import numpy as np
from keras import ops

from common.data import Dataset, binarise
from common.evaluation import Estimate, code, likelihood, mean_of, use
from common.model import LatentModel, bernoulli_log_likelihood, in_batches, to_numpy
from common.priors import GaussianPrior

TRAINING_CODES = 20_000  # known to probes and to the density of the aggregated posterior
CODES_FOR_ACTIVE_UNITS = 80_000  # over all images, in 8 to 32 draws each: fewer let noise pass for an active unit
BANK_IMAGES, BANK_DRAWS = 200, 1000  # z ~ q(z|x) for its entropy from nearest neighbours
PROPOSAL_DRAWS = 100  # z ~ q(z|x) for the moments of an implicit posterior
WINDOWS, WINDOW_IMAGES = 10_000, 2_000  # samples that Parzen windows stand on; images measured, and those for sigma
NEAREST_IMAGES = 1000  # whose nearest training images are sought

POINT = "q(z|x) is a point: it has no density"
IMPLICIT = "q(z|x) has no known density"
CURVE = "the prior is a curve: it has no density"
OTHER_PRIOR = "no closed form for this prior"
COINCIDE = "draws of some q(z|x) coincide: single precision cannot tell how narrow it is"
NO_LABELS = "the data have no labels"


class Absent(NamedTuple):
    """In place of a number that does not exist."""

    reason: str


def flat(found: dict) -> dict:
    """Estimates as two keys each, reasons gathered under `null_because`, and no NaN, which JSON has not."""
    numbers, reasons = {}, {}
    for key, value in found.items():
        if isinstance(value, Absent):
            numbers[key], reasons[key] = None, value.reason
            continue
        parts = value._asdict() if isinstance(value, tuple) else {"value": value}
        for part, number in parts.items():
            number = number.tolist() if isinstance(number, np.ndarray) else number
            finite = not isinstance(number, float) or np.isfinite(number)
            name = key if part == "value" else f"{key}_{part}"
            numbers[name] = number if finite else None
            if not finite:
                reasons[name] = "it came out infinite or not a number"
    return numbers | {"null_because": reasons}


def merge(*parts: dict) -> dict:
    """One dict of several of `flat`, the later ones' numbers and reasons in place of the earlier ones'."""
    merged, reasons = {}, {}
    for part in parts:
        reasons = {key: reason for key, reason in reasons.items() if key not in part} | part.get("null_because", {})
        merged |= part
    return merged | {"null_because": reasons}


def test_images(dataset: Dataset, config) -> np.ndarray:
    """The test images in the binarisation that the model was trained on, the same for every model of one seed."""
    return binarise(dataset.x_test, config.binarisation, np.random.default_rng([config.seed, 1]))


# At the end of every run


def measure(model: LatentModel, dataset: Dataset, config, x_test, codes, prior_samples) -> dict:
    """What takes less than a minute on 10,000 test images: fit of the terms, match of code and prior, information.

    `x_test` are the images of `test_images`, `codes` one draw z ~ q(z|x) for each, and `prior_samples` as many of p(z).
    """
    random = np.random.default_rng([config.seed, 2])
    near = random.permutation(len(dataset.x_train))[:TRAINING_CODES]
    training_codes = model.encode(binarise(dataset.x_train[near], config.binarisation, random))
    distances = code.kolmogorov_smirnov(codes, prior_samples)
    found = test_terms(model, x_test) | code.moments(codes)
    found |= {
        "code_ks": distances,
        "code_ks_max": float(distances.max()),
        "code_ks_critical": code.kolmogorov_smirnov_critical(len(codes), len(prior_samples)),
        "code_c2st_accuracy": code.c2st_accuracy(codes, prior_samples, config.seed),
        "code_mmd_imq": code.mmd(codes, prior_samples, "imq", seed=config.seed),
        "code_mmd_rbf": code.mmd(codes, prior_samples, "rbf", seed=config.seed),
        "code_hole_fraction": code.hole_fraction(training_codes, codes, prior_samples),
        "code_participation_ratio": code.participation_ratio(codes),
    }
    found |= {"active_units": active_units(model, x_test)} | information(model, x_test, codes)
    for probe in ("knn", "logistic"):
        key = f"code_{probe}_accuracy"
        if dataset.y_test is None:
            found[key] = Absent(NO_LABELS)
        else:
            labels = dataset.y_train[near], dataset.y_test
            found[key] = use.probe_accuracy(probe, training_codes, labels[0], codes, labels[1], config.seed)
    return flat(found)


def active_units(model: LatentModel, x_test) -> int:
    """Active dimensions of the code, from 8 to 32 draws z ~ q(z|x) for each image, in units of the prior's scale."""
    count = int(np.clip(CODES_FOR_ACTIVE_UNITS // len(x_test), 8, 32))
    return code.active_units(np.stack([model.encode(x_test) for _ in range(count)]) / model.prior.scale)


def test_terms(model: LatentModel, x_test) -> dict:
    """Reconstruction and divergence from the prior in nats per image, one draw z ~ q(z|x) for each image."""
    values: dict[str, list] = {}
    for batch in in_batches(x_test):
        outputs = model(batch)
        terms = {"test_reconstruction_nats": -bernoulli_log_likelihood(batch, outputs["logits"])}
        for key, value in (terms | model.divergences(batch, outputs)).items():
            values.setdefault(key, []).append(to_numpy(value))
    arrays = {key: np.concatenate(parts) for key, parts in values.items()}
    reason = {"point": POINT, "implicit": IMPLICIT, "gaussian": OTHER_PRIOR}[model.posterior]
    found = {"kl_nats": Absent(reason), "negative_elbo_nats": Absent(reason)}
    for kl, bound in (("kl_nats", "negative_elbo_nats"), ("kl_estimated_nats", "negative_elbo_estimated_nats")):
        if kl in arrays:
            arrays[bound] = arrays["test_reconstruction_nats"] + arrays[kl]
    return found | {key: mean_of(array) for key, array in arrays.items()}


def information(model: LatentModel, x_test, codes) -> dict:
    """What the code says of the image, and how far it is from the prior, in nats.

    With q(z|x)'s density, where it has one: KL of each dimension, ELBO surgery over the N test images. From nearest
    neighbours, for every model alike: the same quantities without the bound log N.
    """
    log_prior = log_density(model.prior)
    no_density = Absent({"point": POINT, "implicit": IMPLICIT, "gaussian": OTHER_PRIOR}[model.posterior])
    no_prior = Absent(CURVE)
    found = {
        "kl_per_dimension_nats": no_density,
        "mutual_information_nats": no_density,
        "mutual_information_images": len(x_test),
        "marginal_kl_nats": no_density,
        "mutual_information_neighbour_nats": no_density,
        "kl_neighbour_nats": no_density if log_prior else no_prior,
        "marginal_kl_neighbour_nats": no_prior,
    }
    if model.posterior == "gaussian":
        inferred = model.inferred(x_test)
        means, log_vars = inferred["mean"], inferred["log_var"]
        if isinstance(model.prior, GaussianPrior):
            found["kl_per_dimension_nats"] = code.kl_per_dimension(means, log_vars, model.prior.scale)
        at_codes = log_prior(inferred["z"]) if log_prior else np.zeros(len(x_test))
        parts = code.elbo_surgery(means, log_vars, inferred["z"], at_codes)
        found |= parts if log_prior else parts | {"marginal_kl_nats": no_prior}
    entropy = code.neighbour_entropy(codes)
    if log_prior:
        found["marginal_kl_neighbour_nats"] = code.neighbour_kl(entropy, log_prior(codes))
    if model.posterior != "point":
        # Spread over all of them: the first test digits of MNIST are the easiest.
        spread = x_test[:: max(1, len(x_test) // BANK_IMAGES)][:BANK_IMAGES]
        draws = bank(model, spread, BANK_DRAWS)
        entropies = np.array([code.neighbour_entropy(each).value for each in draws.swapaxes(0, 1)])
        known = np.isfinite(entropies).all()
        mutual = code.neighbour_information(entropy, entropies) if known else Absent(COINCIDE)
        found["mutual_information_neighbour_nats"] = mutual
        if log_prior:
            kl = mean_of(-entropies - log_prior(draws).mean(axis=0)) if known else Absent(COINCIDE)
            found["kl_neighbour_nats"] = kl
    return found


def bank(model: LatentModel, images, draws: int) -> np.ndarray:
    """`draws` codes z ~ q(z|x) for each image: (draws, images, latent_dim)."""
    return model.encode(np.tile(images, (draws, *(1 for _ in images.shape[1:])))).reshape(draws, len(images), -1)


def log_density(prior):
    """log p(z), arrays (..., latent_dim) -> (...); None for a prior without a density."""
    if not hasattr(prior, "log_prob"):
        return None
    return lambda z: to_numpy(prior.log_prob(ops.convert_to_tensor(z.reshape(-1, z.shape[-1])))).reshape(z.shape[:-1])


# Of the samples, with a network of its own


def measure_use(model: LatentModel, dataset: Dataset, config, classifier: use.Classifier | None) -> dict:
    """A stronger probe of the code, and how far samples are from real images.

    Samples are the decoder's pixel means, real images are grey: `sample_` metrics judge what the figures show.
    """
    random = np.random.default_rng([config.seed, 4])
    samples = model.sample(len(dataset.x_test))
    near = random.permutation(len(dataset.x_train))[:TRAINING_CODES]
    some, held_out = samples[:NEAREST_IMAGES], random.permutation(dataset.x_test)[:NEAREST_IMAGES]
    found = {
        "sample_nearest_distance": mean_of(use.nearest_images(some, dataset.x_train)[1]),
        "test_nearest_distance": mean_of(use.nearest_images(held_out, dataset.x_train)[1]),
    }
    keys = ("code_mlp_accuracy", "classifier_accuracy", "sample_frechet_distance", "sample_c2st_accuracy")
    if classifier is None:
        return flat(found | {key: Absent(NO_LABELS) for key in (*keys, "train_frechet_distance")})
    codes = [
        model.encode(binarise(images, config.binarisation, random))
        for images in (dataset.x_train[near], dataset.x_test)
    ]
    of_samples, of_test, of_train = (
        classifier.features(images) for images in (samples, dataset.x_test, dataset.x_train[near[: len(samples)]])
    )
    values = (
        use.probe_accuracy("mlp", codes[0], dataset.y_train[near], codes[1], dataset.y_test, config.seed),
        classifier.accuracy,
        use.frechet_estimate(of_samples, of_test),
        code.c2st_accuracy(of_samples, of_test, config.seed),
        use.frechet_estimate(of_train, of_test),
    )
    return flat(found | dict(zip((*keys, "train_frechet_distance"), values, strict=True)))


# Of the decoder


@dataclass(frozen=True)
class LikelihoodSettings:
    """How much is spent on log p(x): images, chains an image, temperatures; images and draws of the weighted bound.

    The estimate is that of the most temperatures; any others show how far it has converged.
    """

    annealed_images: int
    chains: int
    temperatures: tuple[int, ...]
    weighted_images: int
    weighted_samples: int

    @classmethod
    def of(cls, config) -> "LikelihoodSettings":
        """Those of an experiment's Config, which has fields of the same names."""
        return cls(*(getattr(config, field.name) for field in fields(cls)))

    def as_json(self) -> dict:
        """As metrics.json keeps it."""
        return asdict(self) | {"temperatures": list(self.temperatures)}


def likelihood_images(dataset: Dataset, count: int) -> np.ndarray:
    """`count` test images, binarised at random: the same ones, with the same pixels, for every model."""
    order = np.random.default_rng(0).permutation(len(dataset.x_test))
    return binarise(dataset.x_test, "dynamic", np.random.default_rng(1))[order[:count]]


def proposal(model: LatentModel, images) -> tuple[np.ndarray, np.ndarray] | None:
    """Means and deviations of a Gaussian to draw codes from, two (n, latent_dim): q(z|x)'s own, or those of a bank."""
    if model.posterior == "gaussian":
        inferred = model.inferred(images)
        return inferred["mean"], np.exp(0.5 * inferred["log_var"])
    if model.posterior == "implicit":
        draws = bank(model, images, PROPOSAL_DRAWS)
        return draws.mean(axis=0), np.maximum(draws.std(axis=0), 1e-3 * model.prior.scale)
    return None


def measure_likelihood(model: LatentModel, dataset: Dataset, settings: LikelihoodSettings, progress) -> dict:
    """log p(x) of binarised test images, by importance weighting and by annealing, and Parzen's window on grey ones."""
    if not hasattr(model.prior, "log_prob"):
        keys = ("elbo_binarised_nats", "importance_weighted_bound_nats", "annealed_log_likelihood_nats")
        found = {key: Absent(CURVE) for key in (*keys, "annealed_gap_nats", "annealed_minus_weighted_nats")}
    else:
        weighted, bounds = importance_weighted(model, dataset, settings, progress)
        found, estimates = annealed(model, dataset, settings, progress)
        found["annealed_minus_weighted_nats"] = Absent(POINT)
        if bounds is not None:
            count = min(len(bounds), len(estimates))  # the same images first
            found["annealed_minus_weighted_nats"] = mean_of(estimates[:count] - bounds[:count])
        found |= weighted
    return flat(found | parzen(model.sample(WINDOWS), dataset))


def importance_weighted(
    model: LatentModel, dataset: Dataset, settings: LikelihoodSettings, progress, log_likelihood=None
):
    """The evidence lower bound and the bound with many samples, on the same draws; and the latter for each image.

    `log_likelihood` takes the place of `likelihood.of_decoder` where a decoder needs more than the code.
    """
    images = likelihood_images(dataset, settings.weighted_images)
    proposed = proposal(model, images)
    found = {"weighted_images": len(images), "weighted_samples": settings.weighted_samples}
    keys = ("elbo_binarised_nats", "importance_weighted_bound_nats", "weighted_effective_samples")
    if proposed is None:
        return found | {key: Absent(POINT) for key in keys}, None
    log_likelihood = log_likelihood or likelihood.of_decoder(model.decoder)
    log_weights = likelihood.importance_log_weights(
        log_likelihood, model.prior, images, *proposed, settings.weighted_samples, 0, progress
    )
    bounds = likelihood.importance_weighted_bound(log_weights)
    effective = float(np.median(likelihood.effective_sample_size(log_weights)))
    elbo = mean_of(likelihood.importance_weighted_bound(log_weights, 1))
    if model.posterior == "implicit":
        elbo = Absent(IMPLICIT)  # the bound with one draw of the proposal is none of q(z|x)
    return found | dict(zip(keys, (elbo, mean_of(bounds), effective), strict=True)), bounds


def annealed(model: LatentModel, dataset: Dataset, settings: LikelihoodSettings, progress):
    """The annealed estimate on test images and, on images of the model itself, the gap between the two directions;
    and the estimate for each test image.

    The curve holds, for each number of temperatures, mean estimates and the standard errors of their differences from
    the best, image by image: on test images that of the most temperatures, on simulated ones the middle of its bounds.
    """
    images = likelihood_images(dataset, settings.annealed_images)
    of_decoder = likelihood.of_decoder(model.decoder)

    def sampler(images):
        return likelihood.AnnealedImportanceSampling(of_decoder, model.prior, images, settings.chains, 0, progress)

    random = np.random.default_rng(2)
    codes = to_numpy(model.prior.sample(len(images), 2))
    tested, simulated = sampler(images), sampler(binarise(model.decode(codes), "dynamic", random))
    runs = {}
    for temperatures in sorted(settings.temperatures):
        forward = tested.forward(temperatures)
        lower, upper = simulated.forward(temperatures).lower(), simulated.reverse(temperatures, codes).upper()
        runs[temperatures] = {"test": forward.lower(), "simulated_lower": lower, "simulated_upper": upper}
    best = {"test": forward.lower(), "simulated_lower": (lower + upper) / 2, "simulated_upper": (lower + upper) / 2}
    curve = [
        {"temperatures": temperatures}
        | {key: [float(found[key].mean()), mean_of(found[key] - best[key]).standard_error] for key in best}
        for temperatures, found in runs.items()
    ]
    return {
        "annealed_log_likelihood_nats": mean_of(forward.lower()),
        "annealed_gap_nats": mean_of(upper - lower),
        "annealed_curve": curve,
        "annealed_images": len(images),
        "annealed_chains": settings.chains,
        "annealed_temperatures": temperatures,
        "annealed_acceptance": forward.acceptance,
        "annealed_effective_chains": float(np.median(likelihood.effective_sample_size(forward.log_weights))),
    }, forward.lower()


def parzen(samples: np.ndarray, dataset: Dataset) -> dict:
    """Parzen's log-likelihood of grey test images from samples, (m, *image_shape), sigma chosen on validation."""
    random = np.random.default_rng(3)
    validation, test = (random.permutation(split)[:WINDOW_IMAGES] for split in (dataset.x_val, dataset.x_test))
    try:
        sigma = likelihood.parzen_sigma(samples, validation)
    except ValueError as error:
        return {"parzen_log_likelihood_nats": Absent(str(error)), "parzen_sigma": Absent(str(error))}
    found: Estimate = mean_of(likelihood.parzen_log_likelihood(samples, test, sigma))
    return {"parzen_log_likelihood_nats": found, "parzen_sigma": sigma}
