"""How many nats does a code need for a decoder's image to come near a test image? Rate against distortion.

log p(x) is one number for each model. The rate-distortion curve of a decoder with its prior has one number for every
distortion, and it needs no noise model (Huang, Makhzani, Cao and Grosse, arXiv 2008.06653). There are two distortions:

    squared error   |x - E[x|z]|^2 of grey test images, summed over pixels
    own             -log p(x|z) in nats, of the same images binarised at random; beta = 1 gives log p(x)

The curve is an upper bound on the rate. Bidirectional Monte Carlo measures at a few values of beta how loose it is.
This needs exact draws from the channel, so it is measured on images that the decoder itself made, and not on test
images.

Two cases check the instrument, as in the paper. The curve of a linear decoder, the principal components of the training
images, is known exactly. And the VAE's prior is mixed with 99 % of N(0, 10^2 I): log p(x) and every rate can change by
-log 0.01 = 4.6 nats at most. This is little beside log p(x), and much beside a rate.

Run: python -m experiments.comparison.rate_distortion --data mnist.npz (--help lists every flag). --quick is a short run
on the sample. Resumes if interrupted. Results in results/comparison_rate_distortion/<name>/:

    metrics.json, table.md      means over the seeds
    runs.json                   curves, gaps and numbers of every seed
    squared_error.png, own_distortion.png, checks.png
"""

import functools
from dataclasses import dataclass
from typing import Annotated

from common.binarisation import tagged_stream
from common.config import AtLeast, PositiveCount
from common.data import Dataset
from common.evaluation.likelihood import of_decoder
from common.evaluation.rate_distortion import (
    Curve,
    LinearDecoder,
    RateDistortion,
    simulated,
    squared_error,
    with_noise,
)
from common.measure_likelihood import ORDER_SEED, likelihood_images, simulated_rows
from common.metrics import Metric
from common.model import to_numpy
from common.numbers import Absent, Estimate, flat, markdown, mean_of, of_seeds, plus_minus, row_title
from common.plots.figure import COLOURS, new_figure, own_style
from common.priors import GaussianPrior
from common.progress import TimeLeft
from common.run import load_run
from experiments import figures, paired, study
from experiments.comparison.models import VAE, WITHOUT_CONTRAST, models, require_batch, trained
from experiments.study import ImageStudyConfig, Part, Results, Study, run_study

import numpy as np

LINEAR = "Linear decoder"
NOISE_SHARE, NOISE_SCALE = 0.99, 10.0  # of the noise in the prior; its standard deviation, in those of the prior
SEED = 0  # of simulated codes
POINTS = 32  # points of each curve in the record
IMAGES = "_of_images"  # the ending of keys with a number for each image


@dataclass(frozen=True)
class Kind:
    """A distortion: the name of its axis, beta at the end of its curve and at its knee, where gaps and rates are."""

    axis: str
    largest: float
    knee: float  # about 1 / the standard deviation of the distortion under the prior, for MNIST
    gaps: tuple[float, ...]  # values of beta at which the gap is measured
    distortions: tuple[int, ...]  # at which the table has the rate


SQUARED = Kind("squared error, summed over pixels", 10.0, 0.03, (0.25, 1.0, 10.0), (20, 30, 40))
OWN = Kind("−log p(x|z), nats", 3.0, 0.005, (1.0,), (100, 150))
KINDS = {"squared_error": SQUARED, "own_distortion": OWN}
LOG_LIKELIHOOD = "log_likelihood_nats"


def rate_key(name: str, distortion: int) -> str:
    """The key of a rate; `<key>_of_images` has the parts of each image, and `<key>_minus_vae` the difference."""
    return f"{name}_rate_at_{distortion}_nats"


def gap_key(name: str, beta: float) -> str:
    """The key of a gap."""
    return f"{name}_gap_at_{beta:g}_nats"


