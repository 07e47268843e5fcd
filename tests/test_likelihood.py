"""common/evaluation/likelihood.py and common/backend.py against decoders whose log p(x) is known exactly.

Runs on the backend in use: KERAS_BACKEND=jax pytest tests/test_likelihood.py. Two decoders: a linear one with Gaussian
pixels, of which everything has a closed form, and a small network with Bernoulli pixels and a plane for its code, whose
integrals are sums over a fine grid. "Four standard errors" are those of the numbers tested, whose seeds are fixed.
"""

from types import SimpleNamespace

from common import networks
from common.backend import compiled, value_and_gradient
from common.evaluation import likelihood
from common.evaluation.likelihood import (
    AnnealedImportanceSampling,
    effective_sample_size,
    hamiltonian_move,
    importance_log_weights,
    importance_weighted_bound,
    of_decoder,
    parzen_log_likelihood,
    parzen_sigma,
    sigmoid_schedule,
    squared_distances,
)
from common.model import to_numpy
from common.numbers import Estimate, mean_of
from common.priors import GaussianPrior, MixturePrior

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from keras import ops
from scipy.spatial.distance import cdist
from scipy.special import expit, logsumexp
from scipy.stats import bernoulli, multivariate_normal, norm

SCALE = 1.5  # of the prior: a formula that leaves it out must not pass


def random(seed=0):
    return np.random.default_rng(seed)


def tensor(array):
    return ops.convert_to_tensor(np.asarray(array, "float32"))


def at_most(estimate: Estimate, bound):
    return estimate.value <= bound + 4 * estimate.standard_error


def about(estimate: Estimate, expected):
    return abs(estimate.value - expected) <= 4 * estimate.standard_error


# The two decoders


class LinearGaussian:
    """p(z) = N(0, scale^2 I) of 3 dimensions, p(x|z) = N(Wz + b, s^2 I) of 5, W with orthogonal columns."""

    image_dim, latent_dim = 5, 3
    gains = np.array([1.2, 0.8, 0.5])  # lengths of the columns

    def __init__(self, scale=SCALE, noise=0.7):
        self.noise, self.scale, self.prior = noise, scale, GaussianPrior(self.latent_dim, scale)
        self.weights = np.linalg.qr(random(1).standard_normal((self.image_dim, self.latent_dim)))[0] * self.gains
        self.bias = random(2).standard_normal(self.image_dim)

    def draw(self, count, seed):
        """Codes from the prior and an image from each."""
        codes = self.scale * random([seed, 0]).standard_normal((count, self.latent_dim))
        noise = self.noise * random([seed, 1]).standard_normal((count, self.image_dim))
        return codes @ self.weights.T + self.bias + noise, codes

    def log_likelihood(self, images, codes):
        error = images - ops.matmul(codes, tensor(self.weights.T)) - tensor(self.bias)
        constant = 0.5 * self.image_dim * np.log(2 * np.pi * self.noise**2)
        return -0.5 * ops.sum(ops.square(error), axis=1) / self.noise**2 - constant

    def exact(self, images):
        """log p(x)."""
        covariance = self.scale**2 * self.weights @ self.weights.T + self.noise**2 * np.eye(self.image_dim)
        return multivariate_normal(self.bias, covariance).logpdf(images)

    def tempered(self, images, beta=1.0):
        """Means, (n, 3), and deviations, (3,), of the Gaussian p(z) p(x|z)^beta, without correlations."""
        precision = 1 / self.scale**2 + beta * self.gains**2 / self.noise**2
        return beta * (images - self.bias) @ self.weights / self.noise**2 / precision, precision**-0.5


