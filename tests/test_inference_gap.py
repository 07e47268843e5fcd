"""experiments/comparison/inference_gap.py, iwae.py and common/evaluation/posterior_gap.py, against closed forms."""

import itertools
import json

import aae_deterministic
import vae_baseline
from common import report
from common.binarisation import binarise
from common.evaluation import annealing, posterior_gap
from common.evaluation.annealing import Checked
from common.evaluation.likelihood import importance_weighted_bound
from common.evaluation.posterior_gap import DRAWS, Gaussians, PosteriorGaussians
from common.model import gaussian_kl, to_numpy
from common.numbers import Absent
from common.priors import GaussianPrior
from common.run import load_run
from experiments.comparison import inference_gap, iwae, models

import helpers
import keras
import numpy as np
import pytest
import small_runs
from keras import ops
from scipy.special import expit, logsumexp
from scipy.stats import multivariate_normal

IMAGES, PIXELS, DIMENSIONS, DEVIATION = 12, 7, 3, 0.4


# Factor analysis: x = W z + b + noise, whose posterior is a full Gaussian with a known density


@pytest.fixture(scope="module")
def linear():
    """A linear decoder with images: weights, images, log_likelihood, exact log p(x), posterior means and precision."""
    random = np.random.default_rng(5)
    weights, offset = random.standard_normal((PIXELS, DIMENSIONS)), random.standard_normal(PIXELS)
    weights += 1.5 * random.standard_normal((PIXELS, 1))  # columns that are alike: codes that depend on each other
    images = (random.standard_normal((IMAGES, DIMENSIONS)) @ weights.T + offset).astype("float32")
    images += (DEVIATION * random.standard_normal(images.shape)).astype("float32")
    covariance = weights @ weights.T + DEVIATION**2 * np.eye(PIXELS)
    exact = multivariate_normal(offset, covariance).logpdf(images)
    precision = np.eye(DIMENSIONS) + weights.T @ weights / DEVIATION**2
    means = (images - offset) @ weights / DEVIATION**2 @ np.linalg.inv(precision)
    matrix, shift = (ops.convert_to_tensor(array, "float32") for array in (weights.T, offset))

    def log_likelihood(x, z):
        apart = (x - ops.matmul(z, matrix) - shift) / DEVIATION
        return -0.5 * ops.sum(ops.square(apart), axis=1) - PIXELS * np.log(DEVIATION * np.sqrt(2 * np.pi))

    return images, log_likelihood, exact, means, precision


@pytest.fixture(scope="module")
def fitted(linear):
    """The fitted Gaussians, full and diagonal, from a start that is far off, too wide in z1 and too narrow in z2."""
    images, log_likelihood, *_ = linear
    fitting = PosteriorGaussians(log_likelihood, GaussianPrior(DIMENSIONS), images)
    start = Gaussians.diagonal(np.full((IMAGES, DIMENSIONS), 1.5), np.tile([1.0, 0.01, 0.1], (IMAGES, 1)))
    full = fitting.fit(start, True, 300)
    return fitting, full, fitting.fit(start, False, 400)


def test_the_best_full_gaussian_is_the_exact_posterior_and_its_elbo_is_log_p(linear, fitted):
    _, _, exact, means, precision = linear
    fitting, full, _ = fitted
    np.testing.assert_allclose(full.means, means, atol=1e-3)
    covariances = full.factors @ np.swapaxes(full.factors, 1, 2)
    np.testing.assert_allclose(covariances, np.tile(np.linalg.inv(precision), (IMAGES, 1, 1)), atol=1e-3)
    log_weights = fitting.log_weights(full, 40)
    assert log_weights.shape == (IMAGES, 40)
    # All weights are alike, up to float32: there is no noise left to average.
    np.testing.assert_allclose(log_weights, np.tile(exact[:, None], 40), atol=0.01)


