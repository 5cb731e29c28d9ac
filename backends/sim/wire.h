// Wire format of the simulated fabric: packets, and the blob by which peers find each other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "../core/types.h"

namespace aio::sim {

// Prefix of every fabric's socket address; what follows is its process and its id.
inline constexpr std::string_view kAddressPrefix = "aio-transfer-sim-";
inline constexpr std::uint64_t kMagic = 0x316d69732d6f6961;   // "aio-sim1"
inline constexpr std::uint64_t kMaxMessageNbytes = 32 << 10;  // and the largest MTU

using NodeId = std::uint32_t;
using Key = std::uint64_t;

enum class Kind : std::uint8_t {
  write = 0,
  read = 1,  // requests bytes
  data = 2,  // brings them
  message = 3,
  ack = 4,
  dropped = 5,  // the rest of a write that fails half-way: carries nothing, and its piece will not count
};

// Plain, so that it crosses between processes as it is, followed by the payload.
struct Header {
  Kind kind;
  Status status;  // of an ack
  std::uint16_t has_immediate;
  std::uint32_t immediate;  // of the piece, counted when all its packets are in
  NodeId from, to;
  std::uint64_t link;        // the receiver's id of the connection
  std::uint64_t reply_link;  // the sender's
  std::uint64_t operation;   // the initiator's id of the piece or message; echoed
  Key key;                   // of the region at the receiver
  std::uint64_t offset;      // in that region; of data: in the piece
  std::uint64_t at;          // of a read: where in the piece the answer goes
  std::uint32_t nbytes;
  std::uint32_t packets;  // of the piece, in all
};
static_assert(sizeof(Header) == 72);

struct Packet {
  Header header{};
  PeerNumber peer = 0;                // the receiver, as the sender numbers its peers
  const std::byte* source = nullptr;  // read when the packet leaves
  std::string payload;
};

struct EndpointBlob {
  std::uint64_t magic, fabric, link;
  NodeId node;
  std::uint32_t length;  // of the address
  char address[96];      // of the fabric's socket; empty where other processes cannot reach it
};

}  // namespace aio::sim
