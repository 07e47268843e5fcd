"""A run that was stopped and is resumed ends with the same bits as one that never stopped."""

import dataclasses
import functools
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import aae_deterministic
import aae_gaussian
import aae_universal
import avb
import vae_baseline
from common import checkpoint, run, training
from common.command import run_main
from common.files import RunError, write_json
from common.measure import test_terms as terms_on_test  # not a test
from common.metrics import METRICS
from common.report import cost
from common.scripts import RENAMED, SCRIPTS
from experiments import study
from experiments.aae import clustering
from experiments.study import complete_run

import keras
import numpy as np
import pytest
import small_runs

SMALL = {"hidden_units": (16,), "batch_size": 20, "epochs": 6}
SMALL_AVB = SMALL | {"discriminator_units": (16,), "noise_units": (8,), "noise_basis": 4, "noise_dim": 4}
CASES = {
    "deterministic": (aae_deterministic, SMALL),
    "gaussian, mixture": (aae_gaussian, SMALL | {"prior": "mixture"}),
    "universal": (aae_universal, SMALL),
    "avb": (avb, SMALL_AVB | {"warm_up": 0.5, "discriminator_steps": 5}),
    "vae": (vae_baseline, SMALL | {"binarisation": "dynamic"}),
}
VARYING = ("train_seconds", "samples_per_second", "peak_memory_mib")


class Killed(BaseException):
    """As a signal that no one handles, but for this one process."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The path of 300 images, of which 240 are for training: 12 updates an epoch."""
    return small_runs.tiny_images(tmp_path_factory.mktemp("data") / "tiny.npz", y=np.arange(300) % 3)


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Figures and the cost of instruments are not what is tested here."""
    monkeypatch.setattr(run.report.__globals__["plots"], "save", lambda figure, path: None)
    small_runs.cheap_instruments(monkeypatch)


@pytest.fixture
def every_epoch(monkeypatch):
    """A checkpoint at the end of every epoch, however long that took."""
    monkeypatch.setattr(checkpoint, "LEAST_WORK", 0)


def killed_after(monkeypatch, update: int):
    """The process dies at the end of this update, counted from the first."""
    end_of_batch = training.Progress.on_train_batch_end

    def die(progress, batch, logs=None):
        end_of_batch(progress, batch, logs)
        if progress.updates == update:
            raise Killed

    monkeypatch.setattr(training.Progress, "on_train_batch_end", die)


def left_by(folder) -> dict:
    """All that must be the same: weights and random numbers, optimiser, history, metrics and the networks' files."""
    (latest,) = checkpoint.saved_files(folder)
    about, values = checkpoint.read(latest)
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in about["content"]["history"]]
    lines = [re.sub(r",[^,]*(?=,\d+,[^,]*,[^,]*$)", "", line) for line in (folder / "history.csv").read_text().split()]
    assert len(lines) == len(history) + 1
    metrics = {k: v for k, v in json.loads((folder / "metrics.json").read_text()).items() if k not in VARYING}
    networks = {
        path.name: [weight.tobytes() for weight in keras.models.load_model(path).get_weights()]
        for path in folder.glob("*.keras")
    }
    assert networks
    return {"values": values, "variables": about["variables"], "history": history, "metrics": metrics} | networks


KILLS = (17, 49)  # updates after which a run dies; it has 72 in 6 epochs


@pytest.mark.parametrize(
    ("case", "xla", "kills"),
    [
        *((case, case == "vae", KILLS if case == "avb" else KILLS[1:]) for case in CASES),
        *(pytest.param(case, True, KILLS, marks=pytest.mark.long) for case in CASES),
    ],
)
def test_a_killed_run_resumes_and_ends_with_the_same_bits(
    tmp_path, data, monkeypatch, every_epoch, capsys, case, xla, kills
):
    if not xla:
        small_runs.without_xla(monkeypatch)
    script, changes = CASES[case]
    config = script.Config(data=data, results=str(tmp_path), name="whole", **changes)
    script.main(config)
    folder = tmp_path / script.__name__ / "killed"
    for update in kills:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            killed_after(patch, update)
            resume = str(folder) if update > kills[0] else ""
            script.main(dataclasses.replace(config, name="killed", resume=resume))
        keras.utils.clear_session()
    script.main(dataclasses.replace(config, resume=str(folder)))
    printed = capsys.readouterr().out
    assert all(f"resumes after epoch {update // 12} of 6" in printed for update in kills)
    assert left_by(folder) == left_by(tmp_path / script.__name__ / "whole")


