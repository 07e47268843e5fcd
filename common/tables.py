"""Numbers over seeds, and the tables that the experiments show them in."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from common.data import Dataset


def mean_and_spread(key: str, values: Sequence[float | None]) -> dict[str, float | None]:
    """The mean over seeds under `key`, and the standard deviation under `<key>_sd`; both null where a value is.

    The standard deviation of one seed is null too.
    """
    if any(value is None for value in values):
        return {key: None, f"{key}_sd": None}
    return {key: float(np.mean(values)), f"{key}_sd": float(np.std(values, ddof=1)) if len(values) > 1 else None}


def over_seeds(runs: Sequence[Mapping], keys: Iterable[str]) -> dict[str, float | None]:
    """`mean_and_spread` of every key, the runs being one a seed; null where a run has no such number.

    Under "stopped" how many of them say why their training ended early: they are in the means.
    """
    found = {"stopped": sum(run.get("stopped_by") is not None for run in runs)}
    for key in keys:
        found |= mean_and_spread(key, [run.get(key) for run in runs])
    return found


def titled(name: str, found: Mapping) -> str:
    """What a row of `over_seeds` is called: `name`, and how many of its trainings ended early if any did."""
    return f"{name}, {found['stopped']} stopped early" if found["stopped"] else name


def reported(numbers: Mapping, dataset: Dataset) -> Mapping:
    """`numbers` that a paper has for MNIST, or none: they say nothing about other data."""
    return numbers if dataset.name.startswith("MNIST") else {}


def of_seeds(what: str, seeds: Sequence[int]) -> str:
    """For a figure's description: `what`, such as "mean and range", over how many seeds; or that there was one."""
    return f"{what} of {len(seeds)} seeds" if len(seeds) > 1 else "one seed"


def plus_minus(value: float | None, spread: float | None, digits: int) -> str:
    """`value ± spread`, either without the other, or a dash: `digits` after the point, real minus signs, no −0.0."""
    parts = [f"{number:z.{digits}f}" for number in (value, spread) if number is not None]
    return " ± ".join(parts).replace("-", "−") or "−"


def per_cent(found: Mapping, key: str, digits: int = 2) -> str:
    """A share among `over_seeds`, and its spread, in per cent."""
    return plus_minus(*(None if found[part] is None else 100 * found[part] for part in (key, f"{key}_sd")), digits)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, a line a row."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
