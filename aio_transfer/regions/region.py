"""Regions: registered memory of this engine and of its peers, and the slices and page lists of it.

A local region counts its leases: every transfer that may still touch it holds one. It can be closed only when the last
one is released, so that memory is never used for something else while a NIC still works on it.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from msgspec import Struct

from aio_transfer.driver.records import Access, RegionNumber
from aio_transfer.errors import ClosedError, UsageError
from aio_transfer.regions.descriptor import CounterRef, RegionDescriptor
from aio_transfer.regions.lease import OPEN, LeaseCounter
from aio_transfer.regions.pages import PageList
from aio_transfer.topology.peer_info import PeerInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from aio_transfer.gpu.dmabuf import DeviceBuffer
    from aio_transfer.memory.buffers import Buffer

__all__ = ("Pages", "Region", "RegionOwner", "RemotePages", "RemoteRegion", "RemoteSlice", "Slice")


class RegionOwner(Protocol):
    """The engine's region registry, as one region uses it."""

    def describe_region(self, region: Region, counter: object) -> RegionDescriptor:
        """Add the engine's address and the drivers' keys, and check the counter's id."""
        ...

    async def close_region(self, region: Region) -> None:
        """Wait for the leases, revoke every peer's access for certain, release the buffer. Idempotent."""
        ...


class _HasCounterId(Protocol):
    @property
    def id(self) -> int: ...


class Region:
    """Memory of this process that NICs can work on.

    :ivar access: what peers may do
    :ivar address: of its first byte; a device pointer for device memory
    :ivar name: for messages: ``region 0x1f``
    :ivar nbytes: length in bytes
    :ivar number: unique within its engine
    :ivar readonly: nothing can be read into it
    """

    __slots__ = (
        "__weakref__",
        "_buffer",
        "_lease",
        "_owner",
        "access",
        "address",
        "name",
        "nbytes",
        "number",
        "readonly",
    )

    def __init__(
        self, owner: RegionOwner, buffer: Buffer | DeviceBuffer, access: Access, *, number: RegionNumber
    ) -> None:
        """Begin open; use ``engine.register``.

        :raises UsageError: peers are to write into memory that is read-only
        """
        if buffer.readonly and Access.REMOTE_WRITE in access:
            message = f"{type(buffer.owner).__name__} is read-only: peers cannot be granted REMOTE_WRITE"
            raise UsageError(message)
        self.name = f"region {number:#x}"
        self._lease = LeaseCounter(self.name)
        self._owner = owner
        self._buffer = buffer
        self.access = access
        self.number = number
        self.address = buffer.address
        self.nbytes = buffer.nbytes
        self.readonly = buffer.readonly

    @property
    def leases(self) -> int:
        """Number of transfers that may still touch the memory."""
        return len(self._lease)

    @property
    def array(self) -> NDArray[np.uint8]:
        """The bytes, as an array.

        :raises ClosedError: the region is closed
        :raises UnsupportedError: it is memory of a device
        """
        return self._buffer.array

    def descriptor(self, counter: _HasCounterId | int | None = None) -> RegionDescriptor:
        """Return what a peer needs to reach this memory; ``bytes()`` of it travels.

        :param counter: the counter, or its id, that the peer's writes shall raise
        :raises ClosedError: closing has begun
        """
        self._lease.require_open()
        number: object = getattr(counter, "id", counter)
        return self._owner.describe_region(self, number)

    def pages(
        self, ids: ArrayLike, page_nbytes: int, *, stride_nbytes: int | None = None, offset_nbytes: int = 0
    ) -> Pages:
        """Name equal pieces by number: page ``i`` begins at ``offset_nbytes + ids[i] * stride_nbytes``.

        With ``stride_nbytes=1`` the ids are byte offsets. Pages may overlap and repeat.

        :param ids: integers in any form; they are copied
        :param page_nbytes: length of each; 0 for pages that are only counted
        :param stride_nbytes: distance of page 0 from page 1; ``None`` for ``page_nbytes``
        :raises UsageError: a page lies outside the region; the first such id is named
        :raises ClosedError: closing has begun
        """
        self._lease.require_open()
        return Pages(self, ids, page_nbytes, stride_nbytes=stride_nbytes, offset_nbytes=offset_nbytes)

    async def aclose(self) -> None:
        """Take the memory back: wait for transfers that use it, then until no peer can reach it. Idempotent."""
        await self._owner.close_region(self)

    def __getitem__(self, key: slice) -> Slice:
        """Cut bytes out; ``None`` and negative bounds as in Python, but nothing is silently cut to fit.

        :raises UsageError: it reaches outside the region, runs backwards, or has a step
        :raises ClosedError: closing has begun
        """
        if self._lease.state is not OPEN:
            raise ClosedError(self.name)
        offset, nbytes = _cut(self, 0, self.nbytes, key)
        return Slice(self, offset, nbytes)

    def __len__(self) -> int:
        """Return the number of bytes."""
        return self.nbytes

    def __repr__(self) -> str:
        """Show number, size, access, state and leases."""
        state = self._lease.state.value
        return f"<Region {self.number:#x} {self.nbytes} B {self.access!r} {state}, {self.leases} leases>"