def test_the_best_diagonal_gaussian_has_the_diagonal_of_the_exact_precision_and_the_known_gap(linear, fitted):
    _, _, exact, means, precision = linear
    fitting, _, diagonal = fitted
    # Eight draws a step leave noise of some hundredths of a deviation.
    deviations = 1 / np.sqrt(precision.diagonal())
    assert np.abs((diagonal.means - means) / deviations).max() < 0.15
    found = np.einsum("nii->ni", diagonal.factors)
    assert not (diagonal.factors - found[:, :, None] * np.eye(DIMENSIONS)).any()
    np.testing.assert_allclose(found, np.tile(deviations, (IMAGES, 1)), rtol=0.15)
    # KL(q || p(z|x)) of the optimum: half of log of the product of the diagonal over the determinant.
    gap = 0.5 * (np.log(precision.diagonal()).sum() - np.linalg.slogdet(precision)[1])
    assert gap > 0.3
    log_weights = fitting.log_weights(diagonal, 4000)
    error = log_weights.std() / np.sqrt(log_weights.size)
    assert (exact[:, None] - log_weights).mean() == pytest.approx(gap, abs=4 * error + 0.005)
    # The bound of many draws lies between the two.
    assert 0 < (exact - importance_weighted_bound(log_weights)).mean() < 0.2 * gap


def test_the_independent_gaussians_of_the_exact_posterior_are_its_best_diagonal_approximation(linear):
    _, _, _, means, precision = linear
    factor = np.linalg.cholesky(np.linalg.inv(precision))
    independent = Gaussians(means, np.tile(factor, (IMAGES, 1, 1))).independent()
    np.testing.assert_array_equal(independent.means, means)
    expected = np.diag(1 / np.sqrt(precision.diagonal()))
    np.testing.assert_allclose(independent.factors, np.tile(expected, (IMAGES, 1, 1)), rtol=1e-9, atol=1e-12)


def test_log_density_and_codes_are_those_of_the_gaussian():
    random = np.random.default_rng(0)
    factors = np.tril(random.standard_normal((2, 3, 3)))
    factors[:, range(3), range(3)] = np.abs(factors[:, range(3), range(3)]) + 0.1
    gaussians, noise = Gaussians(random.standard_normal((2, 3)), factors), random.standard_normal((2, DRAWS, 3))
    codes = gaussians.codes(noise)
    for image in range(2):
        expected = multivariate_normal(gaussians.means[image], factors[image] @ factors[image].T).logpdf(codes[image])
        np.testing.assert_allclose(gaussians.log_prob(noise)[image], expected, rtol=1e-9)


# IWAE


SHAPE = (4, 3)


def built(samples, **changes):
    config = iwae.Config(latent_dim=2, hidden_units=(5,), samples=samples, seed=3, **changes)
    return iwae.build(config, SHAPE)


@pytest.fixture(scope="module")
def x():
    return binarise(np.random.default_rng(1).random((6, *SHAPE)).astype("float32"), "dynamic", np.random.default_rng(2))


def numpy_log_weights(weights, x, noises, beta=1.0):
    """log w in float64, (samples, batch): both networks with one layer of ReLU units, written out."""
    encoder, decoder = weights
    flat = x.reshape(len(x), -1).astype("float64")
    outputs = np.maximum(flat @ encoder[0] + encoder[1], 0) @ encoder[2] + encoder[3]
    mean, log_var = np.split(outputs, 2, axis=1)
    z = mean + np.exp(0.5 * log_var) * noises
    logits = np.maximum(z @ decoder[0] + decoder[1], 0) @ decoder[2] + decoder[3]
    log_likelihood = (flat * np.log(expit(logits)) + (1 - flat) * np.log(expit(-logits))).sum(axis=2)
    log_prior = -0.5 * (z**2 + np.log(2 * np.pi)).sum(axis=2)
    log_q = -0.5 * (noises**2 + log_var + np.log(2 * np.pi)).sum(axis=2)
    return log_likelihood + beta * (log_prior - log_q)


def float64_weights(model):
    """The weights of both networks, in float64."""
    networks = model.networks.values()
    return [[to_numpy(variable).astype("float64") for variable in each.trainable_variables] for each in networks]


def numpy_loss(weights, x, noises, beta=1.0):
    log_weights = numpy_log_weights(weights, x, noises, beta)
    return -(logsumexp(log_weights, axis=0) - np.log(len(log_weights))).mean()


def with_noises(model, noises):
    """The model with these noises, (samples, batch, latent_dim): the first for `infer`, the rest for the others."""
    given = [noises[0], *[noises[1:].reshape(-1, noises.shape[2])] * (len(noises) > 1)]
    order = itertools.cycle(given)

    def noise(shape):
        array = next(order)
        assert tuple(map(int, shape)) == array.shape
        return ops.convert_to_tensor(array, "float32")

    model.noise = noise
    return model


