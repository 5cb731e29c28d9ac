// Connections: each end names the other's by a key, and packets of a connection that is over find nothing.
#include "connection.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <string_view>

#include "domain.h"

namespace aio::sim {

Endpoint SimDomain::connect(PeerNumber number, const std::optional<Endpoint>& remote) {
  Peer& peer = peers_[number];
  if (peer.my_link == 0) {
    peer.my_link = fabric_->make_key();
    by_link_.emplace(peer.my_link, number);
  }
  if (remote) join(peer, *remote);
  const std::string& own = fabric_->address();
  EndpointBlob blob{kMagic, fabric_->id(), peer.my_link, node_, static_cast<std::uint32_t>(own.size()), {}};
  std::memcpy(blob.address, own.data(), std::min(own.size(), sizeof blob.address));
  return {{reinterpret_cast<const char*>(&blob), sizeof blob}, {}};
}

void SimDomain::join(Peer& peer, const Endpoint& remote) const {
  EndpointBlob blob;
  if (remote.blob.size() != sizeof blob) {
    throw Failure(Failure::Kind::usage, "endpoint", "not what a sim engine of this version sends");
  }
  std::memcpy(&blob, remote.blob.data(), sizeof blob);
  const bool fits = blob.magic == kMagic && blob.length <= sizeof blob.address;
  const auto address = std::string_view(blob.address, fits ? blob.length : 0);
  // A peer must not make us send to a socket that is no fabric's.
  if (!fits || !(address.empty() || address.starts_with(kAddressPrefix))) {
    throw Failure(Failure::Kind::usage, "endpoint", "not what a sim engine of this version sends");
  }
  const bool is_near = blob.fabric == fabric_->id();
  if (!is_near && (fabric_->stepped() || blob.length == 0)) {
    throw Failure(Failure::Kind::unavailable, "sim", "a SimFabric reaches only engines of its own");
  }
  peer.address = is_near ? std::string() : std::string(address);
  peer.node = blob.node;
  peer.their_link = blob.link;
}

void SimDomain::disconnect(PeerNumber number, bool lost) {
  const auto found = peers_.find(number);
  if (found == peers_.end()) return sink_.fenced(number);
  const Peer peer = std::move(found->second);
  peers_.erase(found);
  // From here on nothing of that connection is applied: on_packet() does not find it.
  if (!fabric_->faults().skip_fence) by_link_.erase(peer.my_link);
  arrivals_.erase(arrivals_.lower_bound({peer.my_link, 0, 0}), arrivals_.lower_bound({peer.my_link + 1, 0, 0}));
  std::erase_if(remote_regions_, [&](const auto& entry) { return entry.second.peer == number; });
  for (Packet& packet : outbound_) {
    bool is_gone = false;
    if (packet.peer == number && !lost && packet.header.kind == Kind::ack) {
      fabric_->send(packet, peer.address, is_gone);
    }
  }
  std::erase_if(outbound_, [&](const Packet& packet) { return packet.peer == number; });
  for (const Operation& operation : take_operations(number)) report(operation);
  if (!lost) return fences_.push_back({number, peer.my_link});  // pending counts come first
  report_counts(peer.my_link);
  sink_.fenced(number);
}

// Takes out the operations of a peer: those in flight, which fail, and those whose end is not reported yet.
std::vector<Operation> SimDomain::take_operations(PeerNumber number) {
  std::vector<Operation> taken;
  for (auto at = operations_.begin(); at != operations_.end();) {
    if (at->second.peer == number) {
      taken.push_back(std::move(at->second));
      taken.back().outcome = kPeerLost;
      at = operations_.erase(at);
    } else {
      ++at;
    }
  }
  const auto is_of_other = [&](const Operation& operation) { return operation.peer != number; };
  const auto first = std::partition(finished_.begin(), finished_.end(), is_of_other);
  std::move(first, finished_.end(), std::back_inserter(taken));
  finished_.erase(first, finished_.end());
  return taken;
}

}  // namespace aio::sim