class BernoulliPlane:
    """Twelve Bernoulli pixels, their logits a small network of a code in the plane."""

    axis = np.linspace(-9.0, 9.0, 451)  # six deviations of the prior

    def __init__(self, prior):
        self.prior, self.decoder = prior, networks.decoder(2, (3, 4), (8,), random(0))
        for number, variable in enumerate(self.decoder.trainable_variables):  # the same on every backend
            variable.assign(np.float32(0.9 * random(number).standard_normal(variable.shape)))
        self.log_likelihood = of_decoder(self.decoder)
        self.grid = np.stack(np.meshgrid(self.axis, self.axis), axis=-1).reshape(-1, 2)
        self.cell = (self.axis[1] - self.axis[0]) ** 2
        self.log_prior = to_numpy(prior.log_prob(tensor(self.grid))).astype("float64")
        self.logits = to_numpy(self.decoder(tensor(self.grid))).astype("float64").reshape(-1, 12)

    def draw(self, count, seed):
        codes = to_numpy(self.prior.sample(count, seed))
        chances = expit(to_numpy(self.decoder(tensor(codes))))
        return np.float32(random(seed).random(chances.shape) < chances), codes

    def log_joint(self, images):
        """log p(x, z) at every point of the grid: (n, points)."""
        per_image = images.reshape(-1, 12) @ self.logits.T - np.logaddexp(0.0, self.logits).sum(axis=1)
        return per_image + self.log_prior

    def exact(self, images):
        return logsumexp(self.log_joint(images), axis=1) + np.log(self.cell)

    def posterior_moments(self, images):
        """Means and deviations of p(z|x), (n, 2) each."""
        log_joint = self.log_joint(images)
        chances = np.exp(log_joint - logsumexp(log_joint, axis=1)[:, None])
        means = chances @ self.grid
        return means, (chances @ self.grid**2 - means**2) ** 0.5


@pytest.fixture(scope="module")
def plane():
    return BernoulliPlane(GaussianPrior(2, SCALE))


@pytest.mark.parametrize("prior", [GaussianPrior(2, SCALE), MixturePrior(2, SCALE)])
def test_the_grid_is_fine_and_wide_enough(prior):
    model = BernoulliPlane(prior)
    assert logsumexp(model.log_prior) + np.log(model.cell) == pytest.approx(0.0, abs=1e-5)
    images, _ = model.draw(5, seed=0)
    exact = model.exact(images)
    step = slice(None, None, 2)  # every second point along both axes gives the same integral
    coarse = model.log_joint(images).reshape(5, 451, 451)[:, step, step].reshape(5, -1)
    np.testing.assert_allclose(logsumexp(coarse, axis=1) + np.log(4 * model.cell), exact, atol=1e-3)
    # The posterior is neither a point nor the prior.
    _, deviations = model.posterior_moments(images)
    assert (deviations > 0.1).all() and (deviations.min(axis=1) < 0.9 * SCALE).all()


# Gradient and compilation


def test_values_and_gradients_are_those_of_the_formula():
    model = LinearGaussian()
    images, codes = model.draw(7, seed=0)

    def both(x, z):
        return value_and_gradient(lambda code: model.log_likelihood(x, code), z)

    error = images - codes @ model.weights.T - model.bias
    for function in (both, compiled(both)):
        value, gradient = (to_numpy(found) for found in function(tensor(images), tensor(codes)))
        expected = norm.logpdf(error, scale=model.noise).sum(axis=1)
        np.testing.assert_allclose(value, expected, rtol=1e-5)  # of float32
        np.testing.assert_allclose(gradient, error @ model.weights / model.noise**2, rtol=1e-4, atol=1e-5)


