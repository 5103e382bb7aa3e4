// The ops of ops/encoder.h, built from the vectorised loops that the decoders' ops use.
#include "ops/encoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backends/cpu/simd.h"
#include "base/thread_pool.h"

namespace reft {
namespace {

// Elements that take a thread about as long as handing them out.
constexpr int64_t kGrain = 16384;

float mean_of(const float* x, int64_t n) {
  float sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int64_t j = 0; j < 8; ++j) sums[j] += x[i + j];
  }
  for (int64_t j = 0; i < n; ++i, ++j) sums[j] += x[i];
  double sum = 0;
  for (const float s : sums) sum += s;
  return static_cast<float>(sum / static_cast<double>(n));
}

void layer_norm_cpu(Tensor& y, const Tensor& x, const Tensor& weight, const Tensor& bias,
                    float eps) {
  const auto& simd = simd_kernels();
  const int64_t n = x.size(1);
  const float *in = x.data<float>(), *w = weight.data<float>(), *b = bias.data<float>();
  float* out = y.data<float>();
  compute_pool().parallel_for(x.size(0), kGrain / n + 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* row = in + t * x.stride(0);
      float* to = out + t * n;
      const float mean = mean_of(row, n);
      for (int64_t i = 0; i < n; ++i) to[i] = row[i] - mean;
      // The mean square of what is left is the variance.
      simd.rms_norm(to, to, w, n, eps, 0.0f);
      simd.add(to, b, n);
    }
  });
}

void activate_cpu(Tensor& x, Activation activation) {
  constexpr int64_t kPiece = 2048;
  static const std::vector<float> ones(kPiece, 1.0f);
  const auto& simd = simd_kernels();
  float* values = x.data<float>();
  compute_pool().parallel_for(x.numel(), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kPiece) {
      simd.gated(values + i, values + i, ones.data(), std::min(kPiece, end - i), activation);
    }
  });
}

void unfold_cpu(Tensor& y, const Tensor& x, const Unfold& options) {
  const int64_t channels = x.size(1), length = x.size(0) / options.sequences;
  const int64_t rows = y.size(0) / options.sequences;
  const auto bytes = static_cast<size_t>(channels) * sizeof(float);
  compute_pool().parallel_for(y.size(0), kGrain / y.size(1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* sequence = x.data<float>() + row / rows * length * channels;
      float* to = y.data<float>() + row * y.size(1);
      for (int64_t k = 0; k < options.kernel; ++k, to += channels) {
        const int64_t from = row % rows * options.stride - options.padding + k;
        if (from >= 0 && from < length) {
          std::memcpy(to, sequence + from * channels, bytes);
        } else {
          std::fill(to, to + channels, 0.0f);
        }
      }
    }
  });
}

std::byte* element(const Tensor& cache, int64_t at) {
  return cache.raw() + at * (cache.dtype() == DType::kF32 ? 4 : 2);
}

void write_kv_cpu(const Tensor& kv, const Tensor& slots, PagedKv& cache) {
  const auto& simd = simd_kernels();
  const int64_t heads = cache.k.size(1), page = cache.k.size(2), dims = cache.k.size(3);
  const int32_t* slot = slots.data<int32_t>();
  for (int64_t t = 0; t < kv.size(0); ++t) {
    check(slot[t] >= 0 && slot[t] < cache.k.size(0) * page,
          "write_kv: slot {} is outside a cache of {}", slot[t], cache.k.size(0) * page);
  }
  compute_pool().parallel_for(kv.size(0), kGrain / kv.size(1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* row = kv.data<float>() + t * kv.size(1);
      const int64_t block = slot[t] / page, offset = slot[t] % page;
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t at = ((block * heads + h) * page + offset) * dims;
        simd.convert(element(cache.k, at), cache.k.dtype(), row + h * dims, dims);
        simd.convert(element(cache.v, at), cache.v.dtype(), row + (heads + h) * dims, dims);
      }
    }
  });
}

void check_blocks(const char* op, const int32_t* blocks, int64_t keys, const PagedKv& kv) {
  for (int64_t i = 0; i * kv.k.size(2) < keys; ++i) {
    check(blocks[i] >= 0 && blocks[i] < kv.k.size(0), "{}: block {} is {}, outside a cache of {}",
          op, i, blocks[i], kv.k.size(0));
  }
}