def numbers_alone(model, dataset, config, outcome, folder) -> dict:
    """In place of `report` where only the end of a run counts: a metric that draws noise, and metrics.json."""
    numbers = {"test_reconstruction_nats": terms_on_test(model, dataset.x_test)["test_reconstruction_nats"].value}
    metrics = numbers | cost(outcome)
    run.write_json(folder / "metrics.json", metrics)
    return metrics


def cheap(patch):
    """No XLA, and no more at the end than `numbers_alone`."""
    small_runs.without_xla(patch)
    patch.setattr(run, "report", numbers_alone)


@pytest.fixture
def config(tmp_path, data, monkeypatch):
    """A run that is quick to make, and is not yet there."""
    cheap(monkeypatch)
    return vae_baseline.Config(data=data, results=str(tmp_path), name="r", **SMALL)


@pytest.fixture(scope="module")
def undisturbed_folder(tmp_path_factory, data):
    """The folder of the run of `config` if nothing stops it."""
    with pytest.MonkeyPatch.context() as patch:
        cheap(patch)
        results = tmp_path_factory.mktemp("undisturbed")
        vae_baseline.main(vae_baseline.Config(data=data, results=str(results), name="r", **SMALL))
    return results / "vae_baseline" / "r"


@pytest.fixture(scope="module")
def undisturbed(undisturbed_folder):
    """What is left of it."""
    return left_by(undisturbed_folder)


@pytest.fixture(scope="module")
def killed(tmp_path_factory, data):
    """Folders of the run of `config` that was killed after an update, each made once; checkpoints an epoch or few."""

    @functools.cache
    def folder(update: int, every_epoch: bool) -> Path:
        config = vae_baseline.Config(data=data, results=str(tmp_path_factory.mktemp("killed")), name="r", **SMALL)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            cheap(patch)
            patch.setattr(checkpoint, "LEAST_WORK", 0 if every_epoch else 1e9)
            killed_after(patch, update)
            vae_baseline.main(config)
        return Path(config.results) / "vae_baseline" / config.name

    return folder


@pytest.fixture
def stop(killed):
    """Gives the folder of the run of `config`, killed after an update: a copy, which no other test changes."""

    def copied(config, update: int) -> Path:
        folder = Path(config.results) / "vae_baseline" / config.name
        shutil.copytree(killed(update, checkpoint.LEAST_WORK == 0), folder)
        return folder

    return copied


@pytest.fixture
def finished(undisturbed_folder):
    """Gives the folder of the run of `config`, which nothing stopped: a copy."""
    return lambda config: shutil.copytree(undisturbed_folder, Path(config.results) / "vae_baseline" / config.name)


def resumed(config, **changes):
    """Resume the run of `config`, as --resume and other flags would."""
    folder = f"{config.results}/vae_baseline/{config.name}"
    return vae_baseline.main(dataclasses.replace(config, resume=folder, **changes))


def test_killed_before_the_first_checkpoint_it_is_trained_from_the_start(config, undisturbed, stop, capsys):
    folder = stop(config, 5)
    resumed(config)
    assert f"{folder} has no checkpoint: it is trained from the start" in capsys.readouterr().out
    assert left_by(folder) == undisturbed


def test_killed_at_the_figures_it_is_measured_again_with_the_same_bits(config, undisturbed, monkeypatch, capsys):
    def die(*arguments):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(run, "report", die)
        vae_baseline.main(config)
    folder = Path(config.results) / "vae_baseline" / "r"
    assert not (folder / "metrics.json").exists()
    resumed(config)
    assert "resumes after epoch 6 of 6" in capsys.readouterr().out
    assert left_by(folder) == undisturbed


