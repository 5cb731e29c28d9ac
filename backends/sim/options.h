// Options of the simulated fabric and of the engines on it.
#pragma once

#include <memory>
#include <vector>

#include "../core/native_backend.h"
#include "fabric.h"

namespace aio::sim {

struct Settings {
  Faults faults;
  std::uint64_t seed = 0;  // random if not given
  unsigned nics = 1;
};

// Throws Failure(usage) for an unknown or malformed option.
Settings settings_of(const Options& options);

// Engines on this fabric, which drives their domains itself if it is stepped; null: on the one that all engines of this
// process share unless they name another. The first engine makes that one, with its own options.
BackendSetup set_up(const std::shared_ptr<Fabric>& fabric, const Options& options);

}  // namespace aio::sim
