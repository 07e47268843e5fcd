"""Flags, refusals, folders and files: all that happens before a training, and a trained model from its folder."""

import contextlib
import dataclasses
import errno
import importlib.util
import json
import math
import os
import platform
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import aae_deterministic
import avb
import vae_baseline
from common import progress, run, training
from common.arrays import DataError
from common.command import parse, run_main
from common.config import check
from common.data import load_data
from common.files import RunError, whole, write_json
from common.run import create_folder, description, load_run
from common.scripts import SCRIPTS, load_script
from common.training import StopOnInterrupt, epochs_for, planned_epochs
from experiments import study
from experiments.aae import clustering
from experiments.avb import toy
from experiments.study import claim_folder, complete_run, each_once

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(run.__file__).parent.parent
MODULES = [load_script(name) for name in SCRIPTS]
# What every line of a message must do without: tyro's box, and text of its implementation.
BOX = re.compile(r"[\n│╭╰─]|---|typing\.|<class")


@pytest.fixture
def data(tmp_path):
    """The path of 300 images, of which 240 are for training."""
    path = tmp_path / "tiny.npz"
    np.savez(path, x=np.random.default_rng(0).integers(0, 256, (300, 8, 6), np.uint8))
    return str(path)


def refusal_of(arguments, script=aae_deterministic):
    """The message that refuses these arguments, before there could be any data to read."""
    with pytest.raises(RunError) as refused:
        check(parse(script.Config, arguments))
    assert not BOX.search(str(refused.value))
    return str(refused.value)


# Flags


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--latnt-dim 3", "Unrecognized options: --latnt-dim, 3; did you mean --latent-dim?"),
        ("--xyz 3", "Unrecognized options: --xyz, 3 ("),
        ("stray", "Unrecognized options: stray ("),
        ("--tensorboard False", "Unrecognized options: False"),
        ("--epochs 3 4", "Unrecognized options: 4"),
        ("--epochs", "Missing value for argument '--epochs'"),
        ("--data", "Missing value for argument '--data'"),
        ("--epochs two", "--epochs: no type matching {None}|INT could be instantiated from ['two']"),
        ("--latent-dim 2.5", "--latent-dim: invalid literal for int() with base 10: '2.5'"),
        ("--hidden-units 16,16", "--hidden-units"),
        ("--learning-rate fast", "--learning-rate: could not convert string to float: 'fast'"),
        ("--binarisation grey", "invalid choice 'grey' for argument '--binarisation'. Expected one of ('none', 'dyn"),
        ("--prior swiss", "invalid choice 'swiss' for argument '--prior'"),
        ("--hidden-units", "--hidden-units needs at least one number"),
        ("--hidden-units 16 0", "--hidden-units must be at least 1, not 0"),
        ("--epochs -1", "--epochs must be at least 0, not -1"),
        ("--hidden-units 16 16", None),
        ("--batch-size 0", "--batch-size must be at least 1, not 0"),
        ("--learning-rate 0", "--learning-rate must be above 0, not 0.0"),
        ("--learning-rate nan", "--learning-rate must be above 0, not nan"),
        ("--learning-rate inf", "--learning-rate must be above 0, not inf"),
        ("--encoder-rate-factor -0.1", "--encoder-rate-factor must be at least 0, not -0.1"),
        ("--beta-1 1", "--beta-1 must be at least 0 and below 1, not 1.0"),
        ("--seed 4294967296", "--seed must be at least 0 and below 4294967296, not 4294967296"),
        ("--latent-dim 8 --prior mixture", "the mixture prior lies in the plane"),
        ("--latent-dim 1 --prior swiss_roll", "it needs latent_dim 2, not 1; set --latent-dim or --prior"),
        ("--name a/b", "--name 'a/b' must be letters, digits"),
        ("--name ..", "--name '..'"),
        ("--name .hidden", "--name '.hidden'"),
        ("--name=", None),
        ("--epochs None", None),
        ("--no-tensorboard", None),
        ("--name 2_layers+noise-0.1", None),
        ("--hidden-units 16 32 --epochs 0 --seed 4294967295", None),
    ],
)
def test_flags_are_refused_in_one_line_or_taken(arguments, message):
    if message is None:
        check(parse(aae_deterministic.Config, arguments.split()))
    else:
        assert message in refusal_of(arguments.split())


