// A peer and its sockets, and the sockets that have not proved yet whose they are.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "stream.h"

namespace aio::tcp {

// A peer. It may have more NICs than we: the others write to us, and are not written to.
struct Peer {
  PeerNumber number = 0;
  Token token{};
  EndpointBlob end{};
  std::vector<std::unique_ptr<Stream>> streams;  // the first is the one that is written to
  bool disconnecting = false;
  Clock::time_point disconnecting_since;

  [[nodiscard]] Stream* write_stream() noexcept { return streams.empty() ? nullptr : streams.front().get(); }
};

// Somebody at our door who has not said yet who he is, or whom we do not know yet.
struct PendingConnection {
  StreamId id = 0;
  Fd fd;
  std::array<std::byte, sizeof(Hello)> said{};
  std::size_t heard = 0;
  Clock::time_point last_progress;

  [[nodiscard]] bool complete() const noexcept { return heard == said.size(); }
};

}  // namespace aio::tcp
