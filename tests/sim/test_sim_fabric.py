"""Simulated fabric: the effect of its seed, its reordering and its holding controls on transfers."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import anyio
import anyio.lowlevel
import numpy as np
import pytest

from aio_transfer import AioTransferError, ProviderError, RemoteRegion, TransferEngine, UnsupportedError
from aio_transfer.driver.backend_registry import automatic
from aio_transfer.driver.records import EventKind
from aio_transfer.testing import Faults, Packet, PacketKind, SimFabric, Verdict

sys.path.insert(0, str(Path(__file__).parent))  # importmode=importlib puts no folder there

from sim_ends import ASYNCIO, CANARY, KIB, MTU, UVLOOP, Ends, attach, ends, every_loop, handles, numbers, turns, until

# trio runs the tasks of a turn in random order on purpose, so nothing on it can be repeated by our seed alone.
ordered_loops = pytest.mark.parametrize("anyio_backend", [ASYNCIO, UVLOOP], ids=["asyncio", "uvloop"])
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

PROMPT = Faults(late_completions=0)


# ------------------------------------------------------------------------------------------------------------- the seed


async def some_traffic(end: Ends) -> None:
    """Writes, pages, reads and messages, both ways, of more packets than fit a queue."""
    ids = np.arange(8)
    transfers = [end.write(i * KIB, i * KIB + 5000) for i in range(20)]
    transfers.append(end.a.submit_write_pages(end.here.pages(ids, KIB), end.remote.pages(ids[::-1], KIB)))
    transfers.append(end.a.submit_read(end.here[32 * KIB : 40 * KIB], end.remote[32 * KIB : 40 * KIB]))
    for i in range(4):
        await end.a.send(end.b.address, bytes([i]))
        await end.b.send(end.a.address, bytes([i]))
    for transfer in transfers:
        await transfer
    await end.counter.wait(28)


async def digest_of(seed: int) -> tuple[int, dict[str, int]]:
    fabric = SimFabric(seed=seed, nics=3, mtu=MTU, depth=16, faults=Faults(eagain=0.2))
    async with ends(fabric) as end:
        await some_traffic(end)
        return fabric.digest, fabric.totals()


@ordered_loops
async def test_a_seed_determines_all_deliveries() -> None:
    first = await digest_of(7)
    assert first == await digest_of(7)
    assert first[0] != (await digest_of(8))[0]


@ordered_loops
async def test_reseeding_repeats_the_deliveries() -> None:
    fabric = SimFabric(seed=1, mtu=MTU)
    async with ends(fabric) as end:
        digests = []
        for seed in (5, 6, 5):
            await turns(20)  # what is left of the last round are answers that nobody waits for
            fabric.reseed(seed)
            assert (fabric.seed, fabric.digest) == (seed, 0)
            await some_traffic(end)
            digests.append(fabric.digest)
    assert digests[0] == digests[2] != digests[1]


async def test_reseeding_undoes_commanded_faults() -> None:
    fabric = SimFabric(seed=1)
    async with ends(fabric) as end:
        fabric.cut(end.a, end.b)
        fabric.stall(end.b)
        fabric.fill_queues(end.a)
        fabric.hold_completions(end.a)
        fabric.fail_posts(end.a, 9)
        fabric.fail_completions(end.a, 9)
        fabric.reseed(2)
        await end.write(0, KIB)
        await end.counter.wait()


async def test_without_a_seed_the_fabric_picks_a_random_one() -> None:
    one, other = SimFabric(), SimFabric()
    assert one.seed != other.seed
    assert str(one.seed) in repr(one)


# ------------------------------------------------------------------------------------------------------------- no order


async def in_order(fabric: SimFabric, count: int = 32) -> tuple[bool, bool]:
    """Whether writes left, and whether they arrived, in the order in which they were submitted."""
    left: list[int] = []

    def watch(packet: Packet) -> Verdict:
        if packet.kind is PacketKind.WRITE:
            left.append(packet.nbytes)
        return Verdict.DELIVER

    async with ends(fabric) as end:
        counters = [end.b.counter() for _ in range(count)]
        arrivals: list[set[int]] = []
        fabric.packet_hook = watch
        for i, counter in enumerate(counters):
            end.write(0, i + 1, counter)
        while not arrivals or len(arrivals[-1]) < count:
            await anyio.lowlevel.checkpoint()
            arrivals.append(numbers(bool(counter.value) for counter in counters))
    assert sorted(left) == list(range(1, count + 1))
    return left == sorted(left), all(now == set(range(len(now))) for now in arrivals)


async def test_packets_are_reordered_only_where_reorder_asks_for_it() -> None:
    assert await in_order(SimFabric(seed=1, reorder=0, faults=PROMPT)) == (True, True)
    assert await in_order(SimFabric(seed=1, reorder=1, faults=PROMPT)) == (False, False)


async def messages(fabric: SimFabric, count: int = 32) -> list[int]:
    found: list[int] = []
    async with ends(fabric) as end, anyio.create_task_group() as tasks:
        for i in range(count):
            tasks.start_soon(end.a.send, end.b.address, bytes([i]))
        async for message in end.b.messages():
            found.append(message.payload[0])
            if len(found) == count:
                break
    return found


async def test_messages_are_reordered() -> None:
    assert await messages(SimFabric(seed=1, reorder=0)) == list(range(32))
    mixed = await messages(SimFabric(seed=1))
    assert mixed != sorted(mixed)
    assert sorted(mixed) == list(range(32))


@every_loop
async def test_a_payload_arrives_in_pieces_and_is_counted_when_complete() -> None:
    packets = 32
    nbytes = packets * MTU
    fabric = SimFabric(mtu=MTU)
    gaps = 0
    async with ends(fabric) as end:
        for seed in range(8):
            fabric.reseed(seed)
            end.target[:] = CANARY
            counter = end.b.counter()
            transfer = end.write(0, nbytes, counter)
            before: set[int] = set()
            while not transfer.done or not counter.value:
                counted = counter.value  # first: what is visible may only grow meanwhile
                seen = numbers(end.arrived(i * MTU, (i + 1) * MTU) for i in range(packets))
                assert before <= seen, "visible bytes went away"
                assert not counted or len(seen) == packets, f"seed {seed}: counted before it was whole"
                gaps += seen != set(range(len(seen)))
                before = seen
                await anyio.lowlevel.checkpoint()
    assert gaps > 8, "packets became visible from the first to the last"


async def test_a_striped_payload_is_counted_when_the_parts_of_all_nics_arrived() -> None:
    nbytes = 512 * KIB
    fabric = SimFabric(seed=1, nics=4)
    async with ends(fabric, nbytes) as end:
        for nic in range(4):
            fabric.stall(end.b, nic)
            counter = end.b.counter()
            transfer = end.write(0, nbytes, counter)
            end.target[:] = CANARY
            await until(lambda: fabric.in_flight and np.count_nonzero(end.target != CANARY) > nbytes // 2)
            await turns(200)
            assert not transfer.done
            assert counter.value == 0
            fabric.resume(end.b, nic)
            await transfer
            await counter.wait()
            assert end.arrived(0, nbytes)


async def test_a_completion_may_be_reported_before_or_after_the_count() -> None:
    fabric = SimFabric(faults=Faults(late_completions=0.75))
    first: set[str] = set()
    async with ends(fabric) as end:
        for seed in range(60):
            fabric.reseed(seed)
            counter = end.b.counter()
            transfer = end.write(0, 64, counter)
            while not transfer.done and not counter.value:
                await anyio.lowlevel.checkpoint()
            first.add("both" if transfer.done and counter.value else "completion" if transfer.done else "count")
            await transfer
            await counter.wait()
    assert first >= {"completion", "count"}


# ------------------------------------------------------------------------------------------------------- paths and NICs


@every_loop
async def test_a_cut_path_holds_packets_until_it_is_healed() -> None:
    fabric = SimFabric(seed=1)
    async with ends(fabric) as end, fabric.engine(label="c") as c:
        other = await attach(end.a, c)
        fabric.cut(end.a, end.b)
        there = end.write(0, 32 * KIB)
        back = end.a.submit_read(end.here[32 * KIB :], end.remote[32 * KIB :])
        await other.write(0, 64 * KIB)  # a third is reached all the while
        await other.counter.wait()
        assert not there.done
        assert not back.done
        assert (end.target == CANARY).all()
        fabric.heal(end.b, end.a)  # in whichever order the two are named
        await there
        await back
        await end.counter.wait()
        assert end.arrived(0, 64 * KIB)


async def test_a_cut_path_holds_acknowledgements_too() -> None:
    fabric = SimFabric(seed=1)
    async with ends(fabric) as end:
        fabric.packet_hook = lambda packet: Verdict.HOLD if packet.kind is PacketKind.ACK else Verdict.DELIVER
        transfer = end.write(0, 4 * KIB)
        await end.counter.wait()
        fabric.cut(end.a, end.b)
        fabric.packet_hook = None
        await turns(100)
        assert not transfer.done
        fabric.heal(end.a, end.b)
        await transfer


async def test_a_cut_path_does_not_lose_the_peer() -> None:
    fabric = SimFabric(seed=1)
    liveness = {"liveness_timeout_s": 0.1}
    async with fabric.engine(label="a", **liveness) as a, fabric.engine(label="b", **liveness) as b:
        end = await attach(a, b)
        fabric.cut(a, b)
        transfer = end.write(0, KIB)
        with anyio.move_on_after(0.3):
            await transfer
        assert not transfer.done
        fabric.heal(a, b)
        await transfer


@pytest.mark.parametrize(("nics", "stalled", "waits"), [(4, 2, {2, 6}), (2, 1, {1, 3, 5, 7}), (1, 0, set(range(8)))])
async def test_a_stalled_nic_holds_only_its_own_packets(nics: int, stalled: int, waits: set[int]) -> None:
    fabric = SimFabric(seed=1)
    async with fabric.engine(label="a", nics=4) as a, fabric.engine(label="b", nics=nics) as b:
        end = await attach(a, b)
        start = await rail_of_the_next(fabric, end)
        fabric.stall(b, stalled)
        transfers = [end.write(i * KIB, (i + 1) * KIB) for i in range(8)]
        await end.counter.wait(8 - len(waits))
        await until(lambda: sum(transfer.done for transfer in transfers) == 8 - len(waits))
        await turns(100)
        assert {(index + start) % 8 for index in numbers(not transfer.done for transfer in transfers)} == waits
        fabric.resume(b, stalled)
        await end.counter.wait(len(waits))
        for transfer in transfers:
            await transfer
        assert end.arrived(0, 8 * KIB)


async def rail_of_the_next(fabric: SimFabric, end: Ends) -> int:
    """Return by which NIC of the sender the next write leaves: they take turns."""
    left: list[int] = []

    def watch(packet: Packet) -> Verdict:
        if packet.kind is PacketKind.WRITE:
            left.append(packet.sender_nic)
        return Verdict.DELIVER

    fabric.packet_hook = watch
    await end.write(0, 8)
    await end.counter.wait()
    fabric.packet_hook = None
    return (left[0] + 1) % 4


async def test_a_stalled_engine_neither_sends_nor_receives() -> None:
    fabric = SimFabric(seed=1, nics=3)
    async with ends(fabric) as end:
        fabric.stall(end.a)
        out = end.write(0, KIB)
        await turns(100)
        assert not out.done
        assert (end.target == CANARY).all()
        fabric.resume(end.a)
        await out
        fabric.stall(end.b)
        back = end.a.submit_read(end.here[:KIB], end.remote[:KIB])
        await turns(100)
        assert not back.done
        assert fabric.in_flight  # it has left, and waits at the NIC that sleeps
        fabric.resume(end.b)
        await back
        assert not fabric.in_flight


@pytest.mark.parametrize("what", ["cut", "stall", "fill", "hold"])
async def test_an_engine_closes_while_packets_or_completions_are_held(what: str) -> None:
    fabric = SimFabric(seed=1)
    with anyio.fail_after(5):
        async with ends(fabric) as end:
            match what:
                case "cut":
                    fabric.cut(end.a, end.b)
                case "stall":
                    fabric.stall(end.a)
                case "fill":
                    fabric.fill_queues(end.a)
                case _:
                    fabric.hold_completions(end.a)
            transfer = end.write(0, 64 * KIB)
            await turns(50)
            assert not transfer.done
            await end.a.aclose()
            # What was only not reported had ended well.
            assert isinstance(transfer.exception(), type(None) if what == "hold" else AioTransferError)
            assert end.arrived(0, 64 * KIB) is (what == "hold")


# --------------------------------------------------------------------------------------------------------------- queues


@every_loop
async def test_posts_to_full_queues_wait_until_they_are_drained() -> None:
    fabric = SimFabric(seed=1, nics=2)
    async with ends(fabric) as end:
        other = await attach(end.b, end.a)
        fabric.fill_queues(end.a)
        transfers = [end.write(i * KIB, (i + 1) * KIB) for i in range(8)]
        sent = fabric.totals()["left"]
        await until(lambda: fabric.totals()["refused_posts"] > 100)
        assert fabric.totals()["left"] == sent
        assert not any(transfer.done for transfer in transfers)
        await other.write(0, KIB)  # the queues of the other engine are its own
        fabric.drain_queues(end.a)
        for transfer in transfers:
            await transfer
        await end.counter.wait(8)
        assert end.arrived(0, 8 * KIB)


@pytest.mark.parametrize(("mtu", "packets"), [(64, 16), (1000, 2), (KIB, 1)])
async def test_a_write_is_split_into_packets_of_the_mtu(mtu: int, packets: int) -> None:
    fabric = SimFabric(seed=1, mtu=mtu)
    async with ends(fabric) as end:
        before = fabric.totals()["left"]
        await end.write(0, KIB)
        assert fabric.totals()["left"] - before == 2 * packets  # and their acknowledgements


async def test_a_chunk_above_max_piece_travels_in_pieces_and_counts_once() -> None:
    fabric = SimFabric(seed=1, max_piece=KIB)
    async with ends(fabric, 257 * KIB) as end:
        before = end.a.statistics().drivers["sim"]["writes"]
        await end.write(0, 257 * KIB)
        assert end.a.statistics().drivers["sim"]["writes"] - before == 257 + 1, "the last is the count"
        await end.counter.wait()
        await turns(20)
        assert end.counter.value == 1
        assert end.arrived(0, 257 * KIB)


async def test_depth_limits_the_pieces_in_flight() -> None:
    depth, seen = 4, set[int]()

    def hold(packet: Packet) -> Verdict:
        seen.add(packet.nbytes)
        return Verdict.HOLD

    fabric = SimFabric(seed=1, depth=depth)
    async with ends(fabric) as end:
        fabric.packet_hook = hold
        transfers = [end.write(0, i + 1) for i in range(16)]
        await turns(300)
        assert len(seen) == depth
        fabric.packet_hook = None
        for transfer in transfers:
            await transfer
        await end.counter.wait(16)


@every_loop
async def test_more_completions_than_the_ring_holds_are_each_reported_once() -> None:
    count, ring = 6000, 4096
    fabric = SimFabric(seed=1, depth=1024, faults=PROMPT)
    async with ends(fabric) as end:
        reported: list[int] = []
        report = end.a._life.submission.on_transfer_event

        def record(number: int, *rest: object) -> None:
            reported.append(number)
            report(number, *rest)  # type: ignore[arg-type]

        end.a._life.router.on_event(EventKind.TRANSFER, record)
        fabric.hold_completions(end.a)
        transfers = [end.write(i * 8, (i + 1) * 8) for i in range(count)]
        await end.counter.wait(count)
        await until(lambda: not fabric.in_flight and handles(end.a) >= count)
        await turns(20)
        assert reported == []
        assert not any(transfer.done for transfer in transfers)
        fabric.release_completions(end.a)
        for transfer in transfers:
            await transfer
        await turns(20)
        assert len(reported) == len(set(reported)) == count > ring
        assert end.a.statistics().transfers_in_flight == 0
        assert end.arrived(0, count * 8)


# ----------------------------------------------------------------------------------------------------- who reaches whom


@every_loop
async def test_engines_with_unequal_numbers_of_nics_reach_each_other() -> None:
    nbytes = 300 * KIB  # striped over all of them
    fabric = SimFabric(seed=1)
    async with contextlib.AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(fabric.engine(nics=nics, label=f"{nics}")) for nics in (1, 2, 3, 4, 8)
        ]
        pairs = [await attach(one, other, nbytes) for one in engines for other in engines if one is not other]
        transfers = [end.write(0, nbytes) for end in pairs]
        for transfer in transfers:
            await transfer
        for end in pairs:
            await end.counter.wait()
            assert end.arrived(0, nbytes)
            end.source[:] = 0
        for transfer in [end.a.submit_read(end.here[:], end.remote[:]) for end in pairs]:
            await transfer
        assert all(np.array_equal(end.source, end.target) for end in pairs)
        assert {end.counter.value for end in pairs} == {1}


@every_loop
async def test_nothing_is_left_open_after_faults_and_a_disconnect() -> None:
    fabric = SimFabric(seed=1, nics=4, mtu=MTU, faults=Faults(eagain=0.2, failed_posts=0.1, failed_completions=0.1))
    async with ends(fabric) as end:
        transfers = [end.write(i * KIB, (i + 1) * KIB) for i in range(32)]
        transfers += [end.a.submit_read(end.here[32 * KIB :], end.remote[32 * KIB :]) for _ in range(4)]
        for transfer in transfers[::2]:
            with contextlib.suppress(ProviderError):
                await transfer
        await end.a.disconnect(end.b.address)  # with the others under way
        await end.here.aclose()
        await end.there.aclose()
        await until(lambda: handles(end.a) == handles(end.b) == 0)
        await until(lambda: not fabric.in_flight)  # the last packets of a connection that is over find nobody
        totals = fabric.totals()
        assert totals["left"] == totals["delivered"] + totals["dropped"]


async def test_two_fabrics_do_not_reach_each_other() -> None:
    one, other = SimFabric(seed=1), SimFabric(seed=1)
    async with one.engine() as a, other.engine() as b, TransferEngine(backend="sim") as c:
        region = await b.register(b.allocate(KIB))
        source = await a.register(a.allocate(KIB))
        with pytest.raises(UnsupportedError, match="reaches only engines of its own"):
            await a.write(source[:], RemoteRegion.from_bytes(bytes(region.descriptor()))[:])
        for stranger in (a, b):
            for caller, called in ((c, stranger), (stranger, c)):
                with pytest.raises(AioTransferError):
                    await caller.connect(called.address)


async def test_auto_never_chooses_the_simulated_fabric() -> None:
    assert "sim" not in [backend.name for backend in automatic()]
    async with TransferEngine() as auto, SimFabric().engine() as simulated:
        assert "sim" not in auto.statistics().drivers
        with pytest.raises(UnsupportedError):
            await auto.connect(simulated.address)


async def test_a_real_backend_is_preferred_to_the_simulated_one() -> None:
    settings = {"backend": ("sim", "shm")}
    async with TransferEngine(**settings, label="a") as a, TransferEngine(**settings, label="b") as b:
        await a.connect(b.address)
        assert a.statistics().peers["b"].startswith("shm/")
