#include "text/bpe.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <queue>

#include "base/check.h"
#include "text/unicode.h"

namespace reft {

namespace byte_alphabet {
namespace {

struct Alphabet {
  std::array<uint16_t, 256> to_char{};
  std::array<int16_t, 512> to_byte{};
  Alphabet() {
    to_byte.fill(-1);
    uint16_t extra = 256;
    for (int b = 0; b < 256; ++b) {
      const bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      to_char[size_t(b)] = printable ? uint16_t(b) : extra++;
      to_byte[to_char[size_t(b)]] = int16_t(b);
    }
  }
};
const Alphabet kAlphabet;

}  // namespace

std::string encode(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size() * 2);
  for (char c : bytes) unicode::append(out, kAlphabet.to_char[static_cast<unsigned char>(c)]);
  return out;
}

bool decode(std::string_view text, std::string& out) {
  out.clear();
  const char* p = text.data();
  const char* end = p + text.size();
  while (p < end) {
    const uint32_t c = unicode::next(p);
    if (c >= 512 || kAlphabet.to_byte[c] < 0) return false;
    out += char(kAlphabet.to_byte[c]);
  }
  return true;
}

}  // namespace byte_alphabet

std::vector<int32_t> byte_fallback_ids(const TokenTable& table) {
  std::vector<int32_t> ids(256);
  for (size_t b = 0; b < 256; ++b) ids[b] = table.find(fmt::format("<0x{:02X}>", b));
  return ids;
}

namespace {

constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // ▁
constexpr size_t kShortWord = 64;

// Ids of words that take merging, per thread. An entry is simply overwritten by the next word that
// hashes to it.
struct WordCache {
  static constexpr size_t kEntries = 1 << 13;
  static constexpr size_t kMaxWord = 32;
  static constexpr size_t kMaxIds = 8;
  struct Entry {
    uint64_t serial = 0;
    uint8_t size = 0, count = 0;
    char word[kMaxWord];
    int32_t ids[kMaxIds];
  };
  std::vector<Entry> entries = std::vector<Entry>(kEntries);
};

std::atomic<uint64_t> g_serial{1};

}  // namespace

Bpe::Bpe(TokenTable table, BpeOptions options)
    : table_(std::move(table)), options_(std::move(options)), serial_(g_serial++) {}

void Bpe::reserve_merges(size_t n) { grow_merges(std::bit_ceil(n * 2 + 16)); }

void Bpe::grow_merges(size_t slots) {
  if (slots <= merges_.size()) return;
  std::vector<MergeSlot> old(slots);
  old.swap(merges_);
  const size_t mask = slots - 1;
  for (const MergeSlot& slot : old) {
    if (slot.pair == kFree) continue;
    size_t i = (slot.pair * 0x9E3779B97F4A7C15u >> 32) & mask;
    while (merges_[i].pair != kFree) i = (i + 1) & mask;
    merges_[i] = slot;
  }
}

void Bpe::insert_merge(int32_t left, int32_t right, int32_t rank, int32_t id) {
  if ((merge_count_ + 1) * 2 > merges_.size()) grow_merges(std::bit_ceil((merge_count_ + 1) * 4));
  const uint64_t pair = uint64_t(uint32_t(left)) << 32 | uint32_t(right);
  const size_t mask = merges_.size() - 1;
  size_t i = (pair * 0x9E3779B97F4A7C15u >> 32) & mask;
  while (merges_[i].pair != kFree && merges_[i].pair != pair) i = (i + 1) & mask;
  merge_count_ += merges_[i].pair == kFree;
  merges_[i] = {pair, rank, id};
}

void Bpe::add_merge(std::string_view left, std::string_view right, bool strict) {
  std::string a, b;
  if (options_.byte_level) {
    const bool mapped = byte_alphabet::decode(left, a) && byte_alphabet::decode(right, b);
    check(mapped || !strict, "BPE merge '{} {}' is not written in the byte-level alphabet", left,
          right);
    if (!mapped) return;
    left = a;
    right = b;
  }
  const int32_t rank = next_rank_++;
  const size_t prefix = options_.continuing_subword_prefix.size();
  check(right.size() >= prefix, "BPE merge {}: token '{}' is shorter than the subword prefix", rank,
        right);
  std::string joined(left);
  joined += right.substr(prefix);
  const int32_t left_id = table_.find(left);
  const int32_t right_id = table_.find(right);
  const int32_t id = table_.find(joined);
  if (left_id < 0 || right_id < 0 || id < 0) {
    check(!strict, "BPE merge {}: token '{}' is not in the vocabulary", rank,
          left_id < 0    ? left
          : right_id < 0 ? right
                         : std::string_view(joined));
    return;
  }
  insert_merge(left_id, right_id, rank, id);
}

