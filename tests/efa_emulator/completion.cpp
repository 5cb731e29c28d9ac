#include "completion.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <mutex>

#include "nic.h"
#include "queue_pair.h"

namespace efa {

namespace {

// libefa's statuses, indexed by the device's.
constexpr std::int32_t kStatuses[] = {
    abi::status_success,
    abi::status_flushed,
    abi::status_general,
    abi::status_local_qp_operation,
    abi::status_local_qp_operation,
    abi::status_local_access,
    abi::status_local_length,
    abi::status_remote_access,
    abi::status_remote_abort,
    abi::status_remote_invalid,
    abi::status_rnr_exceeded,
    abi::status_remote_invalid,
    abi::status_general,
    abi::status_timeout,
    abi::status_general,
};

}  // namespace

CompletionQueue::CompletionQueue(abi::Context* context, const abi::CqInitAttrEx& attr) : abi::CqEx{} {
  base.context = context;
  base.channel = attr.channel;
  base.cq_context = attr.cq_context;
  base.cqe = static_cast<int>(attr.cqe);
  start_poll = [](abi::CqEx* cq, void*) { return of(cq).take(); };
  next_poll = [](abi::CqEx* cq) { return of(cq).take(); };
  end_poll = [](abi::CqEx*) {};
  read_opcode = [](abi::CqEx* cq) { return of(cq).current_.opcode; };
  read_vendor_err = [](abi::CqEx* cq) { return static_cast<std::uint32_t>(of(cq).current_.status); };
  read_byte_len = [](abi::CqEx* cq) { return of(cq).current_.nbytes; };
  read_imm_data = [](abi::CqEx* cq) { return of(cq).current_.immediate; };
  read_qp_num = [](abi::CqEx* cq) { return std::uint32_t{of(cq).current_.queue_pair_number}; };
  read_src_qp = [](abi::CqEx* cq) { return std::uint32_t{of(cq).current_.source.queue_pair}; };
  read_wc_flags = [](abi::CqEx* cq) { return of(cq).current_.has_immediate ? abi::wc_with_imm : 0; };
  read_slid = [](abi::CqEx* cq) { return std::uint32_t{of(cq).current_.source_handle}; };
  read_sl = read_dlid_path_bits = [](abi::CqEx*) { return std::uint8_t{0}; };
  extension.owner = this;
  extension.wc_read_sgid = [](abi::EfadvCq* cq, abi::Gid* gid) {
    *gid = gid_of(static_cast<Extension*>(cq)->owner->current_.source.device);
    return 0;
  };
  extension.wc_is_unsolicited = [](abi::EfadvCq* cq) {
    return !static_cast<Extension*>(cq)->owner->current_.solicited;
  };
}

void CompletionQueue::push(const Completion& completion) {
  if (entries_.size() >= static_cast<std::size_t>(base.cqe)) {
    // A real device would stop the queue for good, and every waiting thread would wait for ever.
    std::fprintf(stderr, "efa emulator: a completion queue of %d entries overflowed\n", base.cqe);
    std::abort();
  }
  entries_.push_back(completion);
  count_.store(entries_.size(), std::memory_order_release);
  if (!armed_ || base.channel == nullptr) return;
  armed_ = false;
  static_cast<Channel*>(base.channel)->pending.push_back(this);
  const std::uint64_t one = 1;
  if (::write(base.channel->fd, &one, sizeof one) != sizeof one) std::abort();
}

void CompletionQueue::purge(const QueuePair* queue_pair) {
  std::erase_if(entries_, [queue_pair](const Completion& entry) { return entry.queue_pair == queue_pair; });
  count_.store(entries_.size(), std::memory_order_release);
}

int CompletionQueue::take() {
  // Acquire pairs with the release of push(): a thread that sees the count also sees the entry, and the memory that it
  // announces.
  if (count_.load(std::memory_order_acquire) == 0) return ENOENT;
  const std::lock_guard lock(nic_of(base.context).mutex);
  if (entries_.empty()) return ENOENT;
  current_ = entries_.front();
  entries_.pop_front();
  count_.store(entries_.size(), std::memory_order_release);
  if (current_.solicited) current_.queue_pair->reaped(current_);
  wr_id = current_.wr_id;
  status = kStatuses[static_cast<std::size_t>(current_.status)];
  return 0;
}

}  // namespace efa

using namespace efa;

extern "C" {

abi::CompChannel* ibv_create_comp_channel(abi::Context* context) {
  auto* channel = new Channel{};
  channel->context = context;
  channel->fd = ::eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE);
  return channel;
}

int ibv_destroy_comp_channel(abi::CompChannel* channel) {
  ::close(channel->fd);
  delete static_cast<Channel*>(channel);
  return 0;
}

int ibv_get_cq_event(abi::CompChannel* base, abi::Cq** cq, void** cq_context) {
  auto* channel = static_cast<Channel*>(base);
  std::uint64_t one = 0;
  if (::read(channel->fd, &one, sizeof one) != sizeof one) return -1;
  const std::lock_guard lock(nic_of(channel->context).mutex);
  if (channel->pending.empty()) return -1;  // its queue was destroyed
  *cq = &channel->pending.front()->base;
  *cq_context = (*cq)->cq_context;
  channel->pending.pop_front();
  return 0;
}

void ibv_ack_cq_events(abi::Cq*, unsigned) {}

int ibv_destroy_cq(abi::Cq* cq) {
  CompletionQueue* queue = &CompletionQueue::of(cq);
  {
    const std::lock_guard lock(nic_of(cq->context).mutex);
    if (cq->channel != nullptr) std::erase(static_cast<Channel*>(cq->channel)->pending, queue);
  }
  delete queue;
  return 0;
}

abi::CqEx* efa_emulator_create_cq(abi::Context* context, abi::CqInitAttrEx* attr, abi::EfadvCqInitAttr* own,
                                  std::uint32_t inlen) {
  const Settings& settings = Settings::get();
  const bool asks = inlen >= sizeof(abi::EfadvCqInitAttr);
  const std::uint64_t known = abi::wc_ex_with_sgid | (settings.unsolicited ? abi::wc_ex_with_is_unsolicited : 0);
  if (asks && (own->comp_mask != 0 || (own->wc_flags & ~known) != 0)) {
    errno = EOPNOTSUPP;
    return nullptr;
  }
  return new CompletionQueue(context, *attr);
}

abi::EfadvCq* efa_emulator_cq(abi::CqEx* cq) { return &static_cast<CompletionQueue*>(cq)->extension; }

}  // extern "C"

namespace efa {

int req_notify(abi::Cq* cq, int) {
  const std::lock_guard lock(nic_of(cq->context).mutex);
  CompletionQueue::of(cq).arm();
  return 0;
}

}  // namespace efa
