// Wire formats: blobs for the control connection, frames for the message QPs. All integers are little endian;
// everything received from a peer is checked before use.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "../core/types.h"
#include "gid.h"

namespace aio::verbs {

static_assert(std::endian::native == std::endian::little, "blobs are copied without conversion");

struct KeyBlob {
  std::uint64_t addr;
  std::uint64_t serial;  // ours; unlike a key it is never reused
  std::uint32_t rkey;
  std::uint32_t access;  // access_remote_read | access_remote_write
};
static_assert(sizeof(KeyBlob) == 24);

inline constexpr std::uint32_t kMagic = 0x31425641;  // "AVB1"
inline constexpr std::size_t kMaxGids = 64;

struct EndpointHead {
  std::uint32_t magic;
  std::uint16_t rail, rails;  // index of this NIC, and number of NICs of its engine
  std::uint32_t data_qpn, data_psn, message_qpn, message_psn;
  std::uint64_t flush_addr;  // readable host memory behind this NIC: see kPieceDelivered
  std::uint32_t flush_rkey;
  std::uint32_t slot_nbytes;  // longest frame that its receives take
  std::uint16_t lid;
  std::uint8_t link_layer, mtu, max_dest_rd_atomic, grh_required;
  std::uint16_t gids;
};
static_assert(sizeof(EndpointHead) == 48);

struct EndpointBlob {
  EndpointHead head{};
  std::vector<PortGid> gids;
};

// In the immediate of a frame.
enum class FrameKind : std::uint32_t {
  message = 1,
  revoke = 2,   // serial of a sender's region: stop using it, and acknowledge once nothing posted before is in flight
  revoked = 3,  // the acknowledgement
};

template <class Record>
Record read_record(std::string_view bytes) noexcept {
  Record record;
  std::memcpy(&record, bytes.data(), sizeof record);
  return record;
}

template <class Record>
std::string to_bytes(const Record& record) {
  return {reinterpret_cast<const char*>(&record), sizeof record};
}

inline std::string pack(const EndpointBlob& blob) {
  EndpointHead head = blob.head;
  head.gids = static_cast<std::uint16_t>(blob.gids.size());
  std::string bytes = to_bytes(head);
  for (const PortGid& gid : blob.gids) {
    bytes += static_cast<char>(gid.type);
    bytes.append(reinterpret_cast<const char*>(gid.raw.data()), gid.raw.size());
  }
  return bytes;
}

inline EndpointBlob unpack_endpoint(std::string_view bytes) {
  const auto refuse = [](const char* why) { return Failure(Failure::Kind::usage, "connect", why); };
  EndpointBlob blob;
  if (bytes.size() < sizeof blob.head) throw refuse("not an endpoint of verbs: too short");
  blob.head = read_record<EndpointHead>(bytes);
  bytes.remove_prefix(sizeof blob.head);
  const EndpointHead& head = blob.head;
  if (head.magic != kMagic) throw refuse("not an endpoint of verbs, or one of another version");
  if (head.rails == 0 || head.rail >= head.rails) throw refuse("the endpoint's rail number is out of range");
  if (head.mtu < 1 || head.mtu > 5) throw refuse("the endpoint's MTU code is invalid");
  if (head.gids > kMaxGids || bytes.size() != 17u * head.gids)
    throw refuse("the endpoint's size does not match its contents");
  for (; !bytes.empty(); bytes.remove_prefix(17)) {
    PortGid gid{static_cast<GidType>(bytes[0]), {}, 0};
    std::copy_n(bytes.begin() + 1, gid.raw.size(), gid.raw.begin());
    blob.gids.push_back(gid);
  }
  return blob;
}

}  // namespace aio::verbs
