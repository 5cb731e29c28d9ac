"""The seam on pyverbs. There is no thread: the device moves the bytes, and ``drain`` does what is left to do."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import weakref
from contextlib import suppress
from socket import htonl, ntohl
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import aio_transfer.drivers as seam
from aio_transfer.drivers import Access, EventKind, Op, Status
from aio_transfer.errors import ProviderError, StaleRegionError, UsageError
from pyverbs.cq import cqe_status_to_str
from pyverbs.mr import MR
from pyverbs.pyverbs_error import PyverbsError

from .device import KIND_BITS, Device
from .link import DEPTH, END, SLOT_NBYTES, End, Link
from .runs import Batch, Remote, Run, parts_of

if TYPE_CHECKING:
    from pyverbs.cq import WC

__all__ = ("PyverbsDriver",)

KEY: Final = struct.Struct("<IIQ")  # a region's number at its owner, its remote key, its address
FRAME: Final = struct.Struct("<BI")  # what a message is, the region meant; the engine's payload follows
PAYLOAD, REVOKE, REVOKED = range(3)
MAX_COUNTERS: Final = 1 << 17  # peers choose the ids: counts for more are dropped
ROUNDS: Final = 8  # of 64 completions in one drain: the event loop has others to serve
NOWHERE: Final = Remote(0, 0, 0, 0)  # what a bare notification names
# infiniband/verbs.h: IBV_WR_*; IBV_WC_SUCCESS, _WR_FLUSH_ERR, _REM_ACCESS_ERR, _RETRY_EXC_ERR; IBV_WC_WITH_IMM; access
WRITE, WRITE_WITH_IMM, READ = 0, 1, 4
OK, FLUSHED, NO_ACCESS, NO_ANSWER = 0, 5, 10, 12
WITH_IMM, LOCAL_WRITE, REMOTE_WRITE, REMOTE_READ = 2, 1, 2, 4


class PyverbsDriver:
    """The twelve methods of :class:`aio_transfer.drivers.Driver`, and below them what completions mean."""

    def __init__(self, device: str, address: str) -> None:
        """Remember what to open."""
        self._wanted = device, address
        self._ours: dict[int, MR] = {}
        self._theirs = {int(seam.ANY_REGION): NOWHERE}
        self._leaving: dict[int, tuple[MR, set[int]]] = {}
        self._links: dict[int, Link] = {}
        self._pairs: dict[int, Link] = {}
        self._units: dict[int, int] = {}
        self._armed: dict[int, int] = {}
        self._events: list[seam.Event] = []
        self._totals = dict.fromkeys(("writes", "nbytes", "units"), 0)
        self._pid = 0

    def open(self) -> seam.Capabilities:
        """Open the device."""
        self._device = Device(*self._wanted)
        self._bell_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._ready = select.epoll()
        for fd in (self._bell_fd, self._device.fd):
            self._ready.register(fd, select.EPOLLIN)
        self._pid = os.getpid()
        _open.add(self)
        has: dict[str, Any] = {"provider": "rc", "protocol": "RDMA write with immediate"}
        has["rails"] = (f"{self._device.place.device}:{self._device.place.port}",)
        has["max_message_nbytes"] = SLOT_NBYTES - FRAME.size
        return seam.Capabilities(backend="pyverbs", max_piece_nbytes=1 << 40, **has)

    def register(self, region: int, memory: seam.LocalMemory | seam.RemoteMemory) -> bytes:
        """Register memory with the device, or learn a peer's key."""
        if isinstance(memory, seam.RemoteMemory):
            if len(memory.keys) != KEY.size:
                raise UsageError(f"a key of {len(memory.keys)} B: {KEY.size} B are meant")
            remote = Remote(memory.peer, *KEY.unpack(memory.keys))
            if remote.region in self._links[memory.peer].revoked:
                raise StaleRegionError(f"{remote.region:#x}", f"peer {memory.peer}")
            self._theirs[region] = remote
            return b""
        access = LOCAL_WRITE | REMOTE_WRITE * (Access.REMOTE_WRITE in memory.access)
        access |= REMOTE_READ * (Access.REMOTE_READ in memory.access)
        try:
            mr = self._ours[region] = MR(self._device.pd, memory.nbytes, access, memory.addr)
        except PyverbsError as error:
            raise ProviderError("register", nbytes=memory.nbytes, code_name=f"{error}; see `ulimit -l`") from error
        return KEY.pack(region, mr.rkey, memory.addr)

    def deregister(self, region: int) -> None:
        """Ask all peers to let go: who used the key later would break its pair, and all that is under way on it."""
        if self._theirs.pop(region, None) is None and region in self._ours:
            links = [link for link in self._links.values() if link.connected]
            self._leaving[region] = self._ours.pop(region), {link.number for link in links}
            for link in links:
                link.tell((0, FRAME.pack(REVOKE, region)))
            self._release(region)

    def connect(self, peer: int, remote: seam.Endpoint | None) -> seam.Endpoint:
        """Make both queue pairs, then connect them."""
        try:
            link = self._links.get(peer) or self._links.setdefault(peer, Link(self._device, peer))
            self._pairs |= {pair.qp_num: link for pair in link.pairs}
            if remote is not None:
                link.join(End.unpack(remote.blob))
        except PyverbsError as error:
            raise ProviderError("connect", peer=f"peer {peer}", code_name=str(error)) from error
        return seam.Endpoint(blob=END.pack(*link.end))

    def disconnect(self, peer: int, *, lost: bool) -> None:  # noqa: ARG002
        """Revoke at once, lost or not: what had arrived completes before what is flushed."""
        link = self._links.get(peer)
        if link is None:
            return self._emit(EventKind.FENCED, peer)
        link.end_now()
        for run in link.queue:
            self._stop(run, Status.PEER_LOST)
        for message, _ in link.outbox:
            self._on_message_end(message, is_sent=False)
        link.queue.clear()
        link.outbox.clear()
        return self._bury_if_flushed(link)

    def post(self, transfer: int, runs: Any, pieces: Any) -> bool:
        """Queue a batch, and post as much as fits."""
        wanted, found = np.frombuffer(bytes(runs), seam.RUN), np.frombuffer(bytes(pieces), seam.PIECE)
        batch = Batch(transfer, len(wanted))
        for one in wanted:
            peer, op, ours, theirs = (int(one[name]) for name in ("peer", "op", "local_region", "remote_region"))
            link, remote, mr = self._links.get(peer), self._theirs.get(theirs), self._ours.get(ours)
            parts = parts_of(found[one["first"] :][: one["count"]].tobytes(), self._device.port.max_msg_sz)
            run = Run(batch, op, remote or NOWHERE, mr.lkey if mr else 0, parts)
            if link is None or link.over or remote is None:
                self._stop(run, Status.PEER_LOST if remote else Status.STALE_REGION)
            else:
                link.queue.append(run)
                self._pump(link)
        return not len(wanted)

    def send(self, peer: int, message: int, payload: bytes) -> None:
        """Queue a message."""
        link = self._links.get(peer)
        if link is None or link.over:
            self._emit(EventKind.TRANSFER, message, Status.PEER_LOST)
        else:
            link.tell((message, FRAME.pack(PAYLOAD, 0) + payload))

    def expect(self, counter: int, units: int) -> int:
        """Arm, disarm, read or forget a counter."""
        total = self._units.setdefault(counter, 0) if units >= 0 else self._units.pop(counter, 0)
        self._armed.pop(counter, None)
        if total < units:
            self._armed[counter] = units
        return total

    def fileno(self) -> int:
        """Return an epoll fd of the device's completions, and of events that wait already."""
        return self._ready.fileno()

    def drain(self, limit: int) -> list[seam.Event]:
        """Handle completions, and give events out."""
        if len(self._events) < limit:
            for wc in self._device.completions(ROUNDS):
                self._on_completion(wc)
        taken, self._events = self._events[:limit], self._events[limit:]
        with suppress(BlockingIOError):
            os.eventfd_read(self._bell_fd)
        if self._events or not self._device.armed:
            os.eventfd_write(self._bell_fd, 1)
        return taken

    def statistics(self) -> dict[str, int]:
        """Return running totals."""
        handles = len(self._ours) + len(self._leaving) + len(self._theirs) - 1 + len(self._links)
        return self._totals | {"counts": self._totals["units"] // seam.UNITS_PER_COUNT, "handles": handles}

    def close(self) -> None:
        """End every pair, and free the device."""
        if self._pid == os.getpid():  # in a forked child they are the parent's
            self._pid = 0
            _open.discard(self)
            for link in tuple(self._links.values()):
                link.end_now()
                self._bury(link)
            for region in tuple(self._ours):
                self.deregister(region)  # nobody holds it any more
            self._device.close()
            self._ready.close()
            os.close(self._bell_fd)

    # ------------------------------------------------------------------------------------------- what completions mean

    def _on_completion(self, wc: WC) -> None:
        link = self._pairs.get(wc.qp_num)
        if link is None:
            return  # it was freed with its device
        handlers = self._on_carried, self._on_counted, self._on_sent, self._on_arrived  # CARRIED, COUNTED, …
        link.posted -= 1
        handlers[wc.wr_id & (1 << KIND_BITS) - 1](link, wc, wc.wr_id >> KIND_BITS)
        if wc.status != OK and not link.over and not link.broken:
            link.broken = True
            words = f"{cqe_status_to_str(wc.status)} ({wc.status})"
            self._emit(EventKind.PEER_FAILED, link.number, code=wc.status, payload=words.encode())
        self._bury_if_flushed(link)

    def _on_carried(self, link: Link, wc: WC, _: int) -> None:
        run = link.landed()
        if wc.status == OK:
            self._settle(run)
        else:
            lost = wc.status in (FLUSHED, NO_ANSWER)
            status = Status.PEER_LOST if lost else Status.STALE_REGION if wc.status == NO_ACCESS else Status.PROVIDER
            self._stop(run, status, wc.status, cqe_status_to_str(wc.status))
        self._let_go(link)
        self._pump(link)

    def _on_counted(self, link: Link, wc: WC, _: int) -> None:
        if wc.status == OK and wc.wc_flags & WITH_IMM:
            self._count(ntohl(wc.imm_data))
        if wc.status == OK and not link.over:
            link.on_count()

    def _on_sent(self, link: Link, wc: WC, slot: int) -> None:
        message = link.sending.pop(slot)
        link.free.append(slot)
        self._on_message_end(message, is_sent=wc.status == OK)
        link.tell()

    def _on_message_end(self, message: int, *, is_sent: bool) -> None:
        if message and is_sent:
            self._emit(EventKind.SENT, message)
        elif message:  # those of our own have no number
            self._emit(EventKind.TRANSFER, message, Status.PEER_LOST)

    def _on_arrived(self, link: Link, wc: WC, slot: int) -> None:
        if wc.status != OK:
            return
        frame = link.slots.read(wc.byte_len, slot * SLOT_NBYTES)
        kind, region = FRAME.unpack_from(frame.ljust(FRAME.size, b"\xff"))
        if kind == PAYLOAD:
            self._emit(EventKind.MESSAGE, link.number, payload=frame[FRAME.size :])
        elif kind == REVOKE:
            link.revoked.append(region)
            for remote in self._theirs.values():
                remote.stale |= (remote.peer, remote.region) == (link.number, region)
            link.flying.append(region)  # behind what was posted with its key
            self._let_go(link)
        elif kind == REVOKED and region in self._leaving:
            self._leaving[region][1].discard(link.number)
            self._release(region)
        if not link.over:
            link.await_message(slot)

    def _pump(self, link: Link) -> None:
        """Post while there is room."""
        while link.queue and len(link.flying) < DEPTH:
            run = link.queue[0]
            if run.remote.stale:
                run.stop(Status.STALE_REGION)
            part = None if run.posted else next(run.parts, None)
            if part is None:
                run.posted = True
                self._settle(link.queue.popleft())
                continue
            addr, offset, nbytes, immediate = part
            op = READ if run.op == Op.READ else WRITE if immediate is None else WRITE_WITH_IMM
            there = run.remote.rkey, run.remote.addr + offset
            link.carry(run, op, (addr, nbytes, run.lkey), there, htonl(immediate or 0))
            self._totals["writes"] += run.op == Op.WRITE
            self._totals["nbytes"] += nbytes

    def _stop(self, run: Run, status: int, code: int = 0, words: str = "") -> None:
        run.stop(status, code, words)
        self._settle(run)

    def _settle(self, run: Run) -> None:
        if run.settle():
            self._emit(EventKind.TRANSFER, run.batch.number, *run.batch.fault)

    def _let_go(self, link: Link) -> None:
        """Answer who wants a region back, once nothing that was posted before is under way."""
        while link.flying and isinstance(link.flying[0], int):
            link.tell((0, FRAME.pack(REVOKED, link.flying.popleft())))

    def _release(self, region: int) -> None:
        """Free memory that no peer holds any more."""
        mr, holders = self._leaving[region]
        if not holders:
            del self._leaving[region]
            mr.close()
            self._emit(EventKind.RELEASED, region)

    def _bury_if_flushed(self, link: Link) -> None:
        if link.over and link.posted <= 0:
            self._bury(link)

    def _bury(self, link: Link) -> None:
        """Free a connection. What its device has not flushed ends here: without its pair nothing moves."""
        for pair in link.pairs:
            del self._pairs[pair.qp_num]
        link.close()
        del self._links[link.number]
        for run in link.flying:
            if isinstance(run, Run):
                run.flying = 0
                self._stop(run, Status.PEER_LOST)
        for message in link.sending.values():
            self._on_message_end(message, is_sent=False)
        for region, (_, holders) in tuple(self._leaving.items()):
            holders.discard(link.number)
            self._release(region)
        self._emit(EventKind.FENCED, link.number)

    def _count(self, immediate: int) -> None:
        counter, units = immediate & seam.MAX_COUNTER_ID, (immediate >> seam.COUNTER_ID_BITS) + 1
        if counter not in self._units and (counter & seam.PRIVATE_COUNTER_BIT or len(self._units) >= MAX_COUNTERS):
            return  # a private one that its owner has forgotten, or never had
        total = self._units[counter] = self._units.get(counter, 0) + units
        self._totals["units"] += units
        if total >= self._armed.get(counter, total + 1):
            del self._armed[counter]
            self._emit(EventKind.COUNTER, counter, code=total)

    def _emit(self, kind: EventKind, number: int, status: int = 0, code: int = 0, payload: bytes = b"") -> None:
        self._events.append(seam.Event(kind, number, status, code, payload))
        os.eventfd_write(self._bell_fd, 1)


_open: weakref.WeakSet[PyverbsDriver] = weakref.WeakSet()


def _keep() -> None:
    """Let a forked child never free what is its parent's too: the kernel would obey."""
    for driver in _open:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(driver))


os.register_at_fork(after_in_child=_keep)
