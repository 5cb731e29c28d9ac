"""The two queue pairs of a connection, and what is under way on them.

Writes, reads and counts go by the first, whose receives have no room and only tell of immediates. Messages go by the
second.
"""

from __future__ import annotations

import secrets
import struct
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from aio_transfer.errors import UnsupportedError, UsageError
from pyverbs.addr import GID, AHAttr, GlobalRoute
from pyverbs.mr import MR
from pyverbs.pyverbs_error import PyverbsError
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr

from .device import ARRIVED, CARRIED, CHAIN, KIND_BITS, SENT

if TYPE_CHECKING:
    from .device import Device
    from .runs import Run

__all__ = ("DEPTH", "END", "SLOT_NBYTES", "End", "Link")

DEPTH: Final = 128  # writes and reads under way
COUNTS: Final = 8 * CHAIN  # immediates that may come before we look; with more, a sender is told to try again
SLOTS, SLOT_NBYTES = 16, 4096  # messages under way, and as many that may come before we look
COMPLETIONS: Final = DEPTH + COUNTS + 2 * SLOTS
# infiniband/verbs.h: IBV_QPT_RC; IBV_ACCESS_LOCAL_WRITE, and with _REMOTE_WRITE and _REMOTE_READ; IBV_QPS_ERR; …
RC, LOCAL_WRITE, REMOTE, IN_ERROR, STATE, SEND = 2, 1, 1 | 2 | 4, 6, 1, 2
# A lost packet is sent again after 4.096 µs × 2**17 = 0.54 s, six times (seven are for ever on rdma_rxe); a peer without room for an immediate is
# asked again after 0.64 ms, for ever: it is alive, or the engine will say so.
TIMEOUT, RETRIES, RNR_DELAY, RNR_FOR_EVER = 17, 6, 12, 7
END: Final = struct.Struct("<BBBH16sIIII")


class End(NamedTuple):
    """What a peer must know of our end, and of its wire form. ``docs/backends.md`` has the layout for others."""

    version: int
    link_layer: int
    mtu: int
    lid: int
    gid: bytes
    data_qpn: int
    data_psn: int
    message_qpn: int
    message_psn: int

    @classmethod
    def unpack(cls, blob: bytes) -> End:
        """Read what may hold anything."""
        if len(blob) != END.size or blob[0] != 1:
            raise UsageError(f"an endpoint of {len(blob)} B and version {blob[:1].hex()}: {END.size} B, 01 are meant")
        return cls(*END.unpack(blob))

    @property
    def family(self) -> str:
        """What two ends must have in common."""
        mapped = self.gid.startswith(bytes(10) + b"\xff\xff")
        return "InfiniBand" if self.link_layer == 1 else f"RoCE v2 over {'IPv4' if mapped else 'IPv6'}"


