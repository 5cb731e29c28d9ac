"""Code blocks of Markdown pages: parsing, and running one page from top to bottom.

Conventions, all of them invisible in a rendered page:

- ``python`` blocks of a page run in order, in one namespace and one event loop (asyncio). ``await`` is allowed at the
  top level. ``page`` is an ``AsyncExitStack``, which is closed after the last block.
- A ``python`` block with ``title="name.py"`` is a file: it is written and not run by itself.
- ``console`` blocks run their ``$ python …`` and ``$ aio-transfer …`` lines in the folder of those files. Other lines
  are the expected output, if there are any; ``…`` stands for anything. Other commands are not run.
- ``<!-- test: run`` … ``-->`` holds Python that runs at that place, to set something up or to call what
  a block defines.
- ``<!-- test: background -->``: the next console block runs beside those that follow it.
- ``<!-- test: output -->``: the next block is the expected output of the Python before it.
- ``<!-- test: skip REASON -->``: the next block does not run.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import os
import pathlib
import re
import shlex
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anyio.abc import TaskGroup

ROOT = pathlib.Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BLOCK_LIMIT_S = 10
"""How long one block may take."""

_FENCE = re.compile(r"^(`{3,})(\w*)(.*)$")
_TITLE = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One step of a page; ``line`` is that of its first line of content, from 1."""

    kind: str
    body: str
    line: int
    title: str = ""
    marker: str = ""


def parse(text: str) -> list[Block]:
    """Return the fenced blocks and the hidden code of a page."""
    blocks: list[Block] = []
    lines = iter(enumerate(text.splitlines(), 1))
    marker = ""
    for number, line in lines:
        if line.startswith("<!-- test: run"):
            body = "\n".join(inner for _, inner in _until(lines, "-->"))
            blocks.append(Block(kind="hidden", body=body, line=number + 1))
        elif line.startswith("<!-- test: "):
            marker = line.removeprefix("<!-- test: ").removesuffix("-->").strip()
        elif match := _FENCE.match(line):
            body = "\n".join(inner for _, inner in _until(lines, match[1]))
            title = _TITLE.search(match[3])
            found = Block(kind=match[2], body=body, line=number + 1, title=title[1] if title else "", marker=marker)
            blocks.append(found)
            marker = ""
    return blocks


def _until(lines: Iterator[tuple[int, str]], end: str) -> Iterator[tuple[int, str]]:
    for number, line in lines:
        if line.strip() == end:
            return
        yield number, line
    raise AssertionError(f"a block is not closed by {end}")


def is_run(block: Block) -> bool:
    """Whether a block is executed, as a file, as Python or as commands."""
    if block.marker.startswith("skip"):
        return False
    return block.kind in {"python", "hidden"} or (block.kind == "console" and any(_commands(block)))


class PageRun:
    """Runs the blocks of one page.

    :param folder: the current folder of everything that runs
    """

    def __init__(self, page: pathlib.Path, folder: pathlib.Path) -> None:
        """Begin with an empty namespace."""
        self._page = page
        self._folder = folder
        self._names: dict[str, object] = {"__name__": "__page__"}
        self._output = ""

    async def run(self) -> None:
        """Run every block, in order; blocks in the background must have ended well at the end."""
        async with anyio.create_task_group() as tasks, contextlib.AsyncExitStack() as stack:
            self._names["page"] = stack
            for block in parse(self._page.read_text()):
                await self._step(block, tasks)

    async def _step(self, block: Block, tasks: TaskGroup) -> None:
        if block.marker == "output":
            require_output(block.body, self._output, f"{self._page.name}:{block.line}")
        elif not is_run(block):
            return
        elif block.title:
            (self._folder / block.title).write_text(block.body + "\n")
        elif block.kind == "console":
            if block.marker == "background":
                tasks.start_soon(self._run_commands, block)
            else:
                await self._run_commands(block)
        else:
            await self._run_python(block)

    async def _run_python(self, block: Block) -> None:
        # Blank lines in front: a traceback then names the line of the page.
        source = "\n" * (block.line - 1) + block.body
        code = compile(source, str(self._page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        with io.StringIO() as output, contextlib.redirect_stdout(output):
            with anyio.fail_after(BLOCK_LIMIT_S):
                result = eval(code, self._names)  # noqa: S307 - our own pages
                if inspect.iscoroutine(result):
                    await result
            self._output = output.getvalue()

    async def _run_commands(self, block: Block) -> None:
        outputs = []
        with anyio.fail_after(BLOCK_LIMIT_S):
            for command in _commands(block):
                ran = await anyio.run_process(command, cwd=self._folder, env=environment(), check=False)
                where = f"{self._page.name}:{block.line}: {shlex.join(command)}"
                assert ran.returncode == 0, f"{where}\n{ran.stderr.decode()}"
                outputs.append(ran.stdout.decode())
        expected = "\n".join(line for line in block.body.splitlines() if not line.startswith("$ "))
        if expected.strip():
            require_output(expected, "".join(outputs), f"{self._page.name}:{block.line}")


def _commands(block: Block) -> Iterator[list[str]]:
    """Yield what is run of a console block."""
    for line in block.body.splitlines():
        words = shlex.split(line[2:]) if line.startswith("$ ") else []
        if words[:1] == ["python"]:
            yield [sys.executable, *words[1:]]
        elif words[:1] == ["aio-transfer"]:
            yield [sys.executable, "-m", "aio_transfer", *words[1:]]


def environment() -> dict[str, str]:
    """Return an environment whose Python finds the package where this one found it."""
    import aio_transfer

    parent = str(pathlib.Path(aio_transfer.__file__).parents[1])
    paths = filter(None, (parent, os.environ.get("PYTHONPATH", "")))
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def require_output(expected: str, seen: str, where: str) -> None:
    """Compare output with what a page shows; ``…`` stands for anything within a line."""
    pattern = "\n".join(re.escape(line.rstrip()) for line in expected.strip().splitlines()).replace("…", ".*")
    assert re.fullmatch(pattern, seen.strip()), f"{where} shows\n{expected}\nand the program printed\n{seen}"
