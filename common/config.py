"""The parameters of a run: those that all scripts share, the types of parameters with limits, and the check."""

import dataclasses
import importlib.util
import math
import os
import re
from types import UnionType
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

from common.files import RunError
from common.likelihoods import LIKELIHOODS
from common.priors import PRIORS

import keras
import numpy as np


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
Scale = Annotated[float, Above(0), Below(1e6)]  # of a code, whose squares then stay far from overflow in float32
Seed = Annotated[int, Between(0, 2**32)]
Targets = Literal["none", "dynamic", "threshold"]
Networks = Literal["dense", "conv"]
PriorName = Literal[*PRIORS]
LikelihoodName = Literal["auto", *LIKELIHOODS]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The parameters that every script has beside its own hyperparameters."""

    data: str = "auto"  # auto, mnist, fashion_mnist, cifar10, cifar100, sample, or the path of a file or a folder
    likelihood: LikelihoodName = "auto"  # p(x|z); auto: by the data, which the first line of the run says
    label_column: str = ""  # the column of a table that holds labels; if empty, one named label, class, target or y
    resize: tuple[PositiveCount, ...] | None = None  # height and width of pictures in a folder; None: as they are
    seed: Seed = 0  # random seed of weights, noise, order and binarisation
    results: str = "results"  # the folder of all runs
    name: str = ""  # this run's folder below results/<script>/; date and time if empty
    resume: str = ""  # the folder of a stopped run, which resumes with its own parameters
    tensorboard: bool = False  # write event files for TensorBoard into the run's folder


def check(config):
    """The Config with plain values: a Path as text, NumPy's numbers as Python's, lists as tuples, `~` expanded.

    Raises RunError, which names the flag, if a parameter is impossible for any data. Raises it too if Keras has unusual
    settings.
    """
    require_usual_keras()
    hints = get_type_hints(type(config), include_extras=True)
    values = {name: plain(getattr(config, name), hint) for name, hint in hints.items()}
    for name, hint in hints.items():
        if type(None) in get_args(hint):
            hint = next(option for option in get_args(hint) if option is not type(None))
            if values[name] is None:
                continue
        if get_origin(hint) is tuple:
            check_elements(name, values[name], get_args(hint)[0])
        else:
            check_value(name, values[name], hint)
    for name in {"results", "resume", "run"} & values.keys():
        values[name] = os.path.expanduser(values[name])
    changed = {name: value for name, value in values.items() if value is not getattr(config, name)}
    config = dataclasses.replace(config, **changed)
    check_together(config)
    return config


def plain(value, hint):
    """`value` as the command line would give it: `os.PathLike` as text, a NumPy number as Python's own."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if get_origin(hint) is tuple and isinstance(value, (list, tuple, np.ndarray)):
        elements = tuple(plain(each, get_args(hint)[0]) for each in value)
        return value if isinstance(value, tuple) and all(map(lambda a, b: a is b, elements, value)) else elements
    return value.item() if isinstance(value, np.generic) else value


def require_usual_keras():
    """Raises RunError if Keras is set to another precision than float32, or to cut trainings short."""
    for kind, precision in (("floatx", keras.config.floatx()), ("dtype policy", keras.config.dtype_policy().name)):
        if precision != "float32":
            raise RunError(
                f"Keras' {kind} is {precision}, and this code computes in float32; set it back in keras.json, in "
                "Keras' folder (~/.keras), or by keras.config.set_floatx and set_dtype_policy"
            )
    if keras.config.max_epochs() or keras.config.max_steps_per_epoch():
        raise RunError(
            "Keras is set to cut trainings short; undo keras.config.set_max_epochs and set_max_steps_per_epoch"
        )


def check_together(config):
    """The part of `check` that needs more than a parameter's type and limits."""
    if getattr(config, "name", "") != re.sub(r"[^\w.+-]|^\.", "", getattr(config, "name", "")):
        raise RunError(f"--name {config.name!r} must be letters, digits and any of _ . + -: it names one folder")
    if getattr(config, "tensorboard", False) and not importlib.util.find_spec("tensorboard"):
        raise RunError("--tensorboard needs the package tensorboard: pip install tensorboard")
    if getattr(config, "resize", None) is not None and len(config.resize) != 2:
        raise RunError(f"--resize takes a height and a width, not {' '.join(map(str, config.resize))}")
    if hasattr(config, "prior"):
        try:
            PRIORS[config.prior](config.latent_dim)
        except ValueError as error:
            raise RunError(f"{error}; set --latent-dim or --prior") from None


def check_elements(name: str, values: tuple, hint):
    """Raises RunError unless `values` is a tuple, not empty, of different values that `hint` allows."""
    if not isinstance(values, tuple):
        raise RunError(f"{flag(name)} must be several values, such as ({values!r},), not {values!r}")
    if not values:
        raise RunError(f"{flag(name)} needs at least one number")
    for value in values:
        check_value(name, value, hint)
    if len(set(values)) < len(values) and not name.endswith(("units", "resize")):
        raise RunError(f"{flag(name)} has a value twice: {' '.join(map(str, values))}")


def check_value(name: str, value, hint):
    """Raises RunError if `value` is not one that the annotation `hint` of the parameter `name` allows.

    If the hint has alternatives, such as a number or a word, one of them must allow the value.
    """
    if get_origin(hint) in (Union, UnionType):
        kind = Literal if isinstance(value, str) else Annotated
        hint = next(option for option in get_args(hint) if get_origin(option) is kind)
    if get_origin(hint) is Literal:
        if not isinstance(value, str) or value not in get_args(hint):
            raise RunError(f"{flag(name)} must be one of {', '.join(get_args(hint))}, not {value!r}")
        return
    kind, *limits = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    allowed = (int, float) if kind is float else kind
    if isinstance(kind, type) and (not isinstance(value, allowed) or (kind is not bool and isinstance(value, bool))):
        raise RunError(f"{flag(name)} must be {kind.__name__}, not {value!r}")
    if isinstance(value, str) and "\0" in value:
        raise RunError(f"{flag(name)} must be text without a null byte, not {value!r}")
    limits = [limit for limit in limits if isinstance(limit, (Above, AtLeast, Below, Between))]
    if not all(limit.allows(value) for limit in limits):
        raise RunError(f"{flag(name)} must be {' and '.join(map(str, limits))}, not {value}")


def flag(name: str) -> str:
    """The flag of a parameter: `latent_dim` -> `--latent-dim`."""
    return "--" + name.replace("_", "-")
