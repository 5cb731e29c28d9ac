"""RC queue pairs driven through pyverbs: the reference for the native ``verbs``, and only used when it is named."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from aio_transfer.errors import BackendUnavailableError

if TYPE_CHECKING:
    from aio_transfer.driver.protocol import Driver

__all__ = ("create",)


def create(*, device: str = "", address: str = "") -> Driver:
    """Make an unopened driver for the first active port, or for a named one.

    :param device: as ``ibv_devices`` lists it
    :param address: of the port, IPv4 or IPv6
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
        # pyverbs.base calls logging.basicConfig(), and so takes that decision from the application.
        root.handlers[:] = handlers
        root.setLevel(level)
    return PyverbsDriver(device, address)
