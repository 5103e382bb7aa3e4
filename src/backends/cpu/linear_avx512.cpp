// Float tiles for AVX-512 (F, BW, DQ, VL).
#include "backends/cpu/linear_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c"))), apply_to = function)
#else
// GCC 12 takes the undefined operands inside its own intrinsics for mistakes.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
#endif

#include "backends/cpu/linear_avx512.h"
#include "backends/cpu/linear_tile.h"

namespace reft::cpu {
namespace {

constexpr KernelTable make_table() {
  KernelTable table{.name = "avx512"};
  fill_float_layouts<Avx512, 12>(table);
  return table;
}

}  // namespace

constinit const KernelTable kAvx512Kernels = make_table();

}  // namespace reft::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
