// Baselines of the benchmark: what the machine does without the engine, in raw loops. Never linked into the data plane.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "../../../backends/core/handles.h"

namespace aio::baseline {

// Chunks of one size: number i goes from the address sources[i] to the address targets[i].
struct Batch {
  std::vector<std::uint64_t> sources;
  std::vector<std::uint64_t> targets;
  std::uint64_t nbytes;
};

// Nanoseconds per round, each of which moves the whole batch.
using Times = std::vector<std::int64_t>;

// Copies within memory that both processes map: one memcpy per chunk.
Times copy(const Batch& batch, unsigned rounds);

// Copies into memory of another process: process_vm_writev with as many chunks per call as the kernel takes. Throws
// std::system_error.
Times copy_process(int pid, const Batch& batch, unsigned rounds);

// A thread that writes an eventfd at intervals: the least that waking an event loop can cost.
class Bell {
 public:
  Bell(unsigned count, std::int64_t interval_us);
  ~Bell();

  [[nodiscard]] int fileno() const noexcept { return fd_.get(); }
  // Returns when the last ring was, in nanoseconds of CLOCK_MONOTONIC; the next one comes only after this call.
  [[nodiscard]] std::int64_t answer() noexcept;

 private:
  Fd fd_;
  std::atomic<std::int64_t> rung_{0};
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace aio::baseline
