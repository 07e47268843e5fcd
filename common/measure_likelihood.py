"""log p(x) of a trained model: bounds, annealed importance sampling, and Parzen windows."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

from common.arrays import chunks
from common.binarisation import binarise
from common.data import Dataset
from common.evaluation import annealing, likelihood
from common.failures import STRICT
from common.measure import MOST_DRAWN_NUMBERS, MOST_PIXELS, NO_DENSITY, fitting, posterior_draws
from common.model import Decoded, LatentModel, even_batch_size, to_numpy
from common.numbers import Absent, Estimate, flat, mean_of

import numpy as np

PROPOSAL_DRAWS = 100  # draws z ~ q(z|x) for the moments of an implicit posterior
WINDOWS, WINDOW_IMAGES = 10_000, 2_000  # centres of Parzen windows; test images, and validation images for sigma
CHAIN_NUMBERS = 2**25  # pixels of all chains together, 128 MiB of float32: 2,675 images of MNIST with 16 chains
WEIGHTED = ("elbo_binarised_nats", "importance_weighted_bound_nats", "weighted_effective_samples")
ANNEALED = ("annealed_log_likelihood_nats", "annealed_error_nats", "annealed_gap_nats")
DIFFERENCE, OF_IMAGES = "annealed_minus_weighted_nats", "annealed_of_images"
PARZEN = ("parzen_log_likelihood_nats", "parzen_sigma")
NO_WINDOWS = "Parzen windows are for grey images here"
# Seeds that do not depend on a run's seed: every model is measured on the same images, with the same pixels.
ORDER_SEED, PIXEL_SEED, SIMULATED_SEED, WINDOW_SEED = 0, 1, 2, 3


@dataclass(frozen=True)
class LikelihoodSettings:
    """The effort for log p(x): images, chains per image and temperatures; images and draws of the weighted bound.

    The estimate comes from the largest number of temperatures, and from up to four times as many for images where it is
    doubtful (`common.evaluation.annealing`). Smaller numbers show how far it has converged.
    """

    annealed_images: int
    chains: int
    temperatures: tuple[int, ...]
    weighted_images: int
    weighted_samples: int

    @classmethod
    def of(cls, config) -> "LikelihoodSettings":
        """The settings in an experiment's Config, which has fields of the same names."""
        return cls(*(getattr(config, field.name) for field in fields(cls)))

    def as_json(self) -> dict:
        """The settings as metrics.json holds them."""
        return asdict(self) | {"temperatures": list(self.temperatures)}


def likelihood_images(dataset: Dataset, count: int) -> np.ndarray:
    """`count` test images, the same for every model. With Bernoulli pixels they are binarised at random, all alike.

    There are fewer if `count` images do not fit into memory.
    """
    chosen = np.random.default_rng(ORDER_SEED).permutation(len(dataset.x_test))
    chosen = chosen[: fitting(count, math.prod(dataset.image_shape), MOST_PIXELS)]
    if dataset.likelihood != "bernoulli":
        return dataset.x_test[chosen]
    images, random = np.empty((len(chosen), *dataset.image_shape), "float32"), np.random.default_rng(PIXEL_SEED)
    start = 0
    for chunk in chunks(dataset.x_test):  # pixels are drawn for all images, in their order
        binary, here = binarise(chunk, "dynamic", random), (start <= chosen) & (chosen < start + len(chunk))
        images[here] = binary[chosen[here] - start]
        start += len(chunk)
    return images


def proposal(model: LatentModel, images) -> tuple[np.ndarray, np.ndarray] | None:
    """Means and deviations of a Gaussian to draw codes from, two (n, latent_dim): those of q(z|x), or of its draws."""
    if model.posterior == "gaussian":
        inferred = model.inferred_rows(images)
        return inferred["mean"], np.exp(0.5 * inferred["log_var"])
    if model.posterior == "implicit":
        means, deviations = [], []
        for rows in groups(len(images), PROPOSAL_DRAWS * model.prior.latent_dim, MOST_DRAWN_NUMBERS):
            draws = posterior_draws(model, images[rows], PROPOSAL_DRAWS)
            means.append(draws.mean(axis=0))
            deviations.append(np.maximum(draws.std(axis=0), 1e-3 * model.prior.scale))
        return np.concatenate(means), np.concatenate(deviations)
    return None


def groups(count: int, numbers: int, most: int) -> Iterator[slice]:
    """Rows of `count` images in groups. One group has at most `most` numbers, where an image has `numbers`."""
    size = even_batch_size(count, count, numbers, most)
    return (slice(start, start + size) for start in range(0, count, size))


def measure_likelihood(
    model: LatentModel, dataset: Dataset, settings: LikelihoodSettings, progress, failures=STRICT
) -> dict:
    """log p(x) of test images, by importance weighting and by annealing; Parzen windows on grey images.

    Each estimate is one of the attempts of `failures`.
    """
    numbers = weighted_and_annealed(model, dataset, settings, progress, failures)[0]
    if dataset.likelihood != "bernoulli":
        return flat(numbers | {key: Absent(NO_WINDOWS) for key in PARZEN})
    samples = Decoded(model, model.prior_codes(WINDOWS))
    return flat(numbers | failures.numbers(PARZEN, lambda: parzen(samples, dataset)))


