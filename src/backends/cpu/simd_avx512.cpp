// The inner loops for AVX-512 (F, BW, DQ, VL).
#if defined(__x86_64__)

#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "backends/cpu/simd.h"
#include "tensor/dequantize.h"
#include "tensor/float_types.h"

#if defined(__clang__)
#pragma clang attribute push(                                                    \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#endif

namespace reft {
namespace {

constexpr int kLanes = 16;
constexpr int kRowVecs = 4;  // accumulators of the tile product: 6 x 4 of 32 registers
constexpr int kTileCols = 6;
constexpr int kGemmRows = 8;
constexpr int kGemmVecs = 3;

using VecF = float __attribute__((vector_size(64)));
using VecI = int32_t __attribute__((vector_size(64)));
using Vec4 = float __attribute__((vector_size(16)));

// g++ 12 warns about the undefined source of many unmasked intrinsics (its bug 105593): a full mask
// compiles to the same instruction.
constexpr __mmask16 kAll = 0xffff;

inline VecF load(const float* p) { return _mm512_loadu_ps(p); }
inline VecF load(const bf16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(
      _mm512_maskz_slli_epi32(kAll, _mm512_maskz_cvtepu16_epi32(kAll, bits), 16));
}
inline VecF load(const f16* p) {
  return _mm512_maskz_cvtph_ps(kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void store(float* p, VecF x) { _mm512_storeu_ps(p, x); }
inline void store(f16* p, VecF x) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtps_ph(kAll, x, kNearest));
}
inline VecF splat(float x) { return _mm512_set1_ps(x); }
inline VecF fma(VecF a, VecF b, VecF c) { return _mm512_fmadd_ps(a, b, c); }
// b where either is NaN.
inline VecF max(VecF a, VecF b) { return _mm512_maskz_max_ps(kAll, a, b); }
inline VecF min(VecF a, VecF b) { return _mm512_maskz_min_ps(kAll, a, b); }
// To a quarter: lane i holds a function of lanes i, i + 4, i + 8 and i + 12.
inline Vec4 fold_add(VecF x) {
  const __m256 half = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
                      __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
}
inline bool any(VecI mask) { return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask)) != 0; }

// Writes base + lane for every true lane, in order; may write a whole vector. Returns how many.
inline int append(int32_t* ids, VecI mask, int32_t base) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __mmask16 hits = _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask));
  const __m512i all = _mm512_add_epi32(lanes, _mm512_set1_epi32(base));
  _mm512_storeu_si512(ids, _mm512_maskz_compress_epi32(hits, all));
  return __builtin_popcount(hits);
}

#include "backends/cpu/simd_math.inc"
//
#include "backends/cpu/simd_elementwise.inc"
//
#include "backends/cpu/simd_backward.inc"
//
#include "backends/cpu/simd_attention.inc"
//
#include "backends/cpu/simd_gemm.inc"
//
#include "backends/cpu/simd_sampling.inc"

}  // namespace

const SimdKernels kSimdAvx512 = table();

}  // namespace reft

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