def test_a_seed_twice_is_refused():
    """It would be trained once, and two seeds reported that agree to the last digit."""
    with pytest.raises(RunError, match="--seeds has a value twice: 0 1 0"):
        check(toy.Config(seeds=(0, 1, 0)))


def test_parse_fills_the_config():
    arguments = "--hidden-units 16 32 --epochs 3 --prior mixture --learning-rate 1e-2 --tensorboard --name mine"
    config = parse(aae_deterministic.Config, arguments.split())
    expected = {
        "hidden_units": (16, 32),
        "epochs": 3,
        "prior": "mixture",
        "learning_rate": 0.01,
        "tensorboard": True,
        "name": "mine",
    }
    assert config == dataclasses.replace(aae_deterministic.Config(), **expected)


@pytest.mark.parametrize("script", MODULES)
def test_help_lists_every_flag_with_its_comment(script, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(script.Config, ["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for field in dataclasses.fields(script.Config):
        assert "--" + field.name.replace("_", "-") in printed
    assert "images per update" in printed


WHOLE, REAL = int, float
RANGES = {  # kind of number, least, whether the least itself is allowed, bound above
    "latent_dim": (WHOLE, 1, True, math.inf),
    "hidden_units": (WHOLE, 1, True, math.inf),
    "discriminator_units": (WHOLE, 1, True, math.inf),
    "noise_units": (WHOLE, 1, True, math.inf),
    "noise_basis": (WHOLE, 1, True, math.inf),
    "noise_dim": (WHOLE, 1, True, math.inf),
    "noise_scale": (REAL, 0, True, math.inf),
    "prior_scale": (REAL, 0, False, 1e6),
    "adversarial_weight": (REAL, 0, True, math.inf),
    "beta": (REAL, 0, True, math.inf),
    "warm_up": (REAL, 0, True, 1),
    "epochs": (WHOLE, 0, True, math.inf),
    "updates": (WHOLE, 1, True, math.inf),
    "batch_size": (WHOLE, 1, True, math.inf),
    "learning_rate": (REAL, 0, False, math.inf),
    "final_rate_factor": (REAL, 0, True, math.inf),
    "beta_1": (REAL, 0, True, 1),
    "encoder_rate_factor": (REAL, 0, True, math.inf),
    "decoder_rate_factor": (REAL, 0, True, math.inf),
    "discriminator_rate_factor": (REAL, 0, True, math.inf),
    "discriminator_steps": (WHOLE, 1, True, math.inf),
    "resize": (WHOLE, 1, True, math.inf),
    "seed": (WHOLE, 0, True, 2**32),
}
OTHER_FIELDS = {
    "data",
    "likelihood",
    "label_column",
    "binarisation",
    "networks",
    "prior",
    "adaptive_contrast",
    "results",
    "name",
    "tensorboard",
    "resume",
}


def numbers(script, name, inside: bool):
    """Values of the parameter `name` inside or outside its range."""
    kind, low, inclusive, high = RANGES[name]
    if script is avb and name == "batch_size":
        low = 2  # one image's noise has no moments
    bounded = high < math.inf
    if kind is WHOLE:
        if inside:
            return st.integers(low, high - 1 if bounded else None)
        return st.integers(max_value=low - 1) | (st.integers(min_value=high) if bounded else st.nothing())
    if inside:
        return st.floats(
            low, high if bounded else None, exclude_min=not inclusive, exclude_max=bounded, width=64
        ).filter(math.isfinite)
    return st.floats(max_value=low, exclude_max=inclusive) | st.floats(min_value=high) | st.just(math.nan)


def config_with(script, name, value):
    in_tuple = name == "resize" or isinstance(getattr(script.Config(), name), tuple)
    return script.Config(**{name: (16, value) if in_tuple else value})


@pytest.mark.parametrize("script", MODULES)
def test_every_numeric_parameter_has_a_range(script):
    assert {field.name for field in dataclasses.fields(script.Config)} <= RANGES.keys() | OTHER_FIELDS


@pytest.mark.parametrize("script", MODULES)
@given(st.data())
def test_a_number_outside_its_range_is_refused_by_name_and_one_inside_is_taken(script, draw):
    name = draw.draw(st.sampled_from([f.name for f in dataclasses.fields(script.Config) if f.name in RANGES]))
    check(config_with(script, name, draw.draw(numbers(script, name, inside=True))))
    with pytest.raises(RunError, match=f"^--{name.replace('_', '-')} must be [^\n]*$"):
        check(config_with(script, name, draw.draw(numbers(script, name, inside=False))))


# Refusals before any work


def below_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    return tmp_path / "file" / "results"


def a_file(tmp_path):
    (tmp_path / "results").write_text("mine")
    return tmp_path / "results"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 241}, "--batch-size 241 is above the 240 training images"),
        ({"latent_dim": 8, "prior": "mixture"}, "it needs latent_dim 2, not 8"),
        ({"data": "nowhere.npz"}, "nowhere.npz: no such file"),
        ({"learning_rate": math.nan}, "--learning-rate must be above 0"),
        ({"hidden_units": (10**9, 10**9)}, "--hidden-units 1000000000 1000000000 and --latent-dim 2 take"),
        ({"latent_dim": 10**30}, "--latent-dim 1000000000000000000000000000000 take"),
        ({"prior_scale": 1e300}, "--prior-scale must be above 0 and below 1000000"),
        ({"epochs": 2.0}, "--epochs must be int, not 2.0"),
        ({"data": 5}, "--data must be str, not 5"),
        ({"name": "../elsewhere"}, "--name '../elsewhere'"),
    ],
)
def test_an_impossible_run_leaves_no_folder(tmp_path, data, changes, message):
    config = aae_deterministic.Config(**{"data": data, "results": str(tmp_path / "results"), **changes})
    with pytest.raises((RunError, DataError), match=re.escape(message)) as refused:
        aae_deterministic.main(config)
    assert not BOX.search(str(refused.value))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.npz"]


