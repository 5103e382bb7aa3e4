// Low-rank adapters of many requests in one step: each row has its own, or none.
#pragma once

#include "ops/kernel.h"
#include "tensor/tensor.h"

namespace reft {

// S adapters of one matrix [N, K] of ranks up to R, with zeros beyond an adapter's own rank.
struct LoraStack {
  Tensor a;              // [S, K, R] float32: Aᵀ
  Tensor b;              // [S, R, N] float32: scale · Bᵀ
  Tensor column_change;  // [S, N] float32: DoRA's magnitude / norm − 1, 0 for others
  Tensor ranks;          // [S] int32, 0: the slot is empty or has no adapter for this matrix

  static LoraStack zeros(int64_t slots, int64_t rank, int64_t n, int64_t k, Device device);
};

// y[t] += B_s A_s x[t] with s = slots[t], nothing where it is negative; before that
// y[t] += (y[t] − bias) ∘ column_change_s. y: [T, N] and x: [T, K], rows may be strided; slots: [T]
// int32, not checked; bias: [N] float32, or undefined. A row's result does not depend on the other
// rows. Source: the grouped products of Punica (Chen et al., 2023).
void add_lora_rows(Tensor& y, const Tensor& x, const Tensor& slots, const LoraStack& stack,
                   const Tensor& bias);
extern Kernel<void(Tensor& y, const Tensor& x, const Tensor& slots, const LoraStack& stack,
                   const Tensor& bias)>
    lora_rows_kernel;

}  // namespace reft
