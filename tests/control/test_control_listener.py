"""Strangers end nothing but their own connection, and peers are reached by the best way there is."""

from __future__ import annotations

import errno
import os
import random
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
import anyio.lowlevel
import pytest
from msgspec.structs import replace

from aio_transfer.control import dialer, listener
from aio_transfer.control.connection import FrameConnection
from aio_transfer.control.dialer import dial
from aio_transfer.control.frames import Goodbye, Refusal
from aio_transfer.control.handshake import Credentials, Session, client_handshake
from aio_transfer.control.listener import Listener, ListenerLimits
from aio_transfer.control.refusals import RefusedError
from aio_transfer.errors import AuthenticationError, BusyError, PeerLostError, ProviderError
from aio_transfer.topology.identity import host_identity, new_incarnation, new_session
from aio_transfer.topology.peer_info import PeerInfo

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from aio_transfer.control.frames import Hello

Make: TypeAlias = "Callable[..., Credentials]"
pytestmark = pytest.mark.anyio
NEVER_S = 1000.0


class Engine:
    """A listener that is served, and the sessions it got; it accepts them itself."""

    def __init__(
        self,
        bound: Listener,
        credentials: Credentials,
        decide: Callable[[Hello], Refusal | None] = lambda _hello: None,
    ) -> None:
        self.listener = bound
        self.credentials = credentials
        self.sessions: list[Session] = []
        self.decide = decide
        self.on_session = self.sessions.append

    def heartbeat_proofs(self, _attach: object) -> None:
        """No session waits for a heartbeat."""

    def on_heartbeat(self, _heartbeat: object) -> None:
        raise AssertionError

    @property
    def info(self) -> PeerInfo:
        return self.credentials.info


@asynccontextmanager
async def served(
    make_credentials: Make,
    *,
    secret: bytes | None = None,
    decide: Callable[[Hello], Refusal | None] = lambda _hello: None,
    deadline_s: float = NEVER_S,
    **options: Any,
) -> AsyncIterator[Engine]:
    incarnation = new_incarnation()
    limits = ListenerLimits(**{name: options.pop(name) for name in ("half_open", "patience_s") if name in options})
    bound = await Listener.bind(incarnation, limits=limits, **options)
    fields = {"incarnation": incarnation, "tcp_host": bound.host, "tcp_port": bound.port, "unix": bound.unix}
    engine = Engine(bound, make_credentials(secret, **fields), decide)
    async with anyio.create_task_group() as tasks:

        async def serve() -> None:
            await bound.serve(engine, engine.credentials, deadline_s=deadline_s)

        tasks.start_soon(serve)
        yield engine
        await bound.aclose()
    for session in engine.sessions:
        session.connection.close()


async def connect(info: PeerInfo, credentials: Credentials) -> Session:
    connection = await dial(info)
    return await client_handshake(connection, credentials, session=new_session(), expected=info.incarnation)


def open_stranger(engine: Engine) -> socket.socket:
    return socket.create_connection((engine.listener.host, engine.listener.port))


async def half_open(engine: Engine, count: int) -> None:
    """Let the listener run until so many handshakes are under way."""
    while len(engine.listener._half_open) < count:
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("unix", [True, False])
async def test_a_peer_connects_over_the_best_way(make_credentials: Make, unix: bool) -> None:
    async with served(make_credentials, unix=unix) as engine:
        mine = make_credentials()
        session = await connect(engine.info, mine)
        assert session.peer == engine.info
        assert session.connection.is_local is unix
        await session.connection.send(Goodbye("hello"))
        (answered,) = engine.sessions
        assert answered.peer == mine.info
        assert await answered.connection.receive() == (Goodbye("hello"), ())
        session.connection.close()


async def test_the_abstract_name_leaves_nothing_behind(make_credentials: Make) -> None:
    async with served(make_credentials) as engine:
        assert engine.listener.unix == f"aio-transfer-{engine.info.incarnation.hex()}"
    with pytest.raises(PeerLostError, match=r"unix:@aio-transfer-.*: connection refused; 127.0.0.1:.*: connection ref"):
        await dial(engine.info)


async def test_another_host_is_dialed_over_tcp(make_credentials: Make) -> None:
    async with served(make_credentials) as engine:
        connection = await dial(engine.info, host=bytes(32))
        assert not connection.is_local
        connection.close()


async def test_tcp_decides_when_nobody_has_the_abstract_name(make_credentials: Make) -> None:
    async with served(make_credentials, unix=False) as engine:
        connection = await dial(replace(engine.info, unix="aio-transfer-nobody"))
        assert not connection.is_local
        connection.close()


