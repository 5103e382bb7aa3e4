// Cross entropy of the next token.
#pragma once

#include "ops/weight.h"
#include "tensor/gradient.h"

namespace reft {

struct CrossEntropyOptions {
  float soft_cap = 0.0f;   // on the logits (Gemma 2); 0: none
  int64_t chunk_rows = 0;  // logits that exist at a time; 0: loss_chunk_bytes() of them
  // While a tape records: leave the losses to backward(), which then computes the logits once for
  // both. Their values are there after it. Not inside Tape::checkpoint.
  bool in_backward = false;
};

// Logits that exist at a time where chunk_rows does not say: 256 MiB on the CPU, 2 GiB elsewhere,
// where products want more rows and each chunk goes through all of the weight's gradient.
int64_t loss_chunk_bytes(Device device);

// losses[r] = log Σₙ exp(z[r, n]) − z[r, labels[r]], z = x Wᵀ, soft-capped; 0 where the label is
// negative (−100). x: [R, D]; weight: [V, D]; labels: [R] int32. Returns [R] float32; the logits
// are never stored as a whole, and what its gradient needs of them is computed again. Labels
// outside [0, V) throw Error on the CPU. Follows torch.nn.functional.cross_entropy with reduction
// "none"; chunks as in Liger-Kernel's fused linear cross entropy.
Tensor linear_cross_entropy(const Tensor& x, const Weight& weight, const Tensor& labels,
                            const CrossEntropyOptions& options = {});

// Of logits: [R, V] float32, not yet capped, which are spent. Fills losses: [R] float32, where
// defined, and where dlosses: [R] float32 is defined, dlogits: [R, V] with d loss / d logits.
// dlogits are the logits themselves or, on devices other than the CPU, 16-bit numbers that lie over
// them: row r begins where row r of the logits does.
extern Kernel<void(const Tensor& losses, const Tensor& logits, const Tensor& labels,
                   const Tensor& dlosses, const Tensor& dlogits, float soft_cap)>
    cross_entropy_kernel;

}  // namespace reft
