"""common/evaluation/annealing.py: does the error of log p(x) cover what annealing lacks, on images of any kind?

Against a linear decoder, whose log p(x) is exact, and a network with a plane for its code, by sums over a fine grid.
"""

from dataclasses import replace

from benchmarks.error_bars import Linear
from common import networks
from common.evaluation import annealing
from common.evaluation.annealing import Checked, checked, fitted, resampled, shrunk_factor, student_log_density
from common.evaluation.likelihood import (
    AnnealedImportanceSampling,
    effective_sample_size,
    importance_weighted_bound,
    of_decoder,
)
from common.model import to_numpy
from common.priors import GaussianPrior

import numpy as np
import pytest
from keras import ops
from scipy.special import expit, logsumexp
from scipy.stats import multivariate_t, norm


def random(seed=0):
    return np.random.default_rng(seed)


def tensor(array):
    return ops.convert_to_tensor(np.asarray(array, "float32"))


class Plane:
    """Bernoulli pixels of a small network, with the prior N(0, 5^2 I) in the plane."""

    def __init__(self, shape=(8, 8), gain=1.5, points=801):
        self.prior, self.shape = GaussianPrior(2, 5.0), shape
        self.decoder = networks.decoder(2, shape, (16,), random(0))
        for number, variable in enumerate(self.decoder.trainable_variables):  # the same on every backend
            variable.assign(np.float32(gain * random(number).standard_normal(variable.shape)))
        self.log_likelihood = of_decoder(self.decoder)
        axis = np.linspace(-30.0, 30.0, points)
        self.cell, self.grid = (axis[1] - axis[0]) ** 2, np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)

    def draw(self, count, seed):
        codes = to_numpy(self.prior.sample(count, seed))
        chances = expit(to_numpy(self.decoder(tensor(codes))))
        return np.float32(random(seed).random(chances.shape) < chances), codes

    def foreign(self, count, seed):
        """Images of coin flips, which the model would hardly make."""
        return np.float32(random([9, seed]).random((count, *self.shape)) < 0.5)

    def exact(self, images):
        parts, rows = [], images.reshape(len(images), -1).astype("float64")
        for codes in np.array_split(self.grid, 50):
            logits = to_numpy(self.decoder(tensor(codes))).astype("float64").reshape(len(codes), -1)
            log_prior = norm.logpdf(codes, scale=5.0).sum(axis=1)
            parts.append(logsumexp(rows @ logits.T - np.logaddexp(0.0, logits).sum(axis=1) + log_prior, axis=1))
        return logsumexp(parts, axis=0) + np.log(self.cell)


def sampler(model, images, chains=8, seed=0):
    return AnnealedImportanceSampling(model.log_likelihood, model.prior, images, chains, seed)


def test_the_error_covers_what_annealing_lacks_where_the_gap_does_not():
    """Foreign images: annealing lacks nats that the gap on the model's own images does not show."""
    model, count, temperatures = Plane(), 12, 100
    (own, codes), foreign = model.draw(count, 3), model.foreign(count, 1)
    sampling = sampler(model, np.concatenate([own, foreign]))  # one sampler, so that it is compiled once
    found = sampling.forward(temperatures)
    upper = sampling.reverse(temperatures, np.concatenate([codes, np.zeros_like(codes)])).upper()
    result, exact = checked(sampling, found, temperatures), model.exact(np.concatenate([own, foreign]))
    lacking, gap = (exact - found.lower())[count:], (upper - found.lower())[:count].mean()
    left, errors = np.abs(exact - result.estimates), result.errors
    assert lacking.max() > gap + 1.5  # the gap is no bound on these
    assert left.max() < np.log(2.0) + 0.2  # a flagged estimate is the log of a mean of two: at most log 2 too low
    assert np.median(left) < 0.05
    assert (left <= 1.96 * errors).mean() > 0.85
    assert abs((exact - result.estimates)[count:].mean()) < 2 * annealing.error_of_mean(result.disagreement[count:])
    assert (result.temperatures[result.flagged] == 4 * temperatures).all()


