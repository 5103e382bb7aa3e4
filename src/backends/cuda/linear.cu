// y = x Wᵀ + b. Few rows of x: a kernel that streams the weights once at memory bandwidth. Many
// rows: cuBLASLt, opened at run time. Anything else (mixed types, small float32 products): a plain
// kernel.
#include <algorithm>

#include "backends/cuda/activation.h"
#include "backends/cuda/cublas.h"
#include "backends/cuda/linear_quantized.h"
#include "backends/cuda/mma.h"
#include "ops/linear.h"

namespace reft {
namespace {

constexpr int kStreamRows = 16;  // rows of W per block
constexpr int kStreamSlice =
    64;  // elements of K that a warp takes at a time: 128 bytes of each row
constexpr int64_t kStreamTokens = 16;       // rows of x at most
constexpr int kWideTokens = 32;             // of stream_wide_kernel
constexpr int64_t kLargeProduct = 1 << 24;  // multiplications from which float32 goes to cuBLASLt

// One block: 16 rows of W against up to 8 * kTiles rows of x. Warp w takes the slices w, w +
// kWarps, … of K. The order of k inside a slice is the same permutation for W and x: lane (g, t)
// holds two runs of 8 k of row g, four matrix instructions' worth. Runs 32 apart make a load of a
// warp take whole 64-byte pieces of its rows, which is faster for short rows; neighbours are for
// long ones.
//
// Short rows (a few slices a warp) are bound by latency: few registers for many warps, all loads
// before the first product, and the first weights on their way while the kernel before ends. Long
// rows are bound by bandwidth: four slices in flight a warp, and an ordinary launch, beside which
// an early one was slower (4B, one token: 4.1 ms a step against 3.9).
//
// With a gate, the block's rows are 8 of the gate and the 8 of `up` that lie n below: what belongs
// together meets in one block, and y has n columns.
template <class T, class Out, int kTiles, int kWarps, bool kShort, bool kGated>
__global__ void __launch_bounds__(kWarps * 32, kShort ? 32 / kWarps : 0)
    stream_kernel(Out* __restrict__ y, int64_t y_stride, const T* __restrict__ x, int64_t x_stride,
                  const T* __restrict__ w, const float* __restrict__ bias, int64_t tokens,
                  int64_t n, int64_t k, Activation activation) {
  constexpr int kRows = kGated ? kStreamRows / 2 : kStreamRows;  // columns of y
  constexpr int kLane = kShort ? 8 : 16, kRun = kShort ? 32 : 8;
  __shared__ float partial[kWarps][kStreamRows][kTiles * 8 + 1];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int64_t row0 = blockIdx.x * int64_t{kRows};
  // Rows past the end read the last row; their results are not stored.
  const T* w0 = w + min(row0 + g, n - 1) * k + t * kLane;
  const T* w1 = w + (kGated ? n + min(row0 + g, n - 1) : min(row0 + g + 8, n - 1)) * k + t * kLane;
  const T* x_rows[kTiles];
#pragma unroll
  for (int i = 0; i < kTiles; ++i)
    x_rows[i] = x + min(int64_t{i * 8 + g}, tokens - 1) * x_stride + t * kLane;
  float d[kTiles][4] = {};
  constexpr int kUnroll = !kShort ? 4 : kTiles == 1 ? 2 : 1;
  const int slices = static_cast<int>(k / kStreamSlice);
  if constexpr (kShort) {
    uint4 a0[kUnroll][2], a1[kUnroll][2];
    const uint4 zeros = make_uint4(0, 0, 0, 0);
    const auto load_weights = [&](int base) {
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int slice = base + u * kWarps;
        const bool inside = slice < slices;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          a0[u][h] = inside ? load_stream(w0 + int64_t{slice} * kStreamSlice + h * kRun) : zeros;
          a1[u][h] = inside ? load_stream(w1 + int64_t{slice} * kStreamSlice + h * kRun) : zeros;
        }
      }
    };
    allow_next();
    load_weights(warp);
    await_inputs();
    for (int base = warp; base < slices; base += kWarps * kUnroll) {
      if (base != warp) load_weights(base);
      uint4 b[kUnroll][2][kTiles];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int64_t at = int64_t{min(base + u * kWarps, slices - 1)} * kStreamSlice;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
#pragma unroll
          for (int i = 0; i < kTiles; ++i) b[u][h][i] = load_after_wait(x_rows[i] + at + h * kRun);
        }
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (base + u * kWarps >= slices) continue;  // zeros times what may be no number
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const uint32_t first[4] = {a0[u][h].x, a1[u][h].x, a0[u][h].y, a1[u][h].y};
          const uint32_t second[4] = {a0[u][h].z, a1[u][h].z, a0[u][h].w, a1[u][h].w};
#pragma unroll
          for (int i = 0; i < kTiles; ++i) {
            mma_16816<T>(d[i], first, b[u][h][i].x, b[u][h][i].y);
            mma_16816<T>(d[i], second, b[u][h][i].z, b[u][h][i].w);
          }
        }
      }
    }
  } else {
    for (int base = warp; base < slices; base += kWarps * kUnroll) {
      uint4 a0[kUnroll][2], a1[kUnroll][2];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int slice = base + u * kWarps;
        const int64_t at = int64_t{slice < slices ? slice : base} * kStreamSlice;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          a0[u][h] = load_stream(w0 + at + h * kRun);
          a1[u][h] = load_stream(w1 + at + h * kRun);
        }
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int slice = base + u * kWarps;
        if (slice >= slices) break;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const uint32_t first[4] = {a0[u][h].x, a1[u][h].x, a0[u][h].y, a1[u][h].y};
          const uint32_t second[4] = {a0[u][h].z, a1[u][h].z, a0[u][h].w, a1[u][h].w};
#pragma unroll
          for (int i = 0; i < kTiles; ++i) {
            const uint4 b = *reinterpret_cast<const uint4*>(
                x_rows[i] + int64_t{slice} * kStreamSlice + h * kRun);
            mma_16816<T>(d[i], first, b.x, b.y);
            mma_16816<T>(d[i], second, b.z, b.w);
          }
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    partial[warp][g][i * 8 + 2 * t] = d[i][0];
    partial[warp][g][i * 8 + 2 * t + 1] = d[i][1];
    partial[warp][g + 8][i * 8 + 2 * t] = d[i][2];
    partial[warp][g + 8][i * 8 + 2 * t + 1] = d[i][3];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kRows * kTiles * 8; i += kWarps * 32) {
    const int row = i % kRows, token = i / kRows;
    if (row0 + row >= n || token >= tokens) continue;
    float sum = bias == nullptr ? 0.0f : bias[row0 + row];
#pragma unroll
    for (int p = 0; p < kWarps; ++p) sum += partial[p][row][token];
    if constexpr (kGated) {
      float up = bias == nullptr ? 0.0f : bias[n + row0 + row];
#pragma unroll
      for (int p = 0; p < kWarps; ++p) up += partial[p][row + kRows][token];
      // Rounded as the product alone would be.
      sum = gated(as_float(as<T>(sum)), as_float(as<T>(up)), activation);
    }
    y[token * y_stride + row0 + row] = as<Out>(sum);
  }
}

