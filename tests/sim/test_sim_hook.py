"""Simulated fabric: its packet hook, and refused settings and arguments."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from aio_transfer import ProviderError, TransferAbortedError, TransferEngine, UsageError
from aio_transfer.testing import Faults, Packet, PacketKind, SimFabric, Verdict

sys.path.insert(0, str(Path(__file__).parent))  # importmode=importlib puts no folder there

from sim_ends import CANARY, KIB, MTU, attach, ends, every_loop, turns

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


# ------------------------------------------------------------------------------------------------------------- the hook


@every_loop
async def test_the_hook_is_called_for_every_packet() -> None:
    asked: list[Packet] = []

    def watch(packet: Packet) -> Verdict:
        asked.append(packet)
        return Verdict.DELIVER

    fabric = SimFabric(seed=1, nics=2, mtu=MTU, packet_hook=watch)
    assert fabric.packet_hook is watch
    async with ends(fabric) as end, fabric.engine(label="c") as c:
        other = await attach(end.a, c)
        asked.clear()
        await turns(20)
        before = fabric.totals()["left"]
        await end.write(0, 4 * MTU)
        await end.a.submit_read(end.here[: 4 * MTU], end.remote[: 4 * MTU])
        await end.a.send(end.b.address, b"hello")
        await other.write(0, MTU)
        assert len(asked) == fabric.totals()["left"] - before
        seen = {(packet.kind, packet.sender, packet.receiver) for packet in asked}
        a, b = end.a, end.b
        there = {(kind, a, b) for kind in (PacketKind.WRITE, PacketKind.READ, PacketKind.MESSAGE)}
        back = {(kind, b, a) for kind in (PacketKind.ACK, PacketKind.DATA)}
        assert seen == there | back | {(PacketKind.WRITE, a, c), (PacketKind.ACK, c, a)}
        assert {packet.sender_nic for packet in asked} == {0, 1}
        assert {packet.nbytes for packet in asked if packet.kind in {PacketKind.WRITE, PacketKind.DATA}} == {MTU}


@every_loop
async def test_the_hook_holds_packets() -> None:
    fabric = SimFabric(seed=1)
    held = 0

    def hold(packet: Packet) -> Verdict:
        nonlocal held
        held += packet.receiver is end.b
        return Verdict.HOLD if packet.receiver is end.b else Verdict.DELIVER

    async with ends(fabric) as end, fabric.engine(label="c") as c:
        other = await attach(end.a, c)
        fabric.packet_hook = hold
        transfer = end.write(0, KIB)
        await other.write(0, KIB)
        await turns(50)
        assert held > 10, "it is asked again"
        assert not transfer.done
        fabric.packet_hook = None
        await transfer
        await end.counter.wait()


@every_loop
async def test_the_hook_fails_a_write() -> None:
    fabric = SimFabric(seed=1, mtu=MTU)
    async with ends(fabric) as end:
        fabric.packet_hook = lambda packet: Verdict.FAIL if packet.nbytes == MTU // 2 else Verdict.DELIVER
        with pytest.raises(ProviderError):
            await end.write(0, 4 * MTU + MTU // 2)
        with pytest.raises(TransferAbortedError):
            await end.counter.wait()
        assert end.arrived(0, 4 * MTU)
        assert (end.target[4 * MTU :] == CANARY).all()
        assert end.counter.value == 0
        end.counter.clear()
        await end.write(0, 4 * MTU)
        await end.counter.wait()


async def test_the_hook_fails_only_writes() -> None:
    fabric = SimFabric(seed=1)
    async with ends(fabric) as end:
        fabric.packet_hook = lambda packet: Verdict.DELIVER if packet.kind is PacketKind.WRITE else Verdict.FAIL
        await end.write(0, KIB)
        await end.counter.wait()
        await end.a.submit_read(end.here[:KIB], end.remote[:KIB])
        await end.a.send(end.b.address, b"hello")
        async for message in end.b.messages():
            assert message.payload == b"hello"
            break


@pytest.mark.parametrize("fault", ["raises", "returns None", "returns 9"])
async def test_packets_are_delivered_when_the_hook_fails(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def bad(packet: Packet) -> Verdict:
        if fault == "raises":
            raise RuntimeError("the hook")
        return None if fault == "returns None" else 9  # type: ignore[return-value]

    seen: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: seen.append(type(unraisable.exc_value)))
    fabric = SimFabric(seed=1)
    async with ends(fabric) as end:
        fabric.packet_hook = bad
        await end.write(0, KIB)
        await end.counter.wait()
        fabric.packet_hook = None
    assert set(seen) == {"raises": {RuntimeError}, "returns None": {TypeError}, "returns 9": set()}[fault]


async def test_the_hook_can_be_replaced_at_any_time() -> None:
    fabric = SimFabric(seed=1, mtu=MTU)
    asked: list[int] = []

    def ask(number: int) -> Verdict:
        asked.append(number)
        fabric.packet_hook = None if number == 3 else lambda _: ask(number + 1)  # while it runs, too
        return Verdict.DELIVER

    async with ends(fabric) as end:
        fabric.packet_hook = lambda _: ask(0)
        await end.write(0, 16 * MTU)
        await end.counter.wait()
        assert asked == [0, 1, 2, 3]
        assert fabric.packet_hook is None


async def test_the_hook_may_call_controls_of_the_fabric() -> None:
    fabric = SimFabric(seed=1, mtu=MTU)
    left = 0

    def cut_after_four(packet: Packet) -> Verdict:
        nonlocal left
        left += packet.kind is PacketKind.WRITE
        if left == 4:
            fabric.cut(packet.sender, packet.receiver)
            assert fabric.totals()["left"]
        return Verdict.DELIVER

    async with ends(fabric) as end:
        fabric.packet_hook = cut_after_four
        transfer = end.write(0, 16 * MTU)
        await turns(100)
        assert left == 4
        assert not transfer.done
        fabric.heal(end.a, end.b)
        await transfer
        assert left == 16


# --------------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    "settings",
    [
        {"nics": 0},
        {"nics": 9},
        {"reorder": -0.1},
        {"reorder": 1.1},
        {"reorder": float("nan")},
        {"mtu": 0},
        {"mtu": 32 * KIB + 1},
        {"mtu": 1.5},
        {"max_piece": -1},
        {"depth": 0},
        {"bug": "no such"},
        {"faults": Faults(eagain=2)},
        {"faults": Faults(failed_posts=-1)},
        {"faults": Faults(failed_completions=1.5)},
        {"faults": Faults(late_completions=float("inf"))},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        SimFabric(**settings)


@pytest.mark.parametrize("nics", [0, 9, 2.5])
async def test_an_engine_with_an_invalid_number_of_nics_is_refused(nics: int) -> None:
    with pytest.raises(UsageError):
        async with SimFabric().engine(nics=nics):
            pass


@pytest.mark.parametrize("options", [{"nics": 0}, {"mtu": "x"}, {"no_such": 1}, {"seed": -1}], ids=str)
async def test_invalid_options_of_an_engine_without_a_fabric_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        async with TransferEngine(backend="sim", options={"sim": options}):
            pass


async def test_controls_refuse_engines_of_another_fabric() -> None:
    fabric = SimFabric()
    async with fabric.engine() as ours, SimFabric().engine() as theirs:
        for stranger in (theirs, fabric.engine()):  # the second is ours, and not open
            controls = [
                fabric.stall,
                fabric.resume,
                fabric.fill_queues,
                fabric.drain_queues,
                fabric.hold_completions,
                fabric.release_completions,
                fabric.fail_posts,
                fabric.fail_completions,
                fabric.kill,
            ]
            for control in controls:
                with pytest.raises(UsageError, match="not open on this fabric"):
                    control(stranger)
            for control in (fabric.cut, fabric.heal):
                with pytest.raises(UsageError, match="not open on this fabric"):
                    control(ours, stranger)
                with pytest.raises(UsageError, match="not open on this fabric"):
                    control(stranger, ours)


async def test_controls_of_a_closed_engine_do_nothing() -> None:
    fabric = SimFabric(seed=1)
    async with ends(fabric) as end, fabric.engine() as c:
        await c.aclose()
        fabric.stall(c)
        fabric.cut(c, end.a)
        fabric.kill(c)
        await end.write(0, KIB)
        await end.counter.wait()
