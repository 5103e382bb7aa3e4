// What the kernels that stream weights for a few rows of x have in common.
#pragma once

#include "backends/cuda/activation.h"
#include "backends/cuda/mma.h"
#include "ops/linear.h"

namespace reft {

// The operands of such a product, as a kernel takes them. With a gate the weight's 2n rows are gate
// | up and y is [tokens, n].
struct StreamArgs {
  void* y;
  int64_t y_stride;
  const void* x;
  int64_t x_stride;
  const float* bias;  // or null
  int64_t tokens, n, k;
  bool gated, float_result;
  Activation activation;
};

inline StreamArgs stream_args(const Tensor& y, const Tensor& x, const Tensor& bias, bool gated,
                              Activation activation) {
  return {.y = y.raw(),
          .y_stride = y.stride(0),
          .x = x.raw(),
          .x_stride = x.stride(0),
          .bias = bias.defined() ? ptr<float>(bias) : nullptr,
          .tokens = x.size(0),
          .n = y.size(1),
          .k = x.size(1),
          .gated = gated,
          .float_result = y.dtype() == DType::kF32,
          .activation = activation};
}

#ifdef __CUDACC__

// The end of such a kernel: adds up the warps' 16 rows × 8 kTiles tokens (of a gated product 8 rows
// of the gate and the 8 of `up` that belong to them), and stores. row0: the first column of y.
// row_scale(r): what row r of the 16 is multiplied by. All threads call it.
template <class T, int kTiles, int kWarps, class Scale>
__device__ __forceinline__ void finish_stream(const StreamArgs& a, const float (&d)[kTiles][4],
                                              int64_t row0, Scale row_scale) {
  __shared__ float partial[kWarps][16][kTiles * 8 + 1];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    partial[warp][g][i * 8 + 2 * t] = d[i][0];
    partial[warp][g][i * 8 + 2 * t + 1] = d[i][1];
    partial[warp][g + 8][i * 8 + 2 * t] = d[i][2];
    partial[warp][g + 8][i * 8 + 2 * t + 1] = d[i][3];
  }
  __syncthreads();
  const int rows = a.gated ? 8 : 16;
  for (int i = threadIdx.x; i < rows * kTiles * 8; i += kWarps * 32) {
    const int row = i % rows, token = i / rows;
    if (row0 + row >= a.n || token >= a.tokens) continue;
    const auto sum_of = [&](int r, int64_t bias_row) {
      float sum = 0.0f;
#pragma unroll
      for (int p = 0; p < kWarps; ++p) sum += partial[p][r][token];
      return sum * row_scale(r) + (a.bias == nullptr ? 0.0f : a.bias[bias_row]);
    };
    float sum = sum_of(row, row0 + row);
    if (a.gated) {  // rounded as the product alone would be
      const float up = sum_of(row + 8, a.n + row0 + row);
      sum = gated(as_float(as<T>(sum)), as_float(as<T>(up)), a.activation);
    }
    const int64_t at = token * a.y_stride + row0 + row;
    if (a.float_result) {
      static_cast<float*>(a.y)[at] = sum;
    } else {
      static_cast<T*>(a.y)[at] = as<T>(sum);
    }
  }
}

#endif  // __CUDACC__

}  // namespace reft
