// Socket addresses: parsed, printed, and in endpoint blobs.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <optional>
#include <string>

#include "wire.h"

namespace aio::tcp {

struct Address {
  sockaddr_storage storage{};
  socklen_t nbytes = 0;

  [[nodiscard]] sockaddr* get() noexcept { return reinterpret_cast<sockaddr*>(&storage); }
  [[nodiscard]] const sockaddr* get() const noexcept { return reinterpret_cast<const sockaddr*>(&storage); }
  [[nodiscard]] int family() const noexcept { return storage.ss_family; }
};

inline Address make_address(int family, const void* bytes, std::uint16_t port) noexcept {
  Address address;
  if (family == AF_INET) {
    auto* in = reinterpret_cast<sockaddr_in*>(&address.storage);
    *in = {};
    in->sin_family = AF_INET;
    in->sin_port = htons(port);
    std::memcpy(&in->sin_addr, bytes, sizeof in->sin_addr);
    address.nbytes = sizeof *in;
  } else {
    auto* in6 = reinterpret_cast<sockaddr_in6*>(&address.storage);
    *in6 = {};
    in6->sin6_family = AF_INET6;
    in6->sin6_port = htons(port);
    std::memcpy(&in6->sin6_addr, bytes, sizeof in6->sin6_addr);
    address.nbytes = sizeof *in6;
  }
  return address;
}

inline bool is_wildcard(const Address& address) noexcept {
  if (address.family() == AF_INET) {
    return reinterpret_cast<const sockaddr_in&>(address.storage).sin_addr.s_addr == htonl(INADDR_ANY);
  }
  return IN6_IS_ADDR_UNSPECIFIED(&reinterpret_cast<const sockaddr_in6&>(address.storage).sin6_addr) != 0;
}

inline std::optional<Address> parse_address(const std::string& text) noexcept {
  std::array<std::uint8_t, 16> bytes{};
  for (const int family : {AF_INET, AF_INET6}) {
    if (::inet_pton(family, text.c_str(), bytes.data()) == 1) return make_address(family, bytes.data(), 0);
  }
  return std::nullopt;
}

inline std::string to_string(const Address& address) {
  std::array<char, INET6_ADDRSTRLEN> printed{};
  const auto& in = reinterpret_cast<const sockaddr_in&>(address.storage);
  const auto& in6 = reinterpret_cast<const sockaddr_in6&>(address.storage);
  const bool is_v4 = address.family() == AF_INET;
  const void* bytes = is_v4 ? static_cast<const void*>(&in.sin_addr) : static_cast<const void*>(&in6.sin6_addr);
  ::inet_ntop(address.family(), bytes, printed.data(), printed.size());
  std::string text(is_v4 ? "" : "[");
  text.append(printed.data()).append(is_v4 ? ":" : "]:");
  return text.append(std::to_string(ntohs(is_v4 ? in.sin_port : in6.sin6_port)));
}

// Writes the address to dial into a blob.
inline void write_address(EndpointBlob& blob, const Address& address) noexcept {
  const auto& in = reinterpret_cast<const sockaddr_in&>(address.storage);
  const auto& in6 = reinterpret_cast<const sockaddr_in6&>(address.storage);
  const bool is_v4 = address.family() == AF_INET;
  blob.family = is_v4 ? 4 : 6;
  blob.port = ntohs(is_v4 ? in.sin_port : in6.sin6_port);
  blob.address = {};
  std::memcpy(blob.address.data(), is_v4 ? static_cast<const void*>(&in.sin_addr) : &in6.sin6_addr, is_v4 ? 4 : 16);
}

// Throws Failure(usage) if the blob holds no address that can be dialed.
inline Address read_address(const EndpointBlob& blob) {
  const bool known = blob.family == 4 || blob.family == 6;
  const Address address = make_address(blob.family == 4 ? AF_INET : AF_INET6, blob.address.data(), blob.port);
  if (!known || blob.port == 0 || is_wildcard(address)) {
    throw Failure(Failure::Kind::usage, "connect", "the peer's endpoint holds no address that can be dialed");
  }
  return address;
}

}  // namespace aio::tcp
