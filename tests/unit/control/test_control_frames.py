"""Every frame survives the wire, and nothing else is taken for one."""

from __future__ import annotations

import os
import random
from typing import Any

import msgspec
import pytest

from aio_transfer.control.codec import VersionError, announced_fds, clip, decode, encode
from aio_transfer.control.frames import (
    FRAME_TYPES,
    MAX_FRAME_NBYTES,
    MAX_HANDSHAKE_NBYTES,
    MAX_MESSAGE_NBYTES,
    PROTOCOL_VERSION,
    Abort,
    Answer,
    Challenge,
    CountAnnouncement,
    DeclaredLost,
    Frame,
    Goodbye,
    GoodbyeAck,
    GrantReply,
    GrantRequest,
    GroupJoin,
    GroupLeave,
    Hello,
    HelloProof,
    Joined,
    Message,
    MessageAck,
    Offer,
    Refusal,
    Revoked,
    Welcome,
)
from aio_transfer.errors import ProtocolError, UsageError
from aio_transfer.topology.peer_info import PeerInfo

SEED = int(os.environ.get("AIO_TRANSFER_SEED", "20251121"))
INFO = PeerInfo(
    incarnation=b"i" * 16,
    host=b"h" * 32,
    label="node:1",
    pid=1,
    tcp_host="127.0.0.1",
    tcp_port=4242,
    unix="aio-transfer-00",
    backends={"shm": "memfd", "libfabric": "efa"},
)
FRAMES: tuple[Frame, ...] = (
    Hello(PROTOCOL_VERSION, "control", INFO, b"n" * 32, b"s" * 16, b"e" * 16),
    Hello(PROTOCOL_VERSION, "heartbeat", INFO, b"n" * 32, b"s" * 16),
    Challenge(PROTOCOL_VERSION, b"n" * 32),
    HelloProof(b"p" * 32),
    HelloProof(b""),
    Welcome(INFO, b"p" * 32),
    Refusal("version", "no"),
    Offer("shm", b"blob", 64, 7),
    Answer("shm", b"blob", 2, "", 7),
    Answer("shm", error="no such device"),
    Joined(7),
    GrantRequest(1, 0xFFFF_FFFF, (1 << 63) - 1, "shm"),
    GrantReply(1, ok=True, keys=b"k", nbytes=1 << 40, access=3, fds=1),
    GrantReply(1, ok=False, reason="deregistered"),
    CountAnnouncement([]),
    CountAnnouncement([0, (1 << 24) - 1] * 2048),
    Abort(1, "write of 4 KiB", "cancelled", 3),
    Message(b"\0" * MAX_MESSAGE_NBYTES),
    GroupJoin(b"g" * 32, b"m" * 16, b"", (1, 2)),
    GroupJoin(b"g" * 32, b"m" * 16, b"i" * 16, (1, 2)),
    GroupLeave(b"g" * 32, b"m" * 16),
    GroupLeave(b"g" * 32, b"m" * 16, b"i" * 16, b"t" * 16, 3, closing=True),
    Goodbye("done"),
    GoodbyeAck(),
    DeclaredLost("silent for 5 s"),
    MessageAck(7),
    Revoked(1),
)


def names(frames: tuple[Frame, ...]) -> list[str]:
    return [f"{number}-{type(frame).__name__}" for number, frame in enumerate(frames)]


@pytest.mark.parametrize("frame", FRAMES, ids=names(FRAMES))
def test_a_frame_survives_the_wire(frame: Frame) -> None:
    body = encode(frame)
    assert decode(body) == frame
    assert encode(decode(bytearray(body))) == body
    assert len(body) <= MAX_FRAME_NBYTES


def test_every_frame_is_covered_and_has_a_tag_of_its_own() -> None:
    assert {type(frame) for frame in FRAMES} == set(FRAME_TYPES)
    assert len({frame.__struct_config__.tag for frame in FRAME_TYPES}) == len(FRAME_TYPES)


def test_the_largest_greeting_fits_a_handshake() -> None:
    word = "~" * 128
    backends = {f"{number:0128}": word for number in range(16)}
    info = PeerInfo(b"i" * 16, b"h" * 32, word, 0xFFFF_FFFF, "h" * 255, 0xFFFF, "u" * 107, backends)
    assert len(encode(Hello(PROTOCOL_VERSION, "control", info, b"n" * 32, b"s" * 16, b"e" * 16))) < MAX_HANDSHAKE_NBYTES


def info(**changes: Any) -> PeerInfo:
    return msgspec.structs.replace(INFO, **changes)


OUT_OF_BOUNDS: tuple[Frame, ...] = (
    Welcome(info(incarnation=b"short"), b""),
    Welcome(info(incarnation=b"i" * 17), b""),
    Welcome(info(host=b""), b""),
    Welcome(info(label="x" * 129), b""),
    Welcome(info(label="two\nlines"), b""),
    Welcome(info(label="trailing\n"), b""),
    Welcome(info(label="\ud800"), b""),
    Welcome(info(tcp_port=65536), b""),
    Welcome(info(unix="u" * 108), b""),
    Welcome(info(backends=dict.fromkeys(map(str, range(17)), "")), b""),
    Hello(PROTOCOL_VERSION, "other", INFO, b"n" * 32, b"s" * 16),  # type: ignore[arg-type]
    Hello(-1, "control", INFO, b"n" * 32, b"s" * 16),
    Hello(PROTOCOL_VERSION, "control", INFO, b"n" * 31, b"s" * 16),
    Challenge(PROTOCOL_VERSION, b""),
    HelloProof(b"p" * 33),
    Refusal("because"),  # type: ignore[arg-type]
    Refusal("busy", "x" * 1025),
    Offer("shm", b"", 65),
    Offer("shm", b"", -1),
    Offer("shm", bytes((256 << 10) + 1)),
    GrantRequest(1 << 32, 1, 1, "shm"),
    GrantRequest(1, 1, 1 << 63, "shm"),
    GrantRequest(1, 1, 1 << 64, "shm"),
    GrantReply(1, ok=1),  # type: ignore[arg-type]
    CountAnnouncement([1 << 24]),
    CountAnnouncement([-1]),
    CountAnnouncement([0] * 4097),
    CountAnnouncement([1.5]),  # type: ignore[list-item]
    Abort(1 << 24, "", "", 0),
    Message(bytes(MAX_MESSAGE_NBYTES + 1)),
    GroupJoin(b"g" * 31, b"m" * 16, b"", (1, 2)),
    GroupJoin(b"g" * 32, b"m" * 15, b"", (1, 2)),
    GroupJoin(b"g" * 32, b"m" * 16, b"i" * 17, (1, 2)),
    GroupLeave(b"g" * 32, b"m" * 17),
    GroupJoin(b"g" * 32, b"m" * 16, b"", (1, 2, 3)),  # type: ignore[arg-type]
)


