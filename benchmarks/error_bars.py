"""How often does an error bar hold the truth? Simulations of every standard error that the project reports.

Run: python benchmarks/error_bars.py [--repeats 200] [--only entropy] [--record PATH]

Each instrument measures many samples of a problem whose answer is known. The table has the share of its estimates
within 1.96 standard errors of the answer, nominally 95 %; their mean less the answer; the standard error that they
state, and their standard deviation. Some instruments have no exact answer: a classifier's accuracy, for instance. Then
the mean of all repeats takes its place, so that a bias is not seen. --record writes a record for the gallery.
"""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common.evaluation import annealing, anomalies, coverage, latent, probes, samples
from common.evaluation.likelihood import AnnealedImportanceSampling
from common.evaluation.neighbours import neighbour_entropies, neighbour_entropy, neighbour_information, neighbour_kl
from common.evaluation.rate_distortion import LinearDecoder, RateDistortion
from common.files import write_json
from common.numbers import Absent, Estimate, mean_of
from common.priors import GaussianPrior
from common.progress import TimeLeft
from common.run import git_commit
from experiments.paired import carried
from tools.records import benchmark_record

import numpy as np
import tyro
from keras import ops
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, multivariate_t, norm

UNIT = norm.entropy()
DIMENSIONS = 2, 4, 8, 16, 32, 64  # of codes, for entropies
Found = tuple[Estimate | Absent, float | None]  # an estimate and the answer; None: the mean of all repeats


@dataclass(frozen=True)
class Config:
    """How much is simulated."""

    repeats: int = 200  # of each problem; slow ones have a fifth, a tenth or a fortieth
    only: str = ""  # problems whose names have this text
    record: str = ""  # the path of a record.json to write; it needs code that is committed


# Shapes of posteriors: n draws in d dimensions, and their entropy


def gaussian(stream, count, dimensions):
    return stream.standard_normal((count, dimensions)), dimensions * UNIT


def rotation(stream, dimensions):
    return np.linalg.qr(stream.standard_normal((dimensions, dimensions)))[0]


def correlated(stream, count, dimensions):
    """Deviations from 0.01 to 1, along axes of no dimension."""
    deviations = np.geomspace(0.01, 1.0, dimensions)
    draws = deviations * stream.standard_normal((count, dimensions)) @ rotation(stream, dimensions)
    return draws, dimensions * UNIT + np.log(deviations).sum()


def bumps(stream, count, dimensions, modes, spread, deviation):
    """Equal Gaussians around random centres."""
    centres = spread * stream.standard_normal((modes, dimensions))

    def draws(number):
        return centres[stream.choice(modes, number)] + deviation * stream.standard_normal((number, dimensions))

    points = draws(20_000)
    log_modes = -0.5 * ((points[:, None] - centres) ** 2).sum(axis=2) / deviation**2 - np.log(modes)
    log_density = logsumexp(log_modes, axis=1) - dimensions * (np.log(deviation) + 0.5 * np.log(2 * np.pi))
    return draws(count), -log_density.mean()  # the entropy of 20,000 draws: 0.03 in 32-D


def banana(stream, count, dimensions):
    """A shear (u, v) -> (u, 0.3 v + u^2), which changes the volume by 0.3."""
    draws = stream.standard_normal((count, dimensions))
    draws[:, 1] = 0.3 * draws[:, 1] + draws[:, 0] ** 2
    return draws @ rotation(stream, dimensions), dimensions * UNIT + np.log(0.3)


def curved(stream, count, dimensions):
    """Half of the dimensions bent by the other half, without a change of volume."""
    draws, half = stream.standard_normal((count, dimensions)), dimensions // 2
    draws[:, half : 2 * half] += 0.5 * draws[:, :half] ** 2
    return draws @ rotation(stream, dimensions), dimensions * UNIT


def student(stream, count, dimensions):
    draws = stream.standard_normal((count, dimensions)) / np.sqrt(stream.chisquare(5, (count, 1)) / 5)
    return draws, multivariate_t(np.zeros(dimensions), np.eye(dimensions), df=5).entropy()


def laplace(stream, count, dimensions):
    return stream.laplace(size=(count, dimensions)), dimensions * (1.0 + np.log(2.0))


