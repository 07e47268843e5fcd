"""A posterior with two modes: can AVB sample from it where a Gaussian cannot follow?

AVB as a sampler for an unnormalised posterior p(z|y) (AVB paper, arXiv 1701.04722, its eight-schools example): the
decoder is a known likelihood, and q(z), a black box of noise alone, is held to the prior by T. Problems: the eight
schools with a real tau, whose sign no datum fixes, at the standard errors of the official notebook and at Rubin's own;
and two hard densities in the plane, Rosenbrock's valley and a torus. Beside AVB with and without adaptive contrast:
mean-field and full-rank Gaussian variational inference and a long NUTS run, all three of numpyro, and draws from the
exact posterior, which show what the numbers are when nothing is wrong. The truth is a grid over two dimensions: the
effects eta integrate out.

Run: python -m experiments.eight_schools (needs numpyro: pip install numpyro); --quick for a first look.
Leaves in results/eight_schools/<name>/: metrics.json and table.md (means and standard deviations over the seeds),
runs.json (every seed), the densities of the first seed as <problem>.npz, and posteriors.png. What is there already is
not made again.
"""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from common import networks, plots
from common.command import run_main
from common.config import AtLeast, Factor, Fraction, Positive, PositiveCount, Seed, check
from common.evaluation import latent
from common.files import RunError, whole, write_json
from common.model import even_batch_size, to_numpy
from common.numbers import markdown, of_seeds, over_seeds, plus_minus
from common.priors import GaussianPrior
from common.progress import TimeLeft
from experiments import figures
from experiments.avb.plane import Plane
from experiments.avb.toy import UPDATES_A_RECORD, BlackBoxAVB, fit
from experiments.study import claim_folder, each_once, quickened

import keras
import numpy as np
from keras import ops

EFFECTS = np.array([2.8, 0.8, -0.3, 0.7, -0.1, 0.1, 1.8, 1.2], "float32")  # y / 10
RUBIN_ERRORS = np.array([1.5, 1.0, 1.6, 1.1, 0.9, 1.1, 1.0, 1.8], "float32")  # sigma / 10
ALTERED_ERRORS = np.array([0.8, 0.5, 0.8, 0.6, 0.5, 0.6, 0.5, 0.4], "float32")  # of the official notebook
ROWS = 20_000  # draws that go through a network at a time
CHAINS = 4  # of NUTS
WARM_UP = 2000  # draws of each chain that adapt its steps and are thrown away
GAUSSIAN_STEPS = 20_000  # of Adam, for the two Gaussians; their ELBO no longer moves
QUICK = {"problems": ("altered",), "seeds": (0,), "updates": 1000, "final_draws": 40_000}
COLUMNS = {  # key: how the table calls it, digits
    "kl_nats": ("KL to the exact grid, nats", 3),
    "negative_share": ("mass at τ < 0 (z₂ < 0)", 3),
    "mean_absolute": ("E\\|τ\\| (E\\|z₂\\|)", 3),
    "outside_share": ("outside the grid", 4),
    "mmd_imq": ("MMD² (IMQ) to NUTS, × 1000", 2),
    "seconds": ("seconds", 0),
}


@dataclass(frozen=True)
class Config:
    """Chosen on the altered schools, seed 0, by the exact grid; the other problems were run as they came."""

    problems: tuple[str, ...] = ("altered", "rubin", "rosenbrock", "torus")  # which posteriors
    hidden_units: tuple[PositiveCount, ...] = (128, 128)  # ReLU units a layer of the encoder
    discriminator_units: tuple[PositiveCount, ...] = (256, 256, 256)  # ReLU units a layer of T
    noise_dim: PositiveCount = 32  # normal numbers that z is a function of
    batch_size: Annotated[int, AtLeast(2)] = 512  # codes an update
    updates: Annotated[int, AtLeast(UPDATES_A_RECORD)] = 8000  # steps of the optimiser
    warm_up: Fraction = 0.5  # share of the updates in which the likelihood's weight rises from 0 to 1
    learning_rate: Positive = 1e-3  # of Adam, at the start
    final_rate_factor: Factor = 0.05  # times learning_rate: where a cosine takes it by the last update
    beta_1: Fraction = 0.5  # Adam's decay of the mean gradient (official code)
    encoder_rate_factor: Factor = 0.3  # times learning_rate
    discriminator_rate_factor: Factor = 2.0  # times learning_rate (official code: 2)
    seeds: tuple[Seed, ...] = (0, 1, 2)  # of weights, noise and chains
    final_draws: Annotated[int, AtLeast(100)] = 200_000  # of every method
    quick: bool = False  # whatever is not asked for is small: the altered schools, one seed, 1,000 updates
    results: str = "results"  # the folder of all runs
    name: str = ""  # the folder below results/eight_schools/; "default" or "quick" if empty
    resume: str = ""  # the folder of a run that was stopped: go on with it, and with its parameters