class RemoteRegion:
    """Memory of a peer, as its descriptor says.

    :ivar key: what tells it from every other region of every incarnation; hashable
    """

    __slots__ = ("__weakref__", "access", "descriptor", "key", "name", "nbytes", "peer", "readable", "writable")

    def __init__(self, descriptor: RegionDescriptor) -> None:
        """Take a descriptor that has been checked."""
        self.descriptor = descriptor
        self.peer: PeerInfo = descriptor.peer
        self.nbytes = descriptor.nbytes
        self.access = Access(descriptor.access)
        # As plain flags, since every write asks and enum arithmetic costs 0.3 µs.
        self.readable = Access.REMOTE_READ in self.access
        self.writable = Access.REMOTE_WRITE in self.access
        self.key = (descriptor.peer.incarnation, descriptor.region, descriptor.generation)
        self.name = f"region {descriptor.region:#x} of {descriptor.peer.label or descriptor.peer.incarnation.hex()[:8]}"

    @classmethod
    def from_bytes(cls, blob: bytes | bytearray | memoryview) -> RemoteRegion:
        """Read what the peer's ``bytes(region.descriptor())`` gave.

        :raises UsageError: it is not that, or not of this version; the message says in what respect
        """
        return cls(RegionDescriptor.from_bytes(blob))

    @property
    def counter(self) -> CounterRef | None:
        """The counter its owner waits on, if it named one."""
        number = self.descriptor.counter
        return None if number is None else CounterRef(self.peer, number)

    def pages(
        self, ids: ArrayLike, page_nbytes: int, *, stride_nbytes: int | None = None, offset_nbytes: int = 0
    ) -> RemotePages:
        """Name equal pieces by number, as :meth:`Region.pages` does.

        :raises UsageError: a page lies outside the region; the first such id is named
        """
        return RemotePages(self, ids, page_nbytes, stride_nbytes=stride_nbytes, offset_nbytes=offset_nbytes)

    def __getitem__(self, key: slice) -> RemoteSlice:
        """Cut bytes out, as :meth:`Region.__getitem__` does.

        :raises UsageError: it reaches outside the region, runs backwards, or has a step
        """
        offset, nbytes = _cut(self, 0, self.nbytes, key)
        return RemoteSlice(self, offset, nbytes)

    def __bytes__(self) -> bytes:
        """Return the descriptor's wire form, to hand it on."""
        return bytes(self.descriptor)

    def __len__(self) -> int:
        """Return the number of bytes."""
        return self.nbytes

    def __repr__(self) -> str:
        """Say which, whose and how large."""
        return f"<RemoteRegion {self.name}, {self.nbytes} B {self.access!r}>"


class _Named(Protocol):
    @property
    def name(self) -> str: ...


RegionT = TypeVar("RegionT", bound=_Named)


class _Range(Struct, Generic[RegionT], eq=False, gc=False):
    """Bytes ``offset … offset + nbytes`` of a region; they are inside it. Made by ``region[a:b]``, for every write."""

    region: RegionT
    offset: int
    nbytes: int

    def __len__(self) -> int:
        return self.nbytes

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.region.name}[{self.offset}:{self.offset + self.nbytes}]>"


class Slice(_Range[Region], eq=False):
    """A contiguous part of a region of ours: what ``region[a:b]`` returns."""

    @property
    def array(self) -> NDArray[np.uint8]:
        """The bytes, as an array.

        :raises ClosedError: the region is closed
        """
        return self.region.array[self.offset : self.offset + self.nbytes]

    def __getitem__(self, key: slice) -> Slice:
        """Cut a part out of the part; bounds count from its beginning."""
        return Slice(self.region, *_cut(self.region, self.offset, self.nbytes, key))


class RemoteSlice(_Range[RemoteRegion], eq=False):
    """A contiguous part of a peer's region: what ``remote[a:b]`` returns."""

    def __getitem__(self, key: slice) -> RemoteSlice:
        """Cut a part out of the part; bounds count from its beginning."""
        return RemoteSlice(self.region, *_cut(self.region, self.offset, self.nbytes, key))


def _cut(region: _Named, offset: int, nbytes: int, key: object) -> tuple[int, int]:
    """Turn ``key`` within ``nbytes`` bytes at ``offset`` into offset and length within the region."""
    if isinstance(key, slice) and key.step is None:
        start, stop = key.start, key.stop
        if type(start) is int and type(stop) is int and 0 <= start <= stop <= nbytes:  # as most are
            return offset + start, stop - start
    return _cut_with_care(region, offset, nbytes, key)


def _cut_with_care(region: _Named, offset: int, nbytes: int, key: object) -> tuple[int, int]:
    if not isinstance(key, slice) or key.step not in (None, 1):
        message = f"{region.name} is cut as [start:stop], not by {key!r}"
        raise UsageError(message)
    try:
        start = 0 if key.start is None else operator.index(key.start)
        stop = nbytes if key.stop is None else operator.index(key.stop)
    except TypeError as error:
        message = f"{region.name} is cut by integers: {error}"
        raise UsageError(message) from error
    first = start + nbytes if start < 0 else start
    last = stop + nbytes if stop < 0 else stop
    if not 0 <= first <= last <= nbytes:
        message = f"[{start}:{stop}] is not within the {nbytes} B of {region.name}" + (f" from {offset}" * bool(offset))
        raise UsageError(message)
    return offset + first, last - first


class Pages(PageList[Region]):
    """Pages of a region of ours: what ``region.pages`` returns."""

    __slots__ = ()


class RemotePages(PageList[RemoteRegion]):
    """Pages of a peer's region. Targets that overlap are not looked for: what they end up holding is unspecified."""

    __slots__ = ()
