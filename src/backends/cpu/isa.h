// Which instruction sets the kernels may use, found at run time: one binary holds them all.
#pragma once

#include <string>
#include <string_view>

namespace reft {

struct CpuFeatures {
  bool avx2 = false;      // with FMA and F16C
  bool avx_vnni = false;  // 256-bit VPDPBUSD without AVX-512
  bool avx512 = false;    // F, BW, DQ, VL
  bool avx512_vnni = false;
  bool avx512_bf16 = false;
  bool neon = false;
  bool neon_dot = false;   // SDOT
  bool neon_bf16 = false;  // BFDOT

  bool operator==(const CpuFeatures&) const = default;
};

// What this CPU and operating system offer.
CpuFeatures detect_cpu_features();

// Keeps of `features` what the named level has: "scalar", "avx2", "avx_vnni", "avx512",
// "avx512_vnni", "avx512_bf16", "neon", "neon_dot", "neon_bf16". Each level includes those before
// it of its family. Throws Error on another name.
CpuFeatures limit_cpu_features(CpuFeatures features, std::string_view level);

// detect_cpu_features(), limited by the environment variable REFT_CPU_ISA where it is set. Read
// once; kernels choose by it. Thread-safe.
const CpuFeatures& cpu_features();

// "avx2 avx512 avx512_vnni", "scalar".
std::string cpu_features_str(const CpuFeatures& features);

}  // namespace reft
