#include "library.h"

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <optional>
#include <sstream>

#include "../core/types.h"

namespace aio::libfabric {

namespace {

constexpr const char* kHint = "pip install 'aio-transfer[libfabric]'";
constexpr const char* kAwsPath = "/opt/amazon/efa/lib64/libfabric.so.1";
// From this version on `tcp` itself offers reliable datagrams. Debian 12's 1.17 offers them through rxm only, which
// completes a write that the peer refuses as if it had succeeded.
constexpr std::uint32_t kMinVersion = abi::make_version(1, 18);
constexpr std::uint32_t kDeclaredVersion = abi::make_version(2, 5);
// First version whose rxm handles what a connection has received before it frees the connection.
constexpr std::uint32_t kFixedRxmVersion = abi::make_version(2, 7);

std::string to_string(std::uint32_t version) {
  return std::to_string(version >> 16) + "." + std::to_string(version & 0xffff);
}

template <class Function>
bool bind_symbol(void* handle, const char* name, Function*& slot) {
  slot = reinterpret_cast<Function*>(::dlsym(handle, name));
  return slot != nullptr;
}

// Returns nothing, and appends a reason, if the library cannot be used.
std::optional<Library> open_library(const std::string& path, std::vector<std::string>& reasons) {
  // RTLD_LOCAL: an application may carry another libfabric, and neither must resolve symbols in the other.
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
  // The path it was loaded from: the loader's search does not tell it, and the library may already have been loaded.
  Dl_info where{};
  if (whole && ::dladdr(reinterpret_cast<void*>(library.getinfo), &where) != 0) library.path = where.dli_fname;
  if (whole && library.version >= kMinVersion) return library;
  reasons.push_back(path + (whole
                                ? ": version " + to_string(library.version) + " is older than " + to_string(kMinVersion)
                                : ": not libfabric: a symbol is missing"));
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
      // AWS's own build matches its driver, even if another one is newer.
      if (efa && path == kAwsPath) break;
    }
  }
  if (best) return *best;
  std::string all;
  for (const std::string& reason : reasons) all += (all.empty() ? "" : "; ") + reason;
  throw Failure(Failure::Kind::unavailable, "libfabric", all, 0, kHint);
}

// In the `mpich` wheel the plug-ins are beside the library, while its built-in search path is that of the build
// machine. Set only for providers that are plug-ins there: loading all of them costs time and prints warnings.
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
                    ": see backends/libfabric/README.md",
                0, "provider=\"tcp\", or unproven=True to use it anyway");
}

// Defaults for ofi_rxm, unless the user has set them. They are read when libfabric is loaded and hold for the whole
// process; if another engine was first, the cost is time and memory over tcp, and a typed error over verbs.
// FI_OFI_RXM_USE_SRX is not set: by default receives belong to the endpoint over tcp, and to each connection over
// verbs, as required (see Policy::drain_before_close).
void set_rxm_defaults(const std::string& provider) {
  const bool verbs = is_rxm_over_verbs(provider);
  // Holds a whole message: see Policy::slot_nbytes.
  ::setenv("FI_OFI_RXM_BUFFER_SIZE", "8192", 0);
  // rxm allocates 1,024 at a time, and its default is 4,096. Over verbs they belong to a connection.
  ::setenv("FI_OFI_RXM_MSG_RX_SIZE", verbs ? "256" : "1024", 0);
  ::setenv("FI_OFI_RXM_MSG_TX_SIZE", "120", 0);
  // rxm sizes its CQ for this many connections (default 1,024) with all their operations, and rdma_rxe's CQ holds
  // 32,767 entries. Our endpoints have one connection per NIC of a peer. Other providers size address tables by it.
  if (verbs) ::setenv("FI_UNIVERSE_SIZE", "16", 0);
  // rxm checks for new and closed connections only every 10 ms by default; shut_down_connections() would close none.
  ::setenv("FI_OFI_RXM_CM_PROGRESS_INTERVAL", "0", 0);
}

// The efa provider reads these when it is loaded, and never again: the first options decide.
void apply_load_time_options(const Options& options, bool fresh) {
  constexpr std::pair<const char*, const char*> settings[] = {{"huge_pages", "FI_EFA_USE_HUGE_PAGE"},
                                                              {"fork_safe", "FI_EFA_FORK_SAFE"}};
  if (yes_or_no("libfabric", options, "huge_pages").value_or(false) &&
      yes_or_no("libfabric", options, "fork_safe").value_or(false)) {
    // The provider would end the process.
    throw Failure(Failure::Kind::usage, "libfabric", "options huge_pages and fork_safe exclude each other");
  }
  for (const auto& [name, variable] : settings) {
    const std::optional<bool> wanted = yes_or_no("libfabric", options, name);
    if (!wanted) continue;
    const std::string value = *wanted ? "1" : "0";
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
  static std::map<std::string, Library> loaded;     // by requested paths: a process may use two
  static std::map<std::string, pid_t> first_users;  // by path: the first process that used it
  const std::string provider = option(options, "provider", "tcp");
  const bool is_plugin = provider.starts_with("efa") || provider.starts_with("verbs");
  const std::string requested =
      option(options, "library", "") + "|" + option(options, "search", "") + (is_plugin ? "|p" : "");
  const std::lock_guard lock(mutex);
  auto found = loaded.find(requested);
  if (found == loaded.end()) found = loaded.emplace(requested, find(options)).first;
  const auto user = first_users.find(found->second.path);
  if (is_plugin && user != first_users.end() && user->second != ::getpid()) {
    throw Failure(Failure::Kind::unavailable, "libfabric",
                  "provider " + provider +
                      ": this process was forked from one that had used libfabric, which still owns the devices",
                  0, "multiprocessing.set_start_method('spawn'), or fork before libfabric is used");
  }
  require_proven(found->second, provider, options);
  if (is_plugin) set_plugin_path(found->second);
  if (is_rxm(provider)) set_rxm_defaults(provider);
  apply_load_time_options(options, user == first_users.end());
  // Loading is followed by fi_getinfo, and the first fi_getinfo opens all devices.
  first_users.try_emplace(found->second.path, ::getpid());
  return found->second;
}

}  // namespace aio::libfabric
