"""What RDMA ports need besides permissions: a link, addresses that peers can reach, and their user-space driver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aio_transfer.backends.verbs.discovery import rdma_ports
from aio_transfer.doctor.check import Check

if TYPE_CHECKING:
    from aio_transfer.backends.verbs.discovery import RdmaPort
    from aio_transfer.topology.host import Host

__all__ = ("check_gids", "check_ports", "check_verbs_drivers")

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
"""The kernel's driver of the PCI device, and what rdma-core calls the other half. Software devices have none."""


def _ports(host: Host) -> list[RdmaPort]:
    return [port for port in rdma_ports(host) if port.driver != _EFA]  # EFA has checks of its own


def check_ports(host: Host) -> Check | None:
    """Ports that are up."""
    ports = _ports(host)
    if not ports:
        return None
    down = [f"{port.name} is {port.state or 'in no known state'}" for port in ports if port.state != _ACTIVE]
    names = ", ".join(f"{port.name} ({port.speed})" for port in ports if port.state == _ACTIVE)
    if not down:
        return Check(name="rdma ports", status="ok", detail=names)
    first = next(port for port in ports if port.state != _ACTIVE)
    fix = (
        f"sudo ip link set {first.netdev or '<interface>'} up"
        if first.link == "Ethernet"
        else "sudo systemctl start opensm  # on one machine of the subnet; INIT means that no subnet manager runs"
    )
    return Check(name="rdma ports", status="warn", detail="; ".join([*([names] if names else []), *down]), fix=fix)


def check_gids(host: Host) -> Check | None:
    """Addresses of RoCE ports: without one of version 2 that is routed, peers of other subnets are out of reach."""
    ports = [port for port in _ports(host) if port.link == "Ethernet" and port.state == _ACTIVE]
    if not ports:
        return None
    found = {port.name: [gid for gid in port.gids if gid.kind == "RoCE v2" and gid.is_routed] for port in ports}
    lacking = [name for name, gids in found.items() if not gids]
    detail = ", ".join(f"{name} {gids[0].address}" for name, gids in found.items() if gids)
    if not lacking:
        return Check(name="gid table", status="ok", detail=f"RoCE v2: {detail}")
    lack = f"no routed RoCE v2 address on {', '.join(lacking)}: only neighbours can be reached there"
    first = next(port for port in ports if port.name == lacking[0])
    fix = f"sudo ip address add <address>/<bits> dev {first.netdev or '<interface>'}"
    return Check(name="gid table", status="warn", detail=f"{lack}; {detail}" if detail else lack, fix=fix)


def check_verbs_drivers(host: Host) -> Check | None:
    """rdma-core's half of each driver: without it a device is not listed, and nothing says why."""
    wanted = {_USER_DRIVERS.get(port.driver, port.driver) for port in _ports(host)}
    if not wanted:
        return None
    there = {path.stem for path in host.entries("/etc/libibverbs.d")}
    missing = sorted(wanted - there)
    if not missing:
        return Check(name="verbs drivers", status="ok", detail=", ".join(sorted(wanted)))
    detail = f"/etc/libibverbs.d names no {', '.join(missing)}"
    return Check(name="verbs drivers", status="warn", detail=detail, fix="sudo apt-get install -y ibverbs-providers")
