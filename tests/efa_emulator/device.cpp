// The device list, opening, and attributes: an EFA of the generation of p5en and p6, an older one without RDMA write,
// or the first one without RDMA.
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "nic.h"
#include "queue_pair.h"

namespace efa {

int req_notify(abi::Cq* cq, int solicited_only);
int post_receives(abi::Qp* qp, abi::RecvWr* request, abi::RecvWr** bad);
abi::Qp* create_plain(abi::Context* context, abi::QpInitAttrEx* attr);

namespace {

constexpr std::uint32_t kAmazon = 0x1d0f;
constexpr int kMostQueuePairs = 65536;  // so that no two numbers share a slot of the provider's table

struct OpenDevice : abi::VerbsContext {
  explicit OpenDevice(std::uint16_t number) : abi::VerbsContext{}, nic(number) {}

  Nic nic;
};

OpenDevice& open_of(abi::Context* context) {
  auto* at = reinterpret_cast<std::byte*>(context) - offsetof(abi::VerbsContext, context);
  return *static_cast<OpenDevice*>(reinterpret_cast<abi::VerbsContext*>(at));
}

abi::Device* devices() {
  static abi::Device* const all = [] {
    auto* list = new abi::Device[4]{};  // never freed: the provider keeps pointers to them
    for (unsigned i = 0; i < 4; ++i) {
      abi::Device& device = list[i];
      device.node_type = abi::node_unspecified;
      device.transport_type = abi::transport_unspecified;
      std::snprintf(device.name, sizeof device.name, "emulated%u", i);
      std::snprintf(device.dev_name, sizeof device.dev_name, "uverbs%u", i);
      const char* sysfs = Settings::get().sysfs.c_str();
      std::snprintf(device.dev_path, sizeof device.dev_path, "%s/class/infiniband_verbs/uverbs%u", sysfs, i);
      std::snprintf(device.ibdev_path, sizeof device.ibdev_path, "%s/class/infiniband/emulated%u", sysfs, i);
    }
    return list;
  }();
  return all;
}

std::atomic<bool> fork_initialized{false};

int query_port(abi::Context*, std::uint8_t port, abi::PortAttr* attr, std::size_t nbytes) {
  if (port != 1) return EINVAL;
  abi::PortAttr known{};
  known.state = abi::port_active;
  known.max_mtu = known.active_mtu = 5;  // 4096 bytes, the largest value of verbs
  known.gid_tbl_len = 1;
  known.max_msg_sz = kMostSend;
  known.pkey_tbl_len = 1;
  known.max_vl_num = 1;
  known.active_width = 2;   // four lanes
  known.active_speed = 64;  // of 50 Gbit/s
  known.phys_state = 5;     // link up
  std::memset(attr, 0, nbytes);
  std::memcpy(attr, &known, std::min(nbytes, sizeof known));
  return 0;
}

}  // namespace

Nic& nic_of(abi::Context* context) { return open_of(context).nic; }

}  // namespace efa

using namespace efa;

extern "C" {

abi::CqEx* efa_emulator_create_cq(abi::Context*, abi::CqInitAttrEx*, abi::EfadvCqInitAttr*, std::uint32_t);

abi::Device** ibv_get_device_list(int* count) {
  const unsigned number = Settings::get().devices;
  auto** list = static_cast<abi::Device**>(std::calloc(number + 1, sizeof(abi::Device*)));
  if (list == nullptr) return nullptr;
  for (unsigned i = 0; i < number; ++i) list[i] = devices() + i;
  if (count != nullptr) *count = static_cast<int>(number);
  return list;
}

void ibv_free_device_list(abi::Device** list) { std::free(list); }

abi::Context* ibv_open_device(abi::Device* device) {
  auto* open = new OpenDevice(static_cast<std::uint16_t>(device - devices()));
  open->query_port = query_port;
  open->create_cq_ex = [](abi::Context* context, abi::CqInitAttrEx* attr) {
    return efa_emulator_create_cq(context, attr, nullptr, 0);
  };
  open->create_qp_ex = create_plain;
  open->sz = sizeof(abi::VerbsContext);
  open->context.device = device;
  open->context.cmd_fd = open->context.async_fd = -1;
  open->context.num_comp_vectors = Settings::get().interrupts ? 32 : 1;
  open->context.abi_compat = abi::abi_is_extended;
  open->context.ops.req_notify_cq = req_notify;
  open->context.ops.post_recv = post_receives;
  return &open->context;
}

int ibv_close_device(abi::Context* context) {
  delete &open_of(context);
  return 0;
}

int ibv_query_device(abi::Context*, abi::DeviceAttr* attr) {
  const Settings& settings = Settings::get();
  *attr = {};
  std::snprintf(attr->fw_ver, sizeof attr->fw_ver, "emulated");
  attr->max_mr_size = 1ull << 40;
  attr->page_size_cap = 0xfffff000;
  attr->vendor_id = kAmazon;
  // The part number identifies the generation; the first one (0xefa0) splits its completion queues, which is not
  // emulated.
  attr->vendor_part_id = settings.writes ? 0xefa2 : 0xefa1;
  attr->max_qp = kMostQueuePairs;
  attr->max_qp_wr = static_cast<int>(settings.send_depth);
  attr->max_sge = static_cast<int>(kMostParts);
  attr->max_sge_rd = 1;
  attr->max_cq = 4096;
  attr->max_cqe = 1 << 20;
  attr->max_mr = 1 << 18;
  attr->max_pd = 4096;
  attr->max_ah = 1 << 15;
  attr->max_pkeys = 1;
  attr->phys_port_cnt = 1;
  return 0;
}

// Older callers have a shorter structure: up to and including `flags`.
int ibv_query_port(abi::Context* context, std::uint8_t port, abi::PortAttr* attr) {
  return query_port(context, port, attr, offsetof(abi::PortAttr, flags));
}

int ibv_query_gid(abi::Context* context, std::uint8_t port, int index, abi::Gid* gid) {
  if (port != 1 || index != 0) return EINVAL;
  *gid = gid_of(nic_of(context).device);
  return 0;
}

int ibv_fork_init() {
  fork_initialized = true;
  return 0;
}

std::int32_t ibv_is_fork_initialized() {
  if (Settings::get().copies_on_fork) return abi::fork_unneeded;
  return fork_initialized ? abi::fork_enabled : abi::fork_disabled;
}

int efa_emulator_query_device(abi::Context*, abi::EfadvDeviceAttr* attr, std::uint32_t inlen) {
  const Settings& settings = Settings::get();
  abi::EfadvDeviceAttr known{};
  known.max_sq_wr = settings.send_depth;
  known.max_rq_wr = settings.receive_depth;
  known.max_sq_sge = known.max_rq_sge = kMostParts;
  known.inline_buf_size = kMostInline;
  known.device_caps = abi::caps_rnr_retry | abi::caps_cq_with_sgid;
  if (settings.reads) known.device_caps |= abi::caps_read;
  if (settings.writes) known.device_caps |= abi::caps_write;
  if (settings.unsolicited) known.device_caps |= abi::caps_unsolicited_write_recv;
  known.max_rdma_size = settings.reads ? kMostRdma : 0;
  std::memcpy(attr, &known, std::min<std::size_t>(inlen, sizeof known));
  return 0;
}

}  // extern "C"
