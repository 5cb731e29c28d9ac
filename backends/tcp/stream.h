// One TCP connection to one NIC of a peer, with the state of its two directions.
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

// Read-ahead buffer: one readv takes the rest of a payload and the headers that follow it. Payload that lands here is
// copied once more: 16 KiB hold the longest header, and are 1/64 of a frame.
inline constexpr std::size_t kReadAheadNbytes = 16 << 10;
static_assert(kReadAheadNbytes > 2 * kMaxHeaderNbytes);

// Bytes that one stream sends or receives per pass before the next stream runs (fairness).
inline constexpr std::uint64_t kPassNbytes = 2 << 20;

// Outcome of operations in flight when the connection closes.
inline const Outcome kConnectionClosed{Status::peer_lost, 0, "the connection is closed"};

struct Peer;

// Pieces that end with the peer's acknowledgement or refusal. A segmented piece spans several frames.
struct Unacknowledged {
  std::uint64_t first, last;
  Flow* flow;
  std::uint32_t pieces;
  Outcome outcome;
};

// A piece longer than one frame, sent in segments.
struct SegmentedWrite {
  Flow* flow = nullptr;  // null: none
  const Piece* piece = nullptr;
  std::uint64_t offset = 0;
  std::uint64_t first = 0;  // number of its first frame
  std::uint32_t slot = 0;
  std::uint64_t secret = 0;
  Outcome stop;  // not ok: no further segment is sent, and the piece ends with this
};

// A read of ours that waits for the peer's response.
struct PendingRead {
  std::uint64_t number;
  Flow* flow;
  std::uint32_t pieces;
  std::vector<iovec> targets;  // not filled yet, from `at` on
  std::size_t at = 0;
  std::uint64_t left = 0;
};

// A peer's read request that waits for our response.
struct ReadRequest {
  std::uint64_t number;
  std::uint32_t slot;
  std::uint64_t secret;
  std::vector<ReadPiece> pieces;
  std::size_t at = 0;
  std::uint64_t offset = 0;  // bytes of pieces[at] already sent
};

// The frame that is being sent, together with the queued control frames.
struct Outgoing {
  std::vector<std::byte> header;
  std::array<std::byte, sizeof(FrameHeader)> tail{};  // the `done` header of a response that ends with this frame
  std::vector<iovec> parts;                           // header, payload, tail; empty: nothing is being sent
  std::size_t at = 0;
  std::uint64_t number = 0;  // of the write frame, or 0
  RegionNumber source = 0;   // local region that a response reads from, or 0
  bool has_tail = false;
  bool is_bye = false;
  std::vector<TransferId> messages;

  [[nodiscard]] bool busy() const noexcept { return !parts.empty(); }
};

// The payload that is being received.
struct Incoming {
  FrameHeader header{};
  std::vector<WritePiece> pieces;
  std::vector<iovec> targets;  // payload of pieces[i] goes to targets[i]
  std::size_t at = 0;
  std::uint64_t left = 0;
  AccessResult result = AccessResult::ok;
  bool discard = false;     // the rest is read and dropped
  RegionNumber region = 0;  // local region that is written to, or 0
  std::string message;
};

struct Stream {
  enum class State : std::uint8_t {
    waiting,  // for the peer to dial
    connecting,
    handshaking,  // hello sent, welcome not received
    connected,
    closed,  // broken, or both sides have sent `bye`
  };

  StreamId id = 0;
  Peer* peer = nullptr;
  EndpointBlob remote{};
  Address address;
  bool dials = false;
  State state = State::waiting;
  Fd fd;
  bool scheduled = false;           // listed in TcpDomain::runnable_
  bool blocked = false;             // the send buffer is full: EPOLLOUT is armed
  Clock::time_point last_progress;  // bytes moved, or the current state began
  Clock::time_point redial_at;
  std::chrono::milliseconds redial_delay{5};

  Outgoing out;
  std::vector<std::byte> control;  // control frames; sent before the next frame
  std::vector<TransferId> control_messages;
  std::uint64_t ack_due = 0;  // cumulative acknowledgement to send with the next output
  std::uint64_t acked = 0;
  std::uint64_t next_number = 1;
  std::deque<Unacknowledged> unacknowledged;
  SegmentedWrite segmented;
  bool core_waiting = false;  // post() found the stream busy: the core goes before queued responses
  bool read_response_last = false;
  std::uint64_t refused_from = 0, refused_to = 0;  // frames of a piece that was stopped after a refusal
  std::deque<ReadRequest> read_requests;
  std::deque<PendingRead> pending_reads;
  std::uint64_t next_read_number = 1;

  std::unique_ptr<std::array<std::byte, kReadAheadNbytes>> buffer;
  std::size_t begin = 0, end = 0;  // unparsed part of the buffer
  Incoming in;
  std::uint64_t last_write = 0;  // number of the last write frame received

  bool bye_queued = false;  // `bye` follows the frame being sent, and nothing follows `bye`
  bool bye_sent = false;
  bool bye_received = false;
  bool end_received = false;  // the peer closed its half: nothing more arrives
  Outcome deferred_failure;   // why it broke, while the engine has not been told yet

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
