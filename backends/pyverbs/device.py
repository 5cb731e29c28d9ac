"""One port of one device: found by what its address is, opened, and its single completion queue."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import select
from typing import TYPE_CHECKING, Final, NamedTuple

from pyverbs.addr import GID, AHAttr, GlobalRoute
from pyverbs.cq import CQ, CompChannel
from pyverbs.device import Context, get_device_list
from pyverbs.pd import PD
from pyverbs.pyverbs_error import PyverbsError
from pyverbs.wr import SGE, RecvWR, SendWR

from aio_transfer.errors import BackendUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyverbs.cq import WC
    from pyverbs.qp import QP

__all__ = ("Device", "Place")

# infiniband/verbs.h is an ABI; pyverbs renamed the module with its names (`enums`, later `libibverbs_enums`).
PORT_ACTIVE: Final = 4
GID_TYPES: Final = {1: 0, 2: 2}
"""By link layer. InfiniBand: IBV_GID_TYPE_IB; Ethernet: IBV_GID_TYPE_ROCE_V2, since version 1 cannot be routed."""
MAX_GIDS: Final = 1024
HOPS: Final = 64
READS: Final = 16
"""Reads under way per queue pair. Both ends must mean the same number, and every RC device of today takes 16."""
CQ_DEPTH: Final = 4096
AT_ONCE: Final = 64


class Place(NamedTuple):
    """A port and one of its GIDs. The best comes first when they are sorted."""

    rank: int
    device: str
    port: int
    gid_index: int
    gid: bytes


class Device:
    """What all queue pairs of an engine share."""

    def __init__(self, *, device: str, address: str) -> None:
        """Open the best place there is.

        :raises BackendUnavailableError: there is none, or it cannot be opened
        """
        hint = "ibv_devinfo; software RDMA: rdma link add rxe0 type rxe netdev eth0"
        try:
            places = sorted(_places(device, address))
            if not places:
                named = "".join(f" {name}" for name in (device, address) if name)
                raise BackendUnavailableError("pyverbs", f"no active port with a RoCE v2 or IB GID{named}", hint)
            self.place = places[0]
            self.context = Context(name=self.place.device)
            self.port = self.context.query_port(self.place.port)
            limits = self.context.query_device()
            self.reads = min(READS, limits.max_qp_rd_atom, limits.max_qp_init_rd_atom)
            self.pd = PD(self.context)
            others = _channels()
            self.channel = CompChannel(self.context)
            # pyverbs 44 (Debian 12) does not tell the fd.
            self.fd: int = getattr(self.channel, "fd", None) or (_channels() - others).pop()
            self.cq = CQ(self.context, CQ_DEPTH, None, self.channel, 0)
            self.cq.req_notify()
        except (PyverbsError, ValueError, LookupError) as error:
            raise BackendUnavailableError("pyverbs", f"cannot open a device: {error}", hint) from error
        self._armed, self._claimed = True, 0
        self._told = select.poll()
        self._told.register(self.fd, select.POLLIN)
        # Made once and changed for each post: pyverbs leaks the scatter list of every request that is dropped.
        self._sge = SGE(0, 0, 0)
        self._send = SendWR(num_sge=1, sg=[self._sge])
        self._send.sg_list = self._sge

    def claim(self, depth: int) -> None:
        """Make room for so many completions more, or give it back: the one queue must take what all pairs can post."""
        self._claimed += depth
        if self._claimed > self.cq.cqe:
            self.cq.resize(2 * self._claimed)

    def route(self, gid: bytes, lid: int) -> AHAttr:
        """Say how packets reach another port."""
        far = GID(":".join(gid[at : at + 2].hex() for at in range(0, 16, 2)))
        way = GlobalRoute(dgid=far, sgid_index=self.place.gid_index, hop_limit=HOPS)
        return AHAttr(dlid=lid, is_global=1, port_num=self.place.port, gr=way)

    def send(  # noqa: PLR0913 - a work request
        self, pair: QP, number: int, op: int, here: tuple[int, int, int], there: tuple[int, int] = (0, 0), imm: int = 0
    ) -> None:
        """Post one request; it is copied.

        :param here: address, size, local key
        :param there: remote key, address
        :param imm: in network order
        """
        self._sge.addr, self._sge.length, self._sge.lkey = here
        self._send.wr_id, self._send.opcode, self._send.imm_data = number, op, imm
        self._send.num_sge = 1 if here[1] else 0
        self._send.set_wr_rdma(*there)
        pair.post_send(self._send)

    def receive(self, pair: QP, number: int, here: tuple[int, int, int]) -> None:
        """Post one place for what comes."""
        sge = SGE(*here)
        wr = RecvWR(wr_id=number, num_sge=1, sg=[sge])
        wr.num_sge = 1 if here[1] else 0
        pair.post_recv(wr)
        wr.close()
        sge.close()

    def completions(self, rounds: int) -> Iterator[WC]:
        """Yield what is there, up to ``rounds`` times :data:`AT_ONCE`. If that was all, ``fd`` tells of the next."""
        if self._told.poll(0):  # else get_cq_event() would block, with the GIL held
            self.channel.get_cq_event(self.cq)
            self._armed = False
        for _ in range(rounds):
            count, found = self.cq.poll(AT_ONCE)
            yield from found
            if count < AT_ONCE:
                if self._armed:
                    return
                self.cq.req_notify()  # and look once more, for what came before it took effect
                self._armed = True

    @property
    def is_armed(self) -> bool:
        """Whether the next completion makes ``fd`` readable."""
        return self._armed

    def close(self) -> None:
        """Free everything that is still open."""
        for one in (self.cq, self.channel, self.pd, self.context):
            one.close()


def _places(device: str, address: str) -> Iterator[Place]:
    wanted = _gid_of(address) if address else b""
    for name in sorted(one.name.decode() for one in get_device_list()):
        if device in ("", name):
            with contextlib.closing(Context(name=name)) as context:
                for entry in context.query_gid_table(MAX_GIDS):
                    gid = bytes.fromhex(entry.gid_str().replace(":", ""))
                    port = context.query_port(entry.port_num)
                    usable = port.state == PORT_ACTIVE and GID_TYPES.get(port.link_layer) == entry.gid_type
                    if usable and wanted in (b"", gid):
                        yield Place(_rank(gid), name, entry.port_num, entry.gid_index, gid)


def _rank(gid: bytes) -> int:
    """Prefer what reaches furthest: IPv4, then global IPv6 and InfiniBand, then one link, then nobody but us."""
    whole = ipaddress.IPv6Address(gid)
    address = whole.ipv4_mapped or whole
    return 3 if address.is_loopback else 2 if address.is_link_local else 0 if whole.ipv4_mapped else 1


def _gid_of(address: str) -> bytes:
    one = ipaddress.ip_address(address)
    return bytes(10) + b"\xff\xff" + one.packed if one.version == 4 else one.packed  # noqa: PLR2004 - IPv4


def _channels() -> set[int]:
    """Return the fds on which devices tell of events."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the folder's own fd is closed by now
            if os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[infinibandevent]":
                found.add(int(fd))
    return found
