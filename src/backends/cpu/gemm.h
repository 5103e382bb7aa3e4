// Matrix products for training: all transpositions, accumulating or not.
#pragma once

#include <cstdint>

namespace reft::cpu {

// Element (i, j) is data[i * row_stride + j * col_stride]; one of the strides is 1.
struct Matrix {
  const float* data;
  int64_t row_stride;
  int64_t col_stride;

  static Matrix of(const float* data, int64_t row_stride) { return {data, row_stride, 1}; }
  Matrix transposed() const { return {data, col_stride, row_stride}; }
};

// kBFloat16: operands are rounded to bfloat16 where the CPU multiplies it (AVX-512 BF16), twice as
// fast; sums stay float32. Elsewhere it is kFloat32.
enum class GemmPrecision { kFloat32, kBFloat16 };

// C = A B, or C += A B. A: [M, K], B: [K, N], C: [M, N] with rows c_stride apart. Every element is
// summed in the same order whatever M, N, its place and the number of threads are: over k, in fixed
// pieces. Uses the compute pool, or, called from one of its workers, that worker alone.
// Source: Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008).
void gemm(float* c, int64_t c_stride, const Matrix& a, const Matrix& b, int64_t m, int64_t n,
          int64_t k, bool accumulate, GemmPrecision precision = GemmPrecision::kFloat32);

}  // namespace reft::cpu
