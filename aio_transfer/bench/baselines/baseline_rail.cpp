#include "baseline_rail.h"

#include <poll.h>

#include <chrono>
#include <stdexcept>

#include "../../../backends/core/counters.h"
#include "../../../backends/core/native_backend.h"

namespace aio::baseline {

namespace {

constexpr PeerNumber kPeer = 1;
constexpr RegionNumber kMine = 1;
constexpr RegionNumber kTheirs = 2;
constexpr std::uint32_t kCounter = kPrivateBit;  // no counter table is there, but the immediate travels

// Post when the pieces of that many turns fit, not one by one: over tcp the domain asks for an acknowledgement per
// call, and one per write can cost two thirds of the speed (4 KiB).
constexpr std::uint32_t kTurns = 4;

constexpr std::uint64_t kWord = 8;
constexpr unsigned kSpinsPerYield = 64;

struct Round {
  Flow flow;
  std::int64_t since;
};

std::int64_t now() noexcept { return std::chrono::steady_clock::now().time_since_epoch().count(); }

}  // namespace

Rail::Rail(const std::string& backend, const std::map<std::string, std::string>& options, bool block,
           std::uint64_t addr, std::uint64_t nbytes)
    : block_(block), addr_(addr) {
  domain_ = std::move(set_up_backend(backend, options).open_domains(*this).front());
  key_ = domain_->register_local(kMine, {addr, nbytes, access_remote_read | access_remote_write, -1, 0});
}

Rail::~Rail() { stop(); }

std::pair<std::string, std::string> Rail::offer() { return {domain_->connect(kPeer, std::nullopt).blob, key_}; }

void Rail::join(const std::string& end, const std::string& key, std::uint64_t nbytes) {
  domain_->connect(kPeer, Endpoint{end, {}});
  domain_->register_remote(kTheirs, {kPeer, nbytes, key, {}});
}

void Rail::serve() {
  stop();
  stop_.store(false, std::memory_order_relaxed);
  thread_ = std::thread([this] {
    while (!stop_.load(std::memory_order_relaxed)) {
      if (!domain_->progress()) wait();
    }
  });
}

void Rail::stop() {
  stop_.store(true, std::memory_order_relaxed);
  if (thread_.joinable()) thread_.join();
}

void Rail::wait() {
  if (!block_) {
    // perftest never yields; here another thread on this processor gets a turn now and then.
    if (++spins_ % kSpinsPerYield == 0) std::this_thread::yield();
    return;
  }
  const auto armed = domain_->arm();
  if (!armed) return;
  std::vector<pollfd> fds;
  for (const int fd : *armed) fds.push_back({fd, POLLIN, 0});
  if (fds.empty()) return std::this_thread::yield();
  ::poll(fds.data(), fds.size(), 1);  // 1 ms: the domain may have timers, and stop() must be seen
}

Times Rail::write(const Batch& batch, unsigned rounds, unsigned depth, std::int64_t* elapsed) {
  std::vector<Piece> pieces;
  pieces.reserve(batch.sources.size());
  for (std::size_t i = 0; i < batch.sources.size(); ++i) {
    pieces.push_back({batch.sources[i], batch.targets[i], batch.nbytes, kCounter, kPieceImmediate});
  }
  const auto count = static_cast<std::uint32_t>(pieces.size());
  const Run run{kPeer, 0, Op::write, kMine, kTheirs, 0, count, 0};
  const std::uint32_t refill = kTurns * domain_->attributes().quantum;
  Times times;
  std::deque<Round> under_way;
  const std::int64_t begin = now();
  for (unsigned started = 0; times.size() < rounds;) {
    if (started < rounds && under_way.size() < depth && (under_way.empty() || under_way.back().flow.exhausted())) {
      under_way.push_back({Flow{nullptr, pieces.data(), run}, now()});
      ++started;
    }
    Flow& last = under_way.back().flow;
    const std::uint32_t before = last.next;
    std::uint32_t in_flight = 0;
    for (const Round& round : under_way) in_flight += round.flow.in_flight;
    if (!last.exhausted() && in_flight <= refill) domain_->post(last, refill);
    const bool moved = domain_->progress() || last.next != before;
    while (!under_way.empty() && under_way.front().flow.exhausted() && under_way.front().flow.in_flight == 0) {
      times.push_back(now() - under_way.front().since);
      under_way.pop_front();
    }
    check();
    if (!moved && (!under_way.empty() && (started == rounds || under_way.size() == depth))) wait();
  }
  *elapsed = now() - begin;
  return times;
}

Times Rail::exchange(unsigned rounds, bool begins) {
  // From the memory's second word into the peer's first: what arrives does not overwrite what is sent.
  const Piece word{addr_ + kWord, 0, kWord, kCounter, kPieceImmediate};
  const Run run{kPeer, 0, Op::write, kMine, kTheirs, 0, 1, 0};
  Times times;
  times.reserve(rounds);
  const auto await = [&](const auto& is_there) {
    while (!is_there()) {
      if (!domain_->progress()) wait();
      check();
    }
  };
  // One reading of the clock per round: under emulation it takes as long as a part of what is measured.
  for (std::int64_t begin = now(), end = 0; times.size() < rounds; begin = end) {
    Flow flow{nullptr, &word, run};
    if (!begins) await([&] { return arrived_ > 0; });
    await([&] { return domain_->post(flow, 1) != Posted::full; });
    await([&] { return flow.exhausted() && flow.in_flight == 0 && (!begins || arrived_ > 0); });
    --arrived_;
    end = now();
    times.push_back(end - begin);
  }
  return times;
}

void Rail::check() const {
  if (!failure_.empty()) throw std::runtime_error("baseline: " + failure_);
}

void Rail::stopped(Flow& flow, std::uint32_t pieces, const Outcome& outcome) {
  flow.in_flight -= pieces;
  if (outcome.ok()) return;
  flow.failed = true;
  failure_ = outcome.reason + " ";
}

}  // namespace aio::baseline
