"""What fails after a training takes nothing else with it: nulls with reasons, figures left out, tracebacks kept."""

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
    """Attempts, each on its own. `failed` names those that an error of our code ended; `folder` keeps the tracebacks.

    `lost` has the keys that were not measured. Too little memory is no error of the code: it is said, and the program
    ends as if all had gone well. A figure that cannot be written, as on a full disk, ends the program: the run resumes.
    """

    def __init__(self, folder: Path):
        self.folder, self.failed, self.lost = Path(folder), [], set()
        (self.folder / FILE).unlink(missing_ok=True)  # an earlier attempt's

    def numbers(self, keys: Iterable[str], measured: Callable[[], dict]) -> dict:
        """`measured()` or, if it raises, an `Absent` with the reason for each of the keys, which are said."""
        try:
            return measured()
        except Exception as error:
            keys = list(keys)
            self.lost |= {*keys}
            reason = self.reason(keys[0], error)
            print(f"{', '.join(keys)}: not measured, {reason}", flush=True)
            return dict.fromkeys(keys, Absent(reason))

    def figure(self, name: str, drawn: Callable[[], None]):
        """`drawn()` or, if it raises, a line that says which figure is left out."""
        try:
            drawn()
        except Exception as error:
            if isinstance(error, OSError) and error.errno != errno.ENOMEM:
                raise
            print(f"{name}.png is left out: {self.reason(f'{name}.png', error)}", flush=True)

    def reason(self, name: str, error: Exception) -> str:
        """One line on an error. That of our code is counted in `failed`, and its traceback goes into the FILE."""
        line = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        if isinstance(error, (DataError, RunError)):
            return " ".join(str(error).split())
        if (
            isinstance(error, MemoryError)
            or getattr(error, "errno", 0) == errno.ENOMEM
            or any(sign in line for sign in FULL_MEMORY)
        ):
            return "it takes more memory than there is"
        self.failed.append(name)
        with open(self.folder / FILE, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{name}\n{''.join(traceback.format_exception(error))}\n")
        return f"an error in this code ({line}); {FILE} has its traceback"


class Strict:
    """Attempts that fail as errors do: in an experiment, which resumes from its checkpoints once it is mended."""

    failed = lost = ()

    def numbers(self, keys: Iterable[str], measured: Callable[[], dict]) -> dict:
        return measured()

    def figure(self, name: str, drawn: Callable[[], None]):
        drawn()


STRICT = Strict()
