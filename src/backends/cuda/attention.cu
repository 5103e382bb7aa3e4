// Attention over the paged cache. 16-bit types with head dims 64, 96, 128 and 256 run on the tensor
// cores: a block takes one KV head of one sequence, its rows being (query token, query head of the
// group) pairs, so that a group's heads share every key that is loaded. With at most 16 such rows
// (decoding) the warps split the keys, else they split the rows. Everything else takes a plain
// kernel, one warp per token and head.
#include <algorithm>
#include <cmath>

#include "backends/cuda/attention_tile.h"
#include "backends/cuda/fp8.h"

namespace reft {
namespace {

// Element offset of a key (or value) in [N, Hk, P, Dh].
__device__ __forceinline__ int64_t key_offset(const AttentionShape& s, const int32_t* table,
                                              int kv_head, int64_t key) {
  const int64_t block = table[key / s.block_size];
  return ((block * s.num_kv_heads + kv_head) * s.block_size + key % s.block_size) * s.head_dim;
}

constexpr int kMaxPlainDim = 512;

template <class T, class C>
__global__ void plain_attention_kernel(T* __restrict__ out, const T* __restrict__ q,
                                       const C* __restrict__ k_cache, const C* __restrict__ v_cache,
                                       int64_t num_sequences, int64_t num_tokens,
                                       AttentionShape s) {
  const int64_t item = (blockIdx.x * int64_t{blockDim.x} + threadIdx.x) / 32;
  const int lane = threadIdx.x % 32;
  if (item >= num_tokens * s.num_heads) return;
  const int64_t token = item / s.num_heads;
  const int head = static_cast<int>(item % s.num_heads);
  const int kv_head = head / (s.num_heads / s.num_kv_heads);
  int64_t low = 0, high = num_sequences;  // the last sequence that starts at or before the token
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (s.query_start[middle] <= token ? low : high) = middle;
  }
  const int64_t position = s.context_len[low] - s.query_start[low + 1] + token;
  const int32_t* table = s.block_table + low * s.table_stride;
  constexpr int kPerLane = kMaxPlainDim / 32;
  float query[kPerLane], sum[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int d = lane + 32 * i;
    query[i] = d < s.head_dim ? as_float(q[(token * s.num_heads + head) * s.head_dim + d]) : 0.0f;
    sum[i] = 0.0f;
  }
  float maximum = -INFINITY, total = 0.0f;
  const int64_t first = s.window > 0 ? max(int64_t{0}, position - s.window + 1) : 0;
  for (int64_t key = first; key <= position; ++key) {
    const int64_t offset = key_offset(s, table, kv_head, key);
    float dot = 0.0f;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int d = lane + 32 * i;
      if (d < s.head_dim) dot += query[i] * as_float(k_cache[offset + d]);
    }
    const float score = cap_score(warp_sum(dot), s);
    const float grown = fmaxf(maximum, score);
    const float keep = expf(maximum - grown), weight = expf(score - grown);
    maximum = grown;
    total = total * keep + weight;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int d = lane + 32 * i;
      if (d < s.head_dim) sum[i] = sum[i] * keep + weight * as_float(v_cache[offset + d]);
    }
  }
  float keep = 1.0f;
  if (s.sinks != nullptr) {
    const float grown = fmaxf(maximum, s.sinks[head]);
    keep = expf(maximum - grown);
    total = total * keep + expf(s.sinks[head] - grown);
  }
  const float inverse = total > 0.0f ? keep / total : 0.0f;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int d = lane + 32 * i;
    if (d < s.head_dim)
      out[(token * s.num_heads + head) * s.head_dim + d] = as<T>(sum[i] * inverse);
  }
}

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kTileKeys = 64;

template <class T, int kDim>
constexpr size_t tile_bytes() {
  return size_t{kTileKeys} * (kDim + 8) * sizeof(T);
}
// Two stages of K and V tiles, or the merge buffer of the decoding form, which is smaller; and Q
// rows.
template <class T, int kDim, bool kDecode>
constexpr size_t shared_bytes() {
  return 4 * tile_bytes<T, kDim>() + size_t{kDecode ? 16 : 16 * kWarps} * (kDim + 8) * sizeof(T);
}

