// The AVX-512 vector type of linear_tile.h, without the integer products. Included by files that
// set the target.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace reft::cpu {
namespace {

struct Avx512 {
  static constexpr int kLanes = 16;
  static constexpr bool kSplitBytes = false;
  static constexpr int vectors(int, bool) { return 2; }

  using F = __m512;
  using B = __m512i;

  static F zero() { return _mm512_setzero_ps(); }
  static F set1(float x) { return _mm512_set1_ps(x); }
  static F load(const float* at) { return _mm512_loadu_ps(at); }
  static void store(float* at, F x) { _mm512_storeu_ps(at, x); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F load_f16(const std::byte* at) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
  }
  static F load_bf16(const std::byte* at) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static F load_s8(const std::byte* at) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
  }
  static F broadcast_float(const std::byte* at) {
    return _mm512_set1_ps(*reinterpret_cast<const float*>(at));
  }
  // Of pairs of bfloat16.
  static F load_bf16_even(const std::byte* at) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(load_bytes(at), 16));
  }
  static F load_bf16_odd(const std::byte* at) {
    return _mm512_castsi512_ps(_mm512_and_si512(load_bytes(at), _mm512_set1_epi32(-0x10000)));
  }

  static B load_bytes(const std::byte* at) { return _mm512_loadu_si512(at); }
  static B broadcast_word(const std::byte* at) {
    return _mm512_set1_epi32(*reinterpret_cast<const int32_t*>(at));
  }
  static B low_nibbles(B b) { return _mm512_and_si512(b, _mm512_set1_epi8(15)); }
  static B high_nibbles(B b) { return low_nibbles(_mm512_srli_epi16(b, 4)); }

  static B load_table(const int8_t* values) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
  }
  static B look_up(B table, B indices) { return _mm512_shuffle_epi8(table, indices); }
  template <int kBits>
  static B shift_right(B b) {
    return _mm512_srli_epi16(b, kBits);
  }
  static B keep(B b, int16_t mask) { return _mm512_and_si512(b, _mm512_set1_epi16(mask)); }
  static B signed_even(B b) { return signed_odd(_mm512_slli_epi16(b, 8)); }
  static B signed_odd(B b) { return _mm512_srai_epi16(b, 8); }
  static B no_bytes() { return _mm512_setzero_si512(); }
  static F to_float(B integers) { return _mm512_cvtepi32_ps(integers); }
};

}  // namespace
}  // namespace reft::cpu
