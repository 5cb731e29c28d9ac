// Queries between peers, below the engine's contract, and their replies: revocation, and which regions are gone.
#include <algorithm>
#include <cerrno>

#include "domain.h"

namespace aio::libfabric {

namespace {

constexpr auto kQueryRetry = std::chrono::milliseconds(100);  // doubled each time, up to 32 times
constexpr std::size_t kMaxSerials = (kMinSlotNbytes - sizeof(FrameHeader)) / sizeof(std::uint64_t) / 2;
constexpr std::size_t kMaxStale = 16384;
// Frames kept for a peer that cannot take them, or whose sender is not known yet.
constexpr std::size_t kMaxQueuedFrames = 1024;

std::string make_frame(std::uint64_t token, FrameKind kind, std::uint32_t revoked, std::uint64_t number,
                       std::uint64_t from) {
  std::string bytes;
  append_record(bytes, FrameHeader{token, kind, revoked, number, from});
  return bytes;
}

}  // namespace

void FabricDomain::schedule_query(RemoteNic& nic) noexcept {
  nic.wanted_query = nic.sent_query + 1;
  has_deferred_work_ = true;
}

void FabricDomain::build_query(Peer& peer, RemoteNic& nic) {
  nic.queried_serials.clear();
  for (const std::uint64_t serial : nic.revocations) {
    if (nic.queried_serials.size() < kMaxSerials) nic.queried_serials.insert(serial);
  }
  nic.query = make_frame(nic.token, FrameKind::query, static_cast<std::uint32_t>(nic.queried_serials.size()),
                         ++nic.sent_query, peer.token);
  for (const std::uint64_t serial : nic.queried_serials) append_record(nic.query, serial);
  if (&nic != &peer.paired_nic()) return;  // we hold no keys of it
  std::set<std::uint64_t> in_doubt;
  for (const Suspended& suspended : peer.suspended) {
    if (suspended.serial != 0 && in_doubt.size() < kMaxSerials) in_doubt.insert(suspended.serial);
  }
  for (const std::uint64_t serial : in_doubt) append_record(nic.query, serial);
}

void FabricDomain::queue_query(Peer& peer, RemoteNic& nic, Clock::time_point now) {
  if (!nic.query_pending()) return;
  const bool is_new = nic.sent_query == nic.answered_query;
  if (is_new) build_query(peer, nic);
  // Repeated, since the query or the reply may have been lost with a connection.
  if (!is_new && (now - nic.sent_at <= kQueryRetry * (1 << std::min(nic.resends, 5)) || !peer.outbox.empty())) return;
  peer.outbox.emplace_back(nic.address, nic.query);
  nic.sent_at = now;
  nic.resends = is_new ? 0 : nic.resends + 1;
}

bool FabricDomain::flush_outbox(Peer& peer) {
  bool moved = false;
  while (!peer.outbox.empty() && !peer.disconnecting) {
    const ssize_t result =
        post_frame(peer, Operation::Kind::control, 0, peer.outbox.front().second, peer.outbox.front().first);
    if (result == -EAGAIN) break;
    peer.outbox.pop_front();  // if it fails, the peer repeats its query
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
  RemoteNic* nic = peer.find(head.from);
  if (nic == nullptr) return;
  const bool paired = nic == &peer.paired_nic();  // we hold no keys of the others
  switch (head.kind) {
    case FrameKind::message:
      if (!peer.disconnecting || peer.own) sink_.message(peer.number, std::string(rest));
      return;
    case FrameKind::query: {
      const std::size_t revoked = std::min(std::size_t{head.revoked}, rest.size() / 8);
      if (paired) mark_stale(peer, read_serials(rest.substr(0, 8 * revoked)));
      return reply_to(peer, *nic, head.number, rest.substr(8 * revoked));
    }
    case FrameKind::reply:
      return on_reply(peer, *nic, head.number, paired ? read_serials(rest) : std::set<std::uint64_t>{});
  }
}

// Replies with the serials that are no longer registered, of those that the peer asks about.
void FabricDomain::reply_to(Peer& peer, const RemoteNic& nic, std::uint64_t number, std::string_view asked_serials) {
  std::set<std::uint64_t> in_doubt = read_serials(asked_serials);
  for (const auto& [region_number, region] : local_regions_) {
    if (!deregistering_.contains(region_number)) in_doubt.erase(region.serial);
  }
  std::string reply = make_frame(nic.token, FrameKind::reply, 0, number, peer.token);
  for (const std::uint64_t serial : in_doubt) append_record(reply, serial);
  if (peer.outbox.size() < kMaxQueuedFrames) peer.outbox.emplace_back(nic.address, std::move(reply));
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

void FabricDomain::on_reply(Peer& peer, RemoteNic& nic, std::uint64_t number, const std::set<std::uint64_t>& stale) {
  if (number != nic.sent_query || number == nic.answered_query) return;  // a duplicate, of a query that was repeated
  nic.answered_query = number;
  for (const std::uint64_t serial : nic.queried_serials) nic.revocations.erase(serial);
  nic.queried_serials.clear();
  if (!nic.revocations.empty()) schedule_query(nic);
  mark_stale(peer, stale);
  if (&nic == &peer.paired_nic() && number >= peer.verdict_query) resolve_suspended(peer, nullptr);
  finish_deregistrations();
}

// Ends suspended operations: with `verdict`, or by what the peer has replied.
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
                     ": the connection broke and was reestablished; the peer refused this access, or another one on "
                     "the connection"};
    }
    if (one.flow != nullptr)
      sink_.stopped(*one.flow, one.pieces, outcome);
    else
      sink_.sent(one.message, outcome);
  }
}

}  // namespace aio::libfabric
