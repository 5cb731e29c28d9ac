// Checks tests/efa_emulator/abi.h against the headers of rdma-core (Debian: libibverbs-dev), at compile time:
//   g++ -std=c++20 -fsyntax-only -DRDMA_CORE=44 tests/abi/efa_check.cpp
// RDMA_CORE is the version of the headers (pkg-config --modversion libefa: the third number). Debian 12 has 44, whose
// efadv.h has neither RDMA write nor unsolicited receives; those declarations are compared with newer headers only.
#include <infiniband/efadv.h>
#include <infiniband/verbs.h>

#include <cstdio>

#include "../efa_emulator/abi.h"

namespace abi = efa::abi;

#ifndef RDMA_CORE
#error "say which version the headers are: -DRDMA_CORE=44"
#endif

#define SAME_VALUE(ours, theirs) \
  static_assert(static_cast<std::uint64_t>(abi::ours) == static_cast<std::uint64_t>(theirs))
#define SAME_SIZE(ours, theirs) static_assert(sizeof(abi::ours) == sizeof(theirs))
// The real structure has more fields at its end.
#define GROWN(ours, theirs) static_assert(sizeof(abi::ours) <= sizeof(theirs))
#define SAME(ours, our_field, theirs, their_field)                                \
  static_assert(offsetof(abi::ours, our_field) == offsetof(theirs, their_field)); \
  static_assert(sizeof(abi::ours::our_field) == sizeof(theirs::their_field))
#define SAME_NAME(ours, theirs, field) SAME(ours, field, theirs, field)

SAME_VALUE(node_unspecified, IBV_NODE_UNSPECIFIED);
SAME_VALUE(transport_unspecified, IBV_TRANSPORT_UNSPECIFIED);
SAME_VALUE(port_active, IBV_PORT_ACTIVE);
SAME_VALUE(access_local_write, IBV_ACCESS_LOCAL_WRITE);
SAME_VALUE(access_remote_write, IBV_ACCESS_REMOTE_WRITE);
SAME_VALUE(access_remote_read, IBV_ACCESS_REMOTE_READ);
SAME_VALUE(qp_type_ud, IBV_QPT_UD);
SAME_VALUE(qp_type_driver, IBV_QPT_DRIVER);
SAME_VALUE(state_rtr, IBV_QPS_RTR);
SAME_VALUE(state_rts, IBV_QPS_RTS);
SAME_VALUE(state_err, IBV_QPS_ERR);
SAME_VALUE(attr_state, IBV_QP_STATE);
SAME_VALUE(attr_qkey, IBV_QP_QKEY);
SAME_VALUE(attr_rnr_retry, IBV_QP_RNR_RETRY);
SAME_VALUE(with_write, IBV_QP_EX_WITH_RDMA_WRITE);
SAME_VALUE(with_write_imm, IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM);
SAME_VALUE(with_read, IBV_QP_EX_WITH_RDMA_READ);
SAME_VALUE(wc_send, IBV_WC_SEND);
SAME_VALUE(wc_write, IBV_WC_RDMA_WRITE);
SAME_VALUE(wc_read, IBV_WC_RDMA_READ);
SAME_VALUE(wc_recv, IBV_WC_RECV);
SAME_VALUE(wc_recv_write_imm, IBV_WC_RECV_RDMA_WITH_IMM);
SAME_VALUE(wc_with_imm, IBV_WC_WITH_IMM);
SAME_VALUE(status_success, IBV_WC_SUCCESS);
SAME_VALUE(status_local_length, IBV_WC_LOC_LEN_ERR);
SAME_VALUE(status_local_qp_operation, IBV_WC_LOC_QP_OP_ERR);
SAME_VALUE(status_flushed, IBV_WC_WR_FLUSH_ERR);
SAME_VALUE(status_local_access, IBV_WC_LOC_ACCESS_ERR);
SAME_VALUE(status_remote_invalid, IBV_WC_REM_INV_REQ_ERR);
SAME_VALUE(status_remote_access, IBV_WC_REM_ACCESS_ERR);
SAME_VALUE(status_rnr_exceeded, IBV_WC_RNR_RETRY_EXC_ERR);
SAME_VALUE(status_remote_abort, IBV_WC_REM_ABORT_ERR);
SAME_VALUE(status_timeout, IBV_WC_RESP_TIMEOUT_ERR);
SAME_VALUE(status_general, IBV_WC_GENERAL_ERR);
SAME_VALUE(fork_disabled, IBV_FORK_DISABLED);
SAME_VALUE(fork_enabled, IBV_FORK_ENABLED);
SAME_VALUE(fork_unneeded, IBV_FORK_UNNEEDED);

