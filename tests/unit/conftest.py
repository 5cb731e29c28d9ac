"""A region and a peer's view of it, without an engine, a driver or an event loop."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from aio_transfer.driver.records import Access, RegionNumber
from aio_transfer.memory.allocation import allocate
from aio_transfer.memory.buffers import memory_of
from aio_transfer.regions.descriptor import RegionDescriptor
from aio_transfer.regions.region import Region, RemoteRegion
from aio_transfer.topology.peer_info import PeerInfo

if TYPE_CHECKING:
    from collections.abc import Callable

BOTH = Access.REMOTE_READ | Access.REMOTE_WRITE


class FakeOwner:
    """What the engine does for a region."""

    address = PeerInfo(bytes(range(16)), bytes(32), "host:1", 1, "127.0.0.1", 4711, backends={"shm": "memfd"})

    def __init__(self) -> None:
        self.closed: list[Region] = []

    def describe_region(self, region: Region, counter: int | None) -> RegionDescriptor:
        return RegionDescriptor(
            peer=self.address,
            region=region.number,
            generation=0,
            nbytes=region.nbytes,
            access=region.access.value,
            keys={"shm": (b"key-of-rail-0", b"key-of-rail-1")},
            counter=counter,
        )

    async def close_region(self, region: Region) -> None:
        region._lease.begin_close()
        region._lease.finish_close()
        self.closed.append(region)


@pytest.fixture(scope="session")
def make_region() -> Callable[..., Region]:
    numbers = itertools.count(1)

    def make(memory: object = 65536, access: Access = BOTH, owner: FakeOwner | None = None) -> Region:
        buffer = memory_of(allocate(memory).array() if isinstance(memory, int) else memory)
        return Region(owner or FakeOwner(), buffer, access, number=RegionNumber(next(numbers)))

    return make


@pytest.fixture(scope="session")
def make_remote() -> Callable[..., RemoteRegion]:
    numbers = itertools.count(1)

    def make(nbytes: int = 65536, access: Access = BOTH, counter: int | None = None) -> RemoteRegion:
        return RemoteRegion(
            RegionDescriptor(
                peer=FakeOwner.address,
                region=next(numbers),
                generation=0,
                nbytes=nbytes,
                access=access.value,
                keys={"shm": (b"key",)},
                counter=counter,
            )
        )

    return make
