"""Region registry: registers memory with the drivers, describes it to peers, grants it, and revokes it."""

from __future__ import annotations

import itertools
import logging
import os
from typing import TYPE_CHECKING, Final, NamedTuple

import anyio

from aio_transfer.control.frames import GrantReply, Revoked
from aio_transfer.driver.records import MAX_COUNTER_ID, Access, RegionNumber
from aio_transfer.errors import UnsupportedError, UsageError
from aio_transfer.memory.buffers import memory_of
from aio_transfer.regions.descriptor import RegionDescriptor
from aio_transfer.regions.region import Region

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aio_transfer.control.frames import GrantRequest
    from aio_transfer.driver.backend_registry import OpenDriver
    from aio_transfer.driver.protocol import LocalMemory
    from aio_transfer.peers.connection import Connection
    from aio_transfer.peers.connection_manager import ConnectionManager
    from aio_transfer.regions.lease import LeaseCounter
    from aio_transfer.topology.peer_info import PeerInfo

__all__ = ("RegionRegistry",)

_LOGGER: Final = logging.getLogger(__name__)


class _Registration(NamedTuple):
    """A registered region, and its key in each driver that reaches it.

    :ivar generation: tells it from a region of the same number in another life of the engine
    """

    region: Region
    generation: int
    keys: dict[str, bytes]


class _Release:
    """A region that is being closed: how many drivers still have to release it."""

    def __init__(self, drivers: int) -> None:
        self.drivers = drivers
        self.done = anyio.Event()


