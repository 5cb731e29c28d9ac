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
inline constexpr StreamId kListener = 0, kTimer = 1, kFirstStream = 16;

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
  Endpoint connect(PeerNumber number, const std::optional<Endpoint>& remote) override;
  void admit(PeerNumber number, const Endpoint& other) override;
  void disconnect(PeerNumber number, bool lost) override;
  Posted post(Flow& flow, std::uint32_t budget) override;
  Posted send(PeerNumber number, TransferId message, const std::string& payload) override;
  bool progress() override;
  [[nodiscard]] bool needs_progress() const noexcept override { return !runnable_.empty(); }
  std::optional<std::vector<int>> arm() override;
  [[nodiscard]] std::uint64_t handles() const noexcept override;

 private:
  static constexpr std::size_t kMaxParts = 512;  // of one readv; IOV_MAX is 1024
  struct ReadPlan {
    std::size_t count = 0;      // iovecs
    std::uint64_t payload = 0;  // bytes of them that are payload
    std::uint64_t nbytes = 0;   // bytes in all
  };

  // domain.cpp
  void listen(Address address);

  // progress.cpp
  void watch(int fd, StreamId id, bool output, bool known) const noexcept;
  void close_socket(Fd& fd) const noexcept;
  void on_ready(std::uint32_t events, StreamId id);
  void schedule(Stream& stream);
  bool run_scheduled();
  void start_timer() noexcept;
  void on_timer();
  void check_deadline(Stream& stream);
  [[nodiscard]] bool has_deadlines() const noexcept;

  // memory.cpp
  [[nodiscard]] RegionLookup find_region(std::uint32_t slot, std::uint64_t secret, unsigned access);
  void discard_region_traffic(RegionNumber region);

  // connection.cpp
  Peer& peer_for(PeerNumber number);
  void join(Peer& peer, const EndpointBlob& remote);
  void dial(Stream& stream);
  void send_hello(Stream& stream);
  void read_welcome(Stream& stream);
  void retry_dial(Stream& stream, int code);
  void on_connected(Stream& stream);
  void fail(Stream& stream, const Outcome& outcome);
  void fail(Stream& stream, const char* operation, int code);
  void on_end_of_stream(Stream& stream);
  void abort_operations(Stream& stream, const Outcome& outcome);
  void say_goodbye(Stream& stream);
  void report_failure(Stream& stream);
  void close(Stream& stream) noexcept;
  void fence_disconnected();

  // acceptor.cpp
  void accept_pending();
  void read_hello(PendingConnection& pending);
  bool accept(PendingConnection& pending);
  void reject(StreamId pending) noexcept;
  void reject_expired() noexcept;

  // post.cpp
  Posted post_writes(Stream& stream, Flow& flow, RemoteRegion* remote, std::uint32_t budget);
  Posted post_read(Stream& stream, Flow& flow, const RemoteRegion& remote, std::uint32_t budget);
  std::optional<Outcome> piece_error(const Flow& flow, const Piece& piece, const RemoteRegion* remote) const;

  // send.cpp
  void begin_frame(Stream& stream);
  void build_write(Stream& stream, Flow& flow, std::uint32_t pieces, RemoteRegion* remote);
  void build_segment(Stream& stream);
  bool build_read_response(Stream& stream);
  void build_read_data(Stream& stream, ReadRequest& request, const RegionLookup& source);
  bool build_next_frame(Stream& stream);
  bool send_frame(Stream& stream);
  void on_frame_sent(Stream& stream);
  void stop_segmented(Stream& stream, const Outcome& outcome);
  bool send_frames(Stream& stream);

  // receive.cpp
  static ReadPlan plan_read(Stream& stream, std::array<iovec, kMaxParts + 1>& parts) noexcept;
  bool receive(Stream& stream);
  void parse_buffer(Stream& stream);
  void advance_payload(Stream& stream, std::uint64_t nbytes);
  void on_header(Stream& stream, const FrameHeader& header, const std::byte* records);
  void begin_write(Stream& stream, const std::byte* records);
  void resolve_targets(Incoming& in);
  void begin_data(Stream& stream);
  void on_payload_complete(Stream& stream);
  void notify_counts(Incoming& in, std::size_t first);
  void on_read(Stream& stream, const std::byte* records);
  void on_read_done(Stream& stream);
  void on_ack(Stream& stream, std::uint64_t number);
  void on_refused(Stream& stream);
  void protocol_error(Stream& stream, std::string_view why);

  Sink& sink_;
  Settings settings_;
  DomainAttributes attributes_;
  Fd epoll_, timer_, listener_;
  bool timer_running_ = false;
  bool accept_paused_ = false;  // no descriptor is left for who comes in: tried again with the next tick
  Address local_address_;

  StreamId next_id_ = kFirstStream;  // below: the listener and the timer
  std::unordered_map<PeerNumber, std::unique_ptr<Peer>> peers_;
  std::map<std::array<std::uint8_t, 16>, Peer*> peers_by_name_;
  std::unordered_map<StreamId, Stream*> streams_;
  std::list<PendingConnection> pending_;
  std::vector<StreamId> runnable_;  // have something to send, and are not blocked
  unsigned disconnecting_ = 0;      // links

  std::unordered_map<RegionNumber, LocalRegion> local_regions_;
  std::unordered_map<RegionNumber, RemoteRegion> remote_regions_;  // its nodes stay where they are
  std::vector<RegionNumber> slots_;                                // 0: free
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
