// The optimizers' loops for AVX2 with FMA and F16C.
#if defined(__x86_64__)

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "backends/cpu/optimizer_loops.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

namespace reft {
namespace {

constexpr int64_t kLanes = 8;

#include "backends/cpu/optimizer_loops.inc"

}  // namespace

const OptimizerLoops kOptimizerAvx2 = table();

}  // namespace reft

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
