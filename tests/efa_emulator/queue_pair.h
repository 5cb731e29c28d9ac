// A queue pair: turns work requests into packets, and packets into memory accesses and completions.
#pragma once

#include <array>
#include <deque>
#include <map>
#include <unordered_map>
#include <utility>
#include <vector>

#include "completion.h"
#include "nic.h"

namespace efa {

inline constexpr std::uint32_t kMostParts = 2;
inline constexpr std::uint32_t kMostInline = 32;
inline constexpr std::uint32_t kMostRdma = 1u << 30;
inline constexpr std::uint32_t kUdPrefix = 40;  // room for a route header before what a UD queue pair receives

// Source or destination segments of a message.
struct Parts {
  std::array<abi::Sge, kMostParts> list{};
  std::uint32_t count = 0;

  [[nodiscard]] std::uint64_t nbytes() const noexcept;
};

struct SendWork {
  std::uint64_t wr_id = 0;
  Kind kind = Kind::send;
  bool has_immediate = false;
  bool is_inline = false;
  std::uint32_t immediate = 0;
  std::uint32_t remote_key = 0;
  std::uint64_t remote_addr = 0;
  Port to;
  std::uint32_t qkey = 0;
  Parts parts;
  std::array<std::byte, kMostInline> inlined{};
  std::uint64_t nbytes = 0;
  // progress
  std::uint32_t packets = 0;  // in all
  std::uint32_t left = 0;     // not sent yet
  std::uint32_t missing = 0;  // of a read: not received yet
  Status failed = Status::ok;
  bool fails = false;
  Clock::time_point since{};
};

struct ReceiveWork {
  std::uint64_t wr_id = 0;
  Parts parts;
};

class QueuePair : public abi::QpEx {
 public:
  QueuePair(Nic& nic, abi::Context* context, const abi::QpInitAttrEx& attr, bool unsolicited, std::vector<int> sockets,
            Port port);
  ~QueuePair();
  QueuePair(const QueuePair&) = delete;
  QueuePair& operator=(const QueuePair&) = delete;

  static QueuePair& of(abi::Qp* qp) { return *static_cast<QueuePair*>(reinterpret_cast<abi::QpEx*>(qp)); }
  static QueuePair& of(abi::QpEx* qp) { return *static_cast<QueuePair*>(qp); }

  [[nodiscard]] Nic& nic() noexcept { return nic_; }
  [[nodiscard]] Port port() const noexcept { return port_; }
  [[nodiscard]] const std::vector<int>& sockets() const noexcept { return sockets_; }

  // -- for the posting thread: the ibv_wr calls of one thread
  void begin() { staged_.clear(), staged_error_ = 0; }
  SendWork& stage(Kind kind);
  SendWork& staged() { return staged_.back(); }
  void spoil(int error) { staged_error_ = staged_error_ == 0 ? error : staged_error_; }
  int submit();  // takes the NIC's lock

  // -- with the NIC's lock held
  int modify(const abi::QpAttr& attr, int mask);
  int post(const abi::RecvWr& request);
  void reaped(const Completion& completion);  // its completion was polled: a slot is free
  bool launch(Clock::time_point now, bool& blocked);
  void arrived(Packet& packet);
  void look_after(Clock::time_point now);
  [[nodiscard]] bool waits() const noexcept { return !outstanding_.empty() || !unready_.empty(); }

 private:
  struct Reply {  // to a peer's read request
    Header request;
    std::uint32_t sent = 0;
  };
  // Traffic to one other queue pair. Separate, since a peer that takes nothing must not block the others.
  struct Lane {
    std::deque<std::uint64_t> messages;
    std::deque<Header> answers;
    std::deque<Reply> replies;
    std::uint64_t sequence = 0;
  };
  struct Arrival {  // a write that has been received in part
    std::uint32_t missing = 0;
    Status status = Status::ok;
    std::uint64_t furthest = 0;
  };
  struct Unready {  // a message that found no receive
    Packet packet;
    std::uint32_t tries = 0;
  };
  enum class Sent { yes, blocked, gone, nothing };

  // traffic.cpp
  Sent launch_one(Lane& lane, Port to, Clock::time_point now);
  Sent launch_message(Lane& lane, std::uint64_t message, SendWork& work, Clock::time_point now);
  Sent launch_reply(Lane& lane, Reply& reply, Clock::time_point now);
  Sent transmit(Lane& lane, Header& header, const Parts& parts, const std::byte* bytes, Clock::time_point now);
  void lost(Port port);
  void complete(std::uint64_t message, Status status);
  // arrivals.cpp
  void count(const Header& header);
  void take_send(Packet& packet);
  void take_write(const Packet& packet);
  void take_read(const Packet& packet);
  void take_data(const Packet& packet);
  Status place(const Packet& packet);
  bool deliver_up(const Packet& packet, Status& status);
  void finish(Packet& packet);
  void retry_unready();
  void give_up_unready();
  void answer(const Header& header, Status status);

  Nic& nic_;
  const Settings& settings_;
  const Port port_;
  const std::vector<int> sockets_;  // one per path
  const bool datagrams_;            // UD: no acknowledgements
  const bool unsolicited_;
  std::uint32_t qkey_ = 0;
  std::uint8_t rnr_retry_ = 7;
  std::uint32_t send_depth_, receive_depth_, sends_used_ = 0, receives_used_ = 0;

  std::vector<SendWork> staged_;
  int staged_error_ = 0;
  std::uint64_t next_message_;
  std::unordered_map<std::uint64_t, SendWork> outstanding_;
  std::map<Port, Lane> lanes_;
  std::deque<ReceiveWork> receives_;
  std::map<std::pair<Port, std::uint64_t>, Arrival> arrivals_;
  std::deque<Unready> unready_;

  std::map<Port, std::uint64_t> furthest_;  // latest packet received from each sender
  struct Totals {
    std::uint64_t packets = 0, overtaken = 0, within = 0, messages = 0, turns = 0, refused = 0, unready = 0, failed = 0;
  } totals_;
};

// Finds the bytes from `offset` on, as iovecs; false if a key does not grant access.
bool locate(const Memory& memory, const Parts& parts, std::uint64_t offset, std::uint64_t nbytes, int access,
            std::vector<std::pair<std::byte*, std::size_t>>& out);

}  // namespace efa