class Link:
    """A connection; the engine's number names it."""

    def __init__(self, device: Device, number: int) -> None:
        """Make both pairs, able to receive."""
        self.device, self.number, self.posted, self.taken = device, number, 0, 0
        self.connected = self.over = self.broken = False
        self.queue: deque[Run] = deque()
        # In the order in which the first pair completes; an int is a region that its owner wants back after that.
        self.flying: deque[Run | int] = deque()
        self.outbox: deque[tuple[int, bytes]] = deque()
        self.sending: dict[int, int] = {}
        self.free = list(range(SLOTS))
        self.revoked: deque[int] = deque(maxlen=1024)  # word of one can overtake the grant before it
        device.claim(COMPLETIONS)
        self.slots = MR(device.pd, 2 * SLOTS * SLOT_NBYTES, LOCAL_WRITE)
        self.pairs = self._pair(DEPTH, COUNTS), self._pair(SLOTS, SLOTS)
        qpns, psns = [pair.qp_num for pair in self.pairs], [secrets.randbits(24) for _ in self.pairs]
        port = device.port
        self.end = End(
            1, port.link_layer, port.active_mtu, port.lid, device.place.gid, qpns[0], psns[0], qpns[1], psns[1]
        )
        for _ in range(COUNTS):
            self.on_count()
        for slot in range(SLOTS, 2 * SLOTS):
            self.await_message(slot)

    def _pair(self, sends: int, receives: int) -> QP:
        cap = QPCap(max_send_wr=sends, max_recv_wr=receives)
        attr = QPAttr(port_num=self.device.place.port)
        attr.qp_access_flags = REMOTE
        return QP(self.device.pd, QPInitAttr(RC, scq=self.device.cq, rcq=self.device.cq, cap=cap, sq_sig_all=1), attr)

    def join(self, far: End) -> None:
        """Connect both pairs to the peer's."""
        if self.end.family != far.family:
            raise UnsupportedError("a path to the peer's port", needs=far.family, has=self.end.family)
        place, gid = self.device.place, GID(":".join(far.gid[at : at + 2].hex() for at in range(0, 16, 2)))
        way = GlobalRoute(dgid=gid, sgid_index=place.gid_index, hop_limit=64)
        for pair, psn, far_qpn, far_psn in zip(self.pairs, self.end[6::2], far[5::2], far[6::2], strict=True):
            attr = QPAttr(port_num=place.port, path_mtu=min(self.end.mtu, far.mtu))
            attr.ah_attr = AHAttr(dlid=far.lid, is_global=1, port_num=place.port, gr=way)
            attr.dest_qp_num, attr.rq_psn, attr.sq_psn = far_qpn, far_psn, psn
            attr.max_dest_rd_atomic = attr.max_rd_atomic = self.device.reads
            attr.timeout, attr.retry_cnt, attr.min_rnr_timer, attr.rnr_retry = TIMEOUT, RETRIES, RNR_DELAY, RNR_FOR_EVER
            pair.to_rts(attr)
        self.connected = True

    def _request(self, kind: int, slot: int = 0) -> int:
        self.posted += 1
        return slot << KIND_BITS | kind

    def _slot(self, slot: int, nbytes: int) -> tuple[int, int, int]:
        return self.slots.buf + slot * SLOT_NBYTES, nbytes, self.slots.lkey

    def carry(self, run: Run, op: int, here: tuple[int, int, int], there: tuple[int, int], imm: int) -> None:
        """Post one part of a run."""
        self.device.send(self.pairs[0], self._request(CARRIED), op, here, there, imm)
        self.flying.append(run)
        run.flying += 1

    def landed(self) -> Run:
        """Take what the first pair has completed, in its order."""
        run = self.flying.popleft()
        assert not isinstance(run, int)  # noqa: S101 - one is taken as soon as it comes first
        run.flying -= 1
        return run

    def on_count(self) -> None:
        """Make up for one immediate's room, when it is time for a chain of them."""
        self.taken += 1
        if not self.taken % CHAIN:
            self.device.await_counts(self.pairs[0])
            self.posted += CHAIN

    def await_message(self, slot: int) -> None:
        """Post room for one message."""
        self.device.receive(self.pairs[1], self._request(ARRIVED, slot), self._slot(slot, SLOT_NBYTES))

    def tell(self, *messages: tuple[int, bytes]) -> None:
        """Send messages, as soon as there is room: number, bytes."""
        self.outbox.extend(messages)
        while self.outbox and self.free and not self.over:
            slot, (message, frame) = self.free.pop(), self.outbox.popleft()
            self.slots.write(frame, len(frame), slot * SLOT_NBYTES)
            self.sending[slot] = message
            self.device.send(self.pairs[1], self._request(SENT, slot), SEND, self._slot(slot, len(frame)))

    def end_now(self) -> None:
        """Let nothing in or out any more. What is posted comes back as flushed, after what had arrived."""
        self.over, attr = True, QPAttr(qp_state=IN_ERROR)
        for pair in self.pairs:
            try:
                pair.modify(attr, STATE)
            except PyverbsError:  # gone with its device, which flushes nothing then
                self.posted = 0

    def close(self) -> None:
        """Free both pairs, and with them every access that the peer had."""
        for one in (*self.pairs, self.slots):
            one.close()
        self.device.claim(-COMPLETIONS)
