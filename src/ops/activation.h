// Element-wise activations.
#pragma once

#include "ops/kernel.h"
#include "tensor/gradient.h"
#include "tensor/tensor.h"

namespace reft {

enum class Activation {
  kSilu,
  kGeluTanh,
  kGeluErf,
  kRelu,
  kClampedSwiglu,  // gated only: g σ(1.702 g) (u + 1), g = min(gate, 7), u = clamp(up, −7, 7)
};
inline constexpr float kSwigluAlpha = 1.702f;
inline constexpr float kSwigluLimit = 7.0f;

// "silu"/"swish", "gelu_pytorch_tanh"/"gelu_new", "gelu", "relu" as in a config.json. Throws Error
// on others.
Activation parse_activation(std::string_view name);

// y = act(gate) * up, where gate_up: [T, 2F] holds the halves gate | up. Returns [T, F]. Follows
// LlamaMLP, and for kClampedSwiglu GptOssExperts.
Tensor gated_activation(const Tensor& gate_up, Activation activation);
extern Kernel<void(Tensor& y, const Tensor& gate_up, Activation activation)>
    gated_activation_kernel;
// dgate = dy up act'(gate), dup = dy act(gate). dgate_up: [T, 2F].
extern Kernel<void(const GradientSlot& dgate_up, const Tensor& dy, const Tensor& gate_up,
                   Activation activation)>
    gated_activation_backward_kernel;

// x = cap * tanh(x / cap), in place (Gemma 2's final logits). While a tape is the thread's, `x`
// becomes a new tensor.
void soft_cap_(Tensor& x, float cap);
extern Kernel<void(Tensor& x, float cap)> soft_cap_kernel;
// dx = dy (1 − (y / cap)²), where y is the result.
extern Kernel<void(const GradientSlot& dx, const Tensor& dy, const Tensor& y, float cap)>
    soft_cap_backward_kernel;

}  // namespace reft
