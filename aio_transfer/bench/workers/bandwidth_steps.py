"""Steps that move batches of chunks: through the engine, and by the raw loop beside it."""

from __future__ import annotations

import mmap
import os
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from aio_transfer.bench.report.statistics import MAX_ROUNDS, Sample
from aio_transfer.bench.workers.worker_state import Nothing, Offered, Place, cpu_ns, fill
from aio_transfer.errors import AioTransferError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aio_transfer import PreparedScatter, Transfer

__all__ = ("Check", "Move", "Moved", "check", "chunks", "move", "move_raw", "places")

SEED: Final = 20251
KINDS: Final = ("write", "pages", "scatter")


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """Move some batches.

    :param kind: ``"write"`` (one chunk), ``"pages"`` (scattered chunks of one region to another) or ``"scatter"`` (one
        chunk to each target)
    :param rounds: batches
    :param depth: batches under way at once
    """

    kind: str
    nbytes: int
    count: int
    rounds: int = 1
    depth: int = 1


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """How that went.

    :param submits_ns: per batch, what the submit itself took of the loop's thread
    :param wakes: how often the loop's thread went to sleep meanwhile
    """

    elapsed_ns: int
    rounds_ns: list[int]
    cpu_ns: int
    submits_ns: list[int] = []
    wakes: int = 0

    def sample(self) -> Sample:
        """Return it without what is only of interest here."""
        return Sample(elapsed_ns=self.elapsed_ns, rounds_ns=self.rounds_ns, cpu_ns=self.cpu_ns)


def chunks(count: int, end: str) -> NDArray[np.int64]:
    """Return in which order chunks lie at one end: both processes know, and neighbours here are none there."""
    return np.random.default_rng([SEED, end == "source"]).permutation(count)


async def move(place: Place, ask: Move) -> Moved:
    """Perform :class:`Move` through the engine."""
    submit = await _submitter(place, ask)
    rounds: list[int] = []
    submits: list[int] = []
    under_way: deque[tuple[Transfer, int]] = deque()
    now = time.perf_counter_ns

    async def retire() -> None:
        transfer, since = under_way.popleft()
        await transfer
        rounds.append(now() - since)

    before, slept, begin = cpu_ns(place.pids), _sleeps(), now()
    for _ in range(ask.rounds):
        if len(under_way) == ask.depth:
            await retire()
        since = now()
        under_way.append((submit(), since))
        submits.append(now() - since)
    while under_way:
        await retire()
    elapsed = now() - begin
    return Moved(
        elapsed_ns=elapsed,
        rounds_ns=rounds,
        cpu_ns=cpu_ns(place.pids) - before,
        submits_ns=submits,
        wakes=_sleeps() - slept,
    )


async def _submitter(place: Place, ask: Move) -> Callable[[], Transfer]:
    """Return what submits one batch; everything that a caller names anew for each is named anew."""
    engine, region = place.engines[0], place.held[0].region
    remote = place.remotes[0]
    nbytes = ask.nbytes
    if ask.kind == "write":
        return lambda: engine.submit_write(region[0:nbytes], remote[0:nbytes])
    if ask.kind == "pages":
        ours, theirs = places(ask)
        return lambda: engine.submit_write_pages(region.pages(ours, nbytes), remote.pages(theirs, nbytes))
    if ask.kind == "scatter":
        prepared = await _prepared(place)
        begins, ends, lengths = np.arange(ask.count) * nbytes, np.zeros(ask.count, int), np.full(ask.count, nbytes)
        return lambda: prepared.submit_scatter(begins, ends, lengths)
    raise UsageError(f"{ask.kind!r} is none of {', '.join(KINDS)}")


async def _prepared(place: Place) -> PreparedScatter:
    """Return what scatters to every target; it is made once."""
    if "scatter" not in place.kept:
        group = await place.engines[0].group([remote.peer for remote in place.remotes])
        place.kept["scatter"] = await group.prepare_scatter(place.held[0].region, place.remotes)
    prepared: PreparedScatter = place.kept["scatter"]
    return prepared


async def move_raw(place: Place, ask: Move) -> Moved:
    """Perform :class:`Move` by a loop in C++ that knows nothing of us; waits for no event loop and counts nothing."""
    from aio_transfer.bench.baselines import _baseline

    sources, targets = _addresses(place, ask)
    before = cpu_ns(place.pids)
    if place.targets[0].fd < 0:
        rounds = _baseline.copy_process(place.targets[0].pid, sources, targets, ask.nbytes, ask.rounds)
    else:
        rounds = _baseline.copy(sources, targets, ask.nbytes, ask.rounds)
    return Moved(elapsed_ns=sum(rounds), rounds_ns=rounds, cpu_ns=cpu_ns(place.pids) - before)


def places(ask: Move) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which chunk of the source, and which of the target, each of a batch is."""
    if ask.kind == "pages":
        return chunks(ask.count, "source"), chunks(ask.count, "target")
    return np.arange(ask.count), np.arange(ask.count)


def _addresses(place: Place, ask: Move) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return where each chunk comes from and goes to: the same places that the engine's batch names."""
    ours, theirs = places(ask)
    sources = np.uint64(place.held[0].array.ctypes.data) + (ours * ask.nbytes).astype(np.uint64)
    there = [_mapped(place, target) for target in place.targets]
    if ask.kind == "scatter":
        return sources, np.array(there, np.uint64)
    return sources, np.uint64(there[0]) + (theirs * ask.nbytes).astype(np.uint64)


def _mapped(place: Place, target: Offered) -> int:
    """Return the address of a peer's memory: in this process if it can be mapped, else in its own."""
    if target.fd < 0:
        return target.addr
    key = f"mapping {target.pid} {target.fd}"
    if key not in place.kept:
        # Through /proc, so that the raw loop depends on nothing that the engine does. MAP_POPULATE: see `offer`.
        fd = os.open(f"/proc/{target.pid}/fd/{target.fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            memory = mmap.mmap(fd, target.fd_offset + target.nbytes, mmap.MAP_SHARED | mmap.MAP_POPULATE)
        finally:
            os.close(fd)
        place.kept[key] = np.frombuffer(memory, np.uint8)
    array: NDArray[Any] = place.kept[key]
    return array.ctypes.data + target.fd_offset


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """Compare what has arrived with what was to be sent.

    :param seed: that filled the source
    """

    kind: str
    nbytes: int
    count: int
    seed: int


async def check(place: Place, ask: Check) -> Nothing:
    """Perform :class:`Check`, at the target.

    :raises AioTransferError: a byte differs
    """
    source = fill(ask.nbytes * ask.count, ask.seed).reshape(ask.count, ask.nbytes)
    if ask.kind == "scatter":
        same = all((held.array == source[index]).all() for index, held in enumerate(place.held))
    else:
        target = place.held[0].array[: source.size].reshape(source.shape)
        ours, theirs = places(Move(kind=ask.kind, nbytes=ask.nbytes, count=ask.count))
        same = bool((target[theirs] == source[ours]).all())
    if not same:
        raise AioTransferError(f"{ask.count} chunks of {ask.nbytes} B: what arrived is not what was sent")
    return Nothing()


def _sleeps() -> int:
    """Return how often this thread has given up the processor of its own accord."""
    import resource

    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


assert MAX_ROUNDS * 3 * 16 < 1 << 20, "what a step says must fit into a line"  # noqa: S101
