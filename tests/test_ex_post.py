"""experiments/comparison/ex_post.py: a fitted mixture as a prior, the bound around the modes, and a tiny experiment."""

import dataclasses
import json

import aae_deterministic
import vae_baseline
from common import report
from common.backend import value_and_gradient
from common.evaluation import likelihood
from common.files import RunError
from common.model import to_numpy
from common.priors import FittedMixture, GaussianPrior
from common.run import load_run
from experiments import study
from experiments.comparison import ex_post, laplace, models
from experiments.comparison.ex_post import BOUND, BOUND_GAIN, DENSITY, DENSITY_GAIN, OF_IMAGES, TO_VAE

import keras
import numpy as np
import pytest
import small_runs
from keras import ops
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, multivariate_t
from sklearn.mixture import GaussianMixture

DIMENSIONS = 3


def tensor(array):
    return ops.convert_to_tensor(np.asarray(array, "float32"))


@pytest.fixture(scope="module")
def clumps():
    """Codes in three elongated clumps of different weights, far from the origin: (2000, 3)."""
    random = np.random.default_rng([35, 0])
    centres, shapes = (
        random.normal(0.0, 3.0, (3, DIMENSIONS)) + 5.0,
        random.normal(0.0, 0.7, (3, DIMENSIONS, DIMENSIONS)),
    )
    chosen = random.choice(3, 2000, p=(0.2, 0.3, 0.5))
    return centres[chosen] + (shapes[chosen] @ random.standard_normal((2000, DIMENSIONS, 1)))[..., 0]


@pytest.fixture(scope="module")
def fit(clumps):
    """The mixture by scikit-learn."""
    return GaussianMixture(3, random_state=0).fit(clumps)


@pytest.fixture(scope="module")
def mixture(fit):
    """The same mixture as a prior."""
    return FittedMixture(fit.weights_, fit.means_, fit.covariances_)


# The mixture as a prior


def test_log_density_is_that_of_scikit_learn(clumps, fit, mixture):
    points = np.concatenate([clumps[:200], 5.0 + np.random.default_rng([35, 1]).normal(0.0, 6.0, (200, DIMENSIONS))])
    expected = fit.score_samples(points)
    assert np.ptp(expected) > 50  # the points are in the clumps, and far outside of them
    # float32: squares of up to hundreds of deviations
    np.testing.assert_allclose(to_numpy(mixture.log_prob(tensor(points))), expected, rtol=2e-5, atol=1e-3)


