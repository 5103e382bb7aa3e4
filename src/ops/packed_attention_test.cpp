// Attention of packed batches: results and gradients.
#include <cmath>
#include <numeric>

#include "ops/attention.h"
#include "ops/op_grad.h"

namespace reft {
namespace {

const bool covered = cover_ops(
    {"qk_norm_rope", "qk_norm_rope_backward", "packed_attention", "packed_attention_backward"});

struct PackedCase {
  std::vector<int32_t> lengths;
  HeadCounts heads;
  AttentionArgs args;
  bool sinks = false;
  int64_t extra = 0;  // tokens after the last sequence

  int64_t tokens() const { return std::accumulate(lengths.begin(), lengths.end(), extra); }
  int64_t width() const { return (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim; }
  AttentionBatch batch() const {
    std::vector<int32_t> start = {0};
    for (const int32_t length : lengths) start.push_back(start.back() + length);
    return {.query_start = Tensor::from_vector(start)};
  }
  std::string str() const {
    return fmt::format("lengths {} heads {}/{}x{} window {} cap {} sinks {}",
                       fmt::join(lengths, ","), heads.num_heads, heads.num_kv_heads, heads.head_dim,
                       args.window, args.soft_cap, sinks);
  }
};

const std::vector<PackedCase> kCases = {
    {{1}, {1, 1, 1}, {.scale = 0.7f}},
    {{}, {2, 1, 4}, {.scale = 0.5f}},
    {{3, 0, 1, 5}, {4, 2, 4}, {.scale = 0.5f}, false, 2},
    {{7, 4}, {3, 1, 10}, {.scale = 0.4f, .window = 3}, true},
    {{6}, {2, 2, 6}, {.scale = 0.8f, .soft_cap = 1.5f}},
    {{9, 2}, {4, 1, 17}, {.scale = 0.3f, .soft_cap = 2.0f, .window = 4}, true},
    {{140}, {2, 1, 4}, {.scale = 0.5f}},
    {{2, 135}, {1, 1, 3}, {.scale = 0.5f, .window = 100}},
};

Doubles attention_oracle(const PackedCase& c, const Doubles& qkv, const Doubles& sinks) {
  const auto [heads, kv_heads, dims] = c.heads;
  Doubles out(static_cast<size_t>(c.tokens() * heads * dims), 0.0);
  const auto at = [&](int64_t token, int64_t head, int64_t d) {
    return qkv[static_cast<size_t>(token * c.width() + head * dims + d)];
  };
  int64_t start = 0;
  for (const int32_t length : c.lengths) {
    for (int64_t t = 0; t < length; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t kv = heads + h / (heads / kv_heads);
        double sum = sinks.empty() ? 0 : std::exp(sinks[static_cast<size_t>(h)]);
        Doubles row(static_cast<size_t>(dims), 0.0);
        for (int64_t s = 0; s <= t; ++s) {
          if (c.args.window > 0 && s <= t - c.args.window) continue;
          double score = 0;
          for (int64_t d = 0; d < dims; ++d) score += at(start + t, h, d) * at(start + s, kv, d);
          score *= c.args.scale;
          const double cap = c.args.soft_cap;
          if (cap > 0) score = cap * std::tanh(score / cap);
          const double p = std::exp(score);
          sum += p;
          for (int64_t d = 0; d < dims; ++d)
            row[static_cast<size_t>(d)] += p * at(start + s, kv + kv_heads, d);
        }
        for (int64_t d = 0; d < dims; ++d)
          out[static_cast<size_t>(((start + t) * heads + h) * dims + d)] =
              row[static_cast<size_t>(d)] / sum;
      }
    }
    start += length;
  }
  return out;
}

AttentionArgs with_sinks(const PackedCase& c, const Tensor& sinks) {
  AttentionArgs args = c.args;
  if (c.sinks) args.sinks = sinks;
  return args;
}

TEST(PackedAttention, MatchesOracle) {
  for (const PackedCase& c : kCases) {
    const Tensor qkv = random_values({c.tokens(), c.width()}, 1);
    const Tensor sinks = random_values({c.heads.num_heads}, 2);
    expect_close(packed_attention(qkv, c.heads, c.batch(), with_sinks(c, sinks)),
                 attention_oracle(c, doubles(qkv), c.sinks ? doubles(sinks) : Doubles()), 4e-6,
                 c.str());
  }
}

TEST(Gradient, PackedAttention) {
  for (const PackedCase& c : kCases) {
    std::vector<Tensor> inputs;
    inputs.push_back(random_values({c.tokens(), c.width()}, 1));
    if (c.sinks) inputs.push_back(random_values({c.heads.num_heads}, 2));
    check_gradients(
        {.what = c.str(),
         .inputs = inputs,
         .op =
             [&](auto& in) {
               return packed_attention(in[0], c.heads, c.batch(), with_sinks(c, in.back()));
             },
         .oracle =
             [&](auto& in) { return attention_oracle(c, in[0], c.sinks ? in[1] : Doubles()); }});
  }
}

// What one document holds changes no bit of another's results and gradients.
TEST(PackedAttention, DocumentsDoNotTouch) {
  const PackedCase c{{37, 150, 20}, {6, 2, 16}, {.scale = 0.25f}};
  const auto run = [&](float change) {
    const Tensor qkv = random_values({c.tokens(), c.width()}, 1);
    for (int64_t i = 0; i < 37 * c.width(); ++i) qkv.data<float>()[i] *= change;
    const Tensor dqkv = Tensor::zeros(qkv.shape(), DType::kF32);
    Tape tape;
    tape.watch(qkv, dqkv);
    const Tensor out = packed_attention(qkv, c.heads, c.batch(), c.args);
    tape.backward(out, random_values(out.shape(), 5));
    return std::pair(out.rows(37, c.tokens()).to_vector<float>(),
                     dqkv.rows(37, c.tokens()).to_vector<float>());
  };
  EXPECT_EQ(run(1.0f), run(3.0f));
}

struct RopeCase {
  HeadCounts heads;
  int64_t rotary;
  bool interleaved, q_norm, k_norm;
  NormKind kind;
};

Doubles rope_oracle(const RopeCase& c, const std::vector<int32_t>& positions,
                    const Doubles& cos_sin, float eps, const std::vector<Doubles>& in) {
  const auto dims = static_cast<size_t>(c.heads.head_dim);
  const auto q_heads = static_cast<size_t>(c.heads.num_heads);
  const auto kv_heads = static_cast<size_t>(c.heads.num_kv_heads);
  const auto rotary = static_cast<size_t>(c.rotary);
  Doubles y = in[0];
  for (size_t t = 0; t < positions.size(); ++t) {
    for (size_t h = 0; h < q_heads + kv_heads; ++h) {
      double* x = y.data() + (t * (q_heads + 2 * kv_heads) + h) * dims;
      const bool is_query = h < q_heads;
      if (is_query ? c.q_norm : c.k_norm) {
        const Doubles& w = in[is_query || !c.q_norm ? 1 : 2];
        double sum = 0;
        for (size_t d = 0; d < dims; ++d) sum += x[d] * x[d];
        const double scale = 1 / std::sqrt(sum / static_cast<double>(dims) + eps);
        for (size_t d = 0; d < dims; ++d)
          x[d] *= scale * (w[d] + (c.kind == NormKind::kOnePlus ? 1 : 0));
      }
      const double* cos = cos_sin.data() + static_cast<size_t>(positions[t]) * rotary;
      for (size_t i = 0; i < rotary / 2; ++i) {
        double& a = x[c.interleaved ? 2 * i : i];
        double& b = x[c.interleaved ? 2 * i + 1 : i + rotary / 2];
        const double u = a * cos[i] - b * cos[i + rotary / 2];
        b = b * cos[i] + a * cos[i + rotary / 2];
        a = u;
      }
    }
  }
  return y;
}

TEST(Gradient, QkNormRope) {
  constexpr float kEps = 0.05f;
  for (const RopeCase& c : {RopeCase{{1, 1, 2}, 2, false, false, false, NormKind::kPlain},
                            {{3, 1, 10}, 6, false, true, true, NormKind::kPlain},
                            {{2, 2, 34}, 34, false, true, true, NormKind::kOnePlus},
                            {{2, 1, 8}, 4, true, true, false, NormKind::kPlain},
                            {{2, 1, 8}, 8, true, false, true, NormKind::kPlain},
                            {{2, 1, 8}, 0, false, false, false, NormKind::kPlain}}) {
    for (const std::vector<int32_t>& positions :
         {std::vector<int32_t>{}, {4}, std::vector<int32_t>(70, 3), {0, 1, 2, 0, 1}}) {
      const auto tokens = static_cast<int64_t>(positions.size());
      const int64_t dims = c.heads.head_dim;
      const Tensor table = random_values({5, c.rotary}, 9);
      const Tensor index = Tensor::from_vector(positions);
      std::vector<Tensor> inputs;
      inputs.push_back(
          random_values({tokens, (c.heads.num_heads + 2 * c.heads.num_kv_heads) * dims}, 1));
      if (c.q_norm) inputs.push_back(random_values({dims}, 2, 0.5f, 1.0f));
      if (c.k_norm) inputs.push_back(random_values({dims}, 3, 0.5f, 1.0f));
      const auto op = [&](std::vector<Tensor>& in) {
        QkNormRopeArgs args{.eps = kEps, .kind = c.kind, .interleaved = c.interleaved};
        if (c.rotary > 0) args.cos_sin = table;
        if (c.q_norm) args.q_weight = in[1];
        if (c.k_norm) args.k_weight = in.back();
        return qk_norm_rope(in[0], index, c.heads, args);
      };
      const auto oracle = [&](const std::vector<Doubles>& in) {
        return rope_oracle(c, positions, doubles(table), kEps, in);
      };
      std::vector<Doubles> values;
      for (const Tensor& x : inputs) values.push_back(doubles(x));
      const std::string what = fmt::format("rope of {} tokens, {} of {}", tokens, c.rotary, dims);
      expect_close(op(inputs), oracle(values), 4e-6, what);
      check_gradients({.what = what, .inputs = inputs, .op = op, .oracle = oracle});
    }
  }
}

TEST(PackedAttention, BadInputNamesTheOp) {
  const Tensor qkv = random_values({3, 16}, 1);
  const HeadCounts heads{2, 1, 4};
  const auto start = [](std::vector<int32_t> values) {
    return AttentionBatch{.query_start = Tensor::from_vector(values)};
  };
  EXPECT_NO_THROW(packed_attention(qkv, heads, start({0, 3}), {}));
  EXPECT_THROW(packed_attention(qkv, heads, start({0, 4}), {}), Error);
  EXPECT_THROW(packed_attention(qkv, heads, start({1, 3}), {}), Error);
  EXPECT_THROW(packed_attention(qkv, heads, start({0, 2, 1}), {}), Error);
  EXPECT_THROW(packed_attention(qkv, heads, {}, {}), Error);
  EXPECT_THROW(packed_attention(qkv, {3, 1, 4}, start({0, 3}), {}), Error);
  EXPECT_THROW(packed_attention(qkv, {3, 2, 4}, start({0, 3}), {}), Error);
  const QkNormRopeArgs rope{.cos_sin = random_values({2, 4}, 1)};
  EXPECT_THROW(qk_norm_rope(qkv, Tensor::from_vector<int32_t>({0, 1, 2}), heads, rope), Error);
}

TEST(PagedAttention, RefusesGradients) {
  const Tensor qkv = random_values({1, 16}, 1), dqkv = Tensor::zeros({1, 16}, DType::kF32);
  PagedKv kv{Tensor::zeros({1, 1, 4, 4}, DType::kF32), Tensor::zeros({1, 1, 4, 4}, DType::kF32)};
  const Tensor zero = Tensor::from_vector<int32_t>({0});
  EXPECT_NO_THROW(qk_norm_rope_cache(qkv, zero, zero, kv, {}));
  Tape tape;
  tape.watch(qkv, dqkv);
  EXPECT_THROW(qk_norm_rope_cache(qkv, zero, zero, kv, {}), Error);
}

}  // namespace
}  // namespace reft
