// Wire format between emulated NICs: datagrams over AF_UNIX, one socket per path of a queue pair, with abstract names,
// so that nothing is left behind when a process is killed. The kernel neither loses nor repeats datagrams, and queues
// ten per socket (net.unix.max_dgram_qlen); all reordering is done by the emulator.
#pragma once

#include <sys/socket.h>
#include <sys/un.h>

#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstdio>

namespace efa {

// Statuses of the device, as libfabric lists them (efa_errno.h); reported as vendor_err.
enum class Status : std::uint8_t {
  ok = 0,
  flushed = 1,
  unsupported_operation = 3,
  invalid_ah = 4,
  invalid_lkey = 5,
  local_bad_length = 6,
  bad_address = 7,
  abort = 8,
  bad_queue_pair = 9,
  receiver_not_ready = 10,
  remote_bad_length = 11,
  unresponsive = 13,
  unknown_peer = 14,
};

// A queue pair; the NIC's number stands for its GID.
struct Port {
  std::uint16_t device = 0;
  std::uint16_t queue_pair = 0;

  auto operator<=>(const Port&) const = default;
};

enum class Kind : std::uint8_t {
  send = 0,
  write = 1,
  read = 2,    // requests bytes
  data = 3,    // carries them
  answer = 4,  // whether a message has arrived
  probe = 5,   // asks whether the queue pair exists
};

struct Header {
  std::uint32_t magic = kMagic;
  Kind kind = Kind::probe;
  Status status = Status::ok;
  std::uint8_t rnr_retry = 0;
  std::uint8_t has_immediate = 0;
  Port from, to;
  std::uint32_t qkey = 0;
  std::uint32_t immediate = 0;
  std::uint64_t message = 0;   // the initiator's id of the message; unique
  std::uint64_t sequence = 0;  // of the packet between these two ports
  std::uint64_t offset = 0;    // of the packet in the message
  std::uint64_t total = 0;     // bytes of the message
  std::uint64_t remote_addr = 0;
  std::uint32_t remote_key = 0;
  std::uint32_t nbytes = 0;   // of this packet
  std::uint32_t packets = 0;  // of the message
  std::uint16_t path = 0;
  std::uint16_t fails = 0;  // the fault injector chose this message: its second half does not arrive

  static constexpr std::uint32_t kMagic = 0x31616665;  // "efa1"
};
static_assert(sizeof(Header) == 80);

inline constexpr std::uint32_t kMostSend = 8928;  // one packet: the real device's limit
inline constexpr std::size_t kMostDatagram = sizeof(Header) + kMostSend;

inline constexpr unsigned kMostPaths = 8;

inline socklen_t to_sockaddr(Port port, unsigned path, sockaddr_un& address) noexcept {
  address = {};
  address.sun_family = AF_UNIX;
  const int nbytes = std::snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "efa-emulator-%u-%u-%u",
                                   unsigned{port.device}, unsigned{port.queue_pair}, path);
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + static_cast<std::size_t>(nbytes));
}

}  // namespace efa
