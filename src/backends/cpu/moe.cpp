// Mixture of experts: routing here, the products by the kernels of `linear`, one expert after the
// other with all threads on each.
#include "ops/moe.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "backends/cpu/linear_pack.h"
#include "backends/cpu/simd.h"
#include "base/thread_pool.h"
#include "ops/embedding.h"

namespace reft {
namespace {

// ---- routing

constexpr float kLowest = -std::numeric_limits<float>::infinity();

// What a token's experts are chosen and weighted by, one token at a time.
class TokenRouter {
 public:
  TokenRouter(const RouterOptions& options, int64_t experts, const float* bias)
      : o_(options), bias_(bias), scores_(size(experts)), choice_(size(experts)) {}

  void route(const float* logits, int32_t* chosen, float* weights) {
    score(logits);
    for (size_t e = 0; e < choice_.size(); ++e) {
      const float c = scores_[e] + (bias_ != nullptr ? bias_[e] : 0.0f);
      choice_[e] = std::isnan(c) ? kLowest : c;
    }
    if (o_.num_groups > 1) exclude_groups();
    for (int64_t j = 0; j < o_.top_k; ++j) {
      chosen[j] = take_best(choice_);
      weights[j] = scores_[size(chosen[j])];
    }
    finish(weights);
  }

 private:
  static size_t size(int64_t n) { return static_cast<size_t>(n); }

  void score(const float* logits) {
    if (o_.score == RouterScore::kSoftmaxOfTopK) {
      std::copy_n(logits, scores_.size(), scores_.begin());
      return;
    }
    if (o_.score == RouterScore::kSigmoid) {
      for (size_t e = 0; e < scores_.size(); ++e) scores_[e] = 1.0f / (1.0f + std::exp(-logits[e]));
      return;
    }
    const float top = *std::max_element(logits, logits + scores_.size());
    float sum = 0;
    for (size_t e = 0; e < scores_.size(); ++e) sum += scores_[e] = std::exp(logits[e] - top);
    for (float& s : scores_) s /= sum;
  }

  // The first of the largest; it is marked as taken by a NaN, below which nothing is.
  static int32_t take_best(std::vector<float>& values) {
    size_t best = values.size();
    for (size_t i = 0; i < values.size(); ++i) {
      if (!std::isnan(values[i]) && (best == values.size() || values[i] > values[best])) best = i;
    }
    values[best] = NAN;
    return static_cast<int32_t>(best);
  }

  void exclude_groups() {
    const size_t per_group = choice_.size() / size(o_.num_groups);
    std::vector<float> groups(size(o_.num_groups));
    for (size_t g = 0; g < groups.size(); ++g) {
      const auto begin = choice_.begin() + static_cast<int64_t>(g * per_group);
      std::vector<float> sorted(begin, begin + static_cast<int64_t>(per_group));
      std::ranges::sort(sorted, std::greater<>());
      for (int64_t i = 0; i < o_.group_best; ++i) groups[g] += sorted[size(i)];
    }
    for (int64_t i = 0; i < o_.top_groups; ++i) take_best(groups);
    for (size_t e = 0; e < choice_.size(); ++e) {
      if (!std::isnan(groups[e / per_group])) choice_[e] = NAN;
    }
  }

  void finish(float* weights) const {
    const int64_t k = o_.top_k;
    if (o_.score == RouterScore::kSoftmaxOfTopK) {
      const float top = *std::max_element(weights, weights + k);
      for (int64_t j = 0; j < k; ++j) weights[j] = std::exp(weights[j] - top);
    }
    float sum = o_.score == RouterScore::kSigmoid ? 1e-20f : 0.0f;
    for (int64_t j = 0; j < k; ++j) sum += weights[j];
    const bool divide = o_.renormalize || o_.score == RouterScore::kSoftmaxOfTopK;
    for (int64_t j = 0; j < k; ++j)
      weights[j] = (divide ? weights[j] / sum : weights[j]) * o_.scale;
  }

