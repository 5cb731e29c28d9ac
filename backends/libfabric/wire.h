// Wire formats: blobs for the control connection, frames over the fabric. All integers are little endian; everything
// received from a peer is checked before use.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <set>
#include <string>
#include <string_view>

#include "../core/types.h"

namespace aio::libfabric {

static_assert(std::endian::native == std::endian::little, "blobs are copied without conversion");

struct KeyBlob {
  std::uint64_t base;    // virtual address, or 0 if offsets count from the start of the region
  std::uint64_t key;     // libfabric's
  std::uint64_t serial;  // ours; unlike a key it is never reused
};

struct EndpointHead {
  std::uint32_t magic, addr_format;
  std::uint64_t token;
  KeyBlob empty_target;
  std::uint16_t provider_nbytes, address_nbytes;
};

struct EndpointBlob {
  EndpointHead head{};
  std::string provider, address;
};

inline constexpr std::uint32_t kMagic = 0x32464c41;  // "ALF2"

enum class FrameKind : std::uint32_t { message = 1, query = 2, reply = 3 };

struct FrameHeader {
  std::uint64_t token;  // the receiver's, so that even its first message has a known sender
  FrameKind kind;
  std::uint32_t revoked;  // query: how many of the following serials are revoked; it asks about the others
  std::uint64_t number;
  std::uint64_t from;  // the sender's: a peer with more NICs sends from each of them
};
static_assert(sizeof(FrameHeader) == 32);

template <class Record>
Record read_record(std::string_view bytes) noexcept {
  Record record;
  std::memcpy(&record, bytes.data(), sizeof record);
  return record;
}

template <class Record>
void append_record(std::string& bytes, const Record& record) {
  bytes.append(reinterpret_cast<const char*>(&record), sizeof record);
}

inline constexpr std::size_t kEndpointHeadNbytes = 4 + 4 + 8 + 24 + 2 + 2;

inline std::string pack(const EndpointBlob& blob) {
  std::string bytes(reinterpret_cast<const char*>(&blob.head), kEndpointHeadNbytes);
  return bytes + blob.provider + blob.address;
}

inline EndpointBlob unpack_endpoint(std::string_view bytes) {
  const auto refuse = [](const char* why) { return Failure(Failure::Kind::usage, "connect", why); };
  EndpointBlob blob;
  if (bytes.size() < kEndpointHeadNbytes) throw refuse("not an endpoint of libfabric: too short");
  std::memcpy(&blob.head, bytes.data(), kEndpointHeadNbytes);
  if (blob.head.magic != kMagic) throw refuse("not an endpoint of libfabric, or one of another version");
  bytes.remove_prefix(kEndpointHeadNbytes);
  if (bytes.size() != std::size_t{blob.head.provider_nbytes} + blob.head.address_nbytes) {
    throw refuse("the endpoint's size does not match its contents");
  }
  blob.provider = bytes.substr(0, blob.head.provider_nbytes);
  blob.address = bytes.substr(blob.head.provider_nbytes);
  return blob;
}

inline std::set<std::uint64_t> read_serials(std::string_view bytes) {
  std::set<std::uint64_t> serials;
  for (; bytes.size() >= 8; bytes.remove_prefix(8)) serials.insert(read_record<std::uint64_t>(bytes));
  return serials;
}

}  // namespace aio::libfabric
