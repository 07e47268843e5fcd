"""experiments/comparison/likelihoods.py: what is tabulated is what the instruments say of the requested models."""

import dataclasses
import itertools
import json

import vae_baseline
from common import scripts
from common.command import requested
from common.data import load_data
from common.evaluation import likelihood
from common.files import RunError
from common.measure import stated_terms
from common.measure_likelihood import OF_IMAGES, LikelihoodSettings, annealed
from common.progress import TimeLeft
from common.run import load_config, load_run
from common.training import compile_model
from experiments import paired, study
from experiments.comparison import likelihoods
from experiments.comparison.likelihoods import PARZEN, PRESETS, STUDY
from experiments.paired import DIFFERENCE

import keras
import numpy as np
import pytest
import small_runs
from scipy.special import logsumexp
from scipy.stats import norm

SHAPE = (4, 3)
SEEDS = (3, 4)
AAE, VAE = "Deterministic AAE", "VAE"
FEW = {"annealed_images": 5, "chains": 2, "temperatures": (3, 6)}
WINDOWS = 50
TINY = {"latent_dim": 2, "hidden_units": (8,), "updates": 2, "window_samples": WINDOWS, "seeds": SEEDS, "name": "r"}


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Little to compile, draw and measure; see `small_runs`."""
    with pytest.MonkeyPatch.context() as patch:
        small_runs.uncompiled(patch)
        small_runs.short_annealing(patch)
        small_runs.cheap_instruments(patch)
        small_runs.texts_for_figures(patch)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The path of 260 images: 208 to train, 26 to validate, 26 to test."""
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, x=np.random.default_rng(0).integers(0, 256, (260, *SHAPE), dtype=np.uint8))
    return str(path)


@pytest.fixture(scope="module")
def of_paper(data, tmp_path_factory):
    """The preset of the AAE paper in small: its Config, metrics, folder, and the images of each Parzen window."""
    results, windows = tmp_path_factory.mktemp("results"), []
    config = likelihoods.Config(data=data, results=str(results), **PRESETS["aae_paper"] | TINY | FEW)
    parzen = likelihoods.parzen

    def watched(samples, dataset):
        windows.append(samples)
        return parzen(samples, dataset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likelihoods, "parzen", watched)
        metrics = likelihoods.main(config)
    keras.utils.clear_session()
    return config, metrics, results / "comparison_likelihoods" / "r", windows


def parzen_by_hand(samples, images, sigma):
    """Mean log density of images under a mixture of Gaussians, all of deviation sigma, on the samples."""
    samples, images = (np.asarray(array, "float64").reshape(len(array), -1) for array in (samples, images))
    squares = np.square((images[:, None] - samples[None]) / sigma).sum(axis=2)
    log_normal = -0.5 * squares - images.shape[1] * np.log(sigma * np.sqrt(2 * np.pi))
    return (logsumexp(log_normal, axis=1) - np.log(len(samples))).mean()


def test_the_models_of_the_preset_are_those_of_the_paper(data):
    """Section 3's prior and code for the AAE, the VAE's prior is N(0, I); both are trained on grey images."""
    config, dataset = likelihoods.Config(**PRESETS["aae_paper"]), load_data(data)
    both = {
        title: study.script_config(script, config, 7, **own)
        for title, (script, own) in likelihoods.decoders(config, dataset).items()
    }
    assert list(both) == [AAE, VAE]
    assert both[AAE].prior_scale == 5.0 and both[VAE].prior_scale == 1.0
    for each in both.values():
        assert (each.latent_dim, each.hidden_units, each.binarisation) == (8, (1000, 1000), "none")
        assert (each.seed, each.updates, each.batch_size) == (7, config.updates, 100)
    script = likelihoods.decoders(config, dataset)[AAE][0]
    built = script.build(dataclasses.replace(both[AAE], hidden_units=(4,)), SHAPE)
    assert built.adversarial_weight == config.adversarial_weight == 8.0
    assert built.prior.scale == 5.0 and built.prior.latent_dim == 8 and built.posterior == "point"