SHAPES = {
    "gaussian": gaussian,
    "correlated": correlated,
    "two bumps": partial(bumps, modes=2, spread=1.0, deviation=0.05),
    "eight bumps": partial(bumps, modes=8, spread=1.0, deviation=0.05),
    "ten Gaussians": partial(bumps, modes=10, spread=0.7, deviation=0.5),
    "banana": banana,
    "curved": curved,
    "student": student,
    "laplace": laplace,
}


# Problems: a stream of random numbers -> an estimate and the answer


def entropy_of(stream, shape: str, dimensions: int) -> Found:
    """One posterior, 1,000 draws."""
    draws, answer = SHAPES[shape](stream, 1000, dimensions)
    return neighbour_entropy(draws), answer


def mean_entropy_of(stream, shape: str, dimensions: int, images: int = 8) -> Found:
    """The mean over the posteriors of some images, which differ; 1,000 draws each."""
    parts = [SHAPES[shape](stream, 1000, dimensions) for _ in range(images)]
    found = neighbour_entropies(np.stack([draws for draws, _ in parts], axis=1))
    if isinstance(found, Absent):
        return found, 0.0
    # The answers of the images differ and are known, so the error is that of the estimates alone.
    answers = np.array([answer for _, answer in parts])
    return neighbour_kl(found._replace(values=found.values - answers), np.zeros((1, images))), 0.0


def marginal_kl_of(stream, dimensions: int) -> Found:
    """KL(q(z) || p(z)) of 2,000 codes from N(0.3, 0.8^2 I) to N(0, I)."""
    codes = 0.3 + 0.8 * stream.standard_normal((2000, dimensions))
    answer = dimensions * (0.5 * (0.3**2 + 0.8**2 - 1.0) - np.log(0.8))
    return neighbour_kl(neighbour_entropy(codes), norm.logpdf(codes).sum(axis=1)), answer


def information_of(stream, dimensions: int, deviation: float = 0.5) -> Found:
    """Codes z = x + noise of 2,000 images, and 1,000 codes of each of 20 images."""
    images = stream.normal(0.0, (1.0 - deviation**2) ** 0.5, (2000, dimensions))
    codes = images + deviation * stream.standard_normal(images.shape)
    draws = images[:20] + deviation * stream.standard_normal((1000, 20, dimensions))
    answer = -dimensions * np.log(deviation)
    return neighbour_information(neighbour_entropy(codes), neighbour_entropies(draws)), answer


class Linear:
    """p(z) = N(0, 5^2 I) of 3 dimensions, p(x|z) = N(Wz, s^2 I) of 5 pixels."""

    prior, noise = GaussianPrior(3, 5.0), 0.7
    weights = np.random.default_rng(1).standard_normal((5, 3))

    def log_likelihood(self, images, codes):
        error = images - ops.matmul(codes, ops.convert_to_tensor(self.weights.T.astype("float32")))
        return -0.5 * ops.sum(ops.square(error / self.noise), axis=1) - 5 * np.log(self.noise * (2 * np.pi) ** 0.5)

    def exact(self, images):
        covariance = 25.0 * self.weights @ self.weights.T + self.noise**2 * np.eye(5)
        return multivariate_normal(np.zeros(5), covariance).logpdf(images)


def annealed_of(stream, temperatures: int = 40) -> Found:
    """Mean log p(x) of 32 images that are foreign to a linear decoder, with few temperatures."""
    model, images, seed = Linear(), 6.0 * stream.standard_normal((32, 5)), int(stream.integers(2**31))
    sampling = AnnealedImportanceSampling(model.log_likelihood, model.prior, images, 8, seed)
    checked = annealing.checked(sampling, sampling.forward(temperatures), temperatures, seed)
    return Estimate(float(checked.estimates.mean()), checked.error_of_mean()), float(model.exact(images).mean())


SCALES, DISTORTION = np.array([4.0, 3.0, 2.0, 1.0, 1.0, 0.5, 0.5, 0.5]), 6.0  # of images of 8 pixels


@cache
def linear_rate() -> tuple[LinearDecoder, float]:
    """The decoder of 3 principal components, and its exact rate over 100,000 images."""
    few, many = (SCALES * np.random.default_rng(seed).standard_normal((10**5, 8)) for seed in (1, 2))
    linear, betas = LinearDecoder(few, 3), np.geomspace(0.01, 10.0, 400)
    _, log_partitions = linear.exact(many, betas)
    return linear, float(np.max(-betas * DISTORTION - log_partitions.mean(axis=1)))


