#include "fabric.h"

#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace aio::sim {

namespace {

std::uint64_t random_word() {
  std::uint64_t word = 0;
  if (::getrandom(&word, sizeof word, 0) != sizeof word) {
    throw Failure(Failure::Kind::provider, "getrandom", std::strerror(errno), errno);
  }
  return word;
}

// An abstract address: nothing is left behind when the process is killed.
sockaddr_un to_sockaddr(const std::string& name, socklen_t& length) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + 1, name.data(), std::min(name.size(), sizeof address.sun_path - 1));
  length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  return address;
}

constexpr std::size_t kMaxDatagram = sizeof(Header) + (64 << 10);
constexpr int kReceiveBatch = 256;  // per pass: many datagrams must not keep a worker from its own packets

}  // namespace

Fabric::Fabric(std::uint64_t seed, const Faults& faults, bool stepped)
    : stepped_(stepped), id_(random_word()), faults_(faults), dice_(seed), lags_(dice_.roll()) {
  if (stepped_) return;  // one thread moves everything: no other process could take part
  address_ = std::string(kAddressPrefix) + std::to_string(::getpid()) + "-" + std::to_string(id_);
  socket_ = Fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  socklen_t length = 0;
  const sockaddr_un name = to_sockaddr(address_, length);
  if (!socket_ || ::bind(socket_.get(), reinterpret_cast<const sockaddr*>(&name), length) != 0) {
    throw Failure(Failure::Kind::provider, "the simulated fabric's socket", std::strerror(errno), errno);
  }
  datagram_.resize(kMaxDatagram);
}

std::shared_ptr<Fabric> Fabric::common(const std::function<std::shared_ptr<Fabric>()>& make) {
  static std::mutex guard;
  static std::weak_ptr<Fabric> current;
  static int owner = 0;
  const std::lock_guard lock(guard);
  std::shared_ptr<Fabric> found = current.lock();
  if (found == nullptr || owner != ::getpid()) {
    found = make();
    current = found;
    owner = ::getpid();
  }
  return found;
}

NodeId Fabric::add_node(int wake_fd) {
  const std::lock_guard lock(mutex_);
  const NodeId id = ++last_;
  Node& node = nodes_[id];
  node.wake_fd = wake_fd;
  node.controls.speed = 1u << dice_.below(5);  // NICs of unequal speed: 1 … 16 packets per turn
  return id;
}

void Fabric::remove_node(NodeId node) {
  const std::lock_guard lock(mutex_);
  const auto found = nodes_.find(node);
  if (found == nodes_.end()) return;
  totals_.in_flight -= found->second.inbound.size();
  totals_.dropped += found->second.inbound.size();
  nodes_.erase(found);
  dead_.erase(node);
  std::erase_if(cut_, [&](const auto& path) { return path.first == node || path.second == node; });
}

std::uint64_t Fabric::make_key() {
  if (!stepped_) return random_word() | 1;  // 0 is no key
  const std::lock_guard lock(mutex_);
  return dice_.roll() | 1;
}

std::uint64_t Fabric::below(std::uint64_t n) {
  const std::lock_guard lock(mutex_);
  return dice_.below(n);
}

bool Fabric::happens(double probability) {
  if (probability <= 0) return false;
  const std::lock_guard lock(mutex_);
  return dice_.happens(probability);
}

bool Fabric::send(Packet& packet, const std::string& address, bool& is_gone) {
  if (!address.empty()) return send_to_process(packet, address, is_gone);
  const std::lock_guard lock(mutex_);
  const Header& header = packet.header;
  ++totals_.left;
  const auto to = nodes_.find(header.to);
  if (to == nodes_.end() || dead_.contains(header.from) || dead_.contains(header.to)) {
    ++totals_.dropped;  // its sender or receiver is dead, which peers learn from the heartbeat
    is_gone = to == nodes_.end();
    return true;
  }
  if (to->second.inbound.empty()) wake(to->second);
  to->second.inbound.push_back(std::move(packet));
  ++totals_.in_flight;
  return true;
}

bool Fabric::send_to_process(const Packet& packet, const std::string& address, bool& is_gone) {
  socklen_t length = 0;
  sockaddr_un name = to_sockaddr(address, length);
  iovec parts[2] = {{const_cast<Header*>(&packet.header), sizeof packet.header},
                    {const_cast<char*>(packet.payload.data()), packet.payload.size()}};
  msghdr message{};
  message.msg_name = &name;
  message.msg_namelen = length;
  message.msg_iov = parts;
  message.msg_iovlen = 2;
  if (::sendmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) return true;
  // A full queue empties in time; every other error is final.
  is_gone = errno != EAGAIN && errno != ENOBUFS && errno != ENOMEM && errno != EINTR;
  return is_gone;
}

