"""What the commands ask of the backends: which of them can run here, and on what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aio_transfer.backends.verbs.discovery import RdmaPort

__all__ = ("BackendReport", "backend_reports", "rdma_port_reports")


class BackendReport(Protocol):
    """One path: a backend with one of its providers.

    ``reason`` says why it is not usable, ``hint`` is the command that would help; both are empty when it is.
    """

    @property
    def backend(self) -> str:
        """Its name, as in ``backend="shm"``."""
        ...

    @property
    def provider(self) -> str:
        """What carries the bytes below it."""
        ...

    @property
    def usable(self) -> bool:
        """Whether it can run here and now."""
        ...

    @property
    def rails(self) -> tuple[str, ...]:
        """One name per NIC."""
        ...

    @property
    def detail(self) -> str:
        """What is worth knowing about it: library, version, how writes are done."""
        ...

    @property
    def reason(self) -> str:
        """Why it cannot run here."""
        ...

    @property
    def hint(self) -> str:
        """The command that would help."""
        ...


def backend_reports() -> Sequence[BackendReport]:
    """Ask every backend, which opens libraries and devices for a moment."""
    from aio_transfer.selection import available

    return available()


def rdma_port_reports() -> Sequence[RdmaPort]:
    """Ask the kernel for its RDMA ports, which opens nothing."""
    from aio_transfer.backends.verbs.discovery import rdma_ports
    from aio_transfer.doctor.check import Host

    return rdma_ports(Host())
