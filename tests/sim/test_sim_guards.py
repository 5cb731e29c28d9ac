"""Simulated fabric against misuse and malicious peers: nothing hangs, leaks, crashes or is accepted unchecked."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import select
import socket
import struct
import sys
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import numpy as np
import pytest

from aio_transfer import AioTransferError, PeerLostError, ProviderError, UsageError
from aio_transfer.backends.sim import SimDriver, create
from aio_transfer.driver.protocol import Endpoint, LocalMemory, RemoteMemory
from aio_transfer.driver.records import (
    PIECE_STRUCT,
    RUN_STRUCT,
    Access,
    CounterId,
    Event,
    Op,
    PeerNumber,
    RegionNumber,
    Status,
    TransferId,
)
from aio_transfer.testing import Faults, Packet, PacketKind, SimFabric, Verdict

sys.path.insert(0, str(Path(__file__).parent))  # importmode=importlib puts no folder there

from sim_ends import KIB, attach, ends, every_loop, turns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


# ------------------------------------------------------------------------------------------ separate queues


@pytest.mark.parametrize("reorder", [0, 1])
async def test_packets_held_by_the_hook_do_not_block_other_peers(reorder: int) -> None:
    fabric = SimFabric(seed=1, reorder=reorder)
    async with ends(fabric) as end, fabric.engine(label="c") as c:
        other = await attach(end.a, c)
        fabric.packet_hook = lambda packet: Verdict.HOLD if packet.receiver is end.b else Verdict.DELIVER
        held = [end.write(0, 8) for _ in range(200)]
        await turns(100)
        served = other.write(0, 8)
        await turns(50)
        assert served.done
        fabric.packet_hook = None
        for transfer in held:
            await transfer


async def test_packets_held_by_a_cut_path_keep_their_order() -> None:
    left: list[int] = []

    def watch(packet: Packet) -> Verdict:
        if packet.kind is PacketKind.WRITE:
            left.append(packet.nbytes)
        return Verdict.DELIVER

    fabric = SimFabric(seed=1, reorder=0)
    async with ends(fabric) as end, fabric.engine(label="c") as c:
        other = await attach(end.a, c)
        fabric.cut(end.a, end.b)
        for i in range(10):
            end.write(0, i + 1)
            await other.write(0, 8)
        fabric.packet_hook = watch
        fabric.heal(end.a, end.b)
        await end.counter.wait(10)
    assert left == list(range(1, 11))


async def test_a_full_queue_to_one_peer_does_not_block_another() -> None:
    fabric = SimFabric(seed=1, depth=16)
    async with ends(fabric) as end, fabric.engine(label="c") as c:
        other = await attach(end.a, c)
        fabric.cut(end.a, end.b)
        held = [end.write(0, 8) for _ in range(40)]
        await turns(100)
        with anyio.fail_after(2):
            await other.write(0, 8)
        fabric.heal(end.a, end.b)
        for transfer in held:
            await transfer


# ------------------------------------------------------------------------------------------------------------ the hook


def test_a_fabric_whose_hook_refers_to_it_is_collected() -> None:
    def make() -> weakref.ref[SimFabric]:
        fabric = SimFabric(seed=1)
        fabric.packet_hook = lambda _: Verdict.HOLD if fabric.in_flight else Verdict.DELIVER
        return weakref.ref(fabric)

    seen = make()
    gc.collect()
    assert seen() is None


async def test_an_engine_keeps_its_fabric_and_hook_alive() -> None:
    asked: list[Packet] = []

    def watch(packet: Packet) -> Verdict:
        asked.append(packet)
        return Verdict.DELIVER

    fabric = SimFabric(seed=1, packet_hook=watch)
    async with ends(fabric) as end:
        del fabric
        gc.collect()
        asked.clear()
        await end.write(0, 8)
        assert asked


@every_loop
@pytest.mark.parametrize("who", ["sender", "receiver"])
async def test_the_hook_may_kill_either_engine(who: str) -> None:
    def kill(packet: Packet) -> Verdict:
        fabric.packet_hook = None
        fabric.kill(getattr(packet, who))
        return Verdict.DELIVER

    fabric = SimFabric(seed=1)
    async with ends(fabric) as end:
        fabric.packet_hook = kill
        with anyio.fail_after(2), pytest.raises(PeerLostError):
            await end.write(0, KIB)


async def test_the_hook_cannot_use_the_engine_it_runs_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def misuse(packet: Packet) -> Verdict:
        packet.sender.statistics()
        return Verdict.HOLD

    seen: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: seen.append(unraisable.exc_value))
    fabric = SimFabric(seed=1)
    async with ends(fabric) as end:
        fabric.packet_hook = misuse
        await end.write(0, 8)
        fabric.packet_hook = None
        assert end.a.statistics()
    assert {type(error) for error in seen} == {UsageError}


# ------------------------------------------------------------------------------------------------------------ misuse


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": -1},
        {"seed": 1 << 64},
        {"seed": 1.5},
        {"seed": "7"},
        {"nics": 2.5},
        {"nics": "2"},
        {"packet_hook": Verdict.HOLD},
    ],
    ids=str,
)
def test_settings_of_a_wrong_type_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        SimFabric(**settings)


async def test_arguments_of_controls_out_of_range_are_refused() -> None:
    fabric = SimFabric(nics=2)
    async with fabric.engine() as engine:
        for nic in (-1, 2, 0.5):
            for control in (fabric.stall, fabric.resume):
                with pytest.raises(UsageError, match="0 … 1"):
                    control(engine, nic)
        for count in (-1, 1 << 32, 0.5):
            for control in (fabric.fail_posts, fabric.fail_completions):
                with pytest.raises(UsageError):
                    control(engine, count)
        with pytest.raises(UsageError):
            fabric.fail_posts(engine, nic=2)
        with pytest.raises(UsageError):
            fabric.reseed(-1)
        for nobody in (None, "a", 7):
            with pytest.raises(UsageError):
                fabric.stall(nobody)


@pytest.mark.parametrize("nic", range(3))
async def test_failures_affect_the_named_nic_only(nic: int) -> None:
    fabric = SimFabric(seed=1, nics=3)
    async with ends(fabric) as end:
        for fail in (fabric.fail_posts, fabric.fail_completions):
            fail(end.a, nic=nic)
            failed = 0
            for _ in range(3):  # they take turns
                try:
                    await end.write(0, 8)
                except ProviderError:
                    failed += 1
            assert failed == 1


async def test_totals_account_for_every_packet_of_a_closed_engine() -> None:
    fabric = SimFabric(seed=1, faults=Faults(late_completions=0))
    async with ends(fabric) as end:
        fabric.stall(end.b)
        end.write(0, 64 * KIB)
        await turns(50)
        assert fabric.in_flight
    totals = fabric.totals()
    assert totals["left"] == totals["delivered"] + totals["dropped"]


# --------------------------------------------------------------------------------------- a peer that means malicious

BLOB = struct.Struct("<QQQII96s")
"""An end of a connection, as ``backends/sim/domain.cpp`` has it: magic, fabric, link, node, length and address."""
HEADER = struct.Struct("<BBHIIIQQQQQQII")
RAIL = struct.Struct("<HB")
MAGIC = 0x316D69732D6F6961
NODE = 7
WRITE, READ, DATA, ACK = 0, 1, 2, 4


class MaliciousPeer:
    """A peer that has connected correctly, and then sends arbitrary packets."""

    names = itertools.count()

    def __init__(self, driver: SimDriver, number: int) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        name = b"aio-transfer-sim-%d-malicious-%d" % (os.getpid(), next(self.names))
        self.socket.bind(b"\0" + name)
        self.socket.settimeout(2)
        mine = driver.connect(PeerNumber(number), None).blob[RAIL.size :]
        _, _, self.link, self.node, length, address = BLOB.unpack(mine)
        self.there = b"\0" + address[:length]
        driver.connect(PeerNumber(number), endpoint(name))

    def send(self, kind: int, payload: bytes = b"", **fields: int) -> None:
        names = ("status", "counts", "immediate", "sender", "node", "link", "back", "work", "key", "offset", "at")
        given = {"sender": NODE, "node": self.node, "link": self.link, "back": 5, "nbytes": len(payload), "packets": 1}
        words = [(given | fields).get(name, 0) for name in (*names, "nbytes", "packets")]
        self.socket.sendto(HEADER.pack(kind, *words) + payload, self.there)

    def answer(self) -> tuple[int, int, int]:
        """Return kind, status and size of the next packet."""
        found = self.socket.recv(1 << 20)
        kind, status, *_ = HEADER.unpack_from(found)
        return kind, status, len(found) - HEADER.size


def endpoint(name: bytes) -> Endpoint:
    blob = BLOB.pack(MAGIC, 999, 0x1111, NODE, len(name), name)
    return Endpoint(blob=RAIL.pack(len(blob), 0) + blob)


@pytest.fixture
def driver() -> Iterator[SimDriver]:
    one = create(seed=1)
    one.open()
    yield one
    one.close()


@pytest.fixture
def meet(driver: SimDriver) -> Iterator[Callable[[int], MaliciousPeer]]:
    with contextlib.ExitStack() as stack:

        def make(number: int) -> MaliciousPeer:
            malicious = MaliciousPeer(driver, number)
            stack.callback(malicious.socket.close)
            return malicious

        yield make


@pytest.fixture
def memory() -> np.ndarray:
    return np.zeros(4 << 20, np.uint8)


def register(driver: SimDriver, memory: np.ndarray) -> int:
    local = LocalMemory(addr=memory.ctypes.data, nbytes=memory.nbytes, access=Access.REMOTE_READ | Access.REMOTE_WRITE)
    return int.from_bytes(driver.register(RegionNumber(1), local)[RAIL.size :], "little")


def start(driver: SimDriver, peer: int, op: Op, memory: np.ndarray) -> None:
    """Post a write to, or a read from, a peer that never answers."""
    keys = RAIL.pack(8, 0) + bytes(8)
    driver.register(RegionNumber(1 << 31), RemoteMemory(peer=PeerNumber(peer), nbytes=64, keys=keys))
    run = RUN_STRUCT.pack(peer, 0, op, 1, 1 << 31, 0, 1, 0)
    driver.post(TransferId(5), run, PIECE_STRUCT.pack(memory.ctypes.data, 0, 64, 0, 0))


def events(driver: SimDriver, wait_s: float = 2) -> list[Event]:
    select.select([driver.fileno()], [], [], wait_s)
    return [Event(*event) for event in driver.drain(256)]


@pytest.mark.parametrize("op", [Op.WRITE, Op.READ])
def test_a_peer_cannot_answer_the_requests_sent_to_another(
    driver: SimDriver, meet: Callable[[int], MaliciousPeer], memory: np.ndarray, op: Op
) -> None:
    malicious, silent = meet(1), meet(2)
    register(driver, memory)
    start(driver, 2, op, memory)
    assert silent.answer()[0] == (WRITE if op is Op.WRITE else READ)  # the request was sent
    for work in range(4):
        malicious.send(ACK, work=work)
        malicious.send(DATA, b"x" * 64, work=work)
    malicious.send(READ, nbytes=0, work=99)  # once this is answered, the packets before it were handled
    assert malicious.answer()[0] == DATA
    assert events(driver, 0) == []
    assert not memory.any()
    silent.send(DATA if op is Op.READ else ACK, b"y" * 64 if op is Op.READ else b"", work=1)
    assert [(event.id, event.status) for event in events(driver)] == [(5, Status.OK)]


@pytest.mark.parametrize("nbytes", [(32 << 10) + 1, 4 << 20, 0xFFFF_FFFF])
def test_a_read_request_larger_than_a_packet_is_refused(
    driver: SimDriver, meet: Callable[[int], MaliciousPeer], memory: np.ndarray, nbytes: int
) -> None:
    malicious = meet(1)
    key = register(driver, memory)
    malicious.send(READ, key=key, nbytes=nbytes, work=1)
    assert malicious.answer() == (ACK, Status.PROVIDER, 0)
    malicious.send(READ, key=key, nbytes=64, work=2)
    assert malicious.answer() == (DATA, Status.OK, 64)


@pytest.mark.parametrize("fields", [{"offset": 1 << 63}, {"offset": (4 << 20) - 1}, {"key": 0}, {"key": 1}], ids=str)
def test_writes_outside_the_region_are_refused(
    driver: SimDriver, meet: Callable[[int], MaliciousPeer], memory: np.ndarray, fields: dict[str, int]
) -> None:
    malicious = meet(1)
    key = register(driver, memory)
    driver.expect(CounterId(7), 1)
    malicious.send(WRITE, b"x" * 8, **{"key": key, "counts": 1, "immediate": 7} | fields)
    kind, status, _ = malicious.answer()
    assert kind == ACK
    assert status in {Status.PROVIDER, Status.STALE_REGION}
    assert not memory.any()
    assert driver.expect(CounterId(7), 0) == 0


def test_malformed_packets_change_nothing(
    driver: SimDriver, meet: Callable[[int], MaliciousPeer], memory: np.ndarray
) -> None:
    malicious = meet(1)
    key = register(driver, memory)
    for kind, status, packets in itertools.product(range(256), (0, 255), (0, 0xFFFF_FFFF)):
        if kind != 3:  # a peer may send messages
            malicious.send(kind, b"x" * 9, status=status, packets=packets, work=kind, key=key, nbytes=8)
    assert [event for event in events(driver, 0) if event.kind != 5] == []
    driver.disconnect(PeerNumber(1), lost=True)
    driver.deregister(RegionNumber(1))
    while driver.statistics()["handles"]:
        events(driver)
    assert not memory.any()


@pytest.mark.parametrize("name", [b"org.freedesktop.dbus", b"", b"aio-transfer-si"])
def test_an_address_of_no_fabric_is_refused(driver: SimDriver, name: bytes) -> None:
    driver.connect(PeerNumber(1), None)
    with pytest.raises(AioTransferError):
        driver.connect(PeerNumber(1), endpoint(name))
