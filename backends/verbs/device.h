// Devices and their ports: found, chosen, opened.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "gid.h"
#include "library.h"

namespace aio::verbs {

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
