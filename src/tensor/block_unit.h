// The blocks of GGUF taken apart, for backends that lay them out anew: 32 values of a row as codes,
// scales and minimums. A value is scale * code + min, in the two-level formats (super_scale *
// scales[g]) * code + super_min * mins[g] with g the half of the 32. Plain code for host and
// device.
#pragma once

#include <cstdint>

#include "tensor/dtype.h"

#if defined(__CUDACC__)
#define REFT_HOST_DEVICE __host__ __device__
#else
#define REFT_HOST_DEVICE
#endif

namespace reft {

inline constexpr int kBlockUnit = 32;

// The value of an IQ4_NL code, and twice the value of an MXFP4 (E2M1) code.
alignas(16) inline constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                      1,    13,   25,  38,  53,  69,  89,  113};
alignas(16) inline constexpr int8_t kMxfp4Values[16] = {0, 1,  2,  3,  4,  6,  8,  12,
                                                        0, -1, -2, -3, -4, -6, -8, -12};

// One unit of one row of a block format, in the terms of the integer layouts.
struct UnitValues {
  uint8_t codes[kBlockUnit];
  uint16_t scale;  // 16-bit floats of the one-level layouts
  uint16_t min;
  int8_t scales[2];  // of the two-level layouts, per group
  int8_t mins[2];
  uint16_t super_scale;
  uint16_t super_min;
};

REFT_HOST_DEVICE inline uint16_t read16(const uint8_t* at) {
  return static_cast<uint16_t>(at[0] | at[1] << 8);
}

// 16 bytes hold 32 codes: the low nibbles come first.
REFT_HOST_DEVICE inline void read_nibbles(const uint8_t* bytes, UnitValues& out) {
  for (int i = 0; i < 16; ++i) {
    out.codes[i] = bytes[i] & 15;
    out.codes[16 + i] = bytes[i] >> 4;
  }
}

// Adds the fifth bits, bit i of a little-endian word for code i.
REFT_HOST_DEVICE inline void add_fifth_bits(const uint8_t* bits, UnitValues& out) {
  for (int i = 0; i < kBlockUnit; ++i) {
    out.codes[i] = static_cast<uint8_t>(out.codes[i] | (bits[i / 8] >> (i % 8) & 1) << 4);
  }
}

// Six-bit scale and minimum of sub-block i of Q4_K and Q5_K, from 12 bytes.
REFT_HOST_DEVICE inline void read_k_scale(const uint8_t* s, int i, UnitValues& out) {
  if (i < 4) {
    out.scales[0] = static_cast<int8_t>(s[i] & 63);
    out.mins[0] = static_cast<int8_t>(s[i + 4] & 63);
  } else {
    out.scales[0] = static_cast<int8_t>((s[i + 4] & 15) | (s[i - 4] >> 6) << 4);
    out.mins[0] = static_cast<int8_t>(s[i + 4] >> 4 | (s[i] >> 6) << 4);
  }
}

// Minimums are subtracted in the K formats and added in our layouts.
REFT_HOST_DEVICE inline uint16_t negated(uint16_t half) {
  return static_cast<uint16_t>(half ^ 0x8000u);
}

// Reads unit `u` (32 values) of the block at `b`; u is 0 for blocks of 32.
template <DType kType>
REFT_HOST_DEVICE inline void read_unit(const uint8_t* b, int u, UnitValues& out) {
  if constexpr (kType == DType::kQ4_0 || kType == DType::kIQ4_NL) {
    out.scale = read16(b);
    read_nibbles(b + 2, out);
  } else if constexpr (kType == DType::kQ4_1) {
    out.scale = read16(b);
    out.min = read16(b + 2);
    read_nibbles(b + 4, out);
  } else if constexpr (kType == DType::kQ5_0) {
    out.scale = read16(b);
    read_nibbles(b + 6, out);
    add_fifth_bits(b + 2, out);
    for (uint8_t& code : out.codes) code = static_cast<uint8_t>(code - 16);
  } else if constexpr (kType == DType::kQ5_1) {
    out.scale = read16(b);
    out.min = read16(b + 2);
    read_nibbles(b + 8, out);
    add_fifth_bits(b + 4, out);
  } else if constexpr (kType == DType::kQ8_0) {
    out.scale = read16(b);
    for (int i = 0; i < kBlockUnit; ++i) out.codes[i] = b[2 + i];
  } else if constexpr (kType == DType::kMXFP4) {
    // The table holds doubled values, so the scale is 2^(e − 128), as a bfloat16 (subnormal for e <
    // 2).
    out.scale = static_cast<uint16_t>(b[0] < 2 ? 0x20u << b[0] : (b[0] - 1u) << 7);
    read_nibbles(b + 1, out);
  } else if constexpr (kType == DType::kQ2_K) {
    const uint8_t* q = b + 16 + 32 * (u / 4);
    for (int i = 0; i < kBlockUnit; ++i) out.codes[i] = q[i] >> (2 * (u % 4)) & 3;
    for (int g = 0; g < 2; ++g) {
      out.scales[g] = static_cast<int8_t>(b[2 * u + g] & 15);
      out.mins[g] = static_cast<int8_t>(b[2 * u + g] >> 4);
    }
    out.super_scale = read16(b + 80);
    out.super_min = negated(read16(b + 82));
  } else if constexpr (kType == DType::kQ3_K) {
    const uint8_t* q = b + 32 + 32 * (u / 4);
    for (int i = 0; i < kBlockUnit; ++i) {
      out.codes[i] = static_cast<uint8_t>((q[i] >> (2 * (u % 4)) & 3) | (b[i] >> u & 1) << 2);
    }
    const uint8_t* s = b + 96;
    for (int g = 0; g < 2; ++g) {
      const int i = 2 * u + g;
      const int low = i < 8 ? s[i] & 15 : s[i - 8] >> 4;
      out.scales[g] = static_cast<int8_t>((low | (s[8 + i % 4] >> (2 * (i / 4)) & 3) << 4) - 32);
    }
    out.super_scale = read16(b + 108);
  } else if constexpr (kType == DType::kQ4_K || kType == DType::kQ5_K) {
    const uint8_t* q = b + (kType == DType::kQ4_K ? 16 : 48) + 32 * (u / 2);
    for (int i = 0; i < kBlockUnit; ++i) out.codes[i] = u % 2 == 0 ? q[i] & 15 : q[i] >> 4;
    if constexpr (kType == DType::kQ5_K) {
      const uint8_t* high = b + 16;
      for (int i = 0; i < kBlockUnit; ++i) {
        out.codes[i] = static_cast<uint8_t>(out.codes[i] | (high[i] >> u & 1) << 4);
      }
    }
    read_k_scale(b + 4, u, out);
    out.super_scale = read16(b);
    out.super_min = negated(read16(b + 2));
  } else {
    static_assert(kType == DType::kQ6_K);
    const int quarter = u % 4;
    const uint8_t* low = b + 64 * (u / 4) + 32 * (quarter % 2);
    const uint8_t* high = b + 128 + 32 * (u / 4);
    for (int i = 0; i < kBlockUnit; ++i) {
      const int nibble = quarter < 2 ? low[i] & 15 : low[i] >> 4;
      out.codes[i] = static_cast<uint8_t>((nibble | (high[i] >> (2 * quarter) & 3) << 4) - 32);
    }
    for (int g = 0; g < 2; ++g) out.scales[g] = static_cast<int8_t>(b[192 + 2 * u + g]);
    out.super_scale = read16(b + 208);
  }
}

}  // namespace reft
