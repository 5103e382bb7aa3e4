// Large matrix products by cuBLASLt, opened at run time so that the executable starts without it.
#pragma once

#include "tensor/tensor.h"

namespace reft {

// y = x Wᵀ with fp32 accumulation. x: [T, K], w: [N, K] of one 16-bit type; y: [T, N] of that type
// or float32. Rows may be strided. Returns false, having done nothing, when the library is not
// there or has no algorithm for it.
bool cublas_linear(Tensor& y, const Tensor& x, const Tensor& w);

// The same of fp8 codes (e4m3) with scales: of rows ([T] and [N]) or of blocks (x: [⌈K/128⌉, T], w:
// [⌈N/128⌉, ⌈K/128⌉ rounded up to 4]). K is a multiple of 16 and, with blocks, T of 4. Returns
// false as above; can_fp8 tells beforehand, without the scales.
bool cublas_can_fp8(const Tensor& y, const Tensor& x, const Tensor& w, bool blocks);
bool cublas_fp8_linear(Tensor& y, const Tensor& x, const Tensor& x_scales, const Tensor& w,
                       const Tensor& w_scales);

}  // namespace reft
