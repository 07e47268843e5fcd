"""Rate and distortion: the instrument against decoders whose curves are known exactly, and the experiment's record.

Runs on the backend in use. Tolerances in nats come from the stated standard errors, or from grids fine enough for
them; seeds are fixed.
"""

import json
from types import SimpleNamespace

from common.arrays import DataError
from common.data import load_data
from common.evaluation.rate_distortion import (
    Curve,
    LinearDecoder,
    RateDistortion,
    simulated,
    squared_error,
    with_noise,
)
from common.likelihoods import Bernoulli
from common.model import to_numpy
from common.numbers import Absent, mean_of
from common.priors import GaussianPrior
from experiments import study
from experiments.comparison import rate_distortion
from experiments.comparison.rate_distortion import OWN, SQUARED

import numpy as np
import pytest
import small_runs
from keras import ops
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

LARGEST, KNEE, TEMPERATURES, CHAINS = 20.0, 0.1, 300, 8


class Linear:
    """x = Wz + b with z ~ N(0, scale^2 I) of 3 dimensions, W of 5 x 3; closed forms by other formulas than ours."""

    pixels, dimensions = 5, 3

    def __init__(self, scale=1.5):
        random = np.random.default_rng(1)
        self.weights, self.bias = random.standard_normal((self.pixels, self.dimensions)), random.standard_normal(5)
        self.scale, self.prior = scale, GaussianPrior(self.dimensions, scale)

    def means(self, codes):
        return codes @ self.weights.T + self.bias

    def distortion(self, images, codes):
        weights, bias = (ops.convert_to_tensor(each.astype("float32")) for each in (self.weights.T, self.bias))
        return ops.sum(ops.square(images - ops.matmul(codes, weights) - bias), axis=1)

    def codes(self, count, seed):
        return self.scale * np.random.default_rng(seed).standard_normal((count, self.dimensions))

    def log_partition(self, images, beta):
        """exp(-beta d) is a Gaussian density of variance 1 / (2 beta), without its constant."""
        covariance = self.scale**2 * self.weights @ self.weights.T + np.eye(self.pixels) / (2.0 * beta)
        log_density = multivariate_normal(self.bias, covariance).logpdf(images)
        return log_density + 0.5 * self.pixels * np.log(np.pi / beta)

    def exact_distortion(self, images, beta):
        """-d log Z / d beta, by central differences."""
        step = 1e-4 * beta
        return -(self.log_partition(images, beta + step) - self.log_partition(images, beta - step)) / (2.0 * step)

    def sampler(self, images, largest=LARGEST):
        return RateDistortion(self.distortion, self.prior, images, largest, KNEE, CHAINS)


@pytest.fixture(scope="module")
def linear():
    return Linear()


@pytest.fixture(scope="module")
def images(linear):
    """Images of the decoder with noise: those of a data set that the decoder suits."""
    means = linear.means(linear.codes(100, 2))
    return means + 0.5 * np.random.default_rng(3).standard_normal(means.shape)


@pytest.fixture(scope="module")
def found(linear, images):
    return linear.sampler(images).curve(TEMPERATURES, through=1.0)


def exact_curve(linear, images, betas):
    log_partitions = [np.zeros(len(images)), *(linear.log_partition(images, beta) for beta in betas[1:])]
    distortions = [linear.exact_distortion(images, beta) for beta in betas[1:]]
    return Curve(betas, np.array(log_partitions), np.array([distortions[0], *distortions]), np.ones(len(betas)))


def test_the_schedule_passes_the_requested_betas(linear, images, found):
    sampler = linear.sampler(images)
    assert found.betas[0] == 0.0 and found.betas[-1] == pytest.approx(LARGEST)
    assert found.betas[found.at(1.0)] == pytest.approx(1.0, abs=1e-9)
    assert (np.diff(found.betas) > 0).all() and len(found.betas) == TEMPERATURES + 1
    assert sampler.beta(sampler.position(0.37)) == pytest.approx(0.37)
    steps = np.diff(np.log(sampler.beta(np.linspace(0, 1, 101)) + KNEE))
    np.testing.assert_allclose(steps, steps[0])