@pytest.mark.parametrize(("samples", "beta"), [(1, 1.0), (4, 1.0), (4, 0.5)])
def test_loss_and_gradient_of_iwae_are_those_of_float64(x, samples, beta):
    noises = np.random.default_rng(4).standard_normal((samples, len(x), 2))
    model = with_noises(built(samples, beta=beta), noises)
    tensor = ops.convert_to_tensor(x)
    weights = float64_weights(model)

    def loss():
        return model.objective(tensor, model(tensor))["negative_bound"]

    expected = numpy_loss(weights, x, noises, beta)
    assert float(to_numpy(loss())) == pytest.approx(expected, rel=1e-5)
    found = helpers.gradients(loss, [v for net in model.networks.values() for v in net.trainable_variables])
    arrays, random, step = [array for net in weights for array in net], np.random.default_rng(0), 1e-6
    for array, gradient in zip(arrays, found, strict=True):
        for index in random.choice(array.size, min(array.size, 5), replace=False):
            place, values = np.unravel_index(index, array.shape), []
            for sign in (1, -1):
                array[place] += sign * step
                values.append(numpy_loss(weights, x, noises, beta))
                array[place] -= sign * step
            numeric = (values[0] - values[1]) / (2 * step)
            assert gradient[place] == pytest.approx(numeric, rel=1e-3, abs=1e-5)


def test_one_draw_is_the_vae_in_expectation_and_more_draws_raise_the_bound(x):
    noises, tensor = np.random.default_rng(6).standard_normal((4000, len(x), 2)), ops.convert_to_tensor(x)
    weights = float64_weights(built(1))
    log_weights, log_likelihoods = (numpy_log_weights(weights, x, noises, beta) for beta in (1.0, 0.0))
    vae = with_noises(
        vae_baseline.build(vae_baseline.Config(latent_dim=2, hidden_units=(5,), seed=3), SHAPE), noises[:1]
    )
    outputs = vae(tensor)
    kl = to_numpy(gaussian_kl(outputs["mean"], outputs["log_var"])).mean()  # closed form
    terms = sum(float(to_numpy(term)) for term in vae.objective(tensor, outputs).values())
    assert terms == pytest.approx(kl - log_likelihoods[0].mean(), rel=1e-5)  # both models have the same weights
    ratios = (log_weights - log_likelihoods).mean(axis=1)
    assert ratios.mean() == pytest.approx(-kl, abs=4 * ratios.std() / len(ratios) ** 0.5)
    # Of the same draws, more in one bound raise it: here by nats, since the networks are untrained.
    losses = []
    for samples in (1, 2, 8):
        groups = noises[:8].reshape(-1, samples, len(x), 2)
        bounds = []
        for group in groups:
            model = with_noises(built(samples), group)
            bounds.append(to_numpy(model.objective(tensor, model(tensor))["negative_bound"]))
        losses.append(np.mean(bounds))
    assert losses[0] > losses[1] + 0.1 > losses[2] + 0.2


# The experiment


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """The experiment in small, with its Config, metrics and folder."""
    folder = tmp_path_factory.mktemp("inference_gap")
    config = inference_gap.Config(
        data=small_runs.tiny_images(folder / "tiny.npz"),
        results=str(folder / "results"),
        latent_dim=2,
        hidden_units=(8,),
        updates=2,
        iwae_samples=(3,),
        images=4,
        chains=2,
        temperatures=4,
        steps=3,
        samples=16,
        seeds=(1,),
    )
    few = {"VAE": models.models()["VAE"], "Deterministic AAE": models.models()["Deterministic AAE"]}
    with pytest.MonkeyPatch.context() as patch:
        small_runs.uncompiled(patch)
        small_runs.quicken(patch)
        small_runs.short_annealing(patch)
        if keras.backend.backend() == "tensorflow":
            patch.setattr(posterior_gap, "compiled", lambda function: function)
        patch.setattr(inference_gap, "models", lambda: few)
        for part in ("measure", "figures"):  # of the runs; the experiment measures its own
            patch.setattr(report, part, lambda *_: {})
        metrics = inference_gap.main(config)
        yield config, metrics, folder / "results" / "comparison_inference_gap" / "default"


