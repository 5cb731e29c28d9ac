// A libfabric endpoint with its message buffers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "library.h"

namespace aio::libfabric {

inline constexpr std::size_t kSlotNbytes = 32 << 10;    // one message with its header, unless the endpoint takes less
inline constexpr std::size_t kMinSlotNbytes = 8 << 10;  // efa-direct: one packet, 8928 bytes; also ofi_rxm
inline constexpr std::uint32_t kSlots = 8;              // each way, endpoint of one peer
inline constexpr std::uint32_t kSharedSlots = 64;       // each way, shared endpoint
inline constexpr std::uint32_t kImmediateSlots = 256;   // for receiving, where immediates consume receives

// An endpoint with its registered message buffers: slots [0, receives) receive, the others send.
struct Channel {
  std::uint32_t receives = 0, sends = 0;
  std::size_t slot_nbytes = kSlotNbytes;
  std::unique_ptr<std::byte[]> arena;
  std::vector<std::uint32_t> free_slots;
  // Destroyed in reverse order: the endpoint first, since it writes to the buffers.
  Handle<abi::Mr> registration;
  Handle<abi::Ep> endpoint;

  [[nodiscard]] std::byte* at(std::uint32_t slot) const noexcept { return arena.get() + slot * slot_nbytes; }
  [[nodiscard]] void* desc() const noexcept { return registration ? registration->mem_desc : nullptr; }
};

}  // namespace aio::libfabric
