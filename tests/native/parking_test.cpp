// Test of how the worker parks: a descriptor that has failed for good keeps no processor busy, and the domain's other
// descriptors still wake the worker.
//   g++ -std=c++20 -O1 backends/core/*.cpp tests/native/parking_test.cpp -o parking_test
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

// Moves nothing, and counts how often it is polled.
struct IdleDomain final : Domain {
  DomainAttributes about;
  std::vector<int> descriptors;
  std::atomic<unsigned> polls{0};

  [[nodiscard]] const DomainAttributes& attributes() const noexcept override { return about; }
  std::string register_local(RegionNumber, const LocalMemory&) override { return {}; }
  void register_remote(RegionNumber, const RemoteMemory&) override {}
  void deregister(RegionNumber) override {}
  Endpoint connect(PeerNumber, const std::optional<Endpoint>&) override { return {}; }
  void disconnect(PeerNumber, bool) override {}
  Posted post(Flow&, std::uint32_t) override { return Posted::full; }
  Posted send(PeerNumber, TransferId, const std::string&) override { return Posted::full; }
  bool progress() override {
    polls.fetch_add(1);
    std::uint64_t value = 0;
    return ::read(descriptors.back(), &value, sizeof value) > 0;
  }
  [[nodiscard]] bool needs_progress() const noexcept override { return false; }
  std::optional<std::vector<int>> arm() override { return descriptors; }
  [[nodiscard]] std::uint64_t handles() const noexcept override { return 0; }
};

void failed_descriptor() {
  std::printf("a descriptor that has failed for good\n");
  std::array<int, 2> pipe{};
  CHECK(::pipe(pipe.data()) == 0);
  ::close(pipe[0]);  // poll() reports an error for the other end from now on
  const int alive = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  auto domain = std::make_unique<IdleDomain>();
  IdleDomain& idle = *domain;
  idle.descriptors = {pipe[1], alive};
  {
    Core core(private_wiring(), CoreOptions{}, [&](Sink&) {
      std::vector<std::unique_ptr<Domain>> domains;
      domains.push_back(std::move(domain));
      return domains;
    });
    std::this_thread::sleep_for(50ms);
    const unsigned before = idle.polls.load();
    std::this_thread::sleep_for(300ms);
    const unsigned polls = idle.polls.load() - before;
    std::printf("  %u polls in 0.3 s\n", polls);
    CHECK(polls >= 1);
    CHECK(polls <= 60);
    auto quickest = 1'000'000us;
    for (int i = 0; i < 20; ++i) {
      std::this_thread::sleep_for(3ms);
      const unsigned so_far = idle.polls.load();
      const auto since = Clock::now();
      CHECK(::eventfd_write(alive, 1) == 0);
      while (idle.polls.load() == so_far && Clock::now() - since < 1s) std::this_thread::yield();
      quickest = std::min(quickest, std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - since));
    }
    std::printf("  woken by another descriptor within %ld us\n", static_cast<long>(quickest.count()));
    CHECK(quickest < 2ms);
  }
  ::close(pipe[1]);
  ::close(alive);
}

}  // namespace

int main() {
  failed_descriptor();
  std::printf(failures == 0 ? "all well\n" : "%d checks failed\n", failures);
  return failures == 0 ? 0 : 1;
}