def weighted_and_annealed(
    model: LatentModel, dataset: Dataset, settings: LikelihoodSettings, progress, failures=STRICT
) -> tuple[dict, np.ndarray | None, np.ndarray | None]:
    """Both estimates of log p(x) in nats and their difference; then the bound and the estimate for each test image.

    The numbers have the estimate, the disagreement and the flag of each image in "annealed_of_images". Without
    `weighted_samples` there is no bound. If the prior has no density, all of these are absent.
    """
    if not hasattr(model.prior, "log_prob"):
        keys = (*WEIGHTED[:2], *ANNEALED, DIFFERENCE)
        return {key: Absent(model.prior.no_density) for key in keys}, None, None
    weighted, bounds = {}, None
    if settings.weighted_samples:
        made = failures.numbers(WEIGHTED, lambda: {"": importance_weighted(model, dataset, settings, progress)})
        weighted, bounds = made.get("", (made, None))
    made = failures.numbers(ANNEALED, lambda: {"": annealed(model, dataset, settings, progress)})
    numbers, estimates = made.get("", (made, None))
    if bounds is not None and estimates is not None:
        count = min(len(bounds), len(estimates))  # both begin with the same images
        numbers[DIFFERENCE] = mean_of(estimates[:count] - bounds[:count])
    elif weighted:
        numbers[DIFFERENCE] = next(each for each in (weighted | numbers).values() if isinstance(each, Absent))
    return numbers | weighted, bounds, estimates


def importance_weighted(
    model: LatentModel, dataset: Dataset, settings: LikelihoodSettings, progress, log_likelihood=None
):
    """The evidence lower bound and the bound with many samples, from the same draws; and the second for each image.

    The number of effective draws shows how even the weights are. It cannot show mass that the proposal misses entirely.
    `log_likelihood` replaces `likelihood.of_decoder` where a decoder needs more than the code.
    """
    images = likelihood_images(dataset, settings.weighted_images)
    proposed = proposal(model, images)
    numbers = {"weighted_images": len(images), "weighted_samples": settings.weighted_samples}
    if proposed is None:
        return numbers | {key: Absent(NO_DENSITY["point"]) for key in WEIGHTED}, None
    log_likelihood = log_likelihood or likelihood.of_decoder(model.decoder, model.likelihood)
    log_weights = likelihood.importance_log_weights(
        log_likelihood, model.prior, images, *proposed, settings.weighted_samples, 0, progress
    )
    bounds = likelihood.importance_weighted_bound(log_weights)
    effective = float(np.median(likelihood.effective_sample_size(log_weights)))
    elbo = mean_of(likelihood.importance_weighted_bound(log_weights, 1))
    if model.posterior == "implicit":
        elbo = Absent(NO_DENSITY["implicit"])  # the bound with one draw belongs to the proposal, not to q(z|x)
    return numbers | dict(zip(WEIGHTED, (elbo, mean_of(bounds), effective), strict=True)), bounds


def annealed(model: LatentModel, dataset: Dataset, settings: LikelihoodSettings, progress):
    """The numbers of annealing, and the annealed estimate for each test image.

    The numbers: the estimate on test images and its error, from `common.evaluation.annealing`; the gap between the two
    directions on images drawn from the model itself, which bounds the error on such images only; and the
    `annealed_curve` of both, by forward and reverse chains alone.
    """
    images = likelihood_images(dataset, settings.annealed_images)
    codes, random = to_numpy(model.prior.sample(len(images), SIMULATED_SEED)), np.random.default_rng(SIMULATED_SEED)
    numbers = settings.chains * max(images[0].size, model.prior.latent_dim)
    parts, checks = zip(
        *(
            annealed_group(model, settings, images[rows], codes[rows], random, rows.start, progress)
            for rows in groups(len(images), numbers, CHAIN_NUMBERS)
        ),
        strict=True,
    )
    results = {
        temperatures: {key: likelihood.joined([part[temperatures][key] for part in parts]) for key in chains}
        for temperatures, chains in parts[0].items()
    }
    bounds = {  # by the number of temperatures
        temperatures: {
            "test": chains["test"].lower(),
            "simulated_lower": chains["simulated_forward"].lower(),
            "simulated_upper": chains["simulated_reverse"].upper(),
        }
        for temperatures, chains in results.items()
    }
    most, checked = max(settings.temperatures), annealing.of_groups(checks)
    return checked_numbers(checked) | {
        "annealed_gap_nats": mean_of(bounds[most]["simulated_upper"] - bounds[most]["simulated_lower"]),
        "annealed_curve": annealed_curve(bounds),
        "annealed_images": len(images),
        "annealed_chains": settings.chains,
        "annealed_temperatures": most,
        "annealed_acceptance": results[most]["test"].acceptance,
    }, checked.estimates


