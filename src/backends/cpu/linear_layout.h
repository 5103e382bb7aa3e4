// How packed weights and activations lie in memory: the contract between the packers
// (linear_pack.cpp), the tile kernels (linear_tile.h, compiled once per instruction set) and the
// driver (linear.cpp).
//
// A weight is cut into panels of kPanel output features (the last one padded with zeros); a panel
// holds all of K and is one contiguous stream, read from front to back.
//
//   float layouts   for each k (each pair of k for bfloat16): kPanel values (pairs)
//   integer layouts for each unit of kUnit values of k: scales, then minimums, then codes
//     codes         for each j in k / 4: kPanel words of 4 codes, one byte each, of k = 4j, 4j + 2,
//                   4j + 1, 4j + 3: the even and the odd bytes widen to consecutive pairs; of 4-bit
//                   codes, word j of the low nibbles and word j + 1 of the high nibbles share their
//                   bytes
//     scales, mins  kPanel of each; 16-bit floats, or for the two-level layouts signed bytes, one
//                   set per `group` values of k, to be multiplied by 16-bit floats that stand
//                   before every 8 units
//
// Activations are packed in tiles of R rows (R: as many as a kernel call takes):
//
//   float layouts   for each k (pair): R values (pairs)
//   integer layouts for each unit: for each j in k / 4, R times four 16-bit integers q (k = 4j …
//                   4j + 3; where V::kSplitBytes, the four high bytes and the four low bytes of
//                   q = 256 high + low, both signed, in the order of the codes); then R scales a
//                   (float); then for each group R corrections: a sum(q) (float) for the layouts
//                   with minimums, else what an integer sum starts with: −offset sum(q)
//
// An integer tile computes, exactly but for the rounding of float32,
//   y[t, n] = sum over groups of scale[n] a[t] (sum over k of (code[n, k] − offset) q[t, k]) +
//   min[n] a[t] sum(q[t, k])
// where a[t] q[t, k] is the activation rounded to 16 bits: |q| <= kActivationMax. Models have
// channels with values 1000 times the others'; those others keep 32 steps to either side of zero,
// where 8 bits would round them all to zero. The integer sums are exact: 32 products of at most
// 2^7 · 2^15 fit in 32 bits. This header is included by files that are compiled for other
// instruction sets, so it holds plain types and constants only.
#pragma once

#include <cstddef>
#include <cstdint>

