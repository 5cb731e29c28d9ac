// What differs between providers.
#pragma once

#include <cstddef>

#include "endpoint.h"

namespace aio::libfabric {

// What differs between providers, and why.
struct Policy {
  // Each peer has an endpoint of its own, since closing that is what keeps out a peer that thaws: over tcp it closes
  // the connections, on efa the queue pair that its writes name. Where all share one, a lost peer is kept out by
  // closing registrations alone, and what is under way to it has to end by itself.
  bool shared_endpoint = false;
  // efa: the NIC checks every packet against the key, so closing the registration is enough. The software providers
  // (and rxm's receive path) look a key up when an operation begins and keep writing afterwards.
  bool device_checks_keys = false;
  // efa: once an endpoint is closed, nothing comes of what was posted to it.
  bool close_drops_completions = false;
  // The fabric `efa`: closing an endpoint waits, on the calling thread, until the device has given up what is under
  // way.
  bool close_blocks = false;
  // efa: the device takes remote accesses only from those whose address its owner has inserted (libfabric #11054), so
  // nothing is written before the peer has answered. Nor, for want of another sign, after packets were lost.
  bool needs_handshake = false;
  // efa: how often the device offers a packet again that found no receive; 7 is for ever. -1: the provider's choice.
  int rnr_retry = -1;
  // efa-direct built against an older rdma-core, or on an older device: a write's immediate uses a receive up.
  bool immediates_use_receives = false;
  // tcp completes a write when the kernel has taken the bytes: one that the peer then refuses, or never reads, has
  // "succeeded". With FI_DELIVERY_COMPLETE the peer acknowledges, at the price of a system call for each write there
  // (4 KiB pages: 90,000/s instead of 150,000). The stream is ordered, so only the last of a batch asks for it, and
  // vouches for those before it.
  bool delivery = false;
  // tcp: closing an endpoint leaves connections behind that crash it later. See end_connections().
  bool close_forgets_connections = false;
  // ofi_rxm over tcp: a write that carries an immediate, and whose connection ends before its payload is in, is told to
  // rxm as an error without a context, which rxm follows (rxm_handle_comp_error, 2.5.1): a crash of its target. A write
  // without one is not told, and one without payload is never half in. So the payload goes ahead, and over a stream the
  // immediate comes after it.
  bool payload_first = false;
  // ofi_rxm over verbs has receives for each connection, since what takes one of a shared pool is taken for a message
  // there (vrb_poll_cq, 2.5.1 and later), and an immediate is never told. Before 2.7, what has come and is not read as
  // a connection closes is followed once that is freed, by posting its receive again (rxm_close_conn,
  // rxm_flush_msg_cq). So it is read first. What comes in the microseconds between still crashes it.
  bool drain_before_close = false;
  // ofi_rxm cuts what exceeds its buffers in segments. A message of which some have come as its connection closes is
  // taken for something else, and followed (rxm_close_conn: deferred_sar_msgs, 2.5.1): a crash. And it fills 2,048
  // buffers with zeros for each endpoint, which is why they are not longer.
  std::size_t slot_nbytes = kSlotNbytes;
  bool unproven = false;  // the caller takes what README.md says against it
};

}  // namespace aio::libfabric
