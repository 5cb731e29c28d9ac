"""A whole backend in pure Python: one-sided writes and reads over AF_UNIX sockets, for peers on this host.

A connection is two streams of whole frames: each side asks on the one it made, one frame at a time, and is answered
there. Each stream has a thread that may block on it: a peer that does not move holds up nobody else.
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

KEY = struct.Struct("<I8s")  # a region's number at its owner, and a secret: who knows both has been granted it
FRAME = struct.Struct("<HHI12sQI")  # op, flags, immediate, key, offset, nbytes; the payload of a write follows
FRAME_NBYTES = 64 << 10  # of payload; a larger piece travels in several frames, and counts with the last
NOWHERE = seam.LocalMemory(addr=0, nbytes=0, access=Access.REMOTE_WRITE)  # what a bare notification names
WORDS = {int(Status.PEER_LOST): b"its stream has ended", int(Status.PROVIDER): b"its owner does not grant that"}


class Link:
    def __init__(self, ask: Any, peer: int) -> None:
        self.asking, self.far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.answering: socket.socket | None = None
        self.posted: SimpleQueue[tuple[list[int], int, bytes, bytes] | None] = SimpleQueue()
        self.threads: list[Thread] = []
        self.over = False
        self.start(ask, self.asking, self, peer)

    def start(self, run: Any, sock: socket.socket, *arguments: object) -> None:
        sock.settimeout(None)
        thread = Thread(target=run, args=(sock, *arguments), daemon=True)
        thread.start()
        self.threads.append(thread)

    def shut_down(self) -> None:
        """End both streams for both sides: what is in them can still be read, and then their threads end."""
        for sock in filter(None, (self.asking, self.answering)):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class SocketsDriver:
    """The twelve methods of :class:`aio_transfer.driver.protocol.Driver`, and below them what the threads do."""

    def __init__(self) -> None:
        # Held for moments, never while a socket blocks. A frame is applied under it: nothing lands in a region once
        # deregister() has returned, and whoever sees a count sees its payload.
        self._lock = RLock()
        self._ours = {int(seam.ANY_REGION): (bytes(KEY.size), NOWHERE)}
        self._theirs = {int(seam.ANY_REGION): bytes(KEY.size)}
        self._links: dict[int, Link] = {}
        self._pid = 0

    def open(self) -> seam.Capabilities:
        try:
            self._ledger = EventQueue()
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
                self._ledger.emit(EventKind.RELEASED, region)

    def connect(self, peer: int, remote: seam.Endpoint | None) -> seam.Endpoint:
        try:
            link = self._links.get(peer) or self._links.setdefault(peer, Link(self._ask, peer))
            if remote is not None:
                link.answering = socket.fromfd(remote.fds[0], socket.AF_UNIX, socket.SOCK_SEQPACKET)
                link.start(self._answer, link.answering, link)
        except (OSError, RuntimeError, IndexError) as error:  # no fd, no thread, or nothing came along
            raise ProviderError("connect", code_name=str(error)) from error
        return seam.Endpoint(blob=b"", fds=(link.far_end.fileno(),))

    def disconnect(self, peer: int, *, lost: bool) -> None:  # noqa: ARG002
        """Revoke at once, lost or not: what the peer has sent is at our end already, and applied before FENCED."""
        with self._lock:
            link = self._links.get(peer)
            if link is None:
                return self._ledger.emit(EventKind.FENCED, peer)
            link.over = True
            link.shut_down()
            return link.posted.put(None)

    def post(self, transfer: int, runs: Any, pieces: Any) -> bool:
        wanted = tuple(seam.RUN_STRUCT.iter_unpack(bytes(runs)))
        records, size, left = bytes(pieces), seam.PIECE_STRUCT.size, [transfer, len(wanted), Status.OK]
        with self._lock:
            for peer, _, op, _, region, first, count, _ in wanted:  # the thread is done with one before the next
                link, key = self._links.get(peer), self._theirs.get(region)
                if link is None or link.over or key is None:
                    self._finish(left, Status.STALE_REGION if key is None else Status.PEER_LOST)
                else:
                    link.posted.put((left, op, key, records[first * size : (first + count) * size]))
        return not wanted

    def send(self, peer: int, message: int, payload: bytes) -> None:  # noqa: ARG002
        raise UnsupportedError("a message", needs="max_message_nbytes > 0", has="0: the engine carries it itself")

    def expect(self, counter: int, counts: int) -> int:
        return self._ledger.expect(counter, counts)

    def fileno(self) -> int:
        return self._ledger.fileno()

    def drain(self, limit: int) -> list[seam.Event]:
        return self._ledger.take(limit)

    def statistics(self) -> dict[str, int]:
        handles = len(self._ours) + len(self._theirs) + len(self._links) - 2  # that stand for no region
        return self._ledger.totals | {"handles": handles}

    def close(self) -> None:
        if self._pid == os.getpid():  # not in a forked child: its copies of the sockets are the parent's streams
            self._pid = 0
            for peer, link in tuple(self._links.items()):
                self.disconnect(peer, lost=True)
                link.threads[0].join()  # it waits for no peer: its streams have ended
            self._ledger.close()

    # ------------------------------------------------------------------------------------------------- the threads

    def _ask(self, sock: socket.socket, link: Link, peer: int) -> None:
        """Carry out what is posted to one peer, run by run; then the connection is over."""
        with sock, link.far_end:
            for left, op, key, pieces in iter(link.posted.get, None):
                try:
                    status = self._carry_out(sock, op, key, pieces)
                except (OSError, IndexError):
                    link.shut_down()
                    status = Status.PEER_LOST
                with self._lock:
                    self._finish(left, status)
        for thread in link.threads[1:]:
            thread.join()
        with self._lock:
            del self._links[peer]
            self._ledger.emit(EventKind.FENCED, peer)

    def _carry_out(self, sock: socket.socket, op: int, key: bytes, pieces: bytes) -> int:
        """Ask frame by frame; an answer is a status, and what was read. No answer (IndexError): it is over."""
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
                    self._ledger.totals["nbytes"] += part
                    self._ledger.totals["writes"] += op == Op.WRITE
        return Status.OK

    def _finish(self, left: list[int], status: int) -> None:
        """End one run; with its last a transfer has stopped moving, and is told of."""
        left[1:] = left[1] - 1, left[2] or status
        if not left[1]:
            self._ledger.emit(EventKind.TRANSFER, left[0], left[2], payload=WORDS.get(left[2], b""))

    def _answer(self, sock: socket.socket, link: Link) -> None:
        """Do what a peer asks for, frame by frame, until its stream ends."""
        with sock, suppress(OSError):
            while frame := sock.recv(FRAME.size + FRAME_NBYTES):
                answer = self._apply(frame)
                with suppress(ConnectionError):  # the peer, or we, have ended it: the next recv() says so
                    sock.send(answer)
        link.shut_down()

    def _apply(self, frame: bytes) -> bytes:
        op, flags, immediate, key, offset, asked = FRAME.unpack(frame[: FRAME.size].ljust(FRAME.size, b"\0"))
        reads, payload = op == Op.READ, frame[FRAME.size :]
        nbytes, access = (asked, Access.REMOTE_READ) if reads else (len(payload), Access.REMOTE_WRITE)
        with self._lock:
            expected, memory = self._ours.get(KEY.unpack(key)[0], (b"", NOWHERE))
            if key != expected:
                return bytes((Status.STALE_REGION,))
            if access not in memory.access or offset + nbytes > memory.nbytes or nbytes > FRAME_NBYTES:
                return bytes((Status.PROVIDER,))
            if reads:
                return bytes((Status.OK,)) + ctypes.string_at(memory.addr + offset, nbytes)
            ctypes.memmove(memory.addr + offset, payload, nbytes)
            if flags & PieceFlag.IMMEDIATE:
                self._ledger.count(immediate)
            return bytes((Status.OK,))
