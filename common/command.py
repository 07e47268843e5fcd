"""From the command line to `main`: flags, `--resume`, and the user's mistakes in one line."""

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Callable

from common.arrays import DataError
from common.files import RunError
from common.run import load_config

import tyro


def run_main(main, config_class, presets: Callable | None = None):
    """Call `main` with the Config that the command line gives; with --resume, the Config of the stopped run.

    `presets(config)` gives the defaults that a flag such as --quick puts in place of the Config's own: a dict.
    The user's mistakes end in one line and exit code 2, a training that stopped early, or an error of our
    code after it, in exit code 1.
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal may lack letters that a file's name has
        with contextlib.suppress(AttributeError):  # replaced by something without encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        metrics = main(requested(config_class, presets))
    except (DataError, RunError) as error:
        sys.exit(refusal(str(error)))
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        names = {field.name for field in dataclasses.fields(config_class)}
        remedy = ", then resume with --resume and the run's folder" * ("resume" in names)
        sys.exit(refusal(f"{error}; files written before are complete: mend what it says{remedy}"))
    except MemoryError as error:
        sys.exit(refusal(f"{str(error) or 'out of memory'}; make the networks, the batches or the data smaller"))
    if metrics.get("stopped_by") or metrics.get("failed"):
        sys.exit(1)


def requested(config_class, presets: Callable | None = None):
    """The Config of the command line. Raises RunError if a flag is wrong, or if --resume names no run."""
    config = parse(config_class)
    if getattr(config, "resume", ""):
        saved = load_config(config.resume, config_class)
        config = parse(config_class, default=saved)
        if (config.results, config.name) != (saved.results, saved.name):
            raise RunError("--resume says where the run is: leave out --results and --name")
    elif presets and (defaults := presets(config)):
        config = parse(config_class, default=dataclasses.replace(config_class(), **defaults))
    return config


def refusal(message: str) -> int:
    """Print why nothing is done; the exit code for it."""
    print(f"error: {message}", file=sys.stderr)
    return 2


class Printed(io.StringIO):
    """What tyro prints, kept."""

    encoding = "utf-8"  # without it tyro rules its box with hyphens, like a flag's


def parse(config_class, arguments=None, default=None):
    """The Config with the flags of the command line; tyro's boxed complaint is put into one line.

    What no flag sets is as in `default`, a Config, if there is one. Raises RunError if a flag is wrong.
    """
    printed = Printed()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            return tyro.cli(config_class, args=arguments, default=default)
    except SystemExit as stop:
        if not stop.code:
            print(printed.getvalue())
            raise
        lines = [line.strip("│ ") for line in printed.getvalue().splitlines()[1:-1]]
        rule = next((number for number, line in enumerate(lines) if line.startswith("──")), len(lines))
        complaint = " ".join(lines[:rule]).split("  Got errors")[0].rstrip(".")
        meant = re.findall(r"^--[\w-]+", "\n".join(lines[rule:]), flags=re.MULTILINE)
        hint = f"; did you mean {meant[0]}?" if meant and "nrecognized" in complaint else ""
        raise RunError(f"{complaint}{hint} (--help lists the flags)") from None
