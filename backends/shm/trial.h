// Which of two ways to copy large batches is the faster one, found out by using both. It differs between machines by
// more than two in either direction, and what a processor says of its caches does not tell: streaming stores took 0.7
// of memcpy's time on one, and 1.6 on another (benchmarks/log.md).
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace aio::shm {

class Trial {
 public:
  // Smaller batches are left to memcpy: they may be in the caches, and stay there.
  static constexpr std::uint64_t kLeastNbytes = 16 << 20;

  // Whether what is copied next, of a batch of this size and in pieces of that, shall go past the caches.
  [[nodiscard]] bool streams(std::uint64_t batch_nbytes, std::uint64_t piece_nbytes) const noexcept {
    return batch_nbytes >= kLeastNbytes && sizes_[index(batch_nbytes, piece_nbytes)].streams;
  }

  // So much of a batch took so long, the way that streams() has said.
  void learn(std::uint64_t batch_nbytes, std::uint64_t piece_nbytes, std::uint64_t nbytes,
             std::chrono::nanoseconds time) noexcept {
    Size& size = sizes_[index(batch_nbytes, piece_nbytes)];
    size.nbytes += nbytes;
    size.time += time;
    if (size.nbytes < std::max(kTurnNbytes, batch_nbytes)) return;
    double& known = size.ns_per_byte[size.streams];
    const double seen = static_cast<double>(size.time.count()) / static_cast<double>(size.nbytes);
    // Pages that were touched for the first time, or an interruption, make a turn longer; nothing makes one shorter.
    known = known == 0 || seen < known ? seen : known + (seen - known) / 8;
    size.nbytes = 0;
    size.time = {};
    const auto [plain, streaming] = size.ns_per_byte;
    if (plain == 0 || streaming == 0) {
      size.streams = streaming == 0;
      return;
    }
    const bool better = streaming < plain;
    if (size.streams != better) {
      size.streams = better;
      const bool clear = std::max(plain, streaming) > kClear * std::min(plain, streaming);
      size.turns_left = size.turns = std::min(2 * size.turns, clear ? kManyTurns : kFewTurns);
    } else if (size.turns_left != 0) {
      --size.turns_left;
    } else {
      size.streams = !better;  // once more: the memory, or what else runs here, may have changed
    }
  }

 private:
  static constexpr std::uint64_t kTurnNbytes = 32 << 20;  // what is left in the caches by one way shows in the next
  static constexpr std::uint32_t kFewTurns = 16;
  static constexpr std::uint32_t kManyTurns = 128;
  static constexpr double kClear = 1.25;

  struct Size {
    std::array<double, 2> ns_per_byte{};  // 0: not known yet
    std::uint64_t nbytes = 0;
    std::chrono::nanoseconds time{};
    std::uint32_t turns = 1;  // of the faster way, before the slower one has its next
    std::uint32_t turns_left = 1;
    bool streams = true;
  };

  static std::size_t index(std::uint64_t batch_nbytes, std::uint64_t piece_nbytes) noexcept {
    const std::size_t batch = std::min<std::size_t>(std::bit_width(batch_nbytes / kLeastNbytes) - 1, kSizes - 1);
    return 2 * batch + (piece_nbytes < kLongNbytes ? 0 : 1);
  }

  static constexpr std::size_t kSizes = 8;                // 16 MiB, 32 … 2 GiB and more
  static constexpr std::uint64_t kLongNbytes = 16 << 10;  // of shorter pieces it may be the other way round
  std::array<Size, 2 * kSizes> sizes_{};
};

}  // namespace aio::shm
