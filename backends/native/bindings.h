// Python bindings that a backend adds to the native module, registered in the backend's own folder.
#pragma once

#include <nanobind/nanobind.h>

namespace aio::native {

// A static object of this class makes the module call `bind` when it is imported, after it has bound NativeCore. See
// ../core/native_backend.h for why its initialiser runs.
class BindingsRegistration {
 public:
  explicit BindingsRegistration(void (*bind)(nanobind::module_&));
};

}  // namespace aio::native
