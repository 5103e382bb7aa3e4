// Block formats in the order in which mma.m16n8k16 takes its operands: the layout of quantised
// weights on GPUs. The bits of a code stay as they are; they only move, so that a warp reads whole
// lines and takes codes apart two at a time. Plain code for host and device.
//
// A weight [N, K] is cut into records of 8 rows × 128 columns (4 units of 32), row tiles outermost:
// record (n / 8, k / 128). Rows past N and units past K are zeros. Lane l = 4g + t of a warp holds,
// of row g and each unit, the 8 values k = 16j + 4t + i (j = 0, 1; i = 0 … 3), which are pairs p =
// 2j + i / 2 of a low (i even) and a high one. A record is, as the format needs:
//
//   nibbles  512 bytes   16 for each lane; word u has unit u: pair p in bits 4p and 16 + 4p; of
//                        formats with a table, byte-like: bits 16j + 4 (0, 2, 1, 3)[i]
//   bytes    1024 bytes  twice 16 for each lane, of units 0 … 1 and 2 … 3: word u % 2 * 2 + j has
//   byte
//                        (0, 2, 1, 3)[i], signed
//   twos     256 bytes   8 for each lane: word u / 2 has pair p in bits b and 16 + b, b = 2 (4 (u %
//                        2) + p); the upper two bits of Q6_K codes, else the lower
//   ones     128 bytes   4 for each lane: pair p of unit u in bits 4u + p and 16 + 4u + p; the
//                        highest bit
//   scales   for each row: one-level: 4 16-bit floats, then 4 minimums; two-level: signed bytes for
//            each unit (and each 16 of it), minimums likewise, then two float16 of the super-block
#pragma once

#include <bit>

#include "tensor/block_unit.h"
#include "tensor/float_types.h"

namespace reft {

struct TileFormat {
  bool nibbles = false;
  bool bytes = false;
  bool twos = false;
  bool ones = false;
  bool table = false;  // codes are an index into 16 signed bytes
  bool two_level = false;
  bool min = false;
  bool bf16_scale = false;
  int groups = 1;  // scales in a unit
  int offset = 0;  // taken off unsigned codes
};

constexpr TileFormat tile_format(DType dtype) {
  switch (dtype) {
    case DType::kQ4_0:
      return {.nibbles = true, .offset = 8};
    case DType::kQ4_1:
      return {.nibbles = true, .min = true};
    case DType::kQ5_0:
      return {.nibbles = true, .ones = true, .offset = 16};
    case DType::kQ5_1:
      return {.nibbles = true, .ones = true, .min = true};
    case DType::kQ8_0:
      return {.bytes = true};
    case DType::kIQ4_NL:
      return {.nibbles = true, .table = true};
    case DType::kMXFP4:
      return {.nibbles = true, .table = true, .bf16_scale = true};
    case DType::kQ2_K:
      return {.twos = true, .two_level = true, .min = true, .groups = 2};
    case DType::kQ3_K:
      return {.twos = true, .ones = true, .two_level = true, .groups = 2, .offset = 4};
    case DType::kQ4_K:
      return {.nibbles = true, .two_level = true, .min = true};
    case DType::kQ5_K:
      return {.nibbles = true, .ones = true, .two_level = true, .min = true};
    case DType::kQ6_K:
      return {.nibbles = true, .twos = true, .two_level = true, .groups = 2, .offset = 32};
    default:
      return {};
  }
}

inline constexpr int kTileRows = 8;       // rows of a record
inline constexpr int kTileColumns = 128;  // columns of a record
inline constexpr int kTileUnits = kTileColumns / kBlockUnit;

// Byte offsets in a record.
struct TileLayout {
  int twos, ones, scales;
  int scale_words;  // 32-bit words of scales for each row
  int bytes;        // of a record
};

constexpr TileLayout tile_layout(DType dtype) {
  const TileFormat f = tile_format(dtype);
  TileLayout l{};
  l.twos = f.nibbles ? 512 : f.bytes ? 1024 : 0;
  l.ones = l.twos + (f.twos ? 256 : 0);
  l.scales = l.ones + (f.ones ? 128 : 0);
  l.scale_words = f.two_level ? f.groups * (f.min ? 2 : 1) + 1 : f.min ? 4 : 2;
  l.bytes = l.scales + kTileRows * 4 * l.scale_words;
  return l;
}

// What one lane holds of a record's codes. Members that a format has not are not used.
struct LaneCodes {
  uint32_t codes[8];  // nibbles: 4 words, bytes: 8
  uint32_t twos[2];
  uint32_t ones;
};
// What all lanes of a row hold of its scales.
struct RowScales {
  uint32_t words[5];
};

REFT_HOST_DEVICE inline float half_bits_to_float(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(static_cast<unsigned short>(bits)));
  return value;
#else
  return to_float(f16{static_cast<uint16_t>(bits)});
#endif
}
REFT_HOST_DEVICE inline float bf16_bits_to_float(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits << 16);
#else
  return to_float(bf16{static_cast<uint16_t>(bits)});
