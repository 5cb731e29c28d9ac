"""Connection state machine: every event in every stage, without an event loop."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aio_transfer.peers.connection_state import ConnectionAction, ConnectionEvent, ConnectionStage, ConnectionState

A, E, S = ConnectionAction, ConnectionEvent, ConnectionStage
DIALED = (E.DIAL_ACCEPTED,)
UP = (E.PEER_ACCEPTED, E.PATH_JOINED, E.HEARTBEAT_ATTACHED)

CASES: dict[str, tuple[tuple[ConnectionEvent, ...], ConnectionStage, ConnectionAction]] = {
    # name: events, the stage after them, what follows from the last one
    "our dial is accepted": (DIALED, S.JOINING, A.RUN_SESSION),
    "the peer's dial is accepted": ((E.PEER_ACCEPTED,), S.JOINING, A.RUN_SESSION),
    "both dials: the second session is closed": ((E.PEER_ACCEPTED, E.DIAL_ACCEPTED), S.JOINING, A.CLOSE_SESSION),
    "both dials, ours first": ((E.DIAL_ACCEPTED, E.PEER_ACCEPTED), S.JOINING, A.CLOSE_SESSION),
    "a path without a heartbeat": ((*DIALED, E.PATH_JOINED), S.PATH_JOINED, A.NONE),
    "a heartbeat without a path": ((*DIALED, E.HEARTBEAT_ATTACHED), S.HEARTBEAT_ATTACHED, A.NONE),
    "path, then heartbeat": (UP, S.CONNECTED, A.START_HEARTBEAT),
    "heartbeat, then path": ((*DIALED, E.HEARTBEAT_ATTACHED, E.PATH_JOINED), S.CONNECTED, A.START_HEARTBEAT),
    "a second heartbeat": ((*UP, E.HEARTBEAT_ATTACHED), S.CONNECTED, A.CLOSE_HEARTBEAT),
    "a second heartbeat before the path": (
        (*DIALED, E.HEARTBEAT_ATTACHED, E.HEARTBEAT_ATTACHED),
        S.HEARTBEAT_ATTACHED,
        A.CLOSE_HEARTBEAT,
    ),
    "a heartbeat while dialing": ((E.HEARTBEAT_ATTACHED,), S.DIALING, A.CLOSE_HEARTBEAT),
    "a session for a connection that is up": ((*UP, E.PEER_ACCEPTED), S.CONNECTED, A.CLOSE_SESSION),
    "we leave": ((*UP, E.CLOSE_REQUESTED), S.LEAVING, A.SEND_GOODBYE),
    "we leave twice": ((*UP, E.CLOSE_REQUESTED, E.CLOSE_REQUESTED), S.LEAVING, A.NONE),
    "our goodbye is acknowledged": ((*UP, E.CLOSE_REQUESTED, E.GOODBYE_ACKNOWLEDGED), S.LEFT, A.DISCONNECT),
    "our goodbye is not acknowledged in time": ((*UP, E.CLOSE_REQUESTED, E.GRACE_OVER), S.LEFT, A.DISCONNECT),
    "the stream ends after our goodbye": ((*UP, E.CLOSE_REQUESTED, E.STREAM_ENDED), S.LEFT, A.DISCONNECT),
    "goodbyes cross": ((*UP, E.CLOSE_REQUESTED, E.GOODBYE_RECEIVED), S.LEAVING, A.ACKNOWLEDGE_GOODBYE),
    "goodbyes cross, then ours is acknowledged": (
        (*UP, E.CLOSE_REQUESTED, E.GOODBYE_RECEIVED, E.GOODBYE_ACKNOWLEDGED),
        S.LEFT,
        A.DISCONNECT,
    ),
    "lost while leaving": ((*UP, E.CLOSE_REQUESTED, E.LOST), S.LOST, A.DISCONNECT),
    "the peer leaves": ((*UP, E.GOODBYE_RECEIVED), S.LEFT, A.DISCONNECT),
    "the peer leaves before our heartbeat": (
        (E.PEER_ACCEPTED, E.PATH_JOINED, E.GOODBYE_RECEIVED),
        S.LEFT,
        A.DISCONNECT,
    ),
    "the peer leaves before there is a path": ((*DIALED, E.GOODBYE_RECEIVED), S.LOST, A.DISCONNECT),
    "the peer leaves after the heartbeat alone": (
        (*DIALED, E.HEARTBEAT_ATTACHED, E.GOODBYE_RECEIVED),
        S.LOST,
        A.DISCONNECT,
    ),
    "an acknowledgement that nobody asked for": ((*UP, E.GOODBYE_ACKNOWLEDGED), S.CONNECTED, A.NONE),
    "closing while dialing": ((E.CLOSE_REQUESTED,), S.LOST, A.DISCONNECT),
    "closing while joining": ((*DIALED, E.CLOSE_REQUESTED), S.LOST, A.DISCONNECT),
    "closing with a path alone": ((*DIALED, E.PATH_JOINED, E.CLOSE_REQUESTED), S.LOST, A.DISCONNECT),
    "lost while dialing": ((E.LOST,), S.LOST, A.DISCONNECT),
    "lost while joining": ((*DIALED, E.LOST), S.LOST, A.DISCONNECT),
    "lost while connected": ((*UP, E.LOST), S.LOST, A.DISCONNECT),
    "the stream ends while joining": ((*DIALED, E.STREAM_ENDED), S.LOST, A.DISCONNECT),
    "the stream ends while connected": ((*UP, E.STREAM_ENDED), S.LOST, A.DISCONNECT),
    "a session after the loss": ((E.LOST, E.DIAL_ACCEPTED), S.LOST, A.CLOSE_SESSION),
    "the peer's session after the loss": ((E.LOST, E.PEER_ACCEPTED), S.LOST, A.CLOSE_SESSION),
    "a heartbeat after the loss": ((*DIALED, E.LOST, E.HEARTBEAT_ATTACHED), S.LOST, A.CLOSE_HEARTBEAT),
    "a path after the loss": ((*DIALED, E.LOST, E.PATH_JOINED), S.LOST, A.NONE),
    "a second loss": ((E.LOST, E.LOST), S.LOST, A.NONE),
    "a loss after the goodbye": ((*UP, E.GOODBYE_RECEIVED, E.LOST), S.LEFT, A.NONE),
    "a goodbye after the loss": ((*UP, E.LOST, E.GOODBYE_RECEIVED), S.LOST, A.NONE),
    "closing after the loss": ((*UP, E.LOST, E.CLOSE_REQUESTED), S.LOST, A.NONE),
}


@pytest.mark.parametrize(("events", "stage", "action"), CASES.values(), ids=CASES)
def test_events_lead_to_stages_and_actions(
    events: tuple[ConnectionEvent, ...], stage: ConnectionStage, action: ConnectionAction
) -> None:
    state = ConnectionState()
    actions = [state.apply(event, event.name) for event in events]
    assert (state.stage, actions[-1]) == (stage, action)


def test_the_first_reason_stays() -> None:
    state = ConnectionState()
    state.apply(E.LOST, "silent")
    state.apply(E.STREAM_ENDED, "reset")
    assert (state.reason, state.is_final) == ("silent", True)


@pytest.mark.parametrize("smaller", [True, False])
@pytest.mark.parametrize("stage", ConnectionStage)
def test_a_crossing_dial_is_accepted_from_the_smaller_side_alone(stage: ConnectionStage, smaller: bool) -> None:
    state = ConnectionState()
    state.stage = stage
    assert state.accepts_dial(peer_is_smaller=smaller) is (smaller and stage is S.DIALING)


@given(st.lists(st.sampled_from(ConnectionEvent), max_size=20))
def test_any_events_in_any_order_keep_the_rules(events: list[ConnectionEvent]) -> None:
    state = ConnectionState()
    actions = []
    for event in events:
        was_final = state.is_final
        actions.append(state.apply(event))
        assert not (was_final and not state.is_final), "an end is final"
        assert sum((state.is_up, state.is_starting, state.is_final, state.stage is S.LEAVING)) == 1
    for once in (A.RUN_SESSION, A.START_HEARTBEAT, A.SEND_GOODBYE, A.DISCONNECT):
        assert actions.count(once) <= 1
    assert state.is_final == (A.DISCONNECT in actions)
    up_before = list(itertools.takewhile(lambda action: action is not A.START_HEARTBEAT, actions))
    assert A.SEND_GOODBYE not in up_before, "a goodbye is sent only by a connection that was up"
