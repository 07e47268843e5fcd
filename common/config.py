"""The parameters of a run: what all scripts share, the types of parameters with their limits, and their check."""

import dataclasses
import importlib.util
import math
import re
from types import UnionType
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

from common.files import RunError
from common.priors import PRIORS


@dataclasses.dataclass(frozen=True)
class Above:
    """A limit: the parameter is above `low`."""

    low: float

    def allows(self, value) -> bool:
        return value > self.low and value < math.inf

    def __str__(self):
        return f"above {self.low:g}"


@dataclasses.dataclass(frozen=True)
class AtLeast:
    """A limit: the parameter is `low` or more."""

    low: float

    def allows(self, value) -> bool:
        return value >= self.low and value < math.inf

    def __str__(self):
        return f"at least {self.low:g}"


@dataclasses.dataclass(frozen=True)
class Below:
    """A limit: the parameter is below `high`."""

    high: float

    def allows(self, value) -> bool:
        return value < self.high

    def __str__(self):
        return f"below {self.high:.10g}"


@dataclasses.dataclass(frozen=True)
class Between:
    """A limit: the parameter is `low` or more, and below `high`."""

    low: float
    high: float

    def allows(self, value) -> bool:
        return self.low <= value < self.high

    def __str__(self):
        return f"at least {self.low:g} and below {self.high:.10g}"


Count = Annotated[int, AtLeast(0)]
PositiveCount = Annotated[int, AtLeast(1)]
Factor = Annotated[float, AtLeast(0)]
Positive = Annotated[float, Above(0)]
Fraction = Annotated[float, Between(0, 1)]
Scale = Annotated[float, Above(0), Below(1e6)]  # of a code: in float32, its squares stay far from overflow
Seed = Annotated[int, Between(0, 2**32)]
Targets = Literal["none", "dynamic", "threshold"]
Networks = Literal["dense", "conv"]
PriorName = Literal[*PRIORS]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every script's Config has beside its own hyperparameters."""

    data: str = "auto"  # auto, mnist, fashion_mnist, sample, or the path of an .npz or .npy file
    seed: Seed = 0  # of weights, noise, order and binarisation
    results: str = "results"  # the folder of all runs
    name: str = ""  # this run's folder below results/<script>/; date and time if empty
    resume: str = ""  # the folder of a stopped run: resume it, with its own parameters
    tensorboard: bool = False  # write event files for TensorBoard into the run's folder


def check(config):
    """Raises RunError, naming the flag, if a parameter of the Config is impossible whatever the data."""
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        if type(None) in get_args(hint):
            hint = next(option for option in get_args(hint) if option is not type(None))
            if value is None:
                continue
        if get_origin(hint) is tuple:
            check_elements(name, value, get_args(hint)[0])
        else:
            check_value(name, value, hint)
    if getattr(config, "name", "") != re.sub(r"[^\w.+-]|^\.", "", getattr(config, "name", "")):
        raise RunError(f"--name {config.name!r} must be letters, digits and any of _ . + -: it names one folder")
    if getattr(config, "tensorboard", False) and not importlib.util.find_spec("tensorboard"):
        raise RunError("--tensorboard needs the package tensorboard: pip install tensorboard")
    if hasattr(config, "prior"):
        try:
            PRIORS[config.prior](config.latent_dim)
        except ValueError as error:
            raise RunError(f"{error}; set --latent-dim or --prior") from None


def check_elements(name: str, values: tuple, hint):
    """Raises RunError if a tuple is empty, names one thing twice, or holds what `hint` does not allow."""
    if not values:
        raise RunError(f"{flag(name)} needs at least one number")
    if len(set(values)) < len(values) and not name.endswith("units"):
        raise RunError(f"{flag(name)} names one thing twice: {' '.join(map(str, values))}")
    for value in values:
        check_value(name, value, hint)


def check_value(name: str, value, hint):
    """Raises RunError if `value` is not one that the annotation `hint` of the parameter `name` allows.

    If the hint has alternatives, such as a number or a word, one of them must allow the value.
    """
    if get_origin(hint) in (Union, UnionType):
        kind = Literal if isinstance(value, str) else Annotated
        hint = next(option for option in get_args(hint) if get_origin(option) is kind)
    if get_origin(hint) is Literal and value not in get_args(hint):
        raise RunError(f"{flag(name)} must be one of {', '.join(get_args(hint))}, not {value!r}")
    kind, *limits = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    if isinstance(kind, type) and not isinstance(value, (int, float) if kind is float else kind):
        raise RunError(f"{flag(name)} must be {kind.__name__}, not {value!r}")
    limits = [limit for limit in limits if isinstance(limit, (Above, AtLeast, Below, Between))]
    if not all(limit.allows(value) for limit in limits):
        raise RunError(f"{flag(name)} must be {' and '.join(map(str, limits))}, not {value}")


def flag(name: str) -> str:
    """The flag of a parameter: `latent_dim` -> `--latent-dim`."""
    return "--" + name.replace("_", "-")
