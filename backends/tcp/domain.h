// The Domain itself. Its methods are in domain.cpp (opening, turns, time), memory.cpp (regions), peers.cpp (connections
// and their ends), door.cpp (strangers), post.cpp, send.cpp and receive.cpp.
#pragma once

#include <list>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "../core/options.h"
#include "connection.h"
#include "memory.h"

namespace aio::tcp {

// Of the two descriptors that are no stream's, in the epoll's events.
inline constexpr StreamId kListener = 0, kTimer = 1;

struct Settings {
  std::chrono::duration<double> connect{10}, post_deadline{30};
};

class TcpDomain final : public Domain {
 public:
  TcpDomain(Sink& sink, const Address& address, const Settings& settings);
  ~TcpDomain() override;

  [[nodiscard]] const DomainAttributes& attributes() const noexcept override { return attributes_; }
  std::string register_local(RegionNumber region, const LocalMemory& memory) override;
  void register_remote(RegionNumber region, const RemoteMemory& memory) override;
  void deregister(RegionNumber region) override;
  Endpoint connect(PeerNumber peer, const std::optional<Endpoint>& remote) override;
  void admit(PeerNumber peer, const Endpoint& other) override;
  void disconnect(PeerNumber peer, bool lost) override;
  Posted post(Flow& flow, std::uint32_t budget) override;
  Posted send(PeerNumber peer, TransferId message, const std::string& payload) override;
  bool progress() override;
  [[nodiscard]] bool needs_progress() const noexcept override { return !runnable_.empty(); }
  std::optional<std::vector<int>> arm() override;
  [[nodiscard]] std::uint64_t handles() const noexcept override;

 private:
  // domain.cpp
  void listen(Address address);

  // progress.cpp
  void watch(int fd, StreamId id, bool output, bool known) const noexcept;
  void shut(Fd& fd) const noexcept;
  void ripen(std::uint32_t events, StreamId id);
  void want(Stream& stream);
  bool run_streams();
  void want_tick() noexcept;
  void tick();
  void tick(Stream& stream);
  [[nodiscard]] bool has_clocks() const noexcept;

  // memory.cpp
  [[nodiscard]] Named find(std::uint32_t slot, std::uint64_t secret, unsigned access);
  void divert(RegionNumber region);

  // connection.cpp
  Link& link_for(PeerNumber peer);
  void join(Link& link, const EndpointBlob& far);
  void dial(Stream& stream);
  void dialled(Stream& stream);
  void hear_welcome(Stream& stream);
  void retry(Stream& stream, int code);
  void come_up(Stream& stream);
  void fail(Stream& stream, const Outcome& outcome);
  void fail(Stream& stream, const char* operation, int code);
  void hear_end(Stream& stream);
  void stop_all(Stream& stream, const Outcome& outcome);
  void part(Stream& stream);
  void tell_second_hand(Stream& stream);
  void close(Stream& stream) noexcept;
  void fence_those_that_left();

  // acceptor.cpp
  void welcome_visitors();
  void hear_visitor(Visitor& visitor);
  bool admit_visitor(Visitor& visitor);
  void show_out(StreamId visitor) noexcept;
  void close_door() noexcept;

  // post.cpp
  Posted post_writes(Stream& stream, Flow& flow, RemoteRegion* far, std::uint32_t budget);
  Posted post_read(Stream& stream, Flow& flow, const RemoteRegion& far, std::uint32_t budget);
  std::optional<Outcome> refusal(const Flow& flow, const Piece& piece, const RemoteRegion* far) const;

  // send.cpp
  void begin_frame(Stream& stream);
  void put_batch(Stream& stream, Flow& flow, std::uint32_t pieces, RemoteRegion* far);
  void put_job(Stream& stream);
  bool put_answer(Stream& stream);
  bool next_frame(Stream& stream);
  bool flush(Stream& stream);
  void sent_all(Stream& stream);
  void stop_job(Stream& stream, const Outcome& outcome);
  bool pump(Stream& stream);

  // receive.cpp
  bool receive(Stream& stream);
  void use_buffer(Stream& stream);
  void place(Stream& stream, std::uint64_t nbytes);
  void begin(Stream& stream, const FrameHead& head, const std::byte* records);
  void begin_write(Stream& stream, const std::byte* records);
  void begin_data(Stream& stream);
  void end_payload(Stream& stream);
  void count(Incoming& in, std::size_t first);
  void hear_read(Stream& stream, const std::byte* records);
  void hear_done(Stream& stream);
  void hear_ack(Stream& stream, std::uint64_t number);
  void hear_refusal(Stream& stream);
  void malformed(Stream& stream, std::string_view why);

  Sink& sink_;
  Settings settings_;
  DomainAttributes attributes_;
  Fd epoll_, timer_, listener_;
  bool ticking_ = false;
  bool deaf_ = false;  // no descriptor is left for who comes in: tried again with the next tick
  Address own_;

  StreamId next_id_ = 16;  // below: the listener and the timer
  std::unordered_map<PeerNumber, std::unique_ptr<Link>> links_;
  std::map<std::array<std::uint8_t, 16>, Link*> names_;
  std::unordered_map<StreamId, Stream*> streams_;
  std::list<Visitor> visitors_;
  std::vector<StreamId> runnable_;  // have something to send, and are not blocked
  unsigned leaving_ = 0;            // links

  std::unordered_map<RegionNumber, LocalRegion> locals_;
  std::unordered_map<RegionNumber, RemoteRegion> remotes_;  // its nodes stay where they are
  std::vector<RegionNumber> slots_;                         // 0: free
  std::vector<std::uint32_t> free_slots_;
  Clock::time_point now_;
};

// Options, all optional:
//   address          where to listen, and what peers are told to dial: an IPv4 or IPv6 address of this machine, no
//                    wildcard; or several, with commas, for a rail each; 127.0.0.1
//   rails            this many domains, 1 … 8; as many as addresses
//   connect_s        a peer with whom no connection comes about for this long is lost; 10
//   post_deadline_s  so is one that neither takes nor sends a byte for this long, though something is under way; 30
//   and of the core: progress, spin_us, cpus
// Throws Failure(usage) for a malformed or unknown option, Failure(unavailable) where an address cannot be listened at.
std::vector<std::unique_ptr<Domain>> open_domains(Sink& sink, const Options& options);

}  // namespace aio::tcp
