// Who comes to the listening socket. Until a visitor has proved that it has read a blob of ours, it may say 56 bytes,
// for five seconds, along with a bounded number of others.
#include <netinet/tcp.h>
#include <sys/epoll.h>

#include <algorithm>
#include <cerrno>

#include "domain.h"

namespace aio::tcp {

namespace {

constexpr auto kPatience = std::chrono::seconds(5);
constexpr std::size_t kMostVisitors = 256;
constexpr int kAccepted = 64;  // per turn

}  // namespace

void TcpDomain::welcome_visitors() {
  for (int i = 0; i < kAccepted; ++i) {
    Fd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd) {
      if (errno != EMFILE && errno != ENFILE && errno != ENOBUFS && errno != ENOMEM) return;
      // It stays readable, and we would turn around it for ever.
      ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, listener_.get(), nullptr);
      deaf_ = true;
      return want_tick();
    }
    const int on = 1;
    ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (visitors_.size() >= kMostVisitors) {
      // The one that has been silent for longest makes room; a peer that was shown out dials again.
      const auto silent = std::ranges::find_if(visitors_, [](const Visitor& one) { return !one.complete(); });
      if (silent == visitors_.end()) continue;
      show_out(silent->id);
    }
    Visitor& visitor = visitors_.emplace_back();
    visitor.id = next_id_++;
    visitor.fd = std::move(fd);
    visitor.since = now_;
    watch(visitor.fd.get(), visitor.id, false, false);
    want_tick();
  }
}

void TcpDomain::hear_visitor(Visitor& visitor) {
  const ssize_t heard =
      ::recv(visitor.fd.get(), visitor.said.data() + visitor.heard, visitor.said.size() - visitor.heard, 0);
  if (heard < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (heard <= 0) return show_out(visitor.id);
  visitor.heard += static_cast<std::size_t>(heard);
  if (!visitor.complete()) return;
  const auto hello = read_record<Hello>(visitor.said.data());
  const auto found = names_.find(hello.to.name);
  if (hello.magic != kMagic || found == names_.end() || !equal(found->second->token.secret, hello.to.secret)) {
    return show_out(visitor.id);
  }
  if (admit_visitor(visitor)) return show_out(visitor.id);
  // Ours has not been told of it yet. What it says meanwhile is left where it is.
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, visitor.fd.get(), nullptr);
}

// Whether it is gone from the door: let in, or of no use.
bool TcpDomain::admit_visitor(Visitor& visitor) {
  const auto hello = read_record<Hello>(visitor.said.data());
  const auto found = names_.find(hello.to.name);
  if (found == names_.end() || found->second->leaving) return true;
  const auto stream = std::ranges::find_if(found->second->streams,
                                           [&](const auto& one) { return equal(one->far.token.name, hello.from); });
  if (stream == found->second->streams.end()) return false;
  Stream& one = **stream;
  if (one.dials || one.state != Stream::State::awaited) return true;
  const Welcome welcome{kMagic, 0, one.far.token.secret};
  if (::send(visitor.fd.get(), &welcome, sizeof welcome, MSG_NOSIGNAL) != sizeof welcome) return true;
  one.fd = std::move(visitor.fd);
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, one.fd.get(), nullptr);
  watch(one.fd.get(), one.id, false, false);
  come_up(one);
  return true;
}

void TcpDomain::show_out(StreamId visitor) noexcept {
  const auto found = std::ranges::find(visitors_, visitor, &Visitor::id);
  shut(found->fd);  // nothing where it was let in
  visitors_.erase(found);
}

void TcpDomain::close_door() noexcept {
  while (!visitors_.empty() && now_ - visitors_.front().since > kPatience) show_out(visitors_.front().id);
}

}  // namespace aio::tcp
