#include "domain.h"

#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <set>
#include <string_view>

namespace aio::sim {

namespace {

constexpr std::uint64_t kMagic = 0x316d69732d6f6961;  // "aio-sim1"
constexpr std::uint64_t kMaxMessage = 32 << 10;       // and the largest MTU

struct Blob {
  std::uint64_t magic, fabric, link;
  NodeId node;
  std::uint32_t length;
  char address[96];
};

const Outcome kPeerLost{Status::peer_lost, 0, "the connection is closed"};

// Memory is touched as a NIC would: an address that is not there is an error, and no crash.
bool copy(const void* from, void* to, std::size_t nbytes) noexcept {
  if (nbytes == 0) return true;
  const iovec here{const_cast<void*>(from), nbytes};
  const iovec there{to, nbytes};
  return ::process_vm_writev(::getpid(), &here, 1, &there, 1, 0) == static_cast<ssize_t>(nbytes);
}

Outcome outcome_of(Status status) {
  switch (status) {
    case Status::ok:
      return {};
    case Status::stale_region:
      return {Status::stale_region, 0, "its owner has deregistered it"};
    case Status::peer_lost:
      return kPeerLost;
    case Status::provider:
    case Status::aborted:
      break;
  }
  return {Status::provider, EIO, "the simulated fabric failed it"};
}

template <class T>
T take_any(std::vector<T>& from, std::size_t index) {
  std::swap(from[index], from.back());
  T out = std::move(from.back());
  from.pop_back();
  return out;
}

}  // namespace

SimDomain::SimDomain(Sink& sink, std::shared_ptr<Fabric> fabric, unsigned rail, int doorbell_fd)
    : sink_(sink), fabric_(std::move(fabric)) {
  attributes_.name = "sim" + std::to_string(rail);
  attributes_.provider = "sim";
  attributes_.protocol = "packets in any order, applied by the target";
  attributes_.max_message_nbytes = kMaxMessage;
  attributes_.same_host = true;
  if (fabric_->faults().max_piece != 0) attributes_.max_piece_nbytes = fabric_->faults().max_piece;
  attributes_.quantum = 8;
  if (!fabric_->stepped()) {
    wake_fd_ = Fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!wake_fd_) throw Failure(Failure::Kind::provider, "eventfd", std::strerror(errno), errno);
  }
  node_ = fabric_->join(wake_fd_ ? wake_fd_.get() : doorbell_fd);
}

SimDomain::~SimDomain() { fabric_->leave(node_); }

std::uint64_t SimDomain::handles() const noexcept {
  return links_.size() + locals_.size() + remotes_.size() + works_.size() + releasing_.size() + parting_.size() +
         finished_.size() + arrivals_.size() + outbound_.size();
}

// ----------------------------------------------------------------------------------------------------- regions

std::string SimDomain::register_local(RegionNumber region, const LocalMemory& memory) {
  const Key key = fabric_->name();
  locals_.insert_or_assign(region, Local{memory.addr, memory.nbytes, memory.access, key});
  by_key_.emplace(key, region);
  return {reinterpret_cast<const char*>(&key), sizeof key};
}

void SimDomain::register_remote(RegionNumber region, const RemoteMemory& memory) {
  Key key = 0;
  if (memory.keys.size() != sizeof key) {
    throw Failure(Failure::Kind::usage, "region key", "not what a sim engine of this version sends");
  }
  std::memcpy(&key, memory.keys.data(), sizeof key);
  remotes_.insert_or_assign(region, Remote{memory.peer, key, memory.nbytes});
}

void SimDomain::deregister(RegionNumber region) {
  if (remotes_.erase(region) != 0) return;
  const auto found = locals_.find(region);
  if (found == locals_.end()) return;
  if (fabric_->faults().accept_stale) ghosts_.emplace(found->second.key, found->second);
  by_key_.erase(found->second.key);
  locals_.erase(found);
  releasing_.push_back(region);
}

// ------------------------------------------------------------------------------------------------- connections