class RegionRegistry:
    """Regions of one engine.

    :ivar partial_reach: of regions that not every driver reaches, by lease counter: the names of those that do
    """

    def __init__(
        self,
        check: Callable[[], None],
        check_affinity: Callable[[], None],
        address: PeerInfo,
        drivers: Mapping[str, OpenDriver],
        connections: ConnectionManager,
        *,
        stall_s: float,
    ) -> None:
        """Begin empty.

        :param check: refuses use after close and from elsewhere; ``check_affinity`` only the latter
        :param stall_s: a region that peers hold for longer is reported
        """
        self._check = check
        self._check_affinity = check_affinity
        self._address = address
        self._drivers = drivers
        self._connections = connections
        self._stall_s = stall_s
        self._numbers = itertools.count(1)
        self._regions: dict[int, _Registration] = {}
        self._releases: dict[int, _Release] = {}
        self.partial_reach: dict[LeaseCounter, frozenset[str]] = {}

    def __len__(self) -> int:
        """Return the number of registered regions."""
        return len(self._regions)

    def __contains__(self, region: Region) -> bool:
        """Whether it is registered here."""
        return region.number in self._regions and region._owner is self

    def register(self, memory: object, access: Access) -> Region:
        """Register memory with every driver that reaches such memory, or with none.

        :raises AioTransferError: it cannot be registered, no driver reaches it, or one refused
        """
        buffer = memory_of(memory)
        number = RegionNumber(next(self._numbers))
        keys: dict[str, bytes] = {}
        try:
            region = Region(self, buffer, access, number=number)
            local = buffer.local_memory(access)
            for name, opened in self._reaching(local).items():
                keys[name] = opened.driver.register(number, local)
        except BaseException:
            for name in keys:
                self._drivers[name].driver.deregister(number)
            buffer.release()
            raise
        self._regions[number] = _Registration(region, int.from_bytes(os.urandom(4)) >> 1, keys)
        if len(keys) < len(self._drivers):
            self.partial_reach[region._lease] = frozenset(keys)
        return region

    def _reaching(self, memory: LocalMemory) -> Mapping[str, OpenDriver]:
        if not memory.is_dmabuf:
            return self._drivers
        reaching = {name: one for name, one in self._drivers.items() if one.capabilities.device_memory}
        if not reaching:
            has = ", ".join(f"{name}/{one.capabilities.provider}" for name, one in self._drivers.items())
            raise UnsupportedError("registering device memory", needs="a backend with device memory", has=has)
        return reaching

    def describe_region(self, region: Region, counter: object) -> RegionDescriptor:
        """Build a descriptor; use ``region.descriptor()``."""
        self._check()
        if counter is not None and (not isinstance(counter, int) or not 0 <= counter <= MAX_COUNTER_ID):
            raise UsageError(f"counter id {counter!r}: allowed are 0 … {MAX_COUNTER_ID}")
        registration = self._regions[region.number]
        return RegionDescriptor(
            peer=self._address,
            region=region.number,
            generation=registration.generation,
            nbytes=region.nbytes,
            access=region.access.value,
            keys={name: (blob,) for name, blob in registration.keys.items()},
            counter=counter,
        )

    def on_grant_request(self, peer: Connection, frame: GrantRequest, _: tuple[int, ...]) -> None:
        """Give a peer what it needs to reach a region, or refuse with the reason."""
        registration = self._regions.get(frame.region)
        opened = self._drivers.get(frame.backend)
        refusal = self._refusal(frame, registration)
        if refusal or registration is None or opened is None:
            reason = refusal or f"its owner has no {frame.backend} driver"
            self._connections.send_frame(peer, GrantReply(request=frame.request, ok=False, reason=reason))
            return
        region = registration.region
        memory = region._buffer.local_memory(region.access)
        fds = (memory.fd,) if memory.fd is not None and opened.capabilities.grants else ()
        peer.granted.add(region.number)
        reply = GrantReply(
            request=frame.request,
            ok=True,
            keys=registration.keys[opened.name],
            nbytes=region.nbytes,
            access=region.access.value,
            fds=len(fds),
        )
        self._connections.send_frame(peer, reply, fds)

    def _refusal(self, request: GrantRequest, registration: _Registration | None) -> str:
        """Return why a region cannot be granted, or nothing."""
        closing = request.region in self._releases
        if registration is None or registration.generation != request.generation or closing:
            return "its owner has deregistered it"
        if request.backend in self._drivers and request.backend not in registration.keys:
            return f"it is device memory, which {request.backend} does not reach"
        if registration.region.access is Access.LOCAL:
            return "its owner grants no access to it"
        return ""

    def require_registered(self, region: Region) -> None:
        """Refuse a region of another engine, or one that was closed.

        :raises ClosedError: it was closed
        :raises UsageError: it is registered with another engine
        """
        if region._owner is not self:
            region._lease.require_open()
            raise UsageError(f"{region.name} is not registered with this engine")

    async def close_region(self, region: Region) -> None:
        """Close a region; use ``region.aclose()``.

        It waits for the transfers of this engine that use it, then until no peer can reach it: a peer that is frozen in
        the middle of a write holds it until it continues or dies.

        :cancellation: the await ends at once; the region is closed all the same
        """
        self._check_affinity()
        if region in self and region._lease.begin_close():  # before the checkpoint: a cancelled scope stops there
            self._releases[region.number] = _Release(len(self._regions[region.number].keys))
            region._lease.when_free(lambda: self._revoke(region))
        release = self._releases.get(region.number)
        await anyio.lowlevel.checkpoint()
        if release is None:
            return
        with anyio.move_on_after(self._stall_s):
            await release.done.wait()
            return
        why = (
            "transfers of this engine still use it" if region.leases else "a peer that makes no progress still holds it"
        )
        _LOGGER.warning("%s cannot be closed yet: %s", region.name, why, extra={"region": region.number})
        await release.done.wait()

    def _revoke(self, region: Region) -> None:
        """Revoke a region that no transfer of this engine uses any more."""
        if region not in self:  # the engine was closed meanwhile
            return
        for peer in self._connections.peers.values():
            if region.number in peer.granted:
                self._connections.send_frame(peer, Revoked(region.number))
        for name in self._regions[region.number].keys:
            self._drivers[name].driver.deregister(region.number)

    def on_released(self, number: int) -> None:
        """Handle a driver's RELEASED event; after the last one the memory is free."""
        release = self._releases.get(number)
        if release is None:
            return
        release.drivers -= 1
        if release.drivers:
            return
        del self._releases[number]
        region = self._regions.pop(number).region
        self.partial_reach.pop(region._lease, None)
        region._lease.finish_close()
        region._buffer.release()
        release.done.set()

    def close(self) -> None:
        """Release every region, after every driver is closed."""
        for registration in self._regions.values():
            region = registration.region
            region._lease.begin_close()
            if not region.leases:
                region._lease.finish_close()
            region._buffer.release()
        self._regions.clear()
        for release in self._releases.values():
            release.done.set()
        self._releases.clear()
