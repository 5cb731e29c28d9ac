// How the worker sleeps: a domain one of whose descriptors has failed for good keeps no processor busy, and the others
// still wake it.
//   g++ -std=c++20 -O1 backends/core/core.cpp backends/core/counters.cpp tests/native/parking_test.cpp -o parking_test
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <thread>

#include "../../backends/core/core.h"
#include "harness.h"

using namespace harness;
using namespace std::chrono_literals;

namespace {

// Moves nothing, and counts how often it is looked at.
struct Still final : Domain {
  DomainAttributes about;
  std::vector<int> descriptors;
  std::atomic<unsigned> looks{0};

  [[nodiscard]] const DomainAttributes& attributes() const noexcept override { return about; }
  std::string register_local(RegionNumber, const LocalMemory&) override { return {}; }
  void register_remote(RegionNumber, const RemoteMemory&) override {}
  void deregister(RegionNumber) override {}
  Endpoint connect(PeerNumber, const std::optional<Endpoint>&) override { return {}; }
  void disconnect(PeerNumber, bool) override {}
  Posted post(Flow&, std::uint32_t) override { return Posted::full; }
  Posted send(PeerNumber, TransferId, const std::string&) override { return Posted::full; }
  bool progress() override {
    looks.fetch_add(1);
    std::uint64_t value = 0;
    return ::read(descriptors.back(), &value, sizeof value) > 0;
  }
  [[nodiscard]] bool needs_progress() const noexcept override { return false; }
  std::optional<std::vector<int>> arm() override { return descriptors; }
  [[nodiscard]] std::uint64_t handles() const noexcept override { return 0; }
};

void beside_one_that_is_dead() {
  std::printf("a descriptor that is never quiet again\n");
  std::array<int, 2> pipe{};
  CHECK(::pipe(pipe.data()) == 0);
  ::close(pipe[0]);  // who polls the other end is told of an error, for ever
  const int alive = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  auto domain = std::make_unique<Still>();
  Still& still = *domain;
  still.descriptors = {pipe[1], alive};
  {
    Core core(private_wiring(), CoreOptions{}, [&](Sink&) {
      std::vector<std::unique_ptr<Domain>> domains;
      domains.push_back(std::move(domain));
      return domains;
    });
    std::this_thread::sleep_for(50ms);
    const unsigned before = still.looks.load();
    std::this_thread::sleep_for(300ms);
    const unsigned looks = still.looks.load() - before;
    std::printf("  %u looks in 0.3 s\n", looks);
    CHECK(looks >= 1);
    CHECK(looks <= 60);
    auto quickest = 1'000'000us;
    for (int i = 0; i < 20; ++i) {
      std::this_thread::sleep_for(3ms);
      const unsigned so_far = still.looks.load();
      const auto since = Clock::now();
      CHECK(::eventfd_write(alive, 1) == 0);
      while (still.looks.load() == so_far && Clock::now() - since < 1s) std::this_thread::yield();
      quickest = std::min(quickest, std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - since));
    }
    std::printf("  woken beside it within %ld us\n", static_cast<long>(quickest.count()));
    CHECK(quickest < 2ms);
  }
  ::close(pipe[1]);
  ::close(alive);
}

}  // namespace

int main() {
  beside_one_that_is_dead();
  std::printf(failures == 0 ? "all well\n" : "%d checks failed\n", failures);
  return failures == 0 ? 0 : 1;
}
