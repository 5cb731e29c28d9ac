"""Control-plane dialer: AF_UNIX to a peer that may be on this host, else TCP."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import TYPE_CHECKING, Final, cast

import anyio

from aio_transfer.control.connection import FrameConnection, SocketAddress
from aio_transfer.control.fd_passing import peer_credentials
from aio_transfer.errors import PeerLostError
from aio_transfer.topology.identity import host_identity

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aio_transfer.topology.peer_info import PeerInfo

__all__ = ("DIAL_DEADLINE_S", "dial", "dial_again")

DIAL_DEADLINE_S: Final = 10.0
_FULL_QUEUE_BACKOFF_S: Final = 0.005


async def dial(info: PeerInfo, *, host: bytes = b"", deadline_s: float = DIAL_DEADLINE_S) -> FrameConnection:
    """Connect to a peer; a handshake is to follow.

    AF_UNIX comes first when the peer claims to be on this host. When no process has its name there, or another user's
    has, the claim was wrong (a restored snapshot, a squatter) and TCP decides.

    :param host: our host identity, by default :func:`~aio_transfer.topology.identity.host_identity`
    :param deadline_s: for all attempts together
    :raises PeerLostError: no address of the peer could be reached; each is named with its reason
    :cancellation: nothing is left open
    """
    label = info.label or "unnamed"
    faults: list[str] = []
    try:
        with anyio.fail_after(deadline_s):
            sock = None
            if info.unix and info.host == (host or host_identity()):
                sock = await _try(socket.AF_UNIX, f"\0{info.unix}", faults)
            if sock is None and info.tcp_port:
                sock = await _dial_tcp(info, faults)
    except TimeoutError as error:
        where = f"{info.tcp_host}:{info.tcp_port}"
        raise PeerLostError(label, "; ".join((*faults, f"{where} did not answer within {deadline_s:g} s"))) from error
    if sock is None:
        raise PeerLostError(label, "; ".join(faults) or "it has no address that can be dialed")
    return _wrap(sock, label)


async def dial_again(connection: FrameConnection, *, deadline_s: float = DIAL_DEADLINE_S) -> FrameConnection:
    """Connect once more to the address that a dialed connection leads to.

    :raises PeerLostError: it cannot be reached any more
    :cancellation: nothing is left open
    """
    faults: list[str] = []
    sock = None
    try:
        with anyio.fail_after(deadline_s):
            family, address = connection.remote_address
            sock = await _try(family, address, faults)
    except OSError as error:  # TimeoutError included
        faults.append(str(error) or f"it did not answer within {deadline_s:g} s")
    if sock is None:
        raise PeerLostError(connection.peer, "; ".join(faults))
    return _wrap(sock, connection.peer)


def _wrap(sock: socket.socket, label: str) -> FrameConnection:
    try:
        return FrameConnection(sock)
    except OSError as error:
        sock.close()
        raise PeerLostError(label, f"it hung up at once: {error.strerror}") from error


async def _dial_tcp(info: PeerInfo, faults: list[str]) -> socket.socket | None:
    for family, address in await _resolve(info.tcp_host, info.tcp_port, faults):
        sock = await _try(family, address, faults)
        if sock is not None:
            return sock
    return None


async def _resolve(host: str, port: int, faults: list[str]) -> list[tuple[socket.AddressFamily, SocketAddress]]:
    """Return the addresses of a host; a numeric one takes no thread."""
    with contextlib.suppress(OSError, ValueError):
        return _addresses(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))
    try:
        return _addresses(await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except (OSError, ValueError) as error:  # ValueError: a name that IDNA or C cannot express
        faults.append(f"{host!r} cannot be resolved: {error}")
        return []


def _addresses(found: Iterable[tuple[object, ...]]) -> list[tuple[socket.AddressFamily, SocketAddress]]:
    return [(cast("socket.AddressFamily", entry[0]), cast("SocketAddress", entry[-1])) for entry in found]


async def _try(family: socket.AddressFamily, address: SocketAddress, faults: list[str]) -> socket.socket | None:
    """Connect to one address, or append the reason why not."""
    with contextlib.ExitStack() as undo:
        try:
            sock = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
            sock.settimeout(0)
            await _connect(sock, address)
            fault = _check(sock)
        except OSError as error:
            fault = (error.strerror or str(error)).lower()
        if not fault:
            undo.pop_all()
            return sock
    faults.append(f"{_describe(address)}: {fault}")
    return None


async def _connect(sock: socket.socket, address: SocketAddress) -> None:
    while (code := sock.connect_ex(address)) == errno.EAGAIN:  # noqa: ASYNC110 - see below
        # connect(2): the queue of an AF_UNIX listener is full, and there is no event to wait for.
        await anyio.sleep(_FULL_QUEUE_BACKOFF_S)
    if code == errno.EINPROGRESS:
        await anyio.wait_writable(sock)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


def _check(sock: socket.socket) -> str:
    """Check that a connection leads to another socket, of the same user; return the fault."""
    if sock.family == socket.AF_UNIX:
        return "" if peer_credentials(sock).uid == os.geteuid() else "another user's process has this name"
    # A local port without a listener can be given to the very socket that dials it: TCP's simultaneous open then
    # connects the socket to itself.
    return "connection refused" if sock.getsockname() == sock.getpeername() else ""


def _describe(address: SocketAddress) -> str:
    if isinstance(address, str):
        return f"unix:@{address[1:]}"
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
