"""Barrier state: epochs, departures and confirmed epochs in every order, without an event loop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aio_transfer.groups.barrier_state import BarrierState, Departure

A, B = b"a" * 16, b"b" * 16


class Note:
    """A notification: under way, delivered or failed."""

    def __init__(self, state: str) -> None:
        self.done = state != "under way"
        self._failed = state == "failed"

    def exception(self) -> Exception | None:
        return ValueError() if self._failed else None


# steps: e enter, c complete, L/X member a left/is lost, 0-9 member a reports so many passed, l/x member b likewise
BLOCKED: dict[str, tuple[str, bytes | None]] = {
    "nothing has happened": ("", None),
    "entered": ("e", None),
    "passed one": ("ec", None),
    "left before we entered": ("L", A),
    "lost before we entered": ("X", A),
    "left after we entered": ("eL", A),
    "left between barriers": ("ecL", A),
    "left after it passed this one": ("e1L", None),
    "lost after it passed this one": ("e1X", None),
    "passed this one, but we have not entered": ("1L", A),
    "passed this one, and we enter later": ("1Le", None),
    "passed this one, and we have passed it": ("1Lec", A),
    "passed two, we are in the first": ("e2L", None),
    "passed two, we are in the second": ("e2Lce", None),
    "passed two, we are in the third": ("e2Lcece", A),
    "report after the departure": ("eL1", None),
    "report of none": ("e0L", A),
    "report without a departure": ("e1", None),
    "b left": ("el", B),
    "b lost": ("ex", B),
    "a left first, then b": ("eLl", A),
    "b left first, then a": ("elL", B),
    "a passed, b did not": ("e1Ll", B),
    "left, then lost": ("eLX", A),
    "enter twice": ("ee", None),
    "three barriers": ("ececec", None),
    "left in the fourth": ("ecececeL", A),
    "passed the fourth, we are in it": ("ececece4L", None),
    "passed the third, we are in the fourth": ("ececece3L", A),
    "lost after four": ("ecececec4X", A),
    "report falls behind": ("ece1L", A),
    "both passed this one": ("e1L" + "l", B),
}


def play(steps: str) -> BarrierState:
    state = BarrierState()
    for step in steps:
        match step:
            case "e":
                state.enter()
            case "c":
                state.complete()
            case "L" | "X":
                state.depart(A, Departure.LEFT if step == "L" else Departure.LOST)
            case "l" | "x":
                state.depart(B, Departure.LEFT if step == "l" else Departure.LOST)
            case _:
                state.report_passed(A, int(step))
    return state


@pytest.mark.parametrize(("steps", "blocked"), BLOCKED.values(), ids=BLOCKED)
def test_a_departed_member_blocks_what_it_did_not_pass(steps: str, blocked: bytes | None) -> None:
    assert play(steps).blocked_by() == blocked


def test_the_first_reason_of_a_departure_stands() -> None:
    assert play("LX").departures[A] is Departure.LEFT
    assert play("XL").departures[A] is Departure.LOST


def test_members_are_notified_once_per_epoch() -> None:
    state = BarrierState()
    assert [state.enter(), state.enter()] == [True, False]
    state.complete()
    assert (state.epoch, state.parity, state.enter()) == (1, 1, True)


@pytest.mark.parametrize(
    ("notes", "closing", "confirmed"),
    [
        ([], False, 2),
        (["delivered", "delivered"], False, 2),
        (["failed", "delivered"], False, 0),
        (["delivered", "failed"], False, 1),
        (["delivered", "under way"], False, 2),
        (["delivered", "under way"], True, 1),
        (["under way", "under way"], True, 0),
    ],
    ids=str,
)
def test_confirmed_epochs_are_those_whose_counts_arrive(notes: list[str], closing: bool, confirmed: int) -> None:
    state = BarrierState()
    for note in [*notes, "", ""][:2]:
        state.enter()
        if note:
            state.add_notification(Note(note))  # type: ignore[arg-type]
        state.complete()
    assert state.confirmed_epochs(closing=closing) == confirmed


@given(st.text("ecLXlx0123", max_size=30))
def test_no_order_of_events_passes_an_epoch_that_a_departed_member_did_not_enter(steps: str) -> None:
    state = play(steps)
    blocked = state.blocked_by()
    assert (blocked is None) or blocked in state.departures
    if not state.departures:
        assert blocked is None
    if state.departures and not state.entered:
        assert blocked is not None
