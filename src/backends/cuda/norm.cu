// RMS norms: one block per row. Rows of whole 8-element vectors stay in registers; others take two
// passes.
#include <algorithm>

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
__global__ void rms_norm_kernel_cuda(T* __restrict__ y, T* __restrict__ residual, const T* x,
                                     int64_t x_stride, const float* __restrict__ weight, int64_t d,
                                     float eps, NormKind kind) {
  __shared__ float scratch[32];
  allow_next();
  await_inputs();
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

constexpr int kVectorsPerThread = 2;

// As above for rows of whole vectors: each thread keeps up to two of them in registers.
template <class T>
__global__ void rms_norm_vector_kernel(T* __restrict__ y, T* __restrict__ residual, const T* x,
                                       int64_t x_stride, const float* __restrict__ weight, int d,
                                       float eps, NormKind kind) {
  __shared__ float scratch[32];
  allow_next();
  await_inputs();
  const int64_t row = blockIdx.x;
  const int vectors = d / 8;
  float values[kVectorsPerThread][8];
  float squares = 0.0f;
#pragma unroll
  for (int j = 0; j < kVectorsPerThread; ++j) {
    const int index = threadIdx.x + j * blockDim.x;
    if (index >= vectors) continue;
    const auto in = reinterpret_cast<const Vector8<T>*>(x + row * x_stride)[index];
    if (residual == nullptr) {
#pragma unroll
      for (int e = 0; e < 8; ++e) values[j][e] = as_float(in.v[e]);
    } else {
      auto* place = reinterpret_cast<Vector8<T>*>(residual + row * d) + index;
      Vector8<T> sum = *place;
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        sum.v[e] = as<T>(as_float(sum.v[e]) + as_float(in.v[e]));
        values[j][e] = as_float(sum.v[e]);
      }
      *place = sum;
    }
#pragma unroll
    for (int e = 0; e < 8; ++e) squares += values[j][e] * values[j][e];
  }
  const float scale = rsqrtf(block_sum(squares, scratch) / static_cast<float>(d) + eps);
#pragma unroll
  for (int j = 0; j < kVectorsPerThread; ++j) {
    const int index = threadIdx.x + j * blockDim.x;
    if (index >= vectors) continue;
    Vector8<T> out;
#pragma unroll
    for (int e = 0; e < 8; ++e)
      out.v[e] = apply_weight<T>(values[j][e] * scale, weight, index * 8 + e, kind);
    reinterpret_cast<Vector8<T>*>(y + row * d)[index] = out;
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
    const bool vectors = d % 8 == 0 && d <= 8 * 1024 * kVectorsPerThread && x.stride(0) % 8 == 0 &&
                         aligned_16(x.raw()) && aligned_16(y.raw()) &&
                         (residual == nullptr || aligned_16(residual->raw()));
    if (vectors) {
      const auto threads = static_cast<unsigned>(std::min<int64_t>(1024, (d / 8 + 31) / 32 * 32));
      launch_dependent(op, rms_norm_vector_kernel<T>, x.device().index,
                       dim3(static_cast<unsigned>(rows)), threads, 0, ptr<T>(y),
                       residual == nullptr ? nullptr : ptr<T>(*residual), ptr<T>(x), x.stride(0),
                       weight.defined() ? ptr<float>(weight) : nullptr, static_cast<int>(d), eps,
                       kind);
      return;
    }
    launch_dependent(op, rms_norm_kernel_cuda<T>, x.device().index,
                     dim3(static_cast<unsigned>(rows)), threads_for(d), 0, ptr<T>(y),
                     residual == nullptr ? nullptr : ptr<T>(*residual), ptr<T>(x), x.stride(0),
                     weight.defined() ? ptr<float>(weight) : nullptr, d, eps, kind);
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
