// Posting of pieces, reads and messages, as far as they fit.
#include <algorithm>
#include <cerrno>

#include "domain.h"

namespace aio::tcp {

namespace {

constexpr std::size_t kMaxQueuedNbytes = 256 << 10;  // more messages than this wait in the core
constexpr std::size_t kMaxUnacknowledged = 1024;

iovec target_of(const Piece& piece) noexcept { return {reinterpret_cast<void*>(piece.local_addr), piece.nbytes}; }

}  // namespace

std::optional<Outcome> TcpDomain::piece_error(const Flow& flow, const Piece& piece, const RemoteRegion* remote) const {
  const auto invalid = [](int code, const char* why) { return Outcome{Status::provider, code, why}; };
  if (piece.nbytes == 0) return std::nullopt;
  if (remote == nullptr || remote->peer != flow.run.peer) {
    return Outcome{Status::stale_region, 0, "the remote region is not registered with this connection"};
  }
  const unsigned access = flow.run.op == Op::write ? access_remote_write : access_remote_read;
  if ((remote->key.access & access) == 0) return invalid(EACCES, "the peer's region does not grant this access");
  if (!inside(piece.remote_offset, piece.nbytes, remote->nbytes))
    return invalid(ERANGE, "the piece exceeds the region");
  const auto local = local_regions_.find(flow.run.local_region);
  if (local == local_regions_.end()) return invalid(EINVAL, "the local region is not registered");
  const LocalMemory& memory = local->second.memory;
  if (piece.local_addr < memory.addr || !inside(piece.local_addr - memory.addr, piece.nbytes, memory.nbytes)) {
    return invalid(EINVAL, "the piece exceeds the local region");
  }
  return std::nullopt;
}

Posted TcpDomain::post(Flow& flow, std::uint32_t budget) {
  const auto end_next = [&](const Outcome& outcome) {
    ++flow.next;
    ++flow.in_flight;
    sink_.stopped(flow, 1, outcome);
    return Posted::more;
  };
  const auto found = peers_.find(flow.run.peer);
  Stream* stream = found == peers_.end() || found->second->disconnecting ? nullptr : found->second->write_stream();
  if (stream == nullptr || stream->state == Stream::State::closed || stream->bye_queued) {
    return end_next(stream != nullptr && !stream->deferred_failure.ok() ? stream->deferred_failure : kConnectionClosed);
  }
  if (!stream->connected()) return Posted::full;
  const auto found_remote = remote_regions_.find(flow.run.remote_region);
  RemoteRegion* const remote = found_remote == remote_regions_.end() ? nullptr : &found_remote->second;
  if (const auto refused = piece_error(flow, flow.pieces[flow.next], remote)) return end_next(*refused);
  if (stream->out.busy() || stream->segmented.flow != nullptr || stream->unacknowledged.size() >= kMaxUnacknowledged) {
    stream->core_waiting = stream->segmented.flow == nullptr;  // a segmented piece must end first
    return Posted::full;
  }
  now_ = Clock::now();
  const bool idle = !stream->awaits_peer();
  if (idle) stream->last_progress = now_;
  const bool is_read = flow.run.op == Op::read;
  if (is_read && flow.pieces[flow.next].nbytes == 0) return end_next({});  // an empty read ends at once
  const Posted posted =
      is_read ? post_read(*stream, flow, *remote, budget) : post_writes(*stream, flow, remote, budget);
  if (idle && stream->connected() && stream->awaits_peer()) start_timer();
  return posted;
}

Posted TcpDomain::post_writes(Stream& stream, Flow& flow, RemoteRegion* remote, std::uint32_t budget) {
  for (std::uint64_t posted_nbytes = 0; posted_nbytes < kPassNbytes && budget != 0 && !flow.exhausted();) {
    const Piece* const first = flow.pieces + flow.next;
    const std::uint32_t most = std::min({budget, flow.run.count - flow.next, kMaxFramePieces});
    std::uint32_t pieces = 0;
    std::uint64_t nbytes = 0;
    // A refused piece is left for the next call, which begins with it.
    while (pieces < most && nbytes + first[pieces].nbytes <= kMaxFramePayload &&
           !piece_error(flow, first[pieces], remote)) {
      nbytes += first[pieces++].nbytes;
    }
    if (pieces == 0 && piece_error(flow, *first, remote)) return Posted::more;
    if (pieces == 0) {
      SegmentedWrite& segmented = stream.segmented;
      segmented.flow = &flow;
      segmented.piece = first;
      segmented.slot = remote->key.slot;
      segmented.secret = remote->key.secret;
      ++flow.next;
      ++flow.in_flight;
      send_frames(stream);
      if (stream.connected() && !stream.blocked && stream.has_output()) schedule(stream);
      return Posted::full;
    }
    build_write(stream, flow, pieces, remote);
    flow.next += pieces;
    flow.in_flight += pieces;
    if (!send_frame(stream)) return stream.connected() ? Posted::full : Posted::more;
    budget -= pieces;
    posted_nbytes += nbytes + kMaxHeaderNbytes;
  }
  return Posted::more;
}

Posted TcpDomain::post_read(Stream& stream, Flow& flow, const RemoteRegion& remote, std::uint32_t budget) {
  if (stream.pending_reads.size() >= kMaxReads) return Posted::full;
  PendingRead read{stream.next_read_number, &flow, 0, {}, 0, 0};
  std::vector<ReadPiece> pieces;
  const std::uint32_t most = std::min({budget, flow.run.count - flow.next, kMaxFramePieces});
  for (; read.pieces < most; ++read.pieces) {
    const Piece& piece = flow.pieces[flow.next + read.pieces];
    if (piece.nbytes == 0 || piece_error(flow, piece, &remote)) break;
    pieces.push_back({piece.remote_offset, piece.nbytes});
    read.targets.push_back(target_of(piece));
    read.left += piece.nbytes;
  }
  ++stream.next_read_number;
  const auto count = static_cast<std::uint16_t>(pieces.size());
  begin_frame(stream);
  append_record(stream.out.header, FrameHeader{Kind::read, 0, count, remote.key.slot, remote.key.secret, read.number});
  for (const ReadPiece& piece : pieces) append_record(stream.out.header, piece);
  stream.out.parts.assign(1, {stream.out.header.data(), stream.out.header.size()});
  flow.next += read.pieces;
  flow.in_flight += read.pieces;
  stream.pending_reads.push_back(std::move(read));
  send_frame(stream);
  return Posted::more;
}

Posted TcpDomain::send(PeerNumber number, TransferId message, const std::string& payload) {
  const auto found = peers_.find(number);
  Stream* stream = found == peers_.end() || found->second->disconnecting ? nullptr : found->second->write_stream();
  if (stream == nullptr || stream->state == Stream::State::closed || stream->bye_queued) {
    sink_.sent(message, kConnectionClosed);
    return Posted::more;
  }
  if (payload.size() > kMaxMessageNbytes) {
    sink_.sent(message,
               {Status::provider, EMSGSIZE, "the message exceeds " + std::to_string(kMaxMessageNbytes) + " bytes"});
    return Posted::more;
  }
  if (!stream->connected() || stream->control.size() > kMaxQueuedNbytes) return Posted::full;
  append_record(stream->control, FrameHeader{Kind::message, 0, 0, 0, payload.size(), 0});
  const auto* bytes = reinterpret_cast<const std::byte*>(payload.data());
  stream->control.insert(stream->control.end(), bytes, bytes + payload.size());
  stream->control_messages.push_back(message);
  if (!stream->blocked) schedule(*stream);
  return Posted::more;
}

}  // namespace aio::tcp
