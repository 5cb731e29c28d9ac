// Send queue of a QP, and the requests in flight on it.
//
// Work requests complete in posting order, and only signaled ones report it: one completion stands for all requests
// before it. A slot is free again when a completion at or behind it was polled, not when its own request ended. Every
// chain ends with a signaled request, so no slot waits for a completion that never comes.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "../core/domain.h"
#include "device.h"

namespace aio::verbs {

inline constexpr std::uint32_t kNoSlot = ~0u;

// A work request in flight.
struct Request {
  enum class Kind : std::uint8_t { piece, flush, message, control } kind = Kind::piece;
  Flow* flow = nullptr;            // piece
  TransferId message = 0;          // message
  std::uint64_t nbytes = 0;        // payload
  std::uint64_t confirmed_by = 0;  // number of the request whose success proves this one's; usually its own
  std::uint32_t slot = kNoSlot;
};

struct Queue {
  Handle<abi::Qp> qp;
  std::uint32_t id = 0;     // in the wr_id of its requests; unlike a QP number it is never reused
  std::uint32_t depth = 0;  // slots
  std::uint32_t inline_nbytes = 0;
  std::uint64_t head = 0;     // number of the next request
  std::uint64_t tail = 0;     // number of the oldest request that has not retired
  std::vector<Request> ring;  // size: a power of two, at least `depth`
  // A request has failed: what follows was flushed, and no earlier request is implied to have succeeded.
  bool failed = false;
  bool receives_returned = false;  // the device has reported that it holds no more receives for this QP

  [[nodiscard]] std::uint32_t in_flight() const noexcept { return static_cast<std::uint32_t>(head - tail); }
  [[nodiscard]] std::uint32_t room() const noexcept { return depth - in_flight(); }
  [[nodiscard]] Request& at(std::uint64_t number) noexcept { return ring[number & (ring.size() - 1)]; }
};

inline constexpr std::uint32_t kMaxChain = 32;  // pieces per call into the device's driver

// A chain of work requests before it is posted: one per piece, then optionally a read that flushes them.
struct Chain {
  std::array<abi::SendWr, kMaxChain + 1> requests;  // uninitialized from `total` on
  std::array<abi::Sge, kMaxChain + 1> memory;
  std::uint32_t pieces = 0, total = 0;
  const Piece* delivered = nullptr;  // last piece whose payload must be visible when it is reported
  std::uint32_t last_delivered = 0;  // its position
};

// A wr_id is the queue's id (24 bits) and the request's number (40 bits: 12 days at a million per second; the distance
// to the tail gives the high bits). Receives have reserved ids.
inline constexpr std::uint32_t kImmediateReceive = 0xffffff, kMessageReceive = 0xfffffe, kMaxQueues = 0xfffff0;
inline constexpr std::uint64_t kNumberMask = (1ull << 40) - 1;

constexpr std::uint64_t make_wr_id(std::uint32_t queue, std::uint64_t number) noexcept {
  return std::uint64_t{queue} << 40 | (number & kNumberMask);
}
constexpr std::uint32_t queue_of(std::uint64_t wr_id) noexcept { return static_cast<std::uint32_t>(wr_id >> 40); }

}  // namespace aio::verbs
