// Worker: the thread that drives the domains, and the lock that it shares with callers. It never takes the
// interpreter's lock. Where descriptors notify of arrivals, the event loop handles those that come while both sleep
// (loop_epoll.h).
//
// States of the thread, and what leads from one to the next:
//
//                      moved something
//                         +------+
//                         |      v
//        +------------> [ RUNNING ] <----------------------------------+
//        |                   | a pass moved nothing                    |
//        | moved something   v                                         |
//        +------------- [ SPINNING ]  only with progress=spin, spin_us |
//        |                   | spin time is over                       |
//        | work found        v                                         |
//        +------------- [ PARKING ]   asleep_ = true, then look once   |
//                            | nothing to do      more (next_actions)  |
//                            v                                         |
//                       [ ASLEEP ]  in ppoll, in one of four ways -----+
//                                        woken by a caller, by a descriptor, or by a timer
//
//   ASLEEP, by what has to be watched:
//     polling       something moves only when asked: every descriptor, and a timer of 50 us to 1 ms
//     alone         every descriptor, no timer
//     shared        every descriptor, and so does the event loop (LoopEpoll). When one becomes readable, the loop has a
//                   head start of kLoopHeadStart to handle it; if it does not, the worker does, and keeps its next
//                   kLoopSharingBackoff sleeps to itself: this loop is busy with other things
//     behind loop   shared, and the loop has handled the last arrivals (loop_handles_arrivals_): only callers wake the
//                   worker, and a timer of kLoopLeadTimeout, in case the loop has become busy since
//
// Without a thread (CoreOptions::stepped) the event loop runs the passes: receive_wakeup() does one per drain().
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "core_options.h"
#include "event_queue.h"
#include "handles.h"
#include "loop_epoll.h"
#include "scheduler.h"

namespace aio {

class Worker {
 public:
  Worker(const CoreOptions& options, Scheduler& scheduler, EventQueue& events);
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // Starts the thread, once every rail is there.
  void start();
  // Ends the thread and waits for that; its last pass ends first.
  void stop();
  // After a fork, in the child: the thread stayed with the parent.
  void abandon() noexcept;

  // Takes the core's lock for a caller. The worker yields to callers: with the mutex alone it would win every time.
  std::unique_lock<std::mutex> lock();
  // Takes it if it is free.
  std::unique_lock<std::mutex> try_lock() { return {mutex_, std::try_to_lock}; }

  // Leaves transfers to the worker, without the lock. Null ones are left out.
  void hand_over(std::span<std::unique_ptr<Transfer>> transfers);
  // Queues what was handed over. With the lock held.
  void take_inbox();
  // Makes the worker look for work, if it sleeps. From any thread.
  void wake() noexcept;

  // What the event loop sleeps on.
  [[nodiscard]] int fileno() const noexcept { return loop_epoll_ ? loop_epoll_->fd() : events_.doorbell_fd(); }
  // Handles what woke the event loop, on its thread and before it drains the events.
  void receive_wakeup();
  // Passes in which the event loop has handled arrivals.
  [[nodiscard]] std::uint64_t loop_passes() const noexcept { return loop_passes_.load(std::memory_order_relaxed); }

 private:
  // What to do before anything else happens.
  struct NextActions {
    bool work = false;             // something to do now
    bool must_poll = false;        // something that no descriptor will notify of
    std::vector<int> descriptors;  // that notify of everything else

    [[nodiscard]] bool idle() const noexcept { return !work && !must_poll; }
  };
  struct SleepPlan {
    NextActions next;
    bool shared = false;            // the event loop watches the descriptors too
    std::uint64_t loop_passes = 0;  // before the sleep
  };

  void run() noexcept;
  bool pass();
  void step();
  void park(unsigned idle_rounds);
  std::optional<SleepPlan> plan_sleep();
  void sleep(const SleepPlan& plan, unsigned idle_rounds);
  [[nodiscard]] NextActions next_actions();
  void poll_from_loop();
  void set_affinity() const noexcept;

  const CoreOptions options_;
  Scheduler& scheduler_;
  EventQueue& events_;
  std::optional<LoopEpoll> loop_epoll_;  // where the event loop can handle arrivals itself
  Fd wake_fd_;

  // Guards the scheduler, the producer's side of the events, and every call into a domain.
  std::mutex mutex_;
  unsigned loop_sharing_backoff_ = 0;  // so many sleeps more the worker alone watches the descriptors
  bool stepping_ = false;              // a stepped pass runs, and in it perhaps a hook of the user's

  std::mutex inbox_mutex_;  // apart from mutex_, so that handing over never waits for a pass
  std::vector<std::unique_ptr<Transfer>> inbox_;

  std::atomic<bool> stop_{false};
  std::atomic<bool> asleep_{false};
  std::atomic<unsigned> callers_{0};  // that wait for mutex_
  std::atomic<std::uint64_t> loop_passes_{0};
  bool loop_handles_arrivals_ = false;  // the worker's: it did while the worker slept last
  std::thread thread_;
};

}  // namespace aio
