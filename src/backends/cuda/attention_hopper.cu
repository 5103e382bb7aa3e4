// Attention of long queries on Hopper. A block takes 128 query tokens of one head: two warpgroups
// with 64 rows each compute, a third warpgroup's first warp brings the keys and values of the cache
// by TMA, page by page, into a ring of stages. A warpgroup's softmax runs while its product with V
// of the step before is under way, and the two warpgroups take turns at the tensor cores
// (FlashAttention-3, arXiv 2407.08608). Packed batches take the same way: their keys and values are
// rows of qkv, a tile of them one box.
#include <algorithm>
#include <bit>

#include "backends/cuda/attention.h"
#include "backends/cuda/hopper.h"
#include "backends/cuda/mma.h"
#include "backends/cuda/packed_attention.h"

namespace reft {
namespace {

constexpr int kRows = 128;  // query tokens of a block
constexpr int kConsumers = 2;
constexpr int kThreads = (kConsumers + 1) * 128;
constexpr int kStages = 2;
constexpr int kSlab = 64;  // elements of a 128-byte row of the swizzle

template <int kDim>
constexpr int kTileKeys = kDim == 256 ? 64 : 128;

template <class T, int kDim>
struct Shared {
  // [slab][row][64], swizzled in groups of 8 rows.
  alignas(1024) T q[kRows * kDim];
  alignas(1024) T k[kStages][kTileKeys<kDim> * kDim];
  alignas(1024) T v[kStages][kTileKeys<kDim> * kDim];
  uint64_t q_full, edge;
  uint64_t k_full[kStages], k_free[kStages], v_full[kStages], v_free[kStages];
};

struct Maps {
  CUtensorMap q;  // [T, H, Dh], boxes of 128 tokens × 1 head × 64
  CUtensorMap k;  // [N Hk P, Dh], boxes of min(P, tile) keys × 64; packed: [T, H + 2 Hk, Dh], boxes
                  // of a tile × 1 head × 64
  CUtensorMap v;
};

// What a block works on. Tiles run from the last one, which has the diagonal, to the first.
struct Work {
  int64_t start, query_len, context, token0, first_position, first_key, key_end;
  int64_t first_tile;
  int num_tiles;
};

// `lse` as in log_denominator(), for packed batches; may be null.
template <class T, int kDim, bool kPacked>
__global__ void __launch_bounds__(kThreads, 1)
    hopper_attention_kernel(T* __restrict__ out, float* __restrict__ lse,
                            const __grid_constant__ Maps maps, AttentionShape s) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr int kKeys = kTileKeys<kDim>;
  constexpr int kSlabs = kDim / kSlab;
  extern __shared__ unsigned char raw[];
  auto& shared =
      *reinterpret_cast<Shared<T, kDim>*>((reinterpret_cast<uintptr_t>(raw) + 1023) / 1024 * 1024);
  allow_next();
  await_inputs();
  const int head = blockIdx.x, sequence = blockIdx.z;
  const int kv_head = head / (s.num_heads / s.num_kv_heads);
  Work w;
  w.start = s.query_start[sequence];
  w.query_len = s.query_start[sequence + 1] - w.start;
  // The longest rows first, so that the short ones fill the gaps at the end.
  w.token0 = (int64_t{gridDim.y} - 1 - blockIdx.y) * kRows;
  if (w.token0 >= w.query_len) return;
  w.context = kPacked ? w.query_len : s.context_len[sequence];
  w.first_position = w.context - w.query_len + w.token0;
  w.first_key = s.window > 0 ? max(int64_t{0}, w.first_position - s.window + 1) : 0;
  w.key_end = w.context - w.query_len + min(w.token0 + kRows, w.query_len);
  w.first_tile = w.first_key / kKeys;
  w.num_tiles = static_cast<int>((w.key_end + kKeys - 1) / kKeys - w.first_tile);

  if (threadIdx.x == 0) {
    barrier_init(&shared.q_full, 1);
    barrier_init(&shared.edge, 1);
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&shared.k_full[i], 1);
      barrier_init(&shared.v_full[i], 1);
      barrier_init(&shared.k_free[i], kConsumers);
      barrier_init(&shared.v_free[i], kConsumers);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    fence_async_proxy();
  }
  __syncthreads();

