#include "backends/cpu/linear_pack.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/thread_pool.h"
#include "tensor/block_unit.h"
#include "tensor/dequantize.h"
#include "tensor/float_types.h"

namespace reft::cpu {
namespace {

// Writes one row's unit into column `n` of a panel.
template <Layout kLayout>
void write_unit(const UnitValues& in, std::byte* super, std::byte* unit, int n) {
  constexpr LayoutInfo kInfo = layout_info(kLayout);
  std::byte* mins = unit + scale_bytes(kInfo);
  if constexpr (kInfo.scale == Scale::kTwoLevel) {
    for (int g = 0; g < groups_per_unit(kInfo); ++g) {
      std::memcpy(unit + g * kPanel + n, &in.scales[g], 1);
      if constexpr (kInfo.min) std::memcpy(mins + g * kPanel + n, &in.mins[g], 1);
    }
    std::memcpy(super + 2 * n, &in.super_scale, 2);
    if constexpr (kInfo.min) std::memcpy(super + 2 * kPanel + 2 * n, &in.super_min, 2);
  } else {
    std::memcpy(unit + 2 * n, &in.scale, 2);
    if constexpr (kInfo.min) std::memcpy(mins + 2 * n, &in.min, 2);
  }
  std::byte* codes = unit + unit_bytes(kInfo) - code_bytes(kInfo) + 4 * n;
  constexpr int kStep = is_nibble(kInfo.code) ? 2 : 1;
  for (int j = 0; j < kUnit / 4; j += kStep, codes += 4 * kPanel) {
    uint32_t word;
    std::memcpy(&word, in.codes + 4 * j, 4);
    if constexpr (kStep == 2) {
      uint32_t next;
      std::memcpy(&next, in.codes + 4 * j + 4, 4);
      word |= next << 4;
    }
    word = (word & 0xff0000ffu) | (word & 0xff00u) << 8 | (word >> 8 & 0xff00u);
    std::memcpy(codes, &word, 4);
  }
}

template <DType kType, Layout kLayout>
void pack_blocks(const Tensor& data, const CpuPackedWeight& out) {
  constexpr LayoutInfo kInfo = layout_info(kLayout);
  const DTypeInfo& type = dtype_info(kType);
  const int units_per_block = type.block_elems / kUnit;
  const int64_t row_stride = row_bytes(kType, data.stride(0));
  const int64_t units = out.in_features() / kUnit;
  compute_pool().parallel_for(out.num_panels(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t first = p * kPanel;
      const int rows = static_cast<int>(std::min<int64_t>(kPanel, out.out_features() - first));
      if (rows < kPanel) std::memset(out.panel(p), 0, static_cast<size_t>(out.panel_stride()));
      for (int n = 0; n < rows; ++n) {
        const auto* block = reinterpret_cast<const uint8_t*>(data.raw() + (first + n) * row_stride);
        std::byte* at = out.panel(p);
        std::byte* super = at;
        for (int64_t unit = 0; unit < units; ++unit) {
          if (unit % kSuperUnits == 0) {
            super = at;
            at += super_bytes(kInfo);
          }
          UnitValues values;
          read_unit<kType>(block, static_cast<int>(unit % units_per_block), values);
          write_unit<kLayout>(values, super, at, n);
          at += unit_bytes(kInfo);
          if (unit % units_per_block == units_per_block - 1) block += type.block_bytes;
        }
      }
    }
  });
}

// Columns [begin, end) of `rows` rows, `stride` bytes apart, to panel[i][row]: T is one column of
// the layout, a value or a pair.
template <class T>
void interleave(const std::byte* from, int64_t stride, int rows, int64_t begin, int64_t end,
                T* panel) {
  for (int64_t i = begin; i < end; ++i) {
    for (int n = 0; n < rows; ++n)
      std::memcpy(panel + i * kPanel + n, from + n * stride + i * int64_t{sizeof(T)}, sizeof(T));
  }
}

// GCC knows no vectors whose size depends on a template's argument.
template <class T>
struct FourOf;
template <>
struct FourOf<uint16_t> {
  using Vec = uint16_t __attribute__((vector_size(8)));
};
template <>
struct FourOf<uint32_t> {
  using Vec = uint32_t __attribute__((vector_size(16)));
};

// The same for a full panel, in blocks of 4 x 4.
template <class T>
void interleave_panel(const std::byte* from, int64_t stride, int64_t columns, T* panel) {
  using Four = typename FourOf<T>::Vec;
  const int64_t blocks = columns / 4;
  for (int64_t b = 0; b < blocks; ++b) {
    for (int n = 0; n < kPanel; n += 4) {
      const std::byte* at = from + n * stride + b * int64_t{sizeof(Four)};
      Four x[4];
      for (int r = 0; r < 4; ++r) std::memcpy(&x[r], at + r * stride, sizeof(Four));
      const Four a = __builtin_shufflevector(x[0], x[1], 0, 4, 1, 5);
      const Four c = __builtin_shufflevector(x[2], x[3], 0, 4, 1, 5);
      const Four d = __builtin_shufflevector(x[0], x[1], 2, 6, 3, 7);
      const Four e = __builtin_shufflevector(x[2], x[3], 2, 6, 3, 7);
      const Four out[4] = {
          __builtin_shufflevector(a, c, 0, 1, 4, 5), __builtin_shufflevector(a, c, 2, 3, 6, 7),
          __builtin_shufflevector(d, e, 0, 1, 4, 5), __builtin_shufflevector(d, e, 2, 3, 6, 7)};
      for (int i = 0; i < 4; ++i)
        std::memcpy(panel + (4 * b + i) * kPanel + n, &out[i], sizeof(Four));
    }
  }
  interleave(from, stride, kPanel, 4 * blocks, columns, panel);
}

template <class T>
void interleave_rows(const std::byte* from, int64_t stride, int rows, int64_t columns,
                     std::byte* panel) {
  T* to = reinterpret_cast<T*>(panel);
  if (rows == kPanel) {
    interleave_panel(from, stride, columns, to);
  } else {
    interleave(from, stride, rows, 0, columns, to);
  }
}

void pack_floats(const Tensor& data, const CpuPackedWeight& out) {
  const int64_t k = out.in_features();
  const int64_t row_stride = row_bytes(data.dtype(), data.stride(0));
  const bool pairs = out.layout() == Layout::kBF16 || out.layout() == Layout::kBF16Dot;
  compute_pool().parallel_for(out.num_panels(), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> expanded;
    if (out.layout() == Layout::kF32 && data.dtype() != DType::kF32)
      expanded.resize(static_cast<size_t>(k * kPanel));
    for (int64_t p = begin; p < end; ++p) {
      const int64_t first = p * kPanel;
      const int rows = static_cast<int>(std::min<int64_t>(kPanel, out.out_features() - first));
      std::byte* panel = out.panel(p);
      if (rows < kPanel || k % 2 != 0)
        std::memset(panel, 0, static_cast<size_t>(out.panel_stride()));
      const std::byte* from = data.raw() + first * row_stride;
      if (out.layout() == Layout::kF16) {
        interleave_rows<uint16_t>(from, row_stride, rows, k, panel);
      } else if (pairs) {
        interleave_rows<uint32_t>(from, row_stride, rows, k / 2, panel);
        if (k % 2 == 0) continue;
        for (int n = 0; n < rows; ++n)
          std::memcpy(panel + (k / 2 * kPanel + n) * 4, from + n * row_stride + (k - 1) * 2, 2);
      } else if (expanded.empty()) {
        interleave_rows<uint32_t>(from, row_stride, rows, k, panel);
      } else {
        for (int n = 0; n < rows; ++n)
          dequantize_row(data.dtype(), from + n * row_stride, expanded.data() + n * k, k);
        interleave_rows<uint32_t>(reinterpret_cast<const std::byte*>(expanded.data()), k * 4, rows,
                                  k, panel);
      }
    }
  });
}

