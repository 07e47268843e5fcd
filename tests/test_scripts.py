"""The five scripts from flags to figures on 300 tiny images, and all that can end a training early."""

import ast
import contextlib
import csv
import dataclasses
import errno
import importlib.metadata
import json
import math
import os
import platform
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import aae_deterministic
import aae_gaussian
import aae_universal
import avb
import vae_baseline
from common import plots, run, training
from common.command import run_main
from common.data import load_data
from common.evaluation import neighbours
from common.evaluation.reconstruction import cross_entropy_floor, mean_image_cross_entropy
from common.measure import test_terms as terms_on_test  # not a test
from common.run import load_run
from common.scripts import SCRIPTS

import keras
import numpy as np
import pytest
import small_runs
from threadpoolctl import threadpool_limits

ROOT = Path(run.__file__).parent.parent
BACKEND = keras.backend.backend()
UPDATES_AN_EPOCH = 12  # 240 training images in batches of 20
SMALL = {"hidden_units": (16,), "batch_size": 20, "epochs": None, "updates": 24}
SMALL_AVB = SMALL | {"discriminator_units": (16,), "noise_units": (8,), "noise_basis": 4, "noise_dim": 4}
FIGURES = {"training", "samples", "reconstructions", "interpolations"}
PLANE, SPACE = FIGURES | {"latent", "manifold"}, FIGURES | {"latent_pca", "latent_tsne"}
AAE = ("reconstruction", "generator", "discriminator")
ESTIMATED = {"kl_estimated_nats", "negative_elbo_estimated_nats"}
SURE = {  # with a standard error each
    "test_reconstruction_nats",
    "code_c2st_accuracy",
    "code_mmd_imq",
    "code_mmd_rbf",
    "code_hole_mass",
    "code_coverage",
}
CLOSED = {"kl_nats", "negative_elbo_nats"}
SURGERY = {"mutual_information_nats", "marginal_kl_nats"}
NEIGHBOURS = {"mutual_information_neighbour_nats", "kl_neighbour_nats", "marginal_kl_neighbour_nats"}
PROBES = {"code_knn_accuracy", "code_logistic_accuracy"}
PLAIN = {  # without
    "code_mean_norm",
    "code_std_min",
    "code_std_max",
    "code_ks",
    "code_ks_max",
    "code_ks_critical",
    "code_mmd_imq_p_value",
    "code_mmd_rbf_p_value",
    "code_participation_ratio",
    "active_units",
    "mutual_information_images",
    "kl_per_dimension_nats",
    "null_because",
    "updates",
    "train_seconds",
    "samples_per_second",
    "peak_memory_mib",
    "stopped_by",
}
VARYING = {"train_seconds", "samples_per_second", "peak_memory_mib"}


@dataclasses.dataclass(frozen=True)
class Case:
    """A run, and what it must leave."""

    script: object
    changes: dict
    data: str
    figures: set
    terms: tuple
    absent: set = frozenset()  # numbers that do not exist for it
    divergences: set = frozenset()


NO_DENSITY = CLOSED | SURGERY | {"kl_per_dimension_nats"}
POINT = NO_DENSITY | {"mutual_information_neighbour_nats", "kl_neighbour_nats"}
CURVE = {"kl_neighbour_nats", "marginal_kl_neighbour_nats"}
OTHER_PRIOR = CLOSED | {"kl_per_dimension_nats"}