Endpoint SimDomain::connect(PeerNumber peer, const std::optional<Endpoint>& remote) {
  Link& link = links_[peer];
  if (link.mine == 0) {
    link.mine = fabric_->name();
    by_link_.emplace(link.mine, peer);
  }
  if (remote) {
    Blob blob;
    if (remote->blob.size() != sizeof blob) {
      throw Failure(Failure::Kind::usage, "endpoint", "not what a sim engine of this version sends");
    }
    std::memcpy(&blob, remote->blob.data(), sizeof blob);
    const bool fits = blob.magic == kMagic && blob.length <= sizeof blob.address;
    const auto address = std::string_view(blob.address, fits ? blob.length : 0);
    // Nobody gets us to send to a socket that is no fabric's.
    if (!fits || !(address.empty() || address.starts_with(kAddressPrefix))) {
      throw Failure(Failure::Kind::usage, "endpoint", "not what a sim engine of this version sends");
    }
    const bool near = blob.fabric == fabric_->id();
    if (!near && (fabric_->stepped() || blob.length == 0)) {
      throw Failure(Failure::Kind::unavailable, "sim", "a SimFabric reaches only engines of its own");
    }
    link.there = near ? std::string() : std::string(address);
    link.node = blob.node;
    link.theirs = blob.link;
  }
  Blob blob{kMagic, fabric_->id(), link.mine, node_, static_cast<std::uint32_t>(fabric_->address().size()), {}};
  std::memcpy(blob.address, fabric_->address().data(), std::min(fabric_->address().size(), sizeof blob.address));
  return {{reinterpret_cast<const char*>(&blob), sizeof blob}, {}};
}

void SimDomain::disconnect(PeerNumber peer, bool lost) {
  const auto found = links_.find(peer);
  if (found == links_.end()) return sink_.fenced(peer);
  const Link link = std::move(found->second);
  links_.erase(found);
  // From here nothing of that connection is applied: packets that name it find nothing.
  if (!fabric_->faults().skip_fence) by_link_.erase(link.mine);
  arrivals_.erase(arrivals_.lower_bound({link.mine, 0, 0}), arrivals_.lower_bound({link.mine + 1, 0, 0}));
  std::erase_if(remotes_, [&](const auto& entry) { return entry.second.peer == peer; });
  for (Packet& packet : outbound_) {
    bool gone = false;
    if (packet.peer == peer && !lost && packet.header.kind == Kind::ack) fabric_->launch(packet, link.there, gone);
  }
  std::erase_if(outbound_, [&](const Packet& packet) { return packet.peer == peer; });
  std::vector<Work> over;
  for (auto at = works_.begin(); at != works_.end();) {
    if (at->second.peer == peer) {
      over.push_back(std::move(at->second));
      over.back().outcome = kPeerLost;
    }
    at = at->second.peer == peer ? works_.erase(at) : std::next(at);
  }
  const auto stay =
      std::partition(finished_.begin(), finished_.end(), [&](const Work& work) { return work.peer != peer; });
  std::move(stay, finished_.end(), std::back_inserter(over));
  finished_.erase(stay, finished_.end());
  for (const Work& work : over) report(work);
  if (!lost) return parting_.push_back({peer, link.mine});  // counts that are due come first
  release_held(link.mine);
  sink_.fenced(peer);
}

// --------------------------------------------------------------------------------------------------- data path

Packet& SimDomain::queue(Kind kind, PeerNumber peer, const Link& link, std::uint64_t work) {
  Packet& packet = outbound_.emplace_back();
  packet.peer = peer;
  packet.header.kind = kind;
  packet.header.from = node_;
  packet.header.to = link.node;
  packet.header.link = link.theirs;
  packet.header.back = link.mine;
  packet.header.work = work;
  blocked_ = false;
  return packet;
}

void SimDomain::fail(Flow& flow, const Outcome& outcome) {
  ++flow.next;
  ++flow.in_flight;
  sink_.stopped(flow, 1, outcome);
}

Posted SimDomain::post(Flow& flow, std::uint32_t budget) {
  const auto found = links_.find(flow.run.peer);
  if (found == links_.end() || found->second.node == 0) {
    fail(flow, {Status::peer_lost, 0, "the peer is not connected"});
    return Posted::more;
  }
  Link& link = found->second;
  const Remote* remote = nullptr;
  if (flow.run.remote_region != 0) {
    const auto region = remotes_.find(flow.run.remote_region);
    if (region == remotes_.end() || region->second.peer != flow.run.peer) {
      fail(flow, {Status::stale_region, 0, "it is not registered with this connection"});
      return Posted::more;
    }
    remote = &region->second;
  }
  for (; budget != 0 && !flow.exhausted(); --budget) {
    if (link.in_flight >= fabric_->faults().depth || fabric_->refuses(node_)) return Posted::full;
    const Piece& piece = flow.pieces[flow.next];
    if (fabric_->fails_post(node_)) {
      fail(flow, {Status::provider, EIO, "the simulated fabric failed the post"});
      return Posted::more;
    }
    if (remote == nullptr && piece.nbytes != 0) {
      fail(flow, {Status::provider, ERANGE, "a payload names no region of the peer's"});
      return Posted::more;
    }
    ++flow.next;
    ++flow.in_flight;
    ++link.in_flight;
    const std::uint64_t id = ++last_work_;
    Work& work = works_[id];
    work = {flow.run.peer, &flow, 0, reinterpret_cast<std::byte*>(piece.local_addr), piece.nbytes, 0, {}};
    if (flow.run.op == Op::write) {
      work.unanswered = write_piece(flow.run.peer, link, remote, piece, id);
    } else {
      work.unanswered = read_piece(flow.run.peer, link, *remote, piece, id);
    }
  }
  return Posted::more;
}