struct BlockPacking {
  Layout layout;
  const int8_t* table;
  void (*pack)(const Tensor& data, const CpuPackedWeight& out);
};

BlockPacking block_packing(DType dtype) {
  switch (dtype) {
    case DType::kQ4_0:
      return {Layout::kQ4Sym, nullptr, &pack_blocks<DType::kQ4_0, Layout::kQ4Sym>};
    case DType::kQ4_1:
      return {Layout::kQ4Min, nullptr, &pack_blocks<DType::kQ4_1, Layout::kQ4Min>};
    case DType::kQ5_0:
      return {Layout::kByteSym, nullptr, &pack_blocks<DType::kQ5_0, Layout::kByteSym>};
    case DType::kQ5_1:
      return {Layout::kByteMin, nullptr, &pack_blocks<DType::kQ5_1, Layout::kByteMin>};
    case DType::kQ8_0:
      return {Layout::kByteSym, nullptr, &pack_blocks<DType::kQ8_0, Layout::kByteSym>};
    case DType::kQ2_K:
      return {Layout::kQ2K, nullptr, &pack_blocks<DType::kQ2_K, Layout::kQ2K>};
    case DType::kQ3_K:
      return {Layout::kQ3K, nullptr, &pack_blocks<DType::kQ3_K, Layout::kQ3K>};
    case DType::kQ4_K:
      return {Layout::kQ4K, nullptr, &pack_blocks<DType::kQ4_K, Layout::kQ4K>};
    case DType::kQ5_K:
      return {Layout::kQ5K, nullptr, &pack_blocks<DType::kQ5_K, Layout::kQ5K>};
    case DType::kQ6_K:
      return {Layout::kQ6K, nullptr, &pack_blocks<DType::kQ6_K, Layout::kQ6K>};
    case DType::kIQ4_NL:
      return {Layout::kLookup, kIq4Values, &pack_blocks<DType::kIQ4_NL, Layout::kLookup>};
    case DType::kMXFP4:
      return {Layout::kLookupE8, kMxfp4Values, &pack_blocks<DType::kMXFP4, Layout::kLookupE8>};
    default:
      fail("linear: {} weights have no layout on the CPU", dtype_name(dtype));
  }
}

