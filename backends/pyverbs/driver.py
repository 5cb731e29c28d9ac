"""The seam on pyverbs. There is no thread: the device moves the bytes, and ``drain`` does what is left to do."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import weakref
from socket import htonl, ntohl
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from pyverbs.cq import cqe_status_to_str
from pyverbs.mr import MR
from pyverbs.pyverbs_error import PyverbsError

import aio_transfer.driver as seam
from aio_transfer.backends.pyverbs.connection import DEPTH, LOCAL_WRITE, SLOT_NBYTES, Lane, Link
from aio_transfer.backends.pyverbs.device import ARRIVED, CARRIED, Device
from aio_transfer.backends.pyverbs.work_requests import PostedBatch, Remote, Run, parts_of
from aio_transfer.driver.event_queue import EventQueue
from aio_transfer.driver.records import Access, EventKind, Op, Status
from aio_transfer.errors import ProviderError, StaleRegionError, UsageError

if TYPE_CHECKING:
    from pyverbs.cq import WC

__all__ = ("PyverbsDriver",)

KEY: Final = struct.Struct("<IIQ")  # a region's number at its owner, its remote key, its address
FRAME: Final = struct.Struct("<BI")  # what a message is, the region meant; the engine's payload follows
PAYLOAD, REVOKE, REVOKED = range(3)
ROUNDS: Final = 8  # of 64 completions in one drain: the event loop has others to serve
NOWHERE: Final = Remote(0, 0, 0, 0)  # what a bare notification names
# infiniband/verbs.h: IBV_WR_*; IBV_WC_SUCCESS, _WR_FLUSH_ERR, _REM_ACCESS_ERR, _RETRY_EXC_ERR; IBV_WC_WITH_IMM; access
WRITE, SEND, READ = 0, 2, 4  # and 1 is a write with immediate
OK, FLUSHED, NO_ACCESS, NO_ANSWER = 0, 5, 10, 12
WITH_IMM, REMOTE_WRITE, REMOTE_READ = 2, 2, 4


class PyverbsDriver:
    """The twelve methods of :class:`aio_transfer.driver.protocol.Driver`, and below them what completions mean."""

    def __init__(self, device: str, address: str) -> None:
        """Remember what to open."""
        self._wanted = device, address
        self._ours: dict[int, MR] = {}
        self._theirs = {int(seam.ANY_REGION): NOWHERE}
        self._leaving: dict[int, tuple[MR, set[int]]] = {}
        self._links: dict[int, Link] = {}
        self._lanes: dict[int, tuple[Link, Lane]] = {}
        self._pid = 0

    def open(self) -> seam.Capabilities:
        """Open the device."""
        self._device = Device(*self._wanted)
        self._events = EventQueue()
        self._ready = select.epoll()
        for fd in (self._events.fileno(), self._device.fd):
            self._ready.register(fd, select.EPOLLIN)
        self._pid = os.getpid()
        _open.add(self)
        has: dict[str, Any] = {"provider": "rc", "protocol": "RDMA write with immediate"}
        has["rails"] = (f"{self._device.name}:{self._device.port_number}",)
        has["max_message_nbytes"] = SLOT_NBYTES - FRAME.size
        return seam.Capabilities(backend="pyverbs", max_piece_nbytes=1 << 40, **has)

    def register(self, region: int, memory: seam.LocalMemory | seam.RemoteMemory) -> bytes:
        """Register memory with the device, or learn a peer's key."""
        if isinstance(memory, seam.RemoteMemory):
            if len(memory.keys) != KEY.size:
                raise UsageError(f"a key of {len(memory.keys)} B: {KEY.size} B are meant")
            remote = Remote(memory.peer, *KEY.unpack(memory.keys))
            link = self._links.get(memory.peer)
            if link is None or remote.region in link.revoked:
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
        remote = self._theirs.pop(region, None)
        if remote is not None:
            remote.stale = True  # runs that are queued still hold it, and its owner may free it
        elif region in self._ours:
            links = [link for link in self._links.values() if link.connected]
            self._leaving[region] = self._ours.pop(region), {link.number for link in links}
            for link in links:
                self._send_frame(link, FRAME.pack(REVOKE, region))
            self._release(region)

    def connect(self, peer: int, remote: seam.Endpoint | None) -> seam.Endpoint:
        """Make both queue pairs, then connect them."""
        try:
            link = self._links.get(peer) or self._links.setdefault(peer, Link(self._device, peer))
            self._lanes |= {lane.pair.qp_num: (link, lane) for lane in link.lanes}
            if remote is not None:
                link.join(remote.blob)
        except PyverbsError as error:
            raise ProviderError("connect", peer=f"peer {peer}", code_name=str(error)) from error
        return seam.Endpoint(blob=link.end)

    def disconnect(self, peer: int, *, lost: bool) -> None:  # noqa: ARG002
        """Revoke at once, lost or not: what had arrived completes before what is flushed."""
        link = self._links.get(peer)
        if link is None:
            return self._events.emit(EventKind.FENCED, peer)
        link.end_now()
        for lane in link.lanes:
            for run in lane.queue:
                self._settle(run, Status.PEER_LOST)
            lane.queue.clear()
        return self._teardown(link) if link.is_flushed else None

    def post(self, transfer: int, runs: Any, pieces: Any) -> bool:
        """Queue a batch, and post as much as fits."""
        wanted, found = np.frombuffer(bytes(runs), seam.RUN), np.frombuffer(bytes(pieces), seam.PIECE)
        batch = PostedBatch(transfer, len(wanted))
        if wanted["after"].any():
            raise UsageError("a run that follows others: there is one rail, and a pair cuts pieces itself")
        for one in wanted:
            peer, op, ours, theirs = (int(one[name]) for name in ("peer", "op", "local_region", "remote_region"))
            link, remote, mr = self._links.get(peer), self._theirs.get(theirs), self._ours.get(ours)
            most = self._device.read_nbytes if op == Op.READ else self._device.write_nbytes
            parts = parts_of(found[one["first"] :][: one["count"]].tobytes(), most)
            run = Run(batch, READ if op == Op.READ else WRITE, remote or NOWHERE, mr.lkey if mr else 0, parts)
            if link is None or link.over or remote is None:
                self._settle(run, Status.PEER_LOST if remote else Status.STALE_REGION)
            else:
                link.data.queue.append(run)
                self._pump(link.data)
        return not len(wanted)

    def send(self, peer: int, message: int, payload: bytes) -> None:
        """Queue a message."""
        link = self._links.get(peer)
        if link is None or link.over:
            self._events.emit(EventKind.TRANSFER, message, Status.PEER_LOST)
        else:
            self._send_frame(link, FRAME.pack(PAYLOAD, 0) + payload, message)

    def expect(self, counter: seam.CounterId, counts: int) -> int:
        """Arm, disarm, read or forget a counter."""
        return self._events.expect(counter, counts)

    def fileno(self) -> int:
        """Return an epoll fd of the device's completions, and of events that wait already."""
        return self._ready.fileno()

    def drain(self, limit: int) -> list[seam.Event]:
        """Handle completions, and give events out."""
        if len(self._events) < limit:
            for wc in self._device.completions(ROUNDS):
                self._on_completion(wc)
        taken = self._events.take(limit)
        if not self._device.armed:
            self._events.ring()
        return taken

    def statistics(self) -> dict[str, int]:
        """Return running totals."""
        handles = len(self._ours) + len(self._leaving) + len(self._theirs) - 1 + len(self._links)
        return self._events.totals | {"handles": handles}

    def close(self) -> None:
        """End every pair, and free the device."""
        if self._pid == os.getpid():  # in a forked child they are the parent's
            self._pid = 0
            _open.discard(self)
            for link in tuple(self._links.values()):
                link.end_now()
                self._teardown(link)
            for region in tuple(self._ours):
                self.deregister(region)  # nobody holds it any more
            self._device.close()
            self._ready.close()
            self._events.close()

    # ------------------------------------------------------------------------------------------- what completions mean

    def _on_completion(self, wc: WC) -> None:
        if wc.qp_num not in self._lanes:
            return  # it was freed with its device
        link, lane = self._lanes[wc.qp_num]
        is_fine = wc.status == OK
        if wc.wr_id == CARRIED:
            self._on_carried(link, lane, wc)
        elif is_fine and wc.wr_id >= ARRIVED:
            self._on_frame(link, link.slots.read(wc.byte_len, (wc.wr_id - ARRIVED) * SLOT_NBYTES))
        elif is_fine and wc.wc_flags & WITH_IMM:
            self._events.count(ntohl(wc.imm_data))
        lane.posted -= 1
        if is_fine and not link.over and wc.wr_id >= ARRIVED:
            link.await_message(wc.wr_id - ARRIVED)
        elif is_fine and not link.over and wc.wr_id != CARRIED:
            link.on_count()
        elif not (is_fine or link.over or link.broken):
            link.broken = True
            words = f"{cqe_status_to_str(wc.status)} ({wc.status})"
            self._events.emit(EventKind.PEER_FAILED, link.number, code=wc.status, payload=words.encode())
        if link.is_flushed:
            self._teardown(link)

    def _on_carried(self, link: Link, lane: Lane, wc: WC) -> None:
        lost = wc.status in (FLUSHED, NO_ANSWER)
        status = Status.PEER_LOST if lost else Status.STALE_REGION if wc.status == NO_ACCESS else Status.PROVIDER
        self._settle(lane.landed(), *(() if wc.status == OK else (status, wc.status, cqe_status_to_str(wc.status))))
        self._let_go(link)
        self._pump(lane)

    def _on_frame(self, link: Link, frame: bytes) -> None:
        kind, region = FRAME.unpack_from(frame.ljust(FRAME.size, b"\xff"))
        if kind == PAYLOAD:
            self._events.emit(EventKind.MESSAGE, link.number, payload=frame[FRAME.size :])
        elif kind == REVOKE:
            link.revoked.append(region)
            for remote in self._theirs.values():
                remote.stale |= (remote.peer, remote.region) == (link.number, region)
            link.data.flying.append(region)  # behind what was posted with its key
            self._let_go(link)
        elif kind == REVOKED and region in self._leaving:
            self._leaving[region][1].discard(link.number)
            self._release(region)

    def _pump(self, lane: Lane) -> None:
        """Post while there is room."""
        while lane.queue and len(lane.flying) < DEPTH:
            run = lane.queue[0]
            if run.remote.stale:
                run.stop(Status.STALE_REGION)
            part = None if run.posted else next(run.parts, None)
            if part is None:
                run.posted = True
                self._settle(lane.queue.popleft())
                continue
            addr, offset, nbytes, immediate = part
            there = run.remote.rkey, run.remote.addr + offset
            op = run.op + (immediate is not None)
            lane.carry(run, op, (addr, nbytes, run.lkey), there, htonl(immediate or 0))
            self._events.totals["writes"] += run.op == WRITE
            self._events.totals["nbytes"] += nbytes if run.op != SEND else 0

    def _settle(self, run: Run, *fault: Any) -> None:
        """Report a batch whose last run has stopped. With a fault, this run has nothing more to post."""
        if fault:
            run.stop(*fault)
        batch = run.batch
        if run.settle() and batch.number:  # messages of our own have none
            self._events.emit(EventKind.TRANSFER if batch.fault[0] else batch.end, batch.number, *batch.fault)

    def _send_frame(self, link: Link, frame: bytes, message: int = 0) -> None:
        if not link.over:
            memory = MR(self._device.pd, len(frame), LOCAL_WRITE)
            memory.write(frame, len(frame), 0)
            parts = iter([(memory.buf, 0, len(frame), None)])
            run = Run(PostedBatch(message, 1, EventKind.SENT), SEND, NOWHERE, memory.lkey, parts, memory)
            link.messages.queue.append(run)
            self._pump(link.messages)

    def _let_go(self, link: Link) -> None:
        """Answer who wants a region back, once nothing that was posted before is under way."""
        while link.data.flying and isinstance(link.data.flying[0], int):
            self._send_frame(link, FRAME.pack(REVOKED, link.data.flying.popleft()))

    def _release(self, region: int) -> None:
        """Free memory that no peer holds any more."""
        mr, holders = self._leaving[region]
        if not holders:
            del self._leaving[region]
            mr.close()
            self._events.emit(EventKind.RELEASED, region)

    def _teardown(self, link: Link) -> None:
        """Free a connection. What its device has not flushed ends here: without its pair nothing moves."""
        for lane in link.lanes:
            del self._lanes[lane.pair.qp_num]
        link.close()
        del self._links[link.number]
        for run in [run for lane in link.lanes for run in lane.flying if isinstance(run, Run)]:
            run.flying = min(run.flying, 0)
            self._settle(run, Status.PEER_LOST)
        for region, (_, holders) in tuple(self._leaving.items()):
            holders.discard(link.number)
            self._release(region)
        self._events.emit(EventKind.FENCED, link.number)


_open: weakref.WeakSet[PyverbsDriver] = weakref.WeakSet()


def _keep() -> None:
    """Let a forked child never free what is its parent's too: the kernel would obey."""
    for driver in _open:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(driver))


os.register_at_fork(after_in_child=_keep)
