// RDMA devices and their ports: enumeration, selection, opening.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "gid.h"
#include "library.h"

namespace aio::verbs {

inline constexpr std::uint32_t kRxeVendor = 0xffffff;  // vendor id of Linux's rdma_rxe

// An opened port of a device.
struct Port {
  Handle<abi::Context> context;
  std::string name;  // device name, with ":port" if the device has several
  std::uint8_t number = 1;
  abi::DeviceAttr device{};
  abi::PortAttr attr{};
  std::vector<PortGid> gids;

  [[nodiscard]] bool is_infiniband() const noexcept { return attr.link_layer == abi::link_infiniband; }
  // Soft-RoCE; README.md lists its quirks.
  [[nodiscard]] bool is_rxe() const noexcept { return device.vendor_id == kRxeVendor; }
  [[nodiscard]] double gigabits() const noexcept;
};

// Opens the ports that `devices` names ("mlx5_0,mlx5_1:2"); otherwise the `rails` fastest ports that are up, sorted by
// name. Throws Failure(unavailable) with the reason for every port that cannot be used.
std::vector<Port> open_ports(const Library& library, const std::string& devices, std::size_t rails);

// Reads the port's state and GIDs again.
void refresh(const Library& library, Port& port);

}  // namespace aio::verbs
