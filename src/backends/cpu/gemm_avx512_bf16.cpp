// Matrix products of bfloat16 operands for AVX-512 with BF16: pairs along k share a lane.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "backends/cpu/gemm_kernels.h"
#include "tensor/float_types.h"

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,prefer-vector-width=512")
#endif

namespace reft::cpu {
namespace {

constexpr int kRows = 8;
constexpr int kVecs = 3;
constexpr int kLanes = 16;
constexpr int kCols = kVecs * kLanes;

constexpr __mmask16 kAll = 0xffff;  // see simd_avx512.cpp

inline __m256i rounded(__m512 x) {
  return reinterpret_cast<__m256i>(_mm512_maskz_cvtneps_pbh(kAll, x));
}
inline __m512i widened(__m256i x) { return _mm512_maskz_cvtepu16_epi32(kAll, x); }

inline uint32_t pair(float low, float high) {
  return static_cast<uint32_t>(to_bf16(low).bits) | static_cast<uint32_t>(to_bf16(high).bits) << 16;
}

// Rows of a matrix with its columns side by side: lanes are i.
void pack_columns(uint32_t* to, int64_t width, const float* from, int64_t step, int64_t count,
                  int64_t k) {
  for (int64_t j = 0; j < k; j += 2, to += width) {
    const float* low = from + j * step;
    const float* high = j + 1 < k ? low + step : nullptr;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      __m512i x = widened(rounded(_mm512_loadu_ps(low + i)));
      if (high != nullptr) {
        const __m512i y = widened(rounded(_mm512_loadu_ps(high + i)));
        x = _mm512_or_si512(x, _mm512_maskz_slli_epi32(kAll, y, 16));
      }
      _mm512_storeu_si512(to + i, x);
    }
    for (; i < count; ++i) to[i] = pair(low[i], high != nullptr ? high[i] : 0.0f);
    for (; i < width; ++i) to[i] = 0;
  }
}

// Rows of a matrix that are contiguous along k.
void pack_rows(uint32_t* to, int64_t width, const float* from, int64_t stride, int64_t count,
               int64_t k) {
  for (int64_t j = 0; j < k; j += kLanes, to += kLanes / 2 * width) {
    const int64_t n = k - j < kLanes ? k - j : kLanes;
    const int64_t pairs = (n + 1) / 2;
    const auto mask = static_cast<__mmask16>((1u << n) - 1);
    for (int64_t i = 0; i < count; ++i) {
      alignas(32) uint32_t values[kLanes / 2];
      _mm256_store_si256(reinterpret_cast<__m256i*>(values),
                         rounded(_mm512_maskz_loadu_ps(mask, from + i * stride + j)));
      for (int64_t l = 0; l < pairs; ++l) to[l * width + i] = values[l];
    }
    for (int64_t l = 0; l < pairs; ++l) {
      for (int64_t i = count; i < width; ++i) to[l * width + i] = 0;
    }
  }
}

void pack(float* to, int64_t width, const float* from, int64_t stride, int64_t step, int64_t count,
          int64_t k) {
  auto* units = reinterpret_cast<uint32_t*>(to);
  if (stride == 1) return pack_columns(units, width, from, step, count, k);
  pack_rows(units, width, from, stride, count, k);
}

void tile(float* c, int64_t c_stride, const float* a, const float* b, int64_t units, int64_t rows,
          int64_t cols, bool accumulate) {
  __m512 acc[kRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < kVecs; ++v) acc[r][v] = _mm512_setzero_ps();
  }
  for (int64_t i = 0; i < units; ++i, a += kRows, b += kCols) {
    __m512bh x[kVecs];
#pragma GCC unroll 3
    for (int v = 0; v < kVecs; ++v)
      x[v] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b + v * kLanes));
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const auto w = reinterpret_cast<__m512bh>(_mm512_set1_ps(a[r]));
#pragma GCC unroll 3
      for (int v = 0; v < kVecs; ++v) acc[r][v] = _mm512_dpbf16_ps(acc[r][v], w, x[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    if (r >= rows) break;
#pragma GCC unroll 3
    for (int v = 0; v < kVecs; ++v) {
      const int64_t left = cols - v * kLanes;
      if (left <= 0) break;
      const auto mask = static_cast<__mmask16>(left >= kLanes ? 0xffffu : (1u << left) - 1);
      float* to = c + r * c_stride + v * kLanes;
      const __m512 sum =
          accumulate ? _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), acc[r][v]) : acc[r][v];
      _mm512_mask_storeu_ps(to, mask, sum);
    }
  }
}

}  // namespace

const GemmKernels kGemmAvx512Bf16 = {
    .rows = kRows, .cols = kCols, .k_per_unit = 2, .pack = &pack, .tile = &tile};

}  // namespace reft::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
