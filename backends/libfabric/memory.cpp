// Registration and revocation of regions.
//
// In software, closing a registration is no fence. In libfabric 2.5's tcp provider (xnet_handle_write) the key is
// looked up when the header of an operation has arrived; the payload is then received into the memory for as long as it
// takes, registered or not, and the owner cannot tell that an operation is in progress. A header with an unknown key
// ends the whole connection, with unrelated operations on it. So a region is revoked by two rounds of queries:
//
//   1. Every NIC of every peer is told to stop using the region. It fails what it has not posted yet (stale_region) and
//      replies. The reply leaves after what it had posted (one connection per NIC, in order), so nothing for the region
//      is in flight any more, and no connection breaks.
//   2. The registration is closed, and every NIC gets another query. For a correct peer nothing happens. For one that
//      kept writing, the reply proves that any write accepted before the registration was closed is behind us in the
//      stream, with its payload; and since our query left after the responses to its reads, that those have left our
//      memory too.
//
// Then the memory is released. A peer that does not reply keeps it until the peer is fenced: contract 8.
#include <cerrno>
#include <random>

#include "domain.h"

namespace aio::libfabric {

Handle<abi::Mr> FabricDomain::register_memory(const LocalMemory& memory, std::uint64_t access, std::uint64_t* count) {
  const iovec where{reinterpret_cast<void*>(memory.addr), memory.nbytes};
  // The base is where the whole dma-buf would begin.
  const abi::MrDmabuf exported{memory.fd, memory.fd_offset, memory.nbytes,
                               reinterpret_cast<void*>(memory.addr - memory.fd_offset)};
  abi::MrAttr attr{};
  attr.iov = memory.is_dmabuf ? static_cast<const void*>(&exported) : &where;
  attr.iov_count = 1;
  attr.access = access;
  attr.iface = abi::hmem_system;
  if (memory.cuda_device >= 0) {
    attr.iface = abi::hmem_cuda;
    attr.device = static_cast<std::uint64_t>(memory.cuda_device);
  }
  const abi::DomainAttr& domain = *info_->domain_attr;
  const bool ours = (domain.mr_mode & abi::mr_prov_key) == 0;
  const std::uint64_t mask = domain.mr_key_size >= 8 ? ~0ull : (1ull << 8 * domain.mr_key_size) - 1;
  std::random_device random;
  abi::Mr* mr = nullptr;
  int result = -abi::err_nokey;
  for (int attempt = 0; attempt < 8 && result == -abi::err_nokey; ++attempt) {
    // Keys of our choice are random: over tcp the key is the only protection of the memory.
    if (ours) attr.requested_key = (std::uint64_t{random()} << 32 | random()) & mask;
    result = domain_->mr->regattr(domain_.fid(), &attr, memory.is_dmabuf ? abi::mr_dmabuf : 0, &mr);
  }
  check("fi_mr_regattr", result);
  Handle<abi::Mr> handle(mr, count);
  if ((domain.mr_mode & abi::mr_endpoint) != 0) {
    check("fi_mr_bind", abi::bind(&mr->fid, shared_channel_->endpoint.fid(), 0));
    check("fi_mr_enable", abi::enable(&mr->fid));
  }
  return handle;
}

// Registers memory of the domain itself, whose key no peer gets.
Handle<abi::Mr> FabricDomain::register_own(void* base, std::size_t nbytes, std::uint64_t access, std::uint64_t* count) {
  return register_memory({reinterpret_cast<std::uint64_t>(base), nbytes, 0, -1, 0}, access, count);
}

std::string FabricDomain::register_local(RegionNumber number, const LocalMemory& memory) {
  if (memory.nbytes == 0) throw Failure(Failure::Kind::usage, "register", "the memory is empty");
  // A provider without GPU support would take the address for main memory, and copy from it.
  if (memory.cuda_device >= 0 && (info_->caps & abi::hmem) == 0) {
    throw Failure(Failure::Kind::unavailable, path_name(), "this libfabric does not support CUDA memory (no FI_HMEM)",
                  ENOSYS, "install AWS's libfabric (/opt/amazon/efa), and check fi_info -p efa -v for FI_HMEM");
  }
  std::uint64_t access = abi::read | abi::write;
  if ((memory.access & access_remote_read) != 0) access |= abi::remote_read;
  if ((memory.access & access_remote_write) != 0) access |= abi::remote_write;
  auto registration = register_memory(memory, access, &handles_);
  const bool virtual_addresses = (info_->domain_attr->mr_mode & abi::mr_virt_addr) != 0;
  const KeyBlob key{virtual_addresses ? memory.addr : 0, registration->key, next_serial_++};
  LocalRegion region{memory.addr, memory.nbytes, key.serial, memory.access, std::move(registration), false, {}};
  local_regions_.insert_or_assign(number, std::move(region));
  std::string bytes;
  append_record(bytes, key);
  return bytes;
}

void FabricDomain::register_remote(RegionNumber number, const RemoteMemory& memory) {
  if (memory.keys.size() != sizeof(KeyBlob)) {
    throw Failure(Failure::Kind::usage, "register",
                  "not a key of libfabric: " + std::to_string(memory.keys.size()) + " bytes");
  }
  const Peer* peer = find(memory.peer);
  if (peer == nullptr) throw Failure(Failure::Kind::usage, "register", "the peer is not connected");
  const auto key = read_record<KeyBlob>(memory.keys);
  if (peer->stale_serials.contains(key.serial)) {
    throw Failure(Failure::Kind::stale, "region " + std::to_string(number), "the peer has deregistered it");
  }
  remote_regions_.insert_or_assign(number, RemoteRegion{memory.peer, memory.nbytes, key, false});
}

void FabricDomain::deregister(RegionNumber number) {
  remote_regions_.erase(number);
  const auto found = local_regions_.find(number);
  if (found == local_regions_.end() || deregistering_.contains(number)) return;
  const bool reachable = (found->second.access & (access_remote_read | access_remote_write)) != 0 && !peers_.empty();
  deregistering_.insert(number);
  if (reachable && !policy_.device_checks_keys) revoke(found->second);
  finish_deregistrations();
}

void FabricDomain::revoke(LocalRegion& region) {
  region.queried = true;
  for (auto& [number, peer] : peers_) {
    for (RemoteNic& nic : peer->nics) {
      nic.revocations.insert(region.serial);
      schedule_query(nic);
    }
  }
}

// Advances every deregistration as far as the replies allow.
void FabricDomain::finish_deregistrations() {
  for (auto next = deregistering_.begin(); next != deregistering_.end();) {
    const RegionNumber number = *next;
    LocalRegion& region = local_regions_.at(number);
    if (region.registration) {
      bool all_replied = true;
      for (const auto& [peer_number, peer] : peers_) {
        for (const RemoteNic& nic : peer->nics) all_replied &= !nic.revocations.contains(region.serial);
      }
      if (!all_replied) {
        ++next;
        continue;
      }
      region.registration.reset();
      if (region.queried) {
        for (auto& [peer_number, peer] : peers_) {
          for (RemoteNic& nic : peer->nics) {
            region.waits_for[{peer_number, nic.token}] = nic.sent_query + 1;
            schedule_query(nic);
          }
        }
      }
    }
    std::erase_if(region.waits_for, [this](const auto& entry) {
      const auto& [which, number] = entry;
      Peer* peer = find(which.first);
      const RemoteNic* nic = peer == nullptr ? nullptr : peer->find(which.second);
      return nic == nullptr || nic->answered_query >= number;
    });
    if (!region.waits_for.empty()) {
      ++next;
      continue;
    }
    next = deregistering_.erase(next);
    local_regions_.erase(number);
    sink_.released(number);
  }
}

}  // namespace aio::libfabric