def test_a_row_has_the_gradient_that_it_has_alone():
    def cubes(z):
        return ops.sum(z**3, axis=1)

    z = np.float32(random().standard_normal((5, 3)))
    value, gradient = (to_numpy(found) for found in value_and_gradient(cubes, tensor(z)))
    np.testing.assert_allclose(value, (z**3).sum(axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, 3 * z**2, rtol=1e-5)
    for row in range(5):
        _, alone = value_and_gradient(cubes, tensor(z[row : row + 1]))
        np.testing.assert_allclose(to_numpy(alone)[0], gradient[row], rtol=1e-6)


def test_a_compiled_function_is_the_function_for_every_shape():
    def function(a, b):
        return ops.exp(a) * b, ops.sum(a - b, axis=1)

    fast = compiled(function)
    for count in (2, 5, 2):
        a, b = (tensor(array) for array in random(count).standard_normal((2, count, 3)))
        for found, expected in zip(fast(a, b), function(a, b), strict=True):
            np.testing.assert_allclose(to_numpy(found), to_numpy(expected), rtol=1e-5, atol=1e-6)


def test_the_likelihood_of_a_decoder_is_a_sum_over_its_pixels(plane):
    images, codes = plane.draw(9, seed=1)
    logits = to_numpy(plane.decoder(tensor(codes))).astype("float64")
    expected = bernoulli.logpmf(images, expit(logits)).sum(axis=(1, 2))
    np.testing.assert_allclose(to_numpy(plane.log_likelihood(tensor(images), tensor(codes))), expected, rtol=1e-5)


# Importance weights


@pytest.mark.parametrize("scale", [1.0, SCALE])
def test_with_the_posterior_as_proposal_every_weight_is_the_likelihood(scale):
    model = LinearGaussian(scale)
    images, _ = model.draw(4, seed=0)
    means, deviations = model.tempered(images)
    deviations = np.broadcast_to(deviations, means.shape)
    found = importance_log_weights(model.log_likelihood, model.prior, images, means, deviations, 50, seed=0)
    # float32 in log p(x, z): at most some 30 nats, to six digits
    np.testing.assert_allclose(found, np.tile(model.exact(images), (50, 1)).T, atol=2e-4)
    np.testing.assert_allclose(effective_sample_size(found), 50, rtol=1e-5)


@pytest.mark.parametrize("samples", [1, 7, 13, 20])
def test_samples_in_batches_leave_no_gap(samples, monkeypatch):
    monkeypatch.setattr(likelihood, "ROWS", 7)
    model, steps = LinearGaussian(), []
    images, _ = model.draw(3, seed=0)
    means, deviations = model.tempered(images)
    found = importance_log_weights(
        model.log_likelihood,
        model.prior,
        images,
        means,
        np.broadcast_to(deviations, means.shape),
        samples,
        seed=0,
        progress=lambda text, done, total: steps.append((done, total)),
    )
    assert found.shape == (3, samples)
    np.testing.assert_allclose(found, np.tile(model.exact(images), (samples, 1)).T, atol=2e-4)
    assert steps == [(1, 3), (2, 3), (3, 3)]


def gaussian_kl(means, deviations, other_means, other_deviations):
    variances = (deviations / other_deviations) ** 2
    return 0.5 * (variances + ((means - other_means) / other_deviations) ** 2 - 1 - np.log(variances)).sum(axis=1)


def linear_case():
    """A linear decoder, images, a proposal that is not their posterior, log p(x) and the evidence lower bound."""
    model = LinearGaussian()
    images, _ = model.draw(20, seed=1)
    means, deviations = model.tempered(images)
    shift = 0.6 * random(2).standard_normal(means.shape)
    proposal = means + shift * deviations, np.tile(1.4 * deviations, (20, 1))
    exact = model.exact(images)
    return model, images, proposal, exact, exact - gaussian_kl(*proposal, means, deviations)


def plane_case():
    """The same of the network, all by sums over the grid."""
    model = BernoulliPlane(GaussianPrior(2, SCALE))
    images, _ = model.draw(20, seed=1)
    means, deviations = model.posterior_moments(images)
    proposal = means, 1.3 * deviations
    log_r = norm.logpdf(model.grid, means[:, None], 1.3 * deviations[:, None]).sum(axis=2)
    elbo = model.cell * (np.exp(log_r) * (model.log_joint(images) - log_r)).sum(axis=1)
    return model, images, proposal, model.exact(images), elbo


@pytest.mark.parametrize("case", [linear_case, plane_case])
def test_bounds_rise_from_the_evidence_lower_bound_to_the_likelihood(case):
    model, images, proposal, exact, elbo = case()
    weights = importance_log_weights(model.log_likelihood, model.prior, images, *proposal, 5000, seed=0)
    bounds = {k: importance_weighted_bound(weights, k) for k in (1, 5, 50, 500, 5000)}

    deviation = weights.std(axis=1, ddof=1)
    np.testing.assert_array_less(np.abs(bounds[1] - elbo), 4 * deviation / 5000**0.5)  # standard errors, each image
    assert (elbo < exact - 0.05).all()  # there is something to gain
    assert about(mean_of(bounds[1] - elbo), 0.0)
    assert mean_of(weights.mean(axis=1) - elbo).standard_error < 0.02

    # Each k divides the next, so by Jensen's inequality the bounds rise for each image, not only in expectation.
    for smaller, larger in zip((1, 5, 50, 500), (5, 50, 500, 5000), strict=True):
        assert (bounds[smaller] < bounds[larger]).all()
        assert at_most(mean_of(bounds[larger] - exact), 0.0)
    assert bounds[5].mean() < exact.mean() - 0.01
    # An error of sqrt(m / ESS - 1) / sqrt(m) for each image, 0.01 or 0.02 here, and less for their mean.
    np.testing.assert_allclose(bounds[5000], exact, atol=0.08)
    assert bounds[5000].mean() == pytest.approx(exact.mean(), abs=0.015)
    assert about(mean_of((np.exp(weights - exact[:, None])).mean(axis=1)), 1.0)  # unbiased


def some_log_weights(rows, samples, seed=0, spread=2.0):
    return spread * random(seed).standard_normal((rows, samples)) - 90.0


@pytest.mark.parametrize("k", [1, 2, 3, 7, None])
def test_the_bound_by_a_direct_loop(k):
    weights = some_log_weights(4, 7)
    size, expected = k or 7, []
    for row in weights:
        groups = [row[start : start + size] for start in range(0, 7 - size + 1, size)]
        expected.append(np.mean([np.log(np.mean(np.exp(group))) for group in groups]))
    np.testing.assert_allclose(importance_weighted_bound(weights, k), expected)


def test_equal_weights_count_in_full_and_a_dominant_one_alone():
    weights = np.full((2, 8), -1000.0)
    weights[1, 3] = -800.0
    np.testing.assert_allclose(effective_sample_size(weights), [8.0, 1.0])
    weights[1, 4] = -800.0
    np.testing.assert_allclose(effective_sample_size(weights), [8.0, 2.0])


log_weights = arrays("float64", array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.floats(-50.0, 50.0))
many = settings(deadline=None, max_examples=100, derandomize=True)


@many
@given(log_weights, st.floats(-1000.0, 1000.0))
def test_a_factor_in_every_weight_moves_the_bound_and_not_the_sample_size(weights, shift):
    np.testing.assert_allclose(
        importance_weighted_bound(weights + shift), importance_weighted_bound(weights) + shift, atol=1e-9
    )
    np.testing.assert_allclose(effective_sample_size(weights + shift), effective_sample_size(weights), rtol=1e-8)


@many
@given(log_weights)
def test_sample_size_and_bound_keep_within_theirs(weights):
    size, samples = effective_sample_size(weights), weights.shape[1]
    assert (size >= 1 - 1e-9).all() and (size <= samples + 1e-9).all()
    bound = importance_weighted_bound(weights)
    assert (bound >= importance_weighted_bound(weights, 1) - 1e-9).all()
    assert (bound <= weights.max(axis=1) + 1e-9).all()


# Hamiltonian moves


def moved(model, images, z, beta, step, momentum, uniform, move=None):
    """A move's results as arrays in float64, and the state before it."""
    x, z = tensor(images), tensor(z)
    state = z, *value_and_gradient(lambda code: model.log_likelihood(x, code), z)
    steps = tensor(np.broadcast_to(step, (len(images), 1)))
    move = move or compiled(hamiltonian_move(model.log_likelihood, model.prior))
    found = move(x, *state, tensor(beta), steps, tensor(momentum), tensor(uniform))
    return [[to_numpy(part).astype("float64") for part in parts] for parts in (found, state)]


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_ten_leapfrog_steps_in_closed_form(beta):
    """On a Gaussian the leapfrog is a rotation: cos theta = 1 - (step / deviation)^2 / 2 for each step."""
    model = LinearGaussian()
    images, codes = model.draw(200, seed=0)
    momentum = random(3).standard_normal(codes.shape)
    means, deviations = model.tempered(images, beta)
    step = deviations.min() * random(4).uniform(0.1, 1.7, (200, 1))  # stable below twice the deviation
    (z, _, _, probability), _ = moved(model, images, codes, beta, step, momentum, np.zeros(200))
    angle = likelihood.LEAPFROG_STEPS * np.arccos(1 - 0.5 * (step / deviations) ** 2)
    stretch = deviations / (1 - 0.25 * (step / deviations) ** 2) ** 0.5
    expected = means + (codes - means) * np.cos(angle) + momentum * stretch * np.sin(angle)
    end = momentum * np.cos(angle) - (codes - means) / stretch * np.sin(angle)
    before, after = (
        0.5 * (p**2 + ((q - means) / deviations) ** 2).sum(axis=1) for q, p in ((codes, momentum), (expected, end))
    )
    # float32, with energies up to 100
    np.testing.assert_allclose(z, expected, atol=1e-4)
    np.testing.assert_allclose(probability, np.exp(np.minimum(before - after, 0.0)), atol=2e-4)
    assert np.mean(probability) < 0.95  # the test is not of ones alone


def test_moves_with_a_large_step_leave_the_target_as_it_is():
    model, beta, count = LinearGaussian(), 0.4, 20_000
    images = np.tile(model.draw(1, seed=0)[0], (count, 1))
    mean, deviation = model.tempered(images[:1], beta)
    z = mean + deviation * random(5).standard_normal((count, 3))
    move = compiled(hamiltonian_move(model.log_likelihood, model.prior))
    probabilities = []
    for number in range(5):
        noise = random(10 + number)
        momentum, uniform = noise.standard_normal(z.shape), noise.uniform(size=count)
        (z, _, _, probability), _ = moved(model, images, z, beta, 1.3 * deviation.min(), momentum, uniform, move)
        probabilities.append(probability.mean())
    assert 0.5 < np.mean(probabilities) < 0.9  # rejections matter
    standard = (z - mean) / deviation
    # four standard errors of moments of a Gaussian: 1, 2 and 96 are the variances of x, x^2 and x^4
    np.testing.assert_allclose(standard.mean(axis=0), 0.0, atol=4 * count**-0.5)
    np.testing.assert_allclose((standard**2).mean(axis=0), 1.0, atol=4 * (2 / count) ** 0.5)
    np.testing.assert_allclose((standard**4).mean(axis=0), 3.0, atol=4 * (96 / count) ** 0.5)
    off_diagonal = np.cov(standard.T)[np.triu_indices(3, 1)]
    np.testing.assert_allclose(off_diagonal, 0.0, atol=4 * count**-0.5)


def test_the_energy_error_shrinks_as_the_square_of_the_step(plane, monkeypatch):
    model = LinearGaussian()
    images, codes = model.draw(300, seed=0)
    momentum, errors = random(3).standard_normal(codes.shape), []
    for step, count in ((0.2, 10), (0.1, 20)):  # over the same time
        monkeypatch.setattr(likelihood, "LEAPFROG_STEPS", count)
        (*_, probability), _ = moved(model, images, codes, 1.0, step, momentum, np.zeros(300))
        errors.append(-np.log(probability).mean())
    assert 0.001 < errors[1] < 0.05
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.1)  # 4 up to a term in step^4


