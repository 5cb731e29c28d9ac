"""Frame codec: msgpack with bounds. Never pickle: what a peer sends can become data and nothing else."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from aio_transfer.control.frames import MAX_REASON_CHARS, PROTOCOL_VERSION, Answer, Frame, GrantReply, Joined, Offer
from aio_transfer.errors import ProtocolError, UsageError

__all__ = ("VersionError", "announced_fds", "clip", "decode", "encode")


class VersionError(ProtocolError):
    """The peer speaks a version of the protocol that this side does not speak."""

    def __init__(self, peer: str, version: int) -> None:
        """Name both versions."""
        self.version = version
        super().__init__(peer, f"it speaks version {version}, and we speak version {PROTOCOL_VERSION}")


class _AnyHello(Struct, frozen=True, array_like=True, tag=1):
    version: int


class _AnyChallenge(Struct, frozen=True, array_like=True, tag=2):
    version: int


class _AnyAttachHeartbeat(Struct, frozen=True, array_like=True, tag=6):
    version: int


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final[msgspec.msgpack.Decoder[Frame]] = msgspec.msgpack.Decoder(Frame)
_VERSION_DECODER: Final[msgspec.msgpack.Decoder[_AnyHello | _AnyChallenge | _AnyAttachHeartbeat]] = (
    msgspec.msgpack.Decoder(_AnyHello | _AnyChallenge | _AnyAttachHeartbeat)
)
_WITH_FDS: Final = (Offer, Answer, Joined, GrantReply)
# RecursionError: msgspec skips unknown items recursively. UnicodeDecodeError is a ValueError of its own.
_MALFORMED: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def encode(frame: Frame) -> bytes:
    """Encode a frame, without the length in front.

    Bounds are checked here as well: a peer closes the connection over them, and its error would reach the wrong side.

    :raises UsageError: a field is outside its bound; the message names it
    """
    try:
        body = _ENCODER.encode(frame)
        _DECODER.decode(body)
    except (*_MALFORMED, OverflowError, TypeError, UnicodeEncodeError) as error:
        msg = f"{type(frame).__name__} cannot be sent: {error}"
        raise UsageError(msg) from error
    return body


def decode(body: bytes | bytearray | memoryview, *, peer: str = "a peer") -> Frame:
    """Decode one frame from an untrusted sender.

    :param body: without the length in front
    :param peer: named in the error
    :raises VersionError: it is the first frame of another version of the protocol
    :raises ProtocolError: it is not a frame, or a field is outside its bound
    """
    try:
        return _DECODER.decode(body)
    except _MALFORMED as error:
        version = _version_of(body)
        if version is not None and version != PROTOCOL_VERSION:
            raise VersionError(peer, version) from error
        raise ProtocolError(peer, f"malformed frame of {len(body)} B: {error}") from error


def _version_of(body: bytes | bytearray | memoryview) -> int | None:
    """Return the version in a first frame that could not be decoded as a whole."""
    try:
        return _VERSION_DECODER.decode(body).version
    except _MALFORMED:
        return None


def announced_fds(frame: Frame) -> int:
    """Return how many file descriptors travel with a frame."""
    return frame.fds if isinstance(frame, _WITH_FDS) else 0


def clip(text: str) -> str:
    """Fit any text to the bound of a ``reason`` field, and any reason of a peer to a log line.

    :returns: at most 1024 printable characters
    """
    printable = "".join(character if character.isprintable() else "?" for character in text[:MAX_REASON_CHARS])
    return printable.encode("utf-8", "replace").decode("utf-8")
