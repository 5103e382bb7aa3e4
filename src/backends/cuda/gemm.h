// Products of matrices of any shape and type.
#pragma once

#include "backends/cuda/cublas.h"

namespace reft {

// c = a b, or with `accumulate` c += a b, with fp32 sums: by cuBLASLt, or, where that has nothing
// for the case, by a plain tiled kernel. a: [M, K], b: [K, N], c: [M, N], rows may be strided.
void multiply(const Tensor& c, const GemmOperand& a, const GemmOperand& b, bool accumulate);

}  // namespace reft
