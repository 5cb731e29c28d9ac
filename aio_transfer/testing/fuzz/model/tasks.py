"""Tracked tasks: each await of a schedule runs in a task of its own, so that it can be cancelled at any time."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Literal

import anyio

from aio_transfer.errors import AioTransferError
from aio_transfer.testing.assertions import ConformanceError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from anyio.abc import TaskGroup

__all__ = ("TrackedTask", "join")

Outcome = Literal["waiting", "returned", "failed", "cancelled"]


class TrackedTask:
    """One await in a task of its own, and its outcome.

    :ivar what: its description in reports
    :ivar error: the error it failed with
    :ivar cancel_requested: :meth:`cancel` was called; the task may still have ended otherwise just before
    """

    def __init__(self, what: str, call: Callable[[], Awaitable[object]], on_return: Callable[[], object]) -> None:
        """Prepare the task; :meth:`start` starts it.

        :param on_return: called in the task, at once when ``call`` has returned
        """
        self.what = what
        self.outcome: Outcome = "waiting"
        self.error: AioTransferError | None = None
        self.cancel_requested = False
        self.ended = anyio.Event()
        self._call = call
        self._on_return = on_return
        self._scope = anyio.CancelScope()
        self._task: asyncio.Task[object] | None = None

    def start(self, task_group: TaskGroup) -> TrackedTask:
        """Start the task; ``call`` begins when the task runs first."""
        task_group.start_soon(self._run, name=self.what)
        return self

    async def _run(self) -> None:
        # The only access to Task.cancel, which ignores the scopes and shields of anyio.
        with contextlib.suppress(RuntimeError):  # trio has no such tasks
            self._task = asyncio.current_task()
        try:
            with self._scope:
                await self._call()
                self.outcome = "returned"
                self._on_return()
        except AioTransferError as error:
            self.outcome = "failed"
            self.error = error
        except asyncio.CancelledError:  # of this task alone; its group goes on
            if not self.cancel_requested:
                raise
        finally:
            if self.outcome == "waiting":
                self.outcome = "cancelled"
            self.ended.set()
            self._task = None

    def cancel(self, *, as_task: bool) -> None:
        """Cancel the await: by its scope, or by ``Task.cancel`` where the event loop is asyncio's."""
        if self.outcome != "waiting":
            return
        self.cancel_requested = True
        if as_task and self._task is not None:
            self._task.cancel()
        else:
            self._scope.cancel()

    def __repr__(self) -> str:
        """Return the description and the outcome."""
        return f"<{self.what}: {self.outcome}{f' with {self.error!r}' if self.error else ''}>"


async def join(tasks: Iterable[TrackedTask], deadline_s: float) -> None:
    """Wait until all tasks have ended.

    :raises ConformanceError: one has not ended after ``deadline_s``
    """
    late = [one for one in tasks if one.outcome == "waiting"]
    if not late:
        return
    with anyio.move_on_after(deadline_s):
        for one in late:
            await one.ended.wait()
        return
    stuck = [one.what for one in late if one.outcome == "waiting"]
    raise ConformanceError(f"not ended after {deadline_s:g} s (rule 8): {', '.join(stuck)}")
