"""Processes that run a script as its command line does, without the seconds that Keras takes to load.

A nursery loads the scripts' modules and runs nothing of them. It forks a child for every run: no thread and no state
of TensorFlow's exists that a fork could damage. A child has its own files for what it prints, or a terminal.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
ONE_THREAD["JE_ARROW_MALLOC_CONF"] = "background_thread:false"  # pyarrow's allocator, which pandas imports
NURSERY = f"""
import json, os, runpy, sys
sys.path.insert(0, {str(ROOT)!r})
import vae_baseline, aae_deterministic

print("ready", flush=True)
for line in iter(sys.stdin.readline, ""):
    request = json.loads(line)
    if "wait" in request:
        print(os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1]), flush=True)
        continue
    child = os.fork()
    if child:
        print(child, flush=True)
        continue
    if request["terminal"]:
        os.setsid()  # the terminal that is opened next is the child's own: Ctrl-C there is its signal
        files = [os.open(request["terminal"], os.O_RDWR)] * 3
    else:
        kept = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        files = [os.open(os.devnull, os.O_RDONLY), os.open(request["output"], kept), os.open(request["errors"], kept)]
    for number, file in enumerate(files):
        os.dup2(file, number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
    os.chdir(request["folder"])
    sys.argv = [request["script"], *request["arguments"]]
    exec(request["first"])
    runpy.run_path(request["script"], run_name="__main__")
    break
"""


class Child:
    """A process that the nursery forked."""

    def __init__(self, nursery, pid: int, output: Path, errors: Path):
        self.nursery, self.pid, self.output, self.errors, self.code = nursery, pid, output, errors, None

    def wait(self) -> int:
        """Its exit code, negative if a signal ended it, once it has ended."""
        if self.code is None:
            self.code = int(self.nursery.ask({"wait": self.pid}))
        return self.code

    def printed(self) -> str:
        """What it has written to standard output so far."""
        return self.output.read_text() if self.output.exists() else ""

    def until(self, pattern: str, seconds: float = 120.0):
        """Wait until a line that it printed matches. Raises AssertionError if none does in time."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.printed(), flags=re.MULTILINE):
            assert time.monotonic() < end, f"no {pattern!r} in {self.printed()!r}"
            time.sleep(0.005)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)  # its number stays its own until `wait`


class Nursery:
    """Forks processes that run a script."""

    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0
        environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            env=environment | ONE_THREAD,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"
        assert len(list(Path(f"/proc/{self.process.pid}/task").iterdir())) == 1, "a thread may hold a lock in a fork"

    def ask(self, request: dict) -> str:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def run(self, script, arguments, folder: Path = ROOT, first: str = "", terminal: str = "") -> Child:
        """Run a script, a module, with these arguments in `folder`, after the statements `first`."""
        self.count += 1
        output, errors = (self.folder / f"{self.count}.{kind}" for kind in ("out", "err"))
        request = {
            "script": script.__file__,
            "arguments": list(map(str, arguments)),
            "folder": str(folder),
            "output": str(output),
            "errors": str(errors),
            "first": first,
            "terminal": terminal,
        }
        return Child(self, int(self.ask(request)), output, errors)

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()
