// What the attention kernels of the CUDA backend share.
#pragma once

#include "backends/cuda/common.h"
#include "ops/attention.h"

namespace reft {

struct AttentionShape {
  const int32_t* query_start;
  const int32_t* context_len;
  const int32_t* block_table;
  int64_t table_stride;
  int num_heads, num_kv_heads, head_dim, block_size;
  float scale, soft_cap;
  int64_t window;  // 0: all
  const float* sinks;
  int num_splits;
  float* partial;  // [B, Hk, splits, 16, Dh + 2] with splits > 1
};

inline AttentionShape attention_shape(const PagedKv& kv, int64_t num_heads,
                                      const AttentionBatch& batch, const AttentionArgs& args) {
  return {.query_start = ptr<int32_t>(batch.query_start),
          .context_len = ptr<int32_t>(batch.context_len),
          .block_table = ptr<int32_t>(batch.block_table),
          .table_stride = batch.block_table.stride(0),
          .num_heads = static_cast<int>(num_heads),
          .num_kv_heads = static_cast<int>(kv.k.size(1)),
          .head_dim = static_cast<int>(kv.k.size(3)),
          .block_size = static_cast<int>(kv.k.size(2)),
          .scale = args.scale,
          .soft_cap = args.soft_cap,
          .window = args.window,
          .sinks = args.sinks.defined() ? ptr<float>(args.sinks) : nullptr,
          .num_splits = 1,
          .partial = nullptr};
}

// Long queries on Hopper. Returns false, having done nothing, where it does not apply: another
// chip, a head dim that is not 64, 128 or 256, blocks that are not 8 × 2ⁿ tokens.
bool hopper_attention(Tensor& out, const Tensor& q, const PagedKv& kv, const AttentionBatch& batch,
                      const AttentionShape& shape);

#ifdef __CUDACC__

constexpr float kLog2e = 1.4426950408889634f;

__device__ __forceinline__ float cap_score(float score, const AttentionShape& s) {
  score *= s.scale;
  return s.soft_cap > 0.0f ? s.soft_cap * tanhf(score / s.soft_cap) : score;
}

// Scales by 1 / sum, the sink included. maximum is in log2 units.
__device__ __forceinline__ float row_scale(float maximum, float total, const float* sinks,
                                           int head) {
  if (sinks == nullptr) return total > 0.0f ? 1.0f / total : 0.0f;
  const float sink = sinks[head] * kLog2e;
  const float grown = fmaxf(maximum, sink);
  const float keep = exp2f(maximum - grown);
  return keep / (total * keep + exp2f(sink - grown));
}

#endif  // __CUDACC__

}  // namespace reft