std::uint32_t SimDomain::write_piece(PeerNumber peer, const Link& link, const Remote* remote, const Piece& piece,
                                     std::uint64_t work) {
  const bool doomed = fabric_->fails_completion(node_);
  std::uint64_t mtu = fabric_->faults().mtu;
  if (doomed) mtu = std::clamp<std::uint64_t>(piece.nbytes / 2, 1, mtu);  // so that one half can come, and one not
  const auto packets = static_cast<std::uint32_t>(std::max<std::uint64_t>(1, (piece.nbytes + mtu - 1) / mtu));
  for (std::uint32_t i = 0; i < packets; ++i) {
    const std::uint64_t begin = i * mtu;
    const std::uint64_t nbytes = std::min(mtu, piece.nbytes - begin);
    Packet& packet = queue(doomed && i >= packets / 2 ? Kind::dropped : Kind::write, peer, link, work);
    packet.header.key = remote != nullptr ? remote->key : 0;
    packet.header.offset = piece.remote_offset + begin;
    packet.header.has_immediate = piece.has_immediate() ? 1 : 0;
    packet.header.immediate = piece.immediate;
    packet.header.packets = packets;
    if (packet.header.kind == Kind::dropped) continue;
    packet.header.nbytes = static_cast<std::uint32_t>(nbytes);
    packet.source = reinterpret_cast<const std::byte*>(piece.local_addr) + begin;
  }
  return packets;
}

std::uint32_t SimDomain::read_piece(PeerNumber peer, const Link& link, const Remote& remote, const Piece& piece,
                                    std::uint64_t work) {
  const std::uint64_t mtu = fabric_->faults().mtu;
  const auto packets = static_cast<std::uint32_t>(std::max<std::uint64_t>(1, (piece.nbytes + mtu - 1) / mtu));
  for (std::uint32_t i = 0; i < packets; ++i) {
    Packet& packet = queue(Kind::read, peer, link, work);
    packet.header.key = remote.key;
    packet.header.at = i * mtu;
    packet.header.offset = piece.remote_offset + packet.header.at;
    packet.header.nbytes = static_cast<std::uint32_t>(std::min(mtu, piece.nbytes - packet.header.at));
    packet.header.packets = packets;
  }
  return packets;
}

Posted SimDomain::send(PeerNumber peer, TransferId message, const std::string& payload) {
  const auto found = links_.find(peer);
  if (found == links_.end() || found->second.node == 0) {
    sink_.sent(message, kPeerLost);
    return Posted::more;
  }
  if (found->second.in_flight >= fabric_->faults().depth || fabric_->refuses(node_)) return Posted::full;
  ++found->second.in_flight;
  const std::uint64_t id = ++last_work_;
  works_[id] = {peer, nullptr, message, nullptr, 0, 1, {}};
  Packet& packet = queue(Kind::message, peer, found->second, id);
  packet.payload = payload;
  return Posted::more;
}

// ---------------------------------------------------------------------------------------------- what goes out