CASES = {
    "deterministic": Case(aae_deterministic, SMALL, "labelled", PLANE, AAE, POINT),
    "gaussian": Case(aae_gaussian, SMALL | {"latent_dim": 3}, "labelled", SPACE | {"latent"}, AAE),
    "universal": Case(
        aae_universal, SMALL | {"prior": "swiss_roll"}, "unlabelled", PLANE, AAE, NO_DENSITY | CURVE | PROBES
    ),
    "avb": Case(avb, SMALL_AVB, "flat", PLANE, ("reconstruction", "kl", "discriminator"), NO_DENSITY, ESTIMATED),
    "vae": Case(vae_baseline, SMALL | {"latent_dim": 1}, "labelled", FIGURES | {"latent"}, ("reconstruction", "kl")),
}
VARIANTS = {
    "deterministic, flat space": Case(
        aae_deterministic, SMALL | {"latent_dim": 3}, "flat", SPACE | {"latent"}, AAE, POINT
    ),
    "gaussian, mixture": Case(
        aae_gaussian, SMALL | {"prior": "mixture"}, "unlabelled", PLANE, AAE, OTHER_PRIOR | PROBES
    ),
    "universal, space": Case(aae_universal, SMALL | {"latent_dim": 4}, "unlabelled", SPACE, AAE, NO_DENSITY | PROBES),
    "avb, no contrast": Case(
        avb,
        SMALL_AVB | {"adaptive_contrast": False},
        "unlabelled",
        PLANE,
        ("reconstruction", "kl", "discriminator"),
        NO_DENSITY | PROBES,
        ESTIMATED,
    ),
    "vae, threshold": Case(
        vae_baseline, SMALL | {"binarisation": "threshold"}, "labelled", PLANE, ("reconstruction", "kl")
    ),
}


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Paths of 300 images around three centres, whole, without labels, as rows of pixels, and split already."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    y = np.arange(300) % 3
    centres = random.integers(0, 256, (3, 8, 6))
    x = np.clip(centres[y] + random.normal(0, 20, (300, 8, 6)), 0, 255).astype(np.uint8)
    np.savez(folder / "labelled.npz", x=x, y=y)
    np.savez(folder / "unlabelled.npz", x=x)
    np.savez(folder / "flat.npz", x=x.reshape(300, 48), y=y)
    np.savez(folder / "one_over.npz", x_train=x, x_test=x[np.arange(501) % 300])
    return {path.stem: str(path) for path in folder.iterdir()}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The threads of t-SNE wait for one another longer than they work, if the machine has something else to do."""
    with threadpool_limits(1):
        yield


@dataclasses.dataclass
class Finished:
    """A run that has ended: its folder, what `main` returned and printed, and the model that it trained."""

    folder: Path
    metrics: dict
    printed: str
    model: keras.Model


def finish(script, folder, capture=None, **changes) -> Finished:
    """Run `script` with these parameters into `folder`, and keep hold of its model."""
    models, build = [], script.build
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "build", lambda *arguments: models.append(build(*arguments)) or models[0])
        metrics = script.main(script.Config(results=str(folder.parent.parent), name=folder.name, **changes))
    printed = capture.readouterr().out if capture else ""
    return Finished(folder, metrics, printed, models[0])


@pytest.fixture
def place(tmp_path):
    """The folder of a run of any script, by name."""
    return lambda script, name="run": tmp_path / "results" / script.__name__ / name


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """The runs of CASES, each made once. The universal AAE's is compiled by XLA, as two runs in processes below are."""
    runs = {}

    def get(name):
        case = CASES[name]
        if name not in runs:
            folder = tmp_path_factory.mktemp("results") / case.script.__name__ / name
            with pytest.MonkeyPatch.context() as patch:
                small_runs.cheap_instruments(patch)
                if case.script is not aae_universal:
                    small_runs.without_xla(patch)
                runs[name] = finish(case.script, folder, data=data[case.data], **case.changes)
        return runs[name]

    return get


def weights(folder):
    """All weights of a run's saved networks, by network and position."""
    paths = sorted(folder.glob("*.keras"))
    return {
        (path.stem, number): weight
        for path in paths
        for number, weight in enumerate(keras.models.load_model(path).get_weights())
    }


def equal_weights(first, second):
    return first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)