# The posteriors


def normal(x, mean, variance, backend):
    """log N(x; mean, variance), elementwise."""
    return -0.5 * (backend.square(backend.subtract(x, mean)) / variance + backend.log(2.0 * np.pi * variance))


@dataclass(frozen=True)
class Schools:
    """y_j ~ N(mu + tau eta_j, sigma_j^2); mu, tau and every eta_j ~ N(0, 1), tau of either sign; z = (mu, tau, eta)."""

    errors: np.ndarray
    title: str
    dimensions = 10
    axes = ("μ", "τ")
    prior_scale = 1.0  # of p(z), which here is part of the model
    plane = Plane((-2.5, -3.5), (3.5, 3.5), 400)

    def log_joint(self, z, backend):
        """log p(y, z) in nats, (n, 10) -> (n,), with the functions of `backend`: keras.ops, numpy or jax.numpy."""
        mu, tau, eta = z[:, :1], z[:, 1:2], z[:, 2:]
        likelihood = normal(EFFECTS, mu + tau * eta, backend.add(self.errors**2, 0.0 * eta), backend)
        return backend.sum(likelihood, axis=1) + backend.sum(normal(z, 0.0, 1.0 + 0.0 * z, backend), axis=1)

    def log_marginal(self, points):
        """log p(y, mu, tau), the effects integrated out: (..., 2) -> (...)."""
        mu, tau = points[..., :1], points[..., 1:]
        likelihood = normal(EFFECTS, mu, self.errors**2 + tau**2, np).sum(axis=-1)
        return likelihood + normal(points, 0.0, np.ones_like(points), np).sum(axis=-1)

    def complete(self, points, random):
        """Exact draws of z from exact draws (n, 2) of (mu, tau)."""
        mu, tau = points[:, :1], points[:, 1:]
        variance = self.errors**2 + tau**2
        mean = tau * (EFFECTS - mu) / variance
        eta = mean + self.errors / np.sqrt(variance) * random.standard_normal(mean.shape)
        return np.concatenate([points, eta], axis=1)


@dataclass(frozen=True)
class InThePlane:
    """A density over z = (z1, z2) itself, unnormalised."""

    log_density: Callable
    title: str
    plane: Plane
    dimensions = 2
    axes = ("z₁", "z₂")
    prior_scale = 3.0  # of p(z), which cancels: the likelihood is the density over it

    def log_joint(self, z, backend):
        return self.log_density(z[:, 0], z[:, 1], backend)

    def log_marginal(self, points):
        return self.log_density(points[..., 0], points[..., 1], np)

    def complete(self, points, random):
        return points


def rosenbrock(x, y, backend):
    """A curved valley: x ~ N(1, 1), y ~ N(x^2, 0.1)."""
    return -0.5 * (backend.square(1.0 - x) + 10.0 * backend.square(y - backend.square(x)))


def torus(x, y, backend):
    """A torus seen from above: radius 2, the tube's deviation 0.2."""
    return -0.5 * backend.square((backend.sqrt(backend.square(x) + backend.square(y)) - 2.0) / 0.2)


PROBLEMS = {
    "altered": Schools(ALTERED_ERRORS, "schools, altered errors"),
    "rubin": Schools(RUBIN_ERRORS, "schools, Rubin's errors"),
    "rosenbrock": InThePlane(rosenbrock, "Rosenbrock's valley", Plane((-3.5, -2.5), (5.5, 27.0), 800)),
    "torus": InThePlane(torus, "torus", Plane((-3.5, -3.5), (3.5, 3.5), 400)),
}


def exact_draws(problem, count: int, seed: int) -> np.ndarray:
    """Draws from the posterior itself: (mu, tau) by the grid's cells, the rest in closed form."""
    random, plane = np.random.default_rng(seed), problem.plane
    log_density = plane.normalised(problem.log_marginal(plane.centres))
    chosen = random.choice(plane.cells**2, count, p=(np.exp(log_density) * plane.area).ravel())
    inside = (random.random((count, 2)) - 0.5) * (plane.edges[:, 1] - plane.edges[:, 0])
    return problem.complete(plane.centres.reshape(-1, 2)[chosen] + inside, random)


