"""Connection state machine: stages, events and actions of one connection, without an event loop.

.. code-block:: text

    DIALING ──► JOINING ──► PATH_JOINED ────────► CONNECTED ──► LEAVING ──► LEFT
                   │                                  ▲
                   └──────► HEARTBEAT_ATTACHED ───────┘         LOST: from every stage before the end

Either side may have dialed. The data path and the heartbeat come in any order, since over TCP they come by different
sockets. LEFT and LOST are final: another connection to the same peer has a state of its own.

:source: docs/explanation/contract.md, rules 8 and 9
"""

from __future__ import annotations

import enum
from typing import Final

__all__ = ("ConnectionAction", "ConnectionEvent", "ConnectionStage", "ConnectionState")


class ConnectionStage(enum.Enum):
    """Progress of a connection."""

    DIALING = enum.auto()
    """There is no session yet: we dial, and the peer may dial us at the same time."""
    JOINING = enum.auto()
    """A session is accepted; data path and heartbeat are being set up."""
    PATH_JOINED = enum.auto()
    """The data path is there, the heartbeat is not."""
    HEARTBEAT_ATTACHED = enum.auto()
    """The heartbeat is there, the data path is not."""
    CONNECTED = enum.auto()
    LEAVING = enum.auto()
    """We sent a goodbye, and the peer has not acknowledged it."""
    LEFT = enum.auto()
    """Over after a goodbye, ours or the peer's."""
    LOST = enum.auto()
    """Over without a goodbye."""


class ConnectionEvent(enum.Enum):
    """Event in the life of a connection."""

    DIAL_ACCEPTED = enum.auto()
    """The peer accepted the session that we dialed."""
    PEER_ACCEPTED = enum.auto()
    """We accepted a session that the peer dialed."""
    PATH_JOINED = enum.auto()
    HEARTBEAT_ATTACHED = enum.auto()
    CLOSE_REQUESTED = enum.auto()
    """The application disconnects the peer, or closes the engine."""
    GOODBYE_RECEIVED = enum.auto()
    GOODBYE_ACKNOWLEDGED = enum.auto()
    GRACE_OVER = enum.auto()
    """The peer did not acknowledge our goodbye in time."""
    STREAM_ENDED = enum.auto()
    """The control connection ended."""
    LOST = enum.auto()
    """Silence, a broken data path, an error, or a notice that the peer holds us for lost."""


class ConnectionAction(enum.Enum):
    """Work that follows from an event."""

    NONE = enum.auto()
    RUN_SESSION = enum.auto()
    """Stop dialing, set the path up over the new session, then receive frames until the end."""
    CLOSE_SESSION = enum.auto()
    """Another session stands, or the connection is over."""
    CLOSE_HEARTBEAT = enum.auto()
    """The connection has a heartbeat already, or is over."""
    START_HEARTBEAT = enum.auto()
    """Watch the heartbeat and release what waits for the connection."""
    SEND_GOODBYE = enum.auto()
    ACKNOWLEDGE_GOODBYE = enum.auto()
    DISCONNECT = enum.auto()
    """Stop using the connection at once, and tear it down."""


_Stage = ConnectionStage
_Event = ConnectionEvent
_Action = ConnectionAction
_Table = dict[tuple[ConnectionStage, ConnectionEvent], tuple[ConnectionStage, ConnectionAction]]

_SETUP: Final = (_Stage.JOINING, _Stage.PATH_JOINED, _Stage.HEARTBEAT_ATTACHED)
_FINAL: Final = (_Stage.LEFT, _Stage.LOST)


