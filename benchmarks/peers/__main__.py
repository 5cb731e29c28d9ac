"""Comparison with other libraries on the same workloads: ``python benchmarks/peers --json``."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import catalog
import tables
import typer
from comparison import Comparison
from results import ComparisonResult
from rich.console import Console

CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "aio-transfer-peers"


def main(
    peer: Annotated[list[str] | None, typer.Option(help="Libraries to compare with; all by default.")] = None,
    path: Annotated[list[str] | None, typer.Option(help="Of shm, foreign and tcp; all by default.")] = None,
    repeat: Annotated[int, typer.Option(min=5, help="Alternating pairs of samples.")] = 5,
    sample: Annotated[
        float, typer.Option(min=0.01, max=0.2, help="Approximate duration of one sample in seconds.")
    ] = 0.1,
    minutes: Annotated[float, typer.Option(help="Start no new measurement after this time.")] = 10,
    environments: Annotated[Path, typer.Option(help="Folder where the libraries are installed and kept.")] = CACHE,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,  # noqa: FBT002
) -> None:
    """Compare with other libraries, each in its own environment, in alternating pairs of samples."""
    try:
        peers = catalog.select(peer or [])
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if unknown := set(path or ()) - set(catalog.PATHS):
        raise typer.BadParameter(f"{', '.join(unknown)}: none of {', '.join(catalog.PATHS)}")
    paths = [one for one in catalog.PATHS if not path or one in path]
    typer.echo(tables.versions(peers), err=True)
    comparison = Comparison(
        peers=peers,
        paths=paths,
        repeat=repeat,
        sample_s=sample,
        minutes=minutes,
        folder=environments.expanduser().resolve(),
    )
    asyncio.run(show(comparison, as_json=as_json))


async def show(comparison: Comparison, *, as_json: bool) -> None:
    """Print results as they are measured, and tables at the end."""
    found: list[ComparisonResult] = []
    async for result in comparison.run():
        found.append(result)
        if as_json:
            typer.echo(tables.json_line(result))
        else:
            typer.echo(
                tables.progress(result),
                err=True,
            )
    if not as_json:
        console = Console(width=None if Console().is_terminal else 400)
        for table in tables.markdown_tables(found):
            console.print(table)
        typer.echo(tables.reasons(found))


if __name__ == "__main__":
    typer.run(main)