def test_the_curve_of_a_linear_decoder_is_the_exact_one(linear, images, found):
    """Every estimate of log Z is low by a small amount; distortions and rates agree."""
    exact = exact_curve(linear, images, found.betas)
    for beta in (0.1, 0.5, 2.0, 10.0, LARGEST):
        point = found.at(beta)
        error = mean_of(found.log_partitions[point] - exact.log_partitions[point])
        # Of 8 chains 5.6 are effective at the end: a variance of 0.4, and so a bias of 0.4 / 2 / 8 < 0.03.
        assert abs(error.value) < 0.03 + 4 * error.standard_error and error.standard_error < 0.1
        difference = mean_of(found.distortions[point] - exact.distortions[point])
        assert abs(difference.value) < 4 * difference.standard_error
        rate = mean_of(found.rates[point] - exact.rates[point])
        assert abs(rate.value) < 0.03 + 4 * rate.standard_error and exact.rates[point].mean() > 0.3


def test_the_rate_at_a_distortion_lies_on_the_exact_curve(linear, images, found):
    exact = exact_curve(linear, images, found.betas)
    for beta in (0.2, 1.0, 5.0):
        point = exact.at(beta)
        distortion = exact.distortions[point].mean()
        parts = found.rate_at(distortion)
        error = mean_of(found.log_partitions[point] - exact.log_partitions[point]).standard_error
        assert parts.mean() == pytest.approx(exact.rates[point].mean(), abs=0.03 + 4 * error)
        assert parts.shape == (len(images),)
    end = found.distortions[-1].mean()
    assert found.reaches(1.01 * end) and not found.reaches(0.99 * end)
    assert found.rate_at(2.0 * found.distortions[0].mean()).mean() == 0.0  # the prior alone comes nearer


@pytest.mark.parametrize("temperatures", [4, 60])
def test_the_gap_holds_the_exact_partition_function_between_its_bounds(linear, temperatures):
    """With few temperatures the gap is large, and forward chains are below and reverse chains above the exact value."""
    codes = linear.codes(24, 5)
    images = simulated(linear.means(codes), 4.0, np.random.default_rng(6))
    sampler, exact = linear.sampler(images, largest=4.0), linear.log_partition(images, 4.0)
    positions = np.linspace(0.0, 1.0, temperatures + 1)
    forward, _ = sampler.anneal(sampler.prior_draws(), positions, "")
    reverse, _ = sampler.anneal(np.repeat(codes, CHAINS, axis=0), positions[::-1], "")
    lower = mean_of(logsumexp(forward[-1], axis=1) - np.log(CHAINS) - exact)
    upper = mean_of(-(logsumexp(-reverse[-1], axis=1) - np.log(CHAINS)) - exact)
    assert lower.value < 4 * lower.standard_error and upper.value > -4 * upper.standard_error
    gap = mean_of(linear.sampler(images, largest=4.0).gap(temperatures, codes))
    assert gap.value > 0.5 if temperatures == 4 else abs(gap.value) < 0.05 + 4 * gap.standard_error
    if temperatures == 4:
        assert lower.value < -3 * lower.standard_error and upper.value > 3 * upper.standard_error
        error = np.hypot(lower.standard_error, upper.standard_error)
        assert gap.value == pytest.approx(upper.value - lower.value, abs=5 * error + 5 * gap.standard_error)


def test_simulated_images_have_the_noise_of_the_channel(linear):
    means = np.zeros((2000, 5))
    images = simulated(means, 8.0, np.random.default_rng(0))
    assert images.std() == pytest.approx(0.25, rel=0.03)  # 10,000 draws: 0.7 % each standard error
    with pytest.raises(DataError, match="beta above 0"):
        simulated(means, 0.0, np.random.default_rng(0))


def test_noise_in_the_prior_costs_every_rate_log_100_and_log_p_no_more(linear, images, found):
    """Against the exact partition functions of both priors; the paper's mixture."""
    wide = Linear(scale=15.0)
    noise = RateDistortion(wide.distortion, wide.prior, images, LARGEST, KNEE, CHAINS).curve(TEMPERATURES, through=1.0)
    mixed = with_noise(found, noise, 0.99)
    for beta in (0.01, 0.5, 1.0, LARGEST):  # the noise has weight at the first
        point = mixed.at(beta)
        exact = np.logaddexp(
            np.log(0.01) + linear.log_partition(images, mixed.betas[point]),
            np.log(0.99) + wide.log_partition(images, mixed.betas[point]),
        )
        error = mean_of(mixed.log_partitions[point] - exact)
        assert abs(error.value) < 0.05 + 4 * error.standard_error
        step = 1e-4 * mixed.betas[point]  # D is -d log Z / d beta for the mixture too
        both = [
            np.logaddexp(
                np.log(0.01) + linear.log_partition(images, mixed.betas[point] + change),
                np.log(0.99) + wide.log_partition(images, mixed.betas[point] + change),
            )
            for change in (-step, step)
        ]
        slope = mean_of(mixed.distortions[point] - (both[0] - both[1]) / (2.0 * step))
        assert abs(slope.value) < 4 * slope.standard_error
    for distortion in found.distortions[[mixed.at(0.5), mixed.at(4.0)]].mean(axis=1):
        rise = mixed.rate_at(distortion).mean() - found.rate_at(distortion).mean()
        assert 3.0 < rise <= -np.log(0.01) + 1e-9
    drop = (found.log_partitions - mixed.log_partitions).mean(axis=1)
    assert (drop <= -np.log(0.01) + 1e-9).all()


