"""Output of results: JSON lines for programs, one Markdown table per path."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from aio_transfer.formatting import format_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from catalog import Peer
    from results import ComparisonResult

TITLES = {
    "shm": "one host, memory allocated by the library where it offers that",
    "foreign": "one host, memory allocated by the user",
    "tcp": "TCP over loopback",
}


def json_line(result: ComparisonResult) -> str:
    """Return one line of JSON."""
    return json.dumps(result.as_dict(), ensure_ascii=False)


def progress(result: ComparisonResult) -> str:
    """Return one line of progress output."""
    return f"{result.path} {result.peer} {workload_name(result)}: {result.reason or cell(result)}"


def workload_name(result: ComparisonResult) -> str:
    """Return the name of a row."""
    if result.test == "latency":
        return "8 B round trip" + (", spinning" if result.progress == "spin" else "")
    return (
        f"{result.count} x {format_size(result.nbytes)}" if result.count > 1 else f"write {format_size(result.nbytes)}"
    )


def value_of(result: ComparisonResult, *, peer: bool) -> str:
    """Return bandwidth, or the median of the round trips."""
    speed, time = (result.peer_gb_per_s, result.peer_p50_us) if peer else (result.gb_per_s, result.p50_us)
    if result.test == "latency":
        return "" if time is None else f"{time:.3g} µs"
    return "" if speed is None else f"{speed:.3g} GB/s"


def cell(result: ComparisonResult | None) -> str:
    """Return the comparison with one peer: ratio, range, and the peer's value."""
    if result is None:
        return ""
    if result.ratio is None:
        return "—"
    least, most = result.more["ratio_min"], result.more["ratio_max"]
    return f"{result.ratio:.3g} ({least:.2g} … {most:.2g}); {value_of(result, peer=True)}"


def markdown_tables(results: Sequence[ComparisonResult]) -> list[Table]:
    """Return one table per path: a row per workload, a column per peer, and one of aio-transfer's own values."""
    tables = []
    for path in dict.fromkeys(result.path for result in results):
        found = [result for result in results if result.path == path]
        ran = dict.fromkeys(result.peer for result in found if result.ratio is not None)
        table = Table(title=TITLES[path], box=box.MARKDOWN, title_justify="left")
        for name in ("work", "ours", *ran):
            table.add_column(name)
        for row in dict.fromkeys(workload_name(result) for result in found):
            by_peer = {result.peer: result for result in found if workload_name(result) == row}
            table.add_row(row, ours(by_peer), *(cell(by_peer.get(peer)) for peer in ran))
        tables.append(table)
    return tables


def ours(row: Mapping[str, ComparisonResult]) -> str:
    """Return the median of aio-transfer's values measured beside each peer."""
    known = sorted((result for result in row.values() if result.ratio), key=lambda one: one.gb_per_s or one.p50_us or 0)
    return value_of(known[len(known) // 2], peer=False) if known else ""


def versions(peers: Sequence[Peer]) -> str:
    """Return the installed requirements, by peer."""
    return "\n".join(f"{peer.name}: {', '.join(peer.requirements) or 'part of Python'}" for peer in peers)


def reasons(results: Sequence[ComparisonResult]) -> str:
    """Return the comparisons that did not run, grouped by reason."""
    by_reason: dict[tuple[str, str, str], list[str]] = {}
    for result in results:
        if result.reason is not None:
            by_reason.setdefault((result.peer, result.path, result.reason), []).append(workload_name(result))
    return "\n".join(
        f"{peer}, {path}, {', '.join(workloads)}: {reason}" for (peer, path, reason), workloads in by_reason.items()
    )
