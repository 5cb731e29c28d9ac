"""Event router: hands driver events and control frames to the services that registered a handler for them."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar, cast

from aio_transfer.control.frames import Frame
from aio_transfer.peers.connection import Connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from aio_transfer.driver.backend_registry import OpenDriver
    from aio_transfer.driver.records import EventKind
    from aio_transfer.runtime.event_loop import EventLoop

    EventHandler: TypeAlias = Callable[[int, int, int, bytes], None]
    FrameHandler: TypeAlias = Callable[[Connection, Frame, tuple[int, ...]], None]
    ConnectionHandler: TypeAlias = Callable[[Connection], None]

__all__ = ("EventRouter",)

_LOGGER: Final = logging.getLogger(__name__)
_DRAIN_LIMIT: Final = 256
"""Events handled per turn of the loop: a flood must not starve other tasks."""

FrameT = TypeVar("FrameT", bound=Frame)


class EventRouter:
    """Routing tables of one engine. All methods are called from the engine's loop.

    Services fill the tables with :meth:`on_event`, :meth:`on_frame_type`, :meth:`on_connection_down` and
    :meth:`on_connection_fenced` before the first connection; the router imports none of them.
    """

    def __init__(self, loop: EventLoop, *, close_engine: Callable[[], None]) -> None:
        """Begin with empty tables.

        :param close_engine: called when a driver has failed as a whole
        """
        self._loop = loop
        self._close_engine = close_engine
        self._watched: dict[str, int] = {}
        self._events: dict[int, EventHandler] = {}
        self._frames: dict[type[Frame], FrameHandler] = {}
        self._down: list[ConnectionHandler] = []
        self._fenced: list[ConnectionHandler] = []
        self._reject: Callable[[Connection, str], None] = lambda _connection, _reason: None

    # ------------------------------------------------------------------------------------------------ filling tables

    def on_event(self, kind: EventKind, handler: EventHandler) -> None:
        """Register the handler of a driver event; it takes id, status, code and payload."""
        self._events[int(kind)] = handler

    def on_frame_type(self, kind: type[FrameT], handler: Callable[[Connection, FrameT, tuple[int, ...]], None]) -> None:
        """Register the handler of a control frame. Its fds are closed after the handler returns."""
        self._frames[cast("type[Frame]", kind)] = cast("FrameHandler", handler)

    def on_other_frame(self, reject: Callable[[Connection, str], None]) -> None:
        """Register what ends a connection that sent a frame without a handler."""
        self._reject = reject

    def on_connection_down(self, handler: ConnectionHandler) -> None:
        """Register what stops using a connection; its transfers end through its driver."""
        self._down.append(handler)

    def on_connection_fenced(self, handler: ConnectionHandler) -> None:
        """Register what fails the waiters on a lost peer, after all that it had sent was counted."""
        self._fenced.append(handler)

    # ------------------------------------------------------------------------------------------------- driver events

    def watch(self, driver: OpenDriver) -> None:
        """Handle a driver's events from now on."""
        fd = self._watched[driver.name] = driver.driver.fileno()
        self._loop.watch(fd, partial(self._on_ready, driver))

    def unwatch(self, driver: OpenDriver) -> None:
        """Stop; before the driver is closed. Idempotent."""
        fd = self._watched.pop(driver.name, None)
        if fd is not None:
            self._loop.unwatch(fd)

    def _on_ready(self, driver: OpenDriver) -> None:
        if driver.name not in self._watched:
            return
        try:
            events = driver.driver.drain(_DRAIN_LIMIT)
        except Exception:
            # What it still moves is unknown, and its fd may stay readable for ever: only closing it is safe.
            _LOGGER.exception("the %s driver failed, and its engine closes", driver.name)
            self.unwatch(driver)
            self._close_engine()
            return
        handlers = self._events
        for kind, number, status, code, payload in events:
            handler = handlers.get(kind)
            if handler is not None:
                handler(number, status, code, payload)
        if len(events) == _DRAIN_LIMIT:
            self._loop.call_soon(lambda: self._on_ready(driver))

    # ----------------------------------------------------------------------------- observer of the connection manager

    def on_frame(self, connection: Connection, frame: Frame, fds: tuple[int, ...]) -> None:
        """Handle a frame of a connected peer."""
        handler = self._frames.get(type(frame))
        if handler is None:
            self._reject(connection, f"it sent a {type(frame).__name__} out of place")
        else:
            handler(connection, frame, fds)

    def on_down(self, connection: Connection) -> None:
        """Stop using a connection that is over."""
        for handler in self._down:
            handler(connection)

    def on_fenced(self, connection: Connection) -> None:
        """Fail what depended on a peer that is gone."""
        for handler in self._fenced:
            handler(connection)