def rate_of(stream) -> Found:
    """The rate of a linear decoder at a squared error, by 60 images."""
    (linear, answer), images = linear_rate(), SCALES * stream.standard_normal((60, 8))
    sampler = RateDistortion(linear.distortion, linear.prior, images, 10.0, 0.05, 4, int(stream.integers(2**31)))
    return mean_of(sampler.curve(300).rate_at(DISTORTION)), answer


def normals(stream, count, dimensions):
    return stream.standard_normal((count, dimensions))


def shifted(stream, count, dimensions):
    return normals(stream, count, dimensions) + np.eye(dimensions)[0]


def halved(stream, count, dimensions):
    return 0.5 * normals(stream, count, dimensions)


def holes_of(stream, codes, dimensions: int, answer: float) -> Found:
    """Holes in N(0, I), from 5,000 training codes and 2,000 test codes."""
    training, test = ((codes(stream, count, dimensions), normals(stream, count, dimensions)) for count in (5000, 2000))
    return coverage.hole_mass(*training, *test, int(stream.integers(2**31))), answer


def coverage_of(stream, dimensions: int) -> Found:
    """Coverage by 500 codes from the prior itself."""
    codes, prior = (normals(stream, 500, dimensions) for _ in range(2))
    return coverage.coverage(codes, prior), coverage.matched_coverage(500)


def c2st_of(stream, codes, answer: float | None) -> Found:
    """Accuracy of a classifier, 500 codes against 500 samples of an 8-D prior."""
    return latent.c2st_accuracy(codes(stream, 500, 8), normals(stream, 500, 8), int(stream.integers(2**31))), answer


def mmd_of(stream, codes, answer: float | None) -> Found:
    """Squared MMD, 300 codes against 300 samples of an 8-D prior."""
    found = latent.mmd(codes(stream, 300, 8), normals(stream, 300, 8), permutations=2)
    return Estimate(found.value, found.standard_error), answer


def frechet_of(stream, dimensions: int = 16) -> Found:
    """Fréchet distance of 500 features to 500 others."""
    return samples.frechet_estimate(shifted(stream, 500, dimensions), normals(stream, 500, dimensions)), None


def probe_of(stream) -> Found:
    """Accuracy of a logistic classifier of two classes, 500 training and 500 test codes."""
    parts = []
    for _ in range(2):
        labels = stream.integers(2, size=500)
        parts += [normals(stream, 500, 8) + labels[:, None] * 0.5, labels]
    return probes.probe_accuracy("logistic", *parts), None


def roc_of(stream) -> Found:
    """ROC area of 50 anomalous rows among 500, whose scores are one deviation higher."""
    anomalous = np.arange(500) < 50
    return anomalies.roc_area(stream.standard_normal(500) + anomalous, anomalous), norm.cdf(0.5**0.5)


def mean_over_images(stream) -> Found:
    """The mean of 100 skewed numbers, such as log p(x) of images."""
    return mean_of(-stream.gamma(2.0, 10.0, 100)), -20.0


def carried_of(stream) -> Found:
    """A mean of 50 images, carried to 1,000 by a control variate."""
    control = -stream.gamma(2.0, 10.0, 1000)
    return carried(control, control[:50] + stream.exponential(1.0, 50)), -19.0


class Problem(NamedTuple):
    """A function of a stream of random numbers, and how many times fewer repeats it has."""

    simulate: Callable
    fewer: int = 1


