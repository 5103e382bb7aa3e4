// Gradients of queries, summed over blocks that each have a tile of keys, in a fixed order: the
// tile on the diagonal first, then those below it. A tile of queries of a head has 64 × Dh sums in
// memory, in the order of the threads that make them, and a counter of the blocks that have added.
#pragma once

#include "backends/cuda/packed_attention.h"

namespace reft {

constexpr int kQueries = 64;  // of a tile

// A block's place in the order of a tile of queries.
struct SumTurn {
  int64_t tile;  // of all sequences and heads
  int order;     // blocks that come before
  bool first, last;
};

struct QuerySums {
  int* ticket;    // what the next block to begin takes
  int* counters;  // by SumTurn::tile
  float* values;  // [tiles, 64 × dim]
  int dim;
  int key_tiles;  // of the longest sequence

#ifdef __CUDACC__
  // Of a sequence of `length` tokens from `start` on, for blocks of `keys` keys.
  __device__ __forceinline__ SumTurn turn(const PackedShape& p, int64_t start, int sequence,
                                          int length, int head, int query_tile, int key_tile,
                                          int keys, int window) const {
    // No two tiles share a number: they begin 64 tokens apart, or in another sequence.
    const int64_t number = (start + int64_t{query_tile} * kQueries) / kQueries + sequence;
    const int query0 = query_tile * kQueries;
    const int top = min(query0 + kQueries, length) - 1;
    const int highest = top / keys;
    const int lowest = window > 0 ? max(0, query0 - window + 1) / keys : 0;
    return {number * p.num_heads + head, highest - key_tile, key_tile == highest,
            key_tile == lowest};
  }
  // By one thread, before the block's barrier.
  __device__ __forceinline__ void await(const SumTurn& turn) const {
    if (turn.first) return;
    int count;
    do {
      asm volatile("ld.acquire.gpu.global.s32 %0, [%1];"
                   : "=r"(count)
                   : "l"(counters + turn.tile)
                   : "memory");
    } while (count != turn.order);
  }
  // Adds this thread's part; of the last block it becomes the whole sum.
  template <int kThreads, int kTiles>
  __device__ __forceinline__ void add(const SumTurn& turn, float (&part)[kTiles][4]) {
    if (turn.first && turn.last) return;
    pending_ = turn.tile;
    auto* to = reinterpret_cast<float4*>(values + turn.tile * kQueries * dim) + threadIdx.x;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      float4* place = to + n * kThreads;
      if (turn.first) {
        __stcg(place, make_float4(part[n][0], part[n][1], part[n][2], part[n][3]));
      } else if (turn.last) {
        const float4 before = __ldcg(place);
        part[n][0] += before.x;
        part[n][1] += before.y;
        part[n][2] += before.z;
        part[n][3] += before.w;
      } else {
#if __CUDA_ARCH__ >= 900
        asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(place), "f"(part[n][0]),
                     "f"(part[n][1]), "f"(part[n][2]), "f"(part[n][3])
                     : "memory");
#else
        float* one = reinterpret_cast<float*>(place);
#pragma unroll
        for (int e = 0; e < 4; ++e) atomicAdd(one + e, part[n][e]);
#endif
      }
    }
  }
  // After a barrier of the block that follows add(): lets the next one add.
  __device__ __forceinline__ void release() {
    if (pending_ >= 0 && threadIdx.x == 0) {
      __threadfence();
      atomicAdd(counters + pending_, 1);
    }
    pending_ = -1;
  }
#endif

  int64_t pending_ = -1;
};

// Its memory, for one launch.
struct QuerySumMemory {
  QuerySumMemory(const PackedShape& s, int64_t longest, int keys, int dim, Device device) {
    const int64_t tiles = (s.num_tokens / kQueries + s.num_sequences + 1) * s.num_heads;
    counters = Tensor::zeros({tiles + 1}, DType::kI32, device);
    values = Tensor::empty({tiles, kQueries * dim}, DType::kF32, device);
    sums = {.ticket = ptr<int32_t>(counters) + tiles,
            .counters = ptr<int32_t>(counters),
            .values = ptr<float>(values),
            .dim = dim,
            .key_tiles = static_cast<int>((longest + keys - 1) / keys)};
  }
  Tensor counters, values;
  QuerySums sums;
};

}  // namespace reft
