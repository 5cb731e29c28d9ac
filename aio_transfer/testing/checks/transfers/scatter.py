"""Checks of scatters: one slice to each of many targets, one count each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aio_transfer.errors import ClosedError, PeerLostError, UsageError
from aio_transfer.testing.assertions import claim, refused
from aio_transfer.testing.fixtures import exactly, mesh, pair, until, until_stopped
from aio_transfer.testing.guarded_memory import Memory
from aio_transfer.testing.registry import check

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from aio_transfer.counters.counter import ImmCounter
    from aio_transfer.engine.engine import TransferEngine
    from aio_transfer.regions.region import RemoteRegion
    from aio_transfer.testing.spec import Spec


async def open_targets(
    peers: Sequence[TransferEngine], nbytes: int, rng: np.random.Generator
) -> tuple[list[Memory], list[ImmCounter], list[RemoteRegion]]:
    """Open memory and a counter on each peer, and decode the descriptors as the sender does."""
    targets = [await Memory.open(peer, nbytes, rng) for peer in peers]
    counters = [peer.counter() for peer in peers]
    return targets, counters, [target.remote(counter) for target, counter in zip(targets, counters, strict=True)]


@check("rule 3")
async def check_scatter_to_three(spec: Spec) -> None:
    """Each of three peers receives its slice and one count."""
    rng = spec.rng()
    async with mesh(spec, 4) as (a, *peers):
        source = await Memory.open(a, 3000, rng)
        targets, counters, remotes = await open_targets(peers, 1000, rng)
        for _ in range(2):  # before there are connections, and after
            await a.scatter(
                [source.region[at * 1000 : at * 1000 + 900] for at in range(3)],
                [remote[50:950] for remote in remotes],
            )
        for at, (peer, target, counter) in enumerate(zip(peers, targets, counters, strict=True)):
            target.expect(50, source.array[at * 1000 : at * 1000 + 900])
            await exactly(counter, 2, peer, a)
            target.verify()


@check("rule 3")
async def check_scatter_of_nothing_counts(spec: Spec) -> None:
    """A target without bytes still counts."""
    rng = spec.rng()
    async with mesh(spec, 3) as (a, b, c):
        source = await Memory.open(a, 64, rng)
        targets = await Memory.open(b, 64, rng), await Memory.open(c, 64, rng)
        counters = b.counter(), c.counter()
        await a.scatter(
            [source.region[0:0], source.region[0:64]],
            [targets[0].remote(counters[0])[5:5], targets[1].remote(counters[1])[:]],
        )
        targets[1].expect(0, source.array)
        await exactly(counters[0], 1, b, a)
        await exactly(counters[1], 1, c, a)


@check("bad input")
async def check_scatter_empty(spec: Spec) -> None:
    """A scatter without targets is complete at once."""
    async with pair(spec) as (a, _):
        transfer = a.submit_scatter([], [])
        claim(transfer.done and transfer.count == 0 and transfer.nbytes == 0, f"{transfer!r} is not complete at once")
        await transfer


@check("rule 3")
async def check_scatter_one_peer_many_counters(spec: Spec) -> None:
    """Several targets at one peer, in two regions, each raise the counter named for them."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source = await Memory.open(a, 400, rng)
        first, second = await Memory.open(b, 400, rng), await Memory.open(b, 400, rng)
        counters = [b.counter() for _ in range(4)]
        remotes = first.remote(counters[3]), second.remote(counters[3])
        await a.scatter(
            [source.region[at * 100 : at * 100 + 100] for at in range(4)],
            [remotes[at % 2][at * 100 : at * 100 + 100] for at in range(4)],
            counters=[*(a.counter_ref(b.address, one.id) for one in counters[:3]), None],
        )
        for at in range(4):
            (first, second)[at % 2].expect(at * 100, source.array[at * 100 : at * 100 + 100])
            await exactly(counters[at], 1, b, a)


@check("rule 8")
async def check_scatter_one_lost(spec: Spec) -> None:
    """A target at a closed peer fails the scatter with a typed error; the other targets receive their slices."""
    rng = spec.rng()
    async with mesh(spec, 3) as (a, b, c):
        source = await Memory.open(a, 200, rng)
        kept, gone = await Memory.open(b, 100, rng), await Memory.open(c, 100, rng)
        counter = b.counter()
        remotes = kept.remote(counter), gone.remote()
        await c.aclose()
        transfer = a.submit_scatter([source.region[:100], source.region[100:]], [remotes[0][:], remotes[1][:]])
        await until_stopped(transfer)
        with refused("a scatter to two, of which one is gone", PeerLostError):
            await transfer
        kept.expect(0, source.array[:100])
        await exactly(counter, 1, b, a)
        claim(source.region.leases == 0, "the failed scatter still holds its source")


