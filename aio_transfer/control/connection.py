"""Control connection: frames, and the file descriptors they announce, over one stream socket."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, NoReturn, TypeAlias

import anyio
import anyio.lowlevel

from aio_transfer.control.codec import VersionError
from aio_transfer.control.fd_passing import PeerCredentials, close_fds, peer_credentials, receive_some
from aio_transfer.control.framing import FrameReader, FrameWriter
from aio_transfer.errors import BusyError, ProtocolError, UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from aio_transfer.control.frames import Frame

__all__ = ("FrameConnection", "SocketAddress")

SocketAddress: TypeAlias = str | tuple[str, int] | tuple[str, int, int, int]


class FrameConnection:
    """One connection to one peer. One task may receive; any number may send.

    It owns the socket. The error shows which side ended the connection: the peer (:class:`anyio.EndOfStream`,
    :class:`anyio.BrokenResourceError`) or this one (:class:`anyio.ClosedResourceError`).
    """

    def __init__(self, sock: socket.socket, *, peer: str = "") -> None:
        """Wrap a connected TCP or AF_UNIX stream socket, and own it from now on.

        :param peer: named in errors; by default its address
        :raises OSError: the socket is not connected any more
        """
        sock.settimeout(0)
        self.is_local = sock.family == socket.AF_UNIX
        """Both ends are on one host: file descriptors can pass."""
        if not self.is_local:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self._peer = peer or _describe(sock, is_local=self.is_local)
        self._reader = FrameReader(self._peer)
        self._writer = FrameWriter(self._peer, can_pass_fds=self.is_local)
        self._closed = False
        self._failure: OSError | None = None
        self._receiving = False
        self._parked = 0
        # An fd admits one task in wait_writable, so senders that find the stream full take turns in it. The lock
        # guards only that wait: bytes are moved without an await, also by tasks that do not hold it.
        self._parking = anyio.Lock(fast_acquire=True)
        self._left_behind = anyio.Event()

    @property
    def peer(self) -> str:
        """Name of the peer in errors."""
        return self._peer

    @peer.setter
    def peer(self, name: str) -> None:
        self._peer = self._reader.peer = self._writer.peer = name

    @property
    def frame_limit_nbytes(self) -> int:
        """Largest frame accepted from the peer; the limit of the handshake until the handshake is over."""
        return self._reader.limit_nbytes

    @frame_limit_nbytes.setter
    def frame_limit_nbytes(self, nbytes: int) -> None:
        self._reader.limit_nbytes = nbytes

    @property
    def is_closed(self) -> bool:
        """Whether :meth:`close` or :meth:`detach` was called, here or because of what the peer sent."""
        return self._closed

    @property
    def queued_nbytes(self) -> int:
        """Number of bytes of frames that wait for room in the stream."""
        return self._writer.queued_nbytes

    @property
    def remote_address(self) -> tuple[socket.AddressFamily, SocketAddress]:
        """Family and address of the other end.

        :raises OSError: it is not connected any more
        """
        return self._socket.family, self._socket.getpeername()

    async def receive(self) -> tuple[Frame, tuple[int, ...]]:
        """Wait for the next frame.

        :returns: the frame, and exactly the file descriptors it announced, close-on-exec and now the caller's;
            any that came unannounced have been closed
        :raises VersionError: the first frame of another version; the connection stays open for the refusal
        :raises ProtocolError: the bytes are not a frame; the connection is closed
        :raises anyio.EndOfStream: the peer closed, between two frames
        :raises anyio.BrokenResourceError: the stream broke or ended inside a frame; the connection is closed
        :raises anyio.ClosedResourceError: closed here, before or meanwhile
        :raises BusyError: another task is receiving
        :cancellation: nothing is lost: a frame half received is continued by the next call
        """
        if self._receiving:
            raise BusyError(f"the connection to {self.peer}", "receiving from")
        self._receiving = True
        try:
            # The checkpoint comes first: a cancellation after a frame was taken from the stream would lose that frame.
            await anyio.lowlevel.checkpoint()
            while (received := self._pull()) is None:
                await self._park(anyio.wait_readable)
            return received
        finally:
            self._receiving = False

    def _pull(self) -> tuple[Frame, tuple[int, ...]] | None:
        """Read until a frame is whole, or nothing more is there."""
        self._check_open()
        received = None
        try:
            while received is None:
                data, fds = receive_some(self._socket, self._reader.wanted_nbytes, with_fds=self.is_local)
                if not data:
                    close_fds(fds)
                    self._raise_end()
                received = self._reader.feed(data, fds)
        except BlockingIOError:
            return None
        except OSError as error:
            self.close()
            raise anyio.BrokenResourceError from error
        except ProtocolError as error:
            if not isinstance(error, VersionError):
                self.close()
            raise
        return received

    def _raise_end(self) -> NoReturn:
        """Raise the error for the way in which the stream ended."""
        if self._reader.is_empty and self._failure is None:
            raise anyio.EndOfStream
        self.close()
        raise anyio.BrokenResourceError from self._failure

    async def send(self, frame: Frame, fds: Sequence[int] = ()) -> None:
        """Send a frame and wait until the stream has taken it.

        :param fds: as many as the frame announces; they stay the caller's, duplicates travel
        :raises UsageError: a field is outside its bound, or ``fds`` do not fit the frame or the connection
        :raises anyio.BrokenResourceError: the stream broke; what had come in before can still be received
        :raises anyio.ClosedResourceError: closed here, before or meanwhile
        :cancellation: a frame that waited for room in the queue is not sent; one that was queued still goes out
            whole, with the next :meth:`send`, :meth:`flush` or by :meth:`pump`
        """
        await self.make_room()
        self._writer.push(frame, fds)
        await self.flush()

    async def exchange(self, frame: Frame, fds: Sequence[int] = ()) -> tuple[Frame, tuple[int, ...]]:
        """Send a frame and wait for the next one of the peer.

        If the stream breaks while the frame is sent, reading goes on: a peer that has refused and closed is noticed by
        the send, and its refusal can still be read.

        :param fds: as for :meth:`send`
        :raises UsageError: as for :meth:`send`
        :raises ProtocolError: as for :meth:`receive`; also its errors for a stream that ended
        :cancellation: the frame may have been sent; nothing that came in is lost
        """
        with contextlib.suppress(anyio.BrokenResourceError):
            self.send_nowait(frame, fds)
            if self._writer.queued_nbytes:
                await self.flush()
        return await self.receive()

    async def make_room(self) -> None:
        """Wait until the queue takes a frame at once.

        :raises anyio.BrokenResourceError: the stream broke
        :raises anyio.ClosedResourceError: closed here, before or meanwhile
        :cancellation: nothing has happened
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        self._check_writable()
        while not self._writer.has_room:
            await self.flush()

    def send_nowait(self, frame: Frame, fds: Sequence[int] = ()) -> None:
        """Queue a frame and send what the stream takes at once; :meth:`pump` sends the rest.

        :param fds: as many as the frame announces; they stay the caller's, duplicates travel
        :raises BusyError: more than 16 MiB would be queued; the frame was not
        :raises UsageError: a field is outside its bound, or ``fds`` do not fit the frame or the connection
        :raises anyio.BrokenResourceError: the stream is broken
        :raises anyio.ClosedResourceError: closed here
        """
        self._check_writable()
        self._writer.push(frame, fds)
        self._write()
        self._wake_pump()

    async def flush(self) -> None:
        """Wait until the stream has taken every frame queued before this call.

        :raises anyio.BrokenResourceError: the stream broke; what had come in before can still be received
        :raises anyio.ClosedResourceError: closed here, before or meanwhile
        :cancellation: what is left goes out with the next call, or by :meth:`pump`
        """
        goal = self._writer.pushed_nbytes
        try:
            self._write()
            await anyio.lowlevel.checkpoint()
            while not self._is_sent(goal):
                async with self._parking:
                    if not self._is_sent(goal):
                        await self._park(anyio.wait_writable)
                        self._write()
        finally:
            self._wake_pump()

    async def pump(self) -> None:
        """Send what :meth:`send_nowait` and cancelled senders leave behind; returns once nothing can be sent any more.

        Run one of these beside the receiver, which reports how the connection ended.
        """
        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            while True:
                await self._left_behind.wait()
                self._left_behind = anyio.Event()
                await self.flush()

    def _wake_pump(self) -> None:
        if self._writer.queued_nbytes:
            self._left_behind.set()

    def _is_sent(self, goal: int) -> bool:
        self._check_writable()
        return self._writer.sent_nbytes >= goal

    def _write(self) -> None:
        self._check_writable()
        try:
            self._writer.write(self._socket)
        except OSError as error:
            # Reading goes on: the peer may have sent its reason before it closed. Shutting down makes sure that
            # reading ends, on errors that do not end it themselves (ETOOMANYREFS, ENOBUFS).
            self._failure = error
            self._writer.discard()
            self._left_behind.set()
            self._shut_down()
            raise anyio.BrokenResourceError from error

    async def _park(self, wait: Callable[[socket.socket], Awaitable[None]]) -> None:
        """Wait for the fd; the last task that waited on a closed connection closes the fd.

        :meth:`close` does not: the number might be in use again before the woken task runs, and anyio 4.16's cleanup
        on asyncio, which goes by the number, would remove the new owner's waiter.
        """
        self._parked += 1
        try:
            await wait(self._socket)
        except anyio.ClosedResourceError:
            self._check_open()
            raise
        finally:
            self._parked -= 1
            self._release()

    def _release(self) -> None:
        if self._closed and not self._parked:
            self._socket.close()

    def _check_open(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError from self._failure

    def _check_writable(self) -> None:
        self._check_open()
        if self._failure is not None:
            raise anyio.BrokenResourceError from self._failure

    def close(self) -> None:
        """Close at once and wake every waiting task. The queue is dropped. Idempotent, and never blocks."""
        if self._closed:
            return
        self._closed = True
        self._reader.discard()
        self._writer.discard()
        self._left_behind.set()
        self._shut_down()
        if self._parked:
            try:
                anyio.notify_closing(self._socket)
            except anyio.NoEventLoopError:
                self._parked = 0  # the loop is gone, and its waiting tasks with it
        self._release()

    def _shut_down(self) -> None:
        # The peer sees the end now, though the fd may stay open for one more turn of the loop.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def detach(self) -> int:
        """Release the fd, still non-blocking; the connection is then closed, and the peer does not notice.

        :returns: the fd, now the caller's; the next byte in it begins a frame
        :raises BusyError: a task is receiving or sending
        :raises UsageError: a frame is half received or not wholly sent
        :raises anyio.ClosedResourceError: closed
        """
        self._check_writable()
        if self._receiving or self._parked:
            raise BusyError(f"the connection to {self.peer}", "using")
        if self.queued_nbytes or not self._reader.is_empty:
            msg = f"the connection to {self.peer} cannot be given away in the middle of a frame"
            raise UsageError(msg)
        self._closed = True
        self._left_behind.set()
        return self._socket.detach()

    def peer_credentials(self) -> PeerCredentials:
        """Return process id, user id and group id of the other end when it connected.

        :raises UsageError: not an AF_UNIX connection
        """
        self._check_open()
        if not self.is_local:
            msg = f"the connection to {self.peer} is not AF_UNIX: the kernel knows no credentials"
            raise UsageError(msg)
        return peer_credentials(self._socket)


def _describe(sock: socket.socket, *, is_local: bool) -> str:
    """Return the address of the other end in its usual notation."""
    if is_local:
        return f"unix:pid={peer_credentials(sock).pid}"
    host, port = sock.getpeername()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
