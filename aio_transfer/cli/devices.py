"""``aio-transfer devices``: the backends and RDMA ports of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from aio_transfer.cli.output import EXIT_FAILED, JsonOption, emit_json, print_rows, report_errors

if TYPE_CHECKING:
    from aio_transfer.backends.verbs.discovery import RdmaPort
    from aio_transfer.driver.backend_registry import BackendReport

__all__ = ("devices",)


def devices(*, as_json: JsonOption = False) -> None:
    """List every backend with its provider and NICs, and the reason if it is not usable.

    An engine with backend="auto" chooses among the usable ones, per peer. A second table lists the kernel's RDMA ports,
    with the NUMA node and the number of PCI hops to each GPU.
    """
    from dataclasses import asdict

    from aio_transfer.backends.verbs.discovery import rdma_ports
    from aio_transfer.driver.backend_registry import available
    from aio_transfer.topology.host import Host

    with report_errors(as_json=as_json):
        found = available()
    ports = rdma_ports(Host())
    if as_json:
        emit_json({"backends": [_as_dict(report) for report in found], "rdma_ports": [asdict(port) for port in ports]})
    else:
        print_rows([_as_row(report) for report in found])
        if ports:
            typer.echo()
            print_rows([_as_port_row(port) for port in ports])
    if not any(report.usable for report in found):
        typer.echo("no backend is usable here: run `aio-transfer doctor`", err=True)
        raise typer.Exit(EXIT_FAILED)


def _as_dict(report: BackendReport) -> dict[str, object]:
    return {
        "backend": report.backend,
        "provider": report.provider,
        "usable": report.usable,
        "rails": list(report.rails),
        "detail": report.detail,
        "reason": report.reason,
        "hint": report.hint,
    }


def _as_row(report: BackendReport) -> dict[str, str]:
    reason = report.reason + (f" (try: {report.hint})" if report.hint else "")
    return {
        "backend": report.backend,
        "provider": report.provider or "-",
        "usable": "yes" if report.usable else "no",
        "NICs": ", ".join(report.rails) or "-",
        "detail": report.detail if report.usable else reason,
    }


def _as_port_row(port: RdmaPort) -> dict[str, str]:
    near = [f"NUMA node {port.numa_node} (cores {port.cpus})"] if port.numa_node >= 0 else []
    near += [f"GPU {gpu}: {hops} hops" for gpu, hops in sorted(port.gpus.items(), key=lambda one: (one[1], one[0]))]
    return {
        "RDMA port": port.name,
        "link": port.link,
        "state": port.state,
        "speed": port.speed,
        "interface": port.netdev or "-",
        "PCI": port.pci or "-",
        "near": ", ".join(near) or "-",
        "addresses": ", ".join(f"{gid.kind} {gid.address}" for gid in port.gids) or "-",
    }
