#include "worker.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>

namespace aio {

namespace {

using Clock = std::chrono::steady_clock;

// How long the event loop may take to handle an arrival before the worker does.
constexpr timespec kLoopHeadStart{0, 100'000};
// How long the worker stays behind a loop that has handled the last arrival, without looking itself.
constexpr timespec kLoopLeadTimeout{0, 1'000'000};
// A loop that needed longer for what had arrived leaves it to the worker: it has coroutines to run.
constexpr auto kMaxLoopPollTime = std::chrono::microseconds(100);
// Sleeps that the worker keeps to itself where sharing arrivals with the loop was not worth it.
constexpr unsigned kLoopSharingBackoff = 64;
// Poll interval of a domain with a descriptor that has failed for good.
constexpr timespec kFailedFdPollInterval{0, 10'000'000};

// Takes out descriptors that have only failed, those of a device that is gone: they would wake the worker for ever.
// Returns whether there are any, and no other descriptor is readable.
bool drop_failed(std::vector<pollfd>& fds) noexcept {
  bool failed = false;
  bool readable = false;
  for (pollfd& fd : fds) {
    if ((fd.revents & POLLIN) != 0) {
      readable = true;
    } else if (fd.revents != 0) {
      fd.fd = -1;  // poll(2) passes over it
      failed = true;
    }
  }
  return failed && !readable;
}

}  // namespace

Worker::Worker(const CoreOptions& options, Scheduler& scheduler, EventQueue& events)
    : options_(options), scheduler_(scheduler), events_(events), wake_fd_(make_eventfd()) {}

void Worker::start() {
  if (options_.stepped) return;
  const bool spins = options_.always_spin || options_.spin.count() > 0;
  const auto notifies = [](const auto& rail) { return rail.domain->attributes().notifies_arrivals; };
  // A worker that spins sees arrivals before the loop could wake for them.
  if (!spins && std::ranges::all_of(scheduler_.rails(), notifies)) loop_epoll_.emplace(events_.doorbell_fd());
  thread_ = std::thread([this] { run(); });
}

void Worker::stop() {
  stop_.store(true, std::memory_order_seq_cst);  // before wake() looks at asleep_, as plan_sleep() expects
  wake();
  if (thread_.joinable()) thread_.join();
}

void Worker::abandon() noexcept {
  if (thread_.joinable()) thread_.detach();
}

// ----------------------------------------------------------------------------------------------------- callers

std::unique_lock<std::mutex> Worker::lock() {
  // A hook that waited for the lock would wait for itself: one thread does everything.
  if (stepping_) {
    throw Failure(Failure::Kind::usage, "engine", "a route hook cannot use the engine that it runs inside");
  }
  // relaxed: only a hint to the worker, which yields sooner or later; the mutex orders everything else.
  callers_.fetch_add(1, std::memory_order_relaxed);
  std::unique_lock lock(mutex_);
  callers_.fetch_sub(1, std::memory_order_relaxed);
  return lock;
}

void Worker::hand_over(std::span<std::unique_ptr<Transfer>> transfers) {
  const std::lock_guard lock(inbox_mutex_);
  for (auto& transfer : transfers) {
    if (transfer) inbox_.push_back(std::move(transfer));
  }
}

void Worker::take_inbox() {
  std::vector<std::unique_ptr<Transfer>> arrived;
  {
    const std::lock_guard lock(inbox_mutex_);
    arrived.swap(inbox_);
  }
  scheduler_.admit(std::move(arrived));
}

void Worker::wake() noexcept {
  if (options_.stepped) return events_.force_ring();  // the event loop is the worker
  // seq_cst: the caller has queued its work before it loads asleep_ here; park() stores asleep_ before it looks for
  // work. One of the two sees the other. The exchange makes one of many callers write to the eventfd.
  if (asleep_.load(std::memory_order_seq_cst) && asleep_.exchange(false, std::memory_order_seq_cst)) {
    signal_eventfd(wake_fd_.get());
  }
}

// -------------------------------------------------------------------------------------------------- the event loop

void Worker::receive_wakeup() {
  if (loop_epoll_) {
    const LoopEpoll::Ready ready = loop_epoll_->poll();
    if (ready.doorbell) events_.clear_doorbell();
    if (ready.arrival) poll_from_loop();
  } else {
    events_.clear_doorbell();
  }
  if (options_.stepped) step();
}

void Worker::step() {
  struct Flag {
    explicit Flag(bool& flag) : flag(flag) { flag = true; }
    ~Flag() { flag = false; }
    bool& flag;
  };
  {
    const Flag stepping(stepping_);
    pass();
  }
  const std::lock_guard lock(mutex_);
  if (!next_actions().idle()) wake();
}

// Handles arrivals on the loop's thread, which drains what they brought right after. Only what has come, and nothing
// that waits to be sent: that may take long.
void Worker::poll_from_loop() {
  // try_lock: the worker may be in a pass, and the loop does not wait for it. relaxed: asleep_ changes to true only
  // before the worker takes the lock, and if it has just been woken, one pass too many does no harm.
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock || !asleep_.load(std::memory_order_relaxed)) return;  // the worker handles them
  if (scheduler_.in_flight() > kMaxTransfersOfLoop) return wake();
  const auto begun = Clock::now();
  events_.unpark_loop();
  events_.begin_pass();
  bool moved = false;
  for (Scheduler::Rail& rail : scheduler_.rails()) moved |= rail.domain->progress();
  events_.end_pass();
  events_.drop_notification();
  if (moved) loop_passes_.fetch_add(1, std::memory_order_relaxed);  // a count; sleep() compares two loads of it
  const bool was_short = Clock::now() - begun < kMaxLoopPollTime;
  // Nor is sharing worth it where the loop was woken for nothing that concerns it.
  if (!was_short || events_.empty()) loop_sharing_backoff_ = kLoopSharingBackoff;
  const NextActions next = next_actions();
  if (loop_sharing_backoff_ != 0 || !next.idle()) return wake();
  loop_epoll_->arm(next.descriptors);  // again: each was armed for one wake-up
}

// ------------------------------------------------------------------------------------------------------ the thread

bool Worker::pass() {
  const std::lock_guard lock(mutex_);
  // One thread does everything in a stepped core: its events ring at once, since nothing else wakes the loop.
  if (!options_.stepped) events_.begin_pass();
  bool moved = false;
  take_inbox();
  // relaxed: a hint, as in lock().
  const auto caller_waits = [this] { return callers_.load(std::memory_order_relaxed) != 0; };
  for (Scheduler::Rail& rail : scheduler_.rails()) {
    moved |= rail.domain->progress();
    moved |= scheduler_.serve(rail, caller_waits);
  }
  events_.end_pass();
  const auto is_active = [](const Scheduler::Rail& rail) { return !rail.active.empty(); };
  const bool has_more = moved && std::ranges::any_of(scheduler_.rails(), is_active);
  events_.notify_loop(has_more ? kNotifyDelay : std::chrono::microseconds(0));
  return moved;
}

void Worker::run() noexcept {
  ::pthread_setname_np(::pthread_self(), "aio-transfer");
  set_affinity();
  const bool spins = options_.always_spin && std::ranges::any_of(scheduler_.rails(), [](const Scheduler::Rail& rail) {
                       return rail.domain->benefits_from_spinning();
                     });
  unsigned idle_rounds = 0;
  auto idle_since = Clock::now();
  while (!stop_.load(std::memory_order_relaxed)) {  // relaxed: plan_sleep() looks again with the order that counts
    if (pass()) {
      idle_rounds = 0;
      // A caller waits for the lock: without this the worker, already running, takes it again first.
      while (callers_.load(std::memory_order_relaxed) != 0) std::this_thread::yield();
      continue;
    }
    if (idle_rounds == 0) idle_since = Clock::now();
    ++idle_rounds;
    if (spins || (options_.spin.count() > 0 && Clock::now() - idle_since < options_.spin)) {
      std::this_thread::yield();
      continue;
    }
    park(idle_rounds);
  }
}

void Worker::set_affinity() const noexcept {
  if (options_.cpus.empty()) return;
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  for (const int cpu : options_.cpus) CPU_SET(cpu, &cpus);
  // Refused where a container has none of them: the thread then runs where it may.
  ::pthread_setaffinity_np(::pthread_self(), sizeof cpus, &cpus);
}

// With the lock held, which keeps domains and lanes still.
Worker::NextActions Worker::next_actions() {
  NextActions next;
  {
    const std::lock_guard inbox(inbox_mutex_);
    next.work = !inbox_.empty();
  }
  for (Scheduler::Rail& rail : scheduler_.rails()) {
    const auto armed = rail.domain->arm();
    next.work |= !armed;
    if (armed) next.descriptors.insert(next.descriptors.end(), armed->begin(), armed->end());
    next.must_poll |= rail.domain->polled() || rail.domain->needs_progress() || !rail.active.empty();
  }
  next.must_poll |= events_.overflows();
  return next;
}

void Worker::park(unsigned idle_rounds) {
  asleep_.store(true, std::memory_order_seq_cst);  // before plan_sleep() looks for work: see wake()
  if (const auto plan = plan_sleep()) sleep(*plan, idle_rounds);
}

// Returns nothing where there is work.
std::optional<Worker::SleepPlan> Worker::plan_sleep() {
  const std::lock_guard lock(mutex_);
  SleepPlan plan{next_actions()};
  // seq_cst pairs with stop(): it sees asleep_, or this sees stop_.
  if (plan.next.work || stop_.load(std::memory_order_seq_cst)) {
    asleep_.store(false, std::memory_order_relaxed);  // a caller that still sees true wakes a worker that is awake
    return std::nullopt;
  }
  if (loop_epoll_ && !plan.next.must_poll) {
    plan.shared = loop_sharing_backoff_ == 0 && scheduler_.in_flight() <= kMaxTransfersOfLoop;
    if (plan.shared) loop_epoll_->arm(plan.next.descriptors);
    loop_sharing_backoff_ -= std::min(loop_sharing_backoff_, 1u);
  }
  plan.loop_passes = loop_passes();  // with the lock held, which the loop needs for the next one
  return plan;
}

void Worker::sleep(const SleepPlan& plan, unsigned idle_rounds) {
  std::vector<pollfd> fds{{wake_fd_.get(), POLLIN, 0}};
  for (const int fd : plan.next.descriptors) fds.push_back({fd, POLLIN, 0});
  const bool behind_loop = plan.shared && loop_handles_arrivals_;
  // Back off from 50 us to 1 ms: at the end a polled transport costs less than 1 % of a processor when idle.
  const std::int64_t backoff_ns = std::min<std::int64_t>(50'000ll << std::min(idle_rounds, 8u), 1'000'000);
  const timespec backoff{0, backoff_ns};
  const timespec* const timeout = plan.next.must_poll ? &backoff : behind_loop ? &kLoopLeadTimeout : nullptr;
  ::ppoll(fds.data(), behind_loop ? 1 : fds.size(), timeout, nullptr);
  if (plan.shared && !behind_loop && fds.front().revents == 0) ::ppoll(fds.data(), 1, &kLoopHeadStart, nullptr);
  if (drop_failed(fds)) ::ppoll(fds.data(), fds.size(), &kFailedFdPollInterval, nullptr);
  asleep_.store(false, std::memory_order_seq_cst);  // before the next pass looks for work: callers need not wake it
  const bool was_woken = fds.front().revents != 0;
  const bool loop_did = loop_passes() != plan.loop_passes;
  if (loop_did || !was_woken) loop_handles_arrivals_ = loop_did;
  if (was_woken) clear_eventfd(wake_fd_.get());
  if (plan.shared && !behind_loop && !was_woken && !loop_did) {  // the loop has something else to do
    const std::lock_guard lock(mutex_);                          // poll_from_loop() writes it too
    loop_sharing_backoff_ = kLoopSharingBackoff;
  }
}

}  // namespace aio
