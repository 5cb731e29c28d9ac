#include "device.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <sstream>

#include "../core/types.h"
#include "wire.h"

namespace aio::verbs {

namespace {

constexpr const char* kHint = "aio-transfer doctor";

[[noreturn]] void unavailable(const std::string& why, int code = 0, const char* hint = kHint) {
  throw Failure(Failure::Kind::unavailable, "verbs", why, code, hint);
}

std::string reason_of(const std::string& device, int code) {
  std::string reason = device + ": " + std::strerror(code);
  if (code == EPERM || code == EACCES) reason += ": no permission to open /dev/infiniband/uverbs*";
  return reason;
}

// Data rate of one InfiniBand lane by ibv_port_attr::active_speed; RoCE reports the nearest one.
double lane_gigabits(std::uint8_t speed) {
  switch (speed) {
    case 1:
      return 2.5;
    case 2:
      return 5;
    case 4:
    case 8:
      return 10;
    case 16:
      return 14;
    case 32:
      return 25;
    case 64:
      return 50;
    case 128:
      return 100;
    default:
      return 0;
  }
}

// Appends every usable port of a device, and a reason for each of the others.
void add_ports(const Library& library, abi::DeviceNode* node, std::vector<Port>& ports, std::string& reasons) {
  const std::string device = library.get_device_name(node);
  const auto refuse = [&](const std::string& why) { reasons += (reasons.empty() ? "" : "; ") + why; };
  abi::DeviceAttr attr{};
  for (int number = 1; number == 1 || number <= attr.phys_port_cnt; ++number) {
    // One context per port, so that its asynchronous events are that port's.
    Port port;
    errno = 0;
    abi::Context* context = library.open_device(node);
    if (context == nullptr) return refuse(reason_of(device, errno != 0 ? errno : ENODEV));
    port.context = {context, library.close_device};
    if (const int result = library.query_device(context, &attr); result != 0) return refuse(reason_of(device, result));
    port.device = attr;
    port.number = static_cast<std::uint8_t>(number);
    port.name = attr.phys_port_cnt > 1 ? device + ":" + std::to_string(number) : device;
    refresh(library, port);
    if (port.attr.link_layer != abi::link_infiniband && port.attr.link_layer != abi::link_ethernet) {
      refuse(port.name + ": neither InfiniBand nor RoCE");
    } else if (attr.max_srq == 0) {
      refuse(port.name + ": no shared receive queues");  // EFA, for example, which the libfabric backend supports
    } else {
      ports.push_back(std::move(port));
    }
  }
}

// Opening a device takes time: devices that are not named are not opened.
bool is_named(const std::string& devices, const std::string& device) {
  return devices.empty() || ("," + devices + ",").find("," + device + ",") != std::string::npos ||
         ("," + devices).find("," + device + ":") != std::string::npos;
}

std::vector<Port> usable_ports(const Library& library, const std::string& devices, std::string& reasons) {
  int count = 0;
  errno = 0;
  const std::unique_ptr<abi::DeviceNode*, void (*)(abi::DeviceNode**)> list(library.get_device_list(&count),
                                                                            library.free_device_list);
  std::vector<Port> ports;
  // ENOSYS: the kernel has no ib_uverbs module, as on most machines without a device.
  if (list == nullptr && errno == ENOSYS) unavailable("no RDMA device here", errno);
  if (list == nullptr) unavailable(std::string("RDMA devices cannot be listed: ") + std::strerror(errno), errno);
  for (int i = 0; i < count; ++i) {
    if (is_named(devices, library.get_device_name(list.get()[i]))) add_ports(library, list.get()[i], ports, reasons);
  }
  if (count == 0) reasons = "no RDMA device here";
  return ports;
}

std::vector<Port> named_ports(std::vector<Port> ports, const std::string& devices, const std::string& reasons) {
  std::vector<Port> chosen;
  std::istringstream names(devices);
  for (std::string name; std::getline(names, name, ',');) {
    const auto found = std::find_if(ports.begin(), ports.end(), [&](const Port& port) {
      return port.context && (port.name == name || port.name == name + ":1" || port.name + ":1" == name);
    });
    if (found == ports.end()) unavailable("no device " + name + (reasons.empty() ? "" : " (" + reasons + ")"));
    if (found->attr.state != abi::port_active) unavailable(name + ": its port is down");
    chosen.push_back(std::move(*found));
  }
  return chosen;
}

}  // namespace

double Port::gigabits() const noexcept {
  const int lanes = attr.active_width == 1   ? 1
                    : attr.active_width == 2 ? 4
                    : attr.active_width == 4 ? 8
                    : attr.active_width == 8 ? 12
                                             : 2;  // code 16
  return lanes * lane_gigabits(attr.active_speed);
}

std::vector<Port> open_ports(const Library& library, const std::string& devices, std::size_t rails) {
  std::string reasons;
  std::vector<Port> ports = usable_ports(library, devices, reasons);
  if (!devices.empty()) return named_ports(std::move(ports), devices, reasons);
  std::erase_if(ports, [&](const Port& port) {
    const bool down = port.attr.state != abi::port_active;
    if (down) reasons += (reasons.empty() ? "" : "; ") + port.name + ": its port is down";
    return down;
  });
  if (ports.empty()) unavailable(reasons);
  std::sort(ports.begin(), ports.end(), [](const Port& one, const Port& other) {
    return std::pair(-one.gigabits(), one.name) < std::pair(-other.gigabits(), other.name);
  });
  // Rails carry equal shares, so a slower port, or one of another link layer, would slow the others down.
  std::erase_if(ports, [&ports = std::as_const(ports)](const Port& port) {
    return port.gigabits() < ports.front().gigabits() || port.is_infiniband() != ports.front().is_infiniband();
  });
  if (ports.size() > rails) ports.erase(ports.begin() + static_cast<std::ptrdiff_t>(rails), ports.end());
  return ports;
}

void refresh(const Library& library, Port& port) {
  if (library.query_port(port.context.get(), port.number, &port.attr) != 0) port.attr.state = abi::port_down;
  std::array<abi::GidEntry, 256> entries{};
  const ssize_t count =
      library.query_gid_table(port.context.get(), entries.data(), entries.size(), 0, sizeof entries[0]);
  port.gids.clear();
  for (ssize_t i = 0; i < count && port.gids.size() < kMaxGids; ++i) {
    const abi::GidEntry& entry = entries[static_cast<std::size_t>(i)];
    if (entry.port_num != port.number || entry.gid_type > abi::gid_roce_v2 || entry.gid_index > 255) continue;
    PortGid gid{static_cast<GidType>(entry.gid_type), {}, static_cast<std::uint8_t>(entry.gid_index)};
    std::memcpy(gid.raw.data(), entry.gid.raw, gid.raw.size());
    port.gids.push_back(gid);
  }
}

}  // namespace aio::verbs
