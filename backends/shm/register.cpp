// Registration of the shm backend. Its counters lie in the segment that peers map.
#include "../core/native_backend.h"
#include "domain.h"

namespace aio::shm {

namespace {

BackendSetup open(const Options& options) {
  check_option_names("shm", options, {});
  auto segment = std::make_shared<OwnSegment>();
  const auto open_domains = [segment](Sink& sink) {
    std::vector<std::unique_ptr<Domain>> domains;
    domains.push_back(std::make_unique<ShmDomain>(sink, segment));
    return domains;
  };
  return {open_domains, Wiring{&segment->get()->counters, segment->doorbell_fd(), segment}};
}

const NativeBackendRegistration registration("shm", open);

}  // namespace

}  // namespace aio::shm
