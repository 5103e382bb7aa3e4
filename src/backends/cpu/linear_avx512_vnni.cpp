// Integer tiles for AVX-512 with VNNI: VPDPWSSD adds the products of two pairs of 16 bits.
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
#include "backends/cpu/linear_pairs.h"
#include "backends/cpu/linear_tile.h"

namespace reft::cpu {
namespace {

struct Avx512Vnni : Avx512 {
  static B add_pairs(B acc, B w, B x) { return _mm512_dpwssd_epi32(acc, w, x); }
  template <Code code>
  using Dot = PairDot<Avx512Vnni, code>;
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
