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

constexpr KernelTable make_table() {
  KernelTable table{.name = "avx512_bf16"};
  fill_layout<Avx512Bf16, Layout::kBF16Dot, 12>(table);
  return table;
}

}  // namespace

constinit const KernelTable kAvx512Bf16Kernels = make_table();

}  // namespace reft::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
