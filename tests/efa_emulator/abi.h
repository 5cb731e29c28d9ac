// Declarations of the binary interface of libibverbs and libefa, as far as libfabric's efa provider uses it, so that
// nothing has to be installed to build. Written from the manual pages of both (ibv_open_device(3), ibv_create_qp_ex(3),
// ibv_create_cq_ex(3), ibv_wr_post(3), efadv_query_device(3), efadv_create_cq(3), efadv_create_qp_ex(3));
// tests/abi/efa_check.cpp checks every size, offset and value against the real headers.
//
// The caller of libefa allocates the structures and passes their size (`inlen`). Structures grew at their ends, so a
// field is accessed only if the caller's structure has it.
#pragma once

#include <pthread.h>

#include <cstddef>
#include <cstdint>

namespace efa::abi {

// ---- values
inline constexpr int node_unspecified = 7, transport_unspecified = 4;
inline constexpr std::int32_t port_active = 4;
inline constexpr int access_local_write = 1, access_remote_write = 2, access_remote_read = 4;
inline constexpr std::int32_t qp_type_ud = 4, qp_type_driver = 0xff;
inline constexpr std::int32_t state_rtr = 2, state_rts = 3, state_err = 6;
inline constexpr int attr_state = 1, attr_qkey = 1 << 6, attr_rnr_retry = 1 << 11;
inline constexpr std::uint64_t with_write = 1, with_write_imm = 2, with_read = 16;
inline constexpr std::int32_t wc_send = 0, wc_write = 1, wc_read = 2, wc_recv = 1 << 7, wc_recv_write_imm = wc_recv + 1;
inline constexpr unsigned wc_with_imm = 2;
inline constexpr std::int32_t status_success = 0, status_local_length = 1, status_local_qp_operation = 2,
                              status_flushed = 5, status_local_access = 8, status_remote_invalid = 9,
                              status_remote_access = 10, status_rnr_exceeded = 13, status_remote_abort = 16,
                              status_timeout = 20, status_general = 21;
inline constexpr std::int32_t fork_disabled = 0, fork_enabled = 1, fork_unneeded = 2;

// ---- libefa's
inline constexpr std::uint32_t caps_read = 1, caps_rnr_retry = 2, caps_cq_with_sgid = 4, caps_write = 8,
                               caps_unsolicited_write_recv = 16;
inline constexpr std::uint64_t wc_ex_with_sgid = 1, wc_ex_with_is_unsolicited = 2;
inline constexpr std::uint16_t qp_unsolicited_write_recv = 1;

using Unused = void (*)();  // a slot that the provider never calls

struct Context;
struct Cq;
struct CqEx;
struct Qp;
struct QpEx;
struct CqInitAttrEx;
struct QpInitAttrEx;
struct RecvWr;
struct PortAttr;

union Gid {
  std::uint8_t raw[16];
  std::uint64_t words[2];
};

struct Device {
  Unused ops[2];
  std::int32_t node_type, transport_type;
  char name[64], dev_name[64], dev_path[256], ibdev_path[256];
};

struct ContextOps {
  Unused before[12];
  int (*req_notify_cq)(Cq*, int solicited_only);
  Unused between[13];
  int (*post_recv)(Qp*, RecvWr*, RecvWr** bad);
  Unused after[5];
};

struct Context {
  Device* device;
  ContextOps ops;
  int cmd_fd, async_fd, num_comp_vectors;
  pthread_mutex_t mutex;
  void* abi_compat;
};
inline void* const abi_is_extended = reinterpret_cast<void*>(UINTPTR_MAX);

struct VerbsContext {  // grows at its beginning; `sz` is its size
  int (*query_port)(Context*, std::uint8_t port, PortAttr*, std::size_t nbytes);
  Unused before[24];
  CqEx* (*create_cq_ex)(Context*, CqInitAttrEx*);
  Unused between[7];
  Qp* (*create_qp_ex)(Context*, QpInitAttrEx*);
  Unused after[4];
  std::uint64_t placeholder;
  std::size_t sz;
  Context context;
};

struct DeviceAttr {
  char fw_ver[64];
  std::uint64_t node_guid, sys_image_guid, max_mr_size, page_size_cap;
  std::uint32_t vendor_id, vendor_part_id, hw_ver;
  int max_qp, max_qp_wr;
  unsigned device_cap_flags;
  int max_sge, max_sge_rd, max_cq, max_cqe, max_mr, max_pd;
  int unused[12];
  int max_mcast[2];
  int max_ah;
  int max_fmr[5];
  std::uint16_t max_pkeys;
  std::uint8_t local_ca_ack_delay, phys_port_cnt;
};

struct PortAttr {
  std::int32_t state, max_mtu, active_mtu;
  int gid_tbl_len;
  std::uint32_t port_cap_flags, max_msg_sz, bad_pkey_cntr, qkey_viol_cntr;
  std::uint16_t pkey_tbl_len, lid, sm_lid;
  std::uint8_t lmc, max_vl_num, sm_sl, subnet_timeout, init_type_reply, active_width, active_speed, phys_state,
      link_layer, flags;
  std::uint16_t port_cap_flags2;
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
struct Ah {
  Context* context;
  Pd* pd;
  std::uint32_t handle;
};

struct CompChannel {
  Context* context;
  int fd, refcnt;
};

struct Cq {
  Context* context;
  CompChannel* channel;
  void* cq_context;
  std::uint32_t handle;
  int cqe;
  pthread_mutex_t mutex;
  pthread_cond_t cond;
  std::uint32_t comp_events_completed, async_events_completed;
};

struct CqEx {
  Cq base;
  std::uint32_t comp_mask;
  std::int32_t status;
  std::uint64_t wr_id;
  int (*start_poll)(CqEx*, void* attr);
  int (*next_poll)(CqEx*);
  void (*end_poll)(CqEx*);
  std::int32_t (*read_opcode)(CqEx*);
  std::uint32_t (*read_vendor_err)(CqEx*);
  std::uint32_t (*read_byte_len)(CqEx*);
  std::uint32_t (*read_imm_data)(CqEx*);
  std::uint32_t (*read_qp_num)(CqEx*);
  std::uint32_t (*read_src_qp)(CqEx*);
  unsigned (*read_wc_flags)(CqEx*);
  std::uint32_t (*read_slid)(CqEx*);
  std::uint8_t (*read_sl)(CqEx*);
  std::uint8_t (*read_dlid_path_bits)(CqEx*);
  Unused after[5];
};

struct CqInitAttrEx {
  std::uint32_t cqe;
  void* cq_context;
  CompChannel* channel;
  std::uint32_t comp_vector;
  std::uint64_t wc_flags;
  std::uint32_t comp_mask, flags;
  void* parent_domain;
};

struct Qp {
  Context* context;
  void* qp_context;
  Pd* pd;
  Cq *send_cq, *recv_cq;
  void* srq;
  std::uint32_t handle, qp_num;
  std::int32_t state, qp_type;
  pthread_mutex_t mutex;
  pthread_cond_t cond;
  std::uint32_t events_completed;
};

struct Sge {
  std::uint64_t addr;
  std::uint32_t length, lkey;
};
struct DataBuf {
  void* addr;
  std::size_t length;
};

struct QpEx {
  Qp base;
  std::uint64_t comp_mask, wr_id;
  unsigned wr_flags;
  Unused atomics[4];
  void (*wr_rdma_read)(QpEx*, std::uint32_t rkey, std::uint64_t remote_addr);
  void (*wr_rdma_write)(QpEx*, std::uint32_t rkey, std::uint64_t remote_addr);
  void (*wr_rdma_write_imm)(QpEx*, std::uint32_t rkey, std::uint64_t remote_addr, std::uint32_t imm);
  void (*wr_send)(QpEx*);
  void (*wr_send_imm)(QpEx*, std::uint32_t imm);
  Unused other_sends[2];
  void (*wr_set_ud_addr)(QpEx*, Ah*, std::uint32_t remote_qpn, std::uint32_t remote_qkey);
  Unused set_xrc_srqn;
  void (*wr_set_inline_data)(QpEx*, void* addr, std::size_t length);
  void (*wr_set_inline_data_list)(QpEx*, std::size_t count, const DataBuf*);
  void (*wr_set_sge)(QpEx*, std::uint32_t lkey, std::uint64_t addr, std::uint32_t length);
  void (*wr_set_sge_list)(QpEx*, std::size_t count, const Sge*);
  void (*wr_start)(QpEx*);
  int (*wr_complete)(QpEx*);
  void (*wr_abort)(QpEx*);
  Unused atomic_write;
};

struct QpCap {
  std::uint32_t max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data;
};
struct QpInitAttrEx {
  void* qp_context;
  Cq *send_cq, *recv_cq;
  void* srq;
  QpCap cap;
  std::int32_t qp_type;
  int sq_sig_all;
  std::uint32_t comp_mask;
  Pd* pd;
  void* xrcd;
  std::uint32_t create_flags;
  std::uint16_t max_tso_header;
  void* rwq_ind_tbl;
  std::uint64_t rx_hash_conf[3];
  std::uint32_t source_qpn;
  std::uint64_t send_ops_flags;
};
struct QpAttr {
  std::int32_t qp_state, cur_qp_state, path_mtu, path_mig_state;
  std::uint32_t qkey, rq_psn, sq_psn, dest_qp_num;
  unsigned qp_access_flags;
  QpCap cap;
  AhAttr ah_attr, alt_ah_attr;
  std::uint16_t pkey_index, alt_pkey_index;
  std::uint8_t en_sqd_async_notify, sq_draining, max_rd_atomic, max_dest_rd_atomic, min_rnr_timer, port_num, timeout,
      retry_cnt, rnr_retry, alt_port_num, alt_timeout;
  std::uint32_t rate_limit;
};

struct RecvWr {
  std::uint64_t wr_id;
  RecvWr* next;
  Sge* sg_list;
  int num_sge;
};

// ---- libefa's structures, as of rdma-core 48; the caller's may be shorter or longer
struct EfadvDeviceAttr {
  std::uint64_t comp_mask;
  std::uint32_t max_sq_wr, max_rq_wr;
  std::uint16_t max_sq_sge, max_rq_sge, inline_buf_size;
  std::uint8_t reserved[2];
  std::uint32_t device_caps, max_rdma_size;
};
struct EfadvAhAttr {
  std::uint64_t comp_mask;
  std::uint16_t ahn;
  std::uint8_t reserved[6];
};
struct EfadvQpInitAttr {
  std::uint64_t comp_mask;
  std::uint32_t driver_qp_type;
  std::uint16_t flags;  // reserved before rdma-core 53
  std::uint8_t sl, reserved;
};
struct EfadvCqInitAttr {
  std::uint64_t comp_mask, wc_flags;
};
struct EfadvCq {
  std::uint64_t comp_mask;
  int (*wc_read_sgid)(EfadvCq*, Gid*);
  bool (*wc_is_unsolicited)(EfadvCq*);  // rdma-core 53
};

}  // namespace efa::abi
