"""How much a code is used: betas on sums, resampled dimensions, and a decoder that can do without a code."""

import dataclasses
import json
from pathlib import Path

import vae_baseline
from common import training
from common.binarisation import binarise
from common.data import Dataset, load_data
from common.evaluation import latent, reconstruction
from common.files import RunError
from common.likelihoods import bernoulli_log_likelihood
from common.measure_likelihood import LikelihoodSettings, importance_weighted, likelihood_images
from common.model import to_numpy
from experiments import study
from experiments.pitfalls import autoregressive, code_size, loss_scaling, posterior_collapse

import keras
import numpy as np
import pytest
import small_runs
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from scipy.stats import chisquare, norm

SHAPE = (4, 3)


@pytest.fixture(scope="module")
def x():
    return ops.convert_to_tensor(np.random.default_rng(0).random((6, *SHAPE)), "float32")


def numbers(terms) -> dict:
    return {name: float(to_numpy(term)) for name, term in terms.items()}


# Loss scaling


def built(config, setting, image_shape=SHAPE):
    """The untrained model of a setting, with seed 0."""
    return loss_scaling.build(loss_scaling.own_config(config, setting, 0), setting, image_shape)


@settings(max_examples=12, deadline=None)
@given(
    mistakes=st.fixed_dictionaries({"pixel_mean": st.booleans(), "code_mean": st.booleans()}),
    beta=st.floats(0.1, 10.0),
    latent_dim=st.integers(1, 5),
)
def test_any_reduction_is_a_beta_on_sums(mistakes, beta, latent_dim):
    """The loss is that of a VAE on sums with the effective beta, times a constant."""
    x = ops.convert_to_tensor(np.random.default_rng(1).random((6, *SHAPE)), "float32")
    config = loss_scaling.Config(latent_dim=latent_dim, hidden_units=(5,))
    setting = loss_scaling.Setting(mistakes, beta)
    model = built(config, setting)
    outputs = model(x)
    scaled = sum(numbers(model.objective(x, outputs)).values())
    effective = loss_scaling.effective_beta(setting, 12, latent_dim)
    of_sums = vae_baseline.build(vae_baseline.Config(latent_dim=latent_dim, hidden_units=(5,), beta=effective), SHAPE)
    on_sums = sum(numbers(of_sums.objective(x, outputs)).values())
    assert scaled * (12 if mistakes["pixel_mean"] else 1) == pytest.approx(on_sums, rel=1e-5)  # single precision


def test_betas_of_the_settings():
    settings_of = loss_scaling.settings(loss_scaling.Config(betas=(0.1, 1.0, 784.0)), 784)
    betas = [loss_scaling.effective_beta(setting, 784, 128) for setting in settings_of.values()]
    assert betas == pytest.approx([784 / 128] * 3 + [1.0, 784.0, 0.1, 784.0])  # 1 on sums is there already


def test_gradients_of_means_are_small_enough_to_be_another_training():
    """Why the same beta is trained both ways: what RMSprop adds to the mean square is above the gradients' own."""
    x = np.random.default_rng(1).random((32, 28, 28)).astype("float32")
    steps = {}
    all_of = loss_scaling.settings(loss_scaling.Config(), 784)
    for name, setting in ((name, all_of[name]) for name in (loss_scaling.ONE_READING, loss_scaling.SUMS)):
        model = built(loss_scaling.Config(hidden_units=(16,), latent_dim=128), setting, (28, 28))
        before = np.concatenate([weights.ravel() for weights in model.get_weights()])
        model.compile(loss_scaling.rmsprop(model, loss_scaling.Config(), 1))
        model.fit(x, batch_size=32, verbose=0)
        steps[name] = np.abs(np.concatenate([weights.ravel() for weights in model.get_weights()]) - before).mean()
    assert steps[loss_scaling.ONE_READING] < 0.8 * steps[loss_scaling.SUMS]  # equal but for the 1e-7