bool Fabric::receive_datagrams() {
  if (!socket_) return false;
  bool any = false;
  const std::lock_guard lock(mutex_);
  for (int left = kReceiveBatch; left != 0; --left) {
    const ssize_t got = ::recv(socket_.get(), datagram_.data(), datagram_.size(), MSG_DONTWAIT);
    if (got < 0) break;
    const auto size = static_cast<std::size_t>(got);
    Packet packet;
    if (size < sizeof(Header)) continue;
    std::memcpy(&packet.header, datagram_.data(), sizeof(Header));
    const auto to = nodes_.find(packet.header.to);
    if (to == nodes_.end() || dead_.contains(packet.header.to)) continue;
    packet.payload.assign(datagram_.data() + sizeof(Header), size - sizeof(Header));
    to->second.inbound.push_back(std::move(packet));
    ++totals_.in_flight;
    wake(to->second);
    any = true;
  }
  return any;
}

bool Fabric::take_next(NodeId id, Packet& out) {
  const std::lock_guard lock(mutex_);
  const auto found = nodes_.find(id);
  if (found == nodes_.end() || found->second.controls.stalled || found->second.inbound.empty()) return false;
  auto& inbound = found->second.inbound;
  for (int tries = 0; tries < 3 && dice_.happens(faults_.reorder); ++tries) {
    std::swap(inbound.front(), inbound[dice_.below(inbound.size())]);
    if (!dice_.happens(lag(inbound.front().header))) break;
  }
  out = std::move(inbound.front());
  inbound.pop_front();
  --totals_.in_flight;
  ++totals_.delivered;
  // FNV-1a over what arrived, in order of arrival. Keys that differ from run to run stay out of it.
  const Header& header = out.header;
  for (const std::uint64_t word : {std::uint64_t(header.kind), std::uint64_t(header.from), std::uint64_t(header.to),
                                   header.offset, std::uint64_t(header.nbytes)}) {
    totals_.digest = (totals_.digest ^ word) * 0x100000001b3ull;
  }
  return true;
}

double Fabric::lag(const Header& header) const noexcept {
  return static_cast<double>(Dice(lags_ ^ (std::uint64_t{header.from} << 32 | header.to)).below(8)) / 8;
}

bool Fabric::has_inbound(NodeId id) {
  const std::lock_guard lock(mutex_);
  const auto found = nodes_.find(id);
  return found != nodes_.end() && !found->second.controls.stalled && !found->second.inbound.empty();
}

Fabric::Controls Fabric::controls(NodeId id) {
  const std::lock_guard lock(mutex_);
  return nodes_.at(id).controls;
}

bool Fabric::fails_post(NodeId id) {
  const std::lock_guard lock(mutex_);
  Controls& node = nodes_.at(id).controls;
  const bool fails = node.fail_posts != 0 || (faults_.failed_posts > 0 && dice_.happens(faults_.failed_posts));
  if (node.fail_posts != 0) --node.fail_posts;
  totals_.failed += fails ? 1 : 0;
  return fails;
}

bool Fabric::fails_completion(NodeId id) {
  const std::lock_guard lock(mutex_);
  Controls& node = nodes_.at(id).controls;
  const bool fails =
      node.fail_completions != 0 || (faults_.failed_completions > 0 && dice_.happens(faults_.failed_completions));
  if (node.fail_completions != 0) --node.fail_completions;
  totals_.failed += fails ? 1 : 0;
  return fails;
}

bool Fabric::refuses_post(NodeId id) {
  const std::lock_guard lock(mutex_);
  const bool refuses = nodes_.at(id).controls.full || (faults_.eagain > 0 && dice_.happens(faults_.eagain));
  totals_.refused_posts += refuses ? 1 : 0;
  return refuses;
}

bool Fabric::is_path_open(NodeId from, NodeId to) {
  const std::lock_guard lock(mutex_);
  return !cut_.contains(std::minmax(from, to));
}

void Fabric::reseed(std::uint64_t seed) {
  const std::lock_guard lock(mutex_);
  dice_ = Dice(seed);
  lags_ = dice_.roll();
  totals_.digest = 0;
  cut_.clear();
  for (auto& [id, node] : nodes_) {
    node.controls = {.speed = 1u << dice_.below(5)};
    wake(node);
  }
}

void Fabric::set_path(NodeId one, NodeId other, bool open) {
  const std::lock_guard lock(mutex_);
  if (!nodes_.contains(one) || !nodes_.contains(other)) return;  // closed
  if (open) {
    cut_.erase(std::minmax(one, other));
    wake(nodes_.at(one));
    wake(nodes_.at(other));
  } else {
    cut_.insert(std::minmax(one, other));
  }
}

void Fabric::edit_controls(NodeId id, const std::function<void(Controls&)>& edit) {
  const std::lock_guard lock(mutex_);
  const auto found = nodes_.find(id);
  if (found == nodes_.end()) return;
  edit(found->second.controls);
  wake(found->second);
}

void Fabric::kill(NodeId id) {
  const std::lock_guard lock(mutex_);
  const auto found = nodes_.find(id);
  if (found == nodes_.end()) return;
  dead_.insert(id);
  totals_.in_flight -= found->second.inbound.size();
  totals_.dropped += found->second.inbound.size();
  found->second.inbound.clear();
}

Fabric::Totals Fabric::totals() {
  const std::lock_guard lock(mutex_);
  return totals_;
}

}  // namespace aio::sim
