// Products with the weights of chosen experts. Few rows for each expert: the weights stream through
// once. Many: tiles of an expert's rows. Anything else (odd sizes, float32): a plain kernel.
#include "backends/cuda/activation.h"
#include "backends/cuda/moe.h"

namespace reft {
namespace {

constexpr int kRows = 16;  // of W in a block that streams

// What all products have: y[r] = x[source(r)] Wₑᵀ + bias[e].
template <class Format>
struct Product {
  using T = typename Format::Type;
  T* y;
  int64_t y_stride;
  const T* x;
  int64_t x_stride;
  Format w;           // [E n, k]
  const float* bias;  // [E, n] or null
  int64_t n;
  int64_t k;
  const int2* tiles;
  int tile_rows;
  const int32_t* offsets;  // of experts
  const int32_t* pairs;    // of rows
  int top_k;               // 0: x has the rows themselves
  Activation activation;

  __device__ __forceinline__ const T* source(int row) const {
    return x + int64_t{top_k == 0 ? row : pairs[row] / top_k} * x_stride;
  }
};

// D += the slice's product of 16 rows of W with 8 rows of x, whose lane's 16 values are at b.
template <class Format, int kTiles>
__device__ __forceinline__ void multiply_slice(float (&d)[kTiles][4],
                                               const typename Format::Raw& w0,
                                               const typename Format::Raw& w1,
                                               const uint4 (&b)[2][kTiles]) {
  using T = typename Format::Type;
  uint32_t a0[8], a1[8];
  Format::expand(w0, a0);
  Format::expand(w1, a1);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const uint32_t first[4] = {a0[4 * h], a1[4 * h], a0[4 * h + 1], a1[4 * h + 1]};
    const uint32_t second[4] = {a0[4 * h + 2], a1[4 * h + 2], a0[4 * h + 3], a1[4 * h + 3]};
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      mma_16816<T>(d[i], first, b[h][i].x, b[h][i].y);
      mma_16816<T>(d[i], second, b[h][i].z, b[h][i].w);
    }
  }
}

// Block (x, y): 16 rows of the weights of tile y's expert, with a gate 8 of it and the 8 of `up`
// that lie n / 2 below, against its up to 8 kTiles rows of x. As stream_kernel of linear.cu: warp w
// takes the slices w, w + kWarps, … of K.
template <class Format, int kTiles, int kWarps, bool kGated>
__global__ void __launch_bounds__(kWarps * 32) stream_experts_kernel(Product<Format> p) {
  using T = typename Format::Type;
  constexpr int kColumns = kGated ? kRows / 2 : kRows;  // of y
  constexpr int kUnroll = Format::kBlocks ? 4 : kTiles == 1 ? 4 : 2;
  __shared__ float partial[kWarps][kRows][kTiles * 8 + 1];
  allow_next();
  await_inputs();
  const int2 tile = p.tiles[blockIdx.y];
  if (tile.x < 0) return;
  const int rows = min(p.tile_rows, p.offsets[tile.x + 1] - tile.y);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int64_t columns = kGated ? p.n / 2 : p.n;
  const int64_t column0 = blockIdx.x * int64_t{kColumns};
  const int64_t expert_row = tile.x * p.n;
  // Rows past the end read the last row; their results are not stored.
  const int64_t row0 = expert_row + min(column0 + g, columns - 1);
  const int64_t row1 = kGated ? row0 + columns : expert_row + min(column0 + g + 8, columns - 1);
  const T* x_rows[kTiles];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) x_rows[i] = p.source(tile.y + min(i * 8 + g, rows - 1)) + t * 16;
  float d[kTiles][4] = {};
  const int slices = static_cast<int>(p.k / kMoeSlice);
  for (int base = warp; base < slices; base += kWarps * kUnroll) {
    typename Format::Raw w0[kUnroll], w1[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int slice = base + u * kWarps < slices ? base + u * kWarps : base;
      w0[u] = p.w.load(row0, slice, t);
      w1[u] = p.w.load(row1, slice, t);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int slice = base + u * kWarps;
      if (slice >= slices) break;
      uint4 b[2][kTiles];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int i = 0; i < kTiles; ++i)
          b[h][i] = load_after_wait(x_rows[i] + slice * kMoeSlice + h * 8);
      }
      multiply_slice<Format, kTiles>(d, w0[u], w1[u], b);
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
  const float* bias = p.bias == nullptr ? nullptr : p.bias + expert_row;
  for (int i = threadIdx.x; i < kColumns * kTiles * 8; i += kWarps * 32) {
    const int column = i % kColumns, row = i / kColumns;
    if (column0 + column >= columns || row >= rows) continue;
    float sum = bias == nullptr ? 0.0f : bias[column0 + column];
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += partial[w][column][row];
    if constexpr (kGated) {
      float up = bias == nullptr ? 0.0f : bias[columns + column0 + column];
#pragma unroll
      for (int w = 0; w < kWarps; ++w) up += partial[w][column + kColumns][row];
      // Rounded as the product alone would be.
      sum = gated(as_float(as<T>(sum)), as_float(as<T>(up)), p.activation);
    }
    p.y[(tile.y + row) * p.y_stride + column0 + column] = as<T>(sum);
  }
}

