// Tiles for NEON, which every AArch64 CPU has.
#include "backends/cpu/linear_kernels.h"

#if defined(__aarch64__)
#include "backends/cpu/linear_neon.h"
#include "backends/cpu/linear_tile.h"

namespace reft::cpu {
namespace {

struct NeonInteger : Neon {
  static int32x4_t dot(int32x4_t acc, int8x16_t w, int8x16_t x) {
    const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(x)));
    const int32x4_t high = vpaddlq_s16(vmull_high_s8(w, x));
    return vaddq_s32(acc, vpaddq_s32(low, high));
  }
  template <Code code>
  using Dot = NeonDot<NeonInteger, code>;
};

constexpr KernelTable make_table() {
  KernelTable table{.name = "neon"};
  fill_float_layouts<Neon, 6>(table);
  fill_integer_layouts<NeonInteger, 4>(table);
  return table;
}

}  // namespace

constinit const KernelTable kNeonKernels = make_table();

}  // namespace reft::cpu
#endif
