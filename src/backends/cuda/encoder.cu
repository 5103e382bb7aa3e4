// The ops of ops/encoder.h. The attention without a mask is a tile of 64 queries a block: keys and
// values pass through shared memory, scores and sums are float32 in registers.
#include <algorithm>

#include "backends/cuda/activation.h"
#include "ops/encoder.h"

namespace reft {
namespace {

constexpr unsigned kThreads = 256;

// ---- Layer norm: one block a row.

template <class T>
__global__ void layer_norm_rows(T* y, const T* x, int64_t x_stride, const float* weight,
                                const float* bias, int64_t d, float eps) {
  __shared__ float scratch[32];
  allow_next();
  await_inputs();
  const T* row = x + blockIdx.x * x_stride;
  float sum = 0;
  for (int64_t i = threadIdx.x; i < d; i += blockDim.x) sum += as_float(row[i]);
  const float mean = block_sum(sum, scratch) / static_cast<float>(d);
  __syncthreads();
  float squares = 0;
  for (int64_t i = threadIdx.x; i < d; i += blockDim.x) {
    const float v = as_float(row[i]) - mean;
    squares += v * v;
  }
  const float scale = rsqrtf(block_sum(squares, scratch) / static_cast<float>(d) + eps);
  for (int64_t i = threadIdx.x; i < d; i += blockDim.x)
    y[blockIdx.x * d + i] = as<T>((as_float(row[i]) - mean) * scale * weight[i] + bias[i]);
}

void layer_norm_cuda(Tensor& y, const Tensor& x, const Tensor& weight, const Tensor& bias,
                     float eps) {
  dispatch_float(x.dtype(), "layer_norm", [&](auto type) {
    using T = decltype(type);
    launch_dependent("layer_norm", layer_norm_rows<T>, x.device().index,
                     dim3(static_cast<unsigned>(x.size(0))), kThreads, 0, ptr<T>(y), ptr<T>(x),
                     x.stride(0), ptr<float>(weight), ptr<float>(bias), x.size(1), eps);
  });
}

// ---- Element by element

template <class T>
__global__ void activate_elements(T* x, int64_t n, Activation activation) {
  allow_next();
  await_inputs();
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i < n) x[i] = as<T>(activate(as_float(x[i]), activation));
}

void activate_cuda(Tensor& x, Activation activation) {
  dispatch_float(x.dtype(), "activate", [&](auto type) {
    using T = decltype(type);
    launch_dependent("activate", activate_elements<T>, x.device().index,
                     dim3(blocks_for(x.numel(), kThreads)), kThreads, 0, ptr<T>(x), x.numel(),
                     activation);
  });
}

struct UnfoldShape {
  int64_t length, rows, channels, kernel, stride, padding;
};

template <class T, class U>
__global__ void unfold_rows(U* y, const T* x, UnfoldShape s, int64_t n) {
  allow_next();
  await_inputs();
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= n) return;
  const int64_t c = i % s.channels, k = i / s.channels % s.kernel;
  const int64_t row = i / (s.channels * s.kernel);
  const int64_t from = row % s.rows * s.stride - s.padding + k;
  const bool inside = from >= 0 && from < s.length;
  y[i] = as<U>(inside ? as_float(x[(row / s.rows * s.length + from) * s.channels + c]) : 0.0f);
}

void unfold_cuda(Tensor& y, const Tensor& x, const Unfold& options) {
  const UnfoldShape shape{x.size(0) / options.sequences,
                          y.size(0) / options.sequences,
                          x.size(1),
                          options.kernel,
                          options.stride,
                          options.padding};
  dispatch_float(x.dtype(), "unfold", [&](auto in) {
    dispatch_float(y.dtype(), "unfold", [&](auto out) {
      using T = decltype(in);
      using U = decltype(out);
      launch_dependent("unfold", unfold_rows<T, U>, x.device().index,
                       dim3(blocks_for(y.numel(), kThreads)), kThreads, 0, ptr<U>(y), ptr<T>(x),
                       shape, y.numel());
    });
  });
}