# AVB


class PosteriorSampler(BlackBoxAVB):
    """q(z), z = z_phi(eps), as near to the posterior p(z|y) as AVB can bring it; x is a column of ones.

    The likelihood's weight rises from 0 to 1, so that q starts as the prior and loses no mode on the way. With
    adaptive contrast T sees the squares of z' as well: tails of q that differ from a Gaussian's are quadratic in it,
    and codes in a tail that T, linear far out, undervalues are drawn farther out.
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


def by_avb(config: Config, problem, seed: int, adaptive_contrast: bool) -> np.ndarray:
    """Train a sampler and draw from it: (final_draws, dimensions). Raises RunError if it met NaN."""
    model = build(config, problem, adaptive_contrast, seed)
    epochs, progress = config.updates // UPDATES_A_RECORD, TimeLeft()
    name = f"AVB {'with' if adaptive_contrast else 'without'} contrast, {problem.title}, seed {seed}"

    def begin(epoch, logs):
        model.likelihood_weight.assign(min(1.0, epoch / max(1.0, config.warm_up * epochs)))
        progress(name, UPDATES_A_RECORD * (epoch + 1), UPDATES_A_RECORD * epochs)

    ones = np.ones((config.batch_size, 1), "float32")
    if reason := fit(model, config, ones, [keras.callbacks.LambdaCallback(on_epoch_begin=begin)]):
        raise RunError(f"{name}: {reason}; try a lower --learning-rate under another --name")
    at_once = even_batch_size(config.final_draws, ROWS)
    rows = ops.ones((at_once, 1))
    draws = [to_numpy(model.infer(rows)["z"]) for _ in range(0, config.final_draws, at_once)]
    return np.concatenate(draws)[: config.final_draws]


# What it is compared with


def numpyro_model(problem):
    """The unnormalised posterior as numpyro takes it."""
    import jax.numpy
    import numpyro
    from numpyro.distributions import ImproperUniform, constraints

    def model():
        z = numpyro.sample("z", ImproperUniform(constraints.real_vector, (), (problem.dimensions,)))
        numpyro.factor("log_joint", problem.log_joint(z[None], jax.numpy)[0])

    return model


def by_nuts(config: Config, problem, seed: int) -> np.ndarray:
    """Draws of the no-U-turn sampler (Hoffman & Gelman, arXiv 1111.4246), all chains: (final_draws, dimensions)."""
    import jax
    from numpyro.infer import MCMC, NUTS, init_to_uniform

    sampler = MCMC(
        NUTS(numpyro_model(problem), init_strategy=init_to_uniform),
        num_warmup=WARM_UP,
        num_samples=config.final_draws // CHAINS,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    sampler.run(jax.random.key(seed))
    return np.asarray(sampler.get_samples()["z"])


def by_gaussian(config: Config, problem, seed: int, guide_name: str) -> np.ndarray:
    """Draws of the Gaussian that variational inference finds: (final_draws, dimensions)."""
    import jax
    from numpyro.infer import SVI, Trace_ELBO, autoguide
    from numpyro.optim import Adam

    model = numpyro_model(problem)
    guide = getattr(autoguide, guide_name)(model)
    svi = SVI(model, guide, Adam(2e-3), Trace_ELBO(num_particles=16))
    found = svi.run(jax.random.key(seed), GAUSSIAN_STEPS, progress_bar=False)
    key, shape = jax.random.key(seed + 1), (config.final_draws,)
    return np.asarray(guide.sample_posterior(key, found.params, sample_shape=shape)["z"])


def by_exact(config: Config, problem, seed: int) -> np.ndarray:
    return exact_draws(problem, config.final_draws, seed)


METHODS = {
    "AVB": partial(by_avb, adaptive_contrast=False),
    "AVB, adaptive contrast": partial(by_avb, adaptive_contrast=True),
    "mean-field Gaussian": partial(by_gaussian, guide_name="AutoNormal"),
    "full-rank Gaussian": partial(by_gaussian, guide_name="AutoMultivariateNormal"),
    "NUTS": by_nuts,
    "exact draws": by_exact,
}


# What comes of it


def one_seed(config: Config, key: str, seed: int, folder: Path) -> dict:
    """Every method on a problem: {method: numbers}. The first seed's densities go into `folder`, for the figure."""
    problem, plane = PROBLEMS[key], PROBLEMS[key].plane
    log_exact = plane.normalised(problem.log_marginal(plane.centres))
    draws, found, shades = {}, {}, {}
    for method, draw in METHODS.items():
        start = time.perf_counter()
        draws[method] = draw(config, problem, seed)
        seconds = time.perf_counter() - start
        keras.utils.clear_session()
        shades[method] = plane.density_of(draws[method][:, :2])
        found[method] = {
            "kl_nats": plane.kl(shades[method], log_exact),
            "negative_share": float(np.mean(draws[method][:, 1] < 0)),
            "mean_absolute": float(np.abs(draws[method][:, 1]).mean()),
            "outside_share": max(0.0, float(1.0 - shades[method].sum() * plane.area)),  # rounding can pass 1
            "seconds": round(seconds, 1),
        }
    for method in METHODS:
        if method != "NUTS":
            found[method]["mmd_imq"] = latent.mmd(draws[method], draws["NUTS"], seed=seed).value
    if seed == config.seeds[0]:
        with whole(folder / f"{key}.npz") as unfinished:
            np.savez_compressed(unfinished, **{method: shade.astype("float32") for method, shade in shades.items()})
    return found


