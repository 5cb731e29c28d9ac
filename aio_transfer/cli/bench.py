"""``aio-transfer bench``: what the engine does, beside what the machine gives without it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from aio_transfer.cli.output import report_errors

if TYPE_CHECKING:
    from aio_transfer.bench import Options, Result
    from aio_transfer.bench.report.console import Report

__all__ = ("app",)

EPILOG = """
Examples:

  aio-transfer bench pages --page 4KiB --count 4096 --json

  aio-transfer bench latency --loop uvloop

  aio-transfer bench write --backend libfabric --plot write.svg

  aio-transfer bench listen 192.0.2.7:7471, and on another host: bench write --backend verbs --connect 192.0.2.7:7471

Each figure stands beside its floor: a raw C++ loop over the same memory, or a pipe between the same two event loops,
measured in turns with ours in the same processes. benchmarks/README.md says how.
"""

app = typer.Typer(
    name="bench",
    help="Measure: bandwidth, latency and cost, each beside the machine's floor in the same run.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
)

Backend: TypeAlias = Annotated[str, typer.Option(help="A name that `aio-transfer devices` shows.")]
Provider: TypeAlias = Annotated[str, typer.Option(help="Of libfabric, such as tcp; its own choice by default.")]
Loop: TypeAlias = Annotated[str, typer.Option(help="asyncio, uvloop or trio.")]
Progress: TypeAlias = Annotated[str, typer.Option(help="How native threads wait: adaptive, or spin.")]
Repeat: TypeAlias = Annotated[int, typer.Option(min=1, max=1000, help="Samples of each, ours and the floor in turns.")]
Sample: TypeAlias = Annotated[float, typer.Option(min=0.001, max=60, help="Seconds that one sample lasts, about.")]
Foreign: TypeAlias = Annotated[bool, typer.Option("--foreign", help="Memory that is not from engine.allocate().")]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON object per line, for programs.")]
Plot: TypeAlias = Annotated[Path | None, typer.Option(help="Draw into this .png or .svg; needs matplotlib.")]
Connect: TypeAlias = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="The other end's host, where `aio-transfer bench listen` runs.")
]
Depth: TypeAlias = Annotated[int, typer.Option(min=1, max=100_000, help="Batches under way at once.")]
Count: TypeAlias = Annotated[int, typer.Option(min=1, max=1 << 20, help="Pages per batch.")]
Page: TypeAlias = Annotated[list[str] | None, typer.Option(help="Bytes per page, such as 4KiB; may be repeated.")]
Size: TypeAlias = Annotated[list[str] | None, typer.Option(help="Bytes, such as 4KiB; may be repeated.")]


@app.command()
def write(  # noqa: PLR0913 - the command's options
    *,
    size: Size = None,
    depth: Depth = 8,
    backend: Backend = "shm",
    provider: Provider = "",
    loop: Loop = "asyncio",
    progress: Progress = "adaptive",
    foreign: Foreign = False,
    repeat: Repeat = 5,
    sample: Sample = 0.15,
    connect: Connect = "",
    as_json: Json = False,
    plot: Plot = None,
) -> None:
    """Measure contiguous writes, 4 KiB to 256 MiB unless --size is given."""
    from aio_transfer.bench import Options

    common = partial(Options, backend=backend, provider=provider, loop=loop, connect=connect)
    options = partial(common, repeat=repeat, sample_s=sample, progress=progress, foreign=foreign, depth=depth)
    _run("write", options, size, plot, as_json=as_json)


@app.command()
def pages(  # noqa: PLR0913 - the command's options
    *,
    page: Page = None,
    count: Count = 4096,
    depth: Depth = 2,
    backend: Backend = "shm",
    provider: Provider = "",
    loop: Loop = "asyncio",
    progress: Progress = "adaptive",
    foreign: Foreign = False,
    repeat: Repeat = 5,
    sample: Sample = 0.15,
    connect: Connect = "",
    as_json: Json = False,
    plot: Plot = None,
) -> None:
    """Measure scattered pages, many per submit: 4, 16 and 64 KiB unless --page is given."""
    from aio_transfer.bench import Options

    common = partial(Options, backend=backend, provider=provider, loop=loop, connect=connect)
    options = partial(
        common, repeat=repeat, sample_s=sample, progress=progress, foreign=foreign, count=count, depth=depth
    )
    _run("pages", options, page, plot, as_json=as_json)


@app.command()
def scatter(  # noqa: PLR0913 - the command's options
    *,
    size: Size = None,
    peers: Annotated[int, typer.Option(min=1, max=256, help="Targets, each a peer of its own.")] = 16,
    backend: Backend = "shm",
    provider: Provider = "",
    loop: Loop = "asyncio",
    progress: Progress = "adaptive",
    foreign: Foreign = False,
    repeat: Repeat = 5,
    sample: Sample = 0.15,
    connect: Connect = "",
    as_json: Json = False,
    plot: Plot = None,
) -> None:
    """Measure one chunk to each of many peers: 256 B to 16 KiB unless --size is given."""
    from aio_transfer.bench import Options

    common = partial(Options, backend=backend, provider=provider, loop=loop, connect=connect)
    options = partial(common, repeat=repeat, sample_s=sample, progress=progress, foreign=foreign, peers=peers)
    _run("scatter", options, size, plot, as_json=as_json)


@app.command()
def latency(  # noqa: PLR0913 - the command's options
    *,
    backend: Backend = "shm",
    provider: Provider = "",
    loop: Loop = "asyncio",
    progress: Progress = "adaptive",
    foreign: Foreign = False,
    repeat: Repeat = 5,
    sample: Sample = 0.15,
    connect: Connect = "",
    as_json: Json = False,
    plot: Plot = None,
) -> None:
    """Measure the awaited round trip, beside one over a pipe between the same event loops."""
    from aio_transfer.bench import Options

    common = partial(Options, backend=backend, provider=provider, loop=loop, connect=connect)
    options = partial(common, repeat=repeat, sample_s=sample, progress=progress, foreign=foreign)
    _run("latency", options, None, plot, as_json=as_json)


@app.command()
def barrier(  # noqa: PLR0913 - the command's options
    *,
    engines: Annotated[int, typer.Option(min=2, max=64, help="Members, each a process of its own.")] = 8,
    backend: Backend = "shm",
    provider: Provider = "",
    loop: Loop = "asyncio",
    progress: Progress = "adaptive",
    repeat: Repeat = 5,
    sample: Sample = 0.15,
    as_json: Json = False,
    plot: Plot = None,
) -> None:
    """Measure the barrier of a group, beside one message between two of its members."""
    from aio_transfer.bench import Options

    common = partial(Options, backend=backend, provider=provider, loop=loop)
    options = partial(common, repeat=repeat, sample_s=sample, progress=progress, peers=engines)
    _run("barrier", options, None, plot, as_json=as_json)


@app.command()
def wake(  # noqa: PLR0913 - the command's options
    *,
    backend: Backend = "shm",
    provider: Provider = "",
    loop: Loop = "asyncio",
    progress: Progress = "adaptive",
    repeat: Repeat = 5,
    sample: Sample = 0.15,
    as_json: Json = False,
    plot: Plot = None,
) -> None:
    """Measure how long a sleeping event loop takes to hear of a count, beside a bare eventfd."""
    from aio_transfer.bench import Options

    common = partial(Options, backend=backend, provider=provider, loop=loop)
    options = partial(common, repeat=repeat, sample_s=sample, progress=progress)
    _run("wake", options, None, plot, as_json=as_json)


@app.command()
def plan(  # noqa: PLR0913 - the command's options
    *,
    page: Page = None,
    count: Count = 4096,
    backend: Backend = "shm",
    provider: Provider = "",
    loop: Loop = "asyncio",
    repeat: Repeat = 5,
    sample: Sample = 0.15,
    as_json: Json = False,
    plot: Plot = None,
) -> None:
    """Measure what submits cost the event loop's thread, and how much of it is planning."""
    from aio_transfer.bench import Options

    common = partial(Options, backend=backend, provider=provider, loop=loop)
    options = partial(common, repeat=repeat, sample_s=sample, count=count)
    _run("plan", options, page, plot, as_json=as_json)


