// RAII owners of file descriptors and mappings.
#pragma once

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "types.h"

namespace aio {

class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) noexcept : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    if (this != &other) {
      reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  ~Fd() { reset(); }

  void reset() noexcept {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }
  [[nodiscard]] int get() const noexcept { return fd_; }
  explicit operator bool() const noexcept { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

inline Fd make_eventfd() {
  const int fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (fd < 0) throw Failure(Failure::Kind::provider, "eventfd", std::strerror(errno), errno);
  return Fd(fd);
}

// Makes an eventfd readable. That fails only when its counter is full, and then it is readable already.
inline void signal_eventfd(int eventfd) noexcept {
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto written = ::write(eventfd, &one, sizeof one);
}

// Makes it unreadable again.
inline void clear_eventfd(int eventfd) noexcept {
  std::uint64_t value = 0;
  [[maybe_unused]] const auto got = ::read(eventfd, &value, sizeof value);
}

class Mapping {
 public:
  Mapping() = default;
  Mapping(void* base, std::size_t nbytes) noexcept : base_(base), nbytes_(nbytes) {}
  Mapping(Mapping&& other) noexcept : base_(std::exchange(other.base_, nullptr)), nbytes_(other.nbytes_) {}
  Mapping& operator=(Mapping&& other) noexcept {
    if (this != &other) {
      reset();
      base_ = std::exchange(other.base_, nullptr);
      nbytes_ = other.nbytes_;
    }
    return *this;
  }
  ~Mapping() { reset(); }

  void reset() noexcept {
    if (base_ != nullptr) ::munmap(std::exchange(base_, nullptr), nbytes_);
  }
  std::pair<void*, std::size_t> release() noexcept { return {std::exchange(base_, nullptr), nbytes_}; }
  [[nodiscard]] void* base() const noexcept { return base_; }
  [[nodiscard]] std::size_t nbytes() const noexcept { return nbytes_; }
  explicit operator bool() const noexcept { return base_ != nullptr; }

 private:
  void* base_ = nullptr;
  std::size_t nbytes_ = 0;
};

}  // namespace aio
