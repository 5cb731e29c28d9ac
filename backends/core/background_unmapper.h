// Background unmapper: a thread that unmaps memory. Freeing the pages of 1 GiB takes 0.1–0.3 s, in which the event loop
// or the worker would serve no peer.
#pragma once

#include <pthread.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "handles.h"

namespace aio {

class BackgroundUnmapper {
 public:
  BackgroundUnmapper() = default;
  BackgroundUnmapper(const BackgroundUnmapper&) = delete;
  BackgroundUnmapper& operator=(const BackgroundUnmapper&) = delete;
  ~BackgroundUnmapper() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_one();
    if (thread_.joinable()) thread_.join();
  }

  void take(Mapping mapping) {
    if (!mapping) return;
    const std::lock_guard lock(mutex_);
    mappings_.push_back(std::move(mapping));
    // Made when it is first needed: most processes never unmap a large region.
    if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
    changed_.notify_one();
  }

  // After a fork: the thread stayed with the parent.
  void abandon() noexcept {
    if (thread_.joinable()) thread_.detach();
  }

 private:
  // munmap holds the lock of the address space while it frees: in steps, so that other threads' page faults get
  // through.
  static constexpr std::size_t kStepNbytes = 16 << 20;

  void run() {
    ::pthread_setname_np(::pthread_self(), "aio-unmapper");
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return stop_ || !mappings_.empty(); });
      std::vector<Mapping> mappings = std::exchange(mappings_, {});
      if (mappings.empty()) return;
      lock.unlock();
      for (Mapping& mapping : mappings) unmap(std::move(mapping));
      lock.lock();
    }
  }

  static void unmap(Mapping mapping) noexcept {
    auto [base, nbytes] = mapping.release();
    for (std::size_t at = 0; at < nbytes; at += kStepNbytes) {
      ::munmap(static_cast<char*>(base) + at, std::min(kStepNbytes, nbytes - at));
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Mapping> mappings_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace aio