#endif
}

// Bytes of a and b picked by the four nibbles of `selector`, as PTX's prmt.
REFT_HOST_DEVICE inline uint32_t pick_bytes(uint32_t a, uint32_t b, uint32_t selector) {
#if defined(__CUDA_ARCH__)
  return __byte_perm(a, b, selector);
#else
  const uint64_t both = uint64_t{b} << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t index = selector >> (4 * i) & 7;
    result |= static_cast<uint32_t>(both >> (8 * index) & 0xff) << (8 * i);
  }
  return result;
#endif
}

constexpr uint32_t table_word(DType dtype, int first) {
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    const int8_t value = dtype == DType::kMXFP4 ? kMxfp4Values[first + i] : kIq4Values[first + i];
    word |= static_cast<uint32_t>(static_cast<uint8_t>(value)) << (8 * i);
  }
  return word;
}

// Four codes (the low 16 bits) to the signed bytes of the table.
template <DType kType>
REFT_HOST_DEVICE inline uint32_t look_up(uint32_t codes) {
  constexpr uint32_t kFirst = table_word(kType, 0), kSecond = table_word(kType, 4),
                     kThird = table_word(kType, 8), kFourth = table_word(kType, 12);
  const uint32_t low = pick_bytes(kFirst, kSecond, codes & 0x7777u);
  const uint32_t high = pick_bytes(kThird, kFourth, codes & 0x7777u);
  return pick_bytes(low, high, 0x3210u | (codes & 0x8888u) >> 1);
}

// Pair p of unit u as two 16-bit integers: the unsigned code, or (formats with bytes or a table) a
// signed byte in the lower half of each.
template <DType kType>
REFT_HOST_DEVICE inline uint32_t pair_codes(const LaneCodes& lane, int u, int p) {
  constexpr TileFormat kFormat = tile_format(kType);
  if constexpr (kFormat.bytes) {
    return lane.codes[2 * u + p / 2] >> (8 * (p % 2)) & 0x00ff00ffu;
  } else if constexpr (kFormat.table) {
    return look_up<kType>(lane.codes[u] >> (16 * (p / 2))) >> (8 * (p % 2)) & 0x00ff00ffu;
  } else {
    uint32_t code = 0;
    if constexpr (kFormat.nibbles) code = lane.codes[u] >> (4 * p) & 0x000f000fu;
    if constexpr (kFormat.twos) {
      const uint32_t two = lane.twos[u / 2] >> (2 * (4 * (u % 2) + p)) & 0x00030003u;
      code |= kFormat.nibbles ? two << 4 : two;
    }
    if constexpr (kFormat.ones) {
      const uint32_t one = lane.ones >> (4 * u + p) & 0x00010001u;
      code |= one << (kFormat.nibbles ? 4 : 2);
    }
    return code;
  }
}

// The scale of group g (0 … groups − 1) of unit u.
template <DType kType>
REFT_HOST_DEVICE inline float unit_scale(const RowScales& row, int u, int g) {
  constexpr TileFormat kFormat = tile_format(kType);
  if constexpr (kFormat.two_level) {
    const int at = u * kFormat.groups + g;
    const auto code = static_cast<int8_t>(row.words[at / 4] >> (8 * (at % 4)));
    return half_bits_to_float(row.words[tile_layout(kType).scale_words - 1] & 0xffffu) *
           static_cast<float>(code);
  } else {
    const uint32_t bits = row.words[u / 2] >> (16 * (u % 2)) & 0xffffu;
    return kFormat.bf16_scale ? bf16_bits_to_float(bits) : half_bits_to_float(bits);
  }
}
// What is added to the group's values.
template <DType kType>
REFT_HOST_DEVICE inline float unit_min(const RowScales& row, int u, int g) {
  constexpr TileFormat kFormat = tile_format(kType);
  static_assert(kFormat.min);
  if constexpr (kFormat.two_level) {
    const int at = u * kFormat.groups + g;
    const auto code = static_cast<int8_t>(row.words[kFormat.groups + at / 4] >> (8 * (at % 4)));
    return half_bits_to_float(row.words[tile_layout(kType).scale_words - 1] >> 16) *
           static_cast<float>(code);
  } else {
    return half_bits_to_float(row.words[2 + u / 2] >> (16 * (u % 2)) & 0xffffu);
  }
}

