"""Barriers of which a member leaves, closes or dies: waiters get an error, and nobody else does."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import anyio

from aio_transfer.errors import AioTransferError, PeerLostError, TransferAbortedError
from aio_transfer.testing.assertions import ConformanceError, refused
from aio_transfer.testing.fixtures import groups, mesh, pair, turns
from aio_transfer.testing.registry import check
from aio_transfer.testing.timeouts import patient

if TYPE_CHECKING:
    from aio_transfer.groups.group import PeerGroup
    from aio_transfer.testing.spec import Spec


async def ends(group: PeerGroup, why: str, *kinds: type[AioTransferError]) -> None:
    """Demand that a barrier ends with an error, soon."""
    try:
        with anyio.fail_after(patient(3)):
            with refused(f"a barrier {why}", *kinds):
                await group.barrier()
    except TimeoutError:
        raise ConformanceError(f"a barrier {why} has not ended after 3 s") from None


@check("rule 8")
async def check_barrier_member_closes(spec: Spec) -> None:
    """When a member's engine closes, those in the barrier get PeerLostError, and so do later calls."""
    async with mesh(spec, 3) as engines:
        members = await groups(engines)
        async with anyio.create_task_group() as tasks:
            for member in members:
                tasks.start_soon(member.barrier)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ends, members[0], "with a member whose engine closes", PeerLostError)
            tasks.start_soon(ends, members[1], "with a member whose engine closes", PeerLostError)
            await turns(20)
            await engines[2].aclose()
        await ends(members[0], "with a member whose engine has closed", PeerLostError)


@check("rule 8")
async def check_barrier_member_leaves(spec: Spec) -> None:
    """When a member leaves the group, those in the barrier get TransferAbortedError."""
    async with mesh(spec, 3) as engines:
        members = await groups(engines)
        async with anyio.create_task_group() as tasks:
            for member in members:
                tasks.start_soon(member.barrier)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ends, members[0], "of which a member leaves", TransferAbortedError)
            tasks.start_soon(ends, members[1], "of which a member leaves", TransferAbortedError)
            await turns(20)
            members[2].close()
        await ends(members[0], "of which a member has left", TransferAbortedError)


@check("rule 8")
async def check_barrier_member_leaves_before_joining(spec: Spec) -> None:
    """A member that leaves before it ever entered wakes those who wait for it."""
    async with pair(spec) as (a, b):
        one = await a.group([b.address])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ends, one, "whose other member left without entering", TransferAbortedError)
            await turns(20)
            other = await b.group([a.address])
            other.close()


@check("rule 8")
async def check_barrier_member_leaves_while_others_join(spec: Spec) -> None:
    """A member that joined and left wakes those who still wait for a third one to join."""
    async with mesh(spec, 3) as engines:
        one, other, third = engines
        group = await one.group([other.address, third.address])
        leaver = await other.group([one.address, third.address])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ends, group, "of which one member left and one has not come", TransferAbortedError)
            with anyio.move_on_after(0.01):
                await leaver.barrier()
            leaver.close()
            late = await third.group([one.address, other.address])
            with anyio.move_on_after(0.01), contextlib.suppress(TransferAbortedError):  # it may know already
                await late.barrier()


@check("rule 8")
async def check_barrier_member_closes_while_joining(spec: Spec) -> None:
    """A member whose engine closes before it has joined wakes those who wait for it."""
    async with pair(spec) as (a, b):
        one = await a.group([b.address])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ends, one, "whose other member's engine closed before it joined", PeerLostError)
            await turns(20)
            await b.aclose()


@check("rule 10")
async def check_barrier_leave_after_the_last(spec: Spec) -> None:
    """A member that leaves right after its last barrier fails nobody who is still in that one."""
    for _ in range(6):
        async with mesh(spec, 3) as engines:
            members = await groups(engines)

            async def march(member: PeerGroup, pause: int) -> None:
                for _ in range(3):
                    await turns(pause)
                    await member.barrier()
                member.close()

            async with anyio.create_task_group() as tasks:
                for index, member in enumerate(members):
                    tasks.start_soon(march, member, index * 3)


@check("rule 10")
async def check_barrier_close_after_the_last(spec: Spec) -> None:
    """An engine that closes right after its last barrier fails nobody who is still in that one."""
    for _ in range(5):
        async with mesh(spec, 3) as engines:
            members = await groups(engines)

            async def march(index: int) -> None:
                for _ in range(2):
                    await turns(index * 2)
                    await members[index].barrier()  # noqa: B023
                await engines[index].aclose()

            async with anyio.create_task_group() as tasks:
                for index in range(3):
                    tasks.start_soon(march, index)
