"""How long the kit waits for what has to happen: longer where all is slow, as on an emulated processor."""

from __future__ import annotations

import os
from typing import Final

__all__ = ("patient",)

_FACTOR: Final = float(os.environ.get("AIO_TRANSFER_PATIENCE", "1"))


def patient(seconds: float) -> float:
    """Return a deadline, stretched by ``AIO_TRANSFER_PATIENCE``: what is meant to be short is no deadline."""
    return seconds * _FACTOR
