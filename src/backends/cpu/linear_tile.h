// The tile kernels of `linear`, written once over a vector type and compiled once per instruction
// set (linear_scalar.cpp, linear_avx2.cpp …). Everything is in an unnamed namespace and nothing
// here or in its includes is an inline function that other files share: the linker could otherwise
// pick a copy compiled for an instruction set that the CPU lacks.
//
// A vector type V provides
//   kLanes                 floats in a vector; a byte vector holds as many words of 4 codes
//   vectors(rows, integer) vectors of columns that a tile of `rows` rows keeps in registers;
//                          divides kPanel / kLanes
//   F, B                   float vector, byte vector
//   zero set1 load store fma mul load_f16 load_bf16 load_s8 load_bf16_even load_bf16_odd load_bytes
//   broadcast_word low_nibbles high_nibbles
//   kSplitBytes            how activations are packed (see linear_layout.h)
//   Dot<Code>              integer products: linear_pairs.h; with kSplitBytes, linear_neon.h
#pragma once

#include <cstring>

#include "backends/cpu/linear_layout.h"

#if defined(__clang__)
// Clang leaves loops alone that grew too large when what is in them was unrolled, and says so.
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wpass-failed"
#endif

namespace reft::cpu {
namespace {

template <class V>
struct TileOutput {
  // Starts the sums of a tile with the bias.
  template <int R, int C>
  static void start(const TileArgs& args, int column, typename V::F (&y)[R][C]) {
#pragma GCC unroll 12
    for (int c = 0; c < C; ++c) {
      const auto b = args.bias != nullptr ? V::load(args.bias + column + c * V::kLanes) : V::zero();
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) y[r][c] = b;
    }
  }

  template <int R, int C>
  static void finish(const TileArgs& args, int column, const typename V::F (&y)[R][C]) {
    constexpr int kColumns = C * V::kLanes;
    if (column + kColumns <= args.columns) {
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        float* row = args.y + r * args.y_stride + column;
#pragma GCC unroll 12
        for (int c = 0; c < C; ++c) V::store(row + c * V::kLanes, y[r][c]);
      }
      return;
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      float row[kColumns];
#pragma GCC unroll 12
      for (int c = 0; c < C; ++c) V::store(row + c * V::kLanes, y[r][c]);
      std::memcpy(args.y + r * args.y_stride + column, row,
                  sizeof(float) * static_cast<size_t>(args.columns - column));
    }
  }
};

// ---- float layouts ----

template <class V, Layout L, int R, int C>
void float_columns(const TileArgs& args, int column) {
  using F = typename V::F;
  F y[R][C];
  TileOutput<V>::template start<R, C>(args, column, y);
  const float* x = reinterpret_cast<const float*>(args.activations);
  if constexpr (L == Layout::kBF16) {
    const std::byte* w = args.panel + column * 4;
    for (int64_t k = 0; k < args.k; k += 2, w += kPanel * 4, x += 2 * R) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        F wk[C];
#pragma GCC unroll 12
        for (int c = 0; c < C; ++c) {
          const std::byte* at = w + c * V::kLanes * 4;
          wk[c] = half == 0 ? V::load_bf16_even(at) : V::load_bf16_odd(at);
        }
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
          const F xr = V::set1(x[half * R + r]);
#pragma GCC unroll 12
          for (int c = 0; c < C; ++c) y[r][c] = V::fma(wk[c], xr, y[r][c]);
        }
      }
    }
  } else {
    constexpr int kBytes = L == Layout::kF32 ? 4 : 2;
    const std::byte* w = args.panel + column * kBytes;
    for (int64_t k = 0; k < args.k; ++k, w += kPanel * kBytes, x += R) {
      F wk[C];
#pragma GCC unroll 12
      for (int c = 0; c < C; ++c) {
        const std::byte* at = w + c * V::kLanes * kBytes;
        if constexpr (L == Layout::kF32) {
          wk[c] = V::load(reinterpret_cast<const float*>(at));
        } else {
          wk[c] = V::load_f16(at);
        }
      }
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const F xr = V::set1(x[r]);
#pragma GCC unroll 12
        for (int c = 0; c < C; ++c) y[r][c] = V::fma(wk[c], xr, y[r][c]);
      }
    }
  }
  TileOutput<V>::template finish<R, C>(args, column, y);
}

