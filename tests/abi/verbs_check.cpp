// Checks backends/verbs/abi.h against the real header, at compile time:
//   g++ -std=c++20 -fsyntax-only tests/abi/verbs_check.cpp
#include <infiniband/verbs.h>

#include <type_traits>

#include "../../backends/verbs/abi.h"

namespace abi = aio::verbs::abi;

#define SAME_VALUE(ours, theirs) \
  static_assert(static_cast<std::uint64_t>(abi::ours) == static_cast<std::uint64_t>(theirs))
#define SAME_SIZE(ours, theirs) static_assert(sizeof(abi::ours) == sizeof(theirs))
#define SAME(ours, our_field, theirs, their_field)                                \
  static_assert(offsetof(abi::ours, our_field) == offsetof(theirs, their_field)); \
  static_assert(sizeof(abi::ours::our_field) == sizeof(theirs::their_field))
#define SAME_NAME(ours, theirs, field) SAME(ours, field, theirs, field)

SAME_VALUE(access_local_write, IBV_ACCESS_LOCAL_WRITE);
SAME_VALUE(access_remote_write, IBV_ACCESS_REMOTE_WRITE);
SAME_VALUE(access_remote_read, IBV_ACCESS_REMOTE_READ);
SAME_VALUE(access_relaxed_ordering, IBV_ACCESS_RELAXED_ORDERING);
SAME_VALUE(send_fence, IBV_SEND_FENCE);
SAME_VALUE(send_signaled, IBV_SEND_SIGNALED);
SAME_VALUE(send_inline, IBV_SEND_INLINE);
SAME_VALUE(wc_with_imm, IBV_WC_WITH_IMM);
SAME_VALUE(wr_rdma_write, IBV_WR_RDMA_WRITE);
SAME_VALUE(wr_rdma_write_with_imm, IBV_WR_RDMA_WRITE_WITH_IMM);
SAME_VALUE(wr_send_with_imm, IBV_WR_SEND_WITH_IMM);
SAME_VALUE(wr_rdma_read, IBV_WR_RDMA_READ);
SAME_VALUE(qp_type_rc, IBV_QPT_RC);
SAME_VALUE(state_init, IBV_QPS_INIT);
SAME_VALUE(state_rtr, IBV_QPS_RTR);
SAME_VALUE(state_rts, IBV_QPS_RTS);
SAME_VALUE(state_err, IBV_QPS_ERR);
SAME_VALUE(mask_state, IBV_QP_STATE);
SAME_VALUE(mask_access_flags, IBV_QP_ACCESS_FLAGS);
SAME_VALUE(mask_pkey_index, IBV_QP_PKEY_INDEX);
SAME_VALUE(mask_port, IBV_QP_PORT);
SAME_VALUE(mask_av, IBV_QP_AV);
SAME_VALUE(mask_path_mtu, IBV_QP_PATH_MTU);
SAME_VALUE(mask_timeout, IBV_QP_TIMEOUT);
SAME_VALUE(mask_retry_cnt, IBV_QP_RETRY_CNT);
SAME_VALUE(mask_rnr_retry, IBV_QP_RNR_RETRY);
SAME_VALUE(mask_rq_psn, IBV_QP_RQ_PSN);
SAME_VALUE(mask_max_rd_atomic, IBV_QP_MAX_QP_RD_ATOMIC);
SAME_VALUE(mask_min_rnr_timer, IBV_QP_MIN_RNR_TIMER);
SAME_VALUE(mask_sq_psn, IBV_QP_SQ_PSN);
SAME_VALUE(mask_max_dest_rd_atomic, IBV_QP_MAX_DEST_RD_ATOMIC);
SAME_VALUE(mask_dest_qpn, IBV_QP_DEST_QPN);
SAME_VALUE(port_down, IBV_PORT_DOWN);
SAME_VALUE(port_active, IBV_PORT_ACTIVE);
SAME_VALUE(link_infiniband, IBV_LINK_LAYER_INFINIBAND);
SAME_VALUE(link_ethernet, IBV_LINK_LAYER_ETHERNET);
SAME_VALUE(port_grh_required, IBV_QPF_GRH_REQUIRED);
SAME_VALUE(fork_unneeded, IBV_FORK_UNNEEDED);
SAME_VALUE(gid_ib, IBV_GID_TYPE_IB);
SAME_VALUE(gid_roce_v1, IBV_GID_TYPE_ROCE_V1);
SAME_VALUE(gid_roce_v2, IBV_GID_TYPE_ROCE_V2);
SAME_VALUE(wc_success, IBV_WC_SUCCESS);
SAME_VALUE(wc_flush_err, IBV_WC_WR_FLUSH_ERR);
SAME_VALUE(wc_rem_access_err, IBV_WC_REM_ACCESS_ERR);
SAME_VALUE(wc_retry_exc_err, IBV_WC_RETRY_EXC_ERR);
SAME_VALUE(wc_rnr_retry_exc_err, IBV_WC_RNR_RETRY_EXC_ERR);
SAME_VALUE(event_cq_err, IBV_EVENT_CQ_ERR);
SAME_VALUE(event_qp_fatal, IBV_EVENT_QP_FATAL);
SAME_VALUE(event_qp_req_err, IBV_EVENT_QP_REQ_ERR);
SAME_VALUE(event_qp_access_err, IBV_EVENT_QP_ACCESS_ERR);
SAME_VALUE(event_device_fatal, IBV_EVENT_DEVICE_FATAL);
SAME_VALUE(event_port_active, IBV_EVENT_PORT_ACTIVE);
SAME_VALUE(event_port_err, IBV_EVENT_PORT_ERR);
SAME_VALUE(event_srq_err, IBV_EVENT_SRQ_ERR);
SAME_VALUE(event_qp_last_wqe_reached, IBV_EVENT_QP_LAST_WQE_REACHED);

