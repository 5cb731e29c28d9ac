"""What drivers in Python keep: counters that never lose a count, and a bell that never forgets an event."""

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
def ledger() -> Iterator[EventQueue]:
    ledger = EventQueue()
    yield ledger
    ledger.close()


def rings(ledger: EventQueue) -> bool:
    return bool(select.select([ledger.fileno()], [], [], 0)[0])


def counts_of(counter: int, counts: int) -> int:
    return counts - 1 << 24 | counter


def test_an_immediate_is_1_to_256_counts(ledger: EventQueue) -> None:
    for counts in (1, 256, 128):
        ledger.count(counts_of(WELL_KNOWN, counts))
    assert ledger.expect(WELL_KNOWN, 0) == 385
    assert ledger.totals["counts"] == 385


def test_what_is_early_is_kept_and_what_nobody_has_is_dropped(ledger: EventQueue) -> None:
    ledger.count(WELL_KNOWN)
    ledger.count(PRIVATE)
    assert (ledger.expect(WELL_KNOWN, 0), ledger.expect(PRIVATE, 0)) == (1, 0)
    ledger.count(PRIVATE)
    assert ledger.expect(PRIVATE, -1) == 1
    ledger.count(PRIVATE)
    assert ledger.expect(PRIVATE, 0) == 0


def test_a_threshold_is_told_once(ledger: EventQueue) -> None:
    assert ledger.expect(PRIVATE, 2) == 0
    ledger.count(PRIVATE)
    assert not len(ledger)
    ledger.count(counts_of(PRIVATE, 3))
    ledger.count(PRIVATE)
    assert ledger.take(9) == [(EventKind.COUNTER, PRIVATE, 0, 4, b"")]


def test_a_threshold_that_is_reached_or_disarmed_is_not_told(ledger: EventQueue) -> None:
    ledger.count(WELL_KNOWN)
    assert ledger.expect(WELL_KNOWN, 1) == 1
    ledger.expect(WELL_KNOWN, 2)
    ledger.expect(WELL_KNOWN, 0)
    ledger.count(WELL_KNOWN)
    assert ledger.take(9) == []


def test_peers_cannot_make_counters_without_end(ledger: EventQueue) -> None:
    for counter in range(MAX_COUNTERS + 1):
        ledger.count(counter)
    assert ledger.totals["counts"] == MAX_COUNTERS
    assert ledger.expect(PRIVATE, 0) == 0  # our own are not among the bounded


def test_the_bell_rings_while_there_are_events(ledger: EventQueue) -> None:
    assert not rings(ledger)
    for number in range(3):
        ledger.emit(EventKind.RELEASED, number, payload=b"why")
    assert [event.id for event in ledger.take(2)] == [0, 1]
    assert rings(ledger)
    assert ledger.take(2) == [(EventKind.RELEASED, 2, 0, 0, b"why")]
    assert not rings(ledger)
    assert ledger.take(2) == []


def test_it_rings_for_the_driver_too(ledger: EventQueue) -> None:
    ledger.ring()
    assert rings(ledger)
    ledger.take(1)
    assert not rings(ledger)
