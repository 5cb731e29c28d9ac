#include "native_backend.h"

#include <cstdio>
#include <cstdlib>
#include <map>

namespace aio {

namespace {

using Setup = std::function<BackendSetup(const Options&)>;

// A function's static, since initialisers of different files run in no defined order: the first registration makes it.
std::map<std::string, Setup>& table() {
  static std::map<std::string, Setup> backends;
  return backends;
}

void add(const char* name, Setup setup) {
  if (table().emplace(name, std::move(setup)).second) return;
  std::fprintf(stderr, "aio-transfer: two native backends are named %s\n", name);
  std::abort();  // an exception from an initialiser would end the process without a word
}

}  // namespace

NativeBackendRegistration::NativeBackendRegistration(const char* name, BackendOpener open) { add(name, open); }

NativeBackendRegistration::NativeBackendRegistration(
    const char* name, std::vector<std::unique_ptr<Domain>> (*open_domains)(Sink&, const Options&)) {
  add(name, [open_domains](const Options& options) {
    return BackendSetup{[open_domains, options](Sink& sink) { return open_domains(sink, options); }, std::nullopt};
  });
}

BackendSetup set_up_backend(const std::string& name, const Options& options) {
  const auto found = table().find(name);
  if (found != table().end()) return found->second(options);
  std::string built_in;
  for (const auto& [other, setup] : table()) built_in += (built_in.empty() ? "" : ", ") + other;
  throw Failure(Failure::Kind::unavailable, name,
                "this build has no such native backend, only " + (built_in.empty() ? "none" : built_in));
}

}  // namespace aio