RATES = {
    rate_key(name, distortion): f"rate at {'squared error' if kind is SQUARED else '−log p(x|z) of'} {distortion}"
    for name, kind in KINDS.items()
    for distortion in kind.distortions
}
SHOWN = {key: title for key, title in RATES.items() if key.startswith("squared_error")}  # the rates in the table
COLUMNS = {
    key: Metric(title, "nats", 2, "lower", "the least rate at this mean distortion: an upper bound")
    for key, title in SHOWN.items()
}
COLUMNS |= {
    f"{key}_minus_vae": Metric(f"{title} less the VAE's", "nats", 2, "lower", "paired by image")
    for key, title in SHOWN.items()
}
COLUMNS |= {
    "squared_error_least": Metric("squared error at the end of the curve", "", 1, "lower", "at the largest beta"),
    LOG_LIKELIHOOD: Metric("log p(x)", "nats", 1, "higher", "by annealing: a lower bound; the curve's point beta = 1"),
}
COLUMNS |= {
    gap_key(name, beta): Metric(f"gap, {title}", "nats", 2, "lower", "on images of the model itself")
    for name, beta, title in (
        ("squared_error", SQUARED.gaps[0], f"squared error, beta = {SQUARED.gaps[0]:g}"),
        ("own_distortion", 1.0, "log p(x)"),
    )
}
QUICK = {
    "data": "sample",
    "seeds": (0,),
    "latent_dims": (2,),
    "updates": 400,
    "images": 10,
    "temperatures": 60,
}


@dataclass(frozen=True)
class Config(ImageStudyConfig):
    """Parameters that all models share, and the effort of the estimates. All others are as in their scripts."""

    latent_dims: tuple[Annotated[int, AtLeast(2)], ...] = (2, 8, 32)  # dimensions of z, one model for each
    hidden_units: tuple[PositiveCount, ...] = (300, 300)  # ReLU units per layer, all networks
    updates: PositiveCount = 8250  # optimiser steps: 15 passes over MNIST
    images: Annotated[int, AtLeast(4)] = 50  # test images; half as many are simulated for each gap
    chains: Annotated[int, AtLeast(2)] = 4  # annealed chains per image
    temperatures: Annotated[int, AtLeast(8)] = 1000  # values of beta from 0 to the largest


# Measuring


def test_images(dataset: Dataset, kind: Kind, count: int) -> np.ndarray:
    """The same test images for every model: grey for the squared error, binarised for the own distortion."""
    if kind is OWN:
        return likelihood_images(dataset, count)
    chosen = np.random.default_rng(ORDER_SEED).permutation(len(dataset.x_test))[:count]
    return np.asarray(dataset.x_test[chosen], "float32")


def distortion_of(model, kind: Kind):
    """The distortion of a model's decoder, from images and codes: (n,)."""
    if kind is SQUARED:
        return squared_error(model.decoder, model.likelihood)
    log_likelihood = of_decoder(model.decoder, model.likelihood)
    return lambda images, codes: -log_likelihood(images, codes)


def curve(distortion, prior, images, kind: Kind, config: Config) -> Curve:
    """The curve of each image; one of its points is at beta = 1."""
    sampler = RateDistortion(distortion, prior, images, kind.largest, kind.knee, config.chains, progress=TimeLeft())
    return sampler.curve(config.temperatures, through=1.0)


