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
  AttentionBatch batch(Device device = kCpuDevice) const {
    std::vector<int32_t> start = {0};
    for (const int32_t length : lengths) start.push_back(start.back() + length);
    return {.query_start = Tensor::from_vector(start).to(device)};
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

// Weights and result are rounded; the result is a mean of values of about 1.
double attention_tolerance(DType dtype) {
  return dtype == DType::kF32 ? 4e-6 : 2 * 2 * unit_roundoff(dtype);
}

TEST(PackedAttention, MatchesOracle) {
  for (const Device device : test_devices()) {
    for (const DType dtype : activation_dtypes(device)) {
      for (const PackedCase& c : kCases) {
        const Tensor qkv = random_values({c.tokens(), c.width()}, 1).to(dtype);
        const Tensor sinks = random_values({c.heads.num_heads}, 2);
        expect_close(packed_attention(qkv.to(device), c.heads, c.batch(device),
                                      with_sinks(c, sinks.to(device))),
                     attention_oracle(c, doubles(qkv), c.sinks ? doubles(sinks) : Doubles()),
                     attention_tolerance(dtype), c.str() + dtype_name(dtype));
      }
    }
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
               return packed_attention(in[0], c.heads, c.batch(in[0].device()),
                                       with_sinks(c, in.back()));
             },
         .oracle =
             [&](auto& in) { return attention_oracle(c, in[0], c.sinks ? in[1] : Doubles()); },
         // the result, the weights, the gradients of the scores, and the gradient
         .roundings = 4});
  }
}

struct AttentionGradients {
  Doubles qkv, sinks;
};

// The same gradients by the formulas, which unlike differences are quick enough for long documents.
AttentionGradients attention_gradients(const PackedCase& c, const Doubles& qkv,
                                       const Doubles& sinks, const Doubles& dout) {
  const auto [heads, kv_heads, dims] = c.heads;
  AttentionGradients g{Doubles(qkv.size()), Doubles(sinks.size())};
  int64_t start = 0;
  for (const int32_t length : c.lengths) {
    for (int64_t t = 0; t < length; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t first = c.args.window > 0 ? std::max<int64_t>(0, t - c.args.window + 1) : 0;
        const auto place = [&](int64_t token, int64_t head) {
          return static_cast<size_t>((start + token) * c.width() + head * dims);
        };
        const int64_t key_head = heads + h / (heads / kv_heads);
        const size_t q = place(t, h);
        const double* d = &dout[static_cast<size_t>(((start + t) * heads + h) * dims)];
        const auto count = static_cast<size_t>(t - first + 1);
        Doubles p(count), dp(count), bend(count, 1.0);
        double sum = sinks.empty() ? 0 : std::exp(sinks[static_cast<size_t>(h)]), delta = 0;
        for (size_t i = 0; i < count; ++i) {
          const size_t k = place(first + static_cast<int64_t>(i), key_head);
          const size_t v = k + static_cast<size_t>(kv_heads * dims);
          double score = 0;
          for (size_t e = 0; e < static_cast<size_t>(dims); ++e) {
            score += qkv[q + e] * qkv[k + e];
            dp[i] += d[e] * qkv[v + e];
          }
          score *= c.args.scale;
          if (const double cap = c.args.soft_cap; cap > 0) {
            const double bent = std::tanh(score / cap);
            score = cap * bent;
            bend[i] = 1 - bent * bent;
          }
          p[i] = std::exp(score);
          sum += p[i];
        }
        for (size_t i = 0; i < count; ++i) delta += (p[i] /= sum) * dp[i];
        if (!sinks.empty()) {
          const auto head = static_cast<size_t>(h);
          g.sinks[head] -= std::exp(sinks[head]) / sum * delta;
        }
        for (size_t i = 0; i < count; ++i) {
          const size_t k = place(first + static_cast<int64_t>(i), key_head);
          const size_t v = k + static_cast<size_t>(kv_heads * dims);
          const double ds = p[i] * (dp[i] - delta) * bend[i] * c.args.scale;
          for (size_t e = 0; e < static_cast<size_t>(dims); ++e) {
            g.qkv[q + e] += ds * qkv[k + e];
            g.qkv[k + e] += ds * qkv[q + e];
            g.qkv[v + e] += p[i] * d[e];
          }
        }
      }
    }
    start += length;
  }
  return g;
}

// Documents of several tiles of keys and queries, in every form that a device has for head dims.
const std::vector<PackedCase> kLongCases = {
    {{300}, {2, 1, 64}, {.scale = 0.125f}},
    {{129, 70, 1, 64, 128}, {4, 2, 64}, {.scale = 0.125f}, false, 5},
    {{200, 33}, {2, 2, 80}, {.scale = 0.11f}},
    {{150}, {3, 1, 96}, {.scale = 0.1f, .window = 40}},
    {{517}, {4, 2, 128}, {.scale = 0.09f}},
    {{260, 140}, {2, 1, 128}, {.scale = 0.09f, .window = 100}, true},
    {{190}, {2, 1, 128}, {.scale = 0.2f, .soft_cap = 3.0f}, true},
    {{5, 250}, {2, 1, 256}, {.scale = 0.06f, .soft_cap = 5.0f, .window = 130}},
    {{210}, {4, 4, 256}, {.scale = 0.06f}},
};

