"""Checks of connections: one per pair, made again by either side, and only to the intended peer."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import msgspec

from aio_transfer.errors import AuthenticationError, PeerLostError, UsageError
from aio_transfer.testing.assertions import claim, refused
from aio_transfer.testing.fixtures import exactly, mesh, pair, ping, until
from aio_transfer.testing.guarded_memory import Memory
from aio_transfer.testing.registry import check
from aio_transfer.testing.timeouts import patient

if TYPE_CHECKING:
    from aio_transfer.engine.engine import TransferEngine
    from aio_transfer.testing.spec import Spec


async def connect_both_ways(a: TransferEngine, b: TransferEngine) -> None:
    """Connect from both sides at the same time, and use the connection."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(a.connect, b.address)
        tasks.start_soon(b.connect, a.address)
    await ping(a, b)


@check("peers")
async def check_connect_at_once_from_both_sides(spec: Spec) -> None:
    """When both sides connect at the same time, they get one connection, in twenty attempts."""
    for _ in range(20):
        async with pair(spec) as (a, b):
            with anyio.fail_after(patient(3)):
                await connect_both_ways(a, b)
            seen = len(a.statistics().peers), len(b.statistics().peers)
            claim(seen == (1, 1), f"both called, and have {seen} connections")


@check("peers")
async def check_connect_once(spec: Spec) -> None:
    """Many tasks that connect at once share one connection."""
    async with pair(spec) as (a, b):
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(a.connect, b.address)
        level = a.statistics().drivers[spec.backend].get("handles", 0)
        await ping(a, b)
        await a.connect(b.address)
        claim(len(b.statistics().peers) == 1, f"20 calls made {len(b.statistics().peers)} connections")
        now = a.statistics().drivers[spec.backend].get("handles", 0)
        claim(now == level, f"connecting again took handles: {level}, then {now}")


@check("peers")
async def check_connect_mesh(spec: Spec) -> None:
    """Six engines that all connect to each other at once are all connected."""
    async with mesh(spec, 6) as engines:
        with anyio.fail_after(patient(5)):
            async with anyio.create_task_group() as tasks:
                for one in engines:
                    for other in engines:
                        if one is not other:
                            tasks.start_soon(one.connect, other.address)
        seen = [len(engine.statistics().peers) for engine in engines]
        claim(seen == [5] * 6, f"of 5 peers each has {seen}")


@check("rule 8")
async def check_connect_to_nobody(spec: Spec) -> None:
    """Connecting to a closed peer soon raises PeerLostError, every time."""
    async with pair(spec) as (a, b):
        address = b.address
        await b.aclose()
        for _ in range(3):
            with anyio.fail_after(patient(3)), refused("connecting to a closed engine", PeerLostError) as refusal:
                await a.connect(address)
        claim("b" in str(refusal), f"the error does not name the peer: {refusal}")


@check("rule 8")
async def check_connect_to_somebody_silent(spec: Spec) -> None:
    """Connecting to a peer that accepts and does not answer fails after connect_deadline_s."""
    async with pair(spec, connect_deadline_s=0.1) as (a, b):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = msgspec.structs.replace(
                b.address, incarnation=bytes(16), unix="", tcp_port=silent.getsockname()[1]
            )
            with anyio.fail_after(patient(2)), refused("connecting to somebody silent", PeerLostError):
                await a.connect(address)


@check("peers")
async def check_connect_to_another_incarnation(spec: Spec) -> None:
    """A peer at the right address that is not the intended incarnation is refused."""
    async with pair(spec) as (a, b):
        meant = msgspec.structs.replace(b.address, incarnation=bytes(range(16)))
        with refused("connecting to another incarnation than meant", PeerLostError):
            await a.connect(meant)
        await ping(a, b)


@check("peers")
async def check_secret(spec: Spec) -> None:
    """Engines with the same secret connect; every other pair gets AuthenticationError."""
    one, other = b"s" * 16, b"t" * 16
    async with pair(spec, secret=one) as (a, b):
        await connect_both_ways(a, b)
        for secret in (other, None):
            async with spec.engine(label="x", secret=secret) as x:
                with refused(f"a call by one whose secret is {secret!r}", AuthenticationError):
                    await x.connect(b.address)
                with refused(f"a call to one whose secret is {secret!r}", AuthenticationError):
                    await b.connect(x.address)
                claim(not x.statistics().peers, "a connection stands without the secret")
        await ping(a, b)


@check("peers")
async def check_secret_wrong_moves_nothing(spec: Spec) -> None:
    """A write to a peer with another secret fails with AuthenticationError, and changes nothing."""
    rng = spec.rng()
    async with pair(spec, secret=b"s" * 16) as (_, b), spec.engine(label="x", secret=b"t" * 16) as x:
        source, target = await Memory.open(x, 64, rng), await Memory.open(b, 64, rng)
        counter = b.counter()
        with refused("a write with another secret", AuthenticationError):
            await x.write(source.region[:], target.remote(counter)[:])
        target.verify("after a write of a stranger's")
        claim(counter.value == 0, f"a stranger's write counts {counter.value}")


