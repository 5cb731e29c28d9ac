// Registration of the verbs backend.
#include "../core/native_backend.h"
#include "domain.h"

namespace aio::verbs {

namespace {

const NativeBackendRegistration registration("verbs", open_domains);

}  // namespace

}  // namespace aio::verbs
