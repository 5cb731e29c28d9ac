// Sending: work requests become packets, and their replies completions.
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>

#include "queue_pair.h"

namespace efa {

namespace {

constexpr int kBatch = 32;          // packets to one peer per pass
constexpr std::size_t kChoice = 8;  // messages whose packets are interleaved
constexpr auto kProbeAfter = std::chrono::milliseconds(40);

}  // namespace

std::uint64_t Parts::nbytes() const noexcept {
  std::uint64_t sum = 0;
  for (std::uint32_t i = 0; i < count; ++i) sum += list[i].length;
  return sum;
}

bool locate(const Memory& memory, const Parts& parts, std::uint64_t offset, std::uint64_t nbytes, int access,
            std::vector<std::pair<std::byte*, std::size_t>>& out) {
  out.clear();
  for (std::uint32_t i = 0; i < parts.count && nbytes > 0; ++i) {
    const abi::Sge& part = parts.list[i];
    if (offset >= part.length) {
      offset -= part.length;
      continue;
    }
    const std::uint64_t some = std::min<std::uint64_t>(nbytes, part.length - offset);
    std::byte* at = memory.reach(part.lkey, part.addr + offset, some, access);
    if (at == nullptr) return false;
    out.emplace_back(at, some);
    nbytes -= some;
    offset = 0;
  }
  return nbytes == 0;
}

SendWork& QueuePair::stage(Kind kind) {
  SendWork& work = staged_.emplace_back();
  work.kind = kind;
  work.wr_id = wr_id;
  return work;
}

// Posts a whole batch, or nothing of it.
int QueuePair::submit() {
  const std::lock_guard lock(nic_.mutex);
  if (staged_error_ == 0 && base.state != abi::state_rts) spoil(EINVAL);
  for (const SendWork& work : staged_) {
    const bool send = work.kind == Kind::send;
    if (work.nbytes > (send ? kMostSend : kMostRdma)) spoil(EINVAL);
    if ((!send && !settings_.reads) || (work.kind == Kind::write && !settings_.writes)) spoil(EOPNOTSUPP);
  }
  if (staged_error_ == 0 && nic_.dice.happens(settings_.failed_posts)) spoil(EINVAL);
  if (sends_used_ + staged_.size() > send_depth_ || nic_.dice.happens(settings_.eagain)) spoil(ENOMEM);
  if (staged_error_ != 0) {
    ++totals_.refused;
    return staged_error_;
  }
  if (std::exchange(nic_.last_poster, this) != this) ++totals_.turns;
  for (SendWork& work : staged_) {
    const std::uint64_t chunk = work.kind == Kind::send ? kMostSend : settings_.mtu;
    const auto packets = static_cast<std::uint32_t>(std::max<std::uint64_t>(1, (work.nbytes + chunk - 1) / chunk));
    work.packets = packets;
    work.left = work.kind == Kind::read ? 1 : packets;
    work.missing = packets;
    work.fails = nic_.dice.happens(settings_.failed_completions);
    work.since = Clock::now();
    const std::uint64_t message = next_message_++;
    ++sends_used_;
    ++totals_.messages;
    lanes_[work.to].messages.push_back(message);
    outstanding_.emplace(message, work);
  }
  nic_.wake();
  return 0;
}

bool QueuePair::launch(Clock::time_point now, bool& blocked) {
  bool any = false;
  std::vector<Port> gone;
  for (auto& [to, lane] : lanes_) {
    if (!nic_.link_up(port_.device) || !nic_.link_up(to.device)) continue;
    Sent sent = Sent::yes;
    for (int i = 0; i < kBatch && sent == Sent::yes; ++i) {
      sent = launch_one(lane, to, now);
      any |= sent == Sent::yes;
    }
    blocked |= sent == Sent::blocked;
    if (sent == Sent::gone) gone.push_back(to);
  }
  for (const Port port : gone) lost(port);
  return any || !gone.empty();
}

QueuePair::Sent QueuePair::launch_one(Lane& lane, Port to, Clock::time_point now) {
  static const Parts nothing;
  if (!lane.answers.empty()) {
    const Sent sent = transmit(lane, lane.answers.front(), nothing, nullptr, now);
    if (sent == Sent::yes) lane.answers.pop_front();
    return sent;
  }
  if (!nic_.may_launch(now)) return lane.replies.empty() && lane.messages.empty() ? Sent::nothing : Sent::blocked;
  if (!lane.replies.empty()) {
    const std::size_t index = nic_.dice.below(std::min(lane.replies.size(), kChoice));
    Reply& reply = lane.replies[index];
    const Sent sent = launch_reply(lane, reply, now);
    if (sent == Sent::yes && reply.sent == reply.request.packets) {
      lane.replies.erase(lane.replies.begin() + static_cast<std::ptrdiff_t>(index));
    }
    return sent;
  }
  while (!lane.messages.empty()) {
    const std::size_t index = nic_.dice.below(std::min(lane.messages.size(), kChoice));
    const auto at = lane.messages.begin() + static_cast<std::ptrdiff_t>(index);
    const std::uint64_t message = *at;
    const auto found = outstanding_.find(message);
    if (found == outstanding_.end()) {  // it has failed already
      lane.messages.erase(at);
      continue;
    }
    found->second.to = to;
    const Sent sent = launch_message(lane, message, found->second, now);
    if (sent != Sent::yes) return sent;
    const auto still = outstanding_.find(message);
    if (still == outstanding_.end() || still->second.left == 0) lane.messages.erase(at);
    if (still != outstanding_.end() && datagrams_) complete(message, Status::ok);
    return Sent::yes;
  }
  return Sent::nothing;
}

QueuePair::Sent QueuePair::launch_message(Lane& lane, std::uint64_t message, SendWork& work, Clock::time_point now) {
  Header header;
  header.kind = work.kind;
  header.rnr_retry = rnr_retry_;
  header.has_immediate = work.has_immediate ? 1 : 0;
  header.from = port_;
  header.to = work.to;
  header.qkey = work.qkey;
  header.immediate = work.immediate;
  header.message = message;
  header.total = work.nbytes;
  header.remote_key = work.remote_key;
  header.remote_addr = work.remote_addr;
  header.packets = work.packets;
  header.fails = work.fails ? 1 : 0;
  const bool carries = work.kind != Kind::read;
  if (carries) {
    const std::uint64_t chunk = work.kind == Kind::send ? kMostSend : settings_.mtu;
    header.offset = (work.packets - work.left) * chunk;
    header.nbytes = static_cast<std::uint32_t>(std::min(chunk, work.nbytes - header.offset));
  }
  const Sent sent = transmit(lane, header, work.parts, work.is_inline ? work.inlined.data() : nullptr, now);
  if (sent == Sent::nothing) {
    complete(message, Status::invalid_lkey);
    return Sent::yes;
  }
  if (sent == Sent::yes) {
    --work.left;
    work.since = now;
  }
  return sent;
}

QueuePair::Sent QueuePair::launch_reply(Lane& lane, Reply& reply, Clock::time_point now) {
  const Header& request = reply.request;
  Header header;
  header.kind = Kind::data;
  header.from = port_;
  header.to = request.from;
  header.message = request.message;
  header.packets = request.packets;
  header.fails = request.fails;
  header.offset = std::uint64_t{reply.sent} * settings_.mtu;
  header.nbytes = static_cast<std::uint32_t>(std::min<std::uint64_t>(settings_.mtu, request.total - header.offset));
  // Looked up for every packet: the region may have been deregistered meanwhile, and then its bytes are not sent.
  const std::byte* bytes = nic_.memory.reach(request.remote_key, request.remote_addr + header.offset, header.nbytes,
                                             abi::access_remote_read);
  static const std::byte none{};
  if (bytes == nullptr) {
    header.status = Status::bad_address;
    header.nbytes = 0;
    bytes = &none;
  }
  const Sent sent = transmit(lane, header, {}, bytes, now);
  if (sent == Sent::yes) ++reply.sent;
  return sent;
}

// Returns `nothing` if the keys of `parts` do not cover it. The source is read now, not when it was posted.
QueuePair::Sent QueuePair::transmit(Lane& lane, Header& header, const Parts& parts, const std::byte* bytes,
                                    Clock::time_point now) {
  static thread_local std::vector<std::pair<std::byte*, std::size_t>> places;
  places.clear();
  if (bytes != nullptr) {
    places.emplace_back(const_cast<std::byte*>(bytes), header.nbytes);
  } else if (header.nbytes > 0 && !locate(nic_.memory, parts, header.offset, header.nbytes, 0, places)) {
    return Sent::nothing;
  }
  const bool payload = header.kind != Kind::answer && header.kind != Kind::probe;
  if (payload) header.sequence = lane.sequence + 1;
  iovec vectors[1 + kMostParts] = {{&header, sizeof header}};
  std::size_t count = 1;
  for (const auto& [at, nbytes] : places) vectors[count++] = {at, nbytes};
  sockaddr_un address{};
  msghdr message{};
  message.msg_name = &address;
  message.msg_iov = vectors;
  message.msg_iovlen = count;
  // A random path, or the next one that is not full.
  const std::uint64_t first = nic_.dice.below(settings_.paths);
  bool sent = false;
  for (unsigned i = 0; i < settings_.paths && !sent; ++i) {
    header.path = static_cast<std::uint16_t>((first + i) % settings_.paths);
    message.msg_namelen = to_sockaddr(header.to, header.path, address);
    sent = ::sendmsg(sockets_[header.path], &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0;
    if (!sent && (errno == ECONNREFUSED || errno == ENOENT)) return Sent::gone;
  }
  if (!sent) return Sent::blocked;
  if (payload) {
    ++lane.sequence;
    nic_.launched(header.nbytes, now);
  }
  return Sent::yes;
}

// The process is gone, or has destroyed the queue pair: a real NIC there would report it.
void QueuePair::lost(Port port) {
  lanes_.erase(port);
  std::vector<std::uint64_t> messages;
  for (const auto& [message, work] : outstanding_) {
    if (work.to == port) messages.push_back(message);
  }
  for (const std::uint64_t message : messages) complete(message, Status::bad_queue_pair);
  std::erase_if(arrivals_, [port](const auto& entry) { return entry.first.first == port; });
  std::erase_if(unready_, [port](const Unready& entry) { return entry.packet.header.from == port; });
}

void QueuePair::complete(std::uint64_t message, Status status) {
  const auto found = outstanding_.find(message);
  if (found == outstanding_.end()) return;  // it failed before, by timeout
  const SendWork& work = found->second;
  Completion completion;
  completion.queue_pair = this;
  completion.queue_pair_number = port_.queue_pair;
  completion.wr_id = work.wr_id;
  completion.status = status;
  completion.opcode = work.kind == Kind::send ? abi::wc_send : work.kind == Kind::write ? abi::wc_write : abi::wc_read;
  completion.nbytes = static_cast<std::uint32_t>(work.nbytes);
  totals_.failed += status == Status::ok ? 0 : 1;
  outstanding_.erase(found);
  CompletionQueue::of(base.send_cq).push(completion);
}

void QueuePair::look_after(Clock::time_point now) {
  give_up_unready();
  const auto timeout = std::chrono::milliseconds(settings_.timeout_ms);
  std::vector<std::uint64_t> overdue;
  std::map<Port, bool> asked;
  for (const auto& [message, work] : outstanding_) {
    if (now - work.since > kProbeAfter) asked[work.to] = true;
    // Only a link that was down loses packets, and only a frozen process does not reply; otherwise the machine is slow.
    if (settings_.gives_up && now - work.since > timeout) overdue.push_back(message);
  }
  for (const std::uint64_t message : overdue) complete(message, Status::unresponsive);
  for (const auto& [port, old] : asked) {
    Header header;
    header.from = port_;
    header.to = port;
    static const Parts nothing;
    if (transmit(lanes_[port], header, nothing, nullptr, now) == Sent::gone) lost(port);
  }
}

}  // namespace efa
