"""AVB's promises: the grid against closed forms, the toy and the eight schools on small sets."""

import dataclasses
import functools
import importlib.util
import json
import sys
from types import SimpleNamespace

from common import checkpoint
from common.command import requested
from common.files import RunError
from common.model import gaussian_kl, to_numpy
from experiments import study
from experiments.avb import eight_schools, posteriors, toy
from experiments.avb.course import Course
from experiments.avb.plane import Plane
from experiments.study import Part, each_once

import numpy as np
import pytest
from helpers import Killed, kill_after_checkpoint, runs_in
from keras import ops
from scipy import integrate, stats

TOY_PLANE = Plane((-5.0, -5.0), (5.0, 5.0), 400)
COARSE_PLANE = Plane((-5.0, -5.0), (5.0, 5.0), 60)  # for what is not about its numbers
PLANE = Plane((-6.0, -5.0), (6.0, 7.0), 300)
needs_numpyro = pytest.mark.skipif(not importlib.util.find_spec("numpyro"), reason="compares with numpyro")


def normal_2d(mean, deviations):
    """log density of independent normals on the plane's grid."""
    return sum(stats.norm.logpdf(PLANE.centres[..., axis], mean[axis], deviations[axis]) for axis in (0, 1))


# The grid. Cells of 0.04 against deviations of 0.5 and more: the midpoint rule is exact to rounding there.
def test_the_integral_of_an_unnormalised_gaussian_is_its_constant():
    log_density = normal_2d((0.3, 0.8), (0.7, 0.9)) + 1.7
    assert PLANE.log_integral(log_density) == pytest.approx(1.7, abs=1e-9)
    assert PLANE.log_integral(PLANE.normalised(log_density)) == pytest.approx(0.0, abs=1e-9)


def test_the_kl_of_two_gaussians_on_the_grid_is_the_closed_form():
    means, deviations = np.array([[0.5, 1.0]], "float32"), np.array([[0.5, 0.8]], "float32")
    exact = float(to_numpy(gaussian_kl(ops.convert_to_tensor(means), ops.convert_to_tensor(2 * np.log(deviations))))[0])
    density = np.exp(normal_2d(means[0], deviations[0]))
    assert PLANE.kl(density, normal_2d((0, 0), (1, 1))) == pytest.approx(exact, abs=1e-5)  # float32's closed form


def test_expectations_leave_out_cells_without_mass():
    density = np.exp(normal_2d((0.0, 1.0), (0.5, 0.5)))
    density[:150] = 0.0  # z1 < 0
    values = np.where(PLANE.centres[..., 0] < 0, -np.inf, PLANE.centres[..., 0])
    assert PLANE.mean(density, values) == pytest.approx(0.5 / np.sqrt(2 * np.pi), abs=1e-3)


def test_the_density_of_draws_is_the_one_they_come_from():
    """100,000 draws: the histogram's noise adds (cells in use by the kernel) / 2n = 0.001 nats to the KL."""
    draws = np.random.default_rng(0).normal((0.5, 1.0), (0.5, 0.8), (100_000, 2))
    exact = normal_2d((0.5, 1.0), (0.5, 0.8))
    assert abs(PLANE.kl(PLANE.density_of(draws), exact)) < 0.01
    far = np.concatenate([draws, np.full((25_000, 2), 100.0)])
    assert PLANE.density_of(far).sum() * PLANE.area == pytest.approx(0.8, abs=1e-3)  # lost, not squeezed in


# The toy


def small_toy(**changes):
    sizes = {"hidden_units": (16,), "discriminator_units": (16, 16), "batch_size": 64, "updates": 100}
    return dataclasses.replace(toy.Config(**sizes, final_draws=500, course_draws=500), **changes)


def test_a_vae_is_measured_on_the_grid_as_in_closed_form():
    """The grid against the Gaussian KL and against ELBO = log p - KL(q || p(z|x)), with 200,000 draws of each point.

    Deviations are about 0.37: the kernel, 0.025 wide, takes 0.005 from the KL, and the noise of the histogram, by the
    number of kernels that fit into the density over twice the draws, adds 0.002.
    """
    model, points = toy.vae(small_toy(), 4, seed=0), np.eye(4, dtype="float32")
    *others, _ = model.encoder.get_weights()
    model.encoder.set_weights([*(0.3 * weights for weights in others), np.array([0, 0, -2, -2], "float32")])
    found, panels = toy.on_the_plane(model, points, TOY_PLANE, 200_000)
    inferred = model.inferred(points)
    exact = gaussian_kl(ops.convert_to_tensor(inferred["mean"]), ops.convert_to_tensor(inferred["log_var"]))
    assert found["kl_true_nats"] == pytest.approx(float(to_numpy(exact).mean()), abs=0.01)
    assert found["kl_nats"] == pytest.approx(found["kl_true_nats"], abs=0.01)
    gap = np.mean([TOY_PLANE.kl(panel.density, panel.log_exact) for panel in panels])
    assert found["elbo_nats"] == pytest.approx(found["log_likelihood_nats"] - gap, abs=0.01)
    assert found["marginal_kl_nats"] <= found["kl_true_nats"]


