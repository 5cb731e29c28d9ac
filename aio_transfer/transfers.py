"""One submitted operation, from the moment its arguments were found good until every piece of it has stopped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from .errors import AioTransferError
    from .leases import Leased
    from .loops import Loop, Waiter

__all__ = ("Path", "Transfer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """What really carries the bytes to a peer.

    :param rails: the NICs, by name
    :param protocol: how a write is done, in words
    """

    backend: str
    provider: str
    rails: tuple[str, ...]
    protocol: str

    def __str__(self) -> str:
        """Return it on one line."""
        return f"{self.backend}/{self.provider} over {', '.join(self.rails)}: {self.protocol}"


class Transfer:
    """An operation under way. Await it, as often and from as many tasks as you like.

    ``await transfer`` returns when the source memory may be reused, and raises only after every piece has stopped.

    :ivar operation: ``"write"``, ``"write_pages"``, ``"scatter"``, ``"notify"`` or ``"read"``
    :ivar peer: label of the peer, or of all of them
    :ivar nbytes: payload
    :ivar count: chunks: the counts that were promised, if a counter was named
    :ivar path: what carries it; ``None`` while the connection is still being made
    :cancellation: the await ends at once; the operation goes on and its source stays leased
    """

    __slots__ = ("_failure", "_leases", "_loop", "_parts", "_waiters", "count", "nbytes", "operation", "path", "peer")

    def __init__(  # noqa: PLR0913 - made in one place
        self, loop: Loop, operation: str, peer: str, *, nbytes: int, count: int, leases: tuple[Leased, ...] = ()
    ) -> None:
        """Begin with one part outstanding, and hold a lease on each of ``leases``.

        :raises ClosedError: one of them is closing; none is leased then
        """
        self._loop = loop
        self.operation = operation
        self.peer = peer
        self.nbytes = nbytes
        self.count = count
        self.path: Path | None = None
        self._parts = 1
        self._failure: Callable[[], AioTransferError] | None = None
        self._waiters: list[Waiter] | None = None
        self._leases = leases
        for leased in leases:
            leased.require_open()
        for leased in leases:
            leased.lease()

    @property
    def done(self) -> bool:
        """Whether every piece has stopped, well or not."""
        return self._parts == 0

    def exception(self) -> AioTransferError | None:
        """Return why it failed; ``None`` when it ended well or goes on."""
        return self._failure() if self._failure is not None and self._parts == 0 else None

    def add_part(self) -> None:
        """Take note of another batch that must stop first."""
        self._parts += 1

    def finish_part(self, failure: Callable[[], AioTransferError] | None = None) -> None:
        """Take note that one batch has stopped; the first failure is the one that is told."""
        if failure is not None and self._failure is None:
            self._failure = failure
        self._parts -= 1
        if self._parts:
            return
        leases, self._leases = self._leases, ()
        for leased in leases:
            leased.release()
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            waiter.wake()

    async def wait(self) -> None:
        """Wait until every piece has stopped: what ``await transfer`` does.

        :raises PeerLostError: a peer died before it was acknowledged
        :raises StaleRegionError: a peer has deregistered the target
        :raises TransferAbortedError: it was given up here, because the engine closed
        :raises ProviderError: the transport failed
        """
        self._loop.check(f"a {self.operation}")
        if self._parts:
            if self._waiters is None:
                self._waiters = []
            waiter = self._loop.waiter()
            self._waiters.append(waiter)
            try:
                await waiter.wait()
            except BaseException:
                if self._waiters is not None:
                    self._waiters.remove(waiter)
                raise
        else:
            await self._loop.checkpoint()
        if self._failure is not None:
            raise self._failure()

    def __await__(self) -> Generator[object, object, None]:
        """Wait until every piece has stopped."""
        return self.wait().__await__()

    def __repr__(self) -> str:
        """Say what, to whom, how much and in what state."""
        state = "failed" if self._failure and self.done else "done" if self.done else f"{self._parts} parts under way"
        return f"<Transfer {self.operation} of {self.nbytes} B with {self.peer}: {state}>"
