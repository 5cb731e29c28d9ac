// Python classes of the simulated fabric, and of a core on one.
#include "../native/bindings.h"

#include <nanobind/stl/function.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "../native/native_core.h"
#include "domain.h"
#include "options.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace aio::sim {

namespace {

class SimCore : public native::NativeCore {
 public:
  SimCore(const std::shared_ptr<Fabric>& fabric, const Options& options)
      : NativeCore("sim", options, [&] { return set_up(fabric, options); }) {}

  // The fabric's numbers of our NICs.
  std::vector<NodeId> nodes() {
    std::vector<NodeId> out;
    for (const auto& domain : core().domains()) out.push_back(static_cast<const SimDomain&>(*domain).node());
    return out;
  }
};

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

void set_control(Fabric& fabric, NodeId node, const std::string& what, std::uint32_t value) {
  fabric.edit_controls(node, [&](Fabric::Controls& controls) {
    if (what == "stalled") controls.stalled = value != 0;
    if (what == "full") controls.full = value != 0;
    if (what == "holding") controls.holding = value != 0;
    if (what == "speed") controls.speed = std::max(1u, value);
    if (what == "fail_posts") controls.fail_posts += value;
    if (what == "fail_completions") controls.fail_completions += value;
  });
}

std::map<std::string, std::uint64_t> totals_of(Fabric& fabric) {
  const Fabric::Totals now = fabric.totals();
  return {{"delivered", now.delivered}, {"left", now.left},     {"dropped", now.dropped},
          {"failed", now.failed},       {"digest", now.digest}, {"refused_posts", now.refused_posts},
          {"in_flight", now.in_flight}};
}

void bind(nb::module_& m) {
  nb::class_<Fabric>(m, "Fabric")
      .def(nb::new_([](std::uint64_t seed, const Options& options) {
             return std::make_shared<Fabric>(seed, settings_of(options).faults, true);
           }),
           "seed"_a, "options"_a)
      .def("reseed", &Fabric::reseed, "seed"_a)
      .def("set", set_control, "node"_a, "what"_a, "value"_a)
      .def("set_path", &Fabric::set_path, "one"_a, "other"_a, "open"_a)
      .def("kill", &Fabric::kill, "node"_a)
      .def(
          "set_route",
          [](Fabric& fabric, nb::object hook) {
            fabric.set_route(hook.is_none() ? Fabric::Route() : to_route(nb::cast<nb::callable>(hook)));
          },
          "hook"_a.none())
      .def("totals", totals_of);

  nb::class_<SimCore, native::NativeCore>(m, "SimCore")
      .def(nb::init<const std::shared_ptr<Fabric>&, const Options&>(), "fabric"_a.none(), "options"_a)
      .def("nodes", &SimCore::nodes);
}

const native::BindingsRegistration registration(bind);

}  // namespace

}  // namespace aio::sim