template <class V, int R, int C>
void bf16_dot_columns(const TileArgs& args, int column) {
  typename V::F y[R][C];
  TileOutput<V>::template start<R, C>(args, column, y);
  const std::byte* x = args.activations;
  const std::byte* w = args.panel + column * 4;
  for (int64_t k = 0; k < args.k; k += 2, w += kPanel * 4, x += 4 * R) {
    typename V::B wk[C];
#pragma GCC unroll 12
    for (int c = 0; c < C; ++c) wk[c] = V::load_bytes(w + c * V::kLanes * 4);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const auto xr = V::broadcast_word(x + 4 * r);
#pragma GCC unroll 12
      for (int c = 0; c < C; ++c) y[r][c] = V::dot_bf16(y[r][c], wk[c], xr);
    }
  }
  TileOutput<V>::template finish<R, C>(args, column, y);
}

// x: rows of floats -> [k][rows], k padded to a pair.
inline void pack_float_activations(const ActivationArgs& args) {
  float* out = reinterpret_cast<float*>(args.out);
  for (int64_t k = 0; k < args.k; ++k, out += args.rows) {
    for (int r = 0; r < args.rows; ++r) out[r] = args.x[r * args.x_stride + k];
  }
  if (args.k % 2 != 0) std::memset(out, 0, sizeof(float) * static_cast<size_t>(args.rows));
}

// x: rows of floats -> [k / 2][rows] pairs of bfloat16, rounded to nearest even.
template <class V>
void pack_bf16_activations(const ActivationArgs& args) {
  constexpr int kChunk = 64;
  for (int r = 0; r < args.rows; ++r) {
    const float* x = args.x + r * args.x_stride;
    std::byte* out = args.out + 4 * r;
    for (int64_t k = 0; k < args.k; k += kChunk) {
      alignas(64) float values[kChunk];
      alignas(64) uint32_t pairs[kChunk / 2];
      const int64_t n = args.k - k < kChunk ? args.k - k : kChunk;
      if (n < kChunk) std::memset(values, 0, sizeof(values));
      std::memcpy(values, x + k, sizeof(float) * static_cast<size_t>(n));
      V::round_to_bf16(values, pairs);
      for (int64_t i = 0; i < (n + 1) / 2; ++i, out += 4 * args.rows)
        std::memcpy(out, &pairs[i], 4);
    }
  }
}

// ---- integer layouts ----

// Adds scale * a * (sums over one group) [+ min * a * sum(q)] to y. `g`: which group of the unit.
template <class V, Layout L, int R, int C>
struct UnitScales {
  using F = typename V::F;
  static constexpr LayoutInfo kInfo = layout_info(L);

  // Scale (or, with `min`, minimum) of vector c of columns.
  static F load(const std::byte* super, const std::byte* unit, int g, bool min, int column) {
    const std::byte* at = unit + (min ? scale_bytes(kInfo) : 0);
    if constexpr (kInfo.scale == Scale::kF16) return V::load_f16(at + 2 * column);
    if constexpr (kInfo.scale == Scale::kBF16) return V::load_bf16(at + 2 * column);
    const F level = V::load_f16(super + (min ? 2 * kPanel : 0) + 2 * column);
    return V::mul(level, V::load_s8(at + g * kPanel + column));
  }
};

