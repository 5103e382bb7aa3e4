#include <algorithm>
#include <cmath>
#include <numeric>

#include "ops/attention.h"
#include "ops/graph.h"
#include "ops/op_cases.h"
#include "tensor/tape.h"

namespace reft {
namespace {

const bool covered = cover_ops({"rope_attention"});

struct Case {
  std::string name;
  int64_t heads, kv_heads, head_dim, page;
  std::vector<int64_t> contexts;  // of sequences that compute one token each
  int64_t rotary = 0;
  bool norm = false;
  bool interleaved = false;
  NormKind kind = NormKind::kPlain;
  int64_t window = 0;
  float soft_cap = 0;
  bool sinks = false;
  int64_t gap = 0;  // between the rows of qkv
};

// Everything on the device. Cache slots whose key no query sees are NaN, and so are the newest
// keys' before the step; blocks that no visible key lies in are −1.
struct Problem {
  Tensor qkv, positions, slots;
  PagedKv kv;
  QkNormRopeArgs rope;
  AttentionBatch batch;
  AttentionArgs args;

  Tensor fused() { return rope_attention(qkv, positions, slots, kv, rope, batch, args); }
  // The same in two ops, on `cache`.
  Tensor composed(PagedKv& cache) const {
    return paged_attention(qk_norm_rope_cache(qkv, positions, slots, cache, rope), cache, batch,
                           args);
  }
};

PagedKv copy_of(const PagedKv& kv) {
  PagedKv copy{Tensor::empty(kv.k.shape(), kv.k.dtype(), kv.k.device()),
               Tensor::empty(kv.v.shape(), kv.v.dtype(), kv.v.device())};
  copy.k.copy_from(kv.k);
  copy.v.copy_from(kv.v);
  return copy;
}

// A cache with the old keys of every sequence; fills in the arrays.
void make_cache(const Case& c, DType cache_type, Device device, Problem& p) {
  const auto sequences = static_cast<int64_t>(c.contexts.size());
  p.batch.max_query_len = 1;
  p.batch.max_context_len = *std::ranges::max_element(c.contexts);
  const int64_t width = std::max<int64_t>(1, (p.batch.max_context_len + c.page - 1) / c.page);
  std::vector<int32_t> order(static_cast<size_t>(sequences * width + 2));
  std::iota(order.begin(), order.end(), 0);
  std::mt19937 random(7);
  std::shuffle(order.begin(), order.end(), random);
  const Shape shape{static_cast<int64_t>(order.size()), c.kv_heads, c.page, c.head_dim};
  Tensor k = Tensor::empty(shape, DType::kF32), v = Tensor::empty(shape, DType::kF32);
  std::fill_n(k.data<float>(), k.numel(), NAN);
  std::fill_n(v.data<float>(), v.numel(), NAN);
  std::normal_distribution<float> normal;
  std::vector<int32_t> table(static_cast<size_t>(sequences * width), -1), context, slots, positions;
  size_t next = 0;
  for (int64_t b = 0; b < sequences; ++b) {
    const int64_t keys = c.contexts[static_cast<size_t>(b)];
    int64_t slot = -1;
    for (int64_t i = c.window > 0 ? std::max<int64_t>(0, keys - c.window) : 0; i < keys; ++i) {
      int32_t& block = table[static_cast<size_t>(b * width + i / c.page)];
      if (block < 0) block = order[next++];
      slot = block * c.page + i % c.page;
      for (int64_t h = 0; i + 1 < keys && h < c.kv_heads; ++h) {
        const int64_t to = ((block * c.kv_heads + h) * c.page + i % c.page) * c.head_dim;
        for (int64_t d = 0; d < c.head_dim; ++d) {
          k.data<float>()[to + d] = normal(random);
          v.data<float>()[to + d] = normal(random);
        }
      }
    }
    context.push_back(static_cast<int32_t>(keys));
    slots.push_back(static_cast<int32_t>(slot));
    positions.push_back(static_cast<int32_t>(std::max<int64_t>(0, keys - 1)));
  }
  std::vector<int32_t> start(static_cast<size_t>(sequences + 1));
  std::iota(start.begin(), start.end(), 0);
  p.kv = {k.to(cache_type).to(device), v.to(cache_type).to(device)};
  p.batch.query_start = Tensor::from_vector(start).to(device);
  p.batch.context_len = Tensor::from_vector(context).to(device);
  p.batch.block_table = Tensor::from_vector(table, {sequences, width}).to(device);
  p.slots = Tensor::from_vector(slots).to(device);
  p.positions = Tensor::from_vector(positions).to(device);
}

Problem make_problem(const Case& c, DType dtype, DType cache_type, Device device) {
  Problem p;
  make_cache(c, cache_type, device, p);
  const int64_t width = (c.heads + 2 * c.kv_heads) * c.head_dim;
  const auto sequences = static_cast<int64_t>(c.contexts.size());
  p.qkv = random_values({sequences, width + c.gap}, 1).to(dtype).to(device);
  if (c.gap > 0) p.qkv = p.qkv.columns(c.gap, width + c.gap);
  if (c.norm) {
    p.rope.q_weight = random_values({c.head_dim}, 3, 0.3f, 1.0f).to(device);
    p.rope.k_weight = random_values({c.head_dim}, 4, 0.3f, 1.0f).to(device);
  }
  p.rope.kind = c.kind;
  p.rope.interleaved = c.interleaved;
  if (c.rotary > 0) {
    const int64_t rows = std::max<int64_t>(1, p.batch.max_context_len) + 8;
    p.rope.cos_sin = random_values({rows, c.rotary}, 2).to(device);
  }
  p.args.scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  p.args.window = c.window;
  p.args.soft_cap = c.soft_cap;
  if (c.sinks) p.args.sinks = random_values({c.heads}, 5).to(device);
  return p;
}

void expect_equal_caches(const PagedKv& got, const PagedKv& want, const std::string& what) {
  expect_close(got.k, doubles(want.k), tolerance(want.k.dtype()), what + ": keys");
  expect_close(got.v, doubles(want.v), 0, what + ": values");
}

std::vector<int64_t> many_contexts(int64_t sequences, int64_t longest) {
  std::vector<int64_t> contexts;
  for (int64_t i = 0; i < sequences; ++i) contexts.push_back(1 + i * 37 % longest);
  return contexts;
}

const std::vector<Case> kCases = {
    {"context of one", 4, 2, 64, 16, {1}, 64},
    {"edges of a step", 4, 2, 64, 16, {15, 16, 17, 31, 32, 33, 2}, 64, true},
    {"edges of a round", 4, 2, 128, 16, {63, 64, 65, 511, 512, 513, 514, 528, 529}, 128, true},
    {"long", 16, 8, 128, 16, {2500}, 128, true},
    {"one long, one short", 2, 1, 128, 32, {2001, 1}, 128},
    {"three heads a group", 9, 3, 64, 16, {17, 300, 64, 1}, 64},
    {"group of one", 3, 3, 96, 16, {129, 40}, 96, true},
    {"group of seven", 14, 2, 128, 16, {700, 33}, 128},
    {"group of sixteen", 16, 1, 256, 16, {250, 77}, 256, true, false, NormKind::kOnePlus},
    {"group of sixteen, 64 dims", 32, 2, 64, 16, {1100, 5}, 64, true},
    {"group of seventeen", 17, 1, 64, 16, {70}, 64},
    {"wide heads", 8, 4, 256, 16, {1030, 8}, 256, true, false, NormKind::kOnePlus, 512},
    {"other dims", 4, 2, 80, 16, {75, 3}, 80},
    {"blocks of five", 4, 2, 64, 5, {73, 600}, 64},
    {"large blocks", 4, 2, 128, 256, {500, 256, 257}, 128},
    {"no rotation", 4, 2, 128, 16, {100}, 0, true},
    {"neither norm nor rotation", 4, 2, 64, 16, {100}},
    {"partial rotation", 4, 2, 96, 16, {100, 50}, 32, true},
    {"interleaved", 4, 2, 64, 16, {100}, 64, false, true},
    {"interleaved, partial", 4, 1, 128, 16, {100, 11}, 20, true, true},
    {"window", 4, 2, 64, 16, {300, 64, 65, 63, 20}, 64, true, false, NormKind::kPlain, 64},
    {"window of one", 4, 2, 64, 16, {30, 33, 1}, 64, false, false, NormKind::kPlain, 1},
    {"window of two", 4, 2, 64, 16, {32, 33, 34}, 64, false, false, NormKind::kPlain, 2},
    {"long window", 4, 2, 128, 16, {2600}, 128, false, false, NormKind::kPlain, 1100},
    {"soft cap", 4, 2, 64, 16, {90}, 64, false, false, NormKind::kPlain, 0, 2.0f},
    {"sinks", 6, 2, 64, 16, {90, 1, 1300}, 64, false, false, NormKind::kPlain, 0, 0, true},
    {"all at once", 8, 2, 96, 16, {200, 34}, 48, true, true, NormKind::kOnePlus, 33, 3.0f, true},
    {"strided", 4, 2, 64, 16, {40, 50}, 64, true, false, NormKind::kPlain, 0, 0, false, 8},
    {"not aligned", 4, 2, 64, 16, {40, 50}, 64, true, false, NormKind::kPlain, 0, 0, false, 3},
    {"a dozen sequences", 4, 4, 64, 16, many_contexts(12, 300), 64, true},
    {"a score of sequences", 4, 4, 128, 16, many_contexts(20, 200), 128, true},
    {"many sequences", 8, 4, 64, 16, many_contexts(80, 90), 64, true},
};

TEST(RopeAttention, MatchesItsParts) {
  for (const Device device : test_devices()) {
    for (const DType dtype : activation_dtypes(device)) {
      for (const DType cache_type : {DType::kF32, DType::kF16, DType::kBF16, DType::kF8E4M3}) {
        for (const auto& c : kCases) {
          const std::string what = c.name + ", cache " + dtype_name(cache_type) + ", " +
                                   dtype_name(dtype) + ", " + fmt::format("{}", device);
          Problem p = make_problem(c, dtype, cache_type, device);
          PagedKv cache = copy_of(p.kv);
          const Tensor want = p.composed(cache);
          expect_close(p.fused(), doubles(want), tolerance(dtype), what);
          expect_equal_caches(p.kv, cache, what);
        }
      }
    }
  }
}

TEST(RopeAttention, MatchesItsPartsForOtherSteps) {
  for (const Device device : test_devices()) {
    for (const DType dtype : activation_dtypes(device)) {
      // A prompt of 40 tokens and a sequence that decodes.
      const Case c{"", 4, 2, 64, 16, {40, 70}, 64, true};
      Problem p = make_problem(c, dtype, dtype, device);
      const auto table = p.batch.block_table.to_vector<int32_t>();
      std::vector<int32_t> slots, positions;
      for (int32_t i = 0; i < 40; ++i) {
        slots.push_back(table[static_cast<size_t>(i / 16)] * 16 + i % 16);
        positions.push_back(i);
      }
      slots.push_back(p.slots.to_vector<int32_t>()[1]);
      positions.push_back(69);
      p.slots = Tensor::from_vector(slots).to(device);
      p.positions = Tensor::from_vector(positions).to(device);
      p.qkv = random_values({41, 8 * 64}, 6).to(dtype).to(device);
      p.batch.query_start = Tensor::from_vector<int32_t>({0, 40, 41}).to(device);
      p.batch.max_query_len = 40;
      PagedKv cache = copy_of(p.kv);
      const Tensor want = p.composed(cache);
      expect_close(p.fused(), doubles(want), 0, dtype_name(dtype));
      expect_equal_caches(p.kv, cache, dtype_name(dtype));
    }
  }
}

// Where the slot is negative, the newest key is what the cache holds.
TEST(RopeAttention, NegativeSlotReadsTheCache) {
  for (const Device device : test_devices()) {
    const DType dtype = activation_dtypes(device).back();
    const Case c{"", 4, 2, 64, 16, {40, 130}, 64, true};
    Problem p = make_problem(c, dtype, dtype, device);
    p.composed(p.kv);  // now it holds them
    p.slots = Tensor::from_vector<int32_t>({-1, -1}).to(device);
    PagedKv cache = copy_of(p.kv);
    p.qkv.copy_from(random_values({2, 8 * 64}, 6).to(dtype).to(device));
    const Tensor want = p.composed(cache);
    expect_close(p.fused(), doubles(want), tolerance(dtype), "negative slots");
    expect_equal_caches(p.kv, cache, "negative slots");
  }
}

TEST(RopeAttention, IsComposedWhileATapeRecords) {
  for (const Device device : test_devices()) {
    const DType dtype = activation_dtypes(device).back();
    Problem p = make_problem({"", 4, 2, 64, 16, {100, 600}, 64, true}, dtype, dtype, device);
    PagedKv cache = copy_of(p.kv);
    const Tensor want = p.composed(cache);
    const Tape tape;
    expect_close(p.fused(), doubles(want), 0, "with a tape");
  }
}

// Recorded for long contexts and padded to 4 sequences, then replayed step after step with
// contexts that grow over the edges of blocks and steps.
TEST(RopeAttention, ReplaysInAGraph) {
  for (const Device device : test_devices()) {
    if (!has_op_graphs(device)) continue;
    const DType dtype = DType::kBF16;
    const Case c{"", 16, 8, 128, 16, {2000, 40, 0, 0}, 128, true};
    Problem p = make_problem(c, dtype, dtype, device);
    const auto zeros = [&](const Tensor& like) {
      return Tensor::zeros(like.shape(), like.dtype(), device);
    };
    Problem r = p;  // other arrays, the same cache
    r.positions = zeros(p.positions);
    r.batch.context_len = zeros(p.batch.context_len);
    r.batch.block_table = zeros(p.batch.block_table);
    r.slots = Tensor::from_vector<int32_t>({-1, -1, -1, -1}).to(device);
    r.qkv = zeros(p.qkv);
    Tensor out = r.fused();
    expect_close(out, std::vector<double>(static_cast<size_t>(out.numel())), 0, "padding");
    const auto graph = record_graph(device, [&] { out = r.fused(); });
    const auto table = p.batch.block_table.to_vector<int32_t>();
    PagedKv cache = copy_of(p.kv);
    for (int32_t step = 0; step < 20; ++step) {
      const std::vector<int32_t> context = {1980 + step, 21 + step, 0, 0};
      std::vector<int32_t> slots = {-1, -1, -1, -1}, positions(4);
      for (size_t b = 0; b < 2; ++b) {
        positions[b] = context[b] - 1;
        slots[b] = table[b * table.size() / 4 + static_cast<size_t>(positions[b] / 16)] * 16 +
                   positions[b] % 16;
      }
      r.qkv.copy_from(
          random_values(r.qkv.shape(), static_cast<uint32_t>(10 + step)).to(dtype).to(device));
      r.positions.copy_from(Tensor::from_vector(positions).to(device));
      r.slots.copy_from(Tensor::from_vector(slots).to(device));
      r.batch.context_len.copy_from(Tensor::from_vector(context).to(device));
      r.batch.block_table.copy_from(p.batch.block_table);
      graph->replay();
      const Tensor want = r.composed(cache);
      expect_close(out, doubles(want), tolerance(dtype), fmt::format("step {}", step));
      expect_equal_caches(r.kv, cache, fmt::format("step {}", step));
    }
  }
}

TEST(RopeAttention, RefusesBadInput) {
  for (const Device device : test_devices()) {
    const DType dtype = activation_dtypes(device).back();
    const Case c{"", 4, 2, 64, 16, {40}, 64, true};
    Problem p = make_problem(c, dtype, dtype, device);
    p.args.window = -1;
    EXPECT_THROW(p.fused(), Error);
    p = make_problem(c, dtype, dtype, device);
    p.qkv = p.qkv.columns(0, 7 * 64);  // three query heads for two of the cache
    EXPECT_THROW(p.fused(), Error);
    p = make_problem(c, dtype, dtype, device);
    p.batch.max_context_len = 49;  // of 48 in the block table
    EXPECT_THROW(p.fused(), Error);
    p = make_problem(c, dtype, dtype, device);
    p.slots = Tensor();
    EXPECT_THROW(p.fused(), Error);
  }
}

}  // namespace
}  // namespace reft
