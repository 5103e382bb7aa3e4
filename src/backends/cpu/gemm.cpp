#include "backends/cpu/gemm.h"

#include <algorithm>
#include <cstring>

#include "backends/cpu/simd.h"
#include "base/thread_pool.h"
#include "tensor/tensor.h"

namespace reft::cpu {
namespace {

// Depth of a block: its rows of A stay in the first-level cache, with kBlockPanels panels of B in
// the second.
constexpr int64_t kDepth = 256;
constexpr int64_t kBlockPanels = 8;
// Of A packed at a time.
constexpr int64_t kPackedFloats = 4 << 20;
// Multiplications below this are not worth handing out.
constexpr int64_t kInlineWork = 200'000;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// to[j * width + i] = from[i * stride + j * step] for i < count ≤ width and j < k, zeros beyond
// count. stride or step is 1.
void pack(float* to, int64_t width, const float* from, int64_t stride, int64_t step, int64_t count,
          int64_t k) {
  if (stride == 1) {
    for (int64_t j = 0; j < k; ++j, to += width) {
      std::memcpy(to, from + j * step, static_cast<size_t>(count) * sizeof(float));
      std::fill(to + count, to + width, 0.0f);
    }
    return;
  }
  constexpr int64_t kLine = 16;  // of each row, read at once
  for (int64_t j = 0; j < k; j += kLine) {
    const int64_t n = std::min(kLine, k - j);
    for (int64_t i = 0; i < count; ++i) {
      const float* row = from + i * stride + j;
      for (int64_t l = 0; l < n; ++l) to[(j + l) * width + i] = row[l];
    }
    for (int64_t l = 0; l < n && count < width; ++l)
      std::fill(to + (j + l) * width + count, to + (j + l + 1) * width, 0.0f);
  }
}

// One block of rows of C, whose rows of A are packed: panels of `rows`, each [K, rows].
class Product {
 public:
  Product(float* c, int64_t c_stride, const Matrix& a, const Matrix& b, int64_t m, int64_t n,
          int64_t k, bool accumulate)
      : c_(c),
        c_stride_(c_stride),
        a_(a),
        b_(b),
        m_(m),
        n_(n),
        k_(k),
        accumulate_(accumulate),
        row_panels_(ceil_div(m, rows_)),
        col_panels_(ceil_div(n, cols_)),
        packed_(Tensor::empty({row_panels_ * rows_ * k}, DType::kF32)) {}

  void run() {
    const int64_t threads = m_ * n_ * k_ > kInlineWork ? compute_pool().num_threads() : 1;
    compute_pool().parallel_for(row_panels_, ceil_div(row_panels_, 4 * threads),
                                [&](int64_t begin, int64_t end) { pack_rows(begin, end); });
    const int64_t col_blocks = std::min(
        ceil_div(ceil_div(col_panels_, kBlockPanels), threads) * threads, col_panels_);
    const int64_t row_blocks = std::min(ceil_div(threads, col_blocks), row_panels_);
    const int64_t tasks = col_blocks * row_blocks;
    compute_pool().parallel_for(tasks, threads == 1 ? tasks : 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t col = i / row_blocks, row = i % row_blocks;
        multiply(row_panels_ * row / row_blocks, row_panels_ * (row + 1) / row_blocks,
                 col_panels_ * col / col_blocks, col_panels_ * (col + 1) / col_blocks);
      }
    });
  }

 private:
  void pack_rows(int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      pack(packed_.data<float>() + p * rows_ * k_, rows_, a_.data + p * rows_ * a_.row_stride,
           a_.row_stride, a_.col_stride, std::min(rows_, m_ - p * rows_), k_);
    }
  }

  void multiply(int64_t row_begin, int64_t row_end, int64_t col_begin, int64_t col_end) {
    const Tensor block =
        Tensor::empty({std::min(kBlockPanels, col_end - col_begin) * cols_ * std::min(kDepth, k_)},
                      DType::kF32);
    for (int64_t col = col_begin; col < col_end; col += kBlockPanels) {
      const int64_t panels = std::min(kBlockPanels, col_end - col);
      for (int64_t k = 0; k < k_; k += kDepth) {
        const int64_t depth = std::min(kDepth, k_ - k);
        float* packed_b = block.data<float>();
        for (int64_t p = 0; p < panels; ++p) {
          const int64_t j = (col + p) * cols_;
          pack(packed_b + p * cols_ * depth, cols_,
               b_.data + k * b_.row_stride + j * b_.col_stride, b_.col_stride, b_.row_stride,
               std::min(cols_, n_ - j), depth);
        }
        for (int64_t row = row_begin; row < row_end; ++row) {
          const float* packed_a = packed_.data<float>() + (row * k_ + k) * rows_;
          const int64_t i = row * rows_;
          for (int64_t p = 0; p < panels; ++p) {
            const int64_t j = (col + p) * cols_;
            simd_.gemm_tile(c_ + i * c_stride_ + j, c_stride_, packed_a,
                            packed_b + p * cols_ * depth, depth, std::min(rows_, m_ - i),
                            std::min(cols_, n_ - j), accumulate_ || k > 0);
          }
        }
      }
    }
  }

  const SimdKernels& simd_ = simd_kernels();
  const int64_t rows_ = simd_.gemm_rows;  // of a tile of C
  const int64_t cols_ = simd_.gemm_cols;
  float* const c_;
  const int64_t c_stride_;
  const Matrix a_, b_;
  const int64_t m_, n_, k_;
  const bool accumulate_;
  const int64_t row_panels_, col_panels_;
  const Tensor packed_;
};

}  // namespace

void gemm(float* c, int64_t c_stride, const Matrix& a, const Matrix& b, int64_t m, int64_t n,
          int64_t k, bool accumulate) {
  if (k == 0 && !accumulate) {
    for (int64_t i = 0; i < m; ++i) std::fill(c + i * c_stride, c + i * c_stride + n, 0.0f);
  }
  if (m == 0 || n == 0 || k == 0) return;
  const int64_t rows = simd_kernels().gemm_rows;
  const int64_t block = std::max(rows, kPackedFloats / k / rows * rows);
  for (int64_t i = 0; i < m; i += block) {
    Product(c + i * c_stride, c_stride, {a.data + i * a.row_stride, a.row_stride, a.col_stride}, b,
            std::min(block, m - i), n, k, accumulate)
        .run();
  }
}

}  // namespace reft::cpu
