// Cross entropy of the next token.
#pragma once

#include "ops/weight.h"
#include "tensor/gradient.h"

namespace reft {

struct CrossEntropyOptions {
  float soft_cap = 0.0f;   // on the logits (Gemma 2); 0: none
  int64_t chunk_rows = 0;  // logits that exist at a time; 0: 256 MiB of them
  // While a tape records: leave the losses to backward(), which then computes the logits once for
  // both. Their values are there after it. Not inside Tape::checkpoint.
  bool in_backward = false;
};

// losses[r] = log Σₙ exp(z[r, n]) − z[r, labels[r]], z = x Wᵀ, soft-capped; 0 where the label is
// negative (−100). x: [R, D]; weight: [V, D]; labels: [R] int32. Returns [R] float32; the logits
// are never stored as a whole, and what its gradient needs of them is computed again. Labels
// outside [0, V) throw Error on the CPU. Follows torch.nn.functional.cross_entropy with reduction
// "none"; chunks as in Liger-Kernel's fused linear cross entropy.
Tensor linear_cross_entropy(const Tensor& x, const Weight& weight, const Tensor& labels,
                            const CrossEntropyOptions& options = {});

// Of logits: [R, V] float32, not yet capped. Fills losses: [R] float32, where defined. Where
// dlosses: [R] float32 is defined, the logits become d loss / d logits.
extern Kernel<void(const Tensor& losses, const Tensor& logits, const Tensor& labels,
                   const Tensor& dlosses, float soft_cap)>
    cross_entropy_kernel;

}  // namespace reft
