"""``aio-transfer doctor``: missing prerequisites of this machine, and the command that fixes each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from aio_transfer.cli.output import EXIT_FAILED, JsonOption, emit_json, print_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aio_transfer.doctor import HostCheck
    from aio_transfer.driver.backend_registry import BackendReport

__all__ = ("doctor",)

EPILOG = """
ok: works · warn: something optional, or fast, will not work · fail: nothing will work before it is fixed · skip: does
not apply here
"""


def doctor(*, as_json: JsonOption = False) -> None:
    """List missing prerequisites and the command that fixes each: limits, libraries, devices and permissions.

    Nothing is changed. The exit status is 1 if a check fails.
    """
    from dataclasses import asdict

    from aio_transfer.doctor import examine
    from aio_transfer.topology.host import Host

    reports, errors = _backend_reports()
    checks = examine(Host(), reports) + errors
    failed = any(check.status == "fail" for check in checks)
    if as_json:
        emit_json({"ok": not failed, "checks": [asdict(check) for check in checks]})
    else:
        _print(checks)
    if failed:
        raise typer.Exit(EXIT_FAILED)


def _backend_reports() -> tuple[Sequence[BackendReport], list[HostCheck]]:
    """Return the reports of the backends, or a failed check if they cannot be loaded at all."""
    from aio_transfer.doctor import HostCheck
    from aio_transfer.driver.backend_registry import available

    try:
        return available(), []
    except Exception as error:  # noqa: BLE001 - any error is a result of this check
        fix = "pip install --force-reinstall aio-transfer"
        detail = f"the backends cannot be loaded: {type(error).__name__}: {error}"
        return (), [HostCheck(name="backends", status="fail", detail=detail, fix=fix)]


def _print(checks: Sequence[HostCheck]) -> None:
    print_rows([{"check": check.name, "status": check.status, "detail": check.detail} for check in checks])
    for check in checks:
        if check.fix and check.status in ("warn", "fail"):
            typer.echo(f"\nto fix {check.name}:\n  {check.fix}")
