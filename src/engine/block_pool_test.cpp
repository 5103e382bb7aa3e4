#include "engine/block_pool.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>

#include "base/check.h"
#include "engine/prefix_cache.h"

namespace reft {
namespace {

TEST(BlockPool, HandsOutEveryBlockOnceAndThenNone) {
  BlockPool pool(5, [](int32_t) {});
  std::vector<bool> seen(5);
  for (int i = 0; i < 5; ++i) {
    const int32_t b = pool.allocate();
    ASSERT_GE(b, 0);
    EXPECT_FALSE(seen[static_cast<size_t>(b)]);
    seen[static_cast<size_t>(b)] = true;
  }
  EXPECT_EQ(pool.allocate(), -1);
  EXPECT_EQ(pool.num_free(), 0);
  pool.release(3);
  EXPECT_EQ(pool.allocate(), 3);
  pool.check_integrity();
}

TEST(BlockPool, RefusesToReleaseTwice) {
  BlockPool pool(2, [](int32_t) {});
  const int32_t b = pool.allocate();
  pool.release(b);
  EXPECT_THROW(pool.release(b), Error);
}

TEST(BlockPool, EvictsTheLeastRecentlyUsedCachedBlockLast) {
  std::vector<int32_t> evicted;
  BlockPool pool(3, [&](int32_t b) { evicted.push_back(b); });
  const int32_t a = pool.allocate();
  const int32_t b = pool.allocate();
  const int32_t c = pool.allocate();
  pool.set_cached(a, true);
  pool.set_cached(b, true);
  pool.release(b);
  pool.release(a);
  pool.release(c);
  EXPECT_EQ(pool.allocate(), c);  // no contents worth keeping
  EXPECT_EQ(pool.allocate(), b);
  EXPECT_EQ(pool.allocate(), a);
  EXPECT_EQ(evicted, (std::vector<int32_t>{b, a}));
  pool.check_integrity();
}

TEST(SipHash, MatchesTheReferenceVectors) {
  // Key 00 01 … 0f. Source: vectors_sip128 of the reference implementation.
  const BlockHash key = {0x0706050403020100, 0x0f0e0d0c0b0a0908};
  EXPECT_EQ(siphash128(key, "", 0), (BlockHash{0xe6a825ba047f81a3, 0x930255c71472f66d}));
  const unsigned char zero = 0;
  EXPECT_EQ(siphash128(key, &zero, 1), (BlockHash{0x44af996bd8c187da, 0x45fc229b11597634}));
}

TEST(BlockHasher, ChainsBlocksAndSeparatesSalts) {
  const BlockHasher hasher(4);
  std::vector<int32_t> tokens(11);
  std::iota(tokens.begin(), tokens.end(), 1);
  std::vector<BlockHash> whole;
  hasher.extend("", tokens, whole);
  ASSERT_EQ(whole.size(), 2U);

  std::vector<BlockHash> grown;  // the same, token by token
  for (size_t n = 1; n <= tokens.size(); ++n) hasher.extend("", std::span(tokens).first(n), grown);
  EXPECT_EQ(grown, whole);

  std::vector<BlockHash> salted;
  hasher.extend("tenant", tokens, salted);
  EXPECT_NE(salted[0], whole[0]);
  tokens[0] = 99;
  std::vector<BlockHash> other;
  hasher.extend("", tokens, other);
  EXPECT_NE(other[1], whole[1]);  // the second block's own tokens are the same

  const BlockHasher rekeyed(4);
  std::vector<BlockHash> under_other_key;
  rekeyed.extend("", tokens, under_other_key);
  EXPECT_NE(under_other_key[0], other[0]);
}

// Random sequences come, share prefixes, grow, and go; pool and cache are checked after each
// operation.
class PrefixCacheRandom : public ::testing::TestWithParam<int> {};

TEST_P(PrefixCacheRandom, KeepsItsInvariants) {
  std::mt19937 random(static_cast<uint32_t>(GetParam()));
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<uint32_t>(n)); };
  PrefixCache* hook = nullptr;
  BlockPool pool(17, [&](int32_t b) { hook->evicted(b); });
  PrefixCache cache(pool);
  hook = &cache;
  const BlockHasher hasher(2);

  struct User {
    std::vector<int32_t> tokens, blocks;
    std::vector<BlockHash> hashes;
  };
  std::vector<User> users;
  std::vector<std::vector<int32_t>> contents(17);  // what a block that the cache knows must hold
  const auto verify = [&] {
    pool.check_integrity();
    cache.check_integrity();
    std::vector<int32_t> references(17);
    for (const User& u : users) {
      for (int32_t b : u.blocks) ++references[static_cast<size_t>(b)];
    }
    for (int32_t b = 0; b < 17; ++b)
      ASSERT_EQ(pool.references(b), references[static_cast<size_t>(b)]);
  };
  const auto release = [&](User& u) {
    for (auto it = u.blocks.rbegin(); it != u.blocks.rend(); ++it) pool.release(*it);
  };

  for (int step = 0; step < 4000; ++step) {
    const int action = below(10);
    if (action < 4) {
      User u;
      for (int n = 2 + below(9); n > 0; --n)
        u.tokens.push_back(below(2));  // few prefixes: many hits
      hasher.extend("", u.tokens, u.hashes);
      u.blocks = cache.lookup(u.hashes);
      for (size_t i = 0; i < u.blocks.size(); ++i) {
        const std::vector<int32_t> prefix(u.tokens.begin(),
                                          u.tokens.begin() + 2 * static_cast<int>(i + 1));
        ASSERT_EQ(contents[static_cast<size_t>(u.blocks[i])], prefix);
        pool.reference(u.blocks[i]);
      }
      bool complete = true;
      while (complete && u.blocks.size() < u.hashes.size()) {
        const int32_t b = pool.allocate();
        complete = b >= 0;
        if (complete) u.blocks.push_back(b);
      }
      if (!complete) {
        release(u);
      } else {
        for (size_t i = 0; i < u.hashes.size(); ++i) {
          const bool known = pool.cached(u.blocks[i]);
          cache.insert(u.hashes[i], u.blocks[i]);
          if (!known && pool.cached(u.blocks[i])) {
            contents[static_cast<size_t>(u.blocks[i])].assign(
                u.tokens.begin(), u.tokens.begin() + 2 * static_cast<int>(i + 1));
          }
        }
        users.push_back(std::move(u));
      }
    } else if (action < 8) {
      if (users.empty()) continue;
      const auto i = static_cast<size_t>(below(static_cast<int>(users.size())));
      release(users[i]);
      users.erase(users.begin() + static_cast<int64_t>(i));
    } else if (action == 8) {
      cache.forget(below(17));
    } else if (below(20) == 0) {
      cache.clear_unused();
    }
    verify();
  }
  for (User& u : users) release(u);
  users.clear();
  verify();
  EXPECT_EQ(pool.num_free(), 17);
  cache.clear_unused();
  EXPECT_EQ(cache.size(), 0);
}

INSTANTIATE_TEST_SUITE_P(Seeds, PrefixCacheRandom, ::testing::Range(0, 5));

}  // namespace
}  // namespace reft
