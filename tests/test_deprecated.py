"""Old import paths: each gives the same object as the new one, and names it in a warning."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from softprompt.deprecated import MODULES, NAMES

OLD_MODULES = [*MODULES, "softprompt.carriers.cache"]


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Old paths are imported anew, before and after the test."""

    def forget() -> None:
        for name in [name for name in sys.modules if ".".join(name.split(".")[:2]) in MODULES]:
            del sys.modules[name]

    forget()
    yield
    forget()


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("old", MODULES)
def test_an_old_module_is_the_new_one_and_says_so_once_at_the_users_line(old: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(compile(f"import {old}\nimport {old}", "the-users-file.py", "exec"), {})  # noqa: S102
        found = importlib.import_module(old)
    [warning] = caught
    assert warning.category is DeprecationWarning
    assert MODULES[old] in str(warning.message)
    assert warning.filename == "the-users-file.py"
    assert found is importlib.import_module(MODULES[old])
    assert found.__name__ == MODULES[old]


@pytest.mark.usefixtures("forgotten")
def test_a_module_of_a_package_that_moved_is_not_loaded_twice() -> None:
    with pytest.warns(DeprecationWarning, match=r"softprompt\.carriers is softprompt\.zoo now") as caught:
        old = importlib.import_module("softprompt.carriers.cache")
    assert len(caught) == 1
    assert old is importlib.import_module("softprompt.zoo.cache")


@pytest.mark.parametrize(("old", "new"), NAMES.items())
def test_an_old_name_is_the_new_one_and_says_so_at_the_users_line(old: str, new: str) -> None:
    (package, name), (module, now) = (path.rsplit(".", 1) for path in (old, new))
    namespace: dict[str, object] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        code = compile(f"from {package} import {name}", "the-users-file.py", "exec")
        exec(code, namespace)  # noqa: S102
    assert {str(warning.filename) for warning in caught} == {"the-users-file.py"}
    assert {warning.category for warning in caught} == {DeprecationWarning}
    assert all(new in str(warning.message) for warning in caught)
    assert namespace[name] is getattr(importlib.import_module(module), now)


@pytest.mark.parametrize("package", sorted({old.rpartition(".")[0] for old in NAMES}))
def test_what_was_never_there_is_an_error(package: str) -> None:
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        getattr(importlib.import_module(package), "nothing_of_the_kind")  # noqa: B009
    with pytest.raises(ImportError, match="nothing_of_the_kind"):
        exec(f"from {package} import nothing_of_the_kind", {})  # noqa: S102


@pytest.mark.slow
def test_the_library_itself_uses_no_old_path() -> None:
    root = Path(__file__).parents[1]
    for file in [*root.glob("src/**/*.py"), *root.glob("examples/*.py"), *root.glob("benchmarks/*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                paths = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                assert not paths & {*MODULES, *NAMES}, file


def test_importing_the_library_warns_of_nothing() -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", "import softprompt"], check=True)
