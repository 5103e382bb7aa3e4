#include "backends/cpu/gemm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

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

TEST(Gemm, MatchesDoubleForEveryTranspositionAndEdge) {
  const int64_t sizes[][3] = {{1, 1, 1},    {8, 48, 16},  {7, 47, 255}, {9, 49, 257}, {0, 5, 4},
                              {5, 0, 4},    {3, 5, 0},    {33, 100, 1}, {1, 700, 64}, {130, 3, 300},
                              {65, 130, 520}, {200, 391, 40}};
  for (const auto& [m, n, k] : sizes) {
    for (int form = 0; form < 8; ++form) {
      const std::vector<float> a = random_floats(m * k, 1), b = random_floats(k * n, 2);
      const Matrix ma = matrix(a, m, k, form & 1), mb = matrix(b, k, n, form & 2);
      const bool accumulate = form & 4;
      const int64_t stride = n + 3;  // the gap must stay as it is
      std::vector<float> c = random_floats(m * stride, 3);
      const std::vector<float> before = c;
      gemm(c.data(), stride, ma, mb, m, n, k, accumulate);
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
TEST(Gemm, RowsDoNotDependOnTheirPlace) {
  constexpr int64_t kRows = 37, kCols = 70, kDepth = 600;
  const std::vector<float> a = random_floats(kRows * kDepth, 1),
                           b = random_floats(kCols * kDepth, 2);
  std::vector<float> all(kRows * kCols), one(kCols);
  const Matrix mb = Matrix::of(b.data(), kDepth).transposed();
  gemm(all.data(), kCols, Matrix::of(a.data(), kDepth), mb, kRows, kCols, kDepth, false);
  for (int64_t i = 0; i < kRows; ++i) {
    gemm(one.data(), kCols, Matrix::of(a.data() + i * kDepth, kDepth), mb, 1, kCols, kDepth, false);
    for (int64_t j = 0; j < kCols; ++j)
      ASSERT_EQ(one[static_cast<size_t>(j)], all[static_cast<size_t>(i * kCols + j)]);
  }
}

}  // namespace
}  // namespace reft::cpu
