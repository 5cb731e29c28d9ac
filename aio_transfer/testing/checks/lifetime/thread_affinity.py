"""Use from another thread, another event loop, or after a fork: refused, and nothing is harmed."""

from __future__ import annotations

import os
import pickle
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


class Scene:
    """Two engines with something of everything, and all that can be called on the first."""

    def __init__(self, a: TransferEngine, b: TransferEngine, source: Memory, target: Memory) -> None:
        """Take what :meth:`set_up` made."""
        self.a, self.b = a, b
        self.source, self.target = source, target
        self.remote = target.remote(self_counter := b.counter())
        self.theirs = self_counter
        self.counter = a.counter()
        self.doomed = a.counter()
        self.transfer = a.submit_write(source.region[:], self.remote[:])

    @classmethod
    async def set_up(cls, a: TransferEngine, b: TransferEngine, spec: Spec) -> Scene:
        """Make memory, counters, a transfer that is over, and a connection."""
        scene = cls(a, b, await Memory.open(a, 64, spec.rng()), await Memory.open(b, 64, spec.rng()))
        await scene.transfer
        await scene.theirs.wait()
        scene.target.expect(0, scene.source.array)
        return scene

    def calls(self) -> Calls:
        """Return every plain call."""
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
        """Return every call that is awaited."""
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

    async def unharmed(self) -> None:
        """Demand that everything still works where it belongs."""
        self.target.verify()
        before = self.theirs.value
        await self.a.write(self.source.region[:], self.remote[:])
        await exactly(self.theirs, 1, self.b, self.a, total=before + 1)
        await self.b.notify(self.b.counter_ref(self.a.address, self.counter.id))
        await exactly(self.counter, 1, self.a, self.b)
        await self.b.notify(self.b.counter_ref(self.a.address, self.doomed.id))
        await exactly(self.doomed, 1, self.a, self.b)


def outcome(call: Callable[[], object]) -> str:
    """Call, and say what came of it if that was not a UsageError."""
    try:
        call()
    except UsageError:
        return ""
    except BaseException as error:  # noqa: BLE001 - also what crosses from another loop
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


async def outcome_of(make: Callable[[], Awaitable[object]]) -> str:
    """Await, and say what came of it if that was not a UsageError."""
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


def described(wrong: dict[str, str]) -> str:
    """Put what was not refused in one line."""
    return "; ".join(f"{name}: {what}" for name, what in wrong.items())


@check("place")
async def check_another_thread(spec: Spec) -> None:
    """Every plain call from another thread is refused with UsageError, and harms nothing."""
    async with pair(spec) as (a, b):
        scene = await Scene.set_up(a, b, spec)

        def elsewhere() -> dict[str, str]:
            seen = {name: outcome(call) for name, call in scene.calls().items()}
            return {name: what for name, what in seen.items() if what}

        wrong = await anyio.to_thread.run_sync(elsewhere)
        claim(not wrong, f"from another thread: {described(wrong)}")
        await scene.unharmed()


@check("place")
async def check_another_loop(spec: Spec) -> None:
    """Every call from another event loop, in another thread, is refused with UsageError, and harms nothing."""
    async with pair(spec) as (a, b):
        scene = await Scene.set_up(a, b, spec)
        token = type(anyio.lowlevel.current_token().native_token).__module__
        backend = "trio" if token.startswith("trio") else "asyncio"

        async def elsewhere() -> dict[str, str]:
            seen = {name: outcome(call) for name, call in scene.calls().items()}
            seen |= {name: await outcome_of(make) for name, make in scene.awaits().items()}
            return {name: what for name, what in seen.items() if what}

        wrong = await anyio.to_thread.run_sync(lambda: anyio.run(elsewhere, backend=backend))
        claim(not wrong, f"from another event loop: {described(wrong)}")
        await scene.unharmed()


@check("place")
async def check_close_from_another_loop(spec: Spec) -> None:
    """Closing from another event loop is refused with UsageError, and the engine stays open."""
    async with pair(spec) as (a, b):
        scene = await Scene.set_up(a, b, spec)

        async def elsewhere() -> str:
            await anyio.lowlevel.checkpoint()
            return outcome(lambda: step(a.aclose))  # one step: it waits under a shield, and not for this loop

        wrong = await anyio.to_thread.run_sync(lambda: anyio.run(elsewhere))
        claim(not wrong, f"aclose() from another event loop: {wrong}")
        await scene.unharmed()


@check("bad input")
async def check_no_loop(spec: Spec) -> None:
    """Making an engine needs no event loop, and its calls in a thread without one are refused."""
    engine = await anyio.to_thread.run_sync(spec.engine)
    claim("new" in repr(engine), f"{engine!r} is not new")
    refusal = await anyio.to_thread.run_sync(lambda: raised_by(engine.counter))
    claim(isinstance(refusal, AioTransferError), f"a counter of it, in a thread: {refusal!r}")


def raised_by(call: Callable[[], object]) -> BaseException | None:
    """Return what a call raises."""
    try:
        call()
    except BaseException as error:  # noqa: BLE001 - it is what is asked for
        return error
    return None


@check("place", "fork")
async def check_after_fork(spec: Spec) -> None:
    """In a forked child every call is refused with UsageError, and the parent goes on unharmed."""
    async with pair(spec) as (a, b):
        scene = await Scene.set_up(a, b, spec)
        ours, theirs = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads; that is the point
            child = os.fork()
        if child == 0:  # no loop runs here: coroutines are stepped by hand, those that refuse in their first step
            wrong = {"the child": "it failed itself"}
            try:
                seen = {name: outcome(call) for name, call in scene.calls().items()}
                late = ("counter.wait", "region.aclose", "messages")
                awaits = {name: make for name, make in scene.awaits().items() if name not in late}
                seen |= {name: outcome(partial(step, make)) for name, make in awaits.items()}
                wrong = {name: what for name, what in seen.items() if what}
            finally:
                os.write(theirs, pickle.dumps(wrong))
                os._exit(0)
        os.close(theirs)
        with os.fdopen(ours, "rb") as pipe:
            wrong = pickle.loads(pipe.read())  # noqa: S301 - of our own child
        os.waitpid(child, 0)  # noqa: ASYNC222 - it has closed its pipe, so it ends now
        claim(not wrong, f"after a fork: {described(wrong)}")
        await scene.unharmed()


def step(make: Callable[[], Awaitable[object]]) -> None:
    """Run a coroutine's first step; one that wants another has not refused."""
    coroutine = make()
    try:
        coroutine.send(None)  # type: ignore[attr-defined]
    finally:
        if hasattr(coroutine, "close"):
            coroutine.close()