  const RouterOptions& o_;
  const float* bias_;
  std::vector<float> scores_, choice_;
};

// In the order of the pairs within each expert.
void sort_by_expert(Routing& routing) {
  const int64_t pairs = routing.num_rows();
  const int32_t* expert = routing.experts.data<int32_t>();
  int32_t* offsets = routing.offsets.data<int32_t>();
  std::fill_n(offsets, routing.num_experts + 1, 0);
  for (int64_t p = 0; p < pairs; ++p) ++offsets[expert[p] + 1];
  for (int64_t e = 0; e < routing.num_experts; ++e) offsets[e + 1] += offsets[e];
  std::vector<int32_t> next(offsets, offsets + routing.num_experts);
  for (int64_t p = 0; p < pairs; ++p) {
    const int32_t row = next[static_cast<size_t>(expert[p])]++;
    routing.rows.data<int32_t>()[p] = row;
    routing.pairs.data<int32_t>()[row] = static_cast<int32_t>(p);
  }
}

void route_cpu(Routing& routing, const Tensor& logits, const Tensor& bias,
               const RouterOptions& options) {
  const int64_t experts = logits.size(1), k = options.top_k;
  const int64_t grain = std::max<int64_t>(1, 16384 / (experts * k));
  compute_pool().parallel_for(logits.size(0), grain, [&](int64_t begin, int64_t end) {
    TokenRouter router(options, experts, bias.defined() ? bias.data<float>() : nullptr);
    for (int64_t t = begin; t < end; ++t) {
      router.route(logits.data<float>() + t * experts, routing.experts.data<int32_t>() + t * k,
                   routing.weights.data<float>() + t * k);
    }
  });
  sort_by_expert(routing);
}

// With s the scores, S their sum over the chosen ones and v = dweights · scale:
//   renormalised   ds[j] = (v[j] − Σ v s / S) / S, else ds = v
//   softmax        dlogits[e] = p[e] (ds[e] − Σ ds p), ds zero where not chosen
//   sigmoid        dlogits[e] = ds[e] s (1 − s)
//   softmax of the chosen: the first form with s = exp(logit), times s
void route_backward_cpu(const GradientSlot& dlogits, const Tensor& dweights, const Tensor& logits,
                        const Tensor& experts, const RouterOptions& o) {
  const int64_t n = logits.size(1), k = o.top_k;
  compute_pool().parallel_for(logits.size(0), 16, [&](int64_t begin, int64_t end) {
    std::vector<double> s(static_cast<size_t>(k)), ds(static_cast<size_t>(k));
    for (int64_t t = begin; t < end; ++t) {
      const float* z = logits.data<float>() + t * n;
      const float* v = dweights.data<float>() + t * k;
      const int32_t* chosen = experts.data<int32_t>() + t * k;
      float* to = dlogits.tensor.data<float>() + t * dlogits.tensor.stride(0);
      if (!dlogits.accumulate) std::fill_n(to, n, 0.0f);
      const double top = *std::max_element(z, z + n);
      double all = 0;  // of the softmax
      for (int64_t e = 0; e < n; ++e) all += std::exp(z[e] - top);
      double sum = o.score == RouterScore::kSigmoid ? 1e-20 : 0.0, product = 0;
      for (size_t j = 0; j < s.size(); ++j) {
        const double logit = z[chosen[j]];
        s[j] = o.score == RouterScore::kSigmoid ? 1 / (1 + std::exp(-logit))
                                                : std::exp(logit - top) / all;
        sum += s[j];
        product += double{v[j]} * s[j];
      }
      const bool divide = o.renormalize || o.score == RouterScore::kSoftmaxOfTopK;
      double mean = 0;  // Σ ds p
      for (size_t j = 0; j < s.size(); ++j) {
        ds[j] = o.scale * (divide ? (v[j] - product / sum) / sum : double{v[j]});
        mean += ds[j] * s[j];
      }
      if (o.score == RouterScore::kSoftmax && !divide) {
        for (int64_t e = 0; e < n; ++e)
          to[e] -= static_cast<float>(std::exp(z[e] - top) / all * mean);
      }
      for (size_t j = 0; j < s.size(); ++j) {
        const double slope = o.score == RouterScore::kSigmoid ? 1 - s[j] : 1;
        to[chosen[j]] += static_cast<float>(ds[j] * s[j] * slope);
      }
    }
  });
}

// ---- products

void place_expert_cpu(ExpertWeights& weights, int64_t e, const Tensor& matrix, Device,
                      DType compute) {
  if (weights.packed.empty()) weights.packed.resize(static_cast<size_t>(weights.num_experts));
  weights.packed[static_cast<size_t>(e)] = cpu::pack_weight(matrix, compute, cpu_features());
}

// As `linear` knows it: [N, K], or [K, N] where transposed.
Weight expert_weight(const ExpertWeights& w, int64_t e) {
  Weight one;
  one.dtype = w.dtype;
  one.out_features = w.transposed ? w.in_features : w.out_features;
  one.in_features = w.transposed ? w.out_features : w.in_features;
  if (!w.packed.empty()) {
    one.packed = w.packed[static_cast<size_t>(e)];
  } else {
    one.data = w.data.rows(e, e + 1).reshape({one.out_features, one.in_features});
  }
  return one;
}

// Calls f(e, begin, end) for the experts that have rows.
void for_each_expert(const Routing& routing,
                     FunctionRef<void(int64_t e, int64_t begin, int64_t end)> f) {
  const int32_t* offsets = routing.offsets.data<int32_t>();
  for (int64_t e = 0; e < routing.num_experts; ++e) {
    if (offsets[e + 1] > offsets[e]) f(e, offsets[e], offsets[e + 1]);
  }
}

int64_t token_of(const Routing& routing, int64_t row) {
  return routing.pairs.data<int32_t>()[row] / routing.top_k();
}

// Rows [begin, end) of what an expert multiplies: a view where they lie together.
Tensor input_rows(const Tensor& x, ExpertInput input, const Routing& routing, int64_t begin,
                  int64_t end) {
  if (input == ExpertInput::kRows) return x.rows(begin, end);
  const int64_t first = token_of(routing, begin);
  if (end == begin + 1) return x.rows(first, first + 1);
  std::vector<int32_t> tokens;
  for (int64_t r = begin; r < end; ++r)
    tokens.push_back(static_cast<int32_t>(token_of(routing, r)));
  Tensor rows = Tensor::empty({end - begin, x.size(1)}, x.dtype());
  gather_rows_kernel(kCpuDevice, rows, x, Tensor::from_vector(tokens));
  return rows;
}

void expert_linear_cpu(Tensor& y, const Tensor& x, ExpertInput input, const Routing& routing,
                       const ExpertWeights& weights, const Tensor& bias) {
  for_each_expert(routing, [&](int64_t e, int64_t begin, int64_t end) {
    Tensor to = y.rows(begin, end);
    const Tensor from = input_rows(x, input, routing, begin, end);
    const Weight weight = expert_weight(weights, e);
    const Tensor own_bias = bias.defined() ? bias.rows(e, e + 1).reshape({bias.size(1)}) : Tensor();
    if (!weights.transposed) return linear_kernel(kCpuDevice, to, from, weight, own_bias);
    linear_input_backward_kernel(kCpuDevice, {to, false}, from, weight);
    if (!bias.defined()) return;
    for (int64_t r = 0; r < end - begin; ++r)
      simd_kernels().add(to.data<float>() + r * to.stride(0), own_bias.data<float>(), to.size(1));
  });
}

void expert_input_backward_cpu(const GradientSlot& dx, const Tensor& dy, ExpertInput input,
                               const Routing& routing, const ExpertWeights& weights) {
  if (input == ExpertInput::kTokens && !dx.accumulate) dx.tensor.fill_zero();
  for_each_expert(routing, [&](int64_t e, int64_t begin, int64_t end) {
    const Weight weight = expert_weight(weights, e);
    Tensor own = Tensor::empty({end - begin, weights.in_features}, DType::kF32);
    const Tensor from = dy.rows(begin, end);
    if (weights.transposed) {
      linear_kernel(kCpuDevice, own, from, weight, {});
    } else {
      linear_input_backward_kernel(kCpuDevice, {own, false}, from, weight);
    }
    // A token has an expert once, so rows of one expert go to different places.
    compute_pool().parallel_for(end - begin, 16, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) {
        const bool tokens = input == ExpertInput::kTokens;
        const int64_t row = tokens ? token_of(routing, begin + r) : begin + r;
        float* to = dx.tensor.data<float>() + row * dx.tensor.stride(0);
        const float* part = own.data<float>() + r * own.stride(0);
        if (tokens || dx.accumulate)
          simd_kernels().add(to, part, own.size(1));
        else
          std::copy_n(part, own.size(1), to);
      }
    });
  });
}

