"""Shared memory: one host, no dependency. A write is one copy by the sender, straight into the target."""

from aio_transfer.backends.native import NativeDriver

__all__ = ("create",)


def create(**options: object) -> NativeDriver:
    """Make an unopened shm driver.

    :param options: ``progress`` (``"adaptive"`` or ``"spin"``), ``spin_us``
    """
    return NativeDriver("shm", options)
