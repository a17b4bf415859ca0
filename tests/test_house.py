"""The house: imports between rooms run downwards, no files import each other in a circle, private names stay at home."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src"

ROOMS = (
    "__main__",
    "cli",
    "serving",
    "beginning",
    "studies",
    "protocols",
    "records",
    "inspection",
    "fitting",
    ("attach", "mixed"),
    "tuned",
    "evaluation",
    "catalogue",
    "exports",
    "exchange",
    "binding",
    "model",
    "baselines",
    "prompts",
    "search",
    "features",
    "training",
    "tasks",
    "store",
    "backbones",
    "data",
    "zoo",
    ("outputs", "images", "concerns", "pages", "plain_settings"),
    ("errors", "files", "state", "surroundings", "later", "truth_values", "version", "deprecated"),
    "other_names",
)
"""From the top to the bottom, in DESIGN.md's order; rooms of one floor import nothing from each other."""

FLOORS = {
    name: floor
    for floor, rooms in enumerate(ROOMS)
    for name in ([rooms] if isinstance(rooms, str) else rooms)
}


@cache
def files() -> dict[str, Path]:
    """Every module of the library by its full name."""
    found = {}
    for path in sorted((SRC / "softprompt").rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(module: str, at_module_level: bool) -> tuple[tuple[str, str], ...]:
    """(module, name) of what a module imports from the library when it runs; a name is empty for a whole module."""
    return tuple(_imports(ast.parse(files()[module].read_text(encoding="utf-8")), at_module_level))


def _imports(tree: ast.AST, at_module_level: bool) -> Iterator[tuple[str, str]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue  # never imported
        if at_module_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "softprompt":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole, "") if whole in files() else (str(node.module), alias.name)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == "softprompt")
        yield from _imports(node, at_module_level)


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_every_room_has_its_floor() -> None:
    assert {room(module) for module in files()} - {""} <= FLOORS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOORS)
def test_imports_between_rooms_run_downwards(name: str) -> None:
    up = [
        f"{module} imports {other}"
        for module in files()
        if room(module) == name
        for other, _ in imports(module, False)
        if room(other) not in ("", name) and FLOORS[room(other)] <= FLOORS[name]
    ]
    assert up == []


def test_no_files_import_each_other_in_a_circle() -> None:
    done: set[str] = set()

    def visit(module: str, on_the_way: tuple[str, ...]) -> None:
        assert module not in on_the_way, " -> ".join([*on_the_way[on_the_way.index(module) :], module])
        if module not in done:
            for other, _ in imports(module, True):
                visit(other, (*on_the_way, module))
            done.add(module)

    for module in files():
        visit(module, ())


def test_no_private_name_is_imported_from_another_package() -> None:
    taken = [
        f"{module} imports {other}.{name}".rstrip(".")
        for module, path in files().items()
        for other, name in imports(module, False)
        if any(part.startswith("_") and not part.startswith("__") for part in (*other.split("."), name))
        if home(other, name) != (module if path.name == "__init__.py" else module.rpartition(".")[0])
    ]
    assert taken == []


def home(module: str, name: str) -> str:
    """The package that the private module, or the module of a private name, lies in."""
    parts = module.split(".")
    private = next((at for at, part in enumerate(parts) if part.startswith("_")), len(parts) - 1)
    return ".".join(parts[:private])


def test_the_table_of_contributing_names_every_room_from_the_top_to_the_bottom() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    _, table, _ = re.split(r"\n\|---\|---\|\n((?:\|.*\n)+)", text, maxsplit=1)
    cells = [row.split("|")[1] for row in table.splitlines()]
    named = [re.sub(r"(\.py|/)$", "", name) for cell in cells for name in re.findall(r"`(\S+)`", cell)]
    there = {room(module) for module in files()} - {""}
    assert set(named) == there
    assert len(named) == len(there)
    assert [FLOORS[name] for name in named] == sorted(FLOORS[name] for name in named)


def test_ready_studies_are_yaml_alone() -> None:
    found = {path.suffix for path in (ROOT / "studies").iterdir() if path.name != "__pycache__"}
    assert found == {".yaml"}


def test_a_test_file_has_the_name_of_what_it_tests() -> None:
    tests = ROOT / "tests"
    strays = []
    for path in sorted(tests.rglob("test_*.py")):
        place = path.parent.relative_to(tests)
        if place.parts in ((), ("golden",)):  # the whole library, and what earlier versions wrote
            continue
        source = SRC / "softprompt" / place
        modules = {module.stem.strip("_") for module in source.iterdir()} | {source.name}
        name = path.stem.removeprefix("test_")
        if not any(name == module or name.startswith(f"{module}_") for module in modules if module):
            strays.append(str(path.relative_to(ROOT)))
    assert strays == []