// Queues the copy of keys [key0, key0 + 64) of one head into a tile; fp8 is widened on the way.
// Keys outside [begin, end) become zeros: what lies behind a window may be gone from the block
// table.
template <class T, int kDim, class C>
__device__ __forceinline__ void load_tile(T* tile, const C* cache, const AttentionShape& s,
                                          const int32_t* table, int kv_head, int64_t key0,
                                          int64_t begin, int64_t end) {
  constexpr int kChunks = kDim / 8;
  for (int i = threadIdx.x; i < kTileKeys * kChunks; i += kThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    const int64_t key = key0 + row;
    const bool inside = key >= begin && key < end;
    const C* from = inside ? cache + key_offset(s, table, kv_head, key) + chunk * 8 : cache;
    T* to = tile + row * (kDim + 8) + chunk * 8;
    if constexpr (std::is_same_v<T, C>) {
      cp_async_16(to, from, inside ? 16 : 0);
    } else {
      const uint2 codes = inside ? *reinterpret_cast<const uint2*>(from) : make_uint2(0, 0);
      uint4 wide;
      expand_fp8<T>(codes.x, wide.x, wide.y);
      expand_fp8<T>(codes.y, wide.z, wide.w);
      *reinterpret_cast<uint4*>(to) = wide;
    }
  }
}

// Merges the four warps' states over the keys into warp 0's. Shared memory: kWarps × 16 × (kDim +
// 2) floats.
template <int kDim>
__device__ __forceinline__ void merge_warps(RowState<kDim>& state, float* buffer) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  constexpr int kStride = kDim + 2;
  float* own = buffer + warp * 16 * kStride;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float* row = own + (g + 8 * r) * kStride;
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d) {
      row[d * 8 + 2 * t] = state.out[d][2 * r];
      row[d * 8 + 2 * t + 1] = state.out[d][2 * r + 1];
    }
    if (t == 0) {
      row[kDim] = state.maximum[r];
      row[kDim + 1] = state.total[r];
    }
  }
  __syncthreads();
  if (warp != 0) return;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float* rows = buffer + (g + 8 * r) * kStride;
    float maximum = -INFINITY;
    for (int w = 0; w < kWarps; ++w) maximum = fmaxf(maximum, rows[w * 16 * kStride + kDim]);
    const float base = maximum == -INFINITY ? 0.0f : maximum;
    float total = 0.0f;
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d) state.out[d][2 * r] = state.out[d][2 * r + 1] = 0.0f;
    for (int w = 0; w < kWarps; ++w) {
      const float* row = rows + w * 16 * kStride;
      const float weight = exp2f(row[kDim] - base);
      total += row[kDim + 1] * weight;
#pragma unroll
      for (int d = 0; d < kDim / 8; ++d) {
        state.out[d][2 * r] += row[d * 8 + 2 * t] * weight;
        state.out[d][2 * r + 1] += row[d * 8 + 2 * t + 1] * weight;
      }
    }
    state.maximum[r] = maximum;
    state.total[r] = total;
  }
}

