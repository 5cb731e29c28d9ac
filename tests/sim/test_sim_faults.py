"""Simulated fabric: the effect of commanded and random faults, killed engines and deliberate bugs on transfers."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import anyio
import anyio.lowlevel
import numpy as np
import pytest

from aio_transfer import (
    AioTransferError,
    PeerLostError,
    ProviderError,
    RemoteRegion,
    StaleRegionError,
    TransferAbortedError,
)
from aio_transfer.testing import Faults, Packet, PacketKind, SimFabric, Verdict
from aio_transfer.transfers.routes import RouteTable

sys.path.insert(0, str(Path(__file__).parent))  # importmode=importlib puts no folder there

from sim_ends import CANARY, KIB, MTU, attach, ends, every_loop, turns, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


# ------------------------------------------------------------------------------------------------------------- failures


@every_loop
async def test_fail_posts_fails_exactly_the_next_posts() -> None:
    fabric = SimFabric(seed=1)
    async with ends(fabric) as end:
        fabric.fail_posts(end.a, 2)
        transfers = [end.write(i * KIB, (i + 1) * KIB) for i in range(3)]
        for transfer in transfers[:2]:
            with pytest.raises(ProviderError, match="failed the post"):
                await transfer
        with pytest.raises(TransferAbortedError):
            await end.counter.wait(3)
        await transfers[2]
        await end.counter.wait(1)
        assert fabric.totals()["failed"] == 2
        assert end.counter.value == 1
        assert (end.target[: 2 * KIB] == CANARY).all()
        assert end.arrived(2 * KIB, 3 * KIB)


@every_loop
async def test_fail_completions_fails_a_write_after_half_of_its_bytes() -> None:
    fabric = SimFabric(seed=1, mtu=MTU)
    nbytes = 16 * MTU
    async with ends(fabric) as end:
        fabric.fail_completions(end.a)
        async with anyio.create_task_group() as tasks:

            async def wait() -> None:
                with pytest.raises(TransferAbortedError, match="write that announced 1 counts"):
                    await end.counter.wait()

            tasks.start_soon(wait)
            await turns(5)
            with pytest.raises(ProviderError, match="the simulated fabric failed it"):
                await end.write(0, nbytes)
        assert end.arrived(0, nbytes // 2)
        assert (end.target[nbytes // 2 :] == CANARY).all()
        assert end.counter.value == 0
        end.counter.clear()
        await end.write(0, nbytes)  # the fault was for one write only
        await end.counter.wait()
        assert end.arrived(0, nbytes)


@pytest.mark.parametrize("nbytes", [0, 1, 2, 3, MTU - 1, MTU, MTU + 1])
async def test_a_small_write_also_fails_after_half_of_its_bytes(nbytes: int) -> None:
    fabric = SimFabric(seed=1, mtu=MTU)
    async with ends(fabric) as end:
        fabric.fail_completions(end.a)
        with pytest.raises(ProviderError):
            await end.write(0, nbytes)
        with pytest.raises(TransferAbortedError):
            await end.counter.wait()
        assert np.count_nonzero(end.target != CANARY) <= nbytes // 2
        assert (end.target[nbytes:] == CANARY).all()


async def test_an_error_is_reported_only_once_every_packet_has_stopped() -> None:
    verdicts = iter([Verdict.FAIL, Verdict.HOLD])
    held: list[bool] = []

    def first_fails_second_is_held(packet: Packet) -> Verdict:
        if packet.kind is not PacketKind.WRITE or held:
            return Verdict.DELIVER
        verdict = next(verdicts)
        if verdict is Verdict.HOLD:
            held.append(True)
            fabric.cut(end.a, end.b)  # packets that were not sent yet are held
        return verdict

    fabric = SimFabric(seed=1, mtu=MTU)
    async with ends(fabric) as end:
        fabric.packet_hook = first_fails_second_is_held
        transfer = end.write(0, 16 * MTU)
        await until(lambda: held)
        await turns(200)
        assert not transfer.done, "the error was reported while packets could still read the source"
        end.source[:] = 1  # bytes that are sent later differ
        fabric.heal(end.a, end.b)
        with pytest.raises(ProviderError):
            await transfer
        assert np.count_nonzero(end.target == 1) >= 14 * MTU
        end.source[:] = 2  # the transfer has stopped: the source may be reused
        await turns(200)
        assert not (end.target == 2).any()
        assert end.counter.value == 0


async def test_the_error_of_a_striped_write_waits_for_its_other_pieces() -> None:
    nbytes = 512 * KIB
    fabric = SimFabric(seed=1, nics=4)
    async with ends(fabric, nbytes) as end:
        fabric.stall(end.b, 3)
        fabric.fail_completions(end.a)
        transfer = end.write(0, nbytes)
        await until(lambda: fabric.totals()["failed"] == 1)
        await turns(300)
        assert not transfer.done
        fabric.resume(end.b, 3)
        with pytest.raises(ProviderError):
            await transfer
        end.source[:] = 2
        await turns(100)
        assert not (end.target == 2).any()
        assert end.counter.value == 0


# ---------------------------------------------------------------------------------------------------------------- kill


@every_loop
async def test_killing_a_receiver_fails_transfers_and_waits_with_peer_lost() -> None:
    fabric = SimFabric(seed=1)
    async with ends(fabric) as end, fabric.engine(label="c") as c:
        other = await attach(end.a, c)
        transfer = end.write(0, 64 * KIB)
        waiting = end.a.counter(sources=[end.remote])
        await turns(2)
        fabric.kill(end.b)
        with anyio.fail_after(2):
            with pytest.raises(PeerLostError):
                await transfer
            with pytest.raises(PeerLostError):
                await waiting.wait()
            with pytest.raises(PeerLostError):
                await end.write(0, KIB)
        with pytest.raises(AioTransferError):
            await end.b.connect(end.a.address)
        with anyio.fail_after(2):
            await end.b.aclose()
        await other.write(0, 64 * KIB)
        await other.counter.wait()
        assert other.arrived(0, 64 * KIB)


@every_loop
async def test_nothing_lands_after_the_receiver_has_lost_a_killed_sender() -> None:
    fabric = SimFabric(seed=1, mtu=MTU)
    async with ends(fabric) as end:
        transfer = end.write(0, 64 * KIB)
        await until(lambda: np.any(end.target != CANARY))
        fabric.kill(end.a)
        with anyio.fail_after(2), pytest.raises(PeerLostError):
            await end.counter.wait()
        landed = end.target.copy()
        assert 0 < np.count_nonzero(landed != CANARY) < landed.nbytes
        with pytest.raises(PeerLostError):
            await transfer
        end.source[:] = 3
        await turns(300)
        assert np.array_equal(end.target, landed), "bytes of the killed engine landed after its peer had lost it"
        assert end.counter.value == 0
        with anyio.fail_after(2):
            await end.a.aclose()
        assert fabric.in_flight == 0


async def test_a_region_can_be_closed_after_its_writer_was_killed() -> None:
    fabric = SimFabric(seed=1)
    async with fabric.engine(label="a") as a, fabric.engine(label="b") as b:
        target = b.allocate(KIB)
        region = await b.register(target)
        remote = RemoteRegion.from_bytes(bytes(region.descriptor()))
        source = await a.register(a.allocate(KIB))
        await a.write(source[:], remote[:])
        fabric.cut(a, b)
        a.submit_write(source[:], remote[:])
        await turns(10)
        fabric.kill(a)
        fabric.heal(a, b)
        with anyio.fail_after(2):
            await region.aclose()
        target[:] = 9
        await turns(100)
        assert (target == 9).all()


# --------------------------------------------------------------------------------------------------------------- faults


async def outcomes(fabric: SimFabric, count: int = 100) -> list[bool]:
    """Return which of many writes succeed; the others must not count, nor write more than half of their bytes."""
    async with ends(fabric) as end:
        before = fabric.totals()["failed"]
        transfers = [end.write(i * 64, (i + 1) * 64) for i in range(count)]
        well = []
        for transfer in transfers:
            try:
                await transfer
            except ProviderError:
                well.append(False)
            else:
                well.append(True)
        if not all(well):
            with pytest.raises(TransferAbortedError):
                await end.counter.wait(count)
        end.counter.clear()
        await end.counter.wait(sum(well))
        await turns(50)
        assert end.counter.value == sum(well)
        assert fabric.totals()["failed"] - before == count - sum(well)
        for i, is_well in enumerate(well):
            assert end.arrived(i * 64, (i + 1) * 64) is is_well
            assert is_well or (end.target[i * 64 + 32 : (i + 1) * 64] == CANARY).all()
    return well


@pytest.mark.parametrize("fault", ["failed_posts", "failed_completions"])
async def test_random_failures_follow_their_probability_and_seed(fault: str) -> None:
    assert sum(await outcomes(SimFabric(seed=3, faults=Faults(**{fault: 0.0})))) == 100
    some = await outcomes(SimFabric(seed=3, faults=Faults(**{fault: 0.3})))
    assert 50 < sum(some) < 90
    assert some == await outcomes(SimFabric(seed=3, faults=Faults(**{fault: 0.3})))
    assert sum(await outcomes(SimFabric(seed=3, faults=Faults(**{fault: 1.0})))) == 0


async def test_randomly_full_queues_delay_posts_and_fail_none() -> None:
    for probability, least, most in ((0, 0, 0), (0.5, 20, 400)):
        fabric = SimFabric(seed=3, faults=Faults(eagain=probability))
        assert all(await outcomes(fabric))
        assert least <= fabric.totals()["refused_posts"] <= most


async def test_a_probability_of_one_still_lets_transfers_finish() -> None:
    assert all(await outcomes(SimFabric(seed=3, faults=Faults(eagain=1, late_completions=1)), 20))


async def test_late_completions_delay_reports() -> None:
    taken = []
    for late in (0, 0.95):
        async with ends(SimFabric(seed=3, faults=Faults(late_completions=late))) as end:
            count = 0
            for i in range(8):
                transfer = end.write(0, 64)
                while not (transfer.done and end.counter.value > i):
                    await anyio.lowlevel.checkpoint()
                    count += 1
            taken.append(count)
    assert taken[1] > 3 * taken[0]


# -------------------------------------------------------------------------------------------------- the deliberate bugs


async def test_bug_count_before_payload_counts_early() -> None:
    fabric = SimFabric(seed=1, mtu=MTU, bug="count_before_payload")
    async with ends(fabric) as end:
        end.write(0, 64 * KIB)
        await end.counter.wait()
        assert not end.arrived(0, 64 * KIB)


async def test_bug_error_before_stop_still_reads_the_source() -> None:
    fabric = SimFabric(seed=1, mtu=MTU, bug="error_before_stop")
    async with ends(fabric) as end:
        fabric.fail_completions(end.a)
        with pytest.raises(ProviderError):
            await end.write(0, 64 * KIB)
        end.source[:] = 2
        await turns(300)
        assert (end.target == 2).any()


@pytest.mark.parametrize("bug", ["", "accept_stale"])
async def test_bug_accept_stale_writes_to_a_closed_region(bug: str) -> None:
    fabric = SimFabric(seed=1, bug=bug)
    async with ends(fabric) as end:
        fabric.cut(end.a, end.b)
        transfer = end.write(0, KIB)
        await turns(20)
        await end.there.aclose()
        fabric.heal(end.a, end.b)
        with contextlib.nullcontext() if bug else pytest.raises(StaleRegionError):
            await transfer
        assert end.arrived(0, KIB) is bool(bug)


@pytest.mark.parametrize("bug", ["", "skip_fence"])
async def test_bug_skip_fence_lets_packets_land_after_a_loss(bug: str) -> None:
    fabric = SimFabric(seed=1, bug=bug)
    async with ends(fabric) as end:
        fabric.stall(end.b)
        end.write(0, KIB)
        await until(lambda: fabric.in_flight)
        fabric.kill(end.a)
        with pytest.raises(PeerLostError):
            await end.counter.wait()
        fabric.resume(end.b)
        await turns(50)
        assert end.arrived(0, KIB) is bool(bug)


async def test_a_write_that_still_imports_its_region_has_announced_its_count(monkeypatch: pytest.MonkeyPatch) -> None:
    fabric = SimFabric(seed=1)
    async with ends(fabric) as end:

        async def never(*_: object) -> None:
            await anyio.sleep_forever()

        monkeypatch.setattr(RouteTable, "_request_grant", never)
        again = await end.b.register(end.b.allocate(64))
        counter = end.b.counter()
        remote = RemoteRegion.from_bytes(bytes(again.descriptor(counter)))
        write = end.a.submit_write(end.here[:64], remote[:])
        async with anyio.create_task_group() as tasks:

            async def wait() -> None:
                with pytest.raises(PeerLostError):
                    await counter.wait()

            tasks.start_soon(wait)
            await turns(20)
            await end.a.aclose()
        assert isinstance(write.exception(), TransferAbortedError)
