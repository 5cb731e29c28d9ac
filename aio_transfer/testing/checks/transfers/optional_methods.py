# ruff: noqa: D401 - a docstring is the promise itself; what counts is due, is written out
"""Checks of the optional methods of a driver, ``post_each`` and ``spin_wait``, on drivers without an engine."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Final

from aio_transfer.driver.backend_registry import load
from aio_transfer.driver.protocol import LocalMemory, PreparedDriver, RemoteMemory, SpinningDriver
from aio_transfer.driver.records import (
    PIECE_STRUCT,
    RUN_STRUCT,
    Access,
    CounterId,
    EventKind,
    Op,
    PeerNumber,
    PieceFlag,
    RegionNumber,
    Status,
    TransferId,
)
from aio_transfer.memory.allocation import allocate
from aio_transfer.testing.assertions import ConformanceError, claim
from aio_transfer.testing.fixtures import until
from aio_transfer.testing.registry import check
from aio_transfer.testing.timeouts import patient

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aio_transfer.testing.spec import Spec

_NBYTES: Final = 256
_OURS, _THEIRS = RegionNumber(3), 100
_COUNTER: Final = CounterId(5)
_SPIN_MAX_S: Final = 0.5
"""Far above the 100 µs that a driver may poll, and far below a driver that waits for a count that does not come."""


class _Node:
    """One open driver with a registered buffer; its peers are numbered from 1 on."""

    def __init__(self, spec: Spec, others: list[_Node]) -> None:
        self.others = others
        self.driver = load(spec.backend).make_driver(spec.options)
        self.capabilities = self.driver.open()
        self.memory = allocate(_NBYTES)
        self.array = self.memory.array()
        access = Access.REMOTE_READ | Access.REMOTE_WRITE
        local = LocalMemory(addr=self.memory.address, nbytes=_NBYTES, access=access, fd=self.memory.fd)
        self.keys = self.driver.register(_OURS, local)
        self.peers = 0
        self.events: list[tuple[int, int, int, int, bytes]] = []

    def connect(self, other: _Node) -> None:
        """Connect both ends, and make the other's buffer region ``_THEIRS`` plus its peer number."""
        self.peers += 1
        other.peers += 1
        mine, yours = PeerNumber(self.peers), PeerNumber(other.peers)
        end, far_end = self.driver.connect(mine, None), other.driver.connect(yours, None)
        self.driver.connect(mine, far_end)
        other.driver.connect(yours, end)
        fds = (other.memory.fd,) if other.capabilities.grants else ()
        remote = RemoteMemory(peer=mine, nbytes=_NBYTES, keys=other.keys, fds=fds)
        self.driver.register(RegionNumber(_THEIRS + mine), remote)

    async def event(self, kind: EventKind, number: int) -> int:
        """Wait for an event, remove it, and return its status."""

        def find() -> list[tuple[int, int, int, int, bytes]]:
            self.drain()
            return [event for event in self.events if event[:2] == (kind, number)]

        await until(find, lambda: f"no {kind.name} event of {number} in {self.events}")
        found = find()[0]
        self.events.remove(found)
        return found[2]

    async def until_count(self, count: int) -> None:
        """Wait until the counter has been raised so often, and demand that it was not raised more often."""

        def total() -> int:
            self.drain()
            return self.driver.expect(_COUNTER, 0)

        await until(lambda: total() >= count, lambda: f"{total()} counts have come, {count} were due")
        claim(total() == count, f"{total()} counts have come, {count} were due")

    def drain(self) -> None:
        """Take the events of all drivers: some have no thread, and make progress only here."""
        for node in self.others:
            node.events += node.driver.drain(64)

    def batch(self, peers: Sequence[int], nbytes: int) -> tuple[bytes, bytes]:
        """Return runs and pieces that write to each peer once, from another part of our buffer, with one count."""
        runs = [RUN_STRUCT.pack(peer, 0, Op.WRITE, _OURS, _THEIRS + peer, i, 1, 0) for i, peer in enumerate(peers)]
        addr, counted = self.memory.address, (_COUNTER, PieceFlag.IMMEDIATE)
        pieces = [PIECE_STRUCT.pack(addr + i * nbytes, i, nbytes, *counted) for i in range(len(peers))]
        return b"".join(runs), b"".join(pieces)

    async def post_each(self, first: int, peers: Sequence[int], nbytes: int) -> list[int]:
        """Write to each peer with one call, and return the status of each transfer."""
        driver = self.driver
        if not isinstance(driver, PreparedDriver):
            raise ConformanceError(f"{driver!r} has no post_each any more")
        pending = list(driver.post_each(TransferId(first), *self.batch(peers, nbytes)))
        claim(sorted(set(pending)) == pending, f"post_each returned {pending}: indices are due, each once and in order")
        return [
            await self.event(EventKind.TRANSFER, first + index) if index in pending else Status.OK
            for index in range(len(peers))
        ]

    def spin_wait(self, counts: int) -> int:
        """Busy-poll the counter, and demand that this ends soon."""
        driver = self.driver
        if not isinstance(driver, SpinningDriver):
            raise ConformanceError(f"{driver!r} has no spin_wait any more")
        began = time.perf_counter()
        total = driver.spin_wait(_COUNTER, counts)
        spent = time.perf_counter() - began
        claim(spent < patient(_SPIN_MAX_S), f"spin_wait took {spent * 1e3:.0f} ms: 0.1 ms is the most")
        return total

    def close(self) -> None:
        """Close the driver and free the buffer."""
        self.driver.close()
        del self.array
        self.memory.close()


