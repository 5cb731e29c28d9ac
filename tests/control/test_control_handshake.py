"""Both sides learn who the other is, or both learn why not; and nobody learns more than they have earned."""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
import pytest

from aio_transfer.control import codec
from aio_transfer.control.authentication import DIALER, LISTENER, make_transcript, prove
from aio_transfer.control.codec import encode
from aio_transfer.control.connection import FrameConnection
from aio_transfer.control.frames import (
    MAX_FRAME_NBYTES,
    PROTOCOL_VERSION,
    AttachHeartbeat,
    Challenge,
    Frame,
    Goodbye,
    Hello,
    HelloProof,
    Message,
    Refusal,
    Welcome,
)
from aio_transfer.control.handshake import (
    Credentials,
    HeartbeatConnection,
    Session,
    attach_heartbeat,
    client_handshake,
    server_handshake,
)
from aio_transfer.control.refusals import RefusedError, error_of
from aio_transfer.errors import AuthenticationError, ClosedError, PeerLostError, ProtocolError, UsageError
from aio_transfer.topology.identity import new_incarnation, new_session
from aio_transfer.topology.peer_info import PeerInfo

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Pair = tuple[FrameConnection, FrameConnection]
    RawPair = tuple[FrameConnection, socket.socket]

Make: TypeAlias = "Callable[..., Credentials]"
pytestmark = pytest.mark.anyio
SECRET = b"a secret of thirty-two bytes ...."
TOKEN = new_session()


async def outcomes(*attempts: Awaitable[Session]) -> list[Session | Exception]:
    """Run both sides to their ends."""
    results: list[Session | Exception] = [Exception()] * len(attempts)

    async def run(index: int, attempt: Awaitable[Session]) -> None:
        try:
            results[index] = await attempt
        except Exception as error:  # noqa: BLE001 - the error is the result
            results[index] = error

    async with anyio.create_task_group() as tasks:
        for index, attempt in enumerate(attempts):
            tasks.start_soon(run, index, attempt)
    return results


async def shake(pair: Pair, dialer: Credentials, listener: Credentials, **options: Any) -> list[Session | Exception]:
    left, right = pair
    decide = options.pop("decide", lambda _hello: None)
    return await outcomes(
        client_handshake(left, dialer, session=TOKEN, **options),
        server_handshake(right, listener, decide=decide),
    )


def make_hello(credentials: Credentials, **changes: Any) -> Hello:
    fields: dict[str, Any] = {
        "version": PROTOCOL_VERSION,
        "info": credentials.info,
        "nonce": bytes(32),
        "session": TOKEN,
    }
    return Hello(**(fields | changes))


@pytest.mark.parametrize("secret", [None, SECRET])
async def test_both_sides_agree_on_the_session(pair: Pair, make_credentials: Make, secret: bytes | None) -> None:
    dialer, listener = make_credentials(secret), make_credentials(secret)
    dialed, answered = await shake(pair, dialer, listener, expected=listener.info.incarnation)
    assert isinstance(dialed, Session)
    assert isinstance(answered, Session)
    assert (dialed.peer, answered.peer) == (listener.info, dialer.info)
    assert dialed.proofs == answered.proofs
    assert dialed.token == answered.token == TOKEN
    assert (dialed.is_dialer, answered.is_dialer) == (True, False)
    assert dialed.connection.frame_limit_nbytes == answered.connection.frame_limit_nbytes == MAX_FRAME_NBYTES
    os.close(dialed.connection.detach())  # nothing was read beyond the handshake, nothing is unsent
    os.close(answered.connection.detach())


@pytest.mark.parametrize(
    ("dialer_secret", "listener_secret", "words"),
    [
        (b"wrong", SECRET, "different secrets"),
        (None, SECRET, "has no secret, and the other requires one"),
        (SECRET, None, "has a secret, and the other has none"),
    ],
    ids=("wrong", "none-at-dialer", "none-at-listener"),
)
async def test_secrets_that_differ_fail_on_both_sides(
    pair: Pair, make_credentials: Make, dialer_secret: bytes | None, listener_secret: bytes | None, words: str
) -> None:
    asked: list[Hello] = []
    results = await shake(pair, make_credentials(dialer_secret), make_credentials(listener_secret), decide=asked.append)
    for error in results:
        assert isinstance(error, AuthenticationError)
        assert words in str(error)
        assert SECRET.decode() not in repr(error)
    assert not asked
    assert all(connection.is_closed for connection in pair)


