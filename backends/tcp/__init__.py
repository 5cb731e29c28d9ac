"""tcp backend: plain TCP sockets to any host, with nothing but the kernel. ``README.md`` describes the wire format."""

from aio_transfer.backends.native import NativeDriver
from aio_transfer.backends.tcp.options import OPTIONS
from aio_transfer.driver.backend import Backend

__all__ = ("BACKEND", "create")


def create(**options: object) -> NativeDriver:
    """Make an unopened driver from checked options.

    Its ``open()`` raises :class:`UsageError` for an address that is malformed or a wildcard, and
    :class:`BackendUnavailableError` for one that is not an address of this machine.
    """
    return NativeDriver("tcp", options)


BACKEND = Backend(
    name="tcp",
    create=create,
    options=OPTIONS,
    automatic=True,
    summary="TCP sockets to any host; no library is needed. Data is not encrypted.",
)
