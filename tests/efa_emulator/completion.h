// Completion queues and completion channels.
#pragma once

#include <atomic>
#include <deque>

#include "abi.h"
#include "wire.h"

namespace efa {

class QueuePair;

struct Completion {
  QueuePair* queue_pair = nullptr;
  std::uint64_t wr_id = 0;
  Status status = Status::ok;
  std::int32_t opcode = 0;
  std::uint32_t nbytes = 0;
  std::uint32_t immediate = 0;
  bool has_immediate = false;
  bool solicited = true;  // it frees a slot of a queue
  std::uint16_t queue_pair_number = 0;
  Port source;
  std::uint16_t source_handle = 0;
};

class CompletionQueue;

// What libefa adds to a queue.
struct Extension : abi::EfadvCq {
  CompletionQueue* owner = nullptr;
};

struct Channel : abi::CompChannel {
  std::deque<CompletionQueue*> pending;  // guarded by the NIC's lock
};

class CompletionQueue : public abi::CqEx {
 public:
  CompletionQueue(abi::Context* context, const abi::CqInitAttrEx& attr);
  CompletionQueue(const CompletionQueue&) = delete;

  // With the NIC's lock held.
  void push(const Completion& completion);
  void purge(const QueuePair* queue_pair);
  void arm() { armed_ = true; }

  Extension extension{};

  static CompletionQueue& of(abi::Cq* cq) { return *static_cast<CompletionQueue*>(reinterpret_cast<abi::CqEx*>(cq)); }

 private:
  static CompletionQueue& of(abi::CqEx* cq) { return *static_cast<CompletionQueue*>(cq); }
  int take();

  std::deque<Completion> entries_;
  // A poll of an empty queue, by far the most frequent, takes no lock.
  std::atomic<std::size_t> count_{0};
  Completion current_;
  bool armed_ = false;
};

}  // namespace efa
