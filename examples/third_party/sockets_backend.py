"""Backend in pure Python: one-sided writes and reads over AF_UNIX sockets, for peers on this host.

A connection is two streams of whole frames: each side sends requests on the stream it created, one frame at a time, and
receives the answers there. Each stream has a thread that may block on it, so a peer that hangs delays no other.
"""

import ctypes
import os
import socket
import struct
from contextlib import suppress
from queue import SimpleQueue
from threading import RLock, Thread
from typing import Any

import aio_transfer.driver as seam
from aio_transfer.driver.event_queue import EventQueue
from aio_transfer.driver.records import Access, EventKind, Op, PieceFlag, Status
from aio_transfer.errors import BackendUnavailableError, ProviderError, UnsupportedError

KEY = struct.Struct("<I8s")  # a region's number at its owner, and a secret: a sender that has both was granted it
FRAME = struct.Struct("<HHI12sQI")  # op, flags, immediate, key, offset, nbytes; the payload of a write follows
FRAME_NBYTES = 64 << 10  # of payload; a larger piece is sent in several frames, and counts with the last
NO_MEMORY = seam.LocalMemory(addr=0, nbytes=0, access=Access.REMOTE_WRITE)  # the region of a bare notification
REASONS = {int(Status.PEER_LOST): b"its stream has ended", int(Status.PROVIDER): b"its owner does not grant that"}


