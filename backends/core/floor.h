// What the machine gives without us: raw loops to measure beside the engine. Never linked into the data path.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "handles.h"

namespace aio::floor {

// Chunk i goes from sources[i] to targets[i]; addresses, and every chunk of the same size.
struct Batch {
  std::vector<std::uint64_t> sources;
  std::vector<std::uint64_t> targets;
  std::uint64_t nbytes;
};

// Nanoseconds per round, each of which moves the whole batch.
using Times = std::vector<std::int64_t>;

// Memory that both processes map: one memcpy per chunk.
Times copy(const Batch& batch, unsigned rounds);

// Memory of another process: process_vm_writev with as many chunks per call as the kernel takes. Throws
// std::system_error.
Times copy_process(int pid, const Batch& batch, unsigned rounds);

// A thread that writes an eventfd now and then: what a wake-up of an event loop costs at the least.
class Bell {
 public:
  Bell(unsigned count, std::int64_t interval_us);
  ~Bell();

  [[nodiscard]] int fileno() const noexcept { return fd_.get(); }
  // CLOCK_MONOTONIC of the ring, in nanoseconds; the next one comes only after this call.
  [[nodiscard]] std::int64_t answer() noexcept;

 private:
  Fd fd_;
  std::atomic<std::int64_t> rung_{0};
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace aio::floor