def test_tensorboard_is_refused_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install tensorboard" in refusal_of(["--tensorboard"])


@pytest.mark.parametrize("images", [10, 60, 190])
def test_too_few_test_images_for_numbers_and_figures_are_refused(tmp_path, images):
    np.savez(tmp_path / "few.npz", x=np.random.default_rng(0).random((images, 8, 6)))
    config = aae_deterministic.Config(data=str(tmp_path / "few.npz"), batch_size=5, results=str(tmp_path / "results"))
    with pytest.raises(DataError, match=f"{images // 10} test images"):
        aae_deterministic.main(config)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("place", [a_file, below_a_file, lambda tmp_path: Path("/proc/results")])
def test_results_that_cannot_be_written_are_refused(tmp_path, data, place):
    results = place(tmp_path)
    with pytest.raises(RunError, match=r"choose another --results$") as refused:
        aae_deterministic.main(aae_deterministic.Config(data=data, results=str(results)))
    assert str(results) in str(refused.value)
    assert not results.is_dir()


def test_a_run_is_never_written_over(tmp_path, data):
    taken = tmp_path / "aae_deterministic" / "taken"
    taken.mkdir(parents=True)
    (taken / "metrics.json").write_text("mine")
    with pytest.raises(RunError, match="taken exists and stays unchanged; choose another --name"):
        aae_deterministic.main(aae_deterministic.Config(data=data, results=str(tmp_path), name="taken"))
    assert [(path.name, path.read_text()) for path in taken.iterdir()] == [("metrics.json", "mine")]


def test_unnamed_runs_of_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(run.time, "strftime", lambda form: "2026-01-02_03-04-05")
    folders = [create_folder(str(tmp_path), "avb", "") for _ in range(3)]
    names = ["2026-01-02_03-04-05", "2026-01-02_03-04-05+2", "2026-01-02_03-04-05+3"]
    assert folders == [tmp_path / "avb" / name for name in names]
    assert all(folder.is_dir() for folder in folders)


