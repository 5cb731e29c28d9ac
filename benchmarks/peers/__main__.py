"""The same work through the libraries that a user would pick instead: ``python benchmarks/peers --json``."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import catalog
import showing
import typer
from comparing import Comparison
from results import Result
from rich.console import Console

CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "aio-transfer-peers"


def main(  # noqa: PLR0913, PLR0917 - one per option
    peer: Annotated[list[str] | None, typer.Option(help="Only these; by default all.")] = None,
    path: Annotated[list[str] | None, typer.Option(help="Only these of shm, foreign, tcp.")] = None,
    repeat: Annotated[int, typer.Option(min=5, help="Alternating pairs of samples.")] = 5,
    sample: Annotated[float, typer.Option(min=0.01, max=0.2, help="Seconds per sample, about.")] = 0.1,
    minutes: Annotated[float, typer.Option(help="Begin nothing more after this long.")] = 10,
    environments: Annotated[Path, typer.Option(help="Where the libraries are installed, and kept.")] = CACHE,
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
    typer.echo(showing.versions(peers), err=True)
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
    """Print results as they are found, and tables at the end."""
    found: list[Result] = []
    async for result in comparison.run():
        found.append(result)
        if as_json:
            typer.echo(showing.line(result))
        else:
            typer.echo(
                showing.progress(result),
                err=True,
            )
    if not as_json:
        console = Console(width=None if Console().is_terminal else 400)
        for table in showing.tables(found):
            console.print(table)
        typer.echo(showing.reasons(found))


if __name__ == "__main__":
    typer.run(main)
