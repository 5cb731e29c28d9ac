// Test of the copy tuner with invented times: it settles on the faster of two ways to copy, tries the other one now and
// then, and follows when that becomes the faster one.
#include "../../backends/shm/copy_tuner.h"

#include <cstdio>
#include <cstdlib>
#include <random>

using aio::shm::CopyTuner;

namespace {

constexpr std::uint64_t kMiB = 1 << 20;
constexpr std::uint64_t kSection = 256 << 10;

void check(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "copy_tuner_test: %s\n", what);
  std::exit(1);
}

// Copies so much in batches, at these speeds; returns which fraction was copied by nontemporal stores.
double run(CopyTuner& tuner, std::uint64_t batch, std::uint64_t total, double plain_ns, double nontemporal_ns,
           unsigned noise) {
  std::mt19937 random(7);
  std::uint64_t bypassed = 0;
  for (std::uint64_t done = 0; done < total; done += kSection) {
    const bool nontemporal = tuner.prefers_nontemporal(batch, kMiB);
    double ns = static_cast<double>(kSection) * (nontemporal ? nontemporal_ns : plain_ns);
    if (noise != 0 && random() % noise == 0) ns *= 50;  // the thread was interrupted
    tuner.learn(batch, kMiB, kSection, std::chrono::nanoseconds(static_cast<std::int64_t>(ns)));
    if (nontemporal) bypassed += kSection;
  }
  return static_cast<double>(bypassed) / static_cast<double>(total);
}

}  // namespace

int main() {
  for (const std::uint64_t batch : {16 * kMiB, 40 * kMiB, 256 * kMiB, 4096 * kMiB}) {
    for (const unsigned noise : {0u, 400u}) {
      CopyTuner faster, slower;
      const std::uint64_t turns = 400 * std::max(batch, 32 * kMiB);
      check(run(faster, batch, turns, 0.10, 0.07, noise) > 0.95, "it does not settle on nontemporal stores");
      check(run(slower, batch, turns, 0.07, 0.11, noise) < 0.05, "it does not settle on memcpy");
      check(run(faster, batch, turns, 0.07, 0.11, noise) < 0.4, "it does not follow what has changed");
      check(run(faster, batch, turns, 0.07, 0.11, noise) < 0.05, "it does not stay with it");
    }
  }
  CopyTuner tuner;
  check(!tuner.prefers_nontemporal(16 * kMiB - 1, kMiB), "a small batch bypasses the caches");
  check(tuner.prefers_nontemporal(16 * kMiB, kMiB), "nontemporal stores are not tried");
  run(tuner, 16 * kMiB, 64 * kMiB, 0.07, 0.11, 0);
  check(!tuner.prefers_nontemporal(31 * kMiB, kMiB), "batches of one size do not learn from one another");
  check(tuner.prefers_nontemporal(32 * kMiB, kMiB), "batches of another size are not tried for themselves");
  check(tuner.prefers_nontemporal(16 * kMiB, 4096), "short pieces are not tried for themselves");
  std::puts("copy_tuner_test: all well");
}
