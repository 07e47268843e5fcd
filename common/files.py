"""Files that are whole or not there at all, in folders that one process at a time writes to."""

import contextlib
import errno
import json
import os
from pathlib import Path

from filelock import FileLock, Timeout

PARTIAL = ".partial-"
LOCKS: dict[Path, FileLock] = {}  # held by this process, until it ends


class RunError(ValueError):
    """A mistake of the user's that one line can explain: an impossible parameter, a folder that cannot be used."""


def hold(folder: Path):
    """Keep every other process from `folder` until this one ends, however it ends, and clear what a killed one left.

    Raises RunError if another process holds it.
    """
    path = Path(folder).resolve() / ".lock"
    lock = LOCKS.setdefault(path, FileLock(path))
    if not lock.is_locked:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(f"{folder} is in use by another process; wait for its end") from None
    for left in path.parent.rglob(f"{PARTIAL}*"):
        if left.parent == path.parent or not (left.parent / ".lock").exists():  # which another process may hold
            left.unlink(missing_ok=True)


def release(folder: Path):
    """Let other processes have `folder`, which this one holds."""
    if lock := LOCKS.pop(Path(folder).resolve() / ".lock", None):
        lock.release()


@contextlib.contextmanager
def whole(path):
    """Gives a path beside `path` to write to, and renames it to `path` once all is written.

    A full disk, a killed process or a power cut leaves an earlier file as it was. The name's ending is kept, since
    Keras and matplotlib go by it.
    """
    path = Path(path)
    partial = path.with_name(f"{PARTIAL}{path.name}")
    try:
        yield partial
        with partial.open("rb+") as written:
            os.fsync(written)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path, content):
    """`content` as indented JSON, whole or not at all."""
    with whole(path) as partial:
        partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def append_line(path, line: str):
    """Add a line to a file, whole or not at all."""
    with open(path, "ab", buffering=0) as file:
        size, text = file.tell(), f"{line}\n".encode()
        try:
            written = file.write(text)
        except OSError:
            written = 0
            raise
        finally:
            if written < len(text):
                file.truncate(size)
    if written < len(text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