// A few packets leave, from any place in the queue: only now is their source read. One that may not leave now (its path
// is cut, the hook holds it, the other process has no room) is passed over: one peer never waits for another.
bool SimDomain::launch_some(std::uint32_t budget) {
  bool moved = false;
  bool asks_again = false;  // nobody wakes us when the hook, or the other process, changes its mind
  std::vector<Packet> passed;
  std::set<std::string> full;
  while (budget != 0 && !outbound_.empty()) {
    if (fabric_->happens(fabric_->faults().reorder)) {
      std::swap(outbound_.front(), outbound_[fabric_->below(outbound_.size())]);
    }
    Packet packet = std::move(outbound_.front());
    outbound_.pop_front();
    Link& link = links_.at(packet.peer);  // it is there: disconnect() drops what is outbound
    if (!fabric_->open(node_, packet.header.to) || full.contains(link.there)) {
      passed.push_back(std::move(packet));
      continue;
    }
    const Verdict verdict = fabric_->route(packet.header);
    if (verdict == Verdict::hold) {
      asks_again = true;
      passed.push_back(std::move(packet));
      continue;
    }
    if (packet.source != nullptr) {
      packet.payload.resize(packet.header.nbytes);
      if (!copy(packet.source, packet.payload.data(), packet.payload.size())) {
        packet.header.kind = Kind::dropped;  // EFAULT
        packet.payload.clear();
      }
      packet.source = nullptr;
    }
    if (verdict == Verdict::fail && packet.header.kind == Kind::write) {
      packet.header.kind = Kind::dropped;
      packet.payload.clear();
    }
    bool gone = false;
    if (!fabric_->launch(packet, link.there, gone)) {
      asks_again = true;
      full.insert(link.there);
      passed.push_back(std::move(packet));
      continue;
    }
    --budget;
    moved = true;
    if (gone && !link.there.empty() && !link.failed) {
      link.failed = true;
      sink_.peer_failed(packet.peer, {Status::peer_lost, ECONNREFUSED, "its process is gone"});
    }
  }
  blocked_ = outbound_.empty() && !asks_again;  // until somebody heals a path, which wakes us
  // Back to where they were.
  outbound_.insert(outbound_.begin(), std::make_move_iterator(passed.begin()), std::make_move_iterator(passed.end()));
  return moved;
}

// ----------------------------------------------------------------------------------------------- what comes in

void SimDomain::take(Packet packet) {
  const Header& header = packet.header;
  const auto known = by_link_.find(header.link);
  if (known == by_link_.end()) return;  // of a connection that is over: fenced
  const PeerNumber peer = known->second;
  switch (header.kind) {
    case Kind::write:
    case Kind::dropped:
      return take_write(packet, peer);
    case Kind::read:
      return take_read(packet, peer);
    case Kind::data: {
      const auto work = works_.find(header.work);
      if (work == works_.end() || work->second.peer != peer) return;
      if (work->second.flow == nullptr || work->second.flow->run.op != Op::read) return;
      const bool fits = header.at <= work->second.nbytes && packet.payload.size() <= work->second.nbytes - header.at;
      const bool copied = fits && copy(packet.payload.data(), work->second.target + header.at, packet.payload.size());
      return answered(header.work, peer, copied ? Status::ok : Status::provider);
    }
    case Kind::message:
      sink_.message(peer, std::move(packet.payload));
      return answer(header, peer, Status::ok);
    case Kind::ack:
      return answered(header.work, peer, header.status);
  }
}

Status SimDomain::reach(const Header& header, unsigned access, std::byte*& at) const {
  if (header.key == 0) return header.nbytes == 0 ? Status::ok : Status::provider;
  const Local* local = nullptr;
  if (const auto found = by_key_.find(header.key); found != by_key_.end()) {
    local = &locals_.at(found->second);
  } else if (const auto ghost = ghosts_.find(header.key); ghost != ghosts_.end()) {
    local = &ghost->second;
  } else {
    return Status::stale_region;
  }
  if ((local->access & access) == 0 || header.offset > local->nbytes || header.nbytes > local->nbytes - header.offset) {
    return Status::provider;
  }
  at = reinterpret_cast<std::byte*>(local->addr + header.offset);
  return Status::ok;
}

void SimDomain::take_write(const Packet& packet, PeerNumber peer) {
  const Header& header = packet.header;
  std::byte* at = nullptr;
  Status status = header.kind == Kind::dropped || packet.payload.size() != header.nbytes
                      ? Status::provider
                      : reach(header, access_remote_write, at);
  if (status == Status::ok && !copy(packet.payload.data(), at, packet.payload.size())) status = Status::provider;
  const auto [entry, first] =
      arrivals_.try_emplace({header.link, header.from, header.work}, Arrival{std::max(1u, header.packets)});
  Arrival& arrival = entry->second;
  arrival.refused |= status != Status::ok;
  const bool early = fabric_->faults().count_before_payload;
  if (early && first && header.has_immediate != 0) sink_.counted(header.immediate);
  if (--arrival.missing == 0) {
    // Counted later than its last byte, and maybe later than its sender knows: a queue of completions lies between.
    if (!early && !arrival.refused && header.has_immediate != 0) held_.push_back({header.link, header.immediate});
    arrivals_.erase(entry);
  }
  answer(header, peer, status);
}

