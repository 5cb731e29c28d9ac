"""Driver seam: what the engine calls on a transport, and what a transport reports back.

Authors of backends import everything from here. Finding backends by name is in ``backend_registry``, mapping driver
statuses to exceptions in ``error_mapping``. No transport is in this package.
"""

from aio_transfer.driver.event_queue import EventQueue
from aio_transfer.driver.protocol import (
    Capabilities,
    Driver,
    DriverFactory,
    Endpoint,
    LocalMemory,
    RemoteMemory,
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
    "Capabilities",
    "CounterId",
    "Driver",
    "DriverFactory",
    "Endpoint",
    "Event",
    "EventKind",
    "EventQueue",
    "LocalMemory",
    "Op",
    "PeerNumber",
    "PieceFlag",
    "RegionNumber",
    "RemoteMemory",
    "Status",
    "TransferId",
    "TransportPath",
)