def test_the_experiments_linear_decoder_agrees_with_a_general_formula():
    random = np.random.default_rng(0)
    data = random.standard_normal((60, 3, 2)) * random.uniform(0.2, 2.0, (3, 2)) + 0.5
    decoder, images = LinearDecoder(data, 2), data[:7]
    distortions, log_partitions = decoder.exact(images, np.array([1e-9, 0.7, 3.0]))
    general = SimpleNamespace(scale=1.0, weights=decoder.weights.T, bias=decoder.mean, pixels=6)
    for point, beta in ((1, 0.7), (2, 3.0)):
        rows = images.reshape(7, 6)
        np.testing.assert_allclose(log_partitions[point], Linear.log_partition(general, rows, beta), rtol=1e-6)
        general.log_partition = lambda x, b: Linear.log_partition(general, x, b)
        np.testing.assert_allclose(distortions[point], Linear.exact_distortion(general, rows, beta), rtol=1e-5)
    codes = random.standard_normal((5000, 2))
    errors = ((images[0] - decoder.means(codes)) ** 2).sum(axis=(1, 2))
    assert distortions[0][0] == pytest.approx(errors.mean(), abs=4 * errors.std() / 5000**0.5)  # of the prior
    tensors = (ops.convert_to_tensor(each.astype("float32")) for each in (images, codes[:7]))
    expected = ((images - decoder.means(codes[:7])) ** 2).sum(axis=(1, 2))
    np.testing.assert_allclose(to_numpy(decoder.distortion(*tensors)), expected, rtol=1e-4)


def test_squared_errors_are_those_of_pixel_means():
    rows = Bernoulli((2, 2))
    logits = np.array([[[0.0, 10.0], [-10.0, 2.0]]], "float32")
    images = np.array([[[1.0, 0.5], [0.25, 0.0]]], "float32")
    distortion = squared_error(lambda codes: ops.convert_to_tensor(logits) + 0.0 * codes[:, :1, None], rows)
    found = to_numpy(distortion(ops.convert_to_tensor(images), ops.zeros((1, 3))))
    np.testing.assert_allclose(found, [((images - 1 / (1 + np.exp(-logits))) ** 2).sum()], rtol=1e-5)


# The experiment


def record_of(curve, kind=OWN, name="own_distortion"):
    return rate_distortion.numbers_of(name, kind, curve)


def test_the_record_has_the_points_and_log_p_at_beta_one(found):
    numbers = record_of(found)
    points, point = numbers["own_distortion_curve"], found.at(1.0)
    assert 1.0 in np.round(points["betas"], 9) and len(points["betas"]) in (32, 33)
    assert numbers["log_likelihood_nats"].value == pytest.approx(found.log_partitions[point].mean())
    np.testing.assert_allclose(numbers["log_likelihood_nats_of_images"], found.log_partitions[point], atol=1e-4)
    of_record = points["betas"].index(found.betas[point])
    assert points["distortions"][of_record] == pytest.approx(found.distortions[point].mean())
    # On the curve, whatever the noise of the distortion: 8 chains of 100 images leave some hundredths of a nat.
    assert 0.0 <= points["rates"][of_record] - found.rates[point].mean() < 0.1
    assert numbers["own_distortion_rate_at_150_nats"].value == 0.0  # farther than the prior's images
    far = Curve(found.betas, found.log_partitions, found.distortions + 200.0, found.effective)
    assert isinstance(record_of(far)["own_distortion_rate_at_150_nats"], Absent)


