"""Event queue of drivers in Python: counters lose no count, and the doorbell misses no event."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

import pytest

from aio_transfer.driver.event_queue import MAX_COUNTERS, EventQueue
from aio_transfer.driver.records import PRIVATE_COUNTER_BIT, CounterId, EventKind

if TYPE_CHECKING:
    from collections.abc import Iterator

WELL_KNOWN, PRIVATE = CounterId(5), CounterId(PRIVATE_COUNTER_BIT | 5)


@pytest.fixture
def queue() -> Iterator[EventQueue]:
    queue = EventQueue()
    yield queue
    queue.close()


def is_readable(queue: EventQueue) -> bool:
    return bool(select.select([queue.fileno()], [], [], 0)[0])


def counts_of(counter: int, counts: int) -> int:
    return counts - 1 << 24 | counter


def test_an_immediate_is_1_to_256_counts(queue: EventQueue) -> None:
    for counts in (1, 256, 128):
        queue.count(counts_of(WELL_KNOWN, counts))
    assert queue.expect(WELL_KNOWN, 0) == 385
    assert queue.totals["counts"] == 385


def test_early_counts_are_kept_and_those_of_unknown_private_counters_dropped(queue: EventQueue) -> None:
    queue.count(WELL_KNOWN)
    queue.count(PRIVATE)
    assert (queue.expect(WELL_KNOWN, 0), queue.expect(PRIVATE, 0)) == (1, 0)
    queue.count(PRIVATE)
    assert queue.expect(PRIVATE, -1) == 1
    queue.count(PRIVATE)
    assert queue.expect(PRIVATE, 0) == 0


def test_a_threshold_is_reported_once(queue: EventQueue) -> None:
    assert queue.expect(PRIVATE, 2) == 0
    queue.count(PRIVATE)
    assert not len(queue)
    queue.count(counts_of(PRIVATE, 3))
    queue.count(PRIVATE)
    assert queue.take(9) == [(EventKind.COUNTER, PRIVATE, 0, 4, b"")]


def test_a_threshold_that_is_reached_or_disarmed_is_not_reported(queue: EventQueue) -> None:
    queue.count(WELL_KNOWN)
    assert queue.expect(WELL_KNOWN, 1) == 1
    queue.expect(WELL_KNOWN, 2)
    queue.expect(WELL_KNOWN, 0)
    queue.count(WELL_KNOWN)
    assert queue.take(9) == []


def test_peers_cannot_create_counters_without_limit(queue: EventQueue) -> None:
    for counter in range(MAX_COUNTERS + 1):
        queue.count(counter)
    assert queue.totals["counts"] == MAX_COUNTERS
    assert queue.expect(PRIVATE, 0) == 0  # our own are not among the bounded


def test_the_doorbell_is_readable_while_there_are_events(queue: EventQueue) -> None:
    assert not is_readable(queue)
    for number in range(3):
        queue.emit(EventKind.RELEASED, number, payload=b"why")
    assert [event.id for event in queue.take(2)] == [0, 1]
    assert is_readable(queue)
    assert queue.take(2) == [(EventKind.RELEASED, 2, 0, 0, b"why")]
    assert not is_readable(queue)
    assert queue.take(2) == []


def test_a_driver_can_ring_the_doorbell(queue: EventQueue) -> None:
    queue.ring()
    assert is_readable(queue)
    queue.take(1)
    assert not is_readable(queue)
