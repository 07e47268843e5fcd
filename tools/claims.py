"""Makes README's table of claims from results/gallery/claims.md and the records beside it, or compares the two.

claims.md is the table with {record; row; key; format} in place of our numbers, and explains these references. A record,
records/<name>.json, holds the command lines that made it, commits, the data and their checksum (null if a formula gives
them), seeds, backend, versions, perhaps a note, and the numbers of all runs by name. A version with ~= is the one that
requirements.txt allowed: the exact one was not recorded.

Run: python -m tools.claims writes the table into README.md, between two comments. With --check it only compares, and
ends with exit code 1 and the first difference. --record results/<experiment>/<run>, and more such folders, makes a
record.
"""

import dataclasses
import functools
import json
import operator
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from itertools import product, zip_longest
from pathlib import Path

from common.command import run_main
from common.config import check, flag
from common.files import RunError, whole, write_json
from common.numbers import mean_and_deviation, plus_minus
from common.run import load_config, one_line_errors, results_name, saved_run
from common.training import planned_epochs

BEGIN = "<!-- claims: python -m tools.claims makes these lines from results/gallery/claims.md -->\n\n"
END = "\n<!-- end of the claims -->"
REFERENCE = re.compile(r"\{([^{}]*)\}")
SEED = re.compile(r", (?:seed|draw) (\d+)$")  # at the end of a run's name; the rest is the row's name
ORDER = {"data": 0, "seed": 2, "seeds": 2, "quick": 2}  # of a command's flags: others are 1
Numbers = dict[str | None, float]  # by seed, or under None if there is no seed


@dataclasses.dataclass(frozen=True)
class Config:
    """Without a flag, the table in README.md is written anew."""

    check: bool = False  # only compare
    record: tuple[str, ...] | None = None  # folders of runs, results/<experiment>/<run>, to make one record of
    name: str = ""  # of that record; the experiment's if empty
    readme: str = "README.md"
    gallery: str = "results/gallery"  # the folder of claims.md and records/


# The table


def table(gallery: Path) -> str:
    """The table of claims.md with a number for each reference. Raises RunError, naming the first without a number."""
    runs = functools.cache(lambda record: json.loads((gallery / "records" / f"{record}.json").read_text())["runs"])
    lines = (gallery / "claims.md").read_text().splitlines(keepends=True)
    return "".join(REFERENCE.sub(lambda match: replacement(match, runs), line) for line in lines if line[0] == "|")


def replacement(reference: re.Match, runs: Callable[[str], dict]) -> str:
    """The text in place of a reference; `runs(record)` gives the numbers of a record. Raises RunError."""
    record, *parts = (part.strip() for part in reference[1].split(";"))
    try:
        if len(parts) != 3:
            raise LookupError("a reference has four parts, {record; row; key; format}")
        return formatted(numbers(runs(record), *parts[:2]), parts[2])
    except FileNotFoundError:
        reason = f"there is no record {record}"
    except LookupError as error:
        reason = error.args[0]
    raise RunError(f"claims.md, {reference[0]}: {reason}")


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
    """The numbers of each row that has one of the `names`, or a run of that name; * stands for any text."""
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
    """`a - b / c - d` is (a - b) / (c - d); each is a number, or a path in the run such as avb.course.-1.kl_nats."""
    sides = ([entry(run, term) for term in side.split(" - ")] for side in key.split(" / "))
    return functools.reduce(operator.truediv, (functools.reduce(operator.sub, side) for side in sides))


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
    return between.join(plus_minus(x and x * (100 if parts[3] else 1), None, int(parts[2])) for x in shown)


# Records


def record_of(folders: list[Path]) -> dict:
    """The record of the runs in `folders`. Raises RunError if their data, backend or versions differ."""
    record, runs = {"command": [], "commits": []}, {}
    for folder in folders:
        saved, command, own = run_in(folder)
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


def run_in(folder: Path) -> tuple[dict, str, dict]:
    """config.json of a folder, the command that made it, and the numbers of its runs by name.

    Raises RunError if it holds no complete run.
    """
    with one_line_errors(folder):
        saved, module = saved_run(folder)
        command, row = command_of(folder, saved, module)
        if (folder / "runs.json").is_file():
            return saved, command, json.loads((folder / "runs.json").read_text())
        name = f"{row}, seed {saved['parameters']['seed']}"
        return saved, command, {name: json.loads((folder / "metrics.json").read_text())}


def command_of(folder: Path, saved: dict, module) -> tuple[str, str]:
    """The command line that makes the run in `folder`, and the name of the row of such runs."""
    config = load_config(folder)
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
        flags[name] = " ".join([flag(name), *map(str, words)])
        if isinstance(value, bool):
            flags[name] = flag(name if value else f"no_{name}")
    script = f"-m {module.__name__}" if "." in module.__name__ else f"{module.__name__}.py"
    named = [text for name, text in flags.items() if name not in ("data", "seed")]
    return " ".join(["python", script, *flags.values()]), " ".join([script, *named])


def make_record(config: Config, folders: list[Path]) -> dict:
    """Write the record of some folders into the gallery; returns it."""
    record = record_of(folders)
    name = config.name or results_name(saved_run(folders[0])[1].__name__)
    path = Path(config.gallery) / "records" / f"{name}.json"
    write_json(path, record)
    print(path)
    return record


def main(config: Config) -> dict:
    """Write or compare README's claims, or make a record, which is then returned.

    Raises RunError if README lacks the comments or a reference has no number; SystemExit if --check finds a difference.
    """
    config = check(config)
    if config.record:
        return make_record(config, [Path(folder) for folder in config.record])
    readme = Path(config.readme)
    before, begin, rest = readme.read_text().partition(BEGIN)
    present, end, after = rest.partition(END)
    if not end:
        raise RunError(f"{readme} lacks the comments around the claims, {BEGIN.strip()} and {END.strip()}")
    required = table(Path(config.gallery))
    if config.check:
        require_equal(readme, present, required)
    elif present != required:
        with whole(readme) as partial:
            partial.write_text(before + begin + required + end + after)
    print(readme)
    return {}


def require_equal(readme: Path, present: str, required: str):
    """Raises SystemExit with the first difference between README's table and the required one."""
    for old, new in zip_longest(present.splitlines(), required.splitlines(), fillvalue=""):
        if old != new:
            start = max(0, list(map(operator.ne, old + "\n", new + "\r")).index(True) - 30)
            claim = (new or old).split(" | ")[0].lstrip("| ")
            raise SystemExit(f"{readme}, {claim}: {old[start : start + 60]!r} should be {new[start : start + 60]!r}")


if __name__ == "__main__":
    run_main(main, Config)
