"""What the scripts, and the tools on a run, use. To be imported before Keras: it keeps TensorFlow's log quiet."""

import contextlib
import os
import re
import sys
import tempfile
from importlib.machinery import PathFinder

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


# TensorFlow 2.21 writes the first lines of its log before it reads the level. Errors raise exceptions in any case;
# TF_CPP_MIN_LOG_LEVEL=0 shows the log.
if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") == "3":
    sys.meta_path.insert(0, QuietTensorFlow)
