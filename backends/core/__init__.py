"""The native data plane, and the driver that puts it behind the seam."""

from ._native import Pulse, fill_pieces
from .driver import NativeDriver

__all__ = ("NativeDriver", "Pulse", "fill_pieces")
