// e4m3 codes in the CUDA backend.
#pragma once

#include <cuda_fp8.h>

#include "backends/cuda/common.h"

namespace reft {

// dispatch_float() with what else keys and values may be kept in.
template <class F>
void dispatch_cache(DType dtype, const char* op, F f) {
  if (dtype == DType::kF8E4M3) return f(__nv_fp8_e4m3{});
  dispatch_float(dtype, op, f);
}

#ifdef __CUDACC__

__device__ __forceinline__ float as_float(__nv_fp8_e4m3 x) { return static_cast<float>(x); }

// Round to nearest even, saturating at 448.
__device__ __forceinline__ uint8_t to_fp8(float x) {
  return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
}
template <>
__device__ __forceinline__ __nv_fp8_e4m3 as<__nv_fp8_e4m3>(float x) {
  __nv_fp8_e4m3 y;
  y.__x = to_fp8(x);
  return y;
}

__device__ __forceinline__ uint32_t multiply_pairs(__half, uint32_t a, uint32_t b) {
  const __half2 product =
      __hmul2(*reinterpret_cast<const __half2*>(&a), *reinterpret_cast<const __half2*>(&b));
  return *reinterpret_cast<const uint32_t*>(&product);
}
__device__ __forceinline__ uint32_t multiply_pairs(__nv_bfloat16, uint32_t a, uint32_t b) {
  const __nv_bfloat162 product = __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&a),
                                         *reinterpret_cast<const __nv_bfloat162*>(&b));
  return *reinterpret_cast<const uint32_t*>(&product);
}

// A float of type T on its way to a cache of C: fp8 is rounded from what T would hold, so that all
// kernels write the same.
template <class T, class C>
__device__ __forceinline__ C to_cache(float x) {
  if constexpr (std::is_same_v<C, __nv_fp8_e4m3>) {
    return as<C>(as_float(as<T>(x)));
  } else {
    return as<C>(x);
  }
}

// Four codes to two pairs of T, exactly: the bits of a code, moved below the exponent of T, are the
// value times a power of two, subnormals included. (NaN, which no weight holds, becomes 480.)
template <class T>
__device__ __forceinline__ void expand_fp8(uint32_t codes, uint32_t& first, uint32_t& second) {
  constexpr bool kHalf = std::is_same_v<T, __half>;
  constexpr int kShift = kHalf ? 1 : 4;
  constexpr uint32_t kBits = kHalf ? 0x3f803f80u : 0x07f007f0u;
  constexpr uint32_t kFactor = kHalf ? 0x5c005c00u : 0x7b807b80u;  // 2^8, 2^120
  const uint32_t a = __byte_perm(codes, 0, 0x1404), b = __byte_perm(codes, 0, 0x3424);
  first = multiply_pairs(T{}, (a & 0x80008000u) | (a >> kShift & kBits), kFactor);
  second = multiply_pairs(T{}, (b & 0x80008000u) | (b >> kShift & kBits), kFactor);
}

#endif  // __CUDACC__

}  // namespace reft