@pytest.mark.parametrize("harm", ["flipped", "cut", "emptied", "not ours"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(config, undisturbed, stop, every_epoch, capsys, harm):
    folder = stop(config, 41)
    latest, before = checkpoint.saved_files(folder)
    assert (latest.name, before.name) == ("checkpoint-3", "checkpoint-2")
    stored = bytearray(latest.read_bytes())
    stored[len(stored) // 2] ^= 8
    bad = {"flipped": stored, "cut": stored[: len(stored) // 3], "emptied": b"", "not ours": b"{}\n"}
    latest.write_bytes(bad[harm])
    resumed(config)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "is damaged" in line]
    assert line == f"{latest} is damaged (its checksum is wrong); the checkpoint before it is used if there is one"
    assert left_by(folder) == undisturbed


def test_no_flip_of_a_bit_goes_unseen(tmp_path):
    path = tmp_path / "checkpoint-1"
    model = vae_baseline.build(vae_baseline.Config(hidden_units=(2,)), (3,))
    training.compile_model(model, vae_baseline.Config())
    checkpoint.save(tmp_path, model, 1, {"history": []})
    stored, random = path.read_bytes(), np.random.default_rng(0)
    for place, bit in zip(random.integers(0, len(stored), 300), random.integers(0, 8, 300), strict=True):
        path.write_bytes(stored[:place] + bytes([stored[place] ^ (1 << bit)]) + stored[place + 1 :])
        with pytest.raises(ValueError, match="checksum"):
            checkpoint.read(path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    small, large = (vae_baseline.build(vae_baseline.Config(hidden_units=(units,)), (8, 6)) for units in (4, 5))
    for model in (small, large):
        training.compile_model(model, vae_baseline.Config())
    checkpoint.save(tmp_path, small, 3, {})
    _, values = checkpoint.read(tmp_path / "checkpoint-3")
    with pytest.raises(RunError, match="checkpoint-3 is of another model"):
        checkpoint.restore(tmp_path, large)
    for variable in checkpoint.variables_of(small):
        variable.assign(variable + 1)
    assert checkpoint.restore(tmp_path, small) == (3, {})
    checkpoint.save(tmp_path, small, 4, {})
    assert checkpoint.read(tmp_path / "checkpoint-4")[1] == values


def test_only_the_last_two_checkpoints_are_kept_and_one_of_a_finished_run(config, stop, every_epoch):
    folder = stop(config, 60)
    assert [path.name for path in checkpoint.saved_files(folder)] == ["checkpoint-4", "checkpoint-3"]
    resumed(config)
    assert [path.name for path in checkpoint.saved_files(folder)] == ["checkpoint-6"]


def test_checkpoints_cost_a_twentieth_of_the_time(tmp_path, monkeypatch):
    """Epochs of 1 s, checkpoints of 0.3 s: after one the training goes on for at least 6 s before the next."""
    clock, written = [0.0], []

    def save(folder, model, epochs, content):
        clock[0] += 0.3
        written.append(epochs)

    monkeypatch.setattr(checkpoint, "save", save)
    monkeypatch.setattr(checkpoint.time, "perf_counter", lambda: clock[0])
    callback = checkpoint.Checkpoints(tmp_path, 20, dict)
    callback.set_model(SimpleNamespace(stop_training=False))
    for epoch in range(20):
        clock[0] += 1.0
        callback.on_epoch_end(epoch)
    assert written == [1, 8, 15, 20]


def test_two_damaged_checkpoints_leave_room_for_new_ones(config, undisturbed, stop, monkeypatch, every_epoch, capsys):
    folder = stop(config, 50)
    for path in checkpoint.saved_files(folder):
        path.write_bytes(b"")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_after(patch, 30)
        resumed(config)
    assert [path.name for path in checkpoint.saved_files(folder)] == ["checkpoint-2", "checkpoint-1"]
    resumed(config)
    assert "resumes after epoch 2 of 6" in capsys.readouterr().out
    assert left_by(folder) == undisturbed


# What may be resumed


def test_a_finished_run_says_so_and_is_left_as_it_is(config, finished, capsys):
    folder = finished(config)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert resumed(config) == json.loads((folder / "metrics.json").read_text())
    assert capsys.readouterr().out.endswith(
        f"{folder} is finished, 72 updates: nothing is left to do; --epochs can prolong it\n"
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_finished_run_can_be_prolonged(config, capsys):
    """At a constant rate that is the same as to train for so long from the start."""
    steady = dataclasses.replace(config, final_rate_factor=1.0)
    vae_baseline.main(dataclasses.replace(steady, name="whole", epochs=9))
    vae_baseline.main(steady)
    metrics = resumed(steady, epochs=9)
    assert metrics["updates"] == 108
    assert "resumes after epoch 6 of 9" in capsys.readouterr().out
    folder = Path(config.results) / "vae_baseline" / "r"
    assert left_by(folder) == left_by(folder.with_name("whole"))
    saved = json.loads((folder / "config.json").read_text())
    assert saved["parameters"]["epochs"] == 9 and saved["updates"] == 108
    assert [part["updates_before"] for part in saved["resumed"]] == [72]
    with pytest.raises(RunError, match="made with another --epochs, 9; only --epochs can be raised"):
        resumed(steady, epochs=8)


def test_rates_that_fall_fall_as_in_the_longer_training_from_there_on(config, finished, capsys):
    finished(config)
    assert resumed(config, epochs=8)["updates"] == 96
    assert (
        "rates and weights now follow the longer training: the result differs from one training of that length"
        in capsys.readouterr().out
    )


def test_an_interrupted_run_resumes_as_if_it_had_not_been(config, undisturbed, monkeypatch, every_epoch):
    end_of_batch = training.Progress.on_train_batch_end

    def press(progress, batch, logs=None):
        end_of_batch(progress, batch, logs)
        if progress.updates == 30:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(training.Progress, "on_train_batch_end", press)
        assert vae_baseline.main(config)["stopped_by"] == "it was interrupted"
    assert resumed(config)["stopped_by"] is None
    folder = Path(config.results) / "vae_baseline" / "r"
    assert left_by(folder) == undisturbed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 2.0}, "made with another --beta, 1.0; only --epochs can be raised"),
        ({"hidden_units": (17,)}, r"another --hidden-units, \[16\]"),
        ({"seed": 1}, "another --seed, 0"),
        ({"epochs": 5}, "another --epochs, 6"),
        ({"data": "other"}, "made with other data"),
    ],
)
def test_other_parameters_are_refused_and_nothing_is_changed(tmp_path, config, stop, changes, message):
    folder = stop(config, 30)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    if "data" in changes:
        changes = {"data": str(tmp_path / "other.npz")}
        np.savez(changes["data"], x=np.random.default_rng(1).integers(0, 256, (300, 8, 6), np.uint8))
    with pytest.raises(RunError, match=message):
        resumed(config, **changes)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_another_backend_is_refused(config, stop):
    folder = stop(config, 30)
    saved = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", saved | {"backend": "abacus"})
    with pytest.raises(RunError, match="was made on abacus; set KERAS_BACKEND=abacus"):
        resumed(config)


def test_other_versions_are_printed_and_recorded(config, stop, capsys):
    folder = stop(config, 30)
    saved = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", saved | {"versions": saved["versions"] | {"keras": "3.0"}})
    resumed(config)
    assert f"versions changed since {folder} began: its end may differ in the last bits" in capsys.readouterr().out
    saved = json.loads((folder / "config.json").read_text())
    assert saved["versions"]["keras"] == "3.0" and saved["resumed"][0]["versions"]["keras"] == keras.__version__


def command_line(monkeypatch, capsys, script, arguments: str) -> tuple[int, str]:
    """The exit code of a script that is called with these flags, and what it wrote to standard error."""
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *arguments.split()])
    try:
        run_main(script.main, script.Config)
    except SystemExit as ended:
        return ended.code, capsys.readouterr().err
    return 0, capsys.readouterr().err