def test_a_preset_gives_defaults_to_all_that_no_flag_sets(monkeypatch):
    def parsed(*arguments):
        monkeypatch.setattr("sys.argv", ["likelihoods", *arguments])
        return requested(likelihoods.Config, lambda config: study.presets(STUDY, config))

    assert parsed() == likelihoods.Config()
    paper = likelihoods.Config(name="aae_paper", **PRESETS["aae_paper"])
    assert parsed("--preset", "aae_paper") == paper
    assert parsed("--preset", "aae_paper", "--seeds", "0") == dataclasses.replace(paper, seeds=(0,))
    quick = parsed("--preset", "aae_paper", "--quick", "--updates", "8250")
    assert (quick.name, quick.updates, quick.temperatures) == ("aae_paper-quick", 8250, (20, 60))
    assert (quick.weighted_samples, quick.prior_scale) == (0, 5.0)


@pytest.mark.parametrize(
    ("script", "parameters", "expected"),
    [
        ("likelihoods", {"seed": 7}, likelihoods.Config(seeds=(7,))),
        ("aae_likelihood", {"seeds": [7]}, likelihoods.Config(**PRESETS["aae_paper"] | {"seeds": (7,)})),
    ],
)
def test_older_runs_have_the_parameters_of_today(tmp_path, script, parameters, expected):
    folder = tmp_path / script / "r"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"script": script, "parameters": parameters}))
    assert load_config(folder) == dataclasses.replace(expected, results=str(tmp_path), name="r")


def test_the_annealed_columns_are_what_the_instrument_says(of_paper):
    config, metrics, folder, _ = of_paper
    assert list(metrics) == [AAE, VAE, f"{WINDOWS} real training digits", f"{WINDOWS} k-means centroids"]

    # Measured once more: every draw of it has a seed of its own.
    dataset = load_data(config.data)
    settings = LikelihoodSettings(*FEW.values(), 0, 0)
    estimates = {}
    for title, script in ((AAE, "aae_deterministic"), (VAE, "vae_baseline")):
        trained = [load_run(folder / script / f"{title.lower().replace(' ', '-')}-seed-{seed}") for seed in SEEDS]
        found = [annealed(model, dataset, settings, TimeLeft()) for model in trained]
        estimates[title] = [of_images for _, of_images in found]
        value = np.mean([numbers["annealed_log_likelihood_nats"].value for numbers, _ in found])
        assert metrics[title]["annealed_log_likelihood_nats"] == pytest.approx(value, rel=1e-4)
        gaps = [numbers["annealed_gap_nats"].value for numbers, _ in found]
        assert metrics[title]["annealed_gap_nats_sd"] == pytest.approx(np.std(gaps, ddof=1), rel=1e-2, abs=1e-3)

    # Image by image, the error is that of the differences.
    apart = np.array(estimates[AAE]) - np.array(estimates[VAE])  # (seeds, images)
    assert metrics[AAE][DIFFERENCE] == pytest.approx(apart.mean(), abs=1e-3)
    errors = apart.std(axis=1, ddof=1) / np.sqrt(FEW["annealed_images"])
    assert metrics[AAE][f"{DIFFERENCE}_standard_error"] == pytest.approx(errors.mean(), rel=1e-2, abs=1e-3)
    assert metrics[VAE][DIFFERENCE] is None


def test_the_parzen_column_is_that_of_a_mixture_written_out(of_paper):
    config, _, folder, windows = of_paper
    runs, dataset = json.loads((folder / "runs.json").read_text()), load_data(config.data)
    # The order is that of the parts.
    assert [len(samples) for samples in windows] == [WINDOWS] * 4 * len(SEEDS)
    for name, samples in zip(runs, windows, strict=True):
        expected = parzen_by_hand(samples, dataset.x_test, runs[name]["parzen_sigma"])
        assert runs[name][PARZEN] == pytest.approx(expected, rel=1e-6)
        if "digits" in name:
            training = {image.tobytes() for image in dataset.x_train}
            assert {image.tobytes() for image in samples} <= training
    with np.load(folder / "deterministic-aae-seed-3" / "pictures.npz") as arrays:
        np.testing.assert_array_equal(arrays["samples"], windows[0][: likelihoods.SHOWN])  # of the first seed


