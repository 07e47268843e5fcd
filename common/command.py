"""From the command line to `main`: flags, `--resume`, and one line for each mistake of the user."""

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
    """Call `main` with the Config from the command line or, with --resume, with the Config of the stopped run.

    `presets(config)` returns a dict: the defaults that a flag such as --quick sets in place of the Config's own.
    A mistake of the user ends in one line and exit code 2. A training that stopped early ends in exit code 1, and so
    does an error of this code after the training.
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal may lack letters that a file's name has
        with contextlib.suppress(AttributeError):  # a stream that replaces these may have no encoding
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
        sys.exit(refusal(f"{error}; all files written before are complete: correct the cause{remedy}"))
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
            raise RunError("--resume names the run's folder: leave out --results and --name")
    elif presets and (defaults := presets(config)):
        config = parse(config_class, default=dataclasses.replace(config_class(), **defaults))
    return config


def refusal(message: str) -> int:
    """Print why nothing is done; returns the exit code for that."""
    print(f"error: {message}", file=sys.stderr)
    return 2


class Printed(io.StringIO):
    """Collects the text that tyro prints."""

    encoding = "utf-8"  # without an encoding, tyro draws its box with hyphens, which look like a flag's


def parse(config_class, arguments=None, default=None):
    """The Config with the flags of the command line. Parameters that no flag sets are as in `default`, a Config.

    Raises RunError if a flag is wrong: tyro's boxed complaint becomes one line.
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
