// What routing and the products of experts agree on, and the formats of their weights.
#pragma once

#include <algorithm>

#include "backends/cuda/mma.h"
#include "ops/moe.h"

namespace reft {

// Rows of one expert that a block takes. Up to kMoeStreamRows the weights are streamed, each
// expert's once for most sizes; above, a product of tiles.
inline constexpr int64_t kMoeStreamRows = 16;
inline constexpr int64_t kMoeGemmRows = 64;
inline int64_t moe_tile_rows(int64_t rows, int64_t experts) {
  return rows <= 4 * experts ? 8 : rows <= 8 * experts ? kMoeStreamRows : kMoeGemmRows;
}

// Entries of Routing::tiles, [tiles, 2]: an expert, or -1, and its first row. As many as any choice
// of experts needs.
inline int64_t moe_max_tiles(int64_t rows, int64_t experts, int64_t tile_rows) {
  const int64_t used = std::min(rows, experts);
  return used + (rows - used) / tile_rows;
}

#ifdef __CUDACC__

// The 16 values k = 64 slice + 16 t … + 15 of a row, as pairs for mma_16816: what one of four lanes
// takes of a slice of 64.
inline constexpr int kMoeSlice = 64;

template <class T>
struct PlainExperts {
  using Type = T;
  static constexpr bool kBlocks = false;
  const T* w;  // rows of k
  int64_t k;

  struct Raw {
    uint4 v[2];
  };
  __device__ __forceinline__ Raw load(int64_t row, int slice, int t) const {
    const T* p = w + row * k + slice * kMoeSlice + t * 16;
    return {{load_stream(p), load_stream(p + 8)}};
  }
  __device__ static __forceinline__ void expand(const Raw& raw, uint32_t (&pairs)[8]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      pairs[4 * h] = raw.v[h].x;
      pairs[4 * h + 1] = raw.v[h].y;
      pairs[4 * h + 2] = raw.v[h].z;
      pairs[4 * h + 3] = raw.v[h].w;
    }
  }
};

// Codes of 8 neighbouring values are one word: nibble i is value 2i, nibble i + 4 value 2i + 1.
// Words of a row, then its scales' exponents, lie together.
inline int mxfp4_nibble(int value) { return value / 2 + value % 2 * 4; }

// Values of e2m1 (sign, two bits of exponent, one of the fraction) are bits of T with a smaller
// bias; a product with a power of two puts that right, subnormal numbers included.
template <class T>
struct Mxfp4Scale;
template <>
struct Mxfp4Scale<__nv_bfloat16> {
  static constexpr int kShift = 6;                // of the three lower bits
  static constexpr uint32_t kBias = 0x7e807e80u;  // 2^126
  // 2^(e - 127)
  __device__ static __forceinline__ uint32_t of(uint32_t e) {
    const uint32_t bits = e == 0 ? 0x0040u : e << 7;
    return bits | bits << 16;
  }
};
template <>
struct Mxfp4Scale<__half> {
  static constexpr int kShift = 9;
  static constexpr uint32_t kBias = 0x74007400u;  // 2^14
  // As near as a half comes to it.
  __device__ static __forceinline__ uint32_t of(uint32_t e) {
    const int exponent = static_cast<int>(e) - 112;  // with the bias of a half
    const uint32_t bits = exponent >= 31   ? 0x7bffu
                          : exponent >= 1  ? static_cast<uint32_t>(exponent) << 10
                          : exponent > -10 ? 0x0200u >> -exponent
                                           : 0u;
    return bits | bits << 16;
  }
};

template <class T>
__device__ __forceinline__ uint32_t multiply2(uint32_t a, uint32_t b) {
  uint32_t y;
  if constexpr (std::is_same_v<T, __half>) {
    asm("mul.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
  } else {
    // mul.bf16x2 needs sm_90; a fused multiply-add with -0 is the same product.
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(0x80008000u));
  }
  return y;
}

// The 8 values of a word.
template <class T>
__device__ __forceinline__ void expand_mxfp4(uint32_t word, uint32_t scale, uint32_t* pairs) {
  using S = Mxfp4Scale<T>;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t codes = word >> (4 * i) & 0x000f000fu;
    const uint32_t bits = (codes & 0x00080008u) << 12 | (codes & 0x00070007u) << S::kShift;
    pairs[i] = multiply2<T>(multiply2<T>(bits, S::kBias), scale);
  }
}

template <class T>
struct Mxfp4Experts {
  using Type = T;
  static constexpr bool kBlocks = true;
  const uint8_t* codes;   // rows of k / 2
  const uint8_t* scales;  // rows of k / 32
  int64_t k;

  struct Raw {
    uint2 codes;
    uint32_t scale;
  };
  __device__ __forceinline__ Raw load(int64_t row, int slice, int t) const {
    Raw raw;
    const uint8_t* p = codes + row * (k / 2) + slice * (kMoeSlice / 2) + t * 8;
    asm volatile("ld.global.L1::no_allocate.v2.u32 {%0,%1}, [%2];"
                 : "=r"(raw.codes.x), "=r"(raw.codes.y)
                 : "l"(p));
    raw.scale = scales[row * (k / 32) + slice * 2 + t / 2];
    return raw;
  }
  __device__ static __forceinline__ void expand(const Raw& raw, uint32_t (&pairs)[8]) {
    const uint32_t scale = Mxfp4Scale<T>::of(raw.scale);
    expand_mxfp4<T>(raw.codes.x, scale, pairs);
    expand_mxfp4<T>(raw.codes.y, scale, pairs + 4);
  }
};

#endif  // __CUDACC__

}  // namespace reft
