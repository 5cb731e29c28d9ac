// Python class of a core with the domains of one backend. Ids and bytes cross here; references to native objects do
// not.
#pragma once

#include <nanobind/nanobind.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../core/core.h"
#include "../core/native_backend.h"

namespace aio::native {

class NativeCore {
 public:
  using End = std::pair<nanobind::bytes, std::vector<int>>;  // of one rail: its blob, and its descriptors

  NativeCore(const std::string& backend, const Options& options);

  std::vector<nanobind::bytes> register_local(RegionNumber region, std::uint64_t addr, std::uint64_t nbytes,
                                              unsigned access, int fd, std::uint64_t fd_offset, bool is_dmabuf,
                                              int cuda_device);
  void register_remote(RegionNumber region, PeerNumber peer, std::uint64_t nbytes,
                       const std::vector<nanobind::bytes>& keys, const std::vector<int>& fds);
  void deregister(RegionNumber region);
  std::vector<End> connect(PeerNumber peer, const std::optional<std::vector<End>>& remote);
  void disconnect(PeerNumber peer, bool lost);
  bool post(TransferId transfer, nanobind::handle runs, nanobind::handle pieces);
  std::vector<std::uint32_t> post_each(TransferId first, nanobind::handle runs, nanobind::handle pieces);
  void send(PeerNumber peer, TransferId message, const nanobind::bytes& payload);
  std::uint64_t expect(std::uint32_t counter, std::int64_t counts) { return core().expect(counter, counts); }
  std::uint64_t spin_wait(std::uint32_t counter, std::uint64_t counts);
  int fileno() { return core().fileno(); }
  nanobind::list drain(std::size_t limit);
  std::map<std::string, std::uint64_t> statistics();
  nanobind::dict attributes();
  void close();

 protected:
  // For a subclass that is opened with more than options. `set_up` runs without the interpreter's lock.
  NativeCore(const std::string& backend, const Options& options, const std::function<BackendSetup()>& set_up);

  Core& core();

 private:
  std::string backend_;
  bool spins_ = false;
  std::unique_ptr<Core> core_;
  std::vector<Event> events_;  // kept for its capacity
};

void bind_native_core(nanobind::module_& m);

}  // namespace aio::native
