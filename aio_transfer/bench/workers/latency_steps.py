"""Steps between two event loops, one message at a time: ping-pong and one-way wakes, ours and over a pipe."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, Final

import anyio
import msgspec

from aio_transfer.bench.baselines.pipe import loop_pipe
from aio_transfer.bench.workers.bandwidth_steps import Moved
from aio_transfer.bench.workers.worker_state import Nothing, Place, cpu_ns
from aio_transfer.runtime.event_loop import current_event_loop

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ("NBYTES", "PAUSE_S", "Rounds", "listen", "listen_bell", "listen_pipe", "ping", "ping_pipe", "pong",
           "pong_pipe", "tell", "tell_pipe")  # fmt: skip

NBYTES: Final = 8
"""One word: a flag, a sequence number, a time."""
PAUSE_S: Final = 0.002
"""Between one-way messages: both sides have gone to sleep by then. uvloop's clock counts milliseconds."""
_STAMP: Final = struct.Struct("=q")


class Rounds(msgspec.Struct, frozen=True):
    """Do it so many times.

    :param target: which remote region to write to; our own first memory is what we send and what we are sent to
    """

    count: int
    target: int = 0


async def ping(place: Place, ask: Rounds) -> Moved:
    """Write, await it, await the peer's answer."""
    engine, held, remote = place.engines[0], place.held[0], place.remotes[ask.target]
    source, target, counter = held.region[NBYTES : 2 * NBYTES], remote[0:NBYTES], held.counter
    rounds: list[int] = []
    now = time.perf_counter_ns
    before, begin = cpu_ns(place.pids), now()
    since = begin
    for _ in range(ask.count):
        await engine.write(source, target)
        await counter.wait(1)
        until = now()
        rounds.append(until - since)
        since = until
    return Moved(elapsed_ns=since - begin, rounds_ns=rounds, cpu_ns=cpu_ns(place.pids) - before)


async def pong(place: Place, ask: Rounds) -> Nothing:
    """Answer a :func:`ping`."""
    engine, held, remote = place.engines[0], place.held[0], place.remotes[ask.target]
    source, target, counter = held.region[NBYTES : 2 * NBYTES], remote[0:NBYTES], held.counter
    for _ in range(ask.count):
        await counter.wait(1)
        await engine.write(source, target)
    return Nothing()


async def ping_pipe(place: Place, ask: Rounds) -> Moved:
    """Write to a pipe, await the answer."""
    pipe = loop_pipe(place)
    rounds: list[int] = []
    now = time.perf_counter_ns
    before, begin = cpu_ns(place.pids), now()
    since = begin
    for _ in range(ask.count):
        pipe.send(bytes(NBYTES))
        await pipe.receive()
        until = now()
        rounds.append(until - since)
        since = until
    return Moved(elapsed_ns=since - begin, rounds_ns=rounds, cpu_ns=cpu_ns(place.pids) - before)


async def pong_pipe(place: Place, ask: Rounds) -> Nothing:
    """Answer a :func:`ping_pipe`."""
    pipe = loop_pipe(place)
    for _ in range(ask.count):
        pipe.send(await pipe.receive())
    return Nothing()


async def listen(place: Place, ask: Rounds) -> Moved:
    """Await counts, each of a write that holds the time when it was submitted."""
    held = place.held[0]
    stamp: NDArray[np.int64] = held.array[:NBYTES].view("i8")
    rounds: list[int] = []
    before, begin = cpu_ns(place.pids), time.perf_counter_ns()
    for _ in range(ask.count):
        await held.counter.wait(1)
        rounds.append(time.perf_counter_ns() - int(stamp[0]))
    return _heard(place, begin, before, rounds)


async def tell(place: Place, ask: Rounds) -> Nothing:
    """Write the time, now and then."""
    engine, held, remote = place.engines[0], place.held[0], place.remotes[ask.target]
    stamp = held.array[:NBYTES].view("i8")
    for _ in range(ask.count):
        await anyio.sleep(PAUSE_S)
        stamp[0] = time.perf_counter_ns()
        await engine.write(held.region[0:NBYTES], remote[0:NBYTES])
    return Nothing()


async def listen_pipe(place: Place, ask: Rounds) -> Moved:
    """Await messages of a pipe, each of which holds the time when it was written."""
    pipe = loop_pipe(place)
    rounds: list[int] = []
    before, begin = cpu_ns(place.pids), time.perf_counter_ns()
    for _ in range(ask.count):
        message = await pipe.receive()
        rounds.append(time.perf_counter_ns() - _STAMP.unpack(message)[0])
    return _heard(place, begin, before, rounds)


async def tell_pipe(place: Place, ask: Rounds) -> Nothing:
    """Write the time to a pipe, now and then."""
    pipe = loop_pipe(place)
    for _ in range(ask.count):
        await anyio.sleep(PAUSE_S)
        pipe.send(_STAMP.pack(time.perf_counter_ns()))
    return Nothing()


async def listen_bell(place: Place, ask: Rounds) -> Moved:
    """Await an eventfd that a native thread of this process writes: no less can wake an event loop."""
    from aio_transfer.bench.baselines._baseline import Bell

    loop = current_event_loop()
    rounds: list[int] = []
    rung: list[int] = []
    waiter = loop.waiter()

    def on_ready() -> None:
        rung.append(bell.answer())
        waiter.wake()

    before, begin = cpu_ns(place.pids), time.perf_counter_ns()
    bell = Bell(ask.count, int(PAUSE_S * 1e6))
    loop.watch(bell.fileno(), on_ready)
    try:
        while len(rounds) < ask.count:
            await waiter.wait()
            waiter = loop.waiter()  # before the next ring, which waits for its interval
            rounds.append(time.perf_counter_ns() - rung.pop())
    finally:
        loop.unwatch(bell.fileno())
    return _heard(place, begin, before, rounds)


def _heard(place: Place, begin: int, cpu_before: int, rounds: list[int]) -> Moved:
    elapsed = time.perf_counter_ns() - begin
    return Moved(elapsed_ns=elapsed, rounds_ns=rounds, cpu_ns=cpu_ns(place.pids) - cpu_before)
