// Two-way map between token text and id, made for vocabularies of some hundred thousand entries.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace reft {

__extension__ typedef unsigned __int128 Uint128;

inline uint64_t hash_bytes(std::string_view text) {
  constexpr uint64_t kMul = 0x9E3779B97F4A7C15u;
  uint64_t h = text.size() * kMul;
  const char* p = text.data();
  size_t n = text.size();
  auto mix = [&](uint64_t word) {
    const auto product = Uint128(h ^ word) * 0xD6E8FEB86659FD93u;
    h = uint64_t(product) ^ uint64_t(product >> 64);
  };
  for (; n >= 8; p += 8, n -= 8) {
    uint64_t word;
    std::memcpy(&word, p, 8);
    mix(word);
  }
  if (n > 0) {
    uint64_t word = 0;
    std::memcpy(&word, p, n);
    mix(word + kMul);
  }
  return h ^ h >> 32;
}

class TokenTable {
 public:
  static constexpr int32_t kMaxId = (1 << 22) - 1;  // four times the largest known vocabulary

  void reserve(size_t tokens, size_t bytes);
  // Adds an entry; ids may come in any order and have gaps. False, with nothing changed, when the
  // id is taken or out of range. The same text under another id is found by the id added last.
  bool add(std::string_view text, int32_t id);
  // -1 when absent.
  int32_t find(std::string_view text) const { return find(text, hash_bytes(text)); }
  int32_t find(std::string_view text, uint64_t hash) const;
  bool has(int32_t id) const {
    return id >= 0 && size_t(id) < entries_.size() && entries_[size_t(id)].used;
  }
  // Empty for an unused id.
  std::string_view text(int32_t id) const {
    if (!has(id)) return {};
    const Entry& e = entries_[size_t(id)];
    return std::string_view(arena_).substr(e.offset, e.size);
  }
  // Highest id + 1.
  int32_t id_end() const { return int32_t(entries_.size()); }
  // Number of distinct texts.
  size_t size() const { return count_; }

 private:
  struct Entry {
    uint64_t offset : 40;
    uint64_t used : 1;
    uint32_t size;
  };
  struct Slot {
    uint32_t hash;
    int32_t id;  // -1: free
  };
  void grow(size_t slots);

  std::string arena_;
  std::vector<Entry> entries_;
  std::vector<Slot> slots_;
  size_t count_ = 0;
};

}  // namespace reft
