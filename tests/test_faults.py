"""Whatever stops a training, nothing is lost: killed processes, full disks, folders that vanish, two at once.

`pytest -m long tests/test_faults.py -s` tries each fault more often, and prints the table: fault, times tried, lost.
"""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import vae_baseline
from common import checkpoint, files, run
from common.command import run_main
from common.files import append_line, hold, whole

import keras
import numpy as np
import pytest
import small_runs

VARYING = ("train_seconds", "samples_per_second", "peak_memory_mib")
# What a process does first that trains as the script does, without XLA, but writes a checkpoint an epoch and dies by
# SIGKILL where it is told: "checkpoint-3:0.5" in the middle of the bytes of that file, "checkpoint-3:1" between them
# and its final name.
FIRST = """
import os, signal
from common import checkpoint, measure, model
checkpoint.LEAST_WORK = 0
measure.NEIGHBOUR_DRAWS, measure.CODES_FOR_ACTIVE_UNITS = 20, 240
model.LatentModel.faster_with_xla = False
deadly, share = {die_in!r}.split(":")
replace = os.replace

def die_between(partial, path):
    if os.path.basename(path) == deadly:
        if float(share) < 1.0:
            os.truncate(partial, int(float(share) * os.path.getsize(partial)))
        os.kill(os.getpid(), signal.SIGKILL)
    replace(partial, path)

os.replace = die_between
"""
TABLE: list[tuple[str, int, int]] = []  # fault, times tried, times that anything was lost


