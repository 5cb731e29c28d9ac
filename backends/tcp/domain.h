// The tcp Domain: one listening address, its sockets, an epoll and a timer. Its methods are spread over domain.cpp
// (opening, attributes), endpoint.h (addresses), memory.cpp (regions), connection.cpp (dialing and teardown),
// acceptor.cpp (the listening socket), post.cpp (what the core posts), send.cpp and receive.cpp (frames), progress.cpp
// (epoll events, timers).
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

// epoll data of the listener and the timer; streams are numbered from 16 on.
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
  bool accept_paused_ = false;  // out of descriptors: accepting starts again with the next timer event
  Address local_address_;

  StreamId next_id_ = kFirstStream;
  std::unordered_map<PeerNumber, std::unique_ptr<Peer>> peers_;
  std::map<std::array<std::uint8_t, 16>, Peer*> peers_by_name_;
  std::unordered_map<StreamId, Stream*> streams_;
  std::list<PendingConnection> pending_;
  std::vector<StreamId> runnable_;  // streams with output that are not blocked
  unsigned disconnecting_ = 0;      // peers that are being disconnected

  std::unordered_map<RegionNumber, LocalRegion> local_regions_;
  std::unordered_map<RegionNumber, RemoteRegion> remote_regions_;
  std::vector<RegionNumber> slots_;  // region of each slot, 0: free
  std::vector<std::uint32_t> free_slots_;
  Clock::time_point now_;
};

// Options, all optional; aio_transfer's table of options has types, ranges and defaults.
//   address          listening addresses, separated by commas: one rail each
//   rails            number of domains, 1 to 8
//   connect_s        connect timeout in seconds
//   post_deadline_s  seconds without a byte in either direction, with operations in flight, until a peer fails
//   progress, spin_us, cpus: read by the core
// Throws Failure(usage) for an unknown or malformed option, Failure(unavailable) if an address cannot be bound.
std::vector<std::unique_ptr<Domain>> open_domains(Sink& sink, const Options& options);

}  // namespace aio::tcp
