"""The native data plane, and the driver that puts it behind the seam."""

from ._native import Pulse
from .driver import NativeDriver

__all__ = ("NativeDriver", "Pulse")
