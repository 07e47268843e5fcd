"""A posterior with two modes: can AVB sample from it where a Gaussian cannot follow?

AVB serves as a sampler for an unnormalised posterior p(z|y), as in the eight-schools example of the AVB paper (arXiv
1701.04722). The decoder is a known likelihood. q(z) is a black box, a function of noise alone, and T holds it to the
prior.

Problems:

    altered      the eight schools with the standard errors of the official notebook; tau is a real number, and the data
                 do not determine its sign
    rubin        the same with Rubin's own standard errors
    rosenbrock   Rosenbrock's valley, a difficult density in the plane
    torus        a torus, another difficult density in the plane

Methods: AVB with and without adaptive contrast. Mean-field and full-rank Gaussian variational inference, and a long
NUTS run, all three by numpyro. Draws from the exact posterior, which show the numbers of a perfect method. The exact
posterior is a grid over two dimensions, since the effects eta can be integrated out.

Run: python -m experiments.avb.eight_schools (needs numpyro: pip install numpyro). --quick is a short run. Resumes if
interrupted. Results in results/avb_eight_schools/<name>/:

    metrics.json, table.md      means and standard deviations over the seeds
    runs.json                   numbers of every seed
    posteriors.png              densities of all methods, first seed
    a folder per problem, seed  history.csv of both trainings
"""

import importlib.util
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

from common import networks
from common.config import AtLeast, Factor, Fraction, Positive, PositiveCount, Seed
from common.evaluation import latent
from common.files import RunError
from common.metrics import METRICS, Metric
from common.model import even_batch_size, to_numpy
from common.numbers import flat, of_seeds, over_seeds
from common.priors import GaussianPrior
from experiments import figures, study
from experiments.avb.course import UPDATES_A_RECORD, Repeated, epochs_of
from experiments.avb.posteriors import PROBLEMS, exact_draws
from experiments.avb.toy import BlackBoxAVB
from experiments.study import Part, Results, Study, StudyConfig, run_study

import keras
import numpy as np
from keras import ops

ROWS = 20_000  # draws that go through a network at a time
CHAINS = 4  # chains of NUTS
WARM_UP = 2000  # discarded draws of each chain, which adapt its steps
GAUSSIAN_STEPS = 20_000  # steps of Adam for the two Gaussians; their ELBO is then constant
QUICK = {"problems": ("altered",), "seeds": (0,), "updates": 1000, "final_draws": 40_000}
COLUMNS = {
    "kl_nats": Metric("KL to the exact grid", "nats", 3, "lower", "KL(q ‖ p(z|y)) of the two dimensions of the grid"),
    "negative_share": Metric("mass at τ < 0 (z₂ < 0)", "", 3, "", "share of the draws"),
    "mean_absolute": Metric("E|τ| (E|z₂|)", "", 3, "", "mean of the draws"),
    "outside_share": Metric("outside the grid", "", 4, "", "share of the draws"),
    "mmd_imq": METRICS["code_mmd_imq"]._replace(title="MMD² to NUTS (IMQ), × 1000"),
    "seconds": METRICS["train_seconds"]._replace(title="time", meaning="of the training or of the sampling"),
}


@dataclass(frozen=True)
class Config(StudyConfig):
    """Parameters were chosen on the altered schools, seed 0, by the exact grid. No other problem was tuned."""

    problems: tuple[Literal[*PROBLEMS], ...] = tuple(PROBLEMS)  # posteriors to sample from
    hidden_units: tuple[PositiveCount, ...] = (128, 128)  # ReLU units per layer of the encoder
    discriminator_units: tuple[PositiveCount, ...] = (256, 256, 256)  # ReLU units per layer of T
    noise_dim: PositiveCount = 32  # normal numbers that the encoder takes as input
    batch_size: Annotated[int, AtLeast(2)] = 512  # codes per update
    updates: Annotated[int, AtLeast(UPDATES_A_RECORD)] = 8000  # optimiser steps, rounded down to whole hundreds
    warm_up: Fraction = 0.5  # share of the updates in which the likelihood's weight rises from 0 to 1
    learning_rate: Positive = 1e-3  # Adam's rate at the start
    final_rate_factor: Factor = 0.05  # the rate falls along a cosine to this factor times learning_rate
    beta_1: Fraction = 0.5  # Adam's decay of the mean gradient (official code)
    encoder_rate_factor: Factor = 0.3  # factor on learning_rate for the encoder
    discriminator_rate_factor: Factor = 2.0  # factor on learning_rate for the discriminator (official code: 2)
    seeds: tuple[Seed, ...] = (0, 1, 2)  # random seeds of weights, noise and chains
    final_draws: Annotated[int, AtLeast(100)] = 200_000  # draws from every method


# AVB