def problems() -> dict[str, Problem]:
    """By name; the first word or words are the instrument's."""
    named = {
        "mean over images": Problem(mean_over_images),
        "mean carried to more images": Problem(carried_of),
        "log p(x) by annealing, foreign images": Problem(annealed_of, 5),
        "rate at a distortion": Problem(rate_of, 10),
        "KL(q(z) to prior) by neighbours, 2-D": Problem(partial(marginal_kl_of, dimensions=2), 10),
        "KL(q(z) to prior) by neighbours, 8-D": Problem(partial(marginal_kl_of, dimensions=8), 10),
        "mutual information by neighbours, 8-D": Problem(partial(information_of, dimensions=8), 10),
        "coverage of a match, 2-D": Problem(partial(coverage_of, dimensions=2)),
        "coverage of a match, 8-D": Problem(partial(coverage_of, dimensions=8)),
        "C2ST, a match": Problem(partial(c2st_of, codes=normals, answer=0.5), 5),
        "C2ST, a shift": Problem(partial(c2st_of, codes=shifted, answer=None), 5),
        "MMD, a match": Problem(partial(mmd_of, codes=normals, answer=0.0)),
        "MMD, a shift": Problem(partial(mmd_of, codes=shifted, answer=None)),
        "Fréchet distance": Problem(frechet_of),
        "accuracy of a probe": Problem(probe_of),
        "ROC area": Problem(roc_of),
    }
    shift = norm.cdf(0.5 - np.log(2.0))  # q/p = exp(z - 1/2) is below 1/2 where z < 1/2 - log 2
    heap = 1.0 - np.exp(-np.log(8.0) / 3.0)  # 4 exp(-3 |z|^2 / 2) < 1/2, and |z|^2 / 2 ~ Exp(1) in the plane
    holes = {
        "a match, 2-D": (normals, 2, 0.0),
        "a shift, 2-D": (shifted, 2, shift),
        "a shift, 8-D": (shifted, 8, shift),
        "a heap, 2-D": (halved, 2, heap),
    }
    for name, case in holes.items():
        codes, dimensions, answer = case
        named[f"holes, {name}"] = Problem(partial(holes_of, codes=codes, dimensions=dimensions, answer=answer), 10)
    for dimensions in DIMENSIONS:
        for shape in SHAPES:
            case = {"shape": shape, "dimensions": dimensions}
            named[f"entropy by neighbours, {dimensions}-D, {shape}"] = Problem(partial(entropy_of, **case), 10)
            name = f"mean entropy of 8 images by neighbours, {dimensions}-D, {shape}"
            named[name] = Problem(partial(mean_entropy_of, **case), 40)
    return named


# The table


def simulated(name: str, problem: Problem, repeats: int) -> dict:
    """Coverage, bias, stated error and deviation of a problem; `made` repeats of which `known` have an estimate."""
    pairs = []
    for repeat in range(max(2, repeats // problem.fewer)):
        found, answer = problem.simulate(np.random.default_rng([350, *name.encode(), repeat]))
        if not isinstance(found, Absent):
            pairs.append((*found, np.nan if answer is None else answer))
    numbers = {"made": repeat + 1, "known": len(pairs)}
    if len(pairs) < 2:
        return numbers
    values, errors, answers = np.array(pairs).T
    answers = np.where(np.isnan(answers), values.mean(), answers)
    return numbers | {
        "covered": float((np.abs(values - answers) <= 1.96 * errors).mean()),
        "bias": float((values - answers).mean()),
        "stated_error": float(errors.mean()),
        "deviation": float((values - answers).std(ddof=1)),
    }


def pooled(rows: dict[str, dict]) -> dict[str, dict]:
    """Over all shapes of one size: the repeats and the coverage of entropies, by name without the shape."""
    groups = {}
    for name, row in rows.items():
        if "entropy" in name:
            groups.setdefault(name.rpartition(", ")[0], []).append(row)
    return {
        name: {
            "made": sum(row["made"] for row in parts),
            "known": (known := sum(row["known"] for row in parts)),
            "covered": sum(row.get("covered", 0.0) * row["known"] for row in parts) / max(known, 1),
        }
        for name, parts in groups.items()
    }


def record(rows: dict[str, dict], config: Config, commit: str) -> dict:
    """What `tools.records` reads, for the pages. Each problem has a stream of random numbers of its own."""
    command = f"python benchmarks/error_bars.py --repeats {config.repeats}"
    return benchmark_record(command, commit, "There are no data: all samples are random numbers.", rows)


def main(config: Config):
    """Simulate all problems and print a line for each."""
    commit, rows, left = git_commit() or "", {}, TimeLeft()
    if config.record and not re.fullmatch("[0-9a-f]{40}", commit):
        raise SystemExit("a record names the commit that made it; commit your changes, and run again")
    chosen = {name: problem for name, problem in problems().items() if config.only in name}
    for number, (name, problem) in enumerate(chosen.items(), 1):
        rows[name] = simulated(name, problem, config.repeats)
        print(name, {key: round(value, 4) for key, value in rows[name].items()}, flush=True)
        left("problems", number, len(chosen))
    if config.record:
        Path(config.record).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(config.record), record(rows | pooled(rows), config, commit))


if __name__ == "__main__":
    main(tyro.cli(Config))
