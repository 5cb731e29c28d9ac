// The receiving half: one call takes the rest of a payload straight into its targets, and what follows it into a
// buffer. Nothing that a peer says is believed before it is checked; who says what none of ours would is hung up on.
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "../core/counters.h"
#include "domain.h"

namespace aio::tcp {

namespace {

constexpr std::size_t kMostParts = 512;  // of one call; IOV_MAX is 1024

std::array<std::byte, 64 << 10> nowhere;  // written, and never read

Outcome outcome_of(Verdict verdict) {
  switch (verdict) {
    case Verdict::ok:
      return {};
    case Verdict::stale:
      return {Status::stale_region, 0, "the peer has deregistered the region"};
    case Verdict::access:
      return {Status::provider, EACCES, "the peer's region does not grant this access"};
    case Verdict::bounds:
      break;
  }
  return {Status::provider, ERANGE, "the piece exceeds the peer's region"};
}

}  // namespace

bool TcpDomain::receive(Stream& stream) {
  std::array<iovec, kMostParts + 1> parts;
  std::uint64_t turn = 0;
  while (stream.up() && turn < kTurnNbytes) {
    Incoming& in = stream.in;
    std::size_t count = 0;
    std::uint64_t payload = 0;
    if (in.left != 0 && in.nowhere) {
      payload = std::min<std::uint64_t>(in.left, nowhere.size());
      parts[count++] = {nowhere.data(), payload};
    } else if (in.left != 0) {
      for (std::size_t at = in.at; at < in.targets.size() && count < kMostParts; ++at) {
        payload += in.targets[at].iov_len;
        parts[count++] = in.targets[at];
      }
    }
    std::uint64_t asked = payload;
    if (payload == in.left) {  // and the beginning of what follows
      parts[count++] = {stream.buffer->data() + stream.end, stream.buffer->size() - stream.end};
      asked += stream.buffer->size() - stream.end;
    }
    const ssize_t got = ::readv(stream.fd.get(), parts.data(), static_cast<int>(count));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) break;
    if (got < 0) {
      fail(stream, "receive", errno);
      break;
    }
    if (got == 0) {
      hear_end(stream);
      break;
    }
    stream.since = now_;
    const auto nbytes = static_cast<std::uint64_t>(got);
    turn += nbytes;
    const std::uint64_t placed = std::min(nbytes, payload);
    stream.end += nbytes - placed;
    if (placed != 0) place(stream, placed);
    use_buffer(stream);
    if (nbytes < asked) break;  // there is no more now
  }
  return turn != 0;
}

// What is in the buffer: payload of the frame that it belongs to, and heads.
void TcpDomain::use_buffer(Stream& stream) {
  while (stream.up()) {
    const std::byte* const from = stream.buffer->data() + stream.begin;
    const std::size_t there = stream.end - stream.begin;
    Incoming& in = stream.in;
    if (in.left != 0) {
      const std::size_t part = std::min<std::size_t>(in.left, there);
      if (part == 0) break;
      for (std::size_t copied = 0, at = in.at; !in.nowhere && copied < part; ++at) {
        const std::size_t n = std::min(part - copied, in.targets[at].iov_len);
        if (n != 0) std::memcpy(in.targets[at].iov_base, from + copied, n);
        copied += n;
      }
      stream.begin += part;
      place(stream, part);
      continue;
    }
    if (there < sizeof(FrameHead)) break;
    const auto head = read_record<FrameHead>(from);
    if (const auto fault = fault_of(head); !fault.empty()) return malformed(stream, fault);
    if (there < head_nbytes(head)) break;
    stream.begin += head_nbytes(head);
    begin(stream, head, from + sizeof head);
  }
  if (!stream.up()) return;
  // What is left is less than a head, and goes to the front.
  std::memmove(stream.buffer->data(), stream.buffer->data() + stream.begin, stream.end - stream.begin);
  stream.end -= stream.begin;
  stream.begin = 0;
}

