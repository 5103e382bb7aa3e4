#include "ops/optimizer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "backends/cpu/isa.h"
#include "backends/cpu/optimizer_loops.h"
#include "base/thread_pool.h"

namespace reft {

const OptimizerLoops& optimizer_loops() {
  static const OptimizerLoops& chosen = []() -> const OptimizerLoops& {
#if defined(__x86_64__)
    if (cpu_features().avx512) return kOptimizerAvx512;
    if (cpu_features().avx2) return kOptimizerAvx2;
#endif
    return kOptimizerGeneric;
  }();
  return chosen;
}

namespace {

constexpr int64_t kChunk = 16384;  // elements that a thread takes at a time; whole groups
static_assert(kChunk % kGroup == 0 && kChunk % kAdam8Block == 0 && kAdam8Block % kGroup == 0);

template <class F>
void for_chunks(int64_t n, F f) {
  compute_pool().parallel_for((n + kChunk - 1) / kChunk, 1, [&](int64_t begin, int64_t end) {
    f(begin * kChunk, std::min(end * kChunk, n));
  });
}

ParameterData data_of(const Tensor& value, const Tensor& master, const RoundingRng& rng) {
  if (value.dtype() == DType::kF32) return {value.data<float>(), nullptr, rng};
  return {master.defined() ? master.data<float>() : nullptr, value.data<bf16>(), rng};
}

AdamRates rates_of(const AdamWArgs& args) {
  const auto t = static_cast<double>(args.step);
  const double correction1 = 1 - std::pow(args.beta1, t), correction2 = 1 - std::pow(args.beta2, t);
  return {.grad_scale = static_cast<float>(args.grad_scale),
          .one_minus_beta1 = static_cast<float>(1 - args.beta1),
          .beta2 = static_cast<float>(args.beta2),
          .one_minus_beta2 = static_cast<float>(1 - args.beta2),
          .decay = static_cast<float>(1 - args.learning_rate * args.weight_decay),
          .step_size = static_cast<float>(args.learning_rate / correction1),
          .v_scale = static_cast<float>(1 / std::sqrt(correction2)),
          .eps = static_cast<float>(args.eps)};
}

void adamw_cpu(Tensor& value, Tensor& master, Tensor& m, Tensor& v, const Tensor& grad,
               const AdamWArgs& args) {
  const ParameterData p = data_of(value, master, args.rng);
  AdamMoments moments{};
  if (m.dtype() == DType::kF32) {
    moments.m_exact = m.data<float>();
    moments.v_exact = v.data<float>();
  } else {
    moments.m_rounded = m.data<bf16>();
    moments.v_rounded = v.data<bf16>();
  }
  const float* g = grad.data<float>();
  const AdamRates rates = rates_of(args);
  for_chunks(value.numel(), [&](int64_t begin, int64_t end) {
    optimizer_loops().adamw(p, moments, g, rates, begin, end);
  });
}

void adamw_8bit_cpu(Tensor& value, Tensor& master, Adam8State& state, const Tensor& grad,
                    const AdamWArgs& args) {
  const ParameterData p = data_of(value, master, args.rng);
  const Adam8Moments moments = {state.m.data<int8_t>(), state.v.data<uint8_t>(),
                                state.m_scale.data<float>(), state.v_scale.data<float>()};
  const float* g = grad.data<float>();
  const AdamRates rates = rates_of(args);
  for_chunks(value.numel(), [&](int64_t begin, int64_t end) {
    optimizer_loops().adamw_8bit(p, moments, g, rates, begin, end);
  });
}

void sgd_cpu(Tensor& value, Tensor& master, Tensor& buffer, const Tensor& grad,
             const SgdArgs& args) {
  const ParameterData p = data_of(value, master, args.rng);
  float* b = buffer.defined() ? buffer.data<float>() : nullptr;
  const float* g = grad.data<float>();
  const SgdRates rates = {static_cast<float>(args.grad_scale), static_cast<float>(args.momentum),
                          static_cast<float>(args.weight_decay),
                          static_cast<float>(args.learning_rate)};
  for_chunks(value.numel(), [&](int64_t begin, int64_t end) {
    optimizer_loops().sgd(p, b, g, rates, begin, end);
  });
}

void muon_momentum_cpu(Tensor& update, Tensor& buffer, const Tensor& grad, double momentum,
                       double grad_scale) {
  float* u = update.data<float>();
  float* b = buffer.data<float>();
  const float* g = grad.data<float>();
  for_chunks(update.numel(), [&](int64_t begin, int64_t end) {
    optimizer_loops().muon_momentum(u, b, g, static_cast<float>(momentum),
                                    static_cast<float>(grad_scale), begin, end);
  });
}

void apply_update_cpu(Tensor& value, Tensor& master, const Tensor& update, double rate,
                      double decay, const RoundingRng& rng) {
  const ParameterData p = data_of(value, master, rng);
  const float* u = update.data<float>();
  for_chunks(value.numel(), [&](int64_t begin, int64_t end) {
    optimizer_loops().apply_update(p, u, static_cast<float>(rate), static_cast<float>(decay), begin,
                                   end);
  });
}

// Sums of chunks, added up in the order of the chunks.
double square_sum_of(const float* x, int64_t n) {
  std::vector<double> sums(static_cast<size_t>((n + kChunk - 1) / kChunk));
  for_chunks(n, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; at += kChunk) {
      sums[static_cast<size_t>(at / kChunk)] =
          optimizer_loops().square_sum(x + at, std::min(kChunk, end - at));
    }
  });
  double sum = 0;
  for (const double s : sums) sum += s;
  return sum;
}

