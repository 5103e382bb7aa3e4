// bfloat16 tiles for AVX-512 with BF16: VDPBF16PS.
#include "backends/cpu/linear_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(                                                          \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,f16c"))), \
    apply_to = function)
#else
// GCC 12 takes the undefined operands inside its own intrinsics for mistakes.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,f16c")
#endif

#include "backends/cpu/linear_avx512.h"
#include "backends/cpu/linear_tile.h"

namespace reft::cpu {
namespace {

struct Avx512Bf16 : Avx512 {
  static F dot_bf16(F acc, B w, B x) {
    return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x));
  }
  static void round_to_bf16(const float (&in)[64], uint32_t (&out)[32]) {
    for (int i = 0; i < 2; ++i) {
      const __m512bh pairs =
          _mm512_cvtne2ps_pbh(_mm512_load_ps(in + 32 * i + 16), _mm512_load_ps(in + 32 * i));
      _mm512_store_si512(out + 16 * i, reinterpret_cast<__m512i>(pairs));
    }
  }
};

// x[r] becomes column r: x[i][r] -> x[r][i], of 32-bit words.
inline void transpose(__m512i (&x)[16]) {
  __m512i y[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
    x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
    x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
    x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
  }
  // Now quarter q of x[4 g + c] holds rows 4 g … 4 g + 3 of column 4 q + c.
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512i low = _mm512_shuffle_i32x4(x[c], x[4 + c], 0x88);
    const __m512i high = _mm512_shuffle_i32x4(x[c], x[4 + c], 0xdd);
    const __m512i low2 = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0x88);
    const __m512i high2 = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0xdd);
    y[c] = _mm512_shuffle_i32x4(low, low2, 0x88);
    y[8 + c] = _mm512_shuffle_i32x4(low, low2, 0xdd);
    y[4 + c] = _mm512_shuffle_i32x4(high, high2, 0x88);
    y[12 + c] = _mm512_shuffle_i32x4(high, high2, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) x[i] = y[i];
}

// As pack_bf16_activations, in blocks of 32 values of k of all rows.
void pack_bf16_rows(const ActivationArgs& args) {
  constexpr int kChunk = 32;
  const auto row_mask = static_cast<__mmask16>((1u << args.rows) - 1);
  std::byte* out = args.out;
  for (int64_t k = 0; k < args.k; k += kChunk) {
    const int64_t left = args.k - k < kChunk ? args.k - k : kChunk;
    const auto mask = static_cast<uint32_t>((uint64_t{1} << left) - 1);
    __m512i pairs[16];
    for (int r = 0; r < 16; ++r) {
      const bool exists = r < args.rows;
      const float* x = args.x + (exists ? r : 0) * args.x_stride + k;
      const uint32_t values = exists ? mask : 0;
      const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(values), x);
      const __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(values >> 16), x + 16);
      pairs[r] = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
    }
    transpose(pairs);
    const int words = static_cast<int>((left + 1) / 2);
    for (int i = 0; i < words; ++i, out += 4 * args.rows)
      _mm512_mask_storeu_epi32(out, row_mask, pairs[i]);
  }
}

constexpr KernelTable make_table() {
  KernelTable table{.name = "avx512_bf16"};
  fill_layout<Avx512Bf16, Layout::kBF16Dot, 12>(table);
  table.layouts[static_cast<int>(Layout::kBF16Dot)].pack_activations = &pack_bf16_rows;
  return table;
}

}  // namespace

constinit const KernelTable kAvx512Bf16Kernels = make_table();

}  // namespace reft::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
