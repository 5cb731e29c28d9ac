"""Native data plane: the driver that puts C++ transports behind the seam, and native helpers of the engine."""

from ._native import Heartbeat, fill_pieces
from .driver import NativeDriver

__all__ = ("Heartbeat", "NativeDriver", "fill_pieces")
