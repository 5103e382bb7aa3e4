// Gradients of the element-wise ops.
#include "backends/cuda/activation.h"

namespace reft {
namespace {

// act(x) and act'(x).
__device__ __forceinline__ float2 activate_with_slope(float x, Activation activation) {
  switch (activation) {
    case Activation::kSilu: {
      const float s = 1.0f / (1.0f + __expf(-x));
      return make_float2(x * s, s * fmaf(x, 1.0f - s, 1.0f));
    }
    case Activation::kGeluTanh: {  // x σ(2u): σ + 2 x u' σ (1 − σ)
      constexpr float kRoot = 0.7978845608028654f, kCubic = 0.044715f;
      const float twice_u = 2.0f * kRoot * x * fmaf(kCubic * x, x, 1.0f);
      const float twice_slope = 2.0f * kRoot * fmaf(3.0f * kCubic * x, x, 1.0f);
      const float s = 1.0f / (1.0f + __expf(-twice_u));
      return make_float2(x * s,
                         s == 0.0f || s == 1.0f ? s : fmaf(x * twice_slope * s, 1.0f - s, s));
    }
    case Activation::kGeluErf: {  // Φ(x) + x φ(x)
      const float cumulative = 0.5f * erfcf(-x * 0.70710678118654752f);
      const float density = 0.3989422804014327f * __expf(-0.5f * x * x);
      return make_float2(x * cumulative, fmaf(x, density, cumulative));
    }
    case Activation::kRelu:
      return make_float2(x < 0.0f ? 0.0f : x, x > 0.0f ? 1.0f : 0.0f);
    case Activation::kClampedSwiglu: {
      const float g = x > kSwigluLimit ? kSwigluLimit : x;
      const float s = 1.0f / (1.0f + __expf(-kSwigluAlpha * g));
      return make_float2(g * s,
                         x > kSwigluLimit ? 0.0f : s * fmaf(kSwigluAlpha * g, 1.0f - s, 1.0f));
    }
  }
  return make_float2(x, 1.0f);
}

// One thread per kWidth neighbouring elements of dy; f and n count such vectors.
template <class T, int kWidth>
__global__ void gated_backward_kernel(T* dgate_up, int64_t to_stride, bool accumulate, const T* dy,
                                      int64_t dy_stride, const T* gate_up, int64_t stride,
                                      uint32_t f, int64_t n, Activation activation) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= n) return;
  using V = Vector<T, kWidth>;
  const int64_t row = i / f, column = i % f;
  const V* from = reinterpret_cast<const V*>(gate_up + row * stride);
  V* to = reinterpret_cast<V*>(dgate_up + row * to_stride);
  const V gate = from[column], up = from[f + column];
  const V d = reinterpret_cast<const V*>(dy + row * dy_stride)[column];
  V dgate, dup;
  if (accumulate) {
    dgate = to[column];
    dup = to[f + column];
  }
#pragma unroll
  for (int e = 0; e < kWidth; ++e) {
    const float2 act = activate_with_slope(as_float(gate.v[e]), activation);
    const float slope = as_float(d.v[e]);
    float factor = as_float(up.v[e]), to_up = slope * act.x;
    if (activation == Activation::kClampedSwiglu) {
      const float clamped = fminf(fmaxf(factor, -kSwigluLimit), kSwigluLimit);
      if (clamped != factor) to_up = 0.0f;
      factor = 1.0f + clamped;
    }
    const float to_gate = slope * factor * act.y;
    dgate.v[e] = as<T>(accumulate ? as_float(dgate.v[e]) + to_gate : to_gate);
    dup.v[e] = as<T>(accumulate ? as_float(dup.v[e]) + to_up : to_up);
  }
  to[column] = dgate;
  to[f + column] = dup;
}

__global__ void soft_cap_backward_kernel_cuda(float* dx, bool accumulate, const float* dy,
                                              const float* y, int64_t n, float cap) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= n) return;
  const float t = y[i] / cap, d = dy[i] * (1.0f - t * t);
  dx[i] = accumulate ? dx[i] + d : d;
}

void gated_activation_backward_cuda(const GradientSlot& dgate_up, const Tensor& dy,
                                    const Tensor& gate_up, Activation activation) {
  const int64_t f = dy.size(1), n = dy.numel();
  if (n == 0) return;
  const Tensor& to = dgate_up.tensor;
  check(to.dtype() == dy.dtype() && gate_up.dtype() == dy.dtype() && f < int64_t{1} << 32,
        "gated_activation: gradients of {} from {} on CUDA", to, dy);
  dispatch_float(dy.dtype(), "gated_activation_backward", [&](auto type) {
    using T = decltype(type);
    const auto run = [&]<int kWidth>() {
      gated_backward_kernel<T, kWidth><<<blocks_for(n / kWidth, 256), 256, 0, stream_of(dy)>>>(
          ptr<T>(to), to.stride(0), dgate_up.accumulate, ptr<T>(dy), dy.stride(0), ptr<T>(gate_up),
          gate_up.stride(0), static_cast<uint32_t>(f / kWidth), n / kWidth, activation);
      check_launch("gated_activation_backward");
    };
    bool wide = f % 8 == 0;
    for (const Tensor* t : {&to, &dy, &gate_up})
      wide = wide && aligned_16(t->raw()) && t->stride(0) % 8 == 0;
    wide ? run.template operator()<8>() : run.template operator()<1>();
  });
}

void soft_cap_backward_cuda(const GradientSlot& dx, const Tensor& dy, const Tensor& y, float cap) {
  check(y.dtype() == DType::kF32, "soft_cap_: {} is not supported on CUDA", y);
  const int64_t n = y.numel();
  if (n == 0) return;
  soft_cap_backward_kernel_cuda<<<blocks_for(n, 256), 256, 0, stream_of(y)>>>(
      ptr<float>(dx.tensor), dx.accumulate, ptr<float>(dy), ptr<float>(y), n, cap);
  check_launch("soft_cap_backward");
}

const RegisterKernel r1(gated_activation_backward_kernel, DeviceType::kCuda,
                        &gated_activation_backward_cuda);
const RegisterKernel r2(soft_cap_backward_kernel, DeviceType::kCuda, &soft_cap_backward_cuda);

}  // namespace
}  // namespace reft
