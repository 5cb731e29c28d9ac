"""Checks of two-sided messages: each arrives once, bounded by a window of 64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from aio_transfer.errors import ClosedError, PeerLostError, UsageError
from aio_transfer.peers.messages import WINDOW
from aio_transfer.testing.assertions import MISTYPED, ConformanceError, claim, refused
from aio_transfer.testing.fixtures import mesh, pair, ping, until
from aio_transfer.testing.registry import check
from aio_transfer.testing.timeouts import patient

if TYPE_CHECKING:
    from aio_transfer.engine.engine import TransferEngine
    from aio_transfer.testing.spec import Spec


async def receive(engine: TransferEngine, count: int) -> list[bytes]:
    """Receive ``count`` messages."""
    taken: list[bytes] = []
    with anyio.fail_after(patient(4)):
        while len(taken) < count:
            taken.append((await anext(engine.messages())).payload)
    return taken


@check("messages", "messages")
async def check_messages_arrive_once(spec: Spec) -> None:
    """Every message arrives once, whole, in both directions at once."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        sent = [[rng.bytes(int(size)) for size in rng.integers(0, 5000, 150)] for _ in range(2)]
        taken: dict[str, list[bytes]] = {}

        async def send(engine: TransferEngine, other: TransferEngine, payloads: list[bytes]) -> None:
            for payload in payloads:
                await engine.send(other.address, payload)

        async def take(engine: TransferEngine, name: str) -> None:
            taken[name] = await receive(engine, 150)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send, a, b, sent[0])
            tasks.start_soon(send, b, a, sent[1])
            tasks.start_soon(take, a, "a")
            tasks.start_soon(take, b, "b")
        claim(sorted(taken["b"]) == sorted(sent[0]), "what b received is not what a sent")
        claim(sorted(taken["a"]) == sorted(sent[1]), "what a received is not what b sent")


@check("messages", "messages")
async def check_message_sizes(spec: Spec) -> None:
    """Messages of 0 bytes and of 1 MiB arrive whole."""
    rng = spec.rng()
    async with pair(spec) as (a, b):
        sent = [rng.bytes(size) for size in (0, 1, 255, 256, 4096, 65536, 65537, 1 << 20)]
        for payload in sent:
            await a.send(b.address, payload)
        claim(sorted(await receive(b, len(sent)), key=len) == sent, "a message is not what was sent")


@check("messages", "messages")
async def check_messages_window(spec: Spec) -> None:
    """The 65th message waits until the receiver has taken one."""
    sent = 0
    async with pair(spec) as (a, b):

        async def send() -> None:
            nonlocal sent
            for index in range(WINDOW + 10):
                await a.send(b.address, bytes([index]))
                sent += 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            await until(lambda: sent == WINDOW, lambda: f"{sent} of {WINDOW} messages could be sent to a silent peer")
            for _ in range(3):
                await ping(a, b)
            claim(sent == WINDOW, f"{sent} messages were sent to a peer that took none: the window is {WINDOW}")
            taken = await receive(b, 5)
            await until(lambda: sent == WINDOW + 5, lambda: f"5 were taken, and {sent - WINDOW} more were sent")
            taken += await receive(b, WINDOW + 5)
        claim(sorted(taken) == [bytes([index]) for index in range(WINDOW + 10)], "messages were lost or doubled")


@check("messages", "messages")
async def check_messages_blocked_sender_and_others(spec: Spec) -> None:
    """A peer that takes no message blocks only the messages to itself."""
    async with mesh(spec, 3) as (a, b, c), anyio.create_task_group() as tasks:

        async def flood() -> None:
            while True:
                await a.send(b.address, b"x")

        tasks.start_soon(flood)
        await a.connect(c.address)
        for index in range(3 * WINDOW):
            await a.send(c.address, index.to_bytes(2, "big"))
            claim(await receive(c, 1) == [index.to_bytes(2, "big")], "a message to the third peer is lost")
        tasks.cancel_scope.cancel()


@check("rule 8", "messages")
async def check_messages_peer_closes(spec: Spec) -> None:
    """A sender that waits for room is woken with PeerLostError when the peer closes."""
    async with pair(spec) as (a, b):

        async def flood() -> None:
            with refused("a send to a peer that closes", PeerLostError):
                for _ in range(WINDOW + 1):
                    await a.send(b.address, b"x")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flood)
            await ping(a, b)
            await b.aclose()


