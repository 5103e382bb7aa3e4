// Tiles for AVX2 with FMA and F16C.
#include "backends/cpu/linear_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#include "backends/cpu/linear_avx2.h"
#include "backends/cpu/linear_tile.h"

namespace reft::cpu {
namespace {

// VPMADDUBSW adds two products of unsigned by signed bytes into 16 bits, saturating. Activations
// are within ±127.
struct Avx2Integer : Avx2 {
  static constexpr int kSignedBias = 0;

  template <Code code>
  struct Dot {
    static constexpr bool kSigned = code == Code::kByte || code == Code::kLookup;
    // Nibbles: 2 · 15 · 127 a step, so the 8 steps of a unit fit in 16 bits.
    static constexpr bool kWide = code == Code::kNibble;

    using Acc = __m256i;  // sixteen 16-bit sums if kWide, else eight 32-bit sums
    struct Codes {
      __m256i unsigned_codes;
      __m256i signs;  // if kSigned
    };

    static B table(const int8_t* values) {
      return code == Code::kLookup ? load_table(values) : _mm256_setzero_si256();
    }
    static Codes codes(B b, B table) {
      if constexpr (code == Code::kLookup) b = _mm256_shuffle_epi8(table, b);
      if constexpr (kSigned) return {_mm256_abs_epi8(b), b};
      return {b, b};
    }
    template <bool kMin>
    static Acc init(const std::byte*) {
      return _mm256_setzero_si256();
    }
    static Acc step(Acc acc, const Codes& w, B x) {
      // |w| by x with the sign of w: 2 · 128 · 127 fits.
      if constexpr (kSigned) x = _mm256_sign_epi8(x, w.signs);
      const __m256i pairs = _mm256_maddubs_epi16(w.unsigned_codes, x);
      if constexpr (kWide) return _mm256_add_epi16(acc, pairs);
      return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    template <bool kMin>
    static F finish(Acc acc, const std::byte* correction) {
      if constexpr (kWide) acc = _mm256_madd_epi16(acc, _mm256_set1_epi16(1));
      if constexpr (!kMin && !kSigned) acc = _mm256_add_epi32(acc, broadcast_word(correction));
      return _mm256_cvtepi32_ps(acc);
    }
  };
};

constexpr KernelTable make_table() {
  KernelTable table{.name = "avx2"};
  fill_float_layouts<Avx2, 6>(table);
  fill_integer_layouts<Avx2Integer, 3>(table);
  return table;
}

}  // namespace

constinit const KernelTable kAvx2Kernels = make_table();

}  // namespace reft::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
