// libfabric as a transport: one Domain per libfabric domain (a NIC, or an address for the software providers).
#pragma once

#include <memory>
#include <vector>

#include "../core/domain.h"
#include "library.h"

namespace aio::libfabric {

// Options, all optional; yes and no are "1"/"True" and "0"/"False":
//   provider         exact provider name; "tcp"
//   unproven         open providers that break promises (README.md): not tcp, nor efa on a device with RDMA,
//                    nor verbs;ofi_rxm from libfabric 2.7 on; no
//   address          source address (node); "127.0.0.1" for the IP providers, unless `interface` is given
//   interface        domain name, as `aio-transfer devices` shows it
//   interfaces       several, with commas, and in this order
//   fabric           fabric name; of EFA's two the first that has device RDMA, "efa-direct" and then "efa"
//   endpoints        on efa: "peer" (one each; a lost peer is kept out for certain) or "shared" (fewer queues)
//   rnr_retry        on efa: how often the device tries again where it finds no receive, 0 to 7; 7 is for ever
//   huge_pages       on efa: let the provider take huge pages for buffers of its own (FI_EFA_USE_HUGE_PAGE); its choice
//   fork_safe        on efa: before Linux 5.13 the provider ends a process that forks, unless told (FI_EFA_FORK_SAFE);
//                    not with huge_pages
//   rails            at most this many domains; 1
//   depth            operations in flight per peer; 256
//   delivery         over tcp a write completes once the peer has it, not once the kernel does; yes
//   post_deadline_s  a peer that takes nothing for this long fails the operation; 30
//   verdict_s        a peer that does not answer for this long after its connection broke is lost; 5
//   cpus             numbers of the cores where the worker may run, with commas
//   library, search  see library.h
// Throws Failure(unavailable) when the library or the provider is missing, Failure(usage) for a malformed option.
std::vector<std::unique_ptr<Domain>> open_domains(Sink& sink, const Options& options);

}  // namespace aio::libfabric
