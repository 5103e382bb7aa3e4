// What low-rank adapters add to a linear layer: y = W x + scale · B A x, in training (one adapter)
// and in serving (several, each token with its own). A and B are ordinary weights of `linear`.
// Sources: Hu et al., "LoRA" (2021); Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation"
// (2024).
#pragma once

#include "ops/weight.h"
#include "tensor/gradient.h"

namespace reft {

// y += x Wᵀ, in place: no op may keep y's earlier value for its backward (a linear does not), then
// the gradient of what was there is y's own. y: [T, N] and x: [T, K] of one float dtype, rows may
// be strided; weight: [N, K], plain data.
void linear_add_into(Tensor& y, const Tensor& x, const Weight& weight);
extern Kernel<void(Tensor& y, const Tensor& x, const Weight& weight)> linear_add_kernel;

// Σ over k of W[n, k]²: [N] float32, for weights of any format.
Tensor squared_row_norms(const Weight& weight);
extern Kernel<void(Tensor& sums, const Weight& weight)> squared_row_norms_kernel;

// Lengths of the rows of W + scale · B A: [N] float32, from what needs no plain W:
//   |w_n|² + 2 scale b_n · (A w_n) + scale² b_nᵀ (A Aᵀ) b_n
// squared: [N], squared_row_norms(W); projected: [r, N] = A Wᵀ, rows may be strided; gram: [r, r] =
// A Aᵀ; b: [N, r]. All float32.
Tensor adapted_row_norms(const Tensor& squared, const Tensor& projected, const Tensor& gram,
                         const Tensor& b, float scale);
extern Kernel<void(Tensor& norms, const Tensor& squared, const Tensor& projected,
                   const Tensor& gram, const Tensor& b, float scale)>
    adapted_row_norms_kernel;

// y[t, n] = u[t, n] · magnitude[n] / norms[n] + bias[n]: DoRA after the products. u and y: [T, N]
// float, rows may be strided, two tensors; magnitude, norms, bias: [N] float32; without a magnitude
// u · 1, without a bias + 0. Norms and bias count as constants (§4.3 of the paper).
void dora_into(Tensor& y, const Tensor& u, const Tensor& magnitude, const Tensor& norms,
               const Tensor& bias);
extern Kernel<void(Tensor& y, const Tensor& u, const Tensor& magnitude, const Tensor& norms,
                   const Tensor& bias)>
    dora_kernel;
// du = dy magnitude / norms; dmagnitude[n] = Σ over t of dy u / norms.
extern Kernel<void(const GradientSlot& du, const GradientSlot& dmagnitude, const Tensor& dy,
                   const Tensor& u, const Tensor& magnitude, const Tensor& norms)>
    dora_backward_kernel;

}  // namespace reft
