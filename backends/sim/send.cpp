// Departure of packets: some at a time, from any place in the queue.
#include <cerrno>
#include <iterator>
#include <set>
#include <utility>

#include "domain.h"

namespace aio::sim {

// One turn of sending.
struct SimDomain::Turn {
  std::set<std::string> full;       // addresses of processes that have no room
  std::vector<Packet> passed_over;  // that may not leave now, in their order
  bool must_ask_again = false;      // nothing wakes us when the hook decides otherwise, or the process has room
};

// Sends up to `budget` packets; only now are their sources read. One that may not leave now (its path is cut, the hook
// holds it, the other process has no room) is passed over: one peer never waits for another.
bool SimDomain::send_some(std::uint32_t budget) {
  bool moved = false;
  Turn turn;
  while (budget != 0 && !outbound_.empty()) {
    if (fabric_->happens(fabric_->faults().reorder)) {
      std::swap(outbound_.front(), outbound_[fabric_->below(outbound_.size())]);
    }
    Packet packet = std::move(outbound_.front());
    outbound_.pop_front();
    if (!send_packet(packet, turn)) {
      turn.passed_over.push_back(std::move(packet));
      continue;
    }
    --budget;
    moved = true;
  }
  blocked_ = outbound_.empty() && !turn.must_ask_again;  // until a path is opened again, which wakes us
  outbound_.insert(outbound_.begin(), std::make_move_iterator(turn.passed_over.begin()),
                   std::make_move_iterator(turn.passed_over.end()));
  return moved;
}

// Returns false where it may not leave now.
bool SimDomain::send_packet(Packet& packet, Turn& turn) {
  Peer& peer = peers_.at(packet.peer);  // it is there: disconnect() drops what is outbound
  if (!fabric_->is_path_open(node_, packet.header.to) || turn.full.contains(peer.address)) return false;
  const Verdict verdict = fabric_->route(packet.header);
  if (verdict == Verdict::hold) {
    turn.must_ask_again = true;
    return false;
  }
  if (packet.source != nullptr) read_source(packet);
  if (verdict == Verdict::fail && packet.header.kind == Kind::write) {
    packet.header.kind = Kind::dropped;
    packet.payload.clear();
  }
  bool is_gone = false;
  if (!fabric_->send(packet, peer.address, is_gone)) {
    turn.must_ask_again = true;
    turn.full.insert(peer.address);
    return false;
  }
  if (is_gone && !peer.address.empty() && !peer.failed) {
    peer.failed = true;
    sink_.peer_failed(packet.peer, {Status::peer_lost, ECONNREFUSED, "its process is gone"});
  }
  return true;
}

void SimDomain::read_source(Packet& packet) {
  packet.payload.resize(packet.header.nbytes);
  if (!copy(packet.source, packet.payload.data(), packet.payload.size())) {
    packet.header.kind = Kind::dropped;  // EFAULT
    packet.payload.clear();
  }
  packet.source = nullptr;
}

}  // namespace aio::sim
