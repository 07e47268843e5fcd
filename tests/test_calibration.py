"""T's estimate of known divergences: the families against their definition, T, and the experiment on a small set."""

import dataclasses

from common import checkpoint, networks
from common.data import load_data
from common.files import RunError
from common.model import to_numpy
from common.priors import GaussianPrior
from experiments import study
from experiments.avb import kl_calibration, known_kl
from experiments.avb.course import Repeated, epochs_of
from experiments.study import Part

import numpy as np
import pytest
from helpers import Killed, kill_after_checkpoint, runs_in
from keras import ops
from scipy import stats


@pytest.mark.parametrize("family", list(known_kl.FAMILIES))
@pytest.mark.parametrize(("divergence", "dimensions"), [(0.5, 2), (5.0, 8), (40.0, 32)])
def test_families_have_the_divergence_they_are_made_for(family, divergence, dimensions):
    """E log q - log p over draws, within five standard errors."""
    shift, scale, modes = known_kl.FAMILIES[family](divergence, dimensions)
    random = np.random.default_rng(0)
    z = scale * random.standard_normal((20_000, dimensions))
    z[:, 0] += shift * (random.choice([-1, 1], len(z)) if modes == 2 else 1)
    others = stats.norm.logpdf(z[:, 1:], 0, scale).sum(axis=1)
    centres = [shift, -shift] if modes == 2 else [shift]
    first = np.logaddexp.reduce([stats.norm.logpdf(z[:, 0], centre, scale) for centre in centres]) - np.log(modes)
    log_ratio = first + others - stats.norm.logpdf(z).sum(axis=1)
    assert abs(log_ratio.mean() - divergence) < 5 * log_ratio.std() / len(z) ** 0.5


def test_known_posteriors_are_drawn_as_they_are_described():
    family = np.array([known_kl.FAMILIES[name](5.0, 3) for name in known_kl.FAMILIES])
    model = model_of(family, 3, contrast=True, units=(8,))
    x = np.eye(3, dtype="float32")
    found = model.infer_batches(np.split(np.repeat(x, 20_000, axis=0), 120))  # in batches of 500
    for row, (shift, _, modes) in enumerate(family):
        z = found["z"][20_000 * row : 20_000 * (row + 1)]
        mean, variance = (found[key][20_000 * row] for key in ("mean", "variance"))
        error = np.sqrt(variance / len(z))
        assert (np.abs(z.mean(axis=0) - mean) < 5 * error).all()
        np.testing.assert_allclose(z.var(axis=0), variance, rtol=0.06)  # 5 sqrt(2 / n)
        assert mean[0] == pytest.approx(0.0 if modes == 2 else shift, abs=1e-5)


def model_of(family, dimensions, contrast, units):
    return known_kl.KnownKL(
        family,
        adaptive_contrast=contrast,
        prior=GaussianPrior(dimensions),
        seed=0,
        discriminator=networks.pair_discriminator((len(family),), dimensions, units, np.random.default_rng(0)),
    )


@pytest.mark.parametrize(("family", "contrast"), [("shifted", False), ("mixture of two", True)])
def test_t_estimates_one_nat_within_five_percent(family, contrast, monkeypatch, tmp_path):
    """Draws give the estimate, a mean of 160,000, a standard error of 0.004 at most: what is off is T."""
    monkeypatch.setattr(kl_calibration, "DRAWS", 160_000)
    model = model_of(np.array([known_kl.FAMILIES[family](1.0, 2)]), 2, contrast, (64, 64))
    config = kl_calibration.Config(updates=600)
    study.train(model, Repeated(np.ones((256, 1), "float32")), None, config, tmp_path, epochs_of(config))
    assert kl_calibration.estimates(model, 1)["estimates"][0] == pytest.approx(1.0, abs=0.05)


def small_calibration(folder, **changes):
    random = np.random.default_rng(0)
    np.savez(folder / "tiny.npz", x=random.integers(0, 256, (400, 4, 3), dtype=np.uint8))
    config = kl_calibration.Config(
        data=str(folder / "tiny.npz"),
        divergences=(1.0, 5.0),
        dimensions=(2,),
        discriminator_units=(8, 8),
        sizes=(8,),
        size_dimension=2,
        draws=8,
        updates=100,
        seeds=(0,),
        mnist_latent_dim=2,
        mnist_units=(8,),
        mnist_updates=6,
        results=str(folder),
        name="r",
    )
    return dataclasses.replace(config, **changes)


