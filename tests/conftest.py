"""What all tests share."""

import gc

import forks
import pytest
import small_runs

LONGEST = ("test_scripts.py", "test_comparison.py", "test_promises.py")


def pytest_collection_modifyitems(items):
    """The longest files first: with `-n 2` no process is left alone with one of them at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_collection_finish(session):
    """Keep what is loaded out of later collections of garbage: Keras asks for many, and each would take 0.3 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def nursery(tmp_path_factory):
    """Forks processes that run a script; see `forks`."""
    nursery = forks.Nursery(tmp_path_factory.mktemp("printed"))
    yield nursery
    nursery.close()


@pytest.fixture
def quick(monkeypatch):
    """Little to compile, draw and measure, for tests that are not about that; see `small_runs`."""
    small_runs.quicken(monkeypatch)
