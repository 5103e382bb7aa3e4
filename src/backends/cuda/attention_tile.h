// Attention of one warp over one tile of keys, by mma.m16n8k16: what the kernels for few and for
// many rows have in common.
#pragma once

#include "backends/cuda/attention.h"
#include "backends/cuda/mma.h"

namespace reft {

#ifdef __CUDACC__

// The accumulators of one warp: 16 rows of the output with their running maximum and sum (rows g
// and g + 8).
template <int kDim>
struct RowState {
  float out[kDim / 8][4];
  float maximum[2];
  float total[2];
};

// Scores of 16 rows × 8 kNumTiles keys, masked, then the online softmax and the product with V.
template <class T, int kDim, int kNumTiles>
__device__ __forceinline__ void attend_tile(RowState<kDim>& state, const T* q_rows, const T* k_tile,
                                            const T* v_tile, const AttentionShape& s, int64_t key0,
                                            const int64_t (&position)[2]) {
  const int lane = threadIdx.x % 32, t = lane % 4;
  constexpr int kStride = kDim + 8;
  float scores[kNumTiles][4] = {};
#pragma unroll
  for (int k = 0; k < kDim; k += 32) {
    uint32_t qa[4], qb[4];
    const T* q_address = q_rows + (lane % 16) * kStride + k + lane / 16 * 8;
    ldmatrix_x4(qa, q_address);
    ldmatrix_x4(qb, q_address + 16);
#pragma unroll
    for (int n = 0; n < kNumTiles; ++n) {
      uint32_t b[4];
      ldmatrix_x4(b, k_tile + (n * 8 + lane % 8) * kStride + k + lane / 8 * 8);
      mma_16816<T>(scores[n], qa, b[0], b[1]);
      mma_16816<T>(scores[n], qb, b[2], b[3]);
    }
  }
  float grown[2] = {state.maximum[0], state.maximum[1]};
#pragma unroll
  for (int n = 0; n < kNumTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t key = key0 + n * 8 + 2 * t + i % 2;
      const int64_t p = position[i / 2];
      const bool visible = key <= p && (s.window == 0 || key > p - s.window);
      scores[n][i] = visible ? cap_score(scores[n][i], s) * kLog2e : -INFINITY;
      grown[i / 2] = fmaxf(grown[i / 2], scores[n][i]);
    }
  }
  float keep[2], base[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    grown[r] = fmaxf(grown[r], __shfl_xor_sync(0xffffffffu, grown[r], 1));
    grown[r] = fmaxf(grown[r], __shfl_xor_sync(0xffffffffu, grown[r], 2));
    base[r] = grown[r] == -INFINITY ? 0.0f : grown[r];  // a row that sees no key yet
    keep[r] = exp2f(state.maximum[r] - base[r]);
    state.maximum[r] = grown[r];
    state.total[r] *= keep[r];
  }
#pragma unroll
  for (int n = 0; n < kNumTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scores[n][i] = exp2f(scores[n][i] - base[i / 2]);
      state.total[i / 2] += scores[n][i];
    }
  }
#pragma unroll
  for (int d = 0; d < kDim / 8; ++d) {
#pragma unroll
    for (int i = 0; i < 4; ++i) state.out[d][i] *= keep[i / 2];
  }
#pragma unroll
  for (int n = 0; n < kNumTiles; n += 2) {
    const uint32_t p[4] = {
        pack2<T>(scores[n][0], scores[n][1]), pack2<T>(scores[n][2], scores[n][3]),
        pack2<T>(scores[n + 1][0], scores[n + 1][1]), pack2<T>(scores[n + 1][2], scores[n + 1][3])};
    const T* v_rows = v_tile + (n * 8 + lane % 16) * kStride + lane / 16 * 8;
#pragma unroll
    for (int d = 0; d < kDim; d += 16) {
      uint32_t b[4];
      ldmatrix_x4_trans(b, v_rows + d);
      mma_16816<T>(state.out[d / 8], p, b[0], b[1]);
      mma_16816<T>(state.out[d / 8 + 1], p, b[2], b[3]);
    }
  }
}

#endif  // __CUDACC__

}  // namespace reft
