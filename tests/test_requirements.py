"""The locks hold what requirements.txt and requirements-dev.txt ask for, with the checksums of every file."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent


def wanted(name: str) -> list[Requirement]:
    lines = (ROOT / name).read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def locked(name: str) -> dict[str, list[str]]:
    """The entries of a lock by package: a package can have several, for Pythons apart."""
    entries = re.split(r"\n(?=\w)", re.sub(r"^ *#.*\n", "", (ROOT / name).read_text(), flags=re.MULTILINE))
    found = {}
    for entry in entries:
        found.setdefault(entry.split("==")[0], []).append(entry)
    return found


@pytest.mark.parametrize(
    ("lock", "sources"),
    [
        ("requirements.lock", ["requirements.txt"]),
        ("requirements-dev.lock", ["requirements.txt", "requirements-dev.txt"]),
    ],
)
def test_a_lock_is_not_older_than_what_it_locks(lock, sources):
    entries = locked(lock)
    for requirement in (requirement for source in sources for requirement in wanted(source)):
        for entry in entries[requirement.name]:
            version = Version(re.match(r"[^ ;\\]+==([^ ;\\]+)", entry).group(1))
            assert requirement.specifier.contains(version), entry.splitlines()[0]
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for versions in entries.values() for entry in versions)
    assert "://" not in (ROOT / lock).read_text()


def test_users_and_developers_have_the_same_versions():
    users, developers = locked("requirements.lock"), locked("requirements-dev.lock")
    assert {name: developers[name] for name in users} == users
