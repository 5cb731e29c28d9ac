// Registration of the tcp backend.
#include "../core/native_backend.h"
#include "domain.h"

namespace aio::tcp {

namespace {

const NativeBackendRegistration registration("tcp", open_domains);

}  // namespace

}  // namespace aio::tcp
