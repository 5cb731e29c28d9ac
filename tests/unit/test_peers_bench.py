"""The comparison with other libraries, without any of them: what is compared, how it is checked, shown."""

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
import comparing
import environments
import showing
import works
from adapters.base import Adapter, Start, TwoSided
from environments import CannotRunError
from results import Case, Result, compared, result
from worker import Worker
from works import WORKS, Work

if TYPE_CHECKING:
    from collections.abc import Iterator

OURS = Sample(elapsed_ns=4000, rounds_ns=[1000, 3000], cpu_ns=8000)
THEIRS = Sample(elapsed_ns=8000, rounds_ns=[2000, 6000], cpu_ns=4000)
KEYS = ["test", "backend", "provider", "nbytes", "count", "peer", "version"]
NIXL, ASYNCIO = catalog.select(["nixl"])[0], catalog.select(["asyncio"])[0]
PAGES, WORD = WORKS[0], WORKS[-1]
SMALL = Work("pages", 64, 8, 2)


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


def test_we_spin_only_against_those_who_spin() -> None:
    assert [case.progress for case in comparing.cases(NIXL, "shm")] == ["adaptive"] * len(WORKS) + ["spin"]
    assert [case.work for case in comparing.cases(ASYNCIO, "tcp")] == list(WORKS)


def test_environments_change_with_what_is_in_them() -> None:
    names = {environments.name_of(peer) for peer in catalog.PEERS if peer.requirements}
    assert len(names) == len({tuple(peer.requirements) for peer in catalog.PEERS if peer.requirements})
    assert environments.python_of(ASYNCIO, Path("/nowhere")) == sys.executable


def test_what_pip_says_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert {"--no-deps", *NIXL.requirements} <= set(command)
        return subprocess.CompletedProcess(
            command, 1, stderr="Looking\nERROR: No matching distribution\n\nnotice: old\n"
        )

    monkeypatch.setattr(environments.venv, "create", lambda *_, **__: None)
    monkeypatch.setattr(environments.subprocess, "run", fail)
    with pytest.raises(CannotRunError, match=r"^ERROR: No matching distribution$"):
        environments.python_of(NIXL, tmp_path)
    assert not list(tmp_path.rglob(environments.MADE))


def test_bandwidth_line() -> None:
    line = compared(Case(NIXL, "shm", PAGES), [Pair(OURS, THEIRS)] * 5, 0.0).as_dict()
    assert list(line)[: len(KEYS)] == KEYS
    assert [line[key] for key in KEYS] == ["pages", "shm", "memfd", 4096, 4096, "nixl", "1.5.1"]
    assert (line["ratio"], line["ratio_min"], line["samples"], line["reason"]) == (2.0, 2.0, 5, None)
    assert line["gb_per_s"] == pytest.approx(2 * line["peer_gb_per_s"], rel=1e-3)  # type: ignore[operator]
    assert line["cpu_s_per_gib"] == pytest.approx(2 * line["peer_cpu_s_per_gib"], rel=1e-3)  # type: ignore[operator]
    json.dumps(line, allow_nan=False)


def test_round_trip_line() -> None:
    line = compared(Case(NIXL, "tcp", WORD, "spin"), [Pair(OURS, THEIRS)] * 5, 9.0).as_dict()
    assert (line["gb_per_s"], line["peer_gb_per_s"], line["cpu_s_per_gib"]) == (None, None, None)
    assert (line["p50_us"], line["peer_p50_us"], line["ratio"], line["progress"]) == (3.0, 6.0, 2.0, "spin")
    assert (line["cpu_us_per_round"], line["peer_cpu_us_per_round"]) == (4.0, 2.0)


def test_a_peer_that_does_not_use_tcp_is_found_out() -> None:
    with pytest.raises(CannotRunError, match=r"only 0\.02 bytes over TCP"):
        compared(Case(NIXL, "tcp", PAGES), [Pair(OURS, THEIRS)], 0.02)


def test_loopback_counts() -> None:
    before = comparing.loopback_nbytes()
    assert 0 <= before <= comparing.loopback_nbytes()


