"""What two ends must know of each other before their queue pairs can talk. ``README.md`` has the layout for others."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from aio_transfer.errors import UsageError

__all__ = ("STRUCT", "VERSION", "End")

STRUCT: Final = struct.Struct("<BBBH16sIIII")
VERSION: Final = 1


class End(NamedTuple):
    """One rail's end.

    :ivar link_layer: 1 InfiniBand, 2 Ethernet
    :ivar mtu: 1 … 5 for 256 … 4096 B; the lower of both ends holds
    :ivar lid: of the port; 0 on Ethernet
    :ivar gid: in network order
    """

    link_layer: int
    mtu: int
    lid: int
    gid: bytes
    data_qpn: int
    data_psn: int
    message_qpn: int
    message_psn: int

    def pack(self) -> bytes:
        """Return the wire form."""
        return STRUCT.pack(VERSION, *self)

    @classmethod
    def unpack(cls, blob: bytes) -> End:
        """Read the wire form, which may hold anything.

        :raises UsageError: it is not that, or not of this version
        """
        if len(blob) != STRUCT.size or blob[0] != VERSION:
            raise UsageError(f"an endpoint of {len(blob)} B, version {blob[:1].hex()}: {STRUCT.size} B, 01 are meant")
        return cls(*STRUCT.unpack(blob)[1:])
