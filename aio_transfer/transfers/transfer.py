"""``Transfer``: one submitted operation, until every piece of it has stopped moving."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio.lowlevel
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from aio_transfer.driver.transport_path import TransportPath
    from aio_transfer.errors import AioTransferError
    from aio_transfer.regions.lease import LeaseCounter
    from aio_transfer.runtime.event_loop import EventLoop, Waiter

__all__ = ("Transfer",)


class Transfer(Struct, eq=False):
    """An operation in flight. Await it as often, and from as many tasks, as you like.

    ``await transfer`` returns when the source memory may be reused, and raises only after every piece has stopped.

    :ivar operation: ``"write"``, ``"write_pages"``, ``"scatter"``, ``"notify"``, ``"read"`` or ``"read_pages"``
    :ivar peer: label of the peer, or of all of them
    :ivar nbytes: payload in bytes
    :ivar count: chunks: the counts that were announced, if a counter was named
    :ivar path: the transport that carries it; ``None`` while the connection is still being made
    :cancellation: the await ends at once; the operation goes on and its source stays leased
    """

    _loop: EventLoop
    operation: str
    peer: str
    nbytes: int
    count: int
    _leases: tuple[LeaseCounter, ...] = ()  # acquired by the submitter; released with the last part
    path: TransportPath | None = None
    _parts: int = 1
    _failure: Callable[[], AioTransferError] | None = None
    _waiters: list[Waiter] | None = None

    @property
    def done(self) -> bool:
        """Whether every piece has stopped, well or not."""
        return self._parts == 0

    def exception(self) -> AioTransferError | None:
        """Return why it failed; ``None`` when it ended well or is still in flight."""
        return self._failure() if self._failure is not None and self._parts == 0 else None

    def _add_part(self) -> None:
        """Add a batch that must stop before the transfer is over."""
        self._parts += 1

    def _finish_part(self, failure: Callable[[], AioTransferError] | None = None) -> None:
        """Record that one batch has stopped; the first failure becomes the transfer's."""
        if failure is not None and self._failure is None:
            self._failure = failure
        self._parts -= 1
        if self._parts:
            return
        leases, self._leases = self._leases, ()
        for lease in leases:
            lease.release()
        if self._waiters is not None:
            waiters, self._waiters = self._waiters, None
            for waiter in waiters:
                waiter.wake()

    async def wait(self) -> None:
        """Wait until every piece has stopped: the same as ``await transfer``.

        :raises PeerLostError: a peer died before the transfer was acknowledged
        :raises StaleRegionError: a peer has deregistered the target
        :raises TransferAbortedError: it was aborted here, because the engine closed
        :raises ProviderError: the transport failed
        """
        await self

    def __await__(self) -> Generator[object, object, None]:
        """Wait until every piece has stopped."""
        self._loop.check("a transfer")
        if self._parts:
            yield from self._park()
        elif self._loop.is_turn_due():
            yield from anyio.lowlevel.checkpoint().__await__()
        if self._failure is not None:
            raise self._failure()

    def _park(self) -> Generator[object, object, None]:
        waiter = self._loop.waiter()
        if self._waiters is None:
            self._waiters = []
        self._waiters.append(waiter)
        try:
            yield from waiter.wait().__await__()
        except BaseException:
            if self._waiters is not None:
                self._waiters.remove(waiter)
            raise

    def __repr__(self) -> str:
        """Show operation, size, peer and state."""
        state = "failed" if self._failure and self.done else "done" if self.done else f"{self._parts} parts in flight"
        return f"<Transfer {self.operation} of {self.nbytes} B with {self.peer}: {state}>"
