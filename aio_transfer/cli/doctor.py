"""``aio-transfer doctor``: what is wrong with this machine, and the command that mends it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from aio_transfer.cli import reports
from aio_transfer.cli.output import EXIT_FAILED, JsonOption, emit_json, print_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aio_transfer.doctor import Check
    from aio_transfer.driver.backend_registry import BackendReport

__all__ = ("doctor",)

EPILOG = """
ok: as it should be · warn: something optional, or fast, will not work · fail: nothing will work until it is mended ·
skip: does not apply here
"""


def doctor(*, as_json: JsonOption = False) -> None:
    """Check limits, libraries, versions, devices and permissions, and give the command that mends each fault.

    Nothing is changed. The exit status is 1 when something fails that every machine needs.
    """
    from dataclasses import asdict

    from aio_transfer.doctor import examine
    from aio_transfer.topology.host import Host

    found, broken = _reports()
    checks = examine(Host(), found) + broken
    failed = any(check.status == "fail" for check in checks)
    if as_json:
        emit_json({"ok": not failed, "checks": [asdict(check) for check in checks]})
    else:
        _print(checks)
    if failed:
        raise typer.Exit(EXIT_FAILED)


def _reports() -> tuple[Sequence[BackendReport], list[Check]]:
    """Ask the backends; a doctor must have an answer even where asking them fails."""
    from aio_transfer.doctor import Check

    try:
        return reports.backend_reports(), []
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        fix = "pip install --force-reinstall aio-transfer"
        detail = f"the backends cannot be asked: {type(error).__name__}: {error}"
        return (), [Check(name="backends", status="fail", detail=detail, fix=fix)]


def _print(checks: Sequence[Check]) -> None:
    print_rows([{"check": check.name, "status": check.status, "detail": check.detail} for check in checks])
    for check in checks:
        if check.fix and check.status in ("warn", "fail"):
            typer.echo(f"\nto mend {check.name}:\n  {check.fix}")
