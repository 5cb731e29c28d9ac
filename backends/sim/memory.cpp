// Regions: named by keys that only their owner can resolve, and checked for every packet.
#include "memory.h"

#include <sys/uio.h>
#include <unistd.h>

#include <cstring>

#include "domain.h"

namespace aio::sim {

bool copy(const void* from, void* to, std::size_t nbytes) noexcept {
  if (nbytes == 0) return true;
  const iovec local{const_cast<void*>(from), nbytes};
  const iovec target{to, nbytes};
  return ::process_vm_writev(::getpid(), &local, 1, &target, 1, 0) == static_cast<ssize_t>(nbytes);
}

std::string SimDomain::register_local(RegionNumber region, const LocalMemory& memory) {
  const Key key = fabric_->make_key();
  local_regions_.insert_or_assign(region, LocalRegion{memory.addr, memory.nbytes, memory.access, key});
  by_key_.emplace(key, region);
  return {reinterpret_cast<const char*>(&key), sizeof key};
}

void SimDomain::register_remote(RegionNumber region, const RemoteMemory& memory) {
  Key key = 0;
  if (memory.keys.size() != sizeof key) {
    throw Failure(Failure::Kind::usage, "region key", "not what a sim engine of this version sends");
  }
  std::memcpy(&key, memory.keys.data(), sizeof key);
  remote_regions_.insert_or_assign(region, RemoteRegion{memory.peer, key, memory.nbytes});
}

void SimDomain::deregister(RegionNumber region) {
  if (remote_regions_.erase(region) != 0) return;
  const auto found = local_regions_.find(region);
  if (found == local_regions_.end()) return;
  if (fabric_->faults().accept_stale) deregistered_.emplace(found->second.key, found->second);
  by_key_.erase(found->second.key);
  local_regions_.erase(found);
  releases_.push_back(region);
}

Status SimDomain::check_access(const Header& header, unsigned access, std::byte*& at) const {
  if (header.key == 0) return header.nbytes == 0 ? Status::ok : Status::provider;
  const LocalRegion* region = nullptr;
  if (const auto found = by_key_.find(header.key); found != by_key_.end()) {
    region = &local_regions_.at(found->second);
  } else if (const auto stale = deregistered_.find(header.key); stale != deregistered_.end()) {
    region = &stale->second;
  } else {
    return Status::stale_region;
  }
  const bool fits = header.offset <= region->nbytes && header.nbytes <= region->nbytes - header.offset;
  if ((region->access & access) == 0 || !fits) return Status::provider;
  at = reinterpret_cast<std::byte*>(region->addr + header.offset);
  return Status::ok;
}

}  // namespace aio::sim
