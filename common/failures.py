"""What fails after a training takes nothing else with it: nulls with reasons, figures left out, tracebacks kept."""

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

    Too little memory is no error of the code: it is said, and the program ends as if all had gone well. A file that
    cannot be read or written ends the program as ever: the run resumes where it stopped.
    """

    def __init__(self, folder: Path):
        self.folder, self.failed = Path(folder), []
        (self.folder / FILE).unlink(missing_ok=True)  # an earlier attempt's

    def numbers(self, keys: Iterable[str], measured: Callable[[], dict]) -> dict:
        """`measured()` or, if it raises, an `Absent` with the reason for each of the keys, which are said."""
        try:
            return measured()
        except OSError:
            raise
        except Exception as error:
            keys = list(keys)
            reason = self.reason(keys[0], error)
            print(f"{', '.join(keys)}: not measured, {reason}", flush=True)
            return dict.fromkeys(keys, Absent(reason))

    def figure(self, name: str, drawn: Callable[[], None]):
        """`drawn()` or, if it raises, a line that says which figure is left out."""
        try:
            drawn()
        except OSError:
            raise
        except Exception as error:
            print(f"{name}.png is left out: {self.reason(f'{name}.png', error)}", flush=True)

    def reason(self, name: str, error: Exception) -> str:
        """One line on an error. That of our code is counted in `failed`, and its traceback goes into the FILE."""
        line = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        if isinstance(error, (DataError, RunError)):
            return " ".join(str(error).split())
        if isinstance(error, MemoryError) or any(sign in line for sign in FULL_MEMORY):
            return "it takes more memory than there is"
        self.failed.append(name)
        with open(self.folder / FILE, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{name}\n{''.join(traceback.format_exception(error))}\n")
        return f"an error in this code ({line}); {FILE} has its traceback"


class Strict:
    """Attempts that fail as errors do: in an experiment, which resumes from its checkpoints once it is mended."""

    failed = ()

    def numbers(self, keys: Iterable[str], measured: Callable[[], dict]) -> dict:
        return measured()

    def figure(self, name: str, drawn: Callable[[], None]):
        drawn()


STRICT = Strict()
