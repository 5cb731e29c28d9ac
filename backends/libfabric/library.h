// libfabric, loaded at run time: the package builds and imports without it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "../core/options.h"
#include "abi.h"

namespace aio::libfabric {

// Entry points of one loaded library. Never unloaded: providers leave threads, fork handlers and plug-ins behind.
struct Library {
  std::string path;
  std::uint32_t version = 0;  // as in make_version()

  int (*getinfo)(std::uint32_t version, const char* node, const char* service, std::uint64_t flags,
                 const abi::Info* hints, abi::Info** info) = nullptr;
  void (*freeinfo)(abi::Info*) = nullptr;
  abi::Info* (*dupinfo)(const abi::Info*) = nullptr;
  int (*fabric)(abi::FabricAttr*, abi::Fabric**, void* context) = nullptr;
  const char* (*strerror)(int) = nullptr;

  // The interface version to request: the one declared in abi.h, or the library's own if that is older.
  [[nodiscard]] std::uint32_t api_version() const noexcept;
};

// Owner of one libfabric object; counts it if it belongs to a region or a peer.
template <class Object>
class Handle {
 public:
  Handle() = default;
  Handle(Object* object, std::uint64_t* count) noexcept : object_(object), count_(count) {
    if (count_ != nullptr) ++*count_;
  }
  Handle(Handle&& other) noexcept : object_(std::exchange(other.object_, nullptr)), count_(other.count_) {}
  Handle& operator=(Handle&& other) noexcept {
    if (this != &other) {
      reset();
      object_ = std::exchange(other.object_, nullptr);
      count_ = other.count_;
    }
    return *this;
  }
  ~Handle() { reset(); }

  void reset() noexcept {
    if (object_ == nullptr) return;
    // If the close fails, the object stays counted: the leak check reports it.
    const int result = abi::close(&std::exchange(object_, nullptr)->fid);
    if (result == 0 && count_ != nullptr) --*count_;
  }
  [[nodiscard]] Object* get() const noexcept { return object_; }
  [[nodiscard]] abi::Fid* fid() const noexcept { return &object_->fid; }
  Object* operator->() const noexcept { return object_; }
  explicit operator bool() const noexcept { return object_ != nullptr; }

 private:
  Object* object_ = nullptr;
  std::uint64_t* count_ = nullptr;
};

struct InfoDeleter {
  const Library* library;
  void operator()(abi::Info* info) const noexcept { library->freeinfo(info); }
};
using InfoPtr = std::unique_ptr<abi::Info, InfoDeleter>;

// Reliable datagrams over connections of another provider.
inline bool is_rxm(std::string_view provider) noexcept { return provider.ends_with(";ofi_rxm"); }
inline bool is_rxm_over_verbs(std::string_view provider) noexcept { return provider == "verbs;ofi_rxm"; }

// Loads the library of the option `library`; without it, the newest of AWS's installation, the loader's and the paths
// in `search` (colon separated), except that `efa` prefers AWS's. Throws Failure(unavailable) with all reasons if none
// can be used, if the provider breaks the contract, and for a device provider in a forked child of a process that has
// used the library; Failure(usage) for an option that is read at load time and comes too late.
const Library& load(const Options& options);

}  // namespace aio::libfabric
