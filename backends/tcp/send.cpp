// Sending: one frame at a time. Queued control frames, header and payload leave in one sendmsg; what the kernel does
// not take follows when the socket is writable again.
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "domain.h"

namespace aio::tcp {

namespace {

constexpr std::size_t kMaxControlNbytes = 4 << 20;  // queued replies of a peer that does not read them

WritePiece piece_of(const Piece& piece) noexcept {
  const std::uint32_t counts = piece.has_immediate() ? WritePiece::kCounts : 0;
  return {piece.remote_offset, static_cast<std::uint32_t>(piece.nbytes) | counts, piece.immediate};
}

iovec source_of(const Piece& piece) noexcept { return {reinterpret_cast<void*>(piece.local_addr), piece.nbytes}; }

FrameHeader done_header(const ReadRequest& request, AccessResult result) noexcept {
  return {Kind::done, static_cast<std::uint8_t>(result), 0, 0, 0, request.number};
}

}  // namespace

// ------------------------------------------------------------------------------------------------------------ frames

// Control frames and the acknowledgement go first.
void TcpDomain::begin_frame(Stream& stream) {
  Outgoing& out = stream.out;
  out.header.clear();
  out.header.swap(stream.control);
  out.messages.swap(stream.control_messages);
  out.at = 0;
  if (stream.ack_due > stream.acked) {
    append_record(out.header, FrameHeader{Kind::ack, 0, 0, 0, 0, stream.ack_due});
    stream.acked = stream.ack_due;
  }
}

void TcpDomain::build_write(Stream& stream, Flow& flow, std::uint32_t pieces, RemoteRegion* remote) {
  begin_frame(stream);
  Outgoing& out = stream.out;
  const Piece* const first = flow.pieces + flow.next;
  std::uint64_t nbytes = 0;
  for (std::uint32_t i = 0; i < pieces; ++i) nbytes += first[i].nbytes;
  const bool has_payload = nbytes != 0;  // a write without payload names no region
  const std::uint64_t number = out.number = stream.next_number++;
  append_record(out.header,
                FrameHeader{Kind::write, kWantsAck, static_cast<std::uint16_t>(pieces),
                            has_payload ? remote->key.slot : 0, has_payload ? remote->key.secret : 0, number});
  out.parts.resize(1);
  for (std::uint32_t i = 0; i < pieces; ++i) {
    append_record(out.header, piece_of(first[i]));
    if (first[i].nbytes != 0) out.parts.push_back(source_of(first[i]));
  }
  out.parts[0] = {out.header.data(), out.header.size()};
  stream.unacknowledged.push_back({number, number, &flow, pieces, {}});
}

// Builds the next segment of a long piece. The count is due with the last one.
void TcpDomain::build_segment(Stream& stream) {
  begin_frame(stream);
  Outgoing& out = stream.out;
  SegmentedWrite& segmented = stream.segmented;
  const Piece& piece = *segmented.piece;
  const std::uint64_t nbytes = std::min(piece.nbytes - segmented.offset, kMaxFramePayload);
  const bool last = segmented.offset + nbytes == piece.nbytes;
  const std::uint64_t number = out.number = stream.next_number++;
  if (segmented.offset == 0) segmented.first = number;
  const Piece part{piece.local_addr + segmented.offset, piece.remote_offset + segmented.offset, nbytes, piece.immediate,
                   last ? piece.flags : 0};
  const std::uint8_t flags = last ? kWantsAck : 0;
  append_record(out.header, FrameHeader{Kind::write, flags, 1, segmented.slot, segmented.secret, number});
  append_record(out.header, piece_of(part));
  out.parts = {{out.header.data(), out.header.size()}, source_of(part)};
  segmented.offset += nbytes;
  if (!last) return;
  stream.unacknowledged.push_back({segmented.first, number, segmented.flow, 1, {}});
  segmented = {};
}

// Builds the next response frame of the oldest read request. Returns false if no request is left whose region may be
// read; the refused ones were answered.
bool TcpDomain::build_read_response(Stream& stream) {
  while (!stream.read_requests.empty()) {
    ReadRequest& request = stream.read_requests.front();
    const RegionLookup source = find_region(request.slot, request.secret, access_remote_read);
    AccessResult result = source.result;
    if (result == AccessResult::ok && !std::ranges::all_of(request.pieces, [&](const ReadPiece& piece) {
          return inside(piece.offset, piece.nbytes, source.region->memory.nbytes);
        })) {
      result = AccessResult::bounds;
    }
    if (result == AccessResult::ok) {
      build_read_data(stream, request, source);
      return true;
    }
    append_record(stream.control, done_header(request, result));
    stream.read_requests.pop_front();
  }
  return false;
}

// The request is gone afterwards if this frame completes it.
void TcpDomain::build_read_data(Stream& stream, ReadRequest& request, const RegionLookup& source) {
  begin_frame(stream);
  Outgoing& out = stream.out;
  out.parts.resize(1);
  std::uint64_t nbytes = 0;
  while (request.at < request.pieces.size() && nbytes < kMaxFramePayload) {
    const ReadPiece& piece = request.pieces[request.at];
    const std::uint64_t part = std::min(piece.nbytes - request.offset, kMaxFramePayload - nbytes);
    auto* from = reinterpret_cast<std::byte*>(source.region->memory.addr + piece.offset + request.offset);
    if (part != 0) out.parts.push_back({from, part});
    nbytes += part;
    request.offset += part;
    if (request.offset != piece.nbytes) break;
    request.offset = 0;
    ++request.at;
  }
  out.source = source.number;
  if (nbytes != 0) append_record(out.header, FrameHeader{Kind::data, 0, 0, 0, nbytes, request.number});
  out.parts[0] = {out.header.data(), out.header.size()};
  if (request.at != request.pieces.size()) return;
  const FrameHeader done = done_header(request, AccessResult::ok);
  std::memcpy(out.tail.data(), &done, sizeof done);
  out.parts.push_back({out.tail.data(), out.tail.size()});
  out.has_tail = true;
  stream.read_requests.pop_front();
}

bool TcpDomain::build_next_frame(Stream& stream) {
  if (stream.bye_queued) {
    stream.out.is_bye = true;
    append_record(stream.control, FrameHeader{Kind::bye, 0, 0, 0, 0, 0});
  } else if (!std::exchange(stream.core_waiting, false)) {
    // Alternate, so that neither our writes nor the peer's reads starve.
    const bool responds =
        !stream.read_requests.empty() && (stream.segmented.flow == nullptr || !stream.read_response_last);
    stream.read_response_last = responds;
    if (responds && build_read_response(stream)) return true;
    if (stream.segmented.flow != nullptr) {
      build_segment(stream);
      return true;
    }
  }
  if (stream.control.empty() && stream.ack_due <= stream.acked) return false;
  begin_frame(stream);
  stream.out.parts.assign(1, {stream.out.header.data(), stream.out.header.size()});
  return true;
}

// ----------------------------------------------------------------------------------------------------------- sending

// Sends the current frame. Returns whether the kernel has taken all of it.
bool TcpDomain::send_frame(Stream& stream) {
  Outgoing& out = stream.out;
  while (out.at < out.parts.size()) {
    msghdr message{};
    message.msg_iov = &out.parts[out.at];
    message.msg_iovlen = out.parts.size() - out.at;
    ssize_t sent = ::sendmsg(stream.fd.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && errno == EAGAIN) {
      stream.blocked = true;
      stream.last_progress = now_;
      watch(stream.fd.get(), stream.id, true, true);
      start_timer();
      return false;
    }
    if (sent < 0) {
      fail(stream, "send", errno);
      return false;
    }
    stream.last_progress = now_;
    while (out.at < out.parts.size() && static_cast<std::size_t>(sent) >= out.parts[out.at].iov_len) {
      sent -= static_cast<ssize_t>(out.parts[out.at++].iov_len);
    }
    if (sent == 0) continue;
    iovec& part = out.parts[out.at];
    part.iov_base = static_cast<std::byte*>(part.iov_base) + sent;
    part.iov_len -= static_cast<std::size_t>(sent);
  }
  on_frame_sent(stream);
  return true;
}

void TcpDomain::on_frame_sent(Stream& stream) {
  Outgoing& out = stream.out;
  out.parts.clear();
  out.source = 0;
  out.number = 0;
  out.has_tail = false;
  for (const TransferId message : out.messages) sink_.sent(message, {});
  out.messages.clear();
  if (stream.segmented.flow != nullptr && !stream.segmented.stop.ok()) stop_segmented(stream, stream.segmented.stop);
  if (!std::exchange(out.is_bye, false)) return;
  stream.bye_sent = true;
  ::shutdown(stream.fd.get(), SHUT_WR);
  abort_operations(stream, kConnectionClosed);
  if (stream.end_received) close(stream);
}

// Stops a segmented piece. The segment being sent is read from its memory until it is out.
void TcpDomain::stop_segmented(Stream& stream, const Outcome& outcome) {
  stream.segmented.stop = outcome;
  if (stream.out.busy()) return;
  const SegmentedWrite segmented = std::exchange(stream.segmented, {});
  sink_.stopped(*segmented.flow, 1, segmented.stop);
}

// Sends for one pass. Returns whether anything moved.
bool TcpDomain::send_frames(Stream& stream) {
  bool moved = false;
  std::uint64_t sent = 0;
  while (stream.connected() && !stream.blocked && !stream.bye_sent && sent < kPassNbytes) {
    if (!stream.out.busy() && !build_next_frame(stream)) break;
    for (const iovec& part : stream.out.parts) sent += part.iov_len;
    moved = true;
    if (!send_frame(stream)) break;
  }
  if (stream.connected() && stream.control.size() > kMaxControlNbytes) {
    protocol_error(stream, "it does not read the replies that it asks for");
  }
  return moved;
}

}  // namespace aio::tcp
