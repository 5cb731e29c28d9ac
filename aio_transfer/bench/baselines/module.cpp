// Python module `_baseline`. Addresses are taken as they are: for the benchmark only.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "baseline.h"
#include "baseline_rail.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace aio::baseline {

namespace {

std::vector<std::uint64_t> addresses(nb::handle object) {
  Py_buffer view{};
  if (PyObject_GetBuffer(object.ptr(), &view, PyBUF_C_CONTIGUOUS) != 0) throw nb::python_error();
  const auto* begin = static_cast<const std::uint64_t*>(view.buf);
  std::vector<std::uint64_t> out(begin, begin + static_cast<std::size_t>(view.len) / sizeof *begin);
  PyBuffer_Release(&view);
  return out;
}

Batch batch_of(nb::handle sources, nb::handle targets, std::uint64_t nbytes) {
  Batch batch{addresses(sources), addresses(targets), nbytes};
  if (batch.sources.size() != batch.targets.size()) throw nb::value_error("as many sources as targets");
  return batch;
}

void bind_copies(nb::module_& m) {
  m.def(
      "copy",
      [](nb::handle sources, nb::handle targets, std::uint64_t nbytes, unsigned rounds) {
        const auto batch = batch_of(sources, targets, nbytes);
        nb::gil_scoped_release unlocked;
        return copy(batch, rounds);
      },
      "sources"_a, "targets"_a, "nbytes"_a, "rounds"_a);
  m.def(
      "copy_process",
      [](int pid, nb::handle sources, nb::handle targets, std::uint64_t nbytes, unsigned rounds) {
        const auto batch = batch_of(sources, targets, nbytes);
        nb::gil_scoped_release unlocked;
        return copy_process(pid, batch, rounds);
      },
      "pid"_a, "sources"_a, "targets"_a, "nbytes"_a, "rounds"_a);
}

nb::tuple offer(Rail& rail) {
  const auto [end, key] = rail.offer();
  return nb::make_tuple(nb::bytes(end.data(), end.size()), nb::bytes(key.data(), key.size()));
}

void join(Rail& rail, const nb::bytes& end, const nb::bytes& key, std::uint64_t nbytes) {
  rail.join({end.c_str(), end.size()}, {key.c_str(), key.size()}, nbytes);
}

nb::tuple write(Rail& rail, nb::handle sources, nb::handle targets, std::uint64_t nbytes, unsigned rounds,
                unsigned depth) {
  const auto batch = batch_of(sources, targets, nbytes);
  std::int64_t elapsed = 0;
  Times times;
  {
    nb::gil_scoped_release unlocked;
    times = rail.write(batch, rounds, depth, &elapsed);
  }
  return nb::make_tuple(elapsed, nb::cast(times));
}

void bind_rail(nb::module_& m) {
  nb::class_<Rail>(m, "Rail")
      .def(
          nb::init<const std::string&, const std::map<std::string, std::string>&, bool, std::uint64_t, std::uint64_t>(),
          "backend"_a, "options"_a, "block"_a, "addr"_a, "nbytes"_a)
      .def("offer", offer, nb::sig("def offer(self) -> tuple[bytes, bytes]"))
      .def("join", join, "end"_a, "key"_a, "nbytes"_a)
      .def("serve", &Rail::serve)
      .def("stop", &Rail::stop, nb::call_guard<nb::gil_scoped_release>())
      .def("write", write, "sources"_a, "targets"_a, "nbytes"_a, "rounds"_a, "depth"_a,
           nb::sig("def write(self, sources: object, targets: object, nbytes: int, rounds: int, depth: int) -> "
                   "tuple[int, list[int]]"))
      .def("exchange", &Rail::exchange, "rounds"_a, "begins"_a, nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace

}  // namespace aio::baseline

NB_MODULE(_baseline, m) {
  using aio::baseline::Bell;
  aio::baseline::bind_copies(m);
  nb::class_<Bell>(m, "Bell")
      .def(nb::init<unsigned, std::int64_t>(), "count"_a, "interval_us"_a)
      .def("fileno", &Bell::fileno)
      .def("answer", &Bell::answer);
  aio::baseline::bind_rail(m);
}
