// Regions, and taking them back.
//
// A write ends for its sender when the kernel has its bytes. That is right only as long as no write is refused that has
// ended so. Therefore:
//
//   1. The first writes into a region ask for an acknowledgement, and end with it, or with its refusal.
//   2. One acknowledgement is the owner's word that it will let every write of this stream in until the stream has
//      answered a `revoke`. From then on nothing asks.
//   3. The answer leaves after all that was written, on the same stream. So what ended well before is in memory when
//   the
//      answer has come, and only then is the region released. What is posted later is refused where it is posted.
//   4. Whoever does not answer in `revoke_s` loses the connection, and with it the region.
//
// A region that nobody has been given that word for is released at once: it is our own code that places bytes, and
// stops.
#include <sys/random.h>

#include <algorithm>
#include <cerrno>

#include "tcp_domain.h"

namespace aio::tcp {

namespace {

constexpr std::uint32_t kMostRegions = 1 << 24;

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
    if (slots_.size() == kMostRegions) throw Failure(Failure::Kind::provider, "register", "too many regions", ENOSPC);
    free_slots_.push_back(static_cast<std::uint32_t>(slots_.size()));
    slots_.push_back(0);
  }
  const std::uint32_t slot = free_slots_.back();
  free_slots_.pop_back();
  slots_[slot] = number;
  locals_.insert_or_assign(number, LocalRegion{memory, slot, secret, false, {}, {}});
  return pack(KeyBlob{kMagic, slot, secret, memory.nbytes, memory.access, 0});
}

void TcpDomain::register_remote(RegionNumber number, const RemoteMemory& memory) {
  const auto key = unpack<KeyBlob>(memory.keys, "region key");
  if (key.nbytes != memory.nbytes || key.secret == 0) {
    throw Failure(Failure::Kind::usage, "region key", "its fields contradict each other");
  }
  if (!links_.contains(memory.peer)) throw Failure(Failure::Kind::usage, "register", "the peer is not connected");
  RemoteRegion region;
  region.peer = memory.peer;
  region.nbytes = memory.nbytes;
  region.key = key;
  remotes_.insert_or_assign(number, region);
}

void TcpDomain::deregister(RegionNumber number) {
  remotes_.erase(number);
  const auto found = locals_.find(number);
  if (found == locals_.end() || found->second.closing) return;
  LocalRegion& region = found->second;
  region.closing = true;
  region.since = Clock::now();
  closing_.insert(number);
  divert(number);
  for (auto& [id, stream] : streams_) {
    if (!stream->up() || stream->heard_end || !stream->writes_to.contains(number)) continue;
    region.awaited.insert(id);
    append_record(stream->control, FrameHead{Kind::revoke, 0, 0, region.slot, region.secret, 0});
    if (!stream->blocked) want(*stream);
  }
  want_tick();
  release(number);
}

// Lets go of a region for which nobody is waited for any more.
void TcpDomain::release(RegionNumber number) {
  const auto found = locals_.find(number);
  if (!found->second.awaited.empty()) return;
  slots_[found->second.slot] = 0;
  free_slots_.insert(free_slots_.begin(), found->second.slot);
  locals_.erase(found);
  closing_.erase(number);
  for (auto& [id, stream] : streams_) stream->writes_to.erase(number);
  sink_.released(number);
}

// Stops whoever is in the middle of it, and has not been given the word: what comes goes nowhere, and what leaves is
// filled up with zeros.
void TcpDomain::divert(RegionNumber number) {
  static std::array<std::byte, 64 << 10> zeros{};
  for (auto& [id, stream] : streams_) {
    Incoming& in = stream->in;
    if (in.left != 0 && in.region == number && !stream->writes_to.contains(number)) {
      in.nowhere = true;
      in.verdict = Verdict::stale;
    }
    Outgoing& out = stream->out;
    if (!out.busy() || out.source != number) continue;
    const std::size_t tail = out.has_tail ? 1 : 0;
    const std::size_t first = std::max<std::size_t>(out.at, 1);
    if (first + tail >= out.parts.size()) continue;  // its payload is out
    std::uint64_t left = 0;
    for (std::size_t i = first; i + tail < out.parts.size(); ++i) left += out.parts[i].iov_len;
    const iovec end = out.parts.back();
    out.parts.resize(first);
    for (; left != 0; left -= out.parts.back().iov_len) {
      out.parts.push_back({zeros.data(), std::min<std::uint64_t>(left, zeros.size())});
    }
    if (out.has_tail) {
      auto head = read_record<FrameHead>(out.tail.data());
      head.flags = static_cast<std::uint8_t>(Verdict::stale);
      std::memcpy(out.tail.data(), &head, sizeof head);
      out.parts.push_back(end);
    }
    out.source = 0;
  }
}

TcpDomain::Named TcpDomain::find(const Stream& stream, std::uint32_t slot, std::uint64_t secret, unsigned access) {
  Named named;
  if (slot >= slots_.size() || slots_[slot] == 0) return named;
  LocalRegion& region = locals_.at(slots_[slot]);
  if (region.secret != secret) return named;
  const bool writes = access == access_remote_write;
  if (region.closing && !(writes && region.awaited.contains(stream.id))) return named;
  named.verdict = (region.memory.access & access) != 0 ? Verdict::ok : Verdict::access;
  named.number = slots_[slot];
  named.region = &region;
  return named;
}

// A peer has answered `revoke`.
void TcpDomain::let_go(const Stream& stream, std::uint32_t slot, std::uint64_t secret) {
  const RegionNumber number = slot < slots_.size() ? slots_[slot] : 0;
  const auto found = locals_.find(number);
  if (found == locals_.end() || found->second.secret != secret || !found->second.closing) return;
  if (found->second.awaited.erase(stream.id) != 0) release(number);
}

// Nothing comes by this stream any more.
void TcpDomain::let_go_of_all(StreamId stream) {
  const std::vector<RegionNumber> closing(closing_.begin(), closing_.end());
  for (const RegionNumber number : closing) {
    if (locals_.at(number).awaited.erase(stream) != 0) release(number);
  }
}

// The owner wants it back: nothing more is written to it.
void TcpDomain::forget(Stream& stream, std::uint32_t slot, std::uint64_t secret) {
  for (auto& [number, region] : remotes_) {
    if (region.peer == stream.link->number && region.key.slot == slot && region.key.secret == secret)
      region.dead = true;
  }
  const Job& job = stream.job;
  if (job.flow != nullptr && job.slot == slot && job.secret == secret) {
    stop_job(stream, {Status::stale_region, 0, "the peer has deregistered the region"});
  }
}

}  // namespace aio::tcp
