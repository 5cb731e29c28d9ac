"""``aio-transfer demo``: disaggregated prefill and decode of a text."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aio_transfer.cli.output import EXIT_FAILED, JsonOption, emit_json, report_errors
from aio_transfer.formatting import format_size, stdout_is_terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aio_transfer.demo.disaggregated import DemoReport

__all__ = ("demo",)

EPILOG = """
Examples:

  aio-transfer demo

  aio-transfer demo --input notes.txt --prefills 2

  aio-transfer demo --backend libfabric --layers 16 --json
"""


def demo(
    *,
    source: Annotated[
        Path | None,
        typer.Option(
            "--input", exists=True, dir_okay=False, readable=True, help="Text file; without it, an included text."
        ),
    ] = None,
    layers: Annotated[
        int, typer.Option(min=1, max=256, help="Layers of the model; each is sent as soon as it is computed.")
    ] = 8,
    backend: Annotated[str, typer.Option(help="auto, or a name that `aio-transfer devices` shows.")] = "auto",
    prefills: Annotated[
        int, typer.Option(min=1, max=4, help="Prefill processes: 1, 2 or 4, which share the heads.")
    ] = 1,
    tokens: Annotated[int, typer.Option(min=1, max=4096, help="Number of tokens to generate.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the model's weights.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Prefill a text in one process and decode in another, with the KV pages written from one to the other.

    A small transformer (NumPy, random but seeded weights: its output has no meaning) processes the text in one or more
    prefill processes. Each layer's KV pages are written into the decode process as soon as the layer is computed;
    decode starts when its counter has all of them. Then a single process does the same: the tokens and every byte of
    the pages must be equal, or the exit status is 1.
    """
    with report_errors(as_json=as_json, match=False):
        import anyio

        from aio_transfer.demo.disaggregated import DemoOptions, run_demo

        options = DemoOptions(input=source, backend=backend, layers=layers, prefills=prefills, tokens=tokens, seed=seed)
        with _progress(quiet=as_json) as on_arrival:
            report = anyio.run(run_demo, options, on_arrival)
    if as_json:
        from dataclasses import asdict

        emit_json(asdict(report))
    else:
        _print(report)
    if not report.match:
        raise typer.Exit(EXIT_FAILED)


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Show the counts as they arrive: a bar on a terminal, plain lines elsewhere."""
    if quiet:
        yield lambda _arrived, _counts: None
    elif not stdout_is_terminal():
        yield lambda arrived, counts: typer.echo(f"arrived: {arrived} of {counts} counts")
    else:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("KV pages"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns) as bar:
            task = bar.add_task("pages", total=None)
            yield lambda arrived, counts: bar.update(task, completed=arrived, total=counts)


def _print(report: DemoReport) -> None:
    cut = f" (the first of {report.input_nbytes:,})" if report.prompt_nbytes < report.input_nbytes else ""
    processes = "one prefill process" if report.prefills == 1 else f"{report.prefills} prefill processes"
    rows = (
        ("prompt", f"{report.prompt_nbytes:,} bytes{cut} of {report.input}"),
        (
            "model",
            f"{report.layers} layers, {report.pages:,} pages of {format_size(report.page_nbytes)}, seed {report.seed}",
        ),
        ("path", report.path),
        ("moved", f"{format_size(report.nbytes)} by {processes}, {report.counts:,} counts, {report.gb_per_s:.2f} GB/s"),
        ("first token", f"{report.ttft_s:.3f} s with the transfer, {report.ttft_alone_s:.3f} s in a single process"),
        ("tokens", " ".join(map(str, report.tokens))),
        ("text", report.text),
        ("match", _verdict(report)),
    )
    for name, text in rows:
        typer.echo(f"{name + ':':13}{text}")


def _verdict(report: DemoReport) -> str:
    if report.match:
        return f"yes: {len(report.tokens)} tokens and every byte of the pages equal those of the single process"
    wrong = [name for name, same in (("tokens", report.tokens_match), ("pages", report.pages_match)) if not same]
    return f"NO: the {' and the '.join(wrong)} differ from those of the single process"
