// A trie over bytes with a value per key; nodes are found by hash, so large alphabets and
// vocabularies cost the same.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <string_view>
#include <vector>

namespace reft {

class ByteTrie {
 public:
  static constexpr int32_t kNone = -1;
  static constexpr int32_t kRoot = 0;

  ByteTrie() { first_.fill(kNone); }

  // Sets the value (>= 0) of a key (not empty), over an earlier one.
  void insert(std::string_view key, int32_t value) {
    int32_t node = kRoot;
    for (char c : key) {
      const auto byte = static_cast<unsigned char>(c);
      int32_t next = child(node, byte);
      if (next == kNone) {
        next = int32_t(values_.size());
        values_.push_back(kNone);
        link(node, byte, next);
      }
      node = next;
    }
    values_[size_t(node)] = value;
  }
  int32_t child(int32_t node, unsigned char byte) const {
    if (node == kRoot) return first_[byte];
    if (slots_.empty()) return kNone;
    const uint64_t key = uint64_t(uint32_t(node)) << 8 | byte;
    const size_t mask = slots_.size() - 1;
    for (size_t i = hash(key) & mask;; i = (i + 1) & mask) {
      if (slots_[i].key == key) return slots_[i].node;
      if (slots_[i].node == kNone) return kNone;
    }
  }
  int32_t value(int32_t node) const { return values_[size_t(node)]; }
  bool empty() const { return values_.size() == 1; }

  // Calls found(length, value) for every key that is a prefix of `text`, shortest first.
  template <class F>
  void prefixes(std::string_view text, F&& found) const {
    int32_t node = kRoot;
    for (size_t i = 0; i < text.size(); ++i) {
      node = child(node, static_cast<unsigned char>(text[i]));
      if (node == kNone) return;
      if (value(node) >= 0) found(i + 1, value(node));
    }
  }

 private:
  struct Slot {
    uint64_t key = 0;
    int32_t node = kNone;
  };
  static size_t hash(uint64_t key) { return size_t(key * 0x9E3779B97F4A7C15u >> 24); }
  void link(int32_t node, unsigned char byte, int32_t next) {
    if (node == kRoot) {
      first_[byte] = next;
      return;
    }
    if ((links_ + 1) * 2 > slots_.size()) {
      std::vector<Slot> old(std::bit_ceil((links_ + 1) * 4));
      old.swap(slots_);
      for (const Slot& slot : old) {
        if (slot.node != kNone) place(slot);
      }
    }
    place({uint64_t(uint32_t(node)) << 8 | byte, next});
    ++links_;
  }
  void place(const Slot& slot) {
    const size_t mask = slots_.size() - 1;
    size_t i = hash(slot.key) & mask;
    while (slots_[i].node != kNone) i = (i + 1) & mask;
    slots_[i] = slot;
  }

  std::vector<int32_t> values_ = {kNone};
  std::array<int32_t, 256> first_;
  std::vector<Slot> slots_;
  size_t links_ = 0;
};

}  // namespace reft