def test_parts_of_different_settings_have_different_folders():
    config = loss_scaling.Config(betas=(1e-6, 1e6, 0.1, 0.10000001))
    names = [study.part_folder(Path(), name) for name in loss_scaling.settings(config, 784)]
    assert len(set(names)) == len(names) == 9


def test_resampling_takes_the_named_dimensions_alone():
    random = np.random.default_rng(0)
    codes, prior = random.normal(size=(7, 3)), random.normal(size=(7, 3))
    found = loss_scaling.resampled(codes, np.array([True, False, True]), prior)
    np.testing.assert_array_equal(found[:, [0, 2]], prior[:, [0, 2]])
    np.testing.assert_array_equal(found[:, 1], codes[:, 1])


def test_a_decoder_that_ignores_a_dimension_does_not_notice_its_resampling(x):
    config = loss_scaling.Config(latent_dim=3, hidden_units=(8,))
    model = built(config, loss_scaling.Setting({}))
    first, *rest = model.decoder.get_weights()
    first[1] = 0.0  # of dimension 1
    model.decoder.set_weights([first, *rest])
    random = np.random.default_rng(0)
    codes, prior = (random.normal(size=(6, 3)).astype("float32") for _ in range(2))
    images = to_numpy(x)

    def nats(dimensions):
        return loss_scaling.reconstruction_of(model, images, loss_scaling.resampled(codes, dimensions, prior)).value

    untouched = nats(np.array([False, False, False]))
    logits = to_numpy(model.decoder(ops.convert_to_tensor(codes))).astype("float64")
    expected = (np.logaddexp(0.0, logits) - images * logits).sum(axis=(1, 2)).mean()
    assert untouched == pytest.approx(expected, rel=1e-5)
    assert nats(np.array([False, True, False])) == untouched
    assert abs(nats(np.array([True, False, False])) - untouched) > 0.01


def test_active_dimensions_are_those_that_draws_show():
    random = np.random.default_rng(0)
    means = random.normal(size=(2000, 4)) * np.array([1.0, 0.2, 0.05, 0.0])  # variances 1, 0.04, 0.0025, 0
    np.testing.assert_array_equal(latent.active_dimensions(means), [True, True, False, False])
    draws = means + 0.5 * random.normal(size=(8, 2000, 4))
    assert latent.active_units(draws) == 2


# A decoder that can do without a code


def decoder(image_shape=SHAPE, row_units=7, latent_dim=2, seed=0):
    return autoregressive.autoregressive_decoder(latent_dim, image_shape, 5, row_units, np.random.default_rng(seed))


@pytest.mark.parametrize(("image_shape", "row_units"), [((4, 3), 60), ((3, 5), 3), ((2, 6), 90), ((5, 1), 2)])
def test_no_logit_depends_on_its_own_or_a_later_pixel(image_shape, row_units):
    random = np.random.default_rng(0)
    network = decoder(image_shape, row_units)
    pixels = int(np.prod(image_shape))
    base = random.random(image_shape)
    images = np.repeat(base[None], pixels + 1, axis=0).reshape(pixels + 1, -1)
    images[np.arange(pixels), np.arange(pixels)] += 1.0  # row i: pixel i is another; the last row: none is
    z = np.repeat(random.normal(size=(1, 2)), pixels + 1, axis=0)
    found = to_numpy(
        network([ops.convert_to_tensor(array, "float32") for array in (images.reshape(-1, *image_shape), z)])
    )
    # Rows of one product are summed in different orders: what is equal differs by the last bits of a float32.
    changed = np.abs(found - found[-1:]).reshape(pixels + 1, -1)[:-1] > 1e-5  # (which pixel, which logit)
    assert not np.tril(changed).any()
    if row_units > 50:  # of few, all that see a pixel may rest at 0
        assert changed.any(axis=1)[:-1].all()  # each pixel but the last is seen by some later one


def test_every_logit_depends_on_the_code():
    network, images = decoder(), np.zeros((2, *SHAPE))
    found = to_numpy(network([ops.convert_to_tensor(a, "float32") for a in (images, [[0.0, 0.0], [1.0, -1.0]])]))
    assert (found[0] != found[1]).all()


