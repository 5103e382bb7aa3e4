#include "ops/encoder.h"

#include <cmath>

#include "base/error_of_test.h"
#include "ops/op_cases.h"

namespace reft {
namespace {

const bool covered = cover_ops(
    {"layer_norm", "activate", "unfold", "write_kv", "full_attention", "attention_weights"});

TEST(LayerNormOp, MatchesOracle) {
  struct Case {
    int64_t tokens, dim;
    float scale, mean;
  };
  for (const Device device : test_devices()) {
    for (const DType dtype : activation_dtypes(device)) {
      for (const Case& c : std::vector<Case>{{0, 64, 1, 0},
                                             {1, 1, 1, 0},
                                             {3, 5, 1, 2},
                                             {7, 384, 1, 0},
                                             {65, 513, 3, -1},
                                             {2, 1280, 0.1f, 0.5f}}) {
        const Tensor x = random_values({c.tokens, c.dim}, 1, c.scale, c.mean).to(dtype);
        const Tensor w = random_values({c.dim}, 2, 0.5f, 1), b = random_values({c.dim}, 3);
        const std::vector<double> in = doubles(x);
        std::vector<double> want(in.size());
        const auto n = static_cast<size_t>(c.dim);
        for (size_t row = 0; row < in.size(); row += n) {
          double mean = 0, square = 0;
          for (size_t i = 0; i < n; ++i) mean += in[row + i] / static_cast<double>(n);
          for (size_t i = 0; i < n; ++i)
            square += (in[row + i] - mean) * (in[row + i] - mean) / static_cast<double>(n);
          for (size_t i = 0; i < n; ++i) {
            want[row + i] = (in[row + i] - mean) / std::sqrt(square + 1e-5) * w.data<float>()[i] +
                            b.data<float>()[i];
          }
        }
        // The mean is rounded relative to the values, which may be large beside their deviation.
        const double room = 1 + std::abs(c.mean) / c.scale;
        expect_close(layer_norm(x.to(device), w.to(device), b.to(device), 1e-5f), want,
                     tolerance(dtype) * room, fmt::format("{}x{}", c.tokens, c.dim));
      }
    }
  }
}

TEST(Activate, MatchesOracle) {
  for (const Device device : test_devices()) {
    for (const DType dtype : activation_dtypes(device)) {
      for (const int64_t n : {0, 1, 17, 5000}) {
        const Tensor x = random_values({n}, 4, 3).to(dtype);
        std::vector<double> want = doubles(x);
        for (double& v : want) v = 0.5 * v * std::erfc(-v / std::sqrt(2.0));
        Tensor y = Tensor::empty({n}, dtype, device);
        if (n > 0) y.copy_from(x);
        activate_(y, Activation::kGeluErf);
        expect_close(y, want, tolerance(dtype), std::to_string(n));
      }
    }
  }
}

TEST(UnfoldOp, MatchesOracle) {
  for (const Device device : test_devices()) {
    for (const DType dtype : activation_dtypes(device)) {
      for (const Unfold& o : {Unfold{1, 3, 1, 1}, Unfold{2, 3, 2, 1}, Unfold{3, 5, 3, 2}}) {
        const int64_t length = 9, channels = 6;
        const Tensor x = random_values({o.sequences * length, channels}, 5);
        const int64_t rows = (length + 2 * o.padding - o.kernel) / o.stride + 1;
        std::vector<double> want;
        for (int64_t b = 0; b < o.sequences; ++b) {
          for (int64_t t = 0; t < rows; ++t) {
            for (int64_t k = 0; k < o.kernel; ++k) {
              const int64_t from = t * o.stride - o.padding + k;
              for (int64_t c = 0; c < channels; ++c) {
                const bool in = from >= 0 && from < length;
                want.push_back(in ? x.data<float>()[(b * length + from) * channels + c] : 0.0f);
              }
            }
          }
        }
        // float32 features become the compute dtype here.
        expect_close(unfold(x.to(device), o, dtype), want, tolerance(dtype), "unfold");
      }
    }
  }
}

struct Attention {
  int64_t heads = 6, kv_heads = 3, dims = 24, page = 16;
  std::vector<int32_t> queries, keys;
  std::vector<int32_t> table;
  int64_t width = 0, blocks = 0;

