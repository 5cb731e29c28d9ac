// Receiving: one readv takes the rest of a payload straight into its targets, and what follows into the read-ahead
// buffer. Everything received is checked before use; a protocol error closes the connection.
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "../core/counters.h"
#include "domain.h"

namespace aio::tcp {

namespace {

std::array<std::byte, 64 << 10> discard_buffer;  // written, never read

Outcome outcome_of(AccessResult result) {
  switch (result) {
    case AccessResult::ok:
      return {};
    case AccessResult::stale:
      return {Status::stale_region, 0, "the peer has deregistered the region"};
    case AccessResult::access:
      return {Status::provider, EACCES, "the peer's region does not grant this access"};
    case AccessResult::bounds:
      break;
  }
  return {Status::provider, ERANGE, "the piece exceeds the peer's region"};
}

}  // namespace

// What one readv asks for: the rest of the current payload, then the read-ahead buffer.
TcpDomain::ReadPlan TcpDomain::plan_read(Stream& stream, std::array<iovec, kMaxParts + 1>& parts) noexcept {
  const Incoming& in = stream.in;
  ReadPlan plan;
  if (in.left != 0 && in.discard) {
    plan.payload = std::min<std::uint64_t>(in.left, discard_buffer.size());
    parts[plan.count++] = {discard_buffer.data(), plan.payload};
  } else if (in.left != 0) {
    for (std::size_t at = in.at; at < in.targets.size() && plan.count < kMaxParts; ++at) {
      plan.payload += in.targets[at].iov_len;
      parts[plan.count++] = in.targets[at];
    }
  }
  plan.nbytes = plan.payload;
  // Following headers are read in the same call, but only if the whole payload comes before them.
  if (plan.payload == in.left) {
    const std::size_t room = stream.buffer->size() - stream.end;
    parts[plan.count++] = {stream.buffer->data() + stream.end, room};
    plan.nbytes += room;
  }
  return plan;
}

bool TcpDomain::receive(Stream& stream) {
  std::array<iovec, kMaxParts + 1> parts;
  std::uint64_t received = 0;
  while (stream.connected() && received < kPassNbytes) {
    const ReadPlan plan = plan_read(stream, parts);
    const ssize_t got = ::readv(stream.fd.get(), parts.data(), static_cast<int>(plan.count));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) break;
    if (got < 0) {
      fail(stream, "receive", errno);
      break;
    }
    if (got == 0) {
      on_end_of_stream(stream);
      break;
    }
    stream.last_progress = now_;
    const auto nbytes = static_cast<std::uint64_t>(got);
    received += nbytes;
    const std::uint64_t placed = std::min(nbytes, plan.payload);
    stream.end += nbytes - placed;
    if (placed != 0) advance_payload(stream, placed);
    parse_buffer(stream);
    if (nbytes < plan.nbytes) break;  // a short read: the socket is empty
  }
  return received != 0;
}

// Parses what is in the buffer: payload of the current frame, and headers.
void TcpDomain::parse_buffer(Stream& stream) {
  while (stream.connected()) {
    const std::byte* const from = stream.buffer->data() + stream.begin;
    const std::size_t there = stream.end - stream.begin;
    Incoming& in = stream.in;
    if (in.left != 0) {
      const std::size_t part = std::min<std::size_t>(in.left, there);
      if (part == 0) break;
      for (std::size_t copied = 0, at = in.at; !in.discard && copied < part; ++at) {
        const std::size_t n = std::min(part - copied, in.targets[at].iov_len);
        if (n != 0) std::memcpy(in.targets[at].iov_base, from + copied, n);
        copied += n;
      }
      stream.begin += part;
      advance_payload(stream, part);
      continue;
    }
    if (there < sizeof(FrameHeader)) break;
    const auto header = read_record<FrameHeader>(from);
    if (const auto error = header_error(header); !error.empty()) return protocol_error(stream, error);
    if (there < header_nbytes(header)) break;
    stream.begin += header_nbytes(header);
    on_header(stream, header, from + sizeof header);
  }
  if (!stream.connected()) return;
  // An incomplete header remains, and moves to the front.
  std::memmove(stream.buffer->data(), stream.buffer->data() + stream.begin, stream.end - stream.begin);
  stream.end -= stream.begin;
  stream.begin = 0;
}

