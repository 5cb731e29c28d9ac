"""``aio-transfer bench``: the benchmark's families as commands, one per family, built from its options."""

from __future__ import annotations

from dataclasses import MISSING, fields
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from aio_transfer.bench.options import Options
from aio_transfer.cli.output import report_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aio_transfer.bench import Result
    from aio_transfer.bench.report.display import ResultDisplay

__all__ = ("app",)

EPILOG = """
Examples:

  aio-transfer bench pages --page 4KiB --count 4096 --json

  aio-transfer bench latency --loop uvloop

  aio-transfer bench write --backend libfabric --plot write.svg

  aio-transfer bench listen 192.0.2.7:7471, and on another host: bench write --backend verbs --connect 192.0.2.7:7471

Each result has a baseline beside it: a C++ loop over the same memory, or a pipe between the same two event loops,
measured in turns with the engine in the same processes. benchmarks/README.md explains the method.
"""

app = typer.Typer(
    name="bench",
    help="Measure bandwidth, latency and cost, each beside a baseline of this machine in the same run.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
)

_DEFAULTS: Final = {field.name: field.default for field in fields(Options)}


def _option(field: str, kind: object, text: str, *flags: str, default: object = MISSING, **limits: Any) -> Parameter:
    """Return one command-line option.

    :param field: of :class:`Options`, or ``plot`` or ``as_json``; its default is the option's unless given
    :param kind: the type that typer parses
    :param text: shown by ``--help``
    :param flags: its name on the command line; by default from the field's
    """
    return Parameter(
        field,
        Parameter.KEYWORD_ONLY,
        default=_DEFAULTS[field] if default is MISSING else default,
        annotation=Annotated[kind, typer.Option(*flags, help=text, **limits)],
    )


def _sizes(flag: str, text: str) -> Parameter:
    return _option("sizes", list[str] | None, f"{text}, such as 4KiB; may be repeated.", flag, default=None)


def _pages_per_batch(default: int) -> Parameter:
    return _option("count", int, "Pages per batch.", default=default, min=1, max=1 << 20)


def _peers(default: int, text: str, flag: str = "--peers", **limits: int) -> Parameter:
    return _option("peers", int, text, flag, default=default, **limits)


def _depth(default: int) -> Parameter:
    return _option("depth", int, "Batches in flight at once.", default=default, min=1, max=100_000)


def _sample(default: float) -> Parameter:
    text = "Approximate duration of one sample in seconds."
    return _option("sample_s", float, text, "--sample", default=default, min=0.001, max=60)


_SIZE: Final = _sizes("--size", "Bytes")
_PAGE: Final = _sizes("--page", "Bytes per page")
_TRANSFERS: Final = _option("count", int, "Small writes, one after the other.", "--transfers", default=100_000, min=10)
_PATH: Final = (
    _option("backend", str, "A name that `aio-transfer devices` shows."),
    _option("provider", str, "Of libfabric, such as tcp; its own choice by default."),
    _option("loop", str, "asyncio, uvloop or trio."),
)
_PROGRESS: Final = _option("progress", str, "How native threads wait: adaptive, or spin.")
_FOREIGN: Final = _option("foreign", bool, "Use memory that is not from engine.allocate().", "--foreign")
_REPEAT: Final = _option("repeat", int, "Pairs of samples, of engine and baseline in turns.", min=1, max=1000)
_SAMPLES: Final = (_REPEAT, _sample(0.15))
_CONNECT: Final = _option(
    "connect", str, "The other end's host, where `aio-transfer bench listen` runs.", metavar="HOST:PORT"
)
_JSON: Final = _option("as_json", bool, "Print one JSON object per line, for programs.", "--json", default=False)
_PLOT: Final = _option("plot", Path | None, "Draw into this .png or .svg; needs matplotlib.", default=None)
_OUTPUT: Final = (_JSON, _PLOT)
_COMMON: Final = (*_PATH, _PROGRESS, *_SAMPLES, *_OUTPUT)
_COMMON_FOREIGN: Final = (*_PATH, _PROGRESS, _FOREIGN, *_SAMPLES, *_OUTPUT)
_COMMON_TWO_HOSTS: Final = (*_PATH, _PROGRESS, _FOREIGN, *_SAMPLES, _CONNECT, *_OUTPUT)

