// The inner loops in 128-bit vectors that every target has: NEON on AArch64, SSE2 on x86-64.
#include <cmath>
#include <cstring>
#include <limits>

#include "backends/cpu/simd.h"
#include "tensor/dequantize.h"
#include "tensor/float_types.h"

namespace reft {
namespace {

constexpr int kLanes = 4;
#if defined(__aarch64__)
constexpr int kRowVecs = 4;  // 32 registers
constexpr int kGemmRows = 8;
constexpr int kGemmVecs = 3;
#else
constexpr int kRowVecs = 2;  // 16 registers
constexpr int kGemmRows = 6;
constexpr int kGemmVecs = 2;
#endif
constexpr int kTileCols = 6;

using VecF = float __attribute__((vector_size(16)));
using VecI = int32_t __attribute__((vector_size(16)));
using Vec4 = VecF;

inline VecF load(const float* p) {
  VecF x;
  std::memcpy(&x, p, sizeof(x));
  return x;
}
inline VecF load(const bf16* p) {
  return VecF{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])};
}
inline VecF load(const f16* p) {
  return VecF{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])};
}
inline void store(float* p, VecF x) { std::memcpy(p, &x, sizeof(x)); }
inline void store(f16* p, VecF x) {
  for (int i = 0; i < kLanes; ++i) p[i] = to_f16(x[i]);
}
inline VecF splat(float x) { return VecF{x, x, x, x}; }
inline VecF fma(VecF a, VecF b, VecF c) { return a * b + c; }  // contracted where the target can
// b where either is NaN.
inline VecF max(VecF a, VecF b) { return a > b ? a : b; }
inline VecF min(VecF a, VecF b) { return a < b ? a : b; }
inline Vec4 fold_add(VecF x) { return x; }
inline bool any(VecI mask) { return (mask[0] | mask[1] | mask[2] | mask[3]) != 0; }

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

const SimdKernels kSimdGeneric = table();

}  // namespace reft