async def test_the_listener_tells_a_stranger_its_version_and_no_more(pair: Pair, make_credentials: Make) -> None:
    left, right = pair
    listener = make_credentials(SECRET, label="the listener's label")
    seen: list[Frame] = []

    async def stranger() -> None:
        await left.send(make_hello(make_credentials()))
        challenge, _fds = await left.receive()
        assert isinstance(challenge, Challenge)
        seen.append(challenge)
        await left.send(HelloProof(b"\0" * 32))
        refusal, _fds = await left.receive()
        assert isinstance(refusal, Refusal)
        seen.append(refusal)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stranger)
        with pytest.raises(AuthenticationError):
            await server_handshake(right, listener)
    said = b"".join(map(encode, seen))
    for private in (listener.info.incarnation, listener.info.host, listener.info.label.encode()):
        assert private not in said


async def test_a_listener_that_cannot_prove_itself_is_refused(pair: Pair, make_credentials: Make) -> None:
    left, right = pair
    impostor = make_credentials()

    async def impersonate(proof: bytes) -> None:
        await right.receive()
        await right.send(Challenge(PROTOCOL_VERSION, bytes(32)))
        await right.receive()
        await right.send(Welcome(impostor.info, proof))
        frame, _fds = await right.receive()
        assert isinstance(frame, Refusal)
        assert frame.kind == "auth"

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(impersonate, b"")
        with pytest.raises(AuthenticationError, match="has no secret"):
            await client_handshake(left, make_credentials(SECRET), session=TOKEN)


async def test_a_dialers_proof_reflected_proves_nothing(pair: Pair, make_credentials: Make) -> None:
    left, right = pair

    async def reflect() -> None:
        await right.receive()
        await right.send(Challenge(PROTOCOL_VERSION, bytes(32)))
        proof, _fds = await right.receive()
        assert isinstance(proof, HelloProof)
        await right.send(Welcome(make_credentials().info, proof.proof))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reflect)
        with pytest.raises(AuthenticationError, match="different secrets"):
            await client_handshake(left, make_credentials(SECRET), session=TOKEN)


async def test_an_engine_relayed_to_itself_is_refused(pair: Pair, make_credentials: Make) -> None:
    same = make_credentials(SECRET)
    for error in await shake(pair, same, same):
        assert isinstance(error, RefusedError)
        assert error.kind == "self"


async def test_a_replayed_proof_is_refused(pair: Pair, make_credentials: Make) -> None:
    left, right = pair
    dialer, listener = make_credentials(SECRET), make_credentials(SECRET)
    hello = make_hello(dialer)
    recorded = prove(SECRET, DIALER, make_transcript(hello, Challenge(PROTOCOL_VERSION, bytes(32))))

    async def replay() -> None:
        await left.send(hello)
        await left.receive()
        await left.send(HelloProof(recorded))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(replay)
        with pytest.raises(AuthenticationError):
            await server_handshake(right, listener)


async def test_the_proofs_bind_who_said_what(make_credentials: Make) -> None:
    one, other = make_credentials().info, make_credentials().info
    challenge = Challenge(PROTOCOL_VERSION, bytes(32))
    hello = make_hello(Credentials(info=one))
    transcript = make_transcript(hello, challenge)
    proofs = {
        prove(SECRET, DIALER, transcript),
        prove(SECRET, LISTENER, transcript),
        prove(SECRET, LISTENER, transcript, one),
        prove(SECRET, LISTENER, transcript, other),
        prove(SECRET, DIALER, make_transcript(make_hello(Credentials(info=other)), challenge)),
        prove(SECRET, DIALER, make_transcript(hello, Challenge(PROTOCOL_VERSION, b"\1" * 32))),
        prove(b"another", DIALER, transcript),
    }
    assert len(proofs) == 7


@pytest.mark.parametrize("secret", [None, SECRET])
async def test_another_version_is_named_on_both_sides(
    pair: Pair, make_credentials: Make, monkeypatch: pytest.MonkeyPatch, secret: bytes | None
) -> None:
    left, right = pair
    errors: list[Exception] = []

    async def speak_version_7() -> None:
        await left.send(make_hello(make_credentials(), version=7))
        refusal, _fds = await left.receive()
        assert refusal == Refusal("version", f"version {PROTOCOL_VERSION} is spoken here")
        assert isinstance(refusal, Refusal)
        monkeypatch.setattr(codec, "PROTOCOL_VERSION", 7)
        errors.append(error_of("the listener", refusal))
        monkeypatch.undo()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(speak_version_7)
        with pytest.raises(ProtocolError, match="it speaks version 7, and we speak version 2"):
            await server_handshake(right, make_credentials(secret))
    assert isinstance(errors[0], ProtocolError)
    assert "it speaks version 2, and we speak version 7" in str(errors[0])


