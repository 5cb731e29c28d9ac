// The questions that peers ask each other below the contract, and their answers.
#include <algorithm>
#include <cerrno>

#include "domain.h"

namespace aio::libfabric {

namespace {

constexpr auto kQueryRetry = std::chrono::milliseconds(100);  // doubled each time, up to 32 times
constexpr std::size_t kMaxSerials = (kMinSlotNbytes - sizeof(FrameHeader)) / sizeof(std::uint64_t) / 2;
constexpr std::size_t kMaxStale = 16384;
constexpr std::size_t kMaxQueuedFrames = 1024;  // frames kept for a peer that cannot take or name them yet

std::string make_frame(std::uint64_t token, FrameKind kind, std::uint32_t revoked, std::uint64_t number,
                       std::uint64_t from) {
  std::string bytes;
  append_record(bytes, FrameHeader{token, kind, revoked, number, from});
  return bytes;
}

}  // namespace

void FabricDomain::schedule_query(RemoteNic& end) noexcept {
  end.wanted_query = end.sent_query + 1;
  has_deferred_work_ = true;
}

void FabricDomain::build_query(Peer& peer, RemoteNic& end) {
  end.queried_serials.clear();
  for (const std::uint64_t serial : end.revocations) {
    if (end.queried_serials.size() < kMaxSerials) end.queried_serials.insert(serial);
  }
  end.query = make_frame(end.token, FrameKind::query, static_cast<std::uint32_t>(end.queried_serials.size()),
                         ++end.sent_query, peer.token);
  for (const std::uint64_t serial : end.queried_serials) append_record(end.query, serial);
  if (&end != &peer.paired_nic()) return;  // we hold no keys of its
  std::set<std::uint64_t> in_doubt;
  for (const Suspended& suspended : peer.suspended) {
    if (suspended.serial != 0 && in_doubt.size() < kMaxSerials) in_doubt.insert(suspended.serial);
  }
  for (const std::uint64_t serial : in_doubt) append_record(end.query, serial);
}

void FabricDomain::queue_query(Peer& peer, RemoteNic& end, Clock::time_point now) {
  if (!end.query_pending()) return;
  const bool fresh = end.sent_query == end.on_reply;
  if (fresh) build_query(peer, end);
  // Asked again, since either way may have been lost with a connection.
  if (!fresh && (now - end.sent_at <= kQueryRetry * (1 << std::min(end.resends, 5)) || !peer.outbox.empty())) return;
  peer.outbox.emplace_back(end.address, end.query);
  end.sent_at = now;
  end.resends = fresh ? 0 : end.resends + 1;
}

bool FabricDomain::flush_outbox(Peer& peer) {
  bool moved = false;
  while (!peer.outbox.empty() && !peer.disconnecting) {
    const ssize_t result =
        post_frame(peer, Operation::Kind::control, 0, peer.outbox.front().second, peer.outbox.front().first);
    if (result == -EAGAIN) break;
    peer.outbox.pop_front();  // a failure is made good by the asker, who asks again
    moved = true;
  }
  return moved;
}

void FabricDomain::on_frame(Peer& peer, const std::byte* bytes, std::size_t nbytes) {
  std::string_view rest(reinterpret_cast<const char*>(bytes), nbytes);
  if (!peer.joined) {
    if (peer.early_messages.size() < kMaxQueuedFrames) peer.early_messages.emplace_back(rest);
    return;
  }
  const auto head = read_record<FrameHeader>(rest);
  rest.remove_prefix(sizeof head);
  RemoteNic* end = peer.find(head.from);
  if (end == nullptr) return;
  const bool paired = end == &peer.paired_nic();  // the others' keys are none that we hold
  switch (head.kind) {
    case FrameKind::message:
      if (!peer.disconnecting || peer.own) sink_.message(peer.number, std::string(rest));
      return;
    case FrameKind::query: {
      const std::size_t revoked = std::min(std::size_t{head.revoked}, rest.size() / 8);
      if (paired) mark_stale(peer, read_serials(rest.substr(0, 8 * revoked)));
      return reply_to(peer, *end, head.number, rest.substr(8 * revoked));
    }
    case FrameKind::reply:
      return on_reply(peer, *end, head.number, paired ? read_serials(rest) : std::set<std::uint64_t>{});
  }
}

// Says which of the regions that the peer asks about are gone.
void FabricDomain::reply_to(Peer& peer, const RemoteNic& end, std::uint64_t number, std::string_view sent_query) {
  std::set<std::uint64_t> in_doubt = read_serials(sent_query);
  for (const auto& [region_number, region] : local_regions_) {
    if (!deregistering_.contains(region_number)) in_doubt.erase(region.serial);
  }
  std::string reply = make_frame(end.token, FrameKind::reply, 0, number, peer.token);
  for (const std::uint64_t serial : in_doubt) append_record(reply, serial);
  if (peer.outbox.size() < kMaxQueuedFrames) peer.outbox.emplace_back(end.address, std::move(reply));
  has_deferred_work_ = true;
}

void FabricDomain::mark_stale(Peer& peer, const std::set<std::uint64_t>& serials) {
  if (serials.empty()) return;
  peer.stale_serials.insert(serials.begin(), serials.end());
  while (peer.stale_serials.size() > kMaxStale) peer.stale_serials.erase(peer.stale_serials.begin());
  for (auto& [number, region] : remote_regions_) {
    if (region.peer == peer.number && serials.contains(region.key.serial)) region.dead = true;
  }
}

void FabricDomain::on_reply(Peer& peer, RemoteNic& end, std::uint64_t number, const std::set<std::uint64_t>& stale) {
  if (number != end.sent_query || number == end.on_reply) return;  // of a question that was asked twice
  end.on_reply = number;
  for (const std::uint64_t serial : end.queried_serials) end.revocations.erase(serial);
  end.queried_serials.clear();
  if (!end.revocations.empty()) schedule_query(end);
  mark_stale(peer, stale);
  if (&end == &peer.paired_nic() && number >= peer.verdict_query) resolve_suspended(peer, nullptr);
  finish_deregistrations();
}

// Ends what was suspended: by `verdict`, or by what the peer has told.
void FabricDomain::resolve_suspended(Peer& peer, const Outcome* verdict) {
  std::vector<Suspended> suspended;
  suspended.swap(peer.suspended);
  for (const Suspended& one : suspended) {
    Outcome outcome;
    if (verdict != nullptr) {
      outcome = *verdict;
    } else if (one.serial != 0 && peer.stale_serials.contains(one.serial)) {
      outcome = {Status::stale_region, one.code, "the peer has deregistered the region"};
    } else {
      outcome = {Status::provider, one.code,
                 std::string(library_.strerror(one.code)) +
                     ": the connection broke and came back; the peer had refused an access, perhaps another's"};
    }
    if (one.flow != nullptr)
      sink_.stopped(*one.flow, one.pieces, outcome);
    else
      sink_.sent(one.message, outcome);
  }
}

}  // namespace aio::libfabric
