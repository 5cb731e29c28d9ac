"""Where peers knock: one TCP and one AF_UNIX socket, and a handshake for everyone who connects.

Nothing a stranger does ends more than their own connection, and strangers who connect and say nothing cannot keep
others out: at most ``half_open_limit`` handshakes run at a time. When that many do, accepting pauses until one ends
(the kernel's queue holds the rest, as when a thousand ranks start at once), or until the oldest has had ``patience_s``
and is dropped for the next.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from typing import TYPE_CHECKING, Final

import anyio
import anyio.lowlevel
from msgspec import Struct, field

from aio_transfer.control.connection import FrameConnection
from aio_transfer.control.handshake import HANDSHAKE_DEADLINE_S, answer
from aio_transfer.errors import AioTransferError, BusyError, ProviderError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aio_transfer.control.frames import Hello, Refusal
    from aio_transfer.control.handshake import Credentials, Session

__all__ = ("ABSTRACT_NAME_PREFIX", "Listener")

ABSTRACT_NAME_PREFIX: Final = "aio-transfer-"
_BACKLOG: Final = 4096
"""Linux cuts it to net.core.somaxconn, 4096 since 5.4."""
_BACKOFF_S: Final = 0.1
_LOGGER: Final = logging.getLogger(__name__)


class _HalfOpen(Struct, eq=False):
    """A connection whose handshake is under way."""

    connection: FrameConnection
    since: float
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)


class Listener:
    """The bound sockets of one engine. Made by :meth:`bind`; it accepts while :meth:`serve` runs."""

    def __init__(
        self, sockets: tuple[socket.socket, ...], unix: str, *, half_open_limit: int, patience_s: float
    ) -> None:
        """Take bound sockets over, TCP first; use :meth:`bind`."""
        self.host, self.port = sockets[0].getsockname()[:2]
        """The bound TCP address. Not one to dial when it is a wildcard (``0.0.0.0``)."""
        self.unix = unix
        """The name in the abstract AF_UNIX namespace, without the leading NUL, or empty."""
        self._sockets = sockets
        self._limit = half_open_limit
        self._patience_s = patience_s
        self._half_open: dict[_HalfOpen, None] = {}
        self._freed = anyio.Event()
        self._scope: anyio.CancelScope | None = None
        self._ended = anyio.Event()
        self._closed = False

    @classmethod
    async def bind(
        cls,
        incarnation: bytes,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        unix: bool = True,
        half_open_limit: int = 128,
        patience_s: float = 1.0,
    ) -> Listener:
        """Bind and listen; peers can connect, and wait until :meth:`serve` runs.

        :param host: a numeric address or a name of this machine
        :param port: 0 for any free one
        :param unix: also listen on an abstract AF_UNIX name that ends in ``incarnation``
        :param half_open_limit: how many handshakes may be under way
        :param patience_s: how long a handshake may take while others wait for its place
        :raises ProviderError: an address cannot be bound
        """
        name = f"{ABSTRACT_NAME_PREFIX}{incarnation.hex()}" if unix else ""
        with contextlib.ExitStack() as undo:
            sockets = [undo.enter_context(await _bind_tcp(host, port))]
            if unix:
                sockets.append(undo.enter_context(_listen(socket.AF_UNIX, f"\0{name}")))
            listener = cls(tuple(sockets), name, half_open_limit=half_open_limit, patience_s=patience_s)
            undo.pop_all()
        return listener

    async def serve(
        self,
        on_session: Callable[[Session], None],
        credentials: Credentials,
        *,
        decide: Callable[[Hello], Refusal | None] = lambda _hello: None,
        deadline_s: float = HANDSHAKE_DEADLINE_S,
    ) -> None:
        """Accept connections until cancelled or closed; on a closed listener it returns at once.

        :param on_session: called with each accepted session, right after ``decide`` with no checkpoint in between; it
            owns the connection from then on. What it raises ends the listener: it is the engine's bug
        :param decide: asked about each dialer that has proven itself
        :param deadline_s: for one whole handshake
        :raises BusyError: it is served already
        :cancellation: handshakes under way are ended; the sockets stay bound until :meth:`aclose`
        """
        if self._scope is not None:
            raise BusyError("the control listener", "serving")
        if self._closed:
            return
        self._ended = anyio.Event()

        async def greet(half_open: _HalfOpen) -> None:
            session = await self._shake(half_open, credentials, decide, deadline_s)
            if session is not None:
                on_session(session)

        try:
            with anyio.CancelScope() as self._scope:
                async with anyio.create_task_group() as tasks:

                    def start(half_open: _HalfOpen) -> None:
                        tasks.start_soon(greet, half_open)

                    for sock in self._sockets:
                        tasks.start_soon(self._accept_all, sock, start)
        finally:
            # A task that was cancelled before its first step has closed nothing.
            for half_open in tuple(self._half_open):
                self._forget(half_open)
                half_open.connection.close()
            self._scope = None
            self._ended.set()

    async def aclose(self) -> None:
        """Stop accepting and unbind; accepted sessions live on. Idempotent.

        :cancellation: it closes all the same
        """
        self._closed = True
        if self._scope is not None:
            self._scope.cancel()
            # Shielded: the sockets may be closed only after the accepting tasks have left them, which takes a turn of
            # the loop and waits for nobody else.
            with anyio.CancelScope(shield=True):
                await self._ended.wait()
        for sock in self._sockets:
            sock.close()

    async def _accept_all(self, sock: socket.socket, start: Callable[[_HalfOpen], None]) -> None:
        while True:
            await self._wait_for_room()
            half_open = await self._accept(sock)
            if half_open is not None:
                self._half_open[half_open] = None
                start(half_open)

    async def _wait_for_room(self) -> None:
        # Also where a flood of connections lets other tasks run.
        await anyio.lowlevel.checkpoint()
        while len(self._half_open) >= self._limit:
            oldest = next(iter(self._half_open))
            left_s = oldest.since + self._patience_s - anyio.current_time()
            if left_s <= 0:
                _LOGGER.info("dropping %s: it holds a place others wait for", oldest.connection.peer)
                oldest.scope.cancel()
                self._forget(oldest)
                continue
            with anyio.move_on_after(left_s):
                await self._freed.wait()

    async def _accept(self, sock: socket.socket) -> _HalfOpen | None:
        """Wait for one connection; ``None`` when there was one and it is gone, or cannot be had now."""
        try:
            accepted, _address = sock.accept()
        except BlockingIOError:
            await anyio.wait_readable(sock)
            return None
        except OSError as error:
            # No error of accept(2) is final. Most say that one connection is gone; when it is out of descriptors or
            # memory the socket stays readable, so trying again at once would burn the core that could free some.
            _LOGGER.warning("accepting a connection failed, trying again in %g s: %s", _BACKOFF_S, error)
            await anyio.sleep(_BACKOFF_S)
            return None
        try:
            return _HalfOpen(FrameConnection(accepted), anyio.current_time())
        except OSError:
            accepted.close()
            return None

    async def _shake(
        self,
        half_open: _HalfOpen,
        credentials: Credentials,
        decide: Callable[[Hello], Refusal | None],
        deadline_s: float,
    ) -> Session | None:
        """Shake hands with one stranger, whatever that takes; the connection is closed unless it gives a session."""
        session = None
        try:
            with half_open.scope:
                session = await answer(half_open.connection, credentials, decide=decide, deadline_s=deadline_s)
        except AioTransferError as error:
            _LOGGER.info("refused a connection: %s", error)
        except Exception:
            # Ours to mend, but a bug that a stranger can reach must not take the listener down.
            _LOGGER.exception("handshake with %s failed", half_open.connection.peer)
        finally:
            self._forget(half_open)
            if session is None:
                half_open.connection.close()
        return session

    def _forget(self, half_open: _HalfOpen) -> None:
        if half_open in self._half_open:
            del self._half_open[half_open]
            self._freed.set()
            self._freed = anyio.Event()


async def _bind_tcp(host: str, port: int) -> socket.socket:
    try:
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:
        raise ProviderError(f"resolving {host!r} to listen on", code_name=str(error)) from error
    family, *_rest, address = found[0]
    return _listen(socket.AddressFamily(family), address)


def _listen(family: socket.AddressFamily, address: str | tuple[str, int] | tuple[str, int, int, int]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family != socket.AF_UNIX:
            # A restarted engine gets its port back though connections of its former life linger (TIME_WAIT).
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
        sock.setblocking(False)  # noqa: FBT003
    except OSError as error:
        sock.close()
        code = error.errno or 0
        raise ProviderError(f"listening on {address!r}", code=code, code_name=errno.errorcode.get(code, "")) from error
    return sock
