"""Interoperability of the verbs backends with an independent peer: writes, counts and messages in both directions."""

from __future__ import annotations

import ctypes
import functools
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from aio_transfer.driver.backend_registry import load
from aio_transfer.driver.protocol import Endpoint, LocalMemory, RemoteMemory
from aio_transfer.driver.records import ANY_REGION, PIECE_STRUCT, RUN, Access, EventKind, Op, Status
from aio_transfer.errors import AioTransferError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytest.importorskip("pyverbs.device", reason="pyverbs is not installed", exc_type=ImportError)
sys.path.insert(0, str(Path(__file__).parent))  # importmode=importlib puts no folder there

import raw_peer
from pyverbs.pyverbs_error import PyverbsError
from raw_peer import READ, WRITE, WRITE_WITH_IMM, RawPeer

pytestmark = pytest.mark.timeout(300)  # a virtual machine without help from the processor takes its time

NBYTES = 256 << 10
GUARD = 4096
COUNTER = 77
PAYLOAD, REVOKE, REVOKED = range(3)
REMOTE_ACCESS_ERROR, RNR_RETRY_EXCEEDED = 10, 13
BOTH = Access.REMOTE_READ | Access.REMOTE_WRITE


class Frame(NamedTuple):
    """A message, as docs/reference/verbs-protocol.md means it."""

    kind: int
    region: int = 0
    payload: bytes = b""


class Wire(NamedTuple):
    """How a backend's blobs hold what docs/reference/verbs-protocol.md describes.

    :ivar options: of a driver for the port of that address
    :ivar rail: the one rail of an endpoint's blob; ``blob`` is the way back
    :ivar stranger: the same, of a port that has no address of a kind that ours has
    :ivar key: region, remote key and address from what ``register`` gives; ``keys`` is the way back
    :ivar frame: the immediate and the bytes of a message; ``said`` is the way back
    """

    options: Callable[[str], dict[str, str]]
    rail: Callable[[bytes], bytes]
    blob: Callable[[bytes], bytes]
    stranger: Callable[[bytes], bytes]
    key: Callable[[bytes], tuple[int, int, int]]
    keys: Callable[[int, int, int], bytes]
    frame: Callable[[Frame], tuple[int | None, bytes]]
    said: Callable[[int, bytes], Frame]


_KEY = struct.Struct("<IIQ")
_FRAME = struct.Struct("<BI")
# The native backend's: one part of one rail, and what backends/verbs/wire.h says.
_PART = struct.Struct("<HB")
_HEAD = struct.Struct("<IHHIIIIQIIHBBBBH")
_NATIVE_KEY = struct.Struct("<QQII")
_MAGIC, _TYPE_AND_GID = 0x31425641, 17
ROCE_V1 = 1


def _native_rail(packed: bytes) -> bytes:
    blob = packed[_PART.size :]
    _, rail, rails, *ends, _, _, _, lid, layer, mtu, _, _, count = _HEAD.unpack_from(blob)
    assert (rail, rails, len(blob)) == (0, 1, _HEAD.size + count * _TYPE_AND_GID)
    gids = [blob[at : at + _TYPE_AND_GID] for at in range(_HEAD.size, len(blob), _TYPE_AND_GID)]
    mapped = [gid[1:] for gid in gids if gid[0] == raw_peer.ROCE_V2 and gid[1:13] == bytes(10) + b"\xff\xff"]
    return raw_peer.RAIL.pack(1, layer, mtu, lid, mapped[0], *ends)


def _native_blob(rail: bytes, kind: int = raw_peer.ROCE_V2) -> bytes:
    if len(rail) != raw_peer.RAIL.size:  # of none
        return _PART.pack(len(rail), 0) + rail
    _, layer, mtu, lid, gid, *ends = raw_peer.RAIL.unpack(rail)
    head = _HEAD.pack(_MAGIC, 0, 1, *ends, 0, 0, raw_peer.SLOT, lid, layer, mtu, 16, 0, 1)
    return _PART.pack(len(head) + _TYPE_AND_GID, 0) + head + bytes([kind]) + gid


def _on_ipv6(rail: bytes) -> bytes:
    fields = list(raw_peer.RAIL.unpack(rail))
    fields[4] = bytes.fromhex("20010db8") + bytes(11) + b"\x01"
    return raw_peer.RAIL.pack(*fields)


