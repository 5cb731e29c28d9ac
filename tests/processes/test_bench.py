"""The benchmark's commands, with real processes and small sizes."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from aio_transfer.bench.options import Options
from aio_transfer.bench.run import FAMILIES, run
from aio_transfer.bench.workers.bandwidth_steps import MoveBatches, VerifyBytes, move_batches, verify_bytes
from aio_transfer.bench.workers.coordinator import start_workers
from aio_transfer.driver.backend_registry import available
from aio_transfer.subprocesses.child import ChildFailedError

KEYS = ["test", "backend", "provider", "nbytes", "count"]
KEYS += ["gb_per_s", "baseline_gb_per_s", "ratio", "p50_us", "p99_us", "cpu_s_per_gib"]
TINY = ["--json", "--repeat", "2", "--sample", "0.002"]
SMALL = {
    "write": ["--size", "8", "--size", "1MiB"],
    "pages": ["--page", "4KiB", "--count", "64"],
    "scatter": ["--size", "256", "--peers", "3"],
    "barrier": ["--engines", "3"],
    "submit-cost": ["--count", "64"],
    "busy-loop": ["--page", "4KiB", "--count", "64"],
    "memory": ["--page", "4KiB", "--transfers", "100"],
    "scale": ["--peers", "3"],
    "idle": ["--peers", "2", "--repeat", "1"],
}
FABRIC = next(report for report in available() if report.backend == "libfabric")
MOVES = {"write", "pages", "scatter"}
TINY_WORDS = {"busy-loop": 3, "memory": 1}
"""How many words of TINY a family accepts that has no samples of a given length, or no samples at all."""
LOOPS = ["asyncio", "uvloop", "trio"]


def bench(*arguments: str) -> list[dict[str, object]]:
    command = [sys.executable, "-m", "aio_transfer", "bench", *arguments]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=19).stdout
    return [json.loads(line) for line in output.splitlines()]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family(family: str) -> None:
    lines = bench(family, *TINY[: TINY_WORDS.get(family, len(TINY))], *SMALL.get(family, []))
    assert [line["test"] for line in lines] == [family] * (2 if family == "write" else 1)
    for line in lines:
        assert list(line)[: len(KEYS)] == KEYS
        assert (line["backend"], line["provider"], line["loop"]) == ("shm", "memfd", "asyncio")
        figures = [line["gb_per_s"], line["baseline_gb_per_s"], line["cpu_s_per_gib"]]
        if family == "busy-loop":
            assert figures[:2] == [line["gb_per_s"], line["baseline_gb_per_s"]]
            assert line["ratio"] > 0  # type: ignore[operator]
        elif family in MOVES:
            assert all(isinstance(figure, float) and figure > 0 for figure in figures)
            assert line["ratio"] == pytest.approx(line["gb_per_s"] / line["baseline_gb_per_s"], rel=0.9)  # type: ignore[operator]
        else:
            assert figures == [None, None, None]
        if family not in {"idle", "busy-loop", "memory"}:
            assert 0 < line["p50_us"] <= line["p99_us"]  # type: ignore[operator]


@pytest.mark.parametrize("loop", LOOPS)
def test_every_loop(loop: str) -> None:
    for family in ("latency", "wake"):
        pytest.importorskip("uvloop" if loop == "uvloop" else "trio")
        (line,) = bench(family, "--loop", loop, *TINY)
        assert line["loop"] == loop
        assert line["baseline_p50_us"] > 0  # type: ignore[operator]


@pytest.mark.parametrize("family", ["write", "pages", "latency"])
@pytest.mark.parametrize(
    ("backend", "provider"),
    [
        pytest.param(
            "libfabric", "tcp", marks=pytest.mark.skipif(not FABRIC.usable, reason=FABRIC.reason), id="libfabric"
        ),
        pytest.param("tcp", "sockets", id="tcp"),
    ],
)
def test_a_network_beside_its_own_loop(backend: str, provider: str, family: str) -> None:
    sizes = {"write": ["--size", "64KiB"], "pages": SMALL["pages"]}
    (line,) = bench(family, "--backend", backend, *TINY, *sizes.get(family, []))
    assert (line["backend"], line["provider"]) == (backend, provider)
    if family in MOVES:
        assert line["baseline_gb_per_s"] > 0  # type: ignore[operator]


@pytest.mark.skipif(not FABRIC.usable, reason=FABRIC.reason)
def test_without_a_baseline_no_number_is_made_up() -> None:
    (line,) = bench("scatter", "--backend", "libfabric", *TINY, *SMALL["scatter"])
    assert (line["baseline_gb_per_s"], line["ratio"]) == (None, None)
    assert line["baseline_reason"]


@pytest.mark.parametrize("progress", ["adaptive", "spin"])
def test_foreign_memory(progress: str) -> None:
    (line,) = bench("pages", "--foreign", "--progress", progress, "--page", "4KiB", "--count", "64", *TINY)
    assert (line["foreign"], line["progress"]) == (True, progress)
    assert line["baseline_gb_per_s"] > 0  # type: ignore[operator]


@pytest.mark.anyio
async def test_bytes_that_did_not_arrive_are_noticed() -> None:
    """A figure for something that was not done is worse than none."""
    async with start_workers(Options(), (1, 1)) as coordinator:
        target = await coordinator[1].allocate_memory(4096)
        await coordinator[0].allocate_memory(4096, seed=1)
        await coordinator[0].connect([target])
        request = VerifyBytes(kind="write", nbytes=4096, count=1, seed=1)
        with pytest.raises(ChildFailedError, match="the target differs from the source"):
            await coordinator[1].call(verify_bytes, request)


@pytest.mark.anyio
async def test_counts_too_many_are_noticed() -> None:
    async with start_workers(Options(), (1, 1)) as coordinator:
        target = await coordinator[1].allocate_memory(8)
        await coordinator[0].allocate_memory(8)
        await coordinator[0].connect([target])
        await coordinator[0].call(move_batches, MoveBatches(kind="write", nbytes=8, count=1, iterations=2))
        with pytest.raises(ChildFailedError, match="expected 1 counts in total, but 2 have arrived"):
            await coordinator[1].await_counts(1)


@pytest.mark.anyio
async def test_a_failing_process_is_one_error_and_leaves_none() -> None:
    with pytest.raises(ChildFailedError, match=r"BackendUnavailableError|UsageError"):
        async for _ in run("latency", Options(backend="libfabric", provider="pigeon")):
            pass
    assert not children(os.getpid())


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_killing_the_coordinator_ends_its_processes() -> None:
    command = [sys.executable, "-m", "aio_transfer", "bench", "latency", "--json", "--repeat", "500"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        while len(pids := children(process.pid)) < 2:
            assert process.poll() is None
        fds = [os.pidfd_open(int(pid)) for pid in pids]
        process.kill()
    for fd in fds:
        assert select.select([fd], [], [], 10)[0], "a measured process stayed"
        os.close(fd)
