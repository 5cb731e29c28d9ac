"""Discovery of RDMA ports from sysfs: link, state, addresses, NUMA node, and PCI distance to GPUs.

No device is opened and no library is needed, so ports that cannot be used are listed too, also in a container that may
not open them.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aio_transfer.topology.host import Host

__all__ = ("Gid", "RdmaPort", "rdma_ports")

_GPU_CLASSES: Final = ("0x0300", "0x0302", "0x1200")
"""Display and 3D controllers, and processing accelerators (AMD Instinct)."""
_GPU_VENDORS: Final = ("0x10de", "0x1002")
_MAX_GIDS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Gid:
    """One address of a port.

    :param kind: ``"RoCE v2"``, ``"RoCE v1"`` or ``"InfiniBand"``
    """

    index: int
    kind: str
    address: str

    @property
    def is_routed(self) -> bool:
        """Whether peers outside the Ethernet segment can reach it."""
        address = ipaddress.ip_address(self.address)
        return not (address.is_link_local or address.is_loopback)


@dataclass(frozen=True, slots=True, kw_only=True)
class RdmaPort:
    """One port of one device.

    :param driver: kernel driver of its PCI device; empty for software devices
    :param link: ``"InfiniBand"`` or ``"Ethernet"``
    :param state: as the kernel reports it, ``"ACTIVE"`` where the port works
    :param speed: as the kernel reports it, such as ``"100 Gb/sec (4X EDR)"``
    :param netdev: network interface of a RoCE port; empty where the kernel reports none
    :param numa_node: −1 where the kernel reports none
    :param cpus: cores of that node, as the kernel lists them
    :param gpus: number of PCI hops to each GPU, by its PCI address; devices below one switch are nearest
    """

    device: str
    port: int
    driver: str
    link: str
    state: str
    speed: str
    netdev: str
    numa_node: int
    cpus: str
    pci: str
    gpus: dict[str, int]
    gids: tuple[Gid, ...]

    @property
    def name(self) -> str:
        """Device and port number."""
        return f"{self.device}:{self.port}"


def rdma_ports(host: Host) -> list[RdmaPort]:
    """List every port of every device, ordered by name."""
    return [
        _read_port(host, device.name, int(port.name))
        for device in host.entries("/sys/class/infiniband")
        for port in host.entries(f"/sys/class/infiniband/{device.name}/ports")
        if port.name.isdecimal()
    ]


def _read_port(host: Host, device: str, port: int) -> RdmaPort:
    base = f"/sys/class/infiniband/{device}"
    at = f"{base}/ports/{port}"
    pci = host.path(f"{base}/device").resolve()
    is_pci = re.fullmatch(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", pci.name) is not None
    node = host.read(f"{base}/device/numa_node") or "-1"
    return RdmaPort(
        device=device,
        port=port,
        driver=host.rdma_devices().get(device, ""),
        link=host.read(f"{at}/link_layer") or "",
        state=(host.read(f"{at}/state") or "").partition(": ")[2],
        speed=host.read(f"{at}/rate") or "",
        netdev=host.read(f"{at}/gid_attrs/ndevs/0") or "",
        numa_node=int(node) if node.lstrip("-").isdecimal() else -1,
        cpus=host.read(f"{base}/device/local_cpulist") or "",
        pci=pci.name if is_pci else "",
        gpus=dict(_gpu_distances(host, pci.parts)) if is_pci else {},
        gids=tuple(_read_gids(host, at)),
    )


def _read_gids(host: Host, at: str) -> Iterator[Gid]:
    # The kernel has one name for two kinds.
    old = "RoCE v1" if host.read(f"{at}/link_layer") == "Ethernet" else "InfiniBand"
    for index in range(_MAX_GIDS):
        # The kernel refuses to read the type of an empty entry.
        kind = host.read(f"{at}/gid_attrs/types/{index}")
        raw = host.read(f"{at}/gids/{index}")
        if raw is None:
            return
        address = ipaddress.IPv6Address(int(raw.replace(":", ""), 16))
        if kind is None or not int(address):
            continue
        yield Gid(index=index, kind=old if kind == "IB/RoCE v1" else kind, address=str(address.ipv4_mapped or address))


def _gpu_distances(host: Host, nic: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Count the steps up the PCI tree and down again, from the NIC to each GPU."""
    for device in host.entries("/sys/bus/pci/devices"):
        at = f"/sys/bus/pci/devices/{device.name}"
        kind, vendor = host.read(f"{at}/class") or "", host.read(f"{at}/vendor") or ""
        if kind[:6] not in _GPU_CLASSES or vendor not in _GPU_VENDORS:
            continue
        gpu = device.resolve().parts
        common = 0
        while common < min(len(nic), len(gpu)) and nic[common] == gpu[common]:
            common += 1
        yield device.name, len(nic) + len(gpu) - 2 * common
