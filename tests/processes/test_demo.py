"""The demo itself: real processes, real pages, on every backend that is here."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import numpy as np
import pytest

from aio_transfer import UsageError
from aio_transfer.demo import disaggregated
from aio_transfer.demo.disaggregated import DemoOptions, run_demo
from aio_transfer.demo.prefill import _covered_s
from aio_transfer.driver.backend_registry import available
from aio_transfer.subprocesses.child import Child, ChildFailedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

pytestmark = pytest.mark.anyio
BACKENDS = [
    pytest.param(report.backend, marks=pytest.mark.skipif(not report.usable, reason=report.reason))
    for report in available()
]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_bytes(b"Count what arrives. Believe the count. \xff\0" * 12)
    return path


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("prefills", [1, 2])
async def test_equals_a_single_process(text: Path, backend: str, prefills: int) -> None:
    arrivals = []
    options = DemoOptions(input=text, backend=backend, layers=3, prefills=prefills, tokens=20)
    report = await run_demo(options, lambda arrived, counts: arrivals.append((arrived, counts)))
    assert report.match
    assert report.tokens_match
    assert report.pages_match
    assert report.backend == backend
    assert report.pages == 3 * -(-report.prompt_nbytes // 16)
    assert report.counts == report.pages * prefills + 1
    assert report.nbytes == report.pages * report.page_nbytes + 256 * 4
    assert len(report.tokens) == len(report.text) == 20
    assert arrivals[-1] == (report.counts, report.counts)
    assert len(arrivals) == 3 + 1


async def test_a_long_input_is_cut(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disaggregated, "MAX_PROMPT_NBYTES", 33)
    report = await run_demo(DemoOptions(input=text, layers=1, tokens=1))
    assert report.match
    assert (report.prompt_nbytes, report.input_nbytes) == (33, 492)


async def test_damaged_pages_are_noticed(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit of one page is enough, whether or not it changes a token."""
    original = disaggregated._answer_alone

    def damaged(*arguments: object) -> object:
        answer = original(*arguments)  # type: ignore[arg-type]
        pages: NDArray[np.uint8] = answer.pages
        pages[0, 0, 0] ^= 1
        return answer

    monkeypatch.setattr(disaggregated, "_answer_alone", damaged)
    report = await run_demo(DemoOptions(input=text, layers=1, tokens=2))
    assert not report.match
    assert report.tokens_match
    assert not report.pages_match


async def test_a_killed_prefill_process_is_reported(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed when the request has reached it: the decode side waits for pages by then."""
    original = Child.send

    def send_and_kill(child: Child, message: object) -> None:
        original(child, message)  # type: ignore[arg-type]
        if type(message).__name__ == "PrefillRequest":
            os.kill(child.pid, signal.SIGKILL)

    monkeypatch.setattr(Child, "send", send_and_kill)
    with anyio.fail_after(15), pytest.raises(ChildFailedError, match="exited with status -9"):
        await run_demo(DemoOptions(input=text, prefills=2))
    assert not _children()


async def test_cancelling_leaves_no_process(text: Path) -> None:
    with anyio.CancelScope() as scope:
        await run_demo(DemoOptions(input=text, layers=4), lambda _arrived, _counts: scope.cancel())
    assert scope.cancelled_caught
    assert not _children()


def test_killing_the_decode_process_ends_its_prefill_processes(text: Path) -> None:
    command = [sys.executable, "-m", "aio_transfer", "demo", "--input", str(text), "--prefills", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"arrived: ")
        fds = [os.pidfd_open(int(pid)) for pid in _children(process.pid).split()]
        process.kill()
    assert len(fds) == 2
    for fd in fds:
        assert select.select([fd], [], [], 10)[0], "a prefill process stayed"
        os.close(fd)


def _children(pid: int = 0) -> str:
    pid = pid or os.getpid()
    return Path(f"/proc/{pid}/task/{pid}/children").read_text()


@pytest.mark.parametrize("wrong", [{"prefills": 3}, {"tokens": 0}, {"layers": 0}, {"backend": "pigeon"}])
async def test_wrong_options_start_nothing(text: Path, wrong: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disaggregated, "Child", None)
    with pytest.raises(UsageError):
        await run_demo(DemoOptions(input=text, **wrong))  # type: ignore[arg-type]


async def test_no_input_is_refused(text: Path, tmp_path: Path) -> None:
    text.write_bytes(b"")  # noqa: ASYNC240 - nothing else runs here
    with pytest.raises(UsageError, match="empty"):
        await run_demo(DemoOptions(input=text))
    with pytest.raises(FileNotFoundError):
        await run_demo(DemoOptions(input=tmp_path / "nothing"))


def test_time_under_way_counts_overlaps_once() -> None:
    assert _covered_s([]) == 0
    assert _covered_s([(5, 6), (1, 3), (2, 4), (2, 2.5)]) == 4
