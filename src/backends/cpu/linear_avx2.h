// The AVX2 (with FMA and F16C) vector type of linear_tile.h, without the integer products. Included
// by files that set the target.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace reft::cpu {
namespace {

struct Avx2 {
  static constexpr int kLanes = 8;
  static constexpr bool kSplitBytes = false;
  // Sixteen registers: 6 rows of 2 vectors of floats, or 2 rows of 2 vectors of integer and of
  // float sums.
  static constexpr int vectors(int rows, bool integer) {
    return rows == 1 || (rows <= 2 && !integer) ? 4 : 2;
  }

  using F = __m256;
  using B = __m256i;

  static F zero() { return _mm256_setzero_ps(); }
  static F set1(float x) { return _mm256_set1_ps(x); }
  static F load(const float* at) { return _mm256_loadu_ps(at); }
  static void store(float* at, F x) { _mm256_storeu_ps(at, x); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F load_f16(const std::byte* at) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  }
  static F load_bf16(const std::byte* at) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static F load_s8(const std::byte* at) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
  }
  static F broadcast_float(const std::byte* at) {
    return _mm256_broadcast_ss(reinterpret_cast<const float*>(at));
  }
  // Of pairs of bfloat16.
  static F load_bf16_even(const std::byte* at) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(load_bytes(at), 16));
  }
  static F load_bf16_odd(const std::byte* at) {
    // Not a mask, which would take the sixteenth register.
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_srli_epi32(load_bytes(at), 16), 16));
  }

  static B load_bytes(const std::byte* at) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  }
  static B broadcast_word(const std::byte* at) {
    return _mm256_set1_epi32(*reinterpret_cast<const int32_t*>(at));
  }
  static B low_nibbles(B b) { return _mm256_and_si256(b, _mm256_set1_epi8(15)); }
  static B high_nibbles(B b) { return low_nibbles(_mm256_srli_epi16(b, 4)); }

  static B load_table(const int8_t* values) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
  }
  static B look_up(B table, B indices) { return _mm256_shuffle_epi8(table, indices); }
  template <int kBits>
  static B shift_right(B b) {
    return _mm256_srli_epi16(b, kBits);
  }
  static B keep(B b, int16_t mask) { return _mm256_and_si256(b, _mm256_set1_epi16(mask)); }
  static B signed_even(B b) { return signed_odd(_mm256_slli_epi16(b, 8)); }
  static B signed_odd(B b) { return _mm256_srai_epi16(b, 8); }
  static B no_bytes() { return _mm256_setzero_si256(); }
  static F to_float(B integers) { return _mm256_cvtepi32_ps(integers); }
};

}  // namespace
}  // namespace reft::cpu
