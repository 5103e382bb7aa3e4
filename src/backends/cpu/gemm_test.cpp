#include "backends/cpu/gemm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "backends/cpu/isa.h"
#include "tensor/float_types.h"

namespace reft::cpu {
namespace {

std::vector<float> random_floats(int64_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(n));
  for (float& x : values) x = normal(random);
  return values;
}

// Element (i, j) of [rows, cols] lies at i * row_stride + j * col_stride.
Matrix matrix(const std::vector<float>& data, int64_t rows, int64_t cols, bool transposed) {
  return transposed ? Matrix::of(data.data(), rows).transposed() : Matrix::of(data.data(), cols);
}

class Gemm : public testing::TestWithParam<GemmPrecision> {};

// What the product sees of its operands.
std::vector<float> operands(int64_t n, uint32_t seed, GemmPrecision precision) {
  std::vector<float> values = random_floats(n, seed);
  const bool rounds = precision == GemmPrecision::kBFloat16 && cpu_features().avx512_bf16;
  for (float& x : values) x = rounds ? to_float(to_bf16(x)) : x;
  return values;
}

TEST_P(Gemm, MatchesDoubleForEveryTranspositionAndEdge) {
  const int64_t sizes[][3] = {{1, 1, 1},    {8, 48, 16},   {7, 47, 255},   {9, 49, 257},
                              {0, 5, 4},    {5, 0, 4},     {3, 5, 0},      {33, 100, 1},
                              {1, 700, 64}, {130, 3, 300}, {65, 130, 520}, {200, 391, 40}};
  for (const auto& [m, n, k] : sizes) {
    for (int form = 0; form < 8; ++form) {
      const std::vector<float> a = operands(m * k, 1, GetParam()),
                               b = operands(k * n, 2, GetParam());
      const Matrix ma = matrix(a, m, k, form & 1), mb = matrix(b, k, n, form & 2);
      const bool accumulate = form & 4;
      const int64_t stride = n + 3;  // the gap must stay as it is
      std::vector<float> c = random_floats(m * stride, 3);
      const std::vector<float> before = c;
      gemm(c.data(), stride, ma, mb, m, n, k, accumulate, GetParam());
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < stride; ++j) {
          const auto at = static_cast<size_t>(i * stride + j);
          if (j >= n) {
            ASSERT_EQ(c[at], before[at]);
            continue;
          }
          double sum = accumulate ? before[at] : 0.0, size = std::abs(sum);
          for (int64_t l = 0; l < k; ++l) {
            const double term = double{ma.data[i * ma.row_stride + l * ma.col_stride]} *
                                mb.data[l * mb.row_stride + j * mb.col_stride];
            sum += term;
            size += std::abs(term);
          }
          ASSERT_NEAR(c[at], sum, 1e-6 * size + 1e-12)
              << m << "x" << n << "x" << k << " form " << form << " at " << i << ", " << j;
        }
      }
    }
  }
}

// A row's result does not depend on the rows beside it: packed documents do not touch.
TEST_P(Gemm, RowsDoNotDependOnTheirPlace) {
  constexpr int64_t kRows = 37, kCols = 70, kDepth = 600;
  const std::vector<float> a = random_floats(kRows * kDepth, 1),
                           b = random_floats(kCols * kDepth, 2);
  std::vector<float> all(kRows * kCols), one(kCols);
  const Matrix mb = Matrix::of(b.data(), kDepth).transposed();
  gemm(all.data(), kCols, Matrix::of(a.data(), kDepth), mb, kRows, kCols, kDepth, false,
       GetParam());
  for (int64_t i = 0; i < kRows; ++i) {
    gemm(one.data(), kCols, Matrix::of(a.data() + i * kDepth, kDepth), mb, 1, kCols, kDepth, false,
         GetParam());
    for (int64_t j = 0; j < kCols; ++j)
      ASSERT_EQ(one[static_cast<size_t>(j)], all[static_cast<size_t>(i * kCols + j)]);
  }
}

// Operands that are no bfloat16 are rounded to the nearest.
TEST(GemmBFloat16, RoundsToNearest) {
  constexpr GemmPrecision kPrecision = GemmPrecision::kBFloat16;
  const std::vector<float> a = random_floats(20 * 33, 1), b = random_floats(33 * 60, 2);
  const std::vector<float> rounded_a = operands(20 * 33, 1, kPrecision);
  const std::vector<float> rounded_b = operands(33 * 60, 2, kPrecision);
  for (const bool transposed : {false, true}) {
    std::vector<float> got(20 * 60), want(20 * 60);
    gemm(got.data(), 60, matrix(a, 20, 33, transposed), matrix(b, 33, 60, transposed), 20, 60, 33,
         false, kPrecision);
    gemm(want.data(), 60, matrix(rounded_a, 20, 33, transposed),
         matrix(rounded_b, 33, 60, transposed), 20, 60, 33, false, kPrecision);
    EXPECT_EQ(got, want);
  }
}

INSTANTIATE_TEST_SUITE_P(Precisions, Gemm,
                         testing::Values(GemmPrecision::kFloat32, GemmPrecision::kBFloat16));

}  // namespace
}  // namespace reft::cpu
