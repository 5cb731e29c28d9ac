"""What the commands ask of the backends: which of them can run here, and on what."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aio_transfer.backends.verbs.discovery import RdmaPort
    from aio_transfer.driver.backend_registry import BackendReport

__all__ = ("backend_reports", "rdma_port_reports")


def backend_reports() -> Sequence[BackendReport]:
    """Ask every backend, which opens libraries and devices for a moment."""
    from aio_transfer.driver.backend_registry import available

    return available()


def rdma_port_reports() -> Sequence[RdmaPort]:
    """Ask the kernel for its RDMA ports, which opens nothing."""
    from aio_transfer.backends.verbs.discovery import rdma_ports
    from aio_transfer.topology.host import Host

    return rdma_ports(Host())
