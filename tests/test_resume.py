"""A training that was stopped and goes on ends with the same bits as one that was not."""

import dataclasses
import hashlib
import json
import os
import re
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
from experiments.pitfalls import loss_scaling
from experiments.study import complete_run

import keras
import numpy as np
import pytest

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
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, x=random.integers(0, 256, (300, 8, 6), np.uint8), y=np.arange(300) % 3)
    return str(path)


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """They are not what is tested here."""
    monkeypatch.setattr(run.report.__globals__["plots"], "save", lambda figure, path: None)
    monkeypatch.setattr(run.report.__globals__["TSNE"], "fit_transform", lambda tsne, codes: codes[:, :2])


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
    (latest,) = checkpoint.found(folder)
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


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_goes_on_and_ends_with_the_same_bits(tmp_path, data, monkeypatch, every_epoch, capsys, case):
    script, changes = CASES[case]
    config = script.Config(data=data, results=str(tmp_path), name="whole", **changes)
    script.main(config)
    folder = tmp_path / script.__name__ / "killed"
    for update in (17, 49):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            killed_after(patch, update)
            resume = str(folder) if update > 17 else ""
            script.main(dataclasses.replace(config, name="killed", resume=resume))
        keras.utils.clear_session()
    script.main(dataclasses.replace(config, resume=str(folder)))
    printed = capsys.readouterr().out
    assert "goes on after epoch 1 of 6" in printed and "goes on after epoch 4 of 6" in printed
    assert left_by(folder) == left_by(tmp_path / script.__name__ / "whole")


def numbers_alone(model, dataset, config, outcome, folder) -> dict:
    """In place of `report` where only the end of a run counts: a metric that draws noise, and metrics.json."""
    found = {"test_reconstruction_nats": terms_on_test(model, dataset.x_test)["test_reconstruction_nats"].value}
    metrics = found | {"updates": outcome.updates, "stopped_by": outcome.stopped_by}
    run.write_json(folder / "metrics.json", metrics)
    return metrics


@pytest.fixture
def config(tmp_path, data, monkeypatch):
    """A run that is quick to make, and is not yet there."""
    monkeypatch.setattr(vae_baseline.VAE, "faster_with_xla", False)
    monkeypatch.setattr(run, "report", numbers_alone)
    return vae_baseline.Config(data=data, results=str(tmp_path), name="r", **SMALL)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data):
    """What is left of the run of `config` if nothing stops it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vae_baseline.VAE, "faster_with_xla", False)
        patch.setattr(run, "report", numbers_alone)
        results = tmp_path_factory.mktemp("undisturbed")
        vae_baseline.main(vae_baseline.Config(data=data, results=str(results), name="r", **SMALL))
    return left_by(results / "vae_baseline" / "r")


def resumed(config, **changes):
    """Go on with the run of `config`, as --resume and other flags would."""
    folder = f"{config.results}/vae_baseline/{config.name}"
    return vae_baseline.main(dataclasses.replace(config, resume=folder, **changes))


def stop(config, monkeypatch, update: int):
    """Begin the run of `config` and kill it after an update; its folder."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_after(patch, update)
        vae_baseline.main(config)
    return Path(config.results) / "vae_baseline" / config.name


def test_killed_before_the_first_checkpoint_it_is_trained_from_the_start(config, undisturbed, monkeypatch, capsys):
    folder = stop(config, monkeypatch, 5)
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
    assert "goes on after epoch 6 of 6" in capsys.readouterr().out
    assert left_by(folder) == undisturbed


