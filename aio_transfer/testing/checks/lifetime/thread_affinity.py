"""Checks of thread affinity: use from another thread, event loop or forked process is refused without harm."""

from __future__ import annotations

import json
import os
import warnings
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import anyio.to_thread

from aio_transfer.errors import AioTransferError, UsageError
from aio_transfer.testing.assertions import claim
from aio_transfer.testing.fixtures import exactly, pair
from aio_transfer.testing.guarded_memory import Memory
from aio_transfer.testing.registry import check
from aio_transfer.testing.timeouts import patient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aio_transfer.engine.engine import TransferEngine
    from aio_transfer.testing.spec import Spec

    Calls = dict[str, Callable[[], object]]
    Awaits = dict[str, Callable[[], Awaitable[object]]]


class AffinityFixture:
    """Two engines with one resource of each kind, and every call that the first one offers."""

    def __init__(self, a: TransferEngine, b: TransferEngine, source: Memory, target: Memory) -> None:
        """Use :meth:`open_on` instead."""
        self.a, self.b = a, b
        self.source, self.target = source, target
        self.remote = target.remote(self_counter := b.counter())
        self.theirs = self_counter
        self.counter = a.counter()
        self.doomed = a.counter()
        self.transfer = a.submit_write(source.region[:], self.remote[:])

    @classmethod
    async def open_on(cls, a: TransferEngine, b: TransferEngine, spec: Spec) -> AffinityFixture:
        """Open memory, counters and a connection, and finish a transfer."""
        fixture = cls(a, b, await Memory.open(a, 64, spec.rng()), await Memory.open(b, 64, spec.rng()))
        await fixture.transfer
        await fixture.theirs.wait()
        fixture.target.expect(0, fixture.source.array)
        return fixture

    def calls(self) -> Calls:
        """Return every synchronous call."""
        a, region = self.a, self.source.region
        return {
            "submit_write": lambda: a.submit_write(region[:], self.remote[:]),
            "submit_write_pages": lambda: a.submit_write_pages(region.pages([0], 8), self.remote.pages([0], 8)),
            "submit_scatter": lambda: a.submit_scatter([region[:]], [self.remote[:]]),
            "submit_notify": lambda: a.submit_notify(a.counter_ref(self.remote, self.theirs.id)),
            "submit_read": lambda: a.submit_read(region[:], self.remote[:]),
            "counter": a.counter,
            "statistics": a.statistics,
            "descriptor": region.descriptor,
            "counter.value": lambda: self.counter.value,
            "counter.wait_nowait": self.counter.wait_nowait,
            "counter.clear": self.counter.clear,
            "counter.close": self.doomed.close,
        }

    def awaits(self) -> Awaits:
        """Return every asynchronous call."""
        a, region = self.a, self.source.region
        return {
            "write": lambda: a.write(region[:], self.remote[:]),
            "transfer": self.transfer.wait,
            "register": lambda: a.register(bytearray(8)),
            "region.aclose": region.aclose,
            "connect": lambda: a.connect(self.b.address),
            "disconnect": lambda: a.disconnect(self.b.address),
            "group": lambda: a.group([self.b.address]),
            "send": lambda: a.send(self.b.address, b"x"),
            "messages": lambda: anext(a.messages()),
            "counter.wait": self.counter.wait,
        }

    async def verify_unharmed(self) -> None:
        """Check that everything still works in the right event loop."""
        self.target.verify()
        before = self.theirs.value
        await self.a.write(self.source.region[:], self.remote[:])
        await exactly(self.theirs, 1, self.b, self.a, total=before + 1)
        await self.b.notify(self.b.counter_ref(self.a.address, self.counter.id))
        await exactly(self.counter, 1, self.a, self.b)
        await self.b.notify(self.b.counter_ref(self.a.address, self.doomed.id))
        await exactly(self.doomed, 1, self.a, self.b)


def unexpected_outcome(call: Callable[[], object]) -> str:
    """Call, and describe the outcome; empty if it is the expected UsageError."""
    try:
        call()
    except UsageError:
        return ""
    except BaseException as error:  # noqa: BLE001 - also what crosses from another loop
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


async def unexpected_async_outcome(make: Callable[[], Awaitable[object]]) -> str:
    """Await, and describe the outcome; empty if it is the expected UsageError."""
    try:
        with anyio.fail_after(patient(0.5)):
            await make()
    except UsageError:
        return ""
    except TimeoutError:
        return "it did not end"
    except BaseException as error:  # noqa: BLE001 - also what crosses from another loop
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def join_outcomes(wrong: dict[str, str]) -> str:
    """Format the calls that were not refused as one line."""
    return "; ".join(f"{name}: {what}" for name, what in wrong.items())


