"""The comparison with other libraries, without any of them: cases, verification, results and tables."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pytest
from rich.console import Console

from aio_transfer.bench.report.statistics import Pair, Sample

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "peers"))

import catalog
import comparison
import environments
import tables
import workloads
from adapters.base import Adapter, AdapterOptions, MessagingAdapter
from environments import CannotRunError
from results import Case, ComparisonResult, compared, failed
from worker import Worker
from workloads import WORKLOADS, Workload

if TYPE_CHECKING:
    from collections.abc import Iterator

OURS = Sample(elapsed_ns=4000, iterations_ns=[1000, 3000], cpu_ns=8000)
THEIRS = Sample(elapsed_ns=8000, iterations_ns=[2000, 6000], cpu_ns=4000)
KEYS = ["test", "backend", "provider", "nbytes", "count", "peer", "version"]
NIXL, ASYNCIO = catalog.select(["nixl"])[0], catalog.select(["asyncio"])[0]
PAGES, ROUND_TRIP = WORKLOADS[0], WORKLOADS[-1]
SMALL = Workload("pages", 64, 8, 2)


def test_every_library_is_pinned_and_has_a_path() -> None:
    assert len({peer.name for peer in catalog.PEERS}) == len(catalog.PEERS)
    for peer in catalog.PEERS:
        assert all("==" in requirement for requirement in peer.requirements)
        assert peer.paths
        assert set(peer.paths) <= set(catalog.PATHS)
    assert (NIXL.version, ASYNCIO.version) == ("1.5.1", "")


def test_peers_are_chosen_by_name() -> None:
    assert list(catalog.select([])) == list(catalog.PEERS)
    assert [peer.name for peer in catalog.select(["pyzmq", "nixl"])] == ["nixl", "pyzmq"]
    with pytest.raises(ValueError, match="zmq: none of nixl"):
        catalog.select(["zmq"])


def test_spin_mode_only_beside_libraries_that_spin() -> None:
    assert [case.progress for case in comparison.cases(NIXL, "shm")] == ["adaptive"] * len(WORKLOADS) + ["spin"]
    assert [case.work for case in comparison.cases(ASYNCIO, "tcp")] == list(WORKLOADS)


def test_environments_change_with_what_is_in_them() -> None:
    names = {environments.name_of(peer) for peer in catalog.PEERS if peer.requirements}
    assert len(names) == len({tuple(peer.requirements) for peer in catalog.PEERS if peer.requirements})
    assert environments.python_of(ASYNCIO, Path("/nowhere")) == sys.executable


def test_the_error_of_pip_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert {"--no-deps", *NIXL.requirements} <= set(command)
        return subprocess.CompletedProcess(
            command, 1, stderr="Looking\nERROR: No matching distribution\n\nnotice: old\n"
        )

    monkeypatch.setattr(environments.venv, "create", lambda *_, **__: None)
    monkeypatch.setattr(environments.subprocess, "run", fail)
    with pytest.raises(CannotRunError, match=r"^ERROR: No matching distribution$"):
        environments.python_of(NIXL, tmp_path)
    assert not list(tmp_path.rglob(environments.INSTALLED))


def test_bandwidth_line() -> None:
    line = compared(Case(NIXL, "shm", PAGES), [Pair(OURS, THEIRS)] * 5, 0.0).as_dict()
    assert list(line)[: len(KEYS)] == KEYS
    assert [line[key] for key in KEYS] == ["pages", "shm", "memfd", 4096, 4096, "nixl", "1.5.1"]
    assert (line["ratio"], line["ratio_min"], line["samples"], line["reason"]) == (2.0, 2.0, 5, None)
    assert line["gb_per_s"] == pytest.approx(2 * line["peer_gb_per_s"], rel=1e-3)  # type: ignore[operator]
    assert line["cpu_s_per_gib"] == pytest.approx(2 * line["peer_cpu_s_per_gib"], rel=1e-3)  # type: ignore[operator]
    json.dumps(line, allow_nan=False)


def test_round_trip_line() -> None:
    line = compared(Case(NIXL, "tcp", ROUND_TRIP, "spin"), [Pair(OURS, THEIRS)] * 5, 9.0).as_dict()
    assert (line["gb_per_s"], line["peer_gb_per_s"], line["cpu_s_per_gib"]) == (None, None, None)
    assert (line["p50_us"], line["peer_p50_us"], line["ratio"], line["progress"]) == (3.0, 6.0, 2.0, "spin")
    assert (line["cpu_us_per_iteration"], line["peer_cpu_us_per_iteration"]) == (4.0, 2.0)


def test_a_peer_that_does_not_use_tcp_is_detected() -> None:
    with pytest.raises(CannotRunError, match=r"only 0\.02 bytes over TCP"):
        compared(Case(NIXL, "tcp", PAGES), [Pair(OURS, THEIRS)], 0.02)


def test_loopback_counts() -> None:
    before = comparison.loopback_nbytes()
    assert 0 <= before <= comparison.loopback_nbytes()


class FakeWorkerPair:
    """Answers at once, and records the requests."""

    def __init__(self, name: str, log: list[str], result: Sample) -> None:
        self.name, self.log, self.result = name, log, result

    async def both(self, name: str, **_: Any) -> None:
        self.log.append(f"{self.name} {name}")

    async def check(self) -> None:
        self.log.append(f"{self.name} check")

    async def sample(self, active: str, passive: str, iterations: int) -> Sample:
        self.log.append(f"{self.name} {active}/{passive} {iterations}")
        return self.result

    def stop(self) -> None:
        self.log.append("stop")

    def resume(self) -> None:
        self.log.append("resume")


def make_comparison(**changed: Any) -> comparison.Comparison:
    plain = {
        "peers": [NIXL],
        "paths": ["shm"],
        "repeat": 3,
        "sample_s": 8e-6,
        "minutes": 1.0,
        "folder": Path("/nowhere"),
    }
    return comparison.Comparison(**plain | changed)


def test_both_are_verified_then_measured_in_turns_while_the_other_is_stopped() -> None:
    log: list[str] = []
    us, them = FakeWorkerPair("us", log, OURS), FakeWorkerPair("them", log, THEIRS)
    pairs, _ = asyncio.run(make_comparison()._pairs(PAGES, us, them))
    steps = ["prepare", "move/receive_batches 1", "check", "move/receive_batches 2"]
    ours, theirs = ["stop", "us move/receive_batches 4", "resume"], ["them move/receive_batches 2"]
    assert log == [
        *["stop", *(f"us {step}" for step in steps), "resume"],
        *(f"them {step}" for step in steps),
        *[*ours, *theirs, *theirs, *ours, *ours, *theirs],
    ]
    assert pairs == [Pair(OURS, THEIRS)] * 3


def test_when_time_is_over_the_rest_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Started(FakeWorkerPair):
        def __init__(self, *_: Any) -> None:
            super().__init__("us", [], OURS)

        async def __aenter__(self) -> Self:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(comparison, "WorkerPair", Started)

    async def run() -> list[ComparisonResult]:
        return [one async for one in make_comparison(minutes=-1).run()]

    found = asyncio.run(run())
    assert [one.test for one in found] == [case.work.test for case in comparison.cases(NIXL, "shm")]
    assert {(one.ratio, one.reason) for one in found} == {(None, "not run: -1 minutes were over")}


class Mapped(Adapter):
    """A library that copies, to a target in this process."""

    wrong = False

    async def open(self) -> str:
        self.memory = self.allocate()
        return ""

    async def connect(self, other: str) -> None:
        raise NotImplementedError

    async def submit(self) -> None:
        self.copy_into(self.target_memory)
        if self.wrong:
            self.target_memory[5] ^= 1

    async def finish(self, batch: Any) -> None:
        assert batch is None

    async def receive_batches(self, iterations: int) -> None:
        raise NotImplementedError

    async def ping(self, value: int) -> int:
        return value + self.wrong

    async def pong(self) -> None:
        raise NotImplementedError


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Mapped, Worker, Worker]]:
    for module in ("adapters.base", "worker"):
        monkeypatch.setattr(f"{module}.REGION_NBYTES", SMALL.moved)
    adapters = [Mapped(AdapterOptions(role, "shm", "/nowhere", {})) for role in range(2)]
    source, target = (Worker(adapter) for adapter in adapters)

    async def prepare() -> None:
        for worker in (source, target):
            await worker.open()
        adapters[0].target_memory = adapters[1].memory
        for worker in (source, target):
            await worker.prepare(asdict(SMALL))

    asyncio.run(prepare())
    return adapters[0], source, target


def test_bytes_are_compared_at_the_target(ends: tuple[Mapped, Worker, Worker]) -> None:
    adapter, source, target = ends
    with pytest.raises(AssertionError, match="the target differs from the source"):
        asyncio.run(target.check())
    moved = asyncio.run(source.move(3, []))
    assert len(moved["iterations_ns"]) == 3
    asyncio.run(target.check())
    adapter.wrong = True
    asyncio.run(source.move(1, []))
    with pytest.raises(AssertionError, match="the target differs from the source"):
        asyncio.run(target.check())


def test_words_are_compared_when_they_come_back(ends: tuple[Mapped, Worker, Worker]) -> None:
    adapter, source, _ = ends
    assert len(asyncio.run(source.ping(5, []))["iterations_ns"]) == 5
    adapter.wrong = True
    with pytest.raises(AssertionError, match="came back"):
        asyncio.run(source.ping(1, []))


class Queue(MessagingAdapter):
    """A library that sends and receives, to and from queues."""

    def __init__(self, start: AdapterOptions, out: asyncio.Queue[Any], back: asyncio.Queue[Any]) -> None:
        super().__init__(start)
        self.out, self.back = out, back

    async def open(self) -> str:
        raise NotImplementedError

    async def connect(self, other: str) -> None:
        raise NotImplementedError

    async def send(self, data: np.ndarray[Any, Any]) -> None:
        await self.out.put(data.copy())

    async def receive(self, into: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        into[:] = await self.back.get()
        return into


@pytest.mark.parametrize("work", [SMALL, Workload("write", 512, depth=2)])
def test_messages_are_packed_unpacked_and_answered(work: Workload) -> None:
    async def run() -> tuple[Queue, Queue]:
        there: asyncio.Queue[Any] = asyncio.Queue()
        back: asyncio.Queue[Any] = asyncio.Queue()
        source = Queue(AdapterOptions(0, "shm", "", {}), there, back)
        target = Queue(AdapterOptions(1, "shm", "", {}), back, there)
        source.memory, target.memory = workloads.random_bytes(512), np.zeros(512, np.uint8)
        for end in (source, target):
            end.prepare(work)
        receiving = asyncio.ensure_future(target.receive_batches(2))
        batches = [await source.submit() for _ in range(2)]
        for batch in batches:
            await source.finish(batch)
        await receiving
        return source, target

    source, target = asyncio.run(run())
    sent, arrived = source.pages(source.memory)[source.sources], target.pages(target.memory)[target.targets]
    assert (arrived == sent).all()


def test_fewer_bytes_are_the_beginning_of_more() -> None:
    assert (workloads.random_bytes(64) == workloads.random_bytes(4096)[:64]).all()


@pytest.fixture
def found() -> list[ComparisonResult]:
    return [
        compared(Case(NIXL, "shm", PAGES), [Pair(OURS, THEIRS)], 0.0),
        compared(Case(ASYNCIO, "shm", PAGES), [Pair(OURS, OURS)], 0.0),
        compared(Case(NIXL, "shm", ROUND_TRIP, "spin"), [Pair(OURS, THEIRS)], 0.0),
        failed(Case(ASYNCIO, "tcp", PAGES), "no such wheel"),
        failed(Case(ASYNCIO, "tcp", ROUND_TRIP), "no such wheel"),
    ]


def test_tables(found: list[ComparisonResult]) -> None:
    text = io.StringIO()
    shm, tcp = tables.markdown_tables(found)
    Console(file=text, width=200).print(shm)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.getvalue().splitlines() if "|" in line]
    assert rows[0] == ["work", "ours", "nixl", "asyncio"]
    assert rows[2][0] == "4096 x 4 KiB"
    assert rows[2][2].startswith("2 (2 … 2); ")
    assert rows[3] == ["8 B round trip, spinning", "3 µs", "2 (2 … 2); 6 µs", ""]
    assert [column.header for column in tcp.columns] == ["work", "ours"]


def test_a_reason_is_shown_once_for_all_that_did_not_run(found: list[ComparisonResult]) -> None:
    assert tables.reasons(found) == "asyncio, tcp, 4096 x 4 KiB, 8 B round trip: no such wheel"
    assert tables.cell(found[3]) == "—"
    assert tables.progress(found[3]) == "tcp asyncio 4096 x 4 KiB: no such wheel"
    assert json.loads(tables.json_line(found[4]))["reason"] == "no such wheel"


@pytest.mark.parametrize("arguments", [["--peer", "zmq"], ["--path", "pigeon"], ["--repeat", "1"], ["--sample", "2"]])
def test_usage_errors_exit_with_2(arguments: list[str]) -> None:
    folder = Path(__file__).parents[2] / "benchmarks" / "peers"
    done = subprocess.run([sys.executable, folder, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
