"""What holds the house up: rooms import only from floors below them, and functions and files stay short."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "moe_jax"
FLOORS = (  # from the ground up
    "files", "config", "parallel", "moe", "models", "data", "tasks", "optim", "resolve", "cli", "journal", "train",
    "interop", "report", "inference", "audit", "sweep", "benchmarks", "documentation",
)  # fmt: skip
BELOW = {room: FLOORS[:floor] for floor, room in enumerate(FLOORS)}
MAX_FUNCTION, MAX_FILE = 60, 400
FILES = sorted(path for top in ("moe_jax", "experiments", "configs") for path in (ROOT / top).rglob("*.py"))
ROOMS = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
name = lambda path: path.relative_to(ROOT).as_posix()


def room_of(path):
    """The room that a file stands in: the first part of its path below the package, or `cli`."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(tree, path):
    """The modules of the package that a file imports, also inside functions, as dotted names."""
    here = ("moe_jax", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: len(here) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def rooms_imported(source, path):
    """(room, import) for each import of the package."""
    for module in imported(ast.parse(source), path):
        package, _, rest = module.partition(".")
        if package == "moe_jax":
            yield rest.partition(".")[0], module


def upward(source, path):
    """The imports of a file that lead to a room that is not below its own."""
    own = room_of(path)
    return [module for room, module in rooms_imported(source, path) if room not in (own, *BELOW[own])]


@pytest.mark.parametrize("path", ROOMS, ids=name)
def test_a_room_imports_only_from_floors_below(path):
    broken = upward(path.read_text(), path)
    assert not broken, f"{name(path)} imports {', '.join(broken)}, which is not below {room_of(path)}"


@pytest.mark.parametrize(
    ("source", "broken"),
    [
        ("from moe_jax.config.schema import RunConfig\nfrom moe_jax.moe.plan import plan", []),
        ("from moe_jax.train.step import make", ["moe_jax.train.step.make"]),
        ("def f():\n    import moe_jax.models.decoder", ["moe_jax.models.decoder"]),
        ("from moe_jax import data", ["moe_jax.data"]),
        ("from ..models import decoder", ["moe_jax.models.decoder"]),
        ("from . import plan\nimport jax", []),
    ],
)
def test_an_upward_import_is_found_however_it_is_written(source, broken):
    assert upward(source, PACKAGE / "moe" / "layer.py") == broken


def test_every_room_has_a_floor():
    assert {room_of(path) for path in ROOMS} <= set(BELOW)


def test_reports_need_no_jax():
    """Tables and plots of finished runs are made on machines without an accelerator, and at once."""
    modules = [f"moe_jax.report.{path.stem}" for path in sorted((PACKAGE / "report").glob("[!_]*.py"))]
    modules.append("moe_jax.tasks.results")
    program = (
        f"import importlib, sys\nfor m in {modules}: importlib.import_module(m); assert 'jax' not in sys.modules, m"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", FILES, ids=name)
def test_functions_and_files_are_short(path):
    source = path.read_text()
    functions = [
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long = [f"{node.name}: {length(node)} lines" for node in functions if length(node) > MAX_FUNCTION]
    assert not long, f"{name(path)}: {long}: a function has at most {MAX_FUNCTION} lines"
    assert len(source.splitlines()) <= MAX_FILE, f"{name(path)}: a file has at most {MAX_FILE} lines"


def length(node):
    return node.end_lineno - node.lineno + 1
