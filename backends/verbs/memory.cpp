// Registrations, and taking them back.
//
// Closing a registration is a fence here: the device checks every packet against the key, and ibv_dereg_mr(3) returns
// when none will be let in any more. But a peer that is refused by the device loses the whole connection, with every
// innocent operation on it. So peers are told first: each stops what it has not posted yet (stale_region), and answers
// when what it had posted has completed. One that does not answer is not waited for long: its next write into the
// region will find the key gone.
#include <cerrno>
#include <cstring>

#include "domain.h"

namespace aio::verbs {

namespace {

[[noreturn]] void refuse(int code, std::uint64_t nbytes) {
  std::string reason = std::strerror(code);
  // The kernel says ENOMEM for both, and the limit is the likelier one.
  if (code == ENOMEM) reason += ": beyond the limit of locked memory? (ulimit -l unlimited)";
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
    // Relaxed ordering is asked for by a call of its own, which drops it where the kernel does not know it.
    if ((wanted & abi::access_relaxed_ordering) != 0) {
      return library_.reg_mr_iova2(pd_.get(), base, memory.nbytes, memory.addr, wanted);
    }
    return library_.reg_mr(pd_.get(), base, memory.nbytes, static_cast<int>(wanted));
  };
  abi::Mr* mr = attempt(access);
  // Memory that may only be read cannot be registered to be written: it is a source, or for peers to read.
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
                  "the key is not one of verbs': " + std::to_string(memory.keys.size()) + " bytes");
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
    // Whom a deputy serves has been given the deputy's key, and is asked by it.
    if (!peer->joined || peer->served_by != nullptr || !peer->failure.ok()) continue;
    region.waits_for.insert(number);
    queue_frame(*peer, FrameKind::revoke, to_bytes(region.serial));
  }
}

// Closes every registration that nobody uses any more, or whose time is over.
bool VerbsDomain::finish_deregistrations() {
  bool moved = false;
  const auto now = Clock::now();
  for (auto next = deregistering_.begin(); next != deregistering_.end();) {
    const RegionNumber number = *next;
    LocalRegion& region = *local_regions_.find(number);
    std::erase_if(region.waits_for, [this](PeerNumber waits_for) {
      const Peer* peer = find(waits_for);
      return peer == nullptr || !peer->failure.ok();
    });
    const bool over = region.waits_for.empty() || now - region.deregistering_since > settings_.revoke;
    // A registration that cannot be closed still lets peers in: it is tried again with the next tick.
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
