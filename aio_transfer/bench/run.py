"""Benchmark families by name, and the run of one or all of them."""

from __future__ import annotations

import importlib
from contextlib import aclosing
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from aio_transfer.driver import backend_registry
from aio_transfer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from aio_transfer.bench.options import Options
    from aio_transfer.bench.report.result import Result

__all__ = ("FAMILIES", "run")

FAMILIES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "write": "write",
        "pages": "pages",
        "scatter": "scatter",
        "latency": "latency",
        "barrier": "barrier",
        "wake": "wake",
        "submit-cost": "submit_cost",
        "busy-loop": "busy_event_loop",
        "memory": "memory_use",
        "scale": "scale",
        "idle": "idle",
    }
)
"""Family → its module in ``aio_transfer.bench.families``."""


async def run(family: str, options: Options) -> AsyncGenerator[Result]:
    """Run one family, or ``"all"`` one after another; yields each result as soon as it is measured.

    :raises UsageError: there is no such family or backend; no process is started
    :raises BackendUnavailableError: the backend cannot be imported
    :raises ChildFailedError: a worker failed
    :cancellation: the workers are killed
    """
    if family not in (*FAMILIES, "all"):
        raise UsageError(f"{family!r} is none of {', '.join(FAMILIES)}, all")
    backend_registry.load(options.backend)
    for name in FAMILIES if family == "all" else (family,):
        module = importlib.import_module(f"aio_transfer.bench.families.{FAMILIES[name]}")
        try:
            async with aclosing(module.run(options)) as results:
                async for result in results:
                    yield result
        except BaseExceptionGroup as group:
            raise _first_error(group) from group


def _first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error of nested groups; the others follow from it."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