@pytest.fixture(scope="module", autouse=True)
def table():
    """Prints what was tried, at the end."""
    yield
    for fault, tried, lost in TABLE:
        print(f"\n| {fault} | {tried} | {lost} |", end="")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The path of 300 images, of which 240 are for training: 12 updates an epoch."""
    return small_runs.tiny_images(tmp_path_factory.mktemp("data") / "tiny.npz", y=np.arange(300) % 3)


def flags(data, results, name, epochs) -> list[str]:
    units = "--hidden-units 32 --latent-dim 3 --batch-size 20 --binarisation dynamic"
    return f"--data {data} --results {results} --name {name} --epochs {epochs} {units}".split()


@pytest.fixture
def process(nursery):
    """Begins the training in a process of its own, that dies in writing the file `die_in` if there is one."""
    return lambda arguments, die_in=":0": nursery.run(vae_baseline, arguments, first=FIRST.format(die_in=die_in))


def ended(child) -> tuple[int, str]:
    """Exit code of a process, and all that it printed."""
    code = child.wait()
    return code, child.printed() + child.errors.read_text()


def whole_files(folder: Path) -> bool:
    """Whether every file that has its final name can be read to its end."""
    for path in folder.iterdir():
        if path.name.startswith("checkpoint-"):
            checkpoint.read(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".keras":
            keras.models.load_model(path)
        elif path.suffix == ".png":
            assert path.read_bytes().endswith(b"IEND\xaeB`\x82")
        elif path.suffix == ".csv":
            lines = path.read_text()
            assert not lines or lines.endswith("\n")
            assert len({line.count(",") for line in lines.splitlines()}) <= 1
        else:
            assert path.name == ".lock" or path.name.startswith(files.PARTIAL)
    return True


def left_by(folder: Path) -> dict:
    """All that must be the same at the end of a run."""
    assert whole_files(folder)
    (latest,) = checkpoint.saved_files(folder)
    about, values = checkpoint.read(latest)
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in about["content"]["history"]]
    metrics = {k: v for k, v in json.loads((folder / "metrics.json").read_text()).items() if k not in VARYING}
    pictures = {path.name: path.read_bytes() for path in folder.glob("*.png") if path.stem != "training"}
    networks = {p.name: [w.tobytes() for w in keras.models.load_model(p).get_weights()] for p in folder.glob("*.keras")}
    return {"values": values, "history": history, "metrics": metrics} | pictures | networks


@pytest.mark.parametrize(("kills", "epochs"), [(2, 16), pytest.param(40, 1200, marks=pytest.mark.long)])
@pytest.mark.timeout(3000)
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path, data, process, kills, epochs):
    """At random moments, from its first second on, and every third time within the writing of a checkpoint."""
    moments = random.Random(kills)
    assert ended(process(flags(data, tmp_path, "whole", epochs)))[0] == 0
    folder = tmp_path / "vae_baseline" / "killed"
    inside = 0
    for number in range(kills):
        made = checkpoint.saved_files(folder)
        begun = int(made[0].name.split("-")[1]) if made else 0
        arguments = ["--resume", str(folder)] if (folder / "config.json").is_file() else None
        if number % 3 == 0:
            share = moments.choice([0.0, 0.3, 0.9, 1.0])
            victim = process(arguments or flags(data, tmp_path, "killed", epochs), f"checkpoint-{begun + 5}:{share}")
            inside += 1
        else:
            victim = process(arguments or flags(data, tmp_path, "killed", epochs))
            if number % 3 == 1:
                victim.until("^epoch ")
                time.sleep(moments.uniform(0.0, 0.5))
            else:
                time.sleep(moments.uniform(0.0, 4.0))
            victim.kill()
        code, printed = ended(victim)
        if code == 0:  # it was quicker
            assert "is finished" in printed or (folder / "metrics.json").is_file()
            break
        assert code == -signal.SIGKILL, printed
        assert not folder.is_dir() or whole_files(folder)
    code, printed = ended(process(["--resume", str(folder)]))
    assert code == 0, printed
    assert not list(folder.glob(f"{files.PARTIAL}*"))
    same = left_by(folder) == left_by(folder.with_name("whole"))
    TABLE.append((f"SIGKILL, {inside} of them within the writing of a checkpoint", number + 1, int(not same)))
    assert same


# Within this process


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data):
    """What is left of the run of `small_config` if nothing happens, and the files that it writes."""
    written, fsync = [], os.fsync
    with pytest.MonkeyPatch.context() as patch:
        small_runs.quicken(patch)
        patch.setattr(checkpoint, "LEAST_WORK", 0)
        patch.setattr(files.os, "fsync", lambda file: (written.append(file.name), fsync(file)))
        folder = tmp_path_factory.mktemp("undisturbed")
        vae_baseline.main(small_config(data, folder))
    return left_by(folder / "vae_baseline" / "r"), [Path(name).name.removeprefix(files.PARTIAL) for name in written]


@pytest.fixture
def small(quick, monkeypatch):
    """A checkpoint an epoch, and little to compile and draw."""
    monkeypatch.setattr(checkpoint, "LEAST_WORK", 0)


def small_config(data, results, **changes) -> vae_baseline.Config:
    small = {"hidden_units": (32,), "latent_dim": 3, "batch_size": 20, "epochs": 3, "binarisation": "dynamic"}
    return vae_baseline.Config(data=data, results=str(results), name="r", **small | changes)


def resumed(config) -> dict:
    """What is left when the run of `config` was resumed, or called again where there was nothing to resume."""
    folder = Path(config.results) / "vae_baseline" / "r"
    if not (folder / "config.json").is_file():
        vae_baseline.main(config)
    else:
        vae_baseline.main(small_config(config.data, config.results, resume=str(folder)))
    return left_by(folder)


def one_line(config, capsys, monkeypatch) -> str:
    """What the script writes to standard error, which must be a line, when it is called for `config` and fails."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["vae_baseline.py", *flags(config.data, config.results, config.name, 3)])
    with pytest.raises(SystemExit) as stop:
        run_main(vae_baseline.main, vae_baseline.Config)
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    return line


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.timeout(3000)
def test_a_disk_that_is_full_at_any_file_loses_nothing(tmp_path, data, small, undisturbed, monkeypatch, capsys, every):
    """Each file of a run in turn cannot be written; then there is room again."""
    end, names = undisturbed
    lost, fsync = 0, os.fsync
    assert {"config.json", "history.csv", "checkpoint-3", "decoder.keras", "latent_pca.png", "metrics.json"} <= {*names}
    for victim in range(len(names))[::every]:
        count = iter(range(len(names)))

        def full(file, count=count, victim=victim):
            if next(count) == victim:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(file)

        config = small_config(data, tmp_path / f"at-{victim}")
        with monkeypatch.context() as patch:
            patch.setattr(files.os, "fsync", full)
            line = one_line(config, capsys, monkeypatch)
        assert "No space left on device" in line and "--resume" in line
        folder = Path(config.results) / "vae_baseline" / "r"
        assert (whole_files(folder) and not (folder / names[victim]).is_file()) or "checkpoint" in names[victim]
        lost += resumed(config) != end
    TABLE.append(("a disk that is full at one file after the other", len(range(len(names))[::every]), lost))
    assert lost == 0


def release(place: Path):
    """Let go of the folders below `place`, as the end of the process would."""
    for path, lock in files.LOCKS.items():
        if place in path.parents:
            lock.release()


@contextlib.contextmanager
def file_system(place: Path, size: int):
    """A file system of its own at `place`, of so many KiB; skips where this user may not mount one."""
    place.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(options, capture_output=True).returncode:
        pytest.skip("mounting a file system takes root")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("sizes", [1, pytest.param(12, marks=pytest.mark.long)])