_COMMANDS: Final[Mapping[str, tuple[str, tuple[Parameter, ...]]]] = {
    "write": (
        "Measure contiguous writes, 4 KiB to 256 MiB unless --size is given.",
        (_SIZE, _depth(8), *_COMMON_TWO_HOSTS),
    ),
    "pages": (
        "Measure scattered pages, many per submit: 4, 16 and 64 KiB unless --page is given.",
        (_PAGE, _pages_per_batch(4096), _depth(2), *_COMMON_TWO_HOSTS),
    ),
    "scatter": (
        "Measure one chunk to each of many peers: 256 B to 16 KiB unless --size is given.",
        (_SIZE, _peers(16, "Targets, each a peer of its own.", min=1, max=256), *_COMMON_TWO_HOSTS),
    ),
    "latency": (
        "Measure the awaited round trip, beside one over a pipe between the same event loops.",
        _COMMON_TWO_HOSTS,
    ),
    "barrier": (
        "Measure the barrier of a group, beside one message between two of its members.",
        (_peers(8, "Members, each a process of its own.", "--engines", min=2, max=64), *_COMMON),
    ),
    "wake": (
        "Measure the time from a submit until a sleeping event loop has the count, beside a bare eventfd.",
        _COMMON,
    ),
    "submit-cost": (
        "Measure the time of submits on the event loop's thread, and the share of planning in it.",
        (_PAGE, _pages_per_batch(4096), *_PATH, *_SAMPLES, *_OUTPUT),
    ),
    "busy-loop": (
        "Measure pages in flight while their sender's event loop computes, beside one that waits.",
        (_PAGE, _pages_per_batch(2048), *_PATH, _PROGRESS, _FOREIGN, _REPEAT, _JSON),
    ),
    "memory": (
        "Measure the memory of pages in flight, and the growth after many completed transfers.",
        (_PAGE, _TRANSFERS, *_PATH, _PROGRESS, _JSON),
    ),
    "scale": (
        "Measure small writes to many peers in turns, beside the same with 64 peers.",
        (_peers(256, "Connected peers, written to in turns.", min=1, max=4096), *_COMMON),
    ),
    "idle": (
        "Measure the CPU time and the wake-ups of an idle engine.",
        (
            _peers(16, "Connected peers, which are idle too.", min=1, max=256),
            *(*_PATH, _PROGRESS, _REPEAT, _sample(0.25), _JSON),
        ),
    ),
    "all": ("Run every test with its own sizes and counts.", _COMMON_FOREIGN),
}
"""Family → its help text and its options."""


def _add_command(family: str, summary: str, options: tuple[Parameter, ...]) -> None:
    def command(**values: Any) -> None:
        _run(family, **values)

    command.__doc__ = summary
    command.__annotations__ = {option.name: option.annotation for option in options}
    command.__signature__ = Signature(options)  # type: ignore[attr-defined]  # typer reads the options from it
    app.command(family)(command)


for _family, _command in _COMMANDS.items():
    _add_command(_family, *_command)


@app.command()
def listen(
    endpoint: Annotated[
        str, typer.Argument(metavar="HOST:PORT", help="An address of this host, and a port.")
    ] = "127.0.0.1:7471",
) -> None:
    """Serve as the other host of --connect, until interrupted. Any process that reaches the port can measure here."""
    with report_errors(as_json=False, test="listen"):
        from aio_transfer.bench.workers.remote_worker import serve

        serve(endpoint, lambda bound: typer.echo(f"listening on {bound}"))


def _run(
    family: str, *, as_json: bool, plot: Path | None = None, sizes: list[str] | None = None, **options: Any
) -> None:
    with report_errors(as_json=as_json, test=family):
        import anyio

        from aio_transfer.bench.report.display import open_display
        from aio_transfer.bench.report.plotting import plot_results, require_plotting
        from aio_transfer.bench.sizes import parse_size

        given = Options(sizes=tuple(map(parse_size, sizes or ())), **options)
        if plot is not None:
            require_plotting(plot)
        with open_display(as_json=as_json) as display:
            results = anyio.run(_measure, family, given, display)
        if plot is not None:
            plot_results(results, plot)


async def _measure(family: str, options: Options, display: ResultDisplay) -> list[Result]:
    from contextlib import aclosing

    from aio_transfer.bench import run

    results: list[Result] = []
    async with aclosing(run(family, options)) as found:
        async for result in found:
            display.show(result)
            results.append(result)
    return results
