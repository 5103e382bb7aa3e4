// y = x Wᵀ + b, alone and with the gated activation after it.
#pragma once

#include "ops/activation.h"
#include "ops/weight.h"
#include "tensor/gradient.h"

namespace reft {

// x: [T, K] float; weight: [N, K] after prepare_weight; bias: [N] float32 or undefined. Returns [T,
// N] in `out_dtype`, x's dtype or float32; accumulates in fp32. On the CPU activations are float32;
// against block formats they are rounded to 16 bits per 32 values (each by at most 2^-15 of the
// largest of its 32), and against bf16/fp16 weights they may be rounded to that dtype where the CPU
// has a dot instruction for it. Throws Error on a shape mismatch. Follows
// torch.nn.functional.linear.
Tensor linear(const Tensor& x, const Weight& weight, const Tensor& bias, DType out_dtype);
inline Tensor linear(const Tensor& x, const Weight& weight, const Tensor& bias = {}) {
  return linear(x, weight, bias, x.dtype());
}
// The same into y: [T, N], whose rows may be strided (columns of a wider result).
void linear_into(Tensor& y, const Tensor& x, const Weight& weight, const Tensor& bias);
extern Kernel<void(Tensor& y, const Tensor& x, const Weight& weight, const Tensor& bias)>
    linear_kernel;

// The parts of its gradient. dy: [T, N], rows may be strided. Weights of any format have an input
// gradient; only plain ones (no packed form) have one of their own, of shape [N, K].
// dx = dy W
extern Kernel<void(const GradientSlot& dx, const Tensor& dy, const Weight& weight)>
    linear_input_backward_kernel;
// dw = dyᵀ x; dy and x may be rounded to `weight`, the weight's dtype, as in `linear`.
extern Kernel<void(const GradientSlot& dw, const Tensor& dy, const Tensor& x, DType weight)>
    linear_weight_backward_kernel;
// sums[n] = Σ over t of dy[t, n]: the bias.
extern Kernel<void(const GradientSlot& sums, const Tensor& dy)> column_sums_kernel;

// gated_activation(linear(x, weight, bias)): the weight's rows are gate | up. x: [T, K]; weight:
// [2F, K]; bias: [2F] float32 or undefined. Returns [T, F] in x's dtype. Throws Error as these ops
// do.
Tensor gated_linear(const Tensor& x, const Weight& weight, const Tensor& bias,
                    Activation activation);
// One kernel for both, where a backend has one. Returns false, having done nothing, where it has
// none for the case.
extern Kernel<bool(Tensor& y, const Tensor& x, const Weight& weight, const Tensor& bias,
                   Activation activation)>
    gated_linear_kernel;

}  // namespace reft
