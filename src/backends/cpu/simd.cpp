#include "backends/cpu/simd.h"

#include "backends/cpu/isa.h"

namespace reft {

const SimdKernels& simd_kernels() {
  static const SimdKernels& chosen = []() -> const SimdKernels& {
#if defined(__x86_64__)
    if (cpu_features().avx512) return kSimdAvx512;
    if (cpu_features().avx2) return kSimdAvx2;
#endif
    return kSimdGeneric;
  }();
  return chosen;
}

}  // namespace reft
