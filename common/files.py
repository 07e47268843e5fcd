"""Files that are whole or not there at all."""

import contextlib
import json
import os
from pathlib import Path


@contextlib.contextmanager
def whole(path):
    """Gives a path beside `path` to write to, and renames it to `path` once all is written.

    A full disk or a killed process leaves an earlier file as it was. The name's ending is kept, since Keras
    and matplotlib go by it.
    """
    path = Path(path)
    partial = path.with_name(f".partial-{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path, content):
    """`content` as indented JSON, whole or not at all."""
    with whole(path) as partial:
        partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
