// Registration of the sim backend, on the fabric that all engines of a process share. bindings.cpp has the class for
// engines on a fabric of their own.
#include "options.h"

namespace aio::sim {

namespace {

const NativeBackendRegistration registration("sim", [](const Options& options) { return set_up(nullptr, options); });

}  // namespace

}  // namespace aio::sim
