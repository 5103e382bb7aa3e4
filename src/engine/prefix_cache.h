// Which block holds the keys and values of which tokens: full blocks by a hash over their tokens
// and all before.
//
// hash(block i) = H(hash(block i−1), tokens of block i), the first one chained to H(salt). H is
// SipHash-2-4 with 128 bits of output under a key drawn at start-up, so nobody can construct two
// prefixes that collide, and salts keep tenants apart. Lookup and insert: the scheduling thread.
// Hashing: any thread. Source: Aumasson, Bernstein: SipHash: a fast short-input PRF.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/block_pool.h"

namespace reft {

using BlockHash = std::array<uint64_t, 2>;

// SipHash-2-4-128 of `size` bytes.
BlockHash siphash128(const BlockHash& key, const void* data, size_t size);

// Hashes full blocks of tokens. Immutable, thread-safe.
class BlockHasher {
 public:
  explicit BlockHasher(int64_t block_size);  // draws the key
  // Appends to `hashes` those of the full blocks of `tokens` that it does not have yet.
  void extend(std::string_view salt, std::span<const int32_t> tokens,
              std::vector<BlockHash>& hashes) const;

 private:
  int64_t block_size_;
  BlockHash key_;
};

class PrefixCache {
 public:
  explicit PrefixCache(BlockPool& pool)
      : pool_(&pool), hash_of_(static_cast<size_t>(pool.num_blocks())) {}

  // The blocks that hold the longest known prefix of `hashes`. Takes no references.
  std::vector<int32_t> lookup(std::span<const BlockHash> hashes) const;
  // Makes `block` findable. The first block with some contents wins: another one with the same hash
  // stays unknown.
  void insert(const BlockHash& hash, int32_t block);
  // Forgets the block (its contents are not what the hash says).
  void forget(int32_t block);
  // Called by the pool: the block gets new contents.
  void evicted(int32_t block);
  // Forgets all blocks that nobody uses.
  void clear_unused();

  int64_t size() const { return static_cast<int64_t>(block_of_.size()); }
  // Throws Error when map and pool disagree. For tests.
  void check_integrity() const;

 private:
  struct Hasher {
    size_t operator()(const BlockHash& hash) const { return hash[0]; }
  };

  BlockPool* pool_;
  std::unordered_map<BlockHash, int32_t, Hasher> block_of_;
  std::vector<BlockHash> hash_of_;  // of cached blocks
};

}  // namespace reft
