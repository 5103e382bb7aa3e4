// Gradients of attention of packed batches on Hopper, head dim 128: the algorithm of
// packed_attention_backward.cu by WGMMA and TMA. A block has 128 keys, two warpgroups 64 each; a
// third warpgroup's first warp brings queries and gradients of results, 64 tokens at a time. What
// is left to the warps is in flight with products: the weights' gradients are worked out while dv
// is multiplied, and go to shared memory for dq, of which each warpgroup makes one half.
#include "backends/cuda/hopper.h"
#include "backends/cuda/mma.h"
#include "backends/cuda/query_sums.h"

namespace reft {
namespace {

constexpr int kDim = 128;
constexpr int kConsumers = 2;
constexpr int kKeys = 64 * kConsumers;
constexpr int kThreads = (kConsumers + 1) * 128;
constexpr int kStages = 2;
constexpr int kSlab = 64;  // elements of a 128-byte row of the swizzle
constexpr int kSlabs = kDim / kSlab;

template <class T>
struct Shared {
  // [slab][row][64], swizzled in groups of 8 rows.
  alignas(1024) T k[kKeys * kDim];
  alignas(1024) T v[kKeys * kDim];
  alignas(1024) T q[kStages][kQueries * kDim];
  alignas(1024) T dout[kStages][kQueries * kDim];
  alignas(1024) T slopes[2][kKeys * kQueries];  // gradients of the scores, [key][query], swizzled
  float lse[kStages][kQueries], delta[kStages][kQueries];
  uint64_t kv_full, full[kStages], free[kStages];
  int ticket;
};

struct Maps {
  CUtensorMap queries;  // [T, H + 2 Hk, Dh], boxes of 64 tokens × 1 head × 64
  CUtensorMap keys;     // the same in boxes of 128 tokens
  CUtensorMap dout;     // [T, H, Dh], boxes of 64 tokens
};

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    packed_backward_hopper(T* __restrict__ dqkv, const __grid_constant__ Maps maps,
                           const float* __restrict__ lse, const float* __restrict__ delta,
                           QuerySums sums, PackedShape p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ unsigned char raw[];
  auto& shared =
      *reinterpret_cast<Shared<T>*>((reinterpret_cast<uintptr_t>(raw) + 1023) / 1024 * 1024);
  if (threadIdx.x == 0) {
    shared.ticket = atomicAdd(sums.ticket, 1);
    barrier_init(&shared.kv_full, 1);
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&shared.full[i], 1);
      barrier_init(&shared.free[i], kConsumers);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    fence_async_proxy();
  }
  __syncthreads();
  // KV heads fastest, then tiles from the last one on, then sequences.
  const int ticket = shared.ticket;
  const int kv_head = ticket % p.num_kv_heads;
  const int tile = sums.key_tiles - 1 - ticket / p.num_kv_heads % sums.key_tiles;
  const int sequence = ticket / (p.num_kv_heads * sums.key_tiles);
  const int64_t start = p.query_start[sequence];
  const auto length = static_cast<int>(p.query_start[sequence + 1] - start);
  const int key0 = tile * kKeys;
  if (key0 >= length) return;
  const auto window = static_cast<int>(min(p.window, int64_t{length}));  // 0: all
  const int first = key0 / kQueries;  // tiles of queries that see one of the keys
  const int query_end = window > 0 ? min(length, key0 + kKeys - 1 + window) : length;
  const int num_tiles = (query_end + kQueries - 1) / kQueries - first;
  const int steps = num_tiles * p.group();

  const int group = threadIdx.x / 128;
  if (group == kConsumers) {
    fewer_registers<40>();
    const int lane = threadIdx.x % 128;
    if (lane >= 32) return;
    const auto load = [&](T* to, const CUtensorMap* map, uint64_t* barrier, int rows, int head,
                          int row0) {
      for (int slab = 0; slab < kSlabs; ++slab) {
        tma_load_3d(to + slab * rows * kSlab, map, barrier, slab * kSlab, head,
                    static_cast<int>(start) + row0);
      }
    };
    if (lane == 0) {
      barrier_expect(&shared.kv_full, 2 * kKeys * kDim * sizeof(T));
      const int head = p.num_heads + kv_head;
      load(shared.k, &maps.keys, &shared.kv_full, kKeys, head, key0);
      load(shared.v, &maps.keys, &shared.kv_full, kKeys, head + p.num_kv_heads, key0);
    }
    for (int step = 0; step < steps; ++step) {
      const int stage = step % kStages;
      const int head = kv_head * p.group() + step / num_tiles;
      const int query0 = (first + step % num_tiles) * kQueries;
      barrier_wait(&shared.free[stage], (static_cast<unsigned>(step / kStages) & 1) ^ 1);
#pragma unroll
      for (int i = lane; i < kQueries; i += 32) {
        const int query = query0 + i;
        const int64_t at = (start + query) * p.num_heads + head;
        // In log2 units; queries past the end have no weight.
        shared.lse[stage][i] = query < length ? lse[at] * kLog2e : INFINITY;
        shared.delta[stage][i] = query < length ? delta[at] : 0.0f;
      }
      __syncwarp();
      if (lane == 0) {
        barrier_expect(&shared.full[stage], 2 * kQueries * kDim * sizeof(T));
        load(shared.q[stage], &maps.queries, &shared.full[stage], kQueries, head, query0);
        load(shared.dout[stage], &maps.dout, &shared.full[stage], kQueries, head, query0);
      }
    }
    return;
  }