class PosteriorSampler(BlackBoxAVB):
    """q(z), z = z_phi(eps), which AVB fits to the posterior p(z|y); x is a column of ones.

    The likelihood's weight rises from 0 to 1, so that q starts as the prior and loses no mode during the training.

    With adaptive contrast, T sees the squares of z' too. Where tails of q differ from a Gaussian's, the log ratio is
    quadratic in z', while T is linear far out. Without the squares, T undervalues codes in such a tail, which draws
    them even farther out.
    """

    title = "AVB sampler"

    def __init__(self, log_joint, **kwargs):
        super().__init__(**kwargs)
        self.log_joint = log_joint
        self.likelihood_weight = keras.Variable(0.0, trainable=False, dtype="float32")

    def call(self, x, training=False):
        return self.infer(x)

    def objective(self, x, outputs):
        log_likelihood = self.log_joint(outputs["z"], ops) - self.prior.log_prob(outputs["z"])
        reconstruction = -self.likelihood_weight * ops.mean(log_likelihood)
        return {"reconstruction": reconstruction} | self.adversarial_terms(x, outputs)

    def log_odds(self, discriminator, x, z_hat):
        if not self.adaptive_contrast:
            return super().log_odds(discriminator, x, z_hat)
        squares = 0.5 * ops.square(z_hat)
        return super().log_odds(discriminator, x, ops.concatenate([z_hat, squares], axis=-1))


def build(config: Config, problem, adaptive_contrast: bool, seed: int) -> PosteriorSampler:
    """The untrained sampler of a problem."""
    random = np.random.default_rng(seed)
    seen = problem.dimensions * (2 if adaptive_contrast else 1)
    return PosteriorSampler(
        log_joint=problem.log_joint,
        adaptive_contrast=adaptive_contrast,
        noise_dim=config.noise_dim,
        prior=GaussianPrior(problem.dimensions, problem.prior_scale),
        seed=seed,
        encoder=networks.encoder((1,), problem.dimensions, config.hidden_units, random, config.noise_dim),
        discriminator=networks.pair_discriminator((1,), seen, config.discriminator_units, random),
    )


def by_avb(part: Part, problem, adaptive_contrast: bool) -> tuple[np.ndarray, dict]:
    """Train a sampler and draw from it. Raises RunError if the training met NaN."""
    config, kind = part.config, f"{'with' if adaptive_contrast else 'without'} contrast"
    model, epochs = build(config, problem, adaptive_contrast, part.seed), epochs_of(config)

    def weigh(epoch, logs):
        model.likelihood_weight.assign(min(1.0, epoch / max(1.0, config.warm_up * epochs)))

    part.folder.mkdir(exist_ok=True)
    outcome = study.train(
        model,
        Repeated(np.ones((config.batch_size, 1), "float32")),
        None,
        replace(config, warm_up=0.0),  # else `fit` would use it for the weight of the KL
        part.folder / kind.replace(" ", "-"),
        epochs,
        measures=[keras.callbacks.LambdaCallback(on_epoch_begin=weigh)],
    )
    if outcome.stopped_by:
        name = f"AVB {kind}, {problem.title}, seed {part.seed}"
        raise RunError(f"{name}: {outcome.stopped_by}; try a lower --learning-rate under another --name")
    at_once = even_batch_size(config.final_draws, ROWS)
    rows = ops.ones((at_once, 1))
    draws = [to_numpy(model.infer(rows)["z"]) for _ in range(0, config.final_draws, at_once)]
    return np.concatenate(draws)[: config.final_draws], outcome.made()


# The other methods


def numpyro_model(problem):
    """The unnormalised posterior as a numpyro model."""
    import jax.numpy
    import numpyro
    from numpyro.distributions import ImproperUniform, constraints

    def model():
        z = numpyro.sample("z", ImproperUniform(constraints.real_vector, (), (problem.dimensions,)))
        numpyro.factor("log_joint", problem.log_joint(z[None], jax.numpy)[0])

    return model


