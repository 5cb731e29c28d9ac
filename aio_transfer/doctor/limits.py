"""Checks of kernel limits: open files, locked memory, CPU cores, huge pages."""

from __future__ import annotations

import os
import re
import resource
from typing import Final

from aio_transfer.doctor.host_check import HostCheck
from aio_transfer.topology.host import Host

__all__ = ("check_cpus", "check_huge_pages", "check_memlock", "check_nofile")

NOFILE_MINIMUM: Final = 256
"""An engine uses about ten fds, two more per region, and four more per peer on the same host."""
NOFILE_ENOUGH: Final = 4096
CPUS_ENOUGH: Final = 2


def check_memlock(host: Host) -> HostCheck:
    """Locked memory: RDMA devices pin what is registered; shm and tcp pin nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    devices = sorted(host.rdma_devices())
    if soft == resource.RLIM_INFINITY:
        return HostCheck(name="memlock", status="ok", detail="unlimited")
    limit = f"{soft // 1024} KiB"
    if not devices:
        return HostCheck(
            name="memlock", status="ok", detail=f"{limit}; no RDMA device here, and shm and tcp pin no memory"
        )
    fix = (
        "ulimit -l unlimited"
        if hard == resource.RLIM_INFINITY
        else "sudo prlimit --pid $$ --memlock=unlimited:unlimited  # for good: "
        "echo '* - memlock unlimited' | sudo tee /etc/security/limits.d/90-rdma.conf, and log in again"
    )
    detail = f"{limit}: {', '.join(devices)} can register at most that much"
    return HostCheck(name="memlock", status="warn", detail=detail, fix=fix)


def check_nofile(_host: Host) -> HostCheck:
    """Open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= NOFILE_ENOUGH:
        return HostCheck(
            name="nofile", status="ok", detail="unlimited" if soft == resource.RLIM_INFINITY else str(soft)
        )
    enough = hard == resource.RLIM_INFINITY or hard >= NOFILE_ENOUGH
    return HostCheck(
        name="nofile",
        status="fail" if soft < NOFILE_MINIMUM else "warn",
        detail=f"{soft} open files: each region and each peer uses some",
        fix=f"ulimit -n {NOFILE_ENOUGH}"
        if enough
        else f"sudo prlimit --pid $$ --nofile={NOFILE_ENOUGH}:{NOFILE_ENOUGH}",
    )


def check_cpus(host: Host) -> HostCheck:
    """CPU cores: each engine runs a worker thread beside the event loop."""
    usable, present = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    detail = f"{usable} of {present} usable by this process"
    quota = _cgroup_cpus(host)
    if quota is not None and quota < usable:
        detail += f", limited to {quota:g} by its cgroup"
        usable = int(quota)
    if usable >= CPUS_ENOUGH:
        return HostCheck(name="cpus", status="ok", detail=detail)
    return HostCheck(
        name="cpus",
        status="warn",
        detail=f"{detail}: the worker thread and the event loop share a core; do not use progress='spin' here",
        fix="taskset --pid --cpu-list 0-1 $$" if present >= CPUS_ENOUGH else "",
    )


def _cgroup_cpus(host: Host) -> float | None:
    """Return the CPU quota of cgroup v2, as seen from inside the container."""
    found = re.fullmatch(r"(\d+) (\d+)", host.read("/sys/fs/cgroup/cpu.max") or "")
    return int(found[1]) / int(found[2]) if found else None


def check_huge_pages(host: Host) -> HostCheck:
    """Huge pages: optional, for ``engine.allocate(..., huge_pages=True)``."""
    text = host.read("/proc/meminfo") or ""
    pages = {
        name: int(value) for name, value in re.findall(r"^(HugePages_\w+|Hugepagesize):\s+(\d+)", text, re.MULTILINE)
    }
    if "Hugepagesize" not in pages:
        return HostCheck(name="huge pages", status="skip", detail="this kernel has none; they are optional")
    nbytes = f"of {pages['Hugepagesize']} KiB"
    if pages.get("HugePages_Total"):
        detail = f"{pages.get('HugePages_Free', 0)} of {pages['HugePages_Total']} {nbytes} are free"
        return HostCheck(name="huge pages", status="ok", detail=detail)
    detail = f"none {nbytes} set aside; only allocate(huge_pages=True) needs them"
    return HostCheck(name="huge pages", status="skip", detail=detail, fix="sudo sysctl vm.nr_hugepages=512")
