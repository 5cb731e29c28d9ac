"""Fuzz campaign on the command line: ``python tests/chaos/chaos.py --seconds 600``; ``nox -s chaos`` runs it."""

from __future__ import annotations

import random
from collections import Counter
from typing import Annotated, Optional

import anyio
import typer

from aio_transfer.testing.fuzz.campaign import LOOPS, Campaign, CampaignResult, run_campaign
from aio_transfer.testing.fuzz.shrink import shrink
from aio_transfer.testing.spec import Spec


def main(
    seconds: Annotated[Optional[float], typer.Option(help="How long; with --count, at most.")] = None,  # noqa: UP045
    count: Annotated[Optional[int], typer.Option(help="How many schedules.")] = None,  # noqa: UP045
    seed: Annotated[int, typer.Option(help="Seed of all randomness; random by default.")] = -1,
    processes: Annotated[int, typer.Option(help="One per core by default.")] = 0,
    loop: Annotated[str, typer.Option(help="asyncio, uvloop, trio, or all: one loop per process, in turn.")] = "all",
    backend: Annotated[str, typer.Option(help="Only sim has faults and killed engines.")] = "sim",
    shrunk: Annotated[bool, typer.Option(help="Find the shortest part of a schedule that fails.")] = True,
) -> None:
    """Run random schedules against the model; exit with 1 if one fails."""
    chosen = seed if seed >= 0 else random.getrandbits(32)
    loops = [one for one in LOOPS if loop in (one, "all")]
    if not loops:
        raise typer.BadParameter(f"there is no loop {loop}")
    spec = Spec(backend=backend, seed=chosen)
    typer.echo(f"chaos on {spec}, seed {chosen}, {'+'.join(loops)}")
    campaign = Campaign(
        spec=spec,
        seed=chosen,
        count=1000 if count is None and seconds is None else count,
        seconds=seconds,
        processes=processes or None,
        loops=loops,
    )
    total = run_campaign(campaign, report=print_share)
    print_summary(total)
    for failure in total.failures.values():
        typer.echo(f"\n{failure}")
    if total.failures and shrunk:
        typer.echo(f"\n{anyio.run(shrink, spec, min(total.failures)) or 'alone, the first of them succeeds'}")
    raise SystemExit(1 if total.failures else 0)


def print_share(part: CampaignResult) -> None:
    typer.echo(
        f"a process: {part.schedules} schedules, {part.per_second:.0f}/s, {part.per_cpu_second:.0f} per CPU second"
    )


def print_summary(total: CampaignResult) -> None:
    for name, number in Counter(total.operations).most_common():
        typer.echo(f"{number:9} {name}")
    typer.echo(
        f"{total.schedules:9} schedules, {total.per_second:.0f} per second and core, {len(total.failures)} failed"
    )
    if total.failures:
        typer.echo(f"failing seeds (pytest tests/chaos --sim-seed N): {', '.join(map(str, sorted(total.failures)))}")


if __name__ == "__main__":
    typer.run(main)
