#include "tensor/dequantize.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "tensor/float_types.h"
#include "tensor/quantize_k.h"

namespace reft {
namespace {

using Byte = uint8_t;

template <class T>
void expand(const void* in, float* out, int64_t n) {
  const T* values = static_cast<const T*>(in);
  for (int64_t i = 0; i < n; ++i) out[i] = to_float(values[i]);
}
template <class T>
void narrow(const float* in, void* out, int64_t n) {
  T* values = static_cast<T*>(out);
  for (int64_t i = 0; i < n; ++i) values[i] = from_float<T>(in[i]);
}

// Without branches, so that it becomes vector code: the shifted bits are the value times 2^-112,
// exactly.
void expand_half(const void* in, float* out, int64_t n) {
  const f16* values = static_cast<const f16*>(in);
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t rest = uint32_t{values[i].bits & 0x7fffu} << 13;
    const uint32_t sign = uint32_t{values[i].bits & 0x8000u} << 16;
    const uint32_t magnitude = std::bit_cast<uint32_t>(std::bit_cast<float>(rest) * 0x1p112f);
    const uint32_t not_finite = rest >= 0x7c00u << 13 ? 0x7f800000u : 0;
    out[i] = std::bit_cast<float>(sign | magnitude | not_finite);
  }
}

// OCP FP8. e4m3 has no infinity (the "fn" variant); e5m2 is the upper byte of a float16.
float from_e4m3(Byte code) {
  const int exponent = (code >> 3) & 15;
  const int mantissa = code & 7;
  float magnitude = exponent == 0 ? static_cast<float>(mantissa) * 0x1p-9f
                                  : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  if (exponent == 15 && mantissa == 7) magnitude = std::numeric_limits<float>::quiet_NaN();
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}
float from_e5m2(Byte code) { return to_float(f16{static_cast<uint16_t>(code << 8)}); }

// Round to nearest even. Saturates at 448, as conversion instructions for e4m3 do; NaN stays NaN.
Byte to_e4m3(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t sign = bits >> 24 & 0x80u;
  uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<Byte>(sign | 0x7fu);
  magnitude = std::min(magnitude, std::bit_cast<uint32_t>(448.0f));
  if (magnitude < std::bit_cast<uint32_t>(0x1p-6f)) {  // below the smallest normal: steps of 2^-9
    const float steps = std::nearbyint(std::bit_cast<float>(magnitude) * 0x1p9f);
    return static_cast<Byte>(sign | static_cast<uint32_t>(steps));
  }
  magnitude += 0x7ffffu + (magnitude >> 20 & 1u);
  return static_cast<Byte>(sign | ((magnitude >> 20) - (120u << 3)));
}

void narrow_e4m3(const float* in, void* out, int64_t n) {
  Byte* codes = static_cast<Byte*>(out);
  for (int64_t i = 0; i < n; ++i) codes[i] = to_e4m3(in[i]);
}

template <float (*kConvert)(Byte)>
void expand_fp8(const void* in, float* out, int64_t n) {
  static const auto table = [] {
    std::array<float, 256> values{};
    for (size_t code = 0; code < values.size(); ++code)
      values[code] = kConvert(static_cast<Byte>(code));
    return values;
  }();
  const Byte* codes = static_cast<const Byte*>(in);
  for (int64_t i = 0; i < n; ++i) out[i] = table[codes[i]];
}

void expand_double(const void* in, float* out, int64_t n) {
  const Byte* bytes = static_cast<const Byte*>(in);
  for (int64_t i = 0; i < n; ++i) {
    double value;
    std::memcpy(&value, bytes + i * 8, sizeof(value));
    out[i] = static_cast<float>(value);
  }
}

float load_half(const Byte* at) {
  f16 half;
  std::memcpy(&half, at, sizeof(half));
  return to_float(half);
}
void store_half(Byte* at, float value) {
  const f16 half = to_f16(value);
  std::memcpy(at, &half, sizeof(half));
}
uint32_t load_u32(const Byte* at) {
  uint32_t value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

// --- Blocks of 32: the low nibbles are elements 0-15, the high ones 16-31. ---

void expand_q4_0(const Byte* b, float* y) {
  const float d = load_half(b);
  for (int i = 0; i < 16; ++i) {
    y[i] = d * static_cast<float>((b[2 + i] & 15) - 8);
    y[i + 16] = d * static_cast<float>((b[2 + i] >> 4) - 8);
  }
}

void expand_q4_1(const Byte* b, float* y) {
  const float d = load_half(b);
  const float m = load_half(b + 2);
  for (int i = 0; i < 16; ++i) {
    y[i] = d * static_cast<float>(b[4 + i] & 15) + m;
    y[i + 16] = d * static_cast<float>(b[4 + i] >> 4) + m;
  }
}

// The fifth bits of all 32 elements lie in one word.
int five_bits(const Byte* low, uint32_t high, int i) {
  const int nibble = i < 16 ? low[i] & 15 : low[i - 16] >> 4;
  return nibble | static_cast<int>((high >> i) & 1) << 4;
}

void expand_q5_0(const Byte* b, float* y) {
  const float d = load_half(b);
  const uint32_t high = load_u32(b + 2);
  for (int i = 0; i < 32; ++i) y[i] = d * static_cast<float>(five_bits(b + 6, high, i) - 16);
}

void expand_q5_1(const Byte* b, float* y) {
  const float d = load_half(b);
  const float m = load_half(b + 2);
  const uint32_t high = load_u32(b + 4);
  for (int i = 0; i < 32; ++i) y[i] = d * static_cast<float>(five_bits(b + 8, high, i)) + m;
}

void expand_q8_0(const Byte* b, float* y) {
  const float d = load_half(b);
  for (int i = 0; i < 32; ++i) y[i] = d * static_cast<float>(static_cast<int8_t>(b[2 + i]));
}

void expand_iq4_nl(const Byte* b, float* y) {
  static constexpr std::array<float, 16> kLevels = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                    1,    13,   25,  38,  53,  69,  89,  113};
  const float d = load_half(b);
  for (int i = 0; i < 16; ++i) {
    y[i] = d * kLevels[b[2 + i] & 15];
    y[i + 16] = d * kLevels[b[2 + i] >> 4];
  }
}

// Levels are twice the e2m1 values, so the e8m0 scale is halved: 2^(e - 128), exact down to
// subnormals.
void expand_mxfp4(const Byte* b, float* y) {
  static constexpr std::array<float, 16> kLevels = {0, 1,  2,  3,  4,  6,  8,  12,
                                                    0, -1, -2, -3, -4, -6, -8, -12};
  const uint32_t e = b[0];
  const float d = std::bit_cast<float>(e < 2 ? 0x00200000u << e : (e - 1) << 23);
  for (int i = 0; i < 16; ++i) {
    y[i] = d * kLevels[b[1 + i] & 15];
    y[i + 16] = d * kLevels[b[1 + i] >> 4];
  }
}

// --- Super-blocks of 256 ---

// 16 groups of 16. Bytes: scale and min nibbles [16], 2-bit values [64], d, dmin.
void expand_q2_k(const Byte* b, float* y) {
  const Byte* q = b + 16;
  const float d = load_half(b + 80);
  const float dmin = load_half(b + 82);
  for (int group = 0; group < 16; ++group) {
    const float scale = d * static_cast<float>(b[group] & 15);
    const float offset = dmin * static_cast<float>(b[group] >> 4);
    const Byte* values = q + group / 8 * 32 + group % 2 * 16;
    const int shift = group % 8 / 2 * 2;
    for (int i = 0; i < 16; ++i) {
      *y++ = scale * static_cast<float>((values[i] >> shift) & 3) - offset;
    }
  }
}

// 16 groups of 16. Bytes: inverted third bits [32], low 2 bits [64], 6-bit scales [12], d.
void expand_q3_k(const Byte* b, float* y) {
  const Byte* high = b;
  const Byte* low = b + 32;
  const Byte* packed = b + 96;
  const float d = load_half(b + 108);
  for (int group = 0; group < 16; ++group) {
    const int nibble = group < 8 ? packed[group] & 15 : packed[group - 8] >> 4;
    const int top = (packed[8 + group % 4] >> (group / 4 * 2)) & 3;
    const float scale = d * static_cast<float>((nibble | top << 4) - 32);
    const int half = group % 2 * 16;
    const Byte* values = low + group / 8 * 32 + half;
    const int shift = group % 8 / 2 * 2;
    const int bit = group / 2;
    for (int i = 0; i < 16; ++i) {
      const int value = ((values[i] >> shift) & 3) - (((high[half + i] >> bit) & 1) != 0 ? 0 : 4);
      *y++ = scale * static_cast<float>(value);
    }
  }
}

// The 6-bit scale and min of group `i` of 8 from the 12 bytes that Q4_K and Q5_K share.
struct ScaleMin {
  int scale;
  int min;
};
ScaleMin scale_min(const Byte* packed, int i) {
  if (i < 4) return {packed[i] & 63, packed[i + 4] & 63};
  return {(packed[i + 4] & 15) | (packed[i - 4] >> 6) << 4, (packed[i + 4] >> 4) | (packed[i] >> 6)
                                                                                       << 4};
}

// 8 groups of 32. Bytes: d, dmin, scales [12], 4-bit values [128].
void expand_q4_k(const Byte* b, float* y) {
  const float d = load_half(b);
  const float dmin = load_half(b + 2);
  for (int group = 0; group < 8; ++group) {
    const ScaleMin packed = scale_min(b + 4, group);
    const float scale = d * static_cast<float>(packed.scale);
    const float offset = dmin * static_cast<float>(packed.min);
    const Byte* values = b + 16 + group / 2 * 32;
    const int shift = group % 2 * 4;
    for (int i = 0; i < 32; ++i) {
      *y++ = scale * static_cast<float>((values[i] >> shift) & 15) - offset;
    }
  }
}

// As Q4_K with the fifth bits [32] before the values.
void expand_q5_k(const Byte* b, float* y) {
  const float d = load_half(b);
  const float dmin = load_half(b + 2);
  const Byte* high = b + 16;
  for (int group = 0; group < 8; ++group) {
    const ScaleMin packed = scale_min(b + 4, group);
    const float scale = d * static_cast<float>(packed.scale);
    const float offset = dmin * static_cast<float>(packed.min);
    const Byte* values = b + 48 + group / 2 * 32;
    const int shift = group % 2 * 4;
    for (int i = 0; i < 32; ++i) {
      const int value = ((values[i] >> shift) & 15) | ((high[i] >> group) & 1) << 4;
      *y++ = scale * static_cast<float>(value) - offset;
    }
  }
}

// 16 groups of 16. Bytes: low 4 bits [128], high 2 bits [64], int8 scales [16], d.
void expand_q6_k(const Byte* b, float* y) {
  const Byte* scales = b + 192;
  const float d = load_half(b + 208);
  for (int group = 0; group < 16; ++group) {
    const float scale = d * static_cast<float>(static_cast<int8_t>(scales[group]));
    const int half = group / 8;
    const int quarter = group % 8 / 2;  // of the 128 elements of this half
    const Byte* low = b + half * 64 + quarter % 2 * 32 + group % 2 * 16;
    const Byte* high = b + 128 + half * 32 + group % 2 * 16;
    for (int i = 0; i < 16; ++i) {
      const int value = ((low[i] >> (quarter / 2 * 4)) & 15) | ((high[i] >> (quarter * 2)) & 3)
                                                                   << 4;
      *y++ = scale * static_cast<float>(value - 32);
    }
  }
}

template <void (*kExpand)(const Byte*, float*)>
void expand_blocks(DType dtype, const void* blocks, float* out, int64_t elems) {
  const DTypeInfo& info = dtype_info(dtype);
  const Byte* block = static_cast<const Byte*>(blocks);
  const int64_t count = row_bytes(dtype, elems) / info.block_bytes;
  for (int64_t i = 0; i < count; ++i) {
    kExpand(block + i * info.block_bytes, out + i * info.block_elems);
  }
}

// --- Quantisers ---

// Rounds half up and clamps; NaN becomes 0.
int round_code(float x, int largest) {
  const float shifted = x + 0.5f;
  if (!(shifted > 0)) return 0;
  return shifted < static_cast<float>(largest) ? static_cast<int>(shifted) : largest;
}

float inverse(float d) { return d != 0 ? 1.0f / d : 0.0f; }

// The value of largest magnitude with its sign: it lands exactly on the lowest code.
float signed_extreme(const float* x) {
  float extreme = 0;
  for (int i = 0; i < 32; ++i) {
    if (std::fabs(x[i]) > std::fabs(extreme)) extreme = x[i];
  }
  return extreme;
}

void pack_codes(const std::array<int, 32>& codes, Byte* nibbles) {
  for (size_t i = 0; i < 16; ++i) {
    nibbles[i] = static_cast<Byte>((codes[i] & 15) | (codes[i + 16] & 15) << 4);
  }
}
void pack_fifth_bits(const std::array<int, 32>& codes, Byte* bits) {
  uint32_t word = 0;
  for (size_t i = 0; i < 32; ++i) word |= static_cast<uint32_t>(codes[i] >> 4) << i;
  std::memcpy(bits, &word, sizeof(word));
}

// x ~ d * (code - 2^(kBits-1)).
template <int kBits>
void quantize_symmetric(const float* x, Byte* b) {
  const float d = signed_extreme(x) / -static_cast<float>(1 << (kBits - 1));
  const float scale = inverse(d);
  std::array<int, 32> codes;
  for (size_t i = 0; i < 32; ++i) {
    // One addition of (middle + 0.5), as ggml does it: two would round twice.
    const float shifted = x[i] * scale + (static_cast<float>(1 << (kBits - 1)) + 0.5f);
    codes[i] = !(shifted > 0)                             ? 0
               : shifted < static_cast<float>(1 << kBits) ? static_cast<int>(shifted)
                                                          : (1 << kBits) - 1;
  }
  store_half(b, d);
  if constexpr (kBits == 5) pack_fifth_bits(codes, b + 2);
  pack_codes(codes, b + (kBits == 5 ? 6 : 2));
}

// x ~ d * code + min.
template <int kBits>
void quantize_affine(const float* x, Byte* b) {
  constexpr int kLargest = (1 << kBits) - 1;
  const auto [low, high] = std::minmax_element(x, x + 32);
  const float min = *low;
  const float d = (*high - min) / static_cast<float>(kLargest);
  const float scale = inverse(d);
  std::array<int, 32> codes;
  for (size_t i = 0; i < 32; ++i) codes[i] = round_code((x[i] - min) * scale, kLargest);
  store_half(b, d);
  store_half(b + 2, min);
  if constexpr (kBits == 5) pack_fifth_bits(codes, b + 4);
  pack_codes(codes, b + (kBits == 5 ? 8 : 4));
}

void quantize_q8_0(const float* x, Byte* b) {
  const float d = std::fabs(signed_extreme(x)) / 127.0f;
  const float scale = inverse(d);
  store_half(b, d);
  for (int i = 0; i < 32; ++i) {
    const float code = std::round(x[i] * scale);  // half away from zero
    const float clamped = code >= -127 ? std::min(code, 127.0f) : code < 0 ? -127.0f : 0.0f;
    b[2 + i] = static_cast<Byte>(static_cast<int8_t>(clamped));
  }
}

// The largest value keeps its exponent (OCP Microscaling Formats 1.0, section 6.3); the rest are
// rounded to the nearest level, to the even code where two are as near.
void quantize_mxfp4(const float* x, Byte* b) {
  static constexpr std::array<float, 7> kMiddles = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f};
  const float largest = std::fabs(signed_extreme(x));
  const int exponent = largest > 0 && std::isfinite(largest) ? std::ilogb(largest) - 2 : -127;
  const int e = std::clamp(exponent + 127, 0, 254);
  b[0] = static_cast<Byte>(e);
  const float scale = std::ldexp(1.0f, 127 - e);
  const auto code_of = [&](float value) {
    const float size = std::fabs(value) * scale;
    unsigned code = 0;
    for (size_t i = 0; i < kMiddles.size(); ++i) {
      if (size > kMiddles[i] || (i % 2 == 1 && size == kMiddles[i])) ++code;
    }
    return code | (std::signbit(value) ? 8u : 0u);
  };
  for (int i = 0; i < 16; ++i)
    b[1 + i] = static_cast<Byte>(code_of(x[i]) | code_of(x[i + 16]) << 4);
}

