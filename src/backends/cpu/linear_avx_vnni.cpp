// Integer tiles for AVX-VNNI: VPDPWSSD on 256 bits, on CPUs without AVX-512.
#include "backends/cpu/linear_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avxvnni"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,avxvnni")
#endif

#include "backends/cpu/linear_avx2.h"
#include "backends/cpu/linear_pairs.h"
#include "backends/cpu/linear_tile.h"

namespace reft::cpu {
namespace {

struct AvxVnni : Avx2 {
  static B add_pairs(B acc, B w, B x) { return _mm256_dpwssd_avx_epi32(acc, w, x); }
  template <Code code>
  using Dot = PairDot<AvxVnni, code>;
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
