"""The seam on pyverbs. It has no thread: the device moves the bytes, and ``drain`` does what is left to do."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import weakref
from contextlib import suppress
from socket import htonl, ntohl
from threading import Timer
from time import monotonic
from typing import TYPE_CHECKING, Final

import numpy as np
from pyverbs.cq import cqe_status_to_str
from pyverbs.mr import MR
from pyverbs.pyverbs_error import PyverbsError

import aio_transfer.drivers as seam
from aio_transfer.drivers import Access, EventKind, Op, Status
from aio_transfer.errors import ProviderError, StaleRegionError, UnsupportedError, UsageError

from .device import Device
from .endpoint import End
from .link import DEPTH, KIND_BITS, LINK_BITS, SLOT_NBYTES, Link
from .transfers import Batch, Remote, Run, parts_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pyverbs.cq import WC

__all__ = ("PyverbsDriver",)

KEY: Final = struct.Struct("<IIQ")
"""A region's number at its owner, its remote key, its address."""
FRAME: Final = struct.Struct("<BI")
"""What a message is, and the region meant. Payload follows where it is the engine's."""
PAYLOAD, REVOKE, REVOKED = range(3)
MAX_COUNTERS: Final = 1 << 17
"""Peers choose the ids: counts for more are dropped."""
ROUNDS: Final = 8
"""Of 64 completions per ``drain``: the event loop has others to serve."""
FLUSH_S: Final = 2.0
"""A device that has not flushed a pair by then is gone, and so is what it did for it."""
NOWHERE: Final = Remote(0, 0, 0, 0)
"""What a bare notification names."""

# infiniband/verbs.h
WRITE, WRITE_WITH_IMM, READ = 0, 1, 4
OK, FLUSHED, NO_ACCESS, NO_ANSWER = 0, 5, 10, 12
WITH_IMM: Final = 2
ACCESS: Final = {Access.REMOTE_WRITE: 2, Access.REMOTE_READ: 4}
LOCAL_WRITE: Final = 1


