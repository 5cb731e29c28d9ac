"""verbs backend: InfiniBand and RoCE through libibverbs, loaded at run time. ``README.md`` describes quirks."""

from aio_transfer.backends.native import NativeDriver
from aio_transfer.backends.verbs.options import OPTIONS
from aio_transfer.driver.backend import Backend

__all__ = ("BACKEND", "create")


def create(**options: object) -> NativeDriver:
    """Make an unopened driver from checked options."""
    return NativeDriver("verbs", options)


BACKEND = Backend(
    name="verbs",
    create=create,
    options=OPTIONS,
    automatic=True,
    summary="InfiniBand and RoCE devices through libibverbs (rdma-core).",
)
