// Element-wise activations.
#pragma once

#include "ops/kernel.h"
#include "tensor/tensor.h"

namespace reft {

enum class Activation { kSilu, kGeluTanh, kGeluErf, kRelu };

// "silu"/"swish", "gelu_pytorch_tanh"/"gelu_new", "gelu", "relu" as in a config.json. Throws Error
// on others.
Activation parse_activation(std::string_view name);

// y = act(gate) * up, where gate_up: [T, 2F] holds the halves gate | up. Returns [T, F]. Follows
// LlamaMLP.
Tensor gated_activation(const Tensor& gate_up, Activation activation);
extern Kernel<void(Tensor& y, const Tensor& gate_up, Activation activation)>
    gated_activation_kernel;

// x = cap * tanh(x / cap), in place (Gemma 2's final logits).
void soft_cap_(Tensor& x, float cap);
extern Kernel<void(Tensor& x, float cap)> soft_cap_kernel;

}  // namespace reft
