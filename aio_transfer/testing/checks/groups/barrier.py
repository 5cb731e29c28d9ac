"""Barriers: the whole barrier, epoch by epoch, with members that are late, cancelled or gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from aio_transfer.errors import BusyError, ClosedError, PeerLostError, UsageError
from aio_transfer.testing.assertions import claim, refused
from aio_transfer.testing.fixtures import exactly, groups, mesh, pair, ping, turns, until
from aio_transfer.testing.registry import check
from aio_transfer.testing.timeouts import patient

if TYPE_CHECKING:
    from aio_transfer.engine.engine import TransferEngine
    from aio_transfer.testing.spec import Spec


@check("rule 10")
async def check_barrier_holds_everybody(spec: Spec) -> None:
    """In fifty epochs of four unequal members, nobody leaves before the last has entered."""
    rng = spec.rng()
    entered = [0, 0, 0, 0]
    async with mesh(spec, 4) as engines:
        members = await groups(engines)
        pauses = rng.integers(0, 12, (50, 4))

        async def march(index: int) -> None:
            for epoch in range(50):
                await turns(int(pauses[epoch, index]))
                entered[index] = epoch + 1
                await members[index].barrier()
                late = [other for other in range(4) if entered[other] < epoch + 1]
                claim(not late, f"member {index} left epoch {epoch} before members {late} had entered it: {entered}")

        async with anyio.create_task_group() as tasks:
            for index in range(4):
                tasks.start_soon(march, index)
        claim([one.epoch for one in members] == [50] * 4, f"epochs after 50 barriers: {[one.epoch for one in members]}")


@check("rule 10")
async def check_barrier_late_member(spec: Spec) -> None:
    """A late member of one epoch is never counted in the next: others wait there for it."""
    passed = [0, 0, 0]
    async with mesh(spec, 3) as engines:
        members = await groups(engines)

        async def march(index: int, epochs: int) -> None:
            for _ in range(epochs):
                await members[index].barrier()
                passed[index] += 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(march, 0, 3)
            tasks.start_soon(march, 1, 3)
            for epoch in range(3):
                for _ in range(3):
                    await ping(engines[0], engines[1])
                claim(passed[:2] == [epoch, epoch], f"with the third in {epoch} epochs, the others passed {passed}")
                await march(2, 1)
                await until(lambda: passed[:2] == [passed[2]] * 2, lambda: f"it holds members that passed {passed}")


@check("rule 10")
async def check_barrier_cancelled_and_entered_again(spec: Spec) -> None:
    """A cancelled barrier leaves its member entered; the next call goes on in the same epoch."""
    async with pair(spec) as (a, b):
        one, other = await groups([a, b])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.barrier)
            await other.barrier()
        for _ in range(5):
            epoch = one.epoch
            for _ in range(3):
                with anyio.move_on_after(0.002) as scope:
                    await one.barrier()
                claim(scope.cancelled_caught and one.epoch == epoch, f"one member alone passed epoch {epoch}")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(other.barrier)
                await one.barrier()
            claim((one.epoch, other.epoch) == (epoch + 1, epoch + 1), f"epochs {one.epoch} and {other.epoch}")


@check("rule 10")
async def check_barrier_cancelled_while_joining(spec: Spec) -> None:
    """A first barrier that is cancelled before the others have a group can be entered again."""
    async with pair(spec) as (a, b):
        one = await a.group([b.address])
        with anyio.move_on_after(0.005) as scope:
            await one.barrier()
        claim(scope.cancelled_caught, "one member alone passed its first barrier")
        other = await b.group([a.address])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(other.barrier)
            with anyio.fail_after(patient(3)):
                await one.barrier()
        claim(one.epoch == other.epoch == 1, f"epochs {one.epoch} and {other.epoch}")


@check("bad input")
async def check_barrier_two_tasks(spec: Spec) -> None:
    """A second task in the barrier of one member gets BusyError, and disturbs nothing."""
    async with pair(spec) as (a, b):
        one, other = await groups([a, b])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.barrier)
            await turns(5)
            with refused("a second task in the barrier", BusyError):
                await one.barrier()
            await other.barrier()
        claim(one.epoch == other.epoch == 1, f"epochs {one.epoch} and {other.epoch}")


@check("rule 10")
async def check_barrier_names_are_apart(spec: Spec) -> None:
    """Groups of the same members with different names have barriers of their own."""
    async with pair(spec) as (a, b):
        red, blue = await groups([a, b], "red"), await groups([a, b], "blue")
        with anyio.move_on_after(0.02):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(red[0].barrier)
                tasks.start_soon(blue[1].barrier)
        claim((red[0].epoch, blue[1].epoch) == (0, 0), "barriers of two groups were taken for one")
        async with anyio.create_task_group() as tasks:
            for member in (*red, *blue):
                tasks.start_soon(member.barrier)


@check("rule 10")
async def check_barrier_opened_again(spec: Spec) -> None:
    """A group that all have closed can be made again, and begins at its first epoch."""
    async with pair(spec) as (a, b):
        for _ in range(4):
            one, other = await groups([a, b], "again")
            for _ in range(3):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(one.barrier)
                    tasks.start_soon(other.barrier)
            claim(one.epoch == 3, f"three barriers of a new group: epoch {one.epoch}")
            one.close()
            other.close()
            await ping(a, b)
        claim(a.statistics().counters == 0, f"closed groups left {a.statistics().counters} counters")


@check("rule 10")
async def check_barrier_opened_again_at_once(spec: Spec) -> None:
    """Members close a group and make it again at their own pace, and each barrier is of one such group."""
    entered, rng = dict.fromkeys("abc", 0), spec.rng()
    async with mesh(spec, 3) as engines:

        async def march(engine: TransferEngine, pauses: list[int]) -> None:
            me = engine.address.label
            for pause in pauses:
                group = await engine.group([other.address for other in engines if other is not engine], name="again")
                for _ in range(2):
                    await turns(pause)
                    entered[me] += 1
                    await group.barrier()
                    late = [name for name, count in entered.items() if count < entered[me]]
                    claim(not late, f"{me} left barrier {entered[me]} before {late} had entered it: {entered}")
                group.close()

        async with anyio.create_task_group() as tasks:
            for engine in engines:
                tasks.start_soon(march, engine, rng.permutation(12).tolist())


@check("rule 10")
async def check_barrier_opened_again_before_others(spec: Spec) -> None:
    """A member may give a group up and make it again while the others have yet to enter it."""
    async with pair(spec) as (a, b):
        one, other = await groups([a, b], "early")
        with anyio.move_on_after(0.02):
            await one.barrier()
        one.close()
        again = await a.group([b.address], name="early")
        with anyio.move_on_after(0.02):
            await again.barrier()
        await ping(a, b)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(again.barrier)
            tasks.start_soon(other.barrier)
        claim((again.epoch, other.epoch) == (1, 1), f"epochs {again.epoch} and {other.epoch}")


@check("rule 10")
async def check_barrier_entered_is_passed(spec: Spec) -> None:
    """A barrier that all have entered is passed by each, also by one that comes back to it when the others are gone."""
    async with pair(spec) as (a, b):
        one, other = await groups([a, b], "late")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.barrier)
            tasks.start_soon(other.barrier)
        with anyio.move_on_after(0.02):
            await other.barrier()
        await one.barrier()
        one.close()
        again = await a.group([b.address], name="late")
        with anyio.move_on_after(0.02):
            await again.barrier()
        again.close()
        await ping(a, b)
        await other.barrier()
        claim(other.epoch == 2, f"epoch {other.epoch} after two barriers")


@check("bad input")
async def check_group_refused(spec: Spec) -> None:
    """A group with oneself, with a peer twice, or that is open already is refused, and leaves nothing."""
    async with pair(spec) as (a, b):
        group = await a.group([b.address])
        held = a.statistics().counters
        with refused("a group with oneself", UsageError):
            await a.group([a.address, b.address])
        with refused("a group that names a peer twice", UsageError):
            await a.group([b.address, b.address], name="twice")
        with refused("a group that is open", BusyError):
            await a.group([b.address])
        claim(a.statistics().counters == held, f"refused groups left {a.statistics().counters - held} counters open")
        group.close()
        group.close()
        with refused("a barrier of a closed group", ClosedError):
            await group.barrier()
        claim(a.statistics().counters == 0, f"a closed group left {a.statistics().counters} counters")


@check("rule 8")
async def check_group_of_nobody_reachable(spec: Spec) -> None:
    """A group with a member that cannot be reached is refused with PeerLostError, and leaves nothing."""
    async with pair(spec) as (a, b):
        address = b.address
        await b.aclose()
        with refused("a group with a closed engine", PeerLostError):
            await a.group([address])
        claim(a.statistics().counters == 0, f"it left {a.statistics().counters} counters")


@check("rule 10")
async def check_barrier_alone(spec: Spec) -> None:
    """A group without other members has a barrier that holds nobody."""
    async with pair(spec) as (a, b):
        group = await a.group([])
        for _ in range(3):
            await group.barrier()
        claim(group.epoch == 3, f"three barriers alone: epoch {group.epoch}")
        counter = b.counter()
        await a.notify(a.counter_ref(b.address, counter.id))
        await exactly(counter, 1, b, a)