// Accounts for payload that has been placed or discarded.
void TcpDomain::advance_payload(Stream& stream, std::uint64_t nbytes) {
  Incoming& in = stream.in;
  in.left -= nbytes;
  const std::size_t first = in.at;
  while (!in.discard && nbytes != 0) {
    iovec& target = in.targets[in.at];
    const std::uint64_t part = std::min<std::uint64_t>(nbytes, target.iov_len);
    target.iov_base = static_cast<std::byte*>(target.iov_base) + part;
    target.iov_len -= part;
    nbytes -= part;
    if (target.iov_len == 0) ++in.at;
  }
  if (in.header.kind == Kind::write && !in.discard) notify_counts(in, first);
  if (in.left == 0) on_payload_complete(stream);
}

// Reports the counts of the pieces from `first` on that are complete. Adjacent pieces usually name one counter: one
// call for all of them. The payload was copied before by this thread, as Sink::counted requires.
void TcpDomain::notify_counts(Incoming& in, std::size_t first) {
  if (in.left == 0) in.at = in.targets.size();  // and empty pieces at the end
  std::uint32_t id = 0, counts = 0;
  const auto report = [&] {
    if (counts != 0) sink_.counted((counts - 1) << 24 | id);
    counts = 0;
  };
  for (std::size_t i = first; i < in.at; ++i) {
    const WritePiece& piece = in.pieces[i];
    if (!piece.counts()) continue;
    const std::uint32_t more = (piece.immediate >> 24) + 1;
    if ((piece.immediate & kCounterIdMask) != id || counts + more > 256) report();
    id = piece.immediate & kCounterIdMask;
    counts += more;
  }
  report();
}

void TcpDomain::protocol_error(Stream& stream, std::string_view why) {
  fail(stream, {Status::provider, EPROTO, "protocol error: " + std::string(why)});
}

// ------------------------------------------------------------------------------------------------------------ frames

void TcpDomain::on_header(Stream& stream, const FrameHeader& header, const std::byte* records) {
  if (stream.bye_received) return protocol_error(stream, "a frame after bye");
  stream.in.header = header;
  switch (header.kind) {
    case Kind::write:
      return begin_write(stream, records);
    case Kind::read:
      return on_read(stream, records);
    case Kind::data:
      return begin_data(stream);
    case Kind::done:
      return on_read_done(stream);
    case Kind::ack:
      return on_ack(stream, header.number);
    case Kind::refused:
      return on_refused(stream);
    case Kind::message: {
      Incoming& in = stream.in;
      in.message.resize(header.value);
      in.targets.assign(1, {in.message.data(), in.message.size()});
      in.at = 0;
      in.left = header.value;
      in.discard = false;
      in.region = 0;
      if (in.left == 0) on_payload_complete(stream);
      return;
    }
    case Kind::bye:
      stream.bye_received = stream.bye_queued = true;
      return;
  }
}

void TcpDomain::begin_write(Stream& stream, const std::byte* records) {
  Incoming& in = stream.in;
  if (in.header.number != stream.last_write + 1) return protocol_error(stream, "a write out of sequence");
  stream.last_write = in.header.number;
  in.pieces.clear();
  in.targets.clear();
  in.at = 0;
  in.left = 0;
  for (std::uint16_t i = 0; i < in.header.count; ++i) {
    in.pieces.push_back(read_record<WritePiece>(records + i * sizeof(WritePiece)));
    in.left += in.pieces.back().size();
  }
  if (in.left > kMaxFramePayload) return protocol_error(stream, "a write frame longer than 1 MiB");
  resolve_targets(in);
  if (in.left != 0) return;
  notify_counts(in, 0);
  on_payload_complete(stream);
}

// Finds where the payload goes, or decides that it is discarded.
void TcpDomain::resolve_targets(Incoming& in) {
  in.result = AccessResult::ok;
  in.region = 0;
  std::uint64_t base = 0;
  if (in.left != 0) {
    const RegionLookup target = find_region(in.header.slot, in.header.value, access_remote_write);
    in.result = target.result;
    in.region = target.number;
    if (target.result == AccessResult::ok) {
      base = target.region->memory.addr;
      const std::uint64_t limit = target.region->memory.nbytes;
      const bool fits = std::ranges::all_of(in.pieces, [&](const WritePiece& piece) {
        return piece.size() == 0 || inside(piece.offset, piece.size(), limit);
      });
      if (!fits) in.result = AccessResult::bounds;
    }
  }
  in.discard = in.result != AccessResult::ok;
  if (in.discard) return;
  for (const WritePiece& piece : in.pieces) {
    // An empty piece may name any offset, so its offset is never turned into an address.
    auto* to = piece.size() == 0 ? nullptr : reinterpret_cast<std::byte*>(base + piece.offset);
    in.targets.push_back({to, piece.size()});
  }
}

