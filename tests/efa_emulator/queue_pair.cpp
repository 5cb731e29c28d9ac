#include "queue_pair.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

namespace efa {

namespace {

void set_parts(SendWork& work, std::size_t count, const abi::Sge* list, QueuePair& pair) {
  if (count > kMostParts) return pair.spoil(EINVAL);
  std::copy_n(list, count, work.parts.list.begin());
  work.parts.count = static_cast<std::uint32_t>(count);
  work.nbytes = work.parts.nbytes();
}

void set_inline(SendWork& work, std::size_t count, const abi::DataBuf* list, QueuePair& pair) {
  work.is_inline = true;
  for (std::size_t i = 0; i < count; ++i) {
    if (list[i].length > kMostInline - work.nbytes) return pair.spoil(EINVAL);
    if (list[i].length > 0) std::memcpy(work.inlined.data() + work.nbytes, list[i].addr, list[i].length);
    work.nbytes += list[i].length;
  }
}

SendWork& stage_remote(abi::QpEx* qp, Kind kind, std::uint32_t key, std::uint64_t addr) {
  SendWork& work = QueuePair::of(qp).stage(kind);
  work.remote_key = key;
  work.remote_addr = addr;
  return work;
}

void with_immediate(SendWork& work, std::uint32_t immediate) {
  work.has_immediate = true;
  work.immediate = immediate;
}

}  // namespace

QueuePair::QueuePair(Nic& nic, abi::Context* context, const abi::QpInitAttrEx& attr, bool unsolicited,
                     std::vector<int> sockets, Port port)
    : abi::QpEx{},
      nic_(nic),
      settings_(Settings::get()),
      port_(port),
      sockets_(std::move(sockets)),
      datagrams_(attr.qp_type == abi::qp_type_ud),
      unsolicited_(unsolicited),
      send_depth_(attr.cap.max_send_wr),
      receive_depth_(attr.cap.max_recv_wr),
      next_message_(Dice(static_cast<std::uint64_t>(::getpid()) << 32 | port.device << 16 | port.queue_pair).roll()) {
  base.context = context;
  base.qp_context = attr.qp_context;
  base.pd = attr.pd;
  base.send_cq = attr.send_cq;
  base.recv_cq = attr.recv_cq;
  base.qp_num = port.queue_pair;
  base.qp_type = attr.qp_type;
  wr_start = [](abi::QpEx* qp) { of(qp).begin(); };
  wr_complete = [](abi::QpEx* qp) { return of(qp).submit(); };
  wr_abort = [](abi::QpEx* qp) { of(qp).begin(); };
  wr_send = [](abi::QpEx* qp) { of(qp).stage(Kind::send); };
  wr_send_imm = [](abi::QpEx* qp, std::uint32_t imm) { with_immediate(of(qp).stage(Kind::send), imm); };
  wr_rdma_read = [](abi::QpEx* qp, std::uint32_t key, std::uint64_t addr) { stage_remote(qp, Kind::read, key, addr); };
  wr_rdma_write = [](abi::QpEx* qp, std::uint32_t key, std::uint64_t addr) {
    stage_remote(qp, Kind::write, key, addr);
  };
  wr_rdma_write_imm = [](abi::QpEx* qp, std::uint32_t key, std::uint64_t addr, std::uint32_t imm) {
    with_immediate(stage_remote(qp, Kind::write, key, addr), imm);
  };
  wr_set_ud_addr = [](abi::QpEx* qp, abi::Ah* ah, std::uint32_t number, std::uint32_t qkey) {
    SendWork& work = of(qp).staged();
    work.to = {static_cast<AddressHandle*>(ah)->device, static_cast<std::uint16_t>(number)};
    work.qkey = qkey;
  };
  wr_set_sge_list = [](abi::QpEx* qp, std::size_t count, const abi::Sge* list) {
    set_parts(of(qp).staged(), count, list, of(qp));
  };
  wr_set_inline_data_list = [](abi::QpEx* qp, std::size_t count, const abi::DataBuf* list) {
    set_inline(of(qp).staged(), count, list, of(qp));
  };
}

// One line per queue pair in one write, so that lines of several processes do not mix.
QueuePair::~QueuePair() {
  for (const int fd : sockets_) ::close(fd);
  if (settings_.log.empty() || totals_.packets + totals_.messages == 0) return;
  const auto word = [](const char* name, std::uint64_t value) {
    return std::string(name) + "=" + std::to_string(value);
  };
  const std::string line = word("seed", settings_.seed) + word(" pid", static_cast<std::uint64_t>(::getpid())) +
                           word(" device", port_.device) + word(" queue_pair", port_.queue_pair) +
                           word(" messages", totals_.messages) + word(" turns", totals_.turns) +
                           word(" packets", totals_.packets) + word(" overtaken", totals_.overtaken) +
                           word(" within", totals_.within) + word(" refused", totals_.refused) +
                           word(" unready", totals_.unready) + word(" failed", totals_.failed) + "\n";
  const int fd = ::open(settings_.log.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
  if (fd < 0) return;
  if (::write(fd, line.data(), line.size()) < 0) std::fprintf(stderr, "efa emulator: the log is full\n");
  ::close(fd);
}

int QueuePair::modify(const abi::QpAttr& attr, int mask) {
  if ((mask & abi::attr_qkey) != 0) qkey_ = attr.qkey;
  if ((mask & abi::attr_rnr_retry) != 0) rnr_retry_ = attr.rnr_retry;
  if ((mask & abi::attr_state) != 0) base.state = attr.qp_state;
  return 0;
}

int QueuePair::post(const abi::RecvWr& request) {
  if (request.num_sge < 0 || static_cast<std::uint32_t>(request.num_sge) > kMostParts) return EINVAL;
  if (receives_used_ >= receive_depth_) return ENOMEM;
  ReceiveWork work;
  work.wr_id = request.wr_id;
  work.parts.count = static_cast<std::uint32_t>(request.num_sge);
  std::copy_n(request.sg_list, work.parts.count, work.parts.list.begin());
  receives_.push_back(work);
  ++receives_used_;
  if (!unready_.empty()) {
    retry_unready();
    nic_.wake();
  }
  return 0;
}

void QueuePair::reaped(const Completion& completion) {
  (completion.opcode >= abi::wc_recv ? receives_used_ : sends_used_) -= 1;
}

namespace {

int bind_path(Port port, unsigned path) {
  const int fd = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  const socklen_t nbytes = to_sockaddr(port, path, address);
  if (fd >= 0 && ::bind(fd, reinterpret_cast<const sockaddr*>(&address), nbytes) == 0) return fd;
  if (fd >= 0) ::close(fd);
  return -1;
}

// A number that no other process uses on this NIC: the process that binds the first path may bind the others.
std::vector<int> bind_number(Nic& nic, Port& port) {
  std::vector<int> sockets;
  port.device = nic.device;
  for (int tries = 0; tries < 4096 && sockets.empty(); ++tries) {
    port.queue_pair = static_cast<std::uint16_t>(1 + nic.dice.below(0xffff));
    for (unsigned path = 0; path < Settings::get().paths; ++path) {
      const int fd = bind_path(port, path);
      if (fd < 0) break;
      sockets.push_back(fd);
    }
    if (sockets.size() == Settings::get().paths) break;
    for (const int fd : sockets) ::close(fd);
    sockets.clear();
  }
  return sockets;
}

abi::Qp* create(abi::Context* context, const abi::QpInitAttrEx& attr, bool unsolicited) {
  const Settings& settings = Settings::get();
  const bool writes = (attr.send_ops_flags & (abi::with_write | abi::with_write_imm)) != 0;
  const bool reads = (attr.send_ops_flags & abi::with_read) != 0;
  if ((writes && !settings.writes) || (reads && !settings.reads) || (unsolicited && !settings.unsolicited)) {
    errno = EOPNOTSUPP;
    return nullptr;
  }
  if (attr.cap.max_send_wr > settings.send_depth || attr.cap.max_recv_wr > settings.receive_depth ||
      attr.cap.max_send_sge > kMostParts || attr.cap.max_recv_sge > kMostParts ||
      attr.cap.max_inline_data > kMostInline) {
    errno = EINVAL;
    return nullptr;
  }
  Nic& nic = nic_of(context);
  const std::lock_guard lock(nic.mutex);
  Port port;
  std::vector<int> sockets = bind_number(nic, port);
  if (sockets.empty()) return nullptr;
  auto* pair = new QueuePair(nic, context, attr, unsolicited, std::move(sockets), port);
  nic.join(pair);
  return &pair->base;
}

}  // namespace

int post_receives(abi::Qp* qp, abi::RecvWr* request, abi::RecvWr** bad) {
  QueuePair& pair = QueuePair::of(qp);
  const std::lock_guard lock(pair.nic().mutex);
  for (; request != nullptr; request = request->next) {
    const int result = pair.post(*request);
    if (result != 0) {
      *bad = request;
      return result;
    }
  }
  return 0;
}

abi::Qp* create_plain(abi::Context* context, abi::QpInitAttrEx* attr) { return create(context, *attr, false); }

}  // namespace efa

using namespace efa;

extern "C" {

abi::Qp* efa_emulator_create_qp(abi::Context* context, abi::QpInitAttrEx* attr, abi::EfadvQpInitAttr* own,
                                std::uint32_t inlen) {
  abi::EfadvQpInitAttr known{};
  std::memcpy(&known, own, std::min<std::size_t>(inlen, sizeof known));
  return create(context, *attr, (known.flags & abi::qp_unsolicited_write_recv) != 0);
}

abi::QpEx* ibv_qp_to_qp_ex(abi::Qp* qp) { return reinterpret_cast<abi::QpEx*>(qp); }

int ibv_modify_qp(abi::Qp* qp, abi::QpAttr* attr, int mask) {
  QueuePair& pair = QueuePair::of(qp);
  const std::lock_guard lock(pair.nic().mutex);
  return pair.modify(*attr, mask);
}

int ibv_query_qp_data_in_order(abi::Qp*, int, std::uint32_t) { return 0; }

int ibv_destroy_qp(abi::Qp* qp) {
  QueuePair* pair = &QueuePair::of(qp);
  {
    const std::lock_guard lock(pair->nic().mutex);
    pair->nic().leave(pair);
    CompletionQueue::of(qp->send_cq).purge(pair);
    CompletionQueue::of(qp->recv_cq).purge(pair);
  }
  delete pair;
  return 0;
}

}  // extern "C"
