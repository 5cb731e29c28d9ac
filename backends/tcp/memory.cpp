// Registration and revocation of regions. A region is revoked at once: our own code places peers' bytes, and stops. A
// write that ended successfully is in memory by then, since its end is the acknowledgement. Later writes are refused
// one by one, and writes to other regions go on.
#include <sys/random.h>

#include <algorithm>
#include <cerrno>

#include "domain.h"

namespace aio::tcp {

namespace {

constexpr std::uint32_t kMaxRegions = 1 << 24;

std::uint64_t make_secret() {
  std::uint64_t secret = 0;
  while (secret == 0) {
    if (::getrandom(&secret, sizeof secret, 0) != sizeof secret) {
      throw Failure(Failure::Kind::provider, "getrandom", std::strerror(errno), errno);
    }
  }
  return secret;
}

}  // namespace

std::string TcpDomain::register_local(RegionNumber number, const LocalMemory& memory) {
  const std::uint64_t secret = make_secret();
  if (free_slots_.empty()) {
    if (slots_.size() == kMaxRegions) throw Failure(Failure::Kind::provider, "register", "too many regions", ENOSPC);
    free_slots_.push_back(static_cast<std::uint32_t>(slots_.size()));
    slots_.push_back(0);
  }
  const std::uint32_t slot = free_slots_.back();
  free_slots_.pop_back();
  slots_[slot] = number;
  local_regions_.insert_or_assign(number, LocalRegion{memory, slot, secret});
  return pack(KeyBlob{kMagic, slot, secret, memory.nbytes, memory.access, 0});
}

void TcpDomain::register_remote(RegionNumber number, const RemoteMemory& memory) {
  const auto key = unpack<KeyBlob>(memory.keys, "region key");
  if (key.nbytes != memory.nbytes || key.secret == 0) {
    throw Failure(Failure::Kind::usage, "region key", "inconsistent fields");
  }
  if (!peers_.contains(memory.peer)) throw Failure(Failure::Kind::usage, "register", "the peer is not connected");
  RemoteRegion region;
  region.peer = memory.peer;
  region.nbytes = memory.nbytes;
  region.key = key;
  remote_regions_.insert_or_assign(number, region);
}

void TcpDomain::deregister(RegionNumber number) {
  remote_regions_.erase(number);
  const auto found = local_regions_.find(number);
  if (found == local_regions_.end()) return;
  discard_region_traffic(number);
  slots_[found->second.slot] = 0;
  free_slots_.push_back(found->second.slot);
  local_regions_.erase(found);
  sink_.released(number);
}

// Stops transfers that are in the middle of the region: the rest of an incoming payload is dropped, and an outgoing
// response is filled up with zeros and marked stale in its trailer.
void TcpDomain::discard_region_traffic(RegionNumber number) {
  static std::array<std::byte, 64 << 10> zeros{};
  for (auto& [id, stream] : streams_) {
    Incoming& in = stream->in;
    if (in.left != 0 && in.region == number) {
      in.discard = true;
      in.result = AccessResult::stale;
    }
    Outgoing& out = stream->out;
    if (!out.busy() || out.source != number) continue;
    const std::size_t tail = out.has_tail ? 1 : 0;
    const std::size_t first = std::max<std::size_t>(out.at, 1);
    if (first + tail >= out.parts.size()) continue;  // its payload has been sent
    std::uint64_t left = 0;
    for (std::size_t i = first; i + tail < out.parts.size(); ++i) left += out.parts[i].iov_len;
    const iovec end = out.parts.back();
    out.parts.resize(first);
    for (; left != 0; left -= out.parts.back().iov_len) {
      out.parts.push_back({zeros.data(), std::min<std::uint64_t>(left, zeros.size())});
    }
    if (out.has_tail) {
      auto header = read_record<FrameHeader>(out.tail.data());
      header.flags = static_cast<std::uint8_t>(AccessResult::stale);
      std::memcpy(out.tail.data(), &header, sizeof header);
      out.parts.push_back(end);
    }
    out.source = 0;
  }
}

RegionLookup TcpDomain::find_region(std::uint32_t slot, std::uint64_t secret, unsigned access) {
  RegionLookup found;
  if (slot >= slots_.size() || slots_[slot] == 0) return found;
  LocalRegion& region = local_regions_.at(slots_[slot]);
  if (region.secret != secret) return found;
  found.result = (region.memory.access & access) != 0 ? AccessResult::ok : AccessResult::access;
  found.number = slots_[slot];
  found.region = &region;
  return found;
}

}  // namespace aio::tcp