def every_image(image_shape) -> np.ndarray:
    """All binary images: (2^pixels, *image_shape)."""
    pixels = int(np.prod(image_shape))
    return ((np.arange(2**pixels)[:, None] >> np.arange(pixels)) & 1).reshape(-1, *image_shape).astype("float32")


def log_probabilities(network, image_shape, z) -> np.ndarray:
    images = ops.convert_to_tensor(every_image(image_shape))
    codes = ops.convert_to_tensor(np.repeat([z], len(images), axis=0), "float32")
    return to_numpy(bernoulli_log_likelihood(images, network([images, codes])))


def test_it_is_a_distribution_over_images():
    """Sums to 1 over all 512 images, whatever the code, as only a product of conditionals does."""
    for z in ([0.0, 0.0], [2.0, -1.0]):
        total = np.exp(log_probabilities(decoder((3, 3)), (3, 3), z).astype("float64")).sum()
        assert total == pytest.approx(1.0, abs=1e-5)  # single precision


def autoregressive_vae(image_shape=SHAPE, **changes):
    own = vae_baseline.Config(latent_dim=2, hidden_units=(6,), binarisation="dynamic")
    return autoregressive.build_vae((5, 7), own, image_shape, **changes)


def test_images_are_drawn_from_it():
    """Frequencies of the 16 images of 2 x 2 pixels in 4,000 draws, by a chi-squared test."""
    model, z = autoregressive_vae((2, 2)), [1.0, -1.0]
    expected = 4000 * np.exp(log_probabilities(model.decoder, (2, 2), z).astype("float64"))
    drawn = model.decode(np.repeat([z], 4000, axis=0))
    assert set(np.unique(drawn)) <= {0.0, 1.0}
    counts = np.bincount((drawn.reshape(4000, 4) @ [1, 2, 4, 8]).astype(int), minlength=16)
    assert chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 0.001


def test_every_version_has_what_its_name_says():
    config = posterior_collapse.Config(hidden_units=(6,), recurrent_units=4, row_units=5, free_bits=0.25, warm_up=0.3)
    built = {}
    for name, version in posterior_collapse.versions(config).items():
        own = code_size.own_config(version.script, config, 0, **version.own)
        built[name] = own, version.build(own, SHAPE)
    plain, alone, usual, annealed, free, adversarial = built.values()
    assert [own.beta for own, _ in (plain, alone, usual, annealed, free)] == [1.0, 1000.0, 1.0, 1.0, 1.0]
    assert [own.warm_up for own, _ in (plain, alone, usual, annealed, free)] == [0.0, 0.0, 0.0, 0.3, 0.0]
    assert alone[1].beta == 1000.0 and adversarial[1].adversarial_weight == config.adversarial_weight
    assert [model.free_bits for _, model in (alone, usual, annealed, free)] == [0.0, 0.0, 0.0, 0.25]
    weights = [model.encoder.get_weights() for _, model in (plain, alone, usual, annealed, free, adversarial)]
    for others in weights[1:]:
        for first, other in zip(weights[0], others, strict=True):
            np.testing.assert_array_equal(first, other)  # the same start for all


