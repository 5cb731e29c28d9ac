// Options of the core itself: how its worker waits, and where it runs. The same for every native backend.
#pragma once

#include <chrono>
#include <vector>

#include "options.h"

namespace aio {

struct CoreOptions {
  std::chrono::microseconds spin{0};  // how long an idle worker polls before it blocks
  bool always_spin = false;           // it never blocks
  std::vector<int> cpus;              // where the worker may run; empty: anywhere
  bool stepped = false;               // no worker: every drain() runs one pass, on its caller's thread
};

// Reads `progress` ("adaptive" or "spin"), `spin_us` (0 … 60000000) and `cpus` (CPU numbers, separated by commas).
CoreOptions core_options(const char* backend, const Options& options);

}  // namespace aio