def test_log_p_of_a_decoder_that_ignores_its_code_is_its_bernoulli():
    model = toy.avb(small_toy(), 3, seed=0)
    *hidden, _ = model.decoder.get_weights()
    hidden[-1] = np.zeros_like(hidden[-1])
    model.decoder.set_weights([*hidden, np.array([0.5, -1.0, 2.0], "float32")])
    p = 1 / (1 + np.exp([-0.5, 1.0, -2.0]))
    exact = np.mean([np.log(p[i]) + sum(np.log(1 - p[j]) for j in range(3) if j != i) for i in range(3)])
    found, _ = toy.on_the_plane(model, np.eye(3, dtype="float32"), TOY_PLANE, toy.ROWS)
    assert found["log_likelihood_nats"] == pytest.approx(exact, abs=1e-5)  # the prior's mass outside: 1e-6
    assert found["reconstruction_nats"] == pytest.approx(-exact, abs=1e-5)


def test_moments_of_a_black_box_are_those_of_the_codes_of_the_same_x():
    model = toy.avb(small_toy(), 3, seed=0)
    x = np.eye(3, dtype="float32")[[0, 2, 1, 0, 2, 0]]
    found = {key: to_numpy(value) for key, value in model.infer(ops.convert_to_tensor(x)).items()}
    for label in range(3):
        rows = x[:, label] == 1
        z = found["z"][rows]
        np.testing.assert_allclose(found["mean"][rows], np.tile(z.mean(axis=0), (len(z), 1)), atol=1e-6)
        np.testing.assert_allclose(found["variance"][rows], np.tile(z.var(axis=0), (len(z), 1)), atol=1e-6)


SMALL = {"toy.PLANE": COARSE_PLANE, "toy.FRAMES": 2, "toy.CODES": 20} | {
    f"{module}.UPDATES_A_RECORD": 40 for module in ("course", "toy")
}


@pytest.fixture
def coarse(monkeypatch):
    """For the toy: a coarse grid, two frames of the animation, epochs of 40 updates, a checkpoint after each."""
    for name, value in SMALL.items():
        monkeypatch.setattr(f"experiments.avb.{name}", value)
    monkeypatch.setattr(checkpoint, "LEAST_WORK", 0)


@pytest.fixture(scope="module")
def whole_toy(tmp_path_factory):
    """A toy that nothing interrupted, 3 epochs: its Config, metrics and folder."""
    results = tmp_path_factory.mktemp("toy")
    config = small_toy(points=(2,), seeds=(0,), updates=130, results=str(results), name="whole")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(f"experiments.avb.{name}", value)
        return config, toy.main(config), results / "avb_toy" / "whole"


def test_the_toy_goes_on_where_it_stopped(whole_toy, coarse, monkeypatch):
    config, metrics, folder = whole_toy
    runs = runs_in(folder)
    for key, (name, _) in toy.MODELS.items():
        run = runs[study.part_name(toy.name_of(key, 2), 0)]
        assert metrics[f"{name}, 2 points"]["kl_true_nats"] == run["kl_true_nats"]
        assert run["log_likelihood_nats"] <= -np.log(2)  # no model can be above
    names = ("posteriors-2.png", "training-2.png", "codes-2.gif", "table.md")
    assert all((folder / name).stat().st_size for name in names)
    monkeypatch.setattr(toy, "case", lambda *args: pytest.fail("nothing is left to do"))
    assert toy.main(config) == metrics
    with pytest.raises(RunError, match="made with another --noise-dim"):
        toy.main(dataclasses.replace(config, noise_dim=3))


def test_the_toys_metrics_are_means_over_the_seeds(tmp_path):
    config, values = small_toy(seeds=(3, 5)), {3: 0.25, 5: 1.0}
    runs = {
        study.part_name(case, seed): {"kl_true_nats": value, "updates": 100}
        for case in toy.cases(config, None)
        for seed, value in values.items()
    }
    rows = study.rows_of_cases(toy.STUDY, study.Results(config, None, tmp_path, runs))
    assert rows["AVB, 4 points"]["kl_true_nats"] == np.mean([*values.values()])
    assert rows["AVB, 4 points"]["kl_true_nats_sd"] == pytest.approx(np.std([*values.values()], ddof=1))