void expert_weight_backward_cpu(const GradientSlot& dw, const Tensor& dy, const Tensor& x,
                                ExpertInput input, const Routing& routing,
                                const ExpertWeights& weights) {
  if (!dw.accumulate) dw.tensor.fill_zero();  // experts that nobody chose
  for_each_expert(routing, [&](int64_t e, int64_t begin, int64_t end) {
    const Tensor matrix = dw.tensor.rows(e, e + 1);
    const GradientSlot slot{matrix.reshape({matrix.size(1), matrix.size(2)}), true};
    const Tensor from = input_rows(x, input, routing, begin, end), out = dy.rows(begin, end);
    linear_weight_backward_kernel(kCpuDevice, slot, weights.transposed ? from : out,
                                  weights.transposed ? out : from, weights.dtype);
  });
}

void expert_bias_backward_cpu(const GradientSlot& dbias, const Tensor& dy, const Routing& routing) {
  if (!dbias.accumulate) dbias.tensor.fill_zero();
  for_each_expert(routing, [&](int64_t e, int64_t begin, int64_t end) {
    const Tensor row = dbias.tensor.rows(e, e + 1);
    column_sums_kernel(kCpuDevice, {row.reshape({row.size(1)}), true}, dy.rows(begin, end));
  });
}

// ---- combination

