#include "library.h"

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <optional>
#include <set>
#include <sstream>

#include "../core/types.h"

namespace aio::libfabric {

namespace {

constexpr const char* kHint = "pip install 'aio-transfer[libfabric]'";
constexpr const char* kAwsPath = "/opt/amazon/efa/lib64/libfabric.so.1";
// `tcp` carries reliable datagrams by itself from here on; Debian 12's 1.17 has them through rxm only, which completes
// a write that the peer refuses as if all were well.
constexpr std::uint32_t kMinVersion = abi::make_version(1, 18);
constexpr std::uint32_t kDeclaredVersion = abi::make_version(2, 5);
// The first whose rxm handles what a connection has brought before it frees the connection, not after.
constexpr std::uint32_t kFixedRxmVersion = abi::make_version(2, 7);

std::string to_string(std::uint32_t version) {
  return std::to_string(version >> 16) + "." + std::to_string(version & 0xffff);
}

template <class Function>
bool bind_symbol(void* handle, const char* name, Function*& slot) {
  slot = reinterpret_cast<Function*>(::dlsym(handle, name));
  return slot != nullptr;
}

// Nothing, and a reason added, when the library will not do.
std::optional<Library> open_library(const std::string& path, std::vector<std::string>& reasons) {
  // RTLD_LOCAL: an application may carry another libfabric, and neither must answer for the other.
  void* handle = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const std::string why = ::dlerror();
    reasons.push_back(why.starts_with(path) ? why : path + ": " + why);
    return std::nullopt;
  }
  Library library;
  library.path = path;
  std::uint32_t (*version)() = nullptr;
  const bool whole =
      bind_symbol(handle, "fi_getinfo", library.getinfo) && bind_symbol(handle, "fi_freeinfo", library.freeinfo) &&
      bind_symbol(handle, "fi_dupinfo", library.dupinfo) && bind_symbol(handle, "fi_fabric", library.fabric) &&
      bind_symbol(handle, "fi_strerror", library.strerror) && bind_symbol(handle, "fi_version", version);
  if (whole) library.version = version();
  // Where it really came from: the loader's own search hides it, and so does a library that is already in the process.
  Dl_info where{};
  if (whole && ::dladdr(reinterpret_cast<void*>(library.getinfo), &where) != 0) library.path = where.dli_fname;
  if (whole && library.version >= kMinVersion) return library;
  reasons.push_back(path + (whole
                                ? ": version " + to_string(library.version) + " is older than " + to_string(kMinVersion)
                                : ": not a libfabric, a symbol is missing"));
  ::dlclose(handle);
  return std::nullopt;
}

Library find(const Options& options) {
  std::vector<std::string> reasons;
  std::optional<Library> best;
  const std::string only = option(options, "library", "");
  if (!only.empty()) {
    best = open_library(only, reasons);
  } else {
    std::vector<std::string> paths{kAwsPath, "libfabric.so.1"};
    std::istringstream more(option(options, "search", ""));
    for (std::string path; std::getline(more, path, ':');) {
      if (!path.empty()) paths.push_back(path);
    }
    const bool efa = option(options, "provider", "tcp").starts_with("efa");
    for (const std::string& path : paths) {
      auto found = open_library(path, reasons);
      if (!found) continue;
      if (!best || found->version > best->version) best = std::move(found);
      // AWS's own build belongs to its driver, whatever others may be newer.
      if (efa && path == kAwsPath) break;
    }
  }
  if (best) return *best;
  std::string all;
  for (const std::string& reason : reasons) all += (all.empty() ? "" : "; ") + reason;
  throw Failure(Failure::Kind::unavailable, "libfabric", all, 0, kHint);
}

// Plug-ins lie beside the library in the `mpich` wheel, whose built-in search path is that of the machine that built
// it. Only for providers that are plug-ins there: loading them all costs time and prints warnings.
void set_plugin_path(const Library& library) {
  const std::filesystem::path plugins = std::filesystem::path(library.path).parent_path() / "libfabric";
  std::error_code ignored;
  if (library.path.find('/') == std::string::npos || !std::filesystem::is_directory(plugins, ignored)) return;
  ::setenv("FI_PROVIDER_PATH", plugins.c_str(), 0);
}

void require_proven(const Library& library, const std::string& provider, const Options& options) {
  const bool rxm = is_rxm_over_verbs(provider);
  const bool proven = rxm ? library.version >= kFixedRxmVersion : provider == "tcp" || provider.starts_with("efa");
  if (proven || yes_or_no("libfabric", options, "unproven").value_or(false)) return;
  throw Failure(Failure::Kind::unavailable, "libfabric",
                "provider " + provider + " breaks the contract" +
                    (rxm ? " before libfabric " + to_string(kFixedRxmVersion) + ", and " + library.path + " is " +
                               to_string(library.version)
                         : "") +
                    ": backends/libfabric/README.md says how",
                0, "provider=\"tcp\", or unproven=True to try it all the same");
}

// What ofi_rxm is to do unless the user has said otherwise. It is read as libfabric is loaded, so that it holds for the
// whole process: where another engine was first it costs time and room over tcp, and over verbs a typed error.
// FI_OFI_RXM_USE_SRX is left alone: unless it is set, receives are the endpoint's over tcp and each connection's own
// over verbs, as they must be (Policy::close_reposts says why).
void set_rxm_defaults(const std::string& provider) {
  const bool verbs = is_rxm_over_verbs(provider);
  // See Policy::slot_nbytes, which these hold.
  ::setenv("FI_OFI_RXM_BUFFER_SIZE", "8192", 0);
  // It makes 1,024 of them at a time, and would ask for 4,096. Over verbs they are a connection's.
  ::setenv("FI_OFI_RXM_MSG_RX_SIZE", verbs ? "256" : "1024", 0);
  ::setenv("FI_OFI_RXM_MSG_TX_SIZE", "120", 0);
  // Its queue has room for that many connections (1,024 unless told) with all that they may have under way, and
  // rdma_rxe's holds 32,767. Ours have one for each NIC of a peer. Others size address tables by it.
  if (verbs) ::setenv("FI_UNIVERSE_SIZE", "16", 0);
  // It looks every 10 ms only for connections that come and go, and end_connections() would end none.
  ::setenv("FI_OFI_RXM_CM_PROGRESS_INTERVAL", "0", 0);
}

// Settings of the efa provider that it reads when it is loaded, and never again: options that come first decide.
void apply_load_time_options(const Options& options, bool fresh) {
  constexpr std::pair<const char*, const char*> settings[] = {{"huge_pages", "FI_EFA_USE_HUGE_PAGE"},
                                                              {"fork_safe", "FI_EFA_FORK_SAFE"}};
  if (yes_or_no("libfabric", options, "huge_pages").value_or(false) &&
      yes_or_no("libfabric", options, "fork_safe").value_or(false)) {
    // The provider would end the process.
    throw Failure(Failure::Kind::usage, "libfabric", "options huge_pages and fork_safe exclude each other");
  }
  for (const auto& [name, variable] : settings) {
    const std::optional<bool> wanted_query = yes_or_no("libfabric", options, name);
    if (!wanted_query) continue;
    const std::string value = *wanted_query ? "1" : "0";
    const char* known = std::getenv(variable);
    if (!fresh && (known == nullptr || value != known)) {
      throw Failure(Failure::Kind::usage, "libfabric",
                    "option " + std::string(name) + " comes too late, libfabric is in use: export " + variable + "=" +
                        value + ", or give it to the first engine of the process");
    }
    ::setenv(variable, value.c_str(), 1);
  }
}

}  // namespace

