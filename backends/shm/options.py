"""Options of the shm backend."""

from __future__ import annotations

from typing import Final

from aio_transfer.backends.native import WORKER_OPTIONS
from aio_transfer.driver.options import OptionTable

__all__ = ("OPTIONS",)

OPTIONS: Final = OptionTable(*WORKER_OPTIONS)