def test_the_toy_states_the_updates_that_it_made(whole_toy):
    """Of 130 requested updates 3 epochs of 40: in the metrics, in runs.json and under the figure."""
    config, metrics, folder = whole_toy
    assert {means["updates"] for means in metrics.values()} == {120}
    runs = runs_in(folder)
    assert all((run["updates"], run["epochs"], run["images"]) == (120, 3, 120 * 64) for run in runs.values())
    results = study.Results(config, None, folder, runs)
    assert results.updates("VAE, 2 points", "AVB, 2 points") == "120 updates"


def test_the_course_has_the_last_measurement_too(whole_toy, tmp_path, coarse):
    """With 9 epochs of 40 updates and a measurement after every second, there is one after the ninth too."""
    course = Course(tmp_path, 9, 2, lambda model: {"number": 1.0})
    course.set_model(SimpleNamespace(stop_training=False))
    for epoch in range(9):
        course.on_epoch_end(epoch)
    assert course.columns() == {"updates": [80, 160, 240, 320, 360], "number": [1.0] * 5}
    assert runs_in(whole_toy[2])["VAE, 2 points, seed 0"]["course"]["updates"] == [40, 80, 120]


def test_a_toy_that_is_killed_ends_with_the_same_bits(whole_toy, coarse, tmp_path, monkeypatch):
    """Killed after the second measurement and frame, before the checkpoint that goes with them."""
    config, _, folder = whole_toy
    config = dataclasses.replace(config, results=str(tmp_path))
    monkeypatch.setattr(toy, "MODELS", {"avb": toy.MODELS["avb"]})
    with monkeypatch.context() as patch:
        kill_after_checkpoint(patch, 1)
        with pytest.raises(Killed):
            toy.main(config)
    resumed = tmp_path / "avb_toy" / "whole"
    part = resumed / "avb-2-points-seed-0"
    assert [point["updates"] for point in json.loads((part / "course.json").read_text())] == [40, 80]
    assert [path.name for path in checkpoint.saved_files(part)] == ["checkpoint-1"]
    toy.main(config)
    name = "AVB, 2 points, seed 0"
    assert runs_in(resumed) == {name: runs_in(folder)[name]}
    for name in ("codes.npz", "pictures.npz"):
        with np.load(part / name) as again, np.load(folder / part.name / name) as once:
            assert again.files == once.files
            assert all((again[key] == once[key]).all() for key in once.files)
    assert not list(resumed.rglob("checkpoint-*"))


def test_a_damaged_course_is_refused_in_a_line(tmp_path):
    (tmp_path / "course.json").write_text("{")
    with pytest.raises(RunError, match="holds no complete run"):
        Course(tmp_path, 3, 1, None)


def test_a_toy_that_meets_nan_is_measured_as_it_was_before(coarse, tmp_path, monkeypatch):
    """A learning rate of 1e30 breaks the model at once: there are numbers of the first weights, and no curves."""
    monkeypatch.setattr(toy, "MODELS", {"vae": toy.MODELS["vae"]})
    config = small_toy(points=(2,), seeds=(0,), learning_rate=1e30, results=str(tmp_path), name="r")
    metrics = toy.main(config)
    assert all(means["stopped"] == 1 and means["log_likelihood_nats"] < 0 for means in metrics.values())
    assert "VAE, 2 points, 1 stopped early" in (tmp_path / "avb_toy" / "r" / "table.md").read_text()
    assert not (tmp_path / "avb_toy" / "r" / "training-2.png").exists()


def test_parts_that_are_there_are_not_made_again(tmp_path):
    calls = []

    def make(name):
        calls.append(name)
        if name == "broken":
            raise KeyboardInterrupt
        return {"value": name}

    with pytest.raises(KeyboardInterrupt):
        each_once(tmp_path, ["a", "broken", "b"], make)
    assert each_once(tmp_path, ["a", "b"], make) == {"a": {"value": "a"}, "b": {"value": "b"}}
    assert calls == ["a", "broken", "b"]


def test_quick_replaces_what_was_not_asked_for(monkeypatch):
    """A flag that equals the default counts as set."""
    monkeypatch.setattr(sys, "argv", ["toy", "--quick", "--seeds", "0", "1", "2", "3", "4"])
    config = requested(toy.Config, lambda config: study.presets(toy.STUDY, config))
    assert config.quick and config.seeds == toy.Config().seeds and config.updates == toy.QUICK["updates"]