// Elements that take a thread about as long as handing them out.
int64_t token_grain(int64_t elements) { return std::max<int64_t>(1, 8192 / elements); }

void combine_experts_cpu(Tensor& y, const Tensor& x, const Routing& routing) {
  const auto& simd = simd_kernels();
  const int64_t d = x.size(1), k = routing.top_k();
  const int32_t* rows = routing.rows.data<int32_t>();
  const float* weights = routing.weights.data<float>();
  compute_pool().parallel_for(y.size(0), token_grain(d * k), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* to = y.data<float>() + t * d;
      std::fill_n(to, d, 0.0f);
      for (int64_t p = t * k; p < (t + 1) * k; ++p)
        simd.add_scaled(to, x.data<float>() + rows[p] * d, weights[p], d);
    }
  });
}

void combine_experts_backward_cpu(const GradientSlot& dx, const GradientSlot& dweights,
                                  const Tensor& dy, const Tensor& x, const Routing& routing) {
  const auto& simd = simd_kernels();
  const int64_t d = x.size(1), k = routing.top_k();
  const int32_t* rows = routing.rows.data<int32_t>();
  compute_pool().parallel_for(dy.size(0), token_grain(d * k), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* from = dy.data<float>() + t * dy.stride(0);
      for (int64_t p = t * k; p < (t + 1) * k; ++p) {
        if (dx) {
          float* to = dx.tensor.data<float>() + rows[p] * dx.tensor.stride(0);
          if (!dx.accumulate) std::fill_n(to, d, 0.0f);
          simd.add_scaled(to, from, routing.weights.data<float>()[p], d);
        }
        if (dweights) {
          const float* value = x.data<float>() + rows[p] * d;
          double dot = 0;
          for (int64_t i = 0; i < d; ++i) dot += double{from[i]} * value[i];
          float& to = dweights.tensor.data<float>()[p];
          to = (dweights.accumulate ? to : 0.0f) + static_cast<float>(dot);
        }
      }
    }
  });
}

// ---- the gate of a shared expert

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

void sigmoid_scale_rows_cpu(Tensor& y, const Tensor& x, const Tensor& gate) {
  const int64_t d = x.size(1);
  compute_pool().parallel_for(x.size(0), token_grain(d), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float scale = sigmoid(gate.data<float>()[t * gate.stride(0)]);
      for (int64_t i = t * d; i < (t + 1) * d; ++i) y.data<float>()[i] = x.data<float>()[i] * scale;
    }
  });
}

