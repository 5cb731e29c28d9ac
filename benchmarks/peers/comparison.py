"""Comparison: for every peer and path, two processes of the peer and two of aio-transfer, measured in turns."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import catalog
import environments
from environments import CannotRunError
from results import Case, ComparisonResult, compared, failed
from worker_pair import WorkerPair, stopped
from workloads import WORKLOADS, Workload

from aio_transfer.bench.report.statistics import Pair, Sample, iterations_for

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence

    from catalog import Peer

WARM_UP_ITERATIONS: Final = {"pages": 2, "write": 3, "latency": 20}
LOOPBACK: Final = Path("/proc/net/dev")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Options of a comparison.

    :param repeat: alternating pairs of samples
    :param sample_s: approximate duration of one sample, of either library
    :param minutes: start no new measurement after this time
    :param folder: of the virtual environments
    """

    peers: Sequence[Peer]
    paths: Sequence[str]
    repeat: int
    sample_s: float
    minutes: float
    folder: Path

    async def run(self) -> AsyncGenerator[ComparisonResult]:
        """Compare path by path; a peer that cannot run gives a result too."""
        until = time.monotonic() + self.minutes * 60
        for path in self.paths:
            async with WorkerPair(catalog.ours(path), path, sys.executable) as us:
                for peer in self.peers:
                    if path in peer.paths:
                        async for one in self._peer(peer, path, us, until):
                            yield one

    async def _peer(self, peer: Peer, path: str, us: WorkerPair, until: float) -> AsyncGenerator[ComparisonResult]:
        """Compare one workload after another; after one that fails, the peer's processes are started anew."""
        todo = list(cases(peer, path))
        while todo:
            is_started = False
            try:
                self._check_time(until)
                python = environments.python_of(peer, self.folder)
                async with WorkerPair(peer, path, python) as them:
                    while todo:
                        self._check_time(until)
                        is_started = True
                        yield await self._compare(todo[0], us, them)
                        todo.pop(0)
                        is_started = False
            except CannotRunError as error:
                failing = todo[:1] if is_started else todo
                todo = todo[len(failing) :]
                for case in failing:
                    yield failed(case, str(error))

    def _check_time(self, until: float) -> None:
        if time.monotonic() > until:
            raise CannotRunError(f"not run: {self.minutes:g} minutes were over")

    async def _compare(self, case: Case, us: WorkerPair, them: WorkerPair) -> ComparisonResult:
        if case.progress == "adaptive":
            return compared(case, *await self._pairs(case.work, us, them))
        # Started only for this: an engine in spin mode uses a whole core even when it is idle.
        async with WorkerPair(catalog.ours(case.path, case.progress), case.path, sys.executable) as spinning:
            return compared(case, *await self._pairs(case.work, spinning, them))

    async def _pairs(self, work: Workload, us: WorkerPair, them: WorkerPair) -> tuple[list[Pair], float]:
        """Verify both, then measure both in turns; the one that began comes second next time.

        :returns: the pairs, and the bytes that the peer sent over the loopback device per byte moved
        """
        with stopped(them):
            iterations = await self._verify_and_calibrate(work, us)
        their_iterations = await self._verify_and_calibrate(work, them)
        pairs: list[Pair] = []
        loopback: list[float] = []

        async def peer() -> Sample:
            before = loopback_nbytes()
            measured = await sample(work, them, their_iterations)
            loopback.append((loopback_nbytes() - before) / (work.moved * their_iterations))
            return measured

        for index in range(self.repeat):
            theirs = await peer() if index % 2 else None
            with stopped(them):
                ours = await sample(work, us, iterations)
            pairs.append(Pair(ours, theirs or await peer()))
        return pairs, min(loopback)  # other processes of this machine can only add to it

    async def _verify_and_calibrate(self, work: Workload, workers: WorkerPair) -> int:
        """Compare every byte of a first batch; returns how many iterations fill a sample."""
        await workers.both("prepare", work=asdict(work))
        await sample(work, workers, 1)
        if work.test != "latency":  # whose steps compare every answer
            await workers.check()
        warm_up = await sample(work, workers, WARM_UP_ITERATIONS[work.test])
        return iterations_for(self.sample_s, warm_up.mean_ns)


def cases(peer: Peer, path: str) -> Iterator[Case]:
    """Return the cases: aio-transfer spins only in round trips, and only beside libraries that spin too."""
    for work in WORKLOADS:
        yield Case(peer, path, work)
        if peer.polls and work.test == "latency":
            yield Case(peer, path, work, "spin")


async def sample(work: Workload, workers: WorkerPair, iterations: int) -> Sample:
    """Measure one sample."""
    steps = ("ping", "pong") if work.test == "latency" else ("move", "receive_batches")
    return await workers.sample(*steps, iterations)


def loopback_nbytes() -> int:
    """Return the bytes that the loopback device has carried so far."""
    lines = LOOPBACK.read_text().splitlines()
    return int(next(line for line in lines if line.strip().startswith("lo:")).split(":")[1].split()[0])
