"""How results are shown: JSON lines for programs, one table per path for people."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from aio_transfer.formatting import size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from catalog import Peer
    from results import Result

TITLES = {
    "shm": "one host, memory that the library allocates where it does",
    "foreign": "one host, memory of the user's own",
    "tcp": "TCP over loopback",
}


def line(result: Result) -> str:
    """Return one line of JSON."""
    return json.dumps(result.as_dict(), ensure_ascii=False)


def progress(result: Result) -> str:
    """Return one line for whoever watches the run."""
    return f"{result.path} {result.peer} {work_of(result)}: {result.reason or cell(result)}"


def work_of(result: Result) -> str:
    """Return the name of a row."""
    if result.test == "latency":
        return "8 B round trip" + (", we spin" if result.progress == "spin" else "")
    return f"{result.count} x {size(result.nbytes)}" if result.count > 1 else f"write {size(result.nbytes)}"


def figure(result: Result, *, peer: bool) -> str:
    """Return bandwidth, or the median of the round trips."""
    speed, time = (result.peer_gb_per_s, result.peer_p50_us) if peer else (result.gb_per_s, result.p50_us)
    if result.test == "latency":
        return "" if time is None else f"{time:.3g} µs"
    return "" if speed is None else f"{speed:.3g} GB/s"


def cell(result: Result | None) -> str:
    """Return how we compare with one peer."""
    if result is None:
        return ""
    if result.ratio is None:
        return "—"
    least, most = result.more["ratio_min"], result.more["ratio_max"]
    return f"{result.ratio:.3g} ({least:.2g} … {most:.2g}); {figure(result, peer=True)}"


def tables(results: Sequence[Result]) -> list[Table]:
    """Return one table per path: a row per work, a column per peer; ours is the median over all of a row's samples."""
    made = []
    for path in dict.fromkeys(result.path for result in results):
        found = [result for result in results if result.path == path]
        ran = dict.fromkeys(result.peer for result in found if result.ratio is not None)
        table = Table(title=TITLES[path], box=box.MARKDOWN, title_justify="left")
        for name in ("work", "ours", *ran):
            table.add_column(name)
        for row in dict.fromkeys(work_of(result) for result in found):
            by_peer = {result.peer: result for result in found if work_of(result) == row}
            table.add_row(row, ours(by_peer), *(cell(by_peer.get(peer)) for peer in ran))
        made.append(table)
    return made


def ours(row: Mapping[str, Result]) -> str:
    """Return our figure in the middle of those measured beside each peer."""
    known = sorted((result for result in row.values() if result.ratio), key=lambda one: one.gb_per_s or one.p50_us or 0)
    return figure(known[len(known) // 2], peer=False) if known else ""


def versions(peers: Sequence[Peer]) -> str:
    """Return what was installed, by peer."""
    return "\n".join(f"{peer.name}: {', '.join(peer.requirements) or 'comes with Python'}" for peer in peers)


def reasons(results: Sequence[Result]) -> str:
    """Return what did not run, and why, in its own words."""
    failed: dict[tuple[str, str, str], list[str]] = {}
    for result in results:
        if result.reason is not None:
            failed.setdefault((result.peer, result.path, result.reason), []).append(work_of(result))
    return "\n".join(f"{peer}, {path}, {', '.join(works)}: {reason}" for (peer, path, reason), works in failed.items())
