"""Bounds, annealing and training with each likelihood against decoders whose log p(x) is known exactly.

Runs on the backend in use: KERAS_BACKEND=jax pytest tests/test_exact_decoders.py. A linear decoder with Gaussian values
is probabilistic PCA (Tipping & Bishop, J. R. Stat. Soc. B 61, 1999) or, with a deviation for each column, factor
analysis: log p(x) = log N(x; b, W W^T + D). With one dimension of the code, a sum over a fine grid is exact too.
"five standard errors": a false alarm has a chance of 6e-7 for each number, and the seeds are fixed.
"""

from types import SimpleNamespace

import vae_baseline
from common.evaluation.likelihood import (
    AnnealedImportanceSampling,
    importance_log_weights,
    importance_weighted_bound,
    of_decoder,
)
from common.likelihoods import Gaussian, Likelihood, Logistic, NegativeBinomial, Poisson
from common.measure_likelihood import LikelihoodSettings, annealed, importance_weighted, simulated_rows
from common.model import to_numpy
from common.numbers import Estimate, mean_of
from common.training import Batches, compile_model

import keras
import numpy as np
import pytest
from keras import ops
from scipy import stats
from scipy.special import logsumexp
from small_runs import without_xla


def random(seed=0):
    return np.random.default_rng(seed)


def tensor(array):
    return ops.convert_to_tensor(np.asarray(array, "float32"))


def about(estimate: Estimate, expected):
    """Within five standard errors."""
    return abs(estimate.value - expected) <= 5 * estimate.standard_error


def at_most(estimate: Estimate, bound):
    return estimate.value <= bound + 5 * estimate.standard_error


def no_progress(text, done, total):
    pass


# Probabilistic PCA and factor analysis


class LinearVAE:
    """A VAE of `vae_baseline` without hidden layers, whose encoder is the exact posterior.

    p(z) = N(0, I) of 2 dimensions; p(x|z) = N(Wz + b, D) of 6 values. The columns of D^-1/2 W are orthogonal, so that
    the posterior has no correlations.
    """

    latent_dim, dimensions = 2, 6
    gains = np.array([2.0, 1.2])  # lengths of the columns of D^-1/2 W

    def __init__(self, likelihood: Gaussian):
        config = vae_baseline.Config(latent_dim=self.latent_dim, hidden_units=())
        self.model = vae_baseline.build(config, likelihood)
        columns = len(likelihood.learned_shape) == 1 and likelihood.table  # a deviation for each column
        learned = 0.5 * random(3).standard_normal(self.dimensions if columns else 1) - 0.5
        self.noise = np.broadcast_to(np.exp(np.float32(learned).astype("float64")), (self.dimensions,))
        basis = np.linalg.qr(random(1).standard_normal((self.dimensions, self.latent_dim)))[0]
        self.weights = basis * self.gains * self.noise[:, None]
        self.bias = random(2).standard_normal(self.dimensions)
        decoder, encoder = self.model.decoder, self.model.encoder
        decoder.get_layer("parameters").set_weights([np.float32(self.weights.T), np.float32(self.bias)])
        decoder.get_layer("log_deviation").bias.assign(np.float32(learned))
        precision = 1 + self.gains**2
        to_mean = self.weights / self.noise[:, None] ** 2 / precision
        kernel = np.concatenate([to_mean, np.zeros_like(to_mean)], axis=1)
        bias = np.concatenate([-self.bias @ to_mean, -np.log(precision)])
        encoder.get_layer("code").set_weights([np.float32(kernel), np.float32(bias)])

    @property
    def covariance(self):
        return self.weights @ self.weights.T + np.diag(self.noise**2)

    def exact(self, rows):
        """log p(x)."""
        return stats.multivariate_normal(self.bias, self.covariance).logpdf(np.reshape(rows, (len(rows), -1)))

    def draw(self, count, seed=5):
        """Rows of the model, by NumPy."""
        flat = random(seed).multivariate_normal(self.bias, self.covariance, count)
        return np.float32(flat).reshape(count, *self.model.image_shape)

    def dataset(self, count):
        """What `measure_likelihood` reads of a `Dataset`."""
        rows = self.draw(count)
        return SimpleNamespace(x_test=rows, likelihood="gaussian", image_shape=rows.shape[1:])