def by_nuts(part: Part, problem) -> tuple[np.ndarray, dict]:
    """Draws from all chains of the no-U-turn sampler (Hoffman & Gelman, arXiv 1111.4246)."""
    import jax
    from numpyro.infer import MCMC, NUTS, init_to_uniform

    sampler = MCMC(
        NUTS(numpyro_model(problem), init_strategy=init_to_uniform),
        num_warmup=WARM_UP,
        num_samples=part.config.final_draws // CHAINS,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    sampler.run(jax.random.key(part.seed))
    return np.asarray(sampler.get_samples()["z"]), {}


def by_gaussian(part: Part, problem, guide_name: str) -> tuple[np.ndarray, dict]:
    """Draws from the Gaussian of variational inference."""
    import jax
    from numpyro.infer import SVI, Trace_ELBO, autoguide
    from numpyro.optim import Adam

    model = numpyro_model(problem)
    guide = getattr(autoguide, guide_name)(model)
    svi = SVI(model, guide, Adam(2e-3), Trace_ELBO(num_particles=16))
    fitted = svi.run(jax.random.key(part.seed), GAUSSIAN_STEPS, progress_bar=False)
    key, shape = jax.random.key(part.seed + 1), (part.config.final_draws,)
    return np.asarray(guide.sample_posterior(key, fitted.params, sample_shape=shape)["z"]), {}


def by_exact(part: Part, problem) -> tuple[np.ndarray, dict]:
    """Draws from the posterior itself."""
    return exact_draws(problem, part.config.final_draws, part.seed), {}


METHODS = {  # name: (Part, problem) -> draws (final_draws, dimensions), and the training's `made` numbers
    "AVB": partial(by_avb, adaptive_contrast=False),
    "AVB, adaptive contrast": partial(by_avb, adaptive_contrast=True),
    "mean-field Gaussian": partial(by_gaussian, guide_name="AutoNormal"),
    "full-rank Gaussian": partial(by_gaussian, guide_name="AutoMultivariateNormal"),
    "NUTS": by_nuts,
    "exact draws": by_exact,
}


# The experiment


def case(key: str, part: Part) -> dict:
    """Run every method on a problem: {method: numbers}."""
    problem, plane = PROBLEMS[key], PROBLEMS[key].plane
    log_exact = plane.normalised(problem.log_marginal(plane.centres))
    draws, numbers, shades = {}, {}, {}
    for method, draw in METHODS.items():
        start = time.perf_counter()
        draws[method], made = draw(part, problem)
        seconds = time.perf_counter() - start
        keras.utils.clear_session()
        shades[method] = plane.density_of(draws[method][:, :2])
        numbers[method] = {
            "kl_nats": plane.kl(shades[method], log_exact),
            "negative_share": float(np.mean(draws[method][:, 1] < 0)),
            "mean_absolute": float(np.abs(draws[method][:, 1]).mean()),
            "outside_share": max(0.0, float(1.0 - shades[method].sum() * plane.area)),  # rounding can pass 1
            "seconds": round(seconds, 1),
        } | made
    for method in METHODS:
        if method != "NUTS":
            numbers[method]["mmd_imq"] = latent.mmd(draws[method], draws["NUTS"], seed=part.seed).value
    part.keep(**{method: shade.astype("float32") for method, shade in shades.items()})
    return {method: flat(values) for method, values in numbers.items()}


def cases(config: Config, dataset: None) -> dict:
    """A case for each problem."""
    return {key: partial(case, key) for key in config.problems}


def requires(config: Config, dataset: None):
    """Raises RunError without numpyro."""
    if not importlib.util.find_spec("numpyro"):
        raise RunError("experiments.avb.eight_schools compares with numpyro: pip install numpyro")


def row_of(key: str, method: str) -> str:
    """The name of a row."""
    return f"{PROBLEMS[key].title}, {method}"


def rows_of_methods(declared: Study, results: Results) -> dict[str, dict]:
    """One row per problem and method: mean and standard deviation over the seeds."""
    return {
        row_of(key, method): over_seeds([run[method] for run in results.of(key)], (*COLUMNS, "updates"))
        for key in results.config.problems
        for method in METHODS
    }


def all_figures(results: Results, rows: dict) -> dict:
    """Densities of every method except exact draws, one row per problem, under the exact contours."""
    config, panels = results.config, {}
    problems = [PROBLEMS[key] for key in config.problems]
    for key, problem in zip(config.problems, problems, strict=True):
        log_exact = problem.plane.normalised(problem.log_marginal(problem.plane.centres))
        shades = results.pictures(key)
        panels[problem.title] = {
            method: figures.Panel(shades[method], log_exact, f"KL {rows[row_of(key, method)]['kl_nats']:.3f}")
            for method in METHODS
            if method != "exact draws"
        }
    updates = rows[row_of(config.problems[0], "AVB")]["updates"]  # all are equal: an early stop is an error
    seeds = of_seeds("mean", config.seeds)
    figure = figures.densities(
        panels,
        [problem.plane for problem in problems],
        [problem.axes for problem in problems],
        "Posteriors that are not Gaussian, and the approximation by each method",
        f"Shades: density of {config.final_draws:,} draws, seed {config.seeds[0]}. Lines: the exact density on a grid. "
        f"KL: from the shades to the exact density, in nats, {seeds}. AVB: {updates:,.0f} updates",
    )
    return {"posteriors": figure}


STUDY = Study("avb.eight_schools", cases, COLUMNS, all_figures, QUICK, requires, rows=rows_of_methods)


def main(config: Config = Config()) -> dict:
    """Run the experiment; returns the content of metrics.json."""
    return study.run(STUDY, config)


if __name__ == "__main__":
    run_study(STUDY, Config)
