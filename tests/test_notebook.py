"""quickstart.ipynb as it is committed: small, plain, and with links that exist. `.ci/run` runs it from end to end."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "quickstart.ipynb"
TEXT = NOTEBOOK.read_text()
CELLS = nbformat.reads(TEXT, as_version=nbformat.NO_CONVERT).cells
CODE = {cell.id: cell.source for cell in CELLS if cell.cell_type == "code"}
PROSE = "\n".join(cell.source for cell in CELLS if cell.cell_type == "markdown")
SET_UP = CODE["set-up"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINK = re.compile(r"\]\(([^)]+)\)")


def test_the_notebook_is_valid_and_says_no_more_than_it_must():
    notebook = nbformat.reads(TEXT, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert notebook.metadata == {"kernelspec": kernel}
    assert all(not cell.metadata for cell in CELLS)


def test_no_outputs_are_committed():
    for cell in CELLS:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, f"clear the output of the cell {cell.id}"


def test_every_code_cell_is_plain_python():
    for name, source in CODE.items():
        compile(source, name, "exec")


def test_lines_are_short_and_name_no_folder_of_one_machine():
    lines = [line for cell in CELLS for line in cell.source.splitlines() if "colab-badge" not in line]
    assert [line for line in lines if len(line) > 120] == []
    assert re.findall(r"(?<![\w.])(?:/(?:home|root|tmp|work|content|mnt|Users)/|[A-Z]:\\\\)", TEXT) == []


def test_every_link_to_a_page_exists():
    links = [link for link in LINK.findall(PROSE) if not link.startswith("https://")]
    assert len(links) >= 5
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_no_address_is_invented():
    """The public address is not known here: the badge leads to Colab's own list, and the reader gives the address."""
    badges = re.findall(r"https://colab\.research\.google\.com/github[^)\s]*", PROSE)
    assert badges == ["https://colab.research.google.com/github/"]
    assert 'REPOSITORY = ""' in SET_UP


@pytest.fixture
def commands(monkeypatch):
    """The commands that the set-up cell runs; `git clone` makes a folder with pyproject.toml alone."""
    ran = []

    def run(command, check):
        assert check
        ran.append(command)
        if command[0] == "git":
            folder = Path(command[-1].rstrip("/").split("/")[-1].removesuffix(".git"))
            folder.mkdir()
            shutil.copy(ROOT / "pyproject.toml", folder)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return ran


def test_setting_up_in_the_repository_does_nothing(commands, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = sys.path.copy()
    exec(SET_UP, {})
    assert commands == [] and sys.path == path and Path.cwd() == ROOT


def with_address(address: str) -> str:
    """The set-up cell after the reader has put an address into it."""
    return SET_UP.replace('REPOSITORY = ""', f"REPOSITORY = {address!r}")


@pytest.mark.parametrize("ending", ["", "/", ".git"])
def test_setting_up_elsewhere_clones_and_installs_and_can_be_done_again(commands, tmp_path, monkeypatch, ending):
    address = f"https://github.com/someone/digits{ending}"
    for _ in range(2):  # the second time as in a session that was restarted
        monkeypatch.chdir(tmp_path)
        exec(with_address(address), {})
        assert Path.cwd() == tmp_path / "digits" and sys.path[0] == os.getcwd()
    install = [sys.executable, "-m", "pip", "install", "-q", *PROJECT["dependencies"]]
    assert commands == [["git", "clone", "--depth", "1", address], install, install]


def test_without_an_address_nothing_is_cloned(commands, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="put the address of this repository into REPOSITORY"):
        exec(SET_UP, {})
    assert commands == []


def test_a_package_that_was_loaded_before_its_update_asks_for_a_restart(commands, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("numpy.__version__", "1.0")
    with pytest.raises(RuntimeError, match="numpy was updated: restart"):
        exec(with_address("https://github.com/someone/digits"), {})
