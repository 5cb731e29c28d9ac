"""``aio-transfer devices``: which paths this machine has, and why not the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from aio_transfer.cli import reports
from aio_transfer.cli.output import FAILED, JsonOption, emit_json, failures_told, print_rows

if TYPE_CHECKING:
    from aio_transfer.cli.reports import BackendReport

__all__ = ("devices",)


def devices(*, as_json: JsonOption = False) -> None:
    """Show every backend with its providers and NICs: what is usable here, and why not the rest.

    An engine with backend="auto" chooses among the usable ones, per peer.
    """
    with failures_told(as_json=as_json):
        found = reports.backend_reports()
    if as_json:
        emit_json({"backends": [_as_dict(report) for report in found]})
    else:
        print_rows([_as_row(report) for report in found])
    if not any(report.usable for report in found):
        typer.echo("nothing is usable here: `aio-transfer doctor` says what to do", err=True)
        raise typer.Exit(FAILED)


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
    why = report.reason + (f" (try: {report.hint})" if report.hint else "")
    return {
        "backend": report.backend,
        "provider": report.provider or "-",
        "usable": "yes" if report.usable else "no",
        "NICs": ", ".join(report.rails) or "-",
        "detail": report.detail if report.usable else why,
    }
