"""The queue pairs to one peer, and what is under way on them.

Writes, reads and counts go by the first pair. Its receives have no room, and only tell of immediates. Messages need
receives with room, so they have the second.
"""

from __future__ import annotations

import secrets
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from pyverbs.mr import MR
from pyverbs.pyverbs_error import PyverbsError
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr

from aio_transfer.errors import UnsupportedError

from .endpoint import End

if TYPE_CHECKING:
    from pyverbs.cq import WC

    from .device import Device
    from .transfers import Run

__all__ = ("DEPTH", "KIND_BITS", "LINK_BITS", "SLOT_NBYTES", "Link")

DEPTH: Final = 128
"""Writes and reads under way."""
COUNTS: Final = 512
"""Immediates that can arrive before we look. A sender of more is told to come again (RNR), as often as it takes."""
SLOTS: Final = 16
"""Messages under way, and as many that can arrive before we look."""
SLOT_NBYTES: Final = 4096
COMPLETIONS: Final = DEPTH + COUNTS + 2 * SLOTS

# A request's number says what its completion means, for `wc.opcode` is undefined in failed ones.
KIND_BITS, LINK_BITS = 2, 18
CARRIED, COUNTED, SENT, ARRIVED = range(4)

# infiniband/verbs.h
RC: Final = 2
LOCAL_WRITE: Final = 1
REMOTE: Final = 1 | 2 | 4
"""IBV_ACCESS_LOCAL_WRITE, _REMOTE_WRITE, _REMOTE_READ: what a pair allows; memory allows less."""
IN_ERROR, STATE = 6, 1
SEND: Final = 2
# Timeouts as the wire encodes them. A lost packet is sent again after 4.096 µs × 2**17 = 0.54 s, seven times. A peer
# without room for an immediate is asked again after 0.64 ms, for ever: that one is alive, or the engine notices.
TIMEOUT, RETRIES, RNR_DELAY, RNR_FOR_EVER = 17, 7, 12, 7


