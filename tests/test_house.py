"""The architecture: imports point one way, and no file and no function is too long to be read at once."""

import ast
import graphlib
from pathlib import Path

from common.scripts import SCRIPTS

import pytest

ROOT = Path(__file__).parent.parent
BACKENDS = {"tensorflow", "jax", "torch"}
LAYERS = ("common", "scripts", "tools", "experiments", "benchmarks", "tests")  # each may import those before it
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 500, 45
FILES = sorted(
    path.relative_to(ROOT)
    for folder in ("common", "tools", "experiments", "benchmarks", "tests")
    for path in (ROOT / folder).rglob("*.py")
) + [Path(f"{script}.py") for script in SCRIPTS]
SOURCES = [path for path in FILES if path.parts[0] != "tests"]


def parsed(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


def module_of(path: Path) -> str:
    """The dotted name of a file: common/plots/__init__.py is common.plots."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path) for path in FILES}


def layer(module: str) -> str | None:
    """The layer of a module, None for those of other packages."""
    first = module.split(".")[0]
    return "scripts" if first in SCRIPTS else first if first in LAYERS else None


def imports(tree: ast.AST) -> set[str]:
    """Modules that a tree imports, wherever in it: of `from a import b`, a.b if that is a module of ours, else a."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= inner & MODULES or {node.module}
    return names


def offences(path: Path) -> list[str]:
    """The imports of a file that point the wrong way."""
    own, found = layer(module_of(path)), []
    for module in imports(parsed(path)):
        other = layer(module)
        upwards = other and LAYERS.index(other) > LAYERS.index(own)
        if upwards or (own == other == "scripts"):  # a script stands alone
            found.append(f"{path} imports {module}")
    return found


def test_imports_are_read_from_every_form():
    lines = [
        "import jax.numpy",
        "def f():",
        "    from common import plots, data",
        "    from common.data import binarise",
    ]
    assert imports(ast.parse("\n".join(lines))) == {"jax.numpy", "common.plots", "common.data"}


def test_imports_point_one_way():
    assert [offence for path in FILES for offence in offences(path)] == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("common/run.py", "import avb"),
        ("common/plots/tiles.py", "from experiments import figures"),
        ("avb.py", "from vae_baseline import VAE"),
        ("avb.py", "from tools.evaluate import main"),
        ("tools/evaluate.py", "def f():\n    import experiments.avb.toy"),
        ("experiments/study.py", "from benchmarks import step_time"),
    ],
)
def test_an_import_that_points_the_wrong_way_is_seen(path, line, monkeypatch):
    monkeypatch.setattr("test_house.parsed", lambda path: ast.parse(line))
    assert len(offences(Path(path))) == 1


def test_no_imports_go_in_a_circle():
    graph = {module_of(path): imports(parsed(path)) & MODULES for path in SOURCES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_script_imports_a_backend(script):
    assert not {module.split(".")[0] for module in imports(parsed(Path(f"{script}.py")))} & BACKENDS


def test_no_file_is_too_long():
    lengths = {str(path): len((ROOT / path).read_text().splitlines()) for path in SOURCES}
    assert {path: length for path, length in lengths.items() if length > MOST_LINES} == {}


def test_no_function_is_too_long():
    functions = [
        (f"{path}: {node.name}", node.end_lineno - node.lineno + 1)
        for path in SOURCES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert len(functions) > 300
    assert [(name, length) for name, length in functions if length > MOST_LINES_OF_A_FUNCTION] == []
