// Element types: plain numbers, and the block formats of GGUF, where `block_elems` neighbours of a
// row share scales and take `block_bytes` bytes. Layouts: ggml's `ggml-common.h` (block_q4_0 …),
// OCP MX for MXFP4.
#pragma once

#include <cstdint>
#include <string_view>

namespace reft {

enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kI32,
  kI64,
  kI8,
  kU8,
  kF8E4M3,
  kF8E5M2,
  kF64,
  kI16,
  kBool,
  // GGUF blocks
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kIQ4_NL,
  kMXFP4,
  kCount
};

struct DTypeInfo {
  const char* name;  // "float32", "bfloat16", "Q4_1" …
  int block_elems;   // 1 for plain types
  int block_bytes;
};

const DTypeInfo& dtype_info(DType dtype);
inline const char* dtype_name(DType dtype) { return dtype_info(dtype).name; }
inline bool is_block_format(DType dtype) { return dtype >= DType::kQ4_0; }
// float32, float16 or bfloat16.
inline bool is_float(DType dtype) { return dtype <= DType::kBF16; }
// Accepts float32/fp32/f32, float16/half/fp16/f16, bfloat16/bf16. Throws Error on anything else.
DType parse_float_dtype(std::string_view name);
// What keys and values may be kept in: a float dtype or float8_e4m3.
inline bool is_cache_dtype(DType dtype) { return is_float(dtype) || dtype == DType::kF8E4M3; }
// The float dtypes, and fp8, fp8_e4m3, float8_e4m3. Throws Error on anything else.
DType parse_cache_dtype(std::string_view name);
// Bytes of `elems` consecutive elements of a row; throws Error unless they are whole blocks.
int64_t row_bytes(DType dtype, int64_t elems);

}  // namespace reft
