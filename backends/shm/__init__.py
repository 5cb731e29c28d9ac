"""shm backend: shared memory within one host. A write is one copy by the sender, straight into the target."""

from aio_transfer.backends.native import NativeDriver
from aio_transfer.backends.shm.options import OPTIONS
from aio_transfer.driver.backend import Backend

__all__ = ("BACKEND", "create")


def create(**options: object) -> NativeDriver:
    """Make an unopened driver from checked options."""
    return NativeDriver("shm", options)


BACKEND = Backend(
    name="shm",
    create=create,
    options=OPTIONS,
    automatic=True,
    summary="Shared memory within one host; no library is needed.",
)
