"""Concurrent calls, one per item; the first error is raised unwrapped, not in an exception group."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import anyio

from aio_transfer.errors import AioTransferError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

__all__ = ("for_each_concurrently",)

_T = TypeVar("_T")


async def for_each_concurrently(items: Iterable[_T], call: Callable[[_T], Awaitable[object]]) -> None:
    """Await one call per item, all concurrently.

    :raises AioTransferError: of the first call that failed; the others are cancelled
    """
    failures: list[AioTransferError] = []

    async def one(item: _T) -> None:
        try:
            await call(item)
        except AioTransferError as error:  # caught here: the task group would wrap it
            failures.append(error)
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for item in items:
            tasks.start_soon(one, item)
    if failures:
        raise failures[0]