@pytest.mark.parametrize("harm", ["flipped", "cut", "emptied", "not ours"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    config, undisturbed, monkeypatch, every_epoch, capsys, harm
):
    folder = stop(config, monkeypatch, 41)
    latest, before = checkpoint.found(folder)
    assert (latest.name, before.name) == ("checkpoint-3", "checkpoint-2")
    stored = bytearray(latest.read_bytes())
    stored[len(stored) // 2] ^= 8
    bad = {"flipped": stored, "cut": stored[: len(stored) // 3], "emptied": b"", "not ours": b"{}\n"}
    latest.write_bytes(bad[harm])
    resumed(config)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "is damaged" in line]
    assert line == f"{latest} is damaged, its checksum is wrong: the one before it is used, or none"
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


def test_only_the_last_two_checkpoints_are_kept_and_one_of_a_finished_run(config, monkeypatch, every_epoch):
    folder = stop(config, monkeypatch, 60)
    assert [path.name for path in checkpoint.found(folder)] == ["checkpoint-4", "checkpoint-3"]
    resumed(config)
    assert [path.name for path in checkpoint.found(folder)] == ["checkpoint-6"]


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


def test_two_damaged_checkpoints_leave_room_for_new_ones(config, undisturbed, monkeypatch, every_epoch, capsys):
    folder = stop(config, monkeypatch, 50)
    for path in checkpoint.found(folder):
        path.write_bytes(b"")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_after(patch, 30)
        resumed(config)
    assert [path.name for path in checkpoint.found(folder)] == ["checkpoint-2", "checkpoint-1"]
    resumed(config)
    assert "goes on after epoch 2 of 6" in capsys.readouterr().out
    assert left_by(folder) == undisturbed


# What may be resumed


def test_a_finished_run_says_so_and_is_left_as_it_is(config, capsys):
    metrics = vae_baseline.main(config)
    folder = Path(config.results) / "vae_baseline" / "r"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert resumed(config) == json.loads((folder / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
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
    assert "goes on after epoch 6 of 9" in capsys.readouterr().out
    folder = Path(config.results) / "vae_baseline" / "r"
    assert left_by(folder) == left_by(folder.with_name("whole"))
    saved = json.loads((folder / "config.json").read_text())
    assert saved["parameters"]["epochs"] == 9 and saved["updates"] == 108
    assert [part["updates_before"] for part in saved["resumed"]] == [72]
    with pytest.raises(RunError, match="made with another --epochs, 9; only --epochs can be raised"):
        resumed(steady, epochs=8)


def test_rates_that_fall_fall_as_in_the_longer_training_from_there_on(config, capsys):
    vae_baseline.main(config)
    assert resumed(config, epochs=8)["updates"] == 96
    assert "only from here on do rates and weights change as in the longer training" in capsys.readouterr().out


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(config, undisturbed, monkeypatch, every_epoch):
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
def test_other_parameters_are_refused_and_nothing_is_changed(tmp_path, config, monkeypatch, changes, message):
    folder = stop(config, monkeypatch, 30)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    if "data" in changes:
        changes = {"data": str(tmp_path / "other.npz")}
        np.savez(changes["data"], x=np.random.default_rng(1).integers(0, 256, (300, 8, 6), np.uint8))
    with pytest.raises(RunError, match=message):
        resumed(config, **changes)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_another_backend_is_refused(config, monkeypatch):
    folder = stop(config, monkeypatch, 30)
    saved = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", saved | {"backend": "abacus"})
    with pytest.raises(RunError, match="was made on abacus; set KERAS_BACKEND=abacus"):
        resumed(config)


def test_other_versions_are_said_and_recorded(config, monkeypatch, capsys):
    folder = stop(config, monkeypatch, 30)
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


def test_the_flag_takes_the_runs_own_parameters(config, monkeypatch, capsys):
    folder = stop(config, monkeypatch, 30)
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
        (loss_scaling, "--resume FOLDER", "is a run of vae_baseline, which has other parameters"),
    ],
)
def test_what_the_flag_cannot_take_is_one_line(config, monkeypatch, capsys, script, flags, message):
    folder = stop(config, monkeypatch, 30)
    code, printed = command_line(monkeypatch, capsys, script, flags.replace("FOLDER", str(folder)))
    assert code == 2 and message in printed and printed.count("\n") == 1


def test_an_experiment_goes_on_within_a_training(tmp_path, data, monkeypatch, every_epoch, capsys):
    """Killed in the second training, taken up by its folder alone."""
    small = {"latent_dim": 3, "hidden_units": (8,), "batch_size": 20, "epochs": 4, "weighted_images": 5}
    config = loss_scaling.Config(data=data, seeds=(0,), results=str(tmp_path), **small)
    settings = loss_scaling.settings
    monkeypatch.setattr(loss_scaling, "settings", lambda *arguments: dict(list(settings(*arguments).items())[:2]))
    for name in ("dimensions_figure", "resampled_figure", "beta_figure", "notes"):
        monkeypatch.setattr(loss_scaling, name, lambda *arguments: "")
    loss_scaling.main(dataclasses.replace(config, name="whole"))
    folder = tmp_path / "loss_scaling" / "killed"
    end_of_part = loss_scaling.trained_and_measured

    def second_is_killed(*arguments):
        if (folder / "runs.json").exists():
            killed_after(monkeypatch, 29)
        return end_of_part(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loss_scaling, "trained_and_measured", second_is_killed)
        whole_batch = training.Progress.on_train_batch_end
        loss_scaling.main(dataclasses.replace(config, name="killed"))
    monkeypatch.setattr(training.Progress, "on_train_batch_end", whole_batch)
    assert [path.name for path in folder.glob("*/checkpoint-*")] == ["checkpoint-2", "checkpoint-1"]
    capsys.readouterr()
    assert command_line(monkeypatch, capsys, loss_scaling, f"--resume {folder}")[0] == 0
    assert not list(folder.glob("*/checkpoint-*"))
    for name in ("runs.json", "metrics.json", "table.md"):
        assert (folder / name).read_text() == (folder.with_name("whole") / name).read_text()
    assert command_line(monkeypatch, capsys, loss_scaling, f"--resume {folder} --seeds 1")[0] == 2


def test_a_run_that_an_experiment_asks_for_goes_on(config, undisturbed, monkeypatch, every_epoch, capsys):
    folder = stop(config, monkeypatch, 30)
    assert complete_run(vae_baseline, config) == (folder, True)
    assert "goes on after epoch 2 of 6" in capsys.readouterr().out
    made = json.loads((folder / "metrics.json").read_text())
    assert {k: v for k, v in made.items() if k not in VARYING} == undisturbed["metrics"]


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
    assert f"{path} is damaged, it is no checkpoint" in capsys.readouterr().out
    assert not path.exists()