# The process


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--latnt-dim", "3"], "error: Unrecognized options: --latnt-dim, 3; did you mean --latent-dim?"),
        (["--data", "nowhere.npz", "--results", "never"], "error: nowhere.npz: no such file"),
    ],
)
def test_a_refusal_is_one_line_and_exit_code_2(nursery, tmp_path, arguments, line):
    child = nursery.run(vae_baseline, arguments, folder=tmp_path)
    assert child.wait() == 2
    assert child.printed() == ""
    (only,) = child.errors.read_text().splitlines()
    assert only.startswith(line)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        (RunError("bad flag"), "error: bad flag\n"),
        (DataError("bad data"), "error: bad data\n"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/results/latent.png"), "/results/latent.png"),
    ],
)
def test_a_users_mistake_ends_in_one_line(monkeypatch, capsys, raised, line):
    def fail(config):
        raise raised

    monkeypatch.setattr(sys, "argv", ["avb.py"])
    with pytest.raises(SystemExit) as stop:
        run_main(fail, avb.Config)
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert line in printed and printed.startswith("error: ") and printed.count("\n") == 1
    assert "None" not in printed


def test_a_mistake_of_the_code_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["avb.py"])
    with pytest.raises(ZeroDivisionError):
        run_main(lambda config: 1 / 0, avb.Config)


def test_a_training_that_was_stopped_ends_in_exit_code_1(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["avb.py"])
    run_main(lambda config: {"stopped_by": None}, avb.Config)
    with pytest.raises(SystemExit) as stop:
        run_main(lambda config: {"stopped_by": "it was interrupted"}, avb.Config)
    assert stop.value.code == 1


# A run's folder


@pytest.fixture(scope="module")
def untrained_run(tmp_path_factory):
    """The folder of a deterministic AAE as `load_run` needs it."""
    folder = tmp_path_factory.mktemp("untrained")
    config = aae_deterministic.Config(hidden_units=(16,))
    for name, network in aae_deterministic.build(config, (8, 6)).networks.items():
        network.save(folder / f"{name}.keras")
    parameters, shape = dataclasses.asdict(config), {"image_shape": (8, 6)}
    write_json(folder / "config.json", {"script": "aae_deterministic", "parameters": parameters, "data": shape})
    load_run(folder)
    return folder


def content(written: bytes):
    return lambda folder: (folder / "config.json").write_bytes(written)


def entry(**changes):
    def change(folder):
        saved = json.loads((folder / "config.json").read_text())
        write_json(folder / "config.json", saved | changes)

    return change


def parameter(**changes):
    def change(folder):
        saved = json.loads((folder / "config.json").read_text())
        write_json(folder / "config.json", saved | {"parameters": saved["parameters"] | changes})

    return change


def cut_short(folder):
    path = folder / "decoder.keras"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damaged_inside(folder):
    path = folder / "decoder.keras"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 255
    path.write_bytes(damaged)


