"""Steps between two event loops, one message at a time: ping-pong and one-way messages, by the engine and by a pipe."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, Final

import anyio
import msgspec

from aio_transfer.bench.baselines.pipe import pipe_of
from aio_transfer.bench.workers.bandwidth_steps import Timings
from aio_transfer.bench.workers.worker_state import Empty, WorkerState, cpu_ns
from aio_transfer.runtime.event_loop import current_event_loop

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = (
    "MESSAGE_INTERVAL_S",
    "WORD_NBYTES",
    "Iterations",
    "await_eventfd",
    "await_pipe_timestamps",
    "await_timestamps",
    "ping",
    "ping_pipe",
    "pong",
    "pong_pipe",
    "send_pipe_timestamps",
    "send_timestamps",
)

WORD_NBYTES: Final = 8
"""Size of a message: a flag, a sequence number, a timestamp."""
MESSAGE_INTERVAL_S: Final = 0.002
"""Between one-way messages, so that both event loops sleep before each. uvloop's clock counts milliseconds."""
_TIMESTAMP: Final = struct.Struct("=q")


class Iterations(msgspec.Struct, frozen=True):
    """Request to repeat something.

    :param target: index of the remote region to write to; the first local memory is source and target of the answers
    """

    count: int
    target: int = 0


async def ping(state: WorkerState, request: Iterations) -> Timings:
    """Write a word, await the write, await the count of the answer."""
    engine, memory, remote = state.engines[0], state.memories[0], state.remotes[request.target]
    source, target, counter = memory.region[WORD_NBYTES : 2 * WORD_NBYTES], remote[0:WORD_NBYTES], memory.counter
    iterations: list[int] = []
    now = time.perf_counter_ns
    cpu_before, begin = cpu_ns(state.peer_pids), now()
    since = begin
    for _ in range(request.count):
        await engine.write(source, target)
        await counter.wait(1)
        until = now()
        iterations.append(until - since)
        since = until
    return Timings(elapsed_ns=since - begin, iterations_ns=iterations, cpu_ns=cpu_ns(state.peer_pids) - cpu_before)


async def pong(state: WorkerState, request: Iterations) -> Empty:
    """Answer :func:`ping`."""
    engine, memory, remote = state.engines[0], state.memories[0], state.remotes[request.target]
    source, target, counter = memory.region[WORD_NBYTES : 2 * WORD_NBYTES], remote[0:WORD_NBYTES], memory.counter
    for _ in range(request.count):
        await counter.wait(1)
        await engine.write(source, target)
    return Empty()


async def ping_pipe(state: WorkerState, request: Iterations) -> Timings:
    """Write a word to the pipe, await the answer."""
    pipe = pipe_of(state)
    iterations: list[int] = []
    now = time.perf_counter_ns
    cpu_before, begin = cpu_ns(state.peer_pids), now()
    since = begin
    for _ in range(request.count):
        pipe.send(bytes(WORD_NBYTES))
        await pipe.receive()
        until = now()
        iterations.append(until - since)
        since = until
    return Timings(elapsed_ns=since - begin, iterations_ns=iterations, cpu_ns=cpu_ns(state.peer_pids) - cpu_before)


async def pong_pipe(state: WorkerState, request: Iterations) -> Empty:
    """Answer :func:`ping_pipe`."""
    pipe = pipe_of(state)
    for _ in range(request.count):
        pipe.send(await pipe.receive())
    return Empty()


async def await_timestamps(state: WorkerState, request: Iterations) -> Timings:
    """Await counts, each of a write that contains the time before its submit."""
    memory = state.memories[0]
    timestamp: NDArray[np.int64] = memory.array[:WORD_NBYTES].view("i8")
    iterations: list[int] = []
    cpu_before, begin = cpu_ns(state.peer_pids), time.perf_counter_ns()
    for _ in range(request.count):
        await memory.counter.wait(1)
        iterations.append(time.perf_counter_ns() - int(timestamp[0]))
    return _timings_since(state, begin, cpu_before, iterations)


async def send_timestamps(state: WorkerState, request: Iterations) -> Empty:
    """Write the time to the peer, once per interval."""
    engine, memory, remote = state.engines[0], state.memories[0], state.remotes[request.target]
    timestamp = memory.array[:WORD_NBYTES].view("i8")
    for _ in range(request.count):
        await anyio.sleep(MESSAGE_INTERVAL_S)
        timestamp[0] = time.perf_counter_ns()
        await engine.write(memory.region[0:WORD_NBYTES], remote[0:WORD_NBYTES])
    return Empty()


async def await_pipe_timestamps(state: WorkerState, request: Iterations) -> Timings:
    """Await messages of the pipe, each of which contains the time before it was written."""
    pipe = pipe_of(state)
    iterations: list[int] = []
    cpu_before, begin = cpu_ns(state.peer_pids), time.perf_counter_ns()
    for _ in range(request.count):
        message = await pipe.receive()
        iterations.append(time.perf_counter_ns() - _TIMESTAMP.unpack(message)[0])
    return _timings_since(state, begin, cpu_before, iterations)


async def send_pipe_timestamps(state: WorkerState, request: Iterations) -> Empty:
    """Write the time to the pipe, once per interval."""
    pipe = pipe_of(state)
    for _ in range(request.count):
        await anyio.sleep(MESSAGE_INTERVAL_S)
        pipe.send(_TIMESTAMP.pack(time.perf_counter_ns()))
    return Empty()


async def await_eventfd(state: WorkerState, request: Iterations) -> Timings:
    """Await an eventfd that a native thread of this process writes: the cheapest way to wake an event loop."""
    from aio_transfer.bench.baselines._baseline import Bell

    loop = current_event_loop()
    iterations: list[int] = []
    written_ns: list[int] = []
    waiter = loop.waiter()

    def on_ready() -> None:
        written_ns.append(bell.answer())
        waiter.wake()

    cpu_before, begin = cpu_ns(state.peer_pids), time.perf_counter_ns()
    bell = Bell(request.count, int(MESSAGE_INTERVAL_S * 1e6))
    loop.watch(bell.fileno(), on_ready)
    try:
        while len(iterations) < request.count:
            await waiter.wait()
            waiter = loop.waiter()  # in time: the thread writes again only after the interval
            iterations.append(time.perf_counter_ns() - written_ns.pop())
    finally:
        loop.unwatch(bell.fileno())
    return _timings_since(state, begin, cpu_before, iterations)


def _timings_since(state: WorkerState, begin: int, cpu_before: int, iterations: list[int]) -> Timings:
    elapsed = time.perf_counter_ns() - begin
    return Timings(elapsed_ns=elapsed, iterations_ns=iterations, cpu_ns=cpu_ns(state.peer_pids) - cpu_before)