@check("rule 7", "messages")
async def check_messages_cancelled_send(spec: Spec) -> None:
    """A send that is cancelled while it waits for room is not sent, and takes no room."""
    async with pair(spec) as (a, b):
        for _ in range(WINDOW):
            await a.send(b.address, b"kept")
        for _ in range(5):
            with anyio.move_on_after(0.002) as scope:
                await a.send(b.address, b"cancelled")
            claim(scope.cancelled_caught, "more messages than the window were sent")
        claim(await receive(b, WINDOW) == [b"kept"] * WINDOW, "a cancelled message was sent")
        await ping(b, a)
        with anyio.fail_after(patient(3)):
            for _ in range(WINDOW):
                await a.send(b.address, b"later")
        claim(await receive(b, WINDOW) == [b"later"] * WINDOW, "a cancelled message was sent after all")


@check("bad input", "messages")
async def check_messages_refused_take_no_room(spec: Spec) -> None:
    """A message above 1 MiB is refused, and takes no room in the window."""
    async with pair(spec) as (a, b):
        large = bytes((1 << 20) + 1)
        for index in range(WINDOW + 1):
            with anyio.move_on_after(patient(1)) as scope, refused("a message above 1 MiB", UsageError):
                await a.send(b.address, large)
            claim(not scope.cancelled_caught, f"after {index} refused messages sending waits for room")
        await a.send(b.address, b"small")
        claim(await receive(b, 1) == [b"small"], "the window is used up by refused messages")


@check("bad input", "messages")
async def check_messages_that_are_no_bytes(spec: Spec) -> None:
    """A payload that is not bytes is refused, and nothing is sent."""
    async with pair(spec) as (a, b):
        await a.connect(b.address)
        for payload in ("text", 5, None, [1, 2]):
            with refused(f"sending {payload!r}", *MISTYPED):
                await a.send(b.address, payload)  # type: ignore[arg-type]
        await a.send(b.address, memoryview(b"view"))  # type: ignore[arg-type]
        claim(await receive(b, 1) == [b"view"], "something that is no bytes was sent")


@check("messages", "messages")
async def check_messages_two_iterators(spec: Spec) -> None:
    """With two iterators each message goes to one of them, and neither waits while there is one."""
    taken: list[bytes] = []
    async with pair(spec) as (a, b):

        async def take_one() -> None:
            taken.extend(await receive(b, 1))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take_one)
            tasks.start_soon(take_one)
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
            await a.send(b.address, b"1")
            await a.send(b.address, b"2")
            await until(
                lambda: len(taken) == 2, lambda: f"two messages came for two iterators, and only {taken} were taken"
            )


@check("closing", "messages")
async def check_messages_end_with_engine(spec: Spec) -> None:
    """Closing the engine ends every iteration over its messages."""
    ended = 0
    async with pair(spec) as (_, b):

        async def iterate() -> None:
            nonlocal ended
            async for message in b.messages():
                raise ConformanceError(f"{message} was received, and none was sent")
            ended += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(iterate)
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
            await b.aclose()
            await until(lambda: ended == 3, lambda: f"{ended} of 3 iterations ended with the engine")
        with refused("messages of a closed engine", ClosedError):
            await receive(b, 1)


@check("rule 7", "messages")
async def check_messages_cancelled_receive(spec: Spec) -> None:
    """A cancelled receive takes nothing: every message reaches a later one."""
    taken: list[bytes] = []
    async with pair(spec) as (a, b):
        await a.connect(b.address)
        for index in range(40):
            async with anyio.create_task_group() as tasks:

                async def take() -> None:
                    taken.append((await anext(b.messages())).payload)

                tasks.start_soon(take)
                await anyio.lowlevel.checkpoint()
                await a.send(b.address, bytes([index]))
                for _ in range(index % 7):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
        taken += await receive(b, 40 - len(taken))
        claim(sorted(taken) == [bytes([index]) for index in range(40)], f"of 40 messages came {sorted(taken)}")


@check("messages", "messages")
async def check_messages_reply(spec: Spec) -> None:
    """The sender named in a message can be answered."""
    async with pair(spec) as (a, b):
        await a.send(b.address, b"question")
        message = await anext(b.messages())
        claim(message.peer.label == "a", f"the message says it is from {message.peer.label}")
        await b.send(message.peer, b"answer")
        claim(await receive(a, 1) == [b"answer"], "the answer is lost")


@check("bad input", "messages")
async def check_messages_to_oneself(spec: Spec) -> None:
    """A message to the engine itself, or to an object that is not a peer, is refused."""
    async with pair(spec) as (a, _):
        with refused("a message to oneself", UsageError):
            await a.send(a.address, b"me")
        with refused("a message to a string", UsageError):
            await a.send("b", b"?")  # type: ignore[arg-type]
