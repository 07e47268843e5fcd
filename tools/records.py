"""Records: the numbers behind the pages, how a page refers to them, and how the runs in results/ become a record.

A record, results/gallery/<group>/<experiment>/record.json, holds the commands that made it, commits, the data and their
checksum (null if a formula gives them), seeds, backend, versions, perhaps notes, and the numbers of all runs by name. A
version with ~= is the one that the project allowed then: the exact one was not recorded.

A text refers to a number as {record; row; key; format}:

- record: <group>/<experiment>.
- row: runs whose names differ in the seed alone, or one of them: `mixture`, or `mixture, seed 0`. `*` is anything,
  `A & B` both rows, `A - B` one less the other, seed by seed. `mixture, all seeds` has what only all runs together
  have, such as a paired difference, as the experiment's metrics.json.
- key: where the number is in a run, `course.-1.kl_nats` that of the last entry of its `course`. `a & b` are both,
  `a - b / c - d` is (a - b) / (c - d), run by run.
- format: a word, digits after the point and, for shares in per cent, `%`. `mean`; `spread`, mean and standard deviation
  over the seeds; `deviation`, that alone; `each`, every run; `least`; `range`, from the least to the greatest; `means`,
  the same of the means over the seeds, one for each row and key.
"""

import dataclasses
import functools
import json
import operator
import re
import shlex
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path

from common.config import flag
from common.data import IN_MEMORY
from common.files import RunError
from common.numbers import mean_and_deviation, plus_minus
from common.run import load_config, one_line_errors, saved_run, versions
from common.training import planned_epochs

import keras

REFERENCE = re.compile(r"\{([^{}]*)\}")
SEED = re.compile(r", (?:seed|draw) (\d+)$")  # at the end of a run's name; the rest is the row's name
FIELDS = ("command", "commits", "data", "seeds", "backend", "versions", "runs")  # of a record; it may have a note
SCORES = ("splits", "held_out", "roc_areas")  # what a record keeps of the file of tools.score
ORDER = {"data": 0, "seed": 2, "seeds": 2, "quick": 2}  # of a command's flags: others are 1
Numbers = dict[str | None, float]  # by seed, or under None if there is no seed


# References


class Records:
    """The records of a gallery, each read once."""

    def __init__(self, gallery: Path):
        self.gallery = gallery
        self.read = functools.cache(self.read_anew)

    def read_anew(self, name: str) -> dict:
        """The record `name`, <group>/<experiment>. Raises LookupError if there is none, RunError if it is damaged."""
        path = self.gallery / name / "record.json"
        if name not in self.names():
            raise LookupError(f"there is no record {name}")
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            missing = [key for key in FIELDS if key not in record]
            runs = record["runs"].values()
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise RunError(
                f"{path} is damaged ({error!r}); restore it from git, or make it anew with --record"
            ) from None
        if missing or not all(isinstance(run, dict) for run in runs):
            raise RunError(f"{path} is damaged: it lacks {', '.join(missing) or 'the numbers of a run'}")
        return record

    def names(self) -> list[str]:
        """Every record's name, <group>/<experiment>."""
        return sorted(path.parent.relative_to(self.gallery).as_posix() for path in self.gallery.glob("*/*/record.json"))

    def fill(self, text: str) -> str:
        """`text` with a number for each reference. Raises RunError, naming the first without a number."""
        return REFERENCE.sub(self.replacement, text)

    def replacement(self, reference: re.Match) -> str:
        """The text in place of a reference. Raises RunError."""
        record, *parts = (part.strip() for part in reference[1].split(";"))
        try:
            if len(parts) != 3:
                raise LookupError("a reference has four parts, {record; row; key; format}")
            return formatted(numbers(self.read(record)["runs"], *parts[:2]), parts[2])
        except LookupError as error:
            reason = error.args[0]
        raise RunError(f"claims.toml, {reference[0]}: {reason}")


def records_named(text: str) -> list[str]:
    """The records that a text refers to, in their order in it."""
    return list(dict.fromkeys(match[1].split(";")[0].strip() for match in REFERENCE.finditer(text)))


