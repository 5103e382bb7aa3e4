// Gradients of linear layers: products by cuBLASLt, which adds to what is there in its epilogue;
// where it is not there, or has nothing for the case, by a plain tiled kernel.
#include <algorithm>

#include "backends/cuda/gemm.h"
#include "backends/cuda/reduce.h"
#include "ops/linear.h"
#include "ops/norm.h"

namespace reft {
namespace {

constexpr int kTile = 16;

// c (+)= a b for operands of any strides and types.
template <class A, class B, class C>
__global__ void plain_gemm_kernel(C* __restrict__ c, int64_t c_stride, const A* __restrict__ a,
                                  int64_t a_row, int64_t a_column, const B* __restrict__ b,
                                  int64_t b_row, int64_t b_column, int64_t m, int64_t n, int64_t k,
                                  bool accumulate) {
  __shared__ float a_tile[kTile][kTile + 1], b_tile[kTile][kTile + 1];
  const int x = threadIdx.x % kTile, y = threadIdx.x / kTile;
  const int64_t tiles = (n + kTile - 1) / kTile;
  const int64_t row = blockIdx.x / tiles * kTile + y, column = blockIdx.x % tiles * kTile + x;
  float sum = 0.0f;
  for (int64_t k0 = 0; k0 < k; k0 += kTile) {
    a_tile[y][x] = row < m && k0 + x < k ? as_float(a[row * a_row + (k0 + x) * a_column]) : 0.0f;
    b_tile[y][x] =
        column < n && k0 + y < k ? as_float(b[(k0 + y) * b_row + column * b_column]) : 0.0f;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kTile; ++i) sum += a_tile[y][i] * b_tile[i][x];
    __syncthreads();
  }
  if (row >= m || column >= n) return;
  C& to = c[row * c_stride + column];
  to = as<C>(accumulate ? as_float(to) + sum : sum);
}

template <class From, class To>
__global__ void convert_kernel(To* __restrict__ to, const From* __restrict__ from, int64_t stride,
                               int64_t columns, int64_t n) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i < n) to[i] = as<To>(as_float(from[i / columns * stride + i % columns]));
}

// A packed copy in another float type.
Tensor converted(const Tensor& t, DType dtype) {
  const Tensor copy = Tensor::empty(t.shape(), dtype, t.device());
  dispatch_float(t.dtype(), "linear", [&](auto from) {
    dispatch_float(dtype, "linear", [&](auto to) {
      using From = decltype(from);
      using To = decltype(to);
      convert_kernel<From, To><<<blocks_for(t.numel(), 256), 256, 0, stream_of(t)>>>(
          ptr<To>(copy), ptr<From>(t), t.stride(0), t.size(1), t.numel());
      check_launch("linear (conversion)");
    });
  });
  return copy;
}

// Both operands of a product in one type: that of the weight, where they differ.
Tensor in_type_of_weight(const Tensor& t, DType weight) {
  return t.dtype() == weight || t.numel() == 0 ? t : converted(t, weight);
}

void linear_input_backward_cuda(const GradientSlot& dx, const Tensor& dy, const Weight& weight) {
  check(weight.data.defined(), "linear: the weight has no data");
  const DType dtype = weight.data.dtype();
  // A float32 gradient of a 16-bit product, or the other way round, goes by way of the other type.
  if (dx.tensor.dtype() != DType::kF32 && dx.tensor.dtype() != dtype) {
    const Tensor wide = Tensor::empty(dx.tensor.shape(), DType::kF32, dx.tensor.device());
    multiply(wide, {in_type_of_weight(dy, dtype)}, {weight.data}, false);
    add_gradient(dx, converted(wide, dx.tensor.dtype()));
    return;
  }
  multiply(dx.tensor, {in_type_of_weight(dy, dtype)}, {weight.data}, dx.accumulate);
}

void linear_weight_backward_cuda(const GradientSlot& dw, const Tensor& dy, const Tensor& x,
                                 DType weight) {
  multiply(dw.tensor, {in_type_of_weight(dy, weight), true}, {in_type_of_weight(x, weight)},
           dw.accumulate);
}

// Block (i, p): 32 columns, a piece of the rows; eight threads share the rows of a column.
template <class T>
__global__ void column_sums_kernel_cuda(float* __restrict__ pieces, const T* __restrict__ dy,
                                        int64_t stride, int64_t rows, int64_t columns,
                                        int64_t rows_per_piece) {
  __shared__ float sums[8][33];
  const int x = threadIdx.x % 32, y = threadIdx.x / 32;
  const int64_t column = blockIdx.x * int64_t{32} + x;
  const int64_t begin = blockIdx.y * rows_per_piece;
  const int64_t end = min(rows, begin + rows_per_piece);
  float sum = 0.0f;
  if (column < columns) {
    for (int64_t row = begin + y; row < end; row += 8) sum += as_float(dy[row * stride + column]);
  }
  sums[y][x] = sum;
  __syncthreads();
  if (y > 0 || column >= columns) return;
#pragma unroll
  for (int i = 1; i < 8; ++i) sum += sums[i][x];
  pieces[blockIdx.y * columns + column] = sum;
}

