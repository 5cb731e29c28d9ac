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
        """List equal pieces by number: page ``i`` begins at ``offset_nbytes + ids[i] * stride_nbytes``.

        With ``stride_nbytes=1`` the ids are byte offsets. Pages may overlap and repeat.

        :param ids: integers in any form; they are copied
        :param page_nbytes: length of each; 0 for pages that are only counted
        :param stride_nbytes: distance between page 0 and page 1; ``None`` for ``page_nbytes``
        :raises UsageError: a page lies outside the region; the first such id is named
        :raises ClosedError: closing has begun
        """
        self._lease.require_open()
        return Pages(self, ids, page_nbytes, stride_nbytes=stride_nbytes, offset_nbytes=offset_nbytes)

    async def aclose(self) -> None:
        """Deregister: wait for the transfers that use the memory, then until no peer can reach it. Idempotent."""
        await self._owner.close_region(self)

    def __getitem__(self, key: slice) -> Slice:
        """Return a slice; ``None`` and negative bounds as in Python, but nothing is silently clipped.

        :raises UsageError: it reaches outside the region, runs backwards, or has a step
        :raises ClosedError: closing has begun
        """
        if self._lease.state is not OPEN:
            raise ClosedError(self.name)
        offset, nbytes = _slice(self, 0, self.nbytes, key)
        return Slice(self, offset, nbytes)

    def __len__(self) -> int:
        """Return the number of bytes."""
        return self.nbytes

    def __repr__(self) -> str:
        """Show number, size, access, state and leases."""
        state = self._lease.state.value
        return f"<Region {self.number:#x} {self.nbytes} B {self.access!r} {state}, {self.leases} leases>"


class RemoteRegion:
    """Memory of a peer, described by its descriptor.

    :ivar key: unique among all regions of all incarnations; hashable
    """

    __slots__ = ("__weakref__", "access", "descriptor", "key", "name", "nbytes", "peer", "readable", "writable")

    def __init__(self, descriptor: RegionDescriptor) -> None:
        """Stand for a checked descriptor."""
        self.descriptor = descriptor
        self.peer: PeerInfo = descriptor.peer
        self.nbytes = descriptor.nbytes
        self.access = Access(descriptor.access)
        # As plain flags: every write reads them, and enum arithmetic costs 0.3 µs.
        self.readable = Access.REMOTE_READ in self.access
        self.writable = Access.REMOTE_WRITE in self.access
        self.key = (descriptor.peer.incarnation, descriptor.region, descriptor.generation)
        self.name = f"region {descriptor.region:#x} of {descriptor.peer.label or descriptor.peer.incarnation.hex()[:8]}"

    @classmethod
    def from_bytes(cls, blob: bytes | bytearray | memoryview) -> RemoteRegion:
        """Read the bytes of a peer's ``region.descriptor()``.

        :raises UsageError: they are no descriptor, or one of another version; the message names the fault
        """
        return cls(RegionDescriptor.from_bytes(blob))

    @property
    def counter(self) -> CounterRef | None:
        """The counter that its owner waits on, if it named one."""
        number = self.descriptor.counter
        return None if number is None else CounterRef(self.peer, number)

    def pages(
        self, ids: ArrayLike, page_nbytes: int, *, stride_nbytes: int | None = None, offset_nbytes: int = 0
    ) -> RemotePages:
        """List equal pieces by number, as :meth:`Region.pages` does.

        :raises UsageError: a page lies outside the region; the first such id is named
        """
        return RemotePages(self, ids, page_nbytes, stride_nbytes=stride_nbytes, offset_nbytes=offset_nbytes)

    def __getitem__(self, key: slice) -> RemoteSlice:
        """Return a slice, as :meth:`Region.__getitem__` does.

        :raises UsageError: it reaches outside the region, runs backwards, or has a step
        """
        offset, nbytes = _slice(self, 0, self.nbytes, key)
        return RemoteSlice(self, offset, nbytes)

    def __bytes__(self) -> bytes:
        """Return the descriptor's wire form, to pass it on."""
        return bytes(self.descriptor)

    def __len__(self) -> int:
        """Return the number of bytes."""
        return self.nbytes

    def __repr__(self) -> str:
        """Show region, peer and size."""
        return f"<RemoteRegion {self.name}, {self.nbytes} B {self.access!r}>"


class _Named(Protocol):
    @property
    def name(self) -> str: ...


RegionT = TypeVar("RegionT", bound=_Named)


class _Range(Struct, Generic[RegionT], eq=False, gc=False):
    """Bytes ``offset … offset + nbytes`` of a region, checked to be inside it. Made for every write."""

    region: RegionT
    offset: int
    nbytes: int

    def __len__(self) -> int:
        return self.nbytes

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.region.name}[{self.offset}:{self.offset + self.nbytes}]>"


class Slice(_Range[Region], eq=False):
    """A contiguous part of a local region: the result of ``region[a:b]``."""

    @property
    def array(self) -> NDArray[np.uint8]:
        """The bytes, as an array.

        :raises ClosedError: the region is closed
        """
        return self.region.array[self.offset : self.offset + self.nbytes]

    def __getitem__(self, key: slice) -> Slice:
        """Return a part of this slice; bounds count from its beginning."""
        return Slice(self.region, *_slice(self.region, self.offset, self.nbytes, key))


class RemoteSlice(_Range[RemoteRegion], eq=False):
    """A contiguous part of a peer's region: the result of ``remote[a:b]``."""

    def __getitem__(self, key: slice) -> RemoteSlice:
        """Return a part of this slice; bounds count from its beginning."""
        return RemoteSlice(self.region, *_slice(self.region, self.offset, self.nbytes, key))


def _slice(region: _Named, offset: int, nbytes: int, key: object) -> tuple[int, int]:
    """Convert ``key``, relative to ``nbytes`` bytes at ``offset``, to offset and length in the region."""
    if isinstance(key, slice) and key.step is None:
        start, stop = key.start, key.stop
        if type(start) is int and type(stop) is int and 0 <= start <= stop <= nbytes:  # the common case
            return offset + start, stop - start
    return _slice_any(region, offset, nbytes, key)


def _slice_any(region: _Named, offset: int, nbytes: int, key: object) -> tuple[int, int]:
    if not isinstance(key, slice) or key.step not in (None, 1):
        message = f"{region.name} is sliced as [start:stop], not by {key!r}"
        raise UsageError(message)
    try:
        start = 0 if key.start is None else operator.index(key.start)
        stop = nbytes if key.stop is None else operator.index(key.stop)
    except TypeError as error:
        message = f"{region.name} is sliced by integers: {error}"
        raise UsageError(message) from error
    first = start + nbytes if start < 0 else start
    last = stop + nbytes if stop < 0 else stop
    if not 0 <= first <= last <= nbytes:
        where = f" from {offset}" if offset else ""
        message = f"[{start}:{stop}] is not within the {nbytes} B of {region.name}{where}"
        raise UsageError(message)
    return offset + first, last - first


class Pages(PageList[Region]):
    """Pages of a local region: the result of ``region.pages``."""

    __slots__ = ()


class RemotePages(PageList[RemoteRegion]):
    """Pages of a peer's region. Overlapping targets are not detected: their content is unspecified."""

    __slots__ = ()
