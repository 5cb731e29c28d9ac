// Records that cross the driver seam, laid out as the Python side declares them, and the failures that domains throw.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace aio {

using PeerNumber = std::uint32_t;
using RegionNumber = std::uint32_t;
using TransferId = std::uint64_t;

enum class Op : std::uint16_t { write = 0, read = 1 };

inline constexpr std::uint32_t kPieceImmediate = 1;
// The piece is reported as stopped only when its payload is visible in the target's memory, whichever rail a later
// piece takes.
inline constexpr std::uint32_t kPieceDelivered = 2;

struct Piece {
  std::uint64_t local_addr;
  std::uint64_t remote_offset;
  std::uint64_t nbytes;
  std::uint32_t immediate;
  std::uint32_t flags;

  [[nodiscard]] bool has_immediate() const noexcept { return (flags & kPieceImmediate) != 0; }
  [[nodiscard]] bool needs_delivery() const noexcept { return (flags & kPieceDelivered) != 0; }
};
static_assert(sizeof(Piece) == 32);

struct Run {
  PeerNumber peer;
  std::uint16_t rail;
  Op op;
  RegionNumber local_region;
  RegionNumber remote_region;
  std::uint32_t first;
  std::uint32_t count;
  std::uint32_t after;  // so many runs just before this one must have succeeded before it starts
};
static_assert(sizeof(Run) == 28);

enum class EventKind : std::uint8_t {
  transfer = 0,
  counter = 1,
  message = 2,
  released = 3,
  fenced = 4,
  peer_failed = 5,
  sent = 6,
};

enum class Status : std::uint8_t { ok = 0, peer_lost = 1, stale_region = 2, provider = 3, aborted = 4 };

struct Event {
  EventKind kind{};
  Status status{};
  std::uint64_t id{};
  std::int64_t code{};
  std::string payload;
};

// How pieces have ended. `reason` is the provider's own text.
struct Outcome {
  Status status = Status::ok;
  std::int64_t code = 0;
  std::string reason;

  [[nodiscard]] bool ok() const noexcept { return status == Status::ok; }
};
// Success. An Outcome holds a string, so that none is made for each piece that has ended well.
inline const Outcome kDone;

inline constexpr unsigned access_remote_read = 1;
inline constexpr unsigned access_remote_write = 2;

struct LocalMemory {
  std::uint64_t addr;
  std::uint64_t nbytes;
  unsigned access;
  int fd;  // -1: neither memory from the engine nor a dma-buf
  std::uint64_t fd_offset;
  bool is_dmabuf = false;
  int cuda_device = -1;  // of a dma-buf: the device that owns it; -1 where this process reaches it at addr
};

struct RemoteMemory {
  PeerNumber peer;
  std::uint64_t nbytes;
  std::string keys;  // for one rail: exactly what register_local returned at its owner
  std::vector<int> fds;
};

struct Endpoint {
  std::string blob;
  std::vector<int> fds;  // borrowed
};

// Error of the control path; the binding turns it into the Python error of the same fault.
class Failure : public std::runtime_error {
 public:
  enum class Kind { unavailable, provider, stale, usage, peer_lost };

  Failure(Kind kind, std::string subject, std::string reason, std::int64_t code = 0, std::string hint = {})
      : std::runtime_error(subject + ": " + reason),
        kind(kind),
        subject(std::move(subject)),
        reason(std::move(reason)),
        hint(std::move(hint)),
        code(code) {}

  Kind kind;
  std::string subject;  // the backend, the operation, or the region
  std::string reason;   // in words; for `provider`, the code's name
  std::string hint;     // the command that fixes it
  std::int64_t code;
};

}  // namespace aio
