// Receiving: what a packet does when it arrives. Only the NIC's thread takes part.
#include <algorithm>
#include <cstring>

#include "queue_pair.h"

namespace efa {

namespace {

bool is_second_half(const Header& header) noexcept { return header.offset + header.nbytes > header.total / 2; }

}  // namespace

void QueuePair::arrived(Packet& packet) {
  const Header& header = packet.header;
  if (header.kind == Kind::answer) return complete(header.message, header.status);
  const bool fresh = header.kind != Kind::data;
  // The number may have belonged to an earlier queue pair, with another key.
  if (fresh && (header.qkey != qkey_ || base.state < abi::state_rtr || base.state == abi::state_err)) {
    return answer(header, Status::bad_queue_pair);
  }
  count(header);
  switch (header.kind) {
    case Kind::send:
      return take_send(packet);
    case Kind::write:
      return take_write(packet);
    case Kind::read:
      return take_read(packet);
    case Kind::data:
      return take_data(packet);
    case Kind::answer:
    case Kind::probe:
      return;
  }
}

// A packet is overtaken if a later one of the same sender and receiver has arrived first.
void QueuePair::count(const Header& header) {
  ++totals_.packets;
  std::uint64_t& furthest = furthest_[header.from];
  totals_.overtaken += header.sequence < furthest ? 1 : 0;
  furthest = std::max(furthest, header.sequence);
}

void QueuePair::answer(const Header& header, Status status) {
  if (datagrams_) return;
  Header reply;
  reply.kind = Kind::answer;
  reply.status = status;
  reply.from = port_;
  reply.to = header.from;
  reply.message = header.message;
  lanes_[header.from].answers.push_back(reply);
}

void QueuePair::take_send(Packet& packet) {
  if (packet.header.fails != 0) return answer(packet.header, Status::abort);
  finish(packet);
}

void QueuePair::take_write(const Packet& packet) {
  const Header& header = packet.header;
  const auto [found, fresh] = arrivals_.try_emplace({header.from, header.message});
  Arrival& arrival = found->second;
  if (fresh) arrival.missing = header.packets;
  totals_.within += header.offset < arrival.furthest ? 1 : 0;
  arrival.furthest = std::max(arrival.furthest, header.offset);
  const Status status = place(packet);
  if (arrival.status == Status::ok) arrival.status = status;
  if (--arrival.missing > 0) return;
  // Reported only now, so that an error too comes after the last movement of the message.
  const Status outcome = arrival.status;
  arrivals_.erase(found);
  if (outcome != Status::ok) return answer(header, outcome);
  Packet last{header, {}, packet.at};
  finish(last);
}

Status QueuePair::place(const Packet& packet) {
  const Header& header = packet.header;
  if (header.fails != 0 && is_second_half(header)) return Status::abort;
  // The device accepts remote accesses only from initiators that it holds an address handle of.
  if (nic_.memory.handle_of(header.from.device) == Memory::kUnknown) return Status::unknown_peer;
  std::byte* at =
      nic_.memory.reach(header.remote_key, header.remote_addr + header.offset, header.nbytes, abi::access_remote_write);
  if (at == nullptr) return Status::bad_address;
  if (header.nbytes > 0) std::memcpy(at, packet.payload.data(), header.nbytes);
  return Status::ok;
}

void QueuePair::take_read(const Packet& packet) {
  const Header& header = packet.header;
  if (nic_.memory.handle_of(header.from.device) == Memory::kUnknown) return answer(header, Status::unknown_peer);
  if (nic_.memory.reach(header.remote_key, header.remote_addr, header.total, abi::access_remote_read) == nullptr) {
    return answer(header, Status::bad_address);
  }
  lanes_[header.from].replies.push_back({header, 0});
}

void QueuePair::take_data(const Packet& packet) {
  const Header& header = packet.header;
  const auto found = outstanding_.find(header.message);
  if (found == outstanding_.end()) return;
  SendWork& work = found->second;
  Status status = header.status;
  static thread_local std::vector<std::pair<std::byte*, std::size_t>> places;
  if (status == Status::ok && header.fails != 0 && header.nbytes > 0 && header.offset * 2 >= work.nbytes) {
    status = Status::abort;
  } else if (status == Status::ok && header.offset + header.nbytes <= work.nbytes) {
    if (locate(nic_.memory, work.parts, header.offset, header.nbytes, abi::access_local_write, places)) {
      const std::byte* from = packet.payload.data();
      for (const auto& [at, nbytes] : places) {
        std::memcpy(at, from, nbytes);
        from += nbytes;
      }
    } else {
      status = Status::invalid_lkey;
    }
  }
  work.since = Clock::now();
  if (status != Status::ok) work.failed = status;
  if (--work.missing == 0) complete(header.message, work.failed);
}

// Delivers a complete message. Returns false if no receive is posted.
bool QueuePair::deliver_up(const Packet& packet, Status& status) {
  const Header& header = packet.header;
  const bool write = header.kind == Kind::write;
  const bool consumes = !write || !unsolicited_;
  if (consumes && receives_.empty()) return false;
  Completion completion;
  completion.queue_pair = this;
  completion.queue_pair_number = port_.queue_pair;
  completion.opcode = write ? abi::wc_recv_write_imm : abi::wc_recv;
  completion.nbytes = static_cast<std::uint32_t>(header.total);
  completion.immediate = header.immediate;
  completion.has_immediate = header.has_immediate != 0;
  completion.source = header.from;
  completion.source_handle = nic_.memory.handle_of(header.from.device);
  completion.solicited = consumes;
  if (!write) {
    const std::uint32_t prefix = datagrams_ ? kUdPrefix : 0;
    const Parts& parts = receives_.front().parts;
    static thread_local std::vector<std::pair<std::byte*, std::size_t>> places;
    if (header.total + prefix > parts.nbytes() ||
        !locate(nic_.memory, parts, prefix, header.total, abi::access_local_write, places)) {
      status = Status::remote_bad_length;
      return true;
    }
    const std::byte* from = packet.payload.data();
    for (const auto& [at, nbytes] : places) {
      std::memcpy(at, from, nbytes);
      from += nbytes;
    }
    completion.nbytes += prefix;
  }
  if (consumes) {
    completion.wr_id = receives_.front().wr_id;
    receives_.pop_front();
  }
  CompletionQueue::of(base.recv_cq).push(completion);
  return true;
}

void QueuePair::finish(Packet& packet) {
  const bool silent = packet.header.kind == Kind::write && packet.header.has_immediate == 0;
  Status status = Status::ok;
  if (silent || deliver_up(packet, status)) return answer(packet.header, status);
  if (datagrams_) return;  // dropped
  ++totals_.unready;
  unready_.push_back({std::move(packet)});
}

void QueuePair::retry_unready() {
  while (!unready_.empty()) {
    Status status = Status::ok;
    const std::size_t index = nic_.dice.below(unready_.size());
    if (!deliver_up(unready_[index].packet, status)) return;
    answer(unready_[index].packet.header, status);
    unready_.erase(unready_.begin() + static_cast<std::ptrdiff_t>(index));
  }
}

// The sender chose how often it retries; seven means without limit.
void QueuePair::give_up_unready() {
  constexpr std::uint8_t kForEver = 7;
  std::erase_if(unready_, [this](Unready& entry) {
    const Header& header = entry.packet.header;
    if (header.rnr_retry == kForEver || ++entry.tries <= header.rnr_retry) return false;
    answer(header, Status::receiver_not_ready);
    return true;
  });
}

}  // namespace efa