// Block (x, t): 16 columns of token t's result, all its experts' products and their weighted sum.
// Warp w takes the slices w, w + kWarps, … of the experts' K end to end.
template <class Format, int kWarps>
__global__ void __launch_bounds__(kWarps * 32)
    combine_stream_kernel(Product<Format> p, const int32_t* experts, const float* weights,
                          const int32_t* rows, int top_k) {
  using T = typename Format::Type;
  constexpr int kUnroll = 4;
  __shared__ float partial[kWarps][kRows];
  allow_next();
  await_inputs();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int64_t token = blockIdx.y, column0 = blockIdx.x * int64_t{kRows};
  const int64_t low = min(column0 + g, p.n - 1), high = min(column0 + g + 8, p.n - 1);
  experts += token * top_k;
  weights += token * top_k;
  rows += token * top_k;
  const int slices = static_cast<int>(p.k / kMoeSlice), items = slices * top_k;
  float low_sum = 0.0f, high_sum = 0.0f;
  for (int base = warp; base < items; base += kWarps * kUnroll) {
    typename Format::Raw w0[kUnroll], w1[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int item = base + u * kWarps < items ? base + u * kWarps : base;
      const int64_t expert_row = experts[item / slices] * p.n;
      w0[u] = p.w.load(expert_row + low, item % slices, t);
      w1[u] = p.w.load(expert_row + high, item % slices, t);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int item = base + u * kWarps;
      if (item >= items) break;
      const int j = item / slices;
      // All eight columns of the product are this token's.
      const T* x = p.x + rows[j] * p.x_stride + item % slices * kMoeSlice + t * 16;
      uint4 b[2][1];
      b[0][0] = load_after_wait(x);
      b[1][0] = load_after_wait(x + 8);
      float d[1][4] = {};
      multiply_slice<Format, 1>(d, w0[u], w1[u], b);
      low_sum += weights[j] * d[0][0];
      high_sum += weights[j] * d[0][2];
    }
  }
  if (t == 0) {
    partial[warp][g] = low_sum;
    partial[warp][g + 8] = high_sum;
  }
  __syncthreads();
  if (threadIdx.x >= kRows || column0 + threadIdx.x >= p.n) return;
  const int64_t column = column0 + threadIdx.x;
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += partial[w][threadIdx.x];
  if (p.bias != nullptr) {
    for (int j = 0; j < top_k; ++j) sum += weights[j] * p.bias[experts[j] * p.n + column];
  }
  p.y[token * p.y_stride + column] = as<T>(sum);
}

// ---- tiles of many rows

constexpr int kTileM = kMoeGemmRows;  // rows of x
constexpr int kTileN = 128;           // rows of W
constexpr int kTileK = 64;
constexpr int kStages = 3;
constexpr int kGemmThreads = 256;
constexpr int kStageElements = (kTileM + kTileN) * kTileK;

// Where 8 elements of a row of 64 in shared memory are, so that eight rows' same columns lie in
// different banks.
__device__ __forceinline__ int swizzled(int row, int chunk) {
  return row * kTileK + ((chunk ^ (row & 7)) * 8);
}

