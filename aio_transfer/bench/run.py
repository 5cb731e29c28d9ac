"""All families of tests, by name."""

from __future__ import annotations

import importlib
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from aio_transfer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from aio_transfer.bench.options import Options
    from aio_transfer.bench.report.result import Result

__all__ = ("FAMILIES", "run")

FAMILIES: Final = ("write", "pages", "scatter", "latency", "barrier", "wake", "plan", "busy", "growth", "scale", "idle")
_MODULES: Final = {"plan": "submit_cost", "busy": "busy_event_loop", "growth": "memory_use"}


async def run(family: str, options: Options) -> AsyncGenerator[Result]:
    """Run one family, or ``"all"`` one after another; yields each result as it is found.

    :raises UsageError: there is no such family
    :raises ChildFailedError: a measured process failed
    :cancellation: its processes are ended
    """
    if family not in (*FAMILIES, "all"):
        raise UsageError(f"{family!r} is none of {', '.join(FAMILIES)}, all")
    for name in FAMILIES if family == "all" else (family,):
        module = importlib.import_module(f"aio_transfer.bench.families.{_MODULES.get(name, name)}")
        try:
            async with aclosing(module.run(options)) as results:
                async for result in results:
                    yield result
        except BaseExceptionGroup as group:
            raise _first(group) from group


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return what went wrong first; the others were cancelled by it, or follow from it."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
