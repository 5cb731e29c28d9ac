// The sending half. One frame at a time: small things that have to be said, then a head, then payload, all in one call;
// where the kernel takes less than that, the rest follows when it has room.
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "domain.h"

namespace aio::tcp {

namespace {

constexpr std::size_t kMostControl = 4 << 20;  // answers that a peer asks for and does not read

WritePiece piece_of(const Piece& piece) noexcept {
  const std::uint32_t counts = piece.has_immediate() ? WritePiece::kCounts : 0;
  return {piece.remote_offset, static_cast<std::uint32_t>(piece.nbytes) | counts, piece.immediate};
}

iovec source_of(const Piece& piece) noexcept { return {reinterpret_cast<void*>(piece.local_addr), piece.nbytes}; }

}  // namespace

// ------------------------------------------------------------------------------------------------------------ frames

// What had to be said goes first.
void TcpDomain::begin_frame(Stream& stream) {
  Outgoing& out = stream.out;
  out.head.clear();
  out.head.swap(stream.control);
  out.messages.swap(stream.control_messages);
  out.at = 0;
  if (stream.ack_due > stream.acked) {
    append_record(out.head, FrameHead{Kind::ack, 0, 0, 0, 0, stream.ack_due});
    stream.acked = stream.ack_due;
  }
}

void TcpDomain::put_batch(Stream& stream, Flow& flow, std::uint32_t pieces, RemoteRegion* far) {
  begin_frame(stream);
  Outgoing& out = stream.out;
  const Piece* const first = flow.pieces + flow.next;
  std::uint64_t nbytes = 0;
  for (std::uint32_t i = 0; i < pieces; ++i) nbytes += first[i].nbytes;
  const bool names = nbytes != 0;  // what moves nothing names no region
  const std::uint64_t number = out.number = stream.next_number++;
  append_record(out.head, FrameHead{Kind::write, kWantsAck, static_cast<std::uint16_t>(pieces),
                                    names ? far->key.slot : 0, names ? far->key.secret : 0, number});
  out.parts.resize(1);
  for (std::uint32_t i = 0; i < pieces; ++i) {
    append_record(out.head, piece_of(first[i]));
    if (first[i].nbytes != 0) out.parts.push_back(source_of(first[i]));
  }
  out.parts[0] = {out.head.data(), out.head.size()};
  stream.unacknowledged.push_back({number, number, &flow, pieces, {}});
}

// The next part of a piece that was cut. It counts with its last.
void TcpDomain::put_job(Stream& stream) {
  begin_frame(stream);
  Outgoing& out = stream.out;
  Job& job = stream.job;
  const Piece& piece = *job.piece;
  const std::uint64_t nbytes = std::min(piece.nbytes - job.offset, kFrameNbytes);
  const bool last = job.offset + nbytes == piece.nbytes;
  const std::uint64_t number = out.number = stream.next_number++;
  if (job.offset == 0) job.first = number;
  const Piece part{piece.local_addr + job.offset, piece.remote_offset + job.offset, nbytes, piece.immediate,
                   last ? piece.flags : 0};
  const std::uint8_t flags = last ? kWantsAck : 0;
  append_record(out.head, FrameHead{Kind::write, flags, 1, job.slot, job.secret, number});
  append_record(out.head, piece_of(part));
  out.parts = {{out.head.data(), out.head.size()}, source_of(part)};
  job.offset += nbytes;
  if (!last) return;
  stream.unacknowledged.push_back({job.first, number, job.flow, 1, {}});
  job = {};
}

// Of the oldest read that the peer has asked for. False: there was none whose region is there.
bool TcpDomain::put_answer(Stream& stream) {
  while (!stream.serving.empty()) {
    Serving& serving = stream.serving.front();
    const Named source = find(serving.slot, serving.secret, access_remote_read);
    Verdict verdict = source.verdict;
    if (verdict == Verdict::ok && !std::ranges::all_of(serving.pieces, [&](const ReadPiece& piece) {
          return inside(piece.offset, piece.nbytes, source.region->memory.nbytes);
        })) {
      verdict = Verdict::bounds;
    }
    FrameHead done{Kind::done, static_cast<std::uint8_t>(verdict), 0, 0, 0, serving.number};
    if (verdict != Verdict::ok) {
      append_record(stream.control, done);
      stream.serving.pop_front();
      continue;
    }
    begin_frame(stream);
    Outgoing& out = stream.out;
    out.parts.resize(1);
    std::uint64_t nbytes = 0;
    while (serving.at < serving.pieces.size() && nbytes < kFrameNbytes) {
      const ReadPiece& piece = serving.pieces[serving.at];
      const std::uint64_t part = std::min(piece.nbytes - serving.offset, kFrameNbytes - nbytes);
      auto* from = reinterpret_cast<std::byte*>(source.region->memory.addr + piece.offset + serving.offset);
      if (part != 0) out.parts.push_back({from, part});
      nbytes += part;
      serving.offset += part;
      if (serving.offset != piece.nbytes) break;
      serving.offset = 0;
      ++serving.at;
    }
    out.source = source.number;
    if (nbytes != 0) append_record(out.head, FrameHead{Kind::data, 0, 0, 0, nbytes, serving.number});
    out.parts[0] = {out.head.data(), out.head.size()};
    if (serving.at == serving.pieces.size()) {
      std::memcpy(out.tail.data(), &done, sizeof done);
      out.parts.push_back({out.tail.data(), out.tail.size()});
      out.has_tail = true;
      stream.serving.pop_front();
    }
    return true;
  }
  return false;
}

bool TcpDomain::next_frame(Stream& stream) {
  if (stream.says_bye) {
    stream.out.is_bye = true;
    append_record(stream.control, FrameHead{Kind::bye, 0, 0, 0, 0, 0});
  } else if (!std::exchange(stream.wanted, false)) {
    // In turns, so that neither what we write nor what we are asked for keeps the other waiting.
    const bool serves = !stream.serving.empty() && (stream.job.flow == nullptr || !stream.served_last);
    stream.served_last = serves;
    if (serves && put_answer(stream)) return true;
    if (stream.job.flow != nullptr) {
      put_job(stream);
      return true;
    }
  }
  if (stream.control.empty() && stream.ack_due <= stream.acked) return false;
  begin_frame(stream);
  stream.out.parts.assign(1, {stream.out.head.data(), stream.out.head.size()});
  return true;
}

// ----------------------------------------------------------------------------------------------------------- sending

// Sends what is begun. Whether the kernel has all of it.
bool TcpDomain::flush(Stream& stream) {
  Outgoing& out = stream.out;
  while (out.at < out.parts.size()) {
    msghdr message{};
    message.msg_iov = &out.parts[out.at];
    message.msg_iovlen = out.parts.size() - out.at;
    ssize_t sent = ::sendmsg(stream.fd.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && errno == EAGAIN) {
      stream.blocked = true;
      stream.since = now_;
      watch(stream.fd.get(), stream.id, true, true);
      want_tick();
      return false;
    }
    if (sent < 0) {
      fail(stream, "send", errno);
      return false;
    }
    stream.since = now_;
    while (out.at < out.parts.size() && static_cast<std::size_t>(sent) >= out.parts[out.at].iov_len) {
      sent -= static_cast<ssize_t>(out.parts[out.at++].iov_len);
    }
    if (sent == 0) continue;
    iovec& part = out.parts[out.at];
    part.iov_base = static_cast<std::byte*>(part.iov_base) + sent;
    part.iov_len -= static_cast<std::size_t>(sent);
  }
  sent_all(stream);
  return true;
}

void TcpDomain::sent_all(Stream& stream) {
  Outgoing& out = stream.out;
  out.parts.clear();
  out.source = 0;
  out.number = 0;
  out.has_tail = false;
  for (const TransferId message : out.messages) sink_.sent(message, {});
  out.messages.clear();
  if (stream.job.flow != nullptr && !stream.job.stop.ok()) stop_job(stream, stream.job.stop);
  if (!std::exchange(out.is_bye, false)) return;
  stream.said_bye = true;
  ::shutdown(stream.fd.get(), SHUT_WR);
  stop_all(stream, kPeerGone);
  if (stream.heard_end) close(stream);
}

// A piece that was cut goes no further. What is being sent of it is read from its memory until it is out.
void TcpDomain::stop_job(Stream& stream, const Outcome& outcome) {
  stream.job.stop = outcome;
  if (stream.out.busy()) return;
  const Job job = std::exchange(stream.job, {});
  sink_.stopped(*job.flow, 1, job.stop);
}

// Sends for one turn. Returns whether anything moved.
bool TcpDomain::pump(Stream& stream) {
  bool moved = false;
  std::uint64_t turn = 0;
  while (stream.up() && !stream.blocked && !stream.said_bye && turn < kTurnNbytes) {
    if (!stream.out.busy() && !next_frame(stream)) break;
    for (const iovec& part : stream.out.parts) turn += part.iov_len;
    moved = true;
    if (!flush(stream)) break;
  }
  if (stream.up() && stream.control.size() > kMostControl) {
    malformed(stream, "it asks for answers and does not read them");
  }
  return moved;
}

}  // namespace aio::tcp
