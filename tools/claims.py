"""Do README's claims say what the runs gave? Its table is made here, from results/gallery/claims.md and the records.

claims.md is the table with {record; row; key; format} where a number of ours belongs, and explains these references. A
record, records/<name>.json beside it, holds the command lines that made it, commits, the data and their checksum (null
where a formula gives them), seeds, backend, versions (one with ~= is what requirements.txt allowed: the exact one was
not kept), perhaps a note, and the numbers of all runs by name.

Run: python -m experiments.claims writes the table into README.md, between two comments; with --check it only compares,
and ends with 1 and the first difference; --record results/<experiment>/<run>, and more such folders, makes a record.
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
from common.run import explained, load_config, saved_run
from common.training import planned_epochs

BEGIN = "<!-- claims: python -m experiments.claims makes these lines from results/gallery/claims.md -->\n\n"
END = "\n<!-- end of the claims -->"
REFERENCE = re.compile(r"\{([^{}]*)\}")
SEED = re.compile(r", (?:seed|draw) (\d+)$")  # at the end of a run's name; what is before is the row's
Numbers = dict[str | None, float]  # by seed, where there is one


@dataclasses.dataclass(frozen=True)
class Config:
    """Without a flag: README.md is written anew."""

    check: bool = False  # only compare
    record: tuple[str, ...] | None = None  # folders of runs, results/<experiment>/<run>, to make one record of
    name: str = ""  # of that record; the experiment's if empty
    readme: str = "README.md"
    gallery: str = "results/gallery"  # the folder of claims.md and records/


def table(gallery: Path) -> str:
    """The table of claims.md with a number for each reference. Raises RunError, naming the first that has none."""
    runs = functools.cache(lambda record: json.loads((gallery / "records" / f"{record}.json").read_text())["runs"])
    lines = (gallery / "claims.md").read_text().splitlines(keepends=True)
    return "".join(REFERENCE.sub(lambda found: text_of(found, runs), line) for line in lines if line.startswith("|"))


def text_of(found: re.Match, runs: Callable[[str], dict]) -> str:
    """What the table says for a reference."""
    record, *parts = (part.strip() for part in found[1].split(";"))
    try:
        if len(parts) != 3:
            raise LookupError("a reference has four parts, {record; row; key; format}")
        return formatted(numbers(runs(record), *parts[:2]), parts[2])
    except FileNotFoundError:
        reason = f"there is no record {record}"
    except LookupError as error:
        reason = error.args[0]
    raise RunError(f"claims.md, {found[0]}: {reason}")


def numbers(runs: dict, rows: str, keys: str) -> list[Numbers]:
    """The numbers of each row that `rows` names, or of one row less another, by each of the keys."""
    first, *others = (matching(runs, part, keys.split(" & ")) for part in rows.split(" - "))
    for other in others:
        if [found.keys() for found in first] != [found.keys() for found in other]:
            raise LookupError("the rows have different seeds")
        first = [{seed: one[seed] - two[seed] for seed in one} for one, two in zip(first, other, strict=True)]
    return first


def matching(runs: dict, names: str, keys: list[str]) -> list[Numbers]:
    """The same of each row that is one of `names`, or that has a run of this name; * stands for anything."""
    rows = {}
    for name in names.split(" & "):
        found = [run for run in runs if fnmatchcase(run, name) or fnmatchcase(SEED.sub("", run), name)]
        if not found:
            raise LookupError(f"the record has no row {name}")
        for run, key in product(found, keys):
            seed = SEED.search(run)
            rows.setdefault((SEED.sub("", run), key), {})[seed and seed[1]] = calculated(runs[run], key)
    return list(rows.values())


def calculated(run: dict, key: str) -> float:
    """`a - b / c - d` is (a - b) / (c - d); each is a number, or a path in the run such as avb.course.-1.kl_nats."""
    sides = ([entry(run, term) for term in side.split(" - ")] for side in key.split(" / "))
    return functools.reduce(operator.truediv, (functools.reduce(operator.sub, side) for side in sides))


def entry(run: dict, path: str) -> float:
    if re.fullmatch(r"-?\d+(\.\d+)?", path):
        return float(path)
    try:
        for part in path.split("."):
            run = run[int(part)] if isinstance(run, list) else run[part]
        return float(run)
    except (LookupError, TypeError, ValueError):
        raise LookupError(f"the row has no number {path}") from None


def formatted(found: list[Numbers], form: str) -> str:
    """The numbers as `form` says: a word, digits after the point and, where they are shares, %."""
    single = [number for numbers in found for number in numbers.values()]
    means = [mean_and_deviation("mean", list(numbers.values()))["mean"] for numbers in found]
    mean, deviation = mean_and_deviation("mean", single).values()
    chosen = {  # what is shown, and what stands between
        "mean": ([mean], ""),
        "spread": ([mean, deviation], " ± "),
        "deviation": ([deviation], ""),
        "each": (single, ", "),
        "range": ([min(single), max(single)], " to "),
        "means": ([min(means), max(means)], " to "),
        "least": ([min(single)], ""),
    }
    asked = re.fullmatch(rf"({'|'.join(chosen)}) (\d)( %)?", form)
    if not asked:
        raise LookupError(f"there is no format {form}")
    shown, between = chosen[asked[1]]
    return between.join(plus_minus(x and x * (100 if asked[3] else 1), None, int(asked[2])) for x in shown)


def record_of(folders: list[Path]) -> dict:
    """What a record holds of the runs in `folders`. Raises RunError if they are not of one kind."""
    record, runs = {"command": [], "commits": []}, {}
    for folder in folders:
        with explained(folder):
            about, module = saved_run(folder)
            command, row = command_of(folder, about, module.__name__)
            if (folder / "runs.json").is_file():
                found = json.loads((folder / "runs.json").read_text())
            else:
                name = f"{row}, seed {about['parameters']['seed']}"
                found = {name: json.loads((folder / "metrics.json").read_text())}
        data = about["data"] and {key: about["data"][key] for key in ("name", "sha256")}
        for key, value in {"data": data, "backend": about["backend"], "versions": about["versions"]}.items():
            if record.setdefault(key, value) != value:
                raise RunError(f"{folder} has other {key} than {folders[0]}: give it a record of its own")
        if twice := runs.keys() & found:
            raise RunError(f"{folder} has a run that another folder has: {min(twice)}")
        record["command"] += [command] * (command not in record["command"])
        record["commits"] += [about["git_commit"]] * (about["git_commit"] not in record["commits"])
        runs |= found
    return record | {"seeds": sorted({int(seed[1]) for seed in map(SEED.search, runs) if seed}), "runs": runs}


def command_of(folder: Path, about: dict, module: str) -> tuple[str, str]:
    """The command line that makes such a run, and what a row of such runs is called."""
    config = load_config(folder)
    usual = dict(vars(type(config)()))
    if usual.get("epochs", 0) is None:
        images = about["data"]["images"]["train"]
        usual["epochs"] = planned_epochs(dataclasses.replace(config, epochs=None), images)
    flags = {}
    for name, value in vars(config).items():
        if value == usual[name] or name in ("results", "name", "resume", "tensorboard"):
            continue
        words = [Path(value).name] if name == "data" else value if isinstance(value, tuple) else [value]
        flags[name] = " ".join([flag(name), *map(str, words)])
        if isinstance(value, bool):
            flags[name] = flag(name if value else f"no_{name}")
    script = f"-m {module}" if "." in module else f"{module}.py"
    named = [text for name, text in flags.items() if name not in ("data", "seed")]
    return " ".join(["python", script, *flags.values()]), " ".join([script, *named])


def main(config: Config) -> dict:
    """README's claims made or compared, or a record made, which is then returned."""
    check(config)
    gallery, readme = Path(config.gallery), Path(config.readme)
    if config.record:
        record = record_of([Path(folder) for folder in config.record])
        path = gallery / "records" / f"{config.name or saved_run(Path(config.record[0]))[0]['script']}.json"
        write_json(path, record)
        print(path)
        return record
    before, begin, rest = readme.read_text().partition(BEGIN)
    there, end, after = rest.partition(END)
    if not end:
        raise RunError(f"{readme} lacks the comments around the claims, {BEGIN.strip()} and {END.strip()}")
    wanted = table(gallery)
    if config.check:
        for old, new in zip_longest(there.splitlines(), wanted.splitlines(), fillvalue=""):
            if old != new:
                at = max(0, list(map(operator.ne, old + "\n", new + "\r")).index(True) - 30)
                claim = (new or old).split(" | ")[0].lstrip("| ")
                raise SystemExit(f"{readme}, {claim}: {old[at : at + 60]!r} should be {new[at : at + 60]!r}")
    elif there != wanted:
        with whole(readme) as partial:
            partial.write_text(before + begin + wanted + end + after)
    print(readme)
    return {}


if __name__ == "__main__":
    run_main(main, Config)