def test_a_rejected_move_changes_nothing_and_an_accepted_one_keeps_its_own_numbers(plane):
    images, codes = plane.draw(400, seed=2)
    momentum, uniform = random(3).standard_normal(codes.shape), random(4).uniform(size=400)
    after, before = moved(plane, images, codes, 0.8, 0.7, momentum, uniform)
    accepted = uniform < after[3]
    assert 50 < accepted.sum() < 350
    for new, old in zip(after[:3], before, strict=True):
        np.testing.assert_array_equal(new[~accepted], old[~accepted])
    assert (after[0][accepted] != before[0][accepted]).all()
    z, fit, gradient, _ = after
    value, slope = value_and_gradient(lambda code: plane.log_likelihood(tensor(images), code), tensor(z))
    np.testing.assert_allclose(fit, to_numpy(value), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient, to_numpy(slope), rtol=1e-3, atol=1e-4)


def test_a_trajectory_that_overflows_is_rejected():
    model = LinearGaussian()
    images, codes = model.draw(5, seed=0)
    after, before = moved(model, images, codes, 1.0, 1e20, np.ones((5, 3)), np.zeros(5))
    np.testing.assert_array_equal(after[3], 0.0)
    for new, old in zip(after[:3], before, strict=True):
        np.testing.assert_array_equal(new, old)


