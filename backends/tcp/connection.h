// Peers with their sockets, and accepted sockets whose handshake is not complete.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "stream.h"

namespace aio::tcp {

// A peer. It may have more NICs than this engine: the surplus ones write to us and are never written to.
struct Peer {
  PeerNumber number = 0;
  Token token{};
  EndpointBlob end{};
  std::vector<std::unique_ptr<Stream>> streams;  // the first is the one that is written to
  bool disconnecting = false;
  Clock::time_point disconnecting_since;

  [[nodiscard]] Stream* write_stream() noexcept { return streams.empty() ? nullptr : streams.front().get(); }
};

// An accepted socket that has not completed its handshake, or whose peer is not registered yet.
struct PendingConnection {
  StreamId id = 0;
  Fd fd;
  std::array<std::byte, sizeof(Hello)> hello{};
  std::size_t nbytes = 0;
  Clock::time_point last_progress;

  [[nodiscard]] bool complete() const noexcept { return nbytes == hello.size(); }
};

}  // namespace aio::tcp
