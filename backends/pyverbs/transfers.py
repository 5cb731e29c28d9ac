"""A batch under way: runs in order to one peer each, cut into what a port can send."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from aio_transfer.drivers import PIECE_STRUCT, PieceFlag, Status

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("Batch", "Part", "Remote", "Run", "parts_of")


class Part(NamedTuple):
    """What one work request carries."""

    local_addr: int
    remote_offset: int
    nbytes: int
    immediate: int | None


class Remote:
    """A peer's region."""

    __slots__ = ("addr", "peer", "region", "rkey", "stale")

    def __init__(self, peer: int, region: int, rkey: int, addr: int) -> None:
        """Name it as its owner does."""
        self.peer, self.region, self.rkey, self.addr = peer, region, rkey, addr
        self.stale = False


class Batch:
    """One post, until its last run has stopped."""

    __slots__ = ("code", "left", "number", "status", "text")

    def __init__(self, number: int, runs: int) -> None:
        """Begin well."""
        self.number, self.left = number, runs
        self.status, self.code, self.text = int(Status.OK), 0, ""

    def fail(self, status: int, code: int, text: str) -> None:
        """Keep the first fault; the others follow from it."""
        if self.status == Status.OK:
            self.status, self.code, self.text = int(status), code, text


class Run:
    """Pieces of a batch that share a peer and both regions."""

    __slots__ = ("batch", "flying", "lkey", "op", "parts", "remote", "settled")

    def __init__(self, batch: Batch, op: int, remote: Remote, lkey: int, parts: Iterator[Part]) -> None:
        """Begin with nothing posted."""
        self.batch, self.op, self.remote, self.lkey = batch, op, remote, lkey
        self.parts: Iterator[Part] | None = parts
        self.flying = 0
        self.settled = False

    def stop(self, status: int, code: int = 0, text: str = "") -> None:
        """Post nothing more of it."""
        self.parts = None
        self.batch.fail(status, code, text)

    def settle(self) -> bool:
        """Say, once, that nothing of it moves or will, and that it was the last of its batch."""
        if self.parts is not None or self.flying or self.settled:
            return False
        self.settled = True
        self.batch.left -= 1
        return not self.batch.left


def parts_of(pieces: bytes, limit: int) -> Iterator[Part]:
    """Cut pieces as the port demands; the last part of each has the immediate.

    An RC pair carries requests out in order, so that the parts before are in place when it counts.
    """
    for addr, offset, nbytes, immediate, flags in PIECE_STRUCT.iter_unpack(pieces):
        at = 0
        while nbytes - at > limit:
            yield Part(addr + at, offset + at, limit, None)
            at += limit
        yield Part(addr + at, offset + at, nbytes - at, immediate if flags & PieceFlag.IMMEDIATE else None)