class Connection:
    def __init__(self, send_requests: Any, peer: int) -> None:
        self.requests, self.far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.served: socket.socket | None = None
        self.posted: SimpleQueue[tuple[list[int], int, bytes, bytes] | None] = SimpleQueue()
        self.threads: list[Thread] = []
        self.closed = False
        self.start(send_requests, self.requests, self, peer)

    def start(self, run: Any, sock: socket.socket, *arguments: object) -> None:
        sock.settimeout(None)
        thread = Thread(target=run, args=(sock, *arguments), daemon=True)
        thread.start()
        self.threads.append(thread)

    def shut_down(self) -> None:
        """End both streams for both sides: bytes in them can still be read, and then their threads end."""
        for sock in filter(None, (self.requests, self.served)):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class SocketsDriver:
    """The twelve methods of :class:`aio_transfer.driver.Driver`, and below them the threads."""

    def __init__(self) -> None:
        # Never held while a socket blocks. Frames are applied under it: nothing is written to a region once
        # deregister() has returned, and a thread that sees a count sees its payload.
        self._lock = RLock()
        self._ours = {int(seam.ANY_REGION): (bytes(KEY.size), NO_MEMORY)}
        self._theirs = {int(seam.ANY_REGION): bytes(KEY.size)}
        self._connections: dict[int, Connection] = {}
        self._pid = 0

    def open(self) -> seam.Capabilities:
        try:
            self._events = EventQueue()
        except (AttributeError, OSError) as error:
            raise BackendUnavailableError("sockets", f"no eventfd: {error}") from error
        self._pid = os.getpid()
        has: dict[str, Any] = {"provider": "unix", "rails": ("unix",), "protocol": "frames", "same_host": True}
        return seam.Capabilities(backend="sockets", max_piece_nbytes=1 << 40, **has)

    def register(self, region: int, memory: seam.LocalMemory | seam.RemoteMemory) -> bytes:
        if isinstance(memory, seam.RemoteMemory):
            self._theirs[region] = memory.keys
            return b""
        key = KEY.pack(region, os.urandom(8))
        self._ours[region] = (key, memory)
        return key

    def deregister(self, region: int) -> None:
        with self._lock:
            if self._theirs.pop(region, None) is None and self._ours.pop(region, None) is not None:
                self._events.emit(EventKind.RELEASED, region)

    def connect(self, peer: int, remote: seam.Endpoint | None) -> seam.Endpoint:
        try:
            connection = self._connections.get(peer)
            if connection is None:
                connection = self._connections[peer] = Connection(self._send_requests, peer)
            if remote is not None:
                connection.served = socket.fromfd(remote.fds[0], socket.AF_UNIX, socket.SOCK_SEQPACKET)
                connection.start(self._serve_requests, connection.served, connection)
        except (
            OSError,
            RuntimeError,
            IndexError,
        ) as error:  # no file descriptor or thread left, or none was sent along
            raise ProviderError("connect", code_name=str(error)) from error
        return seam.Endpoint(blob=b"", fds=(connection.far_end.fileno(),))

    def disconnect(self, peer: int, *, lost: bool) -> None:  # noqa: ARG002
        """Revoke at once, lost or not: what the peer has sent is at our end already, and applied before FENCED."""
        with self._lock:
            connection = self._connections.get(peer)
            if connection is None:
                return self._events.emit(EventKind.FENCED, peer)
            connection.closed = True
            connection.shut_down()
            return connection.posted.put(None)

    def post(self, transfer: int, runs: Any, pieces: Any) -> bool:
        wanted = tuple(seam.RUN_STRUCT.iter_unpack(bytes(runs)))
        records, size, left = bytes(pieces), seam.PIECE_STRUCT.size, [transfer, len(wanted), Status.OK]
        with self._lock:
            for peer, _, op, _, region, first, count, _ in wanted:  # the thread carries them out in order
                connection, key = self._connections.get(peer), self._theirs.get(region)
                if connection is None or connection.closed or key is None:
                    self._finish(left, Status.STALE_REGION if key is None else Status.PEER_LOST)
                else:
                    connection.posted.put((left, op, key, records[first * size : (first + count) * size]))
        return not wanted

    def send(self, peer: int, message: int, payload: bytes) -> None:  # noqa: ARG002
        raise UnsupportedError("a message", needs="max_message_nbytes > 0", has="0: the engine sends it itself")

    def expect(self, counter: int, counts: int) -> int:
        return self._events.expect(counter, counts)

    def fileno(self) -> int:
        return self._events.fileno()

    def drain(self, limit: int) -> list[seam.Event]:
        return self._events.take(limit)

    def statistics(self) -> dict[str, int]:
        handles = len(self._ours) + len(self._theirs) + len(self._connections) - 2  # the two entries of ANY_REGION
        return self._events.totals | {"handles": handles}

    def close(self) -> None:
        if self._pid == os.getpid():  # not in a forked child: its copies of the sockets are the parent's streams
            self._pid = 0
            for peer, connection in tuple(self._connections.items()):
                self.disconnect(peer, lost=True)
                connection.threads[0].join()  # it waits for no peer: its streams have ended
            self._events.close()

    # ------------------------------------------------------------------------------------------------- the threads

    def _send_requests(self, sock: socket.socket, connection: Connection, peer: int) -> None:
        """Carry out what is posted to one peer, run by run, until the connection ends."""
        with sock, connection.far_end:
            for left, op, key, pieces in iter(connection.posted.get, None):
                try:
                    status = self._carry_out(sock, op, key, pieces)
                except (OSError, IndexError):
                    connection.shut_down()
                    status = Status.PEER_LOST
                with self._lock:
                    self._finish(left, status)
        for thread in connection.threads[1:]:
            thread.join()
        with self._lock:
            del self._connections[peer]
            self._events.emit(EventKind.FENCED, peer)

    def _carry_out(self, sock: socket.socket, op: int, key: bytes, pieces: bytes) -> int:
        """Send frame by frame; an answer is a status and the bytes read. IndexError: the stream has ended."""
        for addr, offset, nbytes, immediate, flags in seam.PIECE_STRUCT.iter_unpack(pieces):
            for at in range(0, nbytes or 1, FRAME_NBYTES):
                part = min(FRAME_NBYTES, nbytes - at)
                header = FRAME.pack(op, flags if at + part == nbytes else 0, immediate, key, offset + at, part)
                sock.send(header if op == Op.READ else header + ctypes.string_at(addr + at, part))
                answer = sock.recv(1 + FRAME_NBYTES)
                if answer[0] or len(answer) != 1 + (part if op == Op.READ else 0):
                    return answer[0] or Status.PROVIDER
                ctypes.memmove(addr + at, answer[1:], len(answer) - 1)
                with self._lock:
                    self._events.totals["nbytes"] += part
                    self._events.totals["writes"] += op == Op.WRITE
        return Status.OK

    def _finish(self, left: list[int], status: int) -> None:
        """End one run; with the last run of a transfer its event is reported, with the first failure."""
        left[1:] = left[1] - 1, left[2] or status
        if not left[1]:
            self._events.emit(EventKind.TRANSFER, left[0], left[2], payload=REASONS.get(left[2], b""))

    def _serve_requests(self, sock: socket.socket, connection: Connection) -> None:
        """Serve the requests of a peer, frame by frame, until its stream ends."""
        with sock, suppress(OSError):
            while frame := sock.recv(FRAME.size + FRAME_NBYTES):
                answer = self._apply(frame)
                with suppress(ConnectionError):  # one side has ended it: the next recv() returns nothing
                    sock.send(answer)
        connection.shut_down()

    def _apply(self, frame: bytes) -> bytes:
        op, flags, immediate, key, offset, asked = FRAME.unpack(frame[: FRAME.size].ljust(FRAME.size, b"\0"))
        reads, payload = op == Op.READ, frame[FRAME.size :]
        nbytes, access = (asked, Access.REMOTE_READ) if reads else (len(payload), Access.REMOTE_WRITE)
        with self._lock:
            expected, memory = self._ours.get(KEY.unpack(key)[0], (b"", NO_MEMORY))
            if key != expected:
                return bytes((Status.STALE_REGION,))
            if access not in memory.access or offset + nbytes > memory.nbytes or nbytes > FRAME_NBYTES:
                return bytes((Status.PROVIDER,))
            if reads:
                return bytes((Status.OK,)) + ctypes.string_at(memory.addr + offset, nbytes)
            ctypes.memmove(memory.addr + offset, payload, nbytes)
            if flags & PieceFlag.IMMEDIATE:
                self._events.count(immediate)
            return bytes((Status.OK,))


BACKEND = seam.Backend(name="sockets", create=SocketsDriver, summary="AF_UNIX sockets within one host, in Python.")
