"""Steps that move batches of chunks: through the engine, and by plain copies as the baseline of shared memory."""

from __future__ import annotations

import mmap
import os
import resource
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from aio_transfer.bench.report.statistics import Sample
from aio_transfer.bench.workers.worker_state import AllocatedMemory, Empty, WorkerState, cpu_ns, random_bytes
from aio_transfer.errors import AioTransferError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aio_transfer import PreparedScatter, Transfer

__all__ = (
    "MoveBatches",
    "Timings",
    "VerifyBytes",
    "chunk_indices",
    "chunk_order",
    "copy_batches",
    "move_batches",
    "verify_bytes",
)

SEED: Final = 20251
KINDS: Final = ("write", "pages", "scatter")


class MoveBatches(msgspec.Struct, frozen=True, kw_only=True):
    """Request to move some batches.

    :param kind: ``"write"`` (one chunk), ``"pages"`` (scattered chunks of one region to another) or ``"scatter"`` (one
        chunk to each target)
    :param iterations: number of batches
    :param depth: batches in flight at once
    """

    kind: str
    nbytes: int
    count: int
    iterations: int = 1
    depth: int = 1


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """Times of one measured step.

    :param submits_ns: per batch, the time of the submit call on the event loop's thread
    :param sleeps: how often the event loop's thread blocked meanwhile
    """

    elapsed_ns: int
    iterations_ns: list[int]
    cpu_ns: int
    submits_ns: list[int] = []
    sleeps: int = 0

    def sample(self) -> Sample:
        """Return what the statistics need."""
        return Sample(elapsed_ns=self.elapsed_ns, iterations_ns=self.iterations_ns, cpu_ns=self.cpu_ns)


def chunk_order(count: int, side: str) -> NDArray[np.int64]:
    """Return the order of the chunks on one side: ``"source"`` or ``"target"``.

    Two different permutations, the same in every process: neighbours on one side are not neighbours on the other.
    """
    return np.random.default_rng([SEED, side == "source"]).permutation(count)


async def move_batches(state: WorkerState, request: MoveBatches) -> Timings:
    """Perform :class:`MoveBatches` through the engine."""
    submit = await _batch_submitter(state, request)
    iterations: list[int] = []
    submits: list[int] = []
    in_flight: deque[tuple[Transfer, int]] = deque()
    now = time.perf_counter_ns

    async def await_oldest() -> None:
        transfer, since = in_flight.popleft()
        await transfer
        iterations.append(now() - since)

    cpu_before, sleeps_before, begin = cpu_ns(state.peer_pids), _voluntary_switches(), now()
    for _ in range(request.iterations):
        if len(in_flight) == request.depth:
            await await_oldest()
        since = now()
        in_flight.append((submit(), since))
        submits.append(now() - since)
    while in_flight:
        await await_oldest()
    elapsed = now() - begin
    return Timings(
        elapsed_ns=elapsed,
        iterations_ns=iterations,
        cpu_ns=cpu_ns(state.peer_pids) - cpu_before,
        submits_ns=submits,
        sleeps=_voluntary_switches() - sleeps_before,
    )


async def _batch_submitter(state: WorkerState, request: MoveBatches) -> Callable[[], Transfer]:
    """Return a function that submits one batch; it builds slices and page lists each time, as an application does."""
    engine, region = state.engines[0], state.memories[0].region
    remote = state.remotes[0]
    nbytes = request.nbytes
    if request.kind == "write":
        return lambda: engine.submit_write(region[0:nbytes], remote[0:nbytes])
    if request.kind == "pages":
        sources, targets = chunk_indices(request)
        return lambda: engine.submit_write_pages(region.pages(sources, nbytes), remote.pages(targets, nbytes))
    if request.kind == "scatter":
        prepared = await _prepared_scatter(state)
        begins, lengths = np.arange(request.count) * nbytes, np.full(request.count, nbytes)
        ends = np.zeros(request.count, int)
        return lambda: prepared.submit_scatter(begins, ends, lengths)
    raise UsageError(f"there is no kind {request.kind!r}: there are {', '.join(KINDS)}")


