"""A connection's two queue pairs, each with what waits for it and what is under way on it."""

from __future__ import annotations

import secrets
import struct
from collections import deque
from typing import TYPE_CHECKING, Final

from pyverbs.addr import GID, AHAttr, GlobalRoute
from pyverbs.mr import MR
from pyverbs.pyverbs_error import PyverbsError
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr

from aio_transfer.backends.pyverbs.device import CARRIED, CHAIN
from aio_transfer.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from aio_transfer.backends.pyverbs.device import Device
    from aio_transfer.backends.pyverbs.work_requests import Run

__all__ = ("DEPTH", "LOCAL_WRITE", "SLOT_NBYTES", "Lane", "Link")

DEPTH: Final = 128  # requests under way per pair
COUNTS: Final = 8 * CHAIN  # immediates that may come before we look; with more, a sender is told to try again
SLOTS, SLOT_NBYTES = 16, 4096  # the same for messages
COMPLETIONS: Final = 2 * DEPTH + COUNTS + SLOTS
END: Final = struct.Struct("<BBBH16sIIII")  # docs/reference/verbs-protocol.md
# infiniband/verbs.h: IBV_QPT_RC; IBV_ACCESS_LOCAL_WRITE, and with _REMOTE_WRITE and _REMOTE_READ; IBV_QPS_ERR, its bit
RC, LOCAL_WRITE, REMOTE, IN_ERROR, STATE = 2, 1, 1 | 2 | 4, 6, 1
# A lost packet is sent again after 4.096 µs × 2**17 = 0.54 s, six times (seven are for ever on rdma_rxe); a peer
# without room for an immediate is asked again after 0.64 ms, for ever: it is alive, or the engine will say so.
TIMEOUT, RETRIES, RNR_DELAY, RNR_FOR_EVER = 17, 6, 12, 7


class Lane:
    """One queue pair."""

    def __init__(self, device: Device, receives: int) -> None:
        """Create the queue pair; it receives once its buffers are posted."""
        cap, attr, cq = QPCap(max_send_wr=DEPTH, max_recv_wr=receives), QPAttr(port_num=device.port_number), device.cq
        attr.qp_access_flags = REMOTE
        self.pair = QP(device.pd, QPInitAttr(RC, scq=cq, rcq=cq, cap=cap, sq_sig_all=1), attr)
        self.device, self.psn, self.posted = device, secrets.randbits(24), 0
        self.queue: deque[Run] = deque()
        # In the order in which they complete; an int is a region that its owner wants back after that.
        self.flying: deque[Run | int] = deque()

    def carry(self, run: Run, op: int, here: tuple[int, int, int], there: tuple[int, int], imm: int) -> None:
        """Post one part of a run."""
        self.device.send(self.pair, CARRIED, op, here, there, imm)
        self.flying.append(run)
        run.flying += 1
        self.posted += 1

    def landed(self) -> Run:
        """Take what is completed."""
        run = self.flying.popleft()
        assert not isinstance(run, int)  # noqa: S101 - one is taken as soon as it comes first
        run.flying -= 1
        return run


class Link:
    """A connection; the engine's number names it. Its first lane carries and counts, the other has the messages."""

    def __init__(self, device: Device, number: int) -> None:
        """Make both lanes, able to receive."""
        self.device, self.number, self.taken = device, number, 0
        self.connected = self.over = self.broken = False
        self.revoked: deque[int] = deque(maxlen=1024)  # word of one can overtake the grant before it
        device.claim(COMPLETIONS)
        self.slots = MR(device.pd, SLOTS * SLOT_NBYTES, LOCAL_WRITE)
        self.data, self.messages = self.lanes = Lane(device, COUNTS), Lane(device, SLOTS)
        port, ends = device.port, [end for lane in self.lanes for end in (lane.pair.qp_num, lane.psn)]
        self.end = END.pack(1, port.link_layer, port.active_mtu, port.lid, device.gid, *ends)
        for _ in range(COUNTS):
            self.on_count()
        for slot in range(SLOTS):
            self.await_message(slot)

    def join(self, blob: bytes) -> None:
        """Connect both lanes to the peer's."""
        if len(blob) != END.size or blob[0] != 1:
            raise UsageError(f"an endpoint of {len(blob)} B and version {blob[:1].hex()}: {END.size} B, 01 are meant")
        _, layer, mtu, lid, gid, *ends = END.unpack(blob)
        ours, theirs = _family(self.device.port.link_layer, self.device.gid), _family(layer, gid)
        if ours != theirs:
            raise UnsupportedError("a path to the peer's port", needs=theirs, has=ours)
        far, port = GID(":".join(gid[at : at + 2].hex() for at in range(0, 16, 2))), self.device.port_number
        way = GlobalRoute(dgid=far, sgid_index=self.device.gid_index, hop_limit=64)
        for lane in self.lanes:
            attr = QPAttr(port_num=port, path_mtu=min(mtu, self.device.port.active_mtu))
            attr.ah_attr = AHAttr(dlid=lid, is_global=1, port_num=port, gr=way)
            attr.dest_qp_num, attr.rq_psn, attr.sq_psn = ends.pop(0), ends.pop(0), lane.psn
            attr.max_dest_rd_atomic, attr.max_rd_atomic = self.device.answers, self.device.reads
            attr.timeout, attr.retry_cnt, attr.min_rnr_timer, attr.rnr_retry = TIMEOUT, RETRIES, RNR_DELAY, RNR_FOR_EVER
            lane.pair.to_rts(attr)
        self.connected = True

    def on_count(self) -> None:
        """Make up for one immediate's room, when it is time for a chain of them."""
        self.taken += 1
        if not self.taken % CHAIN:
            self.device.await_counts(self.data.pair)
            self.data.posted += CHAIN

    def await_message(self, slot: int) -> None:
        """Post room for one message."""
        here = self.slots.buf + slot * SLOT_NBYTES, SLOT_NBYTES, self.slots.lkey
        self.device.await_message(self.messages.pair, slot, here)
        self.messages.posted += 1

    def end_now(self) -> None:
        """Let nothing in or out any more. What is posted comes back as flushed, after what had arrived."""
        self.over, attr = True, QPAttr(qp_state=IN_ERROR)
        for lane in self.lanes:
            try:
                lane.pair.modify(attr, STATE)
            except PyverbsError:  # gone with its device, which flushes nothing then
                lane.posted = 0

    @property
    def is_flushed(self) -> bool:
        """Whether nothing comes any more."""
        return self.over and all(lane.posted <= 0 for lane in self.lanes)

    def close(self) -> None:
        """Free both pairs, and with them every access that the peer had."""
        for one in (self.data.pair, self.messages.pair, self.slots):
            one.close()
        self.device.claim(-COMPLETIONS)


def _family(link_layer: int, gid: bytes) -> str:
    mapped = gid.startswith(bytes(10) + b"\xff\xff")
    return "InfiniBand" if link_layer == 1 else f"RoCE v2 over {'IPv4' if mapped else 'IPv6'}"