def test_the_bound_of_an_autoregressive_decoder_nears_its_likelihood_on_a_grid():
    """log p(x) of 2 x 2 images, by the prior's mass on a grid of codes, and the bound with 4,000 draws."""
    model, draws = autoregressive_vae((2, 2)), 4000
    model.decoder.set_weights([2.0 * weights for weights in model.decoder.get_weights()])  # no image like another
    model.encoder.set_weights([0.0 * weights for weights in model.encoder.get_weights()])  # q(z|x) = p(z)
    images = np.eye(4, dtype="float32").reshape(4, 2, 2)
    dataset = Dataset(images, None, images, None, images, None, "four")
    log_likelihood = autoregressive.log_likelihood_of(model)
    bounds = importance_weighted(model, dataset, LikelihoodSettings(0, 0, (), 4, draws), None, log_likelihood)[1]
    steps = np.linspace(-6, 6, 61)
    codes = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    mass = np.exp(norm.logpdf(codes).sum(axis=1)) * (steps[1] - steps[0]) ** 2
    for image, bound in zip(likelihood_images(dataset, 4), bounds, strict=True):
        at_each_code = ops.convert_to_tensor(np.repeat([image], len(codes), axis=0))
        logits = model.decoder([at_each_code, ops.convert_to_tensor(codes, "float32")])
        likelihoods = np.exp(to_numpy(bernoulli_log_likelihood(at_each_code, logits)).astype("float64"))
        exact, square = mass @ likelihoods, mass @ likelihoods**2
        standard_error = np.sqrt((square / exact**2 - 1) / draws)  # of the logarithm of the mean of the draws
        assert bound == pytest.approx(np.log(exact), abs=5 * standard_error)


def test_free_bits_cost_nothing(x):
    """sum_u max(lambda, KL_u): the KL itself at 0, lambda for each dimension where none has as much."""
    model, generous = autoregressive_vae(), autoregressive_vae(free_bits=50.0)
    outputs = model(x)
    kl = float(to_numpy(ops.mean(model.divergences(x, outputs)["kl_nats"])))
    assert numbers(model.objective(x, outputs))["kl"] == pytest.approx(kl, rel=1e-5)
    assert numbers(generous.objective(x, outputs))["kl"] == pytest.approx(100.0)
    each = latent.kl_per_dimension(*(to_numpy(outputs[key]) for key in ("mean", "log_var")))
    between = autoregressive_vae(free_bits=float(each.mean()))
    expected = np.maximum(each, each.mean()).sum()
    assert numbers(between.objective(x, outputs))["kl"] == pytest.approx(expected, rel=1e-4)


def test_independent_pixels_have_the_mean_image_and_its_entropy():
    random = np.random.default_rng(0)
    images = random.random((50, *SHAPE), dtype="float32")
    labels = np.zeros(50, int)
    digits = Dataset(images, labels, images, labels, images, labels, "random", is_mnist=True)
    dataset = posterior_collapse.independent_pixels(digits)
    assert dataset.y_train is dataset.y_val is dataset.y_test is None and dataset.x_train.shape == images.shape
    assert not dataset.is_mnist and digits.is_mnist
    np.testing.assert_allclose(dataset.x_test[7], images.mean(axis=0), rtol=1e-6)
    many = binarise(np.repeat(dataset.x_train, 200, axis=0), "dynamic", random).reshape(10_000, -1)
    correlations = np.corrcoef(many, rowvar=False) - np.eye(12)
    assert np.abs(correlations).max() < 0.05  # five standard errors of none at all
    p = images.mean(axis=0, dtype="float64")
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p)).sum()
    spread = np.sqrt((p * (1 - p) * np.log(p / (1 - p)) ** 2).sum() / len(many))  # of the mean of 10,000 images
    best = reconstruction.mean_image_cross_entropy(dataset.x_train, many.reshape(-1, *SHAPE))
    assert best == pytest.approx(entropy, abs=5 * spread)


# Code sizes


def test_every_script_is_a_case_of_code_size_under_its_title():
    config = posterior_collapse.Config(code_sizes=(2, 8))
    titles = ["Deterministic AAE", "Gaussian AAE", "Universal AAE", "AVB", "VAE"]
    assert list(code_size.cases(config)) == [f"{title}, {size}-D" for size in (2, 8) for title in titles]


