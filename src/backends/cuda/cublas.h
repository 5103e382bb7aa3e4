// Large matrix products by cuBLASLt, opened at run time so that the executable starts without it.
#pragma once

#include "tensor/tensor.h"

namespace reft {

// An operand as it lies in memory, [rows, columns] with strided rows, and whether its transpose is
// what takes part.
struct GemmOperand {
  const Tensor& data;
  bool transposed = false;
  int64_t rows() const { return data.size(transposed ? 1 : 0); }
  int64_t columns() const { return data.size(transposed ? 0 : 1); }
};

// c = a b, or with `accumulate` c += a b in the product's own epilogue; fp32 sums. a: [M, K] and b:
// [K, N] of one float dtype; c: [M, N] of that dtype or float32. float32 operands are multiplied as
// float32. Returns false, having done nothing, when the library is not there or has no algorithm
// for it.
bool cublas_gemm(const Tensor& c, const GemmOperand& a, const GemmOperand& b, bool accumulate);

// y = x Wᵀ. x: [T, K], w: [N, K]; y: [T, N].
inline bool cublas_linear(Tensor& y, const Tensor& x, const Tensor& w) {
  return cublas_gemm(y, {x}, {w, true}, false);
}

// The same of fp8 codes (e4m3) with scales: of rows ([T] and [N]) or of blocks (x: [⌈K/128⌉, T], w:
// [⌈N/128⌉, ⌈K/128⌉ rounded up to 4]). K is a multiple of 16 and, with blocks, T of 4. Returns
// false as above; can_fp8 tells beforehand, without the scales.
bool cublas_can_fp8(const Tensor& y, const Tensor& x, const Tensor& w, bool blocks);
bool cublas_fp8_linear(Tensor& y, const Tensor& x, const Tensor& x_scales, const Tensor& w,
                       const Tensor& w_scales);

}  // namespace reft