void square_sums_cpu(Tensor& sums, std::span<const Tensor> tensors) {
  auto* out = reinterpret_cast<double*>(sums.raw());
  for (const Tensor& t : tensors) *out++ = square_sum_of(t.data<float>(), t.numel());
}

// out: [n, m] = the transpose of x: [m, n].
void transpose(float* out, const float* x, int64_t m, int64_t n) {
  constexpr int64_t kTile = 32;
  compute_pool().parallel_for((n + kTile - 1) / kTile, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i0 = 0; i0 < m; i0 += kTile) {
      for (int64_t j = begin * kTile; j < std::min(end * kTile, n); ++j) {
        for (int64_t i = i0; i < std::min(i0 + kTile, m); ++i) out[j * m + i] = x[i * n + j];
      }
    }
  });
}

// c = alpha a b + beta d; a: [m, k], b: [k, n].
void multiply(Tensor& c, const Tensor& a, const Tensor& b, const Tensor& d, float alpha,
              float beta) {
  constexpr int64_t kRows = 48;
  const int64_t n = b.size(1), k = b.size(0);
  compute_pool().parallel_for(a.size(0), kRows, [&](int64_t begin, int64_t end) {
    optimizer_loops().multiply(c.data<float>(), a.data<float>(), b.data<float>(), d.data<float>(),
                               alpha, beta, n, k, begin, end);
  });
}

void orthogonalize_cpu(Tensor& x) {
  constexpr float kA = 3.4445f, kB = -4.7750f, kC = 2.0315f;
  constexpr int kSteps = 5;
  const bool tall = x.size(0) > x.size(1);
  const int64_t m = std::min(x.size(0), x.size(1)), n = std::max(x.size(0), x.size(1));
  Tensor wide = Tensor::empty({m, n}, DType::kF32);
  if (tall) {
    transpose(wide.data<float>(), x.data<float>(), n, m);
  } else {
    wide.copy_from(x);
  }
  const double norm = std::sqrt(square_sum_of(wide.data<float>(), wide.numel()));
  const auto scale = static_cast<float>(1 / std::max(norm, 1e-7));
  for (int64_t i = 0; i < wide.numel(); ++i) wide.data<float>()[i] *= scale;

  Tensor next = Tensor::empty({m, n}, DType::kF32), turned = Tensor::empty({n, m}, DType::kF32);
  Tensor gram = Tensor::empty({m, m}, DType::kF32), mix = Tensor::zeros({m, m}, DType::kF32);
  for (int step = 0; step < kSteps; ++step) {
    transpose(turned.data<float>(), wide.data<float>(), m, n);
    multiply(gram, wide, turned, mix, 1, 0);
    multiply(mix, gram, gram, gram, kC, kB);
    multiply(next, mix, wide, wide, 1, kA);
    std::swap(next, wide);
  }
  if (tall) {
    transpose(x.data<float>(), wide.data<float>(), m, n);
  } else {
    x.copy_from(wide);
  }
}

const RegisterKernel adamw_entry(adamw_kernel, DeviceType::kCpu, &adamw_cpu);
const RegisterKernel adamw_8bit_entry(adamw_8bit_kernel, DeviceType::kCpu, &adamw_8bit_cpu);
const RegisterKernel sgd_entry(sgd_kernel, DeviceType::kCpu, &sgd_cpu);
const RegisterKernel momentum_entry(muon_momentum_kernel, DeviceType::kCpu, &muon_momentum_cpu);
const RegisterKernel update_entry(apply_update_kernel, DeviceType::kCpu, &apply_update_cpu);
const RegisterKernel sums_entry(square_sums_kernel, DeviceType::kCpu, &square_sums_cpu);
const RegisterKernel orthogonalize_entry(orthogonalize_kernel, DeviceType::kCpu,
                                         &orthogonalize_cpu);

}  // namespace
}  // namespace reft
