"""pyverbs backend: RC queue pairs through pyverbs, a reference for the native ``verbs``. Never opened automatically."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from aio_transfer.backends.pyverbs.options import OPTIONS
from aio_transfer.driver.backend import Backend
from aio_transfer.errors import BackendUnavailableError

if TYPE_CHECKING:
    from aio_transfer.driver.protocol import Driver

__all__ = ("BACKEND", "create")


def create(*, device: str = "", address: str = "") -> Driver:
    """Make an unopened driver from checked options.

    :raises BackendUnavailableError: pyverbs cannot be imported
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        from aio_transfer.backends.pyverbs.driver import PyverbsDriver
    except ImportError as error:
        hint = "apt-get install python3-pyverbs, or pip install pyverbs"
        raise BackendUnavailableError("pyverbs", f"pyverbs cannot be imported: {error}", hint) from error
    finally:
        # pyverbs.base calls logging.basicConfig(), which is the application's decision.
        root.handlers[:] = handlers
        root.setLevel(level)
    return PyverbsDriver(device, address)


BACKEND = Backend(
    name="pyverbs",
    create=create,
    options=OPTIONS,
    summary="RDMA devices through pyverbs, in Python: a reference for tests, slower than verbs.",
)
