# ruff: noqa: D401 - a docstring is the promise itself; what counts is due, is written out
"""Descriptors as they travel: cut, damaged, forged, of another version, of something that is gone."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import msgspec

from aio_transfer.driver.records import Access
from aio_transfer.errors import (
    AioTransferError,
    PeerLostError,
    ProviderError,
    StaleRegionError,
    UnsupportedError,
    UsageError,
)
from aio_transfer.regions.descriptor import RegionDescriptor
from aio_transfer.regions.region import RemoteRegion
from aio_transfer.testing.assertions import MISTYPED, claim, refused
from aio_transfer.testing.fixtures import exactly, pair, ping
from aio_transfer.testing.guarded_memory import Memory
from aio_transfer.testing.registry import check

if TYPE_CHECKING:
    from typing import Any

    from aio_transfer.testing.spec import Spec


def forged(memory: Memory, **changes: Any) -> RemoteRegion:
    """Return a well-formed descriptor that says something else than its owner does."""
    return RemoteRegion.from_bytes(bytes(msgspec.structs.replace(memory.region.descriptor(), **changes)))


def framed(payload: bytes, *, magic: bytes = b"aioT", version: int = 1, length: int | None = None) -> bytes:
    """Frame a payload with a checksum that is right."""
    head = struct.pack("<4sHI", magic, version, len(payload) if length is None else length) + payload
    return head + struct.pack("<I", zlib.crc32(head))


@check("rule 9")
async def check_descriptor_travels(spec: Spec) -> None:
    """A descriptor that travelled as bytes says what it said before, and works."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 64, rng), await Memory.open(b, 64, rng)
        counter = b.counter()
        descriptor = target.region.descriptor(counter)
        for form in (bytes, bytearray, lambda one: memoryview(bytes(one))):
            claim(RegionDescriptor.from_bytes(form(bytes(descriptor))) == descriptor, "it changed on its way")
        remote = RemoteRegion.from_bytes(bytes(RemoteRegion.from_bytes(bytes(descriptor))))
        claim(remote.counter is not None and remote.counter.id == counter.id, f"its counter is {remote.counter}")
        await a.write(source.region[:], remote[:])
        target.expect(0, source.array)
        await exactly(counter, 1, b, a)


@check("bad input")
async def check_descriptor_damaged(spec: Spec) -> None:
    """A descriptor with any one byte changed, cut at any length, or with more behind it, is refused."""
    rng = spec.rng()
    async with pair(spec) as (_, b):
        target = await Memory.open(b, 64, rng)
        blob = bytes(target.region.descriptor(b.counter()))
        for at in range(len(blob)):
            for flip in (0x01, 0x80, int(rng.integers(1, 256))):
                bad = bytearray(blob)
                bad[at] ^= flip
                with refused(f"a descriptor with byte {at} xor {flip:#x}", UsageError):
                    RemoteRegion.from_bytes(bad)
            with refused(f"a descriptor cut to {at} of {len(blob)} bytes", UsageError):
                RemoteRegion.from_bytes(blob[:at])
        with refused("a descriptor with a byte behind it", UsageError):
            RemoteRegion.from_bytes(blob + b"\0")
        for _ in range(200):
            with refused("random bytes as a descriptor", UsageError):
                RemoteRegion.from_bytes(rng.bytes(int(rng.integers(0, 300))))


@check("bad input")
async def check_descriptor_of_another_version(spec: Spec) -> None:
    """A descriptor of another version is refused, and both versions are named."""
    rng = spec.rng()
    async with pair(spec) as (_, b):
        target = await Memory.open(b, 64, rng)
        payload = bytes(target.region.descriptor())[10:-4]
        RemoteRegion.from_bytes(framed(payload))
        for version in (0, 2, 0xFFFF):
            with refused(f"a descriptor of version {version}", UsageError) as refusal:
                RemoteRegion.from_bytes(framed(payload, version=version))
            claim(str(version) in str(refusal) and "1" in str(refusal), f"the versions are not named: {refusal}")
        for blob in (
            framed(payload, magic=b"pick"),
            framed(payload, length=1 << 30),
            framed(b""),
            framed(b"\xc1"),
            framed(payload[:-1]),
            framed(b"\x91" * 40000),
            bytes(1 << 20),
        ):
            with refused(f"a descriptor that begins with {blob[:12]!r}", UsageError):
                RemoteRegion.from_bytes(blob)