template <class V, Layout L, int R, int C>
void integer_columns(const TileArgs& args, int column) {
  using F = typename V::F;
  constexpr LayoutInfo kInfo = layout_info(L);
  using Dot = typename V::template Dot<kInfo.code>;
  using Scales = UnitScales<V, L, R, C>;
  constexpr int kGroups = groups_per_unit(kInfo);
  constexpr int kWords = kInfo.group / 4;
  constexpr int kStep = is_nibble(kInfo.code) ? 2 : 1;

  F y[R][C];
  TileOutput<V>::template start<R, C>(args, column, y);
  const auto table = Dot::table(args.table);
  const std::byte* w = args.panel;
  const std::byte* super = w;
  const std::byte* x = args.activations;
  const std::byte* prefetch = args.prefetch;
  const int64_t units = args.k / kUnit;
  for (int64_t unit = 0; unit < units; ++unit) {
    if constexpr (kInfo.scale == Scale::kTwoLevel) {
      if (unit % kSuperUnits == 0) {
        super = w;
        w += super_bytes(kInfo);
      }
    }
    for (int i = 0; i < args.prefetch_lines; ++i, prefetch += kLineBytes)
      __builtin_prefetch(prefetch);
    const std::byte* codes = w + unit_bytes(kInfo) - code_bytes(kInfo) + 4 * column;
    const std::byte* a = x + 2 * kUnit * R;
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g) {
      const std::byte* correction = a + 4 * R * (1 + g);
      typename Dot::Acc acc[R][C];
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 12
        for (int c = 0; c < C; ++c) acc[r][c] = Dot::template init<kInfo.min>(correction + 4 * r);
      }
#pragma GCC unroll 8
      for (int j = g * kWords; j < (g + 1) * kWords; j += kStep) {
        typename V::B raw[C];
#pragma GCC unroll 12
        for (int c = 0; c < C; ++c) {
          raw[c] = V::load_bytes(codes + (j / kStep) * kPanel * 4 + c * V::kLanes * 4);
        }
#pragma GCC unroll 2
        for (int half = 0; half < kStep; ++half) {
#pragma GCC unroll 2
          for (int part = 0; part < Dot::kParts; ++part) {
            typename V::B wj[C];
#pragma GCC unroll 12
            for (int c = 0; c < C; ++c) wj[c] = Dot::codes(raw[c], half, part, table);
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r) {
              const auto xr = Dot::load(x + 8 * R * (j + half) + 8 * r + 4 * part);
#pragma GCC unroll 12
              for (int c = 0; c < C; ++c) acc[r][c] = Dot::step(acc[r][c], wj[c], xr);
            }
          }
        }
      }
      F scale[C];
#pragma GCC unroll 12
      for (int c = 0; c < C; ++c)
        scale[c] = Scales::load(super, w, g, false, column + c * V::kLanes);
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const F ar = V::broadcast_float(a + 4 * r);
#pragma GCC unroll 12
        for (int c = 0; c < C; ++c) {
          const F sum = Dot::finish(acc[r][c]);
          y[r][c] = V::fma(sum, V::mul(scale[c], ar), y[r][c]);
        }
      }
      if constexpr (kInfo.min) {
        F min[C];
#pragma GCC unroll 12
        for (int c = 0; c < C; ++c)
          min[c] = Scales::load(super, w, g, true, column + c * V::kLanes);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
          const F sr = V::broadcast_float(correction + 4 * r);
#pragma GCC unroll 12
          for (int c = 0; c < C; ++c) y[r][c] = V::fma(min[c], sr, y[r][c]);
        }
      }
    }
    w += unit_bytes(kInfo);
    x += R * (2 * kUnit + 4 + 4 * kGroups);
  }
  TileOutput<V>::template finish<R, C>(args, column, y);
}