// Floats of a token's row of partial sums.
constexpr int wide_pitch(int tiles) { return tiles * 8 + 2; }

// 8 * kTiles rows of W a warp against up to 32 rows of x, which are the rows of the product: so
// many rows of W share what is loaded of x, which comes from L2 and would otherwise be the limit.
// The warps of a block share K as above. The first weights are on their way while the kernel ahead
// ends.
template <class T, class Out, int kTiles, int kWarps, bool kGated>
__global__ void __launch_bounds__(kWarps * 32)
    stream_wide_kernel(Out* __restrict__ y, int64_t y_stride, const T* __restrict__ x,
                       int64_t x_stride, const T* __restrict__ w, const float* __restrict__ bias,
                       int64_t tokens, int64_t n, int64_t k, Activation activation) {
  constexpr int kColumns = kGated ? kTiles * 4 : kTiles * 8;  // of y
  constexpr int kPitch = wide_pitch(kTiles);
  extern __shared__ float partial[];  // [warp][token][kPitch]
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int64_t column0 = blockIdx.x * int64_t{kColumns};
  const T* w_rows[kTiles];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    const bool is_up = kGated && i >= kTiles / 2;
    const int64_t row = column0 + (is_up ? i - kTiles / 2 : i) * 8 + g;
    w_rows[i] = w + (min(row, n - 1) + (is_up ? n : 0)) * k + t * 8;
  }
  const T* x_rows[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    x_rows[i] = x + min(int64_t{i * 8 + g}, tokens - 1) * x_stride + t * 8;
  const int slices = static_cast<int>(k / kStreamSlice);
  float d[2][kTiles][4] = {};
  uint4 b[kTiles][2];
  const auto load_weights = [&](int slice) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h)
        b[i][h] = load_stream(w_rows[i] + int64_t{slice} * kStreamSlice + h * 32);
    }
  };
  if (warp < slices) load_weights(warp);
  await_inputs();
  allow_next();
  for (int slice = warp; slice < slices; slice += kWarps) {
    uint4 a[2][4];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        a[h][i] = load_after_wait(x_rows[i] + int64_t{slice} * kStreamSlice + h * 32);
    }
    if (slice != warp) load_weights(slice);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const uint4 low = a[h][2 * m], high = a[h][2 * m + 1];
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
          mma_16816<T>(d[m][i], {low.x, high.x, low.y, high.y}, b[i][h].x, b[i][h].y);
          mma_16816<T>(d[m][i], {low.z, high.z, low.w, high.w}, b[i][h].z, b[i][h].w);
        }
      }
    }
  }
  float* mine = partial + warp * kWideTokens * kPitch;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      float* at = mine + (m * 16 + g) * kPitch + i * 8 + 2 * t;
      *reinterpret_cast<float2*>(at) = make_float2(d[m][i][0], d[m][i][1]);
      *reinterpret_cast<float2*>(at + 8 * kPitch) = make_float2(d[m][i][2], d[m][i][3]);
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kColumns * kWideTokens; i += kWarps * 32) {
    const int token = i / kColumns, column = i % kColumns;
    const int64_t to = column0 + column;
    if (to >= n || token >= tokens) continue;
    const float* from = partial + token * kPitch + column;
    constexpr int kStep = kWideTokens * kPitch;  // to the next warp's
    float sum = bias == nullptr ? 0.0f : bias[to];
#pragma unroll
    for (int p = 0; p < kWarps; ++p) sum += from[p * kStep];
    if constexpr (kGated) {
      float up = bias == nullptr ? 0.0f : bias[n + to];
#pragma unroll
      for (int p = 0; p < kWarps; ++p) up += from[p * kStep + kColumns];
      sum = gated(as_float(as<T>(sum)), as_float(as<T>(up)), activation);
    }
    y[token * y_stride + to] = as<Out>(sum);
  }
}