@pytest.fixture
def one_family(monkeypatch):
    """One family, few draws, a checkpoint every epoch."""
    monkeypatch.setattr(kl_calibration, "FAMILIES", {"mixture of two": known_kl.mixture})
    monkeypatch.setattr(kl_calibration, "DRAWS", 100)
    monkeypatch.setattr(kl_calibration, "STEP", 1)
    monkeypatch.setattr(checkpoint, "LEAST_WORK", 0)


def test_calibration_tabulates_every_training(tmp_path, one_family, monkeypatch):
    """Of 250 requested updates 200 are made. A killed training on images ends with the same bits."""
    config = small_calibration(tmp_path, updates=250)
    rows = kl_calibration.main(config)
    folder = tmp_path / "avb_kl_calibration" / "r"
    runs = runs_in(folder)
    run = runs["mixture of two, 2-D, with contrast, seed 0"]
    assert run["updates"] == 200 and run["course"]["updates"] == [100, 200]
    ratios = [rows["mixture of two, 2-D, with contrast"][f"ratio_{divergence}"] for divergence in config.divergences]
    assert ratios == pytest.approx(np.array(run["course"]["estimates"][-1]) / config.divergences)
    on_images = runs["trained on images, with contrast, seed 0"]
    assert rows["trained on images, with contrast"]["kl_nats"] == on_images["course"]["kl_nats"][-1] > 0
    assert on_images["course"]["updates"] == [3, 6] and on_images["updates"] == 6
    assert all((folder / f"{name}.png").is_file() for name in ("calibration", "training", "size", "mnist"))
    table = (folder / "table.md").read_text()
    assert "| estimate / KL of 1 nats | estimate / KL of 5 nats |" in table and "trained on images" in table

    part = Part(config, load_data(config.data), 0, tmp_path / "killed", first=True)
    with monkeypatch.context() as patch:
        kill_after_checkpoint(patch, 1)
        with pytest.raises(Killed):
            kl_calibration.learned(True, part)
    again = kl_calibration.learned(True, part)
    assert again == {key: on_images[key] for key in again}


def test_calibration_that_meets_nan_has_no_number(tmp_path, one_family, monkeypatch):
    """A learning rate of 1e30: T's first update is finite, its second is not."""
    monkeypatch.setattr(kl_calibration, "CONTRASTS", kl_calibration.CONTRASTS[1:])
    monkeypatch.setattr(kl_calibration, "name_of_size", lambda config, size: "mixture of two, 2-D")
    rows = kl_calibration.main(small_calibration(tmp_path, learning_rate=1e30, mnist_updates=3))
    assert all(means["stopped"] == 1 for means in rows.values())
    assert rows["mixture of two, 2-D, with contrast"]["ratio_1.0"] is None
    assert rows["trained on images, with contrast"]["kl_nats"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"updates": 50}, "--updates must be at least 100, not 50"),
        ({"divergences": (0.0,)}, "--divergences must be above 0"),
    ],
)
def test_calibration_refuses_before_any_work(changes, message, tmp_path):
    with pytest.raises(RunError, match=message):
        kl_calibration.main(small_calibration(tmp_path, **changes))
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.npz"]


def test_calibration_refuses_images_that_fill_no_batch(tmp_path):
    np.savez(tmp_path / "few.npz", x_train=np.zeros((90, 4, 3), "uint8"), x_test=np.zeros((20, 4, 3), "uint8"))
    with pytest.raises(RunError, match="training images; give 100 or more"):
        kl_calibration.main(small_calibration(tmp_path, data=str(tmp_path / "few.npz")))
    assert not (tmp_path / "avb_kl_calibration").exists()


def test_a_gaussian_encoder_has_both_divergences():
    """With T at 0, contrast's r is q itself: the estimate is log q - log p of the draw, whose mean is the KL."""
    random = np.random.default_rng(0)
    model = kl_calibration.GaussianAVB(
        adaptive_contrast=True,
        prior=GaussianPrior(3),
        seed=0,
        encoder=networks.encoder((4,), 6, (8,), random),
        decoder=networks.decoder(3, (4,), (8,), random),
        discriminator=networks.pair_discriminator((4,), 3, (8,), random),
    )
    x = ops.convert_to_tensor(np.tile(np.random.default_rng(1).random((1, 4)), (20_000, 1)).astype("float32"))
    found = {key: to_numpy(value) for key, value in model.divergences(x, model.infer(x)).items()}
    estimate = found["kl_estimated_nats"]
    assert abs(estimate.mean() - found["kl_nats"][0]) < 5 * estimate.std() / len(estimate) ** 0.5
