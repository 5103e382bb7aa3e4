#include "ops/norm.h"

#include <cmath>

#include "base/thread_pool.h"

namespace reft {
namespace {

void normalize_row(float* y, const float* x, const float* weight, int64_t n, float eps,
                   NormKind kind) {
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i] * x[i];
  const float scale = 1.0f / std::sqrt(sum / static_cast<float>(n) + eps);
  const float offset = kind == NormKind::kOnePlus ? 1.0f : 0.0f;
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * scale * (weight ? weight[i] + offset : 1.0f);
}

void rms_norm_cpu(Tensor& y, const Tensor& x, const Tensor& weight, float eps, NormKind kind) {
  const int64_t n = x.size(1);
  const float* in = x.data<float>();
  const float* w = weight.defined() ? weight.data<float>() : nullptr;
  float* out = y.data<float>();
  compute_pool().parallel_for(x.size(0), 16384 / n + 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      normalize_row(out + t * n, in + t * x.stride(0), w, n, eps, kind);
    }
  });
}

void add_rms_norm_cpu(Tensor& y, Tensor& residual, const Tensor& x, const Tensor& weight, float eps,
                      NormKind kind) {
  const int64_t n = x.size(1);
  const float* in = x.data<float>();
  const float* w = weight.defined() ? weight.data<float>() : nullptr;
  float* sum = residual.data<float>();
  float* out = y.data<float>();
  compute_pool().parallel_for(x.size(0), 16384 / n + 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t i = 0; i < n; ++i) sum[t * n + i] += in[t * n + i];
      normalize_row(out + t * n, sum + t * n, w, n, eps, kind);
    }
  });
}

void add_into_cpu(Tensor& a, const Tensor& b) {
  float* out = a.data<float>();
  const float* in = b.data<float>();
  compute_pool().parallel_for(a.numel(), 32768, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) out[i] += in[i];
  });
}

const RegisterKernel rms_norm_entry(rms_norm_kernel, DeviceType::kCpu, &rms_norm_cpu);
const RegisterKernel add_rms_norm_entry(add_rms_norm_kernel, DeviceType::kCpu, &add_rms_norm_cpu);
const RegisterKernel add_into_entry(add_into_kernel, DeviceType::kCpu, &add_into_cpu);

}  // namespace
}  // namespace reft
