// What a matrix product is made of, for one precision and instruction set.
#pragma once

#include <cstdint>

namespace reft::cpu {

// Operands are packed into units of four bytes that hold `k_per_unit` values: one float, or two
// bfloat16.
struct GemmKernels {
  int64_t rows, cols;  // of a tile of C
  int64_t k_per_unit;
  // Unit j of column i goes to to[j * width + i]: values from[i * stride + l * step] for the l of
  // that unit; zeros where l ≥ k or i ≥ count. stride or step is 1.
  void (*pack)(float* to, int64_t width, const float* from, int64_t stride, int64_t step,
               int64_t count, int64_t k);
  // c[rows, cols] = (c +) Σ over units of a[unit][i] b[unit][j].
  void (*tile)(float* c, int64_t c_stride, const float* a, const float* b, int64_t units,
               int64_t rows, int64_t cols, bool accumulate);
};

#if defined(__x86_64__)
extern const GemmKernels kGemmAvx512Bf16;
#endif

}  // namespace reft::cpu
