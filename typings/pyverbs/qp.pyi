from pyverbs.addr import AHAttr
from pyverbs.cq import CQ
from pyverbs.pd import PD
from pyverbs.wr import RecvWR, SendWR

class QPCap:
    def __init__(
        self,
        max_send_wr: int = 1,
        max_recv_wr: int = 10,
        max_send_sge: int = 1,
        max_recv_sge: int = 1,
        max_inline_data: int = 0,
    ) -> None: ...

class QPInitAttr:
    def __init__(
        self,
        qp_type: int = 4,
        qp_context: None = None,
        scq: CQ | None = None,
        rcq: CQ | None = None,
        srq: None = None,
        cap: QPCap | None = None,
        sq_sig_all: int = 1,
    ) -> None: ...

class QPAttr:
    qp_access_flags: int
    dest_qp_num: int
    rq_psn: int
    sq_psn: int
    max_rd_atomic: int
    max_dest_rd_atomic: int
    min_rnr_timer: int
    timeout: int
    retry_cnt: int
    rnr_retry: int
    ah_attr: AHAttr
    def __init__(self, qp_state: int = 1, cur_qp_state: int = 0, port_num: int = 1, path_mtu: int = 3) -> None: ...

class QP:
    def __init__(self, creator: PD, init_attr: QPInitAttr, qp_attr: QPAttr | None = None) -> None: ...
    @property
    def qp_num(self) -> int: ...
    def to_rts(self, qp_attr: QPAttr) -> None: ...
    def modify(self, qp_attr: QPAttr, comp_mask: int) -> None: ...
    def post_send(self, wr: SendWR) -> None: ...
    def post_recv(self, wr: RecvWR) -> None: ...
    def close(self) -> None: ...
