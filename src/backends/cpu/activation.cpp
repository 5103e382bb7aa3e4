#include "ops/activation.h"

#include <cmath>

#include "base/thread_pool.h"

namespace reft {
namespace {

float activate(float x, Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return x / (1.0f + std::exp(-x));
    case Activation::kGeluTanh:
      return 0.5f * x * (1.0f + std::tanh(0.7978845608f * (x + 0.044715f * x * x * x)));
    case Activation::kGeluErf:
      return 0.5f * x * (1.0f + std::erf(x * 0.7071067812f));
    case Activation::kRelu:
      return x < 0 ? 0.0f : x;
  }
  return x;
}

void gated_activation_cpu(Tensor& y, const Tensor& gate_up, Activation activation) {
  const int64_t n = y.size(1);
  const float* in = gate_up.data<float>();
  float* out = y.data<float>();
  compute_pool().parallel_for(y.size(0), 4096 / n + 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* gate = in + t * gate_up.stride(0);
      for (int64_t i = 0; i < n; ++i) out[t * n + i] = activate(gate[i], activation) * gate[n + i];
    }
  });
}

void soft_cap_cpu(Tensor& x, float cap) {
  float* out = x.data<float>();
  compute_pool().parallel_for(x.numel(), 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) out[i] = cap * std::tanh(out[i] / cap);
  });
}

const RegisterKernel gated_activation_entry(gated_activation_kernel, DeviceType::kCpu,
                                            &gated_activation_cpu);
const RegisterKernel soft_cap_entry(soft_cap_kernel, DeviceType::kCpu, &soft_cap_cpu);

}  // namespace
}  // namespace reft
