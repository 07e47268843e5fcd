"""What fails after a training takes nothing else with it, and `tools.evaluate` makes it later."""

import errno
import json
import shutil

import vae_baseline
from common import plots, report, run
from common.command import run_main
from common.evaluation import coverage, latent, neighbours, probes
from common.failures import FILE
from common.files import RunError
from common.measure import COST, FEATURES, MEASURED, NEAREST
from common.report import TRAINING_FILE
from common.run import load_run
from tools import evaluate

import numpy as np
import pytest
from helpers import Killed, kill_after_checkpoint
from small_runs import tiny_images

SECONDS = ("train_seconds", "samples_per_second", "peak_memory_mib")  # of metrics.json, which differ every time
FIGURES = {"training", "latent", "samples", "reconstructions", "interpolations", "manifold"}


pytestmark = pytest.mark.usefixtures("quick_module")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_images(tmp_path_factory.mktemp("data") / "mine.npz", y=np.arange(300) % 3)


def config_in(folder, data):
    return vae_baseline.Config(
        data=data, epochs=1, batch_size=20, hidden_units=(8,), results=str(folder), name="r", seed=3
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data):
    """metrics.json of a run in which nothing fails."""
    return vae_baseline.main(config_in(tmp_path_factory.mktemp("whole"), data))


def fails(error):
    def function(*arguments, **options):
        raise error

    return function


BROKEN = {  # an instrument of each kind: what is broken, and the numbers that are then null
    "mmd": ((latent, "mmd"), {"code_mmd_imq", "code_mmd_rbf"}),
    "c2st": ((latent, "c2st_accuracy"), {"code_c2st_accuracy"}),
    "probes": ((probes, "probe_accuracy"), {"code_knn_accuracy", "code_logistic_accuracy"}),
    "ks": ((latent, "kolmogorov_smirnov"), {"code_ks", "code_ks_max", "code_ks_critical"}),
    "holes": ((coverage, "hole_mass"), {"code_hole_mass"}),
    "units": ((latent, "active_units"), {"active_units"}),
    "surgery": (
        (latent, "elbo_surgery"),
        {"kl_per_dimension_nats", "mutual_information_nats", "marginal_kl_nats"},
    ),
    "neighbours": (
        (neighbours, "neighbour_entropy"),
        {"mutual_information_neighbour_nats", "kl_neighbour_nats", "marginal_kl_neighbour_nats"},
    ),
}


@pytest.mark.parametrize(("place", "lost"), BROKEN.values(), ids=BROKEN)
def test_a_broken_instrument_leaves_all_other_numbers(tmp_path, data, undisturbed, monkeypatch, capsys, place, lost):
    monkeypatch.setattr(*place, fails(ZeroDivisionError("a bug")))
    metrics = vae_baseline.main(config_in(tmp_path, data))
    folder = tmp_path / "vae_baseline" / "r"
    assert metrics == json.loads((folder / "metrics.json").read_text())
    reasons, printed = metrics["null_because"], capsys.readouterr().out
    for key in lost:
        assert (
            metrics[key] is None
            and "ZeroDivisionError: a bug" in reasons[key]
            and FILE in reasons[key]
            and key in printed
        )
    errors = {f"{key}_standard_error" for key in lost} | {f"{key}_p_value" for key in lost}
    kept = {key for key in undisturbed if key not in {*SECONDS, *lost, *errors, "null_because"}}
    assert {key: metrics[key] for key in kept} == {key: undisturbed[key] for key in kept}
    assert "Traceback" in (folder / FILE).read_text() and metrics["failed"]
    assert {path.stem for path in folder.glob("*.png")} == FIGURES


def test_every_number_of_the_instruments_is_null_where_there_are_no_codes(undisturbed):
    own = {key.removesuffix("_standard_error") for key in undisturbed} - {*COST}
    assert own <= {*MEASURED} and {*MEASURED} - own == {"kl_estimated_nats", "negative_elbo_estimated_nats"}