def test_the_table_has_a_row_a_model_and_every_figure_is_made(of_paper):
    _, metrics, folder, _ = of_paper
    rows = (folder / "table.md").read_text().splitlines()[2:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == list(metrics)  # no reported numbers for other data
    means = metrics[AAE]
    mean, error, spread = (means[f"{PARZEN}{end}"] for end in ("", "_standard_error", "_sd"))
    assert f"{mean:.0f} ± {error:.0f} ({spread:.0f})".replace("-", "−") in rows[0]
    for picture in ("likelihoods.png", "samples.png", "vae_baseline/vae-seed-4/annealing.png"):
        assert (folder / picture).stat().st_size


def test_numbers_of_the_script_are_those_of_its_run(of_paper):
    _, metrics, folder, _ = of_paper
    saved = [json.loads(path.read_text()) for path in folder.glob("vae_baseline/*/metrics.json")]
    for key in likelihoods.OF_RUN:
        assert metrics[VAE][key] == pytest.approx(np.mean([numbers[key] for numbers in saved]))
        errors = [numbers[f"{key}_standard_error"] for numbers in saved]
        assert metrics[VAE][f"{key}_standard_error"] == pytest.approx(np.mean(errors))


def test_a_saved_part_is_not_made_again(of_paper, monkeypatch):
    config, first, folder, _ = of_paper
    path = folder / "runs.json"
    runs = json.loads(path.read_text())
    lost = f"real training digits, seed {SEEDS[0]}"  # as if killed before it
    path.write_text(json.dumps({name: run for name, run in runs.items() if name != lost}))
    monkeypatch.setattr(likelihoods, "decoder_case", lambda *_: pytest.fail("made again"))
    monkeypatch.setattr(likelihoods, "KMeans", None)  # digits wait for no clustering
    assert likelihoods.main(config) == first
    assert json.loads(path.read_text()) == runs
    monkeypatch.setattr(likelihoods, "parzen", None)  # nothing is left to do
    assert likelihoods.main(config) == first
    with pytest.raises(RunError, match="made with another --"):
        likelihoods.main(dataclasses.replace(config, prior_scale=1.0))


def test_a_killed_part_measures_its_complete_run_and_trains_nothing(of_paper, monkeypatch):
    config, first, folder, _ = of_paper
    path = folder / "runs.json"
    runs = json.loads(path.read_text())
    path.write_text(json.dumps({name: run for name, run in runs.items() if name != "VAE, seed 4"}))
    monkeypatch.setattr(scripts.load_script("vae_baseline"), "main", None)
    assert likelihoods.main(config) == first
    metrics = folder / "vae_baseline" / "vae-seed-4" / "metrics.json"
    content = metrics.read_text()
    metrics.write_text("{")
    path.write_text(json.dumps({name: run for name, run in runs.items() if name != "VAE, seed 4"}))
    with pytest.raises(RunError, match="no complete run") as refusal:
        likelihoods.main(config)
    assert "\n" not in str(refusal.value)
    metrics.write_text(content)
    path.write_text(json.dumps(runs))


def test_reported_numbers_stand_beside_mnist_alone(of_paper):
    config, metrics, folder, _ = of_paper
    dataset = dataclasses.replace(load_data(config.data), is_mnist=True)
    runs = json.loads((folder / "runs.json").read_text())
    results = study.Results(config, dataset, folder, runs)
    text = likelihoods.tables(STUDY, results, metrics)["table.md"].splitlines()
    assert len(text) == 2 + len(metrics) + 4 and "340 ± 2" in text[6] and "Deterministic AAE, reported" in text[6]
    assert likelihoods.estimates_figure(results, metrics).axes
    other = study.Results(dataclasses.replace(config, preset="none"), dataset, folder, runs)
    assert len(likelihoods.tables(STUDY, other, metrics)["table.md"].splitlines()) == 2 + len(metrics)


def test_a_window_without_a_width_is_a_dash_and_has_no_point(of_paper, monkeypatch):
    """Where sigma lies on the edge of its grid there is no number, and the reason is kept."""

    def refused(samples, images):
        raise ValueError("sigma 0.05 is the edge of the grid")

    config, _, folder, _ = of_paper
    monkeypatch.setattr(likelihood, "parzen_sigma", refused)
    dataset = load_data(config.data)
    part = study.Part(config, dataset, 3, folder, first=True)
    run = likelihoods.window_case(likelihoods.real_digits, part)
    assert "edge" in run["null_because"]["parzen_sigma"] and run["windows"] == WINDOWS
    runs = json.loads((folder / "runs.json").read_text())
    results = study.Results(config, dataset, folder, {name: numbers | run for name, numbers in runs.items()})
    metrics = likelihoods.rows(STUDY, results)
    (row,) = [means for name, means in metrics.items() if "digits" in name]
    assert row[PARZEN] is None
    assert PARZEN not in likelihoods.tables(STUDY, results, metrics)["table.md"]
    assert likelihoods.estimates_figure(results, metrics).axes


def test_the_annealed_estimate_is_carried_to_all_images_of_the_bound(data, tmp_path, monkeypatch):
    made, carried = [], paired.carried
    monkeypatch.setattr(
        paired, "carried", lambda *arrays: made.append((*map(len, arrays), carried(*arrays))) or made[-1][2]
    )
    config = likelihoods.Config(
        data=data,
        models=("vae_short", "vae_baseline", "aae_gaussian"),
        few_updates=1,
        weighted_images=8,
        weighted_samples=5,
        results=str(tmp_path),
        **TINY | FEW | {"seeds": (0,), "updates": 4, "temperatures": (3,)},
    )
    metrics = likelihoods.main(config)
    runs = json.loads((tmp_path / "comparison_likelihoods" / "r" / "runs.json").read_text())
    assert list(metrics) == [
        "VAE, 2 updates",
        "VAE, 4 updates",
        "Gaussian AAE",
        f"{WINDOWS} real training digits",
        f"{WINDOWS} k-means centroids",
    ]
    assert [run.get("updates") for run in runs.values()] == [2, 4, 4, None, None]
    for numbers, (images, annealed_images, estimate) in zip(list(runs.values())[:3], made, strict=True):
        parts = "importance_weighted_bound_nats", "annealed_minus_weighted_nats"
        assert numbers["carried_log_likelihood_nats"] == pytest.approx(sum(numbers[part] for part in parts))
        assert (images, annealed_images) == (8, 5)
        assert numbers["carried_log_likelihood_nats_standard_error"] == estimate.standard_error > 0
    estimates = [np.array(run[OF_IMAGES]["log_likelihood_nats"]) for run in list(runs.values())[:3]]
    assert metrics["VAE, 2 updates"][DIFFERENCE] == pytest.approx((estimates[0] - estimates[1]).mean())
    assert metrics["Gaussian AAE"][DIFFERENCE] == pytest.approx((estimates[2] - estimates[1]).mean())
    assert metrics["VAE, 4 updates"][DIFFERENCE] is None
    keras.utils.clear_session()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ()}, "--seeds"),
        ({"models": ()}, "--models"),
        ({"models": ("vae",)}, "--models"),
        ({"annealed_images": 1}, "--annealed-images"),
        ({"temperatures": (0,)}, "--temperatures"),
        ({"prior_scale": 0.0}, "--prior-scale"),
        ({"binarisation": "threshold"}, "--binarisation"),
        ({"name": "a/b"}, "--name"),
        ({"updates": 7, "few_updates": 6, "data": "tiny.npz"}, "the same number of passes"),
        ({}, "100 or more"),
        ({"data": "mapped.npy"}, r"stays in its \.npy"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line_before_any_work(tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    np.savez("few.npz", x_train=np.full((90, 2, 2), 7, np.uint8), x_test=np.full((30, 2, 2), 7, np.uint8))
    np.savez("tiny.npz", x=np.full((500, 2, 2), 7, np.uint8))
    np.save("mapped.npy", np.full((500, 2, 2), 7, np.uint8))
    config = likelihoods.Config(data="few.npz", results="results")
    with pytest.raises(RunError, match=message) as refusal:
        likelihoods.main(dataclasses.replace(config, **changes))
    assert "\n" not in str(refusal.value) and not (tmp_path / "results").exists()


def test_a_grey_negative_elbo_bounds_the_log_p_of_its_binarisations():
    """The cross-entropy of a grey image is the mean of -log p(b|z) over its binarisations b, one by one here.

    So the grey −ELBO is their mean −log p(b), plus the mean KL from q(z|grey) to p(z|b). That needs a q(z|x) that does
    not see the pixels that are scored: here it sees the grey image.
    """
    shades = np.random.default_rng(0).beta(0.4, 0.4, (200, 1, 1))  # of all pixels: what there is to encode
    grey = (0.05 + 0.9 * np.tile(shades, (1, 2, 2))).astype("float32")
    config = vae_baseline.Config(latent_dim=1, hidden_units=(8,), learning_rate=0.05, binarisation="none")
    model = vae_baseline.build(config, (2, 2))
    compile_model(model, config)
    for _ in range(60):
        model.train_on_batch(grey)
    z = np.linspace(-9, 9, 3001)
    step, images = z[1] - z[0], grey[:20].reshape(20, 4).astype("float64")
    pixels = model.means(z[:, None].astype("float32")).reshape(-1, 4).astype("float64")

    def log_likelihood(rows):
        return rows @ np.log(pixels).T + (1 - rows) @ np.log(1 - pixels).T  # (rows, points)

    binary = np.array(list(itertools.product((0.0, 1.0), repeat=4)))
    shares = np.prod(np.where(binary[None] > 0, images[:, None], 1 - images[:, None]), axis=2)  # P(b|grey)
    joint = log_likelihood(binary) + norm.logpdf(z)
    log_p = logsumexp(joint, axis=1) + np.log(step)
    inferred = model.inferred_rows(grey[:20])
    mean, deviation = inferred["mean"].astype("float64"), np.exp(inferred["log_var"].astype("float64") / 2)
    q, log_q = norm.pdf(z, mean, deviation), norm.logpdf(z, mean, deviation)
    kl = (q * (log_q - norm.logpdf(z))).sum(axis=1) * step
    negative_elbo = -(q * log_likelihood(images)).sum(axis=1) * step + kl
    to_posteriors = (q[:, None] * (log_q[:, None] - joint + log_p[:, None])).sum(axis=2) * step
    mean_of_binary = -shares @ log_p
    np.testing.assert_allclose(negative_elbo, mean_of_binary + (shares * to_posteriors).sum(axis=1), rtol=1e-6)
    assert (negative_elbo > mean_of_binary).all() and kl.mean() > 0.02  # the code is in use

    # It is the number that a script states of grey images: the mean of its draws, within 5 standard errors.
    terms = {name: draws.mean(axis=0) for name, draws in stated_terms(model, np.tile(grey[:20], (20, 1, 1))).items()}
    stated = (terms["reconstruction"] + terms["kl"]).reshape(20, 20)
    errors = np.maximum(stated.std(axis=0) / 20**0.5, 1e-5)
    assert (np.abs(stated.mean(axis=0) - negative_elbo) < 5 * errors).all()
    keras.utils.clear_session()