def checked_numbers(checked: annealing.Checked) -> dict:
    """The numbers of test images whose annealing was checked, with those of each image in "annealed_of_images"."""
    return {
        "annealed_log_likelihood_nats": mean_of(checked.estimates),
        "annealed_error_nats": checked.error_of_mean(),
        "annealed_disagreement_nats": float(np.abs(checked.disagreement).mean()),
        "annealed_flagged_images": int(checked.flagged.sum()),
        "annealed_most_temperatures": int(checked.temperatures.max()),
        "annealed_effective_chains": float(np.median(checked.effective_chains)),
        "annealed_least_effective_chains": float(checked.effective_chains.min()),
        OF_IMAGES: {
            "log_likelihood_nats": checked.estimates.round(4).tolist(),
            "disagreement_nats": checked.disagreement.round(4).tolist(),
            "flagged": checked.flagged.tolist(),
        },
    }


class PairedDifference(NamedTuple):
    """A mean difference over images, its standard error over images, and the error of annealing of both models."""

    value: float
    standard_error: float
    annealing_error: float


def paired_difference(numbers: dict, others: dict) -> PairedDifference | Absent:
    """Mean log p(x) under one model less that under another, in nats, image by image on the same test images.

    `numbers` and `others` are of `annealed`, or metrics.json. `standard_error` is the error if other images had been
    drawn: it has no part of log p(x) that both models share. `annealing_error` is the error on these very images: the
    root of the sum of both models' squared `annealing.error_of_mean`. Raises ValueError if the images differ in number.
    """
    pair = [each.get(OF_IMAGES) for each in (numbers, others)]
    if not all(pair):
        return Absent("one of the models has no annealed log p(x) of each image")
    values, disagreements = (
        [np.array(each[key]) for each in pair] for key in ("log_likelihood_nats", "disagreement_nats")
    )
    if len(values[0]) != len(values[1]):
        raise ValueError(f"the models were annealed on {len(values[0])} and {len(values[1])} images; compare the same")
    error = float(np.hypot(*(annealing.error_of_mean(each) for each in disagreements)))
    return PairedDifference(*mean_of(values[0] - values[1]), error)


def annealed_group(
    model: LatentModel, settings: LikelihoodSettings, images, codes, random: np.random.Generator, seed: int, progress
) -> tuple[dict[int, dict[str, likelihood.Annealed]], annealing.Checked]:
    """By the number of temperatures: chains of test images, and of the same number of images decoded from `codes`.

    And the checked estimates of the test images, from the most temperatures. All chains are in memory at once.
    `random` draws the pixels of the decoded images. `seed` is that of the chains.
    """
    of_decoder = likelihood.of_decoder(model.decoder, model.likelihood)

    def sampler(images):
        return likelihood.AnnealedImportanceSampling(of_decoder, model.prior, images, settings.chains, seed, progress)

    tested, simulated = sampler(images), sampler(simulated_rows(model, images, codes, random))
    results = {
        temperatures: {
            "test": tested.forward(temperatures),
            "simulated_forward": simulated.forward(temperatures),
            "simulated_reverse": simulated.reverse(temperatures, codes),
        }
        for temperatures in sorted(settings.temperatures)
    }
    most = max(results)
    return results, annealing.checked(tested, results[most]["test"], most, seed)


def simulated_rows(model: LatentModel, rows, codes, random: np.random.Generator) -> np.ndarray:
    """A row x ~ p(x|z) for each code. Counts have the size factors of `rows`."""
    parts = []
    for some, parameters in zip(model.batches(len(codes)), model.parameters_of(codes), strict=True):
        parts.append(model.likelihood.sample(to_numpy(parameters), random, rows[some]))
    return np.concatenate(parts)


def annealed_curve(bounds: dict[int, dict[str, np.ndarray]]) -> list[dict]:
    """A point for each number of temperatures: mean estimates, and standard errors of differences from the best.

    Differences are computed image by image. The best estimate has the most temperatures. On simulated images, it is the
    middle of its two bounds.
    """
    best = bounds[max(bounds)]
    middle = (best["simulated_lower"] + best["simulated_upper"]) / 2
    best = {"test": best["test"], "simulated_lower": middle, "simulated_upper": middle}
    return [
        {"temperatures": temperatures}
        | {key: [float(values[key].mean()), mean_of(values[key] - best[key]).standard_error] for key in best}
        for temperatures, values in bounds.items()
    ]


def parzen(samples: np.ndarray | Decoded, dataset: Dataset) -> dict:
    """Log-likelihood of grey test images by Parzen windows on samples, (m, *image_shape).

    The width sigma is chosen on validation images.
    """
    random, count = (
        np.random.default_rng(WINDOW_SEED),
        fitting(WINDOW_IMAGES, math.prod(dataset.image_shape), MOST_PIXELS),
    )
    validation, test = (split[random.permutation(len(split))[:count]] for split in (dataset.x_val, dataset.x_test))
    try:
        sigma = likelihood.parzen_sigma(samples, validation)
    except ValueError as error:
        return {"parzen_log_likelihood_nats": Absent(str(error)), "parzen_sigma": Absent(str(error))}
    numbers: Estimate = mean_of(likelihood.parzen_log_likelihood(samples, test, sigma))
    return {"parzen_log_likelihood_nats": numbers, "parzen_sigma": sigma}
