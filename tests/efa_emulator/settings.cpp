#include "settings.h"

#include <sys/random.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "wire.h"

namespace efa {

namespace {

std::string text(const char* name) {
  const char* value = std::getenv((std::string("EFA_EMULATOR_") + name).c_str());
  return value == nullptr ? "" : value;
}

// A malformed setting is an error: it would silently test something else.
double number(const char* name, double otherwise, double least, double most) {
  const std::string value = text(name);
  if (value.empty()) return otherwise;
  char* end = nullptr;
  const double parsed = std::strtod(value.c_str(), &end);
  if (*end != '\0' || !(parsed >= least && parsed <= most)) {
    std::fprintf(stderr, "efa emulator: EFA_EMULATOR_%s is %s\n", name, value.c_str());
    std::abort();
  }
  return parsed;
}

template <class Integer>
void set(Integer& value, const char* name, double least, double most) {
  value = static_cast<Integer>(number(name, static_cast<double>(value), least, most));
}

Settings read() {
  Settings settings;
  set(settings.devices, "DEVICES", 1, 4);
  const std::string generation = text("GENERATION");
  settings.writes = generation != "read" && generation != "none";
  settings.reads = generation != "none";
  settings.unsolicited = number("UNSOLICITED", 0, 0, 1) != 0;
  settings.interrupts = number("INTERRUPTS", 1, 0, 1) != 0;
  settings.copies_on_fork = number("COPIES_ON_FORK", 1, 0, 1) != 0;
  set(settings.mtu, "MTU", 64, 8192);
  set(settings.paths, "PATHS", 1, kMostPaths);
  set(settings.window, "WINDOW", 1, 256);
  set(settings.hold_us, "HOLD_US", 0, 1e6);
  set(settings.bytes_per_second, "BYTES_PER_SECOND", 0, 1e12);
  set(settings.send_depth, "SEND_DEPTH", 1, 65536);
  set(settings.receive_depth, "RECEIVE_DEPTH", 2, 65536);
  set(settings.reorder, "REORDER", 0, 1);
  set(settings.late, "LATE", 0, 0.9);
  set(settings.eagain, "EAGAIN", 0, 1);
  set(settings.failed_posts, "FAILED_POSTS", 0, 1);
  set(settings.failed_completions, "FAILED_COMPLETIONS", 0, 1);
  set(settings.timeout_ms, "TIMEOUT_MS", 1, 1e6);
  settings.log = text("LOG");
  settings.links = text("LINKS");
  settings.gives_up = !settings.links.empty() || !text("TIMEOUT_MS").empty();
  const char* sysfs = std::getenv("SYSFS_PATH");
  settings.sysfs = sysfs == nullptr ? "/sys" : sysfs;
  const std::string seed = text("SEED");
  if (seed.empty()) {
    if (::getrandom(&settings.seed, sizeof settings.seed, 0) < 0) std::abort();
    settings.seed %= 1'000'000'000;  // short enough to type
  } else {
    settings.seed = std::strtoull(seed.c_str(), nullptr, 0);
  }
  return settings;
}

}  // namespace

const Settings& Settings::get() {
  // Never freed: threads of NICs that were not closed outlive static objects.
  static const Settings& settings = *new Settings(read());
  return settings;
}

}  // namespace efa
