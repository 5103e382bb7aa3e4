// y = x Wᵀ + b with W in a block format, in the records of tensor/block_tiles.h. Few rows of x: the
// records are streamed once, their codes become whole numbers in 16 bits, exactly, and scales are
// applied to the sums of each 32 (16) products, in fp32. Many rows: W is expanded, some rows at a
// time.
#include <algorithm>

#include "backends/cuda/linear_quantized.h"
#include "backends/cuda/stream.h"
#include "tensor/block_tiles.h"

namespace reft {
namespace {

constexpr int kWarps = 8;
constexpr int kInFlight = 2;  // slices of a warp
constexpr int64_t kStreamTokens = 64;
constexpr int64_t kStreamPass = 16;

__device__ __forceinline__ uint32_t subtract_pairs(__half, uint32_t a, uint32_t b) {
  const __half2 difference =
      __hsub2(*reinterpret_cast<const __half2*>(&a), *reinterpret_cast<const __half2*>(&b));
  return *reinterpret_cast<const uint32_t*>(&difference);
}
__device__ __forceinline__ uint32_t subtract_pairs(__nv_bfloat16, uint32_t a, uint32_t b) {
  const __nv_bfloat162 difference = __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&a),
                                            *reinterpret_cast<const __nv_bfloat162*>(&b));
  return *reinterpret_cast<const uint32_t*>(&difference);
}

// A pair of codes as two numbers of T, exactly. A number whose last bit is worth 1 has room for the
// code: 1024 in float16, 128 in bfloat16, which with its 7 bits takes the sign of a byte apart.
template <DType kType, class T>
__device__ __forceinline__ uint32_t code_pair(const LaneCodes& lane, int u, int p) {
  constexpr TileFormat kFormat = tile_format(kType);
  constexpr bool kHalf = std::is_same_v<T, __half>;
  const uint32_t pair = pair_codes<kType>(lane, u, p);
  if constexpr (kFormat.bytes || kFormat.table) {
    if constexpr (kHalf)  // (1024 + 128 + code) - 1152
      return subtract_pairs(T{}, (pair ^ 0x00800080u) | 0x64006400u, 0x64806480u);
    // Below: 128 + the lower 7 bits, less 128, or 256 where the code is negative.
    return subtract_pairs(T{}, (pair & 0x007f007fu) | 0x43004300u,
                          (pair & 0x00800080u) | 0x43004300u);
  } else {
    constexpr uint32_t kOne = kHalf ? 0x6400u : 0x4300u;  // and the offset in its last bits
    constexpr uint32_t kBase = kOne | kOne << 16;
    constexpr uint32_t kOffset = (kOne + kFormat.offset) | (kOne + kFormat.offset) << 16;
    return subtract_pairs(T{}, pair | kBase, kOffset);
  }
}

// read_tile() in the widest loads.
template <DType kType>
__device__ __forceinline__ void load_tile(const uint8_t* record, int g, int lane, LaneCodes& codes,
                                          RowScales& scales) {
  constexpr TileFormat kFormat = tile_format(kType);
  constexpr TileLayout kLayout = tile_layout(kType);
  const auto take = [&](uint4 v, int at) {
    codes.codes[at] = v.x;
    codes.codes[at + 1] = v.y;
    codes.codes[at + 2] = v.z;
    codes.codes[at + 3] = v.w;
  };
  if constexpr (kFormat.nibbles || kFormat.bytes) take(load_stream(record + lane * 16), 0);
  if constexpr (kFormat.bytes) take(load_stream(record + 512 + lane * 16), 4);
  if constexpr (kFormat.twos) {
    const uint2 v = *reinterpret_cast<const uint2*>(record + kLayout.twos + lane * 8);
    codes.twos[0] = v.x;
    codes.twos[1] = v.y;
  }
  if constexpr (kFormat.ones)
    codes.ones = *reinterpret_cast<const uint32_t*>(record + kLayout.ones + lane * 4);
  const auto* row =
      reinterpret_cast<const uint32_t*>(record + kLayout.scales) + g * kLayout.scale_words;
#pragma unroll
  for (int i = 0; i < kLayout.scale_words; ++i) scales.words[i] = row[i];
}

