// libibverbs, loaded at run time: the package builds and imports without it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <utility>

#include "../core/options.h"
#include "abi.h"

namespace aio::verbs {

// Owner of one libibverbs object; counts it if it belongs to a region or a peer.
template <class Object>
class Handle {
 public:
  Handle() = default;
  Handle(Object* object, int (*close)(Object*), std::uint64_t* count = nullptr) noexcept
      : object_(object), close_(close), count_(count) {
    if (count_ != nullptr) ++*count_;
  }
  Handle(Handle&& other) noexcept
      : object_(std::exchange(other.object_, nullptr)), close_(other.close_), count_(other.count_) {}
  Handle& operator=(Handle&& other) noexcept {
    if (this != &other) {
      reset();
      object_ = std::exchange(other.object_, nullptr);
      close_ = other.close_;
      count_ = other.count_;
    }
    return *this;
  }
  ~Handle() { reset(); }

  // Returns an error number. If the library refuses to close the object, it is still owned and counted: the leak check
  // reports it.
  int reset() noexcept {
    if (object_ == nullptr) return 0;
    const int result = close_(object_);
    if (result != 0) return result;
    object_ = nullptr;
    if (count_ != nullptr) --*count_;
    return 0;
  }
  [[nodiscard]] Object* get() const noexcept { return object_; }
  Object* operator->() const noexcept { return object_; }
  explicit operator bool() const noexcept { return object_ != nullptr; }

 private:
  Object* object_ = nullptr;
  int (*close_)(Object*) = nullptr;
  std::uint64_t* count_ = nullptr;
};

// Entry points of one loaded library. Never unloaded: it keeps its providers' libraries, and they keep handlers.
struct Library {
  std::string path;

  abi::DeviceNode** (*get_device_list)(int* count) = nullptr;
  void (*free_device_list)(abi::DeviceNode**) = nullptr;
  const char* (*get_device_name)(abi::DeviceNode*) = nullptr;
  abi::Context* (*open_device)(abi::DeviceNode*) = nullptr;
  int (*close_device)(abi::Context*) = nullptr;
  int (*query_device)(abi::Context*, abi::DeviceAttr*) = nullptr;
  ssize_t (*query_gid_table)(abi::Context*, abi::GidEntry*, std::size_t room, std::uint32_t flags,
                             std::size_t entry_nbytes) = nullptr;
  abi::Pd* (*alloc_pd)(abi::Context*) = nullptr;
  int (*dealloc_pd)(abi::Pd*) = nullptr;
  abi::Mr* (*reg_mr)(abi::Pd*, void* addr, std::size_t nbytes, int access) = nullptr;
  int (*dereg_mr)(abi::Mr*) = nullptr;
  abi::CompChannel* (*create_comp_channel)(abi::Context*) = nullptr;
  int (*destroy_comp_channel)(abi::CompChannel*) = nullptr;
  abi::Cq* (*create_cq)(abi::Context*, int entries, void* context, abi::CompChannel*, int vector) = nullptr;
  int (*destroy_cq)(abi::Cq*) = nullptr;
  int (*get_cq_event)(abi::CompChannel*, abi::Cq**, void** context) = nullptr;
  void (*ack_cq_events)(abi::Cq*, unsigned count) = nullptr;
  abi::Srq* (*create_srq)(abi::Pd*, abi::SrqInitAttr*) = nullptr;
  int (*destroy_srq)(abi::Srq*) = nullptr;
  abi::Qp* (*create_qp)(abi::Pd*, abi::QpInitAttr*) = nullptr;
  int (*modify_qp)(abi::Qp*, abi::QpAttr*, int mask) = nullptr;
  int (*destroy_qp)(abi::Qp*) = nullptr;
  int (*get_async_event)(abi::Context*, abi::AsyncEvent*) = nullptr;
  void (*ack_async_event)(abi::AsyncEvent*) = nullptr;
  const char* (*wc_status_str)(std::uint32_t) = nullptr;
  const char* (*event_type_str)(std::uint32_t) = nullptr;

  // Null in older libraries: relaxed ordering came with rdma-core 28, dma-buf with 34.
  abi::Mr* (*reg_mr_iova2)(abi::Pd*, void* addr, std::size_t nbytes, std::uint64_t iova, unsigned access) = nullptr;
  abi::Mr* (*reg_dmabuf_mr)(abi::Pd*, std::uint64_t offset, std::size_t nbytes, std::uint64_t iova, int fd,
                            int access) = nullptr;
  int (*fork_init)() = nullptr;

  // ibv_query_port(3) is a macro. The symbol of that name serves old binaries, and does not know the port flags.
  int (*query_port_legacy)(abi::Context*, std::uint8_t port, abi::PortAttr*) = nullptr;
  int query_port(abi::Context* context, std::uint8_t port, abi::PortAttr* attr) const noexcept;
};

// Loads the library of the option `library`, or libibverbs.so.1. Throws Failure(unavailable) with the reason.
const Library& load(const Options& options);

}  // namespace aio::verbs
