#include "ops/norm.h"

#include <algorithm>

#include "backends/cpu/simd.h"
#include "base/thread_pool.h"

namespace reft {
namespace {

// Elements that take a thread about as long as handing them out.
constexpr int64_t kGrain = 16384;

int64_t rows_of(int64_t elements, int64_t row) { return elements / row + 1; }

void rms_norm_cpu(Tensor& y, const Tensor& x, const Tensor& weight, float eps, NormKind kind) {
  const auto& simd = simd_kernels();
  const int64_t n = x.size(1);
  const float* in = x.data<float>();
  const float* w = weight.defined() ? weight.data<float>() : nullptr;
  const float offset = kind == NormKind::kOnePlus ? 1.0f : 0.0f;
  float* out = y.data<float>();
  compute_pool().parallel_for(x.size(0), rows_of(kGrain, n), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      simd.rms_norm(out + t * n, in + t * x.stride(0), w, n, eps, offset);
    }
  });
}

void add_rms_norm_cpu(Tensor& y, Tensor& residual, const Tensor& x, const Tensor& weight, float eps,
                      NormKind kind) {
  const auto& simd = simd_kernels();
  const int64_t n = x.size(1);
  const float* in = x.data<float>();
  const float* w = weight.defined() ? weight.data<float>() : nullptr;
  const float offset = kind == NormKind::kOnePlus ? 1.0f : 0.0f;
  float* sum = residual.data<float>();
  float* out = y.data<float>();
  compute_pool().parallel_for(x.size(0), rows_of(kGrain, n), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      simd.add(sum + t * n, in + t * n, n);
      simd.rms_norm(out + t * n, sum + t * n, w, n, eps, offset);
    }
  });
}

// The weight's gradient is summed over pieces of this many rows, then over the pieces in order: the
// same bits whatever the number of threads.
constexpr int64_t kPieceRows = 64;

void rms_norm_backward_cpu(const GradientSlot& dx, const GradientSlot& dweight, const Tensor& dy,
                           const Tensor& x, const Tensor& weight, float eps, NormKind kind) {
  const auto& simd = simd_kernels();
  const int64_t n = x.size(1), rows = x.size(0);
  const int64_t pieces = (rows + kPieceRows - 1) / kPieceRows;
  const float* w = weight.defined() ? weight.data<float>() : nullptr;
  const float offset = kind == NormKind::kOnePlus ? 1.0f : 0.0f;
  const Tensor partial = dweight ? Tensor::zeros({pieces, n}, DType::kF32) : Tensor();
  compute_pool().parallel_for(pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      float* sums = dweight ? partial.data<float>() + p * n : nullptr;
      for (int64_t t = p * kPieceRows; t < std::min(rows, (p + 1) * kPieceRows); ++t) {
        float* to = dx ? dx.tensor.data<float>() + t * dx.tensor.stride(0) : nullptr;
        simd.rms_norm_backward(to, dx.accumulate, sums, dy.data<float>() + t * dy.stride(0),
                               x.data<float>() + t * x.stride(0), w, n, eps, offset);
      }
    }
  });
  if (!dweight) return;
  float* sum = dweight.tensor.data<float>();
  if (!dweight.accumulate) dweight.tensor.fill_zero();
  for (int64_t p = 0; p < pieces; ++p) simd.add(sum, partial.data<float>() + p * n, n);
}

void add_into_cpu(Tensor& a, const Tensor& b) {
  const auto& simd = simd_kernels();
  float* out = a.data<float>();
  const float* in = b.data<float>();
  compute_pool().parallel_for(a.numel(), 2 * kGrain, [&](int64_t begin, int64_t end) {
    simd.add(out + begin, in + begin, end - begin);
  });
}

const RegisterKernel rms_norm_entry(rms_norm_kernel, DeviceType::kCpu, &rms_norm_cpu);
const RegisterKernel add_rms_norm_entry(add_rms_norm_kernel, DeviceType::kCpu, &add_rms_norm_cpu);
const RegisterKernel rms_norm_backward_entry(rms_norm_backward_kernel, DeviceType::kCpu,
                                             &rms_norm_backward_cpu);
const RegisterKernel add_into_entry(add_into_kernel, DeviceType::kCpu, &add_into_cpu);

}  // namespace
}  // namespace reft