def _native_key(packed: bytes) -> tuple[int, int, int]:
    addr, serial, rkey, _ = _NATIVE_KEY.unpack(packed[_PART.size :])
    return serial, rkey, addr


def _native_keys(region: int, rkey: int, addr: int) -> bytes:
    return _PART.pack(_NATIVE_KEY.size, 0) + _NATIVE_KEY.pack(addr, region, rkey, BOTH.value)


def _native_frame(frame: Frame) -> tuple[int | None, bytes]:
    return frame.kind + 1, frame.payload if frame.kind == PAYLOAD else frame.region.to_bytes(8, "little")


def _native_said(immediate: int, payload: bytes) -> Frame:
    kind = immediate - 1
    return Frame(kind, 0, payload) if kind == PAYLOAD else Frame(kind, int.from_bytes(payload, "little"))


WIRES = {
    "pyverbs": Wire(
        options=lambda address: {"address": address},
        rail=bytes,
        blob=bytes,
        stranger=_on_ipv6,
        key=_KEY.unpack,
        keys=_KEY.pack,
        frame=lambda frame: (None, _FRAME.pack(*frame[:2]) + frame.payload),
        said=lambda _, payload: Frame(*_FRAME.unpack_from(payload), payload[_FRAME.size :]),
    ),
    "verbs": Wire(
        options=lambda address: {"devices": raw_peer.device_of(address)},
        rail=_native_rail,
        blob=_native_blob,
        stranger=functools.partial(_native_blob, kind=ROCE_V1),
        key=_native_key,
        keys=_native_keys,
        frame=_native_frame,
        said=_native_said,
    ),
}
"""Another backend joins by saying how it wraps them."""


class Ours:
    """A driver without an engine, and memory between guards."""

    def __init__(self, backend: str, address: str, **options: str) -> None:
        self.wire = WIRES[backend]
        self.driver: Any = load(backend).make_driver({**self.wire.options(address), **options})
        self.driver.open()
        self.whole = (ctypes.c_ubyte * (NBYTES + 2 * GUARD))(*[0xEE] * (NBYTES + 2 * GUARD))
        self.addr = ctypes.addressof(self.whole) + GUARD
        self.events: list[tuple[int, int, int, int, bytes]] = []
        memory = LocalMemory(addr=self.addr, nbytes=NBYTES, access=BOTH)
        self.key = self.wire.key(self.driver.register(3, memory))

    def bytes(self, at: int, nbytes: int) -> bytes:
        return ctypes.string_at(self.addr + at, nbytes)

    def wait_for(self, kind: EventKind, number: int) -> tuple[int, int, int, int, bytes]:
        """Wait for an event, and keep the others."""
        ends = time.monotonic() + 60
        while time.monotonic() < ends:
            self.events += self.driver.drain(64)
            for event in self.events:
                if event[:2] == (kind, number):
                    self.events.remove(event)
                    return event
            time.sleep(0.001)  # polls, so that these tests do not depend on the driver's wake-ups
        raise AssertionError(f"no {kind!r} of {number}: {self.events}")

    def counts(self, due: int) -> int:
        """Wait until the counter has so many counts, and return how many there are."""
        if self.driver.expect(COUNTER, due) < due:
            self.wait_for(EventKind.COUNTER, COUNTER)
        return self.driver.expect(COUNTER, 0)

    def post(self, number: int, op: Op, at: int, nbytes: int, **how: Any) -> int:
        """Post one piece with a region of the peer's, and return how it ended."""
        self.start(number, op, at, nbytes, **how)
        return self.wait_for(EventKind.TRANSFER, number)[2]

    def start(
        self, number: int, op: Op, at: int, nbytes: int, *, peer: int = 1, region: int = 7, immediate: int | None = None
    ) -> None:
        run = [{"peer": peer, "op": op, "local_region": 3 if nbytes else 0, "remote_region": region, "count": 1}]
        runs = _records(RUN, run)
        piece = PIECE_STRUCT.pack(self.addr + at, at, nbytes, immediate or 0, immediate is not None)
        assert not self.driver.post(number, runs, piece)

    def untouched(self) -> bool:
        """Whether the guards are as they were."""
        return bytes(self.whole[:GUARD]) == bytes(self.whole[-GUARD:]) == b"\xee" * GUARD


