#include "ops/linear.h"

#include <algorithm>

#include "backends/cpu/gemm.h"
#include "backends/cpu/linear_pack.h"
#include "backends/cpu/simd.h"
#include "base/thread_pool.h"
#include "ops/lora.h"
#include "tensor/dequantize.h"

namespace reft {
namespace cpu {
namespace {

// Packed activations that a core reads again for every panel should stay in its second-level cache
// beside a panel.
constexpr int64_t kChunkBytes = 384 << 10;
// Bounds the scratch memory of long prompts.
constexpr int64_t kBlockBytes = 16 << 20;
// With more tiles than this, the first one alone hides the loading of a panel well enough.
constexpr int64_t kMostPrefetchTiles = 16;
// A multiplication that reads less weight than this (once a tile) is not worth handing to other
// threads; one that reads less than kEvenBytes a thread is cut evenly at once, because handing out
// chunks costs a trip between caches each.
constexpr int64_t kInlineBytes = 64 << 10;
constexpr int64_t kEvenBytes = 2 << 20;

// Rows [begin, end) cut into tiles of at most max_rows, as even as possible.
struct Tiling {
  int64_t rows;
  int64_t count;

  Tiling(int64_t rows_in, int max_rows)
      : rows(rows_in), count((rows_in + max_rows - 1) / max_rows) {}
  int64_t begin(int64_t tile) const { return rows / count * tile + std::min(tile, rows % count); }
};

// The part of a multiplication that one pack of activations serves.
struct Block {
  const CpuPackedWeight& weight;
  const float* x;
  int64_t x_stride;
  float* y;
  int64_t y_stride;
  const float* bias;  // or null
  std::byte* scratch;
  Tiling tiling;

  void pack(int64_t tile) const {
    const int64_t row = tiling.begin(tile);
    const int64_t k = weight.in_features();
    weight.kernels().pack_activations(
        {.x = x + row * x_stride,
         .x_stride = x_stride,
         .k = k,
         .rows = static_cast<int>(tiling.begin(tile + 1) - row),
         .out = scratch + row * activation_bytes(weight.layout(), k)});
  }

  void multiply(int64_t panel, int64_t first_tile, int64_t last_tile) const {
    const int64_t k = weight.in_features();
    const int64_t column = panel * kPanel;
    const int columns = static_cast<int>(std::min<int64_t>(kPanel, weight.out_features() - column));
    float padded_bias[kPanel] = {};
    if (bias != nullptr) std::copy_n(bias + column, columns, padded_bias);
    // Each tile fetches its share of the next panel.
    const int64_t tiles = last_tile - first_tile;
    const int64_t lines = tiles <= kMostPrefetchTiles && panel + 1 < weight.num_panels()
                              ? weight.panel_stride() / kLineBytes / tiles
                              : 0;
    const int64_t units = std::max<int64_t>(1, k / kUnit);
    for (int64_t tile = first_tile; tile < last_tile; ++tile) {
      const int64_t row = tiling.begin(tile);
      const int64_t rows = tiling.begin(tile + 1) - row;
      weight.kernels().tiles[rows - 1](
          {.panel = weight.panel(panel),
           .activations = scratch + row * activation_bytes(weight.layout(), k),
           .k = k,
           .y = y + row * y_stride + column,
           .y_stride = y_stride,
           .columns = columns,
           .bias = bias != nullptr ? padded_bias : nullptr,
           .table = weight.table(),
           .prefetch = weight.panel(panel) + weight.panel_stride() +
                       (tile - first_tile) * lines * kLineBytes,
           .prefetch_lines = static_cast<int>((lines + units - 1) / units)});
    }
  }
};

void run_block(const Block& block) {
  const int64_t row_bytes = activation_bytes(block.weight.layout(), block.weight.in_features());
  const int64_t tiles = block.tiling.count;
  const int64_t panels = block.weight.num_panels();
  if (tiles <= 2) {
    for (int64_t tile = 0; tile < tiles; ++tile) block.pack(tile);
  } else {
    compute_pool().parallel_for(tiles, 1, [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile) block.pack(tile);
    });
  }
  const int64_t rows_per_tile = (block.tiling.rows + tiles - 1) / tiles;
  const int64_t chunk_tiles =
      std::max<int64_t>(1, kChunkBytes / (rows_per_tile * std::max<int64_t>(row_bytes, 1)));
  const int64_t chunks = (tiles + chunk_tiles - 1) / chunk_tiles;
  const Tiling chunking(tiles, static_cast<int>(std::min<int64_t>(chunk_tiles, tiles)));
  const int64_t tasks = chunks * panels;
  const auto work = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t chunk = i / panels;
      block.multiply(i % panels, chunking.begin(chunk), chunking.begin(chunk + 1));
    }
  };
  const int64_t bytes = tasks * block.weight.panel_stride();
  if (bytes * tiles <= kInlineBytes) {
    work(0, tasks);
  } else if (bytes <= kEvenBytes * compute_pool().num_threads()) {
    compute_pool().run([&](int worker, int workers) {
      work(tasks * worker / workers, tasks * (worker + 1) / workers);
    });
  } else {
    compute_pool().parallel_for(tasks, 1, work);
  }
}

}  // namespace

