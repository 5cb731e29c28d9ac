"""All checks, in the order in which a person should read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aio_transfer.doctor import fabric, limits, local, rdma, software

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aio_transfer.doctor.check import Check
    from aio_transfer.driver.backend_registry import BackendReport
    from aio_transfer.topology.host import Host

__all__ = ("examine",)

OF_THE_HOST: Final[tuple[Callable[[Host], Check | None], ...]] = (
    software.check_python,
    software.check_numpy,
    limits.check_cpus,
    limits.check_nofile,
    limits.check_memlock,
    limits.check_huge_pages,
    local.check_memfd,
    local.check_abstract_socket,
    local.check_process_vm,
    software.check_libfabric,
    software.check_libibverbs,
    fabric.check_rdma,
    rdma.check_ports,
    rdma.check_gids,
    rdma.check_verbs_drivers,
    fabric.check_gpu_memory,
    fabric.check_efa_module,
    fabric.check_efa_installer,
    fabric.check_efa_fork,
    fabric.check_efa_huge_pages,
    fabric.check_efa_security_group,
)
OF_THE_BACKENDS: Final = (software.check_shm, software.check_providers)


def examine(host: Host, reports: Sequence[BackendReport]) -> list[Check]:
    """Run every check; those that do not apply at all say nothing."""
    checks = [check(host) for check in OF_THE_HOST]
    return [check for check in checks if check] + [check(reports) for check in OF_THE_BACKENDS]