  const int group = threadIdx.x / 128;
  if (group == kConsumers) {
    fewer_registers<40>();
    const int lane = threadIdx.x % 128;
    if (lane >= 32) return;
    if (lane == 0) {
      barrier_expect(&shared.q_full, kRows * kDim * sizeof(T));
      for (int slab = 0; slab < kSlabs; ++slab) {
        tma_load_3d(shared.q + slab * kRows * kSlab, &maps.q, &shared.q_full, slab * kSlab, head,
                    static_cast<int>(w.start + w.token0));
      }
    }
    if constexpr (kPacked) {
      if (lane != 0) return;
      const int key_head = s.num_heads + kv_head;
      for (int i = 0; i < w.num_tiles; ++i) {
        const int stage = i % kStages;
        const unsigned parity = static_cast<unsigned>(i / kStages) & 1;
        const int64_t key0 = (w.first_tile + w.num_tiles - 1 - i) * kKeys;
        // Rows of another sequence have no weight.
        const auto load = [&](T* tile, const CUtensorMap* map, uint64_t* barrier, int of_head) {
          barrier_expect(barrier, kKeys * kDim * sizeof(T));
          for (int slab = 0; slab < kSlabs; ++slab) {
            tma_load_3d(tile + slab * kKeys * kSlab, map, barrier, slab * kSlab, of_head,
                        static_cast<int>(w.start + key0));
          }
        };
        barrier_wait(&shared.k_free[stage], parity ^ 1);
        load(shared.k[stage], &maps.k, &shared.k_full[stage], key_head);
        barrier_wait(&shared.v_free[stage], parity ^ 1);
        load(shared.v[stage], &maps.v, &shared.v_full[stage], key_head + s.num_kv_heads);
      }
      return;
    }
    const int32_t* table = s.block_table + sequence * s.table_stride;
    const int box = min(s.block_size, kKeys);
    const int pieces = kKeys / box;
    unsigned edge_parity = 0;
    for (int i = 0; i < w.num_tiles; ++i) {
      const int stage = i % kStages;
      const unsigned parity = static_cast<unsigned>(i / kStages) & 1;
      const int64_t key0 = (w.first_tile + w.num_tiles - 1 - i) * kKeys;
      // Keys outside [first_key, key_end) have no weight, but what lies there may be no number: V
      // gets zeros.
      const bool edge = key0 < w.first_key || key0 + kKeys > w.key_end;
      const auto load = [&](T* tile, const CUtensorMap* map, uint64_t* barrier) {
        if (lane == 0) barrier_expect(barrier, kKeys * kDim * sizeof(T));
        __syncwarp();
        for (int item = lane; item < pieces * kSlabs; item += 32) {
          const int piece = item % pieces, slab = item / pieces;
          // A piece without a wanted key takes the nearest that has one: the table ends there.
          const int64_t key =
              min(max(key0 + piece * box, w.first_key / box * box), (w.key_end - 1) / box * box);
          const int64_t row =
              (int64_t{table[key / s.block_size]} * s.num_kv_heads + kv_head) * s.block_size +
              key % s.block_size;
          tma_load_2d(tile + (slab * kKeys + piece * box) * kSlab, map, barrier, slab * kSlab,
                      static_cast<int>(row));
        }
      };
      barrier_wait(&shared.k_free[stage], parity ^ 1);
      load(shared.k[stage], &maps.k, &shared.k_full[stage]);
      barrier_wait(&shared.v_free[stage], parity ^ 1);
      if (!edge) {
        load(shared.v[stage], &maps.v, &shared.v_full[stage]);
        continue;
      }
      load(shared.v[stage], &maps.v, &shared.edge);
      barrier_wait(&shared.edge, edge_parity);
      edge_parity ^= 1;
      for (int item = lane; item < kKeys * kSlabs; item += 32) {
        const int64_t key = key0 + item % kKeys;
        if (key >= w.first_key && key < w.key_end) continue;
        auto* row = reinterpret_cast<uint4*>(shared.v[stage] + item * kSlab);
#pragma unroll
        for (int c = 0; c < 8; ++c) row[c] = make_uint4(0, 0, 0, 0);
      }
      fence_async_proxy();
      __syncwarp();
      if (lane == 0) barrier_arrive(&shared.v_full[stage]);
    }
    return;
  }