# Annealed importance sampling


@many
@given(st.integers(1, 500))
def test_the_schedule_is_a_sigmoid_from_0_to_1(temperatures):
    betas = sigmoid_schedule(temperatures)
    assert betas.shape == (temperatures + 1,)
    assert betas[0] == 0.0 and betas[-1] == 1.0
    widths = np.diff(betas)
    assert (widths > 0).all()
    np.testing.assert_allclose(widths, widths[::-1], rtol=1e-6)
    times = np.arange(temperatures + 1) / temperatures
    expected = (expit(4 * (2 * times - 1)) - expit(-4)) / (expit(4) - expit(-4))
    np.testing.assert_allclose(betas, expected, atol=1e-12)


CHAINS = 16


def annealing(model, images, codes, many=150, few=4, progress=None):
    """Runs with few and many temperatures, in both directions."""
    sampling = AnnealedImportanceSampling(model.log_likelihood, model.prior, images, CHAINS, seed=3, progress=progress)
    return SimpleNamespace(
        sampling=sampling,
        images=images,
        exact=model.exact(images),
        forward=sampling.forward(many),
        reverse=sampling.reverse(many, codes),
        short_forward=sampling.forward(few),
        short_reverse=sampling.reverse(few, codes),
    )


@pytest.fixture(scope="module", params=["linear", "plane"])
def annealed(request, plane):
    model, count = (LinearGaussian(noise=1.2), 300) if request.param == "linear" else (plane, 150)
    return annealing(model, *model.draw(count, seed=5))


