// Protection domains, registered memory, address handles.
#pragma once

#include <map>
#include <unordered_map>

#include "abi.h"
#include "settings.h"
#include "wire.h"

namespace efa {

class Nic;

// NICs are identified by the last byte of their GIDs.
abi::Gid gid_of(unsigned device) noexcept;
int device_of(const abi::Gid& gid) noexcept;  // -1: not one of ours

struct Region : abi::Mr {
  std::uint64_t iova = 0;
  std::byte* memory = nullptr;
  int access = 0;
  void* mapping = nullptr;  // of a dma-buf
  std::size_t mapped = 0;
};

struct AddressHandle : abi::Ah {
  std::uint16_t device = 0;
  std::uint16_t number = 0;
};

// Memory and address handles of a NIC. Guarded by the NIC's lock.
class Memory {
 public:
  explicit Memory(std::uint64_t seed) : dice_(seed) {}

  // Keys are random, so that an old key does not refer to new memory by chance.
  void add(Region* region);
  void remove(Region* region);
  // Pointer to `addr` if the key grants `access` to the whole range; else null.
  [[nodiscard]] std::byte* reach(std::uint32_t key, std::uint64_t addr, std::uint64_t nbytes,
                                 int access) const noexcept;

  std::uint16_t meet(std::uint16_t device);
  void part(std::uint16_t device);
  [[nodiscard]] std::uint16_t handle_of(std::uint16_t device) const noexcept;

  static constexpr std::uint16_t kUnknown = 0xffff;

 private:
  struct Known {
    std::uint16_t number;
    unsigned uses;
  };
  Dice dice_;
  std::unordered_map<std::uint32_t, Region*> regions_;
  std::map<std::uint16_t, Known> known_;
  std::uint16_t next_ = 1;
};

}  // namespace efa
