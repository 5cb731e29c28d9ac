// Arrival of packets: applied by the target, which answers each of them.
#include <algorithm>
#include <cerrno>
#include <utility>

#include "domain.h"

namespace aio::sim {

namespace {

Outcome outcome_of(Status status) {
  switch (status) {
    case Status::ok:
      return {};
    case Status::stale_region:
      return {Status::stale_region, 0, "its owner has deregistered it"};
    case Status::peer_lost:
      return kPeerLost;
    case Status::provider:
    case Status::aborted:
      break;
  }
  return {Status::provider, EIO, "the simulated fabric failed it"};
}

}  // namespace

void SimDomain::on_packet(Packet packet) {
  const Header& header = packet.header;
  const auto known = by_link_.find(header.link);
  if (known == by_link_.end()) return;  // of a connection that is over: fenced
  const PeerNumber number = known->second;
  switch (header.kind) {
    case Kind::write:
    case Kind::dropped:
      return on_write(packet, number);
    case Kind::read:
      return on_read(packet, number);
    case Kind::data:
      return on_data(packet, number);
    case Kind::message:
      sink_.message(number, std::move(packet.payload));
      return answer(header, number, Status::ok);
    case Kind::ack:
      return on_answer(header.operation, number, header.status);
  }
}

void SimDomain::on_write(const Packet& packet, PeerNumber number) {
  const Header& header = packet.header;
  std::byte* at = nullptr;
  const bool is_whole = header.kind != Kind::dropped && packet.payload.size() == header.nbytes;
  Status status = is_whole ? check_access(header, access_remote_write, at) : Status::provider;
  if (status == Status::ok && !copy(packet.payload.data(), at, packet.payload.size())) status = Status::provider;
  const auto [entry, is_first] =
      arrivals_.try_emplace({header.link, header.from, header.operation}, Arrival{std::max(1u, header.packets)});
  Arrival& arrival = entry->second;
  arrival.refused |= status != Status::ok;
  const bool counts_early = fabric_->faults().count_before_payload;
  if (counts_early && is_first && header.has_immediate != 0) sink_.counted(header.immediate);
  if (--arrival.missing == 0) {
    // Counted later than its last byte, and maybe later than its sender knows: a queue of completions lies between.
    if (!counts_early && !arrival.refused && header.has_immediate != 0) {
      counts_.push_back({header.link, header.immediate});
    }
    arrivals_.erase(entry);
  }
  answer(header, number, status);
}

void SimDomain::on_read(const Packet& packet, PeerNumber number) {
  const Header& header = packet.header;
  std::byte* at = nullptr;
  // A correct peer never asks for more than an answer can carry.
  const bool fits = header.nbytes <= kMaxMessageNbytes;
  const Status status = fits ? check_access(header, access_remote_read, at) : Status::provider;
  if (status != Status::ok) return answer(header, number, status);
  std::string bytes(header.nbytes, '\0');
  if (!copy(at, bytes.data(), bytes.size())) return answer(header, number, Status::provider);
  Packet* data = queue_answer(Kind::data, number, header);
  if (data == nullptr) return;
  data->header.at = header.at;
  data->header.nbytes = header.nbytes;
  data->payload = std::move(bytes);
}

void SimDomain::on_data(const Packet& packet, PeerNumber number) {
  const Header& header = packet.header;
  const auto found = operations_.find(header.operation);
  if (found == operations_.end() || found->second.peer != number) return;
  const Operation& read = found->second;
  if (read.flow == nullptr || read.flow->run.op != Op::read) return;
  const bool fits = header.at <= read.nbytes && packet.payload.size() <= read.nbytes - header.at;
  const bool is_copied = fits && copy(packet.payload.data(), read.target + header.at, packet.payload.size());
  on_answer(header.operation, number, is_copied ? Status::ok : Status::provider);
}

void SimDomain::answer(const Header& header, PeerNumber number, Status status) {
  if (Packet* ack = queue_answer(Kind::ack, number, header); ack != nullptr) ack->header.status = status;
}

// To the very NIC that asked: with unequal numbers of them it need not be the one that our own pieces go to.
Packet* SimDomain::queue_answer(Kind kind, PeerNumber number, const Header& header) {
  const auto peer = peers_.find(number);
  if (peer == peers_.end()) return nullptr;  // only with the deliberate bug `skip_fence`
  Packet& packet = queue(make_packet(kind, number, peer->second, header.operation));
  packet.header.to = header.from;
  packet.header.link = header.reply_link;
  return &packet;
}

void SimDomain::on_answer(std::uint64_t id, PeerNumber number, Status status) {
  const auto found = operations_.find(id);
  if (found == operations_.end() || found->second.peer != number) return;  // no peer answers for another
  Operation& operation = found->second;
  if (operation.outcome.ok()) operation.outcome = outcome_of(status);
  --operation.unanswered;
  const bool ends_early = fabric_->faults().error_before_stop && !operation.outcome.ok();
  if (operation.unanswered != 0 && !ends_early) return;
  if (const auto peer = peers_.find(number); peer != peers_.end()) --peer->second.in_flight;
  finished_.push_back(std::move(operation));
  operations_.erase(found);
}

}  // namespace aio::sim
