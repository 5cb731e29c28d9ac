"""Command line application: its commands, its help text and its version."""

from __future__ import annotations

from typing import Annotated

import typer

from aio_transfer.cli.bench import app as bench
from aio_transfer.cli.demo import EPILOG as DEMO_EPILOG
from aio_transfer.cli.demo import demo
from aio_transfer.cli.devices import devices
from aio_transfer.cli.doctor import EPILOG as DOCTOR_EPILOG
from aio_transfer.cli.doctor import doctor

__all__ = ("app", "main")

# Typer joins the lines of a paragraph; blank lines between them keep each on its own.
EPILOG = """
Start here:

  aio-transfer demo      run a transfer between processes, and verify every byte

  aio-transfer devices   list the backends and NICs of this machine, with the reason if one is not usable

  aio-transfer doctor    list missing prerequisites, and the command that fixes each

  aio-transfer bench     measure speed and latency, beside a baseline of this machine

Every command takes --json, for programs. Exit status: 0 on success, 1 on failure, 2 on usage errors.
"""

app = typer.Typer(
    name="aio-transfer",
    help="Move memory between processes, machines and GPUs with one-sided writes, counters and barriers to await.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo", epilog=DEMO_EPILOG)(demo)
app.command("devices")(devices)
app.command("doctor", epilog=DOCTOR_EPILOG)(doctor)
app.add_typer(bench, name="bench")


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer passes the option's value
    if wanted:
        from aio_transfer import __version__

        typer.echo(f"aio-transfer {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line and exit."""
    app(prog_name="aio-transfer")
