// Hash map that remembers its last hit: a stream of writes names the same peer and regions again and again.
#pragma once

#include <unordered_map>
#include <utility>

namespace aio {

template <class Key, class Value>
class CachedLookupMap {
 public:
  CachedLookupMap() = default;
  CachedLookupMap(const CachedLookupMap&) = delete;
  CachedLookupMap& operator=(const CachedLookupMap&) = delete;

  // Returns null if there is no such key. The pointer stays valid until that key is erased: nodes of a map do not move.
  [[nodiscard]] Value* find(const Key& key) noexcept {
    if (last_ != nullptr && last_->first == key) return &last_->second;
    const auto found = map_.find(key);
    if (found == map_.end()) return nullptr;
    last_ = &*found;
    return &found->second;
  }

  void emplace(const Key& key, Value value) { map_.emplace(key, std::move(value)); }
  void assign(const Key& key, Value value) { map_.insert_or_assign(key, std::move(value)); }

  void erase(const Key& key) {
    last_ = nullptr;
    map_.erase(key);
  }

  void clear() {
    last_ = nullptr;
    map_.clear();
  }

  [[nodiscard]] auto size() const noexcept { return map_.size(); }
  [[nodiscard]] auto begin() noexcept { return map_.begin(); }
  [[nodiscard]] auto end() noexcept { return map_.end(); }
  [[nodiscard]] auto begin() const noexcept { return map_.begin(); }
  [[nodiscard]] auto end() const noexcept { return map_.end(); }

 private:
  std::unordered_map<Key, Value> map_;
  std::pair<const Key, Value>* last_ = nullptr;
};

}  // namespace aio
