// Operations that the provider has accepted.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstdint>

#include "../core/domain.h"
#include "abi.h"

namespace aio::libfabric {

inline constexpr std::size_t kMaxSegments = 8;  // of one operation; tcp takes 4, EFA 1

struct Peer;

// Purpose of an operation.
struct Purpose {
  enum class Kind : std::uint8_t { idle, piece, message, control, receive, abandoned } kind = Kind::idle;
  // With Policy::delivery. In Peer::unacknowledged while neither acknowledged nor in doubt.
  bool needs_ack = false;
  bool requests_ack = false;  // posted with FI_DELIVERY_COMPLETE
  bool completed = false;     // the provider has completed it
  bool acknowledged = false;  // the peer has it
  bool in_doubt = false;      // its connection may have broken before it arrived
  std::uint32_t pieces = 1;   // adjacent pieces of `flow`
  std::uint32_t slot = kNoSlot;
  Peer* peer = nullptr;  // null: a receive of the shared endpoint
  Flow* flow = nullptr;
  TransferId message = 0;
  std::uint64_t serial = 0;  // of the remote region
  std::uint64_t nbytes = 0;

  static constexpr std::uint32_t kNoSlot = ~0u;
  [[nodiscard]] bool slot_held() const noexcept { return slot != kNoSlot; }
};

// One operation, identified to the provider by its context. Never freed before its completion was read. With FI_CONTEXT
// and FI_CONTEXT2 the context is scratch memory of the provider, which needs no initialization.
struct Operation final : abi::Context, Purpose {
  static Operation& of(void* context) noexcept { return *static_cast<Operation*>(static_cast<abi::Context*>(context)); }
  [[nodiscard]] void* context() noexcept { return static_cast<abi::Context*>(this); }
};

// One operation made of a piece, or of several adjacent pieces of one flow. A count is due once its payload is visible,
// so one immediate may carry the counts of all of them.
struct Bundle {
  std::array<iovec, kMaxSegments> local;
  std::array<void*, kMaxSegments> descs;
  std::array<abi::RmaIov, kMaxSegments> remote;
  std::size_t segments = 0;  // pieces without payload need none
  std::uint32_t pieces = 0;
  std::uint32_t flags = 0;
  std::uint32_t immediate = 0;
  std::uint64_t nbytes = 0;
};

}  // namespace aio::libfabric