@pytest.mark.timeout(3000)
def test_a_file_system_that_fills_up_loses_nothing(tmp_path, data, small, undisturbed, monkeypatch, capsys, sizes):
    """Of every size from too small for the first checkpoint to too small for the last figure; then it grows."""
    needed = sum(len(content) for name, content in undisturbed[0].items() if name.endswith(".png")) // 1024 + 300
    tried = lost = 0
    for number in range(sizes):
        size = 60 + number * needed // sizes
        place = tmp_path / f"disk-{number}"
        with file_system(place, size):
            config = small_config(data, place)
            try:
                vae_baseline.main(config)
            except OSError as error:
                assert error.errno in (errno.ENOSPC, None) or "space" in str(error), repr(error)
                tried += 1
                assert whole_files(place / "vae_baseline" / "r")
                subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
                lost += resumed(config) != undisturbed[0]
            release(place)
    TABLE.append(("a file system of 60 KiB and more that fills up", tried, lost))
    assert tried and lost == 0


def test_a_file_system_that_turns_read_only_loses_nothing(tmp_path, data, small, undisturbed, monkeypatch, capsys):
    place = tmp_path / "disk"
    with file_system(place, 64 * 1024):
        config, save = small_config(data, place), checkpoint.save

        def then_read_only(folder, model, epochs, content):
            save(folder, model, epochs, content)
            if epochs == 2:
                release(place)  # no file is open for writing
                subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save", then_read_only)
            line = one_line(config, capsys, monkeypatch)
        assert "Read-only file system" in line and "--resume" in line
        assert "cannot write" in one_line(small_config(data, place / "more"), capsys, monkeypatch)
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
        lost = resumed(config) != undisturbed[0]
        release(place)
    TABLE.append(("a file system that turns read-only", 1, int(lost)))
    assert not lost


def test_a_folder_that_vanishes_is_one_line(tmp_path, data, small, monkeypatch, capsys):
    config, save = small_config(data, tmp_path / "results"), checkpoint.save

    def then_gone(folder, model, epochs, content):
        save(folder, model, epochs, content)
        shutil.rmtree(tmp_path / "results")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", then_gone)
        line = one_line(config, capsys, monkeypatch)
    assert "No such file or directory" in line
    assert not (tmp_path / "results").exists()


def test_a_clock_that_steps_back_changes_nothing(tmp_path, data, small, undisturbed, monkeypatch):
    now = iter(range(2_000_000_000, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    vae_baseline.main(small_config(data, tmp_path))
    lost = left_by(tmp_path / "vae_baseline" / "r") != undisturbed[0]
    TABLE.append(("a clock that steps back an hour whenever it is read", 1, int(lost)))
    assert not lost
    monkeypatch.setattr(run.time, "strftime", lambda form: "2026-01-02_03-04-05")
    folders = {run.create_folder(str(tmp_path), "avb", "") for _ in range(3)}
    assert len(folders) == 3


@pytest.mark.parametrize("times", [1, pytest.param(8, marks=pytest.mark.long)])
@pytest.mark.timeout(3000)
def test_of_two_processes_of_one_name_the_second_is_refused(tmp_path, data, process, times):
    lost = 0
    for number in range(times):
        both = [process(flags(data, tmp_path, f"r{number}", 6)) for _ in range(2)]
        codes, printed = zip(*map(ended, both), strict=True)
        assert sorted(codes) == [0, 2], printed
        refused = printed[codes.index(2)]
        assert "exists and stays unchanged; choose another --name" in refused or "is in use by another" in refused
        lost += left_by(tmp_path / "vae_baseline" / f"r{number}") != left_by(tmp_path / "vae_baseline" / "r0")
    TABLE.append(("two processes of one name at once", times, lost))
    assert lost == 0


def test_a_run_in_progress_is_not_resumed_by_another(tmp_path, data, process):
    first = process(flags(data, tmp_path, "r", 100_000))
    try:
        first.until("^epoch ")
        code, printed = ended(process(["--resume", str(tmp_path / "vae_baseline" / "r")]))
    finally:
        first.kill()
        first.wait()
    assert code == 2 and "is in use by another process" in printed
    hold(tmp_path / "vae_baseline" / "r")  # the lock of a process that was killed holds no one back


# Files


def test_a_line_is_added_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "history.csv"
    for line in ("a,b", "1,2"):
        append_line(path, line)
    assert path.read_text() == "a,b\n1,2\n"
    with open("/dev/full", "ab", buffering=0) as full, pytest.raises(OSError):
        full.write(b"x")
    with file_system(tmp_path / "disk", 4):
        path = tmp_path / "disk" / "history.csv"
        append_line(path, "x" * 4000)
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                append_line(path, "y" * 4000)
        assert path.read_text() == "x" * 4000 + "\n"


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path):
    (tmp_path / "a.txt").write_text("before")
    with pytest.raises(ZeroDivisionError), whole(tmp_path / "a.txt") as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]