struct CacheShape {
  int64_t heads, page, dims;
};
CacheShape shape_of(const PagedKv& kv) { return {kv.k.size(1), kv.k.size(2), kv.k.size(3)}; }

template <class T, class C>
__global__ void write_kv_rows(C* k, C* v, const T* kv, const int32_t* slots, CacheShape s,
                              int64_t n) {
  allow_next();
  await_inputs();
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= n) return;
  const int64_t width = s.heads * s.dims, t = i / width, h = i % width / s.dims, d = i % s.dims;
  const int64_t slot = slots[t];
  const int64_t to = ((slot / s.page * s.heads + h) * s.page + slot % s.page) * s.dims + d;
  k[to] = as<C>(as_float(kv[t * 2 * width + h * s.dims + d]));
  v[to] = as<C>(as_float(kv[t * 2 * width + width + h * s.dims + d]));
}

void write_kv_cuda(const Tensor& kv, const Tensor& slots, PagedKv& cache) {
  const int64_t n = kv.numel() / 2;
  dispatch_float(kv.dtype(), "write_kv", [&](auto in) {
    dispatch_float(cache.k.dtype(), "write_kv", [&](auto out) {
      using T = decltype(in);
      using C = decltype(out);
      launch_dependent("write_kv", write_kv_rows<T, C>, kv.device().index,
                       dim3(blocks_for(n, kThreads)), kThreads, 0, ptr<C>(cache.k), ptr<C>(cache.v),
                       ptr<T>(kv), ptr<int32_t>(slots), shape_of(cache), n);
    });
  });
}

// ---- Attention without a mask

constexpr int kRows = 64;  // queries of a block
constexpr int kKeys = 32;  // keys between two rescalings
constexpr int kMostDims = 128;
// A thread owns 4 queries and, of scores, 2 keys; of the result, every 16th dim.
constexpr int kOwnRows = 4, kOwnKeys = 2, kColumns = 16, kOwnDims = kMostDims / kColumns;

struct AttentionShape {
  const int32_t* starts;
  const int32_t* contexts;
  const int32_t* table;
  int64_t table_width;
  int heads;
  CacheShape cache;
};

// Loads rows [first, first + kKeys) of a cache head as floats; rows from `end` on are zero.
template <class C>
__device__ void load_keys(float* to, const C* cache, const AttentionShape& s, int64_t sequence,
                          int64_t head, int64_t first, int64_t end) {
  const int dims = static_cast<int>(s.cache.dims);
  for (int i = threadIdx.x; i < kKeys * dims; i += blockDim.x) {
    const int64_t key = first + i / dims;
    float value = 0;
    if (key < end) {
      const int64_t block = s.table[sequence * s.table_width + key / s.cache.page];
      value = as_float(
          cache[((block * s.cache.heads + head) * s.cache.page + key % s.cache.page) * dims +
                i % dims]);
    }
    to[i / dims * (dims + 1) + i % dims] = value;
  }
}

