#include "backends/cpu/gemm.h"

#include <algorithm>
#include <cstring>

#include "backends/cpu/gemm_kernels.h"
#include "backends/cpu/isa.h"
#include "backends/cpu/simd.h"
#include "base/thread_pool.h"
#include "tensor/tensor.h"

namespace reft::cpu {
namespace {

// Depth of a block in units: its rows of A stay in the first-level cache, with kBlockPanels panels
// of B in the second.
constexpr int64_t kDepth = 256;
constexpr int64_t kBlockPanels = 8;
// Of A packed at a time.
constexpr int64_t kPackedFloats = 4 << 20;
// Multiplications below this are not worth handing out.
constexpr int64_t kInlineWork = 200'000;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

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

const GemmKernels& kernels_of(GemmPrecision precision) {
  static const GemmKernels floats = {.rows = simd_kernels().gemm_rows,
                                     .cols = simd_kernels().gemm_cols,
                                     .k_per_unit = 1,
                                     .pack = &pack,
                                     .tile = simd_kernels().gemm_tile};
#if defined(__x86_64__)
  if (precision == GemmPrecision::kBFloat16 && cpu_features().avx512_bf16) return kGemmAvx512Bf16;
#endif
  return floats;
}

// One block of rows of C, whose rows of A are packed: panels of `rows`, each [units, rows].
class Product {
 public:
  Product(const GemmKernels& kernels, float* c, int64_t c_stride, const Matrix& a, const Matrix& b,
          int64_t m, int64_t n, int64_t k, bool accumulate)
      : kernels_(kernels),
        c_(c),
        c_stride_(c_stride),
        a_(a),
        b_(b),
        m_(m),
        n_(n),
        k_(k),
        units_(ceil_div(k, kernels.k_per_unit)),
        accumulate_(accumulate),
        row_panels_(ceil_div(m, rows_)),
        col_panels_(ceil_div(n, cols_)),
        packed_(Tensor::empty({row_panels_ * rows_ * units_}, DType::kF32)) {}

  void run() {
    const int64_t threads = m_ * n_ * k_ > kInlineWork ? compute_pool().num_threads() : 1;
    compute_pool().parallel_for(row_panels_, ceil_div(row_panels_, 4 * threads),
                                [&](int64_t begin, int64_t end) { pack_rows(begin, end); });
    const int64_t col_blocks =
        std::min(ceil_div(ceil_div(col_panels_, kBlockPanels), threads) * threads, col_panels_);
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
      kernels_.pack(packed_.data<float>() + p * rows_ * units_, rows_,
                    a_.data + p * rows_ * a_.row_stride, a_.row_stride, a_.col_stride,
                    std::min(rows_, m_ - p * rows_), k_);
    }
  }

  void multiply(int64_t row_begin, int64_t row_end, int64_t col_begin, int64_t col_end) {
    const int64_t most = std::min(kBlockPanels, col_end - col_begin);
    const Tensor block = Tensor::empty({most * cols_ * std::min(kDepth, units_)}, DType::kF32);
    for (int64_t col = col_begin; col < col_end; col += kBlockPanels) {
      const int64_t panels = std::min(kBlockPanels, col_end - col);
      for (int64_t unit = 0; unit < units_; unit += kDepth) {
        const int64_t units = std::min(kDepth, units_ - unit);
        pack_columns(block.data<float>(), col, panels, unit, units);
        for (int64_t row = row_begin; row < row_end; ++row) {
          const float* a = packed_.data<float>() + (row * units_ + unit) * rows_;
          const int64_t i = row * rows_;
          for (int64_t p = 0; p < panels; ++p) {
            const int64_t j = (col + p) * cols_;
            kernels_.tile(c_ + i * c_stride_ + j, c_stride_, a,
                          block.data<float>() + p * cols_ * units, units, std::min(rows_, m_ - i),
                          std::min(cols_, n_ - j), accumulate_ || unit > 0);
          }
        }
      }
    }
  }

  void pack_columns(float* to, int64_t col, int64_t panels, int64_t unit, int64_t units) const {
    const int64_t k = unit * kernels_.k_per_unit;
    const int64_t depth = std::min(k_ - k, units * kernels_.k_per_unit);
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t j = (col + p) * cols_;
      kernels_.pack(to + p * cols_ * units, cols_, b_.data + k * b_.row_stride + j * b_.col_stride,
                    b_.col_stride, b_.row_stride, std::min(cols_, n_ - j), depth);
    }
  }

  const GemmKernels& kernels_;
  const int64_t rows_ = kernels_.rows;
  const int64_t cols_ = kernels_.cols;
  float* const c_;
  const int64_t c_stride_;
  const Matrix a_, b_;
  const int64_t m_, n_, k_, units_;
  const bool accumulate_;
  const int64_t row_panels_, col_panels_;
  const Tensor packed_;
};

}  // namespace

void gemm(float* c, int64_t c_stride, const Matrix& a, const Matrix& b, int64_t m, int64_t n,
          int64_t k, bool accumulate, GemmPrecision precision) {
  if (k == 0 && !accumulate) {
    for (int64_t i = 0; i < m; ++i) std::fill(c + i * c_stride, c + i * c_stride + n, 0.0f);
  }
  if (m == 0 || n == 0 || k == 0) return;
  const GemmKernels& kernels = kernels_of(precision);
  const int64_t rows = kernels.rows;
  const int64_t block = std::max(rows, kPackedFloats / k / rows * rows);
  for (int64_t i = 0; i < m; i += block) {
    Product(kernels, c + i * c_stride, c_stride,
            {a.data + i * a.row_stride, a.row_stride, a.col_stride}, b, std::min(block, m - i), n,
            k, accumulate)
        .run();
  }
}

}  // namespace reft::cpu