def test_the_flag_takes_the_runs_own_parameters(config, stop, monkeypatch, capsys):
    folder = stop(config, 30)
    assert command_line(monkeypatch, capsys, vae_baseline, f"--resume {folder}")[0] == 0
    assert json.loads((folder / "metrics.json").read_text())["updates"] == 72
    assert command_line(monkeypatch, capsys, vae_baseline, f"--resume {folder} --epochs 7 --hidden-units 16")[0] == 0
    assert json.loads((folder / "metrics.json").read_text())["updates"] == 84


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        (vae_baseline, "--resume FOLDER --beta 2", "was made with another --beta, 1.0; only --epochs can be raised"),
        (vae_baseline, "--resume FOLDER --latent-dim 3", "another --latent-dim, 2"),
        (vae_baseline, "--resume FOLDER --name other", "leave out --results and --name"),
        (vae_baseline, "--resume FOLDER/nowhere", "holds no complete run"),
        (vae_baseline, "--resume FOLDER --epochs -1", "--epochs must be at least 0"),
        (avb, "--resume FOLDER", "is a run of vae_baseline, which has other parameters: beta"),
        (clustering, "--resume FOLDER", "is a run of vae_baseline, which has other parameters"),
    ],
)
def test_what_the_flag_cannot_take_is_one_line(config, stop, monkeypatch, capsys, script, flags, message):
    folder = stop(config, 30)
    code, printed = command_line(monkeypatch, capsys, script, flags.replace("FOLDER", str(folder)))
    assert code == 2 and message in printed and printed.count("\n") == 1