def _records(kind: Any, rows: list[dict[str, int]]) -> bytes:
    import numpy as np

    made = np.zeros(len(rows), kind)
    for record, row in zip(made, rows, strict=True):
        for name, value in row.items():
            record[name] = value
    return made.tobytes()


def _ways() -> list[str]:
    try:
        found = raw_peer.addresses()
    except PyverbsError:
        return []
    return ["itself", "cable"] if "10.0.0.2" in found else ["itself"] if found else []


WAYS = _ways()


@pytest.fixture(params=WIRES)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=WAYS or [pytest.param("none", marks=pytest.mark.skip(reason="no RDMA device"))])
def way(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The addresses of ours and the other: of one port, or from left to right of tests/vm."""
    return ("10.0.0.1", "10.0.0.2") if request.param == "cable" else (raw_peer.addresses()[0],) * 2


def join(ours: Ours, other: RawPeer, peer: int = 1) -> None:
    """Connect them; the other's memory is our region ``6 + peer``."""
    blob = ours.driver.connect(peer, None).blob
    other.join(ours.wire.rail(blob))
    assert ours.driver.connect(peer, Endpoint(blob=ours.wire.blob(other.rail))).blob == blob
    keys = ours.wire.keys(9, other.memory.rkey, other.memory.buf)
    ours.driver.register(6 + peer, RemoteMemory(peer=peer, nbytes=1 << 20, keys=keys))


@pytest.fixture
def ends(way: tuple[str, str], backend: str) -> Iterator[tuple[Ours, RawPeer]]:
    """Ours and the other, connected, each the other's peer 1."""
    here, there = way
    ours, other = Ours(backend, here), RawPeer(there)
    try:
        join(ours, other)
        yield ours, other
        assert ours.untouched()
    finally:
        ours.driver.close()
        other.close()


def test_writes_of_the_peer_are_counted_here(ends: tuple[Ours, RawPeer]) -> None:
    ours, other = ends
    _, rkey, addr = ours.key
    noise = bytes(range(256)) * (NBYTES // 256)
    other.memory.write(noise, NBYTES, 0)
    due = 0
    for nbytes, counts in ((1, 1), (4096, 1), (0, 1), (NBYTES, 1), (100, 128), (100, 256)):
        other.post(WRITE_WITH_IMM, nbytes, there=(rkey, addr), immediate=counts - 1 << 24 | COUNTER)
        due += counts
        assert ours.counts(due) == due
        assert ours.bytes(0, nbytes) == noise[:nbytes]
        assert other.complete().status == 0
    other.post(WRITE, 8, at=8, there=(rkey, addr + NBYTES - 8))
    assert other.complete().status == 0
    assert ours.bytes(NBYTES - 8, 8) == noise[8:16]
    assert ours.driver.statistics()["counts"] == due


def test_more_counts_than_receives_are_posted_all_arrive(ends: tuple[Ours, RawPeer]) -> None:
    ours, other = ends
    for _ in range(100):
        for _ in range(16):
            other.post(WRITE_WITH_IMM, 0, immediate=COUNTER)
        ours.driver.drain(64)
        assert [other.complete().status for _ in range(16)] == [0] * 16
    assert ours.counts(1600) == 1600


def test_writes_from_here_are_counted_at_the_peer(ends: tuple[Ours, RawPeer]) -> None:
    ours, other = ends
    ours.whole[GUARD : GUARD + 9000] = bytes(index % 251 for index in range(9000))
    for number, nbytes in enumerate((1, 9000, 0), 1):
        assert ours.post(number, Op.WRITE, 0, nbytes, immediate=number) == Status.OK
        wc = other.complete()
        assert (wc.status, wc.wr_id, wc.wc_flags & 2) == (0, 999 + number, 2)
        assert socket_order(wc.imm_data) == number
        assert other.memory.read(nbytes, 0) == ours.bytes(0, nbytes)
    assert ours.post(4, Op.WRITE, 0, 0, region=ANY_REGION, immediate=4) == Status.OK
    assert socket_order(other.complete().imm_data) == 4
    assert ours.post(5, Op.WRITE, 4096, 4096) == Status.OK
    assert other.memory.read(4096, 4096) == ours.bytes(4096, 4096)


def socket_order(immediate: int) -> int:
    return int.from_bytes(immediate.to_bytes(4, sys.byteorder), "big")


def test_both_sides_read(ends: tuple[Ours, RawPeer]) -> None:
    ours, other = ends
    other.memory.write(b"of the other", 12, 64)
    assert ours.post(1, Op.READ, 64, 12) == Status.OK
    assert ours.bytes(64, 12) == b"of the other"
    _, rkey, addr = ours.key
    other.post(READ, 12, at=500, there=(rkey, addr + 64))
    assert other.complete().status == 0
    assert other.memory.read(12, 500) == b"of the other"


def test_both_sides_send_messages(ends: tuple[Ours, RawPeer]) -> None:
    ours, other = ends
    send_frame(ours, other, Frame(PAYLOAD, 0, b"hello"))
    assert ours.wait_for(EventKind.MESSAGE, 1)[4] == b"hello"
    assert other.complete().status == 0
    ours.driver.send(1, 5, b"and to you")
    assert receive_frame(ours, other) == Frame(PAYLOAD, 0, b"and to you")
    ours.wait_for(EventKind.SENT, 5)
    other.send(b"\x00", 4)  # no frame at all
    send_frame(ours, other, Frame(200, 3))  # of no known kind
    send_frame(ours, other, Frame(REVOKED, 12345))  # no revocation was requested
    assert ours.post(9, Op.WRITE, 0, 8) == Status.OK


def send_frame(ours: Ours, other: RawPeer, frame: Frame) -> None:
    immediate, payload = ours.wire.frame(frame)
    other.send(payload, immediate)


def receive_frame(ours: Ours, other: RawPeer) -> Frame:
    wc, payload = other.message()
    return ours.wire.said(socket_order(wc.imm_data), payload)


def test_memory_is_released_once_the_peer_has_released_it(ends: tuple[Ours, RawPeer]) -> None:
    ours, other = ends
    region, rkey, addr = ours.key
    ours.driver.deregister(3)
    assert receive_frame(ours, other) == Frame(REVOKE, region)
    other.post(WRITE, 8, there=(rkey, addr))  # the peer has not confirmed the revocation, and may still write
    assert other.complete().status == 0
    assert not any(event[0] == EventKind.RELEASED for event in ours.driver.drain(64))
    send_frame(ours, other, Frame(REVOKED, region))
    ours.wait_for(EventKind.RELEASED, 3)
    assert other.complete().status == 0
    other.post(WRITE, 8, there=(rkey, addr))
    assert other.complete().status == REMOTE_ACCESS_ERROR
    ours.post(1, Op.WRITE, 0, 0, region=ANY_REGION)  # a driver without receives of its own need not notice before
    ours.wait_for(EventKind.PEER_FAILED, 1)


def test_a_region_that_the_peer_revokes_is_stale(ends: tuple[Ours, RawPeer]) -> None:
    ours, other = ends
    assert ours.post(1, Op.WRITE, 0, 8) == Status.OK
    send_frame(ours, other, Frame(REVOKE, 9))
    assert other.complete().status == 0
    ours.driver.drain(64)
    assert receive_frame(ours, other) == Frame(REVOKED, 9)
    assert ours.post(2, Op.WRITE, 0, 8) == Status.STALE_REGION


def test_only_the_refused_write_is_reported_as_stale(ends: tuple[Ours, RawPeer]) -> None:
    ours, other = ends
    other.memory.close()  # without a word
    ours.start(1, Op.WRITE, 0, 8)
    ours.start(2, Op.WRITE, 0, 0, region=ANY_REGION)
    assert ours.wait_for(EventKind.TRANSFER, 1)[2] == Status.STALE_REGION
    assert ours.wait_for(EventKind.TRANSFER, 2)[2] == Status.PEER_LOST
    assert ours.post(3, Op.WRITE, 0, 0, region=ANY_REGION) == Status.PEER_LOST
    ours.wait_for(EventKind.PEER_FAILED, 1)


@pytest.mark.parametrize("lost", [False, True])
def test_nothing_lands_after_the_fence(ends: tuple[Ours, RawPeer], lost: bool) -> None:
    ours, other = ends
    _, rkey, addr = ours.key
    other.memory.write(b"before", 6, 0)
    other.post(WRITE_WITH_IMM, 6, there=(rkey, addr), immediate=COUNTER)
    assert other.complete().status == 0
    ours.driver.disconnect(1, lost=lost)
    ours.wait_for(EventKind.FENCED, 1)
    assert ours.driver.expect(COUNTER, 0) == 1, "what had arrived counts"
    other.memory.write(b"behind", 6, 0)
    other.post(WRITE_WITH_IMM, 6, there=(rkey, addr), immediate=COUNTER)
    assert other.complete().status != 0
    ours.driver.drain(64)
    assert ours.bytes(0, 6) == b"before"
    assert ours.driver.expect(COUNTER, 0) == 1
    assert ours.driver.statistics()["handles"] == 2, "both registrations, and no connection"


def test_a_write_to_a_peer_that_vanishes_ends_with_an_error(ends: tuple[Ours, RawPeer]) -> None:
    ours, other = ends
    for pair in other.pairs:
        pair.close()
    assert ours.post(1, Op.WRITE, 0, NBYTES) == Status.PEER_LOST
    ours.wait_for(EventKind.PEER_FAILED, 1)
    ours.driver.disconnect(1, lost=True)
    ours.wait_for(EventKind.FENCED, 1)


@pytest.mark.parametrize("size", [0, 1, 36, 38, 4096])
def test_malformed_endpoints_are_refused(ends: tuple[Ours, RawPeer], size: int) -> None:
    from aio_transfer import UsageError

    ours, _ = ends
    ours.driver.connect(2, None)
    with pytest.raises(UsageError):
        ours.driver.connect(2, Endpoint(blob=ours.wire.blob(bytes(size))))
    ours.driver.disconnect(2, lost=True)
    ours.wait_for(EventKind.FENCED, 2)


@pytest.mark.parametrize("bound", ["rnr_retries", "stall_s"])
def test_a_peer_that_posts_no_receives_is_lost(way: tuple[str, str], bound: str) -> None:
    here, there = way
    # The other has room for so many counts and makes no more; with the defaults it is asked again for ever, and given
    # up after 30 s.
    ours, other, third = Ours("verbs", here, **{bound: "2"}), RawPeer(there), RawPeer(there)
    try:
        join(ours, other)
        for number in range(1, raw_peer.RECEIVES + 1):
            assert ours.post(number, Op.WRITE, 0, 64, immediate=number) == Status.OK
        began = time.monotonic()
        ours.start(100, Op.WRITE, 0, 64, immediate=COUNTER)
        ours.start(101, Op.WRITE, 0, 64, immediate=COUNTER)
        refused = ours.wait_for(EventKind.TRANSFER, 100)
        assert refused[2] == Status.PROVIDER if bound == "rnr_retries" else Status.PEER_LOST
        assert bound == "stall_s" or refused[3] == RNR_RETRY_EXCEEDED
        assert ours.wait_for(EventKind.TRANSFER, 101)[2] == Status.PEER_LOST
        assert time.monotonic() - began < 30
        ours.wait_for(EventKind.PEER_FAILED, 1)
        assert [other.complete().status for _ in range(raw_peer.RECEIVES)] == [0] * raw_peer.RECEIVES
        ours.driver.disconnect(1, lost=True)
        ours.wait_for(EventKind.FENCED, 1)
        join(ours, third, 2)
        assert ours.post(102, Op.WRITE, 0, 64, peer=2, region=8, immediate=COUNTER) == Status.OK
        assert third.complete().status == 0
    finally:
        ours.driver.close()
        other.close()
        third.close()


def test_a_port_without_an_address_of_a_common_kind_is_refused(ends: tuple[Ours, RawPeer]) -> None:
    ours, other = ends
    stranger = ours.wire.stranger(other.rail)
    ours.driver.connect(2, None)
    with pytest.raises(AioTransferError, match=r"no address of the same kind|needs RoCE v2 over IPv6"):
        ours.driver.connect(2, Endpoint(blob=stranger))
    ours.driver.disconnect(2, lost=True)
    ours.wait_for(EventKind.FENCED, 2)
    assert ours.post(1, Op.WRITE, 0, 8) == Status.OK
