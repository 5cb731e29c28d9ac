// The only file that knows Python. Ids and bytes cross here; references to native objects do not.
#include "../sim/bind.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>
#include <sched.h>

#include <charconv>
#include <sstream>

#include "../libfabric/domain.h"
#include "../shm/domain.h"
#include "../tcp/domain.h"
#include "../verbs/domain.h"
#include "core.h"
#include "options.h"
#include "pulse.h"
#include "scatter.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace aio {
namespace {

constexpr int kMaxSpinUs = 60'000'000;

using End = std::pair<nb::bytes, std::vector<int>>;

// A buffer of records, borrowed for the length of a call.
template <class T>
class Records {
 public:
  explicit Records(nb::handle object) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_C_CONTIGUOUS) != 0) throw nb::python_error();
  }
  Records(const Records&) = delete;
  Records& operator=(const Records&) = delete;
  ~Records() { PyBuffer_Release(&view_); }

  [[nodiscard]] const T* data() const noexcept { return static_cast<const T*>(view_.buf); }
  [[nodiscard]] std::size_t size() const {
    if (static_cast<std::size_t>(view_.len) % sizeof(T) != 0) {
      throw Failure(Failure::Kind::usage, "post", "the buffer is no whole number of records");
    }
    return static_cast<std::size_t>(view_.len) / sizeof(T);
  }

 private:
  Py_buffer view_{};
};

// One number of 64 bits after the other, borrowed likewise. Of anything else there are none.
class Numbers {
 public:
  explicit Numbers(nb::handle object) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) != 0) PyErr_Clear();
  }
  Numbers(const Numbers&) = delete;
  Numbers& operator=(const Numbers&) = delete;
  ~Numbers() { PyBuffer_Release(&view_); }

  // Those that are signed and negative are read as larger than any memory.
  [[nodiscard]] const std::uint64_t* of(std::size_t count) const noexcept {
    const std::string_view format = view_.format == nullptr ? "" : view_.format;
    const bool whole = format == "L" || format == "Q" || format == "l" || format == "q";
    const bool fits = view_.ndim == 1 && view_.itemsize == 8 && static_cast<std::size_t>(view_.len) == 8 * count;
    return whole && fits ? static_cast<const std::uint64_t*>(view_.buf) : nullptr;
  }

 private:
  Py_buffer view_{};
};

// `pieces` is written to. None: look closer, for at least one is not what it must be.
std::optional<std::uint64_t> fill_pieces_of(const nb::bytearray& pieces, nb::handle begins, nb::handle remote_begins,
                                            nb::handle lengths, nb::handle rooms, std::uint64_t address,
                                            std::uint64_t room, std::uint64_t largest) {
  const std::size_t count = pieces.size() / sizeof(Piece);
  const Numbers first(begins), second(remote_begins), third(lengths), fourth(rooms);
  const ScatterSpans spans{first.of(count), second.of(count), third.of(count), fourth.of(count)};
  if (!spans.begins || !spans.remote_begins || !spans.lengths || !spans.rooms) return std::nullopt;
  const std::span records(reinterpret_cast<Piece*>(PyByteArray_AS_STRING(pieces.ptr())), count);
  return fill_pieces(records, spans, address, room, largest);
}

std::string to_string(const nb::bytes& bytes) { return {bytes.c_str(), bytes.size()}; }
nb::bytes to_bytes(const std::string& bytes) { return nb::bytes(bytes.data(), bytes.size()); }

class NativeCore {
 public:
  NativeCore(const std::string& backend, const Options& options, const std::shared_ptr<sim::Fabric>& fabric)
      : backend_(backend) {
    CoreOptions core;
    const auto option = [&](const char* name) {
      const auto found = options.find(name);
      return found == options.end() ? std::string() : found->second;
    };
    core.always_spin = option("progress") == "spin";
    const auto number = [&](const char* name, const std::string& text, int most) {
      int value = -1;
      const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
      if (error == std::errc() && end == text.data() + text.size() && value >= 0 && value <= most) return value;
      throw Failure(Failure::Kind::usage, backend, std::string("the option ") + name + " cannot be " + option(name));
    };
    if (const auto spin = option("spin_us"); !spin.empty()) {
      core.spin = std::chrono::microseconds(number("spin_us", spin, kMaxSpinUs));
    }
    std::istringstream cpus(option("cpus"));
    for (std::string cpu; std::getline(cpus, cpu, ',');) core.cpus.push_back(number("cpus", cpu, CPU_SETSIZE - 1));
    if (backend == "shm") {
      auto segment = std::make_shared<shm::OwnSegment>();
      Core::Wiring wiring{&segment->get()->counters, segment->doorbell_fd(), segment};
      core_ = std::make_unique<Core>(std::move(wiring), core, [&](Sink& sink) {
        std::vector<std::unique_ptr<Domain>> domains;
        domains.push_back(std::make_unique<shm::ShmDomain>(sink, segment));
        return domains;
      });
    } else if (backend == "libfabric") {
      nb::gil_scoped_release unlocked;  // opening a device may take its time
      core_ = std::make_unique<Core>(Core::private_wiring(), core,
                                     [&](Sink& sink) { return libfabric::open_domains(sink, options); });
    } else if (backend == "tcp") {
      core_ = std::make_unique<Core>(Core::private_wiring(), core,
                                     [&](Sink& sink) { return tcp::open_domains(sink, options); });
    } else if (backend == "verbs") {
      nb::gil_scoped_release unlocked;
      core_ = std::make_unique<Core>(Core::private_wiring(), core,
                                     [&](Sink& sink) { return verbs::open_domains(sink, options); });
    } else if (backend == "sim") {
      const auto wire = fabric != nullptr ? fabric : sim::common_fabric(options);
      core.stepped = wire->stepped();
      Core::Wiring wiring = Core::private_wiring();
      const int doorbell = wiring.doorbell_fd;
      core_ = std::make_unique<Core>(std::move(wiring), core, [&](Sink& sink) {
        return sim::open_domains(sink, wire, options, doorbell, nodes_);
      });
    } else {
      throw Failure(Failure::Kind::unavailable, backend, "this build has no such native backend");
    }
  }

