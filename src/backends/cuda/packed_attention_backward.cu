// Gradients of attention of packed batches, by mma.sync (FlashAttention-2's algorithm,
// arXiv:2307.08691). A block keeps a tile of keys of one KV head and goes through the queries that
// see them, 64 at a time, head by head of the group; it works on transposed scores (keys down,
// queries across), so that weights and their gradients are, as they are, the left operands of the
// products for dv and dk.
//
// The gradient of a tile of queries is the sum of what the blocks of its keys add to it, in a fixed
// order: from the diagonal down, each waiting for the one before. Blocks begin in that order
// (tickets), and on the way through the queries each is one tile behind the next, so that they
// hardly wait.
#include <algorithm>

#include "backends/cuda/mma.h"
#include "backends/cuda/packed_attention.h"
#include "backends/cuda/query_sums.h"

namespace reft {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;

// A warp has 16 keys, and of a head's elements one of kParts parts.
template <int kDim>
struct Tile {
  static constexpr int kParts = kDim > 128 ? 2 : 1;
  static constexpr int kKeys = 16 * kWarps / kParts;
  static constexpr int kStages = kDim > 128 ? 1 : 2;
  static constexpr int kStride = kDim + 8;  // of a row of a head
  static constexpr int kSlopeStride = kQueries + 8;
  static constexpr int kPart = kDim / kParts;  // elements of a warp's dk and dv
  static constexpr int kHalf = kDim / 2;       // elements of a warp's dq
  // K, V, stages of Q and dO, and the gradient of the scores.
  static constexpr size_t kElements =
      size_t{2 * kKeys + 2 * kStages * kQueries} * kStride + size_t{kKeys} * kSlopeStride;
};

// dᵀ [16 × 64] = rows of `a` times the rows of `b`, both with the head's elements across.
template <class T, int kDim>
__device__ __forceinline__ void multiply_rows(float (&d)[kQueries / 8][4], const T* a, const T* b) {
  constexpr int kStride = Tile<kDim>::kStride;
  const int lane = threadIdx.x % 32;
  const T* a_row = a + lane % 16 * kStride + lane / 16 * 8;
  const T* b_row = b + (lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8;
#pragma unroll
  for (int n = 0; n < kQueries / 8; ++n) {
#pragma unroll
    for (float& x : d[n]) x = 0.0f;
  }
#pragma unroll
  for (int k = 0; k < kDim; k += 16) {
    uint32_t left[4];
    ldmatrix_x4(left, a_row + k);
#pragma unroll
    for (int n = 0; n < kQueries / 8; n += 2) {
      uint32_t right[4];
      ldmatrix_x4(right, b_row + n * 8 * kStride + k);
      mma_16816<T>(d[n], left, right[0], right[1]);
      mma_16816<T>(d[n + 1], left, right[2], right[3]);
    }
  }
}

// d [16 × 8 kTiles] += `left` [16 × 64], in registers, times the 64 rows of `b`.
template <class T, int kDim, int kTiles>
__device__ __forceinline__ void multiply_add(float (&d)[kTiles][4],
                                             const uint32_t (&left)[kQueries / 16][4], const T* b) {
  constexpr int kStride = Tile<kDim>::kStride;
  const int lane = threadIdx.x % 32;
  const T* b_row = b + lane % 16 * kStride + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < kQueries / 16; ++k) {
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      uint32_t right[4];
      ldmatrix_x4_trans(right, b_row + k * 16 * kStride + n * 8);
      mma_16816<T>(d[n], left[k], right[0], right[1]);
      mma_16816<T>(d[n + 1], left[k], right[2], right[3]);
    }
  }
}

template <class T>
__device__ __forceinline__ void pack_left(uint32_t (&left)[kQueries / 16][4],
                                          const float (&d)[kQueries / 8][4]) {
#pragma unroll
  for (int k = 0; k < kQueries / 16; ++k) {
#pragma unroll
    for (int e = 0; e < 4; ++e)
      left[k][e] = pack2<T>(d[2 * k + e / 2][e % 2 * 2], d[2 * k + e / 2][e % 2 * 2 + 1]);
  }
}