// Any shape and type: one warp per output element.
template <class T, class W, class Out>
__global__ void plain_kernel(Out* __restrict__ y, int64_t y_stride, const T* __restrict__ x,
                             int64_t x_stride, const W* __restrict__ w,
                             const float* __restrict__ bias, int64_t tokens, int64_t n, int64_t k) {
  const int64_t item = (blockIdx.x * int64_t{blockDim.x} + threadIdx.x) / 32;
  const int lane = threadIdx.x % 32;
  if (item >= tokens * n) return;
  const int64_t token = item / n, row = item % n;
  float sum = 0.0f;
  for (int64_t i = lane; i < k; i += 32)
    sum += as_float(x[token * x_stride + i]) * as_float(w[row * k + i]);
  sum = warp_sum(sum);
  if (lane == 0) y[token * y_stride + row] = as<Out>(sum + (bias == nullptr ? 0.0f : bias[row]));
}

template <class Out>
__global__ void add_bias_kernel(Out* __restrict__ y, int64_t y_stride,
                                const float* __restrict__ bias, int64_t n, int64_t total) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= total) return;
  Out& value = y[i / n * y_stride + i % n];
  value = as<Out>(as_float(value) + bias[i % n]);
}

template <class T, class Out, bool kGated>
void launch_stream(Tensor& y, const Tensor& x, const Tensor& w, const float* bias,
                   Activation activation = Activation::kSilu) {
  const int64_t tokens = x.size(0), n = y.size(1), k = w.size(1);
  const unsigned grid = blocks_for(w.size(0), kStreamRows);
  const auto run = [&]<int kTiles, int kWarps>() {
    const auto launch = [&](auto kernel, bool early) {
      early ? launch_dependent("linear (stream)", kernel, x.device().index, dim3(grid), kWarps * 32,
                               0, ptr<Out>(y), y.stride(0), ptr<T>(x), x.stride(0), ptr<T>(w), bias,
                               tokens, n, k, activation)
            : kernel<<<grid, kWarps * 32, 0, stream_of(x)>>>(ptr<Out>(y), y.stride(0), ptr<T>(x),
                                                             x.stride(0), ptr<T>(w), bias, tokens,
                                                             n, k, activation);
    };
    k / kStreamSlice <= 3 * kWarps
        ? launch(&stream_kernel<T, Out, kTiles, kWarps, true, kGated>, true)
        : launch(&stream_kernel<T, Out, kTiles, kWarps, false, kGated>, false);
  };
  // Few blocks: more warps each, so that enough loads are in flight.
  const bool few = grid < 2u * static_cast<unsigned>(cuda_num_sms(x.device().index));
  if (tokens <= 8) {
    few ? run.template operator()<1, 16>() : run.template operator()<1, 8>();
  } else {
    few ? run.template operator()<2, 16>() : run.template operator()<2, 8>();
  }
  check_launch("linear (stream)");
}