class FakeProcesses:
    """Answers at once, and writes down what it was asked."""

    def __init__(self, name: str, log: list[str], taken: Sample) -> None:
        self.name, self.log, self.taken = name, log, taken

    async def both(self, do: str, **_: Any) -> None:
        self.log.append(f"{self.name} {do}")

    async def check(self) -> None:
        self.log.append(f"{self.name} check")

    async def sample(self, active: str, passive: str, rounds: int) -> Sample:
        self.log.append(f"{self.name} {active}/{passive} {rounds}")
        return self.taken

    def stop(self) -> None:
        self.log.append("stop")

    def go_on(self) -> None:
        self.log.append("go on")


def comparison(**changed: Any) -> comparing.Comparison:
    plain = {
        "peers": [NIXL],
        "paths": ["shm"],
        "repeat": 3,
        "sample_s": 8e-6,
        "minutes": 1.0,
        "folder": Path("/nowhere"),
    }
    return comparing.Comparison(**plain | changed)


def test_both_are_proven_then_measured_in_turns_while_the_other_sleeps() -> None:
    log: list[str] = []
    us, them = FakeProcesses("us", log, OURS), FakeProcesses("them", log, THEIRS)
    pairs, _ = asyncio.run(comparison()._pairs(PAGES, us, them))
    proof = ["begin", "move/attend 1", "check", "move/attend 2"]
    ours, theirs = ["stop", "us move/attend 4", "go on"], ["them move/attend 2"]
    assert log == [
        *["stop", *(f"us {step}" for step in proof), "go on"],
        *(f"them {step}" for step in proof),
        *[*ours, *theirs, *theirs, *ours, *ours, *theirs],
    ]
    assert pairs == [Pair(OURS, THEIRS)] * 3


def test_when_time_is_over_the_rest_is_said_not_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Started(FakeProcesses):
        def __init__(self, *_: Any) -> None:
            super().__init__("us", [], OURS)

        async def __aenter__(self) -> Self:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(comparing, "Processes", Started)

    async def run() -> list[Result]:
        return [one async for one in comparison(minutes=-1).run()]

    found = asyncio.run(run())
    assert [one.test for one in found] == [case.work.test for case in comparing.cases(NIXL, "shm")]
    assert {(one.ratio, one.reason) for one in found} == {(None, "not run: -1 minutes were over")}


class Mapped(Adapter):
    """A library that copies: its target is a place in this process."""

    wrong = False

    async def open(self) -> str:
        self.memory = self.own_memory()
        return ""

    async def join(self, other: str) -> None:
        raise NotImplementedError

    async def submit(self) -> None:
        self.copy_into(self.there)
        if self.wrong:
            self.there[5] ^= 1

    async def finish(self, batch: Any) -> None:
        assert batch is None

    async def attend(self, rounds: int) -> None:
        raise NotImplementedError

    async def ping(self, value: int) -> int:
        return value + self.wrong

    async def pong(self) -> None:
        raise NotImplementedError


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Mapped, Worker, Worker]]:
    for module in ("adapters.base", "worker"):
        monkeypatch.setattr(f"{module}.REGION_NBYTES", SMALL.moved)
    adapters = [Mapped(Start(role, "shm", "/nowhere", {})) for role in range(2)]
    source, target = (Worker(adapter) for adapter in adapters)

    async def begin() -> None:
        for worker in (source, target):
            await worker.open()
        adapters[0].there = adapters[1].memory
        for worker in (source, target):
            await worker.begin(asdict(SMALL))

    asyncio.run(begin())
    return adapters[0], source, target


def test_bytes_are_compared_at_the_target(ends: tuple[Mapped, Worker, Worker]) -> None:
    adapter, source, target = ends
    with pytest.raises(AssertionError, match="what arrived is not what was sent"):
        asyncio.run(target.check())
    moved = asyncio.run(source.move(3, []))
    assert len(moved["rounds_ns"]) == 3
    asyncio.run(target.check())
    adapter.wrong = True
    asyncio.run(source.move(1, []))
    with pytest.raises(AssertionError, match="what arrived is not what was sent"):
        asyncio.run(target.check())


