"""Command output: JSON for programs, tables on a terminal, plain lines elsewhere; error messages and exit status."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import typer

from aio_transfer.errors import AioTransferError, UsageError
from aio_transfer.formatting import stdout_is_terminal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = (
    "EXIT_FAILED",
    "EXIT_USAGE",
    "JsonOption",
    "emit_json",
    "print_rows",
    "report_errors",
)

JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
STYLES: Final = {"ok": "green", "yes": "green", "warn": "yellow", "no": "yellow", "fail": "bold red", "skip": "dim"}


def emit_json(value: object) -> None:
    """Print one JSON value on one line."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def print_rows(rows: Sequence[Mapping[str, str]]) -> None:
    """Print rows with the same keys: a table on a terminal, one line each elsewhere."""
    if stdout_is_terminal():
        _print_table(rows)
        return
    widths = {key: max(len(row[key]) for row in rows) for key in (rows[0] if rows else ())}
    for row in rows:
        typer.echo("  ".join(text.ljust(widths[key]) for key, text in row.items()).rstrip())


def _print_table(rows: Sequence[Mapping[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for key in rows[0] if rows else ():
        table.add_column(key, overflow="fold")
    for row in rows:
        # As Text: brackets in a library's message are not markup.
        table.add_row(*(Text(text, style=STYLES.get(text, "")) for text in row.values()))
    Console().print(table)


@contextmanager
def report_errors(*, as_json: bool, **also: object) -> Iterator[None]:
    """Report errors as one message on standard error and an exit status.

    :param as_json: also print an object with the error
    :param also: further keys of that object
    """
    try:
        yield
    except (AioTransferError, OSError) as error:
        if as_json:
            emit_json({**also, "error": f"{type(error).__name__}: {error}"})
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED) from error