template <void (*kQuantize)(const float*, Byte*)>
void quantize_blocks(DType dtype, const float* values, void* blocks, int64_t elems) {
  const DTypeInfo& info = dtype_info(dtype);
  Byte* block = static_cast<Byte*>(blocks);
  const int64_t count = row_bytes(dtype, elems) / info.block_bytes;
  for (int64_t i = 0; i < count; ++i) {
    kQuantize(values + i * info.block_elems, block + i * info.block_bytes);
  }
}

}  // namespace

void dequantize_row(DType dtype, const void* blocks, float* out, int64_t elems) {
  switch (dtype) {
    case DType::kF32:
      return expand<float>(blocks, out, elems);
    case DType::kF16:
      return expand_half(blocks, out, elems);
    case DType::kBF16:
      return expand<bf16>(blocks, out, elems);
    case DType::kF64:
      return expand_double(blocks, out, elems);
    case DType::kF8E4M3:
      return expand_fp8<from_e4m3>(blocks, out, elems);
    case DType::kF8E5M2:
      return expand_fp8<from_e5m2>(blocks, out, elems);
    case DType::kQ4_0:
      return expand_blocks<expand_q4_0>(dtype, blocks, out, elems);
    case DType::kQ4_1:
      return expand_blocks<expand_q4_1>(dtype, blocks, out, elems);
    case DType::kQ5_0:
      return expand_blocks<expand_q5_0>(dtype, blocks, out, elems);
    case DType::kQ5_1:
      return expand_blocks<expand_q5_1>(dtype, blocks, out, elems);
    case DType::kQ8_0:
      return expand_blocks<expand_q8_0>(dtype, blocks, out, elems);
    case DType::kQ2_K:
      return expand_blocks<expand_q2_k>(dtype, blocks, out, elems);
    case DType::kQ3_K:
      return expand_blocks<expand_q3_k>(dtype, blocks, out, elems);
    case DType::kQ4_K:
      return expand_blocks<expand_q4_k>(dtype, blocks, out, elems);
    case DType::kQ5_K:
      return expand_blocks<expand_q5_k>(dtype, blocks, out, elems);
    case DType::kQ6_K:
      return expand_blocks<expand_q6_k>(dtype, blocks, out, elems);
    case DType::kIQ4_NL:
      return expand_blocks<expand_iq4_nl>(dtype, blocks, out, elems);
    case DType::kMXFP4:
      return expand_blocks<expand_mxfp4>(dtype, blocks, out, elems);
    default:
      fail("{} cannot be expanded to float", dtype_name(dtype));
  }
}