void column_sums_cuda(const GradientSlot& sums, const Tensor& dy) {
  const int64_t rows = dy.size(0), columns = dy.size(1);
  if (columns == 0) return;
  const int64_t pieces = num_pieces(rows, 128, dy.device().index);
  const int64_t rows_per_piece = (rows + pieces - 1) / pieces;
  const Tensor partial = Tensor::empty({pieces, columns}, DType::kF32, dy.device());
  dispatch_float(dy.dtype(), "column_sums", [&](auto type) {
    using T = decltype(type);
    column_sums_kernel_cuda<T>
        <<<dim3(blocks_for(columns, 32), static_cast<unsigned>(pieces)), 256, 0, stream_of(dy)>>>(
            ptr<float>(partial), ptr<T>(dy), dy.stride(0), rows, columns, rows_per_piece);
    check_launch("column_sums");
  });
  add_pieces(sums, partial);
}

__global__ void add_pieces_kernel(float* __restrict__ to, const float* __restrict__ pieces,
                                  int64_t num, int64_t stride, int64_t n, bool accumulate) {
  __shared__ float sums[8][33];
  const int x = threadIdx.x % 32, y = threadIdx.x / 32;
  const int64_t i = blockIdx.x * int64_t{32} + x;
  float sum = 0.0f;
  if (i < n) {
    for (int64_t p = y; p < num; p += 8) sum += pieces[p * stride + i];
  }
  sums[y][x] = sum;
  __syncthreads();
  if (y > 0 || i >= n) return;
#pragma unroll
  for (int j = 1; j < 8; ++j) sum += sums[j][x];
  to[i] = accumulate ? to[i] + sum : sum;
}

const RegisterKernel r1(linear_input_backward_kernel, DeviceType::kCuda,
                        &linear_input_backward_cuda);
const RegisterKernel r2(linear_weight_backward_kernel, DeviceType::kCuda,
                        &linear_weight_backward_cuda);
const RegisterKernel r3(column_sums_kernel, DeviceType::kCuda, &column_sums_cuda);

}  // namespace

void multiply(const Tensor& c, const GemmOperand& a, const GemmOperand& b, bool accumulate) {
  const int64_t m = a.rows(), n = b.columns(), k = a.columns();
  if (m == 0 || n == 0) return;
  if (k == 0) {
    if (!accumulate) c.fill_zero();
    return;
  }
  if (a.data.dtype() == b.data.dtype() && cublas_gemm(c, a, b, accumulate)) return;
  const auto step = [](const GemmOperand& x, bool along_rows) {
    return along_rows == x.transposed ? int64_t{1} : x.data.stride(0);
  };
  dispatch_float(a.data.dtype(), "linear", [&](auto a_type) {
    dispatch_float(b.data.dtype(), "linear", [&](auto b_type) {
      dispatch_float(c.dtype(), "linear", [&](auto c_type) {
        using A = decltype(a_type);
        using B = decltype(b_type);
        using C = decltype(c_type);
        const int64_t blocks = (m + kTile - 1) / kTile * ((n + kTile - 1) / kTile);
        plain_gemm_kernel<A, B, C>
            <<<static_cast<unsigned>(blocks), kTile * kTile, 0, stream_of(c)>>>(
                ptr<C>(c), c.stride(0), ptr<A>(a.data), step(a, true), step(a, false),
                ptr<B>(b.data), step(b, true), step(b, false), m, n, k, accumulate);
        check_launch("linear (plain product)");
      });
    });
  });
}

void add_pieces(const GradientSlot& to, const Tensor& pieces, int64_t offset) {
  const int64_t n = to.tensor.numel();
  if (n == 0) return;
  check(to.tensor.dtype() == DType::kF32, "gradients of vectors are float32 on CUDA, got {}",
        to.tensor);
  add_pieces_kernel<<<blocks_for(n, 32), 256, 0, stream_of(to.tensor)>>>(
      ptr<float>(to.tensor), ptr<float>(pieces) + offset, pieces.size(0), pieces.stride(0), n,
      to.accumulate);
  check_launch("sums of pieces");
}

}  // namespace reft