# Posteriors without data


@pytest.mark.parametrize("key", list(posteriors.PROBLEMS))
def test_exact_draws_have_the_density_of_the_grid(key):
    """100,000 draws; noise of the histogram as above, and the valley, 0.3 wide, has cells of 0.04 in its height."""
    problem = posteriors.PROBLEMS[key]
    draws = posteriors.exact_draws(problem, 100_000, seed=0)
    log_exact = problem.plane.normalised(problem.log_marginal(problem.plane.centres))
    assert problem.plane.kl(problem.plane.density_of(draws[:, :2]), log_exact) < 0.02
    assert draws.shape == (100_000, problem.dimensions)


def test_the_schools_effects_integrate_out():
    """log p(y, mu, tau) by quadrature over each eta, which given mu and tau are independent."""
    problem = posteriors.PROBLEMS["altered"]
    mu, tau = 0.7, -0.6
    exact = stats.norm.logpdf(mu) + stats.norm.logpdf(tau)
    for y, sigma in zip(posteriors.EFFECTS, posteriors.ALTERED_ERRORS, strict=True):
        likelihood = integrate.quad(
            lambda eta, y=y, sigma=sigma: stats.norm.pdf(y, mu + tau * eta, sigma) * stats.norm.pdf(eta), -8, 8
        )
        exact += np.log(likelihood[0])
    assert problem.log_marginal(np.array([mu, tau])) == pytest.approx(exact, abs=1e-5)  # data in float32


def test_the_schools_posterior_is_the_known_one():
    """Log evidence -12.711, E mu 0.776, sd 0.324, E|tau| 0.702, as computed apart from this code."""
    problem = posteriors.PROBLEMS["altered"]
    plane, log_joint = problem.plane, problem.log_marginal(problem.plane.centres)
    assert plane.log_integral(log_joint) == pytest.approx(-12.711, abs=1e-3)
    density, (mu, tau) = np.exp(plane.normalised(log_joint)), np.moveaxis(plane.centres, -1, 0)
    assert plane.mean(density, mu) == pytest.approx(0.776, abs=1e-3)
    assert plane.mean(density, (mu - 0.776) ** 2) ** 0.5 == pytest.approx(0.324, abs=1e-3)
    assert plane.mean(density, np.abs(tau)) == pytest.approx(0.702, abs=1e-3)


def test_the_joint_is_that_of_normals():
    problem, z = posteriors.PROBLEMS["rubin"], np.random.default_rng(0).normal(size=(5, 10))
    mean = z[:, :1] + z[:, 1:2] * z[:, 2:]
    exact = stats.norm.logpdf(posteriors.EFFECTS, mean, posteriors.RUBIN_ERRORS).sum(axis=1)
    exact += stats.norm.logpdf(z).sum(axis=1)
    np.testing.assert_allclose(problem.log_joint(z, np), exact, rtol=1e-5)
    found = to_numpy(problem.log_joint(ops.convert_to_tensor(z, "float32"), ops))
    np.testing.assert_allclose(found, exact, rtol=1e-4)


def test_the_samplers_likelihood_is_the_joint_without_the_prior():
    problem = posteriors.PROBLEMS["rubin"]
    model = eight_schools.build(eight_schools.Config(hidden_units=(8,), discriminator_units=(8,)), problem, False, 0)
    model.likelihood_weight.assign(0.5)
    x = ops.ones((6, 1))
    outputs = model.infer(x)
    z = to_numpy(outputs["z"])
    log_likelihood = stats.norm.logpdf(posteriors.EFFECTS, z[:, :1] + z[:, 1:2] * z[:, 2:], problem.errors)
    found = float(to_numpy(model.objective(x, outputs)["reconstruction"]))
    assert found == pytest.approx(-0.5 * log_likelihood.sum(axis=1).mean(), rel=1e-4)  # float32


@pytest.mark.parametrize("contrast", [False, True])
def test_the_sampler_recovers_a_gaussian(contrast, tmp_path):
    """N((1, -0.5), diag(0.6, 0.8)^2) as a posterior: KL of q's own moments to it below 0.05 nats.

    Where the seeds tried ended: 0.004 to 0.02.
    """

    def log_joint(z, backend):
        return -0.5 * (backend.square((z[:, 0] - 1.0) / 0.6) + backend.square((z[:, 1] + 0.5) / 0.8))

    problem = posteriors.InThePlane(lambda x, y, backend: None, "Gaussian", PLANE)
    config = eight_schools.Config(
        hidden_units=(32,), discriminator_units=(64, 64), noise_dim=4, batch_size=256, updates=800, final_draws=20_000
    )
    object.__setattr__(problem, "log_joint", log_joint)
    draws, made = eight_schools.by_avb(Part(config, None, 0, tmp_path / "part", first=True), problem, contrast)
    assert (made["updates"], made["images"]) == (800, 800 * 256)
    white = (draws - [1.0, -0.5]) / [0.6, 0.8]
    covariance = np.cov(white.T)
    kl = 0.5 * (np.trace(covariance) + (white.mean(axis=0) ** 2).sum() - 2 - np.linalg.slogdet(covariance)[1])
    assert kl < 0.05