template <class T, int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    packed_backward_tiles(T* __restrict__ dqkv, const T* __restrict__ qkv,
                          const T* __restrict__ dout, const float* __restrict__ lse,
                          const float* __restrict__ delta, QuerySums sums, PackedShape p) {
  using S = Tile<kDim>;
  constexpr int kKeys = S::kKeys, kStride = S::kStride;
  extern __shared__ __align__(16) unsigned char raw[];
  __shared__ float lse_of[S::kStages][kQueries], delta_of[S::kStages][kQueries];
  __shared__ int ticket;
  T* k_tile = reinterpret_cast<T*>(raw);
  T* v_tile = k_tile + kKeys * kStride;
  T* q_tiles = v_tile + kKeys * kStride;
  T* d_tiles = q_tiles + S::kStages * kQueries * kStride;
  T* slopes = d_tiles + S::kStages * kQueries * kStride;
  if (threadIdx.x == 0) ticket = atomicAdd(sums.ticket, 1);
  __syncthreads();
  // KV heads fastest, then tiles from the last one on, then sequences.
  const int kv_head = ticket % p.num_kv_heads;
  const int tile = sums.key_tiles - 1 - ticket / p.num_kv_heads % sums.key_tiles;
  const int sequence = ticket / (p.num_kv_heads * sums.key_tiles);
  const int64_t start = p.query_start[sequence];
  const auto length = static_cast<int>(p.query_start[sequence + 1] - start);
  const int key0 = tile * kKeys;
  if (key0 >= length) return;
  const auto window = static_cast<int>(min(p.window, int64_t{length}));  // 0: all
  const int64_t width = p.width();
  const int first = key0 / kQueries;  // tiles of queries that see one of the keys
  const int query_end = window > 0 ? min(length, key0 + kKeys - 1 + window) : length;
  const int num_tiles = (query_end + kQueries - 1) / kQueries - first;
  const int steps = num_tiles * p.group();

  const auto load_rows = [&](T* to, const T* from, int64_t stride, int row0, int rows) {
    constexpr int kChunks = kDim / 8;
    for (int i = threadIdx.x; i < rows * kChunks; i += kThreads) {
      const int row = i / kChunks, chunk = i % kChunks;
      const bool inside = row0 + row < length && chunk * 8 < p.head_dim;
      cp_async_16(to + row * kStride + chunk * 8,
                  inside ? from + (row0 + row) * stride + chunk * 8 : from, inside ? 16 : 0);
    }
  };
  const T* rows = qkv + start * width;
  const T* keys = rows + int64_t{p.num_heads + kv_head} * p.head_dim;
  const auto load_step = [&](int step) {
    const int stage = step % S::kStages;
    const int head = kv_head * p.group() + step / num_tiles;
    const int query0 = (first + step % num_tiles) * kQueries;
    load_rows(q_tiles + stage * kQueries * kStride, rows + int64_t{head} * p.head_dim, width,
              query0, kQueries);
    load_rows(d_tiles + stage * kQueries * kStride,
              dout + (start * p.num_heads + head) * p.head_dim, int64_t{p.num_heads} * p.head_dim,
              query0, kQueries);
    if (threadIdx.x < kQueries) {
      const int query = query0 + threadIdx.x;
      const int64_t at = (start + query) * p.num_heads + head;
      // In log2 units; queries past the end have no weight.
      lse_of[stage][threadIdx.x] = query < length ? lse[at] * kLog2e : INFINITY;
      delta_of[stage][threadIdx.x] = query < length ? delta[at] : 0.0f;
    }
    cp_async_commit();
  };
  load_rows(k_tile, keys, width, key0, kKeys);
  load_rows(v_tile, keys + int64_t{p.num_kv_heads} * p.head_dim, width, key0, kKeys);
  load_step(0);

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int key_warp = warp / S::kParts, part = warp % S::kParts;
  const int own_key = key0 + key_warp * 16 + g;  // and own_key + 8
  float dk[S::kPart / 8][4] = {}, dv[S::kPart / 8][4] = {};
  const float factor = p.scale * kLog2e;
  for (int step = 0; step < steps; ++step) {
    const int stage = step % S::kStages;
    const int head = kv_head * p.group() + step / num_tiles;
    const int query_tile = first + step % num_tiles;
    const int query0 = query_tile * kQueries;
    cp_async_wait<0>();
    __syncthreads();  // the tiles are there; all are done with the step before
    if (step > 0) sums.release();
    if (S::kStages > 1 && step + 1 < steps) load_step(step + 1);
    const T* q_tile = q_tiles + stage * kQueries * kStride;
    const T* d_tile = d_tiles + stage * kQueries * kStride;

    float score[kQueries / 8][4], slope[kQueries / 8][4];
    multiply_rows<T, kDim>(score, k_tile + key_warp * 16 * kStride, q_tile);
    multiply_rows<T, kDim>(slope, v_tile + key_warp * 16 * kStride, d_tile);
    // Keys that some query of the tile does not see.
    const bool edge = query0 < key0 + kKeys || (window > 0 && query0 + kQueries > key0 + window);
#pragma unroll
    for (int n = 0; n < kQueries / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int column = n * 8 + 2 * t + e % 2;
        const float denominator = lse_of[stage][column];
        float weight, bend = 1.0f;
        if (p.soft_cap > 0.0f) {
          const float bent = tanhf(score[n][e] * p.scale / p.soft_cap);
          bend = 1.0f - bent * bent;
          weight = exp2_fast(fmaf(bent, p.soft_cap * kLog2e, -denominator));
        } else {
          weight = exp2_fast(fmaf(score[n][e], factor, -denominator));
        }
        if (edge) {
          const int behind = query0 + column - (own_key + e / 2 * 8);  // the query's distance
          if (behind < 0 || (window > 0 && behind >= window)) weight = 0.0f;
        }
        score[n][e] = weight;
        slope[n][e] = weight * (slope[n][e] - delta_of[stage][column]) * bend;
      }
    }
    uint32_t left[kQueries / 16][4];
    pack_left<T>(left, score);
    multiply_add<T, kDim>(dv, left, d_tile + part * S::kPart);
    pack_left<T>(left, slope);
    if (part == 0) {
      // [key][query]; `left` holds pairs of queries of keys g and g + 8.
      T* to = slopes + (key_warp * 16 + g) * S::kSlopeStride + 2 * t;
#pragma unroll
      for (int k = 0; k < kQueries / 16; ++k) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          *reinterpret_cast<uint32_t*>(to + e % 2 * 8 * S::kSlopeStride + k * 16 + e / 2 * 8) =
              left[k][e];
        }
      }
    }
    multiply_add<T, kDim>(dk, left, q_tile + part * S::kPart);

    const SumTurn turn =
        sums.turn(p, start, sequence, length, head, query_tile, tile, kKeys, window);
    if (threadIdx.x == 0) sums.await(turn);
    __syncthreads();  // the slopes are there, and it is this block's turn
    // dq: warps 4 × 2, 16 queries and half of a head's elements each.
    float dq[S::kHalf / 8][4] = {};
    const int query_warp = warp % 4, half = warp / 4;
    const T* slope_row =
        slopes + (lane % 8 + lane / 16 * 8) * S::kSlopeStride + query_warp * 16 + lane / 8 % 2 * 8;
    const T* key_row = k_tile + lane % 16 * kStride + lane / 16 * 8 + half * S::kHalf;