// Eight warps, 2 × 4, of 32 × 32 results each. With a gate, a warp's 32 rows of W are 16 of the
// gate and the 16 of `up` that belong to them.
template <class Format, bool kGated>
__global__ void __launch_bounds__(kGemmThreads) tile_experts_kernel(Product<Format> p) {
  using T = typename Format::Type;
  extern __shared__ __align__(128) uint8_t raw_shared[];
  T* const shared = reinterpret_cast<T*>(raw_shared);
  allow_next();
  await_inputs();
  const int2 tile = p.tiles[blockIdx.y];
  if (tile.x < 0) return;
  const int rows = min(p.tile_rows, p.offsets[tile.x + 1] - tile.y);
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int64_t columns = kGated ? p.n / 2 : p.n;
  const int64_t column0 = blockIdx.x * int64_t{kGated ? kTileN / 2 : kTileN};
  const int64_t expert_row = tile.x * p.n;
  const int k = static_cast<int>(p.k), steps = (k + kTileK - 1) / kTileK;

  // The row of W that row r of the tile holds; those past the end repeat the last.
  const auto weight_row = [&](int r) {
    if constexpr (kGated) {
      const int64_t c = min(column0 + r / 32 * 16 + r % 16, columns - 1);
      return expert_row + (r % 32 < 16 ? c : columns + c);
    } else {
      return expert_row + min(column0 + r, columns - 1);
    }
  };

  // Each thread loads the same chunk of rows thread / 8 + 32 i.
  const int chunk = thread % 8, first_row = thread / 8;
  const T* x_rows[kTileM / 32];
#pragma unroll
  for (int i = 0; i < kTileM / 32; ++i)
    x_rows[i] = p.source(tile.y + min(first_row + 32 * i, rows - 1)) + chunk * 8;
  int64_t w_rows[kTileN / 32];
#pragma unroll
  for (int i = 0; i < kTileN / 32; ++i) w_rows[i] = weight_row(first_row + 32 * i);
  // Block formats: half a row, 32 values, for each thread.
  const int64_t block_row = weight_row(thread / 2);
  uint4 codes = {};
  uint32_t scale = 0;

  const auto load = [&](int step) {
    T* const a = shared + step % kStages * kStageElements;
    T* const b = a + kTileM * kTileK;
    const int at = step * kTileK, bytes = at + chunk * 8 < k ? 16 : 0;
    const int shift = bytes > 0 ? at : 0;  // what is not read is not pointed at either
#pragma unroll
    for (int i = 0; i < kTileM / 32; ++i) {
      const T* from = bytes > 0 ? x_rows[i] + shift : p.x;
      cp_async_16(a + swizzled(first_row + 32 * i, chunk), from, bytes);
    }
    if constexpr (!Format::kBlocks) {
#pragma unroll
      for (int i = 0; i < kTileN / 32; ++i) {
        const T* from = bytes > 0 ? p.w.w + w_rows[i] * p.k + shift + chunk * 8 : p.w.w;
        cp_async_16(b + swizzled(first_row + 32 * i, chunk), from, bytes);
      }
    }
  };
  const auto fetch_blocks = [&](int step) {
    if constexpr (Format::kBlocks) {
      const int at = step * kTileK + thread % 2 * 32;
      codes = make_uint4(0, 0, 0, 0);
      scale = 0;
      if (at >= k) return;
      codes = load_stream(p.w.codes + block_row * (p.k / 2) + at / 2);
      scale = p.w.scales[block_row * (p.k / 32) + at / 32];
    }
  };
  const auto store_blocks = [&](int step) {
    if constexpr (Format::kBlocks) {
      T* const b = shared + step % kStages * kStageElements + kTileM * kTileK;
      const uint32_t factor = Mxfp4Scale<T>::of(scale);
      const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t pairs[4];
        expand_mxfp4<T>(words[i], factor, pairs);
        *reinterpret_cast<uint4*>(b + swizzled(thread / 2, thread % 2 * 4 + i)) =
            make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
      }
    }
  };

#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < steps) {
      load(step);
      fetch_blocks(step);
      store_blocks(step);
    }
    cp_async_commit();
  }
  const int warp_m = warp / 4 * 32, warp_n = warp % 4 * 32;
  float acc[2][4][4] = {};
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<kStages - 2>();
    __syncthreads();
    const int ahead = step + kStages - 1;
    if (ahead < steps) {
      load(ahead);
      fetch_blocks(ahead);
    }
    cp_async_commit();
    const T* const a = shared + step % kStages * kStageElements;
    const T* const b = a + kTileM * kTileK;
