// The optimizers' loops in 128-bit vectors that every target has: NEON on AArch64, SSE2 on x86-64.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "backends/cpu/optimizer_loops.h"

namespace reft {
namespace {

constexpr int64_t kLanes = 4;

#include "backends/cpu/optimizer_loops.inc"

}  // namespace

const OptimizerLoops kOptimizerGeneric = table();

}  // namespace reft