@check("peers")
async def check_strangers(spec: Spec) -> None:
    """Arbitrary bytes sent to the listener do not disturb other connections."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        await ping(a, b)
        junk = [
            b"GET / HTTP/1.1\r\n\r\n",
            b"\0",
            b"\xff" * 64,
            (1 << 30).to_bytes(4, "little"),
            (1 << 30).to_bytes(4, "big") + bytes(64),
            rng.bytes(4096),
            b"",
        ]
        sockets = [socket.create_connection((b.address.tcp_host, b.address.tcp_port)) for _ in junk]
        for sock, payload in zip(sockets, junk, strict=True):
            sock.sendall(payload)
        await ping(a, b)
        async with spec.engine(label="c") as c:
            with anyio.fail_after(patient(3)):
                await c.connect(b.address)
        for sock in sockets:
            sock.close()
        await ping(a, b)


@check("peers")
async def check_disconnect_and_connect(spec: Spec) -> None:
    """After a disconnect by either side, the next use connects again, with the same descriptors."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 64, rng), await Memory.open(b, 64, rng)
        counter = b.counter()
        remote = target.remote(counter)
        for index in range(20):
            counter.clear()
            await a.write(source.region[:], remote[:])
            await counter.wait()
            await (a, b)[index % 2].disconnect((b, a)[index % 2].address)
        target.expect(0, source.array)
        claim(counter.value == 20, f"20 writes over 20 connections: {counter.value} counts")


@check("rule 8")
async def check_disconnect_fails_waiters(spec: Spec) -> None:
    """A disconnect wakes the peer's waiters with PeerLostError, and can be repeated."""
    async with pair(spec) as (a, b):
        counter = b.counter()
        await a.notify(a.counter_ref(b.address, counter.id))
        await counter.wait()

        async def wait() -> None:
            with refused("a wait for a peer that disconnects", PeerLostError):
                await counter.wait()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await until(lambda: counter.waiting, "no task waits")
            await a.disconnect(b.address)
        await a.disconnect(b.address)
        await until(lambda: not b.statistics().peers, "the peer still has the connection")


@check("peers")
async def check_disconnect_both_at_once(spec: Spec) -> None:
    """Both sides may disconnect at once; each ends quickly, and they can connect again."""
    async with pair(spec) as (a, b):
        for _ in range(10):
            await connect_both_ways(a, b)
            with anyio.fail_after(patient(2)):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(a.disconnect, b.address)
                    tasks.start_soon(b.disconnect, a.address)
            claim(not a.statistics().peers and not b.statistics().peers, "a connection is left")


@check("rule 8")
async def check_disconnect_under_traffic(spec: Spec) -> None:
    """When a peer disconnects during transfers, each succeeds or ends with PeerLostError, and leaves no lease."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        source, target = await Memory.open(a, 4 << 20, rng), await Memory.open(b, 4 << 20, rng)
        source.fill(0x11)
        target.fill(0x11)
        counter = b.counter()
        remote = target.remote(counter)
        ids = range(1024)
        for _ in range(5):
            await a.connect(b.address)
            transfers = [
                a.submit_write_pages(source.region.pages(ids, 4096), remote.pages(ids, 4096)) for _ in range(4)
            ]
            await b.disconnect(a.address)
            for transfer in transfers:
                try:
                    with anyio.fail_after(patient(3)):
                        await transfer
                except PeerLostError:
                    pass
            claim(source.region.leases == 0, f"{source.region.leases} leases are out after all transfers ended")
        await ping(a, b)
        claim(counter.value <= 5 * 4 * 1024, f"{counter.value} counts of {5 * 4 * 1024} pages")


@check("bad input")
async def check_peers_that_are_none(spec: Spec) -> None:
    """The engine itself, and objects that are not peers, are refused as peers."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        memory = await Memory.open(a, 64, rng)
        own = memory.remote(a.counter())
        with refused("connecting to oneself", UsageError):
            await a.connect(a.address)
        with refused("a write to oneself", UsageError):
            await a.write(memory.region[:], own[:])
        with refused("a notification of oneself", UsageError):
            await a.notify(a.counter_ref(own, 1))
        for nobody in ("b", None, 7, b.address.incarnation):
            with refused(f"connecting to {nobody!r}", UsageError):
                await a.connect(nobody)  # type: ignore[arg-type]
            with refused(f"a counter of {nobody!r}", UsageError):
                a.counter_ref(nobody, 1)  # type: ignore[arg-type]


@check("peers")
async def check_peer_handle(spec: Spec) -> None:
    """The result of connect has the peer's label, its path and the state of the connection."""
    async with pair(spec) as (a, b):
        peer = await a.connect(b.address)
        claim(peer.label == "b" and peer.info == b.address, f"{peer!r} is not b")
        claim(peer.path is not None and peer.path.backend == spec.backend, f"its path is {peer.path}")
        counter = b.counter()
        await a.notify(a.counter_ref(peer, counter.id))
        await exactly(counter, 1, b, a)
        await b.aclose()
        await until(lambda: peer.state.value != "connected", "a closed peer shows as connected")
