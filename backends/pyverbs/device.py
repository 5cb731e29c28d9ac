"""One port of one device, found by what its address is; and the completion queue of all that is done there."""

from __future__ import annotations

import contextlib
import ipaddress
import select
from pathlib import Path
from typing import TYPE_CHECKING, Final

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

__all__ = ("ARRIVED", "CARRIED", "CHAIN", "COUNTED", "Device")

PORT_ACTIVE: Final = 4  # infiniband/verbs.h, an ABI; pyverbs has renamed the module of such names
GID_TYPES: Final = {1: 0, 2: 2}  # by link layer: IBV_GID_TYPE_IB, and _ROCE_V2, since version 1 cannot be routed
READS: Final = 16  # under way per pair; both ends must mean the same number, and every RC device of today takes it
# Linux 6.1's rdma_rxe loses its way among several reads, or in a large one: see backends/verbs/peers.cpp.
RXE, RXE_READS, RXE_READ_NBYTES = 0xFFFFFF, 1, 1 << 18
AT_ONCE: Final = 64
CHAIN: Final = 16
CARRIED, COUNTED, ARRIVED = range(3)  # requests' numbers: a failed one has no `opcode`
HINT: Final = "ibv_devinfo; software RDMA: rdma link add rxe0 type rxe netdev eth0"


class Device:
    """What all queue pairs of an engine share."""

    def __init__(self, device: str, address: str) -> None:
        """Open the best place there is, or raise BackendUnavailableError."""
        try:
            place = min(_places(device, address), default=None)
            if place is None:
                raise BackendUnavailableError("pyverbs", f"no active port with GID {address} {device}".rstrip(), HINT)
            _, self.name, self.port_number, self.gid_index, self.gid = place
            self.context = Context(name=self.name)
            self.port, limits = self.context.query_port(self.port_number), self.context.query_device()
            is_rxe, most = limits.vendor_id == RXE, self.port.max_msg_sz
            self.answers = min(READS, limits.max_qp_rd_atom)
            self.reads = RXE_READS if is_rxe else min(self.answers, limits.max_qp_init_rd_atom)
            self.write_nbytes, self.read_nbytes = most, min(most, RXE_READ_NBYTES) if is_rxe else most
            self.pd, others = PD(self.context), _channels()
            self.channel = CompChannel(self.context)
            # pyverbs 44 (Debian 12) does not tell it.
            self.fd: int = getattr(self.channel, "fd", None) or (_channels() - others).pop()
            self.cq = CQ(self.context, 4096, None, self.channel, 0)
            self.cq.req_notify()
        except (PyverbsError, ValueError, LookupError) as error:
            raise BackendUnavailableError("pyverbs", f"cannot open a device: {error}", HINT) from error
        self.armed, self._claimed, self._poll = True, 0, select.poll()
        self._poll.register(self.fd, select.POLLIN)
        # One for all posts, since pyverbs leaks the scatter list of each that is dropped.
        self._sge = SGE(0, 0, 0)
        self._wr = SendWR(num_sge=1, sg=[self._sge])
        self._wr.sg_list = self._sge
        self._counts = [RecvWR(COUNTED, 1, [self._sge]) for _ in range(CHAIN)]
        for wr, following in zip(self._counts, [*self._counts[1:], None], strict=True):
            wr.num_sge = 0
            if following is not None:
                wr.next_wr = following

    def claim(self, completions: int) -> None:
        """Make room for more, or give it back: the one queue must take what all pairs can post."""
        self._claimed += completions
        if self._claimed > self.cq.cqe:
            self.cq.resize(2 * self._claimed)

    def send(
        self, pair: QP, number: int, op: int, here: tuple[int, int, int], there: tuple[int, int] = (0, 0), imm: int = 0
    ) -> None:
        """Post from here (address, size, key) to there (key, address); ``imm`` is in network order."""
        wr = self._wr
        self._sge.addr, self._sge.length, self._sge.lkey = here
        wr.wr_id, wr.opcode, wr.imm_data, wr.num_sge = number, op, imm, int(here[1] > 0)
        wr.set_wr_rdma(*there)
        pair.post_send(wr)

    def await_counts(self, pair: QP) -> None:
        """Post room for :data:`CHAIN` immediates; each completes as :data:`COUNTED`."""
        pair.post_recv(self._counts[0])

    def await_message(self, pair: QP, slot: int, here: tuple[int, int, int]) -> None:
        """Post room for a message; it completes with a number from :data:`ARRIVED` on."""
        sge = SGE(*here)
        wr = RecvWR(ARRIVED + slot, 1, [sge])
        pair.post_recv(wr)
        wr.close()
        sge.close()

    def completions(self, rounds: int) -> Iterator[WC]:
        """Yield completions; after too many ``rounds`` it is not ``armed``, and ``fd`` does not signal the rest."""
        if self._poll.poll(0):  # else get_cq_event() would block, with the GIL held
            self.channel.get_cq_event(self.cq)
            self.armed = False
        for _ in range(rounds):
            count, found = self.cq.poll(AT_ONCE)
            yield from found
            if count < AT_ONCE:
                if self.armed:
                    return
                self.cq.req_notify()  # then look once more, for what came before it took effect
                self.armed = True
        self.armed = False  # it was not looked again after the last notification was asked for

    def close(self) -> None:
        """Free it; nothing is registered and no pair is left."""
        self.context.close()


def _places(device: str, address: str) -> Iterator[tuple[int, str, int, int, bytes]]:
    ip = ipaddress.ip_address(address) if address else None
    wanted = ip and (ip.packed if ip.version != 4 else bytes(10) + b"\xff\xff" + ip.packed)  # noqa: PLR2004 - IPv4
    for name in sorted(one.name.decode() for one in get_device_list()):
        with contextlib.closing(Context(name=name)) as context:
            for entry in context.query_gid_table(1024):
                port, gid = context.query_port(entry.port_num), bytes.fromhex(entry.gid_str().replace(":", ""))
                is_good = port.state == PORT_ACTIVE and GID_TYPES.get(port.link_layer) == entry.gid_type
                if is_good and device in ("", name) and wanted in (None, gid):
                    yield _rank(gid), name, entry.port_num, entry.gid_index, gid


def _rank(gid: bytes) -> int:
    """Prefer what reaches furthest: IPv4, other addresses, one link, nobody but us."""
    whole = ipaddress.IPv6Address(gid)
    address = whole.ipv4_mapped or whole
    return 3 if address.is_loopback else 2 if address.is_link_local else 0 if whole.ipv4_mapped else 1


def _channels() -> set[int]:
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # it was the folder's own
            if "[infinibandevent]" in str(fd.readlink()):
                found.add(int(fd.name))
    return found
