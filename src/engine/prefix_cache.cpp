#include "engine/prefix_cache.h"

#include <bit>
#include <cstring>
#include <random>

#include "base/check.h"

namespace reft {
namespace {

struct SipState {
  uint64_t v0, v1, v2, v3;

  void round() {
    v0 += v1;
    v1 = std::rotl(v1, 13) ^ v0;
    v0 = std::rotl(v0, 32);
    v2 += v3;
    v3 = std::rotl(v3, 16) ^ v2;
    v0 += v3;
    v3 = std::rotl(v3, 21) ^ v0;
    v2 += v1;
    v1 = std::rotl(v1, 17) ^ v2;
    v2 = std::rotl(v2, 32);
  }
  void absorb(uint64_t word) {
    v3 ^= word;
    round();
    round();
    v0 ^= word;
  }
  uint64_t squeeze() {
    for (int i = 0; i < 4; ++i) round();
    return v0 ^ v1 ^ v2 ^ v3;
  }
};

}  // namespace

BlockHash siphash128(const BlockHash& key, const void* data, size_t size) {
  SipState s{key[0] ^ 0x736f6d6570736575, key[1] ^ 0x646f72616e646f6d ^ 0xee,
             key[0] ^ 0x6c7967656e657261, key[1] ^ 0x7465646279746573};
  const auto* bytes = static_cast<const unsigned char*>(data);
  size_t i = 0;
  for (; i + 8 <= size; i += 8) {
    uint64_t word;
    std::memcpy(&word, bytes + i, 8);
    s.absorb(word);
  }
  uint64_t tail = static_cast<uint64_t>(size) << 56;
  for (size_t shift = 0; i < size; ++i, shift += 8)
    tail |= static_cast<uint64_t>(bytes[i]) << shift;
  s.absorb(tail);
  s.v2 ^= 0xee;
  const uint64_t low = s.squeeze();
  s.v1 ^= 0xdd;
  return {low, s.squeeze()};
}

BlockHasher::BlockHasher(int64_t block_size) : block_size_(block_size) {
  std::random_device random;
  for (uint64_t& word : key_) word = static_cast<uint64_t>(random()) << 32 | random();
}

void BlockHasher::extend(std::string_view salt, std::span<const int32_t> tokens,
                         std::vector<BlockHash>& hashes) const {
  const size_t block = static_cast<size_t>(block_size_);
  const size_t full = tokens.size() / block;
  if (hashes.size() >= full) return;
  hashes.reserve(full);
  std::vector<int32_t> input(4 + block);
  BlockHash parent = hashes.empty() ? siphash128(key_, salt.data(), salt.size()) : hashes.back();
  while (hashes.size() < full) {
    std::memcpy(input.data(), parent.data(), sizeof(parent));
    std::memcpy(input.data() + 4, tokens.data() + hashes.size() * block, block * sizeof(int32_t));
    parent = siphash128(key_, input.data(), input.size() * sizeof(int32_t));
    hashes.push_back(parent);
  }
}

std::vector<int32_t> PrefixCache::lookup(std::span<const BlockHash> hashes) const {
  std::vector<int32_t> blocks;
  for (const BlockHash& hash : hashes) {
    const auto it = block_of_.find(hash);
    if (it == block_of_.end()) break;
    blocks.push_back(it->second);
  }
  return blocks;
}

void PrefixCache::insert(const BlockHash& hash, int32_t block) {
  if (pool_->cached(block)) return;
  if (!block_of_.emplace(hash, block).second) return;
  hash_of_[static_cast<size_t>(block)] = hash;
  pool_->set_cached(block, true);
}

void PrefixCache::forget(int32_t block) {
  if (!pool_->cached(block)) return;
  evicted(block);
  pool_->set_cached(block, false);
}

void PrefixCache::evicted(int32_t block) { block_of_.erase(hash_of_[static_cast<size_t>(block)]); }

void PrefixCache::clear_unused() {
  for (int32_t b = 0; b < static_cast<int32_t>(pool_->num_blocks()); ++b) {
    if (pool_->references(b) == 0) forget(b);
  }
}

void PrefixCache::check_integrity() const {
  int64_t cached = 0;
  for (int32_t b = 0; b < static_cast<int32_t>(pool_->num_blocks()); ++b)
    cached += pool_->cached(b);
  check(cached == size(), "{} blocks are marked as cached, the prefix cache knows {}", cached,
        size());
  for (const auto& [hash, block] : block_of_) {
    check(pool_->cached(block) && hash_of_[static_cast<size_t>(block)] == hash,
          "block {} is not what its hash says", block);
  }
}

}  // namespace reft
