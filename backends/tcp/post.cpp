// What the core asks for: pieces, reads and messages, taken as far as they fit.
#include <algorithm>
#include <cerrno>

#include "domain.h"

namespace aio::tcp {

namespace {

constexpr std::size_t kMostWaiting = 256 << 10;  // messages beyond this wait in the core
constexpr std::size_t kMostUnacknowledged = 1024;

iovec target_of(const Piece& piece) noexcept { return {reinterpret_cast<void*>(piece.local_addr), piece.nbytes}; }

}  // namespace

std::optional<Outcome> TcpDomain::refusal(const Flow& flow, const Piece& piece, const RemoteRegion* far) const {
  const auto invalid = [](int code, const char* why) { return Outcome{Status::provider, code, why}; };
  if (piece.nbytes == 0) return std::nullopt;
  if (far == nullptr || far->peer != flow.run.peer) {
    return Outcome{Status::stale_region, 0, "the remote region is not registered with this connection"};
  }
  const unsigned access = flow.run.op == Op::write ? access_remote_write : access_remote_read;
  if ((far->key.access & access) == 0) return invalid(EACCES, "the peer's region does not grant this access");
  if (!inside(piece.remote_offset, piece.nbytes, far->nbytes)) return invalid(ERANGE, "the piece exceeds the region");
  const auto local = locals_.find(flow.run.local_region);
  if (local == locals_.end()) return invalid(EINVAL, "the local region is not registered");
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
  const auto found = links_.find(flow.run.peer);
  Stream* stream = found == links_.end() || found->second->leaving ? nullptr : found->second->main();
  if (stream == nullptr || stream->state == Stream::State::ended || stream->says_bye) {
    return end_next(stream != nullptr && !stream->verdict.ok() ? stream->verdict : kPeerGone);
  }
  if (!stream->up()) return Posted::full;
  const auto remote = remotes_.find(flow.run.remote_region);
  RemoteRegion* const far = remote == remotes_.end() ? nullptr : &remote->second;
  if (const auto refused = refusal(flow, flow.pieces[flow.next], far)) return end_next(*refused);
  if (stream->out.busy() || stream->job.flow != nullptr || stream->unacknowledged.size() >= kMostUnacknowledged) {
    stream->wanted = stream->job.flow == nullptr;  // a piece that is cut must come to its end first
    return Posted::full;
  }
  now_ = Clock::now();
  const bool idle = !stream->expects();
  if (idle) stream->since = now_;
  const bool reads = flow.run.op == Op::read;
  if (reads && flow.pieces[flow.next].nbytes == 0) return end_next({});  // there is nothing to wait for
  const Posted posted = reads ? post_read(*stream, flow, *far, budget) : post_writes(*stream, flow, far, budget);
  if (idle && stream->up() && stream->expects()) want_tick();
  return posted;
}

Posted TcpDomain::post_writes(Stream& stream, Flow& flow, RemoteRegion* far, std::uint32_t budget) {
  for (std::uint64_t turn = 0; turn < kTurnNbytes && budget != 0 && !flow.exhausted();) {
    const Piece* const first = flow.pieces + flow.next;
    const std::uint32_t most = std::min({budget, flow.run.count - flow.next, kFramePieces});
    std::uint32_t pieces = 0;
    std::uint64_t nbytes = 0;
    // What is refused is left for the next call, which begins with it.
    while (pieces < most && nbytes + first[pieces].nbytes <= kFrameNbytes && !refusal(flow, first[pieces], far)) {
      nbytes += first[pieces++].nbytes;
    }
    if (pieces == 0 && refusal(flow, *first, far)) return Posted::more;
    if (pieces == 0) {
      Job& job = stream.job;
      job.flow = &flow;
      job.piece = first;
      job.slot = far->key.slot;
      job.secret = far->key.secret;
      ++flow.next;
      ++flow.in_flight;
      pump(stream);
      if (stream.up() && !stream.blocked && stream.has_output()) want(stream);
      return Posted::full;
    }
    put_batch(stream, flow, pieces, far);
    flow.next += pieces;
    flow.in_flight += pieces;
    if (!flush(stream)) return stream.up() ? Posted::full : Posted::more;
    budget -= pieces;
    turn += nbytes + kMostHeadNbytes;
  }
  return Posted::more;
}

Posted TcpDomain::post_read(Stream& stream, Flow& flow, const RemoteRegion& far, std::uint32_t budget) {
  if (stream.reads.size() >= kMostReads) return Posted::full;
  Reading reading{stream.next_read, &flow, 0, {}, 0, 0};
  std::vector<ReadPiece> pieces;
  const std::uint32_t most = std::min({budget, flow.run.count - flow.next, kFramePieces});
  for (; reading.pieces < most; ++reading.pieces) {
    const Piece& piece = flow.pieces[flow.next + reading.pieces];
    if (piece.nbytes == 0 || refusal(flow, piece, &far)) break;
    pieces.push_back({piece.remote_offset, piece.nbytes});
    reading.targets.push_back(target_of(piece));
    reading.left += piece.nbytes;
  }
  ++stream.next_read;
  const auto count = static_cast<std::uint16_t>(pieces.size());
  begin_frame(stream);
  append_record(stream.out.head, FrameHead{Kind::read, 0, count, far.key.slot, far.key.secret, reading.number});
  for (const ReadPiece& piece : pieces) append_record(stream.out.head, piece);
  stream.out.parts.assign(1, {stream.out.head.data(), stream.out.head.size()});
  flow.next += reading.pieces;
  flow.in_flight += reading.pieces;
  stream.reads.push_back(std::move(reading));
  flush(stream);
  return Posted::more;
}

Posted TcpDomain::send(PeerNumber peer, TransferId message, const std::string& payload) {
  const auto found = links_.find(peer);
  Stream* stream = found == links_.end() || found->second->leaving ? nullptr : found->second->main();
  if (stream == nullptr || stream->state == Stream::State::ended || stream->says_bye) {
    sink_.sent(message, kPeerGone);
    return Posted::more;
  }
  if (payload.size() > kMessageNbytes) {
    sink_.sent(message,
               {Status::provider, EMSGSIZE, "the message exceeds " + std::to_string(kMessageNbytes) + " bytes"});
    return Posted::more;
  }
  if (!stream->up() || stream->control.size() > kMostWaiting) return Posted::full;
  append_record(stream->control, FrameHead{Kind::message, 0, 0, 0, payload.size(), 0});
  const auto* bytes = reinterpret_cast<const std::byte*>(payload.data());
  stream->control.insert(stream->control.end(), bytes, bytes + payload.size());
  stream->control_messages.push_back(message);
  if (!stream->blocked) want(*stream);
  return Posted::more;
}

}  // namespace aio::tcp