def test_words_are_compared_when_they_come_back(ends: tuple[Mapped, Worker, Worker]) -> None:
    adapter, source, _ = ends
    assert len(asyncio.run(source.ping(5, []))["rounds_ns"]) == 5
    adapter.wrong = True
    with pytest.raises(AssertionError, match="came back"):
        asyncio.run(source.ping(1, []))


class Queue(TwoSided):
    """A library that sends and receives, to and from queues."""

    def __init__(self, start: Start, out: asyncio.Queue[Any], back: asyncio.Queue[Any]) -> None:
        super().__init__(start)
        self.out, self.back = out, back

    async def open(self) -> str:
        raise NotImplementedError

    async def join(self, other: str) -> None:
        raise NotImplementedError

    async def send(self, data: np.ndarray[Any, Any]) -> None:
        await self.out.put(data.copy())

    async def receive(self, into: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        into[:] = await self.back.get()
        return into


@pytest.mark.parametrize("work", [SMALL, Work("write", 512, depth=2)])
def test_messages_are_packed_unpacked_and_answered(work: Work) -> None:
    async def run() -> tuple[Queue, Queue]:
        there: asyncio.Queue[Any] = asyncio.Queue()
        back: asyncio.Queue[Any] = asyncio.Queue()
        source = Queue(Start(0, "shm", "", {}), there, back)
        target = Queue(Start(1, "shm", "", {}), back, there)
        source.memory, target.memory = works.fill(512), np.zeros(512, np.uint8)
        for end in (source, target):
            end.begin(work)
        attending = asyncio.ensure_future(target.attend(2))
        batches = [await source.submit() for _ in range(2)]
        for batch in batches:
            await source.finish(batch)
        await attending
        return source, target

    source, target = asyncio.run(run())
    sent, arrived = source.pages(source.memory)[source.sources], target.pages(target.memory)[target.targets]
    assert (arrived == sent).all()


def test_fewer_bytes_are_the_beginning_of_more() -> None:
    assert (works.fill(64) == works.fill(4096)[:64]).all()


@pytest.fixture
def found() -> list[Result]:
    return [
        compared(Case(NIXL, "shm", PAGES), [Pair(OURS, THEIRS)], 0.0),
        compared(Case(ASYNCIO, "shm", PAGES), [Pair(OURS, OURS)], 0.0),
        compared(Case(NIXL, "shm", WORD, "spin"), [Pair(OURS, THEIRS)], 0.0),
        result(Case(ASYNCIO, "tcp", PAGES), reason="no such wheel"),
        result(Case(ASYNCIO, "tcp", WORD), reason="no such wheel"),
    ]


def test_tables(found: list[Result]) -> None:
    text = io.StringIO()
    shm, tcp = showing.tables(found)
    Console(file=text, width=200).print(shm)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.getvalue().splitlines() if "|" in line]
    assert rows[0] == ["work", "ours", "nixl", "asyncio"]
    assert rows[2][0] == "4096 x 4 KiB"
    assert rows[2][2].startswith("2 (2 … 2); ")
    assert rows[3] == ["8 B round trip, we spin", "3 µs", "2 (2 … 2); 6 µs", ""]
    assert [column.header for column in tcp.columns] == ["work", "ours"]


def test_what_did_not_run_is_said_once_with_its_reason(found: list[Result]) -> None:
    assert showing.reasons(found) == "asyncio, tcp, 4096 x 4 KiB, 8 B round trip: no such wheel"
    assert showing.cell(found[3]) == "—"
    assert showing.progress(found[3]) == "tcp asyncio 4096 x 4 KiB: no such wheel"
    assert json.loads(showing.line(found[4]))["reason"] == "no such wheel"


@pytest.mark.parametrize("arguments", [["--peer", "zmq"], ["--path", "pigeon"], ["--repeat", "1"], ["--sample", "2"]])
def test_asking_wrongly_is_2(arguments: list[str]) -> None:
    folder = Path(__file__).parents[2] / "benchmarks" / "peers"
    done = subprocess.run([sys.executable, folder, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
