"""The package's source tree as the architecture tests read it: modules, imports and definitions, without running it."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "aio_transfer"


class Module(NamedTuple):
    """One Python module of the package."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def package(self) -> str:
        """The sub-package it belongs to: ``"peers"``, ``"errors"`` for a module of the root, ``""`` for the root."""
        return ([*self.name.split("."), ""])[1]


@cache
def modules() -> tuple[Module, ...]:
    """Return every module of the package, backends included."""
    found = []
    for folder, prefix in ((ROOT / PACKAGE, PACKAGE), (ROOT / "backends", f"{PACKAGE}.backends")):
        for path in sorted(folder.rglob("*.py")):
            inside = path.relative_to(folder)
            if inside.parts[0] == "backends" or "__pycache__" in inside.parts:
                continue
            name = ".".join((prefix, *inside.with_suffix("").parts)).removesuffix(".__init__")
            found.append(Module(name, path, ast.parse(path.read_text(encoding="utf-8"))))
    return tuple(found)


@cache
def imports(*, at_run_time: bool = False) -> dict[str, frozenset[str]]:
    """Return module → the modules of the package that it imports, anywhere in it.

    :param at_run_time: leave out what stands under ``if TYPE_CHECKING`` or inside functions
    """
    names = {module.name for module in modules()}
    graph = {}
    for module in modules():
        found: set[str] = set()
        nodes = _run_time_nodes(module.tree) if at_run_time else ast.walk(module.tree)
        for node in nodes:
            found |= _targets(node, module, names)
        graph[module.name] = frozenset(found - {module.name})
    return graph


def _run_time_nodes(tree: ast.Module) -> list[ast.AST]:
    found: list[ast.AST] = []
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            pending += node.orelse
        elif isinstance(node, ast.Try | ast.If | ast.With):
            pending += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
        else:
            found.append(node)
    return found


def _targets(node: ast.AST, module: Module, names: set[str]) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names if alias.name in names}
    if not isinstance(node, ast.ImportFrom):
        return set()
    base = node.module or ""
    if node.level:
        parts = module.name.split(".")
        if module.path.name != "__init__.py":
            parts = parts[:-1]
        base = ".".join((*parts[: len(parts) - node.level + 1], *filter(None, [base])))
    found = set()
    for alias in node.names:
        whole = f"{base}.{alias.name}"
        found |= {whole} if whole in names else {base} & names
    return found


def public_functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Return every function and method, nested ones included."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