void SimDomain::take_read(const Packet& packet, PeerNumber peer) {
  const Header& header = packet.header;
  std::byte* at = nullptr;
  // Nobody asks for more than an answer can carry, but for somebody who means ill.
  const Status status = header.nbytes > kMaxMessage ? Status::provider : reach(header, access_remote_read, at);
  if (status != Status::ok) return answer(header, peer, status);
  std::string bytes(header.nbytes, '\0');
  if (!copy(at, bytes.data(), bytes.size())) return answer(header, peer, Status::provider);
  Packet* data = queue_answer(Kind::data, peer, header);
  if (data == nullptr) return;
  data->header.at = header.at;
  data->header.nbytes = header.nbytes;
  data->payload = std::move(bytes);
}

void SimDomain::answer(const Header& header, PeerNumber peer, Status status) {
  if (Packet* ack = queue_answer(Kind::ack, peer, header); ack != nullptr) ack->header.status = status;
}

// To the very NIC that asked: with unequal numbers of them it need not be the one that our own pieces go to.
Packet* SimDomain::queue_answer(Kind kind, PeerNumber peer, const Header& header) {
  const auto link = links_.find(peer);
  if (link == links_.end()) return nullptr;  // only with the bug `skip_fence`
  Packet& packet = queue(kind, peer, link->second, header.work);
  packet.header.to = header.from;
  packet.header.link = header.back;
  return &packet;
}

void SimDomain::answered(std::uint64_t id, PeerNumber peer, Status status) {
  const auto found = works_.find(id);
  if (found == works_.end() || found->second.peer != peer) return;  // nobody answers for another
  Work& work = found->second;
  if (work.outcome.ok()) work.outcome = outcome_of(status);
  --work.unanswered;
  const bool hasty = fabric_->faults().error_before_stop && !work.outcome.ok();
  if (work.unanswered != 0 && !hasty) return;
  if (const auto link = links_.find(peer); link != links_.end()) --link->second.in_flight;
  finished_.push_back(std::move(work));
  works_.erase(found);
}

// ------------------------------------------------------------------------------------------------- the worker

void SimDomain::report(const Work& work) {
  if (work.flow != nullptr) {
    sink_.stopped(*work.flow, 1, work.outcome);
  } else {
    sink_.sent(work.message, work.outcome);
  }
}

void SimDomain::release_held(std::uint64_t link) {
  std::erase_if(held_, [&](const Held& held) {
    if (held.link != link) return false;
    sink_.counted(held.immediate);
    return true;
  });
}

// Completions, counts and releases that are due: some of them, in any order, and some later.
bool SimDomain::report_some(bool holding) {
  const double late = fabric_->faults().late_completions;
  bool moved = false;
  for (std::size_t left = holding ? 0 : finished_.size(); left != 0; --left) {
    if (fabric_->happens(late)) continue;
    report(take_any(finished_, fabric_->below(finished_.size())));
    moved = true;
  }
  for (std::size_t left = held_.size(); left != 0; --left) {
    if (fabric_->happens(late)) continue;
    sink_.counted(take_any(held_, fabric_->below(held_.size())).immediate);
    moved = true;
  }
  std::erase_if(releasing_, [&](RegionNumber region) {
    if (fabric_->happens(late)) return false;
    sink_.released(region);
    return moved = true;
  });
  std::erase_if(parting_, [&](const Parting& parting) {
    const auto due = [&](const Held& held) { return held.link == parting.link; };
    if (std::any_of(held_.begin(), held_.end(), due)) return false;
    sink_.fenced(parting.peer);
    return moved = true;
  });
  return moved;
}

bool SimDomain::progress() {
  if (wake_fd_) {
    std::uint64_t value = 0;
    [[maybe_unused]] const auto got = ::read(wake_fd_.get(), &value, sizeof value);
  }
  bool moved = fabric_->receive();
  const Fabric::Controls controls = fabric_->controls(node_);
  holding_ = controls.holding;
  stalled_ = controls.stalled;
  if (!stalled_) {
    moved |= launch_some(1 + static_cast<std::uint32_t>(fabric_->below(controls.speed)));
    Packet packet;
    for (auto left = 1 + fabric_->below(controls.speed); left != 0 && fabric_->next(node_, packet); --left) {
      take(std::move(packet));
      moved = true;
    }
  }
  return report_some(holding_) || moved;
}

bool SimDomain::needs_progress() const noexcept {
  return (!outbound_.empty() && !blocked_ && !stalled_) || (!finished_.empty() && !holding_) || !held_.empty() ||
         !releasing_.empty() || !parting_.empty();
}

std::optional<std::vector<int>> SimDomain::arm() {
  if (fabric_->pending(node_)) return std::nullopt;
  return std::vector<int>{wake_fd_.get(), fabric_->socket_fd()};
}

}  // namespace aio::sim