@pytest.fixture(scope="module")
def linear():
    """A linear decoder, 32 images foreign to it, and their chains with few temperatures."""
    model, images = Linear(), 6.0 * random(4).standard_normal((32, 5))
    sampling = sampler(model, images)
    return model.exact(images), sampling, sampling.forward(40)


def test_the_check_is_exact_where_the_posterior_is_a_gaussian(linear):
    exact, sampling, found = linear
    result = checked(sampling, found, 40)
    assert (found.lower() - exact).std() > 0.3  # few chains and temperatures are noisy
    # weights of a Student t with 10 degrees of freedom on a Gaussian, fitted to some hundred draws
    assert (result.effective_draws > 0.5 * annealing.DRAWS).all()
    np.testing.assert_allclose(result.weighted, exact, atol=0.15)  # four times sqrt((m / n - 1) / m) at half of m
    np.testing.assert_array_less(np.abs(result.estimates - exact)[~result.flagged], 0.15)
    assert abs((result.estimates - exact).mean()) < 2 * result.error_of_mean() < 1.0
    assert (np.abs(result.estimates - exact) <= 1.96 * result.errors).mean() > 0.85


@pytest.mark.parametrize("shift", [-4.0, 4.0])
def test_images_that_disagree_are_annealed_again(linear, shift):
    """Chains of which all weights are wrong by a factor: doubled temperatures replace the estimates."""
    exact, sampling, found = linear
    wrong = np.arange(32) % 8 == 0
    doubtful = replace(found, log_weights=found.log_weights + shift * wrong[:, None])
    result = checked(sampling, doubtful, 40)
    assert (result.temperatures[wrong] > 40).all()
    assert (result.chains[wrong] >= 8).all()
    np.testing.assert_allclose(result.annealed[wrong], exact[wrong], atol=2.0)


def test_an_image_whose_estimates_never_agree_is_flagged(linear, monkeypatch):
    _, sampling, found = linear
    monkeypatch.setattr(annealing, "ROUNDS", 0)
    result = checked(sampling, replace(found, log_weights=found.log_weights + 30.0), 40)
    assert result.flagged.all() and result.error_of_mean() > 20.0 and (result.errors > 20.0).all()


def test_the_check_uses_no_random_number_of_the_chains(linear):
    _, sampling, _ = linear
    one, other = (sampler(Linear(), to_numpy(sampling.rows)[::8]) for _ in range(2))
    first = one.forward(5)
    checked(one, first, 5)
    np.testing.assert_array_equal(other.forward(5).log_weights, first.log_weights)
    np.testing.assert_array_equal(other.forward(5).log_weights, one.forward(5).log_weights)


def some(annealed, weighted, chains=(4.0, 4.0), draws=(500.0, 500.0)):
    return Checked(
        *(np.array(each, "float64") for each in (annealed, weighted, chains, draws)), np.full(2, 8), np.full(2, 100)
    )


def test_which_estimate_is_reported_and_which_image_is_flagged():
    result = some([-90.0, -90.0], [-90.3, -93.0])
    np.testing.assert_array_equal(result.flagged, [False, True])
    np.testing.assert_allclose(result.estimates, [-90.3, np.log((1 + np.exp(-3.0)) / 2) - 90.0])
    np.testing.assert_allclose(result.errors, np.sqrt(np.array([0.3, 3.0]) ** 2 + 1 / 500 - 1 / 1000))
    np.testing.assert_allclose(result.error_of_mean(), np.hypot(1.65, 1.35))  # mean, and sd / sqrt(2), of 0.3 and 3
    more = some([-90.0, -90.0], [-90.3, np.nan], draws=(2.0, 500.0))  # the chains have more effective weights
    np.testing.assert_array_equal(more.flagged, [False, True])
    assert more.estimates[0] == -90.0
    noisy = some([-90.0, -90.0], [-91.0, -91.0], chains=(1.0, 7.9))  # one effective chain of 8: an error of 0.9
    np.testing.assert_array_equal(noisy.flagged, [False, True])