class Link:
    """Two pairs; the state of a peer is nowhere else."""

    def __init__(self, device: Device, number: int) -> None:
        """Make both pairs, able to receive."""
        self.device = device
        self.number = number
        self.connected = self.over = self.broken = False
        self.queue: deque[Run] = deque()
        self.flying: deque[Run | int] = deque()
        """What the first pair carries, in order; an int is a region of the peer's, to be let go when it is reached."""
        self.outbox: deque[tuple[int, bytes]] = deque()
        self.sending: dict[int, int] = {}
        self.free = list(range(SLOTS))
        self.revoked: deque[int] = deque(maxlen=1024)
        """The peer's regions that are gone; word of one can overtake the grant that came before."""
        device.claim(COMPLETIONS)
        self.posted = 0
        self.slots = MR(device.pd, 2 * SLOTS * SLOT_NBYTES, LOCAL_WRITE)
        self.data, self.messages = (self._pair(sends, receives) for sends, receives in ((DEPTH, COUNTS), (SLOTS, SLOTS)))
        psns = secrets.randbits(24), secrets.randbits(24)
        port, place = device.port, device.place
        numbers = (self.data.qp_num, psns[0], self.messages.qp_num, psns[1])
        self.end = End(port.link_layer, port.active_mtu, port.lid, place.gid, *numbers)
        for _ in range(COUNTS):
            self.await_count()
        for slot in range(SLOTS, 2 * SLOTS):
            self.await_message(slot)

    def _pair(self, sends: int, receives: int) -> QP:
        cap = QPCap(max_send_wr=sends, max_recv_wr=receives, max_send_sge=1, max_recv_sge=1)
        cq = self.device.cq
        attr = QPAttr(port_num=self.device.place.port)
        attr.qp_access_flags = REMOTE
        return QP(self.device.pd, QPInitAttr(qp_type=RC, scq=cq, rcq=cq, cap=cap, sq_sig_all=1), attr)

    def join(self, far: End) -> None:
        """Connect both pairs to the peer's.

        :raises UnsupportedError: no packet of ours could reach it
        """
        ours, theirs = _family(self.end), _family(far)
        if ours != theirs:
            raise UnsupportedError("a path to the peer's port", needs=theirs, has=ours)
        for pair, psn, far_qpn, far_psn in (
            (self.data, self.end.data_psn, far.data_qpn, far.data_psn),
            (self.messages, self.end.message_psn, far.message_qpn, far.message_psn),
        ):
            attr = QPAttr(port_num=self.device.place.port, path_mtu=min(self.end.mtu, far.mtu))
            attr.ah_attr = self.device.route(far.gid, far.lid)
            attr.dest_qp_num, attr.rq_psn, attr.sq_psn = far_qpn, far_psn, psn
            attr.max_dest_rd_atomic = attr.max_rd_atomic = self.device.reads
            attr.timeout, attr.retry_cnt, attr.min_rnr_timer, attr.rnr_retry = TIMEOUT, RETRIES, RNR_DELAY, RNR_FOR_EVER
            pair.to_rts(attr)
        self.connected = True

    # ---------------------------------------------------------------------------------------------------- requests

    def carry(self, run: Run, op: int, here: tuple[int, int, int], there: tuple[int, int], imm: int) -> None:
        """Post one part of a run."""
        self.device.send(self.data, self._number(CARRIED), op, here, there, imm)
        self.posted += 1
        run.flying += 1
        self.flying.append(run)

    def landed(self) -> Run:
        """Return whose part it was that the first pair has completed: they complete in order."""
        run = self.flying.popleft()
        while isinstance(run, int):  # never: a region is let go as soon as it is first
            run = self.flying.popleft()
        run.flying -= 1
        return run

    def await_count(self) -> None:
        """Post room for one immediate."""
        self.device.receive(self.data, self._number(COUNTED), (0, 0, 0))
        self.posted += 1

    def await_message(self, slot: int) -> None:
        """Post room for one message."""
        here = self.slots.buf + slot * SLOT_NBYTES, SLOT_NBYTES, self.slots.lkey
        self.device.receive(self.messages, self._number(ARRIVED, slot), here)
        self.posted += 1

    def message(self, wc: WC) -> bytes:
        """Take what has arrived."""
        return self.slots.read(wc.byte_len, self.slot(wc) * SLOT_NBYTES)

    def tell(self, message: int, frame: bytes) -> None:
        """Send a message when there is room for it."""
        self.outbox.append((message, frame))
        self.pump_messages()

    def pump_messages(self) -> None:
        """Post the messages for which there is room."""
        while self.outbox and self.free and not self.over:
            message, frame = self.outbox.popleft()
            slot = self.free.pop()
            self.slots.write(frame, len(frame), slot * SLOT_NBYTES)
            here = self.slots.buf + slot * SLOT_NBYTES, len(frame), self.slots.lkey
            self.device.send(self.messages, self._number(SENT, slot), SEND, here)
            self.posted += 1
            self.sending[slot] = message

    def sent(self, wc: WC) -> int:
        """Return which message has left."""
        slot = self.slot(wc)
        self.free.append(slot)
        return self.sending.pop(slot)

    def slot(self, wc: WC) -> int:
        """Return which buffer a completion is about."""
        return (wc.wr_id & (1 << LINK_BITS) - 1) >> KIND_BITS

    def _number(self, kind: int, slot: int = 0) -> int:
        return self.number << LINK_BITS | slot << KIND_BITS | kind

    # --------------------------------------------------------------------------------------------------------- end

    def end_now(self) -> None:
        """Let nothing in or out any more; what is posted comes back as flushed, after all that had arrived."""
        self.over = True
        attr = QPAttr(qp_state=IN_ERROR)
        for pair in (self.data, self.messages):
            with suppress(PyverbsError):  # it is gone with its device: closing is what is left
                pair.modify(attr, STATE)

    def close(self) -> None:
        """Free both pairs: with them goes, for certain, every access of the peer's."""
        for one in (self.data, self.messages, self.slots):
            one.close()
        self.device.claim(-COMPLETIONS)


def _family(end: End) -> str:
    """Return what two ends must have in common."""
    if end.link_layer == 1:
        return "InfiniBand"
    return "RoCE v2 over IPv4" if end.gid.startswith(bytes(10) + b"\xff\xff") else "RoCE v2 over IPv6"
