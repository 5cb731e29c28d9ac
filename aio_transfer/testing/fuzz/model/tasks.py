"""Awaits of a random schedule, each in a task of its own, so that any of them can be cancelled at any time."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Literal

import anyio
import anyio.lowlevel

from aio_transfer.errors import AioTransferError
from aio_transfer.testing.assertions import ConformanceError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from anyio.abc import TaskGroup

__all__ = ("Await", "join", "turns")

Outcome = Literal["waiting", "returned", "failed", "cancelled"]


class Await:
    """One await, and how it went.

    :ivar what: for reports
    :ivar error: why it failed
    :ivar asked: it was told to be cancelled, and may have ended otherwise just before
    """

    def __init__(self, what: str, call: Callable[[], Awaitable[object]], on_return: Callable[[], object]) -> None:
        """Prepare it.

        :param on_return: called in the task, right when ``call`` has returned
        """
        self.what = what
        self.outcome: Outcome = "waiting"
        self.error: AioTransferError | None = None
        self.asked = False
        self.ended = anyio.Event()
        self._call = call
        self._on_return = on_return
        self._scope = anyio.CancelScope()
        self._task: asyncio.Task[object] | None = None

    def start(self, tasks: TaskGroup) -> Await:
        """Begin, when its task has its first turn."""
        tasks.start_soon(self._run, name=self.what)
        return self

    async def _run(self) -> None:
        # The only way to reach Task.cancel, which passes through anyio's scopes and shields.
        with contextlib.suppress(RuntimeError):  # trio
            self._task = asyncio.current_task()
        try:
            with self._scope:
                await self._call()
                self.outcome = "returned"
                self._on_return()
        except AioTransferError as error:
            self.outcome = "failed"
            self.error = error
        except asyncio.CancelledError:  # as a task; its group lives on
            if not self.asked:
                raise
        finally:
            if self.outcome == "waiting":
                self.outcome = "cancelled"
            self.ended.set()
            self._task = None

    def cancel(self, *, as_task: bool) -> None:
        """Cancel it: by its scope, or as a task where the loop has such a thing."""
        if self.outcome != "waiting":
            return
        self.asked = True
        if as_task and self._task is not None:
            self._task.cancel()
        else:
            self._scope.cancel()

    def __repr__(self) -> str:
        """Say what, and how it went."""
        return f"<{self.what}: {self.outcome}{f' with {self.error!r}' if self.error else ''}>"


async def join(awaits: Iterable[Await], deadline_s: float) -> None:
    """Wait until all have ended.

    :raises ConformanceError: one has not after ``deadline_s``
    """
    late = [one for one in awaits if one.outcome == "waiting"]
    if not late:
        return
    with anyio.move_on_after(deadline_s):
        for one in late:
            await one.ended.wait()
        return
    stuck = [one.what for one in late if one.outcome == "waiting"]
    raise ConformanceError(f"not ended after {deadline_s:g} s (rule 8): {', '.join(stuck)}")


async def turns(count: int) -> None:
    """Let everybody else have some turns."""
    for _ in range(count):
        await anyio.lowlevel.checkpoint()
