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
#include "backends/cpu/linear_pairs.h"
#include "backends/cpu/linear_tile.h"

namespace reft::cpu {
namespace {

struct Avx2Integer : Avx2 {
  static B add_pairs(B acc, B w, B x) {
    B sum = _mm256_add_epi32(acc, _mm256_madd_epi16(w, x));
    // Keeps the order of the additions: as a tree, they would need more registers than there are.
    asm("" : "+x"(sum));
    return sum;
  }
  template <Code code>
  using Dot = PairDot<Avx2Integer, code>;
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
