"""Frames come whole out of any pieces, and memory grows only with what has come."""

from __future__ import annotations

import random
import struct

import pytest

from aio_transfer.control.codec import encode
from aio_transfer.control.frames import MAX_FRAME_NBYTES, CountAnnouncement, Frame, Goodbye, Message
from aio_transfer.control.framing import FrameReader
from aio_transfer.errors import ProtocolError


def wire(*frames: Frame) -> bytes:
    return b"".join(struct.pack("<I", len(body)) + body for body in map(encode, frames))


def read_all(reader: FrameReader, data: bytes, noise: random.Random) -> list[object]:
    found: list[object] = []
    while data:
        taken = noise.randint(1, min(reader.wanted_nbytes, len(data)))
        whole = reader.feed(data[:taken])
        data = data[taken:]
        if whole is not None:
            found.append(whole[0])
    return found


@pytest.mark.parametrize("seed", range(20))
def test_any_pieces_make_the_same_frames(seed: int) -> None:
    reader = FrameReader("peer")
    reader.limit_nbytes = MAX_FRAME_NBYTES
    frames: tuple[Frame, ...] = (Goodbye("a"), Message(b"x" * 100_000), CountAnnouncement([1, 2]), Goodbye(""))
    assert read_all(reader, wire(*frames), random.Random(seed)) == list(frames)
    assert reader.is_empty


def test_a_reader_never_wants_what_follows_its_frame() -> None:
    reader = FrameReader("peer")
    data = wire(Goodbye("mine"), Goodbye("next"))
    end = len(wire(Goodbye("mine")))
    position = 0
    while position < end:
        wanted = reader.wanted_nbytes
        assert position + wanted <= end
        reader.feed(data[position : position + wanted])
        position += wanted
    assert reader.is_empty


@pytest.mark.parametrize("length", [0, (64 << 10) + 1, 1 << 30, 0xFFFF_FFFF])
def test_lengths_out_of_bounds_are_refused_before_any_memory(length: int) -> None:
    reader = FrameReader("peer")
    with pytest.raises(ProtocolError, match=f"a frame of {length} B"):
        reader.feed(struct.pack("<I", length))
    assert reader.is_empty


def test_memory_grows_with_what_has_come() -> None:
    reader = FrameReader("peer")
    reader.limit_nbytes = MAX_FRAME_NBYTES
    reader.feed(struct.pack("<I", MAX_FRAME_NBYTES))
    assert reader.wanted_nbytes == 64 << 10
    reader.feed(b"x")
    assert len(reader._buffer) == 1


def test_noise_is_refused_and_forgotten() -> None:
    reader = FrameReader("peer")
    reader.feed(struct.pack("<I", 3))
    with pytest.raises(ProtocolError, match="malformed frame of 3 B"):
        reader.feed(b"\xc1\xc1\xc1")
    assert reader.is_empty