@check("affinity")
async def check_another_thread(spec: Spec) -> None:
    """Every plain call from another thread is refused with UsageError, and harms nothing."""
    async with pair(spec) as (a, b):
        fixture = await AffinityFixture.open_on(a, b, spec)

        def elsewhere() -> dict[str, str]:
            seen = {name: unexpected_outcome(call) for name, call in fixture.calls().items()}
            return {name: what for name, what in seen.items() if what}

        wrong = await anyio.to_thread.run_sync(elsewhere)
        claim(not wrong, f"from another thread: {join_outcomes(wrong)}")
        await fixture.verify_unharmed()


@check("affinity")
async def check_another_loop(spec: Spec) -> None:
    """Every call from an event loop in another thread is refused with UsageError, and harms nothing."""
    async with pair(spec) as (a, b):
        fixture = await AffinityFixture.open_on(a, b, spec)
        token = type(anyio.lowlevel.current_token().native_token).__module__
        backend = "trio" if token.startswith("trio") else "asyncio"

        async def elsewhere() -> dict[str, str]:
            seen = {name: unexpected_outcome(call) for name, call in fixture.calls().items()}
            seen |= {name: await unexpected_async_outcome(make) for name, make in fixture.awaits().items()}
            return {name: what for name, what in seen.items() if what}

        wrong = await anyio.to_thread.run_sync(lambda: anyio.run(elsewhere, backend=backend))
        claim(not wrong, f"from another event loop: {join_outcomes(wrong)}")
        await fixture.verify_unharmed()


@check("affinity")
async def check_close_from_another_loop(spec: Spec) -> None:
    """Closing from another event loop is refused with UsageError, and the engine stays open."""
    async with pair(spec) as (a, b):
        fixture = await AffinityFixture.open_on(a, b, spec)

        async def elsewhere() -> str:
            await anyio.lowlevel.checkpoint()
            return unexpected_outcome(lambda: run_first_step(a.aclose))  # aclose would wait under a shield

        wrong = await anyio.to_thread.run_sync(lambda: anyio.run(elsewhere))
        claim(not wrong, f"aclose() from another event loop: {wrong}")
        await fixture.verify_unharmed()


@check("bad input")
async def check_no_loop(spec: Spec) -> None:
    """An engine can be created without an event loop, and its calls in a thread without one are refused."""
    engine = await anyio.to_thread.run_sync(spec.engine)
    claim("new" in repr(engine), f"{engine!r} is not new")
    refusal = await anyio.to_thread.run_sync(lambda: raised_by(engine.counter))
    claim(isinstance(refusal, AioTransferError), f"a counter of it, in a thread: {refusal!r}")


def raised_by(call: Callable[[], object]) -> BaseException | None:
    """Return the error that a call raises."""
    try:
        call()
    except BaseException as error:  # noqa: BLE001 - the caller checks its type
        return error
    return None


@check("affinity", "fork")
async def check_after_fork(spec: Spec) -> None:
    """In a forked child every call is refused with UsageError, and the parent goes on unharmed."""
    async with pair(spec) as (a, b):
        fixture = await AffinityFixture.open_on(a, b, spec)
        ours, theirs = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks with threads
            child = os.fork()
        if child == 0:  # no event loop runs here: only calls that refuse in their first step are tested
            wrong = {"the child": "it raised an error"}
            try:
                seen = {name: unexpected_outcome(call) for name, call in fixture.calls().items()}
                late = ("counter.wait", "region.aclose", "messages")
                awaits = {name: make for name, make in fixture.awaits().items() if name not in late}
                seen |= {name: unexpected_outcome(partial(run_first_step, make)) for name, make in awaits.items()}
                wrong = {name: what for name, what in seen.items() if what}
            finally:
                os.write(theirs, json.dumps(wrong).encode())
                os._exit(0)
        os.close(theirs)
        with os.fdopen(ours, "rb") as pipe:
            wrong = json.load(pipe)
        os.waitpid(child, 0)  # noqa: ASYNC222 - it has closed its pipe, so it ends now
        claim(not wrong, f"after a fork: {join_outcomes(wrong)}")
        await fixture.verify_unharmed()


def run_first_step(make: Callable[[], Awaitable[object]]) -> None:
    """Run the first step of a coroutine; one that suspends there has not refused."""
    coroutine = make()
    try:
        coroutine.send(None)  # type: ignore[attr-defined]
    finally:
        if hasattr(coroutine, "close"):
            coroutine.close()
