"""Random schedules in bulk: one process per core, until a number or a time is reached."""

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

    from aio_transfer.testing.fuzz.operations.definitions import Move
    from aio_transfer.testing.spec import Spec

__all__ = ("LOOPS", "Chaos", "LoopName", "run_chaos")

LoopName: TypeAlias = Literal["asyncio", "uvloop", "trio"]
LOOPS: Final[tuple[LoopName, ...]] = ("asyncio", "uvloop", "trio")
_ENDLESS: Final = 1 << 20
_MOST_FAILURES: Final = 10
"""Per process: after so many there is enough to look into."""


@dataclass(slots=True)
class Chaos:
    """What came of it.

    :ivar schedules: how many were played
    :ivar seconds: of all processes together, without their start
    :ivar cpu_seconds: what they had of a processor meanwhile: on a busy machine it is less
    :ivar moves: how many there were of each kind
    :ivar failures: by seed, what was seen
    """

    schedules: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    moves: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)

    @property
    def per_second(self) -> float:
        """Schedules per second and core."""
        return self.schedules / self.seconds if self.seconds else 0.0

    @property
    def per_cpu_second(self) -> float:
        """The same if the core were all ours."""
        return self.schedules / self.cpu_seconds if self.cpu_seconds else 0.0

    def add(self, other: Chaos) -> None:
        """Take another process's part in."""
        self.schedules += other.schedules
        self.seconds += other.seconds
        self.cpu_seconds += other.cpu_seconds
        self.moves += other.moves
        self.failures |= other.failures

    def played(self, moves: Sequence[Move]) -> None:
        """Take note of one schedule."""
        self.schedules += 1
        self.moves.update(type(move).__name__ for move in moves)


def run_chaos(  # noqa: PLR0913 - all optional, all keywords
    spec: Spec,
    *,
    seed: int = 0,
    count: int | None = None,
    seconds: float | None = None,
    processes: int | None = None,
    loops: Sequence[LoopName] = ("uvloop",),
    report: Callable[[Chaos], object] = lambda _: None,
) -> Chaos:
    """Play random schedules, in new processes.

    :param seed: of everything
    :param count: how many in all; by default as many as ``seconds`` allow
    :param seconds: after which no other mesh is begun; by default as long as ``count`` takes
    :param processes: by default one per core
    :param loops: one process has the first, the next has the second, and so on around
    :param report: called with each process's part when it is done
    """
    if count is None and seconds is None:
        raise ValueError("how long? give count or seconds")
    number = processes or len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")  # a fork would take the event loop's files along
    results: SimpleQueue[Chaos] = context.SimpleQueue()
    shares = [None if count is None else len(range(index, count, number)) for index in range(number)]
    workers = [
        context.Process(target=_work, args=(results, spec, seed + index, share, seconds, loops[index % len(loops)]))
        for index, share in enumerate(shares)
    ]
    total = Chaos()
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


def _wait(workers: Sequence[Any], results: SimpleQueue[Chaos]) -> None:
    """Wait for a result, or for a process that died without one.

    :raises RuntimeError: one did
    """
    while results.empty():
        for worker in workers:
            if worker.exitcode:
                raise RuntimeError(f"{worker.name} ended with exit code {worker.exitcode}")
        time.sleep(0.05)


def _work(  # noqa: PLR0913, PLR0917 - a process's
    results: SimpleQueue[Chaos], spec: Spec, seed: int, count: int | None, seconds: float | None, loop: LoopName
) -> None:
    logging.disable(logging.WARNING)  # engines that are closed and killed have much to say
    gc.collect()
    gc.freeze()  # what there is now stays, and need not be looked at again and again
    options = {"use_uvloop": loop == "uvloop"} if loop != "trio" else {}
    backend = "trio" if loop == "trio" else "asyncio"
    results.put(anyio.run(_play, spec, seed, count, seconds, backend=backend, backend_options=options))


async def _play(spec: Spec, seed: int, count: int | None, seconds: float | None) -> Chaos:
    chaos = Chaos()
    began, cpu_began = time.monotonic(), time.process_time()
    for seeds in batches(seed, _ENDLESS if count is None else count):
        late = seconds is not None and time.monotonic() - began > seconds
        if late or len(chaos.failures) >= _MOST_FAILURES:
            break
        await _play_batch(spec, seeds, chaos)
    chaos.seconds = time.monotonic() - began
    chaos.cpu_seconds = time.process_time() - cpu_began
    return chaos


async def _play_batch(spec: Spec, seeds: Sequence[int], chaos: Chaos) -> None:
    """Play some that share a mesh; after a failure the others go on, on another."""
    left = list(seeds)
    while left and len(chaos.failures) < _MOST_FAILURES:
        try:
            await run_batch(spec, left, chaos.played)
        except ScheduleError as error:
            chaos.failures[error.seed] = str(error)
            chaos.schedules += 1
            left = list(itertools.islice(left, left.index(error.seed) + 1, None))
        else:
            return
