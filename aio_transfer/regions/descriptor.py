"""Region descriptors: the capability that lets a peer reach one registered region.

A program that holds the bytes can reach that memory, as far as its access allows. The bytes are framed, so that a
truncated, mixed-up or damaged descriptor is refused here instead of becoming a write to a wrong address::

    b"aioT"  u16 version  u32 length  MessagePack map  u32 CRC-32 of everything before   (little-endian)

The checksum detects accidents, not forgery: the control plane decides which peers may connect.

:source: docs/explanation/contract.md, rule 9
"""

from __future__ import annotations

import struct
import zlib
from typing import Annotated, Final, TypeAlias

import msgspec

from aio_transfer.driver.records import MAX_COUNTER_ID, Access
from aio_transfer.errors import UsageError
from aio_transfer.topology.peer_info import PeerInfo

__all__ = ("DESCRIPTOR_VERSION", "MAX_DESCRIPTOR_NBYTES", "CounterRef", "RegionDescriptor")

DESCRIPTOR_VERSION: Final = 1
MAGIC: Final = b"aioT"
HEAD: Final = struct.Struct("<4sHI")
TAIL: Final = struct.Struct("<I")
MAX_DESCRIPTOR_NBYTES: Final = 64 * 1024
"""The addresses and keys of 32 NICs take about 4 KiB."""

_BackendName: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
_RailKey: TypeAlias = Annotated[bytes, msgspec.Meta(max_length=4096)]
_RailKeys: TypeAlias = Annotated[tuple[_RailKey, ...], msgspec.Meta(max_length=256)]
_U32: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]


class CounterRef(msgspec.Struct, frozen=True):
    """A counter in a peer's engine.

    :param id: 24 bits
    """

    peer: PeerInfo
    id: Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNTER_ID)]


class RegionDescriptor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One registered region of a peer, as ``bytes(region.descriptor())`` hands it out.

    :param region: its number in its owner's engine
    :param generation: tells it from a later region of the same number
    :param nbytes: 1 … 2**63 − 1
    :param access: bits of :class:`~aio_transfer.driver.records.Access`
    :param keys: per backend, the keys that its driver's ``register`` returned, one per rail
    :param counter: the counter that its owner waits on, if it named one
    """

    peer: PeerInfo
    region: _U32
    generation: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    nbytes: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
    access: Annotated[int, msgspec.Meta(ge=0, le=(Access.REMOTE_READ | Access.REMOTE_WRITE).value)]
    keys: Annotated[dict[_BackendName, _RailKeys], msgspec.Meta(max_length=64)]
    counter: Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNTER_ID)] | None = None

    def __bytes__(self) -> bytes:
        """Return the wire form.

        :raises UsageError: it is larger than :data:`MAX_DESCRIPTOR_NBYTES`
        """
        payload = _encode(self)
        framed = HEAD.pack(MAGIC, DESCRIPTOR_VERSION, len(payload)) + payload
        if len(framed) + TAIL.size > MAX_DESCRIPTOR_NBYTES:
            message = f"region descriptor of {len(framed) + TAIL.size} B: {MAX_DESCRIPTOR_NBYTES} B are allowed"
            raise UsageError(message)
        return framed + TAIL.pack(zlib.crc32(framed))

    @classmethod
    def from_bytes(cls, blob: bytes | bytearray | memoryview) -> RegionDescriptor:
        """Read the wire form.

        :raises UsageError: it is truncated, damaged, of another version, too long, or has impossible values
        """
        payload = _unframe(bytes(blob))
        try:
            return _decoder.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UsageError(_refusal(f"its content is not valid: {error}")) from error


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(RegionDescriptor)


def _unframe(blob: bytes) -> bytes:
    if len(blob) > MAX_DESCRIPTOR_NBYTES:
        raise UsageError(_refusal(f"{len(blob)} B are more than the {MAX_DESCRIPTOR_NBYTES} B allowed"))
    if blob[: len(MAGIC)] != MAGIC[: len(blob)]:
        raise UsageError(_refusal(f"it begins with {blob[: len(MAGIC)]!r}, not {MAGIC!r}"))
    if len(blob) < HEAD.size:
        raise UsageError(_refusal(f"cut short: {len(blob)} B of at least {HEAD.size + TAIL.size}"))
    _, version, length = HEAD.unpack_from(blob)
    if version != DESCRIPTOR_VERSION:
        raise UsageError(_refusal(f"it has version {version}, this package reads version {DESCRIPTOR_VERSION}"))
    whole = HEAD.size + length + TAIL.size
    if len(blob) < whole:
        raise UsageError(_refusal(f"cut short: {len(blob)} B of {whole}"))
    if len(blob) > whole:
        raise UsageError(_refusal(f"{len(blob) - whole} B follow after its end"))
    (expected,) = TAIL.unpack_from(blob, HEAD.size + length)
    if zlib.crc32(memoryview(blob)[: HEAD.size + length]) != expected:
        raise UsageError(_refusal("its checksum is wrong: damaged on its way"))
    return blob[HEAD.size : HEAD.size + length]


def _refusal(reason: str) -> str:
    return f"not a region descriptor: {reason}"
