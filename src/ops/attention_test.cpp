#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "ops/op_cases.h"
#include "tensor/dequantize.h"

namespace reft {
namespace {

const bool covered = cover_ops({"qk_norm_rope_cache", "paged_attention"});

constexpr DType kCacheTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kF8E4M3};

struct Sequence {
  int64_t queries, context;
};
struct AttentionCase {
  std::string name;
  int64_t heads, kv_heads, head_dim, page;
  std::vector<Sequence> sequences;
  int64_t window = 0;
  float soft_cap = 0;
  bool sinks = false;
  float magnitude = 1;
};

// Keys and values of all sequences, dense and in shuffled blocks of a cache whose other slots are
// NaN.
struct Problem {
  std::vector<Tensor> keys,
      values;  // per sequence [context, Hk, Dh], after rounding to the cache dtype
  Tensor q;
  PagedKv kv;
  AttentionBatch batch;
  AttentionArgs args;
};

void put(Tensor& cache, int64_t at, float value) {
  quantize_row(cache.dtype(), &value, cache.raw() + at * row_bytes(cache.dtype(), 1), 1);
}

Problem make_problem(const AttentionCase& c, DType cache_type, Device device) {
  Problem p;
  const auto batch = static_cast<int64_t>(c.sequences.size());
  std::vector<int32_t> start = {0}, context;
  int64_t max_blocks = 1, total = 0;
  for (const auto& s : c.sequences) {
    start.push_back(start.back() + static_cast<int32_t>(s.queries));
    context.push_back(static_cast<int32_t>(s.context));
    const int64_t blocks = (s.context + c.page - 1) / c.page;
    max_blocks = std::max(max_blocks, blocks);
    total += blocks;
    p.batch.max_query_len = std::max(p.batch.max_query_len, s.queries);
    p.batch.max_context_len = std::max(p.batch.max_context_len, s.context);
  }
  std::vector<int32_t> order(static_cast<size_t>(total + 2));
  std::iota(order.begin(), order.end(), 0);
  std::mt19937 random(7);
  std::shuffle(order.begin(), order.end(), random);
  // Entries that no visible key needs are poison.
  std::vector<int32_t> table(static_cast<size_t>(batch * max_blocks), -1);
  const Shape shape{total + 2, c.kv_heads, c.page, c.head_dim};
  p.kv = {Tensor::empty(shape, cache_type), Tensor::empty(shape, cache_type)};
  for (int64_t i = 0; i < shape.numel(); ++i) {
    put(p.kv.k, i, NAN);
    put(p.kv.v, i, NAN);
  }
  size_t next = 0;
  for (int64_t b = 0; b < batch; ++b) {
    const Sequence s = c.sequences[static_cast<size_t>(b)];
    const Shape dense{s.context, c.kv_heads, c.head_dim};
    const auto seed = static_cast<uint32_t>(10 * b);
    p.keys.push_back(random_values(dense, seed + 1, c.magnitude).to(cache_type).to(DType::kF32));
    p.values.push_back(random_values(dense, seed + 2).to(cache_type).to(DType::kF32));
    const int64_t first =
        c.window > 0 ? std::max<int64_t>(0, s.context - s.queries - c.window + 1) : 0;
    for (int64_t i = first; i < s.context; ++i) {
      int32_t& block = table[static_cast<size_t>(b * max_blocks + i / c.page)];
      if (block < 0) block = order[next++];
      for (int64_t h = 0; h < c.kv_heads; ++h) {
        for (int64_t d = 0; d < c.head_dim; ++d) {
          const int64_t to = ((block * c.kv_heads + h) * c.page + i % c.page) * c.head_dim + d;
          const int64_t from = (i * c.kv_heads + h) * c.head_dim + d;
          put(p.kv.k, to, p.keys.back().data<float>()[from]);
          put(p.kv.v, to, p.values.back().data<float>()[from]);
        }
      }
    }
  }
  p.q = random_values({start.back(), c.heads, c.head_dim}, 3, c.magnitude);
  p.args.scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  p.args.window = c.window;
  p.args.soft_cap = c.soft_cap;
  if (c.sinks) p.args.sinks = random_values({c.heads}, 4).to(device);
  p.kv = {p.kv.k.to(device), p.kv.v.to(device)};
  p.batch.query_start = Tensor::from_vector(start).to(device);
  p.batch.context_len = Tensor::from_vector(context).to(device);
  p.batch.block_table = Tensor::from_vector(table, {batch, max_blocks}).to(device);
  return p;
}

std::vector<double> oracle(const AttentionCase& c, const Problem& p, const Tensor& q) {
  std::vector<double> out;
  int64_t token = 0;
  const std::vector<double> queries = doubles(q);
  const std::vector<double> sinks = c.sinks ? doubles(p.args.sinks) : std::vector<double>();
  for (size_t b = 0; b < c.sequences.size(); ++b) {
    const Sequence s = c.sequences[b];
    const float* keys = p.keys[b].data<float>();
    const float* values = p.values[b].data<float>();
    for (int64_t j = 0; j < s.queries; ++j, ++token) {
      for (int64_t h = 0; h < c.heads; ++h) {
        const int64_t group = h / (c.heads / c.kv_heads);
        const int64_t last = s.context - s.queries + j;
        const int64_t first = c.window > 0 ? std::max<int64_t>(0, last - c.window + 1) : 0;
        std::vector<double> scores;
        double top = c.sinks ? sinks[static_cast<size_t>(h)] : -INFINITY;
        for (int64_t i = first; i <= last; ++i) {
          double score = 0;
          for (int64_t d = 0; d < c.head_dim; ++d) {
            score += queries[static_cast<size_t>((token * c.heads + h) * c.head_dim + d)] *
                     keys[(i * c.kv_heads + group) * c.head_dim + d];
          }
          score *= p.args.scale;
          if (c.soft_cap > 0) score = c.soft_cap * std::tanh(score / c.soft_cap);
          scores.push_back(score);
          top = std::max(top, score);
        }
        double sum = c.sinks ? std::exp(sinks[static_cast<size_t>(h)] - top) : 0;
        std::vector<double> row(static_cast<size_t>(c.head_dim));
        for (int64_t i = first; i <= last; ++i) {
          const double weight = std::exp(scores[static_cast<size_t>(i - first)] - top);
          sum += weight;
          for (int64_t d = 0; d < c.head_dim; ++d) {
            row[static_cast<size_t>(d)] +=
                weight * values[(i * c.kv_heads + group) * c.head_dim + d];
          }
        }
        for (const double value : row) out.push_back(value / sum);
      }
    }
  }
  return out;
}

const std::vector<AttentionCase> kCases = {
    {"context of one", 4, 2, 64, 16, {{1, 1}}},
    {"one key per block", 3, 3, 8, 1, {{1, 5}, {2, 3}}},
    {"decode, three heads a group", 9, 3, 64, 16, {{1, 17}, {1, 300}, {1, 64}, {1, 1}}},
    {"decode, long", 4, 2, 128, 16, {{1, 2500}, {1, 1025}}},
    {"decode, one head group of eight", 8, 1, 256, 32, {{1, 130}, {1, 31}}},
    {"decode, group of seven, odd dims", 7, 1, 40, 5, {{1, 33}}},
    {"decode, group of seventeen", 17, 1, 16, 16, {{1, 700}}},
    {"tiny odd dims", 2, 2, 3, 4, {{5, 9}, {1, 6}}},
    {"prefill", 9, 3, 64, 16, {{200, 200}}},
    {"prefill, wide heads", 4, 2, 128, 16, {{130, 130}}},
    {"prefill, 72 dims", 2, 1, 72, 8, {{70, 75}}},
    {"prefill, group over a tile", 71, 1, 32, 16, {{3, 40}}},
    {"chunk", 4, 4, 64, 16, {{33, 333}}},
    {"mixed", 6, 2, 64, 16, {{1, 70}, {90, 90}, {0, 12}, {2, 130}, {1, 2}, {17, 17}}},
    {"nothing", 2, 1, 64, 16, {{0, 5}}},
    {"window", 4, 2, 64, 16, {{1, 300}, {150, 300}, {1, 20}}, 64},
    {"window of one", 4, 2, 64, 16, {{1, 30}, {20, 50}}, 1},
    {"window, decode long", 4, 2, 64, 16, {{1, 3000}}, 1100},
    {"soft cap", 4, 2, 64, 16, {{1, 90}, {40, 90}}, 0, 5.0f, false, 3},
    {"sinks", 4, 2, 64, 16, {{1, 90}, {40, 90}, {1, 1}, {1, 1300}}, 0, 0, true},
    {"all at once", 8, 2, 96, 16, {{1, 200}, {70, 200}}, 33, 10.0f, true, 2},
    {"long chunks", 4, 2, 128, 16, {{300, 700}, {1, 900}, {130, 1000}}},
    {"long chunks, 256 dims", 4, 1, 256, 32, {{150, 400}, {20, 30}}},
    {"large blocks", 2, 1, 64, 256, {{140, 500}}},
    {"small blocks", 2, 1, 64, 8, {{140, 500}}},
    {"window over tiles", 2, 1, 128, 16, {{300, 900}, {5, 600}}, 200},
    {"long chunks, soft cap and sinks", 2, 1, 256, 16, {{200, 300}}, 150, 5.0f, true, 2},
    {"peaked", 4, 2, 64, 16, {{1, 700}, {90, 100}}, 0, 0, false, 12},
};

TEST(PagedAttention, MatchesOracle) {
  for (const Device device : test_devices()) {
    for (const DType dtype : activation_dtypes(device)) {
      for (const DType cache_type : kCacheTypes) {
        for (const auto& c : kCases) {
          const Problem p = make_problem(c, cache_type, device);
          const Tensor q = p.q.to(dtype);
          const Tensor out = paged_attention(q.to(device), p.kv, p.batch, p.args);
          // Scores grow with the square of the magnitude, and so does their fp32 error, which the
          // softmax turns into a relative one.
          const double growth = std::max(1.0f, c.magnitude * c.magnitude / 4);
          expect_close(out, oracle(c, p, q), tolerance(dtype) * growth,
                       c.name + ", cache " + dtype_name(cache_type) + ", " + dtype_name(dtype));
        }
      }
    }
  }
}

// A sequence's result may not depend on what else is in the batch, bit for bit.
TEST(PagedAttention, AloneEqualsInABatch) {
  for (const Device device : test_devices()) {
    AttentionCase both{"", 6, 2, 64, 16, {{1, 1500}, {5, 40}, {1, 9}}};
    const Problem p = make_problem(both, DType::kBF16, device);
    const std::vector<double> together =
        doubles(paged_attention(p.q.to(device), p.kv, p.batch, p.args));
    AttentionBatch first = p.batch;
    first.query_start = Tensor::from_vector<int32_t>({0, 1}).to(device);
    first.context_len = Tensor::from_vector<int32_t>({1500}).to(device);
    first.block_table = p.batch.block_table.rows(0, 1);
    first.max_query_len = 1;
    const std::vector<double> alone =
        doubles(paged_attention(p.q.rows(0, 1).contiguous().to(device), p.kv, first, p.args));
    for (size_t i = 0; i < alone.size(); ++i) ASSERT_EQ(alone[i], together[i]) << i;
  }
}

TEST(PagedAttention, NanStaysInItsSequence) {
  for (const Device device : test_devices()) {
    const AttentionCase c{"", 4, 2, 64, 16, {{1, 70}, {20, 90}, {1, 33}}};
    Problem p = make_problem(c, DType::kF32, device);
    Tensor q = p.q;
    q.data<float>()[0] = NAN;                // sequence 0, head 0
    q.data<float>()[3 * 4 * 64 + 64] = NAN;  // sequence 1, token 2, head 1
    const std::vector<double> out = doubles(paged_attention(q.to(device), p.kv, p.batch, p.args));
    for (size_t i = 0; i < out.size(); ++i) {
      const bool bad = i < 64 || i / 64 == 3 * 4 + 1;
      ASSERT_EQ(std::isnan(out[i]), bad) << i;
    }
  }
}

TEST(PagedAttention, RefusesBadInput) {
  const AttentionCase c{"", 4, 2, 8, 4, {{1, 7}}};
  Problem p = make_problem(c, DType::kF32, kCpuDevice);
  EXPECT_THROW(paged_attention(random_values({1, 3, 8}, 1), p.kv, p.batch, p.args), Error);
  EXPECT_THROW(paged_attention(random_values({1, 4, 9}, 1), p.kv, p.batch, p.args), Error);
  AttentionBatch bad = p.batch;
  bad.block_table = Tensor::from_vector<int32_t>({0, 99}, {1, 2});
  EXPECT_THROW(paged_attention(p.q, p.kv, bad, p.args), Error);
  bad = p.batch;
  bad.context_len = Tensor::from_vector<int32_t>({100});
  EXPECT_THROW(paged_attention(p.q, p.kv, bad, p.args), Error);
  bad.context_len = Tensor::from_vector<int32_t>({0});
  EXPECT_THROW(paged_attention(p.q, p.kv, bad, p.args), Error);
  bad = p.batch;
  bad.query_start = Tensor::from_vector<int32_t>({0, 2});
  EXPECT_THROW(paged_attention(p.q, p.kv, bad, p.args), Error);
}

struct RopeCase {
  std::string name;
  int64_t tokens, heads, kv_heads, head_dim, page, rotary;
  bool norm = false, interleaved = false;
  NormKind kind = NormKind::kPlain;
  int64_t gap = 0;
};

std::vector<double> rope_oracle(const double* x, const RopeCase& c, const Tensor& weight,
                                const float* cos_sin) {
  std::vector<double> y(x, x + c.head_dim);
  if (c.norm) {
    double sum = 0;
    for (const double value : y) sum += value * value;
    const double scale = 1 / std::sqrt(sum / static_cast<double>(c.head_dim) + 1e-6f);
    for (size_t i = 0; i < y.size(); ++i) {
      y[i] *= scale * (weight.data<float>()[i] + (c.kind == NormKind::kOnePlus ? 1.0 : 0.0));
    }
  }
  const int64_t half = c.rotary / 2;
  std::vector<double> rotated = y;
  for (int64_t i = 0; i < half; ++i) {
    const auto a = static_cast<size_t>(c.interleaved ? 2 * i : i);
    const auto b = static_cast<size_t>(c.interleaved ? 2 * i + 1 : i + half);
    rotated[a] = y[a] * cos_sin[i] - y[b] * cos_sin[half + i];
    rotated[b] = y[b] * cos_sin[i] + y[a] * cos_sin[half + i];
  }
  return rotated;
}

const std::vector<RopeCase> kRopeCases = {
    {"llama", 5, 9, 3, 64, 16, 64},
    {"qwen3", 3, 4, 2, 128, 16, 128, true},
    {"gemma3", 2, 4, 1, 256, 8, 256, true, false, NormKind::kOnePlus},
    {"partial", 4, 2, 1, 96, 4, 32, true},
    {"interleaved", 4, 2, 2, 64, 4, 64, false, true},
    {"interleaved partial norm", 4, 2, 2, 40, 4, 20, true, true},
    {"no rotation", 3, 2, 1, 64, 16, 0, true},
    {"odd", 3, 2, 1, 7, 3, 6, true},
    {"odd pairs", 3, 2, 1, 54, 3, 54},
    {"strided", 3, 3, 1, 64, 16, 64, true, false, NormKind::kPlain, 10},
    {"empty", 0, 2, 1, 64, 16, 64},
    {"many", 70, 2, 1, 64, 16, 64, true},
};

void run_rope_case(const RopeCase& c, DType dtype, DType cache_type, Device device) {
  const std::string what = c.name + ", cache " + dtype_name(cache_type);
  const int64_t width = (c.heads + 2 * c.kv_heads) * c.head_dim;
  const Tensor qkv = random_values({c.tokens, width}, 1, 2.0f).to(dtype);
  const int64_t blocks = c.tokens / c.page + 3;
  const Tensor table = c.rotary > 0 ? random_values({50, c.rotary}, 2) : Tensor();
  std::vector<int32_t> positions, slots(static_cast<size_t>(blocks * c.page));
  for (int64_t t = 0; t < c.tokens; ++t)
    positions.push_back(static_cast<int32_t>((t * 7 + 49) % 50));
  std::iota(slots.begin(), slots.end(), 0);
  std::mt19937 random(5);
  std::shuffle(slots.begin(), slots.end(), random);
  slots.resize(static_cast<size_t>(c.tokens));
  if (c.tokens > 1) slots[1] = -1;
  QkNormRopeArgs args;
  const Tensor q_weight = random_values({c.head_dim}, 3, 0.3f, 1.0f);
  const Tensor k_weight = random_values({c.head_dim}, 4, 0.3f, 1.0f);
  if (c.norm) {
    args.q_weight = q_weight.to(device);
    args.k_weight = k_weight.to(device);
  }
  args.kind = c.kind;
  args.interleaved = c.interleaved;
  if (table.defined()) args.cos_sin = table.to(device);
  const Shape shape{blocks, c.kv_heads, c.page, c.head_dim};
  const Tensor old = random_values(shape, 6).to(cache_type);
  PagedKv kv{Tensor::empty(shape, cache_type, device), Tensor::empty(shape, cache_type, device)};
  kv.k.copy_from(old);
  kv.v.copy_from(old);
  const Tensor input =
      c.gap && device.type == DeviceType::kCpu ? strided_copy(qkv, c.gap) : qkv.to(device);
  const Tensor q = qk_norm_rope_cache(input, Tensor::from_vector(positions).to(device),
                                      Tensor::from_vector(slots).to(device), kv, args);
  std::vector<double> want_q, want_k = doubles(old), want_v = want_k;
  const std::vector<double> in = doubles(qkv);
  for (int64_t t = 0; t < c.tokens; ++t) {
    const auto at = static_cast<size_t>(t);
    const float* cos_sin =
        table.defined() ? table.data<float>() + positions[at] * c.rotary : nullptr;
    for (int64_t h = 0; h < c.heads + 2 * c.kv_heads; ++h) {
      const double* x = in.data() + t * width + h * c.head_dim;
      std::vector<double> row(x, x + c.head_dim);
      if (h < c.heads + c.kv_heads)
        row = rope_oracle(x, c, h < c.heads ? q_weight : k_weight, cos_sin);
      if (h < c.heads) {
        want_q.insert(want_q.end(), row.begin(), row.end());
      } else if (slots[at] >= 0) {
        const bool is_key = h < c.heads + c.kv_heads;
        const int64_t head = h - c.heads - (is_key ? 0 : c.kv_heads);
        const int64_t to =
            ((slots[at] / c.page * c.kv_heads + head) * c.page + slots[at] % c.page) * c.head_dim;
        std::copy(row.begin(), row.end(), (is_key ? want_k : want_v).begin() + to);
      }
    }
  }
  const double cache_tolerance = std::max(tolerance(dtype), tolerance(cache_type) / 4);
  expect_close(q, want_q, tolerance(dtype), what + ": q");
  expect_close(kv.k, want_k, cache_tolerance, what + ": k");
  expect_close(kv.v, want_v, cache_tolerance, what + ": v");
}

TEST(QkNormRopeCache, MatchesOracle) {
  for (const Device device : test_devices()) {
    for (const DType dtype : activation_dtypes(device)) {
      for (const DType cache_type : kCacheTypes) {
        for (const auto& c : kRopeCases) run_rope_case(c, dtype, cache_type, device);
      }
    }
  }
}

TEST(QkNormRopeCache, RefusesBadInput) {
  const Shape shape{2, 1, 4, 8};
  PagedKv kv{Tensor::zeros(shape, DType::kF32), Tensor::zeros(shape, DType::kF32)};
  const Tensor qkv = random_values({1, 32}, 1);
  const auto ints = [](int32_t value) { return Tensor::from_vector<int32_t>({value}); };
  QkNormRopeArgs args;
  args.cos_sin = random_values({3, 8}, 1);
  EXPECT_NO_THROW(qk_norm_rope_cache(qkv, ints(2), ints(7), kv, args));
  EXPECT_THROW(qk_norm_rope_cache(qkv, ints(3), ints(7), kv, args), Error);   // position
  EXPECT_THROW(qk_norm_rope_cache(qkv, ints(-1), ints(7), kv, args), Error);  // position
  EXPECT_THROW(qk_norm_rope_cache(qkv, ints(2), ints(8), kv, args), Error);   // slot
  EXPECT_THROW(qk_norm_rope_cache(random_values({1, 16}, 1), ints(2), ints(7), kv, args), Error);
  EXPECT_THROW(qk_norm_rope_cache(random_values({1, 33}, 1), ints(2), ints(7), kv, args), Error);
  args.cos_sin = random_values({3, 10}, 1);
  EXPECT_THROW(qk_norm_rope_cache(qkv, ints(2), ints(7), kv, args), Error);
}

}  // namespace
}  // namespace reft
