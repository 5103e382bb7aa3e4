// The kernel tables of `linear`, one per instruction set that this build has.
#pragma once

#include "backends/cpu/isa.h"
#include "backends/cpu/linear_layout.h"

namespace reft::cpu {

extern const KernelTable kScalarKernels;
#if defined(__x86_64__)
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvxVnniKernels;     // integer layouts
extern const KernelTable kAvx512Kernels;      // float layouts
extern const KernelTable kAvx512VnniKernels;  // integer layouts
extern const KernelTable kAvx512Bf16Kernels;  // kBF16Dot
#elif defined(__aarch64__)
extern const KernelTable kNeonKernels;
extern const KernelTable kNeonDotKernels;  // integer layouts
#endif

// The fastest kernels for `layout` among `features`; only kBF16Dot may have none (null).
const TileKernels* find_kernels(Layout layout, const CpuFeatures& features);

}  // namespace reft::cpu
