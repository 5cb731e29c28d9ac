"""Every module says what it offers: a sorted tuple of names that exist."""

from __future__ import annotations

import ast
import importlib
import pathlib
import pkgutil
import subprocess
import sys

import pytest

import aio_transfer


def modules() -> list[str]:
    found = [name for _, name, _ in pkgutil.walk_packages(aio_transfer.__path__, "aio_transfer.")]
    # The check modules offer nothing by name: importing one registers its checks.
    offering = (name for name in found if not name.startswith("aio_transfer.testing.checks."))
    return ["aio_transfer", *(name for name in offering if not name.endswith(("__main__", "_native", "_baseline")))]


@pytest.mark.parametrize("name", modules())
def test_all_is_a_sorted_tuple(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name.startswith("aio_transfer"):
            raise
        pytest.skip(f"{error.name} is not installed")
    if module.__file__.endswith("__init__.py") and not hasattr(module, "__all__"):
        statements = ast.parse(pathlib.Path(module.__file__).read_text()).body
        assert len(statements) == 1, "a package without __all__ holds its docstring and nothing else"
        assert ast.get_docstring(ast.Module(statements, []))
        return
    assert isinstance(module.__all__, tuple), "a tuple cannot be changed by accident"
    assert list(module.__all__) == sorted(module.__all__, key=lambda word: (not word.isupper(), word.islower(), word))
    for word in module.__all__:
        assert hasattr(module, word)


def test_the_import_is_light() -> None:
    code = "import sys, aio_transfer; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "cupy", "trio", "uvloop", "rich", "typer", "mpi4py"} & set(loaded)