def numbers(runs: dict, rows: str, keys: str) -> list[Numbers]:
    """The numbers of each row that `rows` names, or the difference of rows ("a - b"), by each of the keys.

    Raises LookupError if there is no such row or number, or if the rows of a difference have different seeds.
    """
    first, *others = (matching(runs, part, keys.split(" & ")) for part in rows.split(" - "))
    for other in others:
        if [row.keys() for row in first] != [row.keys() for row in other]:
            raise LookupError("the rows have different seeds")
        first = [{seed: one[seed] - two[seed] for seed in one} for one, two in zip(first, other, strict=True)]
    return first


def matching(runs: dict, names: str, keys: list[str]) -> list[Numbers]:
    """The numbers of each row that has one of the `names`, or a run of that name; * stands for any text.

    Raises LookupError if there is no such row or number.
    """
    rows = {}
    for name in names.split(" & "):
        matches = [run for run in runs if fnmatchcase(run, name) or fnmatchcase(SEED.sub("", run), name)]
        if not matches:
            raise LookupError(f"the record has no row {name}")
        for run, key in product(matches, keys):
            seed = SEED.search(run)
            rows.setdefault((SEED.sub("", run), key), {})[seed and seed[1]] = calculated(runs[run], key)
    return list(rows.values())


def calculated(run: dict, key: str) -> float:
    """`a - b / c - d` is (a - b) / (c - d); each is a number, or a path in the run such as avb.course.-1.kl_nats.

    Raises LookupError if there is no such number, or if it is divided by 0.
    """
    sides = ([entry(run, term) for term in side.split(" - ")] for side in key.split(" / "))
    try:
        return functools.reduce(operator.truediv, (functools.reduce(operator.sub, side) for side in sides))
    except ZeroDivisionError:
        raise LookupError(f"{key} divides by 0") from None


def entry(run: dict, path: str) -> float:
    """A number written out, or the one at a path in the run. Raises LookupError if there is none."""
    if re.fullmatch(r"-?\d+(\.\d+)?", path):
        return float(path)
    try:
        for part in path.split("."):
            run = run[int(part)] if isinstance(run, list) else run[part]
        return float(run)
    except (LookupError, TypeError, ValueError):
        raise LookupError(f"the row has no number {path}") from None


def formatted(rows: list[Numbers], form: str) -> str:
    """The numbers as `form` says: a word, digits after the point and, for shares, %. Raises LookupError."""
    single = [number for row in rows for number in row.values()]
    means = [mean_and_deviation("mean", list(row.values()))["mean"] for row in rows]
    mean, deviation = mean_and_deviation("mean", single).values()
    formats = {  # word: the numbers to show, and the text between them
        "mean": ([mean], ""),
        "spread": ([mean, deviation], " ± "),
        "deviation": ([deviation], ""),
        "each": (single, ", "),
        "range": ([min(single), max(single)], " to "),
        "means": ([min(means), max(means)], " to "),
        "least": ([min(single)], ""),
    }
    parts = re.fullmatch(rf"({'|'.join(formats)}) (\d)( %)?", form)
    if not parts:
        raise LookupError(f"there is no format {form}")
    shown, between = formats[parts[1]]
    if None in shown:
        raise LookupError(f"one run has no standard deviation, which {parts[1]} shows")
    return between.join(plus_minus(x and x * (100 if parts[3] else 1), None, int(parts[2])) for x in shown)


# Records


def record_of(folders: list[Path]) -> dict:
    """The record of the runs in `folders`.

    Raises RunError if their scripts, data, backend or versions differ, or if no commit holds the code that made them.
    """
    record, runs = {"command": [], "commits": []}, {}
    scripts = []
    for folder in folders:
        saved, command, own = run_in(folder, len(folders) == 1)
        scripts.append(saved_run(folder)[1].__name__)
        if scripts[-1] != scripts[0]:
            raise RunError(f"{folder} is a run of {scripts[-1]}, not of {scripts[0]}: give it a record of its own")
        if not re.fullmatch("[0-9a-f]{7,40}", saved["git_commit"] or ""):
            raise RunError(f"{folder} was made by code that is not committed; commit it, and run again")
        data = saved["data"] and {key: saved["data"][key] for key in ("name", "sha256")}
        for key, value in {"data": data, "backend": saved["backend"], "versions": saved["versions"]}.items():
            if record.setdefault(key, value) != value:
                raise RunError(f"{folder} has other {key} than {folders[0]}: give it a record of its own")
        if twice := runs.keys() & own:
            raise RunError(f"{folder} has a run that another folder has: {min(twice)}")
        record["command"] += [command] * (command not in record["command"])
        record["commits"] += [saved["git_commit"]] * (saved["git_commit"] not in record["commits"])
        runs |= own
    return record | {"seeds": sorted({int(seed[1]) for seed in map(SEED.search, runs) if seed}), "runs": runs}


