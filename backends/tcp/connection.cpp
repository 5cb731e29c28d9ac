// Connections: who dials, how both ends prove themselves, and how it ends.
//
// Of two ends the one with the smaller name dials. It quotes the other's token, and is answered with its own secret:
// each has read the other's blob then. Nothing else is sent before.
//
// A goodbye (`bye`, then the end of the stream) is answered by the domain itself, behind what it had sent: the other
// side reads up to there, so nothing that ended well is lost, and nobody has to wait for an event loop.
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/random.h>

#include <algorithm>
#include <cerrno>

#include "domain.h"

namespace aio::tcp {

namespace {

using namespace std::chrono_literals;

constexpr auto kMostPatience = 500ms;
// A peer that left and is silent for so long is frozen, or was killed; and so long it may send what it had to.
constexpr auto kQuiet = 500ms;
constexpr auto kQuietAtMost = 5s;
// The end of a process, or a goodbye, is told by the control connection, in better words: it goes first.
constexpr auto kSecondHand = 200ms;

const Outcome kPeerLeft{Status::peer_lost, 0, "the peer has said goodbye"};

Token make_token() {
  Token token;
  if (::getrandom(&token, sizeof token, 0) != sizeof token) {
    throw Failure(Failure::Kind::provider, "getrandom", std::strerror(errno), errno);
  }
  return token;
}

}  // namespace

Link& TcpDomain::link_for(PeerNumber peer) {
  auto& link = links_[peer];
  if (link) return *link;
  link = std::make_unique<Link>();
  link->number = peer;
  link->token = make_token();
  link->end = EndpointBlob{kMagic, 0, 0, {}, link->token};
  put(link->end, own_);
  names_.emplace(link->token.name, link.get());
  return *link;
}

Endpoint TcpDomain::connect(PeerNumber peer, const std::optional<Endpoint>& remote) {
  std::optional<EndpointBlob> far;
  if (remote) far = unpack<EndpointBlob>(remote->blob, "endpoint");
  Link& link = link_for(peer);
  if (link.leaving) throw Failure(Failure::Kind::usage, "connect", "the peer is being disconnected");
  if (far) {
    const std::size_t known = link.streams.size();
    join(link, *far);
    // Those that were admitted before it are not written to.
    if (link.streams.size() != known) std::ranges::rotate(link.streams, link.streams.end() - 1);
  }
  return {pack(link.end), {}};
}

void TcpDomain::admit(PeerNumber peer, const Endpoint& other) {
  const auto found = links_.find(peer);
  if (found == links_.end() || found->second->leaving) return;
  join(*found->second, unpack<EndpointBlob>(other.blob, "endpoint"));
}

void TcpDomain::join(Link& link, const EndpointBlob& far) {
  const Address address = address_of(far);
  for (auto& known : link.streams) {
    if (equal(known->far.token.name, far.token.name)) return;
  }
  if (link.token.name == far.token.name) throw Failure(Failure::Kind::usage, "connect", "the endpoint is our own");
  auto& stream = *link.streams.emplace_back(std::make_unique<Stream>());
  stream.id = next_id_++;
  stream.link = &link;
  stream.far = far;
  stream.address = address;
  stream.dials = link.token.name < far.token.name;
  stream.since = stream.redial_at = Clock::now();
  streams_.emplace(stream.id, &stream);
  want_tick();
  if (stream.dials) return dial(stream);
  for (auto next = visitors_.begin(); next != visitors_.end();) {  // it may have come before we knew it
    Visitor& visitor = *next++;
    if (visitor.complete() && admit_visitor(visitor)) show_out(visitor.id);
  }
}

// ---------------------------------------------------------------------------------------------------------- dialling

void TcpDomain::dial(Stream& stream) {
  stream.fd = Fd(::socket(stream.address.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!stream.fd) return retry(stream, errno);
  const int on = 1;
  if (own_.family() ==
      stream.address.family()) {  // leave by the NIC that we listen at; otherwise by the kernel's choice
    Address from = own_;
    reinterpret_cast<sockaddr_in&>(from.storage).sin_port = 0;  // where IPv6 has it, too
    ::setsockopt(stream.fd.get(), IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    static_cast<void>(::bind(stream.fd.get(), from.get(), from.nbytes));
  }
  ::setsockopt(stream.fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  stream.state = Stream::State::dialling;
  if (::connect(stream.fd.get(), stream.address.get(), stream.address.nbytes) != 0 && errno != EINPROGRESS) {
    return retry(stream, errno);
  }
  watch(stream.fd.get(), stream.id, true, false);
}

void TcpDomain::dialled(Stream& stream) {
  int code = 0;
  socklen_t nbytes = sizeof code;
  ::getsockopt(stream.fd.get(), SOL_SOCKET, SO_ERROR, &code, &nbytes);
  if (code != 0) return retry(stream, code);
  const Hello hello{kMagic, 0, stream.far.token, stream.link->token.name};
  // An empty socket takes so little whole.
  if (::send(stream.fd.get(), &hello, sizeof hello, MSG_NOSIGNAL) != sizeof hello) return retry(stream, errno);
  stream.state = Stream::State::greeting;
  watch(stream.fd.get(), stream.id, false, true);
}

void TcpDomain::hear_welcome(Stream& stream) {
  Welcome welcome{};
  // Looked at until it is whole, so that what follows is left to receive().
  const ssize_t heard = ::recv(stream.fd.get(), &welcome, sizeof welcome, MSG_PEEK);
  if (heard < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (heard <= 0) return retry(stream, heard == 0 ? ECONNRESET : errno);
  if (static_cast<std::size_t>(heard) < sizeof welcome) return;
  if (welcome.magic != kMagic || !equal(welcome.secret, stream.link->token.secret)) {
    return fail(stream,
                {Status::provider, EACCES, "whoever listens at " + to_words(stream.address) + " is not the peer"});
  }
  static_cast<void>(::recv(stream.fd.get(), &welcome, sizeof welcome, 0));
  come_up(stream);
}

// What is refused is gone: it listened before it told us where. What hung up may have had too many at its door.
void TcpDomain::retry(Stream& stream, int code) {
  shut(stream.fd);
  stream.state = Stream::State::awaited;
  if (stream.link->leaving) return;
  if (code == ECONNREFUSED || code == EACCES || code == EPERM) return fail(stream, "connect", code);
  stream.redial_at = Clock::now() + stream.patience;
  stream.patience = std::min(2 * stream.patience, kMostPatience);
  want_tick();
}

void TcpDomain::come_up(Stream& stream) {
  stream.state = Stream::State::up;
  stream.since = Clock::now();
  stream.buffer = std::make_unique<std::array<std::byte, kBufferNbytes>>();
  want(stream);
}

// --------------------------------------------------------------------------------------------------------- the end

// It is broken. Pieces stop at once, since nothing can move; the engine is told a little later (kSecondHand), or now
// where only we can know.
void TcpDomain::fail(Stream& stream, const Outcome& outcome) {
  if (stream.state == Stream::State::ended) return;
  const bool known_elsewhere = outcome.status == Status::peer_lost;
  close(stream);
  stop_all(stream, outcome);
  if (stream.link->leaving) return;
  if (!known_elsewhere) return sink_.peer_failed(stream.link->number, outcome);
  stream.verdict = outcome;
  stream.since = Clock::now();
  want_tick();
}

void TcpDomain::fail(Stream& stream, const char* operation, int code) {
  fail(stream, {Status::peer_lost, code, std::string(operation) + ": " + std::strerror(code)});
}

void TcpDomain::tell_second_hand(Stream& stream) {
  if (stream.verdict.ok() || now_ - stream.since < kSecondHand) return;
  sink_.peer_failed(stream.link->number, std::exchange(stream.verdict, {}));
}

void TcpDomain::hear_end(Stream& stream) {
  stream.heard_end = true;
  if (!stream.heard_bye && !stream.link->leaving) return fail(stream, "receive", ECONNRESET);
  if (stream.said_bye) {
    close(stream);
    return stop_all(stream, kPeerLeft);
  }
  // Level-triggered: an end would be told again and again.
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, stream.fd.get(), nullptr);
  stream.says_bye = true;
  pump(stream);
  if (stream.up() && !stream.said_bye) {  // whoever has ended its half takes the rest of ours, or is gone
    close(stream);
    stop_all(stream, kPeerLeft);
  }
}

// Ends everything that is under way, in either direction. Its memory is not touched any more.
void TcpDomain::stop_all(Stream& stream, const Outcome& outcome) {
  Outgoing out;
  std::swap(out, stream.out);
  const Job job = std::exchange(stream.job, {});
  if (job.flow != nullptr) sink_.stopped(*job.flow, 1, outcome);
  std::deque<Unacknowledged> unacknowledged;
  unacknowledged.swap(stream.unacknowledged);
  for (const Unacknowledged& one : unacknowledged) {
    sink_.stopped(*one.flow, one.pieces, one.outcome.ok() ? outcome : one.outcome);
  }
  std::deque<Reading> reads;
  reads.swap(stream.reads);
  for (const Reading& one : reads) sink_.stopped(*one.flow, one.pieces, outcome);
  out.messages.insert(out.messages.end(), stream.control_messages.begin(), stream.control_messages.end());
  stream.control_messages.clear();
  for (const TransferId message : out.messages) sink_.sent(message, outcome);
  if (stream.in.left != 0 && stream.in.head.kind == Kind::data) stream.in.nowhere = true;
  stream.serving.clear();
}

void TcpDomain::close(Stream& stream) noexcept {
  shut(stream.fd);
  stream.state = Stream::State::ended;
  stream.blocked = false;
  stream.heard_end = true;
  stream.in = {};
  stream.control.clear();
}

// Nothing of ours follows; what had been sent arrives.
void TcpDomain::part(Stream& stream) {
  if (!stream.up()) {
    // It may have let us in already, and would take our end for a crash.
    const FrameHead bye{Kind::bye, 0, 0, 0, 0, 0};
    if (stream.state == Stream::State::greeting) {
      static_cast<void>(::send(stream.fd.get(), &bye, sizeof bye, MSG_NOSIGNAL | MSG_DONTWAIT));
    }
    close(stream);
    return stop_all(stream, kPeerGone);
  }
  const bool torn = stream.out.busy();  // a frame stays unfinished: its source may be used for something else now
  stop_all(stream, kPeerGone);
  stream.says_bye = true;
  if (torn) {
    ::shutdown(stream.fd.get(), SHUT_WR);
    stream.said_bye = true;
  } else {
    pump(stream);
  }
  if (stream.heard_end && stream.up()) close(stream);
}

void TcpDomain::disconnect(PeerNumber peer, bool lost) {
  const auto found = links_.find(peer);
  if (found == links_.end()) return sink_.fenced(peer);
  Link& link = *found->second;
  if (!link.leaving) ++leaving_;
  link.leaving = true;
  link.leaving_since = Clock::now();
  for (auto& stream : link.streams) {
    if (lost && stream->fd) {
      // A reset: what lies in the kernel's queues is of no use to anybody, and the peer learns of it.
      const linger hard{1, 0};
      ::setsockopt(stream->fd.get(), SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    }
    if (lost) {
      close(*stream);
      stop_all(*stream, kPeerGone);
    } else if (stream->state != Stream::State::ended) {
      part(*stream);
    }
  }
  want_tick();
  fence_those_that_left();
}

// No byte of theirs can come any more, since nobody receives it; and what had come is counted.
void TcpDomain::fence_those_that_left() {
  const auto now = Clock::now();
  for (auto next = links_.begin(); next != links_.end();) {
    Link& link = *next->second;
    const bool over = link.leaving && std::ranges::all_of(link.streams, [&](const auto& stream) {
                        return stream->state == Stream::State::ended || stream->state == Stream::State::awaited ||
                               now - std::max(stream->since, link.leaving_since) > kQuiet ||
                               now - link.leaving_since > kQuietAtMost;
                      });
    if (!over) {
      ++next;
      continue;
    }
    for (auto& stream : link.streams) {
      close(*stream);
      streams_.erase(stream->id);
    }
    const PeerNumber number = link.number;
    names_.erase(link.token.name);
    next = links_.erase(next);
    std::erase_if(remotes_, [number](const auto& remote) { return remote.second.peer == number; });
    --leaving_;
    sink_.fenced(number);
  }
}

}  // namespace aio::tcp
