"""A descriptor comes back as it was sent, or not at all."""

from __future__ import annotations

import random
import struct
import zlib
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aio_transfer.driver.records import MAX_COUNTER_ID
from aio_transfer.errors import UsageError
from aio_transfer.regions.descriptor import DESCRIPTOR_VERSION, MAX_DESCRIPTOR_NBYTES, RegionDescriptor
from aio_transfer.regions.region import RemoteRegion
from aio_transfer.topology.peer_info import PeerInfo

if TYPE_CHECKING:
    from collections.abc import Callable

PEER = PeerInfo(bytes(range(16)), b"h" * 32, "node-7:4242", 4242, "10.0.0.7", 40123, "aio-4242", {"efa": "efa"})


def descriptor(**changes: Any) -> RegionDescriptor:
    fields: dict[str, Any] = {
        "peer": PEER,
        "region": 31,
        "generation": 2,
        "nbytes": 1 << 30,
        "access": 3,
        "keys": {"efa": (b"a" * 40, b"b" * 40), "shm": (b"",)},
        "counter": 9,
    }
    return RegionDescriptor(**(fields | changes))


def frame(payload: bytes, version: int = DESCRIPTOR_VERSION, magic: bytes = b"aioT") -> bytes:
    framed = struct.pack("<4sHI", magic, version, len(payload)) + payload
    return framed + struct.pack("<I", zlib.crc32(framed))


@given(
    region=st.integers(0, 2**32 - 1),
    generation=st.integers(0, 2**63 - 1),
    nbytes=st.integers(1, 2**63 - 1),
    access=st.integers(0, 3),
    counter=st.none() | st.integers(0, MAX_COUNTER_ID),
    keys=st.dictionaries(
        st.text(min_size=1, max_size=20), st.lists(st.binary(max_size=100), max_size=9).map(tuple), max_size=5
    ),
)
def test_round_trip(**fields: Any) -> None:
    sent = descriptor(**fields)
    for form in (bytes(sent), bytearray(bytes(sent)), memoryview(bytes(sent))):
        assert RegionDescriptor.from_bytes(form) == sent


def test_limits_leave_room_for_32_rails() -> None:
    blob = bytes(descriptor(keys={"efa": tuple(bytes([i]) * 1024 for i in range(32))}))
    assert len(RegionDescriptor.from_bytes(blob).keys["efa"]) == 32


def test_every_flipped_bit_is_refused() -> None:
    blob = bytes(descriptor())
    for index in range(len(blob)):
        for bit in range(8):
            damaged = bytearray(blob)
            damaged[index] ^= 1 << bit
            with pytest.raises(UsageError, match="not a region descriptor"):
                RegionDescriptor.from_bytes(damaged)


def test_every_replaced_byte_is_refused() -> None:
    blob = bytes(descriptor())
    for index in range(len(blob)):
        damaged = bytearray(blob)
        damaged[index] ^= 0xFF
        with pytest.raises(UsageError, match="not a region descriptor"):
            RegionDescriptor.from_bytes(damaged)


def test_every_cut_is_refused_as_such() -> None:
    blob = bytes(descriptor())
    for length in range(len(blob)):
        with pytest.raises(UsageError, match="cut short"):
            RegionDescriptor.from_bytes(blob[:length])


@pytest.mark.parametrize("tail", [b"\0", b"aioT", b"x" * 100])
def test_bytes_after_the_end_are_refused(tail: bytes) -> None:
    with pytest.raises(UsageError, match=f"{len(tail)} B follow after its end"):
        RegionDescriptor.from_bytes(bytes(descriptor()) + tail)


def test_other_magic_is_named() -> None:
    with pytest.raises(UsageError, match="begins with b'PK"):
        RegionDescriptor.from_bytes(b"PK\x03\x04" + bytes(descriptor())[4:])


@pytest.mark.parametrize("version", [0, DESCRIPTOR_VERSION + 1, 65535])
def test_other_version_names_both(version: int) -> None:
    payload = bytes(descriptor())[10:-4]
    with pytest.raises(UsageError, match=f"has version {version}, this package reads version {DESCRIPTOR_VERSION}"):
        RegionDescriptor.from_bytes(frame(payload, version))


@pytest.mark.parametrize(
    "changes",
    [
        {"nbytes": 0},
        {"nbytes": 2**63},
        {"nbytes": -1},
        {"nbytes": 1.5},
        {"access": 4},
        {"access": -1},
        {"region": 2**32},
        {"region": -1},
        {"generation": -1},
        {"counter": MAX_COUNTER_ID + 1},
        {"counter": -1},
        {"keys": {"": (b"x",)}},
        {"keys": {"efa": (b"x" * 5000,)}},
        {"keys": {"efa": b"no tuple"}},
        {"keys": {str(i): () for i in range(65)}},
        {"peer": None},
        {"peer": msgspec.structs.replace(PEER, incarnation=b"short")},
        {"peer": msgspec.structs.replace(PEER, tcp_port=70000)},
        {"peer": msgspec.structs.replace(PEER, label="x" * 1000)},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_impossible_values_are_refused_with_their_place(changes: dict[str, Any]) -> None:
    blob = frame(msgspec.msgpack.encode(descriptor(**changes)))  # well framed, so that only the content is at fault
    with pytest.raises(UsageError, match=r"content is not valid: .* at `(\$|key)"):
        RegionDescriptor.from_bytes(blob)


def test_unknown_and_missing_fields_are_refused() -> None:
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(descriptor()))
    for changed in (fields | {"extra": 1}, {name: fields[name] for name in fields if name != "generation"}):
        with pytest.raises(UsageError, match=r"extra|generation"):
            RegionDescriptor.from_bytes(frame(msgspec.msgpack.encode(changed)))


def test_payload_in_disguise_is_refused() -> None:
    nested = b"\x91" * 20_000 + b"\xc0"
    for payload in (b"", b"\xc1", b"\x80", b"\xdf\xff\xff\xff\xff", nested, b"\x81\xa1\xff\x00"):
        with pytest.raises(UsageError, match="content is not valid"):
            RegionDescriptor.from_bytes(frame(payload))


def test_too_large_is_refused_on_both_sides() -> None:
    huge = descriptor(keys={str(i): (bytes(4000),) * 2 for i in range(10)})
    with pytest.raises(UsageError, match=f"{MAX_DESCRIPTOR_NBYTES} B are allowed"):
        bytes(huge)
    with pytest.raises(UsageError, match="more than the"):
        RegionDescriptor.from_bytes(bytes(MAX_DESCRIPTOR_NBYTES + 1))


@pytest.mark.parametrize("reader", [RegionDescriptor.from_bytes, RemoteRegion.from_bytes])
def test_random_bytes_are_refused(reader: Callable[[bytes], object]) -> None:
    seed = 20_510
    print("seed", seed)  # noqa: T201
    rng = random.Random(seed)
    good = bytes(descriptor())
    for _ in range(2000):
        blob = bytearray(rng.randbytes(rng.randrange(300)))
        if rng.random() < 0.7:  # with a head, and half of those with a checksum, that are right
            blob = bytearray(frame(bytes(blob)) if rng.random() < 0.5 else good[:10] + blob)
        with pytest.raises(UsageError):
            reader(bytes(blob))


@given(st.binary(max_size=200))
def test_any_well_framed_payload_is_read_or_refused(payload: bytes) -> None:
    with pytest.raises(UsageError):
        RegionDescriptor.from_bytes(frame(payload))
