// One socket to one NIC of a peer, and everything that is half way on it in either direction.
#pragma once

#include <sys/uio.h>

#include <array>
#include <chrono>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "../core/domain.h"
#include "../core/handles.h"
#include "endpoint.h"
#include "wire.h"

namespace aio::tcp {

using Clock = std::chrono::steady_clock;
using StreamId = std::uint64_t;

// Read ahead, so that one call takes the rest of a payload and the head of what follows. What is payload in it is
// copied once more: 16 KiB hold the longest head, and are a sixtieth of a frame.
inline constexpr std::size_t kReadAheadNbytes = 16 << 10;
static_assert(kReadAheadNbytes > 2 * kMaxHeaderNbytes);

// Moved for one stream, either way, before the next has its turn.
inline constexpr std::uint64_t kPassNbytes = 2 << 20;

// How what was under way ends with a connection.
inline const Outcome kConnectionClosed{Status::peer_lost, 0, "the connection is closed"};

struct Peer;

// Pieces whose end is told by the peer's acknowledgement, or by its refusal. A piece that was cut has several frames.
struct Unacknowledged {
  std::uint64_t first, last;
  Flow* flow;
  std::uint32_t pieces;
  Outcome outcome;
};

// A piece that is longer than a frame, on its way.
struct SegmentedWrite {
  Flow* flow = nullptr;  // null: there is none
  const Piece* piece = nullptr;
  std::uint64_t offset = 0;
  std::uint64_t first = 0;  // number of its first frame
  std::uint32_t slot = 0;
  std::uint64_t secret = 0;
  Outcome stop;  // not ok: it goes no further, and ends so
};

// A read of ours, waiting for its answer.
struct PendingRead {
  std::uint64_t number;
  Flow* flow;
  std::uint32_t pieces;
  std::vector<iovec> targets;  // what is not placed yet, from `at` on
  std::size_t at = 0;
  std::uint64_t left = 0;
};

// A read of the peer's, waiting for ours.
struct ReadRequest {
  std::uint64_t number;
  std::uint32_t slot;
  std::uint64_t secret;
  std::vector<ReadPiece> pieces;
  std::size_t at = 0;
  std::uint64_t offset = 0;  // of pieces[at]: so much has been sent
};

// The frame that is being sent, behind whatever else had to be said.
struct Outgoing {
  std::vector<std::byte> header;
  std::array<std::byte, sizeof(FrameHeader)> tail{};  // of an answer that ends here
  std::vector<iovec> parts;                           // head, payload, tail; empty: nothing is being sent
  std::size_t at = 0;
  std::uint64_t number = 0;  // of the write that it is, or 0
  RegionNumber source = 0;   // an answer reads from this region of ours
  bool has_tail = false;
  bool is_bye = false;
  std::vector<TransferId> messages;

  [[nodiscard]] bool busy() const noexcept { return !parts.empty(); }
};

// The payload that is being received.
struct Incoming {
  FrameHeader header{};
  std::vector<WritePiece> pieces;
  std::vector<iovec> targets;  // pieces[i] goes to targets[i]
  std::size_t at = 0;
  std::uint64_t left = 0;
  AccessResult result = AccessResult::ok;
  bool discard = false;     // what is left is read and dropped
  RegionNumber region = 0;  // of ours, that is written to
  std::string message;
};

struct Stream {
  enum class State : std::uint8_t {
    waiting,  // the peer dials
    connecting,
    handshaking,  // said hello, and hears nothing yet
    connected,
    closed,  // broken, or both sides have said goodbye
  };

  StreamId id = 0;
  Peer* peer = nullptr;
  EndpointBlob remote{};
  Address address;
  bool dials = false;
  State state = State::waiting;
  Fd fd;
  bool scheduled = false;           // in TcpDomain::runnable_
  bool blocked = false;             // the kernel takes no more; EPOLLOUT is asked for
  Clock::time_point last_progress;  // it began, or bytes moved
  Clock::time_point redial_at;
  std::chrono::milliseconds redial_delay{5};

  Outgoing out;
  std::vector<std::byte> control;  // goes before the next frame
  std::vector<TransferId> control_messages;
  std::uint64_t ack_due = 0;  // acknowledge up to here with what is sent next
  std::uint64_t acked = 0;
  std::uint64_t next_number = 1;
  std::deque<Unacknowledged> unacknowledged;
  SegmentedWrite segmented;
  bool core_waiting = false;  // the core has found it busy: it comes next
  bool read_response_last = false;
  std::uint64_t refused_from = 0, refused_to = 0;  // parts of a piece that goes no further
  std::deque<ReadRequest> read_requests;
  std::deque<PendingRead> pending_reads;
  std::uint64_t next_read_number = 1;

  std::unique_ptr<std::array<std::byte, kReadAheadNbytes>> buffer;
  std::size_t begin = 0, end = 0;  // of what is in the buffer, and not yet used
  Incoming in;
  std::uint64_t last_write = 0;  // its number

  bool bye_queued = false;  // nothing is sent after what is being sent
  bool bye_sent = false;    // and that is out
  bool bye_received = false;
  bool end_received = false;  // nothing comes any more
  Outcome deferred_failure;   // why it broke, where the engine has not been told yet

  [[nodiscard]] bool connected() const noexcept { return state == State::connected; }
  [[nodiscard]] bool has_output() const noexcept {
    if (bye_queued) return !bye_sent;
    return out.busy() || !control.empty() || ack_due > acked || segmented.flow != nullptr || !read_requests.empty();
  }
  [[nodiscard]] bool awaits_peer() const noexcept {
    return blocked || !unacknowledged.empty() || !pending_reads.empty();
  }
};

}  // namespace aio::tcp
