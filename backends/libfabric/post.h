// Operations in the provider's hands.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstdint>

#include "../core/domain.h"
#include "abi.h"

namespace aio::libfabric {

inline constexpr std::size_t kMaxSegments = 8;  // of one operation; tcp takes 4, EFA 1

struct Peer;

// What an operation is for.
struct Purpose {
  enum class Kind : std::uint8_t { idle, piece, message, control, receive, abandoned } kind = Kind::idle;
  // Under Policy::delivery. In Peer::unconfirmed while `ordered` and not `confirmed` and not `doubtful`.
  bool needs_ack = false;
  bool requests_ack = false;  // asks the peer for an acknowledgement
  bool completed = false;     // the provider is done with it
  bool acknowledged = false;  // the peer has it
  bool in_doubt = false;      // its connection may have broken behind it
  std::uint32_t pieces = 1;   // of `flow`, next to each other
  std::uint32_t slot = kNoSlot;
  Peer* peer = nullptr;  // null: a receive on the shared endpoint
  Flow* flow = nullptr;
  TransferId message = 0;
  std::uint64_t serial = 0;  // of the remote region
  std::uint64_t nbytes = 0;

  static constexpr std::uint32_t kNoSlot = ~0u;
  [[nodiscard]] bool slot_held() const noexcept { return slot != kNoSlot; }
};

// One operation in the provider's hands, named to it by its context. Never freed before its completion was read. Under
// FI_CONTEXT and FI_CONTEXT2 the provider scribbles over the context, which therefore never needs to be wiped.
struct Operation final : abi::Context, Purpose {
  static Operation& of(void* context) noexcept { return *static_cast<Operation*>(static_cast<abi::Context*>(context)); }
  [[nodiscard]] void* context() noexcept { return static_cast<abi::Context*>(this); }
};

// What goes to the provider as one operation: a piece, or several neighbours of one flow. A count is due once its
// payload is visible, so that one immediate may stand for the counts of all.
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
