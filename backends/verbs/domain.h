// libibverbs as a transport: one Domain per port of an RDMA device (InfiniBand or RoCE), over reliable connections.
#pragma once

#include <memory>
#include <vector>

#include "../core/domain.h"
#include "library.h"

namespace aio::verbs {

// Options, all optional; yes and no are "1"/"True" and "0"/"False":
//   devices           "mlx5_0,mlx5_1:2": these ports, as rails in this order
//   rails             without `devices`: at most this many ports, the fastest that are up; 1
//   depth             work requests in flight per peer and rail; 512
//   inline_nbytes     payloads up to this size travel within the request, where the device offers it; 220
//   relaxed_ordering  let the device write payload in any order on the PCIe bus; yes
//   service_level     of InfiniBand, or the RoCE priority; 0
//   traffic_class     of the GRH: DSCP and ECN bits on RoCE v2; 0
//   timeout           a packet is sent again after 4.096 us * 2^timeout without an answer; 17 (0.54 s)
//   retries           as often as this, 0 … 7; 6
//   rnr_retries       as often as this when the peer has no receive posted, 7 for ever; 7
//   port_down_s       a port that is down for this long loses its peers; 2
//   stall_s           as does a peer on whose connection nothing completes for this long; 30
//   revoke_s          a peer that has not let go of a region by then has its connection broken; 2
//   library           path of libibverbs.so.1
// Throws Failure(unavailable) when the library or a device is missing, Failure(usage) for a malformed option.
std::vector<std::unique_ptr<Domain>> open_domains(Sink& sink, const Options& options);

}  // namespace aio::verbs