@pytest.mark.parametrize("frame", OUT_OF_BOUNDS, ids=names(OUT_OF_BOUNDS))
def test_bounds_hold_on_both_sides(frame: Frame) -> None:
    with pytest.raises(UsageError, match=type(frame).__name__):
        encode(frame)
    try:
        body = msgspec.msgpack.encode(frame)
    except (UnicodeEncodeError, OverflowError):
        return  # not even msgpack can say it
    with pytest.raises(ProtocolError):
        decode(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc0",
        b"\x90",
        b"\x91\x00",  # no such tag
        b"\x91\xff",
        b"\x92\x1b\xc0",  # GoodbyeAck with a field too many
        b"\x91\x1b\x00",  # something behind the frame
        b"\x81\xa4type\x1b",  # a map
        b"\x92\x15\xdd\xff\xff\xff\xff",  # CountAnnouncement of 4 Gi counters
        b"\x92\x17\xc6\xff\xff\xff\xff",  # Message of 4 GiB
        b"\xdd\xff\xff\xff\xff\x15",
        b"\x92\x15" + b"\x91" * 100_000,  # deep
        b"\x95\x01\x07" + b"\x91" * 100_000,  # deep, behind a version
        b"\x92\x1a\xa1\xff",  # not UTF-8
        b"\xd4\x01\x00",  # an extension
        b"\x93\x01\x01\xa7control",  # Hello of our version, incomplete
    ],
)
def test_what_is_no_frame_is_a_protocol_error(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="node9: malformed frame"):
        decode(body, peer="node9")


def test_greetings_of_other_versions_are_told_apart() -> None:
    for greeting, version in (([1, 2, {"anything": None}], 2), ([2, 0], 0)):
        with pytest.raises(VersionError, match=f"it speaks version {version}, and we speak version 1") as caught:
            decode(msgspec.msgpack.encode(greeting))
        assert caught.value.version == version


def test_the_handshakes_constants_are_cast_in_stone() -> None:
    """Other versions rely on these bytes to find out that they are other versions."""
    assert encode(Hello(PROTOCOL_VERSION, "control", INFO, b"n" * 32, b"s" * 16)).startswith(b"\x97\x01\x01")
    assert encode(Challenge(PROTOCOL_VERSION, b"n" * 32)).startswith(b"\x93\x02\x01")
    assert encode(Refusal("version", "no")) == b"\x94\x05\xa7version\xa2no\x01"


@pytest.mark.parametrize("seed", [SEED])
def test_random_bytes_never_do_more_than_fail(seed: int) -> None:
    noise = random.Random(seed)
    for _ in range(3000):
        accepted_or_refused(noise.randbytes(noise.randrange(64)))


@pytest.mark.parametrize("seed", [SEED])
def test_damaged_frames_never_do_more_than_fail(seed: int) -> None:
    noise = random.Random(seed)
    bodies = [encode(frame) for frame in FRAMES if not isinstance(frame, Message)]
    for _ in range(6000):
        body = bytearray(noise.choice(bodies))
        for _ in range(noise.randint(1, 4)):
            damage(body, noise)
        accepted_or_refused(bytes(body))


def damage(body: bytearray, noise: random.Random) -> None:
    where = noise.randrange(len(body) + 1)
    match noise.randrange(4):
        case 0:
            del body[where:]
        case 1:
            body[where:where] = noise.randbytes(noise.randrange(8))
        case 2:
            body[where : where + 1] = bytes([noise.choice((0xC1, 0xC6, 0xDD, 0xDF, 0xDB, 0xFF, 0xC9))])
        case _:
            body[where : where + noise.randrange(8)] = b""


def accepted_or_refused(body: bytes) -> None:
    """Either it is refused with a type, or it is a frame that we could send ourselves."""
    try:
        frame = decode(body)
    except ProtocolError:
        return
    assert decode(encode(frame)) == frame


@pytest.mark.parametrize("frame", FRAMES, ids=names(FRAMES))
def test_truncated_frames_are_refused(frame: Frame) -> None:
    body = encode(frame)
    for kept in range(min(len(body), 200)):
        with pytest.raises(ProtocolError):
            decode(body[:kept])


def test_only_some_frames_announce_fds() -> None:
    assert {type(frame) for frame in FRAMES if announced_fds(frame)} == {Offer, Answer, GrantReply}


def test_any_text_can_be_clipped_to_a_reason() -> None:
    for text in ("fine", "two\nlines", "\ud800", "\x1b[31m", "ü" * 5000):
        frame = Goodbye(clip(text))
        assert decode(encode(frame)) == frame
        assert frame.reason.isprintable()
    assert clip("fine") == "fine"
