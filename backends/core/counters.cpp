#include "counters.h"

#include <bit>

#include "handles.h"

namespace aio {

namespace {

constexpr std::uint64_t kLive = 0x80;

constexpr std::uint64_t tag_of(std::uint32_t id) noexcept { return (kLive | ((id >> 16) & kGenerationMask)) << 56; }

constexpr unsigned kPollsPerClock = 32;  // reading the clock takes longer than polling

// Gives the processor's other hardware thread a moment, and the memory bus to the writer of what is polled.
void pause() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

constexpr bool is_private(std::uint32_t id) noexcept { return (id & kPrivateBit) != 0; }

}  // namespace

void Doorbell::ring() const noexcept {
  // seq_cst pairs with the loop's "set parked, then look again" (event_queue.h): one of the two sees the other's store.
  // The exchange makes one of many producers write to the eventfd.
  if (parked->load(std::memory_order_seq_cst) != 0 && parked->exchange(0, std::memory_order_seq_cst) != 0) {
    signal_eventfd(fd);
  }
}

void DeferrableDoorbell::ring() const noexcept {
  if (held == nullptr || !held->holding) return Doorbell::ring();
  // seq_cst, as in Doorbell::ring(): the counts are added before `parked` is read. It is taken back when this rings.
  if (parked->load(std::memory_order_seq_cst) != 0) held->bells.push_back(*this);
}

void DeferredDoorbells::ring_all() noexcept {
  for (const Doorbell& bell : bells) bell.ring();
  bells.clear();
}

int CounterTable::find(std::uint32_t id, bool insert) const noexcept {
  if (is_private(id)) return static_cast<int>(id & (kPrivateSlots - 1));
  const std::uint32_t key = id + 1;
  std::uint32_t at = (id * 2654435761u) >> 20;  // Fibonacci hashing to 12 bits
  for (std::uint32_t probe = 0; probe < kWellKnownSlots; ++probe, at = (at + 1) & (kWellKnownSlots - 1)) {
    // acquire pairs with the exchange below: an id is written once, by whichever process first needs it.
    std::uint32_t seen = memory_->well_known[at].load(std::memory_order_acquire);
    if (seen == 0 && insert && memory_->well_known[at].compare_exchange_strong(seen, key, std::memory_order_acq_rel)) {
      return static_cast<int>(kPrivateSlots + at);
    }
    if (seen == key) return static_cast<int>(kPrivateSlots + at);
    if (seen == 0) return -1;
  }
  return -1;
}

std::uint32_t CounterTable::id_of(std::uint32_t slot) const noexcept {
  if (slot >= kPrivateSlots) return memory_->well_known[slot - kPrivateSlots].load(std::memory_order_relaxed) - 1;
  const auto tag = memory_->slots[slot].word.load(std::memory_order_relaxed) >> 56;
  return kPrivateBit | static_cast<std::uint32_t>((tag & kGenerationMask) << 16) | slot;
}

void CounterTable::mark(std::uint32_t slot) noexcept {
  // First the bit, then its summary, then the doorbell, in the order in which harvest() takes them back; seq_cst since
  // the doorbell's `parked` is loaded after them.
  memory_->dirty[slot / 64].fetch_or(1ull << (slot % 64), std::memory_order_seq_cst);
  memory_->summary[slot / 4096].fetch_or(1ull << (slot / 64 % 64), std::memory_order_seq_cst);
  bell_.ring();
}

void CounterTable::add(std::uint32_t id, std::uint64_t counts) noexcept {
  const int found = find(id, true);
  if (found < 0) {
    memory_->dropped.fetch_add(1, std::memory_order_relaxed);  // a statistic, as `counts` below
    return;
  }
  CounterSlot& slot = memory_->slots[found];
  std::uint64_t total = 0;
  if (is_private(id)) {
    const std::uint64_t tag = tag_of(id);
    std::uint64_t word = slot.word.load(std::memory_order_relaxed);
    do {
      if ((word & ~kCountsMask) != tag) {
        memory_->dropped.fetch_add(1, std::memory_order_relaxed);
        return;
      }
      // seq_cst on success: it releases the payload, and comes before the load of `threshold` below.
    } while (
        !slot.word.compare_exchange_weak(word, word + counts, std::memory_order_seq_cst, std::memory_order_relaxed));
    total = (word + counts) & kCountsMask;
  } else {
    total = (slot.word.fetch_add(counts, std::memory_order_seq_cst) + counts) & kCountsMask;
  }
  memory_->counts.fetch_add(counts, std::memory_order_relaxed);
  // seq_cst pairs with expect(): this sees the threshold, or expect() sees the counts.
  const std::uint64_t threshold = slot.threshold.load(std::memory_order_seq_cst);
  if (threshold != 0 && total >= threshold) mark(static_cast<std::uint32_t>(found));
}

std::uint64_t CounterTable::expect(std::uint32_t id, std::int64_t counts) {
  const int found = find(id, counts >= 0);
  if (found < 0) {
    if (counts < 0) return 0;
    throw Failure(Failure::Kind::provider, "engine.counter", "4096 other well-known counters are in use");
  }
  CounterSlot& slot = memory_->slots[found];
  if (is_private(id)) {
    std::uint64_t word = slot.word.load(std::memory_order_relaxed);
    if (counts < 0) {
      slot.threshold.store(0, std::memory_order_relaxed);
      slot.word.store(0, std::memory_order_seq_cst);  // no live bit: no tag matches, so arrivals are dropped
      return word & kCountsMask;
    }
    // Only the owner changes the tag, so a plain store loses no add: with another tag there are none.
    if ((word & ~kCountsMask) != tag_of(id)) slot.word.store(tag_of(id), std::memory_order_seq_cst);
  } else if (counts < 0) {
    slot.threshold.store(0, std::memory_order_relaxed);
    return slot.word.exchange(0, std::memory_order_seq_cst) & kCountsMask;
  }
  // seq_cst: either we see the adder's counts below, or it sees our threshold.
  slot.threshold.store(static_cast<std::uint64_t>(counts), std::memory_order_seq_cst);
  const std::uint64_t total = slot.word.load(std::memory_order_seq_cst) & kCountsMask;
  if (counts > 0 && total >= static_cast<std::uint64_t>(counts)) slot.threshold.store(0, std::memory_order_relaxed);
  return total;
}

std::uint64_t CounterTable::spin_wait(std::uint32_t id, std::uint64_t counts, std::chrono::nanoseconds timeout) const {
  const int found = find(id, false);
  if (found < 0) return 0;
  const std::atomic<std::uint64_t>& word = memory_->slots[found].word;
  const auto until = std::chrono::steady_clock::now() + timeout;
  for (;;) {
    for (unsigned poll = 0; poll < kPollsPerClock; ++poll) {
      // acquire pairs with the add: the payload is visible.
      const std::uint64_t total = word.load(std::memory_order_acquire) & kCountsMask;
      if (total >= counts) return total;
      pause();
    }
    if (std::chrono::steady_clock::now() >= until) return word.load(std::memory_order_acquire) & kCountsMask;
  }
}

bool CounterTable::harvest(std::vector<Event>& out, std::size_t limit) {
  for (std::uint32_t group = 0; group < std::size(memory_->summary); ++group) {
    if (memory_->summary[group].load(std::memory_order_relaxed) == 0) continue;  // the caller looks again, seq_cst
    // seq_cst: the summary is taken before its words, and each word before its counters are read. A mark that comes in
    // between sets its bit again.
    std::uint64_t words = memory_->summary[group].exchange(0, std::memory_order_seq_cst);
    for (; words != 0; words &= words - 1) {
      const std::uint32_t word = group * 64 + static_cast<std::uint32_t>(std::countr_zero(words));
      std::uint64_t bits = memory_->dirty[word].exchange(0, std::memory_order_seq_cst);
      for (; bits != 0; bits &= bits - 1) {
        if (out.size() >= limit) {  // put back what was taken, bits before their summary: the next drain finds it
          memory_->dirty[word].fetch_or(bits, std::memory_order_seq_cst);
          memory_->summary[group].fetch_or(words, std::memory_order_seq_cst);
          return false;
        }
        const std::uint32_t at = word * 64 + static_cast<std::uint32_t>(std::countr_zero(bits));
        CounterSlot& slot = memory_->slots[at];
        // relaxed: this thread alone stores thresholds. acquire pairs with the add: the payload is visible.
        const std::uint64_t threshold = slot.threshold.load(std::memory_order_relaxed);
        const std::uint64_t total = slot.word.load(std::memory_order_acquire) & kCountsMask;
        if (threshold == 0 || total < threshold) continue;
        slot.threshold.store(0, std::memory_order_relaxed);
        out.push_back({EventKind::counter, Status::ok, id_of(at), static_cast<std::int64_t>(total), {}});
      }
    }
  }
  return true;
}

void CounterTable::rescan() noexcept {
  for (std::uint32_t at = 0; at < kSlots; ++at) {
    if (memory_->slots[at].threshold.load(std::memory_order_relaxed) != 0) mark(at);
  }
}

bool CounterTable::any_dirty() const noexcept {
  for (const auto& word : memory_->summary) {
    // seq_cst: after the loop has announced that it parks (event_queue.h).
    if (word.load(std::memory_order_seq_cst) != 0) return true;
  }
  return false;
}

}  // namespace aio
