// Declarations of libibverbs' binary interface (libibverbs.so.1, ABI 1.1 and later), so that nothing has to be
// installed to build. Written from ibv_create_qp(3), ibv_modify_qp(3), ibv_post_send(3), ibv_poll_cq(3), ibv_reg_mr(3)
// and related pages; tests/abi/verbs_check.cpp checks every size, offset and value against the real header.
//
// The data path calls are not symbols of the library: its header finds them in a table within the context. They are at
// the end of this file.
#pragma once

#include <pthread.h>

#include <cstddef>
#include <cstdint>

namespace aio::verbs::abi {

// ---- values
inline constexpr unsigned access_local_write = 1, access_remote_write = 1 << 1, access_remote_read = 1 << 2,
                          access_relaxed_ordering = 1 << 20;
inline constexpr unsigned send_fence = 1 << 0, send_signaled = 1 << 1, send_inline = 1 << 3;
inline constexpr unsigned wc_with_imm = 1 << 1;
inline constexpr std::uint32_t wr_rdma_write = 0, wr_rdma_write_with_imm = 1, wr_send_with_imm = 3, wr_rdma_read = 4;
inline constexpr std::uint32_t qp_type_rc = 2;
inline constexpr std::uint32_t state_init = 1, state_rtr = 2, state_rts = 3, state_err = 6;
inline constexpr int mask_state = 1 << 0, mask_access_flags = 1 << 3, mask_pkey_index = 1 << 4, mask_port = 1 << 5,
                     mask_av = 1 << 7, mask_path_mtu = 1 << 8, mask_timeout = 1 << 9, mask_retry_cnt = 1 << 10,
                     mask_rnr_retry = 1 << 11, mask_rq_psn = 1 << 12, mask_max_rd_atomic = 1 << 13,
                     mask_min_rnr_timer = 1 << 15, mask_sq_psn = 1 << 16, mask_max_dest_rd_atomic = 1 << 17,
                     mask_dest_qpn = 1 << 20;
inline constexpr std::uint32_t port_down = 1, port_active = 4;
inline constexpr std::uint8_t link_infiniband = 1, link_ethernet = 2;
inline constexpr std::uint8_t port_grh_required = 1;
inline constexpr int fork_unneeded = 2;
inline constexpr std::uint32_t gid_ib = 0, gid_roce_v1 = 1, gid_roce_v2 = 2;

inline constexpr std::uint32_t wc_success = 0, wc_flush_err = 5, wc_rem_access_err = 10, wc_retry_exc_err = 12,
                               wc_rnr_retry_exc_err = 13;

inline constexpr std::uint32_t event_cq_err = 0, event_qp_fatal = 1, event_qp_req_err = 2, event_qp_access_err = 3,
                               event_device_fatal = 8, event_port_active = 9, event_port_err = 10, event_srq_err = 14,
                               event_qp_last_wqe_reached = 16;

// ---- objects
struct Context;
struct DeviceNode;  // ibv_device: only its name is read, by a call
struct Pd;
struct Qp;
struct Cq;
struct Srq;
struct Wc;
struct SendWr;
struct RecvWr;
struct PortAttr;

using Unused = void (*)();  // a table slot that we do not call

struct ContextOps {
  Unused before_poll[11];
  int (*poll_cq)(Cq*, int count, Wc*);
  int (*req_notify_cq)(Cq*, int solicited_only);
  Unused before_srq[7];
  int (*post_srq_recv)(Srq*, RecvWr*, RecvWr** bad);
  Unused before_send[4];
  int (*post_send)(Qp*, SendWr*, SendWr** bad);
  Unused post_recv;
  Unused after[5];
};

struct Context {
  DeviceNode* device;
  ContextOps ops;
  int cmd_fd, async_fd, num_comp_vectors;
  pthread_mutex_t mutex;
  void* abi_compat;
};

// verbs_context, which surrounds a context whose abi_compat is extended_abi. New fields are added at its beginning.
struct ExtendedContext {
  int (*query_port)(Context*, std::uint8_t port, PortAttr*, std::size_t nbytes);
  Unused between[37];
  std::uint64_t placeholder;
  std::size_t nbytes;  // size that the library knows
  Context context;
};
inline constexpr std::uintptr_t extended_abi = ~std::uintptr_t{0};

struct CompChannel {
  Context* context;
  int fd;
  int refcnt;
};

struct Pd {
  Context* context;
  std::uint32_t handle;
};

struct Mr {
  Context* context;
  Pd* pd;
  void* addr;
  std::size_t length;
  std::uint32_t handle, lkey, rkey;
};

struct Cq {
  Context* context;
  CompChannel* channel;
  void* cq_context;
  std::uint32_t handle;
  int cqe;
};

struct Srq {
  Context* context;
};

struct Qp {
  Context* context;
  void* qp_context;
  Pd* pd;
  Cq *send_cq, *recv_cq;
  Srq* srq;
  std::uint32_t handle, qp_num, state, qp_type;
};

// ---- attributes
union Gid {
  std::uint8_t raw[16];
  std::uint64_t halves[2];  // for alignment
};

struct GidEntry {
  Gid gid;
  std::uint32_t gid_index, port_num, gid_type, ndev_ifindex;
};

struct DeviceAttr {
  char fw_ver[64];
  std::uint64_t node_guid, sys_image_guid, max_mr_size, page_size_cap;
  std::uint32_t vendor_id, vendor_part_id, hw_ver;
  int max_qp, max_qp_wr;
  unsigned device_cap_flags;
  int max_sge, max_sge_rd, max_cq, max_cqe, max_mr, max_pd, max_qp_rd_atom, max_ee_rd_atom, max_res_rd_atom,
      max_qp_init_rd_atom, max_ee_init_rd_atom;
  std::uint32_t atomic_cap;
  int max_ee, max_rdd, max_mw, max_raw_ipv6_qp, max_raw_ethy_qp, max_mcast_grp, max_mcast_qp_attach,
      max_total_mcast_qp_attach, max_ah, max_fmr, max_map_per_fmr, max_srq, max_srq_wr, max_srq_sge;
  std::uint16_t max_pkeys;
  std::uint8_t local_ca_ack_delay, phys_port_cnt;
};

struct PortAttr {
  std::uint32_t state, max_mtu, active_mtu;
  int gid_tbl_len;
  std::uint32_t port_cap_flags, max_msg_sz, bad_pkey_cntr, qkey_viol_cntr;
  std::uint16_t pkey_tbl_len, lid, sm_lid;
  std::uint8_t lmc, max_vl_num, sm_sl, subnet_timeout, init_type_reply, active_width, active_speed, phys_state,
      link_layer, flags;
  std::uint16_t port_cap_flags2;
};

struct QpCap {
  std::uint32_t max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data;
};

struct QpInitAttr {
  void* qp_context;
  Cq *send_cq, *recv_cq;
  Srq* srq;
  QpCap cap;
  std::uint32_t qp_type;
  int sq_sig_all;
};

struct GlobalRoute {
  Gid dgid;
  std::uint32_t flow_label;
  std::uint8_t sgid_index, hop_limit, traffic_class;
};

struct AhAttr {
  GlobalRoute grh;
  std::uint16_t dlid;
  std::uint8_t sl, src_path_bits, static_rate, is_global, port_num;
};

struct QpAttr {
  std::uint32_t qp_state, cur_qp_state, path_mtu, path_mig_state, qkey, rq_psn, sq_psn, dest_qp_num, qp_access_flags;
  QpCap cap;
  AhAttr ah_attr, alt_ah_attr;
  std::uint16_t pkey_index, alt_pkey_index;
  std::uint8_t en_sqd_async_notify, sq_draining, max_rd_atomic, max_dest_rd_atomic, min_rnr_timer, port_num, timeout,
      retry_cnt, rnr_retry, alt_port_num, alt_timeout;
  std::uint32_t rate_limit;
};

struct SrqInitAttr {
  void* srq_context;
  std::uint32_t max_wr, max_sge, srq_limit;
};

struct AsyncEvent {
  union {
    Cq* cq;
    Qp* qp;
    Srq* srq;
    int port_num;
  } element;
  std::uint32_t event_type;
};

// ---- data path
struct Sge {
  std::uint64_t addr;
  std::uint32_t length, lkey;
};

struct SendWr {
  std::uint64_t wr_id;
  SendWr* next;
  Sge* sg_list;
  int num_sge;
  std::uint32_t opcode;
  unsigned send_flags;
  std::uint32_t imm_data;  // in network byte order
  std::uint64_t remote_addr;
  std::uint32_t rkey;
  std::uint64_t unused[9];  // of other operations
};

struct RecvWr {
  std::uint64_t wr_id;
  RecvWr* next;
  Sge* sg_list;
  int num_sge;
};

struct Wc {
  std::uint64_t wr_id;
  std::uint32_t status;
  std::uint32_t opcode;  // undefined unless the status is success
  std::uint32_t vendor_err, byte_len;
  std::uint32_t imm_data;  // in network byte order
  std::uint32_t qp_num, src_qp;
  unsigned wc_flags;
  std::uint16_t pkey_index, slid;
  std::uint8_t sl, dlid_path_bits;
};

// ---- calls through the context's table; a result other than 0 is an error number, negative for poll_cq
inline int poll_cq(Cq* cq, int count, Wc* entries) noexcept { return cq->context->ops.poll_cq(cq, count, entries); }
inline int req_notify_cq(Cq* cq) noexcept { return cq->context->ops.req_notify_cq(cq, 0); }
inline int post_send(Qp* qp, SendWr* chain, SendWr** bad) noexcept {
  return qp->context->ops.post_send(qp, chain, bad);
}
inline int post_srq_recv(Srq* srq, RecvWr* chain, RecvWr** bad) noexcept {
  return srq->context->ops.post_srq_recv(srq, chain, bad);
}

}  // namespace aio::verbs::abi