namespace reft::cpu {

inline constexpr int kPanel = 32;  // output features in a panel
inline constexpr int kUnit = 32;   // values of k that share an activation scale
inline constexpr int kSuperUnits =
    8;  // units under one pair of 16-bit floats in the two-level layouts
inline constexpr int kActivationMax = 127 * 256;  // the most that signed bytes can split
inline constexpr int kMaxTileRows = 12;
inline constexpr int kLineBytes = 64;  // of a cache line

enum class Layout : uint8_t {
  kF32,
  kF16,
  kBF16,     // multiplied in fp32
  kBF16Dot,  // same bytes; activations rounded to bfloat16
  // Integer layouts, named after what they hold.
  kQ4Sym,     // Q4_0
  kQ4Min,     // Q4_1
  kByteSym,   // Q8_0, Q5_0
  kByteMin,   // Q5_1
  kLookup,    // IQ4_NL
  kLookupE8,  // MXFP4
  kQ2K,
  kQ3K,
  kQ4K,
  kQ5K,
  kQ6K,
  kCount
};
inline constexpr int kNumLayouts = static_cast<int>(Layout::kCount);

enum class Code : uint8_t {
  kNibble,     // 4 bits, 0 … 15
  kLookup,     // 4 bits, an index into a table of signed bytes
  kSmallByte,  // 0 … 31
  kByte,       // signed
};
enum class Scale : uint8_t { kF16, kBF16, kTwoLevel };

struct LayoutInfo {
  bool integer = true;
  Code code = Code::kByte;
  Scale scale = Scale::kF16;
  int group = kUnit;  // values of k under one scale
  bool min = false;
  int offset = 0;  // taken off kNibble codes
};

constexpr LayoutInfo layout_info(Layout layout) {
  switch (layout) {
    case Layout::kQ4Sym:
      return {.code = Code::kNibble, .offset = 8};
    case Layout::kQ4Min:
      return {.code = Code::kNibble, .min = true};
    case Layout::kByteSym:
      return {.code = Code::kByte};
    case Layout::kByteMin:
      return {.code = Code::kSmallByte, .min = true};
    case Layout::kLookup:
      return {.code = Code::kLookup};
    case Layout::kLookupE8:
      return {.code = Code::kLookup, .scale = Scale::kBF16};
    case Layout::kQ2K:
      return {.code = Code::kNibble, .scale = Scale::kTwoLevel, .group = 16, .min = true};
    case Layout::kQ3K:
      return {.code = Code::kNibble, .scale = Scale::kTwoLevel, .group = 16, .offset = 4};
    case Layout::kQ4K:
      return {.code = Code::kNibble, .scale = Scale::kTwoLevel, .min = true};
    case Layout::kQ5K:
      return {.code = Code::kSmallByte, .scale = Scale::kTwoLevel, .min = true};
    case Layout::kQ6K:
      return {.code = Code::kByte, .scale = Scale::kTwoLevel, .group = 16};
    default:
      return {.integer = false};
  }
}

constexpr bool is_nibble(Code code) { return code == Code::kNibble || code == Code::kLookup; }
constexpr int groups_per_unit(const LayoutInfo& info) { return kUnit / info.group; }
constexpr int code_bytes(const LayoutInfo& info) {
  return kUnit * kPanel / (is_nibble(info.code) ? 2 : 1);
}
// Scales of one unit; the minimums take as many bytes again.
constexpr int scale_bytes(const LayoutInfo& info) {
  return info.scale == Scale::kTwoLevel ? groups_per_unit(info) * kPanel : 2 * kPanel;
}
constexpr int unit_bytes(const LayoutInfo& info) {
  return scale_bytes(info) * (info.min ? 2 : 1) + code_bytes(info);
}
// What stands before every kSuperUnits units.
constexpr int super_bytes(const LayoutInfo& info) {
  return info.scale == Scale::kTwoLevel ? 2 * kPanel * (info.min ? 2 : 1) : 0;
}

// Bytes of a panel with k input features (integer layouts: a multiple of kUnit).
constexpr int64_t panel_bytes(Layout layout, int64_t k) {
  const LayoutInfo info = layout_info(layout);
  if (layout == Layout::kF32) return k * kPanel * 4;
  if (!info.integer) return (k + 1) / 2 * 2 * kPanel * 2;
  const int64_t units = k / kUnit;
  return units * unit_bytes(info) + (units + kSuperUnits - 1) / kSuperUnits * super_bytes(info);
}

// Bytes of one row's share of a packed tile of activations.
constexpr int64_t activation_bytes(Layout layout, int64_t k) {
  const LayoutInfo info = layout_info(layout);
  if (info.integer) return k / kUnit * (2 * kUnit + 4 + 4 * groups_per_unit(info));
  return layout == Layout::kBF16Dot ? (k + 1) / 2 * 4 : (k + 1) / 2 * 8;
}

struct TileArgs {
  const std::byte* panel;
  const std::byte* activations;  // of this tile
  int64_t k;
  float* y;             // first row, first column of the panel
  int64_t y_stride;     // in floats
  int columns;          // of the panel that exist: 1 … kPanel
  const float* bias;    // kPanel values, or null
  const int8_t* table;  // 16 values, Code::kLookup only
  // Memory to be fetched meanwhile, as many lines for each unit (integer layouts): the next panel,
  // so that loading overlaps with computing where several tiles read one panel.
  const std::byte* prefetch = nullptr;
  int prefetch_lines = 0;
};

struct ActivationArgs {
  const float* x;
  int64_t x_stride;  // in floats
  int64_t k;
  int rows;
  std::byte* out;
};

// Tiles of 1 … max_rows rows; entry r − 1 takes r rows.
struct TileKernels {
  int max_rows = 0;
  void (*tiles[kMaxTileRows])(const TileArgs&) = {};
  void (*pack_activations)(const ActivationArgs&) = nullptr;
};

// Per instruction set, the layouts that it serves; the rest have max_rows 0.
struct KernelTable {
  const char* name = "";
  TileKernels layouts[kNumLayouts] = {};
};

}  // namespace reft::cpu
