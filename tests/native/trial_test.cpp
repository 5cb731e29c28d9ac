// The choice between two ways of copying, with times that are made up: it settles on the faster, whichever that is,
// looks again now and then, and follows when that changes.
#include "../../backends/shm/trial.h"

#include <cstdio>
#include <cstdlib>
#include <random>

using aio::shm::Trial;

namespace {

constexpr std::uint64_t kMiB = 1 << 20;
constexpr std::uint64_t kSection = 256 << 10;

void check(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "trial_test: %s\n", what);
  std::exit(1);
}

// Copies so much in batches, at these speeds; returns which part of it was streamed.
double run(Trial& trial, std::uint64_t batch, std::uint64_t total, double plain_ns, double streaming_ns,
           unsigned noise) {
  std::mt19937 random(7);
  std::uint64_t streamed = 0;
  for (std::uint64_t done = 0; done < total; done += kSection) {
    const bool streams = trial.streams(batch, kMiB);
    double ns = static_cast<double>(kSection) * (streams ? streaming_ns : plain_ns);
    if (noise != 0 && random() % noise == 0) ns *= 50;  // the thread was interrupted
    trial.learn(batch, kMiB, kSection, std::chrono::nanoseconds(static_cast<std::int64_t>(ns)));
    if (streams) streamed += kSection;
  }
  return static_cast<double>(streamed) / static_cast<double>(total);
}

}  // namespace

int main() {
  for (const std::uint64_t batch : {16 * kMiB, 40 * kMiB, 256 * kMiB, 4096 * kMiB}) {
    for (const unsigned noise : {0u, 400u}) {
      Trial faster, slower;
      const std::uint64_t turns = 400 * std::max(batch, 32 * kMiB);
      check(run(faster, batch, turns, 0.10, 0.07, noise) > 0.95, "it does not settle on streaming");
      check(run(slower, batch, turns, 0.07, 0.11, noise) < 0.05, "it does not settle on memcpy");
      check(run(faster, batch, turns, 0.07, 0.11, noise) < 0.4, "it does not follow what has changed");
      check(run(faster, batch, turns, 0.07, 0.11, noise) < 0.05, "it does not stay with it");
    }
  }
  Trial trial;
  check(!trial.streams(16 * kMiB - 1, kMiB), "a small batch is streamed");
  check(trial.streams(16 * kMiB, kMiB), "streaming is not tried");
  run(trial, 16 * kMiB, 64 * kMiB, 0.07, 0.11, 0);
  check(!trial.streams(31 * kMiB, kMiB), "batches of one size do not learn from one another");
  check(trial.streams(32 * kMiB, kMiB), "batches of another size are not tried for themselves");
  check(trial.streams(16 * kMiB, 4096), "short pieces are not tried for themselves");
  std::puts("trial_test: all well");
}
