#include "ops/activation.h"

#include <algorithm>

#include "backends/cpu/simd.h"
#include "base/thread_pool.h"

namespace reft {
namespace {

// Elements that take a thread about as long as handing them out.
constexpr int64_t kGrain = 4096;

// Cut along T and F alike: one token's 1,500 to 30,000 features may be worth two threads.
void gated_activation_cpu(Tensor& y, const Tensor& gate_up, Activation activation) {
  const auto& simd = simd_kernels();
  const int64_t n = y.size(1);
  const float* in = gate_up.data<float>();
  float* out = y.data<float>();
  compute_pool().parallel_for(y.numel(), kGrain, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t t = begin / n, i = begin % n;
      const int64_t count = std::min(end - begin, n - i);
      const float* gate = in + t * gate_up.stride(0) + i;
      simd.gated(out + begin, gate, gate + n, count, activation);
      begin += count;
    }
  });
}

void soft_cap_cpu(Tensor& x, float cap) {
  const auto& simd = simd_kernels();
  float* values = x.data<float>();
  compute_pool().parallel_for(x.numel(), kGrain, [&](int64_t begin, int64_t end) {
    simd.soft_cap(values + begin, end - begin, cap);
  });
}

void gated_activation_backward_cpu(const GradientSlot& dgate_up, const Tensor& dy,
                                   const Tensor& gate_up, Activation activation) {
  const auto& simd = simd_kernels();
  const int64_t n = dy.size(1);
  const Tensor& to = dgate_up.tensor;
  compute_pool().parallel_for(dy.numel(), kGrain, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t t = begin / n, i = begin % n;
      const int64_t count = std::min(end - begin, n - i);
      const float* gate = gate_up.data<float>() + t * gate_up.stride(0) + i;
      float* dgate = to.data<float>() + t * to.stride(0) + i;
      simd.gated_backward(dgate, dgate + n, dgate_up.accumulate,
                          dy.data<float>() + t * dy.stride(0) + i, gate, gate + n, count,
                          activation);
      begin += count;
    }
  });
}

void soft_cap_backward_cpu(const GradientSlot& dx, const Tensor& dy, const Tensor& y, float cap) {
  const float inverse = 1.0f / cap;
  float* to = dx.tensor.data<float>();
  const float *from = dy.data<float>(), *value = y.data<float>();
  compute_pool().parallel_for(y.numel(), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float t = value[i] * inverse, d = from[i] * (1.0f - t * t);
      to[i] = dx.accumulate ? to[i] + d : d;
    }
  });
}

const RegisterKernel gated_activation_backward_entry(gated_activation_backward_kernel,
                                                     DeviceType::kCpu,
                                                     &gated_activation_backward_cpu);
const RegisterKernel soft_cap_backward_entry(soft_cap_backward_kernel, DeviceType::kCpu,
                                             &soft_cap_backward_cpu);
const RegisterKernel gated_activation_entry(gated_activation_kernel, DeviceType::kCpu,
                                            &gated_activation_cpu);
const RegisterKernel soft_cap_entry(soft_cap_kernel, DeviceType::kCpu, &soft_cap_cpu);

}  // namespace
}  // namespace reft
