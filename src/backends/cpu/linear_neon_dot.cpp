// Integer tiles for NEON with SDOT.
#include "backends/cpu/linear_kernels.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif

#include "backends/cpu/linear_neon.h"
#include "backends/cpu/linear_tile.h"

namespace reft::cpu {
namespace {

struct NeonSdot : Neon {
  static int32x4_t dot(int32x4_t acc, int8x16_t w, int8x16_t x) { return vdotq_s32(acc, w, x); }
  template <Code code>
  using Dot = NeonDot<NeonSdot, code>;
};

constexpr KernelTable make_table() {
  KernelTable table{.name = "neon_dot"};
  fill_integer_layouts<NeonSdot, 4>(table);
  return table;
}

}  // namespace

constinit const KernelTable kNeonDotKernels = make_table();

}  // namespace reft::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
