// The GPU's layout of block formats, emulated on the host: packed and read back by the functions
// that the kernels use, against dequantize_row.
#include "tensor/block_tiles.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "tensor/dequantize.h"

namespace reft {
namespace {

// Random codes with scales that are finite numbers.
std::vector<uint8_t> random_blocks(DType dtype, int64_t elems, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<uint8_t> bytes(static_cast<size_t>(row_bytes(dtype, elems)));
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  const DTypeInfo& info = dtype_info(dtype);
  const auto half = [&](size_t at) {
    const f16 value = to_f16(static_cast<float>(random() % 2000) * 0x1p-10f - 1.0f);
    std::memcpy(bytes.data() + at, &value, 2);
  };
  for (size_t at = 0; at < bytes.size(); at += static_cast<size_t>(info.block_bytes)) {
    switch (dtype) {
      case DType::kMXFP4:
        bytes[at] = static_cast<uint8_t>(100 + random() % 50);
        break;
      case DType::kQ2_K:
        half(at + 80);
        half(at + 82);
        break;
      case DType::kQ3_K:
        half(at + 108);
        break;
      case DType::kQ6_K:
        half(at + 208);
        break;
      default:
        half(at);
        half(at + 2);  // a minimum, or a pair of codes
    }
  }
  return bytes;
}

template <DType kType>
void check_format(int64_t k) {
  constexpr TileLayout kLayout = tile_layout(kType);
  SCOPED_TRACE(dtype_name(kType));
  ASSERT_EQ(kLayout.bytes % 16, 0);
  const int64_t slices = (k + kTileColumns - 1) / kTileColumns;
  const std::vector<uint8_t> blocks = random_blocks(kType, k, static_cast<uint32_t>(k));
  std::vector<float> want(static_cast<size_t>(k));
  dequantize_row(kType, blocks.data(), want.data(), k);
  for (int g = 0; g < kTileRows; g += 3) {
    std::vector<uint32_t> memory(static_cast<size_t>(slices * kLayout.bytes / 4), 0xdeadbeefu);
    auto* records = reinterpret_cast<uint8_t*>(memory.data());
    for (int64_t slice = 0; slice < slices; ++slice) {
      for (int row = 0; row < kTileRows; ++row) {
        pack_tile_row<kType>(row == g ? blocks.data() : nullptr, k, slice, row,
                             records + slice * kLayout.bytes);
      }
    }
    for (int row = 0; row < kTileRows; ++row) {
      for (int64_t at = 0; at < slices * kTileColumns; at += 2) {
        const int in = static_cast<int>(at % kTileColumns);
        const int u = in / 32, j = in % 32 / 16, t = in % 16 / 4, p = 2 * j + in % 4 / 2;
        LaneCodes codes{};
        RowScales scales{};
        read_tile<kType>(records + at / kTileColumns * kLayout.bytes, row, t, codes, scales);
        float low = 0, high = 0;
        pair_values<kType>(codes, scales, u, p, low, high);
        const bool inside = row == g && at < k;
        const auto i = static_cast<size_t>(at);
        const float want_low = inside ? want[i] : 0, want_high = inside ? want[i + 1] : 0;
        // The same products; a two-level scale times a minimum may round elsewhere.
        ASSERT_NEAR(low, want_low, 1e-6 * (1 + std::abs(want_low))) << "row " << row << " k " << at;
        ASSERT_NEAR(high, want_high, 1e-6 * (1 + std::abs(want_high)))
            << "row " << row << " k " << at + 1;
      }
    }
  }
}

TEST(BlockTiles, HoldWhatTheBlocksHold) {
  for (const DType dtype :
       {DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1, DType::kQ8_0, DType::kQ2_K,
        DType::kQ3_K, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K, DType::kIQ4_NL, DType::kMXFP4}) {
    dispatch_blocks(dtype, [&]<DType kType>() {
      check_format<kType>(512);
      if (dtype_info(kType).block_elems == 32) {
        check_format<kType>(32);
        check_format<kType>(224);
      } else {
        check_format<kType>(256);
      }
    });
  }
}

TEST(BlockTiles, TakeFewMoreBytesThanTheBlocks) {
  for (const DType dtype : {DType::kQ4_0, DType::kQ8_0, DType::kQ4_K, DType::kQ6_K}) {
    const double tile = tile_layout(dtype).bytes;
    const double blocks = static_cast<double>(row_bytes(dtype, 256)) * kTileRows / 2;
    EXPECT_GE(tile, blocks) << dtype_name(dtype);
    EXPECT_LE(tile, 1.06 * blocks) << dtype_name(dtype);
  }
}

}  // namespace
}  // namespace reft