def gaps(distortion, prior, simulate, kind: Kind, config: Config) -> dict:
    """Gap between the bounds on log Z at each beta of `kind.gaps`: its mean in nats, and its standard error.

    `simulate(codes, beta)` gives the images. The chains have the same steps of beta as those of the curve.
    """
    codes, sampler = to_numpy(prior.sample(config.images // 2, SEED)), None
    found = {"betas": [], "gaps": [], "standard_errors": []}
    for beta in kind.gaps:
        images = simulate(codes, beta)
        sampler = sampler or RateDistortion(
            distortion, prior, images, beta, kind.knee, config.chains, progress=TimeLeft()
        )
        sampler = sampler.of(images, beta)
        share = np.log1p(beta / kind.knee) / np.log1p(kind.largest / kind.knee)
        gap = mean_of(sampler.gap(max(1, round(share * config.temperatures)), codes))
        for key, value in zip(found, (beta, *gap), strict=True):
            found[key].append(value)
    return found


def numbers_of(name: str, kind: Kind, curve: Curve) -> dict:
    """The record of a curve: its points, and the rate at each distortion of the table."""
    chosen = np.unique(np.linspace(0, len(curve.betas) - 1, POINTS).round().astype(int))
    chosen = np.union1d(chosen, curve.at(1.0))
    distortions = [mean_of(curve.distortions[point]) for point in chosen]
    rates = [mean_of(curve.rate_at(distortion.value)) for distortion in distortions]  # on the curve at any distortion
    points = {"betas": curve.betas[chosen].tolist()}
    for key, estimates in (("distortions", distortions), ("rates", rates)):
        points[key] = [each.value for each in estimates]
        points[f"{key}_standard_error"] = [each.standard_error for each in estimates]
    numbers = {f"{name}_curve": points, f"{name}_least": mean_of(curve.distortions[-1])}
    numbers[f"{name}_effective_chains"] = float(curve.effective[-1])
    for distortion in kind.distortions:
        key, parts = rate_key(name, distortion), curve.rate_at(distortion)
        if curve.reaches(distortion):
            numbers |= {key: mean_of(parts), key + IMAGES: parts.round(4)}
        else:
            numbers[key] = Absent(f"the curve ends at a distortion of {curve.distortions[-1].mean():.1f}")
    if kind is OWN:
        log_likelihoods = curve.log_partitions[curve.at(1.0)]
        numbers |= {LOG_LIKELIHOOD: mean_of(log_likelihoods), LOG_LIKELIHOOD + IMAGES: log_likelihoods.round(4)}
    return numbers


def measured_gaps(name: str, found: dict) -> dict:
    """The record of the gaps."""
    numbers = {f"{name}_gaps": found}
    for beta, *gap in zip(*found.values(), strict=True):
        numbers[gap_key(name, beta)] = Estimate(*gap)
    return numbers


def case(script, latent_dim: int, part: Part) -> dict:
    """Train a model if it is missing, and measure both curves with their gaps."""
    model, config, numbers = load_run(trained(part, script, latent_dim)), part.config, {}
    random = tagged_stream("rate and distortion", part.seed)

    def simulate(kind, codes, beta):
        if kind is OWN:
            return simulated_rows(model, test_images(part.dataset, kind, len(codes)), codes, random)
        return simulated(model.means(codes), beta, random)

    for name, kind in KINDS.items():
        distortion = distortion_of(model, kind)
        images = test_images(part.dataset, kind, config.images)
        numbers |= numbers_of(name, kind, curve(distortion, model.prior, images, kind, config))
        found = gaps(distortion, model.prior, functools.partial(simulate, kind), kind, config)
        numbers |= measured_gaps(name, found)
    return flat(numbers)


# Checks


def linear_case(latent_dim: int, part: Part) -> dict:
    """The curve of a linear decoder, with its gaps and the exact curve at the same values of beta."""
    config, random = part.config, tagged_stream("rate and distortion", part.seed)
    linear = LinearDecoder(np.asarray(part.dataset.x_train[:], "float32"), latent_dim)
    images = test_images(part.dataset, SQUARED, config.images)
    found = curve(linear.distortion, linear.prior, images, SQUARED, config)
    distortions, log_partitions = linear.exact(images.astype("float64"), found.betas)
    exact = Curve(found.betas, log_partitions, distortions, found.effective)
    numbers = numbers_of("squared_error", SQUARED, found)
    numbers["exact_curve"] = numbers_of("squared_error", SQUARED, exact)["squared_error_curve"]
    numbers["log_partition_error_nats"] = [
        list(mean_of(found.log_partitions[found.at(beta)] - log_partitions[found.at(beta)])) for beta in SQUARED.gaps
    ]

    def simulate(codes, beta):
        return simulated(linear.means(codes), beta, random)

    measured = gaps(linear.distortion, linear.prior, simulate, SQUARED, config)
    return flat(numbers | measured_gaps("squared_error", measured))


def noise_case(script, latent_dim: int, part: Part) -> dict:
    """Both curves of a model whose prior is mostly noise, as in the paper; from those of both parts of the prior."""
    model, config, numbers = load_run(trained(part, script, latent_dim)), part.config, {}
    noise = GaussianPrior(latent_dim, NOISE_SCALE * model.prior.scale)
    for name, kind in KINDS.items():
        images, distortion = test_images(part.dataset, kind, config.images), distortion_of(model, kind)
        own, wide = (curve(distortion, prior, images, kind, config) for prior in (model.prior, noise))
        numbers |= numbers_of(name, kind, with_noise(own, wide, NOISE_SHARE))
    return flat(numbers)


# The study


def compared() -> dict:
    """By title: the script of each model."""
    return {title: script for title, (script, own) in models().items() if title != WITHOUT_CONTRAST}


def titled(model: str, latent_dim: int) -> str:
    """The name of a row: "VAE, 8-D"."""
    return f"{model}, {latent_dim}-D"


def cases(config: Config, dataset: Dataset) -> dict:
    """A case for each model and size of the code."""
    return {
        titled(title, latent_dim): functools.partial(case, script, latent_dim)
        for latent_dim in config.latent_dims
        for title, script in compared().items()
    }


def checked(config: Config) -> int:
    """The size of the code in both checks: 8 if it is among those of the models."""
    return 8 if 8 in config.latent_dims else config.latent_dims[0]


def checks(config: Config) -> tuple[str, str]:
    """The names of both checks: the linear decoder, and the VAE with noise in its prior."""
    return titled(LINEAR, checked(config)), f"{titled(VAE, checked(config))}, prior {NOISE_SHARE:.0%} noise"


def once(config: Config, dataset: Dataset) -> dict:
    """Both checks of the instrument."""
    linear, noisy = checks(config)
    return {
        linear: functools.partial(linear_case, checked(config)),
        noisy: functools.partial(noise_case, compared()[VAE], checked(config)),
    }


def requires(config: Config, dataset: Dataset):
    """Raises RunError if there are too few training images for a batch, or if they do not fit into memory."""
    require_batch(dataset)
    study.require_in_memory(dataset)


def rows(declared: Study, results: Results) -> dict[str, dict]:
    """For each row: means and standard deviations over the seeds, and mean standard errors over images."""
    config, found = results.config, {}
    for latent_dim in config.latent_dims:
        for model in compared():
            runs, name = results.of(titled(model, latent_dim)), titled(model, latent_dim)
            if model != VAE:
                pairs = zip(runs, results.of(titled(VAE, latent_dim)), strict=True)
                runs = [run | differences(run, other) for run, other in pairs]
            found[name] = paired.averaged(runs, COLUMNS)
    return found | {name: paired.averaged([results.runs[name]], COLUMNS) for name in checks(config)}


def differences(run: dict, vae: dict) -> dict:
    """The rates of a run less the VAE's, image by image."""
    found = {}
    for key in SHOWN:
        found |= paired.difference(f"{key}_minus_vae", run.get(key + IMAGES), vae.get(key + IMAGES))
    return found


def tables(declared: Study, results: Results, rows: dict) -> dict[str, str]:
    """table.md: in each cell mean ± standard error over images, and in brackets the standard deviation over seeds.

    It has the columns that any row has.
    """

    def cell(means: dict, key: str) -> str:
        digits, spread = COLUMNS[key].digits, means[f"{key}_sd"]
        text = plus_minus(means[key], means[f"{key}_standard_error"], digits)
        return text if spread is None else f"{text} ({plus_minus(spread, None, digits)})"

    shown = [key for key in COLUMNS if any(means[key] is not None for means in rows.values())]
    lines = [[row_title(name, means), *(cell(means, key) for key in shown)] for name, means in rows.items()]
    return {"table.md": markdown(["", *(COLUMNS[key].heading for key in shown)], lines)}


# Figures


def mean_curve(runs: list[dict], key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """beta, and the means over seeds of distortion and rate at each beta: three (points,)."""
    points = [run[key] for run in runs]
    return tuple(np.mean([each[part] for each in points], axis=0) for part in ("betas", "distortions", "rates"))


def draw_curve(axes, runs: list[dict], name: str, label: str, colour, **style):
    """Draw the mean curve over seeds; below it, the gap as a band, as far as it was measured; beta = 1 as a dot."""
    kind = KINDS[name]
    betas, distortions, rates = mean_curve(runs, f"{name}_curve")
    order = np.argsort(distortions)  # chains are noisy, and so are the distortions of neighbouring values of beta
    axes.plot(distortions[order], rates[order], label=label, color=colour, **style)
    if kind is OWN:
        point = np.argmin(abs(betas - 1.0))
        axes.plot(distortions[point], rates[point], marker="o", markersize=4, color=colour)
    if f"{name}_gaps" in runs[0]:
        gap = np.maximum(np.mean([run[f"{name}_gaps"]["gaps"] for run in runs], axis=0), 0.0)
        places = np.log1p(np.array([0.0, *kind.gaps]) / kind.knee)
        lower = np.maximum(rates - np.interp(np.log1p(betas / kind.knee), places, [0.0, *gap], right=np.nan), 0.0)
        band = {"color": colour, "alpha": 0.25, "linewidth": 0}
        axes.fill_between(distortions[order], lower[order], rates[order], **band)


def draw_difference(axes, runs: list[dict], vaes: list[dict], name: str, **style):
    """Draw the mean rate less the VAE's, at each distortion that both curves have."""
    curves = []
    for some in (runs, vaes):
        _, distortions, rates = mean_curve(some, f"{name}_curve")
        order = np.argsort(distortions)
        curves.append((distortions[order], rates[order]))
    low, high = (bound(each[0][end] for each in curves) for bound, end in ((max, 0), (min, -1)))
    grid = np.geomspace(low, high, 200)
    rates = [np.interp(np.log(grid), np.log(distortions), rates) for distortions, rates in curves]
    axes.plot(grid, rates[0] - rates[1], **style)


def finish_axes(axes, name: str, distortions: np.ndarray):
    """Label axes, and limit them to distortions up to that of codes that know nothing of the image."""
    axes.set(xscale="log", xlabel=KINDS[name].axis)
    axes.set_xlim(0.95 * distortions.min(), 1.05 * distortions.max())
    low, high = axes.get_xlim()
    leading = (1, 1.5, 2, 3, 4, 5, 7) if high / low < 6 else (1, 2, 5)
    ticks = [tick * ten for ten in (1, 10, 100, 1000) for tick in leading if low < tick * ten < high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(color="0.92")


@own_style()
def curves_figure(results: Results, name: str):
    """One column for each size of the code, one line for each model. Above rates, below rates less the VAE's."""
    config, dataset = results.config, results.dataset
    named = {size: {model: results.of(titled(model, size)) for model in compared()} for size in config.latent_dims}
    images = f"{min(config.images, len(dataset.x_test))} {'grey' if KINDS[name] is SQUARED else 'binarised'}"
    measured = "at beta = " + ", ".join(f"{beta:g}" for beta in KINDS[name].gaps)
    figure = new_figure(
        max(7.0, 3.7 * len(named) + 0.4),
        6.6,
        f"Rate against {KINDS[name].axis.split(',')[0]} of {len(compared())} models on {dataset.name}",
        f"Lower is better. Least KL(q(z|x) ‖ p(z)) at each mean distortion: an upper bound by annealing. "
        f"{images} test images, {config.chains} chains, {config.temperatures} temperatures; "
        f"{of_seeds('mean', config.seeds)}, {results.updates(*cases(config, dataset))}. Band: gap between the bounds, "
        f"measured {measured} on images of the model itself"
        + (". Dot: beta = 1, where rate + distortion = −log p(x)" if KINDS[name] is OWN else "")
        + f". Below: the same less the {VAE}'s",
        layout="constrained",
    )
    all_axes = figure.subplots(2, len(named), squeeze=False, height_ratios=(3, 2))
    for (above, below), (size, panel) in zip(all_axes.T, named.items(), strict=True):
        reached = [mean_curve(runs, f"{name}_curve")[1] for runs in panel.values()]
        for number, (model, runs) in enumerate(panel.items()):
            draw_curve(above, runs, name, model, COLOURS[number])
            draw_difference(below, runs, panel[VAE], name, color=COLOURS[number])
        for axes in (above, below):
            finish_axes(axes, name, np.concatenate(reached))
        above.set(ylim=(0, None), title=f"{size}-D code", xlabel="")
        low, high = below.get_ylim()
        below.set_ylim(low, min(high, 3.0 * max(-low, 0.5)))  # steep ends would hide where the curves cross
    all_axes[0, 0].set_ylabel("rate, nats")
    all_axes[1, 0].set_ylabel(f"rate less the {VAE}'s, nats")
    figures.legend_below(figure)
    return figure


@own_style()
def checks_figure(results: Results):
    """The linear decoder against its exact curve; the VAE with noise in its prior against the VAE."""
    config, key = results.config, "squared_error_curve"
    linear, noisy = checks(config)
    vae = [results.runs[study.part_name(titled(VAE, checked(config)), config.seeds[0])]]
    drop = vae[0][LOG_LIKELIHOOD] - results.runs[noisy][LOG_LIKELIHOOD]
    figure = new_figure(
        8.5,
        4.2,
        f"Two checks of the rate-distortion curve, on {results.dataset.name}",
        f"{min(config.images, len(results.dataset.x_test))} grey test images, {config.chains} chains, "
        f"{config.temperatures} temperatures. Left: the decoder of {checked(config)} principal components, of which "
        "the curve is known exactly. Right: the prior is "
        f"{1.0 - NOISE_SHARE:.0%} N(0, I) and {NOISE_SHARE:.0%} N(0, {NOISE_SCALE:g}² I). log p(x) falls by {drop:.1f} "
        f"nats, from {plus_minus(vae[0][LOG_LIKELIHOOD], None, 1)}. No rate can rise by more than "
        f"{-np.log1p(-NOISE_SHARE):.1f}",
        layout="constrained",
    )
    left, right = figure.subplots(1, 2)
    run = results.runs[linear]
    draw_curve(left, [run], "squared_error", "annealing, with its gap as a band", COLOURS[0])
    exact = run["exact_curve"]
    left.plot(exact["distortions"], exact["rates"], color="black", linestyle="dotted", label="exact")
    finish_axes(left, "squared_error", np.array(exact["distortions"]))
    draw_curve(right, vae, "squared_error", f"prior N(0, I): {titled(VAE, checked(config))}", COLOURS[1])
    draw_curve(right, [results.runs[noisy]], "squared_error", "prior 99 % noise", COLOURS[2], linestyle="dashed")
    finish_axes(
        right, "squared_error", np.concatenate([each[key]["distortions"] for each in (*vae, results.runs[noisy])])
    )
    left.set(ylim=(0, None), ylabel="rate, nats")
    right.set(ylim=(0, None))
    figures.legend_below(figure)
    return figure


def all_figures(results: Results, rows: dict) -> dict:
    """A figure for each distortion, and one of the checks."""
    return {name: curves_figure(results, name) for name in KINDS} | {"checks": checks_figure(results)}


STUDY = Study(
    "comparison.rate_distortion", cases, COLUMNS, all_figures, QUICK, requires, once=once, rows=rows, tables=tables
)


def main(config: Config = Config()) -> dict:
    """Run the experiment; returns the content of metrics.json."""
    return study.run(STUDY, config)


if __name__ == "__main__":
    run_study(STUDY, Config)