SAME_SIZE(Gid, ibv_gid);
SAME_SIZE(Device, ibv_device);
SAME_NAME(Device, ibv_device, node_type);
SAME_NAME(Device, ibv_device, transport_type);
SAME_NAME(Device, ibv_device, name);
SAME_NAME(Device, ibv_device, dev_name);
SAME_NAME(Device, ibv_device, dev_path);
SAME_NAME(Device, ibv_device, ibdev_path);
SAME_SIZE(ContextOps, ibv_context_ops);
SAME_NAME(ContextOps, ibv_context_ops, req_notify_cq);
SAME_NAME(ContextOps, ibv_context_ops, post_recv);
SAME_SIZE(Context, ibv_context);
SAME_NAME(Context, ibv_context, device);
SAME_NAME(Context, ibv_context, ops);
SAME_NAME(Context, ibv_context, num_comp_vectors);
SAME_NAME(Context, ibv_context, abi_compat);
SAME_SIZE(VerbsContext, verbs_context);
SAME_NAME(VerbsContext, verbs_context, query_port);
SAME_NAME(VerbsContext, verbs_context, create_cq_ex);
SAME_NAME(VerbsContext, verbs_context, create_qp_ex);
SAME_NAME(VerbsContext, verbs_context, sz);
SAME_NAME(VerbsContext, verbs_context, context);
SAME_SIZE(DeviceAttr, ibv_device_attr);
SAME_NAME(DeviceAttr, ibv_device_attr, fw_ver);
SAME_NAME(DeviceAttr, ibv_device_attr, max_mr_size);
SAME_NAME(DeviceAttr, ibv_device_attr, vendor_id);
SAME_NAME(DeviceAttr, ibv_device_attr, vendor_part_id);
SAME_NAME(DeviceAttr, ibv_device_attr, max_qp);
SAME_NAME(DeviceAttr, ibv_device_attr, max_qp_wr);
SAME_NAME(DeviceAttr, ibv_device_attr, max_sge);
SAME_NAME(DeviceAttr, ibv_device_attr, max_cq);
SAME_NAME(DeviceAttr, ibv_device_attr, max_cqe);
SAME_NAME(DeviceAttr, ibv_device_attr, max_mr);
SAME_NAME(DeviceAttr, ibv_device_attr, max_pd);
SAME_NAME(DeviceAttr, ibv_device_attr, max_ah);
SAME_NAME(DeviceAttr, ibv_device_attr, phys_port_cnt);
GROWN(PortAttr, ibv_port_attr);
SAME_NAME(PortAttr, ibv_port_attr, state);
SAME_NAME(PortAttr, ibv_port_attr, max_mtu);
SAME_NAME(PortAttr, ibv_port_attr, active_mtu);
SAME_NAME(PortAttr, ibv_port_attr, gid_tbl_len);
SAME_NAME(PortAttr, ibv_port_attr, max_msg_sz);
SAME_NAME(PortAttr, ibv_port_attr, active_width);
SAME_NAME(PortAttr, ibv_port_attr, active_speed);
SAME_NAME(PortAttr, ibv_port_attr, link_layer);
SAME_SIZE(Pd, ibv_pd);
SAME_NAME(Pd, ibv_pd, context);
SAME_SIZE(Mr, ibv_mr);
SAME_NAME(Mr, ibv_mr, pd);
SAME_NAME(Mr, ibv_mr, addr);
SAME_NAME(Mr, ibv_mr, length);
SAME_NAME(Mr, ibv_mr, lkey);
SAME_NAME(Mr, ibv_mr, rkey);
SAME_SIZE(GlobalRoute, ibv_global_route);
SAME_NAME(GlobalRoute, ibv_global_route, dgid);
SAME_SIZE(AhAttr, ibv_ah_attr);
SAME_NAME(AhAttr, ibv_ah_attr, grh);
SAME_NAME(AhAttr, ibv_ah_attr, is_global);
SAME_NAME(AhAttr, ibv_ah_attr, port_num);
SAME_SIZE(Ah, ibv_ah);
SAME_NAME(Ah, ibv_ah, pd);
SAME_SIZE(CompChannel, ibv_comp_channel);
SAME_NAME(CompChannel, ibv_comp_channel, context);
SAME_NAME(CompChannel, ibv_comp_channel, fd);
SAME_SIZE(Cq, ibv_cq);
SAME_NAME(Cq, ibv_cq, context);
SAME_NAME(Cq, ibv_cq, channel);
SAME_NAME(Cq, ibv_cq, cq_context);
SAME_NAME(Cq, ibv_cq, cqe);
SAME_SIZE(CqEx, ibv_cq_ex);
SAME_NAME(CqEx, ibv_cq_ex, comp_mask);
SAME_NAME(CqEx, ibv_cq_ex, status);
SAME_NAME(CqEx, ibv_cq_ex, wr_id);
SAME_NAME(CqEx, ibv_cq_ex, start_poll);
SAME_NAME(CqEx, ibv_cq_ex, next_poll);
SAME_NAME(CqEx, ibv_cq_ex, end_poll);
SAME_NAME(CqEx, ibv_cq_ex, read_opcode);
SAME_NAME(CqEx, ibv_cq_ex, read_vendor_err);
SAME_NAME(CqEx, ibv_cq_ex, read_byte_len);
SAME_NAME(CqEx, ibv_cq_ex, read_imm_data);
SAME_NAME(CqEx, ibv_cq_ex, read_qp_num);
SAME_NAME(CqEx, ibv_cq_ex, read_src_qp);
SAME_NAME(CqEx, ibv_cq_ex, read_wc_flags);
SAME_NAME(CqEx, ibv_cq_ex, read_slid);
SAME_NAME(CqEx, ibv_cq_ex, read_sl);
SAME_NAME(CqEx, ibv_cq_ex, read_dlid_path_bits);
SAME_SIZE(CqInitAttrEx, ibv_cq_init_attr_ex);
SAME_NAME(CqInitAttrEx, ibv_cq_init_attr_ex, cqe);
SAME_NAME(CqInitAttrEx, ibv_cq_init_attr_ex, cq_context);
SAME_NAME(CqInitAttrEx, ibv_cq_init_attr_ex, channel);
SAME_NAME(CqInitAttrEx, ibv_cq_init_attr_ex, wc_flags);
SAME_SIZE(Qp, ibv_qp);
SAME_NAME(Qp, ibv_qp, context);
SAME_NAME(Qp, ibv_qp, qp_context);
SAME_NAME(Qp, ibv_qp, pd);
SAME_NAME(Qp, ibv_qp, send_cq);
SAME_NAME(Qp, ibv_qp, recv_cq);
SAME_NAME(Qp, ibv_qp, qp_num);
SAME_NAME(Qp, ibv_qp, state);
SAME_NAME(Qp, ibv_qp, qp_type);
GROWN(QpEx, ibv_qp_ex);
SAME(QpEx, base, ibv_qp_ex, qp_base);
SAME_NAME(QpEx, ibv_qp_ex, wr_id);
SAME_NAME(QpEx, ibv_qp_ex, wr_flags);
SAME_NAME(QpEx, ibv_qp_ex, wr_rdma_read);
SAME_NAME(QpEx, ibv_qp_ex, wr_rdma_write);
SAME_NAME(QpEx, ibv_qp_ex, wr_rdma_write_imm);
SAME_NAME(QpEx, ibv_qp_ex, wr_send);
SAME_NAME(QpEx, ibv_qp_ex, wr_send_imm);
SAME_NAME(QpEx, ibv_qp_ex, wr_set_ud_addr);
SAME_NAME(QpEx, ibv_qp_ex, wr_set_inline_data);
SAME_NAME(QpEx, ibv_qp_ex, wr_set_inline_data_list);
SAME_NAME(QpEx, ibv_qp_ex, wr_set_sge);
SAME_NAME(QpEx, ibv_qp_ex, wr_set_sge_list);
SAME_NAME(QpEx, ibv_qp_ex, wr_start);
SAME_NAME(QpEx, ibv_qp_ex, wr_complete);
SAME_NAME(QpEx, ibv_qp_ex, wr_abort);
SAME_SIZE(Sge, ibv_sge);
SAME_NAME(Sge, ibv_sge, addr);
SAME_NAME(Sge, ibv_sge, length);
SAME_NAME(Sge, ibv_sge, lkey);
SAME_SIZE(DataBuf, ibv_data_buf);
SAME_NAME(DataBuf, ibv_data_buf, length);
SAME_SIZE(QpCap, ibv_qp_cap);
SAME_SIZE(QpInitAttrEx, ibv_qp_init_attr_ex);
SAME_NAME(QpInitAttrEx, ibv_qp_init_attr_ex, qp_context);
SAME_NAME(QpInitAttrEx, ibv_qp_init_attr_ex, send_cq);
SAME_NAME(QpInitAttrEx, ibv_qp_init_attr_ex, recv_cq);
SAME_NAME(QpInitAttrEx, ibv_qp_init_attr_ex, cap);
SAME_NAME(QpInitAttrEx, ibv_qp_init_attr_ex, qp_type);
SAME_NAME(QpInitAttrEx, ibv_qp_init_attr_ex, pd);
SAME_NAME(QpInitAttrEx, ibv_qp_init_attr_ex, send_ops_flags);
SAME_SIZE(QpAttr, ibv_qp_attr);
SAME_NAME(QpAttr, ibv_qp_attr, qp_state);
SAME_NAME(QpAttr, ibv_qp_attr, qkey);
SAME_NAME(QpAttr, ibv_qp_attr, rnr_retry);
SAME_SIZE(RecvWr, ibv_recv_wr);
SAME_NAME(RecvWr, ibv_recv_wr, wr_id);
SAME_NAME(RecvWr, ibv_recv_wr, next);
SAME_NAME(RecvWr, ibv_recv_wr, sg_list);
SAME_NAME(RecvWr, ibv_recv_wr, num_sge);

