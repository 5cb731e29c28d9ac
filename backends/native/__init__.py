"""Native data plane: the driver that puts C++ transports behind the driver seam, and native helpers of the engine.

It is a helper of backends, and no backend itself.
"""

from ._native import Heartbeat, fill_pieces
from .driver import NativeDriver
from .options import WORKER_OPTIONS

__all__ = ("WORKER_OPTIONS", "Heartbeat", "NativeDriver", "fill_pieces")
