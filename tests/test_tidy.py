"""House rules that a machine can check."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "couchestord"
MODULES = sorted(PACKAGE.rglob("*.py"))
SHIPPED = sorted(
    path
    for pattern in ("*.md", "*.toml", "*.txt", "Makefile", ".ci/run", "docs/**/*.md", "bench/**/*.py", "deploy/**/*")
    for path in ROOT.glob(pattern)
    if path.is_file()
)

MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
MACHINE_PATHS = re.compile(
    r"/(?:home|root|work|Users)/[\w.-]+|/tmp/(?:brief|venv)|https?://(?:[\w.-]*\.)?(?:pypi|pythonhosted)\."
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_there_are_modules_to_check() -> None:
    assert len(MODULES) > 10
    assert ROOT / "Makefile" in SHIPPED


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_is_short_and_well_named(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MODULE_LINES_MAX, f"{name_of(path)} has {lines} lines"
    assert not BANNED_NAMES & set(path.relative_to(PACKAGE).with_suffix("").parts)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_functions_are_short(path: Path) -> None:
    long = {f.name: (f.end_lineno or f.lineno) - f.lineno + 1 for f in functions(path)}
    assert {name: lines for name, lines in long.items() if lines > FUNCTION_LINES_MAX} == {}


@pytest.mark.parametrize("path", [*MODULES, *sorted((ROOT / "tests").rglob("*.py")), *SHIPPED], ids=name_of)
def test_names_no_path_of_a_machine(path: Path) -> None:
    if path == Path(__file__).resolve():
        return
    assert MACHINE_PATHS.findall(path.read_text(encoding="utf-8")) == []


def test_tests_mirror_the_tree() -> None:
    """tests/x/test_y.py or test_y_aspect.py tests couchestord/x/y.py, the package x/y or a stand-in tests/support/y.py.

    Scenarios over the whole are in tests/whole, those with a real daemon, clients and faults in tests/system.
    """
    support = {path.stem for path in (ROOT / "tests" / "support").glob("*.py")}
    strays = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        inside = path.relative_to(ROOT / "tests")
        if inside.parts[0] in {"whole", "system", "support"} or inside == Path("test_tidy.py"):
            continue
        words = inside.stem.removeprefix("test_").split("_")
        names = ["_".join(words[:count]) for count in range(1, len(words) + 1)]
        targets = [PACKAGE / inside.parent / name for name in names]
        found = any(target.is_dir() or target.with_suffix(".py").exists() for target in targets)
        if not found and not support & set(names):
            strays.append(name_of(path))
    assert strays == []
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_constraints_pin_and_name_no_index() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
