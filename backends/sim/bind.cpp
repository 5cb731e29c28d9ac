#include "bind.h"

#include <nanobind/stl/function.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <charconv>
#include <random>

#include "domain.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace aio::sim {

namespace {

[[noreturn]] void refuse(const std::string& name, const std::string& value) {
  throw Failure(Failure::Kind::usage, "sim", "the option " + name + " cannot be " + value);
}

double fraction(const std::string& name, const std::string& value) {
  double number = 0;
  // Not strtod: the program may have set a locale with another decimal point.
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  const bool whole = error == std::errc() && end == value.data() + value.size();
  if (!whole || !(number >= 0 && number <= 1)) refuse(name, value);
  return number;
}

std::uint64_t whole(const std::string& name, const std::string& value, std::uint64_t least, std::uint64_t most) {
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  if (error != std::errc() || end != value.data() + value.size() || number < least || number > most) {
    refuse(name, value);
  }
  return number;
}

struct Settings {
  Mischief mischief;
  std::uint64_t seed = std::random_device{}();
  unsigned nics = 1;
};

Settings settings_of(const Options& options) {
  Settings out;
  Mischief& mischief = out.mischief;
  for (const auto& [name, value] : options) {
    if (name == "seed") {
      out.seed = whole(name, value, 0, UINT64_MAX);
    } else if (name == "nics") {
      out.nics = static_cast<unsigned>(whole(name, value, 1, 8));
    } else if (name == "mtu") {
      mischief.mtu = static_cast<std::uint32_t>(whole(name, value, 1, 32 << 10));
    } else if (name == "max_piece") {
      mischief.max_piece = whole(name, value, 0, UINT64_MAX);
    } else if (name == "depth") {
      mischief.depth = static_cast<std::uint32_t>(whole(name, value, 1, 1 << 20));
    } else if (name == "reorder") {
      mischief.reorder = fraction(name, value);
    } else if (name == "eagain") {
      mischief.eagain = fraction(name, value);
    } else if (name == "failed_posts") {
      mischief.failed_posts = fraction(name, value);
    } else if (name == "failed_completions") {
      mischief.failed_completions = fraction(name, value);
    } else if (name == "late_completions") {
      mischief.late_completions = fraction(name, value);
    } else if (name == "bug") {
      mischief.count_before_payload = value == "count_before_payload";
      mischief.error_before_stop = value == "error_before_stop";
      mischief.accept_stale = value == "accept_stale";
      mischief.skip_fence = value == "skip_fence";
      if (!value.empty() && !(mischief.count_before_payload || mischief.error_before_stop || mischief.accept_stale ||
                              mischief.skip_fence)) {
        refuse(name, value);
      }
    } else if (name != "progress" && name != "spin_us") {
      throw Failure(Failure::Kind::usage, "sim", "there is no option " + name);
    }
  }
  // A probability of one would mean that nothing ever moves.
  mischief.eagain = std::min(mischief.eagain, 0.95);
  mischief.late_completions = std::min(mischief.late_completions, 0.95);
  return out;
}

// The hook decides and does nothing else: it runs inside the engine, under its lock.
Fabric::Route to_route(nb::callable hook) {
  return [hook = std::move(hook)](const Header& header) {
    try {
      const auto verdict = nb::cast<int>(hook(static_cast<int>(header.kind), header.from, header.to, header.nbytes));
      return static_cast<Verdict>(verdict);
    } catch (nb::python_error& error) {
      error.discard_as_unraisable("the route hook of a SimFabric");
    } catch (const nb::cast_error&) {  // it returned something else
    }
    return Verdict::deliver;
  };
}

}  // namespace

std::shared_ptr<Fabric> common_fabric(const Options& options) {
  const Settings settings = settings_of(options);
  return Fabric::common([&] { return std::make_shared<Fabric>(settings.seed, settings.mischief, false); });
}

std::vector<std::unique_ptr<Domain>> open_domains(Sink& sink, const std::shared_ptr<Fabric>& fabric,
                                                  const Options& options, int doorbell_fd, std::vector<NodeId>& nodes) {
  std::vector<std::unique_ptr<Domain>> domains;
  for (unsigned rail = 0; rail < settings_of(options).nics; ++rail) {
    auto domain = std::make_unique<SimDomain>(sink, fabric, rail, doorbell_fd);
    nodes.push_back(domain->node());
    domains.push_back(std::move(domain));
  }
  return domains;
}

void bind(nb::module_& m) {
  const auto edit = [](Fabric& fabric, NodeId node, const std::string& what, std::uint32_t value) {
    fabric.change(node, [&](Fabric::Controls& controls) {
      if (what == "stalled") controls.stalled = value != 0;
      if (what == "full") controls.full = value != 0;
      if (what == "holding") controls.holding = value != 0;
      if (what == "speed") controls.speed = std::max(1u, value);
      if (what == "fail_posts") controls.fail_posts += value;
      if (what == "fail_completions") controls.fail_completions += value;
    });
  };
  nb::class_<Fabric>(m, "Fabric")
      .def(nb::new_([](std::uint64_t seed, const Options& options) {
             return std::make_shared<Fabric>(seed, settings_of(options).mischief, true);
           }),
           "seed"_a, "options"_a)
      .def("reseed", &Fabric::reseed, "seed"_a)
      .def("set", edit, "node"_a, "what"_a, "value"_a)
      .def("set_path", &Fabric::set_path, "one"_a, "other"_a, "open"_a)
      .def("kill", &Fabric::kill, "node"_a)
      .def(
          "set_route",
          [](Fabric& fabric, nb::object hook) {
            fabric.set_route(hook.is_none() ? Fabric::Route() : to_route(nb::cast<nb::callable>(hook)));
          },
          "hook"_a.none())
      .def("totals", [](Fabric& fabric) {
        const Fabric::Totals now = fabric.totals();
        return std::map<std::string, std::uint64_t>{{"delivered", now.delivered},
                                                    {"left", now.left},
                                                    {"dropped", now.dropped},
                                                    {"failed", now.failed},
                                                    {"refused_posts", now.refused_posts},
                                                    {"digest", now.digest},
                                                    {"in_flight", now.in_flight}};
      });
}

}  // namespace aio::sim
