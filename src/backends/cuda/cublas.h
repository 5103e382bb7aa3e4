// Large matrix products by cuBLASLt, opened at run time so that the executable starts without it.
#pragma once

#include "tensor/tensor.h"

namespace reft {

// y = x Wᵀ with fp32 accumulation. x: [T, K], w: [N, K] of one 16-bit type; y: [T, N] of that type
// or float32. Rows may be strided. Returns false, having done nothing, when the library is not
// there or has no algorithm for it.
bool cublas_linear(Tensor& y, const Tensor& x, const Tensor& w);

}  // namespace reft