def main(config: Config = Config()) -> dict:
    """Sample what is not there yet; returns what metrics.json holds."""
    check(config)
    if unknown := [key for key in config.problems if key not in PROBLEMS]:
        raise RunError(f"--problems must be some of {', '.join(PROBLEMS)}, not {unknown[0]!r}")
    if not importlib.util.find_spec("numpyro"):
        raise RunError("experiments.eight_schools compares with numpyro: pip install numpyro")
    if config.quick:
        config = quickened(config, QUICK)
    folder = Path(config.results) / "eight_schools" / (config.name or ("quick" if config.quick else "default"))
    claim_folder(folder, "eight_schools", config, None, config.updates)
    parts = {
        f"{key}, seed {seed}": partial(one_seed, config, key, seed, folder)
        for key in config.problems
        for seed in config.seeds
    }
    runs = each_once(folder, parts)
    metrics = {}
    for key in config.problems:
        of_key = [runs[f"{key}, seed {seed}"] for seed in config.seeds]
        metrics[key] = {method: over_seeds([run[method] for run in of_key], of_key[0][method]) for method in METHODS}
    with whole(folder / "table.md") as unfinished:
        unfinished.write_text(table(metrics))
    write_json(folder / "metrics.json", metrics)
    plots.save(figure(metrics, config, folder), folder / "posteriors.png")
    print((folder / "table.md").read_text())
    print(folder)
    return metrics


def table(metrics: dict) -> str:
    """A row a problem and method, mean ± standard deviation over the seeds."""
    rows = []
    for problem, methods in metrics.items():
        for method, found in methods.items():
            cells = []
            for key, (_, digits) in COLUMNS.items():
                scale = 1000.0 if key == "mmd_imq" else 1.0
                numbers = [found.get(name) for name in (key, f"{key}_sd")]
                cells.append(plus_minus(*(number if number is None else scale * number for number in numbers), digits))
            rows.append([PROBLEMS[problem].title, method, *cells])
    return markdown(["", "", *(title for title, _ in COLUMNS.values())], rows)


def figure(metrics: dict, config: Config, folder: Path):
    """Densities of every method but the exact one, a row a problem, over the exact contours."""
    rows = {}
    for key in config.problems:
        problem = PROBLEMS[key]
        log_exact = problem.plane.normalised(problem.log_marginal(problem.plane.centres))
        shades = np.load(folder / f"{key}.npz")
        rows[problem.title] = {
            method: figures.Panel(shades[method], log_exact, f"KL {metrics[key][method]['kl_nats']:.3f}")
            for method in METHODS
            if method != "exact draws"
        }
    problems = [PROBLEMS[key] for key in config.problems]
    seeds = of_seeds("mean", config.seeds)
    return figures.densities(
        rows,
        [problem.plane for problem in problems],
        [problem.axes for problem in problems],
        "Posteriors that are no Gaussian, and what each method makes of them",
        f"Shades: density of {config.final_draws:,} draws, seed {config.seeds[0]}; lines: exact, by a grid. KL: of the "
        f"shades to the exact density, in nats, {seeds}. AVB: {config.updates:,} updates",
    )


if __name__ == "__main__":
    run_main(main, Config)
