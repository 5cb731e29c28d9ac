"""The window of messages under way, where the transport fails them or nobody awaits them any more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

from aio_transfer.errors import ProviderError, TransferAbortedError
from aio_transfer.peers.connection import MessageCredits
from aio_transfer.peers.messages import WINDOW, Messenger

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def peer_by(send: Callable[[int], None], make_room: Callable[[], Any] = anyio.lowlevel.checkpoint) -> Any:
    """A connection as far as sending goes."""
    driver = SimpleNamespace(send=lambda _, number, __: send(number))
    one = SimpleNamespace(driver=driver, capabilities=SimpleNamespace(max_message_nbytes=100))
    control = SimpleNamespace(make_room=make_room, send_nowait=lambda _: None, flush=anyio.lowlevel.checkpoint)
    return SimpleNamespace(
        number=1,
        is_up=True,
        is_over=False,
        driver=one,
        control=control,
        credits=MessageCredits(),
        wait_ready=anyio.lowlevel.checkpoint,
    )


def messenger() -> Messenger:
    return Messenger(SimpleNamespace(), iter(range(1, 10_000)).__next__)  # type: ignore[arg-type]


async def test_a_message_that_the_transport_fails_gives_its_place_back() -> None:
    one = messenger()
    peer = peer_by(lambda number: one.on_sent(number, "the peer takes no more"))
    with anyio.fail_after(5):
        for _ in range(2 * WINDOW):
            with pytest.raises(TransferAbortedError):
                await one.send(peer, b"x")
    assert peer.credits.unacked == 0


async def test_so_does_one_that_the_driver_refuses() -> None:
    def refuse(_: int) -> None:
        raise ProviderError("send", code_name="ENOMEM")

    one, peer = messenger(), peer_by(refuse)
    for _ in range(2):
        with pytest.raises(ProviderError):
            await one.send(peer, b"x")
    assert peer.credits.unacked == 0


async def test_so_does_one_that_nobody_awaits_any_more() -> None:
    numbers: list[int] = []
    one, peer = messenger(), peer_by(numbers.append)
    with anyio.move_on_after(0.01):
        await one.send(peer, b"x")
    assert peer.credits.unacked == 1, "it is under way"
    one.on_sent(numbers[0], "the peer is gone")
    assert peer.credits.unacked == 0


async def test_so_does_one_that_was_never_queued() -> None:
    one, peer = messenger(), peer_by(lambda _: None, anyio.sleep_forever)
    with anyio.move_on_after(0.01):
        await one.send(peer, bytes(1000))  # too large for the transport
    assert peer.credits.unacked == 0
