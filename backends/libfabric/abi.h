// Declarations of libfabric's binary interface (libfabric.so.1, ABI 1.7 and later), so that nothing has to be installed
// to build. Written from fi_getinfo(3), fi_endpoint(3), fi_cq(3), fi_mr(3), fi_rma(3) and fi_av(3);
// tests/abi/libfabric_check.cpp checks every size, offset and value against the real headers.
//
// The library allocates the structures that grow between versions (fi_info and its attributes). Fields that were added
// later are at their ends, and those that we never touch are left out.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>

namespace aio::libfabric::abi {

constexpr std::uint32_t make_version(std::uint32_t major, std::uint32_t minor) noexcept { return major << 16 | minor; }

// ---- flags and capabilities
inline constexpr std::uint64_t msg = 1ull << 1, rma = 1ull << 2, read = 1ull << 8, write = 1ull << 9, recv = 1ull << 10,
                               send = 1ull << 11, remote_read = 1ull << 12, remote_write = 1ull << 13,
                               remote_cq_data = 1ull << 17, completion = 1ull << 24, delivery_complete = 1ull << 28,
                               mr_dmabuf = 1ull << 40, hmem = 1ull << 47, local_comm = 1ull << 51,
                               remote_comm = 1ull << 52, source_address = 1ull << 57;
inline constexpr std::uint64_t mode_context = 1ull << 59, mode_rx_cq_data = 1ull << 56, mode_context2 = 1ull << 52;
inline constexpr int mr_local = 1 << 2, mr_raw = 1 << 3, mr_virt_addr = 1 << 4, mr_allocated = 1 << 5,
                     mr_prov_key = 1 << 6, mr_endpoint = 1 << 9, mr_hmem = 1 << 10;
inline constexpr std::uint64_t addr_unspec = ~0ull;

inline constexpr std::int32_t ep_rdm = 3;
inline constexpr std::int32_t progress_manual = 2;
inline constexpr std::int32_t thread_domain = 3;
inline constexpr std::int32_t av_table = 2;
inline constexpr std::int32_t cq_format_data = 3;
inline constexpr std::int32_t wait_none = 0, wait_fd = 3;
inline constexpr std::int32_t hmem_system = 0, hmem_cuda = 1;
inline constexpr std::uint32_t format_sockaddr = 1, format_sockaddr_in = 2, format_sockaddr_in6 = 3;
inline constexpr int control_getwait = 5, control_enable = 6;

// ---- endpoint options
inline constexpr int opt_endpoint = 0;
inline constexpr int opt_cuda_api_permitted = 10, opt_shared_memory_permitted = 11, opt_max_msg_size = 12;
inline constexpr int opt_efa_rnr_retry = -(0xefa << 16), opt_efa_emulated_write = -(0xefa << 16) + 2,
                     opt_efa_use_device_rdma = -(0xefa << 16) + 4;

// ---- error numbers beyond errno's
inline constexpr int err_avail = 259, err_nokey = 266;

// ---- objects
struct Fid;

struct Ops {
  std::size_t size;
  int (*close)(Fid*);
  int (*bind)(Fid*, Fid*, std::uint64_t flags);
  int (*control)(Fid*, int command, void* argument);
};

struct Fid {
  std::size_t fclass;
  void* context;
  Ops* ops;
};

using Unused = void (*)();  // a slot of an operations table that we do not call

struct Info;
struct Fabric;
struct DomainFid;
struct Ep;
struct Cq;
struct CqAttr;
struct Av;
struct AvAttr;
struct Mr;
struct MrAttr;
struct Message;
struct RmaMessage;
struct CqErrorEntry;

struct FabricOps {
  std::size_t size;
  int (*domain)(Fabric*, Info*, DomainFid**, void* context);
  Unused passive_ep, eq_open, wait_open;
  int (*trywait)(Fabric*, Fid**, int count);
};
struct Fabric {
  Fid fid;
  FabricOps* ops;
};

struct DomainOps {
  std::size_t size;
  int (*av_open)(DomainFid*, AvAttr*, Av**, void* context);
  int (*cq_open)(DomainFid*, CqAttr*, Cq**, void* context);
  int (*endpoint)(DomainFid*, Info*, Ep**, void* context);
};
struct MrOps {
  std::size_t size;
  Unused reg, regv;
  int (*regattr)(Fid*, const MrAttr*, std::uint64_t flags, Mr**);
};
struct DomainFid {
  Fid fid;
  DomainOps* ops;
  MrOps* mr;
};

struct EpOps {
  std::size_t size;
  Unused cancel;
  int (*getopt)(Fid*, int level, int name, void* value, std::size_t* nbytes);
  int (*setopt)(Fid*, int level, int name, const void* value, std::size_t nbytes);
};
struct CmOps {
  std::size_t size;
  Unused setname;
  int (*getname)(Fid*, void* address, std::size_t* nbytes);
};
struct MsgOps {
  std::size_t size;
  ssize_t (*recv)(Ep*, void* buffer, std::size_t nbytes, void* desc, std::uint64_t source, void* context);
  Unused recvv, recvmsg;
  ssize_t (*send)(Ep*, const void* buffer, std::size_t nbytes, void* desc, std::uint64_t to, void* context);
};
struct RmaOps {
  std::size_t size;
  Unused read, readv;
  ssize_t (*readmsg)(Ep*, const RmaMessage*, std::uint64_t flags);
  Unused write, writev;
  ssize_t (*writemsg)(Ep*, const RmaMessage*, std::uint64_t flags);
};
struct Ep {
  Fid fid;
  EpOps* ops;
  CmOps* cm;
  MsgOps* msg;
  RmaOps* rma;
};

struct CqOps {
  std::size_t size;
  ssize_t (*read)(Cq*, void* entries, std::size_t count);
  Unused readfrom;
  ssize_t (*readerr)(Cq*, CqErrorEntry*, std::uint64_t flags);
  Unused sread, sreadfrom, signal;
  const char* (*strerror)(Cq*, int provider_errno, const void* data, char* text, std::size_t nbytes);
};
struct Cq {
  Fid fid;
  CqOps* ops;
};

struct AvOps {
  std::size_t size;
  int (*insert)(Av*, const void* address, std::size_t count, std::uint64_t* out, std::uint64_t flags, void* context);
  Unused insertsvc, insertsym;
  int (*remove)(Av*, std::uint64_t* addresses, std::size_t count, std::uint64_t flags);
};
struct Av {
  Fid fid;
  AvOps* ops;
};

struct Mr {
  Fid fid;
  void* mem_desc;
  std::uint64_t key;
};

// ---- attributes
struct TxAttr {
  std::uint64_t caps, mode, op_flags, msg_order, comp_order;
  std::size_t inject_size, size, iov_limit, rma_iov_limit;
  std::uint32_t tclass;
};
struct RxAttr {
  std::uint64_t caps, mode, op_flags, msg_order, comp_order;
  std::size_t total_buffered_recv, size, iov_limit;
};
struct EpAttr {
  std::int32_t type;
  std::uint32_t protocol, protocol_version;
  std::size_t max_msg_size;
};
struct DomainAttr {
  DomainFid* domain;
  char* name;
  std::int32_t threading, control_progress, data_progress, resource_mgmt, av_type;
  int mr_mode;
  std::size_t mr_key_size, cq_data_size;
};
struct FabricAttr {
  Fabric* fabric;
  char* name;
  char* prov_name;
  std::uint32_t prov_version, api_version;
};
struct DeviceAttr {
  char *name, *device_id, *device_version, *vendor_id, *driver, *firmware;
};
struct LinkAttr {
  char* address;
  std::size_t mtu, speed;  // speed: bits per second
  std::int32_t state;
  char* network_type;
};
struct Nic {
  Fid fid;
  DeviceAttr* device_attr;
  void* bus_attr;
  LinkAttr* link_attr;
};
struct Info {
  Info* next;
  std::uint64_t caps, mode;
  std::uint32_t addr_format;
  std::size_t src_addrlen, dest_addrlen;
  void *src_addr, *dest_addr;
  Fid* handle;
  TxAttr* tx_attr;
  RxAttr* rx_attr;
  EpAttr* ep_attr;
  DomainAttr* domain_attr;
  FabricAttr* fabric_attr;
  Nic* nic;
};
struct CqAttr {
  std::size_t size;
  std::uint64_t flags;
  std::int32_t format, wait_obj;
  int signaling_vector;
  std::int32_t wait_cond;
  void* wait_set;
  void* xpu_ctx;  // 2.6
};
struct AvAttr {
  std::int32_t type;
  int rx_ctx_bits;
  std::size_t count, ep_per_node;
  const char* name;
  void* map_addr;
  std::uint64_t flags;
};
struct MrDmabuf {
  int fd;
  std::uint64_t offset;
  std::size_t nbytes;
  void* base_addr;
};
struct MrAttr {
  const void* iov;  // iovec, or MrDmabuf with mr_dmabuf
  std::size_t iov_count;
  std::uint64_t access, offset, requested_key;
  void* context;
  std::size_t auth_key_size;
  std::uint8_t* auth_key;
  std::int32_t iface;
  std::uint64_t device;
  void* hmem_data;        // 1.18
  std::size_t page_size;  // 2.0
  const Mr* base_mr;
  std::size_t sub_mr_cnt;
};

// ---- data path
struct RmaIov {
  std::uint64_t addr;
  std::size_t nbytes;
  std::uint64_t key;
};
struct RmaMessage {
  const iovec* iov;
  void** desc;
  std::size_t iov_count;
  std::uint64_t addr;
  const RmaIov* rma_iov;
  std::size_t rma_iov_count;
  void* context;
  std::uint64_t data;
};
struct CqEntry {  // fi_cq_data_entry
  void* op_context;
  std::uint64_t flags;
  std::size_t nbytes;
  void* buf;
  std::uint64_t data;
};
struct CqErrorEntry {
  void* op_context;
  std::uint64_t flags;
  std::size_t nbytes;
  void* buf;
  std::uint64_t data, tag;
  std::size_t olen;
  int err, prov_errno;
  void* err_data;
  std::size_t err_data_size;
  std::uint64_t src_addr;  // 1.20
};
struct Context {  // fi_context2; large enough for fi_context too
  void* internal[8];
};

// ---- calls through the tables, named after the C functions; a result below 0 is a negated error number
inline int close(Fid* fid) noexcept { return fid->ops->close(fid); }
inline int bind(Fid* fid, Fid* to, std::uint64_t flags) noexcept { return fid->ops->bind(fid, to, flags); }
inline int enable(Fid* fid) noexcept { return fid->ops->control(fid, control_enable, nullptr); }
inline int get_wait_fd(Cq* cq, int* fd) noexcept { return cq->fid.ops->control(&cq->fid, control_getwait, fd); }

}  // namespace aio::libfabric::abi
