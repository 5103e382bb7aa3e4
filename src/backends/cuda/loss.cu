// Cross entropy of rows of logits: one block a row, which reads it twice and writes its gradient
// over it.
#include "backends/cuda/common.h"
#include "ops/loss.h"

namespace reft {
namespace {

constexpr int kThreads = 512;
constexpr int kWidth = 4;  // logits that a thread takes at a time

struct MaxAndSum {
  float top, sum;  // sum of exp(z − top)
};

__device__ __forceinline__ MaxAndSum merged(MaxAndSum a, MaxAndSum b) {
  if (a.sum == 0.0f) return b;  // of nothing
  if (b.sum == 0.0f) return a;
  const float top = fmaxf(a.top, b.top);
  return {top, a.sum * __expf(a.top - top) + b.sum * __expf(b.top - top)};
}

__device__ __forceinline__ float capped(float z, float cap) {
  return cap > 0.0f ? cap * tanhf(z / cap) : z;
}

// The gradient's rows begin where those of the logits do. What a pass writes, all threads have
// read: elements are at most as wide as logits.
template <class D, bool kVectors>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_kernel_cuda(float* losses, const float* logits, int64_t stride, int64_t vocab,
                              const int32_t* labels, const float* dlosses, D* dlogits,
                              int64_t d_stride, float cap) {
  constexpr int kStep = kVectors ? kWidth : 1;
  using V = Vector<float, kStep>;
  __shared__ MaxAndSum scratch[kThreads / 32];
  __shared__ float of_label;
  const int64_t row = blockIdx.x;
  const int32_t label = labels[row];
  const float* z = logits + row * stride;
  const float dloss = dlosses == nullptr ? 0.0f : dlosses[row];
  D* to = dlosses == nullptr ? nullptr : dlogits + row * d_stride;
  if (label < 0) {
    if (losses != nullptr && threadIdx.x == 0) losses[row] = 0.0f;
    if (to == nullptr) return;
    for (int64_t i = threadIdx.x; i < vocab; i += kThreads) to[i] = as<D>(0.0f);
    return;
  }
  MaxAndSum own = {-INFINITY, 0.0f};
  for (int64_t i = threadIdx.x * int64_t{kStep}; i < vocab; i += kThreads * kStep) {
    const V v = *reinterpret_cast<const V*>(z + i);
    float top = own.top;
    float value[kStep];
#pragma unroll
    for (int e = 0; e < kStep; ++e) {
      value[e] = capped(v.v[e], cap);
      if (i + e == label) of_label = value[e];
      top = fmaxf(top, value[e]);
    }
    float sum = own.sum == 0.0f ? 0.0f : own.sum * __expf(own.top - top);
#pragma unroll
    for (int e = 0; e < kStep; ++e) sum += __expf(value[e] - top);
    own = {top, sum};
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    own = merged(own, {__shfl_xor_sync(0xffffffffu, own.top, offset),
                       __shfl_xor_sync(0xffffffffu, own.sum, offset)});
  }
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = own;
  __syncthreads();
  MaxAndSum all = scratch[0];
  for (int i = 1; i < kThreads / 32; ++i) all = merged(all, scratch[i]);
  const bool known = label < vocab;
  if (losses != nullptr && threadIdx.x == 0)
    losses[row] = known ? logf(all.sum) + (all.top - of_label) : NAN;
  if (to == nullptr) return;
  const float scale = dloss / all.sum;
  for (int64_t base = 0; base < vocab; base += kThreads * kStep) {
    const int64_t i = base + threadIdx.x * int64_t{kStep};
    Vector<D, kStep> out;
    if (i < vocab) {
      const V v = *reinterpret_cast<const V*>(z + i);
#pragma unroll
      for (int e = 0; e < kStep; ++e) {
        const float value = capped(v.v[e], cap);
        float d = __expf(value - all.top) * scale - (i + e == label ? dloss : 0.0f);
        if (cap > 0.0f) d *= 1.0f - value / cap * (value / cap);
        out.v[e] = as<D>(d);
      }
    }
    if constexpr (sizeof(D) < sizeof(float)) __syncthreads();
    if (i < vocab) *reinterpret_cast<Vector<D, kStep>*>(to + i) = out;
  }
}

void cross_entropy_cuda(const Tensor& losses, const Tensor& logits, const Tensor& labels,
                        const Tensor& dlosses, const Tensor& dlogits, float soft_cap) {
  const int64_t rows = logits.size(0), vocab = logits.size(1);
  if (rows == 0) return;
  const Tensor& to = dlosses.defined() ? dlogits : logits;
  dispatch_float(to.dtype(), "cross_entropy", [&](auto type) {
    using D = decltype(type);
    const bool vectors = vocab % kWidth == 0 && logits.stride(0) % kWidth == 0 &&
                         to.stride(0) % kWidth == 0 && aligned_16(logits.raw());
    const auto launch = [&](auto kernel) {
      kernel<<<static_cast<unsigned>(rows), kThreads, 0, stream_of(logits)>>>(
          losses.defined() ? ptr<float>(losses) : nullptr, ptr<float>(logits), logits.stride(0),
          vocab, ptr<int32_t>(labels), dlosses.defined() ? ptr<float>(dlosses) : nullptr,
          ptr<D>(to), to.stride(0), soft_cap);
      check_launch("cross_entropy");
    };
    vectors ? launch(&cross_entropy_kernel_cuda<D, true>)
            : launch(&cross_entropy_kernel_cuda<D, false>);
  });
}

const RegisterKernel r(cross_entropy_kernel, DeviceType::kCuda, &cross_entropy_cuda);

}  // namespace
}  // namespace reft