void quantize_row(DType dtype, const float* values, void* blocks, int64_t elems) {
  switch (dtype) {
    case DType::kF32:
      return narrow<float>(values, blocks, elems);
    case DType::kF16:
      return narrow<f16>(values, blocks, elems);
    case DType::kBF16:
      return narrow<bf16>(values, blocks, elems);
    case DType::kF8E4M3:
      return narrow_e4m3(values, blocks, elems);
    case DType::kQ4_0:
      return quantize_blocks<quantize_symmetric<4>>(dtype, values, blocks, elems);
    case DType::kQ4_1:
      return quantize_blocks<quantize_affine<4>>(dtype, values, blocks, elems);
    case DType::kQ5_0:
      return quantize_blocks<quantize_symmetric<5>>(dtype, values, blocks, elems);
    case DType::kQ5_1:
      return quantize_blocks<quantize_affine<5>>(dtype, values, blocks, elems);
    case DType::kQ8_0:
      return quantize_blocks<quantize_q8_0>(dtype, values, blocks, elems);
    case DType::kMXFP4:
      return quantize_blocks<quantize_mxfp4>(dtype, values, blocks, elems);
    case DType::kQ4_K:
      return quantize_blocks<quantize_q4_k>(dtype, values, blocks, elems);
    default:
      fail("values cannot be quantised to {}", dtype_name(dtype));
  }
}

}  // namespace reft
