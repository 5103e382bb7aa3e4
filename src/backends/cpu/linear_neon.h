// The NEON vector type of linear_tile.h, without the integer products.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

namespace reft::cpu {
namespace {

struct Neon {
  static constexpr int kLanes = 4;
  static constexpr bool kSplitBytes = true;
  // Thirty-two registers: 6 rows of 4 vectors of floats, or 4 rows of 2 vectors of two integer sums
  // and a float sum.
  static constexpr int vectors(int rows, bool integer) {
    if (integer) return rows <= 2 ? 4 : 2;
    return rows == 1 ? 8 : 4;
  }

  using F = float32x4_t;
  using B = int8x16_t;

  static F zero() { return vdupq_n_f32(0.0f); }
  static F set1(float x) { return vdupq_n_f32(x); }
  static F load(const float* at) { return vld1q_f32(at); }
  static void store(float* at, F x) { vst1q_f32(at, x); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  static F load_f16(const std::byte* at) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(at))));
  }
  static F load_bf16(const std::byte* at) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t*>(at)), 16));
  }
  static F load_s8(const std::byte* at) {
    int32_t word;
    __builtin_memcpy(&word, at, 4);
    const int8x8_t bytes = vreinterpret_s8_s32(vdup_n_s32(word));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))));
  }
  static F broadcast_float(const std::byte* at) {
    return vld1q_dup_f32(reinterpret_cast<const float*>(at));
  }
  // Of pairs of bfloat16.
  static F load_bf16_even(const std::byte* at) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_s8(load_bytes(at)), 16));
  }
  static F load_bf16_odd(const std::byte* at) {
    return vreinterpretq_f32_u32(
        vandq_u32(vreinterpretq_u32_s8(load_bytes(at)), vdupq_n_u32(0xffff0000u)));
  }

  static B load_bytes(const std::byte* at) { return vld1q_s8(reinterpret_cast<const int8_t*>(at)); }
  static B broadcast_word(const std::byte* at) {
    return vreinterpretq_s8_s32(vld1q_dup_s32(reinterpret_cast<const int32_t*>(at)));
  }
  static B low_nibbles(B b) { return vandq_s8(b, vdupq_n_s8(15)); }
  static B high_nibbles(B b) { return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(b), 4)); }
};

// Signed bytes by signed bytes: the high and the low bytes of activations have a sum each, which
// only the end joins. V::dot adds the products of each four bytes.
template <class V, Code code>
struct NeonDot {
  struct Acc {
    int32x4_t high, low;
  };
  struct X {
    int8x16_t high, low;
  };
  static constexpr int kParts = 1;

  static int8x16_t table(const int8_t* values) {
    if constexpr (code == Code::kLookup) return vld1q_s8(values);
    return vdupq_n_s8(0);
  }
  // The words of the low (half 0) or high nibbles, or of the whole bytes.
  static int8x16_t codes(int8x16_t b, int half, int, int8x16_t table) {
    if constexpr (!is_nibble(code)) return b;
    const int8x16_t nibbles = half == 0 ? V::low_nibbles(b) : V::high_nibbles(b);
    if constexpr (code == Code::kLookup) return vqtbl1q_s8(table, vreinterpretq_u8_s8(nibbles));
    return nibbles;
  }
  static X load(const std::byte* x) { return {V::broadcast_word(x), V::broadcast_word(x + 4)}; }
  // With kMin the correction is not for the integer sum (see linear_layout.h).
  template <bool kMin>
  static Acc init(const std::byte* correction) {
    const int32x4_t zero = vdupq_n_s32(0);
    return {zero, kMin ? zero : vld1q_dup_s32(reinterpret_cast<const int32_t*>(correction))};
  }
  static Acc step(Acc acc, int8x16_t w, X x) {
    return {V::dot(acc.high, w, x.high), V::dot(acc.low, w, x.low)};
  }
  static float32x4_t finish(Acc acc) {
    return vcvtq_f32_s32(vaddq_s32(vshlq_n_s32(acc.high, 8), acc.low));
  }
};

}  // namespace
}  // namespace reft::cpu