def test_too_little_memory_is_no_bug(tmp_path, data, monkeypatch, capsys):
    monkeypatch.setattr(latent, "c2st_accuracy", fails(MemoryError()))
    metrics = vae_baseline.main(config_in(tmp_path, data))
    assert metrics["null_because"]["code_c2st_accuracy"] == "there is too little memory"
    assert "failed" not in metrics and not (tmp_path / "vae_baseline" / "r" / FILE).exists()
    assert "code_c2st_accuracy: not measured, there is too little memory" in capsys.readouterr().out


def test_an_error_of_the_code_is_exit_code_1_and_evaluate_makes_up_for_it(tmp_path, data, undisturbed, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(latent, "mmd", fails(KeyError("a bug")))
        patch.setattr(plots, "latent_scatter", fails(KeyError("another")))
        patch.setattr("sys.argv", ["vae_baseline.py"])
        with pytest.raises(SystemExit) as stop:
            run_main(lambda config: vae_baseline.main(config_in(tmp_path, data)), vae_baseline.Config)
        assert stop.value.code == 1
    folder = tmp_path / "vae_baseline" / "r"
    assert {path.stem for path in folder.glob("*.png")} == FIGURES - {"latent"}
    before = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    metrics = evaluate.main(evaluate.Config(str(folder)))
    assert "failed" not in metrics and not (folder / FILE).exists()
    apart = 5 * undisturbed["code_mmd_imq_standard_error"]  # other draws of the codes
    assert metrics["code_mmd_imq"] == pytest.approx(undisturbed["code_mmd_imq"], abs=apart)
    assert {path.stem for path in folder.glob("*.png")} == FIGURES | {"nearest"}
    assert all((folder / name).read_bytes() == content for name, content in before.items())


@pytest.mark.parametrize("name", ["training_curves", "image_grid", "manifold"])
def test_a_figure_that_fails_is_named_and_left_out(tmp_path, data, monkeypatch, capsys, name):
    monkeypatch.setattr(plots, name, fails(ValueError("two\nlines")))
    metrics = vae_baseline.main(config_in(tmp_path, data))
    left_out = {"training_curves": "training", "image_grid": "samples", "manifold": "manifold"}[name]
    assert f"{left_out}.png is left out: an error in this code (ValueError: two lines)" in capsys.readouterr().out
    assert {path.stem for path in (tmp_path / "vae_baseline" / "r").glob("*.png")} == FIGURES - {left_out}
    assert metrics["code_c2st_accuracy"] is not None and metrics["failed"] == [f"{left_out}.png"]


def test_without_codes_all_numbers_are_null_and_the_curves_are_drawn(tmp_path, data, monkeypatch):
    monkeypatch.setattr(report, "encoded", fails(MemoryError()))
    metrics = vae_baseline.main(config_in(tmp_path, data))
    assert all(metrics[key] is None and key in metrics["null_because"] for key in MEASURED)
    assert metrics["updates"] == 12
    assert {path.stem for path in (tmp_path / "vae_baseline" / "r").glob("*.png")} == {"training"}


@pytest.fixture
def killed(tmp_path, data, monkeypatch, capsys):
    """The folder of a run that is killed while it is measured."""
    with monkeypatch.context() as patch:
        patch.setattr(latent, "c2st_accuracy", fails(Killed()))
        with pytest.raises(Killed):
            vae_baseline.main(config_in(tmp_path, data))
    folder = tmp_path / "vae_baseline" / "r"
    assert f"the trained networks are in {folder}; python -m tools.evaluate {folder}" in capsys.readouterr().out
    assert not (folder / "metrics.json").exists()
    return folder


def test_a_run_killed_while_it_is_measured_has_its_networks_and_is_evaluated(killed, data, undisturbed):
    codes = load_run(killed).encode(np.load(data)["x"][:5])
    assert codes.shape == (5, 2)
    metrics = evaluate.main(evaluate.Config(str(killed)))
    assert metrics["updates"] == 12 and metrics["stopped_by"] is None
    own = undisturbed.keys() - {"null_because"}
    assert own <= metrics.keys()
    assert {path.stem for path in killed.glob("*.png")} == FIGURES | {"nearest"}


def test_a_run_killed_while_it_is_measured_resumes_to_the_same_numbers(killed, data, undisturbed, tmp_path):
    metrics = vae_baseline.main(vae_baseline.Config(**vars(config_in(tmp_path, data)) | {"resume": str(killed)}))
    same = undisturbed.keys() - {*SECONDS}
    assert {key: metrics[key] for key in same} == {key: undisturbed[key] for key in same}


def test_evaluating_keeps_what_does_not_fail(killed, monkeypatch):
    monkeypatch.setattr(evaluate, "Classifier", fails(ValueError("no classifier")))
    metrics = evaluate.main(evaluate.Config(str(killed)))
    assert all(metrics[key] is None and key in metrics["null_because"] for key in (*FEATURES, "code_mlp_accuracy"))
    assert all(metrics[key] is not None for key in NEAREST) and metrics["failed"] == ["classifier_accuracy"]


def test_a_prolonged_run_that_is_killed_while_it_is_measured_is_evaluated_as_the_longer_one(
    tmp_path, data, monkeypatch
):
    vae_baseline.main(config_in(tmp_path, data))
    folder = tmp_path / "vae_baseline" / "r"
    before = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    longer = vae_baseline.Config(**vars(config_in(tmp_path, data)) | {"resume": str(folder), "epochs": 3})
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(latent, "c2st_accuracy", fails(Killed()))
        vae_baseline.main(longer)
    metrics = evaluate.main(evaluate.Config(str(folder)))
    assert metrics["updates"] == 36 and not (folder / TRAINING_FILE).exists()
    changed = {name for name, content in before.items() if (folder / name).read_bytes() != content}
    assert changed == {f"{name}.png" for name in FIGURES}  # at least their titles
    assert vae_baseline.main(longer)["updates"] == 36


def test_what_fails_in_an_evaluation_leaves_the_numbers_that_were_measured(tmp_path, data, monkeypatch):
    before = vae_baseline.main(config_in(tmp_path, data))
    folder = tmp_path / "vae_baseline" / "r"
    monkeypatch.setattr(latent, "mmd", fails(OSError(errno.ENOMEM, "Cannot allocate memory")))
    metrics = evaluate.main(evaluate.Config(str(folder)))
    for key in ("code_mmd_imq", "code_mmd_imq_standard_error", "code_mmd_imq_p_value"):
        assert metrics[key] == before[key] is not None
    assert "code_mmd_imq" not in metrics["null_because"] and "failed" not in metrics
    assert metrics["code_c2st_accuracy"] is not None


def test_a_run_that_has_not_ended_is_not_evaluated(tmp_path, data, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after_checkpoint(patch, 0)
        vae_baseline.main(config_in(tmp_path, data))
    with pytest.raises(RunError, match="its training has not ended; its script can --resume it"):
        evaluate.main(evaluate.Config(str(tmp_path / "vae_baseline" / "r")))


@pytest.mark.parametrize("own", ["config.json", "tensorboard/notes.txt", "history.csv"])
def test_a_folder_with_files_of_the_users_is_left_as_it_is(tmp_path, data, monkeypatch, own):
    path = tmp_path / "vae_baseline" / "r" / own
    path.parent.mkdir(parents=True)
    path.write_text('{"mine": 1}')
    monkeypatch.setattr(run, "fit", fails(ValueError("a bug")))
    with pytest.raises(RunError, match="exists and stays unchanged"):
        vae_baseline.main(config_in(tmp_path, data))
    assert path.read_text() == '{"mine": 1}'


def test_what_stops_before_the_first_epoch_leaves_no_folder(tmp_path, data, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run, "fit", fails(RunError("not today")))
        with pytest.raises(RunError, match="not today"):
            vae_baseline.main(config_in(tmp_path, data))
    assert not (tmp_path / "vae_baseline" / "r").exists()
    assert vae_baseline.main(config_in(tmp_path, data))["updates"] == 12


def test_the_folder_of_a_run_killed_before_its_first_epoch_is_used_again(tmp_path, data, killed, monkeypatch):
    folder = tmp_path / "elsewhere" / "vae_baseline" / "r"
    folder.mkdir(parents=True)
    shutil.copy(killed / "config.json", folder)
    (folder / "history.csv").touch()
    assert vae_baseline.main(config_in(tmp_path / "elsewhere", data))["updates"] == 12