SAME_SIZE(ContextOps, ibv_context_ops);
SAME_NAME(ContextOps, ibv_context_ops, poll_cq);
SAME_NAME(ContextOps, ibv_context_ops, req_notify_cq);
SAME_NAME(ContextOps, ibv_context_ops, post_srq_recv);
SAME_NAME(ContextOps, ibv_context_ops, post_send);
SAME_SIZE(Context, ibv_context);
SAME_NAME(Context, ibv_context, ops);
SAME_NAME(Context, ibv_context, cmd_fd);
SAME_NAME(Context, ibv_context, async_fd);
SAME_NAME(Context, ibv_context, abi_compat);
SAME_SIZE(ExtendedContext, verbs_context);
SAME_NAME(ExtendedContext, verbs_context, query_port);
SAME(ExtendedContext, nbytes, verbs_context, sz);
SAME_NAME(ExtendedContext, verbs_context, context);
static_assert(abi::extended_abi == std::uintptr_t{0} - 1);  // __VERBS_ABI_IS_EXTENDED is not a constant expression

SAME_SIZE(CompChannel, ibv_comp_channel);
SAME_NAME(CompChannel, ibv_comp_channel, fd);
SAME_SIZE(Pd, ibv_pd);
SAME_SIZE(Mr, ibv_mr);
SAME_NAME(Mr, ibv_mr, lkey);
SAME_NAME(Mr, ibv_mr, rkey);
SAME_NAME(Cq, ibv_cq, context);
SAME_NAME(Cq, ibv_cq, cqe);
SAME_NAME(Srq, ibv_srq, context);
SAME_NAME(Qp, ibv_qp, context);
SAME_NAME(Qp, ibv_qp, qp_context);
SAME_NAME(Qp, ibv_qp, qp_num);
SAME_NAME(Qp, ibv_qp, state);

