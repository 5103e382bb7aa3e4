#include "text/token_table.h"

#include <bit>

namespace reft {

void TokenTable::reserve(size_t tokens, size_t bytes) {
  arena_.reserve(bytes);
  entries_.reserve(tokens);
  grow(std::bit_ceil(tokens * 2 + 16));
}

void TokenTable::grow(size_t slots) {
  if (slots <= slots_.size()) return;
  std::vector<Slot> old(slots, Slot{0, -1});
  old.swap(slots_);
  const size_t mask = slots - 1;
  for (const Slot& slot : old) {
    if (slot.id < 0) continue;
    size_t i = slot.hash & mask;
    while (slots_[i].id >= 0) i = (i + 1) & mask;
    slots_[i] = slot;
  }
}

bool TokenTable::add(std::string_view text, int32_t id) {
  if (id < 0 || id > kMaxId || has(id)) return false;
  if ((count_ + 1) * 2 > slots_.size()) grow(std::bit_ceil((count_ + 1) * 4));
  if (size_t(id) >= entries_.size()) entries_.resize(size_t(id) + 1, Entry{0, 0, 0});
  entries_[size_t(id)] = Entry{arena_.size(), 1, uint32_t(text.size())};
  arena_ += text;
  const auto hash = uint32_t(hash_bytes(text));
  const size_t mask = slots_.size() - 1;
  size_t i = hash & mask;
  for (; slots_[i].id >= 0; i = (i + 1) & mask) {
    if (slots_[i].hash == hash && this->text(slots_[i].id) == text) {
      slots_[i].id = id;
      return true;
    }
  }
  slots_[i] = Slot{hash, id};
  ++count_;
  return true;
}

int32_t TokenTable::find(std::string_view text, uint64_t hash) const {
  if (slots_.empty()) return -1;
  const size_t mask = slots_.size() - 1;
  for (size_t i = uint32_t(hash) & mask; slots_[i].id >= 0; i = (i + 1) & mask) {
    if (slots_[i].hash == uint32_t(hash) && this->text(slots_[i].id) == text) return slots_[i].id;
  }
  return -1;
}

}  // namespace reft