  more_registers<232>();
  const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
  const int g = lane / 4, t = lane % 4;
  const int own_row = group * 64 + warp * 16 + g;  // of the block's keys; and own_row + 8
  const int own_key = key0 + own_row;
  float dk[kDim / 2], dv[kDim / 2], score[kQueries / 2], slope[kQueries / 2], dq[32];
  uint32_t weights[kQueries / 16][4], slopes[kQueries / 16][4];
#pragma unroll
  for (int i = 0; i < kDim / 2; ++i) dk[i] = dv[i] = 0.0f;
  const float factor = p.scale * kLog2e;

  // scores (+)= rows of this warpgroup's keys (or values) times the tokens' rows.
  const auto start_rows = [&](float(&d)[kQueries / 2], const T* left, const T* right) {
    pin(d);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      const int slab = k / 4, offset = k % 4 * 16;
      wgmma_shared<T, kQueries>(
          d, swizzled_operand(left + (slab * kKeys + group * 64) * kSlab + offset, 16),
          swizzled_operand(right + slab * kQueries * kSlab + offset, 16), k > 0);
    }
    wgmma_commit();
  };
  // d += left, [64 keys × 64 tokens] in registers, times the tokens' rows.
  const auto start_sums = [&](float(&d)[kDim / 2], const uint32_t(&left)[kQueries / 16][4],
                              const T* right) {
    pin(d);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kQueries / 16; ++k) {
      wgmma_registers<T, kDim>(
          d, left[k], swizzled_operand(right + k * 16 * kSlab, kQueries * kSlab * sizeof(T)));
    }
    wgmma_commit();
  };
  barrier_wait(&shared.kv_full, 0);
  for (int step = 0; step < steps; ++step) {
    const int stage = step % kStages;
    const int head = kv_head * p.group() + step / num_tiles;
    const int query_tile = first + step % num_tiles;
    const int query0 = query_tile * kQueries;
    barrier_wait(&shared.full[stage], static_cast<unsigned>(step / kStages) & 1);
    start_rows(score, shared.k, shared.q[stage]);
    start_rows(slope, shared.v, shared.dout[stage]);
    wgmma_wait<1>();
    pin(score);
    // Keys that some query of the tile does not see.
    const bool edge = query0 < key0 + kKeys || (window > 0 && query0 + kQueries > key0 + window);
#pragma unroll
    for (int n = 0; n < kQueries / 8; ++n) {
      const float2 denominator =
          *reinterpret_cast<const float2*>(&shared.lse[stage][n * 8 + 2 * t]);
      float bend[4];  // slopes of the cap
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float bottom = e % 2 == 0 ? denominator.x : denominator.y;
        float& x = score[n * 4 + e];
        if (p.soft_cap > 0.0f) {
          const float bent = tanhf(x * p.scale / p.soft_cap);
          bend[e] = 1.0f - bent * bent;
          x = exp2_fast(fmaf(bent, p.soft_cap * kLog2e, -bottom));
        } else {
          x = exp2_fast(fmaf(x, factor, -bottom));
        }
        if (edge) {
          const int behind = query0 + n * 8 + 2 * t + e % 2 - (own_key + e / 2 * 8);
          if (behind < 0 || (window > 0 && behind >= window)) x = 0.0f;
        }
      }
#pragma unroll
      for (int r = 0; r < 2; ++r)
        weights[n / 2][n % 2 * 2 + r] = pack2<T>(score[n * 4 + 2 * r], score[n * 4 + 2 * r + 1]);
      if (p.soft_cap > 0.0f) {
#pragma unroll
        for (int e = 0; e < 4; ++e) score[n * 4 + e] *= bend[e];
      }
    }
    start_sums(dv, weights, shared.dout[stage]);
    wgmma_wait<1>();  // the product before it
    pin(slope);
    T* slope_tile = shared.slopes[step % 2];
