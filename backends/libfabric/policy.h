// Differences between providers.
#pragma once

#include <cstddef>

#include "endpoint.h"

namespace aio::libfabric {

// What differs between providers, and why.
struct Policy {
  // Each peer normally has an endpoint of its own, since closing it is what fences a frozen peer: over tcp that closes
  // the connections, on efa the queue pair that its writes name. With one shared endpoint, a lost peer is kept out by
  // closing registrations only, and operations in flight to it have to end by themselves.
  bool shared_endpoint = false;
  // efa: the NIC checks every packet against the key, so closing the registration suffices. Software providers (and
  // rxm's receive path) look a key up when an operation begins, and write on afterwards.
  bool device_checks_keys = false;
  // efa: once an endpoint is closed, no completion of its operations arrives.
  bool close_drops_completions = false;
  // Fabric `efa`: closing an endpoint blocks the calling thread until the device has given up the operations in flight.
  bool close_blocks = false;
  // efa: the device accepts remote accesses only from NICs whose address its owner has inserted (libfabric #11054), so
  // nothing is written before the peer has replied. The same after packets were lost, for want of another sign.
  bool needs_handshake = false;
  // efa: how often the device retries a packet that found no receive; 7: without limit. -1: the provider's default.
  int rnr_retry = -1;
  // efa-direct, built against an older rdma-core or on an older device: the immediate of a write consumes a receive.
  bool immediates_use_receives = false;
  // tcp completes a write when the local kernel has taken the bytes, so a write that the peer refuses or never reads
  // has "succeeded". FI_DELIVERY_COMPLETE makes the peer acknowledge, at the cost of one system call per write there (4
  // KiB pages: 90,000/s instead of 150,000/s). The stream is ordered, so only the last write of a batch requests it,
  // and its acknowledgement covers those before it.
  bool delivery = false;
  // tcp: closing an endpoint leaves connections behind that crash it later. See shut_down_connections().
  bool close_forgets_connections = false;
  // ofi_rxm over tcp: if the connection ends before the payload of a write with an immediate has arrived, rxm gets an
  // error without a context and dereferences it (rxm_handle_comp_error, 2.5.1): the target crashes. A write without
  // immediate is not reported, and one without payload is never incomplete. So the payload is written first, and the
  // immediate follows it on the same stream.
  bool payload_first = false;
  // ofi_rxm over verbs posts receives per connection: with a shared pool, vrb_poll_cq (2.5.1 and later) takes an
  // immediate for a message and does not report it. Before 2.7, completions that are not read when a connection closes
  // are handled after it is freed, by posting its receives again (rxm_close_conn, rxm_flush_msg_cq): a crash. So they
  // are read first. What arrives in the microseconds in between still crashes it.
  bool drain_before_close = false;
  // ofi_rxm sends messages longer than its buffers in segments. If a connection closes when some of them have arrived,
  // rxm_close_conn takes the entry of the message (deferred_sar_msgs, 2.5.1) for a receive: a crash. Longer buffers are
  // no way out: rxm zeroes 2,048 of them per endpoint.
  std::size_t slot_nbytes = kSlotNbytes;
  bool unproven = false;  // the user accepts what README.md lists
};

}  // namespace aio::libfabric