def without_seconds(path: Path):
    """What a JSON file of an experiment holds, but for what its trainings took."""
    content = json.loads(path.read_text())
    return {name: {key: value for key, value in row.items() if key != "seconds"} for name, row in content.items()}


def trained_with(beta: float, part: study.Part) -> dict:
    """A case of an experiment: a small VAE."""
    config = study.script_config(vae_baseline, part.config, part.seed, batch_size=20, beta=beta)
    model = vae_baseline.build(config, part.dataset.image_shape)
    part.train(model, config)
    return {"kl_nats": terms_on_test(model, part.dataset.x_test)["kl_nats"]}


def test_an_experiment_resumes_within_a_training(tmp_path, data, monkeypatch, every_epoch, capsys):
    """Killed in the second training, resumed by its folder alone."""
    small_runs.without_xla(monkeypatch)
    cases = {f"beta {beta}": functools.partial(trained_with, beta) for beta in (1, 2)}
    declared = clustering.STUDY._replace(
        cases=lambda config, dataset: cases,
        columns={"kl_nats": METRICS["kl_nats"]},
        tables=study.one_table,
        figures=lambda results, rows: {},
    )
    config = clustering.Config(data=data, seeds=(0,), results=str(tmp_path), hidden_units=(8,), updates=48)
    study.run(declared, dataclasses.replace(config, name="whole"))
    folder = tmp_path / "aae_clustering" / "killed"
    train = study.train

    def second_is_killed(model, batches, validation, config, part_folder, **options):
        if config.beta == 2:
            killed_after(patch, 29)
        return train(model, batches, validation, config, part_folder, **options)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(study, "train", second_is_killed)
        study.run(declared, dataclasses.replace(config, name="killed"))
    assert [path.name for path in checkpoint.saved_files(folder / "beta-2-seed-0")] == ["checkpoint-2", "checkpoint-1"]
    assert not checkpoint.saved_files(folder / "beta-1-seed-0")
    capsys.readouterr()
    monkeypatch.setattr(clustering, "main", lambda config: study.run(declared, config))
    assert command_line(monkeypatch, capsys, clustering, f"--resume {folder}")[0] == 0
    assert not list(folder.glob("*/checkpoint-*"))
    for name in ("runs.json", "metrics.json"):
        assert without_seconds(folder / name) == without_seconds(folder.with_name("whole") / name)
    assert (folder / "table.md").read_text() == (folder.with_name("whole") / "table.md").read_text()
    code, printed = command_line(monkeypatch, capsys, clustering, f"--resume {folder} --seeds 1")
    assert code == 2 and "made with another --seeds, [0]" in printed and printed.count("\n") == 1


def test_a_run_that_an_experiment_asks_for_resumes(config, undisturbed, stop, every_epoch, data, capsys):
    folder = stop(config, 30)
    made = complete_run(vae_baseline, config, run.load_data(data))[1]
    assert made["updates"] == 72 and made["epochs"] == 6 and made["images"] == 1440 and made["stopped_by"] is None
    assert "resumes after epoch 2 of 6" in capsys.readouterr().out
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {key: value for key, value in metrics.items() if key not in VARYING} == undisturbed["metrics"]


# Runs of earlier code

# Script -> the parameters in the config.json of a run with the defaults of commit 8c47970.
LATER_PARAMETERS = {"likelihood", "label_column", "resize"}
OLD_PARAMETERS = json.loads((Path(__file__).parent / "old_parameters.json").read_text())


def as_of_old(saved: dict) -> dict:
    """config.json as the code before the redesign wrote it: its own order of parameters, "updates" in the middle."""
    parameters = {name: saved["parameters"][name] for name in OLD_PARAMETERS[saved["script"]]}
    assert parameters.keys() == saved["parameters"].keys() - LATER_PARAMETERS
    first = {"script": saved["script"], "parameters": parameters, "data": saved["data"], "updates": saved["updates"]}
    return first | {key: saved[key] for key in ("backend", *run.ENVIRONMENT)}