#pragma unroll
    for (int n = 0; n < kQueries / 8; ++n) {
      const float2 own = *reinterpret_cast<const float2*>(&shared.delta[stage][n * 8 + 2 * t]);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& x = slope[n * 4 + e];
        x = score[n * 4 + e] * (x - (e % 2 == 0 ? own.x : own.y));
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = own_row + 8 * r;
        uint32_t& pair = slopes[n / 2][n % 2 * 2 + r];
        pair = pack2<T>(slope[n * 4 + 2 * r], slope[n * 4 + 2 * r + 1]);
        // The swizzle: 16-byte pieces of a row of 128 change places by the row's number.
        reinterpret_cast<uint32_t*>(slope_tile + row * kSlab)[(n ^ (row & 7)) * 4 + t] = pair;
      }
    }
    fence_async_proxy();
    start_sums(dk, slopes, shared.q[stage]);
    const SumTurn turn =
        sums.turn(p, start, sequence, length, head, query_tile, tile, kKeys, window);
    if (threadIdx.x == 0) sums.await(turn);
    named_sync(1, kConsumers * 128);  // all slopes are there, all are done with the step before
    if (step > 0) sums.release();
    pin(dq);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      wgmma_shared_transposed<T>(dq, swizzled_operand(slope_tile + k * 16 * kSlab, 16),
                                 swizzled_operand(shared.k + (group * kKeys + k * 16) * kSlab, 16),
                                 k > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    pin(dv);
    pin(dk);
    pin(dq);
    if (thread == 0) barrier_arrive(&shared.free[stage]);
    float parts[8][4];
#pragma unroll
    for (int i = 0; i < 32; ++i) parts[i / 4][i % 4] = dq[i];
    sums.add<kConsumers * 128>(turn, parts);
    if (!turn.last) continue;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int query = query0 + warp * 16 + g + 8 * r;
      if (query >= length) continue;
      T* to = dqkv + (start + query) * p.width() + head * kDim + group * kSlab + 2 * t;
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        *reinterpret_cast<uint32_t*>(to + n * 8) =
            pack2<T>(parts[n][2 * r] * p.scale, parts[n][2 * r + 1] * p.scale);
      }
    }
  }
  named_sync(1, kConsumers * 128);
  sums.release();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int key = own_key + 8 * r;
    if (key >= length) continue;
    T* to = dqkv + (start + key) * p.width() + (p.num_heads + kv_head) * kDim + 2 * t;
    T* to_value = to + p.num_kv_heads * kDim;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      *reinterpret_cast<uint32_t*>(to + n * 8) =
          pack2<T>(dk[n * 4 + 2 * r] * p.scale, dk[n * 4 + 2 * r + 1] * p.scale);
      *reinterpret_cast<uint32_t*>(to_value + n * 8) =
          pack2<T>(dv[n * 4 + 2 * r], dv[n * 4 + 2 * r + 1]);
    }
  }
#endif
}

template <class T>
void launch(const PackedGradient& g, const PackedShape& p, int64_t longest) {
  const Tensor& qkv = g.forward.qkv;
  const auto tokens = static_cast<cuuint64_t>(p.num_tokens);
  const auto map = [&](const Tensor& t, int heads, unsigned rows) {
    const cuuint64_t sizes[] = {kDim, static_cast<cuuint64_t>(heads), tokens};
    const cuuint64_t strides[] = {kDim * sizeof(T),
                                  static_cast<cuuint64_t>(heads) * kDim * sizeof(T)};
    const cuuint32_t box[] = {kSlab, 1, rows};
    return tensor_map(t, 3, sizes, strides, box);
  };
  const int heads = p.num_heads + 2 * p.num_kv_heads;
  const Maps maps{.queries = map(qkv, heads, kQueries),
                  .keys = map(qkv, heads, kKeys),
                  .dout = map(g.dout, p.num_heads, kQueries)};
  constexpr size_t kBytes = sizeof(Shared<T>) + 1024;
  static const cudaError_t raised = cudaFuncSetAttribute(
      packed_backward_hopper<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  cuda_check(raised, "raising the shared memory of packed_attention_backward");
  const QuerySumMemory memory(p, longest, kKeys, kDim, qkv.device());
  const int64_t blocks = int64_t{p.num_kv_heads} * memory.sums.key_tiles * p.num_sequences;
  packed_backward_hopper<T><<<static_cast<unsigned>(blocks), kThreads, kBytes, stream_of(qkv)>>>(
      ptr<T>(g.dqkv), maps, ptr<float>(g.forward.lse), ptr<float>(g.delta), memory.sums, p);
  check_launch("packed_attention_backward (Hopper)");
}

}  // namespace

bool hopper_packed_attention_backward(const PackedGradient& g, const PackedShape& s,
                                      int64_t longest) {
  const Tensor& qkv = g.forward.qkv;
  if (s.head_dim != kDim || !aligned_16(qkv.raw()) || !aligned_16(g.dout.raw()) ||
      !has_hopper(qkv)) {
    return false;
  }
  dispatch_half(qkv.dtype(), "packed_attention_backward",
                [&](auto type) { launch<decltype(type)>(g, s, longest); });
  return true;
}

}  // namespace reft
