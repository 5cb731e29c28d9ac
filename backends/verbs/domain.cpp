// Opening of verbs domains: options, queues, attributes.
#include "domain.h"

#include <fcntl.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace aio::verbs {

namespace {

constexpr int kMaxCompletions = 1 << 16;
constexpr int kConcurrentFullQueues =
    16;  // peers whose send queues may all be full at once; beyond that they wait for each other
constexpr std::uint64_t kInlineNbytesOnRxe = 16 << 10;

Settings settings_of(const Options& options) {
  const auto byte_option = [&](const char* name, std::uint8_t otherwise, std::uint8_t most) {
    return static_cast<std::uint8_t>(whole_number("verbs", options, name, otherwise, 0, most));
  };
  Settings settings{};
  settings.depth = static_cast<std::uint32_t>(whole_number("verbs", options, "depth", 512, 2, 32768));
  // As perftest's latency tests: enough for a token, and cheaper than fetching two cache lines.
  settings.inline_nbytes = static_cast<std::uint32_t>(whole_number("verbs", options, "inline_nbytes", 220, 0, 4096));
  settings.relaxed_ordering = yes_or_no("verbs", options, "relaxed_ordering").value_or(true);
  settings.service_level = byte_option("service_level", 0, 15);
  settings.traffic_class = byte_option("traffic_class", 0, 255);
  // ibv_modify_qp(3). perftest uses 14 (67 ms), NCCL 20 (4.3 s); a device may wait up to four times as long. With 17
  // and six retries an unreachable peer is reported after 3.8 to 15 s, and a cable may be unplugged for a second. Seven
  // retries mean without limit on Linux 6.1's rdma_rxe.
  settings.timeout = byte_option("timeout", 17, 31);
  settings.retries = byte_option("retries", 6, 7);
  // Without limit: under load a peer may briefly run out of receives; whether it is alive is checked elsewhere.
  settings.rnr_retries = byte_option("rnr_retries", 7, 7);
  settings.port_down = Seconds(number("verbs", options, "port_down_s", 2, 0, 1e6));
  settings.stall = Seconds(number("verbs", options, "stall_s", 30, 0, 1e6));
  settings.revoke = Seconds(number("verbs", options, "revoke_s", 2, 0, 1e6));
  return settings;
}

[[noreturn]] void unavailable(const std::string& what) {
  const int code = errno != 0 ? errno : ENODEV;
  const bool memory = code == ENOMEM;
  throw Failure(Failure::Kind::unavailable, "verbs",
                what + ": " + std::strerror(code) + (memory ? ": limit of locked memory exceeded?" : ""), code,
                memory ? "ulimit -l unlimited" : "aio-transfer doctor");
}

template <class Object>
Object* require(Object* object, const std::string& what) {
  if (object == nullptr) unavailable(what);
  return object;
}

void set_nonblocking(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) unavailable("fcntl");
}

}  // namespace

std::vector<std::unique_ptr<Domain>> open_domains(Sink& sink, const Options& options) {
  check_option_names(
      "verbs", options,
      {"devices", "rails", "depth", "inline_nbytes", "relaxed_ordering", "service_level", "traffic_class", "timeout",
       "retries", "rnr_retries", "port_down_s", "stall_s", "revoke_s", "library"});
  const Settings settings = settings_of(options);
  const std::uint64_t most = whole_number("verbs", options, "rails", 1, 1, 64);
  const Library& library = load(options);
  std::vector<std::unique_ptr<Domain>> domains;
  auto rails = std::make_shared<Rails>();
  for (Port& port : open_ports(library, option(options, "devices", ""), most)) {
    auto domain = std::make_unique<VerbsDomain>(sink, library, std::move(port), settings, rails);
    rails->domains.push_back(domain.get());
    domains.push_back(std::move(domain));
  }
  return domains;
}