@pytest.fixture(scope="module", params=["images", "table"])
def linear(request):
    return LinearVAE(Gaussian((2, 3)) if request.param == "images" else Gaussian((6,), table=True))


def test_the_evidence_lower_bound_of_the_exact_posterior_is_log_p(linear):
    rows = linear.draw(50)
    exact = linear.exact(rows)
    outputs = linear.model(tensor(rows))
    fit = to_numpy(linear.model.likelihood.log_prob(tensor(rows), outputs["parameters"])).astype("float64")
    z, mean, log_var = (to_numpy(outputs[key]).astype("float64") for key in ("z", "mean", "log_var"))
    log_prior = stats.norm.logpdf(z).sum(axis=1)
    log_q = stats.norm.logpdf(z, mean, np.exp(0.5 * log_var)).sum(axis=1)
    # For every draw z: log p(x|z) + log p(z) - log q(z|x) = log p(x), in float32 with terms up to some 30 nats.
    np.testing.assert_allclose(fit + log_prior - log_q, exact, atol=1e-4)
    terms = linear.model.objective(tensor(rows), outputs)
    np.testing.assert_allclose(float(to_numpy(terms["reconstruction"])), -fit.mean(), rtol=1e-5)


def test_every_weight_of_the_exact_posterior_is_the_likelihood(linear):
    settings = LikelihoodSettings(2, 2, (2,), weighted_images=12, weighted_samples=30)
    dataset = linear.dataset(12)
    numbers, bounds = importance_weighted(linear.model, dataset, settings, no_progress)
    exact = linear.exact(dataset.x_test)
    np.testing.assert_allclose(np.sort(bounds), np.sort(exact), atol=1e-4)
    for key in ("elbo_binarised_nats", "importance_weighted_bound_nats"):
        assert numbers[key].value == pytest.approx(exact.mean(), abs=1e-4)
    assert numbers["weighted_effective_samples"] == pytest.approx(30, rel=1e-4)


CHAINS, TEMPERATURES, ROWS = 64, 100, 20


def require_annealed(log_likelihood, prior, rows, exact) -> float:
    """Annealed estimates of `rows` within their own errors. Returns their mean error in standard errors."""
    sampler = AnnealedImportanceSampling(log_likelihood, prior, rows, CHAINS, seed=3)
    found = sampler.forward(TEMPERATURES)
    ratios = np.exp(found.log_weights - exact[:, None])  # of mean 1: weights are unbiased
    assert about(mean_of(ratios.ravel()), 1.0)
    assert mean_of(ratios.ravel()).standard_error < 0.05
    errors = ratios.std(axis=1, ddof=1) / np.sqrt(CHAINS)
    standardised = (ratios.mean(axis=1) - 1) / errors
    # Student's t with 63 degrees of freedom: a false alarm has a chance of 1e-5 for each row, 2e-4 for all of them.
    assert np.abs(standardised).max() < stats.t.isf(0.5e-5, CHAINS - 1)
    np.testing.assert_allclose(found.lower(), exact, atol=0.5)  # a log weight has a deviation of up to a nat
    assert found.lower().mean() == pytest.approx(exact.mean(), abs=0.05)
    assert 0.5 < found.acceptance < 0.8
    return (ratios.mean() - 1) / mean_of(ratios.ravel()).standard_error


def test_annealing_finds_log_p_of_the_linear_decoder(linear):
    rows = linear.draw(ROWS)
    log_likelihood = of_decoder(linear.model.decoder, linear.model.likelihood)
    require_annealed(log_likelihood, linear.model.prior, rows, linear.exact(rows))


