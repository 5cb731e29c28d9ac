"""Engines that come, go and are followed by others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from aio_transfer.errors import PeerLostError
from aio_transfer.testing.assertions import claim, refused
from aio_transfer.testing.fixtures import exactly, mesh, pair, ping, until
from aio_transfer.testing.guarded_memory import Memory
from aio_transfer.testing.registry import check

if TYPE_CHECKING:
    from aio_transfer.testing.spec import Spec


@check("rule 9")
async def check_new_engine_in_place_of_old(spec: Spec) -> None:
    """An engine at the address of a former one is another: old descriptors are refused, new ones work."""
    rng = spec.rng()
    async with pair(spec) as (a, _):
        source = await Memory.open(a, 64, rng)
        async with spec.engine(label="old") as old:
            port = old.address.tcp_port
            former = await Memory.open(old, 64, rng)
            remote = former.remote()
            await a.write(source.region[:], remote[:])
            former.expect(0, source.array)
        async with spec.engine(label="new", port=port) as new:
            target = await Memory.open(new, 64, rng)
            counter = new.counter()
            with refused("a write to the old engine's region at the new one's address", PeerLostError):
                await a.write(source.region[:], remote[:])
            await a.write(source.region[:], target.remote(counter)[:])
            target.expect(0, source.array)
            await exactly(counter, 1, new, a)
            target.verify()
        former.verify("after its engine was replaced")


@check("closing")
async def check_close_again_and_again(spec: Spec) -> None:
    """A peer that comes and goes thirty times leaves nothing on the one that stays."""
    async with mesh(spec, 1) as (b,):
        counter = b.counter(3)
        for index in range(30):
            async with spec.engine(label=f"v{index}") as caller:
                await caller.notify(caller.counter_ref(b.address, 3))
            await counter.wait()
            counter.clear()
        claim(counter.value == 30, f"30 callers counted {counter.value}")
        await until(lambda: not b.statistics().peers, lambda: f"callers are still there: {b.statistics().peers}")


@check("closing")
async def check_close_keeps_others_going(spec: Spec) -> None:
    """While one peer closes, traffic with another goes on."""
    rng = spec.rng()
    async with mesh(spec, 3) as (a, b, c):
        source, target = await Memory.open(a, 64, rng), await Memory.open(b, 64, rng)
        counter = b.counter()
        remote = target.remote(counter)
        await a.connect(c.address)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(c.aclose)
            for _ in range(50):
                await a.write(source.region[:], remote[:])
        target.expect(0, source.array)
        await ping(a, b)
        await exactly(counter, 50, b, a)


@check("closing")
async def check_handles_of_peers_that_left(spec: Spec) -> None:
    """When the last peer has left, no native handle of it stays, though the engine has nothing more to do."""
    async with pair(spec) as (a, b):
        await a.connect(b.address)
        await a.disconnect(b.address)

        def kept() -> list[int]:
            return [engine.statistics().drivers[spec.backend].get("handles", 0) for engine in (a, b)]

        await until(lambda: not any(kept()), lambda: f"without peers and regions they keep {kept()} handles")