void Bpe::merge_by_rank(std::vector<int32_t> rank) {
  by_rank_ = true;
  rank_ = std::move(rank);
}

void Bpe::finish() {
  if (!options_.unk_token.empty()) unk_ = token_to_id(options_.unk_token);
  for (int b = 0; b < 256; ++b) {
    const char c = char(b);
    byte_ids_[b] = table_.find({&c, 1});
  }
  if (options_.byte_fallback) fallback_ = byte_fallback_ids(table_);
  for (int32_t id = 0; id < table_.id_end(); ++id)
    max_token_ = std::max(max_token_, table_.text(id).size());
  whole_ = std::vector<std::atomic<uint8_t>>(size_t(table_.id_end()));
  find_boundary();
}

// Looks for a token that a merge could make over the border between "x" and "▁" (x another
// character).
void Bpe::find_boundary() {
  if (options_.byte_level || table_.find(kSpaceMark) < 0 ||
      !options_.continuing_subword_prefix.empty() || !options_.end_of_word_suffix.empty() ||
      options_.ignore_merges) {
    return;
  }
  auto crosses = [](std::string_view text) {
    for (size_t i = text.find(kSpaceMark, 1); i != std::string_view::npos;
         i = text.find(kSpaceMark, i + 3)) {
      if (i < 3 || text.substr(i - 3, 3) != kSpaceMark) return true;
    }
    return false;
  };
  if (by_rank_) {
    for (int32_t id = 0; id < table_.id_end(); ++id) {
      if (crosses(table_.text(id))) return;
    }
  } else {
    for (const MergeSlot& slot : merges_) {
      if (slot.pair != kFree && crosses(table_.text(slot.id))) return;
    }
  }
  boundary_ = true;
}

int32_t Bpe::token_to_id(std::string_view token) const {
  if (options_.byte_level) {
    std::string bytes;
    if (byte_alphabet::decode(token, bytes)) {
      const int32_t id = table_.find(bytes);
      if (id >= 0) return id;
    }
    return raw_.find(token);
  }
  return table_.find(token);
}

std::string Bpe::id_to_token(int32_t id) const {
  if (raw_.has(id)) return std::string(raw_.text(id));
  return options_.byte_level ? byte_alphabet::encode(table_.text(id))
                             : std::string(table_.text(id));
}

void Bpe::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  if (!boundary_) {
    encode_word(piece, ids);
    return;
  }
  // Words begin with their run of ▁.
  size_t begin = 0;
  while (begin < piece.size()) {
    size_t i = begin;
    while (piece.compare(i, 3, kSpaceMark) == 0) i += 3;
    const size_t end = std::min(piece.find(kSpaceMark, i), piece.size());
    encode_word(piece.substr(begin, end - begin), ids);
    begin = end;
  }
}

void Bpe::encode_word(std::string_view word, std::vector<int32_t>& ids) const {
  if (word.empty()) return;
  const uint64_t hash = hash_bytes(word);
  if (word.size() <= max_token_) {
    const int32_t id = table_.find(word, hash);
    if (id >= 0) {
      if (options_.ignore_merges) {
        ids.push_back(id);
        return;
      }
      auto& known = whole_[size_t(id)];
      const uint8_t state = known.load(std::memory_order_relaxed);
      if (state == 1) {
        ids.push_back(id);
        return;
      }
      if (state == 0) {
        const size_t before = ids.size();
        encode_uncached(word, ids);
        known.store(ids.size() == before + 1 && ids.back() == id ? 1 : 2,
                    std::memory_order_relaxed);
        return;
      }
    }
  }
  if (word.size() > WordCache::kMaxWord) {
    encode_uncached(word, ids);
    return;
  }
  thread_local WordCache cache;
  WordCache::Entry& entry = cache.entries[(hash >> 20) % WordCache::kEntries];
  if (entry.serial == serial_ && entry.size == word.size() &&
      std::memcmp(entry.word, word.data(), word.size()) == 0) {
    ids.insert(ids.end(), entry.ids, entry.ids + entry.count);
    return;
  }
  const size_t before = ids.size();
  encode_uncached(word, ids);
  const size_t count = ids.size() - before;
  if (count > WordCache::kMaxIds) return;
  entry.serial = serial_;
  entry.size = uint8_t(word.size());
  entry.count = uint8_t(count);
  std::memcpy(entry.word, word.data(), word.size());
  std::copy(ids.begin() + std::ptrdiff_t(before), ids.end(), entry.ids);
}

