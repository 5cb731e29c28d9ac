#include "core_options.h"

#include <sched.h>

#include <sstream>

namespace aio {

namespace {

constexpr std::uint64_t kMaxSpinUs = 60'000'000;

std::vector<int> cpus_of(const char* backend, const Options& options) {
  std::vector<int> cpus;
  const std::string text = option(options, "cpus", "");
  std::istringstream words(text);
  for (std::string word; std::getline(words, word, ',');) {
    const auto cpu = detail::parsed<int>(word);
    if (!cpu || *cpu < 0 || *cpu >= CPU_SETSIZE) {
      refuse_option(backend, "cpus", text, "numbers 0 … " + std::to_string(CPU_SETSIZE - 1) + ", separated by commas");
    }
    cpus.push_back(*cpu);
  }
  return cpus;
}

}  // namespace

CoreOptions core_options(const char* backend, const Options& options) {
  CoreOptions core;
  core.always_spin = one_of(backend, options, "progress", "adaptive", {"adaptive", "spin"}) == "spin";
  core.spin = std::chrono::microseconds(whole_number(backend, options, "spin_us", 0, 0, kMaxSpinUs));
  core.cpus = cpus_of(backend, options);
  return core;
}

}  // namespace aio