// ---- libefa: in every version
SAME_VALUE(caps_read, EFADV_DEVICE_ATTR_CAPS_RDMA_READ);
SAME_VALUE(caps_rnr_retry, EFADV_DEVICE_ATTR_CAPS_RNR_RETRY);
SAME_VALUE(caps_cq_with_sgid, EFADV_DEVICE_ATTR_CAPS_CQ_WITH_SGID);
SAME_VALUE(wc_ex_with_sgid, EFADV_WC_EX_WITH_SGID);
SAME_SIZE(EfadvDeviceAttr, efadv_device_attr);
SAME_NAME(EfadvDeviceAttr, efadv_device_attr, max_sq_wr);
SAME_NAME(EfadvDeviceAttr, efadv_device_attr, max_rq_wr);
SAME_NAME(EfadvDeviceAttr, efadv_device_attr, max_sq_sge);
SAME_NAME(EfadvDeviceAttr, efadv_device_attr, max_rq_sge);
SAME_NAME(EfadvDeviceAttr, efadv_device_attr, inline_buf_size);
SAME_NAME(EfadvDeviceAttr, efadv_device_attr, device_caps);
SAME_NAME(EfadvDeviceAttr, efadv_device_attr, max_rdma_size);
SAME_SIZE(EfadvAhAttr, efadv_ah_attr);
SAME_NAME(EfadvAhAttr, efadv_ah_attr, ahn);
SAME_NAME(EfadvQpInitAttr, efadv_qp_init_attr, driver_qp_type);
SAME_NAME(EfadvCqInitAttr, efadv_cq_init_attr, wc_flags);
SAME_NAME(EfadvCq, efadv_cq, comp_mask);
SAME_NAME(EfadvCq, efadv_cq, wc_read_sgid);

// ---- libefa: added later, with the version of rdma-core
#if RDMA_CORE >= 47
SAME_VALUE(caps_write, EFADV_DEVICE_ATTR_CAPS_RDMA_WRITE);
#endif
#if RDMA_CORE >= 53
SAME_VALUE(caps_unsolicited_write_recv, EFADV_DEVICE_ATTR_CAPS_UNSOLICITED_WRITE_RECV);
SAME_VALUE(wc_ex_with_is_unsolicited, EFADV_WC_EX_WITH_IS_UNSOLICITED);
SAME_VALUE(qp_unsolicited_write_recv, EFADV_QP_FLAGS_UNSOLICITED_WRITE_RECV);
SAME_NAME(EfadvQpInitAttr, efadv_qp_init_attr, flags);
SAME_SIZE(EfadvCq, efadv_cq);
SAME_NAME(EfadvCq, efadv_cq, wc_is_unsolicited);
#endif

int main() {}
