// Endpoints: creation, and checks of a peer's address.
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "domain.h"

namespace aio::libfabric {

namespace {

// libfabric's address vectors do not check their input: a socket address is checked here.
bool is_valid_address(std::uint32_t format, std::string_view address, std::size_t own_nbytes) {
  if (address.size() != own_nbytes) return false;
  const auto family = address.size() >= 2 ? read_record<std::uint16_t>(address) : std::uint16_t{0};
  if (format == abi::format_sockaddr_in) return family == AF_INET;
  if (format == abi::format_sockaddr_in6) return family == AF_INET6;
  if (format == abi::format_sockaddr) return family == AF_INET || family == AF_INET6;
  return true;
}

}  // namespace

Channel FabricDomain::open_channel(bool shared, std::uint64_t* count) {
  Channel channel;
  channel.receives = policy_.immediates_use_receives ? kImmediateSlots : shared ? kSharedSlots : kSlots;
  channel.sends = shared ? kSharedSlots : kSlots;
  channel.slot_nbytes = policy_.slot_nbytes;
  if (policy_.close_drops_completions &&
      (peers_.size() + 1) * (channel.receives + channel.sends + depth_) > cq_entries_) {
    throw Failure(Failure::Kind::provider, "connect",
                  "the completions of " + std::to_string(peers_.size() + 1) +
                      " peers could overflow the device's completion queue",
                  ENOSPC, "endpoints=\"shared\", or a smaller depth");
  }
  abi::Ep* ep = nullptr;
  check("fi_endpoint", domain_->ops->endpoint(domain_.get(), info_.get(), &ep, nullptr));
  channel.endpoint = {ep, count};
  if (is_efa()) set_efa_options(channel);
  check("fi_ep_bind", abi::bind(&ep->fid, av_.fid(), 0));
  check("fi_ep_bind", abi::bind(&ep->fid, cq_.fid(), abi::send | abi::recv));
  check("fi_enable", abi::enable(&ep->fid));
  const std::uint32_t slots = channel.receives + channel.sends;
  channel.arena = std::make_unique_for_overwrite<std::byte[]>(slots * channel.slot_nbytes);
  for (std::uint32_t slot = slots; slot-- > channel.receives;) channel.free_slots.push_back(slot);
  if ((info_->domain_attr->mr_mode & abi::mr_local) != 0) {
    channel.registration = register_own(channel.arena.get(), slots * channel.slot_nbytes, abi::send | abi::recv, count);
  }
  return channel;
}

void FabricDomain::set_efa_options(Channel& channel) const {
  abi::Ep* ep = channel.endpoint.get();
  // Our own shm serves the local host. CUDA calls would run in the worker and may wait for a stream; they can only be
  // forbidden if GPU memory was requested. Older versions know neither option, and do neither.
  const bool permitted = false;
  for (const int name : {abi::opt_shared_memory_permitted, abi::opt_cuda_api_permitted}) {
    if (name == abi::opt_cuda_api_permitted && (info_->caps & abi::hmem) == 0) continue;
    const int result = ep->ops->setopt(&ep->fid, abi::opt_endpoint, name, &permitted, sizeof permitted);
    if (result != -ENOPROTOOPT) check("fi_setopt", result);
  }
  if (policy_.rnr_retry >= 0) {
    const auto times = static_cast<std::size_t>(policy_.rnr_retry);
    check("fi_setopt of FI_OPT_EFA_RNR_RETRY",
          ep->ops->setopt(&ep->fid, abi::opt_endpoint, abi::opt_efa_rnr_retry, &times, sizeof times));
  }
  std::size_t largest = 0;
  std::size_t nbytes = sizeof largest;
  if (ep->ops->getopt(&ep->fid, abi::opt_endpoint, abi::opt_max_msg_size, &largest, &nbytes) == 0) {
    channel.slot_nbytes = std::min(largest, kSlotNbytes);
  }
}

bool FabricDomain::is_efa() const noexcept {
  return std::string_view(info_->fabric_attr->prov_name).starts_with("efa");
}

// Name that both ends must have in common.
std::string FabricDomain::path_name() const {
  return is_efa() ? info_->fabric_attr->name : info_->fabric_attr->prov_name;
}

void FabricDomain::write_blob(Peer& peer) const {
  std::array<char, 256> name{};
  std::size_t nbytes = name.size();
  abi::Ep* ep = peer.channel->endpoint.get();
  check("fi_getname", ep->cm->getname(&ep->fid, name.data(), &nbytes));
  EndpointBlob blob;
  blob.provider = path_name();
  blob.address.assign(name.data(), nbytes);
  const bool virtual_addresses = (info_->domain_attr->mr_mode & abi::mr_virt_addr) != 0;
  blob.head = {kMagic,
               info_->addr_format,
               peer.token,
               {virtual_addresses ? reinterpret_cast<std::uint64_t>(empty_target_memory_) : 0, empty_target_->key, 0},
               static_cast<std::uint16_t>(blob.provider.size()),
               static_cast<std::uint16_t>(nbytes)};
  peer.blob = pack(blob);
}

// Throws unless our endpoint can reach it.
EndpointBlob FabricDomain::accept(const Peer& peer, const Endpoint& remote) const {
  EndpointBlob blob = unpack_endpoint(remote.blob);
  const EndpointBlob own = unpack_endpoint(peer.blob);
  if (blob.provider != own.provider) {
    throw Failure(Failure::Kind::usage, "connect", "the peer's provider is not " + own.provider);
  }
  if (blob.head.addr_format != own.head.addr_format ||
      !is_valid_address(blob.head.addr_format, blob.address, own.address.size())) {
    throw Failure(Failure::Kind::usage, "connect",
                  "the peer's address has another format than " + own.provider + " uses here");
  }
  return blob;
}

std::uint64_t FabricDomain::insert(const EndpointBlob& blob) {
  std::uint64_t address = abi::addr_unspec;
  const int inserted = av_->ops->insert(av_.get(), blob.address.data(), 1, &address, 0, nullptr);
  if (inserted < 0) check("fi_av_insert", inserted);
  if (inserted != 1) throw Failure(Failure::Kind::provider, "fi_av_insert", "the address was refused", EADDRNOTAVAIL);
  return address;
}

}  // namespace aio::libfabric
