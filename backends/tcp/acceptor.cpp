// Accepts connections. An unauthenticated connection may send at most 56 bytes within 5 s, and at most 256 of them are
// held at a time.
#include <netinet/tcp.h>
#include <sys/epoll.h>

#include <algorithm>
#include <cerrno>

#include "domain.h"

namespace aio::tcp {

namespace {

constexpr auto kHandshakeTimeout = std::chrono::seconds(5);
constexpr std::size_t kMaxPending = 256;
constexpr int kAcceptsPerPass = 64;  // fairness: streams run in between

}  // namespace

void TcpDomain::accept_pending() {
  for (int i = 0; i < kAcceptsPerPass; ++i) {
    Fd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd) {
      if (errno != EMFILE && errno != ENFILE && errno != ENOBUFS && errno != ENOMEM) return;
      // Out of descriptors: the listener stays readable, and epoll would report it in a busy loop.
      ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, listener_.get(), nullptr);
      accept_paused_ = true;
      return start_timer();
    }
    const int on = 1;
    ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (pending_.size() >= kMaxPending) {
      // The oldest silent connection makes room. A real peer that is rejected here dials again.
      const auto silent = std::ranges::find_if(pending_, [](const PendingConnection& one) { return !one.complete(); });
      if (silent == pending_.end()) continue;
      reject(silent->id);
    }
    PendingConnection& pending = pending_.emplace_back();
    pending.id = next_id_++;
    pending.fd = std::move(fd);
    pending.last_progress = now_;
    watch(pending.fd.get(), pending.id, false, false);
    start_timer();
  }
}

void TcpDomain::read_hello(PendingConnection& pending) {
  const ssize_t received =
      ::recv(pending.fd.get(), pending.hello.data() + pending.nbytes, pending.hello.size() - pending.nbytes, 0);
  if (received < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (received <= 0) return reject(pending.id);
  pending.nbytes += static_cast<std::size_t>(received);
  if (!pending.complete()) return;
  const auto hello = read_record<Hello>(pending.hello.data());
  const auto found = peers_by_name_.find(hello.to.name);
  if (hello.magic != kMagic || found == peers_by_name_.end() || !equal(found->second->token.secret, hello.to.secret)) {
    return reject(pending.id);
  }
  if (accept(pending)) return reject(pending.id);
  // The peer is not registered yet: the connection waits for join(). What it sends meanwhile stays in the kernel.
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, pending.fd.get(), nullptr);
}

// Attaches a connection that has proved itself to its stream. Returns true if it is no longer pending: accepted, or of
// no use.
bool TcpDomain::accept(PendingConnection& pending) {
  const auto hello = read_record<Hello>(pending.hello.data());
  const auto found = peers_by_name_.find(hello.to.name);
  if (found == peers_by_name_.end() || found->second->disconnecting) return true;
  const auto stream = std::ranges::find_if(found->second->streams,
                                           [&](const auto& one) { return equal(one->remote.token.name, hello.from); });
  if (stream == found->second->streams.end()) return false;
  Stream& one = **stream;
  if (one.dials || one.state != Stream::State::waiting) return true;
  const Welcome welcome{kMagic, 0, one.remote.token.secret};
  if (::send(pending.fd.get(), &welcome, sizeof welcome, MSG_NOSIGNAL) != sizeof welcome) return true;
  one.fd = std::move(pending.fd);
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, one.fd.get(), nullptr);
  watch(one.fd.get(), one.id, false, false);
  on_connected(one);
  return true;
}

void TcpDomain::reject(StreamId pending) noexcept {
  const auto found = std::ranges::find(pending_, pending, &PendingConnection::id);
  close_socket(found->fd);  // no effect if it was accepted: the stream owns it
  pending_.erase(found);
}

void TcpDomain::reject_expired() noexcept {
  while (!pending_.empty() && now_ - pending_.front().last_progress > kHandshakeTimeout) reject(pending_.front().id);
}

}  // namespace aio::tcp
