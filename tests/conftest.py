"""What all tests share."""

import gc
import os

import forks
import pytest
import small_runs

LONGEST = (
    "test_resume.py",
    "test_scripts.py",
    "test_mathematics.py",
    "test_promises.py",
    "test_exact_decoders.py",
    "test_comparison.py",
    "test_faults.py",
    "test_likelihood.py",
    "test_likelihoods.py",
    "test_aae_experiments.py",
    "test_collapse.py",
    "test_run.py",
    "test_avb_mnist.py",
)


def pytest_configure(config):
    """One thread in each process: `-n 2` keeps two cores busy. Processes that tests start inherit it."""
    for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ.setdefault(threads, "1")


def pytest_collection_modifyitems(items):
    """The longest files first: with `-n 2` no process is left alone with one of them at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_collection_finish(session):
    """Collect garbage rarely, and never what is loaded: Keras asks for it often, and each time would take 0.3 s."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 50, 50)


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


@pytest.fixture(scope="module")
def quick_module():
    """The same for a whole test file, and nothing is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        small_runs.uncompiled(patch)
        small_runs.cheap_instruments(patch)
        small_runs.texts_for_figures(patch)
        yield