def test_annealing_finds_the_likelihood(annealed):
    lower = annealed.forward.lower()
    assert lower.mean() == pytest.approx(annealed.exact.mean(), abs=0.05)
    # One log weight has a deviation of 0.3 or 0.4 nats; the mean of CHAINS of them less.
    np.testing.assert_allclose(lower, annealed.exact, atol=0.5)
    assert 0.55 < annealed.forward.acceptance < 0.75
    assert 0.55 < annealed.reverse.acceptance < 0.75


def test_the_likelihood_lies_between_forward_and_reverse(annealed):
    for forward, reverse in (
        (annealed.forward, annealed.reverse),
        (annealed.short_forward, annealed.short_reverse),
    ):
        assert at_most(mean_of(forward.lower() - annealed.exact), 0.0)
        assert at_most(mean_of(annealed.exact - reverse.upper()), 0.0)


def test_more_temperatures_narrow_the_interval(annealed):
    wide = mean_of(annealed.short_reverse.upper() - annealed.short_forward.lower())
    narrow = mean_of(annealed.reverse.upper() - annealed.forward.lower())
    assert abs(narrow.value) < 0.05
    assert wide.value > 5 * abs(narrow.value) + 4 * wide.standard_error
    assert wide.value > 0.15


@pytest.mark.parametrize("temperatures", [1, 3, 5])
def test_weights_are_unbiased_however_few_the_temperatures(annealed, temperatures):
    found = annealed.sampling.forward(temperatures)
    assert found.log_weights.shape == (len(annealed.images), CHAINS)
    ratios = np.exp(found.log_weights - annealed.exact[:, None])
    # Given the step sizes all weights are independent and of mean 1.
    assert about(mean_of(ratios.ravel()), 1.0)
    assert mean_of(ratios.ravel()).standard_error < 0.1  # 0.02 to 0.07: a few large weights decide
    if temperatures == 1:
        assert found.acceptance == 1.0  # no temperature between the ends, so no move


