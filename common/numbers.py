"""Numbers: estimates with errors, nulls with reasons, means over seeds, and the text of a table's cell."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A number and its standard error, in the same unit."""

    value: float
    standard_error: float


def mean_of(values: np.ndarray) -> Estimate:
    """The mean of independent values, (n,), and its standard error, sd / sqrt(n)."""
    values = np.asarray(values, "float64")
    with np.errstate(over="ignore", invalid="ignore"):  # infinite values give NaN, which `flat` reports
        return Estimate(float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5))


def share_of(hits: np.ndarray) -> Estimate:
    """The share of independent hits, (n,) of truth values, and its standard error, sqrt(p (1 - p) / n)."""
    share = float(np.mean(hits))
    return Estimate(share, float((share * (1.0 - share) / len(hits)) ** 0.5))


class Absent(NamedTuple):
    """Stands for a number that does not exist, with the reason."""

    reason: str


def flat(metrics: Mapping) -> dict:
    """Metrics for JSON: an estimate becomes two keys, `null_because` has the reason of each null, NaN becomes null."""
    numbers, reasons = {}, dict(metrics.get("null_because", {}))
    for key, value in metrics.items():
        if isinstance(value, Absent):
            numbers[key], reasons[key] = None, value.reason
            continue
        parts = value._asdict() if isinstance(value, tuple) else {"value": value}
        for part, number in parts.items():
            number = number.tolist() if isinstance(number, np.ndarray) else number
            known = finite(number)
            name = key if part == "value" else f"{key}_{part}"
            numbers[name] = number if known else None
            if not known:
                reasons[name] = "it came out infinite or not a number"
    return numbers | {"null_because": reasons}


def finite(content) -> bool:
    """Whether all numbers in a value, and in its lists and dicts, are finite."""
    if isinstance(content, (list, dict)):
        return all(map(finite, content.values() if isinstance(content, dict) else content))
    return not isinstance(content, float) or bool(np.isfinite(content))


TWINS = ("_standard_error", "_annealing_error", "_p_value")  # endings of the further keys of a number


def merge(*parts: dict) -> dict:
    """One dict from several results of `flat`: a later number and its reason replace the earlier ones."""
    merged, reasons = {}, {}
    for part in parts:
        twins = [f"{key}{ending}" for key, value in part.items() if value is None for ending in TWINS]
        merged = {key: value for key, value in merged.items() if key not in twins}
        reasons = {key: reason for key, reason in reasons.items() if key not in part} | part.get("null_because", {})
        merged |= part
    return merged | {"null_because": reasons}


def mean_and_deviation(key: str, values: Sequence[float | None]) -> dict[str, float | None]:
    """The mean over seeds under `key`, and the standard deviation under `<key>_sd`. Both are null if a value is null.

    The standard deviation of one seed is null too.
    """
    if any(value is None for value in values):
        return {key: None, f"{key}_sd": None}
    return {key: float(np.mean(values)), f"{key}_sd": float(np.std(values, ddof=1)) if len(values) > 1 else None}


def over_seeds(runs: Sequence[Mapping], keys: Iterable[str]) -> dict[str, float | None]:
    """`mean_and_deviation` of every key over `runs`, one run per seed. It is null if a run has no such number.

    "stopped" counts the trainings that stopped early. The means include them.
    """
    means = {"stopped": sum(run.get("stopped_by") is not None for run in runs)}
    for key in keys:
        means |= mean_and_deviation(key, [run.get(key) for run in runs])
    return means


def row_title(name: str, means: Mapping) -> str:
    """The title of a table's row: `name` and, if trainings stopped early, their number."""
    return f"{name}, {means['stopped']} stopped early" if means.get("stopped") else name


def of_seeds(what: str, seeds: Sequence[int]) -> str:
    """For a figure's description: `what`, such as "mean and range", "of 3 seeds"; or "one seed"."""
    return f"{what} of {len(seeds)} seeds" if len(seeds) > 1 else "one seed"


def plus_minus(value: float | None, spread: float | None, digits: int) -> str:
    """`value ± spread`, one of the two alone, or a dash: `digits` after the point, real minus signs, no −0.0."""
    parts = [f"{number:z.{digits}f}" for number in (value, spread) if number is not None]
    return " ± ".join(parts).replace("-", "−") or "−"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, one line per row; `|` in a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(re.sub(r"(?<!\\)\|", r"\|", cell) for cell in cells) + " |\n" for cells in lines)
