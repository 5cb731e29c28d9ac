// Devices and their ports: found, chosen, opened.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "gid.h"
#include "library.h"

namespace aio::verbs {

// Owns one object of the library, and counts it where it belongs to a region or a peer.
template <class Object>
class Handle {
 public:
  Handle() = default;
  Handle(Object* object, int (*close)(Object*), std::uint64_t* count = nullptr) noexcept
      : object_(object), close_(close), count_(count) {
    if (count_ != nullptr) ++*count_;
  }
  Handle(Handle&& other) noexcept
      : object_(std::exchange(other.object_, nullptr)), close_(other.close_), count_(other.count_) {}
  Handle& operator=(Handle&& other) noexcept {
    if (this != &other) {
      reset();
      object_ = std::exchange(other.object_, nullptr);
      close_ = other.close_;
      count_ = other.count_;
    }
    return *this;
  }
  ~Handle() { reset(); }

  // Returns an error number. What was refused to close is still owned, and counted: the leak check then shows it.
  int reset() noexcept {
    if (object_ == nullptr) return 0;
    const int result = close_(object_);
    if (result != 0) return result;
    object_ = nullptr;
    if (count_ != nullptr) --*count_;
    return 0;
  }
  [[nodiscard]] Object* get() const noexcept { return object_; }
  Object* operator->() const noexcept { return object_; }
  explicit operator bool() const noexcept { return object_ != nullptr; }

 private:
  Object* object_ = nullptr;
  int (*close_)(Object*) = nullptr;
  std::uint64_t* count_ = nullptr;
};

inline constexpr std::uint32_t kRxeVendor = 0xffffff;  // what Linux' rdma_rxe calls itself

// One port of one device, opened.
struct Port {
  Handle<abi::Context> context;
  std::string name;  // the device's, with ":port" where it has several
  std::uint8_t number = 1;
  abi::DeviceAttr device{};
  abi::PortAttr attr{};
  std::vector<PortGid> gids;

  [[nodiscard]] bool is_infiniband() const noexcept { return attr.link_layer == abi::link_infiniband; }
  // Soft-RoCE, which has its quirks.
  [[nodiscard]] bool is_rxe() const noexcept { return device.vendor_id == kRxeVendor; }
  [[nodiscard]] double gigabits() const noexcept;
};

// Opens those that `devices` names ("mlx5_0,mlx5_1:2"), else the `rails` fastest that are up, in the order of their
// names. Throws Failure(unavailable) with the reason for every one that will not do.
std::vector<Port> open_ports(const Library& library, const std::string& devices, std::size_t rails);

// Reads the state and the addresses again.
void refresh(const Library& library, Port& port);

}  // namespace aio::verbs
