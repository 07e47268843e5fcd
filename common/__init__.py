"""What the scripts, and the tools on a run, use. To be imported before Keras.

It keeps TensorFlow's log quiet, and says in one line what is wrong with the chosen backend.
"""

import contextlib
import importlib.util
import json
import os
import re
import sys
import tempfile
from importlib.machinery import PathFinder
from pathlib import Path

BACKENDS = ("tensorflow", "jax", "torch")
LOG_LINE = re.compile(rb"[IWE]\d{4} \d\d:|WARNING: All log messages before absl::InitializeLog")


@contextlib.contextmanager
def without_log_lines():
    """Keeps the log lines of C++ libraries off standard error. All other lines appear there at the end."""
    with contextlib.ExitStack() as stack:
        try:
            kept, stderr = stack.enter_context(tempfile.TemporaryFile()), os.dup(2)
        except OSError:  # no folder for temporary files, or no standard error: the log appears
            yield
            return
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            kept.seek(0)
            os.write(2, b"".join(line for line in kept if not LOG_LINE.match(line)))


class QuietTensorFlow:
    """An import hook: TensorFlow's own import leaves no log lines, whichever backend's Keras needs it, and when."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        spec = PathFinder.find_spec(name, path, target) if name == "tensorflow" else None
        if spec:
            spec.loader.exec_module = without_log_lines()(spec.loader.exec_module)
        return spec


def backend_name() -> str:
    """The backend that Keras would import: KERAS_BACKEND, else what its keras.json says, else TensorFlow."""
    if name := os.environ.get("KERAS_BACKEND"):
        return name
    with contextlib.suppress(OSError, ValueError):
        settings = json.loads((Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "keras.json").read_text())
        return str(settings.get("backend", BACKENDS[0])) if isinstance(settings, dict) else BACKENDS[0]
    return BACKENDS[0]


def require_backend():
    """Raises ImportError if Keras' backend is unknown or not installed. A program ends with that one line."""
    name = backend_name()
    if name not in BACKENDS:
        message = f"Keras' backend is {name!r}, and must be one of {', '.join(BACKENDS)}; set KERAS_BACKEND to one"
    elif name not in sys.modules and not importlib.util.find_spec(name):
        message = f"Keras' backend {name} is not installed; pip install {name}, or choose another by KERAS_BACKEND"
    else:
        return

    def one_line(kind, error, trace):
        print(f"error: {error}", file=sys.stderr)

    sys.excepthook = one_line
    raise ImportError(message)


def import_matplotlib():
    """Import matplotlib whatever backend a notebook put into MPLBACKEND: figures here are drawn without one."""
    name = os.environ.pop("MPLBACKEND", None)
    import matplotlib

    if name is not None:
        os.environ["MPLBACKEND"] = name
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = name


if "keras" not in sys.modules:
    require_backend()
if "matplotlib" not in sys.modules:
    import_matplotlib()
# TensorFlow 2.21 writes the first lines of its log before it reads the level. Errors raise exceptions in any case;
# TF_CPP_MIN_LOG_LEVEL=0 shows the log.
if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") == "3":
    sys.meta_path.insert(0, QuietTensorFlow)