TEST(PackedAttention, LongDocumentsMatchTheFormulas) {
  for (const PackedCase& c : kLongCases) {
    for (const Device device : test_devices()) {
      for (const DType dtype : activation_dtypes(device)) {
        const std::string what = fmt::format("{} {} {}", c.str(), device, dtype_name(dtype));
        const Tensor qkv = random_values({c.tokens(), c.width()}, 1).to(dtype);
        const Tensor sinks = random_values({c.heads.num_heads}, 2);
        const Tensor here = qkv.to(device), sinks_here = sinks.to(device);
        const Tensor dqkv = Tensor::zeros(qkv.shape(), dtype, device);
        const Tensor dsinks = Tensor::zeros(sinks.shape(), DType::kF32, device);
        const Doubles exact_sinks = c.sinks ? doubles(sinks) : Doubles();
        std::vector<float> before;
        for (int run = 0; run < 2; ++run) {
          dqkv.fill_zero();
          dsinks.fill_zero();
          Tape tape;
          tape.watch(here, dqkv);
          if (c.sinks) tape.watch(sinks_here, dsinks);
          const Tensor out =
              packed_attention(here, c.heads, c.batch(device), with_sinks(c, sinks_here));
          const Tensor seed = random_values(out.shape(), 5).to(dtype);
          tape.backward(out, seed.to(device));
          const std::vector<float> gradient =
              dqkv.to(kCpuDevice).to(DType::kF32).to_vector<float>();
          if (run > 0) {
            ASSERT_EQ(gradient, before) << what << ", again";
            break;
          }
          before = gradient;
          expect_close(out, attention_oracle(c, doubles(qkv), exact_sinks),
                       attention_tolerance(dtype), what);
          const AttentionGradients want =
              attention_gradients(c, doubles(qkv), exact_sinks, doubles(seed));
          const auto largest = [](const Doubles& values) {
            double most = 1e-30;
            for (const double v : values) most = std::max(most, std::abs(v));
            return most;
          };
          // The result, the weights, the gradients of the scores, and the gradient are rounded.
          const double tolerance = dtype == DType::kF32 ? 1e-5 : 2 * 4 * unit_roundoff(dtype);
          expect_close(dqkv, want.qkv, tolerance, what + ", dqkv", largest(want.qkv));
          if (c.sinks)
            expect_close(dsinks, want.sinks, tolerance, what + ", dsinks", largest(want.sinks));
        }
      }
    }
  }
}

TEST(PackedAttention, FormulasOfTheTestMatchDifferences) {
  for (const PackedCase& c : kCases) {
    Doubles qkv = doubles(random_values({c.tokens(), c.width()}, 1));
    const Doubles sinks = c.sinks ? doubles(random_values({c.heads.num_heads}, 2)) : Doubles();
    const Doubles dout =
        doubles(random_values({c.tokens(), c.heads.num_heads * c.heads.head_dim}, 3));
    const auto loss = [&] {
      const Doubles y = attention_oracle(c, qkv, sinks);
      return std::inner_product(y.begin(), y.end(), dout.begin(), 0.0);
    };
    const AttentionGradients g = attention_gradients(c, qkv, sinks, dout);
    for (size_t i = 0; i < qkv.size(); i += 1 + qkv.size() / 50) {
      const double at = std::exchange(qkv[i], qkv[i] + 1e-5), above = (loss());
      qkv[i] = at - 1e-5;
      EXPECT_NEAR(g.qkv[i], (above - loss()) / 2e-5, 1e-6) << c.str() << " [" << i << "]";
      qkv[i] = at;
    }
  }
}

// What one document holds changes no bit of another's results and gradients.
TEST(PackedAttention, DocumentsDoNotTouch) {
  for (const Device device : test_devices()) {
    for (const DType dtype : activation_dtypes(device)) {
      for (const int64_t dims : {16, 64, 128}) {
        const PackedCase c{{37, 150, 20}, {6, 2, dims}, {.scale = 0.1f}};
        const auto run = [&](float change) {
          const Tensor values = random_values({c.tokens(), c.width()}, 1);
          for (int64_t i = 0; i < 37 * c.width(); ++i) values.data<float>()[i] *= change;
          const Tensor qkv = values.to(dtype).to(device);
          const Tensor dqkv = Tensor::zeros(qkv.shape(), dtype, device);
          Tape tape;
          tape.watch(qkv, dqkv);
          const Tensor out = packed_attention(qkv, c.heads, c.batch(device), c.args);
          tape.backward(out, random_values(out.shape(), 5).to(dtype).to(device));
          return std::pair(doubles(out.rows(37, c.tokens())), doubles(dqkv.rows(37, c.tokens())));
        };
        EXPECT_EQ(run(1.0f), run(3.0f)) << dims << " " << dtype_name(dtype);
      }
    }
  }
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
                            {{2, 1, 8}, 0, false, false, false, NormKind::kPlain},
                            {{2, 1, 64}, 64, false, true, true, NormKind::kPlain},
                            {{1, 1, 128}, 128, false, true, false, NormKind::kOnePlus},
                            {{1, 1, 256}, 256, false, false, true, NormKind::kPlain}}) {
    for (const std::vector<int32_t>& positions :
         {std::vector<int32_t>{}, {4}, std::vector<int32_t>(70, 3), {0, 1, 2, 0, 1}}) {
      if (c.heads.head_dim >= 64 && positions.size() > 5) continue;  // differences take long
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
        if (c.rotary > 0) args.cos_sin = beside(table, in[0]);
        if (c.q_norm) args.q_weight = in[1];
        if (c.k_norm) args.k_weight = in.back();
        return qk_norm_rope(in[0], beside(index, in[0]), c.heads, args);
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