#pragma unroll
    for (int k = 0; k < kKeys; k += 16) {
      uint32_t slope_left[4];
      ldmatrix_x4_trans(slope_left, slope_row + k * S::kSlopeStride);
#pragma unroll
      for (int n = 0; n < S::kHalf / 8; n += 2) {
        uint32_t right[4];
        ldmatrix_x4_trans(right, key_row + k * kStride + n * 8);
        mma_16816<T>(dq[n], slope_left, right[0], right[1]);
        mma_16816<T>(dq[n + 1], slope_left, right[2], right[3]);
      }
    }
    sums.add<kThreads>(turn, dq);
    if (turn.last) {
#pragma unroll
      for (int e = 0; e < 4; e += 2) {
        const int query = query0 + query_warp * 16 + g + e / 2 * 8;
        if (query >= length) continue;
        T* to = dqkv + (start + query) * width + int64_t{head} * p.head_dim;
#pragma unroll
        for (int n = 0; n < S::kHalf / 8; ++n) {
          const int d = half * S::kHalf + n * 8 + 2 * t;
          if (d >= p.head_dim) continue;
          *reinterpret_cast<uint32_t*>(to + d) =
              pack2<T>(dq[n][e] * p.scale, dq[n][e + 1] * p.scale);
        }
      }
    }
    if (S::kStages == 1 && step + 1 < steps) {
      __syncthreads();
      load_step(step + 1);
    }
  }
  __syncthreads();
  sums.release();
