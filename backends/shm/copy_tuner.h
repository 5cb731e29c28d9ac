// Copy tuner: finds out by trying which of two ways to copy large batches is the faster one. It differs between
// machines by more than a factor of two in either direction, and the cache sizes that a processor reports do not tell
// which: nontemporal stores took 0.7 of memcpy's time on one, and 1.6 on another (benchmarks/log.md).
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace aio::shm {

class CopyTuner {
 public:
  // Smaller batches are left to memcpy: they may be in the caches, and stay there.
  static constexpr std::uint64_t kMinNbytes = 16 << 20;

  // Whether the next bytes of a batch of this size, in pieces of that size, shall be copied by nontemporal stores.
  [[nodiscard]] bool prefers_nontemporal(std::uint64_t batch_nbytes, std::uint64_t piece_nbytes) const noexcept {
    return batch_nbytes >= kMinNbytes && classes_[index(batch_nbytes, piece_nbytes)].nontemporal;
  }

  // Records how long `nbytes` of a batch took, copied as prefers_nontemporal() has returned.
  void learn(std::uint64_t batch_nbytes, std::uint64_t piece_nbytes, std::uint64_t nbytes,
             std::chrono::nanoseconds time) noexcept {
    SizeClass& size = classes_[index(batch_nbytes, piece_nbytes)];
    size.nbytes += nbytes;
    size.time += time;
    if (size.nbytes < std::max(kTurnNbytes, batch_nbytes)) return;
    double& known = size.ns_per_byte[size.nontemporal];
    const double seen = static_cast<double>(size.time.count()) / static_cast<double>(size.nbytes);
    // Pages that are touched for the first time, or an interruption, make a turn longer; nothing makes one shorter.
    known = known == 0 || seen < known ? seen : known + (seen - known) / 8;
    size.nbytes = 0;
    size.time = {};
    size.choose();
  }

 private:
  static constexpr std::uint64_t kTurnNbytes = 32 << 20;  // what one way leaves in the caches shows in the next turn
  static constexpr std::uint32_t kFewTurns = 16;
  static constexpr std::uint32_t kManyTurns = 128;
  static constexpr double kClear = 1.25;  // one way is clearly faster

  struct SizeClass {
    std::array<double, 2> ns_per_byte{};  // of memcpy and of nontemporal stores; 0: not known yet
    std::uint64_t nbytes = 0;             // of this turn
    std::chrono::nanoseconds time{};
    std::uint32_t turns = 1;  // of the faster way, before the slower one is tried again
    std::uint32_t turns_left = 1;
    bool nontemporal = true;

    // Decides which way the next turn goes.
    void choose() noexcept {
      const auto [plain, streamed] = ns_per_byte;
      if (plain == 0 || streamed == 0) {
        nontemporal = streamed == 0;
        return;
      }
      const bool better = streamed < plain;
      if (nontemporal != better) {
        nontemporal = better;
        const bool clear = std::max(plain, streamed) > kClear * std::min(plain, streamed);
        turns_left = turns = std::min(2 * turns, clear ? kManyTurns : kFewTurns);
      } else if (turns_left != 0) {
        --turns_left;
      } else {
        nontemporal = !better;  // try again: the memory, or the load of the machine, may have changed
      }
    }
  };

  static std::size_t index(std::uint64_t batch_nbytes, std::uint64_t piece_nbytes) noexcept {
    const std::size_t batch = std::min<std::size_t>(std::bit_width(batch_nbytes / kMinNbytes) - 1, kSizes - 1);
    return 2 * batch + (piece_nbytes < kLongNbytes ? 0 : 1);
  }

  static constexpr std::size_t kSizes = 8;                // 16 MiB, 32 MiB … 2 GiB and more
  static constexpr std::uint64_t kLongNbytes = 16 << 10;  // for shorter pieces it may be the other way round
  std::array<SizeClass, 2 * kSizes> classes_{};
};

}  // namespace aio::shm
