// Moving a step's small integer arrays to where a recorded graph reads them.
#pragma once

#include <span>

#include "ops/kernel.h"
#include "tensor/tensor.h"

namespace reft {

// Arrays are contiguous int32, [N, W] or [N] (then W = 1), on one device.
struct RowsCopy {
  Tensor to;         // [N, W]
  Tensor from;       // [n, w], n ≤ N and w ≤ W; may be `to` itself
  int32_t fill = 0;  // of the first w columns of the rows from n on; other columns stay
  Tensor values;     // where defined, an x < 0 of `from` is replaced by values[−1 − x]
};

inline constexpr size_t kMaxRowsCopies = 16;

// to[i, j] = from[i, j], for all copies at once. What one copy writes no other one may read. Throws
// Error when shapes, dtypes or devices do not match, or with more than kMaxRowsCopies.
void copy_rows(std::span<const RowsCopy> copies);
extern Kernel<void(std::span<const RowsCopy> copies)> copy_rows_kernel;

}  // namespace reft
