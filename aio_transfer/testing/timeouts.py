"""Timeouts of the kit, stretched by ``AIO_TRANSFER_PATIENCE`` on slow machines, such as an emulated processor."""

from __future__ import annotations

import os
from typing import Final

__all__ = ("patient",)

_FACTOR: Final = float(os.environ.get("AIO_TRANSFER_PATIENCE", "1"))


def patient(seconds: float) -> float:
    """Return a deadline multiplied by ``AIO_TRANSFER_PATIENCE``; not for waits that should stay short."""
    return seconds * _FACTOR