  Attention(std::vector<int32_t> q, std::vector<int32_t> k)
      : queries(std::move(q)), keys(std::move(k)) {
    for (const int32_t n : keys) width = std::max<int64_t>(width, (n + page - 1) / page);
    // Blocks in an order of their own.
    for (size_t b = 0; b < keys.size(); ++b) {
      for (int64_t i = 0; i < width; ++i)
        table.push_back(static_cast<int32_t>((width - 1 - i) * static_cast<int64_t>(keys.size())) +
                        static_cast<int32_t>(b));
    }
    blocks = width * static_cast<int64_t>(keys.size());
  }
  int32_t slot(size_t b, int64_t key) const {
    return table[b * static_cast<size_t>(width) + static_cast<size_t>(key / page)] *
               static_cast<int32_t>(page) +
           static_cast<int32_t>(key % page);
  }
};

void check_attention(const Attention& a) {
  const float scale = 0.3f;
  std::vector<int32_t> starts = {0}, slots;
  for (const int32_t n : a.queries) starts.push_back(starts.back() + n);
  for (size_t b = 0; b < a.keys.size(); ++b) {
    for (int64_t i = 0; i < a.keys[b]; ++i) slots.push_back(a.slot(b, i));
  }
  for (const Device device : test_devices()) {
    for (const DType dtype : activation_dtypes(device)) {
      const Tensor q = random_values({starts.back(), a.heads, a.dims}, 6).to(dtype);
      const Tensor kv =
          random_values({static_cast<int64_t>(slots.size()), 2 * a.kv_heads * a.dims}, 7).to(dtype);
      const Shape shape{a.blocks, a.kv_heads, a.page, a.dims};
      PagedKv cache{Tensor::empty(shape, dtype, device), Tensor::empty(shape, dtype, device)};
      write_kv(kv.to(device), Tensor::from_vector(slots).to(device), cache);
      AttentionBatch batch{
          .query_start = Tensor::from_vector(starts).to(device),
          .context_len = Tensor::from_vector(a.keys).to(device),
          .block_table =
              Tensor::from_vector(a.table, {static_cast<int64_t>(a.keys.size()), a.width})
                  .to(device),
          .max_query_len = *std::max_element(a.queries.begin(), a.queries.end()),
          .max_context_len = *std::max_element(a.keys.begin(), a.keys.end())};
      const std::vector<double> qs = doubles(q), kvs = doubles(kv);
      std::vector<double> want, weights;
      size_t first_key = 0;
      const auto dims = static_cast<size_t>(a.dims),
                 width = 2 * static_cast<size_t>(a.kv_heads) * dims;
      for (size_t b = 0; b < a.keys.size(); ++b) {
        const auto n = static_cast<size_t>(a.keys[b]);
        for (int32_t t = starts[b]; t < starts[b + 1]; ++t) {
          for (size_t h = 0; h < static_cast<size_t>(a.heads); ++h) {
            const size_t kv_head = h / static_cast<size_t>(a.heads / a.kv_heads);
            std::vector<double> p(n), out(dims);
            double top = -1e30, sum = 0;
            for (size_t i = 0; i < n; ++i) {
              for (size_t d = 0; d < dims; ++d) {
                p[i] += scale *
                        qs[(static_cast<size_t>(t) * static_cast<size_t>(a.heads) + h) * dims + d] *
                        kvs[(first_key + i) * width + kv_head * dims + d];
              }
              top = std::max(top, p[i]);
            }
            for (double& x : p) sum += x = std::exp(x - top);
            for (size_t i = 0; i < n; ++i) {
              if (b == 0 && h == 1) weights.push_back(p[i] / sum);
              for (size_t d = 0; d < dims; ++d)
                out[d] += p[i] / sum *
                          kvs[(first_key + i) * width +
                              (static_cast<size_t>(a.kv_heads) + kv_head) * dims + d];
            }
            want.insert(want.end(), out.begin(), out.end());
          }
        }
        first_key += n;
      }
      // Sums of rounded products: a few roundings more than one op of a row.
      const double room = dtype == DType::kF32 ? 1e-5 : 2 * tolerance(dtype);
      expect_close(full_attention(q.to(device), cache, batch, scale), want, room, "attention");
      const Tensor blocks =
          Tensor::from_vector(std::vector<int32_t>(a.table.begin(), a.table.begin() + a.width));
      const Tensor found = attention_weights(q.rows(0, a.queries[0]).to(device), cache,
                                             blocks.to(device), 1, a.keys[0], scale);
      expect_close(found, weights, room, "weights", 0.1);
    }
  }
}

TEST(FullAttention, QueriesSeeAllKeys) {
  check_attention({{70, 3, 1}, {70, 129, 5}});
  check_attention({{1, 1}, {37, 300}});  // runs as paged attention
  check_attention({{200}, {1}});
}

TEST(Encoder, ErrorsNameOpAndShapes) {
  const Tensor x = random_values({4, 8}, 1);
  EXPECT_NE(error_of([&] {
              layer_norm(x, random_values({9}, 1), random_values({8}, 1), 1e-5f);
            }).find("layer_norm"),
            std::string::npos);
  EXPECT_NE(error_of([&] { unfold(x, {.sequences = 3}, DType::kF32); }).find("unfold"),
            std::string::npos);
  PagedKv cache{random_values({2, 1, 4, 4}, 1), random_values({2, 1, 4, 4}, 1)};
  const Tensor slots = Tensor::from_vector(std::vector<int32_t>{0, 1, 2, 99});
  EXPECT_NE(error_of([&] { write_kv(x, slots, cache); }).find("slot 99"), std::string::npos);
  EXPECT_NE(error_of([&] {
              write_kv(random_values({4, 9}, 1), slots, cache);
            }).find("write_kv"),
            std::string::npos);
}

}  // namespace
}  // namespace reft
