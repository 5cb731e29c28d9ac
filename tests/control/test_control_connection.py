"""A frame arrives whole or not at all, with its file descriptors, whatever is cancelled or closed on the way."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from aio_transfer.control.codec import encode
from aio_transfer.control.connection import FrameConnection
from aio_transfer.control.frames import MAX_FRAME_NBYTES, Answer, CountAnnouncement, Goodbye, GrantReply, Message, Offer
from aio_transfer.control.framing import MAX_QUEUED_NBYTES
from aio_transfer.errors import BusyError, ProtocolError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    Pair = tuple[FrameConnection, FrameConnection]
    RawPair = tuple[FrameConnection, socket.socket]

pytestmark = pytest.mark.anyio
LARGE = Message(bytes(range(256)) * 4096)  # 1 MiB: more than a socket buffers here unless somebody reads


@pytest.fixture
def pipes() -> Iterator[tuple[int, ...]]:
    """Eight read ends of pipes, to pass on."""
    with contextlib.ExitStack() as stack:
        ends = []
        for _ in range(8):
            for fd in (pipe := os.pipe()):
                stack.callback(os.close, fd)
            ends.append(pipe[0])
        yield tuple(ends)


def wire(frame: Message | Goodbye | Offer) -> bytes:
    body = encode(frame)
    return struct.pack("<I", len(body)) + body


def count_fds() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def unlimit(*connections: FrameConnection) -> None:
    for connection in connections:
        connection.frame_limit_nbytes = MAX_FRAME_NBYTES


def same_file(left: int, right: int) -> bool:
    return os.path.sameopenfile(left, right)


async def test_frames_arrive_in_order_and_equal(pair: Pair) -> None:
    left, right = pair
    frames = (CountAnnouncement([1, 2, 3]), Message(b""), Goodbye("bye"), Message(b"x" * 60000))
    async with anyio.create_task_group() as tasks:
        for frame in frames:
            left.send_nowait(frame)
        tasks.start_soon(left.flush)
        for frame in frames:
            assert await right.receive() == (frame, ())


async def test_a_message_of_full_size_passes(pair: Pair) -> None:
    left, right = pair
    unlimit(right)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(left.send, LARGE)
        assert await right.receive() == (LARGE, ())


async def test_frames_above_the_limit_of_the_handshake_close_the_connection(pair: Pair) -> None:
    left, right = pair
    left.send_nowait(LARGE)
    with pytest.raises(ProtocolError, match="where 1 … 65536 B are allowed"):
        await right.receive()
    assert right.is_closed


@pytest.mark.parametrize("length", [0, MAX_FRAME_NBYTES + 1, 1 << 30, 0xFFFF_FFFF])
async def test_an_absurd_length_closes_at_once(raw_pair: RawPair, length: int) -> None:
    connection, peer = raw_pair
    unlimit(connection)
    peer.sendall(struct.pack("<I", length))
    with pytest.raises(ProtocolError, match=f"a frame of {length} B"):
        await connection.receive()
    assert connection.is_closed
    assert peer.recv(1) == b""


async def test_bytes_one_at_a_time_make_a_frame(raw_pair: RawPair) -> None:
    connection, peer = raw_pair
    received = []

    async def receive() -> None:
        received.append(await connection.receive())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(receive)
        for byte in wire(Goodbye("slow")):
            peer.sendall(bytes([byte]))
            await anyio.lowlevel.checkpoint()
    assert received == [(Goodbye("slow"), ())]


async def test_a_peer_that_closes_between_frames_ends_the_stream(raw_pair: RawPair) -> None:
    connection, peer = raw_pair
    peer.sendall(wire(Goodbye("last words")))
    peer.close()
    assert await connection.receive() == (Goodbye("last words"), ())
    with pytest.raises(anyio.EndOfStream):
        await connection.receive()


@pytest.mark.parametrize("kept", [1, 4, 5, -1])
async def test_a_stream_cut_inside_a_frame_is_broken(raw_pair: RawPair, kept: int) -> None:
    connection, peer = raw_pair
    peer.sendall(wire(Goodbye("cut here"))[:kept])
    peer.close()
    with pytest.raises(anyio.BrokenResourceError):
        await connection.receive()
    assert connection.is_closed


async def test_a_reset_is_broken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = socket.create_connection(server.getsockname())
        connection = FrameConnection(server.accept()[0])
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    with pytest.raises(anyio.BrokenResourceError) as caught:
        await connection.receive()
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    assert connection.is_closed


async def test_what_the_peer_said_before_it_closed_is_read_after_sending_failed(raw_pair: RawPair) -> None:
    connection, peer = raw_pair
    peer.sendall(wire(Goodbye("why")))
    peer.close()
    with pytest.raises(anyio.BrokenResourceError):  # the first may still fit; a reset or EPIPE follows
        while True:
            await connection.send(Goodbye("too late"))
    assert await connection.receive() == (Goodbye("why"), ())
    with pytest.raises(anyio.BrokenResourceError):
        await connection.receive()


async def test_a_cancelled_receive_loses_nothing(raw_pair: RawPair) -> None:
    connection, peer = raw_pair
    data = wire(Goodbye("in three pieces"))
    for piece in (data[:2], data[2:9]):
        peer.sendall(piece)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connection.receive)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
    peer.sendall(data[9:])
    assert await connection.receive() == (Goodbye("in three pieces"), ())


async def test_a_receive_cancelled_before_it_begins_takes_no_frame(pair: Pair) -> None:
    left, right = pair
    left.send_nowait(Goodbye())
    with anyio.CancelScope() as scope:
        scope.cancel()
        await right.receive()
    assert scope.cancelled_caught
    assert await right.receive() == (Goodbye(), ())


async def test_a_cancelled_send_leaves_a_whole_frame(pair: Pair) -> None:
    left, right = pair
    unlimit(right)
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(left.send, LARGE)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
    assert left.queued_nbytes
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(left.send, Goodbye("after"))
        for _ in range(8):
            assert await right.receive() == (LARGE, ())
        assert await right.receive() == (Goodbye("after"), ())


async def test_the_pump_sends_what_a_cancelled_sender_left(pair: Pair) -> None:
    left, right = pair
    unlimit(right)
    async with anyio.create_task_group() as outer:
        outer.start_soon(left.pump)
        for _ in range(8):
            left.send_nowait(LARGE)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await left.flush()
        for _ in range(8):
            assert await right.receive() == (LARGE, ())
        left.close()  # ends the pump


async def test_concurrent_senders_never_mix_their_frames(pair: Pair) -> None:
    left, right = pair
    unlimit(right)
    received: list[bytes] = []

    async def send(which: int) -> None:
        for _ in range(4):
            await left.send(Message(bytes([which]) * 300_000))

    async with anyio.create_task_group() as tasks:
        for which in range(8):
            tasks.start_soon(send, which)
        for _ in range(32):
            frame, _fds = await right.receive()
            assert isinstance(frame, Message)
            received.append(frame.payload)
    assert all(len(set(payload)) == 1 and len(payload) == 300_000 for payload in received)
    assert sorted(payload[0] for payload in received) == sorted(list(range(8)) * 4)


async def test_the_queue_is_bounded_and_send_waits_for_room(pair: Pair) -> None:
    left, right = pair
    unlimit(right)
    sent = 0
    with pytest.raises(BusyError, match="outgoing queue"):
        while True:
            left.send_nowait(LARGE)
            sent += 1
    assert MAX_QUEUED_NBYTES - 2 * MAX_FRAME_NBYTES < left.queued_nbytes <= MAX_QUEUED_NBYTES
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(left.send, Goodbye("with room"))
        for _ in range(sent):
            assert await right.receive() == (LARGE, ())
        assert await right.receive() == (Goodbye("with room"), ())
    assert left.queued_nbytes == 0


async def test_a_send_cancelled_while_it_waits_for_room_is_not_queued(pair: Pair) -> None:
    left, _right = pair
    with contextlib.suppress(BusyError):
        while True:
            left.send_nowait(LARGE)
    before = left.queued_nbytes
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(left.send, LARGE)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert left.queued_nbytes == before


@pytest.mark.parametrize("waiting", ["receive", "flush", "send"])
async def test_closing_wakes_whoever_waits(pair: Pair, waiting: str) -> None:
    left, right = pair
    for _ in range(8):
        left.send_nowait(LARGE)

    async def wait() -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await (left.send(Goodbye()) if waiting == "send" else getattr(left, waiting)())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        tasks.start_soon(left.pump)
        await anyio.wait_all_tasks_blocked()
        left.close()
        left.close()
    unlimit(right)
    with pytest.raises(anyio.BrokenResourceError):  # the peer saw the end in the middle of a frame
        while True:
            await right.receive()


async def test_an_fd_number_is_not_free_before_its_waiter_has_left(pair: Pair) -> None:
    left, right = pair
    number = left._socket.fileno()
    async with anyio.create_task_group() as tasks:

        async def wait() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await left.receive()

        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        left.close()
        fd = os.dup(0)
        os.close(fd)
        assert fd != number
        with pytest.raises(anyio.EndOfStream):  # yet the peer knows at once
            await right.receive()


async def test_a_closed_connection_refuses_everything(pair: Pair) -> None:
    left, _right = pair
    left.close()
    for use in (left.receive, left.flush):
        with pytest.raises(anyio.ClosedResourceError):
            await use()
    with pytest.raises(anyio.ClosedResourceError):
        await left.send(Goodbye())
    for act in (lambda: left.send_nowait(Goodbye()), left.detach, left.peer_credentials):
        with pytest.raises(anyio.ClosedResourceError):
            act()


async def test_two_receivers_are_one_too_many(pair: Pair) -> None:
    left, _right = pair
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(left.receive)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(BusyError, match="receiving from"):
            await left.receive()
        with pytest.raises(BusyError):
            left.detach()
        tasks.cancel_scope.cancel()


async def test_detach_gives_the_stream_away_at_a_frame(pair: Pair) -> None:
    left, right = pair
    left.send_nowait(Goodbye("framed"))
    left.send_nowait(Message(b"not ours any more"))
    assert await right.receive() == (Goodbye("framed"), ())
    fd = right.detach()
    assert not os.get_blocking(fd)
    with socket.socket(fileno=fd) as raw:
        assert raw.recv(100) == wire(Message(b"not ours any more"))
        assert right.is_closed
        right.close()
        with pytest.raises(anyio.ClosedResourceError):
            await right.receive()
        raw.send(wire(Goodbye("back")))
        assert await left.receive() == (Goodbye("back"), ())


async def test_detach_in_the_middle_of_a_frame_is_refused(raw_pair: RawPair) -> None:
    connection, peer = raw_pair
    peer.sendall(b"\x05\x00")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(connection.receive)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    with pytest.raises(UsageError, match="middle of a frame"):
        connection.detach()


async def test_detach_with_frames_unsent_is_refused(pair: Pair) -> None:
    left, _right = pair
    for _ in range(8):
        left.send_nowait(LARGE)
    with pytest.raises(UsageError, match="middle of a frame"):
        left.detach()


async def test_fds_arrive_with_the_frame_that_announced_them(unix_pair: Pair, pipes: tuple[int, ...]) -> None:
    left, right = unix_pair
    left.send_nowait(Goodbye("none"))
    left.send_nowait(Offer("shm", b"a", 3), pipes[:3])
    left.send_nowait(Message(b"none"))
    left.send_nowait(GrantReply(1, ok=True, fds=1), pipes[3:4])
    left.send_nowait(Answer("shm", b"b", 4), pipes[4:])
    for wanted in ((), pipes[:3], (), pipes[3:4], pipes[4:]):
        _frame, fds = await right.receive()
        assert len(fds) == len(wanted)
        assert all(map(same_file, fds, wanted))
        assert not set(fds) & set(pipes)
        assert not any(map(os.get_inheritable, fds))
        for fd in fds:
            os.close(fd)


async def test_fds_wait_in_the_queue_after_their_owner_has_closed_them(unix_pair: Pair) -> None:
    left, right = unix_pair
    unlimit(right)
    for _ in range(8):
        left.send_nowait(LARGE)
    read, write = os.pipe()
    left.send_nowait(Offer("shm", b"", 1), (read,))
    os.close(read)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(left.flush)
        for _ in range(8):
            await right.receive()
        _frame, (passed,) = await right.receive()
    os.write(write, b"still open")
    assert os.read(passed, 100) == b"still open"
    os.close(passed)
    os.close(write)


async def test_fds_in_a_queue_that_is_dropped_are_closed(unix_pair: Pair, pipes: tuple[int, ...]) -> None:
    left, right = unix_pair
    for _ in range(8):
        left.send_nowait(LARGE)
    left.send_nowait(Offer("shm", b"", 8), pipes)
    left.close()
    right.close()


def send_raw(peer: socket.socket, data: bytes, fds: tuple[int, ...]) -> None:
    peer.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


@pytest.mark.parametrize("family", ["unix"], indirect=True)
async def test_surplus_fds_are_closed(raw_pair: RawPair, pipes: tuple[int, ...]) -> None:
    connection, peer = raw_pair
    send_raw(peer, wire(Goodbye("unannounced")), pipes)
    send_raw(peer, wire(Offer("shm", b"", 2)), pipes)
    send_raw(peer, wire(Offer("shm", b"", 1)) + wire(Goodbye("behind")), pipes[:1])
    assert await connection.receive() == (Goodbye("unannounced"), ())
    for count in (2, 1):
        _frame, fds = await connection.receive()
        assert len(fds) == count
        assert all(map(same_file, fds, pipes))
        for fd in fds:
            os.close(fd)
    assert await connection.receive() == (Goodbye("behind"), ())


@pytest.mark.parametrize("family", ["unix"], indirect=True)
async def test_no_frame_holds_more_fds_than_its_share(raw_pair: RawPair, pipes: tuple[int, ...]) -> None:
    connection, peer = raw_pair
    data = wire(Message(b"x" * 100))
    before = count_fds()
    for byte in data[:-1]:
        send_raw(peer, bytes([byte]), pipes)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(connection.receive)
        await anyio.wait_all_tasks_blocked()
        assert count_fds() - before <= 64 + 1
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("family", ["unix"], indirect=True)
async def test_missing_fds_close_the_connection(raw_pair: RawPair, pipes: tuple[int, ...]) -> None:
    connection, peer = raw_pair
    send_raw(peer, wire(Offer("shm", b"", 3)), pipes[:2])
    with pytest.raises(ProtocolError, match="announced 3 file descriptors and 2 came"):
        await connection.receive()
    assert connection.is_closed


async def test_fds_must_be_what_the_frame_says(unix_pair: Pair, pipes: tuple[int, ...]) -> None:
    left, _right = unix_pair
    with pytest.raises(UsageError, match="announces 1 file descriptors and 2 were given"):
        left.send_nowait(Offer("shm", b"", 1), pipes[:2])
    with pytest.raises(UsageError, match="announces 0"):
        await left.send(Goodbye(), pipes[:1])
    assert left.queued_nbytes == 0


@pytest.mark.parametrize("family", ["tcp"], indirect=True)
async def test_tcp_passes_no_fds(pair: Pair, pipes: tuple[int, ...]) -> None:
    left, _right = pair
    assert not left.is_local
    with pytest.raises(UsageError, match="not AF_UNIX"):
        left.send_nowait(Offer("shm", b"", 1), pipes[:1])
    with pytest.raises(UsageError, match="not AF_UNIX"):
        left.peer_credentials()


async def test_the_kernel_says_who_is_there(unix_pair: Pair) -> None:
    left, _right = unix_pair
    assert left.is_local
    assert left.peer_credentials() == (os.getpid(), os.getuid(), os.getgid())