def test_differences_are_paired_by_image():
    key = "squared_error_rate_at_30_nats"
    base = np.array([1.0, 20.0, 300.0])
    other = base + np.array([0.1, 0.2, 0.3])
    numbers = rate_distortion.differences({key + "_of_images": other}, {key + "_of_images": base})
    assert numbers[f"{key}_minus_vae"] == pytest.approx(0.2)
    assert numbers[f"{key}_minus_vae_standard_error"] == pytest.approx(0.1 / 3**0.5)
    assert len(numbers) == 3  # with the reasons of nulls, of which there are none


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """A run with two models of few weights, which are not trained: its Config, metrics and folder."""
    folder = tmp_path_factory.mktemp("rate")
    data = small_runs.tiny_images(folder / "tiny.npz")
    config = rate_distortion.Config(
        data=data,
        latent_dims=(2,),
        hidden_units=(8,),
        seeds=(0,),
        images=4,
        chains=2,
        temperatures=8,
        results=str(folder),
        name="tiny",
    )
    models = {
        title: model
        for title, model in rate_distortion.models().items()
        if title in ("Deterministic AAE", "VAE", "AVB without contrast")
    }

    def untrained(part, script, latent_dim):
        own = script.Config(latent_dim=latent_dim, hidden_units=part.config.hidden_units, seed=part.seed)
        return script.build(own, part.dataset.image_shape)

    with pytest.MonkeyPatch.context() as patch:
        small_runs.texts_for_figures(patch)
        small_runs.short_annealing(patch)
        patch.setattr(rate_distortion, "models", lambda: models)
        patch.setattr(rate_distortion, "trained", untrained)
        patch.setattr(rate_distortion, "load_run", lambda model: model)
        yield config, rate_distortion.main(config), folder / "comparison_rate_distortion" / "tiny"


def test_the_experiment_keeps_curves_and_tabulates_every_model_and_check(experiment):
    config, metrics, folder = experiment
    linear, noisy = rate_distortion.checks(config)
    names = ["Deterministic AAE, 2-D", "VAE, 2-D"]
    assert list(metrics) == [*names, linear, noisy] and (linear, noisy) == (
        "Linear decoder, 2-D",
        "VAE, 2-D, prior 99% noise",
    )
    runs = json.loads((folder / "runs.json").read_text())
    run = runs["Deterministic AAE, 2-D, seed 0"]
    for name, kind in (("squared_error", SQUARED), ("own_distortion", OWN)):
        assert run[f"{name}_gaps"]["betas"] == list(kind.gaps)
        keys = [rate_distortion.gap_key(name, beta) for beta in kind.gaps]
        assert [run[key] for key in keys] == run[f"{name}_gaps"]["gaps"]
        assert len(run[f"{name}_curve"]["betas"]) == len(run[f"{name}_curve"]["rates_standard_error"])
    assert len(run["log_likelihood_nats_of_images"]) == 4
    key, vae = "squared_error_rate_at_30_nats", runs["VAE, 2-D, seed 0"]
    assert run[key] == pytest.approx(np.mean(run[f"{key}_of_images"]), abs=1e-3)
    found = metrics["Deterministic AAE, 2-D"][f"{key}_minus_vae"]
    assert found == pytest.approx(run[key] - vae[key], abs=1e-3)
    assert metrics["VAE, 2-D"][f"{key}_minus_vae"] is None
    # Both are one estimate with the noise and without: no more than log 100 apart, up to the chains' own noise.
    own, mixed = runs["VAE, 2-D, seed 0"], runs[noisy]
    assert own["log_likelihood_nats"] - mixed["log_likelihood_nats"] < 4.7
    assert len(runs[linear]["exact_curve"]["rates"]) == len(runs[linear]["squared_error_curve"]["rates"])
    assert {"squared_error.png", "own_distortion.png", "checks.png", "table.md"} <= {f.name for f in folder.iterdir()}
    lines = (folder / "table.md").read_text().splitlines()
    assert len(lines) == 2 + len(metrics)


def test_every_model_meets_the_same_images(experiment):
    config, _, _ = experiment
    dataset = load_data(config.data)
    grey = rate_distortion.test_images(dataset, SQUARED, 4)
    binary = rate_distortion.test_images(dataset, OWN, 4)
    assert ((binary == 0) | (binary == 1)).all() and grey.shape == binary.shape
    assert not ((grey == 0) | (grey == 1)).all()
    assert (binary[grey == 1] == 1).all() and (binary[grey == 0] == 0).all()  # the same digits


def test_the_experiment_names_its_folder_and_its_quick_run():
    assert study.presets(rate_distortion.STUDY, rate_distortion.Config(quick=True))["latent_dims"] == (2,)
    assert rate_distortion.checked(rate_distortion.Config()) == 8