@contextlib.contextmanager
def _nodes(spec: Spec, count: int) -> Iterator[list[_Node]]:
    """Open several drivers, of which the first is connected to all others."""
    nodes: list[_Node] = []
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            nodes.append(_Node(spec, nodes))
            stack.callback(nodes[-1].close)
        for other in nodes[1:]:
            nodes[0].connect(other)
        yield nodes


@check("rule 3", "post_each")
async def check_post_each_writes_to_each(spec: Spec) -> None:
    """Every run of a post_each writes its payload to its own peer, and counts there once."""
    with _nodes(spec, 4) as (sender, *targets):
        sender.array[:] = spec.rng().integers(1, 256, _NBYTES, "u1")
        for calls, nbytes in enumerate((64, 0, 17), 1):
            for target in targets:
                target.array[:] = 0
            ended = await sender.post_each(10 * calls, [1, 2, 3], nbytes)
            claim(ended == [Status.OK] * 3, f"the transfers of {nbytes} B ended with {ended}")
            for index, target in enumerate(targets):
                await target.until_count(calls)
                due = sender.array[index * nbytes :][:nbytes]
                claim((target.array[index : index + nbytes] == due).all(), f"target {index} has other bytes")
                outside = int(target.array.astype(bool).sum()) - nbytes
                claim(outside == 0, f"{outside} bytes beside those named were written at target {index}")


@check("rule 6", "post_each")
async def check_post_each_fails_one_alone(spec: Spec) -> None:
    """A run to a peer that is gone fails alone: its event is a failure, and the others of the same call arrive."""
    with _nodes(spec, 3) as (sender, *targets):
        await sender.post_each(10, [1, 2], 8)
        sender.driver.disconnect(PeerNumber(1), lost=True)
        await sender.event(EventKind.FENCED, 1)
        ended = await sender.post_each(20, [1, 2], 8)
        claim(ended[0] != Status.OK, "a transfer to a disconnected peer ended without failure")
        claim(ended[1] == Status.OK, f"the transfer to the other peer ended with {ended[1]}")
        await targets[1].until_count(2)


@check("rule 5", "spin_wait")
async def check_spin_wait_returns_the_total(spec: Spec) -> None:
    """A spin_wait returns the true total, soon also when it is too low, and counts that come later are reported."""
    with _nodes(spec.spinning(), 2) as (sender, target):
        claim(target.spin_wait(1) == 0, "spin_wait returned counts that nobody sent")
        sent = 2
        for transfer in range(1, sent + 1):
            if not sender.driver.post(TransferId(transfer), *sender.batch([1], 8)):
                await sender.event(EventKind.TRANSFER, transfer)
        await until(lambda: target.spin_wait(sent) >= sent, lambda: f"spin_wait returned {target.spin_wait(sent)}")
        total = target.spin_wait(7)
        claim(total == sent, f"spin_wait(7) returned {total} after {sent} counts")
        total = target.driver.expect(_COUNTER, sent + 1)
        claim(total == sent, f"expect returned {total} after {sent} counts")
        sender.driver.post(TransferId(sent + 1), *sender.batch([1], 0))
        await target.event(EventKind.COUNTER, _COUNTER)
        total = target.spin_wait(sent + 1)
        claim(total == sent + 1, f"spin_wait returned {total} after {sent + 1} counts")