Layout float_layout(DType dtype, DType compute, const CpuFeatures& features) {
  if (dtype == DType::kF16) return Layout::kF16;
  if (dtype != DType::kBF16) return Layout::kF32;
  const bool dot = compute != DType::kF32 && find_kernels(Layout::kBF16Dot, features) != nullptr;
  return dot ? Layout::kBF16Dot : Layout::kBF16;
}

float as_float(float value) { return value; }
float as_float(f16 value) { return to_float(value); }
float as_float(bf16 value) { return to_float(value); }
float half_at(const std::byte* at) {
  f16 value;
  std::memcpy(&value, at, 2);
  return to_float(value);
}

// Codes of one column of a unit, as write_unit wrote them.
void read_codes(const LayoutInfo& info, const int8_t* table, const std::byte* codes, int n,
                int (&out)[kUnit]) {
  const int step = is_nibble(info.code) ? 2 : 1;
  codes += 4 * n;
  for (int j = 0; j < kUnit / 4; j += step, codes += 4 * kPanel) {
    uint32_t word;
    std::memcpy(&word, codes, 4);
    word = (word & 0xff0000ffu) | (word & 0xff00u) << 8 | (word >> 8 & 0xff00u);
    for (int i = 0; i < 4; ++i) {
      const auto byte = static_cast<uint8_t>(word >> (8 * i));
      if (step == 1) {
        out[4 * j + i] = info.code == Code::kByte ? static_cast<int8_t>(byte) : byte;
        continue;
      }
      const int low = byte & 15, high = byte >> 4;
      out[4 * j + i] = info.code == Code::kLookup ? table[low] : low - info.offset;
      out[4 * j + 4 + i] = info.code == Code::kLookup ? table[high] : high - info.offset;
    }
  }
}

// Column `n` of a panel of an integer layout.
void unpack_blocks(const CpuPackedWeight& weight, const std::byte* panel, int n, float* to) {
  const LayoutInfo info = layout_info(weight.layout());
  const bool two_level = info.scale == Scale::kTwoLevel;
  const int64_t units = weight.in_features() / kUnit;
  const std::byte *at = panel, *super = panel;
  for (int64_t unit = 0; unit < units; ++unit, at += unit_bytes(info), to += kUnit) {
    if (unit % kSuperUnits == 0) {
      super = at;
      at += super_bytes(info);
    }
    const std::byte* mins = at + scale_bytes(info);
    int codes[kUnit];
    read_codes(info, weight.table(), at + unit_bytes(info) - code_bytes(info), n, codes);
    for (int g = 0; g < groups_per_unit(info); ++g) {
      const int place = g * kPanel + n;
      float scale = 0, min = 0;
      if (two_level) {
        scale = half_at(super + 2 * n) * static_cast<float>(static_cast<int8_t>(at[place]));
        if (info.min)
          min = half_at(super + 2 * kPanel + 2 * n) *
                static_cast<float>(static_cast<int8_t>(mins[place]));
      } else if (info.scale == Scale::kBF16) {
        bf16 value;
        std::memcpy(&value, at + 2 * n, 2);
        scale = to_float(value);
      } else {
        scale = half_at(at + 2 * n);
        if (info.min) min = half_at(mins + 2 * n);
      }
      for (int i = g * info.group; i < (g + 1) * info.group; ++i)
        to[i] = scale * static_cast<float>(codes[i]) + min;
    }
  }
}

}  // namespace