void sigmoid_scale_rows_backward_cpu(const GradientSlot& dx, const GradientSlot& dgate,
                                     const Tensor& dy, const Tensor& x, const Tensor& gate) {
  const int64_t d = x.size(1);
  compute_pool().parallel_for(x.size(0), token_grain(d), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float scale = sigmoid(gate.data<float>()[t * gate.stride(0)]);
      const float* from = dy.data<float>() + t * dy.stride(0);
      if (dx) {
        float* to = dx.tensor.data<float>() + t * dx.tensor.stride(0);
        for (int64_t i = 0; i < d; ++i) to[i] = (dx.accumulate ? to[i] : 0.0f) + from[i] * scale;
      }
      if (dgate) {
        double dot = 0;
        for (int64_t i = 0; i < d; ++i) dot += double{from[i]} * x.data<float>()[t * d + i];
        float& to = dgate.tensor.data<float>()[t * dgate.tensor.stride(0)];
        to = (dgate.accumulate ? to : 0.0f) + static_cast<float>(dot * scale * (1.0f - scale));
      }
    }
  });
}

// ---- gate and up

// Column 2i of a row of pairs is column i of the halves, column 2i + 1 is column F + i.
void split_pairs_cpu(Tensor& y, const Tensor& x) {
  const int64_t f = x.size(1) / 2;
  compute_pool().parallel_for(x.size(0), token_grain(2 * f), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* from = x.data<float>() + t * 2 * f;
      float* to = y.data<float>() + t * 2 * f;
      for (int64_t i = 0; i < f; ++i) {
        to[i] = from[2 * i];
        to[f + i] = from[2 * i + 1];
      }
    }
  });
}

void split_pairs_backward_cpu(const GradientSlot& dx, const Tensor& dy) {
  const int64_t f = dy.size(1) / 2;
  compute_pool().parallel_for(dy.size(0), token_grain(2 * f), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* from = dy.data<float>() + t * dy.stride(0);
      float* to = dx.tensor.data<float>() + t * dx.tensor.stride(0);
      for (int64_t i = 0; i < f; ++i) {
        to[2 * i] = (dx.accumulate ? to[2 * i] : 0.0f) + from[i];
        to[2 * i + 1] = (dx.accumulate ? to[2 * i + 1] : 0.0f) + from[f + i];
      }
    }
  });
}

const RegisterKernel r1(route_kernel, DeviceType::kCpu, &route_cpu);
const RegisterKernel r2(route_backward_kernel, DeviceType::kCpu, &route_backward_cpu);
const RegisterKernel r3(place_expert_kernel, DeviceType::kCpu, &place_expert_cpu);
const RegisterKernel r4(expert_linear_kernel, DeviceType::kCpu, &expert_linear_cpu);
const RegisterKernel r5(expert_input_backward_kernel, DeviceType::kCpu, &expert_input_backward_cpu);
const RegisterKernel r6(expert_weight_backward_kernel, DeviceType::kCpu,
                        &expert_weight_backward_cpu);
const RegisterKernel r7(expert_bias_backward_kernel, DeviceType::kCpu, &expert_bias_backward_cpu);
const RegisterKernel r8(combine_experts_kernel, DeviceType::kCpu, &combine_experts_cpu);
const RegisterKernel r9(combine_experts_backward_kernel, DeviceType::kCpu,
                        &combine_experts_backward_cpu);
const RegisterKernel r10(sigmoid_scale_rows_kernel, DeviceType::kCpu, &sigmoid_scale_rows_cpu);
const RegisterKernel r11(sigmoid_scale_rows_backward_kernel, DeviceType::kCpu,
                         &sigmoid_scale_rows_backward_cpu);
const RegisterKernel r12(split_pairs_kernel, DeviceType::kCpu, &split_pairs_cpu);
const RegisterKernel r13(split_pairs_backward_kernel, DeviceType::kCpu, &split_pairs_backward_cpu);

}  // namespace
}  // namespace reft