def test_curves_go_by_size_and_leave_out_models_without_the_number():
    config = posterior_collapse.Config(code_sizes=(8, 2), seeds=(0, 1))
    runs = {
        study.part_name(case, seed): {"active_units": 10 * seed + int(case.split("-")[-2].split()[-1])}
        | {"kl_nats": 1.0 if case.startswith("VAE") else None, "kl_estimated_nats": 2.0 if "AVB" in case else None}
        for case in code_size.cases(config)
        for seed in config.seeds
    }
    results = study.Results(config, None, None, runs)
    active = code_size.curves(results, lambda run: run["active_units"])
    np.testing.assert_array_equal(active["AVB"].x, [2, 8])
    np.testing.assert_array_equal(active["AVB"].values, [[2, 8], [12, 18]])  # a row a seed
    kl = code_size.curves(results, code_size.closed_or_estimated_kl, suffix=": T")
    assert {name: curve.values.max() for name, curve in kl.items()} == {"AVB: T": 2.0, "VAE: T": 1.0}


def test_the_scripts_train_with_the_experiments_parameters():
    config = posterior_collapse.Config(hidden_units=(9,), updates=7, adversarial_weight=3.0)
    for script in code_size.models().values():
        own = dataclasses.asdict(code_size.own_config(script, config, 5, latent_dim=4))
        assert (own["latent_dim"], own["hidden_units"], own["seed"], own["updates"]) == (4, (9,), 5, 7)
        assert own["binarisation"] == "dynamic"
        assert own.get("adversarial_weight", 3.0) == 3.0 and own.get("discriminator_units", (9,)) == (9,)