def test_gradient_of_the_log_density(clumps, fit, mixture):
    points, step = clumps[:50], 1e-4
    moves = step * np.eye(DIMENSIONS)
    slopes = [(fit.score_samples(points + move) - fit.score_samples(points - move)) / (2 * step) for move in moves]
    value, gradient = value_and_gradient(mixture.log_prob, tensor(points))
    np.testing.assert_allclose(to_numpy(value), fit.score_samples(points), atol=1e-3)
    # central differences in double precision are exact to 1e-6; the rest is float32, where a clump is narrow
    np.testing.assert_allclose(to_numpy(gradient), np.stack(slopes, axis=1), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("as_integer", [True, False])
def test_samples_have_the_moments_of_the_mixture(fit, mixture, as_integer):
    count = 40_000
    draws = to_numpy(mixture.sample(count, 3 if as_integer else keras.random.SeedGenerator(3))).astype("float64")
    mean = fit.weights_ @ fit.means_
    away = fit.means_ - mean
    covariance = np.einsum("k,kij->ij", fit.weights_, fit.covariances_ + away[:, :, None] * away[:, None, :])
    deviations = np.diag(covariance) ** 0.5
    assert (np.abs(draws.mean(axis=0) - mean) < 5 * deviations / count**0.5).all()  # five standard errors
    # the error of a covariance is at most sqrt(kurtosis / n) times the deviations; the kurtosis is below 5 here
    assert (np.abs(np.cov(draws.T) - covariance) < 5 * np.outer(deviations, deviations) * (5 / count) ** 0.5).all()
    assert mixture.scale == pytest.approx((deviations**2).mean() ** 0.5)
    shares = np.bincount(fit.predict(draws), minlength=3) / count
    np.testing.assert_allclose(shares, np.bincount(fit.predict(fit.sample(count)[0])) / count, atol=0.015)  # 4 errors
    # E log p of its own draws is minus the entropy: a sampler with a wrong component or shape has another
    own, other = fit.score_samples(draws), fit.score_samples(fit.sample(count)[0])
    assert abs(own.mean() - other.mean()) < 5 * (own.var() / count + other.var() / count) ** 0.5


def test_a_mixture_cannot_be_sampled_by_label(mixture):
    with pytest.raises(ValueError, match="belongs to a label"):
        mixture.sample(3, 0, labels=np.arange(3))


def test_validation_codes_choose_the_number_of_components(clumps):
    random = np.random.default_rng([35, 2])
    held = clumps[1500:]
    scores = {size: GaussianMixture(size, random_state=0).fit(clumps[:60]).score(held) for size in (1, 3, 30)}
    assert max(scores, key=scores.get) == 3  # 30 components fit 60 codes alone, one fits none of the clumps
    assert ex_post.fitted(clumps[:60], held, (1, 3, 30), 0).components == 3
    one = random.standard_normal((300, 2))
    assert ex_post.fitted(one[:60], one[60:], (1, 20), 0).components == 1


def test_codes_in_place_of_a_density_are_drawn_evenly():
    codes = np.arange(12.0, dtype="float32").reshape(6, 2)
    prior = ex_post.CodesPrior(codes)
    for seed in (3, keras.random.SeedGenerator(3)):
        draws = to_numpy(prior.sample(15, seed))
        assert sorted(np.bincount(draws[:, 0].astype(int) // 2)) == [2, 2, 2, 3, 3, 3]
        np.testing.assert_array_equal(draws[:, 1], draws[:, 0] + 1)
        assert (draws[:6] != codes).any()  # in random order
    assert not hasattr(prior, "log_prob")


# The bound around the modes


class TwoSided:
    """A model of a 1-D or 2-D code: logits are weights @ |z| + bias, so z and -z explain an image equally well."""

    image_shape = (12,)

    def __init__(self, prior, seed=0):
        random = np.random.default_rng([35, 3, seed])
        self.prior, self.weights = prior, random.normal(0.0, 2.0, (prior.latent_dim, 12)).astype("float32")
        self.likelihood = self

    def decoder(self, z):
        return ops.matmul(ops.abs(z), self.weights) - 1.0

    def parameters_of(self, codes):
        yield self.decoder(tensor(codes))

    def log_prob(self, images, logits):
        return ops.sum(images * logits - ops.softplus(logits), axis=-1)


def exact(model, images):
    """log p(x) by a sum over a fine grid in the plane: (n,)."""
    axis = np.linspace(-9.0, 9.0, 601)
    z = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    logits = np.abs(z) @ model.weights.astype("float64") - 1.0
    joint = images @ logits.T - np.logaddexp(0.0, logits).sum(axis=1) + to_numpy(model.prior.log_prob(tensor(z)))
    return logsumexp(joint, axis=1) + 2 * np.log(axis[1] - axis[0])


@pytest.mark.parametrize("fitted", [False, True])
def test_the_bound_is_log_p_of_a_model_in_the_plane(fitted):
    prior = GaussianPrior(2)
    if fitted:
        prior = FittedMixture(np.array([0.3, 0.7]), np.array([[-1.0, 0.5], [1.5, 1.0]]), np.array([np.eye(2) / 4] * 2))
    model, random = TwoSided(prior), np.random.default_rng([35, 4])
    images = random.integers(0, 2, (4, 12)).astype("float32")
    starts = np.tile([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], (4, 1, 1))
    weights = laplace.log_weights(model, images, starts, 2000)
    bounds = likelihood.importance_weighted_bound(weights)
    effective = likelihood.effective_sample_size(weights)
    assert (effective > 200).all()
    # the error of the log of a mean weight is about 1 / sqrt(effective draws); five of them
    assert (np.abs(bounds - exact(model, images)) < 5 / effective**0.5).all()


def test_density_of_the_proposal_against_scipy():
    random = np.random.default_rng([35, 5])
    log_shares, centres = np.log([0.3, 0.7]), random.normal(0, 2, (2, 2))
    roots = np.linalg.cholesky(np.array([[[1.0, 0.4], [0.4, 0.5]], [[0.3, -0.1], [-0.1, 2.0]]]))
    draws, log_density = laplace.draw(log_shares, centres, roots, 1000, random)
    parts = [
        multivariate_t(centre, root @ root.T, laplace.FREEDOM) for centre, root in zip(centres, roots, strict=True)
    ]
    expected = logsumexp([share + part.logpdf(draws) for share, part in zip(log_shares, parts, strict=True)], axis=0)
    np.testing.assert_allclose(log_density, expected, rtol=1e-9)
    # the mean of f / r over draws of r is 1 for any density f with lighter tails
    ratio = np.exp(multivariate_normal([0.0, 0.0], 0.5 * np.eye(2)).logpdf(draws) - log_density)
    assert abs(ratio.mean() - 1.0) < 5 * ratio.std() / len(draws) ** 0.5


# The autoencoder without a prior


def encoder_gradient(weight, image, latent_dim=2):
    """The gradient of the encoder's first weights for one batch."""
    config = aae_deterministic.Config(latent_dim=latent_dim, hidden_units=(8,), adversarial_weight=weight)
    model = aae_deterministic.build(config, image.shape[1:])
    values = [variable.value for variable in model.encoder.trainable_variables]

    def loss(first):
        z, _ = model.encoder.stateless_call([first, *values[1:]], [], tensor(image))
        outputs = {"z": z, "parameters": model.decoder(z)}
        return ops.reshape(sum(model.objective(tensor(image), outputs).values()), (1,))

    return to_numpy(value_and_gradient(loss, values[0])[1])


def test_nothing_pulls_on_the_code_at_the_weight_0(monkeypatch):
    """The gradient at the weight 0 is that of a model without a generator's loss."""
    image = np.random.default_rng([35, 6]).integers(0, 2, (20, 4, 3)).astype("float32")
    free, pulled = encoder_gradient(0.0, image), encoder_gradient(40.0, image)
    monkeypatch.setattr(aae_deterministic, "generator_loss", lambda logits: 0.0)
    alone = encoder_gradient(0.0, image)
    np.testing.assert_array_equal(free, alone)
    assert np.abs(pulled - alone).max() > 0.01 * np.abs(alone).max()


# The experiment


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The path of 300 images around three centres, with labels: 240 to train, 30 to validate, 30 to test."""
    random = np.random.default_rng([35, 7])
    y = np.arange(300) % 3
    x = np.clip(random.integers(0, 256, (3, 5, 4))[y] + random.normal(0, 20, (300, 5, 4)), 0, 255)
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, x=x.astype(np.uint8), y=y)
    return str(path)


TINY = {
    "latent_dim": 2,
    "hidden_units": (8,),
    "updates": 2,
    "components": (1, 3),
    "weighted_images": 6,
    "weighted_samples": 20,
    "annealed_images": 2,
    "chains": 2,
    "temperatures": 3,
    "seeds": (3, 4),
    "name": "r",
}


@pytest.fixture(scope="module")
def experiment(data, tmp_path_factory):
    """The experiment in small, with the autoencoder and the VAE alone: its Config, metrics and folder."""
    results = tmp_path_factory.mktemp("results")
    config = ex_post.Config(data=data, results=str(results), **TINY)
    with pytest.MonkeyPatch.context() as patch:
        small_runs.uncompiled(patch)
        small_runs.short_annealing(patch)
        small_runs.cheap_instruments(patch)
        small_runs.texts_for_figures(patch)
        patch.setattr(report, "measure", lambda *arguments: {})  # the numbers of the scripts are not needed
        patch.setattr(report, "figures", lambda *arguments: {})
        patch.setattr(ex_post, "models", lambda: {"VAE": (vae_baseline, {})})
        patch.setattr(laplace, "compiled", lambda function: function)
        metrics = ex_post.main(config)
        yield config, metrics, results / "comparison_ex_post" / "r"


def test_every_density_of_every_model_has_a_row(experiment):
    _, metrics, folder = experiment
    names = [f"{model}, {density}" for model in ("Autoencoder", "VAE") for density in ex_post.TITLES.values()]
    assert list(metrics) == [*names, ex_post.IMAGES]
    for name in names:
        means, with_density = metrics[name], not name.endswith("training codes")
        assert means["sample_frechet_distance"] > 0 and 0.0 <= means["code_c2st_accuracy"] <= 1.0
        assert all((means[key] is not None) == with_density for key in (DENSITY, DENSITY_GAIN, BOUND, BOUND_GAIN))
    own = metrics["VAE, own prior"]
    assert own[DENSITY_GAIN] == own[BOUND_GAIN] == own[TO_VAE] == own[f"{TO_VAE}_standard_error"] == 0.0
    assert metrics["VAE, Gaussian mixture"][DENSITY] >= metrics["VAE, one Gaussian"][DENSITY] - 1.0
    assert (folder / "table.md").read_text().count("\n") == 2 + len(names) + 1
    assert (folder / "likelihood.md").read_text().count("\n") == 2 + 2 * 3  # codes of images have no density
    assert {"densities.png", "samples.png"} <= {file.name for file in folder.iterdir()}


def test_differences_are_paired_by_image(experiment):
    config, metrics, folder = experiment
    runs = json.loads((folder / "runs.json").read_text())
    paired = [
        np.subtract(
            runs[f"Autoencoder, seed {seed}"]["mixture"][OF_IMAGES], runs[f"VAE, seed {seed}"]["own"][OF_IMAGES]
        )
        for seed in config.seeds
    ]
    means = metrics["Autoencoder, Gaussian mixture"]
    assert means[TO_VAE] == pytest.approx(np.mean(paired))
    errors = [each.std(ddof=1) / len(each) ** 0.5 for each in paired]
    assert means[f"{TO_VAE}_standard_error"] == pytest.approx(np.mean(errors))


def test_the_autoencoder_is_the_aae_without_a_generator(experiment):
    _, _, folder = experiment
    runs = list((folder.parents[1] / "comparison_models" / "aae_deterministic").iterdir())
    assert len(runs) == 2 and all("adversarial-weight-0" in run.name for run in runs)
    assert load_run(runs[0]).adversarial_weight == 0.0


def test_nothing_is_made_again(experiment, monkeypatch):
    config, metrics, _ = experiment
    monkeypatch.setattr(ex_post, "trained", None)
    assert ex_post.main(config) == metrics


def test_impossible_flags_are_refused_before_any_work(data, tmp_path):
    config = ex_post.Config(data=data, results=str(tmp_path / "results"), **TINY)
    with pytest.raises(RunError, match="--components 241 needs as many training codes, and there are 240"):
        ex_post.main(dataclasses.replace(config, components=(1, 241)))
    with pytest.raises(RunError, match="--components"):
        ex_post.main(dataclasses.replace(config, components=()))
    with pytest.raises(RunError, match="--weighted-images"):
        ex_post.main(dataclasses.replace(config, weighted_images=1))
    np.savez(tmp_path / "few.npz", x_train=np.full((90, 2, 2), 7, np.uint8), x_test=np.full((30, 2, 2), 7, np.uint8))
    with pytest.raises(RunError, match="100 or more"):
        ex_post.main(dataclasses.replace(config, data=str(tmp_path / "few.npz")))
    assert not (tmp_path / "results").exists()


def test_every_model_of_the_comparison_takes_part_but_avb_without_contrast(monkeypatch):
    monkeypatch.setattr(ex_post, "models", models.models)
    titles = list(ex_post.cases(ex_post.Config(), None))
    assert titles == ["Autoencoder", "Deterministic AAE", "Gaussian AAE", "Universal AAE", "AVB", "VAE"]
    assert study.presets(ex_post.STUDY, ex_post.Config(quick=True))["name"] == "latent-8-quick"