// A block takes two tiles of 8 rows: neighbours or, with a gate, one of the gate and the one of
// `up` that belongs to it. Its warps deal out the slices of 128 columns.
template <DType kType, class T, int kTiles>
__global__ void __launch_bounds__(kWarps * 32)
    block_stream_kernel(StreamArgs a, const uint8_t* records) {
  constexpr TileFormat kFormat = tile_format(kType);
  constexpr int kBytes = tile_layout(kType).bytes;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int units = static_cast<int>(a.k / kBlockUnit);
  const int slices = (units + kTileUnits - 1) / kTileUnits;
  const int64_t row0 = blockIdx.x * int64_t{a.gated ? 8 : 16};
  const int64_t first = row0 / kTileRows, last = (a.n + kTileRows - 1) / kTileRows - 1;
  // A tile past the end is the last one again; its results are not stored.
  const int64_t second = a.gated ? a.n / kTileRows + first : min(first + 1, last);
  const uint8_t* tiles[2] = {records + first * slices * kBytes, records + second * slices * kBytes};
  const T* x_rows[kTiles];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    x_rows[i] =
        static_cast<const T*>(a.x) + min(int64_t{i * 8 + g}, a.tokens - 1) * a.x_stride + t * 4;
  }
  float d[kTiles][4] = {};
  LaneCodes codes[kInFlight][2];
  RowScales scales[kInFlight][2];
  const auto load = [&](int base) {
#pragma unroll
    for (int s = 0; s < kInFlight; ++s) {
      const int64_t at = int64_t{min(base + s * kWarps, slices - 1)} * kBytes;
#pragma unroll
      for (int r = 0; r < 2; ++r)
        load_tile<kType>(tiles[r] + at, g, lane, codes[s][r], scales[s][r]);
    }
  };
  constexpr uint32_t kOnes = std::is_same_v<T, __half> ? 0x3c003c00u : 0x3f803f80u;
  const uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
  allow_next();
  if (warp < slices) load(warp);
  await_inputs();
  for (int base = warp; base < slices; base += kWarps * kInFlight) {
    if (base != warp) load(base);
#pragma unroll
    for (int s = 0; s < kInFlight; ++s) {
      const int slice = base + s * kWarps;
      if (slice >= slices) break;
#pragma unroll
      for (int u = 0; u < kTileUnits; ++u) {
        const int unit = slice * kTileUnits + u;
        const bool inside = unit < units;
        uint2 b[kTiles][2];
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            b[i][j] = inside
                          ? *reinterpret_cast<const uint2*>(x_rows[i] + unit * kBlockUnit + 16 * j)
                          : make_uint2(0, 0);
          }
        }
        float sum[kTiles][4] = {}, x_sum[kTiles][4] = {};
        const auto apply = [&](int group) {
          const float low = unit_scale<kType>(scales[s][0], u, group);
          const float high = unit_scale<kType>(scales[s][1], u, group);
#pragma unroll
          for (int i = 0; i < kTiles; ++i) {
            d[i][0] += low * sum[i][0];
            d[i][1] += low * sum[i][1];
            d[i][2] += high * sum[i][2];
            d[i][3] += high * sum[i][3];
            if constexpr (tile_format(kType).min) {
              const float low_min = unit_min<kType>(scales[s][0], u, group);
              const float high_min = unit_min<kType>(scales[s][1], u, group);
              d[i][0] += low_min * x_sum[i][0];
              d[i][1] += low_min * x_sum[i][1];
              d[i][2] += high_min * x_sum[i][2];
              d[i][3] += high_min * x_sum[i][3];
            }
#pragma unroll
            for (int e = 0; e < 4; ++e) sum[i][e] = x_sum[i][e] = 0.0f;
          }
        };
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const uint32_t w[4] = {code_pair<kType, T>(codes[s][0], u, 2 * j),
                                 code_pair<kType, T>(codes[s][1], u, 2 * j),
                                 code_pair<kType, T>(codes[s][0], u, 2 * j + 1),
                                 code_pair<kType, T>(codes[s][1], u, 2 * j + 1)};
#pragma unroll
          for (int i = 0; i < kTiles; ++i) {
            mma_16816<T>(sum[i], w, b[i][j].x, b[i][j].y);
            // All rows: the sums of x itself, for the minimums.
            if constexpr (tile_format(kType).min)
              mma_16816<T>(x_sum[i], ones, b[i][j].x, b[i][j].y);
          }
          if constexpr (kFormat.groups == 2) apply(j);
        }
        if constexpr (kFormat.groups == 1) apply(0);
      }
    }
  }
  finish_stream<T, kTiles, kWarps>(a, d, row0, [](int) { return 1.0f; });
}