def test_both_directions_of_annealing_meet(linear):
    settings = LikelihoodSettings(ROWS, CHAINS, (TEMPERATURES,), weighted_images=2, weighted_samples=2)
    dataset = linear.dataset(ROWS)
    numbers, estimates = annealed(linear.model, dataset, settings, no_progress)
    exact = linear.exact(dataset.x_test).mean()
    assert numbers["annealed_log_likelihood_nats"].value == pytest.approx(exact, abs=0.05)
    gap = numbers["annealed_gap_nats"]
    # Reverse chains of a row start from one code, so that a gap has a deviation of 0.1 for each row.
    assert at_most(Estimate(-gap.value, gap.standard_error), 0.0)
    assert gap.value < 0.1 and gap.standard_error < 0.05
    assert len(estimates) == ROWS and numbers["annealed_temperatures"] == TEMPERATURES


def test_simulated_rows_have_mean_and_covariance_of_the_model(linear):
    count = 20_000
    codes = random(8).standard_normal((count, linear.latent_dim)).astype("float32")
    rows = simulated_rows(linear.model, np.zeros((count, *linear.model.image_shape), "float32"), codes, random(9))
    assert rows.dtype == np.float32 and rows.shape == (count, *linear.model.image_shape)
    flat, covariance = rows.reshape(count, -1).astype("float64"), linear.covariance
    variance = np.diag(covariance)
    assert (np.abs(flat.mean(axis=0) - linear.bias) < 5 * np.sqrt(variance / count)).all()
    errors = np.sqrt((np.outer(variance, variance) + covariance**2) / count)  # of the entries for Gaussian rows
    assert (np.abs(np.cov(flat.T) - covariance) < 5 * errors).all()
    noise = flat - codes @ linear.weights.T - linear.bias
    assert (np.abs(noise.var(axis=0) / linear.noise**2 - 1) < 5 * np.sqrt(2 / count)).all()


# One dimension of the code