DAMAGE = {
    "no folder": shutil.rmtree,
    "no config": lambda folder: (folder / "config.json").unlink(),
    "no decoder": lambda folder: (folder / "decoder.keras").unlink(),
    "empty config": content(b""),
    "config is a list": content(b"[]"),
    "config is null": content(b"null"),
    "config cut short": content(b'{"script": "aae_det'),
    "config is binary": content(b"\xff\xfe\x00"),
    "another script": entry(script="aae_gaussian"),
    "another script with other parameters": entry(script="vae_baseline"),
    "a module, no script": entry(script="json"),
    "a path": entry(script="/tmp/evil"),
    "a path from here": entry(script="../evil"),
    "a script in a folder": entry(script="common/run"),
    "no script": entry(script=None),
    "parameters are a list": entry(parameters=[1]),
    "no image shape": entry(data={}),
    "another image shape": entry(data={"image_shape": [8, 7]}),
    "an unknown parameter": parameter(unknown=1),
    "an impossible parameter": parameter(latent_dim=-1),
    "a parameter of the wrong type": parameter(latent_dim="two"),
    "another size": parameter(hidden_units=[17]),
    "another depth": parameter(hidden_units=[16, 16]),
    "another depth and size": parameter(hidden_units=[16, 2]),
    "network cut short": cut_short,
    "network damaged": damaged_inside,
    "network empty": lambda folder: (folder / "decoder.keras").write_bytes(b""),
    "another network": lambda folder: shutil.copy(folder / "encoder.keras", folder / "decoder.keras"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_no_complete_run_is_refused_in_one_line(untrained_run, tmp_path, damage):
    folder = tmp_path / "run"
    shutil.copytree(untrained_run, folder)
    DAMAGE[damage](folder)
    with pytest.raises(RunError, match=re.escape(str(folder))) as refused:
        load_run(folder)
    assert "\n" not in str(refused.value)


def test_a_path_in_a_config_is_never_run(untrained_run, tmp_path):
    shutil.copytree(untrained_run, tmp_path / "run")
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    entry(script=str(evil.with_suffix("")))(tmp_path / "run")
    with pytest.raises(RunError, match="names no script of this project"):
        load_run(tmp_path / "run")
    assert not (tmp_path / "executed").exists()


def test_a_run_with_event_files_loads_where_tensorboard_is_not_installed(untrained_run, tmp_path, monkeypatch):
    shutil.copytree(untrained_run, tmp_path / "run")
    parameter(tensorboard=True)(tmp_path / "run")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    load_run(tmp_path / "run")


# Files and epochs


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_file_whose_writing_fails_stays_as_it_was(tmp_path, failure):
    path = tmp_path / "figure.png"
    path.write_text("earlier")
    with pytest.raises(type(failure)), whole(path) as partial:
        partial.write_text("half")
        raise failure
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("figure.png", "earlier")]


def test_a_new_file_whose_writing_fails_is_not_there(tmp_path):
    with contextlib.suppress(OSError), whole(tmp_path / "figure.png") as partial:
        partial.write_text("half")
        raise OSError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [{"loss": math.nan}, {"loss": object()}])
def test_json_that_cannot_be_written_leaves_the_earlier_file(tmp_path, content):
    write_json(tmp_path / "metrics.json", {"loss": 1.5})
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "metrics.json", content)
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"loss": 1.5}


@pytest.mark.parametrize(
    ("changes", "images", "epochs"),
    [
        ({}, 55_000, 15),
        ({}, 4_000, 40),  # 206 passes would give 8250 updates
        ({}, 10_000_000, 1),
        ({"updates": 24, "batch_size": 20}, 240, 2),
        ({"updates": 24, "batch_size": 20}, 259, 2),  # the 19 left over are no update
        ({"epochs": 0}, 55_000, 0),
        ({"epochs": 300}, 4_000, 300),
    ],
)
def test_planned_epochs(changes, images, epochs):
    assert planned_epochs(aae_deterministic.Config(**changes), images) == epochs


@pytest.mark.parametrize(
    ("updates", "images", "batch_size", "epochs"),
    [(24_750, 55_000, 100, 45), (8250, 4_000, 100, 206), (1, 55_000, 100, 1), (24, 259, 20, 2)],
)
def test_a_training_of_an_experiment_has_no_limit_of_epochs(updates, images, batch_size, epochs):
    assert epochs_for(updates, images, batch_size) == epochs


# Runs that an experiment asks for


def asked_for(tmp_path, data, **changes):
    """The Config of a run that takes no time."""
    small = {"hidden_units": (4,), "batch_size": 20, "epochs": 0}
    return vae_baseline.Config(data=data, results=str(tmp_path), name="r", **small | changes)