def small_schools(tmp_path, **changes):
    sizes = {"hidden_units": (8,), "discriminator_units": (8,), "batch_size": 32, "updates": 100, "final_draws": 2000}
    config = eight_schools.Config(problems=("altered",), **sizes, seeds=(0,), results=str(tmp_path), name="r")
    return dataclasses.replace(config, **changes)


@pytest.fixture
def quick_compilation():
    """numpyro's programs are compiled in less time, to slower code."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@needs_numpyro
def test_schools_compares_every_method(tmp_path, monkeypatch, quick_compilation):
    monkeypatch.setattr(eight_schools, "WARM_UP", 50)
    monkeypatch.setattr(eight_schools, "GAUSSIAN_STEPS", 50)
    monkeypatch.setattr(eight_schools.latent, "mmd", functools.partial(eight_schools.latent.mmd, points=500))
    config = small_schools(tmp_path, updates=150)
    rows = eight_schools.main(config)
    assert list(rows) == [f"schools, altered errors, {method}" for method in eight_schools.METHODS]
    methods = dict(zip(eight_schools.METHODS, rows.values(), strict=True))
    assert all(np.isfinite(means["kl_nats"]) for means in methods.values())
    assert methods["exact draws"]["kl_nats"] < methods["AVB"]["kl_nats"]  # hardly trained
    assert methods["exact draws"]["negative_share"] == pytest.approx(0.5, abs=0.05)  # 4.5 standard errors
    assert methods["NUTS"]["mmd_imq"] is None and abs(methods["exact draws"]["mmd_imq"]) < methods["AVB"]["mmd_imq"]
    assert methods["AVB"]["updates"] == 100 and methods["NUTS"]["updates"] is None  # made: whole hundreds
    folder = tmp_path / "avb_eight_schools" / "r"
    run = json.loads((folder / "runs.json").read_text())["altered, seed 0"]
    assert run["AVB"]["images"] == 100 * 32 and run["AVB"]["stopped_by"] is None
    assert (folder / "posteriors.png").is_file() and not list(folder.rglob("checkpoint-*"))


def test_a_sampler_that_is_killed_ends_with_the_same_bits(tmp_path, monkeypatch):
    """Killed after the first checkpoint of three; the likelihood's weight goes on as the epochs do."""
    monkeypatch.setattr(checkpoint, "LEAST_WORK", 0)
    monkeypatch.setattr("experiments.avb.course.UPDATES_A_RECORD", 40)
    config, problem = small_schools(tmp_path, updates=120, warm_up=0.9), posteriors.PROBLEMS["altered"]
    once, _ = eight_schools.by_avb(Part(config, None, 0, tmp_path / "once", first=True), problem, True)
    part = Part(config, None, 0, tmp_path / "again", first=True)
    with monkeypatch.context() as patch:
        kill_after_checkpoint(patch, 1)
        with pytest.raises(Killed):
            eight_schools.by_avb(part, problem, True)
    again, made = eight_schools.by_avb(part, problem, True)
    np.testing.assert_array_equal(again, once)
    assert made["updates"] == 120


def test_a_sampler_that_meets_nan_ends_the_experiment(tmp_path):
    part = Part(small_schools(tmp_path, learning_rate=1e30), None, 0, tmp_path / "part", first=True)
    with pytest.raises(RunError, match=r"AVB without contrast, .* was not finite .* try a lower --learning-rate"):
        eight_schools.by_avb(part, posteriors.PROBLEMS["altered"], False)


def test_schools_refuses_what_it_does_not_know(tmp_path, monkeypatch):
    with pytest.raises(RunError, match=r"--problems must be one of altered, .*, not 'nine'"):
        eight_schools.main(small_schools(tmp_path, problems=("nine",)))
    with pytest.raises(RunError, match="--updates must be at least 100, not 99"):
        eight_schools.main(small_schools(tmp_path, updates=99))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RunError, match="pip install numpyro"):
        eight_schools.main(small_schools(tmp_path))
    assert not list(tmp_path.iterdir())
