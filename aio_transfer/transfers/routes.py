"""Routes: how each region of a peer is reached, resolved once and used by every transfer.

The first operation on a region connects to its owner, asks it for a grant, and imports the region into the driver.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import anyio

from aio_transfer.control.frames import GrantReply, GrantRequest
from aio_transfer.driver.error_mapping import as_typed_error
from aio_transfer.driver.protocol import RemoteMemory
from aio_transfer.driver.records import ANY_REGION, RegionNumber
from aio_transfer.errors import AioTransferError, StaleRegionError, UnsupportedError, UsageError
from aio_transfer.transfers.striping import Route

if TYPE_CHECKING:
    from aio_transfer.control.frames import Revoked
    from aio_transfer.driver.backend_registry import OpenDriver
    from aio_transfer.driver.transport_path import TransportPath
    from aio_transfer.peers.connection import Connection
    from aio_transfer.peers.connection_manager import ConnectionManager
    from aio_transfer.regions.region import RemoteRegion
    from aio_transfer.topology.peer_info import PeerInfo
    from aio_transfer.transfers.announcements import AnnouncedCounts, CountAnnouncements

__all__ = ("RegionKey", "ResolvedRoute", "RouteTable")

RegionKey: TypeAlias = tuple[bytes, int, int]
"""Incarnation, region number and generation; number and generation are 0 for a bare notification."""


class ResolvedRoute(NamedTuple):
    """How a region of a peer is reached."""

    connection: Connection
    driver: OpenDriver
    route: Route
    path: TransportPath


class RouteTable:
    """Routes of one engine.

    :ivar known: the resolved routes; a transfer looks its region up here
    :ivar generation: rises whenever a known route is dropped
    """

    def __init__(self, connections: ConnectionManager, announcements: CountAnnouncements) -> None:
        """Begin with none."""
        self._connections = connections
        self._announcements = announcements
        self._region_numbers = itertools.count(1 << 31)  # an engine's own regions are numbered from 1
        self._request_numbers = itertools.count(1)
        self.known: dict[RegionKey, ResolvedRoute] = {}
        self.generation = 0

    async def resolve(
        self, address: PeerInfo, remote: RemoteRegion | None, announced: AnnouncedCounts = ()
    ) -> ResolvedRoute:
        """Connect to a peer and import its region into the driver.

        :param remote: ``None`` for bare notifications
        :param announced: announced as soon as there is a connection: it may end while the grant is awaited
        :raises AioTransferError: why that is not possible
        """
        key = remote.key if remote is not None else (address.incarnation, 0, 0)
        while True:
            connection = self._connections.ensure(address)
            await connection.wait_ready()
            self._announcements.announce(connection, announced)
            known = self.known.get(key)  # after the wait: another task may have resolved it
            if known is not None:
                return known
            importing = connection.importing.get(key)
            if importing is not None:
                await importing.wait()
                if not connection.is_up:
                    raise connection.lost_error()
                continue
            importing = connection.importing[key] = anyio.Event()
            try:
                return await self._import(connection, remote, key)
            finally:
                del connection.importing[key]
                importing.set()

    async def _import(self, connection: Connection, remote: RemoteRegion | None, key: RegionKey) -> ResolvedRoute:
        driver = connection.driver
        if driver is None:
            raise connection.lost_error()
        number = ANY_REGION
        if remote is not None:
            number = RegionNumber(next(self._region_numbers))
            await self._request_grant(connection, driver, remote, number)
            if key not in connection.imports:  # revoked between the grant and now
                raise StaleRegionError(f"{remote.descriptor.region:#x}", connection.label)
        limits = driver.capabilities
        route = Route(
            peer=connection.number,
            remote_region=number,
            rails=len(limits.rails),
            max_piece_nbytes=limits.max_piece_nbytes,
        )
        resolved = self.known[key] = ResolvedRoute(connection, driver, route, driver.path)
        return resolved

    async def _request_grant(
        self, connection: Connection, driver: OpenDriver, remote: RemoteRegion, number: RegionNumber
    ) -> None:
        """Ask the owner for a region, and register what it grants."""
        reaching = remote.descriptor.keys
        if driver.name not in reaching:
            needs = f"{' or '.join(reaching)}, which reaches this memory of its owner's"
            raise UnsupportedError(f"moving {remote.name} over {driver.name}", needs=needs, has=driver.name)
        answered = anyio.Event()
        failure: list[AioTransferError] = []

        def on_reply(reply: GrantReply, fds: tuple[int, ...]) -> None:
            answered.set()
            try:
                memory = _granted_memory(reply, fds, connection, remote, driver.name)
                _register(driver, number, memory, connection.label)
                connection.imports[remote.key] = number  # at once: the next frame may revoke it
            except AioTransferError as error:
                failure.append(error)

        request = next(self._request_numbers) & 0xFFFF_FFFF
        connection.grants[request] = on_reply
        descriptor = remote.descriptor
        self._connections.send_frame(
            connection,
            GrantRequest(
                request=request, region=descriptor.region, generation=descriptor.generation, backend=driver.name
            ),
        )
        try:
            await answered.wait()
        finally:
            connection.grants.pop(request, None)
        if not connection.is_up:
            raise connection.lost_error()
        if failure:
            raise failure[0]

    def on_grant_reply(self, connection: Connection, frame: GrantReply, fds: tuple[int, ...]) -> None:
        """Handle the owner's answer; ``fds`` are open until this returns."""
        on_reply = connection.grants.pop(frame.request, None)
        if on_reply is not None:
            on_reply(frame, fds)

    def on_revoked(self, connection: Connection, frame: Revoked, _: tuple[int, ...]) -> None:
        """Drop a region that its owner has taken back."""
        self.generation += 1
        for key in [key for key in connection.imports if key[1] == frame.region]:
            self.known.pop(key, None)
            number = connection.imports.pop(key)
            if connection.driver is not None:
                connection.driver.driver.deregister(number)

    def on_down(self, connection: Connection) -> None:
        """Drop every route of a connection that is over, and fail the grants that are awaited."""
        self.generation += 1
        for key in [key for key, resolved in self.known.items() if resolved.connection is connection]:
            del self.known[key]
        for number in connection.imports.values():
            if connection.driver is not None:
                with contextlib.suppress(Exception):  # the driver failed as a whole; the others must be dropped too
                    connection.driver.driver.deregister(number)
        connection.imports.clear()
        for on_reply in tuple(connection.grants.values()):
            on_reply(GrantReply(request=0, ok=False, reason=connection.reason), ())
        connection.grants.clear()


def _granted_memory(
    reply: GrantReply, fds: tuple[int, ...], connection: Connection, remote: RemoteRegion, backend: str
) -> RemoteMemory:
    """Check that the grant is what the descriptor names.

    :raises StaleRegionError: the owner refuses
    :raises UsageError: the descriptor and the grant differ
    """
    if not reply.ok:
        raise StaleRegionError(f"{remote.descriptor.region:#x}", connection.label, reply.reason)
    key = remote.descriptor.keys[backend]
    if remote.descriptor.access & ~reply.access or remote.nbytes != reply.nbytes or key != (reply.keys,):
        raise UsageError(f"the descriptor of {remote.name} claims more than its owner grants")
    return RemoteMemory(peer=connection.number, nbytes=remote.nbytes, keys=reply.keys, fds=fds)


def _register(driver: OpenDriver, number: RegionNumber, memory: RemoteMemory, peer: str) -> None:
    """Register a peer's memory with a driver, while its fds are open.

    :raises AioTransferError: whatever the driver raises, as an error of ours
    """
    try:
        driver.driver.register(number, memory)
    except Exception as error:
        raise as_typed_error(error, "register", peer) from error