#pragma unroll
    for (int kk = 0; kk < kTileK / 16; ++kk) {
      uint32_t fa[2][4], fb[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        // Matrices: rows 0-7 and 8-15 of the lower half of k, then of the upper one.
        const int row = warp_m + i * 16 + lane % 16;
        ldmatrix_x4(fa[i], a + swizzled(row, kk * 2 + lane / 16));
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        // Matrices: rows 0-7 with the lower and the upper half of k, then rows 8-15.
        const int row = warp_n + j * 16 + lane % 8 + lane / 16 * 8;
        ldmatrix_x4(fb[j], b + swizzled(row, kk * 2 + lane / 8 % 2));
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j)
          mma_16816<T>(acc[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
      }
    }
    if (ahead < steps) store_blocks(ahead);
  }

  const int g = lane / 4, t = lane % 4;
  const float* bias = p.bias == nullptr ? nullptr : p.bias + expert_row;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp_m + i * 16 + half * 8 + g;
      if (row >= rows) continue;
      T* const out = p.y + (tile.y + row) * p.y_stride;
#pragma unroll
      for (int j = 0; j < (kGated ? 2 : 4); ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int64_t column = column0 + (kGated ? warp_n / 2 : warp_n) + j * 8 + 2 * t + e;
          if (column >= columns) continue;
          float value = acc[i][j][half * 2 + e] + (bias == nullptr ? 0.0f : bias[column]);
          if constexpr (kGated) {
            const float up =
                acc[i][j + 2][half * 2 + e] + (bias == nullptr ? 0.0f : bias[columns + column]);
            value = gated(as_float(as<T>(value)), as_float(as<T>(up)), p.activation);
          }
          out[column] = as<T>(value);
        }
      }
    }
  }
}

// Any shape and type: one warp for each element of the result.
template <class T, class W>
__global__ void plain_experts_kernel(T* y, int64_t y_stride, const T* x, int64_t x_stride,
                                     const W* w, const float* bias, const int32_t* experts,
                                     const int32_t* pairs, int top_k, bool tokens, int64_t rows,
                                     int64_t n, int64_t k) {
  const int64_t item = (blockIdx.x * int64_t{blockDim.x} + threadIdx.x) / 32;
  const int lane = threadIdx.x % 32;
  if (item >= rows * n) return;
  const int64_t row = item / n, column = item % n;
  const int64_t expert_row = experts[pairs[row]] * n + column;
  const T* from = x + (tokens ? pairs[row] / top_k : row) * x_stride;
  float sum = 0.0f;
  for (int64_t i = lane; i < k; i += 32) sum += as_float(from[i]) * as_float(w[expert_row * k + i]);
  sum = warp_sum(sum);
  if (lane == 0)
    y[row * y_stride + column] = as<T>(sum + (bias == nullptr ? 0.0f : bias[expert_row]));
}

// ---- launches

template <class Format>
Product<Format> product_of(Tensor& y, const Tensor& x, const Routing& routing, const Format& w,
                           const ExpertWeights& weights, const Tensor& bias) {
  using T = typename Format::Type;
  return {.y = ptr<T>(y),
          .y_stride = y.stride(0),
          .x = ptr<T>(x),
          .x_stride = x.stride(0),
          .w = w,
          .bias = bias.defined() ? ptr<float>(bias) : nullptr,
          .n = weights.out_features,
          .k = weights.in_features,
          .tiles = ptr<int2>(routing.tiles),
          .tile_rows = static_cast<int>(routing.tile_rows),
          .offsets = ptr<int32_t>(routing.offsets),
          .pairs = ptr<int32_t>(routing.pairs),
          .top_k = 0,
          .activation = Activation::kSilu};
}

// Calls f(weights in the format that they are kept in) where x has a 16-bit type that they go with.
template <class F>
bool with_format(const Tensor& x, const ExpertWeights& weights, F f) {
  if (x.dtype() == DType::kF32 || !weights.data.defined() || weights.transposed) return false;
  if (!aligned_16(x.raw()) || x.stride(0) % 8 != 0 || weights.in_features % 8 != 0) return false;
  const bool blocks = weights.scales.defined();
  if (!blocks && weights.data.dtype() != x.dtype()) return false;
  dispatch_half(x.dtype(), "expert_linear", [&](auto type) {
    using T = decltype(type);
    if (blocks) {
      f(Mxfp4Experts<T>{ptr<uint8_t>(weights.data), ptr<uint8_t>(weights.scales),
                        weights.in_features});
    } else {
      f(PlainExperts<T>{ptr<T>(weights.data), weights.in_features});
    }
  });
  return true;
}

