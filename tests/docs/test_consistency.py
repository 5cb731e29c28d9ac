"""README and documentation agree with the code: rules, errors, options, commands, API entries, variables, links."""

from __future__ import annotations

import ast
import importlib
import pathlib
import re
import shlex
import sys
from typing import TYPE_CHECKING

import pytest
import typer.main

import aio_transfer
from aio_transfer.cli.main import app
from aio_transfer.driver.backend_registry import load, names
from aio_transfer.testing import RULES

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # importmode=importlib puts no folder there

from code_blocks import PAGES, ROOT, parse

if TYPE_CHECKING:
    from collections.abc import Iterator

README = (ROOT / "README.md").read_text()
MARKDOWN = sorted({*PAGES, *ROOT.glob("*.md"), *ROOT.glob("benchmarks/**/*.md"), *ROOT.glob("backends/*/*.md")})
CONTRACT = (ROOT / "docs/explanation/contract.md").read_text()
OWN_VARIABLE = re.compile(r'"((?:AIO_TRANSFER|FI|RDMAV|IBV|SYSFS)_[A-Z_]+)"')


def name_of(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


# ------------------------------------------------------------------------------------------------------------ contract


def test_the_readme_lists_every_rule() -> None:
    section = README.partition("## The contract")[2].partition("\n## ")[0]
    numbers = [f"rule {number}" for number in re.findall(r"^(\d+)\. ", section, re.MULTILINE)]
    assert numbers == [name for name in RULES if name.startswith("rule ")]


def test_the_contract_page_has_every_rule() -> None:
    numbers = [f"rule {number}" for number in re.findall(r"^## Rule (\d+): .*\{ #rule-\1 \}$", CONTRACT, re.MULTILINE)]
    assert numbers == [name for name in RULES if name.startswith("rule ")]


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("page", MARKDOWN, ids=name_of)
def test_named_errors_exist(page: pathlib.Path) -> None:
    known = {name for name in aio_transfer.__all__ if name.endswith(("Error", "WouldBlock"))}
    others = {"AttributeError", "ConformanceError", "FileNotFoundError", "OSError", "ScheduleError", "ValueError"}
    found = set(re.findall(r"`(\w+Error)s?`", page.read_text()))
    assert found <= known | others


# ------------------------------------------------------------------------------------------------------------- options


def option_literals(source: str) -> Iterator[tuple[str, str, object]]:
    """Yield backend, option and value of every ``{"backend": {"option": value}}`` in Python code."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Dict):
            continue
        for key, inner in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and key.value in names() and isinstance(inner, ast.Dict):
                yield from (
                    (key.value, ast.literal_eval(option), ast.literal_eval(value))
                    for option, value in zip(inner.keys, inner.values, strict=True)
                    if option is not None
                )


def python_of(page: pathlib.Path) -> Iterator[str]:
    text = page.read_text()
    yield from (block.body for block in parse(text) if block.kind == "python")
    for literal in re.findall(r"`([^`\n]*\{\"\w+\": \{[^`\n]*)`", text):
        yield from re.findall(r"\{\"\w+\": \{[^{}]*\}\}", literal)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_in_code_are_allowed(page: pathlib.Path) -> None:
    for source in python_of(page):
        try:
            found = list(option_literals(source))
        except SyntaxError:  # a fragment with `…`
            continue
        for backend, option, value in found:
            load(backend).options.check(backend, {option: value})


# ------------------------------------------------------------------------------------------------------------ commands


def commands() -> Iterator[tuple[pathlib.Path, list[str]]]:
    for page in MARKDOWN:
        text = page.read_text()
        lines = [
            line.removeprefix("$ ")
            for block in parse(text)
            if block.kind == "console"
            for line in block.body.split("\n")
        ]
        lines += list(re.findall(r"`(aio-transfer [^`\n{]+)`", text))
        for line in lines:
            for part in re.split(r"&&|--\s(?=aio-transfer)", line):
                words = shlex.split(part.strip())
                if words and pathlib.PurePath(words[0]).name == "aio-transfer":
                    yield page, words[1:]


def test_commands_in_documents_exist() -> None:
    found = list(commands())
    assert len(found) > 20
    for page, words in found:
        command = typer.main.get_command(app)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        assert not hasattr(command, "commands") or not words or words[0].startswith(("-", "…")), f"{page}: {words}"
        options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        given = {word for word in words if word.startswith("--")}
        assert given <= options | {"--help"}, f"{page}: {words}"


# ----------------------------------------------------------------------------------------------------------------- API


@pytest.mark.parametrize(
    ("module", "page"),
    [("aio_transfer", "api.md"), ("aio_transfer.driver", "driver.md"), ("aio_transfer.testing", "testing.md")],
)
def test_the_reference_has_every_exported_name(module: str, page: str) -> None:
    text = (ROOT / "docs/reference" / page).read_text()
    entries = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    assert sorted(entries) == sorted(f"{module}.{name}" for name in importlib.import_module(module).__all__)


def test_every_environment_variable_is_documented() -> None:
    documented = (ROOT / "docs/reference/environment.md").read_text()
    folders = ROOT / "aio_transfer", ROOT / "backends"
    paths = [path for folder in folders for suffix in ("py", "cpp", "h") for path in folder.rglob(f"*.{suffix}")]
    found = {name for path in paths for name in OWN_VARIABLE.findall(path.read_text(encoding="utf-8"))}
    assert {"AIO_TRANSFER_PATIENCE", "FI_PROVIDER_PATH"} <= found
    assert not {name for name in found if f"`{name}`" not in documented}


# --------------------------------------------------------------------------------------------------------------- pages


def test_every_page_is_in_the_navigation() -> None:
    pages = set(re.findall(r"[\w/-]+\.md$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert pages == {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}


@pytest.mark.parametrize("page", MARKDOWN, ids=name_of)
def test_relative_links_resolve(page: pathlib.Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{target} of {page}"
        if anchor and found.suffix == ".md" and not anchor.startswith("aio_transfer"):
            assert anchor in anchors(found), f"{target} of {page}"


def anchors(page: pathlib.Path) -> set[str]:
    """Return the anchors of a page's headings, and of what is generated into it."""
    found = set(names()) if page.name == "options.md" else set()
    for heading in re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE):
        explicit = re.search(r"\{ #([\w-]+) \}", heading)
        plain = re.sub(r"[^\w\s-]", "", heading).strip().lower()
        found.add(explicit[1] if explicit else re.sub(r"[\s-]+", "-", plain))
    return found


@pytest.mark.parametrize("page", MARKDOWN, ids=name_of)
def test_lines_are_narrow(page: pathlib.Path) -> None:
    if page.is_relative_to(ROOT / "backends"):
        return
    wide = [
        number for number, line in enumerate(page.read_text().splitlines(), 1) if len(line) > 120 and line[0] != "|"
    ]
    assert not wide, f"lines {wide} are wider than 120 columns"
