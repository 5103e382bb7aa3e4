// RMS norms: one block per row, the row in two passes (the second one hits the cache).
#include "backends/cuda/common.h"
#include "ops/norm.h"

namespace reft {
namespace {

template <class T>
__device__ __forceinline__ T apply_weight(float normalised, const float* weight, int64_t i,
                                          NormKind kind) {
  if (weight == nullptr) return as<T>(normalised);
  if (kind == NormKind::kPlain) return as<T>(as_float(as<T>(normalised)) * weight[i]);
  return as<T>(normalised * (kind == NormKind::kOnePlus ? 1.0f + weight[i] : weight[i]));
}

// With `residual`, x is first added to it and the sum is what is normalised.
template <class T>
__global__ void rms_norm_kernel_cuda(T* __restrict__ y, T* __restrict__ residual,
                                     const T* __restrict__ x, int64_t x_stride,
                                     const float* __restrict__ weight, int64_t d, float eps,
                                     NormKind kind) {
  __shared__ float scratch[32];
  const int64_t row = blockIdx.x;
  const T* source = x + row * x_stride;
  T* sum_row = residual == nullptr ? nullptr : residual + row * d;
  float squares = 0.0f;
  for (int64_t i = threadIdx.x; i < d; i += blockDim.x) {
    float value = as_float(source[i]);
    if (sum_row != nullptr) {
      const T added = as<T>(value + as_float(sum_row[i]));
      sum_row[i] = added;
      value = as_float(added);
    }
    squares += value * value;
  }
  const float scale = rsqrtf(block_sum(squares, scratch) / static_cast<float>(d) + eps);
  const T* normalised = sum_row == nullptr ? source : sum_row;
  for (int64_t i = threadIdx.x; i < d; i += blockDim.x) {
    y[row * d + i] = apply_weight<T>(as_float(normalised[i]) * scale, weight, i, kind);
  }
}

template <class T>
__global__ void add_kernel(T* __restrict__ a, const T* __restrict__ b, int64_t n) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i < n) a[i] = as<T>(as_float(a[i]) + as_float(b[i]));
}

unsigned threads_for(int64_t d) {
  return static_cast<unsigned>(d >= 4096 ? 1024 : d >= 1024 ? 512 : d >= 256 ? 256 : 128);
}

void launch(Tensor& y, Tensor* residual, const Tensor& x, const Tensor& weight, float eps,
            NormKind kind, const char* op) {
  const int64_t rows = x.size(0), d = x.size(1);
  if (rows == 0) return;
  dispatch_float(x.dtype(), op, [&](auto type) {
    using T = decltype(type);
    rms_norm_kernel_cuda<T><<<static_cast<unsigned>(rows), threads_for(d), 0, stream_of(x)>>>(
        ptr<T>(y), residual == nullptr ? nullptr : ptr<T>(*residual), ptr<T>(x), x.stride(0),
        weight.defined() ? ptr<float>(weight) : nullptr, d, eps, kind);
    check_launch(op);
  });
}

void rms_norm_cuda(Tensor& y, const Tensor& x, const Tensor& weight, float eps, NormKind kind) {
  launch(y, nullptr, x, weight, eps, kind, "rms_norm");
}

void add_rms_norm_cuda(Tensor& y, Tensor& residual, const Tensor& x, const Tensor& weight,
                       float eps, NormKind kind) {
  launch(y, &residual, x, weight, eps, kind, "add_rms_norm");
}

void add_into_cuda(Tensor& a, const Tensor& b) {
  const int64_t n = a.numel();
  if (n == 0) return;
  dispatch_float(a.dtype(), "add_into", [&](auto type) {
    using T = decltype(type);
    add_kernel<T><<<blocks_for(n, 256), 256, 0, stream_of(a)>>>(ptr<T>(a), ptr<T>(b), n);
    check_launch("add_into");
  });
}

const RegisterKernel r1(rms_norm_kernel, DeviceType::kCuda, &rms_norm_cuda);
const RegisterKernel r2(add_rms_norm_kernel, DeviceType::kCuda, &add_rms_norm_cuda);
const RegisterKernel r3(add_into_kernel, DeviceType::kCuda, &add_into_cuda);

}  // namespace
}  // namespace reft
