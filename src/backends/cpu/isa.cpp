#include "backends/cpu/isa.h"

#include <array>
#include <cstdlib>

#include "base/check.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace reft {
namespace {

struct Level {
  const char* name;
  bool CpuFeatures::*flag;  // null: no flag at all
};

// In each family, a level includes the ones before it.
constexpr std::array<Level, 5> kX86 = {{{"avx2", &CpuFeatures::avx2},
                                        {"avx_vnni", &CpuFeatures::avx_vnni},
                                        {"avx512", &CpuFeatures::avx512},
                                        {"avx512_vnni", &CpuFeatures::avx512_vnni},
                                        {"avx512_bf16", &CpuFeatures::avx512_bf16}}};
constexpr std::array<Level, 3> kArm = {{{"neon", &CpuFeatures::neon},
                                        {"neon_dot", &CpuFeatures::neon_dot},
                                        {"neon_bf16", &CpuFeatures::neon_bf16}}};

// Clears the flags of `levels` after `level`. False when the name is not among them.
template <size_t N>
bool clear_after(CpuFeatures& features, const std::array<Level, N>& levels,
                 std::string_view level) {
  bool found = false;
  for (const Level& each : levels) {
    if (found) features.*each.flag = false;
    found = found || level == each.name;
  }
  return found;
}

}  // namespace

CpuFeatures detect_cpu_features() {
  CpuFeatures f;
#if defined(__x86_64__)
  // The builtin also asks the operating system whether it saves the wide registers; the flags it
  // has no name for in every compiler are read from CPUID and count only beside those.
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  __builtin_cpu_init();
  const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx >> 29 & 1) != 0;
  f.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
  f.avx512 = f.avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0) {
    f.avx512_vnni = f.avx512 && (ecx >> 11 & 1) != 0;
  }
  if (__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0) {
    f.avx_vnni = f.avx2 && (eax >> 4 & 1) != 0;
    f.avx512_bf16 = f.avx512 && (eax >> 5 & 1) != 0;
  }
#elif defined(__aarch64__)
  f.neon = true;
  f.neon_dot = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
  f.neon_bf16 = (getauxval(AT_HWCAP2) & HWCAP2_BF16) != 0;
#endif
  return f;
}

CpuFeatures limit_cpu_features(CpuFeatures features, std::string_view level) {
  if (level == "scalar") return {};
  CpuFeatures limited = features;
  if (clear_after(limited, kX86, level) || clear_after(limited, kArm, level)) return limited;
  fail(
      "REFT_CPU_ISA: unknown level '{}': expected scalar, avx2, avx_vnni, avx512, avx512_vnni, "
      "avx512_bf16, neon, neon_dot or neon_bf16",
      level);
}

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = [] {
    const char* level = std::getenv("REFT_CPU_ISA");
    const CpuFeatures all = detect_cpu_features();
    return level != nullptr && *level != '\0' ? limit_cpu_features(all, level) : all;
  }();
  return features;
}

std::string cpu_features_str(const CpuFeatures& features) {
  std::string out;
  const auto add = [&](const Level& level) {
    if (features.*level.flag) out += (out.empty() ? "" : " ") + std::string(level.name);
  };
  for (const Level& level : kX86) add(level);
  for (const Level& level : kArm) add(level);
  return out.empty() ? "scalar" : out;
}

}  // namespace reft
