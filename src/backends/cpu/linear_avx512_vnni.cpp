// Integer tiles for AVX-512 with VNNI: VPDPBUSD multiplies unsigned codes by signed activations.
#include "backends/cpu/linear_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(                                                          \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c"))), \
    apply_to = function)
#else
// GCC 12 takes the undefined operands inside its own intrinsics for mistakes.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c")
#endif

#include "backends/cpu/linear_avx512.h"
#include "backends/cpu/linear_tile.h"

namespace reft::cpu {
namespace {

struct Avx512Vnni : Avx512 {
  static constexpr int kSignedBias = 128;

  template <Code code>
  struct Dot {
    using Acc = __m512i;
    using Codes = __m512i;
    static __m512i table(const int8_t* values) {
      if constexpr (code != Code::kLookup) return _mm512_setzero_si512();
      const __m128i signed_values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
      return _mm512_xor_si512(_mm512_broadcast_i32x4(signed_values), _mm512_set1_epi8(-128));
    }
    static Codes codes(B b, __m512i table) {
      if constexpr (code == Code::kLookup) return _mm512_shuffle_epi8(table, b);
      if constexpr (code == Code::kByte) return _mm512_xor_si512(b, _mm512_set1_epi8(-128));
      return b;
    }
    template <bool kMin>
    static Acc init(const std::byte* correction) {
      return kMin ? _mm512_setzero_si512() : broadcast_word(correction);
    }
    static Acc step(Acc acc, Codes w, B x) { return _mm512_dpbusd_epi32(acc, w, x); }
    template <bool kMin>
    static F finish(Acc acc, const std::byte*) {
      return _mm512_cvtepi32_ps(acc);
    }
  };
};

constexpr KernelTable make_table() {
  KernelTable table{.name = "avx512_vnni"};
  fill_integer_layouts<Avx512Vnni, 6>(table);
  return table;
}

}  // namespace

constinit const KernelTable kAvx512VnniKernels = make_table();

}  // namespace reft::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
