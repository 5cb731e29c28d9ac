"""Names are the field's words, each stands for one idea, and no backend is named above the driver seam."""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # importmode=importlib puts no folder there

from source_tree import ROOT, Module, modules

RIDDLES = re.compile(
    r"(?:^|_|\b)"
    r"(?:ledger|pulses?|linger(?:s|ing)?|bury|buries|ripen|visitors?|knocks?|whoever|tells?|told|floors?|vouch|divert)"
    r"(?:_|\b|$)"
)
"""Words that hide the term a reader would search for."""
NATIVE_RIDDLES = re.compile(r"\b\w*(?:ripen|visitor|divert|vouch|kLinger|Pulse|pulse_|BesideTheDead|way_to|door_)\w*\b")
BACKENDS = ("shm", "tcp", "verbs", "libfabric", "efa", "efa-direct", "sim", "pyverbs", "ofi_rxm", "mlx5", "memfd")
ABOVE_THE_SEAM = {
    *("control", "counters", "driver", "engine", "groups", "observability", "peers", "regions", "runtime", "transfers"),
    *("context", "errors"),
}
NATIVE = sorted(path for path in ROOT.glob("backends/*/*.*") if path.suffix in {".h", ".cpp"})


def snake(name: str) -> str:
    """Split a name into its words."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def first_line(node: ast.AST) -> str:
    text = (
        ast.get_docstring(node)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        else ""
    )
    return (text or "").partition("\n")[0]


def names_of(module: Module) -> set[str]:
    """Return every name that the module defines: itself, classes, functions, parameters, variables, attributes."""
    found = {module.path.stem}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return found


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.name)
def test_names_are_words_that_are_searched_for(module: Module) -> None:
    assert sorted(name for name in names_of(module) if RIDDLES.search(snake(name))) == []


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.name)
def test_first_docstring_lines_are_plain(module: Module) -> None:
    lines = [first_line(node) for node in ast.walk(module.tree)]
    assert [line for line in lines if RIDDLES.search(line.lower())] == []


@pytest.mark.parametrize("path", NATIVE, ids=lambda path: "/".join(path.parts[-2:]))
def test_native_names_are_words_that_are_searched_for(path: Path) -> None:
    assert sorted(set(NATIVE_RIDDLES.findall(path.read_text(encoding="utf-8")))) == []


def test_no_two_classes_have_one_name() -> None:
    where: dict[str, list[str]] = defaultdict(list)
    for module in modules():
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where[node.name].append(module.name)
    assert {name: found for name, found in where.items() if len(found) > 1} == {}


def test_no_backend_is_named_above_the_seam() -> None:
    """Strings that are a backend's, provider's or NIC's name; docstrings may give examples."""
    named = []
    for module in modules():
        if module.package not in ABOVE_THE_SEAM:
            continue
        docstrings = {id(node.value) for node in ast.walk(module.tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                words = set(re.split(r"[^\w-]+", node.value))
                named += [f"{module.name}:{node.lineno} {word}" for word in words & set(BACKENDS)]
    assert named == []


def test_the_engine_imports_no_transport() -> None:
    transports = {path.name for path in (ROOT / "backends").iterdir() if path.is_dir()} - {"core", "native"}
    importing = [
        f"{module.name}: {line}"
        for module in modules()
        if module.package in ABOVE_THE_SEAM
        for line in module.path.read_text(encoding="utf-8").splitlines()
        if re.search(rf"aio_transfer\.backends\.({'|'.join(transports)})\b", line)
    ]
    assert importing == []


def test_the_shared_data_plane_includes_no_transport() -> None:
    folders = [ROOT / "backends" / name for name in ("core", "native")]
    transports = {path.name for path in (ROOT / "backends").iterdir() if path.is_dir()} - {"core", "native"}
    included = [
        f"{path.name}: {line.strip()}"
        for folder in folders
        for path in sorted(folder.glob("*.*"))
        if path.suffix in {".h", ".cpp"}
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("#include") and any(f"{name}/" in line for name in transports)
    ]
    assert included == []
