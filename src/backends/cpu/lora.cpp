#include "ops/lora.h"

#include <algorithm>
#include <cmath>

#include "backends/cpu/gemm.h"
#include "base/thread_pool.h"

namespace reft {
namespace {

// Columns that a thread takes at least.
int64_t column_grain(int64_t rows) {
  return std::max<int64_t>(64, 16384 / std::max<int64_t>(rows, 1));
}

void linear_add_cpu(Tensor& y, const Tensor& x, const Weight& weight) {
  const Tensor w = weight.data.to(DType::kF32);
  cpu::gemm(y.data<float>(), y.stride(0), cpu::Matrix::of(x.data<float>(), x.stride(0)),
            cpu::Matrix::of(w.data<float>(), w.stride(0)).transposed(), x.size(0),
            weight.out_features, weight.in_features, /*accumulate=*/true);
}

void adapted_row_norms_cpu(Tensor& norms, const Tensor& squared, const Tensor& projected,
                           const Tensor& gram, const Tensor& b, float scale) {
  const int64_t r = b.size(1);
  const float* g = gram.data<float>();
  compute_pool().parallel_for(norms.numel(), 64, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const float* row = b.data<float>() + n * b.stride(0);
      double cross = 0, square = 0;
      for (int64_t i = 0; i < r; ++i) {
        cross += double{row[i]} * projected.data<float>()[i * projected.stride(0) + n];
        double sum = 0;
        for (int64_t j = 0; j < r; ++j) sum += double{g[i * gram.stride(0) + j]} * row[j];
        square += row[i] * sum;
      }
      const double s = scale;
      const double total = squared.data<float>()[n] + 2 * s * cross + s * s * square;
      norms.data<float>()[n] = static_cast<float>(std::sqrt(std::max(total, 0.0)));
    }
  });
}

void dora_cpu(Tensor& y, const Tensor& u, const Tensor& magnitude, const Tensor& norms,
              const Tensor& bias) {
  compute_pool().parallel_for(y.size(1), column_grain(y.size(0)), [&](int64_t begin, int64_t end) {
    for (int64_t t = 0; t < y.size(0); ++t) {
      const float* from = u.data<float>() + t * u.stride(0);
      float* to = y.data<float>() + t * y.stride(0);
      std::copy(from + begin, from + end, to + begin);
      if (magnitude.defined()) {
        const float *m = magnitude.data<float>(), *norm = norms.data<float>();
        for (int64_t n = begin; n < end; ++n) to[n] *= m[n] / norm[n];
      }
      if (bias.defined()) {
        for (int64_t n = begin; n < end; ++n) to[n] += bias.data<float>()[n];
      }
    }
  });
}

void dora_backward_cpu(const GradientSlot& du, const GradientSlot& dmagnitude, const Tensor& dy,
                       const Tensor& u, const Tensor& magnitude, const Tensor& norms) {
  const float* m = magnitude.defined() ? magnitude.data<float>() : nullptr;
  const float* norm = magnitude.defined() ? norms.data<float>() : nullptr;
  if (dmagnitude && !dmagnitude.accumulate) dmagnitude.tensor.fill_zero();
  compute_pool().parallel_for(
      dy.size(1), column_grain(dy.size(0)), [&](int64_t begin, int64_t end) {
        for (int64_t t = 0; t < dy.size(0); ++t) {
          const float* from = dy.data<float>() + t * dy.stride(0);
          if (du) {
            float* to = du.tensor.data<float>() + t * du.tensor.stride(0);
            for (int64_t n = begin; n < end; ++n) {
              const float d = m != nullptr ? from[n] * (m[n] / norm[n]) : from[n];
              to[n] = du.accumulate ? to[n] + d : d;
            }
          }
          if (dmagnitude) {
            const float* value = u.data<float>() + t * u.stride(0);
            float* to = dmagnitude.tensor.data<float>();
            for (int64_t n = begin; n < end; ++n) to[n] += from[n] * value[n] / norm[n];
          }
        }
      });
}

const RegisterKernel add_entry(linear_add_kernel, DeviceType::kCpu, &linear_add_cpu);
const RegisterKernel norms_entry(adapted_row_norms_kernel, DeviceType::kCpu,
                                 &adapted_row_norms_cpu);
const RegisterKernel dora_entry(dora_kernel, DeviceType::kCpu, &dora_cpu);
const RegisterKernel dora_backward_entry(dora_backward_kernel, DeviceType::kCpu,
                                         &dora_backward_cpu);

}  // namespace
}  // namespace reft
