"""Heartbeat monitor: losses found by the native heartbeat thread, reported on the event loop.

The native thread sends and receives the heartbeats, so a busy Python loop is not taken for a dead peer, and a frozen
process is noticed by every peer.
"""

from __future__ import annotations

import enum
import os
from typing import TYPE_CHECKING, Final

from aio_transfer.backends.native import Heartbeat
from aio_transfer.errors import ClosedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aio_transfer.runtime.event_loop import EventLoop

__all__ = ("HeartbeatLoss", "HeartbeatMonitor")

_BEATS_PER_TIMEOUT: Final = 6


class HeartbeatLoss(enum.IntEnum):
    """Kind of loss; the native thread reports these numbers (``Loss`` in its header)."""

    RESET = 1
    SILENT = 2
    DECLARED = 3


class HeartbeatMonitor:
    """Heartbeats of all connections of one engine."""

    def __init__(self, loop: EventLoop, timeout_s: float, on_loss: Callable[[int, HeartbeatLoss], None]) -> None:
        """Start the native thread.

        :param timeout_s: a peer that is silent for longer is lost
        :param on_loss: called with the number of the connection, once per connection
        """
        timeout_ms = timeout_s * 1000
        self._heartbeat: Heartbeat | None = Heartbeat(
            max(1, round(timeout_ms / _BEATS_PER_TIMEOUT)), max(1, round(timeout_ms))
        )
        self._loop = loop
        self._on_loss = on_loss
        self._fd = self._heartbeat.fileno()
        loop.watch(self._fd, self._on_ready)

    def _on_ready(self) -> None:
        if self._heartbeat is None:
            return
        for number, loss in self._heartbeat.drain():
            self._on_loss(number, HeartbeatLoss(loss))

    def add(self, number: int, fd: int) -> None:
        """Send and expect heartbeats on a socket, which is the monitor's from now on, also where this fails.

        :raises AioTransferError: it cannot be watched
        """
        if self._heartbeat is None:
            os.close(fd)
            raise ClosedError("the engine")
        self._heartbeat.add(number, fd)

    def remove(self, number: int, *, lost: bool) -> None:
        """Stop the heartbeat of a connection, if it has one.

        :param lost: whether to notify the peer that it is held for lost; otherwise that it is left
        """
        if self._heartbeat is not None:
            self._heartbeat.remove(number, lost)

    def close(self) -> None:
        """Stop the native thread; it reports no losses any more. Idempotent."""
        if self._heartbeat is not None:
            self._loop.unwatch(self._fd)
            self._heartbeat = None  # its destructor joins the thread: not left to the garbage collector
