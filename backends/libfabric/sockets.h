// Sockets behind an endpoint of libfabric's tcp provider. libfabric does not expose them, so they are found by the
// address of the endpoint's listener, which is also the local address of every connection it accepted.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

namespace aio::libfabric {

// A descriptor of this process, and the inode that tells it from a later one with the same number.
struct Socket {
  int fd;
  ino_t inode;

  [[nodiscard]] bool open() const noexcept {
    struct stat now{};
    return ::fstat(fd, &now) == 0 && now.st_ino == inode;
  }
};

// One more than the highest possible descriptor. Checking them all is faster than listing /proc/self/fd (10,000 open
// ones: 4 ms instead of 13 ms).
inline int descriptor_slots() {
  // Not /proc/self, which is almost empty once the main thread has ended.
  std::ifstream status("/proc/thread-self/status");
  constexpr std::string_view kField = "FDSize:";
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(kField)) return std::atoi(line.c_str() + kField.size());
  }
  return static_cast<int>(::sysconf(_SC_OPEN_MAX));  // out of descriptors
}

// Whether `fd` is a TCP socket bound to `listener`, or to its port if that is a wildcard address.
inline bool belongs_to(std::string_view listener, int fd) noexcept {
  sockaddr_storage own{}, wanted{};
  socklen_t nbytes = sizeof own;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&own), &nbytes) != 0) return false;
  std::memcpy(&wanted, listener.data(), std::min(listener.size(), sizeof wanted));
  int protocol = 0;  // a UDP socket may have the same port
  nbytes = sizeof protocol;
  ::getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &nbytes);
  if (protocol != IPPROTO_TCP || own.ss_family != wanted.ss_family) return false;
  if (own.ss_family == AF_INET) {
    const auto &a = reinterpret_cast<const sockaddr_in&>(own), &b = reinterpret_cast<const sockaddr_in&>(wanted);
    return a.sin_port == b.sin_port && (b.sin_addr.s_addr == INADDR_ANY || a.sin_addr.s_addr == b.sin_addr.s_addr);
  }
  const auto &a = reinterpret_cast<const sockaddr_in6&>(own), &b = reinterpret_cast<const sockaddr_in6&>(wanted);
  return own.ss_family == AF_INET6 && a.sin6_port == b.sin6_port &&
         (IN6_IS_ADDR_UNSPECIFIED(&b.sin6_addr) || IN6_ARE_ADDR_EQUAL(&a.sin6_addr, &b.sin6_addr));
}

// Stops the listener at `address`, and shuts down every connection that it accepted. Returns those connections:
// libfabric finds each one readable at its end, and closes it.
//
// No other socket is affected. While a listener is open, the kernel gives its port to no other socket, and only the
// caller, who holds the core's lock, can make libfabric close one of them and free its descriptor.
inline std::vector<Socket> shut_down_sockets(std::string_view address) {
  std::vector<Socket> connections;
  int listener = -1;
  const int slots = descriptor_slots();
  for (int fd = 0; fd < slots; ++fd) {
    if (!belongs_to(address, fd)) continue;
    int listening = 0;
    socklen_t nbytes = sizeof listening;
    struct stat status{};
    if (::getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &nbytes) != 0 || ::fstat(fd, &status) != 0) continue;
    if (listening != 0)
      listener = fd;
    else
      connections.push_back({fd, status.st_ino});
  }
  // The listener first, so that no connection is accepted after the search. That frees the port: from here on the
  // address is not used for a search.
  if (listener >= 0) ::shutdown(listener, SHUT_RDWR);
  for (const Socket& connection : connections) ::shutdown(connection.fd, SHUT_RDWR);
  return connections;
}

}  // namespace aio::libfabric