class PyverbsDriver:
    """The twelve methods of :class:`aio_transfer.drivers.Driver`, and below them what completions mean."""

    def __init__(self, *, device: str, address: str) -> None:
        """Remember what to open."""
        self._wanted = {"device": device, "address": address}
        self._ours: dict[int, tuple[MR, bool]] = {}
        self._theirs = {int(seam.ANY_REGION): NOWHERE}
        self._leaving: dict[int, tuple[MR, set[int]]] = {}
        self._links: dict[int, Link] = {}
        self._ending: dict[int, tuple[float, Timer]] = {}
        self._units: dict[int, int] = {}
        self._armed: dict[int, int] = {}
        self._events: list[seam.Event] = []
        self._totals = dict.fromkeys(("writes", "nbytes", "units"), 0)
        self._draining = False
        self._pid = 0

    def open(self) -> seam.Capabilities:
        """Open the device."""
        self._device = Device(**self._wanted)
        self._bell_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._ready = select.epoll()
        for fd in (self._bell_fd, self._device.fd):
            self._ready.register(fd, select.EPOLLIN)
        self._pid = os.getpid()
        _open.add(self)
        place = self._device.place
        return seam.Capabilities(
            backend="pyverbs",
            provider="rc",
            rails=(f"{place.device}:{place.port}",),
            max_piece_nbytes=1 << 40,
            max_message_nbytes=SLOT_NBYTES - FRAME.size,
            protocol="RDMA write with immediate",
        )

    def register(self, region: int, memory: seam.LocalMemory | seam.RemoteMemory) -> bytes:
        """Register memory with the device, or learn a peer's keys."""
        if isinstance(memory, seam.RemoteMemory):
            if len(memory.keys) != KEY.size:
                raise UsageError(f"a key of {len(memory.keys)} B: {KEY.size} B are meant")
            remote = Remote(memory.peer, *KEY.unpack(memory.keys))
            if remote.region in self._links[memory.peer].revoked:
                raise StaleRegionError(f"{remote.region:#x}", f"peer {memory.peer}")
            self._theirs[region] = remote
            return b""
        access = LOCAL_WRITE | sum(flag for kind, flag in ACCESS.items() if kind in memory.access)
        try:
            mr = MR(self._device.pd, memory.nbytes, access, memory.addr)
        except PyverbsError as error:
            raise ProviderError("register", nbytes=memory.nbytes, code_name=f"{error}; see `ulimit -l`") from error
        self._ours[region] = mr, access != LOCAL_WRITE
        return KEY.pack(region, mr.rkey, memory.addr)

    def deregister(self, region: int) -> None:
        """Ask every peer to let go. One that used the key afterwards would break its pair, with all that is on it."""
        self._theirs.pop(region, None)
        if region not in self._ours:
            return
        mr, is_reachable = self._ours.pop(region)
        holders = {number for number, link in self._links.items() if link.connected and is_reachable}
        self._leaving[region] = mr, holders
        for number in tuple(holders):
            self._tell(self._links[number], FRAME.pack(REVOKE, region))
        self._release(region)

    def connect(self, peer: int, remote: seam.Endpoint | None) -> seam.Endpoint:
        """Make both queue pairs, then connect them."""
        try:
            if peer not in self._links:
                self._links[peer] = Link(self._device, peer)
            link = self._links[peer]
            if remote is not None:
                link.join(End.unpack(remote.blob))
        except PyverbsError as error:
            raise ProviderError("connect", peer=f"peer {peer}", code_name=str(error)) from error
        return seam.Endpoint(blob=link.end.pack())

    def disconnect(self, peer: int, *, lost: bool) -> None:  # noqa: ARG002
        """Revoke at once, lost or not: what had arrived is completed before what is flushed."""
        link = self._links.get(peer)
        if link is None:
            return self._emit(EventKind.FENCED, peer)
        link.end_now()
        timer = Timer(FLUSH_S, os.eventfd_write, (self._bell_fd, 1))
        self._ending[peer] = monotonic() + FLUSH_S, timer
        timer.daemon = True
        timer.start()
        self._abandon(link)
        return self._bury_if_flushed(link)

    def post(self, transfer: int, runs: NDArray[np.void] | bytes, pieces: NDArray[np.void] | bytes) -> bool:
        """Queue a batch, and post as much as fits."""
        wanted, found = np.frombuffer(bytes(runs), seam.RUN), np.frombuffer(bytes(pieces), seam.PIECE)
        batch = Batch(transfer, len(wanted))
        for one in wanted:
            link, remote = self._links.get(int(one["peer"])), self._theirs.get(int(one["remote_region"]))
            first, local = int(one["first"]), self._ours.get(int(one["local_region"]))
            parts = parts_of(found[first : first + int(one["count"])].tobytes(), self._device.port.max_msg_sz)
            run = Run(batch, int(one["op"]), remote or NOWHERE, local[0].lkey if local else 0, parts)
            if link is None or link.over or remote is None:
                run.stop(Status.PEER_LOST if remote else Status.STALE_REGION)
                self._settle(run)
            else:
                link.queue.append(run)
                self._pump(link)
        return not len(wanted)

    def send(self, peer: int, message: int, payload: bytes) -> None:
        """Queue a message."""
        link = self._links.get(peer)
        if link is None or link.over:
            self._emit(EventKind.TRANSFER, message, Status.PEER_LOST)
        elif len(payload) > SLOT_NBYTES - FRAME.size:
            raise UnsupportedError("a message", needs=f"{len(payload)} B", has=f"{SLOT_NBYTES - FRAME.size} B")
        else:
            self._tell(link, FRAME.pack(PAYLOAD, 0) + payload, message)

    def expect(self, counter: int, units: int) -> int:
        """Arm, disarm, read or forget a counter."""
        total = self._units.setdefault(counter, 0) if units >= 0 else self._units.pop(counter, 0)
        self._armed.pop(counter, None)
        if total < units:
            self._armed[counter] = units
        return total

    def fileno(self) -> int:
        """Return an epoll fd: of the device's completions, and of events that wait already."""
        return self._ready.fileno()

    def drain(self, limit: int) -> list[seam.Event]:
        """Handle completions, and give out events."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._bell_fd)
        self._draining = True
        if len(self._events) < limit:
            for wc in self._device.completions(ROUNDS):
                self._on_completion(wc)
        for peer, (ends, _) in tuple(self._ending.items()):
            if monotonic() > ends:
                self._bury(self._links[peer])
        self._draining = False
        taken, self._events = self._events[:limit], self._events[limit:]
        if self._events or not self._device.is_armed:
            os.eventfd_write(self._bell_fd, 1)
        return taken

    def statistics(self) -> dict[str, int]:
        """Return running totals."""
        handles = len(self._ours) + len(self._leaving) + len(self._theirs) - 1 + len(self._links)
        return self._totals | {"counts": self._totals["units"] // seam.UNITS_PER_COUNT, "handles": handles}

    def close(self) -> None:
        """End every pair, and free the device."""
        if self._pid != os.getpid():  # in a forked child they are the parent's
            return
        self._pid = 0
        _open.discard(self)
        for link in tuple(self._links.values()):
            link.end_now()
            self._bury(link)
        for mr in [mr for mr, _ in (*self._ours.values(), *self._leaving.values())]:
            mr.close()
        self._ours.clear()
        self._leaving.clear()
        self._device.close()
        self._ready.close()
        os.close(self._bell_fd)

    # ------------------------------------------------------------------------------------------------- completions

    def _on_completion(self, wc: WC) -> None:
        link = self._links.get(wc.wr_id >> LINK_BITS)
        if link is None:
            return  # closed before it was flushed
        link.posted -= 1
        # In the order of CARRIED, COUNTED, SENT, ARRIVED.
        handlers = (self._on_carried, self._on_counted, self._on_sent, self._on_arrived)
        handlers[wc.wr_id & (1 << KIND_BITS) - 1](link, wc)
        if wc.status != OK and not link.over and not link.broken:
            link.broken = True
            words = f"{cqe_status_to_str(wc.status)} ({wc.status})"
            self._emit(EventKind.PEER_FAILED, link.number, code=wc.status, payload=words.encode())
        self._bury_if_flushed(link)

    def _on_carried(self, link: Link, wc: WC) -> None:
        run = link.landed()
        if wc.status != OK:
            lost = wc.status in (FLUSHED, NO_ANSWER)
            status = Status.PEER_LOST if lost else Status.STALE_REGION if wc.status == NO_ACCESS else Status.PROVIDER
            run.stop(status, wc.status, cqe_status_to_str(wc.status))
        self._settle(run)
        self._let_go(link)
        self._pump(link)

    def _on_counted(self, link: Link, wc: WC) -> None:
        if wc.status == OK and wc.wc_flags & WITH_IMM:
            self._count(ntohl(wc.imm_data))
        if wc.status == OK and not link.over:
            link.await_count()

    def _on_sent(self, link: Link, wc: WC) -> None:
        message = link.sent(wc)
        if message and wc.status == OK:
            self._emit(EventKind.SENT, message)
        elif message:
            self._emit(EventKind.TRANSFER, message, Status.PEER_LOST)
        link.pump_messages()

    def _on_arrived(self, link: Link, wc: WC) -> None:
        if wc.status != OK:
            return
        frame = link.message(wc)
        kind, region = FRAME.unpack_from(frame.ljust(FRAME.size, b"\xff"))
        if kind == PAYLOAD:
            self._emit(EventKind.MESSAGE, link.number, payload=frame[FRAME.size :])
        elif kind == REVOKE:
            link.revoked.append(region)
            for remote in self._theirs.values():
                remote.stale |= remote.peer == link.number and remote.region == region
            link.flying.append(region)  # behind what was posted with its key
            self._let_go(link)
        elif kind == REVOKED and region in self._leaving:
            self._leaving[region][1].discard(link.number)
            self._release(region)
        if not link.over:
            link.await_message(link.slot(wc))

    # -------------------------------------------------------------------------------------------- what follows

    def _pump(self, link: Link) -> None:
        """Post while there is room."""
        while link.queue and len(link.flying) < DEPTH and not link.over:
            run = link.queue[0]
            if run.remote.stale:
                run.stop(Status.STALE_REGION)
            part = next(run.parts, None) if run.parts else None
            if part is None:
                run.parts = None
                link.queue.popleft()
                self._settle(run)
                continue
            write = WRITE if part.immediate is None else WRITE_WITH_IMM
            there = run.remote.rkey, run.remote.addr + part.remote_offset
            here = part.local_addr, part.nbytes, run.lkey
            link.carry(run, READ if run.op == Op.READ else write, here, there, htonl(part.immediate or 0))
            self._totals["writes"] += run.op == Op.WRITE
            self._totals["nbytes"] += part.nbytes

    def _settle(self, run: Run) -> None:
        """Tell of a batch whose last run has stopped."""
        if run.settle():
            batch = run.batch
            self._emit(EventKind.TRANSFER, batch.number, batch.status, batch.code, batch.text.encode())

    def _let_go(self, link: Link) -> None:
        """Tell the owner of a region once nothing that was posted before is under way."""
        while link.flying and isinstance(link.flying[0], int):
            self._tell(link, FRAME.pack(REVOKED, link.flying.popleft()))

    def _tell(self, link: Link, frame: bytes, message: int = 0) -> None:
        if not link.over:
            link.tell(message, frame)

    def _release(self, region: int) -> None:
        """Free memory that no peer holds any more."""
        mr, holders = self._leaving[region]
        if not holders:
            del self._leaving[region]
            mr.close()
            self._emit(EventKind.RELEASED, region)

    def _abandon(self, link: Link) -> None:
        """End what is not posted."""
        for run in link.queue:
            run.stop(Status.PEER_LOST)
            self._settle(run)
        for message in filter(None, (message for message, _ in link.outbox)):
            self._emit(EventKind.TRANSFER, message, Status.PEER_LOST)
        link.queue.clear()
        link.outbox.clear()

    def _bury_if_flushed(self, link: Link) -> None:
        if link.over and not link.posted:
            self._bury(link)

    def _bury(self, link: Link) -> None:
        """Free a connection. What was not flushed ends here, for without its pair nothing moves."""
        link.close()
        if link.number in self._ending:
            _, timer = self._ending.pop(link.number)
            timer.cancel()
            timer.join()
        for run in link.flying:
            if isinstance(run, Run):
                run.flying = 0
                run.stop(Status.PEER_LOST)
                self._settle(run)
        for message in filter(None, link.sending.values()):
            self._emit(EventKind.TRANSFER, message, Status.PEER_LOST)
        del self._links[link.number]
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
        if not self._events and not self._draining:
            os.eventfd_write(self._bell_fd, 1)
        self._events.append(seam.Event(kind, number, status, code, payload))


_open: weakref.WeakSet[PyverbsDriver] = weakref.WeakSet()


def _keep() -> None:
    """Never let a forked child destroy what it has in common with its parent: the kernel would obey."""
    for driver in _open:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(driver))


os.register_at_fork(after_in_child=_keep)
