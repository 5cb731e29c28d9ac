"""RDMA hardware: devices and their permissions, GPU memory, AWS EFA."""

from __future__ import annotations

import os
import re
from typing import Final

from aio_transfer.doctor.check import Check
from aio_transfer.topology.host import Host

__all__ = (
    "check_efa_fork",
    "check_efa_huge_pages",
    "check_efa_installer",
    "check_efa_module",
    "check_efa_security_group",
    "check_gpu_memory",
    "check_rdma",
)

OLDEST_DMABUF_KERNEL: Final = (5, 12)
"""Registering a dma-buf with RDMA devices: Linux commit bfe0cc6eb249."""
OLDEST_EFA_MODULE: Final = (2, 1)
"""The efa driver that has RDMA write (p5 and later); EFA installer 1.24 brings it."""
SAFE_FORK_KERNEL: Final = (5, 13)
"""Registered pages are copied when a process forks; libfabric's provider names this version."""
FORK_SAFE: Final = ("FI_EFA_FORK_SAFE", "RDMAV_FORK_SAFE", "IBV_FORK_SAFE")
"""Each makes the provider prepare for forks before it registers anything."""
INSTALL_EFA: Final = (
    "curl -O https://efa-installer.amazonaws.com/aws-efa-installer-latest.tar.gz && "
    "tar xf aws-efa-installer-latest.tar.gz && cd aws-efa-installer && sudo ./efa_installer.sh -y"
)


def check_rdma(host: Host) -> Check:
    """RDMA devices, and whether we may open them."""
    devices = host.rdma_devices()
    if not devices:
        return Check(name="rdma", status="skip", detail="no RDMA device here")
    nodes = [path for path in host.entries("/dev/infiniband") if path.name.startswith("uverbs")]
    names = ", ".join(f"{name} ({driver})" if driver else name for name, driver in devices.items())
    if not nodes:
        return Check(
            name="rdma",
            status="warn",
            detail=f"{names}, but /dev/infiniband has no uverbs device",
            fix="sudo modprobe ib_uverbs  # in a container: docker run --device /dev/infiniband …",
        )
    closed = [path.name for path in nodes if not os.access(path, os.R_OK | os.W_OK)]
    if closed:
        fix = f"sudo chmod a+rw {' '.join(f'/dev/infiniband/{name}' for name in closed)}"
        return Check(name="rdma", status="warn", detail=f"{names}: no permission for {', '.join(closed)}", fix=fix)
    return Check(name="rdma", status="ok", detail=names)


def check_gpu_memory(host: Host) -> Check:
    """NVIDIA GPU memory for RDMA: through a dma-buf on Linux 5.12 or later, else through nvidia-peermem."""
    name = "gpu memory"
    if not host.path("/proc/driver/nvidia/version").exists():
        return Check(name=name, status="skip", detail="no NVIDIA driver here")
    if not host.rdma_devices():
        return Check(name=name, status="skip", detail="no RDMA device here that could reach it")
    kernel = host.read("/proc/sys/kernel/osrelease") or ""
    if _version(kernel) >= OLDEST_DMABUF_KERNEL:
        return Check(name=name, status="ok", detail=f"dma-buf: Linux {kernel}")
    if host.path("/sys/module/nvidia_peermem").exists():
        return Check(name=name, status="ok", detail="nvidia-peermem is loaded")
    detail = f"Linux {kernel} has no dma-buf for RDMA (5.12 has), and nvidia-peermem is not loaded"
    return Check(name=name, status="warn", detail=detail, fix="sudo modprobe nvidia-peermem")


def check_efa_module(host: Host) -> Check | None:
    """AWS's kernel driver; nothing to say where there is no EFA device."""
    if "efa" not in host.rdma_devices().values():
        return None
    version = host.read("/sys/module/efa/version") or ""
    if not version:
        return Check(name="efa driver", status="ok", detail="the kernel's own, of no stated version")
    if _version(version) >= OLDEST_EFA_MODULE:
        return Check(name="efa driver", status="ok", detail=version)
    return Check(name="efa driver", status="warn", detail=f"{version} has no RDMA write (2.1 has)", fix=INSTALL_EFA)


def check_efa_installer(host: Host) -> Check | None:
    """AWS's libfabric and its version."""
    if "efa" not in host.rdma_devices().values():
        return None
    found = re.search(r"EFA installer version:\s*(\S+)", host.read("/opt/amazon/efa_installed_packages") or "")
    if found:
        return Check(name="efa installer", status="ok", detail=found[1])
    return Check(name="efa installer", status="warn", detail="/opt/amazon/efa is not installed", fix=INSTALL_EFA)


def check_efa_fork(host: Host) -> Check | None:
    """Whether a process may fork: on older kernels libfabric's provider ends it, unless it was told beforehand."""
    if "efa" not in host.rdma_devices().values():
        return None
    kernel = host.read("/proc/sys/kernel/osrelease") or ""
    told = next((name for name in FORK_SAFE if host.environ.get(name)), None)
    if _version(kernel) >= SAFE_FORK_KERNEL or told:
        return Check(name="efa fork", status="ok", detail=f"{told} is set" if told else f"Linux {kernel}")
    detail = f"Linux {kernel}: a process that uses EFA is ended when it forks (5.13 is the first that needs no care)"
    return Check(name="efa fork", status="warn", detail=detail, fix=f"export {FORK_SAFE[0]}=1")


def check_efa_huge_pages(host: Host) -> Check | None:
    """Huge pages for the provider's own buffers; it does without where there are none."""
    if "efa" not in host.rdma_devices().values():
        return None
    free = re.search(r"^HugePages_Free:\s+(\d+)", host.read("/proc/meminfo") or "", re.MULTILINE)
    if free and int(free[1]):
        return Check(name="efa huge pages", status="ok", detail=f"{free[1]} are free")
    return Check(
        name="efa huge pages",
        status="warn",
        detail="none is free: the provider's buffers take small pages, of which the device can register fewer bytes",
        fix="sudo sysctl vm.nr_hugepages=512",
    )


def check_efa_security_group(host: Host) -> Check | None:
    """Remind of what nothing on the machine can tell, and whose fault looks like silence."""
    if "efa" not in host.rdma_devices().values():
        return None
    rule = "--group-id $SG --protocol -1 --source-group $SG"
    return Check(
        name="efa security group",
        status="skip",
        detail="cannot be seen from here: the group must admit ALL traffic from and to itself, or EFA writes vanish",
        fix=f"aws ec2 authorize-security-group-ingress {rule} && aws ec2 authorize-security-group-egress "
        "--group-id $SG --ip-permissions IpProtocol=-1,UserIdGroupPairs=[{GroupId=$SG}]",
    )


def _version(text: str) -> tuple[int, ...]:
    """Return the numbers a version begins with: ``"2.10.0g"`` is ``(2, 10, 0)``."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, found[0].split("."))) if found else ()