def test_gaps_add_up_and_are_means_of_the_images(experiment):
    _, metrics, folder = experiment
    assert list(metrics) == ["VAE", "Deterministic AAE", "IWAE, 3 draws"]
    runs = json.loads((folder / "runs.json").read_text())
    assert len(runs) == 3
    for name, run in runs.items():
        images = {key: np.array(values) for key, values in run["nats_of_images"].items()}
        gap = images["log_likelihood"] - images["diagonal"]
        assert run["approximation_gap_nats"] == pytest.approx(gap.mean(), abs=2e-3)
        assert run["approximation_gap_nats_standard_error"] == pytest.approx(gap.std(ddof=1) / 2, abs=2e-3)
        assert run["annealed_log_likelihood_nats"] - run["full_elbo_nats"] == pytest.approx(
            run["full_approximation_gap_nats"], abs=1e-6
        )
        if "AAE" in name:
            assert run["amortisation_gap_nats"] is None and "point" in run["null_because"]["inference_gap_nats"]
            continue
        assert run["approximation_gap_nats"] + run["amortisation_gap_nats"] == pytest.approx(run["inference_gap_nats"])
        assert run["amortised_elbo_nats"] == pytest.approx(images["amortised"].mean(), abs=2e-3)


def test_log_p_is_compared_with_the_vae_of_the_same_seed_image_by_image(experiment):
    _, metrics, folder = experiment
    runs = json.loads((folder / "runs.json").read_text())
    titles = "IWAE, 3 draws", "VAE"
    apart = np.subtract(*(runs[f"{title}, seed 1"]["nats_of_images"]["log_likelihood"] for title in titles))
    found = metrics["IWAE, 3 draws"]
    assert found["annealed_minus_vae_nats"] == pytest.approx(apart.mean(), abs=1e-6)
    assert found["annealed_minus_vae_nats_standard_error"] == pytest.approx(apart.std(ddof=1) / 2, abs=1e-6)
    assert metrics["VAE"]["annealed_minus_vae_nats"] is None
    assert (folder / "gaps.png").stat().st_size and "IWAE, 3 draws" in (folder / "table.md").read_text()


def test_a_trained_iwae_is_kept_loaded_and_not_trained_again(experiment, monkeypatch):
    config, _, folder = experiment
    (run,) = (folder.parents[1] / models.RUNS / iwae.MODULE).glob("*samples-3-seed-1")
    model = load_run(run)
    assert (model.samples, model.title) == (3, "IWAE")
    assert model.encode(np.zeros((2, 8, 6))).shape == (2, 2)
    (folder / "runs.json").unlink()
    for script in (iwae, vae_baseline, aae_deterministic):
        monkeypatch.setattr(script, "main", lambda config: pytest.fail("trained again"))
    images = {"log_likelihood": np.array([1.0, 2.0]), "full": np.zeros(2), "diagonal": np.zeros(2)}
    monkeypatch.setattr(
        inference_gap,
        "gaps",
        lambda *_: (
            inference_gap.differences(images, Absent("r"))
            | {"nats_of_images": {key: values.tolist() for key, values in images.items()}}
        ),
    )
    monkeypatch.setattr(inference_gap, "active_units", lambda *_: 2)
    assert inference_gap.main(config)["VAE"]["approximation_gap_nats"] == 1.5


def test_the_proposal_with_more_effective_draws_checks_the_chains(monkeypatch):
    """log p(x) is that of even weights where annealing agrees; where they do not, it is flagged and between the two."""
    monkeypatch.setattr(annealing, "DRAWS", 1000)
    log_weights = np.random.default_rng(0).normal(np.array([[-7.0], [-7.0], [-9.0]]), 0.1, (3, 500))
    ones = np.ones(3)
    checked = Checked(
        -7.1 * ones, np.array([-7.2, -7.05, -7.2]), 2 * ones, np.array([50.0, 999.9, 50.0]), 4 * ones, ones
    )
    found = inference_gap.with_proposal(checked, log_weights)
    draws = np.exp(log_weights[0])  # the variance of the log of their mean, however many there are
    assert 1.0 / found.effective_draws[0] - 1.0 / 1000 == pytest.approx(draws.var() / draws.mean() ** 2 / 500)
    np.testing.assert_allclose(found.estimates[:2], [-7.0, -7.05], atol=0.03)
    assert found.flagged.tolist() == [False, False, True] and -9 < found.estimates[2] < -7.1
