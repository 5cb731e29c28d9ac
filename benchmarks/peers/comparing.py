"""The comparison: for every peer and path two processes of its and two of ours, asked in turns."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import catalog
import environments
from environments import CannotRunError
from processes import Processes, stopped
from results import Case, Result, compared, result
from works import WORKS, Work

from aio_transfer.bench.report.statistics import Pair, Sample, rounds_for

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence

    from catalog import Peer

WARM_ROUNDS: Final = {"pages": 2, "write": 3, "latency": 20}
LOOPBACK: Final = Path("/proc/net/dev")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What is asked for.

    :param repeat: alternating pairs of samples
    :param sample_s: how long one sample lasts, about, on either side
    :param minutes: when to begin with nothing more
    :param folder: for the environments
    """

    peers: Sequence[Peer]
    paths: Sequence[str]
    repeat: int
    sample_s: float
    minutes: float
    folder: Path

    async def run(self) -> AsyncGenerator[Result]:
        """Compare path by path; a peer that cannot run is a result too."""
        until = time.monotonic() + self.minutes * 60
        for path in self.paths:
            async with Processes(catalog.ours(path), path, sys.executable) as us:
                for peer in self.peers:
                    if path in peer.paths:
                        async for one in self._peer(peer, path, us, until):
                            yield one

    async def _peer(self, peer: Peer, path: str, us: Processes, until: float) -> AsyncGenerator[Result]:
        """Compare work by work; one that fails ends the peer's processes, and the next one begins with new ones."""
        todo = list(cases(peer, path))
        while todo:
            alive = False
            try:
                self._check_time(until)
                python = environments.python_of(peer, self.folder)
                async with Processes(peer, path, python) as them:
                    while todo:
                        self._check_time(until)
                        alive = True
                        yield await self._compare(todo[0], us, them)
                        todo.pop(0)
                        alive = False
            except CannotRunError as error:
                failed = todo[:1] if alive else todo
                todo = todo[len(failed) :]
                for case in failed:
                    yield result(case, reason=str(error))

    def _check_time(self, until: float) -> None:
        if time.monotonic() > until:
            raise CannotRunError(f"not run: {self.minutes:g} minutes were over")

    async def _compare(self, case: Case, us: Processes, them: Processes) -> Result:
        if case.progress == "adaptive":
            return compared(case, *await self._pairs(case.work, us, them))
        # Not all the while: an engine in spin mode burns a core when it is idle too.
        async with Processes(catalog.ours(case.path, case.progress), case.path, sys.executable) as spinning:
            return compared(case, *await self._pairs(case.work, spinning, them))

    async def _pairs(self, work: Work, us: Processes, them: Processes) -> tuple[list[Pair], float]:
        """Prove both, then measure both in turns, whoever began last time coming second.

        :returns: the pairs, and how many bytes the peer sent over the loopback device per byte moved
        """
        with stopped(them):
            rounds = await self._prove(work, us)
        their_rounds = await self._prove(work, them)
        pairs: list[Pair] = []
        loopback: list[float] = []

        async def peer() -> Sample:
            before = loopback_nbytes()
            taken = await sample(work, them, their_rounds)
            loopback.append((loopback_nbytes() - before) / (work.moved * their_rounds))
            return taken

        for index in range(self.repeat):
            theirs = await peer() if index % 2 else None
            with stopped(them):
                ours = await sample(work, us, rounds)
            pairs.append(Pair(ours, theirs or await peer()))
        return pairs, min(loopback)  # others of this machine can only add to it

    async def _prove(self, work: Work, processes: Processes) -> int:
        """Compare every byte of a first batch; returns how many fill a sample."""
        await processes.both("begin", work=asdict(work))
        await sample(work, processes, 1)
        if work.test != "latency":  # where every answer is compared with what was sent
            await processes.check()
        warm = await sample(work, processes, WARM_ROUNDS[work.test])
        return rounds_for(self.sample_s, warm.round_ns)


def cases(peer: Peer, path: str) -> Iterator[Case]:
    """Return what to compare: we spin only in round trips, against those who spin as well."""
    for work in WORKS:
        yield Case(peer, path, work)
        if peer.polls and work.test == "latency":
            yield Case(peer, path, work, "spin")


async def sample(work: Work, processes: Processes, rounds: int) -> Sample:
    """Measure some rounds."""
    steps = ("ping", "pong") if work.test == "latency" else ("move", "attend")
    return await processes.sample(*steps, rounds)


def loopback_nbytes() -> int:
    """Return what the loopback device has carried so far."""
    lines = LOOPBACK.read_text().splitlines()
    return int(next(line for line in lines if line.strip().startswith("lo:")).split(":")[1].split()[0])
