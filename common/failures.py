"""A failure after a training ends one number or one figure alone: nulls with reasons, tracebacks in a file."""

import errno
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from common.arrays import DataError
from common.files import RunError
from common.numbers import Absent

FILE = "errors.txt"  # of a run: the traceback of every error in our code
FULL_MEMORY = ("RESOURCE_EXHAUSTED", "ResourceExhausted", "out of memory", "OutOfMemory", "allocate memory")


class Failures:
    """Attempts that fail alone. `failed` names those that ended in an error of our code, whose tracebacks are kept.

    `lost` has the keys that were not measured. Too little memory is not an error of the code. It is printed, and the
    program ends as if there had been no failure. A figure that cannot be written, as on a full disk, ends the program.
    The run can then resume.
    """

    def __init__(self, folder: Path):
        self.folder, self.failed, self.lost = Path(folder), [], set()
        (self.folder / FILE).unlink(missing_ok=True)  # from an earlier attempt

    def numbers(self, keys: Iterable[str], measured: Callable[[], dict]) -> dict:
        """`measured()` or, if it raises, an `Absent` with the reason for each key. Prints the keys and the reason."""
        try:
            return measured()
        except Exception as error:
            keys = list(keys)
            self.lost |= {*keys}
            reason = self.reason(keys[0], error)
            print(f"{', '.join(keys)}: not measured, {reason}", flush=True)
            return dict.fromkeys(keys, Absent(reason))

    def figure(self, name: str, drawn: Callable[[], None]):
        """Call `drawn`. If it raises, print a line that says which figure is left out."""
        try:
            drawn()
        except Exception as error:
            if isinstance(error, OSError) and error.errno != errno.ENOMEM:
                raise
            print(f"{name}.png is left out: {self.reason(f'{name}.png', error)}", flush=True)

    def reason(self, name: str, error: Exception) -> str:
        """One line on an error. An error of our code goes into `failed`, and its traceback into FILE."""
        line = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        if isinstance(error, (DataError, RunError)):
            return " ".join(str(error).split())
        if (
            isinstance(error, MemoryError)
            or getattr(error, "errno", 0) == errno.ENOMEM
            or any(sign in line for sign in FULL_MEMORY)
        ):
            return "there is too little memory"
        self.failed.append(name)
        with open(self.folder / FILE, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{name}\n{''.join(traceback.format_exception(error))}\n")
        return f"an error in this code ({line}); {FILE} has its traceback"


class Strict:
    """Attempts that raise their errors, for an experiment: it resumes from its checkpoints after a correction."""

    failed = lost = ()

    def numbers(self, keys: Iterable[str], measured: Callable[[], dict]) -> dict:
        return measured()

    def figure(self, name: str, drawn: Callable[[], None]):
        drawn()


STRICT = Strict()