# The experiments as a user runs them


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Parameters of a run on few images, where nothing is compiled."""
    small_runs.quicken(monkeypatch)
    small_runs.uncompiled(monkeypatch)
    if keras.backend.backend() == "tensorflow":
        monkeypatch.setattr(autoregressive, "compiled", lambda function: function)
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (260, *SHAPE), dtype=np.uint8), random.integers(0, 3, 260)
    np.savez(tmp_path / "tiny.npz", x=x, y=y)
    return {"data": str(tmp_path / "tiny.npz"), "results": str(tmp_path), "name": "r", "seeds": (3,)}


def figure_text(path) -> str:
    """What a figure says, without the ends of its lines; see `small_runs.texts_for_figures`."""
    return path.read_bytes().decode(errors="replace").replace("\\n", " ")


def test_loss_scaling_is_tabulated_and_resumes(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(loss_scaling, "WEIGHTED_SAMPLES", 20)
    config = loss_scaling.Config(
        **tiny, hidden_units=(8,), latent_dim=3, epochs=1, batch_size=64, betas=(0.5,), weighted_images=4
    )
    metrics = loss_scaling.main(config)
    folder = tmp_path / "pitfalls_loss_scaling" / "r"
    run = json.loads((folder / "runs.json").read_text())[f"{loss_scaling.EARLIER}, seed 3"]
    assert run["kl_reported_nats"] == pytest.approx(run["kl_stated_nats"] / 3)
    assert run["kl_nats"] == pytest.approx(sum(run["kl_per_dimension_nats"]), rel=1e-4)
    assert run["updates"] == 208 // 64 and run["epochs"] == 1
    assert metrics["β = 0.5 on sums"]["effective_beta"] == 0.5
    for name in ("dimensions", "resampled", "beta"):
        assert "3 updates" in figure_text(folder / f"{name}.png")
    assert "\n| β = 0.5 on sums | 0.5 |" in (folder / "table.md").read_text()
    before = (folder / "runs.json").stat().st_mtime_ns
    assert loss_scaling.main(config) == metrics
    assert (folder / "runs.json").stat().st_mtime_ns == before


def test_posterior_collapse_is_tabulated_and_resumes(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(posterior_collapse, "WEIGHTED_SAMPLES", 20)
    monkeypatch.setattr(code_size, "LEAST_KL", 0.4)  # between the KLs of the two dimensions, but on PyTorch
    monkeypatch.setattr(code_size, "SCRIPTS", ("vae_baseline", "avb"))
    few = (posterior_collapse.PLAIN, posterior_collapse.FREE, posterior_collapse.ADVERSARIAL)
    all_of = posterior_collapse.versions
    monkeypatch.setattr(posterior_collapse, "versions", lambda config: {name: all_of(config)[name] for name in few})
    sizes = {"hidden_units": (8,), "recurrent_units": 4, "row_units": 6, "latent_dim": 2, "code_sizes": (2,)}
    questions = ("decoder", "code_size")
    config = posterior_collapse.Config(**tiny, **sizes, updates=2, weighted_images=4, questions=questions)
    metrics = posterior_collapse.main(config)
    assert set(metrics) == set(questions) and set(metrics["decoder"]) == set(few)
    folder = tmp_path / "pitfalls_posterior_collapse" / "r"
    assert (folder / "decoder.md").is_file() and (folder / "code_size.md").is_file()
    for name, updates in (("decoder", "2 updates"), ("code_size", "6 updates")):
        assert updates in figure_text(folder / f"{name}.png")
    runs = json.loads((folder / "runs.json").read_text())
    assert {name: run["updates"] for name, run in runs.items()} == {
        **{f"{name}, seed 3": 2 for name in few},
        **{f"{name}, 2-D, seed 3": 6 for name in ("VAE", "AVB")},
    }
    assert runs["AVB, 2-D, seed 3"]["kl_dimensions"] is None
    vae = runs["VAE, 2-D, seed 3"]
    above = 2 if keras.backend.backend() == "torch" else 1  # whose random numbers are others
    assert vae["kl_dimensions"] == sum(kl > 0.4 for kl in vae["kl_per_dimension_nats"]) == above
    assert sum(vae["kl_per_dimension_nats"]) == pytest.approx(vae["kl_nats"], rel=1e-5)  # single precision
    before = (folder / "runs.json").stat().st_mtime_ns
    assert posterior_collapse.main(config) == metrics
    assert (folder / "runs.json").stat().st_mtime_ns == before


def test_a_training_is_as_long_as_asked_whatever_the_limit_of_the_scripts(tiny, tmp_path, monkeypatch):
    """6 passes of one update; "24,750 updates" were 22,000 when the scripts' limit of 40 passes held here too."""
    monkeypatch.setattr(training, "MOST_EPOCHS", 2)
    np.savez(tmp_path / "fewer.npz", x=np.random.default_rng(0).integers(0, 256, (200, *SHAPE), dtype=np.uint8))
    config = posterior_collapse.Config(
        **tiny | {"data": str(tmp_path / "fewer.npz")},
        questions=("pixels",),
        hidden_units=(4,),
        latent_dim=2,
        updates=6 // code_size.LONGER,
    )
    metrics = posterior_collapse.main(config)["pixels"][posterior_collapse.PIXELS]
    folder = tmp_path / "pitfalls_posterior_collapse" / "r"
    (run,) = json.loads((folder / "runs.json").read_text()).values()
    assert (run["updates"], run["epochs"], run["images"], run["stopped_by"]) == (6, 6, 600, None)
    assert metrics["updates"] == 6 and metrics["best_nats"] > 0
    assert (folder / "pixels.md").is_file() and not list(folder.glob("*.png"))


def test_the_figure_of_code_sizes_states_the_updates_that_were_made(tiny, tmp_path):
    config = posterior_collapse.Config(**tiny, updates=8250, code_sizes=(2, 8))
    numbers = {key: 1.0 for key in code_size.COLUMNS}
    runs = {f"{name}, seed 3": numbers | {"updates": 22_000} for name in code_size.cases(config)}
    figure = code_size.figure(study.Results(config, load_data(config.data), None, runs))
    figure.savefig(path := tmp_path / "figure.png")
    text = figure_text(path)
    assert "22,000 updates" in text and "24,750" not in text


def test_rows_of_numbers_have_no_rows_to_decode(tmp_path):
    np.savez(tmp_path / "flat.npz", x=np.random.default_rng(0).random((260, 12)), y=np.arange(260) % 3)
    config = posterior_collapse.Config(data=str(tmp_path / "flat.npz"), results=str(tmp_path))
    with pytest.raises(RunError, match="leave decoder out of --questions"):
        posterior_collapse.main(config)
    assert not (tmp_path / "pitfalls_posterior_collapse").exists()
