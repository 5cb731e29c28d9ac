// Instructions per page, per awaited write and per target of a scatter, which no other program disturbs. Cores on
// shared memory in one process, all without a worker: everything happens in the order below. benchmarks/instructions.py
// builds and runs it, with 1 and with 11 rounds: the difference is of ten.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "../../backends/core/core.h"
#include "../../backends/shm/domain.h"

using namespace aio;

// valgrind 3.19 has no pidfd_open: the parent process has made a pidfd of this one, which an exec does not change.
extern "C" long __real_syscall(long number, ...);
extern "C" long __wrap_syscall(long number, long first, long second) {
  const char* given = std::getenv("OWN_PIDFD");
  if (number == SYS_pidfd_open && given != nullptr) return ::fcntl(std::atoi(given), F_DUPFD_CLOEXEC, 0);
  return __real_syscall(number, first, second);
}

namespace {

constexpr std::uint32_t kPages = 4096;
constexpr std::uint32_t kPeers = 64;
constexpr std::uint64_t kNbytes = 64;  // small: the copying itself is the C library's
constexpr std::uint64_t kTotal = kPages * kNbytes;
constexpr std::uint32_t kCounter = 1;

struct Engine {
  std::shared_ptr<shm::OwnSegment> segment = std::make_shared<shm::OwnSegment>();
  Core core;

  Engine() : core(Wiring{&segment->get()->counters, segment->doorbell_fd(), segment}, stepped(), opener()) {}

  static CoreOptions stepped() {
    CoreOptions options;
    options.stepped = true;
    return options;
  }
  DomainOpener opener() {
    return [this](Sink& sink) {
      std::vector<std::unique_ptr<Domain>> domains;
      domains.push_back(std::make_unique<shm::ShmDomain>(sink, segment));
      return domains;
    };
  }
};

// Ends the program: a count of a run that failed would be a small one.
void require(bool is_so, const char* what) {
  if (is_so) return;
  std::printf("%s\n", what);
  std::exit(1);
}

void await(Engine& engine, std::uint64_t total) {
  std::vector<Event> events;
  while (engine.core.expect(kCounter, static_cast<std::int64_t>(total)) < total) engine.core.drain(events, 256);
}

struct Link {
  Engine target;
  int fd = ::memfd_create("target", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  std::uint8_t* memory = nullptr;

  Link(Engine& source, PeerNumber peer) {
    require(::ftruncate(fd, kTotal) == 0 && ::fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) == 0, "no memory of our own");
    memory = static_cast<std::uint8_t*>(::mmap(nullptr, kTotal, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    const auto ours = source.core.connect(peer, std::nullopt), theirs = target.core.connect(1, std::nullopt);
    source.core.connect(peer, theirs);
    target.core.connect(1, ours);
    const auto addr = reinterpret_cast<std::uint64_t>(memory);
    const auto key = target.core.register_local(1, {addr, kTotal, access_remote_write, fd, 0});
    source.core.register_remote(peer + 1, peer, kTotal, key, {fd});
  }
};

}  // namespace

int main(int argc, char** argv) {
  const std::string work = argc > 1 ? argv[1] : "pages";
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 1;
  Engine source;
  std::vector<std::uint8_t> memory(kTotal, 7);
  const auto addr = reinterpret_cast<std::uint64_t>(memory.data());
  source.core.register_local(1, {addr, memory.size(), 0, -1, 0});
  std::vector<std::unique_ptr<Link>> links;
  for (PeerNumber peer = 1; peer <= (work == "scatter" ? kPeers : 1); ++peer) {
    links.push_back(std::make_unique<Link>(source, peer));
  }
  const std::uint32_t count = work == "pages" ? kPages : work == "scatter" ? kPeers : 1;
  std::vector<Piece> pieces;
  for (std::uint64_t i = 0; i < count; ++i) {
    pieces.push_back({addr + i * kNbytes, (count - 1 - i) * kNbytes, kNbytes, kCounter, kPieceImmediate});
  }
  std::vector<Run> runs;
  for (std::uint32_t i = 0; i < links.size(); ++i) {
    runs.push_back({i + 1, 0, Op::write, 1, i + 2, work == "scatter" ? i : 0, work == "scatter" ? 1 : count, 0});
  }
  std::vector<Event> events;
  TransferId next = 1;
  for (int round = 1; round <= rounds; ++round) {
    if (work == "scatter") {
      require(source.core.post_each(next, runs.data(), count, pieces.data(), count).empty(), "a part went on");
      next += count;
    } else if (!source.core.post(next++, runs.data(), 1, pieces.data(), count)) {
      for (events.clear(); events.empty();) source.core.drain(events, 256);
      require(events.front().status == Status::ok, "a transfer failed");
    }
    for (auto& link : links) {
      await(link->target, static_cast<std::uint64_t>(round) * (work == "scatter" ? 1 : count));
    }
  }
  for (auto& link : links)
    require(work != "pages" || std::memcmp(link->memory, memory.data(), kTotal) == 0, "bytes differ");
  std::printf("%s: %d rounds\n", work.c_str(), rounds);
  return 0;
}
