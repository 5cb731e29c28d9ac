"""Checks of AWS EFA: driver, installer, fork support, huge pages, security group."""

from __future__ import annotations

import re
from typing import Final

from aio_transfer.doctor.host_check import HostCheck, version_numbers
from aio_transfer.topology.host import Host

__all__ = (
    "check_efa_fork",
    "check_efa_huge_pages",
    "check_efa_installer",
    "check_efa_module",
    "check_efa_security_group",
)

OLDEST_EFA_MODULE: Final = (2, 1)
"""First efa driver with RDMA write (p5 and later), part of EFA installer 1.24."""
SAFE_FORK_KERNEL: Final = (5, 13)
"""First kernel that copies registered pages at a fork; the version that libfabric's efa provider states."""
FORK_SAFE: Final = ("FI_EFA_FORK_SAFE", "RDMAV_FORK_SAFE", "IBV_FORK_SAFE")
"""Environment variables, each of which makes the provider fork-safe before it registers memory."""
INSTALL_EFA: Final = (
    "curl -O https://efa-installer.amazonaws.com/aws-efa-installer-latest.tar.gz && "
    "tar xf aws-efa-installer-latest.tar.gz && cd aws-efa-installer && sudo ./efa_installer.sh -y"
)


def check_efa_module(host: Host) -> HostCheck | None:
    """Version of the efa kernel driver."""
    if "efa" not in host.rdma_devices().values():
        return None
    version = host.read("/sys/module/efa/version") or ""
    if not version:
        return HostCheck(name="efa driver", status="ok", detail="in-tree driver without a version")
    if version_numbers(version) >= OLDEST_EFA_MODULE:
        return HostCheck(name="efa driver", status="ok", detail=version)
    return HostCheck(name="efa driver", status="warn", detail=f"{version} has no RDMA write (2.1 has)", fix=INSTALL_EFA)


def check_efa_installer(host: Host) -> HostCheck | None:
    """Version of the EFA installer, which brings AWS's libfabric."""
    if "efa" not in host.rdma_devices().values():
        return None
    found = re.search(r"EFA installer version:\s*(\S+)", host.read("/opt/amazon/efa_installed_packages") or "")
    if found:
        return HostCheck(name="efa installer", status="ok", detail=found[1])
    return HostCheck(name="efa installer", status="warn", detail="/opt/amazon/efa is not installed", fix=INSTALL_EFA)


def check_efa_fork(host: Host) -> HostCheck | None:
    """Fork support: before Linux 5.13 the efa provider aborts a process that forks, unless a variable allows it."""
    if "efa" not in host.rdma_devices().values():
        return None
    kernel = host.read("/proc/sys/kernel/osrelease") or ""
    variable = next((name for name in FORK_SAFE if host.environ.get(name)), None)
    if version_numbers(kernel) >= SAFE_FORK_KERNEL or variable:
        return HostCheck(name="efa fork", status="ok", detail=f"{variable} is set" if variable else f"Linux {kernel}")
    detail = f"Linux {kernel}: a process that uses EFA is aborted when it forks (safe since Linux 5.13)"
    return HostCheck(name="efa fork", status="warn", detail=detail, fix=f"export {FORK_SAFE[0]}=1")


def check_efa_huge_pages(host: Host) -> HostCheck | None:
    """Huge pages for the provider's own buffers; without them it uses small pages."""
    if "efa" not in host.rdma_devices().values():
        return None
    free = re.search(r"^HugePages_Free:\s+(\d+)", host.read("/proc/meminfo") or "", re.MULTILINE)
    if free and int(free[1]):
        return HostCheck(name="efa huge pages", status="ok", detail=f"{free[1]} are free")
    return HostCheck(
        name="efa huge pages",
        status="warn",
        detail="none is free: the provider uses small pages, and the device can register fewer bytes of those",
        fix="sudo sysctl vm.nr_hugepages=512",
    )


def check_efa_security_group(host: Host) -> HostCheck | None:
    """Reminder about the security group: it is not visible on the machine, and drops EFA packets without an error."""
    if "efa" not in host.rdma_devices().values():
        return None
    rule = "--group-id $SG --protocol -1 --source-group $SG"
    return HostCheck(
        name="efa security group",
        status="skip",
        detail="not visible here: the group must allow ALL traffic from and to itself, or EFA packets are dropped",
        fix=f"aws ec2 authorize-security-group-ingress {rule} && aws ec2 authorize-security-group-egress "
        "--group-id $SG --ip-permissions IpProtocol=-1,UserIdGroupPairs=[{GroupId=$SG}]",
    )
