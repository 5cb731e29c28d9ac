"""Driver seam: the protocol between the engine and a transport, and the declaration of a backend with its options.

Authors of backends import everything from here. Finding and opening backends by name is in ``backend_registry``,
mapping driver statuses to exceptions in ``error_mapping``. No transport is in this package.
"""

from aio_transfer.driver.backend import Backend
from aio_transfer.driver.event_queue import EventQueue
from aio_transfer.driver.options import Option, OptionTable
from aio_transfer.driver.protocol import (
    Capabilities,
    Driver,
    Endpoint,
    LocalMemory,
    PreparedDriver,
    RemoteMemory,
    SpinningDriver,
)
from aio_transfer.driver.records import (
    ANY_REGION,
    COUNTER_ID_BITS,
    MAX_COUNTER_ID,
    MAX_COUNTS_PER_IMMEDIATE,
    PIECE,
    PIECE_STRUCT,
    PRIVATE_COUNTER_BIT,
    RUN,
    RUN_STRUCT,
    Access,
    CounterId,
    Event,
    EventKind,
    Op,
    PeerNumber,
    PieceFlag,
    RegionNumber,
    Status,
    TransferId,
)
from aio_transfer.driver.transport_path import TransportPath

__all__ = (
    "ANY_REGION",
    "COUNTER_ID_BITS",
    "MAX_COUNTER_ID",
    "MAX_COUNTS_PER_IMMEDIATE",
    "PIECE",
    "PIECE_STRUCT",
    "PRIVATE_COUNTER_BIT",
    "RUN",
    "RUN_STRUCT",
    "Access",
    "Backend",
    "Capabilities",
    "CounterId",
    "Driver",
    "Endpoint",
    "Event",
    "EventKind",
    "EventQueue",
    "LocalMemory",
    "Op",
    "Option",
    "OptionTable",
    "PeerNumber",
    "PieceFlag",
    "PreparedDriver",
    "RegionNumber",
    "RemoteMemory",
    "SpinningDriver",
    "Status",
    "TransferId",
    "TransportPath",
)