// Rounds one unit of a row: q = round(x kActivationMax / max|x|), ties to even; returns a = max|x|
// / kActivationMax.
inline float quantize_unit(const float* x, int16_t (&q)[kUnit], int (&sums)[2]) {
  uint32_t largest = 0;  // of non-negative floats the order is that of their bits
  for (int i = 0; i < kUnit; ++i) {
    uint32_t bits;
    std::memcpy(&bits, &x[i], 4);
    bits &= 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  float max;
  std::memcpy(&max, &largest, 4);
  const float inverse = max > 0.0f ? kActivationMax / max : 0.0f;
  for (int i = 0; i < kUnit; ++i) {
    // Rounded before the sum, which a fused multiply-add would round otherwise. 1.5 · 2^23: the
    // sum's low bits are the integer, or anything for what is not finite.
    const float shifted = __builtin_rintf(x[i] * inverse) + 12582912.0f;
    int32_t bits;
    std::memcpy(&bits, &shifted, 4);
    q[i] = static_cast<int16_t>(bits - 0x4b400000);
  }
  for (int half = 0; half < 2; ++half) {
    int sum = 0;
    for (int i = 0; i < kUnit / 2; ++i) sum += q[half * kUnit / 2 + i];
    sums[half] = sum;
  }
  return max / kActivationMax;
}

// q = 256 high + low, four high bytes before four low bytes, in the order of a word of codes.
inline void split_bytes(int16_t (&q)[kUnit]) {
  int8_t bytes[2 * kUnit];
  for (int i = 0; i < kUnit; i += 4) {
    constexpr int kOrder[4] = {0, 2, 1, 3};
    for (int b = 0; b < 4; ++b) {
      const int value = q[i + kOrder[b]];
      const int high = (value + 128) >> 8;
      bytes[2 * i + b] = static_cast<int8_t>(high);
      bytes[2 * i + 4 + b] = static_cast<int8_t>(value - 256 * high);
    }
  }
  std::memcpy(q, bytes, sizeof(bytes));
}

template <class V, Layout L>
void pack_integer_activations(const ActivationArgs& args) {
  constexpr LayoutInfo kInfo = layout_info(L);
  constexpr int kGroups = groups_per_unit(kInfo);
  const size_t stride = 4 * static_cast<size_t>(args.rows);
  for (int r = 0; r < args.rows; ++r) {
    const float* x = args.x + r * args.x_stride;
    std::byte* unit = args.out;
    for (int64_t k = 0; k < args.k; k += kUnit) {
      int16_t q[kUnit];
      int sums[2];
      const float a = quantize_unit(x + k, q, sums);
      if constexpr (V::kSplitBytes) split_bytes(q);
      for (int j = 0; j < kUnit / 4; ++j, unit += 2 * stride)
        std::memcpy(unit + 8 * r, q + 4 * j, 8);
      std::byte* out = unit + 4 * r;
      std::memcpy(out, &a, 4);
      out += stride;
      if constexpr (kGroups == 1) sums[0] += sums[1];
      for (int g = 0; g < kGroups; ++g, out += stride) {
        if constexpr (kInfo.min) {
          const float correction = a * static_cast<float>(sums[g]);
          std::memcpy(out, &correction, 4);
        } else {
          const int32_t correction = -kInfo.offset * sums[g];
          std::memcpy(out, &correction, 4);
        }
      }
      unit += (1 + kGroups) * stride;
    }
  }
}

// ---- tables ----

template <class V, Layout L, int R>
void tile(const TileArgs& args) {
  constexpr bool kInteger = layout_info(L).integer;
  constexpr int kVectors = V::vectors(R, kInteger);
  constexpr int kColumns = kVectors * V::kLanes;
  static_assert(kPanel % kColumns == 0);
  for (int column = 0; column < args.columns; column += kColumns) {
    if constexpr (kInteger) {
      integer_columns<V, L, R, kVectors>(args, column);
    } else if constexpr (L == Layout::kBF16Dot) {
      bf16_dot_columns<V, R, kVectors>(args, column);
    } else {
      float_columns<V, L, R, kVectors>(args, column);
    }
  }
}

template <class V, Layout L, int kRows, int R = 1>
constexpr void fill_tiles(TileKernels& kernels) {
  kernels.tiles[R - 1] = &tile<V, L, R>;
  if constexpr (R < kRows) fill_tiles<V, L, kRows, R + 1>(kernels);
}

template <class V, Layout L, int kRows>
constexpr void fill_layout(KernelTable& table) {
  TileKernels& kernels = table.layouts[static_cast<int>(L)];
  kernels.max_rows = kRows;
  fill_tiles<V, L, kRows>(kernels);
  if constexpr (layout_info(L).integer) {
    kernels.pack_activations = &pack_integer_activations<V, L>;
  } else if constexpr (L == Layout::kBF16Dot) {
    kernels.pack_activations = &pack_bf16_activations<V>;
  } else {
    kernels.pack_activations = &pack_float_activations;
  }
}

template <class V, int kRows>
constexpr void fill_float_layouts(KernelTable& table) {
  fill_layout<V, Layout::kF32, kRows>(table);
  fill_layout<V, Layout::kF16, kRows>(table);
  fill_layout<V, Layout::kBF16, kRows>(table);
}

template <class V, int kRows, int L = static_cast<int>(Layout::kQ4Sym)>
constexpr void fill_integer_layouts(KernelTable& table) {
  fill_layout<V, static_cast<Layout>(L), kRows>(table);
  if constexpr (L + 1 < kNumLayouts) fill_integer_layouts<V, kRows, L + 1>(table);
}

}  // namespace
}  // namespace reft::cpu

#if defined(__clang__)
#pragma clang diagnostic pop
#endif
