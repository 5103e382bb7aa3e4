// The optimizers' loops for AVX-512 (F, BW, DQ, VL).
#if defined(__x86_64__)

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "backends/cpu/optimizer_loops.h"

#if defined(__clang__)
#pragma clang attribute push(                                                    \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#endif

namespace reft {
namespace {

constexpr int64_t kLanes = 16;

#include "backends/cpu/optimizer_loops.inc"

}  // namespace

const OptimizerLoops kOptimizerAvx512 = table();

}  // namespace reft

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
