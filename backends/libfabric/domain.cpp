// Opening of libfabric domains: options, discovery, queues, attributes.
#include "domain.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <random>
#include <sstream>

namespace aio::libfabric {

namespace {

constexpr int kDrainRounds = 64;  // passes of libfabric before an endpoint is closed, without reading completions

Policy policy_of(const abi::Info& info, const Options& options) {
  const std::string provider = info.fabric_attr->prov_name;
  Policy policy;
  policy.unproven = yes_or_no("libfabric", options, "unproven").value_or(false);
  if (is_rxm(provider)) policy.slot_nbytes = kMinSlotNbytes;
  policy.drain_before_close = is_rxm_over_verbs(provider);
  if (provider == "tcp" || provider == "tcp;ofi_rxm") {
    policy.delivery = yes_or_no("libfabric", options, "delivery").value_or(true);
    policy.close_forgets_connections = true;
    policy.payload_first = is_rxm(provider);
  } else if (provider.starts_with("efa")) {
    const bool direct = info.fabric_attr->name == std::string_view("efa-direct");
    policy.shared_endpoint = one_of("libfabric", options, "endpoints", "peer", {"peer", "shared"}) == "shared";
    policy.device_checks_keys = policy.needs_handshake = policy.close_drops_completions = true;
    policy.close_blocks = !direct;
    if (!option(options, "rnr_retry", "").empty()) {
      policy.rnr_retry = static_cast<int>(whole_number("libfabric", options, "rnr_retry", 0, 0, 7));
    }
    policy.immediates_use_receives = (info.mode & abi::mode_rx_cq_data) != 0;
  }
  return policy;
}

[[noreturn]] void unavailable(const std::string& provider, const std::string& why, int code) {
  const bool wheel = provider.find("tcp") != std::string::npos;
  throw Failure(Failure::Kind::unavailable, "libfabric", "provider " + provider + ": " + why, code,
                wheel ? "pip install 'aio-transfer[libfabric]'" : "aio-transfer devices");
}

// What is requested beyond the options.
struct HintVariant {
  std::string fabric;
  bool gpu = false;
  bool rx_cq_data = false;
};

InfoPtr make_hints(const Library& library, const Options& options, const std::string& provider,
                   const HintVariant& variant) {
  InfoPtr hints(library.dupinfo(nullptr), InfoDeleter{&library});
  const auto text = [](const std::string& to_string) {
    return to_string.empty() ? nullptr : ::strdup(to_string.c_str());
  };
  const bool efa = provider.starts_with("efa");
  hints->caps = abi::msg | abi::rma | (efa ? abi::local_comm | abi::remote_comm : 0) | (variant.gpu ? abi::hmem : 0);
  hints->mode = abi::mode_context | abi::mode_context2 | (variant.rx_cq_data ? abi::mode_rx_cq_data : 0);
  hints->ep_attr->type = abi::ep_rdm;
  hints->domain_attr->mr_mode = abi::mr_local | abi::mr_virt_addr | abi::mr_allocated | abi::mr_prov_key |
                                abi::mr_endpoint | (variant.gpu ? abi::mr_hmem : 0);
  hints->domain_attr->threading = abi::thread_domain;  // calls are made with the core's lock held
  hints->domain_attr->control_progress = hints->domain_attr->data_progress = abi::progress_manual;
  hints->fabric_attr->prov_name = text(provider);
  hints->fabric_attr->name = text(variant.fabric);
  hints->domain_attr->name = text(option(options, "interface", ""));
  return hints;
}

// EFA offers GPU memory only if a GPU library is installed. Its direct fabric requires receives for immediates on older
// devices, and hides itself from applications that do not offer them. Each combination is requested in turn, the best
// first.
std::vector<HintVariant> hint_variants(const Options& options, const std::string& provider) {
  const std::string fabric = option(options, "fabric", "");
  if (!provider.starts_with("efa")) return {{fabric}};
  std::vector<HintVariant> all;
  if (fabric.empty() || fabric == "efa-direct") {
    for (const bool rx_cq_data : {false, true}) {
      for (const bool gpu : {true, false}) all.push_back({"efa-direct", gpu, rx_cq_data});
    }
  }
  if (fabric.empty() || fabric == "efa") {
    for (const bool gpu : {true, false}) all.push_back({"efa", gpu, false});
  }
  return all;
}

// The domains that may be opened, in order.
std::vector<abi::Info*> select_infos(abi::Info* list, const std::string& provider, const std::string& interfaces) {
  std::vector<abi::Info*> offered, chosen;
  std::set<std::string> seen;
  for (abi::Info* info = list; info != nullptr; info = info->next) {
    // A request for "tcp" also returns "tcp;ofi_rxm", a different path with weaker guarantees.
    if (provider == info->fabric_attr->prov_name && seen.insert(info->domain_attr->name).second)
      offered.push_back(info);
  }
  if (interfaces.empty()) return offered;
  std::istringstream names(interfaces);
  for (std::string name; std::getline(names, name, ',');) {
    const auto found =
        std::ranges::find_if(offered, [&name](abi::Info* info) { return name == info->domain_attr->name; });
    if (found == offered.end()) unavailable(provider, "no interface " + name, ENODEV);
    chosen.push_back(*found);
  }
  return chosen;
}

InfoPtr get_info(const Library& library, const Options& options, const std::string& provider) {
  const bool ip = provider.starts_with("tcp") || provider.starts_with("udp") || provider.starts_with("sockets");
  const bool chosen = !option(options, "interface", "").empty();
  const std::string node = option(options, "address", ip && !chosen ? "127.0.0.1" : "");
  int result = -ENODATA;
  for (const HintVariant& variant : hint_variants(options, provider)) {
    abi::Info* list = nullptr;
    result = library.getinfo(library.api_version(), node.empty() ? nullptr : node.c_str(), nullptr,
                             node.empty() ? 0 : abi::source_address,
                             make_hints(library, options, provider, variant).get(), &list);
    if (result == 0) return {list, InfoDeleter{&library}};
  }
  unavailable(provider, std::string(library.strerror(-result)) + (node.empty() ? "" : ", at address " + node), -result);
}

}  // namespace

std::vector<std::unique_ptr<Domain>> open_domains(Sink& sink, const Options& options) {
  check_option_names(
      "libfabric", options,
      {"provider", "unproven", "address", "interface", "interfaces", "fabric", "endpoints", "rnr_retry", "huge_pages",
       "fork_safe", "rails", "depth", "delivery", "post_deadline_s", "verdict_s", "library", "search"});
  const Library& library = load(options);
  const std::string provider = option(options, "provider", "tcp");
  const std::uint64_t rails = whole_number("libfabric", options, "rails", 1, 1, 1'000'000'000);
  const InfoPtr list = get_info(library, options, provider);
  std::vector<std::unique_ptr<Domain>> domains;
  for (abi::Info* info : select_infos(list.get(), provider, option(options, "interfaces", ""))) {
    if (domains.size() == rails) break;
    InfoPtr own(library.dupinfo(info), InfoDeleter{&library});
    domains.push_back(std::make_unique<FabricDomain>(sink, library, std::move(own), options));
  }
  if (domains.empty()) unavailable(provider, "not offered by " + library.path, ENODEV);
  return domains;
}

FabricDomain::FabricDomain(Sink& sink, const Library& library, InfoPtr info, const Options& options)
    : sink_(sink),
      library_(library),
      info_(std::move(info)),
      policy_(policy_of(*info_, options)),
      depth_(static_cast<std::uint32_t>(std::min<std::uint64_t>(
          whole_number("libfabric", options, "depth", 256, 1, 1'000'000'000), info_->tx_attr->size))),
      max_segments_(
          std::clamp<std::size_t>(std::min(info_->tx_attr->iov_limit, info_->tx_attr->rma_iov_limit), 1, kMaxSegments)),
      post_deadline_(number("libfabric", options, "post_deadline_s", 30, 0, 1e9)),
      verdict_(number("libfabric", options, "verdict_s", 5, 0, 1e9)) {
  const int mode = info_->domain_attr->mr_mode;
  const std::string provider = info_->fabric_attr->prov_name;
  if ((mode & abi::mr_raw) != 0)
    unavailable(provider, "memory keys longer than 64 bits (FI_MR_RAW) are not supported", 0);
  if (info_->domain_attr->cq_data_size < 4) unavailable(provider, "no 32-bit immediates", 0);
  // Memory that is registered with one endpoint cannot serve an endpoint per peer.
  if ((mode & abi::mr_endpoint) != 0) policy_.shared_endpoint = true;
  open_queues();
  if (policy_.shared_endpoint) {
    shared_channel_ = open_channel(true, nullptr);
    for (std::uint32_t slot = 0; slot < shared_channel_->receives; ++slot)
      post_receive(*shared_channel_, nullptr, slot);
  }
  empty_target_ =
      register_own(empty_target_memory_, sizeof empty_target_memory_, abi::remote_write | abi::write, nullptr);
  set_attributes();
}

FabricDomain::~FabricDomain() {
  // Endpoints first: afterwards nothing can reach the memory whose registrations go next.
  for (auto& [number, peer] : peers_) {
    if (!peer->own) continue;
    if (policy_.close_forgets_connections) shut_down_connections(*peer);
    for (int round = 0; policy_.drain_before_close && round < kDrainRounds; ++round)
      cq_->ops->read(cq_.get(), nullptr, 0);
    peer->own->endpoint.reset();
  }
  if (shared_channel_) shared_channel_->endpoint.reset();
  peers_.clear();
  shared_channel_.reset();
  local_regions_.clear();
  empty_target_.reset();
}

void FabricDomain::check(const char* what, ssize_t result) const {
  if (result >= 0) return;
  const int code = static_cast<int>(-result);
  throw Failure(Failure::Kind::provider, what, library_.strerror(code), code);
}

void FabricDomain::open_queues() {
  abi::Fabric* fabric = nullptr;
  check("fi_fabric", library_.fabric(info_->fabric_attr, &fabric, nullptr));
  fabric_ = {fabric, nullptr};
  abi::DomainFid* domain = nullptr;
  check("fi_domain", fabric->ops->domain(fabric, info_.get(), &domain, nullptr));
  domain_ = {domain, nullptr};

  abi::CqAttr cq_attr{};
  // EFA's CQ does not grow, and an overflow stops it for good, together with all operations that wait for it.
  cq_attr.size = cq_entries_ = policy_.close_drops_completions ? 32768 : 8192;
  cq_attr.format = abi::cq_format_data;
  // When an endpoint closes, ofi_rxm leaves its queues in the list that a wait descriptor refers to, and the next
  // fi_trywait dereferences them (rxm_ep_close; nothing calls ofi_wait_del_fid, 1.18 to 2.6): a crash. So it is polled.
  cq_attr.wait_obj = is_rxm(info_->fabric_attr->prov_name) ? abi::wait_none : abi::wait_fd;
  abi::Cq* cq = nullptr;
  int result = domain->ops->cq_open(domain, &cq_attr, &cq, nullptr);
  if (result < 0) {  // shm, sm2 and efa have no wait descriptor (-FI_ENOSYS in 2.5)
    cq_attr.wait_obj = abi::wait_none;
    result = domain->ops->cq_open(domain, &cq_attr, &cq, nullptr);
  }
  check("fi_cq_open", result);
  cq_ = {cq, nullptr};
  if (cq_attr.wait_obj == abi::wait_fd && abi::get_wait_fd(cq, &wait_fd_) < 0) wait_fd_ = -1;

  abi::AvAttr av_attr{};
  av_attr.type = info_->domain_attr->av_type != 0 ? info_->domain_attr->av_type : abi::av_table;
  av_attr.count = 64;
  abi::Av* av = nullptr;
  check("fi_av_open", domain->ops->av_open(domain, &av_attr, &av, nullptr));
  av_ = {av, nullptr};
}

void FabricDomain::set_attributes() {
  const std::string provider = info_->fabric_attr->prov_name;
  attributes_.name = info_->domain_attr->name;
  attributes_.provider = path_name();
  attributes_.same_host = provider == "shm" || provider == "sm2";
  // 1 GiB, so that a stall can be told from a slow piece.
  attributes_.max_piece_nbytes = std::min<std::uint64_t>(info_->ep_attr->max_msg_size, 1ull << 30);
  attributes_.max_message_nbytes =
      std::min<std::uint64_t>(info_->ep_attr->max_msg_size, policy_.slot_nbytes) - sizeof(FrameHeader);
  attributes_.protocol = "RMA write with " + std::to_string(8 * info_->domain_attr->cq_data_size) + "-bit CQ data";
  if (policy_.delivery) attributes_.protocol += ", acknowledged by the peer";
  attributes_.quantum *= static_cast<std::uint32_t>(max_segments_);  // as many operations as without bundles
  attributes_.inline_nbytes = 32 << 10;
  attributes_.inline_pieces = 4;
  // Over sockets, our own tcp does the same with fewer copies and system calls.
  const bool over_sockets =
      provider.starts_with("tcp") || provider.starts_with("udp") || provider.starts_with("sockets");
  attributes_.preference = over_sockets ? 50 : 200;
  if (!provider.starts_with("efa")) return;
  attributes_.device_memory = true;
  attributes_.inline_pieces = 1;  // about 0.45 us each; more would keep the caller from its event loop
  if (shared_channel_) return set_efa_attributes(*shared_channel_);
  set_efa_attributes(open_channel(false, nullptr));
}

// The path taken is queried, never assumed (libfabric #11626).
void FabricDomain::set_efa_attributes(const Channel& channel) {
  bool emulated = true;
  std::size_t nbytes = sizeof emulated;
  abi::Ep* ep = channel.endpoint.get();
  const int result = ep->ops->getopt(&ep->fid, abi::opt_endpoint, abi::opt_efa_emulated_write, &emulated, &nbytes);
  if (result >= 0 && emulated && !policy_.unproven) {
    // Software copies on after a key is closed, and EFA's datagrams have no order that could prove the end of a copy.
    unavailable(path_name(), "the device writes no remote memory itself (no RDMA write, or FI_EFA_USE_DEVICE_RDMA=0)",
                0);
  }
  attributes_.protocol += result < 0 ? ", by the device or emulated (this version cannot say)"
                          : emulated ? ", emulated in software"
                                     : ", by the device";
  if (policy_.immediates_use_receives) attributes_.protocol += ", immediates consume receives";
  attributes_.max_message_nbytes = channel.slot_nbytes - sizeof(FrameHeader);
}

}  // namespace aio::libfabric
