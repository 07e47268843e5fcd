"""Versions are said in pyproject.toml: the locks hold what it asks for, and what repeats a version repeats it right."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def text(name: str) -> str:
    return (ROOT / name).read_text()


def wanted(*extras: str) -> list[Requirement]:
    """What the project asks for with these extras. An extra can include another, as `name of the project[other]`."""
    found = []
    lists = [PROJECT["dependencies"], *(EXTRAS[extra] for extra in extras)]
    for requirement in (Requirement(line) for lines in lists for line in lines):
        if requirement.name == PROJECT["name"]:
            found += wanted(*requirement.extras)
        else:
            found.append(requirement)
    return found


def locked(name: str) -> dict[str, list[str]]:
    """The entries of a lock by package: a package can have several, for Pythons apart."""
    found = {}
    for entry in re.split(r"\n(?=\w)", re.sub(r"^ *#.*\n", "", text(name), flags=re.MULTILINE)):
        found.setdefault(entry.split("==")[0], []).append(entry)
    return found


def version_of(entry: str) -> Version:
    return Version(re.match(r"[^ ;\\]+==([^ ;\\]+)", entry).group(1))


def found_in(name: str, pattern: str) -> list[str]:
    return re.findall(pattern, text(name), flags=re.MULTILINE)


@pytest.mark.parametrize(("lock", "extras"), [("requirements.txt", []), ("requirements-dev.txt", ["dev"])])
def test_a_lock_is_not_older_than_what_it_locks(lock, extras):
    entries = locked(lock)
    for requirement in wanted(*extras):
        for entry in entries[requirement.name]:
            assert requirement.specifier.contains(version_of(entry)), entry.splitlines()[0]
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for versions in entries.values() for entry in versions)
    assert "://" not in text(lock)


def test_users_and_developers_have_the_same_versions():
    users, developers = locked("requirements.txt"), locked("requirements-dev.txt")
    assert {name: developers[name] for name in users} == users


def test_the_style_check_before_a_commit_is_the_locked_one():
    (ruff,) = locked("requirements-dev.txt")["ruff"]
    assert found_in(".pre-commit-config.yaml", r"^ *rev: v(\S+)") == [str(version_of(ruff))]


def test_the_work_is_cited_in_the_version_that_the_project_has():
    assert found_in("CITATION.cff", r"^version: (\S+)") == [PROJECT["version"]]


def test_the_pythons_that_are_tested_and_locked_are_taken():
    (oldest,) = found_in(".ci/lock", r"--python-version (\S+)")
    (matrix,) = found_in(".github/workflows/ci.yml", r"python: \[.*\]")
    tested = re.findall(r'"([\d.]+)"', matrix)
    assert oldest in tested
    assert all(SpecifierSet(PROJECT["requires-python"]).contains(python) for python in tested)