template <class T, class C, int kDim, bool kDecode>
__global__ void __launch_bounds__(kThreads)
    tile_attention_kernel(T* __restrict__ out, const T* __restrict__ q,
                          const C* __restrict__ k_cache, const C* __restrict__ v_cache,
                          AttentionShape s) {
  extern __shared__ __align__(16) unsigned char shared[];
  constexpr int kStride = kDim + 8;
  constexpr int kRows = kDecode ? 16 : 16 * kWarps;
  constexpr int kNumTiles = kDecode ? 2 : kTileKeys / 8;
  T* tiles = reinterpret_cast<T*>(shared);
  T* q_rows = tiles + 4 * kTileKeys * kStride;
  allow_next();
  await_inputs();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int sequence = blockIdx.z, kv_head = blockIdx.y;
  const int group = s.num_heads / s.num_kv_heads;
  const int64_t start = s.query_start[sequence];
  const int64_t query_len = s.query_start[sequence + 1] - start;
  const int64_t context = s.context_len[sequence];
  const int split = kDecode ? blockIdx.x : 0;
  const int64_t row0 = kDecode ? 0 : blockIdx.x * int64_t{kRows};
  const int64_t num_rows = query_len * group;
  if (row0 >= num_rows) return;
  const int32_t* table = s.block_table + sequence * s.table_stride;

  constexpr int kChunks = kDim / 8;
  for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    const int64_t index = row0 + row;
    const bool inside = index < num_rows;
    const T* from =
        q + ((start + index / group) * s.num_heads + kv_head * group + index % group) * kDim +
        chunk * 8;
    cp_async_16(q_rows + row * kStride + chunk * 8, inside ? from : q, inside ? 16 : 0);
  }
  // Keys that any row of this block sees.
  const int64_t first_token = row0 / group;
  const int64_t last_token = min(row0 + kRows, num_rows) - 1;
  const int64_t key_limit = context - query_len + last_token / group + 1;
  const int64_t first_position = context - query_len + first_token;
  const int64_t first_key = s.window > 0 ? max(int64_t{0}, first_position - s.window + 1) : 0;
  int64_t key_begin = first_key / kTileKeys * kTileKeys;
  int64_t key_end = key_limit;
  if (kDecode && s.num_splits > 1) {
    const int64_t tiles_all = (key_end - key_begin + kTileKeys - 1) / kTileKeys;
    const int64_t per_split = (tiles_all + s.num_splits - 1) / s.num_splits * kTileKeys;
    key_begin += split * per_split;
    key_end = min(key_end, key_begin + per_split);
  }

  RowState<kDim> state;
#pragma unroll
  for (int d = 0; d < kDim / 8; ++d)
    state.out[d][0] = state.out[d][1] = state.out[d][2] = state.out[d][3] = 0.0f;
  state.maximum[0] = state.maximum[1] = -INFINITY;
  state.total[0] = state.total[1] = 0.0f;
  const int64_t my_row = row0 + (kDecode ? 0 : warp * 16) + g;
  const int64_t position[2] = {context - query_len + my_row / group,
                               context - query_len + (my_row + 8) / group};

  const auto stage = [&](int i) { return tiles + i * 2 * kTileKeys * kStride; };
  if (key_begin < key_end) {
    load_tile<T, kDim>(stage(0), k_cache, s, table, kv_head, key_begin, first_key, key_end);
    load_tile<T, kDim>(stage(0) + kTileKeys * kStride, v_cache, s, table, kv_head, key_begin,
                       first_key, key_end);
  }
  cp_async_commit();
  int current = 0;
  for (int64_t key = key_begin; key < key_end; key += kTileKeys) {
    const int64_t next = key + kTileKeys;
    if (next < key_end) {
      load_tile<T, kDim>(stage(1 - current), k_cache, s, table, kv_head, next, first_key, key_end);
      load_tile<T, kDim>(stage(1 - current) + kTileKeys * kStride, v_cache, s, table, kv_head, next,
                         first_key, key_end);
    }
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    const int offset = kDecode ? warp * 16 : 0;
    const T* k_tile = stage(current) + offset * kStride;
    attend_tile<T, kDim, kNumTiles>(state, q_rows + (kDecode ? 0 : warp * 16) * kStride, k_tile,
                                    k_tile + kTileKeys * kStride, s, key + offset, position);
    __syncthreads();
    current = 1 - current;
  }
  cp_async_wait<0>();

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    state.total[r] += __shfl_xor_sync(0xffffffffu, state.total[r], 1);
    state.total[r] += __shfl_xor_sync(0xffffffffu, state.total[r], 2);
  }
  if constexpr (kDecode) {
    __syncthreads();
    merge_warps<kDim>(state, reinterpret_cast<float*>(shared));
    if (warp != 0) return;
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int64_t row = my_row + 8 * r;
    if (row >= num_rows) continue;
    if (kDecode && s.num_splits > 1) {
      float* part =
          s.partial +
          (((int64_t{sequence} * s.num_kv_heads + kv_head) * s.num_splits + split) * 16 + row) *
              (kDim + 2);
#pragma unroll
      for (int d = 0; d < kDim / 8; ++d) {
        part[d * 8 + 2 * t] = state.out[d][2 * r];
        part[d * 8 + 2 * t + 1] = state.out[d][2 * r + 1];
      }
      if (t == 0) {
        part[kDim] = state.maximum[r];
        part[kDim + 1] = state.total[r];
      }
      continue;
    }
    const int head = kv_head * group + static_cast<int>(row % group);
    const float scale = row_scale(state.maximum[r], state.total[r], s.sinks, head);
    T* to = out + ((start + row / group) * s.num_heads + head) * kDim;
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d) {
      *reinterpret_cast<uint32_t*>(to + d * 8 + 2 * t) =
          pack2<T>(state.out[d][2 * r] * scale, state.out[d][2 * r + 1] * scale);
    }
  }
}