// Whether launch_wide is faster than cuBLASLt, which wins from some MB of weights on (Qwen3-4B).
bool is_wide(int64_t tokens, int64_t columns, int64_t k) {
  return tokens <= kWideTokens && columns * k <= int64_t{4} << 20;
}

template <class T, class Out, bool kGated>
void launch_wide(Tensor& y, const Tensor& x, const Tensor& w, const float* bias,
                 Activation activation = Activation::kSilu) {
  const int64_t n = y.size(1);
  const auto run = [&]<int kTiles, int kWarps>() {
    constexpr auto kernel = &stream_wide_kernel<T, Out, kTiles, kWarps, kGated>;
    constexpr int kSharedBytes = kWarps * kWideTokens * wide_pitch(kTiles) * 4;
    static const cudaError_t raised =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
    cuda_check(raised, "raising the shared memory of linear");
    launch_dependent("linear (wide stream)", kernel, x.device().index,
                     dim3(blocks_for(n, kGated ? kTiles * 4 : kTiles * 8)), kWarps * 32,
                     kSharedBytes, ptr<Out>(y), y.stride(0), ptr<T>(x), x.stride(0), ptr<T>(w),
                     bias, x.size(0), n, w.size(1), activation);
  };
  // As measured over the products of Qwen3-0.6B: few rows of W, fewer a warp and more warps.
  if constexpr (kGated) {
    run.template operator()<6, 8>();
  } else if (n <= 16 * cuda_num_sms(x.device().index)) {
    run.template operator()<2, 16>();
  } else {
    run.template operator()<3, 8>();
  }
}

bool can_stream(const Tensor& x, const Tensor& w) {
  return x.dtype() == w.dtype() && x.dtype() != DType::kF32 && w.size(1) % kStreamSlice == 0 &&
         aligned_16(x.raw()) && x.stride(0) % 8 == 0 && aligned_16(w.raw());
}

bool gated_linear_cuda(Tensor& y, const Tensor& x, const Weight& weight, const Tensor& bias,
                       Activation activation) {
  if (weight.packed != nullptr) return blocks_gated_linear_cuda(y, x, weight, bias, activation);
  if (weight.scales.defined()) return fp8_gated_linear_cuda(y, x, weight, bias, activation);
  const int64_t tokens = x.size(0);
  // 8 rows of the gate and 8 of `up` fill a block: no block may hold both an end and a beginning.
  if (!weight.data.defined() || y.size(1) % 8 != 0 || !can_stream(x, weight.data) ||
      (tokens > kStreamTokens && !is_wide(tokens, y.size(1), x.size(1)))) {
    return false;
  }
  dispatch_half(x.dtype(), "gated_linear", [&](auto type) {
    using T = decltype(type);
    const auto launch =
        tokens <= kStreamTokens ? &launch_stream<T, T, true> : &launch_wide<T, T, true>;
    launch(y, x, weight.data, bias.defined() ? ptr<float>(bias) : nullptr, activation);
  });
  return true;
}

