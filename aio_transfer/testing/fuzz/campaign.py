"""Campaign: random schedules in bulk, one process per core, until a number of schedules or a time is reached."""

from __future__ import annotations

import gc
import itertools
import logging
import multiprocessing
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import anyio

from aio_transfer.testing.fuzz.schedule import ScheduleError, batches, run_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.queues import SimpleQueue

    from aio_transfer.testing.fuzz.operations.definitions import Operation
    from aio_transfer.testing.spec import Spec

__all__ = ("LOOPS", "Campaign", "CampaignResult", "LoopName", "run_campaign")

LoopName: TypeAlias = Literal["asyncio", "uvloop", "trio"]
LOOPS: Final[tuple[LoopName, ...]] = ("asyncio", "uvloop", "trio")
_ENDLESS: Final = 1 << 20
_MOST_FAILURES: Final = 10
"""Failures per process after which it ends: these are enough to look into."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """Settings of a campaign.

    :param seed: of all randomness
    :param count: how many schedules in all; by default as many as ``seconds`` allow
    :param seconds: after this time no other mesh is opened; by default there is no limit
    :param processes: by default one per core
    :param loops: event loops; the first process has the first, the next the second, and so on in turn
    """

    spec: Spec
    seed: int = 0
    count: int | None = None
    seconds: float | None = None
    processes: int | None = None
    loops: Sequence[LoopName] = ("uvloop",)

    def shares(self) -> list[_Share]:
        """Return the share of each process."""
        number = self.processes or len(os.sched_getaffinity(0))
        return [
            _Share(
                spec=self.spec,
                seed=self.seed + index,
                count=None if self.count is None else len(range(index, self.count, number)),
                seconds=self.seconds,
                loop=self.loops[index % len(self.loops)],
            )
            for index in range(number)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Share:
    """The part of a campaign that one process runs."""

    spec: Spec
    seed: int
    count: int | None
    seconds: float | None
    loop: LoopName


@dataclass(slots=True)
class CampaignResult:
    """Totals of a campaign, or of one of its processes.

    :ivar schedules: how many schedules were performed
    :ivar seconds: the sum over all processes, without their start
    :ivar cpu_seconds: the processor time of all processes, which is less on a busy machine
    :ivar operations: how many operations there were of each kind
    :ivar failures: by seed, what was seen
    """

    schedules: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    operations: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)

    @property
    def per_second(self) -> float:
        """Schedules per second and core."""
        return self.schedules / self.seconds if self.seconds else 0.0

    @property
    def per_cpu_second(self) -> float:
        """Schedules per second of processor time."""
        return self.schedules / self.cpu_seconds if self.cpu_seconds else 0.0

    def add(self, other: CampaignResult) -> None:
        """Add the result of another process."""
        self.schedules += other.schedules
        self.seconds += other.seconds
        self.cpu_seconds += other.cpu_seconds
        self.operations += other.operations
        self.failures |= other.failures

    def add_schedule(self, operations: Sequence[Operation]) -> None:
        """Count one schedule that succeeded."""
        self.schedules += 1
        self.operations.update(type(operation).__name__ for operation in operations)


def run_campaign(campaign: Campaign, *, report: Callable[[CampaignResult], object] = lambda _: None) -> CampaignResult:
    """Run random schedules in new processes.

    :param report: called with the result of each process when it is done
    :raises ValueError: neither a count nor a time is given
    """
    if campaign.count is None and campaign.seconds is None:
        raise ValueError("a campaign needs a count or a number of seconds")
    context = multiprocessing.get_context("spawn")  # a fork would inherit the files of the event loop
    results: SimpleQueue[CampaignResult] = context.SimpleQueue()
    workers = [context.Process(target=_run_worker, args=(results, share)) for share in campaign.shares()]
    total = CampaignResult()
    for worker in workers:
        worker.start()
    for _ in workers:
        _wait(workers, results)
        part = results.get()
        total.add(part)
        report(part)
    for worker in workers:
        worker.join()
    return total


def _wait(workers: Sequence[Any], results: SimpleQueue[CampaignResult]) -> None:
    """Wait for a result, or for a process that ended without one.

    :raises RuntimeError: a process did
    """
    while results.empty():
        for worker in workers:
            if worker.exitcode:
                raise RuntimeError(f"{worker.name} ended with exit code {worker.exitcode}")
        time.sleep(0.05)  # a queue and exit codes have no common event to wait for


def _run_worker(results: SimpleQueue[CampaignResult], share: _Share) -> None:
    logging.disable(logging.WARNING)  # engines that are closed and killed log a lot
    gc.collect()
    gc.freeze()  # what exists now stays, so the collector need not scan it again and again
    options = {"use_uvloop": share.loop == "uvloop"} if share.loop != "trio" else {}
    backend = "trio" if share.loop == "trio" else "asyncio"
    results.put(anyio.run(_run_share, share, backend=backend, backend_options=options))


async def _run_share(share: _Share) -> CampaignResult:
    result = CampaignResult()
    began, cpu_began = time.monotonic(), time.process_time()
    for seeds in batches(share.seed, _ENDLESS if share.count is None else share.count):
        late = share.seconds is not None and time.monotonic() - began > share.seconds
        if late or len(result.failures) >= _MOST_FAILURES:
            break
        await _run_shared_mesh(share.spec, seeds, result)
    result.seconds = time.monotonic() - began
    result.cpu_seconds = time.process_time() - cpu_began
    return result


async def _run_shared_mesh(spec: Spec, seeds: Sequence[int], result: CampaignResult) -> None:
    """Run schedules that share a mesh; after a failure the rest run on a new mesh."""
    left = list(seeds)
    while left and len(result.failures) < _MOST_FAILURES:
        try:
            await run_batch(spec, left, result.add_schedule)
        except ScheduleError as error:
            result.failures[error.seed] = str(error)
            result.schedules += 1
            left = list(itertools.islice(left, left.index(error.seed) + 1, None))
        else:
            return
