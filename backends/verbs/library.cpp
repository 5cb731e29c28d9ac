#include "library.h"

#include <dlfcn.h>

#include <cstring>
#include <mutex>

#include "../core/types.h"

namespace aio::verbs {

namespace {

constexpr const char* kHint = "sudo apt-get install -y libibverbs1 ibverbs-providers";

template <class Function>
bool bind_symbol(void* handle, const char* name, Function*& slot) {
  slot = reinterpret_cast<Function*>(::dlsym(handle, name));
  return slot != nullptr;
}

// Returns the name of a required symbol that the library lacks, or null.
const char* bind_symbols(void* handle, Library& library) {
  const char* missing = nullptr;
  const auto need = [&](const char* name, auto& slot) {
    if (!bind_symbol(handle, name, slot) && missing == nullptr) missing = name;
  };
  need("ibv_get_device_list", library.get_device_list);
  need("ibv_free_device_list", library.free_device_list);
  need("ibv_get_device_name", library.get_device_name);
  need("ibv_open_device", library.open_device);
  need("ibv_close_device", library.close_device);
  need("ibv_query_device", library.query_device);
  need("ibv_query_port", library.query_port_legacy);
  need("_ibv_query_gid_table", library.query_gid_table);  // rdma-core 32
  need("ibv_alloc_pd", library.alloc_pd);
  need("ibv_dealloc_pd", library.dealloc_pd);
  need("ibv_reg_mr", library.reg_mr);
  need("ibv_dereg_mr", library.dereg_mr);
  need("ibv_create_comp_channel", library.create_comp_channel);
  need("ibv_destroy_comp_channel", library.destroy_comp_channel);
  need("ibv_create_cq", library.create_cq);
  need("ibv_destroy_cq", library.destroy_cq);
  need("ibv_get_cq_event", library.get_cq_event);
  need("ibv_ack_cq_events", library.ack_cq_events);
  need("ibv_create_srq", library.create_srq);
  need("ibv_destroy_srq", library.destroy_srq);
  need("ibv_create_qp", library.create_qp);
  need("ibv_modify_qp", library.modify_qp);
  need("ibv_destroy_qp", library.destroy_qp);
  need("ibv_get_async_event", library.get_async_event);
  need("ibv_ack_async_event", library.ack_async_event);
  need("ibv_wc_status_str", library.wc_status_str);
  need("ibv_event_type_str", library.event_type_str);
  bind_symbol(handle, "ibv_reg_mr_iova2", library.reg_mr_iova2);
  bind_symbol(handle, "ibv_reg_dmabuf_mr", library.reg_dmabuf_mr);
  bind_symbol(handle, "ibv_fork_init", library.fork_init);
  return missing;
}

// Before any device is opened. Where the kernel copies pinned pages when a process forks (Linux 5.12 on), ibv_fork_init
// is not needed, and it harms: a child would lack every page with registered memory, and whatever else lies there.
void prepare_for_fork(void* handle, const Library& library) {
  int (*is_fork_initialized)() = nullptr;  // rdma-core 35 on
  bind_symbol(handle, "ibv_is_fork_initialized", is_fork_initialized);
  const bool kernel_copies = is_fork_initialized != nullptr && is_fork_initialized() == abi::fork_unneeded;
  if (library.fork_init != nullptr && !kernel_copies) library.fork_init();
}

Library open_library(const std::string& path) {
  // RTLD_LOCAL: an application may carry another libibverbs, and neither must resolve symbols in the other.
  void* handle = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) throw Failure(Failure::Kind::unavailable, "verbs", ::dlerror(), 0, kHint);
  Library library;
  const char* missing = bind_symbols(handle, library);
  if (missing != nullptr) {
    const std::string why = path + " lacks " + missing + ": older than rdma-core 32, or another library";
    ::dlclose(handle);
    throw Failure(Failure::Kind::unavailable, "verbs", why, 0, kHint);
  }
  // The path it was loaded from, which the loader's search does not tell.
  Dl_info where{};
  const bool known = ::dladdr(reinterpret_cast<void*>(library.get_device_list), &where) != 0;
  library.path = known ? where.dli_fname : path;
  prepare_for_fork(handle, library);
  return library;
}

}  // namespace

int Library::query_port(abi::Context* context, std::uint8_t port, abi::PortAttr* attr) const noexcept {
  std::memset(attr, 0, sizeof *attr);
  if (reinterpret_cast<std::uintptr_t>(context->abi_compat) == abi::extended_abi) {
    char* const around = reinterpret_cast<char*>(context) - offsetof(abi::ExtendedContext, context);
    const auto& extended = *reinterpret_cast<abi::ExtendedContext*>(around);
    // The structure grows at its beginning, where this call is: it is missing in a library that knows a shorter one.
    if (extended.nbytes >= sizeof extended && extended.query_port != nullptr) {
      return extended.query_port(context, port, attr, sizeof *attr);
    }
  }
  return query_port_legacy(context, port, attr);
}

const Library& load(const Options& options) {
  static std::mutex mutex;
  static std::map<std::string, Library> loaded;  // by path: a process may use two
  const auto asked = options.find("library");
  const std::string path = asked == options.end() || asked->second.empty() ? "libibverbs.so.1" : asked->second;
  const std::lock_guard lock(mutex);
  auto found = loaded.find(path);
  if (found == loaded.end()) found = loaded.emplace(path, open_library(path)).first;
  return found->second;
}

}  // namespace aio::verbs
