// Connections: dialing, the handshake, and teardown.
//
// The end with the smaller name dials. It sends the other end's token, and receives its own secret in reply: each side
// has proved that it has read the other's blob. Nothing else is sent before.
//
// A goodbye (`bye`, then end of stream) is answered by the domain itself, behind everything it had sent. The other side
// reads up to there, so nothing that ended successfully is lost, and neither side waits for an event loop.
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/random.h>

#include <algorithm>
#include <cerrno>

#include "domain.h"

namespace aio::tcp {

namespace {

using namespace std::chrono_literals;

constexpr auto kMaxRedialDelay = 500ms;
// A peer that has said goodbye and sends nothing for this long is frozen or dead; one that keeps sending may do so for
// kMaxDrainTime.
constexpr auto kQuietPeriod = 500ms;
constexpr auto kMaxDrainTime = 5s;
// The control connection reports the death of a process, or a goodbye, with a better reason: it gets this much time to
// be first.
constexpr auto kReportDelay = 200ms;

const Outcome kPeerSaidBye{Status::peer_lost, 0, "the peer closed the connection"};

Token make_token() {
  Token token;
  if (::getrandom(&token, sizeof token, 0) != sizeof token) {
    throw Failure(Failure::Kind::provider, "getrandom", std::strerror(errno), errno);
  }
  return token;
}

}  // namespace

Peer& TcpDomain::peer_for(PeerNumber number) {
  auto& peer = peers_[number];
  if (peer) return *peer;
  peer = std::make_unique<Peer>();
  peer->number = number;
  peer->token = make_token();
  peer->end = EndpointBlob{kMagic, 0, 0, {}, peer->token};
  write_address(peer->end, local_address_);
  peers_by_name_.emplace(peer->token.name, peer.get());
  return *peer;
}

Endpoint TcpDomain::connect(PeerNumber number, const std::optional<Endpoint>& remote) {
  std::optional<EndpointBlob> blob;
  if (remote) blob = unpack<EndpointBlob>(remote->blob, "endpoint");
  Peer& peer = peer_for(number);
  if (peer.disconnecting) throw Failure(Failure::Kind::usage, "connect", "the peer is being disconnected");
  if (blob) {
    const std::size_t known = peer.streams.size();
    join(peer, *blob);
    // Streams that were admitted before are not written to: the main stream goes to the front.
    if (peer.streams.size() != known) std::ranges::rotate(peer.streams, peer.streams.end() - 1);
  }
  return {pack(peer.end), {}};
}

void TcpDomain::admit(PeerNumber number, const Endpoint& other) {
  const auto found = peers_.find(number);
  if (found == peers_.end() || found->second->disconnecting) return;
  join(*found->second, unpack<EndpointBlob>(other.blob, "endpoint"));
}

void TcpDomain::join(Peer& peer, const EndpointBlob& remote) {
  const Address address = read_address(remote);
  for (auto& known : peer.streams) {
    if (equal(known->remote.token.name, remote.token.name)) return;
  }
  if (peer.token.name == remote.token.name)
    throw Failure(Failure::Kind::usage, "connect", "the endpoint is this engine's own");
  auto& stream = *peer.streams.emplace_back(std::make_unique<Stream>());
  stream.id = next_id_++;
  stream.peer = &peer;
  stream.remote = remote;
  stream.address = address;
  stream.dials = peer.token.name < remote.token.name;
  stream.last_progress = stream.redial_at = Clock::now();
  streams_.emplace(stream.id, &stream);
  start_timer();
  if (stream.dials) return dial(stream);
  for (auto next = pending_.begin(); next != pending_.end();) {  // it may have connected before this call
    PendingConnection& pending = *next++;
    if (pending.complete() && accept(pending)) reject(pending.id);
  }
}

// ----------------------------------------------------------------------------------------------------------- dialing

void TcpDomain::dial(Stream& stream) {
  stream.fd = Fd(::socket(stream.address.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!stream.fd) return retry_dial(stream, errno);
  const int on = 1;
  // Leave by the NIC that we listen at. For the other address family the kernel chooses.
  if (local_address_.family() == stream.address.family()) {
    Address from = local_address_;
    reinterpret_cast<sockaddr_in&>(from.storage).sin_port = 0;  // sin6_port lies at the same offset
    ::setsockopt(stream.fd.get(), IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    static_cast<void>(::bind(stream.fd.get(), from.get(), from.nbytes));
  }
  ::setsockopt(stream.fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  stream.state = Stream::State::connecting;
  if (::connect(stream.fd.get(), stream.address.get(), stream.address.nbytes) != 0 && errno != EINPROGRESS) {
    return retry_dial(stream, errno);
  }
  watch(stream.fd.get(), stream.id, true, false);
}

void TcpDomain::send_hello(Stream& stream) {
  int code = 0;
  socklen_t nbytes = sizeof code;
  ::getsockopt(stream.fd.get(), SOL_SOCKET, SO_ERROR, &code, &nbytes);
  if (code != 0) return retry_dial(stream, code);
  const Hello hello{kMagic, 0, stream.remote.token, stream.peer->token.name};
  // An empty send buffer takes so few bytes whole.
  if (::send(stream.fd.get(), &hello, sizeof hello, MSG_NOSIGNAL) != sizeof hello) return retry_dial(stream, errno);
  stream.state = Stream::State::handshaking;
  watch(stream.fd.get(), stream.id, false, true);
}

void TcpDomain::read_welcome(Stream& stream) {
  Welcome welcome{};
  // Peeked at until it is complete, so that what follows is left for receive().
  const ssize_t received = ::recv(stream.fd.get(), &welcome, sizeof welcome, MSG_PEEK);
  if (received < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (received <= 0) return retry_dial(stream, received == 0 ? ECONNRESET : errno);
  if (static_cast<std::size_t>(received) < sizeof welcome) return;
  if (welcome.magic != kMagic || !equal(welcome.secret, stream.peer->token.secret)) {
    return fail(stream, {Status::provider, EACCES,
                         "the process that listens at " + to_string(stream.address) + " is not the peer"});
  }
  static_cast<void>(::recv(stream.fd.get(), &welcome, sizeof welcome, 0));
  on_connected(stream);
}

// A refused connection is final: the peer listened before it sent its address. One that was closed may have met a full
// list of pending connections.
void TcpDomain::retry_dial(Stream& stream, int code) {
  close_socket(stream.fd);
  stream.state = Stream::State::waiting;
  if (stream.peer->disconnecting) return;
  if (code == ECONNREFUSED || code == EACCES || code == EPERM) return fail(stream, "connect", code);
  stream.redial_at = Clock::now() + stream.redial_delay;
  stream.redial_delay = std::min(2 * stream.redial_delay, kMaxRedialDelay);
  start_timer();
}

void TcpDomain::on_connected(Stream& stream) {
  stream.state = Stream::State::connected;
  stream.last_progress = Clock::now();
  stream.buffer = std::make_unique<std::array<std::byte, kReadAheadNbytes>>();
  schedule(stream);
}

// ---------------------------------------------------------------------------------------------------------- teardown

// Pieces stop at once, since nothing can move any more. The engine is told after kReportDelay, or at once if no other
// component can know the reason.
void TcpDomain::fail(Stream& stream, const Outcome& outcome) {
  if (stream.state == Stream::State::closed) return;
  const bool known_elsewhere = outcome.status == Status::peer_lost;
  close(stream);
  abort_operations(stream, outcome);
  if (stream.peer->disconnecting) return;
  if (!known_elsewhere) return sink_.peer_failed(stream.peer->number, outcome);
  stream.deferred_failure = outcome;
  stream.last_progress = Clock::now();
  start_timer();
}

void TcpDomain::fail(Stream& stream, const char* operation, int code) {
  fail(stream, {Status::peer_lost, code, std::string(operation) + ": " + std::strerror(code)});
}

void TcpDomain::report_failure(Stream& stream) {
  if (stream.deferred_failure.ok() || now_ - stream.last_progress < kReportDelay) return;
  sink_.peer_failed(stream.peer->number, std::exchange(stream.deferred_failure, {}));
}

void TcpDomain::on_end_of_stream(Stream& stream) {
  stream.end_received = true;
  if (!stream.bye_received && !stream.peer->disconnecting) return fail(stream, "receive", ECONNRESET);
  if (stream.bye_sent) {
    close(stream);
    return abort_operations(stream, kPeerSaidBye);
  }
  // epoll is level-triggered: it would report the end of the stream again and again.
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, stream.fd.get(), nullptr);
  stream.bye_queued = true;
  send_frames(stream);
  if (stream.connected() && !stream.bye_sent) {  // it has closed its half, so it reads the rest of ours or is gone
    close(stream);
    abort_operations(stream, kPeerSaidBye);
  }
}

// Ends all operations of both directions. Their memory is not touched any more.
void TcpDomain::abort_operations(Stream& stream, const Outcome& outcome) {
  Outgoing out;
  std::swap(out, stream.out);
  const SegmentedWrite segmented = std::exchange(stream.segmented, {});
  if (segmented.flow != nullptr) sink_.stopped(*segmented.flow, 1, outcome);
  std::deque<Unacknowledged> unacknowledged;
  unacknowledged.swap(stream.unacknowledged);
  for (const Unacknowledged& one : unacknowledged) {
    sink_.stopped(*one.flow, one.pieces, one.outcome.ok() ? outcome : one.outcome);
  }
  std::deque<PendingRead> pending_reads;
  pending_reads.swap(stream.pending_reads);
  for (const PendingRead& one : pending_reads) sink_.stopped(*one.flow, one.pieces, outcome);
  out.messages.insert(out.messages.end(), stream.control_messages.begin(), stream.control_messages.end());
  stream.control_messages.clear();
  for (const TransferId message : out.messages) sink_.sent(message, outcome);
  if (stream.in.left != 0 && stream.in.header.kind == Kind::data) stream.in.discard = true;
  stream.read_requests.clear();
}

void TcpDomain::close(Stream& stream) noexcept {
  close_socket(stream.fd);
  stream.state = Stream::State::closed;
  stream.blocked = false;
  stream.end_received = true;
  stream.in = {};
  stream.control.clear();
}

// Sends `bye` as the last frame; what was sent before still arrives.
void TcpDomain::say_goodbye(Stream& stream) {
  if (!stream.connected()) {
    // It may have accepted us already, and would take a bare end of stream for a crash.
    const FrameHeader bye{Kind::bye, 0, 0, 0, 0, 0};
    if (stream.state == Stream::State::handshaking) {
      static_cast<void>(::send(stream.fd.get(), &bye, sizeof bye, MSG_NOSIGNAL | MSG_DONTWAIT));
    }
    close(stream);
    return abort_operations(stream, kConnectionClosed);
  }
  const bool incomplete = stream.out.busy();  // the frame stays incomplete: its source may be reused from here on
  abort_operations(stream, kConnectionClosed);
  stream.bye_queued = true;
  if (incomplete) {
    ::shutdown(stream.fd.get(), SHUT_WR);
    stream.bye_sent = true;
  } else {
    send_frames(stream);
  }
  if (stream.end_received && stream.connected()) close(stream);
}

void TcpDomain::disconnect(PeerNumber number, bool lost) {
  const auto found = peers_.find(number);
  if (found == peers_.end()) return sink_.fenced(number);
  Peer& peer = *found->second;
  if (!peer.disconnecting) ++disconnecting_;
  peer.disconnecting = true;
  peer.disconnecting_since = Clock::now();
  for (auto& stream : peer.streams) {
    if (lost && stream->fd) {
      // Reset instead of FIN: what is queued in the kernel is of no use any more, and the peer notices.
      const linger reset{1, 0};
      ::setsockopt(stream->fd.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    }
    if (lost) {
      close(*stream);
      abort_operations(*stream, kConnectionClosed);
    } else if (stream->state != Stream::State::closed) {
      say_goodbye(*stream);
    }
  }
  start_timer();
  fence_disconnected();
}

// Reports peers as fenced once none of their bytes can arrive any more. Everything that arrived before has been
// counted.
void TcpDomain::fence_disconnected() {
  const auto now = Clock::now();
  for (auto next = peers_.begin(); next != peers_.end();) {
    Peer& peer = *next->second;
    const bool over = peer.disconnecting && std::ranges::all_of(peer.streams, [&](const auto& stream) {
                        return stream->state == Stream::State::closed || stream->state == Stream::State::waiting ||
                               now - std::max(stream->last_progress, peer.disconnecting_since) > kQuietPeriod ||
                               now - peer.disconnecting_since > kMaxDrainTime;
                      });
    if (!over) {
      ++next;
      continue;
    }
    for (auto& stream : peer.streams) {
      close(*stream);
      streams_.erase(stream->id);
    }
    const PeerNumber number = peer.number;
    peers_by_name_.erase(peer.token.name);
    next = peers_.erase(next);
    std::erase_if(remote_regions_, [number](const auto& remote) { return remote.second.peer == number; });
    --disconnecting_;
    sink_.fenced(number);
  }
}

}  // namespace aio::tcp