  Core& core() {
    if (!core_) throw Failure(Failure::Kind::usage, backend_, "the driver is closed");
    return *core_;
  }

  std::vector<nb::bytes> register_local(RegionNumber region, std::uint64_t addr, std::uint64_t nbytes, unsigned access,
                                        int fd, std::uint64_t fd_offset, bool is_dmabuf, int cuda_device) {
    std::vector<std::string> keys;
    {
      nb::gil_scoped_release unlocked;  // pinning memory takes milliseconds per GiB
      keys = core().register_local(region, LocalMemory{addr, nbytes, access, fd, fd_offset, is_dmabuf, cuda_device});
    }
    std::vector<nb::bytes> out;
    for (const auto& key : keys) out.push_back(to_bytes(key));
    return out;
  }

  void register_remote(RegionNumber region, PeerNumber peer, std::uint64_t nbytes, const std::vector<nb::bytes>& keys,
                       const std::vector<int>& fds) {
    std::vector<std::string> plain;
    for (const auto& key : keys) plain.push_back(to_string(key));
    if (plain.empty()) throw Failure(Failure::Kind::usage, "register", "no keys");
    nb::gil_scoped_release unlocked;
    core().register_remote(region, peer, nbytes, plain, fds);
  }

  std::vector<End> connect(PeerNumber peer, const std::optional<std::vector<End>>& remote) {
    std::optional<std::vector<Endpoint>> far;
    if (remote) {
      if (remote->empty()) throw Failure(Failure::Kind::usage, "connect", "the peer has no rails");
      far.emplace();
      for (const auto& [blob, fds] : *remote) far->push_back({to_string(blob), fds});
    }
    std::vector<End> ends;
    for (const auto& end : core().connect(peer, far)) ends.emplace_back(to_bytes(end.blob), end.fds);
    return ends;
  }

  void disconnect(PeerNumber peer, bool lost) {
    nb::gil_scoped_release unlocked;
    core().disconnect(peer, lost);
  }

  void deregister(RegionNumber region) {
    nb::gil_scoped_release unlocked;
    core().deregister(region);
  }

  bool post(TransferId transfer, nb::handle runs, nb::handle pieces) {
    const Records<Run> run(runs);
    const Records<Piece> piece(pieces);
    return core().post(transfer, run.data(), run.size(), piece.data(), piece.size());
  }

  std::vector<std::uint32_t> post_each(TransferId first, nb::handle runs, nb::handle pieces) {
    const Records<Run> run(runs);
    const Records<Piece> piece(pieces);
    return core().post_each(first, run.data(), run.size(), piece.data(), piece.size());
  }

  void send(PeerNumber peer, TransferId message, const nb::bytes& payload) {
    core().send(peer, message, to_string(payload));
  }

  nb::list drain(std::size_t limit) {
    events_.clear();
    core().drain(events_, limit);
    nb::list out;
    for (const Event& event : events_) {
      out.append(nb::make_tuple(static_cast<int>(event.kind), event.id, static_cast<int>(event.status), event.code,
                                to_bytes(event.payload)));
    }
    return out;
  }

  std::map<std::string, std::uint64_t> statistics() {
    const CoreStatistics now = core().statistics();
    return {{"transfers", now.transfers},
            {"writes", now.writes},
            {"reads", now.reads},
            {"nbytes", now.nbytes},
            {"failed", now.failed},
            {"counts", now.counts},
            {"dropped", now.dropped},
            {"inline_batches", now.inline_batches},
            {"handed_over", now.handed_over},
            {"loop_passes", now.loop_passes},
            {"handles", now.handles},
            {"queued", now.queued}};
  }