@check("bad input")
async def check_scatter_of_group(spec: Spec) -> None:
    """A group scatters to its members only."""
    rng = spec.rng()
    async with mesh(spec, 3) as (a, b, c):
        source = await Memory.open(a, 64, rng)
        member, stranger = await Memory.open(b, 64, rng), await Memory.open(c, 64, rng)
        counter = b.counter()
        group = await a.group([b.address])
        await group.scatter([source.region[:]], [member.remote(counter)[:]])
        member.expect(0, source.array)
        await exactly(counter, 1, b, a)
        with refused("a scatter of the group to a stranger", UsageError):
            await group.scatter([source.region[:]], [stranger.remote()[:]])
        group.close()


@check("rule 3")
async def check_scatter_prepared(spec: Spec) -> None:
    """A prepared scatter moves the ranges of each call, also empty and split ones, and counts once per target."""
    rng = spec.rng()
    nbytes = 300_000  # above what travels whole where there are several rails
    async with mesh(spec, 4) as (a, *peers):
        source = await Memory.open(a, 3 * nbytes, rng)
        targets, counters, remotes = await open_targets(peers, nbytes, rng)
        group = await a.group([peer.address for peer in peers])
        prepared = await group.prepare_scatter(source.region, remotes)
        for lengths in ([900, 1, 4096], [0, 17, 0], [nbytes, 5, 20_000], [8, 8, 8]):
            begins = [int(rng.integers(0, source.array.size - length + 1)) for length in lengths]
            ends = [int(rng.integers(0, nbytes - length + 1)) for length in lengths]
            await prepared.scatter(begins, ends, lengths)
            for target, begin, end, length in zip(targets, begins, ends, lengths, strict=True):
                target.expect(end, source.array[begin : begin + length])
        for peer, target, counter in zip(peers, targets, counters, strict=True):
            await exactly(counter, 4, peer, a)
            target.verify()


@check("rule 8")
async def check_scatter_prepared_outlives_connections(spec: Spec) -> None:
    """A prepared scatter connects again after a disconnect; a closed peer fails its own part only."""
    rng = spec.rng()
    async with mesh(spec, 3) as (a, b, c):
        source = await Memory.open(a, 64, rng)
        targets, counters, remotes = await open_targets([b, c], 64, rng)
        group = await a.group([b.address, c.address])
        prepared = await group.prepare_scatter(source.region, remotes)
        await prepared.scatter([0, 0], [0, 0], [64, 64])
        await a.disconnect(b.address)
        for _ in range(2):
            await prepared.scatter([0, 0], [0, 0], [64, 64])
        await c.aclose()
        with refused("a scatter to a closed peer", PeerLostError):
            for _ in range(2):  # the first may still be acknowledged, where goodbyes cross
                await prepared.scatter([0, 0], [0, 0], [64, 64])
        targets[0].expect(0, source.array)
        # Not a wait, which the goodbye may have failed before the last of them came.
        at_least = 4
        await until(lambda: counters[0].value >= at_least, lambda: f"{counters[0].value} scatters are counted")
        targets[0].verify()
        claim(source.region.leases == 0, f"{source.region.leases} leases are out")


@check("bad input")
async def check_scatter_prepared_bad_input(spec: Spec) -> None:
    """A prepared scatter refuses ranges that do not fit, and moves nothing of them."""
    rng = spec.rng()
    async with mesh(spec, 3) as (a, b, c):
        source = await Memory.open(a, 64, rng)
        targets = await Memory.open(b, 64, rng), await Memory.open(c, 64, rng)
        group = await a.group([b.address])
        remotes = [target.remote() for target in targets]
        with refused("a target of no member", UsageError):
            await group.prepare_scatter(source.region, remotes)
        with refused("a counter too many", UsageError):
            await group.prepare_scatter(source.region, remotes[:1], counters=[None, None])
        prepared = await group.prepare_scatter(source.region, remotes[:1])
        for begins, ends, lengths in (
            ([60], [0], [5]),
            ([0], [60], [5]),
            ([0, 0], [0, 0], [1, 1]),
            ([], [], []),
            ([-1], [0], [1]),
            ([0], [0], [2**64 - 1]),
            ([0.5], [0], [1]),
        ):
            with refused(f"{lengths} B from {begins} to {ends}", UsageError):
                await prepared.scatter(begins, ends, lengths)
        claim(source.region.leases == 0, f"{source.region.leases} leases are out")
        for target in targets:
            target.verify()
        await source.region.aclose()
        with refused("a scatter of a closed region", ClosedError):
            await prepared.scatter([0], [0], [1])
