#include "wiring.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "handles.h"

namespace aio {

Wiring private_wiring() {
  struct Kept {
    Mapping memory;
    Fd doorbell;
  };
  void* base = ::mmap(nullptr, sizeof(CounterMemory), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) {
    throw Failure(Failure::Kind::provider, "mmap of the counter table", std::strerror(errno), errno);
  }
  auto kept = std::make_shared<Kept>(Kept{Mapping(base, sizeof(CounterMemory)), make_eventfd()});
  return {static_cast<CounterMemory*>(base), kept->doorbell.get(), kept};
}

}  // namespace aio