void Bpe::encode_uncached(std::string_view word, std::vector<int32_t>& ids) const {
  thread_local std::vector<Symbol> symbols;
  symbols.clear();
  if (options_.byte_level && options_.continuing_subword_prefix.empty() &&
      options_.end_of_word_suffix.empty()) {
    bool pending = false;
    for (size_t i = 0; i < word.size(); ++i) {
      const int32_t id = byte_ids_[static_cast<unsigned char>(word[i])];
      if (id < 0 && options_.unk_token.empty()) continue;
      check(id >= 0 || unk_ >= 0, "the BPE unknown token '{}' is not in the vocabulary",
            options_.unk_token);
      if (id < 0 && pending && options_.fuse_unk) {
        symbols.back().end = uint32_t(i + 1);
      } else {
        symbols.push_back({id >= 0 ? id : unk_, uint32_t(i), uint32_t(i + 1), 0, 0});
      }
      pending = id < 0;
    }
  } else {
    split_into_symbols(word, symbols);
  }
  if (symbols.size() > 1) {
    if (symbols.size() <= kShortWord) {
      merge_short(word, symbols);
    } else {
      merge_long(word, symbols);
    }
  }
  emit(word, symbols, ids);
  if (symbols.capacity() > (1 << 16)) std::vector<Symbol>().swap(symbols);
}

int32_t Bpe::character_id(std::string_view text, bool first, bool last) const {
  const bool prefix = !first && !options_.continuing_subword_prefix.empty();
  const bool suffix = last && !options_.end_of_word_suffix.empty();
  if (!prefix && !suffix)
    return text.size() == 1 ? byte_ids_[static_cast<unsigned char>(text[0])] : table_.find(text);
  std::string full = prefix ? options_.continuing_subword_prefix : std::string();
  full += text;
  if (suffix) full += options_.end_of_word_suffix;
  return table_.find(full);
}

// The characters of a word as tokens; those that have none become their bytes or the unknown token.
// A pending unknown token is only written before the next known character: that order is the
// library's.
void Bpe::split_into_symbols(std::string_view word, std::vector<Symbol>& symbols) const {
  bool pending = false;
  uint32_t unk_begin = 0, unk_end = 0;
  auto flush = [&] {
    if (pending) symbols.push_back({unk_, unk_begin, unk_end, 0, 0});
    pending = false;
  };
  for (size_t i = 0; i < word.size();) {
    const size_t n = std::min(unicode::length(word[i]), word.size() - i);
    const std::string_view text = word.substr(i, n);
    const auto begin = uint32_t(i), end = uint32_t(i + n);
    const int32_t id = character_id(text, i == 0, i + n == word.size());
    i += n;
    if (id >= 0 || options_.sentencepiece) {
      flush();
      symbols.push_back({id, begin, end, 0, 0});
      continue;
    }
    if (options_.byte_fallback) {
      std::string full = begin > 0 ? options_.continuing_subword_prefix : std::string();
      full += text;
      if (end == word.size()) full += options_.end_of_word_suffix;
      const bool all = std::all_of(full.begin(), full.end(), [&](char c) {
        return fallback_[static_cast<unsigned char>(c)] >= 0;
      });
      if (all) {
        // The last ones of a suffix share the last byte's place; no merge reaches them there.
        for (size_t k = 0; k < full.size(); ++k) {
          const uint32_t at = std::min(begin + uint32_t(k), end - 1);
          symbols.push_back({fallback_[static_cast<unsigned char>(full[k])], at, at + 1, 0, 0});
        }
        continue;
      }
    }
    if (options_.unk_token.empty()) continue;
    check(unk_ >= 0, "the BPE unknown token '{}' is not in the vocabulary", options_.unk_token);
    if (pending && options_.fuse_unk) {
      unk_end = end;
      continue;
    }
    flush();
    pending = true;
    unk_begin = begin;
    unk_end = end;
  }
  flush();
}

Bpe::Merge Bpe::find_merge(std::string_view piece, const Symbol& a, const Symbol& b) const {
  if (by_rank_) {
    if (b.end - a.begin > max_token_) return {};
    const int32_t id = table_.find(piece.substr(a.begin, b.end - a.begin));
    if (id < 0) return {};
    const int32_t rank = rank_.empty() ? id : rank_[size_t(id)];
    return rank < 0 ? Merge{} : Merge{rank, id};
  }
  if (merges_.empty()) return {};
  const uint64_t pair = uint64_t(uint32_t(a.id)) << 32 | uint32_t(b.id);
  const size_t mask = merges_.size() - 1;
  for (size_t i = (pair * 0x9E3779B97F4A7C15u >> 32) & mask;; i = (i + 1) & mask) {
    if (merges_[i].pair == pair) return {merges_[i].rank, merges_[i].id};
    if (merges_[i].pair == kFree) return {};
  }
}