async def test_another_users_abstract_name_is_not_used(make_credentials: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(make_credentials) as engine:
        uid = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
        connection = await dial(engine.info)
        assert not connection.is_local
        connection.close()


async def test_an_unreachable_peer_is_named_with_every_address(make_credentials: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    info = make_credentials(label="node1:7", tcp_port=port, host=host_identity(), unix="aio-transfer-gone").info
    with pytest.raises(PeerLostError) as caught:
        await dial(info)
    assert caught.value.peer == "node1:7"
    assert caught.value.reason == f"unix:@aio-transfer-gone: connection refused; 127.0.0.1:{port}: connection refused"


async def test_a_peer_without_addresses_is_lost(make_credentials: Make) -> None:
    with pytest.raises(PeerLostError, match="no address"):
        await dial(make_credentials(tcp_port=0).info)


@pytest.mark.parametrize("name", ["", "a" * 200, "..", "no such host", "127.0.0.1.invalid"])
async def test_a_name_that_cannot_be_resolved_is_a_lost_peer(make_credentials: Make, name: str) -> None:
    info = make_credentials(tcp_host=name, tcp_port=1).info
    with pytest.raises(PeerLostError):
        await dial(info, deadline_s=5)


async def test_dialing_gives_up_at_its_deadline(make_credentials: Make) -> None:
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as first:
        name = f"aio-transfer-{new_incarnation().hex()}"
        full.bind(f"\0{name}")
        full.listen(0)
        first.connect(f"\0{name}")
        with pytest.raises(PeerLostError, match=r"did not answer within 0\.02 s"):
            await dial(make_credentials(unix=name).info, deadline_s=0.02)


async def test_a_socket_connected_to_itself_is_nobody() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.connect(sock.getsockname())
        assert dialer._check(sock) == "connection refused"


async def test_a_wrong_secret_ends_its_own_connection_only(make_credentials: Make) -> None:
    async with served(make_credentials, secret=b"right") as engine:
        for wrong in (b"wrong", None):
            with pytest.raises(AuthenticationError):
                await connect(engine.info, make_credentials(wrong))
        session = await connect(engine.info, make_credentials(b"right"))
        session.connection.close()
        assert len(engine.sessions) == 1


async def test_the_engine_decides(make_credentials: Make) -> None:
    async with served(make_credentials, decide=lambda _hello: Refusal("duplicate", "again")) as engine:
        with pytest.raises(RefusedError, match="again"):
            await connect(engine.info, make_credentials())
        assert not engine.sessions


async def test_a_bug_in_the_decision_ends_its_own_connection_only(
    make_credentials: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def decide(hello: Hello) -> None:
        if hello.info.label == "bad":
            raise ZeroDivisionError

    async with served(make_credentials, decide=decide) as engine:
        with pytest.raises(PeerLostError):
            await connect(engine.info, make_credentials(label="bad"))
        assert "ZeroDivisionError" in caplog.text
        session = await connect(engine.info, make_credentials(label="good"))
        session.connection.close()


async def test_noise_ends_its_own_connection_only(make_credentials: Make) -> None:
    noise = random.Random(20251121)
    async with served(make_credentials) as engine:
        for nbytes in (1, 3, 4, 5, 100, 5000) * 5:
            with open_stranger(engine) as stranger:
                stranger.sendall(noise.randbytes(nbytes))
        with open_stranger(engine) as stranger:
            stranger.sendall(b"\x08\x00\x00\x00" + noise.randbytes(8))
            await anyio.wait_readable(stranger)
        session = await connect(engine.info, make_credentials())
        session.connection.close()


async def test_a_silent_stranger_meets_the_deadline(make_credentials: Make) -> None:
    async with served(make_credentials, deadline_s=0.02) as engine:
        with open_stranger(engine) as stranger:
            connection = FrameConnection(stranger.dup())
            assert await connection.receive() == (Refusal("closing", "the handshake was given up"), ())
            with pytest.raises(anyio.EndOfStream):
                await connection.receive()
            connection.close()


async def test_a_flood_of_silent_strangers_keeps_nobody_out(make_credentials: Make) -> None:
    async with served(make_credentials, half_open=4, patience_s=0) as engine:
        strangers = [open_stranger(engine) for _ in range(20)]
        session = await connect(replace(engine.info, unix=""), make_credentials())
        assert len(engine.listener._half_open) <= 4
        session.connection.close()
        dropped = 0
        for stranger in strangers:
            stranger.setblocking(False)
            try:
                dropped += bool(stranger.recv(100))
            except BlockingIOError:
                continue
            finally:
                stranger.close()
        assert dropped >= 16


async def test_a_crowd_waits_its_turn(make_credentials: Make) -> None:
    """A launch of many ranks at once drops nobody: accepting pauses instead."""
    async with served(make_credentials, half_open=2, patience_s=NEVER_S) as engine:
        sessions: list[Session] = []

        async def join() -> None:
            sessions.append(await connect(engine.info, make_credentials()))

        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(join)
        for session in sessions:
            session.connection.close()
        assert len({session.token for session in sessions}) == 50
        assert {session.token for session in sessions} == {session.token for session in engine.sessions}


async def test_strangers_hold_others_up_for_no_longer_than_the_patience(make_credentials: Make) -> None:
    async with served(make_credentials, half_open=1, patience_s=0.02) as engine:
        with open_stranger(engine):
            await half_open(engine, 1)
            session = await connect(engine.info, make_credentials())
            session.connection.close()


async def test_running_out_of_fds_is_waited_out(make_credentials: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "_BACKOFF_S", 0.001)
    failures = [errno.EMFILE, errno.ENFILE, errno.ECONNABORTED]

    class Exhausted(socket.socket):
        def accept(self) -> tuple[socket.socket, Any]:
            if failures:
                raise OSError(failures.pop(), "not now")
            return super().accept()

    bind = listener._bind_tcp

    async def bind_exhausted(host: str, port: int) -> socket.socket:
        exhausted = Exhausted(fileno=(await bind(host, port)).detach())
        exhausted.setblocking(False)
        return exhausted

    monkeypatch.setattr(listener, "_bind_tcp", bind_exhausted)
    async with served(make_credentials, unix=False) as engine:
        session = await connect(engine.info, make_credentials())
        session.connection.close()
    assert not failures


async def test_closing_ends_handshakes_and_spares_sessions(make_credentials: Make) -> None:
    async with served(make_credentials) as engine:
        session = await connect(engine.info, make_credentials())
        with open_stranger(engine) as stranger:
            await half_open(engine, 1)
            await engine.listener.aclose()
            assert stranger.recv(1000).endswith(b"closing\xbathe handshake was given up\x02")
            assert stranger.recv(1) == b""
        await engine.listener.aclose()
        with pytest.raises(PeerLostError):
            await dial(engine.info)
        await session.connection.send(Goodbye("alive"))
        assert await engine.sessions[0].connection.receive() == (Goodbye("alive"), ())
        session.connection.close()


async def test_a_listener_is_served_once(make_credentials: Make) -> None:
    async with served(make_credentials) as engine:
        session = await connect(engine.info, make_credentials())  # so it is being served
        session.connection.close()
        with pytest.raises(BusyError):
            await engine.listener.serve(engine, engine.credentials)
    await engine.listener.serve(engine, engine.credentials)  # closed: nothing left to do


async def test_a_listener_may_be_served_again(make_credentials: Make) -> None:
    bound = await Listener.bind(incarnation := new_incarnation())
    engine = Engine(bound, make_credentials(incarnation=incarnation, tcp_port=bound.port, unix=bound.unix))
    for _ in range(2):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bound.serve, engine, engine.credentials)
            session = await connect(engine.info, make_credentials())
            session.connection.close()
            with open_stranger(engine) as _stranger:
                await half_open(engine, 1)
                tasks.cancel_scope.cancel()
        assert not bound._half_open
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bound.serve, engine, engine.credentials)
        session = await connect(engine.info, make_credentials())
        session.connection.close()
        await bound.aclose()
    for session in engine.sessions:
        session.connection.close()


async def test_what_the_engine_raises_ends_the_listener(make_credentials: Make) -> None:
    bound = await Listener.bind(incarnation := new_incarnation())
    credentials = make_credentials(incarnation=incarnation, tcp_port=bound.port, unix=bound.unix)

    def on_session(session: Session) -> None:
        session.connection.close()
        raise ZeroDivisionError

    engine = Engine(bound, credentials)
    engine.on_session = on_session

    async def dial_in() -> None:
        session = await connect(credentials.info, make_credentials())
        session.connection.close()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(dial_in)
        with pytest.raises(ExceptionGroup) as caught:
            await bound.serve(engine, credentials)
    assert caught.group_contains(ZeroDivisionError)
    await bound.aclose()


async def test_an_address_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ProviderError, match=f"'127.0.0.1', {port}.*EADDRINUSE"):
            await Listener.bind(new_incarnation(), port=port)
    with pytest.raises(ProviderError, match="resolving"):
        await Listener.bind(new_incarnation(), host="no such host")


async def test_a_listener_that_is_never_served_closes(make_credentials: Make) -> None:
    bound = await Listener.bind(new_incarnation(), host="::1" if socket.has_ipv6 else "127.0.0.1")
    info = make_credentials(tcp_host=bound.host, tcp_port=bound.port).info
    connection = await dial(info)  # the kernel's queue takes it
    await bound.aclose()
    with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
        await connection.receive()
    connection.close()
