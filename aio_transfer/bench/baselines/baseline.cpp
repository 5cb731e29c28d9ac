#include "baseline.h"

#include <limits.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <system_error>

namespace aio::baseline {

namespace {

std::int64_t now() noexcept {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

template <class Move>
Times timed(unsigned rounds, const Move& move) {
  Times times;
  times.reserve(rounds);
  for (std::int64_t begin = now(); times.size() < rounds;) {
    move();
    const std::int64_t end = now();
    times.push_back(end - begin);
    begin = end;
  }
  return times;
}

// One call may stop early, between chunks or (at 2 GiB less a page) within one: continue from there.
void write_vectors(int pid, std::vector<iovec>& here, std::vector<iovec>& there) {
  for (std::size_t at = 0; at < here.size();) {
    const std::size_t n = std::min<std::size_t>(here.size() - at, IOV_MAX);
    const ssize_t done = ::process_vm_writev(pid, &here[at], n, &there[at], n, 0);
    if (done < 0) throw std::system_error(errno, std::system_category(), "process_vm_writev");
    for (auto left = static_cast<std::size_t>(done); left != 0;) {
      const std::size_t part = std::min(left, here[at].iov_len);
      for (iovec* vector : {&here[at], &there[at]}) {
        vector->iov_base = static_cast<char*>(vector->iov_base) + part;
        vector->iov_len -= part;
      }
      left -= part;
      if (here[at].iov_len == 0) ++at;
    }
  }
}

std::vector<iovec> vectors(const std::vector<std::uint64_t>& addresses, std::uint64_t nbytes) {
  std::vector<iovec> out;
  out.reserve(addresses.size());
  for (const std::uint64_t address : addresses) out.push_back({reinterpret_cast<void*>(address), nbytes});
  return out;
}

}  // namespace

Times copy(const Batch& batch, unsigned rounds) {
  return timed(rounds, [&] {
    for (std::size_t i = 0; i < batch.sources.size(); ++i) {
      std::memcpy(reinterpret_cast<void*>(batch.targets[i]), reinterpret_cast<const void*>(batch.sources[i]),
                  batch.nbytes);
    }
  });
}

Times copy_process(int pid, const Batch& batch, unsigned rounds) {
  const auto here = vectors(batch.sources, batch.nbytes);
  const auto there = vectors(batch.targets, batch.nbytes);
  std::vector<iovec> local;
  std::vector<iovec> remote;
  return timed(rounds, [&] {
    local = here;
    remote = there;
    write_vectors(pid, local, remote);
  });
}

Bell::Bell(unsigned count, std::int64_t interval_us) : fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (!fd_) throw std::system_error(errno, std::system_category(), "eventfd");
  thread_ = std::thread([this, count, interval_us] {
    for (unsigned rings = 0; rings < count && !stop_.load(std::memory_order_relaxed);) {
      std::this_thread::sleep_for(std::chrono::microseconds(interval_us));
      // acquire pairs with answer(). Not answered yet: two rings would be one wake-up.
      if (rung_.load(std::memory_order_acquire) != 0) continue;
      ++rings;
      const std::uint64_t one = 1;
      rung_.store(now(), std::memory_order_release);  // before the write below, so that answer() finds it
      [[maybe_unused]] const auto written = ::write(fd_.get(), &one, sizeof one);
    }
  });
}

Bell::~Bell() {
  stop_.store(true, std::memory_order_relaxed);
  thread_.join();
}

std::int64_t Bell::answer() noexcept {
  std::uint64_t rings = 0;
  [[maybe_unused]] const auto got = ::read(fd_.get(), &rings, sizeof rings);
  return rung_.exchange(0, std::memory_order_acq_rel);  // reads the time of the ring, and allows the next one
}

}  // namespace aio::baseline