def test_inverse_weights_of_reverse_chains_are_unbiased(annealed):
    ratios = np.exp(annealed.exact[:, None] - annealed.reverse.log_weights)
    assert about(mean_of(ratios.mean(axis=1)), 1.0)  # chains of one image start from the same code
    assert mean_of(ratios.mean(axis=1)).standard_error < 0.05


def test_annealing_from_a_prior_with_modes():
    model = BernoulliPlane(MixturePrior(2, SCALE))
    images, codes = model.draw(150, seed=6)
    calls = []
    found = annealing(model, images, codes, many=300, progress=lambda *call: calls.append(call))
    lower, upper = found.forward.lower(), found.reverse.upper()
    assert lower.mean() == pytest.approx(found.exact.mean(), abs=0.05)
    assert upper.mean() == pytest.approx(found.exact.mean(), abs=0.2)  # chains that start alike and rarely change mode
    assert at_most(mean_of(lower - found.exact), 0.0) and at_most(mean_of(found.exact - upper), 0.0)
    assert 0.55 < found.forward.acceptance < 0.75
    runs = {text: [call[1:] for call in calls if call[0] == text] for text, *_ in calls}
    pilot = likelihood.PILOT_TEMPERATURES + 1  # once, for all four runs
    assert runs["annealing, step sizes"] == [(done, pilot) for done in range(1, pilot + 1)]
    for name in ("forward", "reverse"):
        assert runs[f"annealing, {name}"] == [(done, total) for total in (300, 4) for done in range(1, total + 1)]


# Parzen windows


def pixels(count, seed, shape=(3, 4)):
    return random(seed).random((count, *shape), dtype="float32")


@pytest.mark.parametrize("sigma", [0.05, 0.3, 2.0])
def test_parzen_windows_by_a_double_loop(sigma):
    samples, images = pixels(9, 0).astype("float64"), pixels(5, 1).astype("float64")
    expected = [logsumexp([norm.logpdf(x, y, sigma).sum() for y in samples]) - np.log(9) for x in images]
    np.testing.assert_allclose(parzen_log_likelihood(samples, images, sigma), expected, rtol=1e-9)


def near(samples, deviation, seed=2):
    return samples + deviation * random(seed).standard_normal(samples.shape)


@pytest.mark.parametrize("grid", [None, [0.1, 0.15, 0.2, 0.25, 0.5]])
def test_sigma_is_the_best_of_its_grid(grid):
    samples = pixels(40, 0)
    images = near(samples, 0.2)
    searched = np.geomspace(0.05, 1.0, 31) if grid is None else grid
    found = [parzen_log_likelihood(samples, images, sigma).mean() for sigma in searched]
    assert 0 < np.argmax(found) < len(searched) - 1
    assert parzen_sigma(samples, images, grid) == searched[np.argmax(found)]
    assert parzen_sigma(samples, images, grid) == pytest.approx(0.2, rel=0.2)  # the deviation that the images have


def test_no_sigma_on_the_edge():
    samples = pixels(40, 0)
    with pytest.raises(ValueError, match=r"0\.05 is the edge"):
        parzen_sigma(samples, samples)
    with pytest.raises(ValueError, match=r"0\.1 is the edge"):
        parzen_sigma(samples, near(samples, 0.2), grid=[0.01, 0.05, 0.1])


def test_squared_distances_between_images_of_any_shape():
    samples, images = pixels(6, 0), pixels(4, 1)
    expected = cdist(images.reshape(4, -1), samples.reshape(6, -1), "sqeuclidean")
    found = squared_distances(samples, images)
    assert found.dtype == "float64"
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_distances_of_near_duplicates_in_float32_keep_their_digits():
    samples = pixels(20, 0, (28, 28))
    images = np.float32(near(samples, 1e-4))
    flat = (array.reshape(20, -1).astype("float64") for array in (images, samples))
    # float64 with |x|^2 up to 300, where float32 would err by 1e-5: the whole distance of two neighbours
    np.testing.assert_allclose(squared_distances(samples, images), cdist(*flat, "sqeuclidean"), atol=1e-11)
    np.testing.assert_allclose(np.diag(squared_distances(samples, samples)), 0.0, atol=1e-11)
    assert (squared_distances(samples, samples) >= 0.0).all()