def test_a_run_of_earlier_code_resumes_to_the_same_bits(config, undisturbed, stop, every_epoch, monkeypatch, capsys):
    folder = stop(config, 30)
    write_json(folder / "config.json", as_of_old(json.loads((folder / "config.json").read_text())))
    assert command_line(monkeypatch, capsys, vae_baseline, f"--resume {folder}")[0] == 0
    assert left_by(folder) == undisturbed


def test_a_run_of_earlier_code_loads(config, finished):
    folder = finished(config)
    model = run.load_run(folder)
    write_json(folder / "config.json", as_of_old(json.loads((folder / "config.json").read_text())))
    weights = zip(run.load_run(folder).get_weights(), model.get_weights(), strict=True)
    assert all(np.array_equal(old, new) for old, new in weights)


def test_every_script_that_was_renamed_is_tried():
    assert OLD_PARAMETERS.keys() == {*SCRIPTS, *RENAMED}


@pytest.mark.parametrize("name", OLD_PARAMETERS)
def test_the_parameters_of_earlier_code_are_todays(tmp_path, name):
    """In a folder of the earlier name, too."""
    folder = tmp_path / name / "old"
    folder.mkdir(parents=True)
    write_json(folder / "config.json", {"script": name, "parameters": OLD_PARAMETERS[name]})
    module = run.saved_run(folder)[1]
    assert module is importlib.import_module(RENAMED.get(name, name))
    config = run.load_config(folder, module.Config)
    assert (config.results, config.name) == (str(tmp_path), "old")
    own = {key: value for key, value in OLD_PARAMETERS[name].items() if key not in run.NO_CHOICES}
    if not hasattr(module, "upgraded"):
        assert own == json.loads(json.dumps({key: getattr(config, key) for key in own}))
    saved, rest = run.saved_run(folder)[0], {"data": None, "backend": "any"}
    parameters = {key: value for key, value in dataclasses.asdict(config).items() if key != "resume"}
    run.require_same(folder, saved | rest, rest | {"script": module.__name__, "parameters": parameters})  # resumes


def test_an_experiment_of_earlier_code_resumes(tmp_path, data, monkeypatch, capsys):
    """Its config.json names the script as it was called then."""
    cases = {"3 clusters": lambda part: {"confident_error": 0.5}}
    declared = clustering.STUDY._replace(cases=lambda config, dataset: cases, figures=lambda results, rows: {})
    small = {"clusters": (3,), "seeds": (0, 1), "batch_size": 20}
    config = clustering.Config(data=data, results=str(tmp_path), name="old", **small)
    study.run(declared, config)
    folder = shutil.copytree(tmp_path / "aae_clustering" / "old", tmp_path / "results" / "aae_clustering" / "old")
    saved = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", saved | {"script": "aae_clustering"})
    runs = json.loads((folder / "runs.json").read_text())
    write_json(folder / "runs.json", {name: row for name, row in runs.items() if name.endswith("seed 0")})
    monkeypatch.setattr(clustering, "main", lambda config: study.run(declared, config))
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["clustering.py", "--resume", str(folder)])
    run_main(clustering.main, clustering.Config)
    printed = capsys.readouterr().out
    assert "3 clusters, seed 1: done; parts left: 0" in printed and "seed 0: done" not in printed
    assert json.loads((folder / "runs.json").read_text()) == runs


@pytest.mark.parametrize(
    "rest",
    [
        b"",
        b"\n",
        b"[]\n",
        b"{}\n",
        b'{"variables": 3}\n',
        b'{"variables": [["f4", [-1]]], "epochs": 1, "content": {}}\n',
        b'{"variables": [["float32", [2]]], "epochs": 1, "content": {}}\n1234',
        b'{"variables": [], "epochs": "1", "content": {}}\n',
        b"[" * 100_000 + b"\n",
    ],
)
def test_what_is_no_checkpoint_is_passed_over_though_its_checksum_is_right(tmp_path, config, capsys, rest):
    path = tmp_path / "checkpoint-4"
    path.write_bytes(hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest)
    model = vae_baseline.build(config, (8, 6))
    training.compile_model(model, config)
    assert checkpoint.restore(tmp_path, model) == (0, {})
    assert f"{path} is damaged (it is not a checkpoint)" in capsys.readouterr().out
    assert not path.exists()
