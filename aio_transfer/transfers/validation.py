"""Validation of the arguments of public calls, as far as no peer is needed for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aio_transfer.control.frames import MAX_MESSAGE_NBYTES
from aio_transfer.errors import UsageError
from aio_transfer.peers.connection import Peer
from aio_transfer.regions.region import Pages, RemoteRegion, Slice
from aio_transfer.topology.peer_info import PeerInfo

if TYPE_CHECKING:
    from collections.abc import Callable

    from aio_transfer.regions.descriptor import CounterRef
    from aio_transfer.regions.region import Region, RemotePages, RemoteSlice
    from aio_transfer.regions.region_registry import RegionRegistry

__all__ = ("OperandCheck", "address_of", "counter_of", "kind_of", "require_message")

_EXPRESSIONS: Final = {Slice: "[a:b]", Pages: ".pages(ids, page_nbytes)"}


class OperandCheck:
    """Checks of the memory and the peers that operations of one engine name.

    :ivar check: refuses use before open, after close, and from another thread, loop or process
    """

    __slots__ = ("_incarnation", "_registry", "check")

    def __init__(self, check: Callable[[], None], registry: RegionRegistry, address: PeerInfo) -> None:
        """Remember the engine's registry and address."""
        self.check = check
        self._registry = registry
        self._incarnation = address.incarnation

    def check_pair(
        self, local: Slice | Pages, remote: RemoteSlice | RemotePages, ours: type[Slice | Pages], theirs: type
    ) -> None:
        """Check both ends of an operation.

        :raises UsageError: wrong types, a region of another engine, or memory of this engine as the remote end
        :raises ClosedError: the engine or the region is closed
        """
        self.check()
        if type(local) is not ours or type(remote) is not theirs:
            _require_types(local, remote, ours, theirs)
        if local.region._owner is not self._registry:
            self._registry.require_registered(local.region)
        peer = remote.region.peer
        if peer.incarnation == self._incarnation:
            self.check_peer(peer)

    def require_own(self, region: Region) -> None:
        """Refuse a region that is closing, or that another engine registered.

        :raises ClosedError: it is closing
        :raises UsageError: it is registered with another engine
        """
        region._lease.require_open()
        self._registry.require_registered(region)

    def check_peer(self, peer: PeerInfo) -> None:
        """Refuse this engine itself as a peer.

        :raises UsageError: it is this engine
        """
        if peer.incarnation == self._incarnation:
            raise UsageError("this engine is no peer of itself: copy with NumPy")


def kind_of(given: object) -> str:
    """Return the type's name, for a message."""
    return type(given).__name__


def _require_types(
    local: Slice | Pages, remote: RemoteSlice | RemotePages, ours: type[Slice | Pages], theirs: type
) -> None:
    """Refuse operands of other types.

    :raises UsageError: naming the expected types and the expressions that give them
    """
    if not isinstance(local, ours) or not isinstance(remote, theirs):
        expression = _EXPRESSIONS[ours]
        raise UsageError(
            f"expected {ours.__name__} and {theirs.__name__} (use region{expression}, remote{expression}), "
            f"got {kind_of(local)} and {kind_of(remote)}"
        )


def address_of(peer: PeerInfo | Peer | RemoteRegion) -> PeerInfo:
    """Return the address of a peer in any of the forms callers have.

    :raises UsageError: it is none of them
    """
    if isinstance(peer, PeerInfo):
        return peer
    if isinstance(peer, RemoteRegion):
        return peer.peer
    if isinstance(peer, Peer):
        return peer.info
    raise UsageError(f"{kind_of(peer)} is no peer: give remote.peer, the other engine's address, or connect()'s result")


def counter_of(remote: RemoteRegion, counter: CounterRef | None) -> int | None:
    """Return the id of the counter to raise: the one given, else the descriptor's.

    :raises UsageError: the counter and the target belong to different engines
    """
    if counter is None:
        return remote.descriptor.counter
    if counter.peer.incarnation != remote.peer.incarnation:
        raise UsageError(f"the counter is {counter.peer.label}'s, but the target is {remote.peer.label}'s")
    return counter.id


def require_message(payload: object) -> None:
    """Refuse what is no message.

    :raises UsageError: it is not bytes, or longer than a message may be
    """
    if not isinstance(payload, bytes | bytearray | memoryview):
        raise UsageError(f"a message is bytes, not {kind_of(payload)}")
    nbytes = memoryview(payload).nbytes
    if nbytes > MAX_MESSAGE_NBYTES:
        raise UsageError(f"a message of {nbytes} B: at most {MAX_MESSAGE_NBYTES} B are possible; write larger data")