std::uint32_t Library::api_version() const noexcept { return std::min(version, kDeclaredVersion); }

const Library& load(const Options& options) {
  static std::mutex mutex;
  static std::map<std::string, Library> loaded;     // by what was asked for: one process may use two
  static std::map<std::string, pid_t> first_users;  // by path: the process that used it first
  const std::string provider = option(options, "provider", "tcp");
  const bool is_plugin = provider.starts_with("efa") || provider.starts_with("verbs") || provider == "all";
  const std::string sent_query =
      option(options, "library", "") + "|" + option(options, "search", "") + (is_plugin ? "|p" : "");
  const std::lock_guard lock(mutex);
  auto found = loaded.find(sent_query);
  if (found == loaded.end()) found = loaded.emplace(sent_query, find(options)).first;
  const auto user = first_users.find(found->second.path);
  if (is_plugin && provider != "all" && user != first_users.end() && user->second != ::getpid()) {
    throw Failure(Failure::Kind::unavailable, "libfabric",
                  "provider " + provider +
                      ": this process was forked from one that had used libfabric, and the devices are that one's",
                  0, "multiprocessing.set_start_method('spawn'), or fork before libfabric is used");
  }
  if (provider != "all") require_proven(found->second, provider, options);
  if (is_plugin) set_plugin_path(found->second);
  if (is_rxm(provider)) set_rxm_defaults(provider);
  apply_load_time_options(options, user == first_users.end());
  // Whoever loads it asks it something at once, and with the first question it opens all devices.
  first_users.try_emplace(found->second.path, ::getpid());
  return found->second;
}

std::vector<ProviderEntry> list_providers(const Options& options) {
  Options all = options;
  all["provider"] = "all";
  const Library& library = load(all);
  abi::Info* list = nullptr;
  const int result = library.getinfo(library.api_version(), nullptr, nullptr, 0, nullptr, &list);
  if (result < 0) {
    throw Failure(Failure::Kind::provider, "fi_getinfo", library.strerror(-result), -result);
  }
  const InfoPtr owner(list, InfoDeleter{&library});
  std::vector<ProviderEntry> entries;
  std::set<std::string> seen;
  const auto text = [](const char* words_or_null) {
    return std::string(words_or_null == nullptr ? "" : words_or_null);
  };
  for (const abi::Info* info = list; info != nullptr; info = info->next) {
    ProviderEntry entry{text(info->fabric_attr->prov_name), text(info->fabric_attr->name),
                        text(info->domain_attr->name), to_string(info->fabric_attr->prov_version), 0};
    if (info->nic != nullptr && info->nic->link_attr != nullptr) entry.bits_per_second = info->nic->link_attr->speed;
    if (seen.insert(entry.name + '\n' + entry.fabric + '\n' + entry.domain).second) entries.push_back(std::move(entry));
  }
  return entries;
}

}  // namespace aio::libfabric
