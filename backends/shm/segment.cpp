#include "segment.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "../core/types.h"

namespace aio::shm {

namespace {

[[noreturn]] void unavailable(const char* call, const char* hint) {
  throw Failure(Failure::Kind::unavailable, "shm", std::string(call) + ": " + std::strerror(errno), errno, hint);
}

}  // namespace

OwnSegment::OwnSegment()
    : memory_(::memfd_create("aio-transfer", MFD_CLOEXEC | MFD_ALLOW_SEALING)),
      doorbell_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      process_(static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0))) {
  if (!memory_) unavailable("memfd_create", "ulimit -n 65536");
  if (!doorbell_) unavailable("eventfd", "ulimit -n 65536");
  if (!process_) unavailable("pidfd_open", "use Linux 5.3 or newer");
  if (::ftruncate(memory_.get(), sizeof(Segment)) != 0) unavailable("ftruncate", "free some memory");
  ::fcntl(memory_.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  void* base = ::mmap(nullptr, sizeof(Segment), PROT_READ | PROT_WRITE, MAP_SHARED, memory_.get(), 0);
  if (base == MAP_FAILED) unavailable("mmap", "free some memory");
  mapping_ = Mapping(base, sizeof(Segment));
  get()->magic = kSegmentMagic;
  get()->nbytes = sizeof(Segment);
}

Mapping map_sealed(int fd, std::uint64_t offset, std::uint64_t nbytes, bool writable, const char* what) {
  struct stat status{};
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
    throw Failure(Failure::Kind::usage, what, "the peer's memory is not sealed against shrinking");
  }
  if (::fstat(fd, &status) != 0 || nbytes > static_cast<std::uint64_t>(status.st_size) ||
      offset > static_cast<std::uint64_t>(status.st_size) - nbytes) {
    throw Failure(Failure::Kind::usage, what, "the peer's memory is smaller than it states");
  }
  // mmap takes offsets of whole pages; an allocation always begins on one.
  if (offset % 4096 != 0) throw Failure(Failure::Kind::usage, what, "the peer's memory is not aligned to a page");
  void* base = ::mmap(nullptr, nbytes, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd,
                      static_cast<off_t>(offset));
  if (base == MAP_FAILED) throw Failure(Failure::Kind::provider, what, std::strerror(errno), errno);
  return {base, nbytes};
}

}  // namespace aio::shm
