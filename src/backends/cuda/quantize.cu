// Floats to fp8 with a scale for each row (weights at load, activations of products with fp8
// weights) or for each 128 neighbours.
#include "backends/cuda/fp8.h"
#include "ops/weight.h"

namespace reft {
namespace {

constexpr int kThreads = 256;
constexpr int kGroup = 128;

__device__ __forceinline__ float scale_of(float largest) {
  return largest > 0.0f ? largest / 448.0f : 1.0f;
}

// A block for each row. The second reading comes from the caches.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    quantize_rows_kernel(uint8_t* codes, float* scales, const T* x, int64_t stride, int64_t k) {
  using In = Vector<T, kWidth>;
  __shared__ float maxima[kThreads / 32];
  allow_next();
  await_inputs();
  const int64_t row = blockIdx.x;
  const In* from = reinterpret_cast<const In*>(x + row * stride);
  float largest = 0.0f;
  for (int64_t i = threadIdx.x; i < k / kWidth; i += kThreads) {
    const In in = from[i];
#pragma unroll
    for (int e = 0; e < kWidth; ++e) largest = fmaxf(largest, fabsf(as_float(in.v[e])));
  }
  largest = warp_max(largest);
  if (threadIdx.x % 32 == 0) maxima[threadIdx.x / 32] = largest;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kThreads / 32; ++i) largest = fmaxf(largest, maxima[i]);
  const float scale = scale_of(largest);
  if (threadIdx.x == 0) scales[row] = scale;
  using Out = Vector<uint8_t, kWidth>;
  Out* to = reinterpret_cast<Out*>(codes + row * k);
  for (int64_t i = threadIdx.x; i < k / kWidth; i += kThreads) {
    const In in = from[i];
    Out out;
#pragma unroll
    for (int e = 0; e < kWidth; ++e) out.v[e] = to_fp8(as_float(in.v[e]) / scale);
    to[i] = out;
  }
}

// A warp for each 128 values of a row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    quantize_groups_kernel(uint8_t* codes, float* scales, const T* x, int64_t stride, int64_t rows,
                           int64_t k) {
  allow_next();
  await_inputs();
  const int64_t groups = (k + kGroup - 1) / kGroup;
  const int64_t item = (blockIdx.x * int64_t{kThreads} + threadIdx.x) / 32;
  if (item >= rows * groups) return;
  const int64_t row = item / groups, group = item % groups;
  const int lane = threadIdx.x % 32;
  float value[kGroup / 32], largest = 0.0f;
#pragma unroll
  for (int i = 0; i < kGroup / 32; ++i) {
    const int64_t at = group * kGroup + i * 32 + lane;
    value[i] = at < k ? as_float(x[row * stride + at]) : 0.0f;
    largest = fmaxf(largest, fabsf(value[i]));
  }
  const float scale = scale_of(warp_max(largest));
  if (lane == 0) scales[group * rows + row] = scale;
#pragma unroll
  for (int i = 0; i < kGroup / 32; ++i) {
    const int64_t at = group * kGroup + i * 32 + lane;
    if (at < k) codes[row * k + at] = to_fp8(value[i] / scale);
  }
}

void quantize_fp8_cuda(const Tensor& x, int64_t group, Tensor& codes, Tensor& scales) {
  const int64_t rows = x.size(0), k = x.size(1);
  const int device = x.device().index;
  auto* to = reinterpret_cast<uint8_t*>(codes.raw());
  dispatch_float(x.dtype(), "quantize_fp8", [&](auto type) {
    using T = decltype(type);
    if (group != 0) {
      const int64_t items = rows * ((k + kGroup - 1) / kGroup);
      return launch_dependent("quantize_fp8", quantize_groups_kernel<T>, device,
                              dim3(blocks_for(items, kThreads / 32)), kThreads, 0, to,
                              ptr<float>(scales), ptr<T>(x), x.stride(0), rows, k);
    }
    const auto run = [&]<int kWidth>() {
      launch_dependent("quantize_fp8", quantize_rows_kernel<T, kWidth>, device,
                       dim3(static_cast<unsigned>(rows)), kThreads, 0, to, ptr<float>(scales),
                       ptr<T>(x), x.stride(0), k);
    };
    const bool wide = k % 8 == 0 && x.stride(0) % 8 == 0 && aligned_16(x.raw());
    wide ? run.template operator()<8>() : run.template operator()<1>();
  });
}

const RegisterKernel r(quantize_fp8_kernel, DeviceType::kCuda, &quantize_fp8_cuda);

}  // namespace
}  // namespace reft
