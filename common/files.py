"""Files that are written atomically, in folders that only one process at a time writes to."""

import contextlib
import errno
import json
import os
from pathlib import Path

from filelock import FileLock, Timeout

PARTIAL = ".partial-"
LOCKS: dict[Path, FileLock] = {}  # held by this process, until it ends


class RunError(ValueError):
    """A mistake of the user that one line can explain: an impossible parameter, a folder that cannot be used."""


def hold(folder: Path):
    """Lock `folder` for this process until it ends, and delete unfinished files that a killed process left there.

    Raises RunError if another process holds the lock.
    """
    path = Path(folder).resolve() / ".lock"
    lock = LOCKS.setdefault(path, FileLock(path))
    if not lock.is_locked:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(f"{folder} is in use by another process; wait for its end") from None
    for unfinished in path.parent.rglob(f"{PARTIAL}*"):
        # Another process may hold a lock of its own in a folder below.
        if unfinished.parent == path.parent or not (unfinished.parent / ".lock").exists():
            unfinished.unlink(missing_ok=True)


def release(folder: Path):
    """Unlock `folder` for other processes."""
    if lock := LOCKS.pop(Path(folder).resolve() / ".lock", None):
        lock.release()


@contextlib.contextmanager
def whole(path):
    """Gives a temporary path in the same folder to write to, and renames that file to `path` once it is complete.

    A full disk, a killed process or a power cut leaves an earlier file as it was. The temporary name has the same
    ending, since Keras and matplotlib choose the format by it.
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
    """Write `content` as indented JSON, atomically."""
    with whole(path) as partial:
        partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def append_line(path, line: str):
    """Append a line to a file, atomically."""
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
