"""One-sided memory transfer between processes, machines and GPUs that you can await."""

from aio_transfer.counters.counter import ImmCounter
from aio_transfer.driver.records import Access
from aio_transfer.driver.transport_path import TransportPath
from aio_transfer.engine.engine import TransferEngine
from aio_transfer.errors import (
    AioTransferError,
    AuthenticationError,
    BackendUnavailableError,
    BusyError,
    ClosedError,
    PeerLostError,
    ProtocolError,
    ProviderError,
    StaleRegionError,
    TransferAbortedError,
    UnsupportedError,
    UsageError,
    WouldBlock,
)
from aio_transfer.gpu.dmabuf import DmaBuf
from aio_transfer.groups.group import PeerGroup
from aio_transfer.groups.prepared_scatter import PreparedScatter
from aio_transfer.observability.statistics import Statistics
from aio_transfer.peers.messages import ReceivedMessage
from aio_transfer.peers.peer import Peer, PeerState
from aio_transfer.regions.descriptor import CounterRef, RegionDescriptor
from aio_transfer.regions.region import Pages, Region, RemotePages, RemoteRegion, RemoteSlice, Slice
from aio_transfer.topology.peer_info import PeerInfo
from aio_transfer.transfers.transfer import Transfer

__version__ = "0.1.0"

__all__ = (
    "Access",
    "AioTransferError",
    "AuthenticationError",
    "BackendUnavailableError",
    "BusyError",
    "ClosedError",
    "CounterRef",
    "DmaBuf",
    "ImmCounter",
    "Pages",
    "Peer",
    "PeerGroup",
    "PeerInfo",
    "PeerLostError",
    "PeerState",
    "PreparedScatter",
    "ProtocolError",
    "ProviderError",
    "ReceivedMessage",
    "Region",
    "RegionDescriptor",
    "RemotePages",
    "RemoteRegion",
    "RemoteSlice",
    "Slice",
    "StaleRegionError",
    "Statistics",
    "Transfer",
    "TransferAbortedError",
    "TransferEngine",
    "TransportPath",
    "UnsupportedError",
    "UsageError",
    "WouldBlock",
)