// The tiles of paged attention: the queries of a tile stand as heads of one token, which see the
// same keys.
void full_attention_cpu(Tensor& out, const Tensor& q, const PagedKv& kv,
                        const AttentionBatch& batch, float scale) {
  struct Tile {
    int64_t sequence, head, begin, end;  // rows of q
  };
  const auto& simd = simd_kernels();
  const int64_t heads = q.size(1), dims = q.size(2), kv_heads = kv.k.size(1);
  const int64_t group = heads / kv_heads, table_width = batch.block_table.size(1);
  const int32_t* start = batch.query_start.data<int32_t>();
  const int32_t* context = batch.context_len.data<int32_t>();
  const int32_t* table = batch.block_table.data<int32_t>();
  std::vector<Tile> tiles;
  check(start[0] == 0, "full_attention: query_start begins with {}, not 0", start[0]);
  const int64_t sequences = batch.context_len.size(0);
  for (int64_t b = 0; b < sequences; ++b) {
    check(start[b] <= start[b + 1] && start[b + 1] <= q.size(0),
          "full_attention: sequence {} has tokens {} to {} of {}", b, start[b], start[b + 1],
          q.size(0));
    check(context[b] > 0 && context[b] <= table_width * kv.k.size(2),
          "full_attention: sequence {} has {} keys in {} blocks of {}", b, context[b], table_width,
          kv.k.size(2));
    check_blocks("full_attention", table + b * table_width, context[b], kv);
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t row = start[b]; row < start[b + 1]; row += kTileRows) {
        tiles.push_back({b, h, row, std::min<int64_t>(start[b + 1], row + kTileRows)});
      }
    }
  }
  std::fill(out.data<float>() + start[sequences] * heads * dims, out.data<float>() + out.numel(),
            0.0f);
  const int64_t scratch_size = simd.tile_scratch(dims);
  compute_pool().parallel_for(
      static_cast<int64_t>(tiles.size()), 1, [&](int64_t begin, int64_t end) {
        const Tensor scratch = Tensor::empty({scratch_size + 2 * kTileRows * dims}, DType::kF32);
        float* queries = scratch.data<float>() + scratch_size;
        float* results = queries + kTileRows * dims;
        const auto bytes = static_cast<size_t>(dims) * sizeof(float);
        for (int64_t i = begin; i < end; ++i) {
          const Tile& tile = tiles[static_cast<size_t>(i)];
          const int64_t rows = tile.end - tile.begin;
          for (int64_t r = 0; r < rows; ++r) {
            std::memcpy(queries + r * dims,
                        q.data<float>() + ((tile.begin + r) * heads + tile.head) * dims, bytes);
          }
          simd.attend_tile({.kv = {.k = kv.k.raw(),
                                   .v = kv.v.raw(),
                                   .dtype = kv.k.dtype(),
                                   .blocks = table + tile.sequence * table_width,
                                   .kv_heads = kv_heads,
                                   .kv_head = tile.head / group,
                                   .page = kv.k.size(2),
                                   .head_dim = dims},
                            .rule = {.scale = scale, .soft_cap = 0, .sinks = nullptr},
                            .q = queries,
                            .out = results,
                            .q_stride = 0,
                            .out_stride = 0,
                            .group = rows,
                            .row_begin = 0,
                            .row_end = rows,
                            .first_key = context[tile.sequence] - 1,
                            .window = 0},
                           scratch.data<float>());
          for (int64_t r = 0; r < rows; ++r) {
            std::memcpy(out.data<float>() + ((tile.begin + r) * heads + tile.head) * dims,
                        results + r * dims, bytes);
          }
        }
      });
}

float key_value(const Tensor& cache, int64_t at) {
  if (cache.dtype() == DType::kF32) return cache.data<float>()[at];
  return cache.dtype() == DType::kF16 ? to_float(cache.data<f16>()[at])
                                      : to_float(cache.data<bf16>()[at]);
}

void attention_weights_cpu(Tensor& out, const Tensor& q, const PagedKv& kv, const Tensor& blocks,
                           int64_t head, float scale) {
  const int64_t heads = q.size(1), dims = q.size(2), kv_heads = kv.k.size(1), page = kv.k.size(2);
  const int64_t keys = out.size(1), kv_head = head / (heads / kv_heads);
  const int32_t* block = blocks.data<int32_t>();
  check_blocks("attention_weights", block, keys, kv);
  const Tensor transposed = Tensor::empty({dims, keys}, DType::kF32);
  for (int64_t i = 0; i < keys; ++i) {
    const int64_t at = ((block[i / page] * kv_heads + kv_head) * page + i % page) * dims;
    for (int64_t d = 0; d < dims; ++d)
      transposed.data<float>()[d * keys + i] = key_value(kv.k, at + d);
  }
  const auto& simd = simd_kernels();
  compute_pool().parallel_for(q.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* query = q.data<float>() + (t * heads + head) * dims;
      float* row = out.data<float>() + t * keys;
      std::fill(row, row + keys, 0.0f);
      for (int64_t d = 0; d < dims; ++d) {
        simd.add_scaled(row, transposed.data<float>() + d * keys, query[d] * scale, keys);
      }
      const double sum = simd.exponentials(row, row, keys, simd.largest(row, keys), 1.0f, 0.0f);
      const auto inverse = static_cast<float>(1.0 / sum);
      for (int64_t i = 0; i < keys; ++i) row[i] *= inverse;
    }
  });
}

const RegisterKernel layer_norm_entry(layer_norm_kernel, DeviceType::kCpu, &layer_norm_cpu);
const RegisterKernel activate_entry(activate_kernel, DeviceType::kCpu, &activate_cpu);
const RegisterKernel unfold_entry(unfold_kernel, DeviceType::kCpu, &unfold_cpu);
const RegisterKernel write_kv_entry(write_kv_kernel, DeviceType::kCpu, &write_kv_cpu);
const RegisterKernel full_attention_entry(full_attention_kernel, DeviceType::kCpu,
                                          &full_attention_cpu);
const RegisterKernel attention_weights_entry(attention_weights_kernel, DeviceType::kCpu,
                                             &attention_weights_cpu);

}  // namespace
}  // namespace reft