def _make_table() -> _Table:
    table: _Table = {
        (_Stage.DIALING, _Event.DIAL_ACCEPTED): (_Stage.JOINING, _Action.RUN_SESSION),
        (_Stage.DIALING, _Event.PEER_ACCEPTED): (_Stage.JOINING, _Action.RUN_SESSION),
        (_Stage.JOINING, _Event.PATH_JOINED): (_Stage.PATH_JOINED, _Action.NONE),
        (_Stage.JOINING, _Event.HEARTBEAT_ATTACHED): (_Stage.HEARTBEAT_ATTACHED, _Action.NONE),
        (_Stage.PATH_JOINED, _Event.HEARTBEAT_ATTACHED): (_Stage.CONNECTED, _Action.START_HEARTBEAT),
        (_Stage.HEARTBEAT_ATTACHED, _Event.PATH_JOINED): (_Stage.CONNECTED, _Action.START_HEARTBEAT),
        (_Stage.CONNECTED, _Event.CLOSE_REQUESTED): (_Stage.LEAVING, _Action.SEND_GOODBYE),
        # Goodbyes that cross: each side acknowledges the other's, and still waits for its own acknowledgement.
        (_Stage.LEAVING, _Event.GOODBYE_RECEIVED): (_Stage.LEAVING, _Action.ACKNOWLEDGE_GOODBYE),
        (_Stage.LEAVING, _Event.GOODBYE_ACKNOWLEDGED): (_Stage.LEFT, _Action.DISCONNECT),
        (_Stage.LEAVING, _Event.GRACE_OVER): (_Stage.LEFT, _Action.DISCONNECT),
        # The peer may close as soon as it has seen our goodbye; the acknowledgement can be lost in the reset.
        (_Stage.LEAVING, _Event.STREAM_ENDED): (_Stage.LEFT, _Action.DISCONNECT),
    }
    # A peer without a path has no counts to fulfil, so a goodbye before that is a loss like any other.
    for stage in (_Stage.JOINING, _Stage.HEARTBEAT_ATTACHED):
        table[stage, _Event.GOODBYE_RECEIVED] = (_Stage.LOST, _Action.DISCONNECT)
    # A peer that came up first may leave while our heartbeat is still on its way.
    for stage in (_Stage.PATH_JOINED, _Stage.CONNECTED):
        table[stage, _Event.GOODBYE_RECEIVED] = (_Stage.LEFT, _Action.DISCONNECT)
    for stage in (_Stage.DIALING, *_SETUP):  # there is nobody yet to say goodbye to
        table[stage, _Event.CLOSE_REQUESTED] = (_Stage.LOST, _Action.DISCONNECT)
    for stage in (*_SETUP, _Stage.CONNECTED):
        table[stage, _Event.STREAM_ENDED] = (_Stage.LOST, _Action.DISCONNECT)
    for stage in _Stage:
        if stage not in _FINAL:
            table[stage, _Event.LOST] = (_Stage.LOST, _Action.DISCONNECT)
    return table


_TABLE: Final = _make_table()
# Any other event comes too late and changes nothing; what it brought is given up.
_TOO_LATE: Final = {
    _Event.DIAL_ACCEPTED: _Action.CLOSE_SESSION,
    _Event.PEER_ACCEPTED: _Action.CLOSE_SESSION,
    _Event.HEARTBEAT_ATTACHED: _Action.CLOSE_HEARTBEAT,
}


class ConnectionState:
    """State of one connection.

    :ivar stage: how far it is
    :ivar reason: why it ended; empty before
    """

    __slots__ = ("reason", "stage")

    def __init__(self) -> None:
        """Begin to dial."""
        self.stage = ConnectionStage.DIALING
        self.reason = ""

    def apply(self, event: ConnectionEvent, reason: str = "") -> ConnectionAction:
        """Advance by one event.

        :param reason: why the connection ends, where the event ends it; the first one stays
        :returns: the work that follows, all of it to be done before the next event
        """
        stage, action = _TABLE.get((self.stage, event), (self.stage, _TOO_LATE.get(event, ConnectionAction.NONE)))
        if stage is not self.stage:
            self.stage = stage
            if stage in _FINAL:
                self.reason = reason
        return action

    def accepts_dial(self, *, peer_is_smaller: bool) -> bool:
        """Return whether a session that the peer dials is accepted.

        When both sides dial at once, the call of the smaller incarnation stands: both decide alike, so one session
        remains.
        """
        return self.stage is ConnectionStage.DIALING and peer_is_smaller

    @property
    def accepts_heartbeat(self) -> bool:
        """Whether a heartbeat may still be attached."""
        return self.stage in (ConnectionStage.JOINING, ConnectionStage.PATH_JOINED)

    @property
    def is_up(self) -> bool:
        """Whether transfers can be posted."""
        return self.stage is ConnectionStage.CONNECTED

    @property
    def is_starting(self) -> bool:
        """Whether it can still become connected."""
        return self.stage is ConnectionStage.DIALING or self.stage in _SETUP

    @property
    def is_final(self) -> bool:
        """Whether it has ended."""
        return self.stage in _FINAL
