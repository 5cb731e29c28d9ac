"""Files and functions stay small enough to be read in one go."""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # importmode=importlib puts no folder there

from source_tree import ROOT, modules, public_functions

MODULE_LINES, NATIVE_LINES, TEST_LINES, FUNCTION_LINES = 450, 500, 600, 40
NOQA = 60
ROOT_MODULES = 4
PACKAGE_MODULES = range(2, 13)


def lines_of(path: Path) -> int:
    return path.read_text(encoding="utf-8").count("\n")


def longer(paths: list[Path], most: int) -> dict[str, int]:
    return {str(path.relative_to(ROOT)): lines_of(path) for path in paths if lines_of(path) > most}


def test_python_modules() -> None:
    others = [*ROOT.glob("benchmarks/**/*.py"), *ROOT.glob("examples/**/*.py"), ROOT / "noxfile.py"]
    assert longer([*(module.path for module in modules()), *others], MODULE_LINES) == {}


def test_native_files() -> None:
    native = [path for pattern in ("backends/*/*.*", "aio_transfer/bench/**/*.*") for path in ROOT.glob(pattern)]
    assert longer([path for path in native if path.suffix in {".h", ".cpp"}], NATIVE_LINES) == {}


def test_test_files() -> None:
    tests = [path for path in (ROOT / "tests").rglob("*.*") if path.suffix in {".py", ".h", ".cpp"}]
    assert longer(tests, TEST_LINES) == {}


def test_functions() -> None:
    long = {
        f"{module.name}.{function.name}": length
        for module in modules()
        for function in public_functions(module.tree)
        if (length := body_lines(function)) > FUNCTION_LINES
    }
    assert long == {}


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the function's lines without its docstring."""
    end = function.end_lineno or function.lineno
    docstring = function.body[0]
    inside = 0
    if isinstance(docstring, ast.Expr) and isinstance(docstring.value, ast.Constant):
        inside = (docstring.end_lineno or 0) - docstring.lineno + 1
    return end - function.lineno + 1 - inside


def test_packages() -> None:
    """A sub-package has 2 to 12 modules, those in packages of its own not counted."""
    parts: dict[Path, set[str]] = defaultdict(set)
    for module in modules():
        if module.path.name == "__init__.py":
            parts[module.path.parent.parent].add(module.path.parent.name)
        elif module.path.name != "__main__.py":
            parts[module.path.parent].add(module.path.stem)
    root, backends = ROOT / "aio_transfer", ROOT / "backends"
    assert len([name for name in parts[root] if (root / f"{name}.py").exists()]) <= ROOT_MODULES
    sizes = {folder: len(found) for folder, found in parts.items() if root in folder.parents and backends != folder}
    assert {str(folder): size for folder, size in sizes.items() if size not in PACKAGE_MODULES} == {}


def test_every_package_says_what_is_in_it() -> None:
    silent = [m.name for m in modules() if m.path.name == "__init__.py" and not ast.get_docstring(m.tree)]
    assert silent == []


def test_few_lint_exceptions() -> None:
    found = [
        f"{module.name}:{number}"
        for module in modules()
        for number, line in enumerate(module.path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"#.*\bnoqa\b", line)
    ]
    assert len(found) <= NOQA, found
