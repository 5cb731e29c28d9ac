"""What drivers in Python keep: counters that never lose a count, and a bell that never forgets an event."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

import pytest

from aio_transfer.drivers import PRIVATE_COUNTER_BIT, CounterId, EventKind
from aio_transfer.ledger import MAX_COUNTERS, Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator

WELL_KNOWN, PRIVATE = CounterId(5), CounterId(PRIVATE_COUNTER_BIT | 5)


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    ledger = Ledger()
    yield ledger
    ledger.close()


def rings(ledger: Ledger) -> bool:
    return bool(select.select([ledger.fileno()], [], [], 0)[0])


def counts_of(counter: int, counts: int) -> int:
    return counts - 1 << 24 | counter


def test_an_immediate_is_1_to_256_counts(ledger: Ledger) -> None:
    for counts in (1, 256, 128):
        ledger.count(counts_of(WELL_KNOWN, counts))
    assert ledger.expect(WELL_KNOWN, 0) == 385
    assert ledger.totals["counts"] == 385


def test_what_is_early_is_kept_and_what_nobody_has_is_dropped(ledger: Ledger) -> None:
    ledger.count(WELL_KNOWN)
    ledger.count(PRIVATE)
    assert (ledger.expect(WELL_KNOWN, 0), ledger.expect(PRIVATE, 0)) == (1, 0)
    ledger.count(PRIVATE)
    assert ledger.expect(PRIVATE, -1) == 1
    ledger.count(PRIVATE)
    assert ledger.expect(PRIVATE, 0) == 0


def test_a_threshold_is_told_once(ledger: Ledger) -> None:
    assert ledger.expect(PRIVATE, 2) == 0
    ledger.count(PRIVATE)
    assert not len(ledger)
    ledger.count(counts_of(PRIVATE, 3))
    ledger.count(PRIVATE)
    assert ledger.take(9) == [(EventKind.COUNTER, PRIVATE, 0, 4, b"")]


def test_a_threshold_that_is_reached_or_disarmed_is_not_told(ledger: Ledger) -> None:
    ledger.count(WELL_KNOWN)
    assert ledger.expect(WELL_KNOWN, 1) == 1
    ledger.expect(WELL_KNOWN, 2)
    ledger.expect(WELL_KNOWN, 0)
    ledger.count(WELL_KNOWN)
    assert ledger.take(9) == []


def test_peers_cannot_make_counters_without_end(ledger: Ledger) -> None:
    for counter in range(MAX_COUNTERS + 1):
        ledger.count(counter)
    assert ledger.totals["counts"] == MAX_COUNTERS
    assert ledger.expect(PRIVATE, 0) == 0  # our own are not among the bounded


def test_the_bell_rings_while_there_are_events(ledger: Ledger) -> None:
    assert not rings(ledger)
    for number in range(3):
        ledger.emit(EventKind.RELEASED, number, payload=b"why")
    assert [event.id for event in ledger.take(2)] == [0, 1]
    assert rings(ledger)
    assert ledger.take(2) == [(EventKind.RELEASED, 2, 0, 0, b"why")]
    assert not rings(ledger)
    assert ledger.take(2) == []


def test_it_rings_for_the_driver_too(ledger: Ledger) -> None:
    ledger.ring()
    assert rings(ledger)
    ledger.take(1)
    assert not rings(ledger)