// Writes columns [128 slice, 128 (slice + 1)) of a row of k columns into its record; g is the row's
// place in its tile. row: its blocks; null: zeros.
template <DType kType>
REFT_HOST_DEVICE inline void pack_tile_row(const uint8_t* row, int64_t k, int64_t slice, int g,
                                           uint8_t* record) {
  constexpr TileFormat kFormat = tile_format(kType);
  constexpr TileLayout kLayout = tile_layout(kType);
  constexpr bool kByteOrder = kFormat.bytes || kFormat.table;
  constexpr int kElems = kType >= DType::kQ2_K && kType <= DType::kQ6_K ? 256 : 32;
  constexpr int kBytes[] = {18, 20, 22, 24, 34, 84, 110, 144, 176, 210, 18, 17};
  constexpr int kBlockBytes = kBytes[static_cast<int>(kType) - static_cast<int>(DType::kQ4_0)];
  LaneCodes lanes[4] = {};
  RowScales scales = {};
  for (int u = 0; u < kTileUnits; ++u) {
    const int64_t first = slice * kTileColumns + u * kBlockUnit;
    if (row == nullptr || first >= k) break;
    UnitValues unit{};
    read_unit<kType>(row + first / kElems * kBlockBytes,
                     static_cast<int>(first % kElems / kBlockUnit), unit);
    for (int at = 0; at < kBlockUnit; ++at) {
      const int j = at / 16, t = at / 4 % 4, i = at % 4, p = 2 * j + i / 2;
      const int byte = i == 1 ? 2 : i == 2 ? 1 : i;  // its place among four
      LaneCodes& lane = lanes[t];
      // Signed codes of the formats with an offset become unsigned again.
      const uint32_t code =
          kType == DType::kQ5_0 || kType == DType::kQ6_K
              ? static_cast<uint32_t>(static_cast<int8_t>(unit.codes[at]) + kFormat.offset)
              : unit.codes[at];
      if constexpr (kFormat.bytes) {
        lane.codes[2 * u + j] |= code << (8 * byte);
      } else if constexpr (kByteOrder) {
        lane.codes[u] |= code << (16 * j + 4 * byte);
      } else {
        const int high = 16 * (i % 2);
        if constexpr (kFormat.nibbles) lane.codes[u] |= (code & 15u) << (high + 4 * p);
        if constexpr (kFormat.twos) {
          const uint32_t two = kFormat.nibbles ? code >> 4 : code & 3u;
          lane.twos[u / 2] |= two << (high + 2 * (4 * (u % 2) + p));
        }
        if constexpr (kFormat.ones)
          lane.ones |= (code >> (kFormat.nibbles ? 4 : 2)) << (high + 4 * u + p);
      }
    }
    if constexpr (kFormat.two_level) {
      for (int s = 0; s < kFormat.groups; ++s) {
        const int at = u * kFormat.groups + s;
        scales.words[at / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(unit.scales[s]))
                                << (8 * (at % 4));
        if constexpr (kFormat.min) {
          scales.words[kFormat.groups + at / 4] |=
              static_cast<uint32_t>(static_cast<uint8_t>(unit.mins[s])) << (8 * (at % 4));
        }
      }
      // A slice is half a super-block.
      scales.words[kLayout.scale_words - 1] =
          unit.super_scale | (kFormat.min ? static_cast<uint32_t>(unit.super_min) << 16 : 0u);
    } else {
      scales.words[u / 2] |= static_cast<uint32_t>(unit.scale) << (16 * (u % 2));
      if constexpr (kFormat.min)
        scales.words[2 + u / 2] |= static_cast<uint32_t>(unit.min) << (16 * (u % 2));
    }
  }
  for (int t = 0; t < 4; ++t) {
    const int lane = 4 * g + t;
    auto* words = reinterpret_cast<uint32_t*>(record);
    if constexpr (kFormat.bytes) {
      for (int i = 0; i < 8; ++i) words[i / 4 * 128 + lane * 4 + i % 4] = lanes[t].codes[i];
    }
    if constexpr (kFormat.nibbles) {
      for (int i = 0; i < 4; ++i) words[lane * 4 + i] = lanes[t].codes[i];
    }
    if constexpr (kFormat.twos) {
      for (int i = 0; i < 2; ++i) words[kLayout.twos / 4 + lane * 2 + i] = lanes[t].twos[i];
    }
    if constexpr (kFormat.ones) words[kLayout.ones / 4 + lane] = lanes[t].ones;
  }
  for (int i = 0; i < kLayout.scale_words; ++i) {
    reinterpret_cast<uint32_t*>(record + kLayout.scales)[g * kLayout.scale_words + i] =
        scales.words[i];
  }
}