  more_registers<232>();
  const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
  const int g = lane / 4, t = lane % 4;
  const int64_t row0 = w.token0 + group * 64 + warp * 16 + g;
  float o[kDim / 2];
  float score[kKeys / 2];
  uint32_t p[kKeys / 16][4];
  float maximum[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f}, keep[2];
#pragma unroll
  for (float& x : o) x = 0.0f;
  const float factor = s.soft_cap > 0.0f ? kLog2e : s.scale * kLog2e;  // score to log2 units

  const T* q_rows = shared.q + group * 64 * kSlab;
  const auto start_scores = [&](int stage) {
    pin(score);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      const int slab = k / 4, offset = k % 4 * 16;
      wgmma_shared<T, kKeys>(score, swizzled_operand(q_rows + slab * kRows * kSlab + offset, 16),
                             swizzled_operand(shared.k[stage] + slab * kKeys * kSlab + offset, 16),
                             k > 0);
    }
    wgmma_commit();
  };
  const auto start_values = [&](int stage) {
    pin(o);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      wgmma_registers<T, kDim>(
          o, p[k], swizzled_operand(shared.v[stage] + k * 16 * kSlab, kKeys * kSlab * sizeof(T)));
    }
    wgmma_commit();
  };
  // Turns scores into weights, in place; sets `keep`, by which what was summed so far shrinks.
  const auto softmax = [&](int i) {
    const int64_t key0 = (w.first_tile + w.num_tiles - 1 - i) * kKeys;
    if (s.soft_cap > 0.0f) {
#pragma unroll
      for (float& x : score) x = cap_score(x, s);
    }
    const int64_t position0 = w.context - w.query_len + row0;
    // Positions of the warpgroup's first and last row decide whether any key is hidden.
    const int64_t low = w.first_position + group * 64, high = low + 63;
    if (key0 + kKeys - 1 > low || (s.window > 0 && key0 <= high - s.window)) {
      // Column c is visible to row r where from[r] <= c <= to[r].
      int to[2], from[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int64_t position = position0 + 8 * r;
        to[r] = static_cast<int>(min(position - key0, int64_t{kKeys}));
        from[r] =
            s.window > 0 ? static_cast<int>(max(position - s.window + 1 - key0, int64_t{0})) : 0;
      }
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int c = n * 8 + 2 * t + e % 2;
          if (c > to[e / 2] || c < from[e / 2]) score[n * 4 + e] = -INFINITY;
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float grown = maximum[r];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
        grown = fmaxf(grown, fmaxf(score[n * 4 + 2 * r], score[n * 4 + 2 * r + 1]));
      grown = fmaxf(grown, __shfl_xor_sync(0xffffffffu, grown, 1));
      grown = fmaxf(grown, __shfl_xor_sync(0xffffffffu, grown, 2));
      const float base = grown == -INFINITY ? 0.0f : grown * factor;  // a row that sees no key yet
      keep[r] = exp2_fast(maximum[r] * factor - base);
      maximum[r] = grown;
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = score[n * 4 + 2 * r + e];
          x = exp2_fast(fmaf(x, factor, -base));
          sum += x;
        }
      }
      total[r] = total[r] * keep[r] + sum;
    }
  };
  const auto pack_weights = [&] {
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
#pragma unroll
      for (int e = 0; e < 4; ++e)
        p[k][e] = pack2<T>(score[k * 8 + e * 2], score[k * 8 + e * 2 + 1]);
    }
  };
  const auto release = [&](uint64_t* barrier) {
    if (thread == 0) barrier_arrive(barrier);
  };
  // The warpgroups take turns: barrier 1 + group is passed when it is this one's turn.
  const auto my_turn = [&] { named_sync(1 + group, 256); };
  const auto your_turn = [&] { named_arrive(2 - group, 256); };

  if (group == 1) your_turn();
  barrier_wait(&shared.q_full, 0);
  barrier_wait(&shared.k_full[0], 0);
  my_turn();
  start_scores(0);
  your_turn();
  wgmma_wait<0>();
  pin(score);
  release(&shared.k_free[0]);
  softmax(0);
  pack_weights();
  for (int i = 1; i < w.num_tiles; ++i) {
    const int stage = i % kStages, before = (i - 1) % kStages;
    barrier_wait(&shared.k_full[stage], static_cast<unsigned>(i / kStages) & 1);
    my_turn();
    start_scores(stage);
    barrier_wait(&shared.v_full[before], static_cast<unsigned>((i - 1) / kStages) & 1);
    start_values(before);
    your_turn();
    wgmma_wait<1>();
    pin(score);
    release(&shared.k_free[stage]);
    softmax(i);
    pin(score);  // all of it before the wait
    wgmma_wait<0>();
    pin(o);
    release(&shared.v_free[before]);
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) o[n * 4 + e] *= keep[e / 2];
    }
    pack_weights();
  }
  const int last = w.num_tiles - 1;
  barrier_wait(&shared.v_full[last % kStages], static_cast<unsigned>(last / kStages) & 1);
  start_values(last % kStages);
  wgmma_wait<0>();
  pin(o);

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    total[r] += __shfl_xor_sync(0xffffffffu, total[r], 1);
    total[r] += __shfl_xor_sync(0xffffffffu, total[r], 2);
    const int64_t row = row0 + 8 * r;
    if (row >= w.query_len) continue;
    const float scale = row_scale(maximum[r] * factor, total[r], s.sinks, head);
    if (kPacked && lse != nullptr && t == 0) {
      lse[(w.start + row) * s.num_heads + head] =
          log_denominator(maximum[r] * factor, total[r], s.sinks, head);
    }
    T* to = out + ((w.start + row) * s.num_heads + head) * kDim;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      *reinterpret_cast<uint32_t*>(to + n * 8 + 2 * t) =
          pack2<T>(o[n * 4 + 2 * r] * scale, o[n * 4 + 2 * r + 1] * scale);
    }
  }
