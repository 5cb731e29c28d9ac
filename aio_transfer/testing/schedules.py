"""Random interleavings of everything, against a model of bytes and counts.

A schedule is a seed: it says how many engines there are and what they do, one step after the other, with what is
cancelled, closed and disconnected in between. After every step, and at the end, what the contract promises is compared
with what is there.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import anyio
import anyio.lowlevel
import numpy as np

from aio_transfer.errors import AioTransferError, PeerLostError, StaleRegionError, WouldBlock

from .actors import Actor, Chunk, Submitted
from .claims import ConformanceError, claim
from .engines import done, mesh, ping
from .memory import Memory, random_bytes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aio_transfer.engine import TransferEngine
    from aio_transfer.transfers import Transfer

    from .spec import Spec

__all__ = ("run_schedule", "run_schedules")

_STEPS: Final = 40
_CHUNK_NBYTES: Final = 640
_SOURCE_NBYTES: Final = 4096
_TARGET_NBYTES: Final = 8 * _STEPS * _CHUNK_NBYTES


class Schedule:
    """One run."""

    def __init__(self, seed: int) -> None:
        """Take the seed of everything."""
        self.rng = np.random.default_rng(seed)
        self.actors: list[Actor] = []
        self.submitted: list[Submitted] = []
        self.log: list[str] = []

    async def run(self, spec: Spec) -> None:
        """Open engines, do the steps, and compare what is left with the model."""
        async with mesh(spec, int(self.rng.integers(2, 5))) as engines:
            for engine in engines:
                await self._enlist(engine)
            async with anyio.create_task_group() as self.tasks:
                for step in range(_STEPS):
                    await self._step(spec, step)
            await self._finish()

    async def _enlist(self, engine: TransferEngine) -> None:
        source = await Memory.open(engine, _SOURCE_NBYTES, self.rng)
        target = await Memory.open(engine, _TARGET_NBYTES, self.rng)
        counter = engine.counter()
        self.actors.append(Actor(engine, source, target, counter, target.remote(counter)))

    async def _step(self, spec: Spec, step: int) -> None:
        alive = [actor for actor in self.actors if actor.open]
        first, second = self.rng.permutation(len(alive))[:2]
        sender, receiver = alive[first], alive[second]
        moves: dict[str, tuple[float, Callable[[Actor, Actor], Awaitable[None]]]] = {
            "write": (5, self._write),
            "pages": (4, self._pages),
            "scatter": (2, self._scatter),
            "notify": (2, self._notify),
            "read": (2 if spec.reads else 0, self._read),
            "wait": (3, self._wait),
            "turns": (2, self._turns),
            "churn": (1, self._churn),
            "cancelled wait": (1, self._cancelled_wait),
            "close": (0.3 if len(alive) > 2 else 0, self._close),  # noqa: PLR2004
        }
        weights = np.array([weight for weight, _ in moves.values()])
        name = list(moves)[int(self.rng.choice(len(moves), p=weights / weights.sum()))]
        self.log.append(f"{step}: {name} {sender.engine.address.label}->{receiver.engine.address.label}")
        await moves[name][1](sender, receiver)
        for actor in self.actors:
            if actor.open:
                actor.check(f"after step {step}, {name}")

    # ------------------------------------------------------------------------------------------------------- moves

    def _chunk(self, sender: Actor, receiver: Actor, nbytes: int) -> tuple[int, Chunk]:
        at = int(self.rng.integers(0, _SOURCE_NBYTES - nbytes + 1))
        return at, Chunk(receiver.take(nbytes), sender.source.array[at : at + nbytes].copy())

    def _submitted(self, transfer: Transfer, sender: Actor, receiver: Actor, chunks: list[Chunk]) -> None:
        self.submitted.append(Submitted(transfer, sender, receiver, chunks))
        receiver.promise(chunks)
        if self.rng.random() < 0.5:  # noqa: PLR2004 - half are awaited, half of those not to the end
            turns = int(self.rng.integers(0, 6)) if self.rng.random() < 0.5 else None  # noqa: PLR2004
            self.tasks.start_soon(self._await, transfer, turns)

    async def _await(self, transfer: Transfer, turns: int | None) -> None:
        with anyio.CancelScope() as scope:
            if turns is not None:
                self.tasks.start_soon(self._cancel, scope, turns)
            with contextlib.suppress(PeerLostError):  # an engine was closed: what that means is seen at the end
                await transfer

    async def _cancel(self, scope: anyio.CancelScope, turns: int) -> None:
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        scope.cancel()

    async def _write(self, sender: Actor, receiver: Actor) -> None:
        nbytes = int(self.rng.choice((0, 1, 8, 100, _CHUNK_NBYTES)))
        at, chunk = self._chunk(sender, receiver, nbytes)
        remote = receiver.remote[chunk.offset : chunk.offset + nbytes]
        transfer = sender.engine.submit_write(sender.source.region[at : at + nbytes], remote)
        self._submitted(transfer, sender, receiver, [chunk])

    async def _pages(self, sender: Actor, receiver: Actor) -> None:
        nbytes, count = int(self.rng.choice((0, 8, 64))), int(self.rng.integers(0, 64))
        made = [self._chunk(sender, receiver, nbytes) for _ in range(count)]
        order = self.rng.permutation(count).tolist()
        local = sender.source.region.pages([made[one][0] for one in order], nbytes, stride_nbytes=1)
        remote = receiver.remote.pages([made[one][1].offset for one in order], nbytes, stride_nbytes=1)
        transfer = sender.engine.submit_pages(local, remote)
        claim(count or transfer.done, "a transfer of no pages is not complete at once")
        self._submitted(transfer, sender, receiver, [chunk for _, chunk in made])

    async def _scatter(self, sender: Actor, receiver: Actor) -> None:
        others = [actor for actor in self.actors if actor.open and actor is not sender]
        sources, targets, chunks = [], [], []
        for other in others:
            nbytes = int(self.rng.choice((0, 16, 200)))
            at, chunk = self._chunk(sender, other, nbytes)
            sources.append(sender.source.region[at : at + nbytes])
            targets.append(other.remote[chunk.offset : chunk.offset + nbytes])
            chunks.append((other, chunk))
        transfer = sender.engine.submit_scatter(sources, targets)
        for other, chunk in chunks:
            self._submitted(transfer, sender, other, [chunk])
        claim(receiver in others, "the receiver is open")

    async def _notify(self, sender: Actor, receiver: Actor) -> None:
        reference = receiver.remote.counter
        if reference is not None:
            transfer = sender.engine.submit_notify(reference)
            self._submitted(transfer, sender, receiver, [Chunk(0, np.empty(0, np.uint8))])

    async def _read(self, sender: Actor, receiver: Actor) -> None:
        room = sender.take(_CHUNK_NBYTES)  # of our own target memory, which nobody else is given
        at = int(self.rng.integers(0, _SOURCE_NBYTES - _CHUNK_NBYTES))
        remote = receiver.source.remote()[at : at + _CHUNK_NBYTES]
        await sender.engine.read(sender.target.region[room : room + _CHUNK_NBYTES], remote)
        sender.target.expect(room, receiver.source.array[at : at + _CHUNK_NBYTES])

    async def _wait(self, _: Actor, receiver: Actor) -> None:
        count = int(self.rng.integers(0, receiver.promised - receiver.consumed + 1))
        if any(not actor.open for actor in self.actors):  # then counts may be missing for a reason
            receiver.counter.clear()
            try:
                receiver.counter.wait_nowait(count)
            except WouldBlock:
                return
        else:
            with anyio.fail_after(5):
                await receiver.counter.wait(count)
        receiver.consumed += count

    async def _cancelled_wait(self, _: Actor, receiver: Actor) -> None:
        left = receiver.promised - receiver.consumed
        with anyio.CancelScope() as scope:
            self.tasks.start_soon(self._cancel, scope, int(self.rng.integers(0, 8)))
            try:
                await receiver.counter.wait(left + 1)
            except PeerLostError:
                return
        claim(scope.cancelled_caught, f"a wait for one more than the {left} that were promised ended (rule 5)")

    async def _turns(self, *_others: Actor) -> None:
        for _ in range(int(self.rng.integers(1, 10))):
            await anyio.lowlevel.checkpoint()

    async def _churn(self, sender: Actor, receiver: Actor) -> None:
        passing = await Memory.open(receiver.engine, 64, self.rng)
        remote = passing.remote()
        transfer = sender.engine.submit_write(sender.source.region[:64], remote[:], counted=False)
        for _ in range(int(self.rng.integers(0, 8))):
            await anyio.lowlevel.checkpoint()
        await passing.region.aclose()
        held = passing.array.copy()
        try:
            await transfer
        except StaleRegionError:
            pass
        else:
            passing.expect(0, sender.source.array[:64])
        passing.expect(0, held)  # it may have been written before it was refused: never after
        passing.verify("after its region was closed (rule 7)")

    async def _close(self, _: Actor, receiver: Actor) -> None:
        receiver.open = False
        with anyio.fail_after(4):
            await receiver.engine.aclose()
        for actor in self.actors:
            if actor.open:
                actor.counter.clear()

    # --------------------------------------------------------------------------------------------------------- end

    async def _finish(self) -> None:
        """Demand that all has come that was to come, once, and nothing else."""
        came: dict[int, int] = {}
        for one in self.submitted:
            await done(one.transfer)
            failure = one.transfer.exception()
            if failure is None:
                came[id(one.receiver)] = came.get(id(one.receiver), 0) + len(one.chunks)
                for chunk in one.chunks:
                    one.receiver.target.expect(chunk.offset, chunk.data)
                continue
            blame = not (one.sender.open and one.receiver.open) or one.transfer.operation == "scatter"
            claim(blame and isinstance(failure, AioTransferError), f"{one.transfer!r}, and both are open: {failure!r}")
            if one.receiver.open:  # a part of it may have come: take the bytes as they are, and the counts as bounds
                for chunk in one.chunks:
                    now = one.receiver.target.array[chunk.offset : chunk.offset + chunk.data.nbytes]
                    one.receiver.target.expect(chunk.offset, now.copy())
        await self._finish_counts(came)

    async def _finish_counts(self, came: dict[int, int]) -> None:
        alive = [actor for actor in self.actors if actor.open]
        for actor in alive:
            actor.counter.clear()
            due = came.get(id(actor), 0)
            with anyio.move_on_after(4):
                await actor.counter.wait(max(0, due - actor.consumed))
            for other in alive:
                if other is not actor:
                    await ping(other.engine, actor.engine)
            value = actor.counter.value
            exact = due == actor.promised
            claim(
                value == due if exact else due <= value <= actor.promised,
                f"{actor.engine!r} shows {value} counts, and {due} of {actor.promised} chunks came (rule 3)",
            )
            actor.target.verify("at the end of the schedule")
            actor.source.verify("at the end of the schedule")


async def run_schedule(spec: Spec, seed: int) -> None:
    """Run one schedule.

    :raises ConformanceError: the contract was broken; the message has the seed and the steps
    """
    schedule = Schedule(seed)
    try:
        with anyio.fail_after(15):
            await schedule.run(spec)
    except Exception as error:
        steps = "; ".join(schedule.log)
        raise ConformanceError(f"schedule {seed} on {spec} failed: {error!r} after {steps}") from error


async def run_schedules(spec: Spec, count: int) -> None:
    """Run ``count`` schedules, whose seeds follow from the spec's.

    :raises ConformanceError: as :func:`run_schedule`
    """
    seeds = np.frombuffer(random_bytes(spec.rng(), 8 * count).tobytes(), np.uint64)
    for seed in seeds.tolist():
        await run_schedule(spec, int(seed))