class OneDimension:
    """A decoder with a code of one dimension; integrals are sums over a grid."""

    grid = np.linspace(-8.0, 8.0, 3201)  # beyond it, the prior has a mass of 1e-15

    def __init__(self, likelihood: Likelihood, hidden_units=(6,)):
        config = vae_baseline.Config(latent_dim=1, hidden_units=hidden_units)
        self.likelihood, self.model = likelihood, vae_baseline.build(config, likelihood)
        for number, variable in enumerate(self.model.decoder.trainable_variables):  # the same on every backend
            variable.assign(np.float32(0.9 * random([number, 4]).standard_normal(variable.shape)))
        if not hidden_units and likelihood.name != "logistic":  # rates of about 5
            layer = self.model.decoder.get_layer("parameters")
            layer.bias.assign(layer.bias + 1.5)
        if likelihood.name == "logistic":  # means of -1.5 to 1.3 and scales of 0.01 to 0.16 for codes within 2
            layer = self.model.decoder.get_layer("parameters")
            kernel, bias = layer.get_weights()
            layer.set_weights([0.3 * kernel, np.tile(np.float32([0.5, -3.0]), len(bias) // 2)])
        if likelihood.name == "negative_binomial":
            self.model.decoder.get_layer("log_dispersion").bias.assign(np.float32([2.5, 1.0, 0.0, 3.0, 2.0]))
        parameters = to_numpy(self.model.decoder(tensor(self.grid[:, None]))).astype("float64")
        self.first, self.second = parameters, None
        if likelihood.heads == 2:
            self.first, self.second = parameters[..., 0], np.exp(parameters[..., 1])

    def draw(self, count, seed=6):
        """Rows of the model, counts with size factors from 0.3 to 3."""
        codes = random(seed).standard_normal((count, 1)).astype("float32")
        like = np.zeros((count, *self.likelihood.row_shape), "float32")
        like[:, -1] = random([seed, 1]).uniform(-1.2, 1.2, (count, *self.likelihood.row_shape[1:]))
        return simulated_rows(self.model, like, codes, random([seed, 2]))

    def log_joint(self, rows):
        """log p(x, z) at every point of the grid, by SciPy: (n, points)."""
        every = []
        for row in rows.astype("float64"):
            if self.likelihood.name == "poisson":
                each = stats.poisson.logpmf(np.rint(row[:-1]), np.exp(self.first + row[-1]))
            elif self.likelihood.name == "negative_binomial":
                rates = np.exp(self.first + row[-1])
                each = stats.nbinom.logpmf(np.rint(row[:-1]), self.second, self.second / (self.second + rates))
            else:
                edges = (np.array([[-0.5], [0.5]]) + np.rint(255 * row.ravel())) / 255
                edges[0, edges[0] < 0], edges[1, edges[1] > 1] = -np.inf, np.inf
                first, second = (part.reshape(len(self.grid), -1) for part in (self.first, self.second))
                lower, upper = (stats.logistic.cdf(edge, first, second) for edge in edges)
                each = np.log(np.maximum(upper - lower, 1e-300))
            every.append(each.sum(axis=1))
        return np.array(every) + stats.norm.logpdf(self.grid)

    def exact(self, rows):
        return logsumexp(self.log_joint(rows), axis=1) + np.log(self.grid[1] - self.grid[0])

    def posterior_moments(self, rows):
        """Means and deviations of p(z|x), (n, 1) each."""
        log_joint = self.log_joint(rows)
        chances = np.exp(log_joint - logsumexp(log_joint, axis=1)[:, None])
        means = chances @ self.grid
        return means[:, None], np.sqrt(chances @ self.grid**2 - means**2)[:, None]


ONE_DIMENSION = {"poisson": Poisson((5,)), "negative_binomial": NegativeBinomial((5,)), "logistic": Logistic((2, 3))}


@pytest.fixture(scope="module", params=ONE_DIMENSION)
def curve(request):
    case = OneDimension(ONE_DIMENSION[request.param])
    case.rows = case.draw(ROWS)
    case.log_p = case.exact(case.rows)
    return case


def test_the_grid_is_fine_enough_and_the_code_matters(curve):
    coarse = logsumexp(curve.log_joint(curve.rows)[:, ::2], axis=1) + np.log(2 * (curve.grid[1] - curve.grid[0]))
    np.testing.assert_allclose(coarse, curve.log_p, atol=1e-4)  # the decoder's parameters have the digits of float32
    _, deviations = curve.posterior_moments(curve.rows)
    assert np.median(deviations) < 0.8  # the posterior is not the prior
    if curve.likelihood.name != "logistic":
        assert np.ptp(curve.rows[:, -1]) > 1  # size factors differ


def test_the_weighted_bound_of_a_curve_is_the_likelihood(curve):
    means, deviations = curve.posterior_moments(curve.rows)
    log_likelihood = of_decoder(curve.model.decoder, curve.likelihood)
    draws = 2000
    weights = importance_log_weights(
        log_likelihood, curve.model.prior, curve.rows, means, 1.3 * deviations, draws, seed=0
    )
    ratios = np.exp(weights - curve.log_p[:, None])
    errors = ratios.std(axis=1, ddof=1) / np.sqrt(draws)
    assert (np.abs(ratios.mean(axis=1) - 1) < 5 * errors).all() and errors.max() < 0.1
    np.testing.assert_allclose(importance_weighted_bound(weights), curve.log_p, atol=5 * errors.max())
    assert (importance_weighted_bound(weights, 1) < curve.log_p).all()


def test_annealing_finds_log_p_of_a_curve(curve):
    log_likelihood = of_decoder(curve.model.decoder, curve.likelihood)
    require_annealed(log_likelihood, curve.model.prior, curve.rows, curve.log_p)


# Training


def trained(likelihood, rows, **changes):
    """A VAE after a short training by `model.fit`."""
    few = {"latent_dim": 2, "hidden_units": (), "learning_rate": 0.1, "batch_size": 100, "updates": 1800}
    config = vae_baseline.Config(**few | changes)
    likelihood.start = likelihood.constant(rows)
    model = vae_baseline.build(config, likelihood)
    with pytest.MonkeyPatch.context() as patch:
        without_xla(patch)
        compile_model(model, config, config.updates)
    batches = Batches(rows, config.batch_size, "none", config.seed)  # in an order of their seed
    model.fit(batches, epochs=config.updates // len(batches), shuffle=False, verbose=0)
    return model


def evidence_lower_bounds(model, rows):
    """The bound of each row, with one draw."""
    outputs = model(tensor(rows))
    fit = model.likelihood.log_prob(tensor(rows), outputs["parameters"])
    return to_numpy(fit - model.divergences(rows, outputs)["kl_nats"]).astype("float64")


@pytest.mark.parametrize("likelihood", [Gaussian((2, 3)), Gaussian((6,), table=True)], ids=["images", "table"])
def test_a_linear_vae_reaches_the_entropy_of_its_data(likelihood):
    """The best linear VAE has the likelihood of the data's own distribution (Lucas et al., arXiv 1911.02469)."""
    source = LinearVAE(likelihood)
    rows, unseen = source.draw(6000, seed=1), source.draw(4000, seed=2)
    model = trained(likelihood, rows)
    lost = mean_of(source.exact(unseen) - evidence_lower_bounds(model, unseen))
    assert at_most(Estimate(-lost.value, lost.standard_error), 0.0)  # no model is better than the truth
    # 20 weights from 6000 rows cost 20 / 12,000 nats. Adam leaves up to 0.05 nats, for any of five seeds.
    assert lost.value < 0.1
    entropy = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * source.covariance)[1]
    negative = mean_of(-evidence_lower_bounds(model, unseen))
    assert abs(negative.value - entropy) < 0.1 + 5 * negative.standard_error  # 5 standard errors are 0.15 nats
    constant = np.broadcast_to(likelihood.start, (len(unseen), *likelihood.start.shape))
    without_code = to_numpy(likelihood.log_prob(tensor(unseen), tensor(constant))).astype("float64")
    assert (source.exact(unseen) - without_code).mean() > 0.4  # what there is to learn
    learned = np.exp(to_numpy(model.decoder(tensor(np.zeros((1, 2)))))[0, ..., 1].ravel())
    np.testing.assert_allclose(learned, source.noise, rtol=0.15 if likelihood.table else 0.03)


@pytest.mark.parametrize("name", ["poisson", "negative_binomial", "logistic"])
def test_a_vae_of_other_values_beats_the_constant_model_and_nears_the_truth(name):
    likelihood = ONE_DIMENSION[name]
    source = OneDimension(likelihood, hidden_units=())  # parameters that a code changes in one direction
    rows, unseen = source.draw(6000, seed=1), source.draw(1000, seed=2)
    model = trained(likelihood, rows, latent_dim=1, hidden_units=(16,), learning_rate=2e-2, updates=1200, seed=1)
    exact, bounds = source.exact(unseen), evidence_lower_bounds(model, unseen)
    constant = np.broadcast_to(likelihood.start, (len(unseen), *likelihood.start.shape))
    without_code = to_numpy(likelihood.log_prob(tensor(unseen), tensor(constant))).astype("float64")
    assert at_most(mean_of(bounds - exact), 0.0)
    # Of what the constant model loses, 0.4 to 2.8 nats, this seed loses up to 6 %. Others learn more slowly.
    assert (exact - bounds).mean() < 0.5 * (exact - without_code).mean()
    keras.utils.clear_session()