def history_of(folder):
    with (folder / "history.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


# What a run leaves


def check_run(case: Case, ended: Finished, path: str):
    check_files(case, ended)
    check_config(case, ended, path)
    check_history(case, ended)
    check_metrics(case, ended, path)


def check_files(case, ended):
    networks = {"encoder", "decoder"} | ({"discriminator"} & set(case.terms))
    expected = {f"{name}.png" for name in case.figures} | {f"{name}.keras" for name in networks}
    expected |= {"config.json", "metrics.json", "history.csv", "checkpoint-2", ".lock"}
    assert {file.name for file in ended.folder.iterdir()} == expected
    for figure in ended.folder.glob("*.png"):
        assert figure.read_bytes().startswith(b"\x89PNG") and figure.stat().st_size > 5000


def check_config(case, ended, path):
    saved = json.loads((ended.folder / "config.json").read_text())
    dataset = load_data(path)
    resolved = case.script.Config(
        **case.changes | {"data": path, "results": str(ended.folder.parent.parent), "name": ended.folder.name}
    )
    assert saved["script"] == case.script.__name__
    parameters = dataclasses.asdict(resolved) | {"epochs": 2}
    del parameters["resume"]
    assert saved["parameters"] == json.loads(json.dumps(parameters))
    assert saved["data"] == {
        "name": Path(path).stem,
        "images": {"train": 240, "validation": 30, "test": 30},
        "image_shape": [48] if case.data == "flat" else [8, 6],
        "classes": dataset.class_names,
        "white": 255,
        "sha256": dataset.checksum,
    }
    assert (saved["updates"], saved["backend"]) == (2 * UPDATES_AN_EPOCH, BACKEND)
    packages = {name: importlib.metadata.version(name) for name in ("keras", "numpy", "scipy", "scikit-learn", BACKEND)}
    assert saved["versions"] == packages | {"python": platform.python_version()}
    assert re.search("cpu|gpu|cuda", saved["device"], re.IGNORECASE)
    assert saved["git_commit"] is None or re.fullmatch(r"[0-9a-f]{40}(\+changes)?", saved["git_commit"])


def check_history(case, ended):
    history = history_of(ended.folder)
    columns = {"epoch", "updates", "seconds", *case.terms, *(f"val_{term}" for term in case.terms)}
    assert [set(row) for row in history] == [columns, columns]
    assert [row["updates"] for row in history] == [UPDATES_AN_EPOCH, 2 * UPDATES_AN_EPOCH]
    assert all(math.isfinite(value) for row in history for value in row.values())
    assert history[1]["seconds"] > history[0]["seconds"] > 0


def check_metrics(case, ended, path):
    metrics, dataset = ended.metrics, load_data(path)
    assert json.loads((ended.folder / "metrics.json").read_text()) == metrics
    unsure = (neighbours.FEW, neighbours.DISAGREE)  # with so few draws
    absent = case.absent | {key for key in NEIGHBOURS if metrics["null_because"].get(key) in unsure}
    stated = {"stated_kl_of_neighbour_images_nats"} if case.divergences or not CLOSED & absent else set()
    with_errors = (SURE | CLOSED | SURGERY | NEIGHBOURS | PROBES | case.divergences | stated) - absent
    assert metrics.keys() == PLAIN | absent | with_errors | {f"{key}_standard_error" for key in with_errors}
    assert metrics["null_because"].keys() == absent
    assert all(metrics[key] is None and metrics["null_because"][key] for key in absent)
    numbers = {key: value for key, value in metrics.items() if key not in absent | {"stopped_by", "null_because"}}
    assert all(np.isfinite(value).all() for value in numbers.values())
    assert all(numbers[f"{key}_standard_error"] >= 0 for key in with_errors)
    for suffix in ("nats", "estimated_nats"):
        if metrics.get(f"kl_{suffix}") is not None:
            total = metrics["test_reconstruction_nats"] + metrics[f"kl_{suffix}"]
            assert metrics[f"negative_elbo_{suffix}"] == pytest.approx(total)
    assert (metrics["kl_nats"] or 0) >= 0
    if metrics["kl_per_dimension_nats"] is not None:
        assert sum(metrics["kl_per_dimension_nats"]) == pytest.approx(metrics["kl_nats"], rel=1e-4)
    if metrics["mutual_information_nats"] is not None:
        assert metrics["mutual_information_nats"] <= math.log(30) + 1e-9
    assert metrics["mutual_information_images"] == 30
    latent_dim = case.changes.get("latent_dim", 2)
    assert len(metrics["code_ks"]) == latent_dim and max(metrics["code_ks"]) == metrics["code_ks_max"] <= 1
    assert 1 <= metrics["code_participation_ratio"] <= latent_dim + 1e-9
    assert 0 <= metrics["code_hole_mass"] <= 1 and 0 <= metrics["code_coverage"] <= 1
    assert 0 < metrics["code_mmd_imq_p_value"] <= 1 and 0 < metrics["code_mmd_rbf_p_value"] <= 1
    x_test = dataset.x_test if case.changes.get("binarisation") is None else dataset.x_test >= 0.5
    assert cross_entropy_floor(x_test) < metrics["test_reconstruction_nats"] < 48 * 4
    assert 0 < metrics["code_std_min"] <= metrics["code_std_max"]
    assert 0 <= metrics["code_c2st_accuracy"] <= 1
    assert (metrics["code_knn_accuracy"] is None) == (dataset.y_test is None)
    assert 0 <= (metrics["code_knn_accuracy"] or 0) <= 1
    assert metrics["active_units"] in range(case.changes.get("latent_dim", 2) + 1)
    assert metrics["updates"] == 2 * UPDATES_AN_EPOCH
    assert metrics["samples_per_second"] == pytest.approx(480 / metrics["train_seconds"], rel=0.1)
    assert metrics["peak_memory_mib"] > 100
    assert metrics["stopped_by"] is None


@pytest.mark.parametrize("name", CASES)
def test_a_run_leaves_its_parameters_numbers_networks_and_figures(finished, data, name):
    check_run(CASES[name], finished(name), data[CASES[name].data])


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_leaves_the_same(place, data, monkeypatch, name):
    small_runs.without_xla(monkeypatch)
    small_runs.cheap_instruments(monkeypatch)
    case = VARIANTS[name]
    ended = finish(case.script, place(case.script, "variant"), data=data[case.data], **case.changes)
    check_run(case, ended, data[case.data])


def test_a_run_prints_its_effective_weight_a_line_an_epoch_and_its_folder(quick, place, data, capsys):
    folder = place(aae_gaussian)
    changes = SMALL | {"adversarial_weight": 7.5}
    first, *epochs, last = finish(aae_gaussian, folder, capsys, data=data["labelled"], **changes).printed.splitlines()
    assert "Gaussian AAE on labelled, 2 epochs" in first
    assert "effective adversarial weight 7.5" in first and "summed over 48 pixels" in first
    assert [re.match(r"epoch \d/\d, \d+ updates: ", line).group() for line in epochs] == [
        "epoch 1/2, 12 updates: ",
        "epoch 2/2, 24 updates: ",
    ]
    assert last == str(folder)


def test_a_model_learns_what_there_is_to_learn(quick, place, data):
    changes = SMALL | {"updates": 360, "learning_rate": 0.01, "adversarial_weight": 1.0}
    metrics = finish(aae_deterministic, place(aae_deterministic), data=data["labelled"], **changes).metrics
    dataset = load_data(data["labelled"])
    mean_image = mean_image_cross_entropy(dataset.x_train, dataset.x_test)
    floor = cross_entropy_floor(dataset.x_test)
    assert metrics["test_reconstruction_nats"] < floor + 0.2 * (mean_image - floor)
    assert metrics["code_knn_accuracy"] == 1.0


def test_no_epochs_evaluate_and_plot_an_untrained_model(quick, place, data):
    ended = finish(vae_baseline, place(vae_baseline), data=data["labelled"], **SMALL | {"epochs": 0})
    assert {file.stem for file in ended.folder.glob("*.png")} == PLANE
    assert ended.metrics["updates"] == 0 and ended.metrics["stopped_by"] is None
    assert ended.metrics["test_reconstruction_nats"] > 0
    untrained = vae_baseline.build(vae_baseline.Config(hidden_units=(16,)), (8, 6))
    assert all(
        np.array_equal(saved, initial)
        for saved, initial in zip(
            keras.models.load_model(ended.folder / "encoder.keras").get_weights(),
            untrained.encoder.get_weights(),
            strict=True,
        )
    )


def test_no_batch_of_the_test_images_is_too_small_for_moments(quick, place, data):
    metrics = finish(avb, place(avb), data=data["one_over"], **SMALL_AVB | {"epochs": 0}).metrics
    assert math.isfinite(metrics["kl_estimated_nats"])


@pytest.mark.parametrize("scale, active", [(1.0, 2), (1000.0, 0)])
def test_active_units_are_counted_in_the_priors_own_unit(quick, place, data, scale, active):
    """An untrained deterministic encoder spreads each dimension by about 1, whatever prior it is going to meet."""
    changes = SMALL | {"epochs": 0, "prior_scale": scale}
    metrics = finish(aae_deterministic, place(aae_deterministic), data=data["labelled"], **changes).metrics
    assert metrics["active_units"] == active


@pytest.mark.skipif(BACKEND != "tensorflow", reason="Keras' TensorBoard callback writes with TensorFlow")
def test_tensorboard_writes_event_files(quick, place, data):
    pytest.importorskip("tensorboard")
    changes = SMALL | {"updates": 12, "tensorboard": True}
    folder = finish(vae_baseline, place(vae_baseline), data=data["labelled"], **changes).folder
    kinds = {file.parent.name for file in (folder / "tensorboard").rglob("events.out.tfevents.*")}
    assert kinds == {"train", "validation"}


def test_a_seed_gives_one_run_and_another_seed_another(quick, place, data):
    script = aae_gaussian
    first, again, other = (
        finish(script, place(script, name), data=data["labelled"], **SMALL | {"seed": seed})
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    same = {key: value for key, value in first.metrics.items() if key not in VARYING}
    assert same == {key: value for key, value in again.metrics.items() if key not in VARYING}
    assert equal_weights(weights(first.folder), weights(again.folder))
    assert first.metrics["test_reconstruction_nats"] != other.metrics["test_reconstruction_nats"]
    assert not equal_weights(weights(first.folder), weights(other.folder))


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch traces nothing")
def test_more_epochs_are_no_more_traces(quick, place, data, monkeypatch):
    """A model whose graph grows by the epoch would run out of memory in a night."""
    traces, objective = [], vae_baseline.VAE.objective
    monkeypatch.setattr(vae_baseline.VAE, "objective", lambda *args: traces.append(1) or objective(*args))
    counts = []
    for epochs in (1, 6):
        traces.clear()
        finish(vae_baseline, place(vae_baseline, f"of-{epochs}"), data=data["labelled"], **SMALL | {"epochs": epochs})
        counts.append(len(traces))
    assert counts[0] == counts[1] <= 4  # training and validation, on TensorFlow each once more to find the shapes


# A trained model from its folder


@pytest.mark.parametrize("name", CASES)
def test_a_loaded_model_decodes_like_the_trained_one(finished, data, name):
    case, ended = CASES[name], finished(name)
    dataset = load_data(data[case.data])
    loaded = load_run(ended.folder)
    codes = loaded.encode(dataset.x_test)
    assert codes.shape == (30, case.changes.get("latent_dim", 2))
    assert np.isfinite(codes).all()
    images, samples = loaded.decode(codes), loaded.sample(7)
    assert images.shape == dataset.x_test.shape and samples.shape == (7, *dataset.image_shape)
    for pixels in (images, samples):
        assert 0 <= pixels.min() < pixels.max() <= 1
    assert np.array_equal(images, ended.model.decode(codes))
    for network, trained in ended.model.networks.items():
        assert all(map(np.array_equal, loaded.networks[network].get_weights(), trained.get_weights()))


def test_a_loaded_deterministic_aae_gives_the_runs_own_numbers(finished, data):
    ended, x_test = finished("deterministic"), load_data(data["labelled"]).x_test
    loaded = load_run(str(ended.folder))
    assert np.array_equal(loaded.encode(x_test), ended.model.encode(x_test))
    assert terms_on_test(loaded, x_test)["test_reconstruction_nats"].value == ended.metrics["test_reconstruction_nats"]
    assert float(np.linalg.norm(loaded.encode(x_test).mean(axis=0))) == ended.metrics["code_mean_norm"]


# What ends a training early


@pytest.mark.parametrize(("epoch", "index", "update"), [(0, 0, 1), (1, 3, 16)])
def test_a_loss_that_is_not_a_number_ends_the_training(quick, place, data, monkeypatch, capsys, epoch, index, update):
    script, changes = aae_deterministic, SMALL | {"final_rate_factor": 1.0}  # else fewer epochs decay faster
    good = finish(script, place(script, "good"), data=data["labelled"], **changes | {"epochs": epoch})
    batch_of = training.Batches.__getitem__

    def with_a_nan(batches, number):
        (images,) = batch_of(batches, number)
        if (batches.epoch, number) == (epoch, index):
            images = np.where(np.arange(48).reshape(8, 6) == 7, np.nan, images).astype("float32")
        return (images,)

    monkeypatch.setattr(training.Batches, "__getitem__", with_a_nan)
    bad = finish(script, place(script, "bad"), capsys, data=data["labelled"], **changes | {"epochs": 9})
    assert bad.metrics["stopped_by"] == f"the reconstruction term was not finite at update {update}"
    assert f"training stopped: {bad.metrics['stopped_by']}" in bad.printed
    assert bad.metrics["updates"] == update
    assert equal_weights(weights(bad.folder), weights(good.folder))
    assert len(history_of(bad.folder)) == epoch + 1
    assert {file.stem for file in bad.folder.glob("*.png")} == PLANE
    assert bad.metrics["test_reconstruction_nats"] == good.metrics["test_reconstruction_nats"]


@pytest.mark.parametrize("rate", [1e10, 1e30])
def test_weights_that_overflow_at_the_last_update_are_not_kept(quick, place, data, rate):
    changes = SMALL | {"learning_rate": rate, "batch_size": 240, "epochs": 1}
    ended = finish(aae_deterministic, place(aae_deterministic), data=data["labelled"], **changes)
    assert "not finite after update 1" in ended.metrics["stopped_by"]
    assert math.isfinite(ended.metrics["test_reconstruction_nats"])
    assert all(np.abs(weight).max() < 100 for weight in weights(ended.folder).values())


def interrupting(monkeypatch, update: int, times: int):
    """Ctrl-C is pressed so many times while this update ends."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what runs in the background ignore it
    end_of_batch = training.Progress.on_train_batch_end

    def press(progress, batch, logs=None):
        end_of_batch(progress, batch, logs)
        if progress.updates == update:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.2)  # two that wait for their handler are one

    monkeypatch.setattr(training.Progress, "on_train_batch_end", press)


def test_ctrl_c_ends_the_training_and_keeps_what_it_learnt(quick, place, data, monkeypatch, capsys):
    interrupting(monkeypatch, update=17, times=1)
    before = signal.getsignal(signal.SIGINT)
    ended = finish(vae_baseline, place(vae_baseline), capsys, data=data["labelled"], **SMALL | {"epochs": 9})
    assert signal.getsignal(signal.SIGINT) is before
    assert ended.metrics["stopped_by"] == "it was interrupted"
    assert "training stopped: it was interrupted; the trained weights are kept" in ended.printed
    assert ended.metrics["updates"] == 17
    assert len(history_of(ended.folder)) == 2
    assert {file.stem for file in ended.folder.iterdir()} == PLANE | {
        "config",
        "metrics",
        "history",
        "encoder",
        "decoder",
        "checkpoint-1",
        ".lock",
    }


def test_a_second_ctrl_c_ends_the_process(quick, place, data, monkeypatch):
    interrupting(monkeypatch, update=3, times=2)
    with pytest.raises(KeyboardInterrupt):
        finish(vae_baseline, place(vae_baseline), data=data["labelled"], **SMALL)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not (place(vae_baseline) / "metrics.json").exists()


def test_a_full_disk_at_the_figures_ends_in_one_line_after_the_networks(quick, place, data, monkeypatch, capsys):
    def full(figure, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(plots, "save", full)
    folder = place(vae_baseline)
    flags = ["--data", data["labelled"], "--results", str(folder.parent.parent), "--name", folder.name]
    flags += ["--hidden-units", "16", "--batch-size", "20", "--epochs", "1"]
    monkeypatch.setattr(sys, "argv", ["vae_baseline.py", *flags])
    with pytest.raises(SystemExit) as stop:
        run_main(vae_baseline.main, vae_baseline.Config)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "No space left on device" in line and "None" not in line
    left = {"config.json", "history.csv", "checkpoint-1", ".lock", "encoder.keras", "decoder.keras", "training.json"}
    assert {file.name for file in folder.iterdir()} == left


# As a process

LOG = re.compile(r"[IWEF]\d{4} |oneDNN|XLA|cuda|WARNING|Traceback", flags=re.IGNORECASE)  # TensorFlow's, JAX's


def flags(data, epochs) -> list[str]:
    words = f"--data {data} --results mine --name run --hidden-units 16 --batch-size 20 --epochs {epochs}"
    return words.split()


def test_a_piped_run_prints_lines_and_its_folder_last_and_no_log(tmp_path, data):
    """The command line itself, in a fresh process, compiled by XLA."""
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, str(ROOT / "aae_deterministic.py"), *flags(data["labelled"], 2)]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180)
    assert ended.returncode == 0
    assert not LOG.search(ended.stderr), ended.stderr
    first, *epochs, last = ended.stdout.splitlines()
    assert first.startswith("Deterministic AAE on labelled, 2 epochs: ")
    for number, line in enumerate(epochs, start=1):
        assert line.startswith(f"epoch {number}/2, {number * UPDATES_AN_EPOCH} updates: reconstruction ")
        assert re.search(r" nats; \d+ s, \d+ s left$", line)
    assert len(epochs) == 2 and epochs[-1].endswith(", 0 s left")
    assert "\x1b" not in ended.stdout and "\b" not in ended.stdout
    assert last == "mine/aae_deterministic/run"
    assert {file.stem for file in (tmp_path / last).glob("*.png")} == PLANE


def first_line_of_import(path: Path, names: tuple[str, ...]) -> float:
    """The line of a file that first imports one of these packages; infinite if none does."""
    lines = [math.inf]
    for node in ast.parse(path.read_text()).body:
        modules = [node.module] if isinstance(node, ast.ImportFrom) else []
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        lines += [node.lineno for module in modules if module.split(".")[0] in names]
    return min(lines)


def test_every_command_imports_common_before_keras():
    """`common` keeps the log of TensorFlow quiet, if it is imported first."""
    paths = [ROOT / f"{name}.py" for name in SCRIPTS]
    paths += [path for folder in ("experiments", "tools") for path in (ROOT / folder).rglob("*.py")]
    ours = ("common", "experiments", "tools", *SCRIPTS)
    for path in paths:
        backend = first_line_of_import(path, ("keras", "tensorflow", "jax", "torch"))
        assert math.isinf(backend) or first_line_of_import(path, ours) < backend, path


def test_the_users_own_level_shows_the_log(tmp_path):
    """What is kept back is the log alone: other lines of an import reach standard error, and all of them if asked."""
    (tmp_path / "tensorflow.py").write_text(
        "import os\nos.write(2, b'I0000 00:00:1.5 7 port.cc:153] oneDNN\\nmine\\nF0000 00:00:1.5 7 a.cc:1] fatal\\n')\n"
    )
    command = [sys.executable, "-c", "import common, tensorflow"]
    printed = []
    for level in ({}, {"TF_CPP_MIN_LOG_LEVEL": "0"}):
        environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
        environment |= {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"} | level
        printed.append(subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stderr)
    assert [len(lines.splitlines()) for lines in printed] == [2, 3]
    assert "mine" in printed[0] and "fatal" in printed[0] and "oneDNN" in printed[1]


def read_from(terminal: int, until: str, seconds: float = 180) -> str:
    """What a process writes to its terminal until a match, or its end."""
    printed, end = "", time.monotonic() + seconds
    with contextlib.suppress(OSError):  # how a terminal says that the process has ended
        while not re.search(until, printed) and time.monotonic() < end:
            printed += os.read(terminal, 65536).decode(errors="replace")
    return printed


def test_on_a_terminal_one_line_shows_the_time_left_and_ctrl_c_ends_the_training(nursery, tmp_path, data):
    terminal, end = pty.openpty()
    # A test that runs in the background would pass on that Ctrl-C is ignored.
    first = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    child = nursery.run(vae_baseline, flags(data["labelled"], 100_000), tmp_path, first, os.ttyname(end))
    try:
        progress = read_from(terminal, until=r"(?s)\x08.*[1-9]\d/1200000.*kl: \d")
        os.write(terminal, b"\x03")
        os.close(end)
        rest = read_from(terminal, until="(?!)")
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        code = child.wait()
        os.close(terminal)
    assert "epoch 1/" not in progress + rest
    shown = re.sub(r"\x1b\[[\d;]*m", "", progress)
    assert re.search(r"/1200000 ━+ \d+:\d\d(:\d\d)? \d+[mu]?s/update - reconstruction: \d", shown)
    assert "\ntraining stopped: it was interrupted" in rest.replace("\r\n", "\n")
    assert rest.split()[-1] == "mine/vae_baseline/run"
    assert code == 1
    metrics = json.loads((tmp_path / "mine/vae_baseline/run/metrics.json").read_text())
    assert metrics["stopped_by"] == "it was interrupted" and 0 < metrics["updates"] < 1_200_000
    assert {file.stem for file in (tmp_path / "mine/vae_baseline/run").glob("*.png")} == PLANE