async def test_a_greeting_of_a_later_version_is_understood_as_one(raw_pair: RawPair, make_credentials: Make) -> None:
    connection, peer = raw_pair
    body = b"\x95\x01\x09\xa5other\xc0\x80"  # [1, 9, "other", nil, {}]
    peer.sendall(struct.pack("<I", len(body)) + body)
    with pytest.raises(ProtocolError, match="it speaks version 9, and we speak version 2"):
        await server_handshake(connection, make_credentials())
    refusal = encode(Refusal("version", "version 2 is spoken here"))
    assert peer.recv(1000) == struct.pack("<I", len(refusal)) + refusal


async def test_a_listener_of_another_version_is_refused_by_the_dialer(pair: Pair, make_credentials: Make) -> None:
    left, right = pair

    async def listen() -> None:
        await right.receive()
        await right.send(Challenge(7, bytes(32)))
        refusal, _fds = await right.receive()
        assert isinstance(refusal, Refusal)
        assert (refusal.kind, refusal.version) == ("version", 2)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        with pytest.raises(ProtocolError, match="it speaks version 7"):
            await client_handshake(left, make_credentials(SECRET), session=TOKEN)


async def test_another_incarnation_than_expected_is_a_lost_peer(pair: Pair, make_credentials: Make) -> None:
    results = await shake(pair, make_credentials(SECRET), make_credentials(SECRET), expected=new_incarnation())
    for error in results:
        assert isinstance(error, PeerLostError)
        assert error.reason == "its process was replaced by a new incarnation"


async def test_the_engine_may_refuse_a_proven_dialer(pair: Pair, make_credentials: Make) -> None:
    dialer = make_credentials(SECRET)
    asked: list[Hello] = []

    def decide(hello: Hello) -> Refusal | None:
        asked.append(hello)
        return Refusal("duplicate", "we dialed\nfirst")

    for error in await shake(pair, dialer, make_credentials(SECRET), decide=decide):
        assert isinstance(error, RefusedError)
        assert error.kind == "duplicate"
        assert "we dialed?first" in str(error)
    assert [hello.info for hello in asked] == [dialer.info]
    assert asked[0].session == TOKEN


async def test_a_slow_loris_meets_the_deadline(raw_pair: RawPair, make_credentials: Make) -> None:
    connection, peer = raw_pair
    peer.sendall(b"\x40\x00")
    with pytest.raises(PeerLostError, match=r"no handshake within 0\.02 s"):
        await server_handshake(connection, make_credentials(), deadline_s=0.02)
    assert connection.is_closed
    refusal = encode(Refusal("closing", "the handshake was given up"))
    assert peer.recv(1000) == struct.pack("<I", len(refusal)) + refusal
    assert peer.recv(1) == b""


async def test_a_silent_listener_meets_the_deadline(raw_pair: RawPair, make_credentials: Make) -> None:
    connection, _peer = raw_pair
    with pytest.raises(PeerLostError, match=r"no handshake within 0\.02 s"):
        await client_handshake(connection, make_credentials(), session=TOKEN, deadline_s=0.02)
    assert connection.is_closed


@pytest.mark.parametrize("frame", [Goodbye("no more"), Message(b"x"), HelloProof(b""), Challenge(2, bytes(32))])
async def test_anything_but_a_hello_ends_the_connection(pair: Pair, make_credentials: Make, frame: Frame) -> None:
    left, right = pair
    left.send_nowait(frame)
    with pytest.raises((ProtocolError, PeerLostError)):
        await server_handshake(right, make_credentials())
    assert right.is_closed


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"\x03\0\0\0\xc1\xc1\xc1"]
)
async def test_other_protocols_end_the_connection(raw_pair: RawPair, make_credentials: Make, data: bytes) -> None:
    connection, peer = raw_pair
    peer.sendall(data)
    with pytest.raises(ProtocolError):
        await server_handshake(connection, make_credentials())
    assert connection.is_closed


async def test_a_dialer_that_hangs_up_is_lost(raw_pair: RawPair, make_credentials: Make) -> None:
    connection, peer = raw_pair
    peer.close()
    with pytest.raises(PeerLostError, match="hung up"):
        await server_handshake(connection, make_credentials())
    assert connection.is_closed


async def test_a_refusal_sent_before_the_hello_is_still_heard(raw_pair: RawPair, make_credentials: Make) -> None:
    connection, peer = raw_pair
    body = encode(Refusal("busy", "come back later"))
    peer.sendall(struct.pack("<I", len(body)) + body)
    peer.close()
    with pytest.raises(RefusedError, match=r"\(busy\): come back later"):
        await client_handshake(connection, make_credentials(), session=TOKEN)


async def test_closing_here_ends_the_handshake(pair: Pair, make_credentials: Make) -> None:
    left, right = pair

    async def wait() -> None:
        with pytest.raises(ClosedError):
            await server_handshake(right, make_credentials())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        right.close()
    with pytest.raises(anyio.EndOfStream):
        await left.receive()


