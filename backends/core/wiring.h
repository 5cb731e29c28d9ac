// Wiring of a core: where its counters live, and the doorbell that wakes its event loop.
#pragma once

#include <memory>

#include "counters.h"

namespace aio {

struct Wiring {
  CounterMemory* counters = nullptr;
  int doorbell_fd = -1;        // an eventfd
  std::shared_ptr<void> keep;  // owns both
};

// Counters and doorbell of this process alone; a backend whose peers map the counters brings its own.
Wiring private_wiring();

}  // namespace aio