// Lowest rank first, leftmost among equals; symbols shift together. Quadratic, but for few symbols
// the fastest.
void Bpe::merge_short(std::string_view word, std::vector<Symbol>& symbols) const {
  Merge merges[kShortWord];
  size_t n = symbols.size();
  for (size_t i = 0; i + 1 < n; ++i) merges[i] = find_merge(word, symbols[i], symbols[i + 1]);
  while (n > 1) {
    size_t best = n;
    uint32_t best_rank = UINT32_MAX;
    for (size_t i = 0; i + 1 < n; ++i) {
      if (uint32_t(merges[i].rank) < best_rank) {
        best_rank = uint32_t(merges[i].rank);
        best = i;
      }
    }
    if (best == n) break;
    symbols[best].id = merges[best].id;
    symbols[best].end = symbols[best + 1].end;
    std::copy(symbols.begin() + std::ptrdiff_t(best) + 2, symbols.begin() + std::ptrdiff_t(n),
              symbols.begin() + std::ptrdiff_t(best) + 1);
    if (best + 2 < n) std::copy(merges + best + 2, merges + n - 1, merges + best + 1);
    --n;
    if (best > 0) merges[best - 1] = find_merge(word, symbols[best - 1], symbols[best]);
    if (best + 1 < n) merges[best] = find_merge(word, symbols[best], symbols[best + 1]);
  }
  symbols.resize(n);
}

// The same with a heap and a linked list: O(n log n).
void Bpe::merge_long(std::string_view word, std::vector<Symbol>& symbols) const {
  struct Item {
    int32_t rank;
    int32_t pos;
    int32_t id;
    bool operator<(const Item& o) const { return rank != o.rank ? rank > o.rank : pos > o.pos; }
  };
  const auto n = int32_t(symbols.size());
  std::vector<Item> initial;
  for (int32_t i = 0; i < n; ++i) {
    symbols[size_t(i)].prev = i - 1;
    symbols[size_t(i)].next = i + 1 < n ? i + 1 : -1;
    if (i + 1 < n) {
      const Merge m = find_merge(word, symbols[size_t(i)], symbols[size_t(i) + 1]);
      if (m.rank >= 0) initial.push_back({m.rank, i, m.id});
    }
  }
  std::priority_queue<Item> queue(std::less<Item>(), std::move(initial));
  std::vector<bool> gone(size_t(n), false);
  while (!queue.empty()) {
    const Item top = queue.top();
    queue.pop();
    Symbol& a = symbols[size_t(top.pos)];
    if (gone[size_t(top.pos)] || a.next < 0) continue;
    Symbol& b = symbols[size_t(a.next)];
    const Merge now = find_merge(word, a, b);
    if (now.rank < 0 || now.id != top.id) continue;
    gone[size_t(a.next)] = true;
    a.id = top.id;
    a.end = b.end;
    a.next = b.next;
    if (b.next >= 0) symbols[size_t(b.next)].prev = top.pos;
    if (a.prev >= 0) {
      const Merge m = find_merge(word, symbols[size_t(a.prev)], a);
      if (m.rank >= 0) queue.push({m.rank, a.prev, m.id});
    }
    if (a.next >= 0) {
      const Merge m = find_merge(word, a, symbols[size_t(a.next)]);
      if (m.rank >= 0) queue.push({m.rank, top.pos, m.id});
    }
  }
  size_t kept = 0;
  for (size_t i = 0; i < size_t(n); ++i) {
    if (!gone[i]) symbols[kept++] = symbols[i];
  }
  symbols.resize(kept);
}

void Bpe::emit(std::string_view word, const std::vector<Symbol>& symbols,
               std::vector<int32_t>& ids) const {
  bool after_unknown = false;
  for (const Symbol& s : symbols) {
    if (s.id >= 0) {
      ids.push_back(s.id);
      after_unknown = false;
      continue;
    }
    const std::string_view text = word.substr(s.begin, s.end - s.begin);
    const bool bytes = options_.byte_fallback && std::all_of(text.begin(), text.end(), [&](char c) {
                         return fallback_[static_cast<unsigned char>(c)] >= 0;
                       });
    if (bytes) {
      for (char c : text) ids.push_back(fallback_[static_cast<unsigned char>(c)]);
      after_unknown = false;
    } else if (!after_unknown) {
      check(unk_ >= 0, "the vocabulary has no token for '{}' and no unknown token", text);
      ids.push_back(unk_);
      after_unknown = true;
    }
  }
}

}  // namespace reft
