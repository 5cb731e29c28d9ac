"""One-sided memory transfer between processes, machines and GPUs that you can await."""

from aio_transfer.control import PeerInfo
from aio_transfer.counters import ImmCounter
from aio_transfer.descriptors import CounterRef, RegionDescriptor
from aio_transfer.device_memory import DmaBuf
from aio_transfer.drivers import Access
from aio_transfer.engine import TransferEngine
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
from aio_transfer.groups import PeerGroup
from aio_transfer.messages import ReceivedMessage
from aio_transfer.pages import Pages, RemotePages
from aio_transfer.peers import Peer, PeerState
from aio_transfer.regions import Region, RemoteRegion, RemoteSlice, Slice
from aio_transfer.scatter import PreparedScatter
from aio_transfer.statistics import Statistics
from aio_transfer.transfers import Path, Transfer

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
    "Path",
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
    "UnsupportedError",
    "UsageError",
    "WouldBlock",
)