// Reads what lane 4g + t of a warp holds, word by word.
template <DType kType>
REFT_HOST_DEVICE inline void read_tile(const uint8_t* record, int g, int t, LaneCodes& codes,
                                       RowScales& scales) {
  constexpr TileFormat kFormat = tile_format(kType);
  constexpr TileLayout kLayout = tile_layout(kType);
  const auto* words = reinterpret_cast<const uint32_t*>(record);
  const int lane = 4 * g + t;
  if constexpr (kFormat.bytes) {
    for (int i = 0; i < 8; ++i) codes.codes[i] = words[i / 4 * 128 + lane * 4 + i % 4];
  }
  if constexpr (kFormat.nibbles) {
    for (int i = 0; i < 4; ++i) codes.codes[i] = words[lane * 4 + i];
  }
  if constexpr (kFormat.twos) {
    for (int i = 0; i < 2; ++i) codes.twos[i] = words[kLayout.twos / 4 + lane * 2 + i];
  }
  if constexpr (kFormat.ones) codes.ones = words[kLayout.ones / 4 + lane];
  for (int i = 0; i < kLayout.scale_words; ++i)
    scales.words[i] = words[kLayout.scales / 4 + g * kLayout.scale_words + i];
}

// The two values of pair p of unit u, in float.
template <DType kType>
REFT_HOST_DEVICE inline void pair_values(const LaneCodes& codes, const RowScales& scales, int u,
                                         int p, float& low, float& high) {
  constexpr TileFormat kFormat = tile_format(kType);
  const uint32_t pair = pair_codes<kType>(codes, u, p);
  int q[2] = {static_cast<int>(pair & 0xffffu), static_cast<int>(pair >> 16)};
  for (int& code : q) {
    code = kFormat.bytes || kFormat.table ? static_cast<int8_t>(code) : code - kFormat.offset;
  }
  const int group = kFormat.groups == 2 ? p / 2 : 0;
  const float scale = unit_scale<kType>(scales, u, group);
  low = scale * static_cast<float>(q[0]);
  high = scale * static_cast<float>(q[1]);
  if constexpr (kFormat.min) {
    const float min = unit_min<kType>(scales, u, group);
    low += min;
    high += min;
  }
}

// Calls f.template operator()<kType>() for a block format.
template <class F>
void dispatch_blocks(DType dtype, F f) {
  switch (dtype) {
    case DType::kQ4_0:
      return f.template operator()<DType::kQ4_0>();
    case DType::kQ4_1:
      return f.template operator()<DType::kQ4_1>();
    case DType::kQ5_0:
      return f.template operator()<DType::kQ5_0>();
    case DType::kQ5_1:
      return f.template operator()<DType::kQ5_1>();
    case DType::kQ8_0:
      return f.template operator()<DType::kQ8_0>();
    case DType::kQ2_K:
      return f.template operator()<DType::kQ2_K>();
    case DType::kQ3_K:
      return f.template operator()<DType::kQ3_K>();
    case DType::kQ4_K:
      return f.template operator()<DType::kQ4_K>();
    case DType::kQ5_K:
      return f.template operator()<DType::kQ5_K>();
    case DType::kQ6_K:
      return f.template operator()<DType::kQ6_K>();
    case DType::kIQ4_NL:
      return f.template operator()<DType::kIQ4_NL>();
    case DType::kMXFP4:
      return f.template operator()<DType::kMXFP4>();
    default:
      break;
  }
}

}  // namespace reft