@app.command()
def idle(  # noqa: PLR0913 - the command's options
    *,
    peers: Annotated[int, typer.Option(min=1, max=256, help="Connected peers that do nothing either.")] = 16,
    backend: Backend = "shm",
    provider: Provider = "",
    loop: Loop = "asyncio",
    progress: Progress = "adaptive",
    repeat: Repeat = 5,
    sample: Sample = 0.25,
    as_json: Json = False,
) -> None:
    """Measure the CPU time and the wake-ups of an engine that does nothing."""
    from aio_transfer.bench import Options

    common = partial(Options, backend=backend, provider=provider, loop=loop)
    options = partial(common, repeat=repeat, sample_s=sample, progress=progress, peers=peers)
    _run("idle", options, None, None, as_json=as_json)


@app.command()
def busy(  # noqa: PLR0913 - the command's options
    *,
    page: Page = None,
    count: Count = 2048,
    backend: Backend = "shm",
    provider: Provider = "",
    loop: Loop = "asyncio",
    progress: Progress = "adaptive",
    foreign: Foreign = False,
    repeat: Repeat = 5,
    as_json: Json = False,
) -> None:
    """Measure pages under way while their sender's event loop computes, beside one that waits."""
    from aio_transfer.bench import Options

    common = partial(Options, backend=backend, provider=provider, loop=loop)
    options = partial(common, repeat=repeat, progress=progress, foreign=foreign, count=count)
    _run("busy", options, page, None, as_json=as_json)


