// The inner loops for AVX2 with FMA and F16C.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "backends/cpu/simd.h"
#include "tensor/dequantize.h"
#include "tensor/float_types.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

namespace reft {
namespace {

constexpr int kLanes = 8;
constexpr int kRowVecs = 2;  // accumulators of the tile product: 6 x 2 of 16 registers
constexpr int kTileCols = 6;
constexpr int kGemmRows = 6;
constexpr int kGemmVecs = 2;

using VecF = float __attribute__((vector_size(32)));
using VecI = int32_t __attribute__((vector_size(32)));
using Vec4 = float __attribute__((vector_size(16)));

inline VecF load(const float* p) { return _mm256_loadu_ps(p); }
inline VecF load(const bf16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline VecF load(const f16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline void store(float* p, VecF x) { _mm256_storeu_ps(p, x); }
inline void store(f16* p, VecF x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline VecF splat(float x) { return _mm256_set1_ps(x); }
inline VecF fma(VecF a, VecF b, VecF c) { return _mm256_fmadd_ps(a, b, c); }
// b where either is NaN.
inline VecF max(VecF a, VecF b) { return _mm256_max_ps(a, b); }
inline VecF min(VecF a, VecF b) { return _mm256_min_ps(a, b); }
// To a quarter: lane i holds a function of lanes i and i + 4.
inline Vec4 fold_add(VecF x) {
  return _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
}
inline bool any(VecI mask) { return _mm256_movemask_ps(reinterpret_cast<__m256>(mask)) != 0; }

// Writes base + lane for every true lane, in order; may write a whole vector. Returns how many.
inline int append(int32_t* ids, VecI mask, int32_t base) {
  int count = 0;
  for (int i = 0; i < kLanes; ++i) {
    ids[count] = base + i;
    count -= mask[i];
  }
  return count;
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

const SimdKernels kSimdAvx2 = table();

}  // namespace reft

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