template <bool kGated, class Format>
void launch_product(const Product<Format>& p, int64_t tiles, Device device) {
  const auto run = [&](auto kernel, int64_t columns, unsigned threads, size_t shared) {
    launch_dependent("expert_linear", kernel, device.index,
                     dim3(blocks_for(p.n, columns), static_cast<unsigned>(tiles)), threads, shared,
                     p);
  };
  if (p.tile_rows <= kMoeStreamRows && p.k % kMoeSlice == 0 && (!kGated || p.n % 16 == 0)) {
    constexpr int kWarps = 8;
    p.tile_rows <= 8
        ? run(&stream_experts_kernel<Format, 1, kWarps, kGated>, kRows, kWarps * 32, 0)
        : run(&stream_experts_kernel<Format, 2, kWarps, kGated>, kRows, kWarps * 32, 0);
    return;
  }
  constexpr size_t kShared = kStages * kStageElements * sizeof(typename Format::Type);
  const auto kernel = &tile_experts_kernel<Format, kGated>;
  static const cudaError_t allowed = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kShared));
  cuda_check(allowed, "expert_linear (tiles)");
  run(kernel, kTileN, kGemmThreads, kShared);
}

void expert_linear_cuda(Tensor& y, const Tensor& x, ExpertInput input, const Routing& routing,
                        const ExpertWeights& weights, const Tensor& bias) {
  const bool tokens = input == ExpertInput::kTokens;
  const auto top_k = static_cast<int>(routing.top_k());
  const bool done = with_format(x, weights, [&](const auto& w) {
    auto p = product_of(y, x, routing, w, weights, bias);
    p.top_k = tokens ? top_k : 0;
    launch_product<false>(p, routing.tiles.size(0), x.device());
  });
  if (done) return;
  check(weights.data.defined() && !weights.scales.defined() && !weights.transposed,
        "expert_linear: weights in {} with x {} on CUDA", dtype_name(weights.dtype), x);
  const int64_t n = weights.out_features, rows = routing.num_rows();
  dispatch_float(x.dtype(), "expert_linear", [&](auto type) {
    using T = decltype(type);
    dispatch_float(weights.data.dtype(), "expert_linear", [&](auto w_type) {
      using W = decltype(w_type);
      plain_experts_kernel<T, W><<<blocks_for(rows * n, 8), 256, 0, stream_of(x)>>>(
          ptr<T>(y), y.stride(0), ptr<T>(x), x.stride(0), ptr<W>(weights.data),
          bias.defined() ? ptr<float>(bias) : nullptr, ptr<int32_t>(routing.experts),
          ptr<int32_t>(routing.pairs), top_k, tokens, rows, n, weights.in_features);
      check_launch("expert_linear (plain)");
    });
  });
}

bool gated_expert_linear_cuda(Tensor& y, const Tensor& x, const Routing& routing,
                              const ExpertWeights& weights, const Tensor& bias,
                              Activation activation) {
  return with_format(x, weights, [&](const auto& w) {
    auto p = product_of(y, x, routing, w, weights, bias);
    p.top_k = static_cast<int>(routing.top_k());
    p.activation = activation;
    launch_product<true>(p, routing.tiles.size(0), x.device());
  });
}

// Up to as many tokens: more share too many experts to read the weights for each.
constexpr int64_t kCombineTokens = 4;

bool combined_expert_linear_cuda(Tensor& y, const Tensor& x, const Routing& routing,
                                 const ExpertWeights& weights, const Tensor& bias) {
  if (routing.num_tokens() > kCombineTokens || weights.in_features % kMoeSlice != 0) return false;
  return with_format(x, weights, [&](const auto& w) {
    const auto p = product_of(y, x, routing, w, weights, bias);
    constexpr int kWarps = 16;
    launch_dependent(
        "expert_linear (combined)", combine_stream_kernel<std::remove_cvref_t<decltype(w)>, kWarps>,
        x.device().index, dim3(blocks_for(p.n, kRows), static_cast<unsigned>(routing.num_tokens())),
        kWarps * 32, 0, p, ptr<int32_t>(routing.experts), ptr<float>(routing.weights),
        ptr<int32_t>(routing.rows), static_cast<int>(routing.top_k()));
  });
}

const RegisterKernel r1(expert_linear_kernel, DeviceType::kCuda, &expert_linear_cuda);
const RegisterKernel r2(gated_expert_linear_kernel, DeviceType::kCuda, &gated_expert_linear_cuda);
const RegisterKernel r3(combined_expert_linear_kernel, DeviceType::kCuda,
                        &combined_expert_linear_cuda);

}  // namespace
}  // namespace reft