@app.command()
def growth(  # noqa: PLR0913 - the command's options
    *,
    page: Page = None,
    transfers: Annotated[int, typer.Option(min=10, help="Small writes, one after the other.")] = 100_000,
    backend: Backend = "shm",
    provider: Provider = "",
    loop: Loop = "asyncio",
    progress: Progress = "adaptive",
    as_json: Json = False,
) -> None:
    """Measure the memory of pages under way, and what is left of transfers that are over."""
    from aio_transfer.bench import Options

    options = partial(Options, backend=backend, provider=provider, loop=loop, progress=progress, count=transfers)
    _run("growth", options, page, None, as_json=as_json)


@app.command()
def scale(  # noqa: PLR0913 - the command's options
    *,
    peers: Annotated[int, typer.Option(min=1, max=4096, help="Connected peers, written to in turns.")] = 256,
    backend: Backend = "shm",
    provider: Provider = "",
    loop: Loop = "asyncio",
    progress: Progress = "adaptive",
    repeat: Repeat = 5,
    sample: Sample = 0.15,
    as_json: Json = False,
    plot: Plot = None,
) -> None:
    """Measure small writes to one of many peers, beside the same with 64 of them."""
    from aio_transfer.bench import Options

    common = partial(Options, backend=backend, provider=provider, loop=loop)
    options = partial(common, repeat=repeat, sample_s=sample, progress=progress, peers=peers)
    _run("scale", options, None, plot, as_json=as_json)


@app.command("all")
def everything(  # noqa: PLR0913 - the command's options
    *,
    backend: Backend = "shm",
    provider: Provider = "",
    loop: Loop = "asyncio",
    progress: Progress = "adaptive",
    foreign: Foreign = False,
    repeat: Repeat = 5,
    sample: Sample = 0.15,
    as_json: Json = False,
    plot: Plot = None,
) -> None:
    """Run every test with its own sizes and counts."""
    from aio_transfer.bench import Options

    common = partial(Options, backend=backend, provider=provider, loop=loop)
    options = partial(common, repeat=repeat, sample_s=sample, progress=progress, foreign=foreign)
    _run("all", options, None, plot, as_json=as_json)


@app.command()
def listen(
    endpoint: Annotated[
        str, typer.Argument(metavar="HOST:PORT", help="An address of this host, and a port.")
    ] = "127.0.0.1:7471",
) -> None:
    """Be the other host of --connect until interrupted. Whoever reaches the port may measure here."""
    with report_errors(as_json=False, test="listen"):
        from aio_transfer.bench.workers.remote import serve

        serve(endpoint, lambda bound: typer.echo(f"listening on {bound}"))


def _run(
    family: str, make_options: partial[Options], sizes: list[str] | None, picture: Path | None, *, as_json: bool
) -> None:
    with report_errors(as_json=as_json, test=family):
        import anyio

        from aio_transfer.bench.report.console import report_to
        from aio_transfer.bench.report.plotting import plot, require_plotting
        from aio_transfer.bench.sizes import parse_size

        options = make_options(sizes=tuple(map(parse_size, sizes or ())))
        if picture is not None:
            require_plotting(picture)
        with report_to(as_json=as_json) as report:
            results = anyio.run(_measure, family, options, report)
        if picture is not None:
            plot(results, picture)


async def _measure(family: str, options: Options, report: Report) -> list[Result]:
    from contextlib import aclosing

    from aio_transfer.bench import run

    results: list[Result] = []
    async with aclosing(run(family, options)) as found:
        async for result in found:
            report.show(result)
            results.append(result)
    return results
