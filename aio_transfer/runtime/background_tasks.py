"""Background tasks of one engine: a task group that outlives any caller's scope and closes from any task."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import anyio

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from aio_transfer.runtime.event_loop import EventLoop

__all__ = ("BackgroundTasks",)

_LOGGER: Final = logging.getLogger(__name__)


class BackgroundTasks:
    """A task group that runs in a task of its own.

    :ivar group: to start tasks in; valid between :meth:`start` and :meth:`stop`
    """

    group: TaskGroup

    def __init__(self, loop: EventLoop, name: str) -> None:
        """Remember where to run; ``name`` is the task's."""
        self._loop = loop
        self._name = name
        self._started = False
        self._stopping = anyio.Event()
        self._stopped = anyio.Event()

    async def start(self) -> None:
        """Open the task group."""
        ready = anyio.Event()

        async def host() -> None:
            try:
                async with anyio.create_task_group() as self.group:
                    ready.set()
                    await self._stopping.wait()
                    self.group.cancel_scope.cancel()
            except Exception:
                _LOGGER.exception("a background task of %s failed", self._name)
            finally:
                self._stopped.set()

        # Not in the caller's task: a task group must be closed by the task that opened it, and an engine may be closed
        # by any.
        self._loop.spawn(host, self._name)
        self._started = True
        await ready.wait()

    async def stop(self) -> None:
        """Cancel every task and wait for its end. Idempotent."""
        if self._started:
            self._stopping.set()
            await self._stopped.wait()
