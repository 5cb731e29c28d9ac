"""Control-plane listener: TCP and AF_UNIX sockets, one handshake per connection.

A dialer can end nothing but its own connection, and dialers that send nothing cannot keep others out: at most
``half_open`` handshakes run at a time. When as many do, accepting pauses until one ends (the kernel's queue holds the
rest, as when a thousand ranks start at once), or until the oldest has had ``patience_s`` and is dropped for the next.
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
from aio_transfer.control.handshake import HANDSHAKE_DEADLINE_S, Session, server_handshake
from aio_transfer.errors import AioTransferError, BusyError, ProviderError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from aio_transfer.control.authentication import AttachProofs
    from aio_transfer.control.frames import AttachHeartbeat, Hello, Refusal
    from aio_transfer.control.handshake import Credentials, HeartbeatConnection

    class Acceptor(Protocol):
        """Engine's part in accepting connections.

        Nothing runs between ``decide`` and ``on_session``, or between ``heartbeat_proofs`` and ``on_heartbeat``. What
        these raise ends the listener, since it is a bug of the engine; what the others raise ends one connection.
        """

        def decide(self, hello: Hello) -> Refusal | None:
            """Return the reason to refuse a dialer that has proven itself, or ``None``."""
            ...

        def heartbeat_proofs(self, attach: AttachHeartbeat) -> AttachProofs | None:
            """Return the proofs of the session that waits for this heartbeat, or ``None``; change nothing."""
            ...

        def on_session(self, session: Session) -> None:
            """Take over an accepted session and its connection."""
            ...

        def on_heartbeat(self, heartbeat: HeartbeatConnection) -> None:
            """Take over a heartbeat connection that has proven its session."""
            ...


__all__ = ("ABSTRACT_NAME_PREFIX", "Listener", "ListenerLimits")

ABSTRACT_NAME_PREFIX: Final = "aio-transfer-"
_BACKLOG: Final = 4096
"""Linux cuts it to net.core.somaxconn, 4096 since 5.4."""
_BACKOFF_S: Final = 0.1
_LOGGER: Final = logging.getLogger(__name__)


class ListenerLimits(Struct, frozen=True, kw_only=True):
    """Limits on handshakes that do not end.

    :param half_open: number of handshakes that may be under way
    :param patience_s: how long a handshake may take while further connections wait
    """

    half_open: int = 128
    patience_s: float = 1.0


_DEFAULT_LIMITS: Final = ListenerLimits()


class _HalfOpen(Struct, eq=False):
    """Connection whose handshake is under way."""

    connection: FrameConnection
    since: float
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)


class Listener:
    """Bound sockets of one engine. Made by :meth:`bind`; it accepts while :meth:`serve` runs."""

    def __init__(self, sockets: tuple[socket.socket, ...], unix: str, limits: ListenerLimits) -> None:
        """Own bound sockets, TCP first; use :meth:`bind`."""
        self.host, self.port = sockets[0].getsockname()[:2]
        """The bound TCP address. It cannot be dialed when it is a wildcard (``0.0.0.0``)."""
        self.unix = unix
        """The name in the abstract AF_UNIX namespace, without the leading NUL, or empty."""
        self._sockets = sockets
        self._limits = limits
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
        limits: ListenerLimits = _DEFAULT_LIMITS,
    ) -> Listener:
        """Bind and listen; peers can connect, and wait until :meth:`serve` runs.

        :param host: a numeric address or a name of this machine
        :param port: 0 for any free one
        :param unix: also listen on an abstract AF_UNIX name that ends in ``incarnation``
        :raises ProviderError: an address cannot be bound
        """
        name = f"{ABSTRACT_NAME_PREFIX}{incarnation.hex()}" if unix else ""
        with contextlib.ExitStack() as undo:
            sockets = [undo.enter_context(await _bind_tcp(host, port))]
            if unix:
                sockets.append(undo.enter_context(_listen(socket.AF_UNIX, f"\0{name}")))
            listener = cls(tuple(sockets), name, limits)
            undo.pop_all()
        return listener

    async def serve(
        self, acceptor: Acceptor, credentials: Credentials, *, deadline_s: float = HANDSHAKE_DEADLINE_S
    ) -> None:
        """Accept connections until cancelled or closed; on a closed listener it returns at once.

        :param acceptor: accepts or refuses, and owns what it has accepted
        :param deadline_s: for one whole handshake
        :raises BusyError: it is served already
        :cancellation: handshakes under way are ended; the sockets stay bound until :meth:`aclose`
        """
        if self._scope is not None:
            raise BusyError("the control listener", "serving")
        if self._closed:
            return
        self._ended = anyio.Event()

        async def handle(half_open: _HalfOpen) -> None:
            accepted = await self._run_handshake(half_open, acceptor, credentials, deadline_s)
            if isinstance(accepted, Session):
                acceptor.on_session(accepted)
            elif accepted is not None:
                acceptor.on_heartbeat(accepted)

        try:
            with anyio.CancelScope() as self._scope:
                async with anyio.create_task_group() as tasks:

                    def start(half_open: _HalfOpen) -> None:
                        tasks.start_soon(handle, half_open)

                    for sock in self._sockets:
                        tasks.start_soon(self._accept_all, sock, start)
        finally:
            # A task that was cancelled before its first step has closed nothing.
            for half_open in tuple(self._half_open):
                self._remove(half_open)
                half_open.connection.close()
            self._scope = None
            self._ended.set()

    async def aclose(self) -> None:
        """Stop accepting and unbind; accepted sessions stay open. Idempotent.

        :cancellation: it closes all the same
        """
        self._closed = True
        if self._scope is not None:
            self._scope.cancel()
            # Shielded: the sockets may be closed only after the accepting tasks have left them, which takes a turn of
            # the loop and waits for nothing else.
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
        # The only checkpoint while connections keep coming: it lets other tasks run.
        await anyio.lowlevel.checkpoint()
        while len(self._half_open) >= self._limits.half_open:
            oldest = next(iter(self._half_open))
            left_s = oldest.since + self._limits.patience_s - anyio.current_time()
            if left_s <= 0:
                _LOGGER.info("dropping %s: its handshake is slow and other connections wait", oldest.connection.peer)
                oldest.scope.cancel()
                self._remove(oldest)
                continue
            with anyio.move_on_after(left_s):
                await self._freed.wait()

    async def _accept(self, sock: socket.socket) -> _HalfOpen | None:
        """Wait for one connection; ``None`` when it is gone again, or cannot be accepted now."""
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

    async def _run_handshake(
        self, half_open: _HalfOpen, acceptor: Acceptor, credentials: Credentials, deadline_s: float
    ) -> Session | HeartbeatConnection | None:
        """Run one handshake to its end; the connection is closed unless it is accepted."""
        accepted = None
        try:
            with half_open.scope:
                accepted = await server_handshake(
                    half_open.connection,
                    credentials,
                    decide=acceptor.decide,
                    heartbeat_proofs=acceptor.heartbeat_proofs,
                    deadline_s=deadline_s,
                )
        except AioTransferError as error:
            _LOGGER.info("refused a connection: %s", error)
        except Exception:
            # A bug of ours, but one that a dialer can trigger must not take the listener down.
            _LOGGER.exception("handshake with %s failed", half_open.connection.peer)
        finally:
            self._remove(half_open)
            if accepted is None:
                half_open.connection.close()
        return accepted

    def _remove(self, half_open: _HalfOpen) -> None:
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
            # A restarted engine gets its port back although connections of the former one are in TIME_WAIT.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
        sock.settimeout(0)
    except OSError as error:
        sock.close()
        code = error.errno or 0
        raise ProviderError(f"listening on {address!r}", code=code, code_name=errno.errorcode.get(code, "")) from error
    return sock