def benchmark_record(command: str, commit: str, note: str, runs: dict[str, dict]) -> dict:
    """The record of a benchmark, which has random numbers in place of data, and no seed that one could choose."""
    return {
        "command": [command],
        "commits": [commit],
        "data": None,
        "seeds": [],
        "backend": keras.backend.backend(),
        "versions": versions(),
        "note": note,
        "runs": runs,
    }


def run_in(folder: Path, alone: bool) -> tuple[dict, str, dict]:
    """config.json of a folder, the command that made it, and the numbers of its runs by name.

    What tools.score wrote for a run is among its numbers, under the name of its file. Raises RunError if the folder
    holds no complete run.
    """
    with one_line_errors(folder):
        saved, module = saved_run(folder)
        command, row = command_of(folder, saved, module)
        if (folder / "runs.json").is_file():
            runs, means = json.loads((folder / "runs.json").read_text()), folder / "metrics.json"
            rows = json.loads(means.read_text()) if alone and means.is_file() else {}
            return saved, command, runs | derived(runs, rows)
        name = f"{row}, seed {saved['parameters']['seed']}"
        numbers = json.loads((folder / "metrics.json").read_text())
        for path in sorted(folder.glob("scores-*.json")):
            scores = json.loads(path.read_text())
            numbers[path.stem] = {key: scores[key] for key in SCORES if key in scores}
        return saved, command, {name: numbers}


def derived(runs: dict[str, dict], rows: dict[str, dict]) -> dict[str, dict]:
    """What an experiment's metrics.json has and its runs have not: paired differences, mean errors over images.

    The rows are named "<row>, all seeds". A record of several folders has none: each has means of its own seeds.
    """
    found = {}
    for row, means in rows.items():
        own = {"stopped"}.union(*(run for name, run in runs.items() if SEED.sub("", name) == row))
        more = {key: value for key, value in means.items() if value is not None and key.removesuffix("_sd") not in own}
        if more:
            found[f"{row}, all seeds"] = more
    return found


def command_of(folder: Path, saved: dict, module) -> tuple[str, str]:
    """The command line that makes the run in `folder`, and the name of the row of such runs.

    Raises RunError if no command line can: its data were arrays, in memory.
    """
    config = load_config(folder)
    if getattr(config, "data", "") == IN_MEMORY:
        raise RunError(f"{folder} was trained on arrays, which no command line names; save them and use --data")
    defaults = dict(vars(type(config)()))
    if getattr(config, "quick", False):
        defaults |= module.STUDY.quick | {"quick": False}
    if defaults.get("epochs", 0) is None:
        images = saved["data"]["images"]["train"]
        defaults["epochs"] = planned_epochs(dataclasses.replace(config, epochs=None), images)
    flags = {}
    for name, value in sorted(vars(config).items(), key=lambda item: ORDER.get(item[0], 1)):
        if value == defaults[name] or name in ("results", "name", "resume", "tensorboard"):
            continue
        words = [Path(value).name] if name == "data" else value if isinstance(value, tuple) else [value]
        flags[name] = shlex.join([flag(name), *map(str, words)])
        if isinstance(value, bool):
            flags[name] = flag(name if value else f"no_{name}")
    script = f"-m {module.__name__}" if "." in module.__name__ else f"{module.__name__}.py"
    named = [text for name, text in flags.items() if name not in ("data", "seed")]
    return " ".join(["python", script, *flags.values()]), " ".join([script, *named])