void TcpDomain::begin_data(Stream& stream) {
  Incoming& in = stream.in;
  in.left = in.header.value;
  in.at = 0;
  in.region = 0;
  in.targets.clear();
  // After our `bye` the read has been aborted, and its memory may have another use.
  in.discard = stream.pending_reads.empty() && stream.bye_queued;
  if (in.discard) return;
  if (stream.pending_reads.empty() || stream.pending_reads.front().number != in.header.number ||
      stream.pending_reads.front().left < in.left) {
    return protocol_error(stream, "a response to no pending read");
  }
  PendingRead& read = stream.pending_reads.front();
  read.left -= in.left;
  for (std::uint64_t left = in.left; left != 0;) {
    iovec& target = read.targets[read.at];
    const std::uint64_t part = std::min<std::uint64_t>(left, target.iov_len);
    in.targets.push_back({target.iov_base, part});
    target.iov_base = static_cast<std::byte*>(target.iov_base) + part;
    target.iov_len -= part;
    if (target.iov_len == 0) ++read.at;
    left -= part;
  }
}

void TcpDomain::on_payload_complete(Stream& stream) {
  Incoming& in = stream.in;
  if (in.header.kind == Kind::message) {
    if (!in.discard) sink_.message(stream.peer->number, std::move(in.message));
    in.message = {};
    return;
  }
  if (in.header.kind != Kind::write) return;
  if (in.result != AccessResult::ok) {
    append_record(stream.control,
                  FrameHeader{Kind::refused, static_cast<std::uint8_t>(in.result), 0, 0, 0, in.header.number});
  }
  if ((in.header.flags & kWantsAck) != 0) stream.ack_due = in.header.number;
}

void TcpDomain::on_read(Stream& stream, const std::byte* records) {
  const FrameHeader& header = stream.in.header;
  if (stream.read_requests.size() >= kMaxReads) return protocol_error(stream, "more outstanding reads than allowed");
  ReadRequest request{header.number, header.slot, header.value, {}, 0, 0};
  for (std::uint16_t i = 0; i < header.count; ++i) {
    request.pieces.push_back(read_record<ReadPiece>(records + i * sizeof(ReadPiece)));
  }
  stream.read_requests.push_back(std::move(request));
}

void TcpDomain::on_read_done(Stream& stream) {
  const FrameHeader& header = stream.in.header;
  if (stream.pending_reads.empty() && stream.bye_queued) return;
  const auto result = static_cast<AccessResult>(header.flags);
  const bool answers = !stream.pending_reads.empty() && stream.pending_reads.front().number == header.number;
  if (!answers || (result == AccessResult::ok && stream.pending_reads.front().left != 0)) {
    return protocol_error(stream, "the end of no pending read, or before all its data");
  }
  const PendingRead read = std::move(stream.pending_reads.front());
  stream.pending_reads.pop_front();
  sink_.stopped(*read.flow, read.pieces, outcome_of(result));
}

void TcpDomain::on_ack(Stream& stream, std::uint64_t number) {
  if (number >= stream.next_number) return protocol_error(stream, "an acknowledgement of a frame that was not sent");
  while (!stream.unacknowledged.empty() && stream.unacknowledged.front().last <= number) {
    const Unacknowledged one = std::move(stream.unacknowledged.front());
    if (stream.out.number != 0 && one.last >= stream.out.number)
      return protocol_error(stream, "an acknowledgement of a frame that is still being sent");
    stream.unacknowledged.pop_front();
    sink_.stopped(*one.flow, one.pieces, one.outcome);
  }
}

// Comes before the acknowledgement of the same write.
void TcpDomain::on_refused(Stream& stream) {
  const FrameHeader& header = stream.in.header;
  const Outcome outcome = outcome_of(static_cast<AccessResult>(header.flags));
  if (stream.segmented.flow != nullptr && stream.segmented.offset != 0 && header.number >= stream.segmented.first) {
    stream.refused_from = stream.segmented.first;  // later frames of the piece are refused too
    stream.refused_to = stream.next_number - 1;
    return stop_segmented(stream, outcome);
  }
  for (Unacknowledged& one : stream.unacknowledged) {
    if (header.number < one.first || header.number > one.last) continue;
    one.outcome = outcome;
    return;
  }
  if (stream.bye_queued || (header.number >= stream.refused_from && header.number <= stream.refused_to)) return;
  protocol_error(stream, "a refusal of a write that it had acknowledged");
}

}  // namespace aio::tcp