template <class T, class C>
__global__ void __launch_bounds__(kThreads)
    full_attention_tile(T* out, const T* q, const C* k, const C* v, AttentionShape s, float scale) {
  extern __shared__ float shared[];
  const int dims = static_cast<int>(s.cache.dims), pitch = dims + 1;
  float* queries = shared;                // [kRows, dims + 1]
  float* tile = queries + kRows * pitch;  // [kKeys, dims + 1]: keys, then values
  float* weights = tile + kKeys * pitch;  // [kRows, kKeys + 1]
  allow_next();
  await_inputs();
  const int64_t sequence = blockIdx.z, head = blockIdx.y;
  const int64_t begin = s.starts[sequence] + int64_t{blockIdx.x} * kRows;
  const int64_t end = s.starts[sequence + 1];
  if (begin >= end) return;
  const int64_t context = s.contexts[sequence];
  const int64_t kv_head = head / (s.heads / s.cache.heads);
  for (int i = threadIdx.x; i < kRows * dims; i += blockDim.x) {
    const int64_t row = begin + i / dims;
    queries[i / dims * pitch + i % dims] =
        row < end ? as_float(q[(row * s.heads + head) * dims + i % dims]) * scale : 0.0f;
  }
  const int row0 = static_cast<int>(threadIdx.x) / kColumns * kOwnRows;
  const int column = static_cast<int>(threadIdx.x) % kColumns;
  float top[kOwnRows], sum[kOwnRows], result[kOwnRows][kOwnDims] = {};
#pragma unroll
  for (int r = 0; r < kOwnRows; ++r) {
    top[r] = -INFINITY;
    sum[r] = 0;
  }
  for (int64_t first = 0; first < context; first += kKeys) {
    __syncthreads();  // the tile and the weights before were used
    load_keys(tile, k, s, sequence, kv_head, first, context);
    __syncthreads();
    float score[kOwnRows][kOwnKeys] = {};
    for (int d = 0; d < dims; ++d) {
      float a[kOwnRows], b[kOwnKeys];
#pragma unroll
      for (int r = 0; r < kOwnRows; ++r) a[r] = queries[(row0 + r) * pitch + d];
#pragma unroll
      for (int c = 0; c < kOwnKeys; ++c) b[c] = tile[(column + c * kColumns) * pitch + d];
#pragma unroll
      for (int r = 0; r < kOwnRows; ++r) {
#pragma unroll
        for (int c = 0; c < kOwnKeys; ++c) score[r][c] += a[r] * b[c];
      }
    }
#pragma unroll
    for (int r = 0; r < kOwnRows; ++r) {
      float largest = top[r];
#pragma unroll
      for (int c = 0; c < kOwnKeys; ++c) {
        if (first + column + c * kColumns >= context) score[r][c] = -INFINITY;
        largest = fmaxf(largest, score[r][c]);
      }
      // The 16 threads of a row are neighbours in a warp.
#pragma unroll
      for (int offset = kColumns / 2; offset > 0; offset /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, offset, kColumns));
      const float keep = __expf(top[r] - largest);
      top[r] = largest;
      float part = 0;
#pragma unroll
      for (int c = 0; c < kOwnKeys; ++c) {
        const float p = __expf(score[r][c] - largest);
        weights[(row0 + r) * (kKeys + 1) + column + c * kColumns] = p;
        part += p;
      }
#pragma unroll
      for (int offset = kColumns / 2; offset > 0; offset /= 2)
        part += __shfl_xor_sync(0xffffffffu, part, offset, kColumns);
      sum[r] = sum[r] * keep + part;
#pragma unroll
      for (int d = 0; d < kOwnDims; ++d) result[r][d] *= keep;
    }
    __syncthreads();  // the keys were used, the weights are there
    load_keys(tile, v, s, sequence, kv_head, first, context);
    __syncthreads();
    for (int key = 0; key < kKeys; ++key) {
      float p[kOwnRows];
#pragma unroll
      for (int r = 0; r < kOwnRows; ++r) p[r] = weights[(row0 + r) * (kKeys + 1) + key];
#pragma unroll
      for (int d = 0; d < kOwnDims; ++d) {
        if (column + d * kColumns >= dims) continue;
        const float value = tile[key * pitch + column + d * kColumns];
#pragma unroll
        for (int r = 0; r < kOwnRows; ++r) result[r][d] += p[r] * value;
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kOwnRows; ++r) {
    const int64_t row = begin + row0 + r;
    if (row >= end) continue;
#pragma unroll
    for (int d = 0; d < kOwnDims; ++d) {
      const int dim = column + d * kColumns;
      if (dim < dims) out[(row * s.heads + head) * dims + dim] = as<T>(result[r][d] / sum[r]);
    }
  }
}

void full_attention_cuda(Tensor& out, const Tensor& q, const PagedKv& kv,
                         const AttentionBatch& batch, float scale) {
  const int64_t dims = q.size(2);
  check(dims <= kMostDims, "full_attention: a head size of {} on CUDA, at most {}", dims,
        kMostDims);
  const AttentionShape shape{ptr<int32_t>(batch.query_start), ptr<int32_t>(batch.context_len),
                             ptr<int32_t>(batch.block_table), batch.block_table.size(1),
                             static_cast<int>(q.size(1)),     shape_of(kv)};
  const size_t bytes =
      static_cast<size_t>((kRows + kKeys) * (dims + 1) + kRows * (kKeys + 1)) * sizeof(float);
  const dim3 grid(blocks_for(batch.max_query_len, kRows), static_cast<unsigned>(q.size(1)),
                  static_cast<unsigned>(batch.context_len.size(0)));
  dispatch_float(q.dtype(), "full_attention", [&](auto in) {
    dispatch_float(kv.k.dtype(), "full_attention", [&](auto stored) {
      using T = decltype(in);
      using C = decltype(stored);
      // Beyond the 48 KiB that every kernel may have.
      cuda_check(cudaFuncSetAttribute(full_attention_tile<T, C>,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(bytes)),
                 "full_attention");
      launch_dependent("full_attention", full_attention_tile<T, C>, q.device().index, grid,
                       kThreads, bytes, ptr<T>(out), ptr<T>(q), ptr<C>(kv.k), ptr<C>(kv.v), shape,
                       scale);
    });
  });
}

// One block a query.
template <class T, class C>
__global__ void attention_weights_row(float* out, const T* q, const C* k, const int32_t* blocks,
                                      CacheShape s, int64_t heads, int64_t head, int64_t keys,
                                      float scale) {
  __shared__ float scratch[32];
  allow_next();
  await_inputs();
  const T* query = q + (blockIdx.x * heads + head) * s.dims;
  float* row = out + blockIdx.x * keys;
  const int64_t kv_head = head / (heads / s.heads);
  float top = -INFINITY;
  for (int64_t i = threadIdx.x; i < keys; i += blockDim.x) {
    const C* key = k + ((blocks[i / s.page] * s.heads + kv_head) * s.page + i % s.page) * s.dims;
    float score = 0;
    for (int64_t d = 0; d < s.dims; ++d) score += as_float(query[d]) * as_float(key[d]);
    row[i] = score * scale;
    top = fmaxf(top, score * scale);
  }
  top = warp_max(top);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = top;
  __syncthreads();
  top = warp_max(threadIdx.x % 32 < blockDim.x / 32 ? scratch[threadIdx.x % 32] : -INFINITY);
  __syncthreads();
  float sum = 0;
  for (int64_t i = threadIdx.x; i < keys; i += blockDim.x) sum += row[i] = expf(row[i] - top);
  sum = block_sum(sum, scratch);
  for (int64_t i = threadIdx.x; i < keys; i += blockDim.x) row[i] /= sum;
}

void attention_weights_cuda(Tensor& out, const Tensor& q, const PagedKv& kv, const Tensor& blocks,
                            int64_t head, float scale) {
  dispatch_float(q.dtype(), "attention_weights", [&](auto in) {
    dispatch_float(kv.k.dtype(), "attention_weights", [&](auto stored) {
      using T = decltype(in);
      using C = decltype(stored);
      launch_dependent("attention_weights", attention_weights_row<T, C>, q.device().index,
                       dim3(static_cast<unsigned>(q.size(0))), kThreads, 0, ptr<float>(out),
                       ptr<T>(q), ptr<C>(kv.k), ptr<int32_t>(blocks), shape_of(kv), q.size(1), head,
                       out.size(1), scale);
    });
  });
}

const RegisterKernel layer_norm_entry(layer_norm_kernel, DeviceType::kCuda, &layer_norm_cuda);
const RegisterKernel activate_entry(activate_kernel, DeviceType::kCuda, &activate_cuda);
const RegisterKernel unfold_entry(unfold_kernel, DeviceType::kCuda, &unfold_cuda);
const RegisterKernel write_kv_entry(write_kv_kernel, DeviceType::kCuda, &write_kv_cuda);
const RegisterKernel full_attention_entry(full_attention_kernel, DeviceType::kCuda,
                                          &full_attention_cuda);
const RegisterKernel attention_weights_entry(attention_weights_kernel, DeviceType::kCuda,
                                             &attention_weights_cuda);

}  // namespace
}  // namespace reft