@check("rule 9")
async def check_descriptor_of_no_region(spec: Spec) -> None:
    """A descriptor with another region number or generation is refused, or reaches the region of its keys alone."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 64, rng), await Memory.open(b, 64, rng)
        right = target.region.descriptor()
        for changes in ({"region": right.region + 1}, {"region": 2**32 - 1}, {"generation": right.generation ^ 1}):
            try:
                await a.write(source.region[:], forged(target, **changes)[:], counted=False)
            except StaleRegionError:
                claim(target.region._lease.state.value == "open", "a forged descriptor closed the region")
            else:  # hardware looks at the keys alone, and these are right
                target.expect(0, source.array)
            await ping(a, b)
            target.verify(f"after a write through a descriptor with {changes}")


@check("rule 9")
async def check_descriptor_that_says_more_bytes(spec: Spec) -> None:
    """A descriptor that claims more bytes than its region has reaches none beyond it."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 4096, rng), await Memory.open(b, 256, rng)
        for nbytes in (257, 4096, 1 << 40):
            remote = forged(target, nbytes=nbytes)
            at = min(nbytes, 4096) - 256
            with refused(f"a write beyond the region by a descriptor of {nbytes} B", AioTransferError):
                await a.write(source.region[at : at + 256], remote[at : at + 256])
            await ping(a, b)
            target.verify(f"after a write through a descriptor that claims {nbytes} B")


@check("rule 9")
async def check_descriptor_that_says_more_access(spec: Spec) -> None:
    """A descriptor that claims an access which its region does not grant gives none."""
    rng = spec.rng()
    wrong = (UsageError, StaleRegionError, ProviderError, UnsupportedError)
    async with pair(spec) as (a, b):
        source = await Memory.open(a, 64, rng)
        readable = await Memory.open(b, 64, rng, access=Access.REMOTE_READ)
        with refused("a write to a readable region by a descriptor that claims more", *wrong):
            await a.write(source.region[:], forged(readable, access=3)[:])
        await ping(a, b)
        readable.verify("after a write that it does not grant")
        local = await Memory.open(b, 64, rng, access=Access.LOCAL)
        with refused("a write to a local region by a descriptor that claims more", *wrong):
            await a.write(source.region[:], forged(local, access=3)[:])
        await ping(a, b)
        local.verify("after a write that it does not grant")


@check("rule 9", "reads")
async def check_descriptor_that_says_it_is_readable(spec: Spec) -> None:
    """A descriptor that claims a region is readable, which grants only writes, brings none of its bytes."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        local = await Memory.open(a, 64, rng)
        secret = await Memory.open(b, 64, rng, access=Access.REMOTE_WRITE)
        with refused(
            "a read of a write-only region by a descriptor that claims more",
            UsageError,
            StaleRegionError,
            ProviderError,
            UnsupportedError,
        ):
            await a.read(local.region[:], forged(secret, access=3)[:])
        local.verify("after a read that was not granted")


@check("bad input")
async def check_descriptor_of_another_backend(spec: Spec) -> None:
    """A peer that has none of our backends is refused with UnsupportedError, naming both sides'."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 64, rng), await Memory.open(b, 64, rng)
        address = msgspec.structs.replace(b.address, backends={"semaphore": "flags"})
        remote = forged(target, peer=address, keys={"semaphore": (b"",)})
        with refused("a write to a peer of another backend", UnsupportedError) as refusal:
            await a.write(source.region[:], remote[:])
        claim("semaphore" in str(refusal) and spec.backend in str(refusal), f"it names not both: {refusal}")
        target.verify()


@check("rule 9")
async def check_descriptor_with_broken_keys(spec: Spec) -> None:
    """A descriptor whose keys were tampered with ends in a typed error or a right write, never in a wrong place."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 64, rng), await Memory.open(b, 64, rng)
        other = await Memory.open(b, 64, rng)
        keys = target.region.descriptor().keys[spec.backend][0]
        for bad in (b"", b"\0", keys[:-1], keys + b"\0", bytes(len(keys)), rng.bytes(len(keys))):
            remote = forged(target, keys={spec.backend: (bad,)}, generation=target.region.descriptor().generation)
            try:
                await a.write(source.region[:], remote[:])
            except PeerLostError as error:
                claim(False, f"broken keys cost the connection: {error}")  # noqa: FBT003
            except AioTransferError:
                pass
            else:
                target.expect(0, source.array)
            await ping(a, b)
            target.verify(f"after a write through keys {bad!r}")
            other.verify(f"after a write through keys {bad!r} of another region")


@check("bad input")
async def check_descriptor_with_impossible_counter(spec: Spec) -> None:
    """A descriptor is not made for a counter id that is negative, has more than 24 bits, or is no number."""
    rng = spec.rng()
    async with pair(spec) as (_, b):
        target = await Memory.open(b, 64, rng)
        for number in (-1, 1 << 24, 1 << 40, 1.5, "7"):
            with refused(f"a descriptor with counter {number!r}", *MISTYPED):
                bytes(target.region.descriptor(number))  # type: ignore[arg-type]