// Rows of a device tensor of blocks to records: a thread for each row of a record.
template <DType kType>
__global__ void pack_kernel(uint8_t* records, const uint8_t* data, int64_t row_stride, int64_t n,
                            int64_t k, int64_t items) {
  const int64_t item = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (item >= items) return;
  const int64_t slices = (k + kTileColumns - 1) / kTileColumns;
  const int64_t row = item / slices, slice = item % slices;
  pack_tile_row<kType>(row < n ? data + row * row_stride : nullptr, k, slice,
                       static_cast<int>(row % kTileRows),
                       records + (row / kTileRows * slices + slice) * tile_layout(kType).bytes);
}

// The values of lane 4g + t of a record to a row of 16-bit numbers. `to`: column 0 of the slice.
template <DType kType, class T>
__device__ __forceinline__ void write_lane(T* to, const uint8_t* record, int g, int t, int units,
                                           float factor) {
  LaneCodes codes;
  RowScales scales;
  load_tile<kType>(record, g, 4 * g + t, codes, scales);
#pragma unroll
  for (int u = 0; u < kTileUnits; ++u) {
    if (u >= units) break;
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      float low, high;
      pair_values<kType>(codes, scales, u, p, low, high);
      // Rounded before the factor, as a table of T would be.
      low = as_float(as<T>(low));
      high = as_float(as<T>(high));
      *reinterpret_cast<uint32_t*>(to + u * kBlockUnit + p / 2 * 16 + 4 * t + p % 2 * 2) =
          pack2<T>(low * factor, high * factor);
    }
  }
}

// Rows [begin, begin + rows) of W, begin a multiple of 8: a warp for each record.
template <DType kType, class T>
__global__ void expand_kernel(T* out, const uint8_t* records, int64_t begin, int64_t rows,
                              int64_t k) {
  const int64_t item = (blockIdx.x * int64_t{blockDim.x} + threadIdx.x) / 32;
  const int lane = threadIdx.x % 32;
  const int64_t slices = (k + kTileColumns - 1) / kTileColumns;
  const int64_t row = item / slices * kTileRows + lane / 4, slice = item % slices;
  if (row >= rows) return;
  const int64_t record = (begin / kTileRows + item / slices) * slices + slice;
  const int units = static_cast<int>(min(int64_t{kTileUnits}, k / kBlockUnit - slice * kTileUnits));
  write_lane<kType, T>(out + row * k + slice * kTileColumns,
                       records + record * tile_layout(kType).bytes, lane / 4, lane % 4, units,
                       1.0f);
}

// A block for each id; 4 threads for each slice.
template <DType kType, class T>
__global__ void embedding_blocks_kernel(T* out, const int32_t* ids, const uint8_t* records,
                                        int64_t vocab, int64_t k, float factor) {
  const int64_t id = min(max(int64_t{ids[blockIdx.x]}, int64_t{0}), vocab - 1);
  const int64_t slices = (k + kTileColumns - 1) / kTileColumns;
  for (int64_t i = threadIdx.x; i < slices * 4; i += blockDim.x) {
    const int64_t slice = i / 4;
    const int units =
        static_cast<int>(min(int64_t{kTileUnits}, k / kBlockUnit - slice * kTileUnits));
    write_lane<kType, T>(out + blockIdx.x * k + slice * kTileColumns,
                         records + (id / kTileRows * slices + slice) * tile_layout(kType).bytes,
                         static_cast<int>(id % kTileRows), static_cast<int>(i % 4), units, factor);
  }
}

const BlockTiles& tiles_of(const Weight& weight) {
  return static_cast<const BlockTiles&>(*weight.packed);
}

bool can_stream(const Tensor& x) {
  return x.stride(0) % 4 == 0 && reinterpret_cast<uintptr_t>(x.raw()) % 8 == 0;
}

