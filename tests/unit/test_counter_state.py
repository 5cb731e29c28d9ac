"""The counter's state machine: a FIFO semaphore over a running total."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aio_transfer.counters.state import CounterState, Ticket
from aio_transfer.errors import PeerLostError


def ticket(count: int, woken: list[int] | None = None) -> Ticket:
    return Ticket(count, lambda: None if woken is None else woken.append(count))


def test_waiters_are_served_in_order_and_a_large_one_is_not_overtaken() -> None:
    state, woken = CounterState(), []
    for count in (3, 1):
        state.enqueue(ticket(count, woken))
    state.deliver(2)
    assert woken == []
    assert not state.take(1), "nobody passes the queue"
    state.deliver(3)
    assert woken == [3]
    state.deliver(4)
    assert woken == [3, 1]
    assert state.available == 0


def test_a_withdrawn_waiter_consumes_nothing() -> None:
    state, woken = CounterState(), []
    first, second = ticket(2, woken), ticket(1, woken)
    state.enqueue(first)
    state.enqueue(second)
    state.deliver(1)
    state.withdraw(first)
    assert woken == [1], "the next one has its turn"
    assert state.available == 0


def test_a_grant_that_its_task_never_saw_goes_to_the_next() -> None:
    state, woken = CounterState(), []
    first, second = ticket(1, woken), ticket(1, woken)
    state.enqueue(first)
    state.enqueue(second)
    state.deliver(1)
    assert first.granted
    state.withdraw(first)
    assert second.granted
    assert state.consumed == 1


def test_a_failure_wakes_everybody_and_keeps_what_arrived() -> None:
    state, woken = CounterState(), []
    waiting = ticket(5, woken)
    state.enqueue(waiting)
    state.deliver(2)
    state.fail(lambda: PeerLostError("b", "reset"))
    assert woken == [5]
    assert isinstance(waiting.failure(), PeerLostError)
    assert state.take(2)


def test_totals_never_fall() -> None:
    state = CounterState()
    state.deliver(5)
    state.deliver(3)
    assert state.value == 5


@pytest.mark.parametrize(("consumed", "count", "total"), [(0, 1, 1), (2, 3, 5)])
def test_the_threshold_is_the_first_waiters(consumed: int, count: int, total: int) -> None:
    state = CounterState(value=consumed, consumed=consumed)
    assert state.awaited == 0
    state.enqueue(ticket(count))
    assert state.awaited == total
    assert state.missing == count


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("deliver"), st.integers(0, 5)),
            st.tuples(st.just("wait"), st.integers(1, 4)),
            st.tuples(st.just("withdraw"), st.integers(0, 10)),
        ),
        max_size=60,
    )
)
def test_it_behaves_as_a_fifo_semaphore(steps: list[tuple[str, int]]) -> None:
    """Against a model that recomputes everything from the history."""
    state, total = CounterState(), 0
    waiting: deque[Ticket] = deque()
    alive: list[Ticket] = []
    for action, number in steps:
        if action == "deliver":
            total += number
            state.deliver(total)
        elif action == "wait":
            if state.take(number):
                alive.append(Ticket(number, lambda: None, granted=True))
                continue
            one = ticket(number)
            state.enqueue(one)
            waiting.append(one)
            alive.append(one)
        elif alive:
            one = alive.pop(number % len(alive))
            if one in waiting or not one.granted:
                state.withdraw(one)
        # The granted ones still waiting in the model's queue are exactly its head, as far as the counts reach.
        while waiting and (waiting[0].granted or waiting[0] not in alive):
            waiting.popleft()
        assert not any(one.granted for one in waiting if one in alive)
        assert 0 <= state.consumed <= state.value
        if waiting and waiting[0] in alive:
            assert state.available < waiting[0].count