void multiply_packed(Tensor& y, const Tensor& x, const CpuPackedWeight& weight,
                     const Tensor& bias) {
  const int64_t rows = x.size(0);
  if (rows == 0 || weight.out_features() == 0) return;
  const int64_t row_bytes = activation_bytes(weight.layout(), weight.in_features());
  const int max_rows = weight.kernels().max_rows;
  const int64_t block_rows = std::max<int64_t>(
      max_rows, kBlockBytes / std::max<int64_t>(row_bytes, 1) / max_rows * max_rows);
  const Tensor scratch = Tensor::empty({std::min(rows, block_rows) * row_bytes}, DType::kU8);
  for (int64_t row = 0; row < rows; row += block_rows) {
    run_block({.weight = weight,
               .x = x.data<float>() + row * x.stride(0),
               .x_stride = x.stride(0),
               .y = y.data<float>() + row * y.stride(0),
               .y_stride = y.stride(0),
               .bias = bias.defined() ? bias.data<float>() : nullptr,
               .scratch = scratch.raw(),
               .tiling = Tiling(std::min(block_rows, rows - row), max_rows)});
  }
}

}  // namespace cpu

namespace {

// Weights that gemm does not take as they are become floats so many at a time.
constexpr int64_t kExpandedFloats = 1 << 20;

// Calls f(rows [begin, end) of the weight as float32, begin, end) over all rows, in order.
void for_each_expanded(const Weight& weight,
                       FunctionRef<void(cpu::Matrix rows, int64_t begin, int64_t end)> f) {
  const int64_t n = weight.out_features, k = weight.in_features;
  const auto* packed = dynamic_cast<const cpu::CpuPackedWeight*>(weight.packed.get());
  const Tensor& data = weight.data;
  check(packed != nullptr || data.defined(), "linear: the weight has no data");
  if (data.defined() && data.dtype() == DType::kF32)
    return f(cpu::Matrix::of(data.data<float>(), data.stride(0)), 0, n);
  const int64_t step = std::max<int64_t>(1, std::min(n, kExpandedFloats / std::max<int64_t>(k, 1)));
  const Tensor rows = Tensor::empty({step, k}, DType::kF32);
  for (int64_t begin = 0; begin < n; begin += step) {
    const int64_t end = std::min(n, begin + step);
    // Threads take whole panels of a packed weight.
    compute_pool().parallel_for(end - begin, cpu::kPanel, [&](int64_t first, int64_t last) {
      float* to = rows.data<float>() + first * k;
      if (!data.defined()) return cpu::unpack_rows(*packed, begin + first, begin + last, to);
      for (int64_t i = first; i < last; ++i, to += k) {
        dequantize_row(data.dtype(),
                       data.raw() + (begin + i) * row_bytes(data.dtype(), data.stride(0)), to, k);
      }
    });
    f(cpu::Matrix::of(rows.data<float>(), k), begin, end);
  }
}

// As documented for packed weights: against bfloat16 activations may be rounded to it.
cpu::GemmPrecision precision_of(DType weight) {
  return weight == DType::kBF16 ? cpu::GemmPrecision::kBFloat16 : cpu::GemmPrecision::kFloat32;
}

// For weights that nobody prepared: those that are being trained.
void linear_unpacked(Tensor& y, const Tensor& x, const Weight& weight, const Tensor& bias) {
  const int64_t tokens = x.size(0), stride = y.stride(0);
  float* out = y.data<float>();
  if (bias.defined()) {
    for (int64_t t = 0; t < tokens; ++t)
      std::copy_n(bias.data<float>(), bias.numel(), out + t * stride);
  }
  for_each_expanded(weight, [&](const cpu::Matrix& rows, int64_t begin, int64_t end) {
    cpu::gemm(out + begin, stride, cpu::Matrix::of(x.data<float>(), x.stride(0)), rows.transposed(),
              tokens, end - begin, weight.in_features, bias.defined(), precision_of(weight.dtype));
  });
}

void linear_input_backward_cpu(const GradientSlot& dx, const Tensor& dy, const Weight& weight) {
  for_each_expanded(weight, [&](const cpu::Matrix& rows, int64_t begin, int64_t end) {
    cpu::gemm(dx.tensor.data<float>(), dx.tensor.stride(0),
              cpu::Matrix::of(dy.data<float>() + begin, dy.stride(0)), rows, dy.size(0),
              weight.in_features, end - begin, dx.accumulate || begin > 0,
              precision_of(weight.dtype));
  });
}

void linear_weight_backward_cpu(const GradientSlot& dw, const Tensor& dy, const Tensor& x,
                                DType weight) {
  cpu::gemm(dw.tensor.data<float>(), dw.tensor.stride(0),
            cpu::Matrix::of(dy.data<float>(), dy.stride(0)).transposed(),
            cpu::Matrix::of(x.data<float>(), x.stride(0)), dy.size(1), x.size(1), x.size(0),
            dw.accumulate, precision_of(weight));
}

// In the order of the rows; threads share out the columns.
void column_sums_cpu(const GradientSlot& sums, const Tensor& dy) {
  const auto& simd = simd_kernels();
  if (!sums.accumulate) sums.tensor.fill_zero();
  const int64_t grain = std::max<int64_t>(64, 16384 / std::max<int64_t>(dy.size(0), 1));
  compute_pool().parallel_for(dy.size(1), grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = 0; t < dy.size(0); ++t) {
      simd.add(sums.tensor.data<float>() + begin, dy.data<float>() + t * dy.stride(0) + begin,
               end - begin);
    }
  });
}

