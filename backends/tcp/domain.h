// Plain TCP sockets as a transport: one Domain per listening address. Nothing but the kernel is needed.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "../core/domain.h"
#include "../core/options.h"

namespace aio::tcp {

// Options, all optional:
//   address          where to listen, and what peers are told to dial: an IPv4 or IPv6 address of this machine, no
//                    wildcard; or several, with commas, for a rail each; 127.0.0.1
//   rails            this many domains, 1 … 8; as many as addresses
//   connect_s        a peer with whom no connection comes about for this long is lost; 10
//   post_deadline_s  so is one that neither takes nor sends a byte for this long, though something is under way; 30
//   and of the core: progress, spin_us, cpus
// Throws Failure(usage) for a malformed or unknown option, Failure(unavailable) where an address cannot be listened at.
std::vector<std::unique_ptr<Domain>> open_domains(Sink& sink, const Options& options);

}  // namespace aio::tcp
