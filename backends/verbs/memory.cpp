// Registration and revocation of regions.
//
// Deregistration is a fence: the device checks every packet against the key, and ibv_dereg_mr(3) returns when no more
// packets are accepted. But a peer whose packet is refused loses the whole connection, with every unrelated operation
// on it. So peers are told first: each stops posting to the region (stale_region), and acknowledges when what it had
// posted has completed. A peer that does not answer within `revoke_s` is not waited for: its next write to the region
// finds the key gone.
#include <cerrno>
#include <cstring>

#include "domain.h"

namespace aio::verbs {

namespace {

[[noreturn]] void refuse(int code, std::uint64_t nbytes) {
  std::string reason = std::strerror(code);
  // The kernel returns ENOMEM for both; the limit is the more likely cause.
  if (code == ENOMEM) reason += ": limit of locked memory exceeded? (ulimit -l unlimited)";
  throw Failure(Failure::Kind::provider, "ibv_reg_mr of " + std::to_string(nbytes) + " bytes", reason, code);
}

}  // namespace

Handle<abi::Mr> VerbsDomain::register_memory(const LocalMemory& memory, unsigned access, std::uint64_t* count) {
  if (settings_.relaxed_ordering && library_.reg_mr_iova2 != nullptr) access |= abi::access_relaxed_ordering;
  void* const base = reinterpret_cast<void*>(memory.addr);
  const auto attempt = [&](unsigned wanted) {
    errno = 0;
    if (memory.is_dmabuf) {
      return library_.reg_dmabuf_mr(pd_.get(), memory.fd_offset, memory.nbytes, memory.addr, memory.fd,
                                    static_cast<int>(wanted));
    }
    // Relaxed ordering needs a call of its own, which drops the flag if the kernel does not know it.
    if ((wanted & abi::access_relaxed_ordering) != 0) {
      return library_.reg_mr_iova2(pd_.get(), base, memory.nbytes, memory.addr, wanted);
    }
    return library_.reg_mr(pd_.get(), base, memory.nbytes, static_cast<int>(wanted));
  };
  abi::Mr* mr = attempt(access);
  // Read-only memory cannot be registered for local writing: it is registered as a source.
  if (mr == nullptr && errno == EFAULT && (access & abi::access_remote_write) == 0) {
    mr = attempt(access & ~abi::access_local_write);
  }
  if (mr == nullptr) refuse(errno, memory.nbytes);
  return {mr, library_.dereg_mr, count};
}

std::string VerbsDomain::register_local(RegionNumber number, const LocalMemory& memory) {
  if (memory.nbytes == 0) throw Failure(Failure::Kind::usage, "register", "the memory is empty");
  if (!device_failure_.ok())
    throw Failure(Failure::Kind::provider, port_.name, device_failure_.reason, device_failure_.code);
  unsigned access = abi::access_local_write;
  if ((memory.access & access_remote_read) != 0) access |= abi::access_remote_read;
  if ((memory.access & access_remote_write) != 0) access |= abi::access_remote_write;
  Handle<abi::Mr> registration = register_memory(memory, access, &handles_);
  const KeyBlob key{memory.addr, next_serial_++, registration->rkey, memory.access};
  LocalRegion region{memory.addr,       memory.nbytes,           key.serial, memory.access,
                     !memory.is_dmabuf, std::move(registration), {},         {}};
  local_regions_.assign(number, std::move(region));
  return to_bytes(key);
}

void VerbsDomain::register_remote(RegionNumber number, const RemoteMemory& memory) {
  if (memory.keys.size() != sizeof(KeyBlob)) {
    throw Failure(Failure::Kind::usage, "register",
                  "not a key of verbs: " + std::to_string(memory.keys.size()) + " bytes");
  }
  const Peer* peer = find(memory.peer);
  if (peer == nullptr) throw Failure(Failure::Kind::usage, "register", "the peer is not connected");
  const auto key = read_record<KeyBlob>(memory.keys);
  if (peer->stale_serials.contains(key.serial)) {
    throw Failure(Failure::Kind::stale, "region " + std::to_string(number), "the peer has deregistered it");
  }
  remote_regions_.assign(number, RemoteRegion{memory.peer, memory.nbytes, key, false});
}

void VerbsDomain::deregister(RegionNumber number) {
  remote_regions_.erase(number);
  LocalRegion* found = local_regions_.find(number);
  if (found == nullptr || !deregistering_.insert(number).second) return;
  revoke(*found);
  finish_deregistrations();
}

void VerbsDomain::revoke(LocalRegion& region) {
  region.deregistering_since = Clock::now();
  if ((region.access & (access_remote_read | access_remote_write)) == 0) return;
  for (auto& [number, peer] : peers_) {
    // A surplus rail's peers were given the key of the rail that serves them, which revokes it itself.
    if (!peer->joined || peer->alternate_rail != nullptr || !peer->failure.ok()) continue;
    region.waits_for.insert(number);
    queue_frame(*peer, FrameKind::revoke, to_bytes(region.serial));
  }
}

// Closes every registration that all peers have acknowledged, or whose time is up.
bool VerbsDomain::finish_deregistrations() {
  bool moved = false;
  const auto now = Clock::now();
  for (auto next = deregistering_.begin(); next != deregistering_.end();) {
    const RegionNumber number = *next;
    LocalRegion& region = *local_regions_.find(number);
    std::erase_if(region.waits_for, [this](PeerNumber awaited) {
      const Peer* peer = find(awaited);
      return peer == nullptr || !peer->failure.ok();
    });
    const bool over = region.waits_for.empty() || now - region.deregistering_since > settings_.revoke;
    // If deregistration fails, peers can still reach the memory: it is tried again at the next timer event.
    if (!over || region.registration.reset() != 0) {
      ++next;
      continue;
    }
    next = deregistering_.erase(next);
    local_regions_.erase(number);
    sink_.released(number);
    moved = true;
  }
  return moved;
}

}  // namespace aio::verbs