async def _prepared_scatter(state: WorkerState) -> PreparedScatter:
    """Return the scatter to every target, which is prepared once."""
    if "scatter" not in state.resources:
        group = await state.engines[0].group([remote.peer for remote in state.remotes])
        state.resources["scatter"] = await group.prepare_scatter(state.memories[0].region, state.remotes)
    prepared: PreparedScatter = state.resources["scatter"]
    return prepared


async def copy_batches(state: WorkerState, request: MoveBatches) -> Timings:
    """Perform :class:`MoveBatches` with a copy loop in C++, without event loop, engine and counters."""
    from aio_transfer.bench.baselines import _baseline

    sources, targets = _addresses(state, request)
    cpu_before = cpu_ns(state.peer_pids)
    if state.targets[0].fd < 0:
        iterations = _baseline.copy_process(state.targets[0].pid, sources, targets, request.nbytes, request.iterations)
    else:
        iterations = _baseline.copy(sources, targets, request.nbytes, request.iterations)
    return Timings(elapsed_ns=sum(iterations), iterations_ns=iterations, cpu_ns=cpu_ns(state.peer_pids) - cpu_before)


def chunk_indices(request: MoveBatches) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the chunk indices of one batch, in the source and in the target."""
    if request.kind == "pages":
        return chunk_order(request.count, "source"), chunk_order(request.count, "target")
    return np.arange(request.count), np.arange(request.count)


def _addresses(state: WorkerState, request: MoveBatches) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return source and target address of each chunk of the batch that the engine moves."""
    source_indices, target_indices = chunk_indices(request)
    base = np.uint64(state.memories[0].array.ctypes.data)
    sources = base + (source_indices * request.nbytes).astype(np.uint64)
    bases = [_mapped_address(state, target) for target in state.targets]
    if request.kind == "scatter":
        return sources, np.array(bases, np.uint64)
    return sources, np.uint64(bases[0]) + (target_indices * request.nbytes).astype(np.uint64)


def _mapped_address(state: WorkerState, target: AllocatedMemory) -> int:
    """Return the address of a peer's memory: in this process if it can be mapped, else in the peer's."""
    if target.fd < 0:
        return target.addr
    key = f"mapping {target.pid} {target.fd}"
    if key not in state.resources:
        # Through /proc, so that the baseline uses no code of the engine. MAP_POPULATE: no page faults in a sample.
        fd = os.open(f"/proc/{target.pid}/fd/{target.fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            memory = mmap.mmap(fd, target.fd_offset + target.nbytes, mmap.MAP_SHARED | mmap.MAP_POPULATE)
        finally:
            os.close(fd)
        state.resources[key] = np.frombuffer(memory, np.uint8)
    array: NDArray[Any] = state.resources[key]
    return array.ctypes.data + target.fd_offset


class VerifyBytes(msgspec.Struct, frozen=True, kw_only=True):
    """Request to compare the target's bytes with the source's.

    :param seed: seed that the source was filled with
    """

    kind: str
    nbytes: int
    count: int
    seed: int


async def verify_bytes(state: WorkerState, request: VerifyBytes) -> Empty:
    """Perform :class:`VerifyBytes`, in the process that has the target.

    :raises AioTransferError: a byte differs
    """
    source = random_bytes(request.nbytes * request.count, request.seed).reshape(request.count, request.nbytes)
    if request.kind == "scatter":
        same = all((memory.array == source[index]).all() for index, memory in enumerate(state.memories))
    else:
        target = state.memories[0].array[: source.size].reshape(source.shape)
        batch = MoveBatches(kind=request.kind, nbytes=request.nbytes, count=request.count)
        source_indices, target_indices = chunk_indices(batch)
        same = bool((target[target_indices] == source[source_indices]).all())
    if not same:
        raise AioTransferError(f"{request.count} chunks of {request.nbytes} B: the target differs from the source")
    return Empty()


def _voluntary_switches() -> int:
    """Return how often this thread has blocked so far."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
