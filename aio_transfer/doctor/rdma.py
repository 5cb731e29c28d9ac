"""Checks of RDMA devices: permissions, ports, GIDs, user-space drivers, registration of GPU memory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from aio_transfer.backends.verbs.discovery import rdma_ports
from aio_transfer.doctor.host_check import HostCheck, version_numbers

if TYPE_CHECKING:
    from aio_transfer.backends.verbs.discovery import RdmaPort
    from aio_transfer.topology.host import Host

__all__ = ("check_gids", "check_gpu_memory", "check_ports", "check_rdma_devices", "check_verbs_drivers")

OLDEST_DMABUF_KERNEL: Final = (5, 12)
"""First kernel that registers a dma-buf with RDMA devices: Linux commit bfe0cc6eb249."""
_ACTIVE: Final = "ACTIVE"
_EFA: Final = "efa"
_USER_DRIVERS: Final = {
    "mlx5_core": "mlx5",
    "mlx4_core": "mlx4",
    "bnxt_en": "bnxt_re",
    "ice": "irdma",
    "irdma": "irdma",
    "qede": "qedr",
    "cxgb4": "cxgb4",
    "hns3": "hns",
    "erdma": "erdma",
    "mana": "mana",
    "": "rxe",
}
"""Kernel driver of the PCI device → rdma-core's name of its user-space driver. Software devices have no PCI driver."""


def check_rdma_devices(host: Host) -> HostCheck:
    """RDMA devices, and the permission to open them."""
    devices = host.rdma_devices()
    if not devices:
        return HostCheck(name="rdma", status="skip", detail="no RDMA device here")
    nodes = [path for path in host.entries("/dev/infiniband") if path.name.startswith("uverbs")]
    names = ", ".join(f"{name} ({driver})" if driver else name for name, driver in devices.items())
    if not nodes:
        return HostCheck(
            name="rdma",
            status="warn",
            detail=f"{names}, but /dev/infiniband has no uverbs device",
            fix="sudo modprobe ib_uverbs  # in a container: docker run --device /dev/infiniband …",
        )
    denied = [path.name for path in nodes if not os.access(path, os.R_OK | os.W_OK)]
    if denied:
        fix = f"sudo chmod a+rw {' '.join(f'/dev/infiniband/{name}' for name in denied)}"
        return HostCheck(name="rdma", status="warn", detail=f"{names}: no permission for {', '.join(denied)}", fix=fix)
    return HostCheck(name="rdma", status="ok", detail=names)


def check_gpu_memory(host: Host) -> HostCheck:
    """NVIDIA GPU memory for RDMA: through a dma-buf on Linux 5.12 or later, else through nvidia-peermem."""
    name = "gpu memory"
    if not host.path("/proc/driver/nvidia/version").exists():
        return HostCheck(name=name, status="skip", detail="no NVIDIA driver here")
    if not host.rdma_devices():
        return HostCheck(name=name, status="skip", detail="no RDMA device here")
    kernel = host.read("/proc/sys/kernel/osrelease") or ""
    if version_numbers(kernel) >= OLDEST_DMABUF_KERNEL:
        return HostCheck(name=name, status="ok", detail=f"dma-buf: Linux {kernel}")
    if host.path("/sys/module/nvidia_peermem").exists():
        return HostCheck(name=name, status="ok", detail="nvidia-peermem is loaded")
    detail = f"Linux {kernel} has no dma-buf for RDMA (5.12 has), and nvidia-peermem is not loaded"
    return HostCheck(name=name, status="warn", detail=detail, fix="sudo modprobe nvidia-peermem")


def check_ports(host: Host) -> HostCheck | None:
    """State of the ports."""
    ports = _ports(host)
    if not ports:
        return None
    down = [f"{port.name} is {port.state or 'in an unknown state'}" for port in ports if port.state != _ACTIVE]
    names = ", ".join(f"{port.name} ({port.speed})" for port in ports if port.state == _ACTIVE)
    if not down:
        return HostCheck(name="rdma ports", status="ok", detail=names)
    first = next(port for port in ports if port.state != _ACTIVE)
    fix = (
        f"sudo ip link set {first.netdev or '<interface>'} up"
        if first.link == "Ethernet"
        else "sudo systemctl start opensm  # on one machine of the subnet; INIT: no subnet manager runs"
    )
    return HostCheck(name="rdma ports", status="warn", detail="; ".join([*([names] if names else []), *down]), fix=fix)


def check_gids(host: Host) -> HostCheck | None:
    """GIDs of RoCE ports: without a routed RoCE v2 address, peers in other subnets cannot be reached."""
    ports = [port for port in _ports(host) if port.link == "Ethernet" and port.state == _ACTIVE]
    if not ports:
        return None
    found = {port.name: [gid for gid in port.gids if gid.kind == "RoCE v2" and gid.is_routed] for port in ports}
    lacking = [name for name, gids in found.items() if not gids]
    detail = ", ".join(f"{name} {gids[0].address}" for name, gids in found.items() if gids)
    if not lacking:
        return HostCheck(name="gid table", status="ok", detail=f"RoCE v2: {detail}")
    lack = f"no routed RoCE v2 address on {', '.join(lacking)}: only peers in the same subnet can be reached through it"
    first = next(port for port in ports if port.name == lacking[0])
    fix = f"sudo ip address add <address>/<bits> dev {first.netdev or '<interface>'}"
    return HostCheck(name="gid table", status="warn", detail=f"{lack}; {detail}" if detail else lack, fix=fix)


def check_verbs_drivers(host: Host) -> HostCheck | None:
    """User-space drivers of rdma-core: without its driver, libibverbs leaves out a device without an error."""
    wanted = {_USER_DRIVERS.get(port.driver, port.driver) for port in _ports(host)}
    if not wanted:
        return None
    there = {path.stem for path in host.entries("/etc/libibverbs.d")}
    missing = sorted(wanted - there)
    if not missing:
        return HostCheck(name="verbs drivers", status="ok", detail=", ".join(sorted(wanted)))
    detail = f"/etc/libibverbs.d has no driver file for {', '.join(missing)}"
    return HostCheck(
        name="verbs drivers", status="warn", detail=detail, fix="sudo apt-get install -y ibverbs-providers"
    )


def _ports(host: Host) -> list[RdmaPort]:
    return [port for port in rdma_ports(host) if port.driver != _EFA]  # doctor/efa.py checks EFA
