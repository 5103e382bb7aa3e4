// Integer tiles for AVX-VNNI: VPDPBUSD on 256 bits, on CPUs without AVX-512.
#include "backends/cpu/linear_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avxvnni"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,avxvnni")
#endif

#include "backends/cpu/linear_avx2.h"
#include "backends/cpu/linear_tile.h"

namespace reft::cpu {
namespace {

struct AvxVnni : Avx2 {
  static constexpr int kSignedBias = 128;

  template <Code code>
  struct Dot {
    using Acc = __m256i;
    using Codes = __m256i;

    static B flip(B b) { return _mm256_xor_si256(b, _mm256_set1_epi8(-128)); }
    static B table(const int8_t* values) {
      return code == Code::kLookup ? flip(load_table(values)) : _mm256_setzero_si256();
    }
    static Codes codes(B b, B table) {
      if constexpr (code == Code::kLookup) return _mm256_shuffle_epi8(table, b);
      if constexpr (code == Code::kByte) return flip(b);
      return b;
    }
    template <bool kMin>
    static Acc init(const std::byte* correction) {
      return kMin ? _mm256_setzero_si256() : broadcast_word(correction);
    }
    static Acc step(Acc acc, Codes w, B x) { return _mm256_dpbusd_avx_epi32(acc, w, x); }
    template <bool kMin>
    static F finish(Acc acc, const std::byte*) {
      return _mm256_cvtepi32_ps(acc);
    }
  };
};

constexpr KernelTable make_table() {
  KernelTable table{.name = "avx_vnni"};
  fill_integer_layouts<AvxVnni, 3>(table);
  return table;
}

}  // namespace

constinit const KernelTable kAvxVnniKernels = make_table();

}  // namespace reft::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
