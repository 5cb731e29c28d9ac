#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <mutex>

#include "nic.h"

namespace efa {

namespace {

constexpr std::uint8_t kGid[16] = {0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x0e, 0xfa, 0, 0xff, 0xfe, 0, 0, 0};

abi::Mr* enter(abi::Pd* pd, Region* region, std::uint64_t iova, std::size_t nbytes, int access) {
  region->context = pd->context;
  region->pd = pd;
  region->addr = region->memory;
  region->length = nbytes;
  region->iova = iova;
  region->access = access;
  Nic& nic = nic_of(pd->context);
  const std::lock_guard lock(nic.mutex);
  nic.memory.add(region);
  return region;
}

}  // namespace

abi::Gid gid_of(unsigned device) noexcept {
  abi::Gid gid;
  std::memcpy(gid.raw, kGid, sizeof kGid);
  gid.raw[15] = static_cast<std::uint8_t>(device + 1);
  return gid;
}

int device_of(const abi::Gid& gid) noexcept {
  if (std::memcmp(gid.raw, kGid, 15) != 0 || gid.raw[15] == 0) return -1;
  return gid.raw[15] - 1;
}

void Memory::add(Region* region) {
  do {
    region->lkey = region->rkey = static_cast<std::uint32_t>(dice_.roll());
  } while (region->lkey == 0 || regions_.contains(region->lkey));
  regions_.emplace(region->lkey, region);
}

void Memory::remove(Region* region) { regions_.erase(region->lkey); }

std::byte* Memory::reach(std::uint32_t key, std::uint64_t addr, std::uint64_t nbytes, int access) const noexcept {
  const auto found = regions_.find(key);
  if (found == regions_.end()) return nullptr;
  const Region& region = *found->second;
  const std::uint64_t offset = addr - region.iova;
  if ((region.access & access) != access || offset > region.length || nbytes > region.length - offset) return nullptr;
  return region.memory + offset;
}

std::uint16_t Memory::meet(std::uint16_t device) {
  const auto [found, fresh] = known_.try_emplace(device, Known{next_, 0});
  if (fresh) ++next_;
  ++found->second.uses;
  return found->second.number;
}

void Memory::part(std::uint16_t device) {
  const auto found = known_.find(device);
  if (found != known_.end() && --found->second.uses == 0) known_.erase(found);
}

std::uint16_t Memory::handle_of(std::uint16_t device) const noexcept {
  const auto found = known_.find(device);
  return found == known_.end() ? kUnknown : found->second.number;
}

}  // namespace efa

using namespace efa;

extern "C" {

abi::Pd* ibv_alloc_pd(abi::Context* context) { return new abi::Pd{context, 1}; }

int ibv_dealloc_pd(abi::Pd* pd) {
  delete pd;
  return 0;
}

abi::Mr* ibv_reg_mr_iova2(abi::Pd* pd, void* addr, std::size_t nbytes, std::uint64_t iova, unsigned access) {
  auto* region = new Region{};
  region->memory = static_cast<std::byte*>(addr);
  return enter(pd, region, iova, nbytes, static_cast<int>(access));
}

abi::Mr* ibv_reg_dmabuf_mr(abi::Pd* pd, std::uint64_t offset, std::size_t nbytes, std::uint64_t iova, int fd,
                           int access) {
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const std::uint64_t before = offset % page;
  // Anything in CPU memory can be mapped: udmabuf's buffers, and a memfd, which stands for one in tests.
  void* mapping =
      ::mmap(nullptr, nbytes + before, PROT_READ | PROT_WRITE, MAP_SHARED, fd, static_cast<off_t>(offset - before));
  if (mapping == MAP_FAILED) return nullptr;
  auto* region = new Region{};
  region->mapping = mapping;
  region->mapped = nbytes + before;
  region->memory = static_cast<std::byte*>(mapping) + before;
  return enter(pd, region, iova, nbytes, access);
}

int ibv_dereg_mr(abi::Mr* mr) {
  auto* region = static_cast<Region*>(mr);
  {
    // While this holds the lock no packet is being copied; afterwards no packet finds the key.
    Nic& nic = nic_of(region->context);
    const std::lock_guard lock(nic.mutex);
    nic.memory.remove(region);
  }
  if (region->mapping != nullptr) ::munmap(region->mapping, region->mapped);
  delete region;
  return 0;
}

abi::Ah* ibv_create_ah(abi::Pd* pd, abi::AhAttr* attr) {
  const int device = device_of(attr->grh.dgid);
  if (device < 0) {
    errno = EINVAL;
    return nullptr;
  }
  auto* handle = new AddressHandle{};
  handle->context = pd->context;
  handle->pd = pd;
  handle->device = static_cast<std::uint16_t>(device);
  Nic& nic = nic_of(pd->context);
  const std::lock_guard lock(nic.mutex);
  handle->number = nic.memory.meet(handle->device);
  return handle;
}

int ibv_destroy_ah(abi::Ah* ah) {
  auto* handle = static_cast<AddressHandle*>(ah);
  Nic& nic = nic_of(handle->context);
  {
    const std::lock_guard lock(nic.mutex);
    nic.memory.part(handle->device);
  }
  delete handle;
  return 0;
}

int efa_emulator_query_ah(abi::Ah* ah, abi::EfadvAhAttr* attr, std::uint32_t inlen) {
  abi::EfadvAhAttr known{};
  known.ahn = static_cast<AddressHandle*>(ah)->number;
  std::memcpy(attr, &known, std::min<std::size_t>(inlen, sizeof known));
  return 0;
}

}  // extern "C"
