"""The demo's line protocol and its child processes, without an engine."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import anyio
import pytest

from aio_transfer.demo.messages import (
    DEMO_MESSAGES,
    CacheOffer,
    DemoMessage,
    PrefillReady,
    PrefillRequest,
    PrefillResult,
)
from aio_transfer.demo.model import TransformerConfig
from aio_transfer.errors import ProtocolError
from aio_transfer.subprocesses import child as child_module
from aio_transfer.subprocesses import json_lines as lines_module
from aio_transfer.subprocesses.child import Child, ChildFailedError
from aio_transfer.subprocesses.json_lines import Failed, JsonLines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.anyio
OFFER = CacheOffer(
    rank=0, ranks=2, backend="shm", model={"layers": 2}, pages=9, cache=b"\0\xff", tail=b"t", max_tokens=7
)
MESSAGES: list[DemoMessage] = [
    OFFER,
    PrefillReady(),
    PrefillRequest(b"\n\0\xfe", [3, 1]),
    PrefillResult(nbytes=5, busy_s=0.25, backend="shm", provider="memfd", path="p"),
    Failed("a\nb"),
]


@pytest.fixture
def pipe() -> Iterator[tuple[JsonLines, int]]:
    """JsonLines that read what is written to an fd."""
    read_fd, write_fd = os.pipe()
    yield JsonLines(read_fd, write_fd, "the other", DEMO_MESSAGES), write_fd
    for fd in (read_fd, write_fd):
        try:
            os.close(fd)
        except OSError:
            assert fd == write_fd


async def test_messages_arrive_as_sent(pipe: tuple[JsonLines, int]) -> None:
    lines, _ = pipe
    for message in MESSAGES:
        lines.send(message)
    assert [await lines.receive() for _ in MESSAGES] == MESSAGES
    assert OFFER.config() == TransformerConfig(layers=2)


async def test_pieces_of_a_line_are_put_together_also_after_a_cancellation(pipe: tuple[JsonLines, int]) -> None:
    lines, write_fd = pipe
    os.write(write_fd, b'{"type":"fai')
    with anyio.move_on_after(0) as scope:
        await lines.receive()
    assert scope.cancelled_caught
    os.write(write_fd, b'led","reason":"x"}\n{"type":"ready"}\n')
    assert await lines.receive() == Failed("x")
    assert await lines.receive() == PrefillReady()


async def test_end_is_none(pipe: tuple[JsonLines, int]) -> None:
    lines, write_fd = pipe
    os.write(write_fd, b'{"type":')
    os.close(write_fd)
    assert await lines.receive() is None


@pytest.mark.parametrize("line", [b"", b"x", b"[]", b'{"type":"what"}', b'{"type":"failed"}', b"\xff\xfe"])
async def test_what_is_no_message_is_refused(pipe: tuple[JsonLines, int], line: bytes) -> None:
    lines, write_fd = pipe
    os.write(write_fd, line + b"\n")
    with pytest.raises(ProtocolError, match="the other: not a message"):
        await lines.receive()


async def test_an_endless_line_is_refused(pipe: tuple[JsonLines, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "MAX_LINE_NBYTES", 100)
    lines, write_fd = pipe
    os.write(write_fd, b"x" * 101)
    with pytest.raises(ProtocolError, match="more than 100 B"):
        await lines.receive()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program to start as a child, by the name ``pupil``; our environment is what it is found through."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "pupil.py"


def write(module: Path, code: str) -> None:
    module.write_text("import os, sys, time\n" + textwrap.dedent(code))


async def test_child_answers_and_is_gone_after_the_block(module: Path) -> None:
    write(
        module,
        """
        for line in sys.stdin.buffer:
            print('{"type":"ready"}', flush=True)
    """,
    )
    async with Child("pupil", "pupil", DEMO_MESSAGES) as child:
        child.send(PrefillReady())
        assert await child.receive(PrefillReady) == PrefillReady()
        pid = child.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_childs_end_comes_with_its_last_words(module: Path) -> None:
    write(module, "sys.exit('out of ideas')")
    with pytest.raises(ChildFailedError, match=r"(?s)pupil failed: exited with status 1.*out of ideas"):
        async with Child("pupil", "pupil", DEMO_MESSAGES) as child:
            await child.receive(PrefillReady)


async def test_sending_to_a_dead_child_says_so(module: Path) -> None:
    write(module, "sys.exit(7)")
    with pytest.raises(ChildFailedError, match="exited with status 7"):
        async with Child("pupil", "pupil", DEMO_MESSAGES) as child:
            with pytest.raises(ChildFailedError, match="exited with status 7"):
                await child.receive(PrefillReady)
            child.send(PrefillReady())


async def test_a_child_that_gives_up_is_a_failure(module: Path) -> None:
    write(module, """print('{"type":"failed","reason":"no such backend"}', flush=True); time.sleep(60)""")
    with pytest.raises(ChildFailedError, match="no such backend"):
        async with Child("pupil", "pupil", DEMO_MESSAGES) as child:
            await child.receive(PrefillReady)
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


async def test_a_wrong_answer_is_a_failure(module: Path) -> None:
    write(module, """print('{"type":"ready"}', flush=True); sys.stdin.read()""")
    with pytest.raises(ChildFailedError, match="sent PrefillReady instead of PrefillResult"):
        async with Child("pupil", "pupil", DEMO_MESSAGES) as child:
            await child.receive(PrefillResult)


async def test_a_child_that_stays_is_killed(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "GRACE_S", 0.05)
    write(module, """print('{"type":"ready"}', flush=True); time.sleep(60)""")
    async with Child("pupil", "pupil", DEMO_MESSAGES) as child:
        await child.receive(PrefillReady)
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


async def test_cancelling_kills_at_once(module: Path) -> None:
    write(module, """print('{"type":"ready"}', flush=True); time.sleep(60)""")
    with anyio.CancelScope() as scope:
        async with Child("pupil", "pupil", DEMO_MESSAGES) as child:
            await child.receive(PrefillReady)
            scope.cancel()
            await child.receive(PrefillReady)
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


def test_prefill_leaves_when_nobody_speaks_to_it() -> None:
    """Its input is at its end: as when the decode process was killed."""
    command = [sys.executable, "-m", "aio_transfer.demo.prefill"]
    done = subprocess.run(command, input=b"", capture_output=True, check=False, timeout=15)
    assert done.returncode == 1
    assert b"expected an offer" in done.stdout
