"""Checks of waits on a counter: a FIFO semaphore, also when waits are cancelled."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from aio_transfer.errors import WouldBlock
from aio_transfer.testing.assertions import MISTYPED, claim, refused
from aio_transfer.testing.fixtures import exactly, pair, ping, until
from aio_transfer.testing.registry import check
from aio_transfer.testing.timeouts import patient

if TYPE_CHECKING:
    from aio_transfer.counters.counter import ImmCounter
    from aio_transfer.engine.engine import TransferEngine
    from aio_transfer.testing.spec import Spec


class WaitQueue:
    """Tasks that wait on one counter, and the order in which they were served."""

    def __init__(self, counter: ImmCounter) -> None:
        """Begin with an empty queue."""
        self._counter = counter
        self.served: list[str] = []
        self.scopes: dict[str, anyio.CancelScope] = {}

    async def join(self, name: str, count: int) -> None:
        """Wait for ``count`` counts, and record that they were granted."""
        with anyio.CancelScope() as self.scopes[name]:
            await self._counter.wait(count)
            self.served.append(name)

    async def enter(self, tasks: anyio.abc.TaskGroup, **counts: int) -> None:
        """Start tasks that join, one after the other."""
        for name, count in counts.items():
            due = self._counter.waiting + 1
            tasks.start_soon(self.join, name, count)
            await self.reaches(due)

    async def reaches(self, waiting: int) -> None:
        """Wait until ``waiting`` tasks wait."""
        counter = self._counter
        await until(lambda: counter.waiting == waiting, lambda: f"{counter.waiting} tasks wait, and {waiting} are to")

    async def served_are(self, due: set[str]) -> None:
        """Wait until exactly these were served; tasks that are granted together may run in any order."""
        await until(lambda: len(self.served) >= len(due), lambda: f"served are {self.served}")
        claim(set(self.served) == due, f"{self.served} were served, and {due} were due")


def has_counts(counter: ImmCounter, count: int) -> bool:
    """Return whether the running total has reached ``count``."""
    return counter.value >= count


async def raise_by(sender: TransferEngine, owner: TransferEngine, counter: ImmCounter, count: int) -> None:
    """Raise a counter from the other side, and wait until the counts have arrived."""
    for _ in range(count):
        await sender.notify(sender.counter_ref(owner.address, counter.id))
    await ping(sender, owner)


@check("rule 5")
async def check_wait_is_fifo(spec: Spec) -> None:
    """The first waiter gets its counts first, though a later one wants fewer."""
    async with pair(spec) as (a, b):
        counter = b.counter()
        queue = WaitQueue(counter)
        async with anyio.create_task_group() as tasks:
            await queue.enter(tasks, first=3, second=1, third=2)
            await raise_by(a, b, counter, 2)
            claim(not queue.served, f"2 counts came, the first waits for 3, and {queue.served} were served")
            claim(counter.missing == 1, f"the first lacks 1 count, and the counter says {counter.missing}")
            await raise_by(a, b, counter, 2)
            await until(lambda: len(queue.served) == 2, "4 counts serve the first (3) and the second (1)")
            claim(set(queue.served) == {"first", "second"}, f"4 counts serve the first (3), second (1): {queue.served}")
            await raise_by(a, b, counter, 2)
        claim(queue.served[2:] == ["third"], f"served in the order {queue.served}")
        claim(counter.value == 6, f"6 counts came, and the running total is {counter.value}")


@check("rule 5")
async def check_wait_cancelled_in_the_middle(spec: Spec) -> None:
    """A cancelled waiter consumes nothing, and those behind it move up."""
    async with pair(spec) as (a, b):
        counter = b.counter()
        queue = WaitQueue(counter)
        async with anyio.create_task_group() as tasks:
            await queue.enter(tasks, first=2, second=3, third=1, fourth=2)
            queue.scopes["second"].cancel()
            await until(lambda: counter.waiting == 3, "a cancelled waiter stays in the queue")
            await raise_by(a, b, counter, 3)
            claim(set(queue.served) == {"first", "third"}, f"3 counts serve first (2) and third (1): {queue.served}")
            await raise_by(a, b, counter, 2)
        claim(queue.served[2:] == ["fourth"], f"served: {queue.served}")
        with refused("one more", WouldBlock):
            counter.wait_nowait()


@check("rule 5")
async def check_wait_cancelled_at_the_head(spec: Spec) -> None:
    """When the first waiter is cancelled, the next one is served if the present counts suffice."""
    async with pair(spec) as (a, b):
        counter = b.counter()
        queue = WaitQueue(counter)
        async with anyio.create_task_group() as tasks:
            await queue.enter(tasks, large=10, small=2)
            await raise_by(a, b, counter, 2)
            claim(not queue.served, f"served before its turn: {queue.served}")
            queue.scopes["large"].cancel()
            await until(lambda: queue.served, "two counts are there, the head gave up, and the next still waits")


@check("rule 5")
async def check_wait_cancelled_in_the_tick_of_its_count(spec: Spec) -> None:
    """A wait that is cancelled when its count arrives either takes the count or leaves it: none is lost or doubled."""
    taken = left = 0
    rounds = 60
    async with pair(spec) as (a, b):
        counter = b.counter()
        await ping(a, b)

        async def wait(scope: anyio.CancelScope) -> None:
            nonlocal taken
            with scope:
                await counter.wait()
                taken += 1

        for index in range(rounds):
            async with anyio.create_task_group() as tasks:
                scope = anyio.CancelScope()
                tasks.start_soon(wait, scope)
                await until(lambda: counter.waiting, "no task waits")
                transfer = a.submit_notify(a.counter_ref(b.address, counter.id))
                for _ in range(index % 6):
                    await anyio.lowlevel.checkpoint()
                scope.cancel()
            await transfer
            await until(partial(has_counts, counter, index + 1), "a count does not arrive")
            with contextlib.suppress(WouldBlock):
                counter.wait_nowait()
                left += 1
            seen = f"of {index + 1} counts, {taken} were taken by waits that returned and {left} were left"
            claim(taken + left == index + 1 == counter.value, f"{seen}; the total is {counter.value}")


def _on_trio() -> bool:
    return type(anyio.lowlevel.current_token().native_token).__module__.startswith("trio")


@check("rule 5")
async def check_wait_cancelled_beforehand(spec: Spec) -> None:
    """A wait in a cancelled scope consumes nothing; on asyncio it may succeed if its counts are there."""
    async with pair(spec) as (a, b):
        counter = b.counter()
        await raise_by(a, b, counter, 1)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await counter.wait()
            claim(not _on_trio(), "a wait in a cancelled scope went on")
        if scope.cancelled_caught:
            counter.wait_nowait()
        with refused("a second wait for one count", WouldBlock):
            counter.wait_nowait()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await counter.wait()
        claim(scope.cancelled_caught, "a wait in a cancelled scope, for what is not there, went on")


@check("rule 5")
async def check_wait_nowait(spec: Spec) -> None:
    """wait_nowait consumes counts that are there, and does not overtake a waiter."""
    async with pair(spec) as (a, b):
        counter = b.counter()
        with refused("wait_nowait before anything came", WouldBlock):
            counter.wait_nowait()
        await raise_by(a, b, counter, 3)
        counter.wait_nowait(2)
        with refused("two of one", WouldBlock):
            counter.wait_nowait(2)
        counter.wait_nowait(0)
        queue = WaitQueue(counter)
        async with anyio.create_task_group() as tasks:
            await queue.enter(tasks, first=2)
            with refused("wait_nowait past a waiter", WouldBlock):
                counter.wait_nowait(1)
            await raise_by(a, b, counter, 1)
        claim(counter.value == 4, f"4 counts came, and the running total is {counter.value}")


@check("rule 5")
async def check_wait_for_nothing(spec: Spec) -> None:
    """A wait for zero counts returns at once, also when others wait."""
    async with pair(spec) as (a, b):
        counter = b.counter()
        queue = WaitQueue(counter)
        async with anyio.create_task_group() as tasks:
            await queue.enter(tasks, first=1)
            with anyio.fail_after(patient(2)):
                await counter.wait(0)
            claim(counter.waiting == 1, "a wait for nothing disturbed the queue")
            await raise_by(a, b, counter, 1)


@check("bad input")
async def check_wait_for_what_is_no_number(spec: Spec) -> None:
    """A wait for a negative, non-integer or too large count is refused, and the counter stays usable."""
    async with pair(spec) as (a, b):
        counter = b.counter()
        for count in (-1, 1.5, "2", None, 1 << 60, 1 << 80):
            with refused(f"wait({count!r})", *MISTYPED), anyio.fail_after(patient(1)):
                await counter.wait(count)  # type: ignore[arg-type]
            with refused(f"wait_nowait({count!r})", *MISTYPED):
                counter.wait_nowait(count)  # type: ignore[arg-type]
            claim(counter.waiting == 0, f"the refused wait({count!r}) is in the queue")
        await raise_by(a, b, counter, 2)
        await exactly(counter, 2, b, a)


@check("rule 5")
async def check_wait_hundred_tasks(spec: Spec) -> None:
    """A hundred tasks that wait for one count each are served by a hundred counts, in order."""
    async with pair(spec) as (a, b):
        counter = b.counter()
        queue = WaitQueue(counter)
        async with anyio.create_task_group() as tasks:
            await queue.enter(tasks, **{f"t{index}": 1 for index in range(100)})
            for half in (50, 100):
                await raise_by(a, b, counter, 50)
                await queue.served_are({f"t{index}" for index in range(half)})
        claim(counter.value == 100, f"the total is {counter.value}")


@check("rule 5")
async def check_wait_sum(spec: Spec) -> None:
    """Waits whose counts add up to the counts that arrived leave none."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        counter = b.counter()
        counts = rng.integers(0, 9, 30).tolist()
        transfers = [a.submit_notify(a.counter_ref(b.address, counter.id)) for _ in range(sum(counts))]
        for count in counts:
            await counter.wait(count)
        for transfer in transfers:
            await transfer
        await exactly(counter, 0, b, a, total=sum(counts))
        with refused("one more than came", WouldBlock):
            counter.wait_nowait()
