// The questions that peers ask each other below the contract, and their answers.
#include <algorithm>
#include <cerrno>

#include "domain.h"

namespace aio::libfabric {

namespace {

constexpr auto kAskAgain = std::chrono::milliseconds(100);  // doubled each time, up to 32 times
constexpr std::size_t kMostSerials = (kLeastSlotNbytes - sizeof(FrameHead)) / sizeof(std::uint64_t) / 2;
constexpr std::size_t kMostDead = 16384;
constexpr std::size_t kMostWaiting = 1024;  // frames kept for a peer that cannot take or name them yet

std::string frame(std::uint64_t token, FrameKind kind, std::uint32_t revoked, std::uint64_t number,
                  std::uint64_t from) {
  std::string bytes;
  append_record(bytes, FrameHead{token, kind, revoked, number, from});
  return bytes;
}

}  // namespace

void FabricDomain::ask(End& end) noexcept {
  end.wanted = end.asked + 1;
  chores_ = true;
}

void FabricDomain::write_question(Peer& peer, End& end) {
  end.told.clear();
  for (const std::uint64_t serial : end.revoking) {
    if (end.told.size() < kMostSerials) end.told.insert(serial);
  }
  end.question =
      frame(end.token, FrameKind::question, static_cast<std::uint32_t>(end.told.size()), ++end.asked, peer.token);
  for (const std::uint64_t serial : end.told) append_record(end.question, serial);
  if (&end != &peer.partner()) return;  // we hold no keys of its
  std::set<std::uint64_t> doubtful;
  for (const Suspended& suspended : peer.suspended) {
    if (suspended.serial != 0 && doubtful.size() < kMostSerials) doubtful.insert(suspended.serial);
  }
  for (const std::uint64_t serial : doubtful) append_record(end.question, serial);
}

void FabricDomain::put_question(Peer& peer, End& end, Clock::time_point now) {
  if (!end.owes()) return;
  const bool fresh = end.asked == end.answered;
  if (fresh) write_question(peer, end);
  // Asked again, since either way may have been lost with a connection.
  if (!fresh && (now - end.asked_at <= kAskAgain * (1 << std::min(end.repeats, 5)) || !peer.outbox.empty())) return;
  peer.outbox.emplace_back(end.address, end.question);
  end.asked_at = now;
  end.repeats = fresh ? 0 : end.repeats + 1;
}

bool FabricDomain::flush_outbox(Peer& peer) {
  bool moved = false;
  while (!peer.outbox.empty() && !peer.leaving) {
    const ssize_t result =
        post_frame(peer, Operation::Kind::control, 0, peer.outbox.front().second, peer.outbox.front().first);
    if (result == -EAGAIN) break;
    peer.outbox.pop_front();  // a failure is made good by the asker, who asks again
    moved = true;
  }
  return moved;
}

void FabricDomain::received(Peer& peer, const std::byte* bytes, std::size_t nbytes) {
  std::string_view rest(reinterpret_cast<const char*>(bytes), nbytes);
  if (!peer.joined) {
    if (peer.early.size() < kMostWaiting) peer.early.emplace_back(rest);
    return;
  }
  const auto head = read_record<FrameHead>(rest);
  rest.remove_prefix(sizeof head);
  End* end = peer.find(head.from);
  if (end == nullptr) return;
  const bool paired = end == &peer.partner();  // the others' keys are none that we hold
  switch (head.kind) {
    case FrameKind::message:
      if (!peer.leaving || peer.own) sink_.message(peer.number, std::string(rest));
      return;
    case FrameKind::question: {
      const std::size_t revoked = std::min(std::size_t{head.revoked}, rest.size() / 8);
      if (paired) forget(peer, read_serials(rest.substr(0, 8 * revoked)));
      return answer(peer, *end, head.number, rest.substr(8 * revoked));
    }
    case FrameKind::answer:
      return answered(peer, *end, head.number, paired ? read_serials(rest) : std::set<std::uint64_t>{});
  }
}

// Says which of the regions that the peer asks about are gone.
void FabricDomain::answer(Peer& peer, const End& end, std::uint64_t number, std::string_view asked) {
  std::set<std::uint64_t> doubtful = read_serials(asked);
  for (const auto& [region_number, region] : local_regions_) {
    if (!closing_regions_.contains(region_number)) doubtful.erase(region.serial);
  }
  std::string reply = frame(end.token, FrameKind::answer, 0, number, peer.token);
  for (const std::uint64_t serial : doubtful) append_record(reply, serial);
  if (peer.outbox.size() < kMostWaiting) peer.outbox.emplace_back(end.address, std::move(reply));
  chores_ = true;
}

void FabricDomain::forget(Peer& peer, const std::set<std::uint64_t>& serials) {
  if (serials.empty()) return;
  peer.dead.insert(serials.begin(), serials.end());
  while (peer.dead.size() > kMostDead) peer.dead.erase(peer.dead.begin());
  for (auto& [number, region] : remote_regions_) {
    if (region.peer == peer.number && serials.contains(region.key.serial)) region.dead = true;
  }
}

void FabricDomain::answered(Peer& peer, End& end, std::uint64_t number, const std::set<std::uint64_t>& dead) {
  if (number != end.asked || number == end.answered) return;  // of a question that was asked twice
  end.answered = number;
  for (const std::uint64_t serial : end.told) end.revoking.erase(serial);
  end.told.clear();
  if (!end.revoking.empty()) ask(end);
  forget(peer, dead);
  if (&end == &peer.partner() && number >= peer.verdict_number) resolve(peer, nullptr);
  settle_regions();
}

// Ends what was suspended: by `verdict`, or by what the peer has told.
void FabricDomain::resolve(Peer& peer, const Outcome* verdict) {
  std::vector<Suspended> suspended;
  suspended.swap(peer.suspended);
  for (const Suspended& one : suspended) {
    Outcome outcome;
    if (verdict != nullptr) {
      outcome = *verdict;
    } else if (one.serial != 0 && peer.dead.contains(one.serial)) {
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
