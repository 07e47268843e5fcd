"""What all tests share."""

LONGEST = ("test_scripts.py", "test_experiments.py", "test_promises.py")


def pytest_collection_modifyitems(items):
    """The longest files first: with `-n 2` no process is left alone with one of them at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