// So much payload is where it belongs.
void TcpDomain::place(Stream& stream, std::uint64_t nbytes) {
  Incoming& in = stream.in;
  in.left -= nbytes;
  const std::size_t first = in.at;
  while (!in.nowhere && nbytes != 0) {
    iovec& target = in.targets[in.at];
    const std::uint64_t part = std::min<std::uint64_t>(nbytes, target.iov_len);
    target.iov_base = static_cast<std::byte*>(target.iov_base) + part;
    target.iov_len -= part;
    nbytes -= part;
    if (target.iov_len == 0) ++in.at;
  }
  if (in.head.kind == Kind::write && !in.nowhere) count(in, first);
  if (in.left == 0) end_payload(stream);
}

// Counts the pieces from `first` on that are there now. Adjacent ones mostly name one counter: one call for all.
void TcpDomain::count(Incoming& in, std::size_t first) {
  if (in.left == 0) in.at = in.targets.size();  // those of no bytes at the end, too
  std::uint32_t id = 0, counts = 0;
  const auto tell = [&] {
    if (counts != 0) sink_.counted((counts - 1) << 24 | id);
    counts = 0;
  };
  for (std::size_t i = first; i < in.at; ++i) {
    const WritePiece& piece = in.pieces[i];
    if (!piece.counts()) continue;
    const std::uint32_t more = (piece.immediate >> 24) + 1;
    if ((piece.immediate & kCounterIdMask) != id || counts + more > 256) tell();
    id = piece.immediate & kCounterIdMask;
    counts += more;
  }
  tell();
}

void TcpDomain::malformed(Stream& stream, std::string_view why) {
  fail(stream, {Status::provider, EPROTO, "it sent what is not of this protocol: " + std::string(why)});
}

// ------------------------------------------------------------------------------------------------------------ frames

void TcpDomain::begin(Stream& stream, const FrameHead& head, const std::byte* records) {
  if (stream.heard_bye) return malformed(stream, "something after its goodbye");
  stream.in.head = head;
  switch (head.kind) {
    case Kind::write:
      return begin_write(stream, records);
    case Kind::read:
      return hear_read(stream, records);
    case Kind::data:
      return begin_data(stream);
    case Kind::done:
      return hear_done(stream);
    case Kind::ack:
      return hear_ack(stream, head.number);
    case Kind::refused:
      return hear_refusal(stream);
    case Kind::message: {
      Incoming& in = stream.in;
      in.message.resize(head.value);
      in.targets.assign(1, {in.message.data(), in.message.size()});
      in.at = 0;
      in.left = head.value;
      in.nowhere = false;
      in.region = 0;
      if (in.left == 0) end_payload(stream);
      return;
    }
    case Kind::bye:
      stream.heard_bye = stream.says_bye = true;
      return;
  }
}

void TcpDomain::begin_write(Stream& stream, const std::byte* records) {
  Incoming& in = stream.in;
  if (in.head.number != stream.last_write + 1) return malformed(stream, "a write out of turn");
  stream.last_write = in.head.number;
  in.pieces.clear();
  in.targets.clear();
  in.at = 0;
  in.left = 0;
  for (std::uint16_t i = 0; i < in.head.count; ++i) {
    in.pieces.push_back(read_record<WritePiece>(records + i * sizeof(WritePiece)));
    in.left += in.pieces.back().size();
  }
  if (in.left > kFrameNbytes) return malformed(stream, "a write that is too long");
  in.verdict = Verdict::ok;
  in.region = 0;
  std::uint64_t base = 0;
  if (in.left != 0) {
    const Named named = find(in.head.slot, in.head.value, access_remote_write);
    in.verdict = named.verdict;
    in.region = named.number;
    if (named.verdict == Verdict::ok) {
      base = named.region->memory.addr;
      const std::uint64_t limit = named.region->memory.nbytes;
      const bool fits = std::ranges::all_of(in.pieces, [&](const WritePiece& piece) {
        return piece.size() == 0 || inside(piece.offset, piece.size(), limit);
      });
      if (!fits) in.verdict = Verdict::bounds;
    }
  }
  in.nowhere = in.verdict != Verdict::ok;
  if (!in.nowhere) {
    for (const WritePiece& piece : in.pieces) {
      // An empty piece may name any offset: it is never an address.
      auto* to = piece.size() == 0 ? nullptr : reinterpret_cast<std::byte*>(base + piece.offset);
      in.targets.push_back({to, piece.size()});
    }
  }
  if (in.left != 0) return;
  count(in, 0);
  end_payload(stream);
}

