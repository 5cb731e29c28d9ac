"""The application itself: its commands, its version and what it says about itself."""

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
Begin here:

  aio-transfer demo      see memory move, and that it arrives whole

  aio-transfer devices   which paths this machine has, and why not the rest

  aio-transfer doctor    what is wrong with it, and what mends each fault

  aio-transfer bench     how fast it is, beside what the machine gives without us

Every command takes --json, for programs, and exits with 1 when something is wrong, with 2 when asked wrongly.
"""

app = typer.Typer(
    name="aio-transfer",
    help="Move memory between processes, machines and GPUs: one-sided writes, counters and barriers that you await.",
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


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it with the option's value
    if wanted:
        from aio_transfer import __version__

        typer.echo(f"aio-transfer {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line and exit."""
    app(prog_name="aio-transfer")