def test_groups_are_joined_and_images_replaced():
    one, other = some([-1.0, -2.0], [-1.0, -2.0]), some([-3.0, -4.0], [-3.0, -4.0])
    np.testing.assert_array_equal(annealing.of_groups([one, other]).annealed, [-1.0, -2.0, -3.0, -4.0])
    np.testing.assert_array_equal(one.replaced(np.array([1, 0]), other).weighted, [-4.0, -3.0])
    np.testing.assert_array_equal(one.weighted, [-1.0, -2.0])


# The proposal


@pytest.mark.parametrize("freedom", [1, annealing.FREEDOM])
def test_the_density_of_the_student_t_is_scipys(freedom):
    factor = np.linalg.cholesky(np.cov(random(2).standard_normal((3, 9))))
    points, centres = random(3).standard_normal((7, 3)), random(4).standard_normal((2, 3))
    expected = [multivariate_t(each, factor @ factor.T, freedom).logpdf(points) for each in centres]
    np.testing.assert_allclose(student_log_density(points, centres, factor, freedom), np.transpose(expected))


@pytest.mark.parametrize(("chains", "apart"), [(1, 0.0), (4, 0.0), (4, 3.0)])
def test_weights_of_the_proposal_are_unbiased(chains, apart):
    """The mean weight of a density is 1, whether the chains are in one place or in several."""
    draws = random(5).standard_normal((chains, 30, 2)) + apart * np.arange(chains)[:, None, None]
    codes, log_density = fitted(draws, 1e-3, 20_000, random(6))
    target = norm.logpdf(codes, [apart, apart], [1.2, 0.8]).sum(axis=1)
    ratios = np.exp(target - log_density)
    assert abs(ratios.mean() - 1.0) < 4 * ratios.std() / len(ratios) ** 0.5 < 0.1


def test_the_covariance_of_many_draws_is_kept_and_that_of_few_is_shrunk():
    covariance = np.array([[4.0, 1.8, 0.0], [1.8, 1.0, 0.0], [0.0, 0.0, 1e-10]])
    many = random(7).multivariate_normal(np.zeros(3), covariance, 100_000)
    found = shrunk_factor(many, least=0.01)
    np.testing.assert_allclose((found @ found.T)[:2, :2], covariance[:2, :2], rtol=0.02)  # 4 times sqrt(2 / n)
    assert found[2, 2] == pytest.approx(0.01, rel=0.01)  # not narrower than the least deviation
    few = shrunk_factor(many[:3].repeat(3, axis=1) + 0.01 * random(8).standard_normal((3, 9)), 0.01)
    assert (few.diagonal() > 0).all()  # 3 draws in 9 dimensions


def test_chains_are_drawn_by_their_weights():
    log_weights = np.log([[0.5, 0.25, 0.25, 1e-300], [1e-300, 1e-300, 1.0, 1e-300], [1.0, 1.0, 1.0, 1.0]])
    log_weights[2] = np.nan  # all lost: each as often as the others
    counts = [np.bincount(row, minlength=4) for row in resampled(log_weights, random(9))]
    np.testing.assert_array_equal(counts, [[2, 1, 1, 0], [0, 0, 4, 0], [1, 1, 1, 1]])


def test_the_effective_sample_size_cannot_see_mass_that_no_draw_finds():
    """Two equal modes, of which the proposal covers one: all weights are equal, and half of the mass is missing."""
    draws = random(10).standard_normal(1000)
    log_target = np.logaddexp(norm.logpdf(draws), norm.logpdf(draws, 60.0)) - np.log(2.0)
    log_weights = (log_target - norm.logpdf(draws))[None]
    np.testing.assert_allclose(effective_sample_size(log_weights), 1000.0)
    np.testing.assert_allclose(importance_weighted_bound(log_weights), -np.log(2.0))


@pytest.mark.parametrize("rank", [0, 1])
def test_draws_in_a_plane_have_a_proposal_too(rank):
    """Chains that hardly moved."""
    deviations = rank * np.outer([1.0, -1.0], [1.0, 2.0, 3.0])
    factor = annealing.shrunk_factor(deviations, 1e-3)
    assert np.isfinite(factor).all() and (factor.diagonal() > 0).all()
    np.testing.assert_allclose((factor @ factor.T).diagonal(), np.maximum(deviations.std(axis=0), 1e-3) ** 2)