SAME_SIZE(Gid, ibv_gid);
static_assert(alignof(abi::Gid) == alignof(ibv_gid));
SAME_SIZE(GidEntry, ibv_gid_entry);
SAME_NAME(GidEntry, ibv_gid_entry, gid);
SAME_NAME(GidEntry, ibv_gid_entry, gid_index);
SAME_NAME(GidEntry, ibv_gid_entry, port_num);
SAME_NAME(GidEntry, ibv_gid_entry, gid_type);
SAME_SIZE(DeviceAttr, ibv_device_attr);
SAME_NAME(DeviceAttr, ibv_device_attr, vendor_id);
SAME_NAME(DeviceAttr, ibv_device_attr, max_qp_wr);
SAME_NAME(DeviceAttr, ibv_device_attr, max_cqe);
SAME_NAME(DeviceAttr, ibv_device_attr, max_qp_rd_atom);
SAME_NAME(DeviceAttr, ibv_device_attr, max_qp_init_rd_atom);
SAME_NAME(DeviceAttr, ibv_device_attr, max_srq);
SAME_NAME(DeviceAttr, ibv_device_attr, max_srq_wr);
SAME_NAME(DeviceAttr, ibv_device_attr, phys_port_cnt);
SAME_SIZE(PortAttr, ibv_port_attr);
SAME_NAME(PortAttr, ibv_port_attr, state);
SAME_NAME(PortAttr, ibv_port_attr, active_mtu);
SAME_NAME(PortAttr, ibv_port_attr, max_msg_sz);
SAME_NAME(PortAttr, ibv_port_attr, lid);
SAME_NAME(PortAttr, ibv_port_attr, active_width);
SAME_NAME(PortAttr, ibv_port_attr, active_speed);
SAME_NAME(PortAttr, ibv_port_attr, link_layer);
SAME_NAME(PortAttr, ibv_port_attr, flags);
SAME_SIZE(QpCap, ibv_qp_cap);
SAME_NAME(QpCap, ibv_qp_cap, max_inline_data);
SAME_SIZE(QpInitAttr, ibv_qp_init_attr);
SAME_NAME(QpInitAttr, ibv_qp_init_attr, qp_context);
SAME_NAME(QpInitAttr, ibv_qp_init_attr, send_cq);
SAME_NAME(QpInitAttr, ibv_qp_init_attr, recv_cq);
SAME_NAME(QpInitAttr, ibv_qp_init_attr, srq);
SAME_NAME(QpInitAttr, ibv_qp_init_attr, cap);
SAME_NAME(QpInitAttr, ibv_qp_init_attr, qp_type);
SAME_NAME(QpInitAttr, ibv_qp_init_attr, sq_sig_all);
SAME_SIZE(GlobalRoute, ibv_global_route);
SAME_NAME(GlobalRoute, ibv_global_route, dgid);
SAME_NAME(GlobalRoute, ibv_global_route, sgid_index);
SAME_NAME(GlobalRoute, ibv_global_route, hop_limit);
SAME_NAME(GlobalRoute, ibv_global_route, traffic_class);
SAME_SIZE(AhAttr, ibv_ah_attr);
SAME_NAME(AhAttr, ibv_ah_attr, grh);
SAME_NAME(AhAttr, ibv_ah_attr, dlid);
SAME_NAME(AhAttr, ibv_ah_attr, sl);
SAME_NAME(AhAttr, ibv_ah_attr, is_global);
SAME_NAME(AhAttr, ibv_ah_attr, port_num);
SAME_SIZE(QpAttr, ibv_qp_attr);
SAME_NAME(QpAttr, ibv_qp_attr, qp_state);
SAME_NAME(QpAttr, ibv_qp_attr, path_mtu);
SAME_NAME(QpAttr, ibv_qp_attr, rq_psn);
SAME_NAME(QpAttr, ibv_qp_attr, sq_psn);
SAME_NAME(QpAttr, ibv_qp_attr, dest_qp_num);
SAME_NAME(QpAttr, ibv_qp_attr, qp_access_flags);
SAME_NAME(QpAttr, ibv_qp_attr, ah_attr);
SAME_NAME(QpAttr, ibv_qp_attr, pkey_index);
SAME_NAME(QpAttr, ibv_qp_attr, max_rd_atomic);
SAME_NAME(QpAttr, ibv_qp_attr, max_dest_rd_atomic);
SAME_NAME(QpAttr, ibv_qp_attr, min_rnr_timer);
SAME_NAME(QpAttr, ibv_qp_attr, port_num);
SAME_NAME(QpAttr, ibv_qp_attr, timeout);
SAME_NAME(QpAttr, ibv_qp_attr, retry_cnt);
SAME_NAME(QpAttr, ibv_qp_attr, rnr_retry);
SAME_SIZE(SrqInitAttr, ibv_srq_init_attr);
static_assert(offsetof(abi::SrqInitAttr, max_wr) == offsetof(ibv_srq_init_attr, attr.max_wr));
static_assert(offsetof(abi::SrqInitAttr, max_sge) == offsetof(ibv_srq_init_attr, attr.max_sge));

SAME_SIZE(AsyncEvent, ibv_async_event);
SAME_NAME(AsyncEvent, ibv_async_event, element);
static_assert(offsetof(abi::AsyncEvent, element.qp) == offsetof(ibv_async_event, element.qp));
static_assert(offsetof(abi::AsyncEvent, element.port_num) == offsetof(ibv_async_event, element.port_num));
SAME_NAME(AsyncEvent, ibv_async_event, event_type);

SAME_SIZE(Sge, ibv_sge);
SAME_NAME(Sge, ibv_sge, addr);
SAME_NAME(Sge, ibv_sge, length);
SAME_NAME(Sge, ibv_sge, lkey);
SAME_SIZE(SendWr, ibv_send_wr);
SAME_NAME(SendWr, ibv_send_wr, wr_id);
SAME_NAME(SendWr, ibv_send_wr, next);
SAME_NAME(SendWr, ibv_send_wr, sg_list);
SAME_NAME(SendWr, ibv_send_wr, num_sge);
SAME_NAME(SendWr, ibv_send_wr, opcode);
SAME_NAME(SendWr, ibv_send_wr, send_flags);
SAME_NAME(SendWr, ibv_send_wr, imm_data);
static_assert(offsetof(abi::SendWr, remote_addr) == offsetof(ibv_send_wr, wr.rdma.remote_addr));
static_assert(offsetof(abi::SendWr, rkey) == offsetof(ibv_send_wr, wr.rdma.rkey));
SAME_SIZE(RecvWr, ibv_recv_wr);
SAME_NAME(RecvWr, ibv_recv_wr, wr_id);
SAME_NAME(RecvWr, ibv_recv_wr, next);
SAME_NAME(RecvWr, ibv_recv_wr, sg_list);
SAME_NAME(RecvWr, ibv_recv_wr, num_sge);
SAME_SIZE(Wc, ibv_wc);
SAME_NAME(Wc, ibv_wc, wr_id);
SAME_NAME(Wc, ibv_wc, status);
SAME_NAME(Wc, ibv_wc, opcode);
SAME_NAME(Wc, ibv_wc, vendor_err);
SAME_NAME(Wc, ibv_wc, byte_len);
SAME_NAME(Wc, ibv_wc, imm_data);
SAME_NAME(Wc, ibv_wc, qp_num);
SAME_NAME(Wc, ibv_wc, wc_flags);

int main() {}