void linear_cuda(Tensor& y, const Tensor& x, const Weight& weight, const Tensor& bias) {
  if (weight.packed != nullptr) return blocks_linear_cuda(y, x, weight, bias);
  if (weight.scales.defined()) return fp8_linear_cuda(y, x, weight, bias);
  const Tensor& w = weight.data;
  const int64_t tokens = x.size(0), n = w.size(0), k = w.size(1);
  if (tokens == 0 || n == 0) return;
  const float* bias_values = bias.defined() ? ptr<float>(bias) : nullptr;
  const bool half = x.dtype() == w.dtype() && x.dtype() != DType::kF32;
  const bool streams = can_stream(x, w);
  const auto with_types = [&](auto f) {
    dispatch_half(x.dtype(), "linear", [&](auto type) {
      using T = decltype(type);
      if (y.dtype() == DType::kF32) return f(T{}, float{});
      f(T{}, T{});
    });
  };
  if (streams && (tokens <= kStreamTokens || is_wide(tokens, n, k))) {
    with_types([&](auto t, auto out) {
      using T = decltype(t);
      using Out = decltype(out);
      tokens <= kStreamTokens ? launch_stream<T, Out, false>(y, x, w, bias_values)
                              : launch_wide<T, Out, false>(y, x, w, bias_values);
    });
    return;
  }
  const bool large_floats = x.dtype() == w.dtype() && !half && tokens * n * k >= kLargeProduct;
  if ((half || large_floats) && cublas_linear(y, x, w)) {
    if (bias_values == nullptr) return;
    return add_bias_cuda(y, bias);
  }
  if (streams) {  // no cuBLASLt: the weights once for every few rows
    for (int64_t begin = 0; begin < tokens; begin += kStreamTokens) {
      const int64_t end = std::min(tokens, begin + kStreamTokens);
      Tensor y_rows = y.rows(begin, end);
      with_types([&](auto t, auto out) {
        launch_stream<decltype(t), decltype(out), false>(y_rows, x.rows(begin, end), w,
                                                         bias_values);
      });
    }
    return;
  }
  dispatch_float(x.dtype(), "linear", [&](auto type) {
    using T = decltype(type);
    dispatch_float(w.dtype(), "linear", [&](auto w_type) {
      using W = decltype(w_type);
      dispatch_float(y.dtype(), "linear", [&](auto out_type) {
        using Out = decltype(out_type);
        plain_kernel<T, W, Out><<<blocks_for(tokens * n, 8), 256, 0, stream_of(x)>>>(
            ptr<Out>(y), y.stride(0), ptr<T>(x), x.stride(0), ptr<W>(w), bias_values, tokens, n, k);
        check_launch("linear (plain)");
      });
    });
  });
}

// Floats are used as they are: [N, K] rows in the compute type.
void prepare_weight_cuda(Weight& weight, DType compute, bool) {
  if (is_block_format(weight.dtype)) return pack_blocks_cuda(weight);
  if (weight.scales.defined()) return prepare_fp8_cuda(weight);
  check(weight.dtype == compute, "prepare_weight: {} on CUDA", dtype_name(weight.dtype));
}

const RegisterKernel r1(linear_kernel, DeviceType::kCuda, &linear_cuda);
const RegisterKernel r3(gated_linear_kernel, DeviceType::kCuda, &gated_linear_cuda);
const RegisterKernel r2(prepare_weight_kernel, DeviceType::kCuda, &prepare_weight_cuda);

}  // namespace

void add_bias_cuda(Tensor& y, const Tensor& bias) {
  dispatch_float(y.dtype(), "linear", [&](auto out) {
    using Out = decltype(out);
    add_bias_kernel<Out><<<blocks_for(y.numel(), 256), 256, 0, stream_of(y)>>>(
        ptr<Out>(y), y.stride(0), ptr<float>(bias), y.size(1), y.numel());
    check_launch("linear (bias)");
  });
}

void expanded_linear_cuda(Tensor& y, const Tensor& x, const Weight& weight, const Tensor& bias,
                          FunctionRef<void(Tensor& rows, int64_t begin)> expand) {
  constexpr int64_t kMostBytes = 64 << 20, kStep = 128;
  const int64_t n = weight.out_features, k = weight.in_features;
  const int64_t step = std::max(kStep, kMostBytes / (2 * k) / kStep * kStep);
  const Tensor scratch = Tensor::empty({std::min(n, step), k}, x.dtype(), x.device());
  for (int64_t begin = 0; begin < n; begin += step) {
    const int64_t end = std::min(n, begin + step);
    Tensor rows = scratch.rows(0, end - begin), columns = y.columns(begin, end);
    expand(rows, begin);
    linear_cuda(columns, x, Weight::from(rows), bias.defined() ? bias.rows(begin, end) : Tensor());
  }
}

}  // namespace reft
