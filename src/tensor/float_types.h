// Scalar conversions between float and the 16-bit formats, round to nearest even. Bit-exact, any
// host.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

// g++ 12 on x86-64, g++ 13 and clang on AArch64 convert _Float16 themselves (in hardware where
// there is F16C).
#if (defined(__aarch64__) && (defined(__clang__) || __GNUC__ >= 13)) || \
    (defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12 && defined(__SSE2__))
#define REFT_HAVE_FLOAT16 1
#endif

namespace reft {

// Storage types: the bits only, so that pointers of different formats cannot be mixed up.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }
inline float to_float(f16 x) {
#if defined(REFT_HAVE_FLOAT16)
  return static_cast<float>(std::bit_cast<_Float16>(x.bits));
#else
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16;
  const uint32_t rest = x.bits & 0x7fffu;
  if (rest >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  if (rest >= 0x400u) return std::bit_cast<float>(sign | ((rest << 13) + 0x38000000u));
  const float magnitude = static_cast<float>(rest) * 0x1p-24f;
  return sign != 0 ? -magnitude : magnitude;
#endif
}

inline bf16 to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
inline f16 to_f16(float x) {
#if defined(REFT_HAVE_FLOAT16)
  return {std::bit_cast<uint16_t>(static_cast<_Float16>(x))};
#else
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  uint32_t mag = bits & 0x7fffffffu;
  if (mag > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (mag >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};
  if (mag < 0x38800000u) {  // subnormal: let the float adder round
    const float shifted = std::bit_cast<float>(mag) + 0.5f;
    return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u))};
  }
  mag += 0xc8000fffu + ((mag >> 13) & 1u);
  return {static_cast<uint16_t>(sign | (mag >> 13))};
#endif
}

template <class T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline bf16 from_float<bf16>(float x) {
  return to_bf16(x);
}
template <>
inline f16 from_float<f16>(float x) {
  return to_f16(x);
}

}  // namespace reft
