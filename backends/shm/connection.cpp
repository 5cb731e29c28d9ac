// Connections: one slot in each other's segment, joined by the peer and revoked by the owner.
#include "connection.h"

#include <fcntl.h>
#include <poll.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "domain.h"

namespace aio::shm {

namespace {

Fd duplicate(int fd, const char* what) {
  const int copy = ::fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) throw Failure(Failure::Kind::provider, what, std::strerror(errno), errno);
  return Fd(copy);
}

// The pid behind a pidfd, in our pid namespace: from the kernel, since a peer may claim any.
int pid_of(int pidfd) {
  char path[64];
  std::snprintf(path, sizeof path, "/proc/self/fdinfo/%d", pidfd);
  int pid = -1;
  if (std::FILE* file = std::fopen(path, "re"); file != nullptr) {
    char line[128];
    while (std::fgets(line, sizeof line, file) != nullptr) {
      if (std::sscanf(line, "Pid: %d", &pid) == 1) break;
    }
    std::fclose(file);
  }
  if (pid <= 0) throw Failure(Failure::Kind::usage, "connect", "the peer sent no handle of a process we can see");
  return pid;
}

}  // namespace

bool has_exited(const Fd& process) noexcept {
  if (!process) return false;
  pollfd poller{process.get(), POLLIN, 0};
  return ::poll(&poller, 1, 0) == 1;
}

PeerSlot* ShmDomain::take_slot(std::uint64_t nonce) {
  free_revoked_slots();
  for (PeerSlot& slot : segment_->get()->peers) {
    // acquire pairs with the store of 0 that freed it; relaxed: no peer reads the rest before `word` offers the slot.
    if (slot.word.load(std::memory_order_acquire) != 0) continue;
    slot.revoked.store(0, std::memory_order_relaxed);
    slot.busy.store(0, std::memory_order_relaxed);
    slot.word.store(PeerSlot::pack(nonce, SlotState::offered), std::memory_order_seq_cst);
    return &slot;
  }
  throw Failure(Failure::Kind::provider, "connect", "1024 peers of this host are connected", ENOSPC);
}

Endpoint ShmDomain::connect(PeerNumber number, const std::optional<Endpoint>& remote) {
  Peer& peer = peers_[number];
  if (peer.mine == nullptr) {
    peer.my_nonce = ++nonce_;
    peer.mine = take_slot(peer.my_nonce);
  }
  if (remote) join(peer, *remote);
  const auto slot = static_cast<std::uint64_t>(peer.mine - segment_->get()->peers);
  return {to_bytes(EndpointBlob{kSegmentMagic, slot, peer.my_nonce}),
          {segment_->memory_fd(), segment_->doorbell_fd(), segment_->process_fd()}};
}

void ShmDomain::join(Peer& peer, const Endpoint& remote) {
  const auto blob = from_bytes<EndpointBlob>(remote.blob, "endpoint");
  if (blob.magic != kSegmentMagic || blob.slot >= kPeerSlots || remote.fds.size() != 3) {
    throw Failure(Failure::Kind::usage, "endpoint", "not what a shm engine of this version sends");
  }
  peer.mapping = map_sealed(remote.fds[0], 0, sizeof(Segment), true, "endpoint");
  auto* segment = static_cast<Segment*>(peer.mapping.base());
  if (segment->magic != kSegmentMagic || segment->nbytes != sizeof(Segment)) {
    throw Failure(Failure::Kind::usage, "endpoint", "the peer's segment is of another version");
  }
  peer.doorbell = duplicate(remote.fds[1], "endpoint");
  peer.process = duplicate(remote.fds[2], "endpoint");
  peer.pid = pid_of(peer.process.get());
  PeerSlot* const theirs = &segment->peers[blob.slot];
  if (!theirs->step(blob.nonce, SlotState::offered, SlotState::joined)) {
    throw Failure(Failure::Kind::peer_lost, "connect", "it has withdrawn its end");
  }
  peer.theirs = theirs;
  peer.their_nonce = blob.nonce;
  peer.counters = CounterTable(&segment->counters, peer.doorbell.get(), &doorbells_);
  peer.segment = segment;
}

void ShmDomain::disconnect(PeerNumber number, bool /*lost*/) {
  const auto found = peers_.find(number);
  if (found == peers_.end()) return sink_.fenced(number);
  doorbells_.ring_all();  // while the peer's own is open
  Peer peer = std::move(found->second);
  peers_.erase(found);
  if (peer.mine == nullptr) return sink_.fenced(number);  // there was no slot for it
  for (auto at = remote_regions_.begin(); at != remote_regions_.end();) {
    if (at->second.peer == number) unmapper_.take(std::move(at->second.mapping));
    at = at->second.peer == number ? remote_regions_.erase(at) : std::next(at);
  }
  // Our copies run under the core's lock, so none is in progress: leaving is our last store there.
  if (peer.theirs != nullptr) peer.theirs->step(peer.their_nonce, SlotState::joined, SlotState::left);
  peer.mine->revoked.store(1, std::memory_order_seq_cst);                     // before `busy` is loaded (wire.h)
  if (peer.mine->step(peer.my_nonce, SlotState::offered, SlotState::free)) {  // it never joined, and no longer can
    peer.mine->word.store(0, std::memory_order_release);
    return sink_.fenced(number);
  }
  fencing_.push_back({number, peer.mine, peer.my_nonce, std::move(peer.process), std::chrono::steady_clock::now()});
  progress();
}

}  // namespace aio::shm
