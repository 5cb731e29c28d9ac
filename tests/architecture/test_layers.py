"""Imports between sub-packages point one way, and no import runs in a circle."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # importmode=importlib puts no folder there

from source_tree import ROOT, imports, modules

LAYERS = (
    ("errors", "formatting", "topology"),
    ("driver", "runtime", "subprocesses"),
    ("control", "counters", "gpu"),
    ("memory", "backends"),
    ("peers",),
    ("regions",),
    ("transfers",),
    ("context",),
    ("observability", "groups"),
    ("engine",),
    ("",),  # the root's __init__: the public names
    ("kvcache", "weights", "moe", "integrations"),
    ("testing",),
    ("demo", "bench", "doctor"),
    ("cli",),
    ("__main__",),
)
"""A sub-package may import those of earlier layers, and itself. Names on one line do not import each other."""
LAYER = {name: index for index, names in enumerate(LAYERS) for name in names}


def sub_package(module: str) -> str:
    return ([*module.split("."), ""])[1]


def test_every_sub_package_has_a_layer() -> None:
    assert {module.package for module in modules()} <= LAYER.keys()


def test_imports_between_sub_packages_point_down() -> None:
    upward = [
        f"{name} imports {target}"
        for name, targets in imports().items()
        for target in targets
        if sub_package(name) != sub_package(target) and LAYER[sub_package(target)] >= LAYER[sub_package(name)]
    ]
    assert upward == []


@pytest.mark.parametrize("at_run_time", [True, False], ids=["run time", "type checking included"])
def test_no_import_cycle(at_run_time: bool) -> None:
    assert cycles(at_run_time=at_run_time) == []


def cycles(*, at_run_time: bool) -> list[list[str]]:
    """Return the strongly connected components of more than one module (Tarjan)."""
    graph = imports(at_run_time=at_run_time)
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in graph[name]:
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            at = stack.index(name)
            component = stack[at:]
            del stack[at:]
            if len(component) > 1:
                found.append(sorted(component))

    for name in graph:
        if name not in index:
            visit(name)
    return found


def test_one_file_of_the_engine_names_the_event_loop_libraries() -> None:
    naming = {
        str(module.path.relative_to(ROOT))
        for module in modules()
        for line in module.path.read_text(encoding="utf-8").splitlines()
        if line.strip().startswith(("import asyncio", "import trio", "from asyncio", "from trio"))
    }
    # The kit cancels tasks of asyncio natively, since an application may do so.
    assert naming == {"aio_transfer/runtime/event_loop.py", "aio_transfer/testing/fuzz/model/tasks.py"}
