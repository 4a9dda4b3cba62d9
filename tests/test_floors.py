"""The house stands: imports point down, and what an import can do is where it belongs."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ssegate"

FLOORS = {
    "": 0, "errors": 0,
    "core": 1,
    "interfaces": 2, "config": 2,
    "upstream": 3, "sources": 3, "brokers": 3, "auth": 3, "edge": 3, "admin": 3,
    "gate": 4,
    "cli": 5, "service": 5, "asgi": 5, "demo": 5, "__main__": 5,
}  # fmt: skip
"""The part of the package, and its floor. The package itself has its version and nothing else."""

NEIGHBOURS = {("sources", "upstream"), ("edge", "upstream"), ("auth", "upstream")}
"""Who uses whom on the third floor."""

WAITING = {
    "asyncio", "concurrent", "http.client", "logging", "multiprocessing", "os", "pathlib", "queue", "random",
    "secrets", "select", "selectors", "signal", "socket", "sqlite3", "ssl", "subprocess", "tempfile", "threading", "time",
    "urllib.request",
}  # fmt: skip
"""Of the standard library what does I/O, has a clock, dice or a log, or waits."""

MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(module: Path) -> str:
    """`ssegate.core.event`; a package's `__init__` has the package's name."""
    parts = ["ssegate", *module.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(module) for module in MODULES}


def imports(module: Path) -> Iterator[str]:
    """Every module it imports, wherever in it, by full name; of `from package import module` the module."""
    package = name_of(module) if module.stem == "__init__" else name_of(module).rpartition(".")[0]
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in NAMES else base


def part_of(name: str) -> str:
    """The part of the package a module belongs to; "" is the package itself."""
    return [*name.split("."), ""][1]


def own(module: Path) -> set[str]:
    return {name for name in imports(module) if name.split(".")[0] == "ssegate"}


def foreign(module: Path) -> set[str]:
    return {name for name in imports(module) if name.split(".")[0] != "ssegate"}


def test_every_part_of_the_package_has_its_floor() -> None:
    assert {part_of(name) for name in NAMES} <= set(FLOORS)
    assert len(MODULES) > 40


def is_down(here: str, there: str, name: str) -> bool:
    if here == there or FLOORS[there] < FLOORS[here]:
        return True
    if FLOORS[here] == 5:
        return FLOORS[there] == 5  # the ways to start it may start each other
    return (here, there) in NEIGHBOURS or (here == "admin" and name == "ssegate.edge.exchange")


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_imports_point_down(module: Path) -> None:
    here = part_of(name_of(module))
    up = {name for name in own(module) if not is_down(here, part_of(name), name)}
    assert not up, f"{name_of(module)} is on floor {FLOORS[here]} and imports {sorted(up)}"


def core_modules() -> list[Path]:
    return [module for module in MODULES if part_of(name_of(module)) == "core"]


@pytest.mark.parametrize("module", core_modules(), ids=name_of)
def test_the_core_is_pure(module: Path) -> None:
    assert {part_of(name) for name in own(module)} <= {"core", "errors"}
    names = foreign(module)
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names
    assert not {name for name in names if name in WAITING or name.split(".")[0] in WAITING}
    tree = ast.parse(module.read_text())
    waits = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, waits)]
    calls = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not calls & {"open", "print", "input"}


@pytest.mark.parametrize(("library", "at_most", "at_least"), [("hypercorn", 1, 1), ("httpx", 1, 0)])
def test_a_library_that_serves_or_asks_is_met_in_one_module(library: str, at_most: int, at_least: int) -> None:
    users = [name_of(module) for module in MODULES if any(name.split(".")[0] == library for name in imports(module))]
    assert at_least <= len(users) <= at_most, users


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_a_module_opens_with_one_sentence_saying_what_it_is_for(module: Path) -> None:
    docstring = ast.get_docstring(ast.parse(module.read_text()))
    assert docstring
    first = docstring.split("\n\n")[0].strip()
    assert first.endswith((".", "!", ":")), first
