// Wire formats: blobs for the control connection, handshake and frames for the sockets. All integers are little endian;
// everything received from a peer is checked before use.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "../core/types.h"

namespace aio::tcp {

static_assert(std::endian::native == std::endian::little, "records are copied without conversion");

inline constexpr std::uint32_t kMagic = 0x31435441;         // "ATC1"
inline constexpr std::uint64_t kMaxFramePayload = 1 << 20;  // bounds how long one frame occupies a stream
inline constexpr std::uint32_t kMaxFramePieces = 256;       // their records fit into the read-ahead buffer
inline constexpr std::uint64_t kMaxMessageNbytes = 64 << 10;
inline constexpr std::uint32_t kMaxReads = 64;  // outstanding read requests per stream

// A peer that knows the token has read the blob, which travelled over an authenticated connection. The name identifies
// the owner, the secret is the proof.
struct Token {
  std::array<std::uint8_t, 16> name;
  std::array<std::uint8_t, 16> secret;
};

// Constant-time comparison: the duration does not depend on where the arrays differ.
inline bool equal(const std::array<std::uint8_t, 16>& one, const std::array<std::uint8_t, 16>& other) noexcept {
  unsigned difference = 0;
  for (std::size_t i = 0; i < one.size(); ++i) difference |= static_cast<unsigned>(one[i] ^ other[i]);
  return difference == 0;
}

struct EndpointBlob {
  std::uint32_t magic;
  std::uint16_t family;  // 4 or 6
  std::uint16_t port;
  std::array<std::uint8_t, 16> address;  // in network byte order; IPv4 uses the first four bytes
  Token token;
};
static_assert(sizeof(EndpointBlob) == 56);

struct KeyBlob {
  std::uint32_t magic;
  std::uint32_t slot;
  std::uint64_t secret;  // changes each time a slot is reused
  std::uint64_t nbytes;
  std::uint32_t access;
  std::uint32_t zero;
};
static_assert(sizeof(KeyBlob) == 32);

// The dialer's first bytes, and the reply. Nothing else is sent before the handshake is complete.
struct Hello {
  std::uint32_t magic, zero;
  Token to;
  std::array<std::uint8_t, 16> from;  // the dialer's name
};
struct Welcome {
  std::uint32_t magic, zero;
  std::array<std::uint8_t, 16> secret;  // the dialer's
};
static_assert(sizeof(Hello) == 56 && sizeof(Welcome) == 24);

enum class Kind : std::uint8_t {
  write = 1,    // `count` WritePieces, then their payloads
  read = 2,     // `count` ReadPieces; answered in order by `data` frames and one `done`
  data = 3,     // `value` bytes of the response to read `number`
  done = 4,     // end of the response to read `number`; `flags` is an AccessResult
  ack = 5,      // every write up to `number` is in memory, or was refused
  refused = 6,  // nothing of write `number` was placed; `flags` is an AccessResult
  message = 7,  // `value` bytes
  bye = 8,      // last frame of this direction
};

enum class AccessResult : std::uint8_t { ok = 0, stale = 1, access = 2, bounds = 3 };

inline constexpr std::uint8_t kWantsAck = 1;  // in the flags of a write

struct FrameHeader {
  Kind kind;
  std::uint8_t flags;
  std::uint16_t count;
  std::uint32_t slot;   // of the target region
  std::uint64_t value;  // the region's secret, or a number of bytes
  std::uint64_t number;
};
static_assert(sizeof(FrameHeader) == 24);

struct WritePiece {
  std::uint64_t offset;
  std::uint32_t nbytes;  // with kCounts set if the piece raises a counter
  std::uint32_t immediate;

  static constexpr std::uint32_t kCounts = 1u << 31;
  [[nodiscard]] std::uint32_t size() const noexcept { return nbytes & ~kCounts; }
  [[nodiscard]] bool counts() const noexcept { return (nbytes & kCounts) != 0; }
};
struct ReadPiece {
  std::uint64_t offset, nbytes;
};
static_assert(sizeof(WritePiece) == 16 && sizeof(ReadPiece) == 16);

inline constexpr std::size_t kMaxHeaderNbytes = sizeof(FrameHeader) + kMaxFramePieces * sizeof(WritePiece);

// Size of a header with its records, without payload.
inline std::size_t header_nbytes(const FrameHeader& header) noexcept {
  return sizeof header + std::size_t{header.count} * sizeof(WritePiece);
}

// What is malformed in a header by itself; empty if nothing is.
inline std::string_view header_error(const FrameHeader& header) noexcept {
  const bool batch = header.kind == Kind::write || header.kind == Kind::read;
  if (header.kind < Kind::write || header.kind > Kind::bye) return "a frame of an unknown kind";
  if (batch ? header.count == 0 || header.count > kMaxFramePieces : header.count != 0)
    return "a frame with too many pieces, or none";
  if (header.kind == Kind::data && (header.value == 0 || header.value > kMaxFramePayload))
    return "a response of a wrong length";
  if (header.kind == Kind::message && header.value > kMaxMessageNbytes) return "a message that is too long";
  const bool judges = header.kind == Kind::done || header.kind == Kind::refused;
  if (judges && header.flags > static_cast<std::uint8_t>(AccessResult::bounds)) return "an unknown access result";
  if (header.kind == Kind::refused && header.flags == 0) return "a refusal with the result ok";
  return {};
}

inline bool inside(std::uint64_t offset, std::uint64_t nbytes, std::uint64_t limit) noexcept {
  return nbytes <= limit && offset <= limit - nbytes;
}

template <class Record>
Record read_record(const void* bytes) noexcept {
  static_assert(std::is_trivially_copyable_v<Record>);
  Record record;
  std::memcpy(&record, bytes, sizeof record);
  return record;
}

template <class Record>
void append_record(std::vector<std::byte>& bytes, const Record& record) {
  const auto* from = reinterpret_cast<const std::byte*>(&record);
  bytes.insert(bytes.end(), from, from + sizeof record);
}

template <class Blob>
std::string pack(const Blob& blob) {
  return {reinterpret_cast<const char*>(&blob), sizeof blob};
}

template <class Blob>
Blob unpack(std::string_view bytes, const char* what) {
  if (bytes.size() == sizeof(Blob)) {
    const auto blob = read_record<Blob>(bytes.data());
    if (blob.magic == kMagic) return blob;
  }
  throw Failure(Failure::Kind::usage, what, "not a blob of tcp, or one of another version");
}

}  // namespace aio::tcp