  nb::dict attributes() {
    nb::list rails;
    std::uint64_t piece = UINT64_MAX >> 1;
    std::uint64_t message = UINT64_MAX >> 1;
    for (const auto& domain : core().domains()) {
      rails.append(domain->attributes().name);
      piece = std::min(piece, domain->attributes().max_piece_nbytes);
      message = std::min(message, domain->attributes().max_message_nbytes);
    }
    const auto& first = core().domains().front()->attributes();
    nb::dict out;
    out["rails"] = nb::tuple(rails);
    out["provider"] = first.provider;
    out["protocol"] = first.protocol;
    out["max_piece_nbytes"] = piece;
    out["max_message_nbytes"] = message;
    out["same_host"] = first.same_host;
    out["grants"] = first.grants;
    out["device_memory"] = first.device_memory;
    return out;
  }

  // What a simulated fabric calls our NICs.
  [[nodiscard]] const std::vector<sim::NodeId>& nodes() const noexcept { return nodes_; }

  void close() {
    nb::gil_scoped_release unlocked;
    core_.reset();
  }

 private:
  std::string backend_;
  std::unique_ptr<Core> core_;
  std::vector<Event> events_;  // kept for its capacity
  std::vector<sim::NodeId> nodes_;
};

// Failures become the Python error of the same fault; the class lives in Python, its words come from here.
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

}  // namespace
}  // namespace aio

NB_MODULE(_native, m) {
  using aio::NativeCore;
  using aio::Pulse;
  nb::register_exception_translator(aio::translate);

  aio::sim::bind(m);

  nb::class_<NativeCore>(m, "NativeCore")
      .def(nb::init<const std::string&, const aio::Options&, const std::shared_ptr<aio::sim::Fabric>&>(), "backend"_a,
           "options"_a, "fabric"_a.none() = nb::none())
      .def("nodes", &NativeCore::nodes)
      .def("attributes", &NativeCore::attributes, nb::sig("def attributes(self) -> dict[str, typing.Any]"))
      .def("register_local", &NativeCore::register_local, "region"_a, "addr"_a, "nbytes"_a, "access"_a, "fd"_a,
           "fd_offset"_a, "is_dmabuf"_a, "cuda_device"_a)
      .def("register_remote", &NativeCore::register_remote, "region"_a, "peer"_a, "nbytes"_a, "keys"_a, "fds"_a)
      .def("deregister", &NativeCore::deregister, "region"_a)
      .def("connect", &NativeCore::connect, "peer"_a, "remote"_a.none())
      .def("disconnect", &NativeCore::disconnect, "peer"_a, "lost"_a)
      .def("post", &NativeCore::post, "transfer"_a, "runs"_a, "pieces"_a)
      .def("post_each", &NativeCore::post_each, "first"_a, "runs"_a, "pieces"_a)
      .def("send", &NativeCore::send, "peer"_a, "message"_a, "payload"_a)
      .def(
          "expect",
          [](NativeCore& self, std::uint32_t counter, std::int64_t counts) {
            return self.core().expect(counter, counts);
          },
          "counter"_a, "counts"_a)
      .def(
          "linger",
          [](NativeCore& self, std::uint32_t counter, std::uint64_t counts) {
            const aio::Core& core = self.core();
            nb::gil_scoped_release unlocked;
            return core.linger(counter, counts);
          },
          "counter"_a, "counts"_a)
      .def("fileno", [](NativeCore& self) { return self.core().fileno(); })
      .def("drain", &NativeCore::drain, "limit"_a,
           nb::sig("def drain(self, limit: int) -> list[tuple[int, int, int, int, bytes]]"))
      .def("statistics", &NativeCore::statistics)
      .def("close", &NativeCore::close);

  m.def("fill_pieces", &aio::fill_pieces_of, "pieces"_a, "begins"_a, "remote_begins"_a, "lengths"_a, "rooms"_a,
        "address"_a, "room"_a, "largest"_a);

  nb::class_<Pulse>(m, "Pulse")
      .def(
          "__init__",
          [](Pulse* self, std::int64_t interval_ms, std::int64_t timeout_ms) {
            new (self) Pulse(std::chrono::milliseconds(interval_ms), std::chrono::milliseconds(timeout_ms));
          },
          "interval_ms"_a, "timeout_ms"_a)
      .def("add", &Pulse::add, "peer"_a, "socket"_a)
      .def("remove", &Pulse::remove, "peer"_a, "lost"_a)
      .def("fileno", &Pulse::fileno)
      .def("drain",
           [](Pulse& self) {
             std::vector<std::pair<std::uint32_t, int>> out;
             for (const auto& [peer, loss] : self.drain()) out.emplace_back(peer, static_cast<int>(loss));
             return out;
           })
      .def("__len__", &Pulse::size);
}
