#include "native_core.h"

#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "buffers.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace aio::native {

NativeCore::NativeCore(const std::string& backend, const Options& options)
    : NativeCore(backend, options, [&] { return set_up_backend(backend, options); }) {}

NativeCore::NativeCore(const std::string& backend, const Options& options, const std::function<BackendSetup()>& set_up)
    : backend_(backend) {
  nb::gil_scoped_release unlocked;  // opening a device takes up to seconds
  BackendSetup setup = set_up();
  CoreOptions core = core_options(backend.c_str(), options);
  core.stepped = setup.stepped;
  // Nothing would move while the event loop of a stepped core spins.
  spins_ = core.always_spin && !core.stepped;
  core_ = std::make_unique<Core>(setup.wiring ? std::move(*setup.wiring) : private_wiring(), core, setup.open_domains);
}

Core& NativeCore::core() {
  if (!core_) throw Failure(Failure::Kind::usage, backend_, "the driver is closed");
  return *core_;
}

std::vector<nb::bytes> NativeCore::register_local(RegionNumber region, std::uint64_t addr, std::uint64_t nbytes,
                                                  unsigned access, int fd, std::uint64_t fd_offset, bool is_dmabuf,
                                                  int cuda_device) {
  std::vector<std::string> keys;
  {
    nb::gil_scoped_release unlocked;  // pinning memory takes milliseconds per GiB
    keys = core().register_local(region, LocalMemory{addr, nbytes, access, fd, fd_offset, is_dmabuf, cuda_device});
  }
  std::vector<nb::bytes> out;
  for (const auto& key : keys) out.push_back(to_bytes(key));
  return out;
}

void NativeCore::register_remote(RegionNumber region, PeerNumber peer, std::uint64_t nbytes,
                                 const std::vector<nb::bytes>& keys, const std::vector<int>& fds) {
  std::vector<std::string> plain;
  for (const auto& key : keys) plain.push_back(to_string(key));
  if (plain.empty()) throw Failure(Failure::Kind::usage, "register", "no keys");
  nb::gil_scoped_release unlocked;
  core().register_remote(region, peer, nbytes, plain, fds);
}

std::vector<NativeCore::End> NativeCore::connect(PeerNumber peer, const std::optional<std::vector<End>>& remote) {
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

void NativeCore::disconnect(PeerNumber peer, bool lost) {
  nb::gil_scoped_release unlocked;
  core().disconnect(peer, lost);
}

void NativeCore::deregister(RegionNumber region) {
  nb::gil_scoped_release unlocked;
  core().deregister(region);
}

bool NativeCore::post(TransferId transfer, nb::handle runs, nb::handle pieces) {
  const RecordBuffer<Run> run(runs);
  const RecordBuffer<Piece> piece(pieces);
  return core().post(transfer, run.data(), run.size(), piece.data(), piece.size());
}

std::vector<std::uint32_t> NativeCore::post_each(TransferId first, nb::handle runs, nb::handle pieces) {
  const RecordBuffer<Run> run(runs);
  const RecordBuffer<Piece> piece(pieces);
  return core().post_each(first, run.data(), run.size(), piece.data(), piece.size());
}

void NativeCore::send(PeerNumber peer, TransferId message, const nb::bytes& payload) {
  core().send(peer, message, to_string(payload));
}

std::uint64_t NativeCore::spin_wait(std::uint32_t counter, std::uint64_t counts) {
  const Core& open = core();
  nb::gil_scoped_release unlocked;
  return open.spin_wait(counter, counts);
}

nb::list NativeCore::drain(std::size_t limit) {
  events_.clear();
  core().drain(events_, limit);
  nb::list out;
  for (const Event& event : events_) {
    out.append(nb::make_tuple(static_cast<int>(event.kind), event.id, static_cast<int>(event.status), event.code,
                              to_bytes(event.payload)));
  }
  return out;
}

std::map<std::string, std::uint64_t> NativeCore::statistics() {
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

nb::dict NativeCore::attributes() {
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
  out["preference"] = first.preference;
  out["spins"] = spins_;
  return out;
}

void NativeCore::close() {
  nb::gil_scoped_release unlocked;
  core_.reset();
}

void bind_native_core(nb::module_& m) {
  nb::class_<NativeCore>(m, "NativeCore")
      .def(nb::init<const std::string&, const Options&>(), "backend"_a, "options"_a)
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
      .def("expect", &NativeCore::expect, "counter"_a, "counts"_a)
      .def("spin_wait", &NativeCore::spin_wait, "counter"_a, "counts"_a)
      .def("fileno", &NativeCore::fileno)
      .def("drain", &NativeCore::drain, "limit"_a,
           nb::sig("def drain(self, limit: int) -> list[tuple[int, int, int, int, bytes]]"))
      .def("statistics", &NativeCore::statistics)
      .def("close", &NativeCore::close);
}

}  // namespace aio::native