void TcpDomain::begin_data(Stream& stream) {
  Incoming& in = stream.in;
  in.left = in.head.value;
  in.at = 0;
  in.region = 0;
  in.targets.clear();
  // Once we say goodbye nobody waits for it, and its memory is another's.
  in.nowhere = stream.reads.empty() && stream.says_bye;
  if (in.nowhere) return;
  if (stream.reads.empty() || stream.reads.front().number != in.head.number || stream.reads.front().left < in.left) {
    return malformed(stream, "an answer to nothing that was asked");
  }
  Reading& reading = stream.reads.front();
  reading.left -= in.left;
  for (std::uint64_t left = in.left; left != 0;) {
    iovec& target = reading.targets[reading.at];
    const std::uint64_t part = std::min<std::uint64_t>(left, target.iov_len);
    in.targets.push_back({target.iov_base, part});
    target.iov_base = static_cast<std::byte*>(target.iov_base) + part;
    target.iov_len -= part;
    if (target.iov_len == 0) ++reading.at;
    left -= part;
  }
}

void TcpDomain::end_payload(Stream& stream) {
  Incoming& in = stream.in;
  if (in.head.kind == Kind::message) {
    if (!in.nowhere) sink_.message(stream.link->number, std::move(in.message));
    in.message = {};
    return;
  }
  if (in.head.kind != Kind::write) return;
  if (in.verdict != Verdict::ok) {
    append_record(stream.control,
                  FrameHead{Kind::refused, static_cast<std::uint8_t>(in.verdict), 0, 0, 0, in.head.number});
  }
  if ((in.head.flags & kWantsAck) != 0) stream.ack_due = in.head.number;
}

void TcpDomain::hear_read(Stream& stream, const std::byte* records) {
  const FrameHead& head = stream.in.head;
  if (stream.serving.size() >= kMostReads) return malformed(stream, "more reads at once than may be asked for");
  Serving serving{head.number, head.slot, head.value, {}, 0, 0};
  for (std::uint16_t i = 0; i < head.count; ++i) {
    serving.pieces.push_back(read_record<ReadPiece>(records + i * sizeof(ReadPiece)));
  }
  stream.serving.push_back(std::move(serving));
}

void TcpDomain::hear_done(Stream& stream) {
  const FrameHead& head = stream.in.head;
  if (stream.reads.empty() && stream.says_bye) return;
  const auto verdict = static_cast<Verdict>(head.flags);
  const bool answers = !stream.reads.empty() && stream.reads.front().number == head.number;
  if (!answers || (verdict == Verdict::ok && stream.reads.front().left != 0)) {
    return malformed(stream, "the end of no read, or before its time");
  }
  const Reading reading = std::move(stream.reads.front());
  stream.reads.pop_front();
  sink_.stopped(*reading.flow, reading.pieces, outcome_of(verdict));
}

void TcpDomain::hear_ack(Stream& stream, std::uint64_t number) {
  if (number >= stream.next_number) return malformed(stream, "an acknowledgement of what was not sent");
  while (!stream.unacknowledged.empty() && stream.unacknowledged.front().last <= number) {
    const Unacknowledged one = std::move(stream.unacknowledged.front());
    if (stream.out.number != 0 && one.last >= stream.out.number)
      return malformed(stream, "an acknowledgement too early");
    stream.unacknowledged.pop_front();
    sink_.stopped(*one.flow, one.pieces, one.outcome);
  }
}

// It comes before the acknowledgement of the same write.
void TcpDomain::hear_refusal(Stream& stream) {
  const FrameHead& head = stream.in.head;
  const Outcome outcome = outcome_of(static_cast<Verdict>(head.flags));
  if (stream.job.flow != nullptr && stream.job.offset != 0 && head.number >= stream.job.first) {
    stream.refused_from = stream.job.first;  // so are those of it that are on their way
    stream.refused_to = stream.next_number - 1;
    return stop_job(stream, outcome);
  }
  for (Unacknowledged& one : stream.unacknowledged) {
    if (head.number < one.first || head.number > one.last) continue;
    one.outcome = outcome;
    return;
  }
  if (stream.says_bye || (head.number >= stream.refused_from && head.number <= stream.refused_to)) return;
  malformed(stream, "a refusal of what it had let in");
}

}  // namespace aio::tcp