CpuPackedWeight::CpuPackedWeight(Layout layout, const TileKernels& kernels, const int8_t* table,
                                 int64_t n, int64_t k)
    : layout_(layout),
      kernels_(&kernels),
      table_(table),
      n_(n),
      k_(k),
      stride_((panel_bytes(layout, k) + 63) / 64 * 64),
      bytes_(Tensor::empty({num_panels() * stride_}, DType::kU8)) {}

std::shared_ptr<const CpuPackedWeight> pack_weight(const Tensor& data, DType compute,
                                                   const CpuFeatures& features) {
  check(is_float(data.dtype()) || is_block_format(data.dtype()),
        "linear: {} weights are not supported on the CPU", dtype_name(data.dtype()));
  BlockPacking packing{float_layout(data.dtype(), compute, features), nullptr, &pack_floats};
  if (is_block_format(data.dtype()) && compute != DType::kF32)
    packing = block_packing(data.dtype());
  auto packed =
      std::make_shared<CpuPackedWeight>(packing.layout, *find_kernels(packing.layout, features),
                                        packing.table, data.size(0), data.size(1));
  packing.pack(data, *packed);
  return packed;
}

void unpack_rows(const CpuPackedWeight& weight, int64_t begin, int64_t end, float* to) {
  const int64_t k = weight.in_features();
  for (int64_t row = begin; row < end;) {
    const std::byte* panel = weight.panel(row / kPanel);
    const int64_t column = row % kPanel, count = std::min(end - row, kPanel - column);
    float* out = to + (row - begin) * k;
    row += count;
    if (layout_info(weight.layout()).integer) {
      for (int64_t n = 0; n < count; ++n)
        unpack_blocks(weight, panel, static_cast<int>(column + n), out + n * k);
      continue;
    }
    const auto each = [&](const auto* values, int64_t per_column) {
      for (int64_t i = 0; i < k; ++i) {
        const auto* at = values + (i / per_column * kPanel + column) * per_column + i % per_column;
        for (int64_t n = 0; n < count; ++n) out[n * k + i] = as_float(at[n * per_column]);
      }
    };
    switch (weight.layout()) {
      case Layout::kF32:
        each(reinterpret_cast<const float*>(panel), 1);
        break;
      case Layout::kF16:
        each(reinterpret_cast<const f16*>(panel), 1);
        break;
      default:
        each(reinterpret_cast<const bf16*>(panel), 2);
    }
  }
}

const TileKernels* find_kernels(Layout layout, const CpuFeatures& features) {
  const auto has = [&](const KernelTable& table) {
    return table.layouts[static_cast<int>(layout)].max_rows > 0;
  };
  const auto of = [&](const KernelTable& table) {
    return &table.layouts[static_cast<int>(layout)];
  };
#if defined(__x86_64__)
  if (features.avx512_bf16 && has(kAvx512Bf16Kernels)) return of(kAvx512Bf16Kernels);
  if (features.avx512_vnni && has(kAvx512VnniKernels)) return of(kAvx512VnniKernels);
  if (features.avx512 && has(kAvx512Kernels)) return of(kAvx512Kernels);
  if (features.avx_vnni && has(kAvxVnniKernels)) return of(kAvxVnniKernels);
  if (features.avx2 && has(kAvx2Kernels)) return of(kAvx2Kernels);
#elif defined(__aarch64__)
  if (features.neon_dot && has(kNeonDotKernels)) return of(kNeonDotKernels);
  if (features.neon && has(kNeonKernels)) return of(kNeonKernels);
#endif
  return has(kScalarKernels) ? of(kScalarKernels) : nullptr;
}

}  // namespace reft::cpu