// Adds up the splits of one row. One thread per output dimension; the first warps turn the splits'
// maxima into weights.
constexpr int kMaxSplits = 512;

template <class T, int kDim>
__global__ void combine_kernel(T* __restrict__ out, AttentionShape s) {
  __shared__ float weights[kMaxSplits];
  __shared__ float scale;
  allow_next();
  await_inputs();
  const int row = blockIdx.x, kv_head = blockIdx.y, sequence = blockIdx.z;
  const int group = s.num_heads / s.num_kv_heads;
  const int64_t start = s.query_start[sequence];
  if (row >= (s.query_start[sequence + 1] - start) * group) return;
  const float* parts =
      s.partial +
      ((int64_t{sequence} * s.num_kv_heads + kv_head) * s.num_splits * 16 + row) * (kDim + 2);
  const int64_t stride = 16 * (kDim + 2);
  const int head = kv_head * group + row % group;
  if (threadIdx.x < 32) {
    float maximum = -INFINITY;
    for (int i = threadIdx.x; i < s.num_splits; i += 32)
      maximum = fmaxf(maximum, parts[i * stride + kDim]);
    maximum = warp_max(maximum);
    const float base = maximum == -INFINITY ? 0.0f : maximum;
    float total = 0.0f;
    for (int i = threadIdx.x; i < s.num_splits; i += 32) {
      weights[i] = exp2f(parts[i * stride + kDim] - base);
      total += parts[i * stride + kDim + 1] * weights[i];
    }
    total = warp_sum(total);
    if (threadIdx.x == 0) scale = row_scale(maximum, total, s.sinks, head);
  }
  __syncthreads();
  T* to = out + ((start + row / group) * s.num_heads + head) * kDim;
  for (int d = threadIdx.x; d < kDim; d += blockDim.x) {
    float sum = 0.0f;
#pragma unroll 8
    for (int i = 0; i < s.num_splits; ++i) sum += parts[i * stride + d] * weights[i];
    to[d] = as<T>(sum * scale);
  }
}

