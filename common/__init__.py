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
SETTINGS = {  # of keras.json: which values Keras takes
    "floatx": lambda value: value in ("float16", "float32", "float64"),
    "epsilon": lambda value: isinstance(value, float),
    "image_data_format": lambda value: value in ("channels_first", "channels_last"),
}
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


def keras_json() -> tuple[Path, object]:
    """Keras' file of settings, and what it holds: an empty dict if it is missing or no JSON, as Keras takes it."""
    path = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "keras.json"
    try:
        return path, json.loads(path.read_text())
    except (OSError, ValueError):
        return path, {}


def complaint() -> str | None:
    """What Keras would stumble over when it is imported, and what to do: one line, or None."""
    path, saved = keras_json()
    if not isinstance(saved, dict):
        return f"{path} holds no settings; delete it, and Keras writes a new one"
    for name, allowed in SETTINGS.items():
        if name in saved and not allowed(saved[name]):
            return f"{path} has {name} {saved[name]!r}, which Keras refuses; mend it, or delete the file"
    if cut := [name for name in ("KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH") if name in os.environ]:
        return f"{cut[0]} is set, and Keras would cut trainings short; unset it"
    backend = os.environ.get("KERAS_BACKEND") or saved.get("backend", BACKENDS[0])
    if backend not in BACKENDS:
        return f"Keras' backend is {backend!r}, and must be one of {', '.join(BACKENDS)}; set KERAS_BACKEND to one"
    if backend not in sys.modules and not importlib.util.find_spec(backend):
        return f"Keras' backend {backend} is not installed; pip install {backend}, or choose another by KERAS_BACKEND"
    return None


def require_keras():
    """Raises ImportError if Keras' settings or its backend are broken. A program ends with that one line."""
    if not (message := complaint()):
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
    require_keras()
if "matplotlib" not in sys.modules:
    import_matplotlib()
# TensorFlow 2.21 writes the first lines of its log before it reads the level. Errors raise exceptions in any case;
# TF_CPP_MIN_LOG_LEVEL=0 shows the log.
if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") == "3":
    sys.meta_path.insert(0, QuietTensorFlow)
