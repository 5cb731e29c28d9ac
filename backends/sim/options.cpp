#include "options.h"

#include <random>

#include "domain.h"

namespace aio::sim {

namespace {

constexpr const char* kBackend = "sim";

double probability(const Options& options, const char* name, double otherwise) {
  return number(kBackend, options, name, otherwise, 0, 1);
}

std::uint32_t word(const Options& options, const char* name, std::uint32_t otherwise, std::uint32_t most) {
  return static_cast<std::uint32_t>(whole_number(kBackend, options, name, otherwise, 1, most));
}

}  // namespace

Settings settings_of(const Options& options) {
  check_option_names(kBackend, options,
                     {"seed", "nics", "mtu", "max_piece", "depth", "reorder", "eagain", "failed_posts",
                      "failed_completions", "late_completions", "bug"});
  Settings out;
  out.seed = whole_number(kBackend, options, "seed", std::random_device{}(), 0, UINT64_MAX);
  out.nics = word(options, "nics", out.nics, 8);
  Faults& faults = out.faults;
  faults.mtu = word(options, "mtu", faults.mtu, 32 << 10);
  faults.max_piece = whole_number(kBackend, options, "max_piece", faults.max_piece, 0, UINT64_MAX);
  faults.depth = word(options, "depth", faults.depth, 1 << 20);
  faults.reorder = probability(options, "reorder", faults.reorder);
  faults.failed_posts = probability(options, "failed_posts", faults.failed_posts);
  faults.failed_completions = probability(options, "failed_completions", faults.failed_completions);
  // With a probability of 1 nothing would ever move.
  faults.eagain = std::min(probability(options, "eagain", faults.eagain), 0.95);
  faults.late_completions = std::min(probability(options, "late_completions", faults.late_completions), 0.95);
  const std::string bug = one_of(kBackend, options, "bug", "none",
                                 {"none", "count_before_payload", "error_before_stop", "accept_stale", "skip_fence"});
  faults.count_before_payload = bug == "count_before_payload";
  faults.error_before_stop = bug == "error_before_stop";
  faults.accept_stale = bug == "accept_stale";
  faults.skip_fence = bug == "skip_fence";
  return out;
}

BackendSetup set_up(const std::shared_ptr<Fabric>& given, const Options& options) {
  const Settings settings = settings_of(options);
  const auto fabric = given != nullptr ? given : Fabric::common([&] {
    return std::make_shared<Fabric>(settings.seed, settings.faults, false);
  });
  Wiring wiring = private_wiring();
  const auto open_domains = [fabric, nics = settings.nics, doorbell = wiring.doorbell_fd](Sink& sink) {
    std::vector<std::unique_ptr<Domain>> domains;
    for (unsigned rail = 0; rail < nics; ++rail) {
      domains.push_back(std::make_unique<SimDomain>(sink, fabric, rail, doorbell));
    }
    return domains;
  };
  return {open_domains, std::move(wiring), fabric->stepped()};
}

}  // namespace aio::sim
