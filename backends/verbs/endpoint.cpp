// Endpoint blobs, and the route to a peer's endpoint.
#include <algorithm>
#include <cerrno>
#include <random>

#include "domain.h"

namespace aio::verbs {

namespace {

constexpr std::uint8_t kHopLimit = 64;          // routers between RoCE v2 subnets: IP's usual default
constexpr std::uint8_t kMaxReadsInFlight = 16;  // what ConnectX offers
// Linux 6.1's rdma_rxe times out reads that take long, and repeats them without end. Measured in the virtual machine of
// tests/vm: one read of 8 MiB, or four of 1 MiB at once, did not end within 40 s; four of 256 KiB at once reached 5
// MB/s with 37 retries; 64 reads of 1 MiB one after another reached 16 MB/s without retries.
constexpr std::uint8_t kMaxReadsInFlightOnRxe = 1;

// Random, so that a late packet of an earlier connection is not accepted by this one. 24 bits.
std::uint32_t random_psn() {
  std::random_device random;
  return random() & 0xffffff;
}

}  // namespace

void VerbsDomain::write_blob(Peer& peer) {
  refresh(library_, port_);  // GIDs may have changed
  EndpointBlob blob;
  blob.head = {kMagic,
               rail_,
               static_cast<std::uint16_t>(rails_->domains.size()),
               peer.data.qp->qp_num,
               random_psn(),
               peer.messages.qp->qp_num,
               random_psn(),
               reinterpret_cast<std::uint64_t>(flush_source()),
               flush_source_registration_->rkey,
               static_cast<std::uint32_t>(slot_nbytes_),
               port_.attr.lid,
               port_.attr.link_layer,
               static_cast<std::uint8_t>(port_.attr.active_mtu),
               max_reads(port_.device.max_qp_rd_atom),
               static_cast<std::uint8_t>(port_.attr.flags & abi::port_grh_required),
               0};
  blob.gids = port_.gids;
  peer.blob = pack(blob);
}

// Number of reads a QP may have in flight: limited by its device and the peer's.
std::uint8_t VerbsDomain::max_reads(int offered) const noexcept {
  return static_cast<std::uint8_t>(
      std::clamp<int>(offered, 1, port_.is_rxe() ? kMaxReadsInFlightOnRxe : kMaxReadsInFlight));
}

abi::AhAttr VerbsDomain::make_route(const EndpointBlob& remote) const {
  const auto refuse = [&](const std::string& why) {
    return Failure(Failure::Kind::provider, "a path from " + port_.name, why, EHOSTUNREACH);
  };
  if (remote.head.link_layer != port_.attr.link_layer) throw refuse("InfiniBand and RoCE cannot reach each other");
  if (port_.attr.state != abi::port_active) throw refuse("the port is down");
  abi::AhAttr route{};
  route.port_num = port_.number;
  route.sl = settings_.service_level;
  const auto pair = choose_gids(port_.gids, remote.gids);
  if (port_.is_infiniband()) {
    if (remote.head.lid == 0) throw refuse("the peer's port has no LID: is a subnet manager running?");
    route.dlid = remote.head.lid;
    // Within a subnet LIDs suffice. Between subnets, or if a port requires it, packets carry a GRH.
    const bool routed =
        (port_.attr.flags & abi::port_grh_required) != 0 || remote.head.grh_required != 0 ||
        (pair && !std::equal(port_.gids[pair->first].raw.begin(), port_.gids[pair->first].raw.begin() + 8,
                             remote.gids[pair->second].raw.begin()));
    if (!routed) return route;
  }
  if (!pair) {
    throw refuse("no address of the same kind on both sides: here " + to_string(port_.gids) + "; there " +
                 to_string(remote.gids));
  }
  route.is_global = 1;
  std::copy_n(remote.gids[pair->second].raw.begin(), sizeof route.grh.dgid.raw, route.grh.dgid.raw);
  route.grh.sgid_index = port_.gids[pair->first].index;
  route.grh.hop_limit = kHopLimit;
  route.grh.traffic_class = settings_.traffic_class;
  return route;
}

}  // namespace aio::verbs