async def test_a_dialer_cancelled_at_the_last_moment_says_so(pair: Pair, make_credentials: Make) -> None:
    left, right = pair
    credentials = make_credentials(SECRET)
    async with anyio.create_task_group() as tasks:

        async def dial() -> None:
            await client_handshake(left, credentials, session=TOKEN)

        tasks.start_soon(dial)
        hello, _fds = await right.receive()
        assert isinstance(hello, Hello)
        await right.send(Challenge(PROTOCOL_VERSION, bytes(32)))
        assert isinstance((await right.receive())[0], HelloProof)
        tasks.cancel_scope.cancel()
    assert await right.receive() == (Goodbye("the dialer gave the handshake up"), ())
    assert left.is_closed


@pytest.mark.parametrize("family", ["unix"], indirect=True)
@pytest.mark.parametrize("side", ["dialer", "listener"])
async def test_another_user_is_refused_over_af_unix(
    pair: Pair, make_credentials: Make, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    left, right = pair
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    credentials = make_credentials(SECRET)
    attempt = (
        client_handshake(left, credentials, session=TOKEN) if side == "dialer" else server_handshake(left, credentials)
    )
    with pytest.raises(AuthenticationError, match="the same user's"):
        await attempt
    frame, _fds = await right.receive()
    assert isinstance(frame, Refusal)
    assert frame.kind == "auth"


async def test_secrets_stay_out_of_sight(make_credentials: Make) -> None:
    assert SECRET.decode() not in repr(make_credentials(SECRET))
    with pytest.raises(UsageError, match="empty secret"):
        make_credentials(b"")


async def test_a_peer_is_named_by_its_label_afterwards(pair: Pair, make_credentials: Make) -> None:
    _left, right = pair
    dialer: PeerInfo = make_credentials(label="node7:42").info
    await shake(pair, Credentials(info=dialer), make_credentials())
    assert right.peer.startswith("node7:42 (")


# -- heartbeat attach -------------------------------------------------------------------------------------------------


async def attach_both(left: Pair, session: Session, incarnation: bytes, answering: Any) -> list[Any]:
    """Attach a heartbeat connection; returns what each side got."""
    dialer, listener = left
    return await outcomes(
        attach_heartbeat(dialer, session, incarnation=incarnation),  # type: ignore[arg-type]
        server_handshake(listener, Credentials(info=session.peer), heartbeat_proofs=answering),  # type: ignore[arg-type]
    )


async def make_session(make_credentials: Make, secret: bytes | None) -> tuple[Session, Session]:
    left, right = (FrameConnection(sock) for sock in socket.socketpair())
    dialed, answered = await shake((left, right), make_credentials(secret), make_credentials(secret))
    assert isinstance(dialed, Session)
    assert isinstance(answered, Session)
    left.close()
    right.close()
    return dialed, answered


@pytest.mark.parametrize("secret", [None, SECRET])
async def test_a_heartbeat_is_attached_to_its_session(pair: Pair, make_credentials: Make, secret: bytes | None) -> None:
    dialed, answered = await make_session(make_credentials, secret)
    result = await attach_both(pair, dialed, answered.peer.incarnation, lambda _attach: answered.proofs)
    assert result[0] is None
    assert isinstance(result[1], HeartbeatConnection)
    assert (result[1].incarnation, result[1].token) == (answered.peer.incarnation, TOKEN)


async def test_a_heartbeat_without_a_waiting_session_is_refused(pair: Pair, make_credentials: Make) -> None:
    dialed, _answered = await make_session(make_credentials, SECRET)
    for error in await attach_both(pair, dialed, new_incarnation(), lambda _attach: None):
        assert isinstance(error, RefusedError)
        assert error.kind == "session"


async def test_a_heartbeat_with_the_proof_of_another_session_is_refused(pair: Pair, make_credentials: Make) -> None:
    dialed, _ = await make_session(make_credentials, SECRET)
    _, other = await make_session(make_credentials, SECRET)
    for error in await attach_both(pair, dialed, new_incarnation(), lambda _attach: other.proofs):
        assert isinstance(error, RefusedError)
        assert error.kind == "session"


async def test_a_listener_outside_the_session_attaches_no_heartbeat(pair: Pair, make_credentials: Make) -> None:
    dialed, answered = await make_session(make_credentials, SECRET)
    wrong = answered.proofs._replace(listener=bytes(32))
    result = await attach_both(pair, dialed, answered.peer.incarnation, lambda _attach: wrong)
    assert isinstance(result[0], AuthenticationError)
    assert pair[0].is_closed


async def test_an_attach_of_another_version_is_named(pair: Pair, make_credentials: Make) -> None:
    left, right = pair
    left.send_nowait(AttachHeartbeat(7, new_incarnation(), TOKEN, bytes(32)))
    with pytest.raises(ProtocolError, match="it speaks version 7"):
        await server_handshake(right, make_credentials())
