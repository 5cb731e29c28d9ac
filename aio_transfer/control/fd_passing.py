"""File descriptor passing: bytes and descriptors through a non-blocking stream socket (SCM_RIGHTS)."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ("PeerCredentials", "close_fds", "duplicate_fds", "peer_credentials", "receive_some", "send_some")

_FD_NBYTES: Final = array.array("i").itemsize
_SCM_MAX_FD: Final = 253
_ANCILLARY_NBYTES: Final = socket.CMSG_SPACE(_SCM_MAX_FD * _FD_NBYTES)
_UCRED: Final = struct.Struct("3i")


class PeerCredentials(NamedTuple):
    """Process at the other end when the connection was made, as reported by the kernel."""

    pid: int
    uid: int
    gid: int


def send_some(sock: socket.socket, view: memoryview, fds: tuple[int, ...]) -> int:
    """Send what fits now; ``fds`` go with the first byte, all or none.

    :returns: bytes sent, at least 1
    :raises BlockingIOError: nothing fits
    """
    if not fds:
        return sock.send(view, socket.MSG_NOSIGNAL)
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
    return sock.sendmsg([view], [rights], socket.MSG_NOSIGNAL)


def receive_some(sock: socket.socket, nbytes: int, *, with_fds: bool) -> tuple[bytes, tuple[int, ...]]:
    """Receive up to ``nbytes`` and the file descriptors that came with them; they are the caller's.

    :param with_fds: ``sock`` is AF_UNIX. The caller knows: asking the socket each time costs more than receiving
    :returns: no bytes at the end of the stream
    :raises BlockingIOError: nothing is there
    """
    if not with_fds:
        return sock.recv(nbytes), ()
    # Room for the kernel's maximum, always: descriptors that did not fit would be cut off unnoticed.
    data, ancillary, _flags, _address = sock.recvmsg(nbytes, _ANCILLARY_NBYTES, socket.MSG_CMSG_CLOEXEC)
    if not ancillary:
        return data, ()
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(payload[: len(payload) - len(payload) % _FD_NBYTES])
    return data, tuple(fds)


def duplicate_fds(fds: Iterable[int]) -> tuple[int, ...]:
    """Duplicate all of them, close-on-exec, or none.

    :raises OSError: one is not open, or there is no room for more
    """
    duplicates: tuple[int, ...] = ()
    try:
        for fd in fds:
            duplicates += (os.dup(fd),)
    except OSError:
        close_fds(duplicates)
        raise
    return duplicates


def close_fds(fds: Iterable[int]) -> None:
    """Close every one of them, also when closing another fails."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def peer_credentials(sock: socket.socket) -> PeerCredentials:
    """Return the credentials of the process that made the other end of an AF_UNIX connection.

    :source: unix(7), SO_PEERCRED
    """
    return PeerCredentials(*_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))
