// Python module `_native`: NativeCore, the heartbeat, the filling of scatter records, and what backends add.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <span>

#include "../core/heartbeat.h"
#include "../core/scatter_pieces.h"
#include "bindings.h"
#include "buffers.h"
#include "native_core.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace aio::native {

namespace {

using Bind = void (*)(nb::module_&);

// A function's static: initialisers of different files run in no defined order.
std::vector<Bind>& registered() {
  static std::vector<Bind> binds;
  return binds;
}

// Writes to `pieces`. Returns None where at least one span is invalid: the caller finds out which.
std::optional<std::uint64_t> fill_pieces_of(const nb::bytearray& pieces, nb::handle begins, nb::handle remote_begins,
                                            nb::handle lengths, nb::handle rooms, std::uint64_t address,
                                            std::uint64_t room, std::uint64_t largest) {
  const std::size_t count = pieces.size() / sizeof(Piece);
  const NumberBuffer first(begins), second(remote_begins), third(lengths), fourth(rooms);
  const ScatterSpans spans{first.data(count), second.data(count), third.data(count), fourth.data(count)};
  if (!spans.begins || !spans.remote_begins || !spans.lengths || !spans.rooms) return std::nullopt;
  const std::span records(reinterpret_cast<Piece*>(PyByteArray_AS_STRING(pieces.ptr())), count);
  return fill_pieces(records, spans, address, room, largest);
}

// Turns a Failure into the Python error of the same fault: its class lives in Python, its words come from here.
void translate(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const Failure& failure) {
    nb::object errors = nb::module_::import_("aio_transfer.errors");
    nb::object error;
    switch (failure.kind) {
      case Failure::Kind::unavailable:
        error = errors.attr("BackendUnavailableError")(failure.subject, failure.reason, failure.hint);
        break;
      case Failure::Kind::stale:
        error = errors.attr("StaleRegionError")(failure.subject, "the peer", failure.reason);
        break;
      case Failure::Kind::peer_lost:
        error = errors.attr("PeerLostError")("at the other end", failure.reason);
        break;
      case Failure::Kind::usage:
        error = errors.attr("UsageError")(failure.what());
        break;
      case Failure::Kind::provider:
        error = errors.attr("ProviderError")(failure.subject, "code"_a = failure.code, "code_name"_a = failure.reason);
        break;
    }
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
  }
}

void bind_heartbeat(nb::module_& m) {
  nb::class_<Heartbeat>(m, "Heartbeat")
      .def(
          "__init__",
          [](Heartbeat* self, std::int64_t interval_ms, std::int64_t timeout_ms) {
            new (self) Heartbeat(std::chrono::milliseconds(interval_ms), std::chrono::milliseconds(timeout_ms));
          },
          "interval_ms"_a, "timeout_ms"_a)
      .def("add", &Heartbeat::add, "peer"_a, "socket"_a)
      .def("remove", &Heartbeat::remove, "peer"_a, "lost"_a)
      .def("fileno", &Heartbeat::fileno)
      .def("drain",
           [](Heartbeat& self) {
             std::vector<std::pair<std::uint32_t, int>> out;
             for (const auto& [peer, loss] : self.drain()) out.emplace_back(peer, static_cast<int>(loss));
             return out;
           })
      .def("__len__", &Heartbeat::size);
}

}  // namespace

BindingsRegistration::BindingsRegistration(Bind bind) { registered().push_back(bind); }

}  // namespace aio::native

NB_MODULE(_native, m) {
  using namespace aio::native;
  nb::register_exception_translator(translate);
  bind_native_core(m);
  bind_heartbeat(m);
  m.def("fill_pieces", &fill_pieces_of, "pieces"_a, "begins"_a, "remote_begins"_a, "lengths"_a, "rooms"_a, "address"_a,
        "room"_a, "largest"_a);
  for (const Bind bind : registered()) bind(m);
}