void launch_stream(Tensor& y, const Tensor& x, const Weight& weight, const Tensor& bias, bool gated,
                   Activation activation) {
  const BlockTiles& tiles = tiles_of(weight);
  const StreamArgs args = stream_args(y, x, bias, gated, activation);
  dispatch_half(x.dtype(), "linear (blocks)", [&](auto type) {
    using T = decltype(type);
    dispatch_blocks(tiles.dtype(), [&]<DType kType>() {
      const auto launch = [&](auto kernel) {
        launch_dependent("linear (blocks)", kernel, x.device().index,
                         dim3(blocks_for(args.n, gated ? 8 : 16)), kWarps * 32, 0, args,
                         ptr<uint8_t>(tiles.records()));
      };
      args.tokens <= 8 ? launch(&block_stream_kernel<kType, T, 1>)
                       : launch(&block_stream_kernel<kType, T, 2>);
    });
  });
}

}  // namespace

void pack_blocks_cuda(Weight& weight) {
  const DType dtype = weight.dtype;
  const int64_t n = weight.out_features, k = weight.in_features;
  const int64_t rows = (n + kTileRows - 1) / kTileRows * kTileRows;
  const int64_t slices = (k + kTileColumns - 1) / kTileColumns, items = rows * slices;
  Tensor records;
  dispatch_blocks(dtype, [&]<DType kType>() {
    records = Tensor::empty({items / kTileRows * tile_layout(kType).bytes}, DType::kU8,
                            weight.data.device());
    if (items == 0) return;
    pack_kernel<kType><<<blocks_for(items, 128), 128, 0, stream_of(records)>>>(
        ptr<uint8_t>(records), ptr<uint8_t>(weight.data), row_bytes(dtype, k), n, k, items);
    check_launch("prepare_weight (blocks)");
  });
  check(records.defined(), "prepare_weight: {} on CUDA", dtype_name(dtype));
  weight.packed = std::make_shared<BlockTiles>(std::move(records), dtype);
  weight.data = {};
}

bool blocks_gated_linear_cuda(Tensor& y, const Tensor& x, const Weight& weight, const Tensor& bias,
                              Activation activation) {
  if (x.size(0) > kStreamPass || y.size(1) % kTileRows != 0 || y.dtype() != x.dtype() ||
      !can_stream(x)) {
    return false;
  }
  launch_stream(y, x, weight, bias, true, activation);
  return true;
}

void blocks_linear_cuda(Tensor& y, const Tensor& x, const Weight& weight, const Tensor& bias) {
  const int64_t tokens = x.size(0);
  if (tokens <= kStreamTokens && can_stream(x)) {
    for (int64_t begin = 0; begin < tokens; begin += kStreamPass) {
      const int64_t end = std::min(tokens, begin + kStreamPass);
      Tensor rows = y.rows(begin, end);
      launch_stream(rows, x.rows(begin, end), weight, bias, false, Activation::kSilu);
    }
    return;
  }
  const BlockTiles& tiles = tiles_of(weight);
  const int64_t slices = (weight.in_features + kTileColumns - 1) / kTileColumns;
  expanded_linear_cuda(y, x, weight, bias, [&](Tensor& rows, int64_t begin) {
    dispatch_half(rows.dtype(), "linear (blocks)", [&](auto type) {
      using T = decltype(type);
      dispatch_blocks(tiles.dtype(), [&]<DType kType>() {
        const int64_t items = (rows.size(0) + kTileRows - 1) / kTileRows * slices;
        expand_kernel<kType, T><<<blocks_for(items, 4), 128, 0, stream_of(rows)>>>(
            ptr<T>(rows), ptr<uint8_t>(tiles.records()), begin, rows.size(0), weight.in_features);
        check_launch("linear (blocks, expand)");
      });
    });
  });
}

void blocks_embedding_cuda(Tensor& out, const Tensor& ids, const Weight& table, float scale) {
  const BlockTiles& tiles = tiles_of(table);
  dispatch_half(out.dtype(), "embedding", [&](auto type) {
    using T = decltype(type);
    dispatch_blocks(tiles.dtype(), [&]<DType kType>() {
      embedding_blocks_kernel<kType, T>
          <<<static_cast<unsigned>(ids.size(0)), 128, 0, stream_of(out)>>>(
              ptr<T>(out), ptr<int32_t>(ids), ptr<uint8_t>(tiles.records()), table.out_features,
              table.in_features, scale);
      check_launch("embedding (blocks)");
    });
  });
}

}  // namespace reft
