#include "tensor/dtype.h"

#include <array>

#include "base/check.h"

namespace reft {
namespace {

constexpr std::array<DTypeInfo, static_cast<size_t>(DType::kCount)> kInfo = {{
    {"float32", 1, 4},     {"float16", 1, 2},  {"bfloat16", 1, 2}, {"int32", 1, 4},
    {"int64", 1, 8},       {"int8", 1, 1},     {"uint8", 1, 1},    {"float8_e4m3", 1, 1},
    {"float8_e5m2", 1, 1}, {"float64", 1, 8},  {"int16", 1, 2},    {"bool", 1, 1},
    {"Q4_0", 32, 18},      {"Q4_1", 32, 20},   {"Q5_0", 32, 22},   {"Q5_1", 32, 24},
    {"Q8_0", 32, 34},      {"Q2_K", 256, 84},  {"Q3_K", 256, 110}, {"Q4_K", 256, 144},
    {"Q5_K", 256, 176},    {"Q6_K", 256, 210}, {"IQ4_NL", 32, 18}, {"MXFP4", 32, 17},
}};

}  // namespace

const DTypeInfo& dtype_info(DType dtype) { return kInfo[static_cast<size_t>(dtype)]; }

DType parse_float_dtype(std::string_view name) {
  if (name == "float32" || name == "fp32" || name == "f32" || name == "float") return DType::kF32;
  if (name == "float16" || name == "fp16" || name == "f16" || name == "half") return DType::kF16;
  if (name == "bfloat16" || name == "bf16") return DType::kBF16;
  fail("unknown dtype '{}': expected float32, float16 or bfloat16", name);
}

DType parse_cache_dtype(std::string_view name) {
  if (name == "fp8" || name == "fp8_e4m3" || name == "float8_e4m3") return DType::kF8E4M3;
  return parse_float_dtype(name);
}

int64_t row_bytes(DType dtype, int64_t elems) {
  const DTypeInfo& info = dtype_info(dtype);
  check(elems % info.block_elems == 0, "{} elements are not whole {} blocks of {}", elems,
        info.name, info.block_elems);
  int64_t bytes = 0;
  check(!__builtin_mul_overflow(elems / info.block_elems, int64_t{info.block_bytes}, &bytes),
        "the size of {} elements overflows", elems);
  return bytes;
}

}  // namespace reft
