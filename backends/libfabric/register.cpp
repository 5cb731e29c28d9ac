// Registration of the libfabric backend.
#include "../core/native_backend.h"
#include "domain.h"

namespace aio::libfabric {

namespace {

const NativeBackendRegistration registration("libfabric", open_domains);

}  // namespace

}  // namespace aio::libfabric