#pragma unroll
  for (int e = 0; e < 4; e += 2) {
    const int key = own_key + e / 2 * 8;
    if (key >= length) continue;
    T* to = dqkv + (start + key) * width + int64_t{p.num_heads + kv_head} * p.head_dim;
    T* to_value = to + int64_t{p.num_kv_heads} * p.head_dim;
#pragma unroll
    for (int n = 0; n < S::kPart / 8; ++n) {
      const int d = part * S::kPart + n * 8 + 2 * t;
      if (d >= p.head_dim) continue;
      *reinterpret_cast<uint32_t*>(to + d) = pack2<T>(dk[n][e] * p.scale, dk[n][e + 1] * p.scale);
      *reinterpret_cast<uint32_t*>(to_value + d) = pack2<T>(dv[n][e], dv[n][e + 1]);
    }
  }
}

template <class T, int kDim>
bool launch(const PackedGradient& g, const PackedShape& s, int64_t longest) {
  using S = Tile<kDim>;
  constexpr size_t kBytes = S::kElements * sizeof(T);
  static const bool fits =
      cudaFuncSetAttribute(packed_backward_tiles<T, kDim>,
                           cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes) == cudaSuccess;
  if (!fits) {
    cudaGetLastError();
    return false;
  }
  const Tensor& qkv = g.forward.qkv;
  const QuerySumMemory memory(s, longest, S::kKeys, kDim, qkv.device());
  const int64_t blocks = int64_t{s.num_kv_heads} * memory.sums.key_tiles * s.num_sequences;
  packed_backward_tiles<T, kDim>
      <<<static_cast<unsigned>(blocks), kThreads, kBytes, stream_of(qkv)>>>(
          ptr<T>(g.dqkv), ptr<T>(qkv), ptr<T>(g.dout), ptr<float>(g.forward.lse),
          ptr<float>(g.delta), memory.sums, s);
  check_launch("packed_attention_backward");
  return true;
}

}  // namespace

bool tile_packed_attention_backward(const PackedGradient& g, const PackedShape& s, int dim,
                                    int64_t longest) {
  bool done = false;
  dispatch_half(g.dqkv.dtype(), "packed_attention_backward", [&](auto type) {
    using T = decltype(type);
    done = dim == 64    ? launch<T, 64>(g, s, longest)
           : dim == 96  ? launch<T, 96>(g, s, longest)
           : dim == 128 ? launch<T, 128>(g, s, longest)
                        : launch<T, 256>(g, s, longest);
  });
  return done;
}

}  // namespace reft