template <class T, class C, int kDim, bool kDecode>
void launch_tiles(Tensor& out, const Tensor& q, const PagedKv& kv, const AttentionShape& s,
                  dim3 grid) {
  constexpr size_t kBytes = shared_bytes<T, kDim, kDecode>();
  static_assert(!kDecode || kBytes >= sizeof(float) * kWarps * 16 * (kDim + 2));
  static const cudaError_t raised =
      cudaFuncSetAttribute(tile_attention_kernel<T, C, kDim, kDecode>,
                           cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  cuda_check(raised, "raising the shared memory of paged_attention");
  launch_dependent("paged_attention", tile_attention_kernel<T, C, kDim, kDecode>, q.device().index,
                   grid, kThreads, kBytes, ptr<T>(out), ptr<T>(q), ptr<C>(kv.k), ptr<C>(kv.v), s);
}

template <class T, class C, int kDim>
void run_tiles(Tensor& out, const Tensor& q, const PagedKv& kv, const AttentionBatch& batch,
               AttentionShape s) {
  const auto sequences = static_cast<unsigned>(batch.context_len.size(0));
  const auto kv_heads = static_cast<unsigned>(s.num_kv_heads);
  const int64_t rows = batch.max_query_len * (s.num_heads / s.num_kv_heads);
  if (rows > 16) {
    if (std::is_same_v<T, C> && hopper_attention(out, q, kv, batch, s)) return;
    launch_tiles<T, C, kDim, false>(out, q, kv, s,
                                    dim3(blocks_for(rows, 16 * kWarps), kv_heads, sequences));
    return;
  }
  // Decoding waits for memory, not for arithmetic: as many splits as fill the multiprocessors
  // twice, down to one tile each.
  const int64_t keys = s.window > 0
                           ? std::min(batch.max_context_len, s.window + batch.max_query_len)
                           : batch.max_context_len;
  const int64_t wanted =
      2 * cuda_num_sms(q.device().index) / std::max<int64_t>(1, int64_t{sequences} * kv_heads);
  const int64_t most = std::min<int64_t>(kMaxSplits, (keys + kTileKeys - 1) / kTileKeys);
  s.num_splits = static_cast<int>(std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, most)));
  Tensor partial;
  if (s.num_splits > 1) {
    partial = Tensor::empty({int64_t{sequences} * kv_heads * s.num_splits * 16 * (kDim + 2)},
                            DType::kF32, q.device());
    s.partial = ptr<float>(partial);
  }
  launch_tiles<T, C, kDim, true>(out, q, kv, s,
                                 dim3(static_cast<unsigned>(s.num_splits), kv_heads, sequences));
  if (s.num_splits > 1) {
    launch_dependent("paged_attention (combine)", combine_kernel<T, kDim>, q.device().index,
                     dim3(static_cast<unsigned>(rows), kv_heads, sequences), std::min(kDim, 128), 0,
                     ptr<T>(out), s);
  }
}

void paged_attention_cuda(Tensor& out, const Tensor& q, const PagedKv& kv,
                          const AttentionBatch& batch, const AttentionArgs& args) {
  const int64_t num_tokens = q.size(0);
  if (num_tokens == 0 || batch.context_len.size(0) == 0) return;
  const AttentionShape s = attention_shape(kv, q.size(1), batch, args);
  const bool fp8 = kv.k.dtype() == DType::kF8E4M3;
  if ((fp8 || q.dtype() == kv.k.dtype()) && q.dtype() != DType::kF32 && q.is_contiguous()) {
    bool done = true;
    const auto run = [&]<class T, class C>() {
      switch (s.head_dim) {
        case 64:
          return run_tiles<T, C, 64>(out, q, kv, batch, s);
        case 96:
          return run_tiles<T, C, 96>(out, q, kv, batch, s);
        case 128:
          return run_tiles<T, C, 128>(out, q, kv, batch, s);
        case 256:
          return run_tiles<T, C, 256>(out, q, kv, batch, s);
        default:
          done = false;
      }
    };
    dispatch_half(q.dtype(), "paged_attention", [&](auto type) {
      using T = decltype(type);
      fp8 ? run.template operator()<T, __nv_fp8_e4m3>() : run.template operator()<T, T>();
    });
    if (done) return;
  }
  check(s.head_dim <= kMaxPlainDim, "paged_attention: head_dim {} is above {} on CUDA", s.head_dim,
        kMaxPlainDim);
  dispatch_float(q.dtype(), "paged_attention", [&](auto type) {
    using T = decltype(type);
    dispatch_cache(kv.k.dtype(), "paged_attention", [&](auto cache_type) {
      using C = decltype(cache_type);
      plain_attention_kernel<T, C>
          <<<blocks_for(num_tokens * s.num_heads, 4), 128, 0, stream_of(q)>>>(
              ptr<T>(out), ptr<T>(q), ptr<C>(kv.k), ptr<C>(kv.v), batch.context_len.size(0),
              num_tokens, s);
      check_launch("paged_attention (plain)");
    });
  });
}

const RegisterKernel r(paged_attention_kernel, DeviceType::kCuda, &paged_attention_cuda);

}  // namespace
}  // namespace reft