VerbsDomain::VerbsDomain(Sink& sink, const Library& library, Port port, const Settings& settings,
                         std::shared_ptr<Rails> rails)
    : sink_(sink),
      library_(library),
      port_(std::move(port)),
      settings_(settings),
      rails_(std::move(rails)),
      rail_(static_cast<std::uint16_t>(rails_->domains.size())),
      timer_(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)) {
  if (!timer_) unavailable("timerfd_create");
  settings_.depth = std::min(settings_.depth, static_cast<std::uint32_t>(std::max(2, port_.device.max_qp_wr)));
  slot_nbytes_ = rail_ == 0 ? kMessageSlotNbytes : kControlSlotNbytes;
  set_nonblocking(port_.context->async_fd);
  open_queues();
  const std::size_t nbytes = 2 * kSlots * slot_nbytes_ + 2 * kFlushWordNbytes;
  arena_ = std::make_unique<std::byte[]>(nbytes);
  const auto register_range = [&](const std::byte* base, std::size_t length, unsigned access) {
    errno = 0;
    abi::Mr* mr = library_.reg_mr(pd_.get(), const_cast<std::byte*>(base), length, static_cast<int>(access));
    return Handle<abi::Mr>(require(mr, port_.name + ": ibv_reg_mr of " + std::to_string(length) + " bytes"),
                           library_.dereg_mr);
  };
  arena_registration_ = register_range(arena_.get(), nbytes, abi::access_local_write);
  flush_source_registration_ =
      register_range(flush_source(), kFlushWordNbytes, abi::access_local_write | abi::access_remote_read);
  for (std::uint32_t slot = 0; slot < kSlots; ++slot) {
    used_receive_slots_.push_back(slot);
    free_slots_.push_back(kSlots + slot);
  }
  post_message_receives();
  post_immediate_receives(kImmediateReceives);
  describe();
}

void VerbsDomain::open_queues() {
  errno = 0;
  pd_ = {require(library_.alloc_pd(port_.context.get()), port_.name + ": ibv_alloc_pd"), library_.dealloc_pd};
  channel_ = {require(library_.create_comp_channel(port_.context.get()), port_.name + ": ibv_create_comp_channel"),
              library_.destroy_comp_channel};
  set_nonblocking(channel_->fd);
  // One CQ entry per receive; the send queues of all peers share the rest. Requests in flight are counted, so that with
  // any number of peers every completion finds an entry.
  const auto receives = static_cast<int>(kImmediateReceives + kSlots);
  const int wanted = receives + kConcurrentFullQueues * static_cast<int>(settings_.depth + kMessageDepth);
  const int entries = std::min({wanted, port_.device.max_cqe, kMaxCompletions});
  abi::Cq* cq = library_.create_cq(port_.context.get(), entries, nullptr, channel_.get(), 0);
  cq_ = {require(cq, port_.name + ": ibv_create_cq"), library_.destroy_cq};
  if (cq_->cqe < receives + 2)
    throw Failure(Failure::Kind::unavailable, "verbs", port_.name + ": its completion queue is too small");
  free_cq_entries_ = static_cast<std::uint32_t>(cq_->cqe - receives);
  const auto shared = [&](std::uint32_t depth, std::uint32_t segments) {
    abi::SrqInitAttr attr{nullptr, depth, segments, 0};
    return Handle<abi::Srq>(require(library_.create_srq(pd_.get(), &attr), port_.name + ": ibv_create_srq"),
                            library_.destroy_srq);
  };
  // A write with immediate consumes the next receive, whichever it is. Messages have a shared receive queue of their
  // own, so that immediates do not use up theirs.
  immediate_receives_ = shared(kImmediateReceives, 1);
  message_receives_ = shared(kSlots, 1);
}

VerbsDomain::~VerbsDomain() {
  // QPs first: afterwards nothing can reach the memory whose registrations go next.
  for (auto& [number, peer] : peers_) {
    peer->data.qp.reset();
    peer->messages.qp.reset();
  }
  peers_.clear();
  local_regions_.clear();
}

void VerbsDomain::describe() {
  const auto newest = std::max_element(port_.gids.begin(), port_.gids.end(),
                                       [](const PortGid& one, const PortGid& other) { return one.type < other.type; });
  attributes_.name = port_.name;
  // Peers are matched by provider; InfiniBand and RoCE cannot reach each other.
  attributes_.provider = port_.is_infiniband() ? "infiniband" : "roce";
  attributes_.protocol = "RC write with immediate";
  if (!port_.is_infiniband()) {
    attributes_.protocol += newest == port_.gids.end() || newest->type != GidType::roce_v2 ? ", RoCE v1" : ", RoCE v2";
  }
  attributes_.protocol += ", MTU " + std::to_string(128u << port_.attr.active_mtu);
  // At most 1 GiB, so that a stall can be told from a slow piece.
  attributes_.max_piece_nbytes = std::min<std::uint64_t>(port_.attr.max_msg_sz, 1ull << 30);
  attributes_.max_message_nbytes = rail_ == 0 ? kMessageSlotNbytes : UINT64_MAX >> 1;
  attributes_.device_memory = library_.reg_dmabuf_mr != nullptr;
  // Posting copies no payload, so only the number of pieces counts. rdma_rxe, however, sends the packets itself before
  // ibv_post_send returns.
  attributes_.inline_nbytes = port_.is_rxe() ? kInlineNbytesOnRxe : UINT64_MAX;
  attributes_.inline_pieces = 32;
  attributes_.notifies_completions = true;
  attributes_.preference = 300;
}

}  // namespace aio::verbs
