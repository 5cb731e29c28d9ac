// Registry of native backends: each registers its opener by name, in its own folder, and no other folder names it.
//
// A backend is registered by a static object in a source file of its folder:
//
//   const NativeBackendRegistration registration("tcp", open_domains);
//
// Its initialiser runs when the Python module is loaded. That holds because every source file is compiled straight into
// the module: from a static library, the linker would drop an object file that nothing refers to, with its
// registration.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "domain.h"
#include "options.h"
#include "wiring.h"

namespace aio {

// What a backend hands to the core that will drive it.
struct BackendSetup {
  DomainOpener open_domains;     // called once, with the core as the sink
  std::optional<Wiring> wiring;  // absent: private_wiring()
  bool stepped = false;          // the event loop moves its domains: no worker thread, no spinning
};

// Checks the options and prepares to open. May throw Failure, as may the opener that it returns. Neither is called with
// the interpreter's lock held: opening a device takes up to seconds.
using BackendOpener = BackendSetup (*)(const Options&);

class NativeBackendRegistration {
 public:
  NativeBackendRegistration(const char* name, BackendOpener open);
  // For a backend that needs only domains: they get private_wiring() and a worker.
  NativeBackendRegistration(const char* name,
                            std::vector<std::unique_ptr<Domain>> (*open_domains)(Sink&, const Options&));
};

// Throws Failure(unavailable) if no backend of this name is built in.
BackendSetup set_up_backend(const std::string& name, const Options& options);

}  // namespace aio
