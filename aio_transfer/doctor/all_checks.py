"""List of all checks, in the order they are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aio_transfer.doctor import efa, limits, rdma, shm, software

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aio_transfer.doctor.host_check import HostCheck
    from aio_transfer.driver.backend_registry import BackendReport
    from aio_transfer.topology.host import Host

__all__ = ("examine",)

HOST_CHECKS: Final[tuple[Callable[[Host], HostCheck | None], ...]] = (
    software.check_python,
    software.check_numpy,
    limits.check_cpus,
    limits.check_nofile,
    limits.check_memlock,
    limits.check_huge_pages,
    shm.check_memfd,
    shm.check_abstract_socket,
    shm.check_process_vm,
    software.check_libfabric,
    software.check_libibverbs,
    rdma.check_rdma_devices,
    rdma.check_ports,
    rdma.check_gids,
    rdma.check_verbs_drivers,
    rdma.check_gpu_memory,
    efa.check_efa_module,
    efa.check_efa_installer,
    efa.check_efa_fork,
    efa.check_efa_huge_pages,
    efa.check_efa_security_group,
)
BACKEND_CHECKS: Final = (software.check_shm_backend, software.check_other_backends)


def examine(host: Host, reports: Sequence[BackendReport]) -> list[HostCheck]:
    """Run every check; a check that does not apply to this machine at all is left out.

    :param reports: of the installed backends
    """
    checks = [check(host) for check in HOST_CHECKS]
    return [check for check in checks if check] + [check(reports) for check in BACKEND_CHECKS]
