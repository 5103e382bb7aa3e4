// Random changes of activations in training. What is drawn for an element is a function of (seed,
// stream, its place) alone: a block that is run again for its gradients gets the same values.
#pragma once

#include "ops/kernel.h"
#include "tensor/gradient.h"
#include "tensor/tensor.h"

namespace reft {

struct DropoutArgs {
  float p = 0;       // share of the elements that become 0
  float factor = 1;  // of the others, beside 1 / (1 − p)
  uint64_t seed = 0;
  uint64_t stream = 0;
};

// y[i] = factor / (1 − p) · x[i], or 0 with probability p. x: [T, K] float, rows may be strided.
// With p = 0 a product with a number. Returns [T, K]. Throws Error unless 0 <= p < 1. Follows
// torch.nn.functional.dropout.
Tensor dropout(const Tensor& x, const DropoutArgs& args);
// y = dropout(x); also its gradient, dx from dy.
extern Kernel<void(const GradientSlot& y, const Tensor& x, const DropoutArgs& args)> dropout_kernel;

// x[t, i] += row_scale[t] · u, u uniform in [−1, 1). x: [T, D] float, contiguous, changed in place
// (its gradient stays what it is); row_scale: [T] float32. Source: Jain et al., "NEFTune: Noisy
// Embeddings Improve Instruction Finetuning" (2023).
void add_uniform_noise(Tensor& x, const Tensor& row_scale, uint64_t seed, uint64_t stream);
extern Kernel<void(Tensor& x, const Tensor& row_scale, uint64_t seed, uint64_t stream)>
    add_uniform_noise_kernel;

}  // namespace reft