def test_a_complete_run_is_not_made_again_and_an_incomplete_one_is(tmp_path, data, monkeypatch, quick, capsys):
    trained, main, dataset = [], vae_baseline.main, load_data(data)
    monkeypatch.setattr(vae_baseline, "main", lambda config: trained.append(config.name) or main(config))
    folder, made = complete_run(vae_baseline, asked_for(tmp_path, data), dataset)
    assert folder == tmp_path / "vae_baseline" / "r"
    expected = {"updates": 0, "epochs": 0, "images": 0, "stopped_by": None}
    assert {key: value for key, value in made.items() if key != "seconds"} == expected
    assert complete_run(vae_baseline, asked_for(tmp_path, data), dataset) == (folder, made)
    assert trained == ["r"]
    for changes, named in (({"beta": 2.0}, "--beta"), ({"epochs": 2}, "--epochs")):
        with pytest.raises(RunError, match=f"r was trained with another {named}; choose another --name"):
            complete_run(vae_baseline, asked_for(tmp_path, data, **changes), dataset)
    (folder / "metrics.json").unlink()  # as if it had been killed before
    capsys.readouterr()
    assert complete_run(vae_baseline, asked_for(tmp_path, data), dataset)[0] == folder
    assert trained == ["r", "r"] and "r has no checkpoint: it is trained from the start" in capsys.readouterr().out


def test_a_folder_without_a_run_is_refused_and_left_as_it_is(tmp_path, data):
    folder = tmp_path / "vae_baseline" / "r"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="r exists and stays unchanged; choose another --name") as refused:
        complete_run(vae_baseline, asked_for(tmp_path, data), load_data(data))
    assert "\n" not in str(refused.value)
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("thesis.txt", "mine")]


def test_the_folder_of_a_process_that_was_killed_at_once_is_used(tmp_path, data, quick):
    folder = tmp_path / "vae_baseline" / "r"
    folder.mkdir(parents=True)
    (folder / ".lock").touch()
    assert complete_run(vae_baseline, asked_for(tmp_path, data), load_data(data))[1]["updates"] == 0


def test_an_interrupted_run_ends_the_experiment(tmp_path, data, monkeypatch):
    monkeypatch.setattr(vae_baseline, "main", lambda config: {"stopped_by": StopOnInterrupt.message})
    with pytest.raises(KeyboardInterrupt):
        complete_run(vae_baseline, asked_for(tmp_path, data), load_data(data))


def test_a_folder_is_claimed_once_for_the_same_parameters_and_data(tmp_path, data):
    dataset, folder = load_data(data), tmp_path / "claimed" / "here"

    def claim(place, results=tmp_path, **changes):
        config = asked_for(results, data, **changes)
        claim_folder(place, description(config, "experiments.comparison.compare", dataset))

    claim(folder)
    saved = (folder / "config.json").read_text()
    claim(folder, tmp_path / "elsewhere")
    assert (folder / "config.json").read_text() == saved
    with pytest.raises(RunError, match=r"made with another --beta, 1\.0;"):
        claim(folder, beta=2.0)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        claim(tmp_path / "file" / "here")


@pytest.mark.parametrize("content", [b"", b"[1, 2", b"7", b"[[1]]", b"\xff\xfe", b"[" * 100_000])
def test_damaged_records_of_an_experiment_are_one_line(tmp_path, content):
    (tmp_path / "runs.json").write_bytes(content)
    with pytest.raises(RunError, match=f"^{re.escape(str(tmp_path))} holds no complete run") as refused:
        each_once(tmp_path, ["a", "b"], lambda name: pytest.fail("made"))
    assert "\n" not in str(refused.value) and (tmp_path / "runs.json").read_bytes() == content


def test_parts_are_made_once_and_saved_one_by_one(tmp_path, capsys):
    made = []

    def make(name):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(name)
        return {"updates": len(made)}

    with pytest.raises(KeyboardInterrupt):
        each_once(tmp_path, ["a", "b", "c"], make)
    made.pop()
    assert each_once(tmp_path, ["a", "b", "c"], make) == {"a": {"updates": 1}, "b": {"updates": 2}, "c": {"updates": 2}}
    assert made == ["a", "c"] and "c: done; parts left: 0" in capsys.readouterr().out


# Defaults that --quick sets


