"""Independent verbs peer, without code of the package: two RC queue pairs on bare pyverbs.

Its handshake follows docs/reference/verbs-protocol.md.
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
import struct
import time
from typing import Any

from pyverbs.addr import GID, AHAttr, GlobalRoute
from pyverbs.cq import CQ
from pyverbs.device import Context, get_device_list
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.wr import SGE, RecvWR, SendWR

RAIL = struct.Struct("<BBBH16sIIII")
SLOT = 4096
RECEIVES = 8
WRITE, WRITE_WITH_IMM, SEND, SEND_WITH_IMM, READ = range(5)
ROCE_V2 = 2


def addresses() -> list[str]:
    """Return the IPv4 addresses that have a RoCE v2 GID here, those that reach another port first."""
    found = set()
    for device in get_device_list():
        context = Context(name=device.name.decode())
        for entry in context.query_gid_table(64):
            mapped = ipaddress.IPv6Address(_bytes_of(entry)).ipv4_mapped
            if mapped is not None and entry.gid_type == ROCE_V2:
                found.add(mapped)
        context.close()
    return [str(one) for one in sorted(found, key=lambda one: (one.is_loopback, one))]


def device_of(address: str) -> str:
    """Return the name of the device that has the address."""
    name, context, _, _ = _find(_gid_of(address))
    context.close()
    return name


class RawPeer:
    """Both pairs complete in one queue, which is polled; every wait ends."""

    def __init__(self, address: str) -> None:
        self.gid = _gid_of(address)
        _, self.context, self.port, self.gid_index = _find(self.gid)
        self.pd = PD(self.context)
        self.cq = CQ(self.context, 256)
        self.memory = MR(self.pd, 1 << 20, 1 | 2 | 4)
        self.room = MR(self.pd, RECEIVES * SLOT, 1)
        self.pairs = [self._pair(), self._pair()]
        self.psns = [secrets.randbits(24) for _ in self.pairs]
        for number in range(RECEIVES):
            self.receive(0, 1000 + number, 0)
            self.receive(1, 2000 + number, SLOT)

    def _pair(self) -> Any:
        attr = QPAttr(port_num=self.port)
        attr.qp_access_flags = 1 | 2 | 4
        cap = QPCap(max_send_wr=16, max_recv_wr=RECEIVES)
        return QP(self.pd, QPInitAttr(qp_type=2, scq=self.cq, rcq=self.cq, cap=cap), attr)

    @property
    def rail(self) -> bytes:
        """Our end, as the page says."""
        port = self.context.query_port(self.port)
        (data, messages), (data_psn, message_psn) = (pair.qp_num for pair in self.pairs), self.psns
        ends = data, data_psn, messages, message_psn
        return RAIL.pack(1, port.link_layer, port.active_mtu, port.lid, self.gid, *ends)

    def join(self, rail: bytes) -> None:
        """Connect to the other end."""
        version, layer, mtu, lid, gid, *ends = RAIL.unpack(rail)
        port = self.context.query_port(self.port)
        assert (version, layer) == (1, port.link_layer)
        text = ":".join(gid[at : at + 2].hex() for at in range(0, 16, 2))
        way = GlobalRoute(dgid=GID(text), sgid_index=self.gid_index, hop_limit=64)
        for pair, psn, far_qpn, far_psn in zip(self.pairs, self.psns, ends[::2], ends[1::2], strict=True):
            attr = QPAttr(port_num=self.port, path_mtu=min(mtu, port.active_mtu))
            attr.ah_attr = AHAttr(dlid=lid, is_global=1, port_num=self.port, gr=way)
            attr.dest_qp_num, attr.rq_psn, attr.sq_psn = far_qpn, far_psn, psn
            attr.max_rd_atomic = attr.max_dest_rd_atomic = 16
            attr.min_rnr_timer, attr.timeout, attr.retry_cnt, attr.rnr_retry = 12, 14, 6, 7
            pair.to_rts(attr)

    def receive(self, pair: int, number: int, nbytes: int) -> None:
        sge = SGE(self.room.buf + number % 1000 * SLOT, nbytes, self.room.lkey)
        wr = RecvWR(wr_id=number, num_sge=1, sg=[sge])
        wr.num_sge = int(nbytes > 0)
        self.pairs[pair].post_recv(wr)

    def post(self, op: int, nbytes: int, *, at: int = 0, there: tuple[int, int] = (0, 0), immediate: int = 0) -> None:
        """Post from or into our memory; ``there`` is key and address."""
        sge = SGE(self.memory.buf + at, nbytes, self.memory.lkey)
        wr = SendWR(wr_id=1, opcode=op, num_sge=1, imm_data=socket.htonl(immediate), sg=[sge])
        wr.num_sge = int(nbytes > 0)
        wr.set_wr_rdma(*there)
        self.pairs[op in (SEND, SEND_WITH_IMM)].post_send(wr)

    def send(self, frame: bytes, immediate: int | None = None) -> None:
        at = (1 << 20) - SLOT
        self.memory.write(frame, len(frame), at)
        self.post(SEND if immediate is None else SEND_WITH_IMM, len(frame), at=at, immediate=immediate or 0)

    def complete(self, deadline_s: float = 60) -> Any:
        """Return the next completion."""
        ends = time.monotonic() + deadline_s
        while time.monotonic() < ends:
            count, found = self.cq.poll()
            if count:
                return found[0]
            time.sleep(0.001)  # the completion queue has no channel whose event could be awaited
        raise TimeoutError("nothing completes")

    def message(self) -> tuple[Any, bytes]:
        """Return the next message and its completion; nothing else may complete before."""
        wc = self.complete()
        assert wc.status == 0
        assert wc.wr_id >= 2000
        return wc, self.room.read(wc.byte_len, wc.wr_id % 1000 * SLOT)

    def close(self) -> None:
        self.context.close()


def _gid_of(address: str) -> bytes:
    return bytes(10) + b"\xff\xff" + ipaddress.IPv4Address(address).packed


def _find(gid: bytes) -> tuple[str, Any, int, int]:
    for device in get_device_list():
        context = Context(name=device.name.decode())
        for entry in context.query_gid_table(64):
            if _bytes_of(entry) == gid and entry.gid_type == ROCE_V2:
                return device.name.decode(), context, entry.port_num, entry.gid_index
        context.close()
    raise LookupError(gid.hex())


def _bytes_of(entry: Any) -> bytes:
    return bytes.fromhex(entry.gid_str().replace(":", ""))
