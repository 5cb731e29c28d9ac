"""Display of results: JSON lines for programs, a table with bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, Protocol

import typer

from aio_transfer.formatting import format_size, stdout_is_terminal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

    from rich.table import Table

    from aio_transfer.bench.report.result import Result

__all__ = ("ResultDisplay", "open_display", "table_cells")

BAR_CELLS: Final = 16
BLOCKS: Final = " ▏▎▍▌▋▊▉█"
SHOWN_KEYS: Final = {
    "times_baseline": ("{:.2f} x baseline", 1),
    "pipe_p50_us": ("pipe {:.1f} µs", 1),
    "plan_us_per_page": ("plan {:.1f} ns/page", 1e3),
    "submit_write_us": ("submit of a write {:.1f} µs", 1),
    "submit_p50_us": ("submit {:.1f} µs", 1),
    "cpu_percent": ("{:.2f} % of a core", 1),
    "loop_wakes_per_s": ("{:.1f} loop wakes/s", 1),
    "bytes_per_page": ("{:.0f} B per page under way", 1),
    "grown_kib": ("{:.0f} KiB more memory", 1),
    "peers": ("{:.0f} peers", 1),
}
"""Keys of ``Result.more`` that are shown, with their format and a factor."""


class ResultDisplay(Protocol):
    """Destination of results, and a context manager around the run."""

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End; after an error too, the results so far are shown."""
        ...

    def show(self, result: Result) -> None:
        """Show one result."""
        ...


def open_display(*, as_json: bool) -> ResultDisplay:
    """Return the display for programs, for a terminal, or for plain text."""
    if as_json:
        return _LineDisplay(lambda result: json.dumps(result.as_dict()))
    if stdout_is_terminal():
        return _TableDisplay()
    return _LineDisplay(lambda result: "  ".join(filter(None, table_cells(result).values())))


class _FormatLine(Protocol):
    def __call__(self, result: Result, /) -> str: ...


class _LineDisplay:
    def __init__(self, format_line: _FormatLine) -> None:
        self._format = format_line

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def show(self, result: Result) -> None:
        typer.echo(self._format(result))


class _TableDisplay:
    """Table that is redrawn with each result, since the bars are relative to the highest bandwidth."""

    def __init__(self) -> None:
        from rich.live import Live

        self._results: list[Result] = []
        self._live = Live(self._table(), auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def show(self, result: Result) -> None:
        self._results.append(result)
        self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        names = list(table_cells(self._results[0])) if self._results else ["measuring …"]
        for name in names:
            table.add_column(name, justify="left" if name in {"test", "also"} else "right", overflow="fold")
            if name == "GB/s":
                table.add_column("", width=BAR_CELLS)
        highest = max((result.gb_per_s or 0 for result in self._results), default=0)
        for result in self._results:
            row: list[Text] = []
            for name, text in table_cells(result).items():
                row.append(Text(text))
                if name == "GB/s":
                    row.append(Text(bar(result.gb_per_s or 0, highest), style="green"))
            table.add_row(*row)
        return table


def bar(value: float, highest: float) -> str:
    """Return a bar of at most :data:`BAR_CELLS` cells, in eighths of a cell."""
    eighths = round(BAR_CELLS * 8 * value / highest) if highest else 0
    return BLOCKS[-1] * (eighths // 8) + BLOCKS[eighths % 8].strip()


def table_cells(result: Result) -> Mapping[str, str]:
    """Return the cells of one row by column name; a cell is empty if the test does not measure it."""
    chunk = f"{result.count} x {format_size(result.nbytes)}" if result.count != 1 else format_size(result.nbytes)
    also = [form.format(result.more[key] * scale) for key, (form, scale) in SHOWN_KEYS.items()  # type: ignore[operator]
            if isinstance(result.more.get(key), int | float)]  # fmt: skip
    return {
        "test": f"{result.test} {result.backend}/{result.provider}",
        "chunks": chunk if result.count or result.nbytes else "",
        "GB/s": _number(result.gb_per_s, " GB/s"),
        "baseline": _number(result.baseline_gb_per_s, " GB/s baseline"),
        "ratio": _number(result.ratio, " of the baseline's speed"),
        "p50": _number(result.p50_us, " µs"),
        "p99": _number(result.p99_us, " µs p99"),
        "CPU": _number(result.cpu_s_per_gib, " CPU s/GiB"),
        "also": ", ".join(also),
    }


def _number(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.3g}{unit}"