void squared_row_norms_cpu(Tensor& sums, const Weight& weight) {
  for_each_expanded(weight, [&](const cpu::Matrix& rows, int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const float* row = rows.data + (n - begin) * rows.row_stride;
      double sum = 0;
      for (int64_t i = 0; i < weight.in_features; ++i) sum += double{row[i]} * row[i];
      sums.data<float>()[n] = static_cast<float>(sum);
    }
  });
}

void linear_cpu(Tensor& y, const Tensor& x, const Weight& weight, const Tensor& bias) {
  if (x.dtype() != DType::kF32 || y.dtype() != DType::kF32) {
    fail("linear on the CPU takes float32 activations, got {}", x.str());
  }
  if (y.dims() != 2 || y.size(0) != x.size(0) || y.size(1) != weight.out_features) {
    fail("linear: the result is {}, not [{}, {}]", y.str(), x.size(0), weight.out_features);
  }
  if (const auto* packed = dynamic_cast<const cpu::CpuPackedWeight*>(weight.packed.get())) {
    cpu::multiply_packed(y, x, *packed, bias);
  } else {
    linear_unpacked(y, x, weight, bias);
  }
}

void prepare_weight_cpu(Weight& weight, DType compute, bool keep_data) {
  weight.packed = cpu::pack_weight(weight.data, compute, cpu_features());
  // Packed floats are exact, so that one copy serves both `linear` and `embedding`.
  const auto& packed = static_cast<const cpu::CpuPackedWeight&>(*weight.packed);
  if (!keep_data || !layout_info(packed.layout()).integer) weight.data = Tensor();
}

const RegisterKernel register_linear(linear_kernel, DeviceType::kCpu, &linear_cpu);
const RegisterKernel register_input_backward(linear_input_backward_kernel, DeviceType::kCpu,
                                             &linear_input_backward_cpu);
const RegisterKernel register_weight_backward(linear_weight_backward_kernel, DeviceType::kCpu,
                                              &linear_weight_backward_cpu);
const RegisterKernel register_column_sums(column_sums_kernel, DeviceType::kCpu, &column_sums_cpu);
const RegisterKernel register_squared_row_norms(squared_row_norms_kernel, DeviceType::kCpu,
                                                &squared_row_norms_cpu);
const RegisterKernel register_prepare(prepare_weight_kernel, DeviceType::kCpu, &prepare_weight_cpu);

}  // namespace
}  // namespace reft
