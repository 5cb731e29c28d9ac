// Opening of tcp domains: options, listening sockets, attributes.
#include "domain.h"

#include <sys/epoll.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <sstream>

namespace aio::tcp {

namespace {

constexpr int kBacklog = 1024;
constexpr std::uint64_t kMaxRails = 8;

[[noreturn]] void usage_error(const std::string& why) { throw Failure(Failure::Kind::usage, "tcp", why); }

std::vector<Address> addresses(const Options& options) {
  std::vector<Address> all;
  std::istringstream list(option(options, "address", "127.0.0.1"));
  for (std::string item; std::getline(list, item, ',');) {
    const auto address = parse_address(item);
    if (!address) usage_error("option address is " + item + ": not an IPv4 or IPv6 address");
    if (is_wildcard(*address)) usage_error("option address is " + item + ": peers cannot dial a wildcard address");
    all.push_back(*address);
  }
  if (all.empty()) usage_error("option address is empty");
  return all;
}

[[noreturn]] void unavailable(const std::string& what) {
  throw Failure(Failure::Kind::unavailable, "tcp", what + ": " + std::strerror(errno), errno, "ip address");
}

}  // namespace

std::vector<std::unique_ptr<Domain>> open_domains(Sink& sink, const Options& options) {
  check_option_names("tcp", options, {"address", "rails", "connect_s", "post_deadline_s"});
  const std::vector<Address> listen_at = addresses(options);
  const std::uint64_t count = whole_number("tcp", options, "rails", listen_at.size(), 1, kMaxRails);
  using Seconds = std::chrono::duration<double>;
  const Settings settings{Seconds(number("tcp", options, "connect_s", 10, 0.01, 1e6)),
                          Seconds(number("tcp", options, "post_deadline_s", 30, 0.01, 1e6))};
  std::vector<std::unique_ptr<Domain>> domains;
  for (std::size_t i = 0; i < count; ++i) {
    domains.push_back(std::make_unique<TcpDomain>(sink, listen_at[i % listen_at.size()], settings));
  }
  return domains;
}

TcpDomain::TcpDomain(Sink& sink, const Address& address, const Settings& settings)
    : sink_(sink),
      settings_(settings),
      epoll_(::epoll_create1(EPOLL_CLOEXEC)),
      timer_(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)),
      now_(Clock::now()) {
  if (!epoll_ || !timer_) unavailable("epoll");
  listen(address);
  watch(timer_.get(), kTimer, false, false);
  watch(listener_.get(), kListener, false, false);
  attributes_.name = to_string(local_address_);
  attributes_.provider = "sockets";
  attributes_.protocol = "vectored sends over one TCP connection; the peer's thread receives straight into the target";
  attributes_.max_piece_nbytes = 1ull << 40;
  attributes_.max_message_nbytes = kMaxMessageNbytes;
  attributes_.inline_nbytes = 256 << 10;
  attributes_.inline_pieces = kMaxFramePieces;
  attributes_.quantum = kMaxFramePieces;
  attributes_.notifies_arrivals = attributes_.notifies_completions = true;
  attributes_.preference = 100;
}

TcpDomain::~TcpDomain() {
  for (auto& [id, stream] : streams_) close_socket(stream->fd);
  for (PendingConnection& pending : pending_) close_socket(pending.fd);
  close_socket(listener_);
}

void TcpDomain::listen(Address address) {
  listener_ = Fd(::socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const std::string name = to_string(address);
  if (!listener_) unavailable("socket for " + name);
  if (::bind(listener_.get(), address.get(), address.nbytes) != 0 || ::listen(listener_.get(), kBacklog) != 0) {
    unavailable("cannot listen at " + name);
  }
  local_address_.nbytes = sizeof local_address_.storage;
  if (::getsockname(listener_.get(), local_address_.get(), &local_address_.nbytes) != 0)
    unavailable("getsockname of " + name);
}

std::uint64_t TcpDomain::handles() const noexcept {
  return peers_.size() + streams_.size() + local_regions_.size() + remote_regions_.size();
}

}  // namespace aio::tcp