def quick_config(monkeypatch, arguments: str):
    """The Config of an experiment that is called with these flags."""
    got = []
    monkeypatch.setattr(sys, "argv", ["clustering.py", *arguments.split()])
    monkeypatch.setattr(study, "run", lambda declared, config: got.append(config) or {})
    study.run_study(clustering.STUDY, clustering.Config)
    return got[0]


def test_quick_gives_small_defaults_to_what_no_flag_sets(monkeypatch):
    default = clustering.Config()
    assert quick_config(monkeypatch, "") == default
    assert quick_config(monkeypatch, "--quick") == dataclasses.replace(default, **clustering.QUICK, quick=True)


@pytest.mark.parametrize("order", ["--quick {}", "{} --quick"])
@pytest.mark.parametrize(
    ("flags", "changes"),
    [
        ("--seeds 0 1 2", {"seeds": (0, 1, 2)}),
        ("--seeds 0 1 2 3 4", {"seeds": (0, 1, 2, 3, 4)}),
        ("--updates 5500 --data auto", {"updates": 5500, "data": "auto"}),
        ("--clusters 16 30 --hidden-units 1000 1000", {"clusters": (16, 30), "hidden_units": (1000, 1000)}),
    ],
)
def test_quick_leaves_every_flag_as_it_is_though_it_be_the_default(monkeypatch, order, flags, changes):
    config = quick_config(monkeypatch, order.format(flags))
    assert config == dataclasses.replace(clustering.Config(), **clustering.QUICK | changes, quick=True)


# Progress


def test_the_time_left_is_printed_every_ten_seconds_and_no_more(monkeypatch, capsys):
    clock = iter(range(100))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: 3.0 * next(clock))
    left = progress.TimeLeft()
    for done in range(1, 13):
        left("work", done, 12)
    # 3 s a step; printed when more than 10 s have passed: after steps 5 (12 s) and 9 (24 s).
    assert capsys.readouterr().out.splitlines() == ["work: 5 of 12; 21 s left", "work: 9 of 12; 9 s left"]


@pytest.mark.parametrize("stopped_by", [None, StopOnInterrupt.message, "the kl term was not finite at update 3"])
def test_an_interrupted_training_ends_the_experiment(tmp_path, data, monkeypatch, capsys, stopped_by):
    epochs_of = []

    def fit(model, batches, validation, config, epochs, *rest):
        epochs_of.append(epochs)
        return training.Outcome({"updates": [1, 1]}, 1, 1.0, 20, stopped_by)

    monkeypatch.setattr(study, "fit", fit)
    config = avb.Config(updates=24, batch_size=20)
    part = study.Part(config, load_data(data), 0, tmp_path / "part", first=True)
    if stopped_by == StopOnInterrupt.message:
        with pytest.raises(KeyboardInterrupt):
            part.train(SimpleNamespace(), config)
        assert part.made == {}
    else:
        assert part.train(SimpleNamespace(), config).stopped_by == stopped_by
        expected = {"updates": 1, "epochs": 2, "images": 20, "seconds": 1.0, "stopped_by": stopped_by}
        assert part.made == expected
        assert (f"training stopped: {stopped_by}" in capsys.readouterr().out) == bool(stopped_by)
    assert epochs_of == [2] and (tmp_path / "part").is_dir()  # 240 images: 12 updates an epoch


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's memory")
def test_freed_memory_is_kept(nursery, tmp_path):
    """Arrays of 1 MiB, 256 pages each, made and freed 100 times: without it every page is zeroed every time."""
    program = """
import ctypes, resource
import numpy as np
from common.backend import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(100):
        np.ones(2**17)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

ctypes.CDLL(None).mallopt(-1, 128 * 1024)  # what TensorFlow does
earlier = faults()
keep_freed_memory()
print(earlier, faults())
"""
    path = tmp_path / "program.py"
    path.write_text(program)
    child = nursery.run(SimpleNamespace(__file__=str(path)), [])
    assert child.wait() == 0, child.errors.read_text()
    earlier, now = map(int, child.printed().split())
    assert earlier > 10_000 and now < 1000  # most of the pages; those of the first array and few others
