"""Event loop adapter for asyncio and trio: the only file that names them.

A :class:`EventLoop` watches file descriptors and parks tasks; everything above it is the same on both. On asyncio a
reader is registered once per fd (a wake costs 11 µs on uvloop, 16 on asyncio; registering per wait costs 25–39). On
trio one task per fd waits for it and drains for everybody.

:source: benchmarks/log.md (measured costs of waking)
"""

from __future__ import annotations

import os
from threading import get_ident
from typing import TYPE_CHECKING, Final, Protocol

import anyio.lowlevel

from aio_transfer.errors import UsageError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any

    import trio

__all__ = ("EventLoop", "Waiter", "current_event_loop")

_AWAITS_PER_TURN: Final = 64
"""Awaits that complete at once between two turns of asyncio's loop. A turn takes as long as a write of some KiB, so it
costs such a write 2 %, and delays other tasks by at most 0.3 ms."""


class Waiter(Protocol):
    """One-shot wake-up for a single task."""

    def wake(self) -> None:
        """Wake the task, now or as soon as it parks. Idempotent."""
        ...

    def wait(self) -> Awaitable[None]:
        """Park until woken; awaited at once.

        :cancellation: ends the wait at once; a wake in the same tick is lost, and the caller must undo its
            cause
        """
        ...


class EventLoop(Protocol):
    """The event loop that an engine runs on."""

    @property
    def is_forked(self) -> bool:
        """Whether this is a child of the process the loop ran in."""
        ...

    def check(self, what: str) -> None:
        """Refuse use from another thread or another event loop.

        :raises UsageError: naming ``what`` was called from where it may not be
        """
        ...

    def watch(self, fd: int, on_ready: Callable[[], None]) -> None:
        """Call ``on_ready`` (which must not raise) whenever ``fd`` is readable."""
        ...

    def unwatch(self, fd: int) -> None:
        """Stop watching; always before the fd is closed."""
        ...

    def waiter(self) -> Waiter:
        """Make a one-shot waiter."""
        ...

    def is_turn_due(self) -> bool:
        """Whether an await that completes immediately should still yield to the event loop (fairness).

        On trio always, as that library requires. On asyncio such an await returns at once, as with asyncio's own queues
        and locks; here it yields once in 64 times.
        """
        ...

    def time(self) -> float:
        """Return ``anyio.current_time()``, in seconds, without detecting the library again."""
        ...

    def call_soon(self, call: Callable[[], None]) -> None:
        """Run ``call`` after the tasks that are ready now."""
        ...

    def spawn(self, task: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        """Run a task outside any caller's cancel scope. It must not raise."""
        ...


def current_event_loop() -> EventLoop:
    """Return the running event loop's adapter.

    :raises UsageError: there is none in this thread
    """
    try:
        native = anyio.lowlevel.current_token().native_token
    except Exception as error:
        raise UsageError("a TransferEngine needs a running asyncio or trio event loop") from error
    if type(native).__module__.partition(".")[0] == "trio":
        return _TrioLoop()
    return _AsyncioLoop()


_forks = 0


def _count_fork() -> None:
    global _forks  # noqa: PLW0603 - the process's
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


class _OfThisProcess:
    """Detects use in a forked child, where the engine's threads and devices are the parent's."""

    def __init__(self) -> None:
        self._born = _forks

    @property
    def is_forked(self) -> bool:
        return self._born != _forks


def _wrong_place(what: str, loop: _OfThisProcess) -> UsageError:
    if loop.is_forked:
        return UsageError(f"{what} was made before the fork: open another engine in the child")
    return UsageError(f"{what} belongs to the event loop and thread that opened its engine; it was used from another")


class _AsyncioWaiter:
    __slots__ = ("_future",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._future = loop.create_future()

    def wake(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    def wait(self) -> Awaitable[None]:
        return self._future


class _AsyncioLoop(_OfThisProcess):
    def __init__(self) -> None:
        super().__init__()
        import asyncio

        self._loop = asyncio.get_running_loop()
        self._is_running = self._loop.is_running
        self._thread = get_ident()
        self._awaits_left = _AWAITS_PER_TURN
        self._tasks: set[asyncio.Task[None]] = set()

    def check(self, what: str) -> None:
        # A thread runs one loop at a time. get_running_loop gives the same answer, with a getpid per call before 3.12.
        if get_ident() != self._thread or not self._is_running() or self._born != _forks:
            raise _wrong_place(what, self)

    def watch(self, fd: int, on_ready: Callable[[], None]) -> None:
        self._loop.add_reader(fd, on_ready)

    def unwatch(self, fd: int) -> None:
        if not self._loop.is_closed():
            self._loop.remove_reader(fd)

    def waiter(self) -> Waiter:
        return _AsyncioWaiter(self._loop)

    def is_turn_due(self) -> bool:
        self._awaits_left -= 1
        if self._awaits_left:
            return False
        self._awaits_left = _AWAITS_PER_TURN
        return True

    def time(self) -> float:
        return self._loop.time()

    def call_soon(self, call: Callable[[], None]) -> None:
        self._loop.call_soon(call)

    def spawn(self, task: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        spawned = self._loop.create_task(task(), name=name)
        # The loop itself holds tasks weakly.
        self._tasks.add(spawned)
        spawned.add_done_callback(self._tasks.discard)


class _TrioWaiter:
    __slots__ = ("_task", "_woken")

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None
        self._woken = False

    def wake(self) -> None:
        import trio

        self._woken = True
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    async def wait(self) -> None:
        import trio

        if self._woken:
            await trio.lowlevel.checkpoint()
            return
        self._task = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)


class _TrioLoop(_OfThisProcess):
    def __init__(self) -> None:
        super().__init__()
        import trio

        self._trio = trio
        self._token = trio.lowlevel.current_trio_token()
        self._thread = get_ident()
        self._watches: dict[int, trio.CancelScope] = {}

    def check(self, what: str) -> None:
        # Asking for the current token raises outside a run; comparing threads first keeps that to the odd case.
        wrong = self._born != _forks or get_ident() != self._thread or not self._trio.lowlevel.in_trio_run()
        if wrong or self._trio.lowlevel.current_trio_token() is not self._token:
            raise _wrong_place(what, self)

    def watch(self, fd: int, on_ready: Callable[[], None]) -> None:
        scope = self._watches[fd] = self._trio.CancelScope()

        async def pump() -> None:
            with scope:
                # Not `while True`: an fd that was unwatched before this task first ran may be closed already, and trio
                # registers before it looks at the scope.
                while not scope.cancel_called:
                    await self._trio.lowlevel.wait_readable(fd)
                    on_ready()

        self._trio.lowlevel.spawn_system_task(pump, name=f"aio_transfer.watch({fd})")

    def unwatch(self, fd: int) -> None:
        scope = self._watches.pop(fd, None)
        if scope is not None:
            scope.cancel()
            self._trio.lowlevel.notify_closing(fd)

    def waiter(self) -> Waiter:
        return _TrioWaiter()

    def is_turn_due(self) -> bool:
        return True

    def time(self) -> float:
        return self._trio.current_time()

    def call_soon(self, call: Callable[[], None]) -> None:
        self._token.run_sync_soon(call)

    def spawn(self, task: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self._trio.lowlevel.spawn_system_task(task, name=name)
