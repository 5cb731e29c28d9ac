"""Event loop as poller of tcp: arrivals wake a waiting loop without a thread, and do not wait for a busy one."""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from aio_transfer.backends.native import NativeDriver
from aio_transfer.driver.protocol import LocalMemory, RemoteMemory
from aio_transfer.driver.records import PIECE_STRUCT, RUN_STRUCT, Access, EventKind, Op, PieceFlag

if TYPE_CHECKING:
    from collections.abc import Iterator

PEER, OURS, THEIRS, COUNTER = 1, 10, 11, 7
NBYTES = 4096


class End:
    """A driver without an engine; the test decides when its descriptor is polled."""

    def __init__(self) -> None:
        self.driver = NativeDriver("tcp")
        self.driver.open()
        self.memory = np.zeros(NBYTES, np.uint8)
        access = Access.REMOTE_WRITE | Access.REMOTE_READ
        memory = LocalMemory(addr=self.memory.ctypes.data, nbytes=NBYTES, access=access)
        self.keys = self.driver.register(OURS, memory)
        self.sent = 0
        self.ended: set[int] = set()
        self.counted = 0
        self._poll = select.poll()
        self._poll.register(self.driver.fileno(), select.POLLIN)

    def write(self) -> None:
        """Write a byte and count it there."""
        self.sent += 1
        run = RUN_STRUCT.pack(PEER, 0, Op.WRITE, OURS, THEIRS, 0, 1, 0)
        piece = PIECE_STRUCT.pack(self.memory.ctypes.data, 0, 1, COUNTER, PieceFlag.IMMEDIATE)
        if self.driver.post(self.sent, run, piece):
            self.ended.add(self.sent)

    def wait(self, seconds: float = 5) -> bool:
        """Wait for the descriptor as an event loop does, and handle the events; returns whether there were any."""
        if not self._poll.poll(1000 * seconds):
            return False
        for kind, number, status, code, _ in self.driver.drain(64):
            assert status == 0
            if kind == EventKind.TRANSFER:
                self.ended.add(number)
            elif kind == EventKind.COUNTER:
                self.counted = code
        return True

    @property
    def passes(self) -> int:
        return self.driver.statistics()["loop_passes"]

    @property
    def is_done(self) -> bool:
        return len(self.ended) == self.sent


@pytest.fixture
def ends() -> Iterator[tuple[End, End]]:
    both = End(), End()
    offers = [end.driver.connect(PEER, None) for end in both]
    for end, other, offer in zip(both, both[::-1], offers[::-1], strict=True):
        end.driver.connect(PEER, offer)
        end.driver.register(THEIRS, RemoteMemory(peer=PEER, nbytes=NBYTES, keys=other.keys))
    yield both
    for end in both:
        end.driver.close()


def exchange(one: End, other: End) -> None:
    """Write a byte there, and wait for its count and for the end."""
    if other.driver.expect(COUNTER, one.sent + 1) > one.sent:
        raise AssertionError("it was counted before it was written")
    one.write()
    while other.counted < one.sent:
        assert other.wait()
    while not one.is_done:
        assert one.wait()


def test_a_waiting_loop_handles_arrivals_itself(ends: tuple[End, End]) -> None:
    one, other = ends
    for _ in range(200):
        exchange(one, other)
        exchange(other, one)
    # Not every time: the worker thread may be faster.
    assert one.passes > 100
    assert other.passes > 100


def test_arrivals_do_not_wait_for_a_busy_loop(ends: tuple[End, End]) -> None:
    one, other = ends
    for _ in range(10):
        exchange(one, other)  # the worker has learnt to stay behind this loop
    slowest, began = 0.0, other.passes
    for _ in range(100):
        sent = time.monotonic()
        one.write()
        while not one.is_done:
            assert one.wait()
        slowest = max(slowest, time.monotonic() - sent)
    assert other.passes == began
    assert other.driver.expect(COUNTER, 0) == one.sent
    assert slowest < 1


def test_an_idle_loop_is_not_woken_without_arrivals(ends: tuple[End, End]) -> None:
    one, other = ends
    for _ in range(10):
        exchange(one, other)
    while one.wait(0.05) or other.wait(0.05):
        pass
    assert not one.wait(0.2)
    assert not other.wait(0.2)