#endif
}

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's encoder, or null where the driver has none.
Encode tensor_map_encoder() {
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                                12000, cudaEnableDefault, &found);
    return status == cudaSuccess && found == cudaDriverEntryPointSuccess
               ? reinterpret_cast<Encode>(function)
               : nullptr;
  }();
  return encode;
}

template <class T, int kDim>
void launch(Tensor& out, const Tensor& q, const PagedKv& kv, const AttentionBatch& batch,
            const AttentionShape& s) {
  const auto tokens = static_cast<cuuint64_t>(q.size(0));
  const auto heads = static_cast<cuuint64_t>(s.num_heads);
  Maps maps;
  {
    const cuuint64_t sizes[] = {kDim, heads, tokens};
    const cuuint64_t strides[] = {kDim * sizeof(T), heads * kDim * sizeof(T)};
    const cuuint32_t box[] = {kSlab, 1, kRows};
    maps.q = tensor_map(q, 3, sizes, strides, box);
  }
  const auto cache_map = [&](const Tensor& cache) {
    const cuuint64_t sizes[] = {kDim, static_cast<cuuint64_t>(cache.numel() / kDim)};
    const cuuint64_t strides[] = {kDim * sizeof(T)};
    const cuuint32_t box[] = {kSlab,
                              static_cast<cuuint32_t>(std::min(s.block_size, kTileKeys<kDim>))};
    return tensor_map(cache, 2, sizes, strides, box);
  };
  maps.k = cache_map(kv.k);
  maps.v = cache_map(kv.v);
  constexpr size_t kBytes = sizeof(Shared<T, kDim>) + 1024;
  static const cudaError_t raised = cudaFuncSetAttribute(
      hopper_attention_kernel<T, kDim, false>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  cuda_check(raised, "raising the shared memory of paged_attention");
  const dim3 grid(static_cast<unsigned>(s.num_heads), blocks_for(batch.max_query_len, kRows),
                  static_cast<unsigned>(batch.context_len.size(0)));
  launch_dependent("paged_attention (Hopper)", hopper_attention_kernel<T, kDim, false>,
                   q.device().index, grid, kThreads, kBytes, ptr<T>(out), nullptr, maps, s);
}

template <class T, int kDim>
void launch_packed(Tensor& out, const Tensor& lse, const Tensor& qkv, const PackedShape& p,
                   int64_t longest) {
  const auto heads = static_cast<cuuint64_t>(p.num_heads + 2 * p.num_kv_heads);
  const cuuint64_t sizes[] = {kDim, heads, static_cast<cuuint64_t>(p.num_tokens)};
  const cuuint64_t strides[] = {kDim * sizeof(T), heads * kDim * sizeof(T)};
  const cuuint32_t q_box[] = {kSlab, 1, kRows}, key_box[] = {kSlab, 1, kTileKeys<kDim>};
  Maps maps;
  maps.q = tensor_map(qkv, 3, sizes, strides, q_box);
  maps.k = tensor_map(qkv, 3, sizes, strides, key_box);
  maps.v = maps.k;
  AttentionShape s{};
  s.query_start = p.query_start;
  s.num_heads = p.num_heads;
  s.num_kv_heads = p.num_kv_heads;
  s.head_dim = kDim;
  s.scale = p.scale;
  s.soft_cap = p.soft_cap;
  s.window = p.window;
  s.sinks = p.sinks;
  constexpr size_t kBytes = sizeof(Shared<T, kDim>) + 1024;
  static const cudaError_t raised = cudaFuncSetAttribute(
      hopper_attention_kernel<T, kDim, true>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  cuda_check(raised, "raising the shared memory of packed_attention");
  const dim3 grid(static_cast<unsigned>(p.num_heads), blocks_for(longest, kRows),
                  static_cast<unsigned>(p.num_sequences));
  launch_dependent("packed_attention (Hopper)", hopper_attention_kernel<T, kDim, true>,
                   qkv.device().index, grid, kThreads, kBytes, ptr<T>(out),
                   lse.defined() ? ptr<float>(lse) : nullptr, maps, s);
}

}  // namespace

CUtensorMap tensor_map(const Tensor& t, unsigned rank, const cuuint64_t* sizes,
                       const cuuint64_t* strides, const cuuint32_t* box) {
  const cuuint32_t steps[3] = {1, 1, 1};
  CUtensorMap map;
  const CUresult status = tensor_map_encoder()(
      &map,
      t.dtype() == DType::kF16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
      rank, t.raw(), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check(status == CUDA_SUCCESS, "attention: cuTensorMapEncodeTiled failed with status {}",
        static_cast<int>(status));
  return map;
}

bool has_hopper(const Tensor& t) {
  return cuda_compute_major(t.device().index) == 9 && tensor_map_encoder() != nullptr;
}

bool hopper_packed_attention(Tensor& out, const Tensor& lse, const Tensor& qkv,
                             const PackedShape& s, int64_t longest) {
  if ((s.head_dim != 64 && s.head_dim != 128 && s.head_dim != 256) || !aligned_16(qkv.raw()) ||
      !has_hopper(qkv)) {
    return false;
  }
  dispatch_half(qkv.dtype(), "packed_attention", [&](auto type) {
    using T = decltype(type);
    if (s.head_dim == 64) return launch_packed<T, 64>(out, lse, qkv, s, longest);
    if (s.head_dim == 128) return launch_packed<T, 128>(out, lse, qkv, s, longest);
    launch_packed<T, 256>(out, lse, qkv, s, longest);
  });
  return true;
}

bool hopper_attention(Tensor& out, const Tensor& q, const PagedKv& kv, const AttentionBatch& batch,
                      const AttentionShape& s) {
  const bool shape_fits = (s.head_dim == 64 || s.head_dim == 128 || s.head_dim == 256) &&
                          s.block_size >= 8 && std::has_single_bit(unsigned(s.block_size)) &&
                          kv.k.numel() / s.head_dim < int64_t{1} << 31;
  if (!shape_fits || !aligned_16(q.raw()) || !aligned_16(kv.k.raw()) || !aligned_16(kv.v.raw()) ||
      !kv.k.is_contiguous() || !kv.v.is_contiguous() || !has_hopper(q)) {
    return false;
  }
  dispatch_half(q.dtype(), "paged_attention", [&](auto type) {
    using T = decltype(type);
    if (s.head_dim == 64) return launch<T, 64>(out, q, kv, batch, s);
    if (s.head_dim == 128) return launch<T, 128>(out, q, kv, batch, s);
    launch<T, 256>(out, q, kv, batch, s);
  });
  return true;
}

}  // namespace reft
