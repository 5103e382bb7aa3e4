#include "ops/attention.h"

#include <cmath>
#include <limits>
#include <vector>

#include "base/thread_pool.h"

namespace reft {
namespace {

// One head: norm, then rotation by the row `cos_sin` of R values.
void norm_rope(float* y, const float* x, int64_t head_dim, const float* weight, float eps,
               NormKind kind, const float* cos_sin, int64_t rotary, bool interleaved) {
  float scale = 1;
  if (weight != nullptr) {
    float sum = 0;
    for (int64_t i = 0; i < head_dim; ++i) sum += x[i] * x[i];
    scale = 1.0f / std::sqrt(sum / static_cast<float>(head_dim) + eps);
  }
  const float offset = kind == NormKind::kOnePlus ? 1.0f : 0.0f;
  for (int64_t i = 0; i < head_dim; ++i) {
    y[i] = weight ? x[i] * scale * (weight[i] + offset) : x[i];
  }
  const int64_t half = rotary / 2;
  for (int64_t i = 0; i < half; ++i) {
    float& a = y[interleaved ? 2 * i : i];
    float& b = y[interleaved ? 2 * i + 1 : i + half];
    const float cos = cos_sin[i];
    const float sin = cos_sin[half + i];
    const float rotated = a * cos - b * sin;
    b = b * cos + a * sin;
    a = rotated;
  }
}

template <class T>
void store(Tensor& cache, int64_t at, const float* x, int64_t n) {
  T* to = cache.data<T>() + at;
  for (int64_t i = 0; i < n; ++i) to[i] = from_float<T>(x[i]);
}

void store_any(Tensor& cache, int64_t at, const float* x, int64_t n) {
  if (cache.dtype() == DType::kF32) return store<float>(cache, at, x, n);
  if (cache.dtype() == DType::kF16) return store<f16>(cache, at, x, n);
  store<bf16>(cache, at, x, n);
}

void qk_norm_rope_cache_cpu(Tensor& q, const Tensor& qkv, const Tensor& positions,
                            const Tensor& slots, PagedKv& kv, const QkNormRopeArgs& args) {
  const int64_t heads = q.size(1), head_dim = q.size(2);
  const int64_t kv_heads = kv.k.size(1), page = kv.k.size(2);
  const int64_t rotary = args.cos_sin.defined() ? args.cos_sin.size(1) : 0;
  const int64_t table_rows = args.cos_sin.defined() ? args.cos_sin.size(0) : 0;
  const float* q_weight = args.q_weight.defined() ? args.q_weight.data<float>() : nullptr;
  const float* k_weight = args.k_weight.defined() ? args.k_weight.data<float>() : nullptr;
  const int32_t* position = positions.data<int32_t>();
  const int32_t* slot = slots.data<int32_t>();
  const float* input = qkv.data<float>();
  float* output = q.data<float>();
  const int64_t num_slots = kv.k.size(0) * page;
  compute_pool().parallel_for(q.size(0), 4, [&](int64_t begin, int64_t end) {
    std::vector<float> key(static_cast<size_t>(head_dim));
    for (int64_t t = begin; t < end; ++t) {
      const float* in = input + t * qkv.stride(0);
      const float* cos_sin = nullptr;
      if (rotary > 0) {
        check(position[t] >= 0 && position[t] < table_rows,
              "qk_norm_rope_cache: position {} is outside a rotary table of {}", position[t],
              table_rows);
        cos_sin = args.cos_sin.data<float>() + position[t] * rotary;
      }
      for (int64_t h = 0; h < heads; ++h) {
        norm_rope(output + (t * heads + h) * head_dim, in + h * head_dim, head_dim, q_weight,
                  args.eps, args.kind, cos_sin, rotary, args.interleaved);
      }
      if (slot[t] < 0) continue;
      check(slot[t] < num_slots, "qk_norm_rope_cache: slot {} is outside a cache of {}", slot[t],
            num_slots);
      const int64_t block = slot[t] / page, offset = slot[t] % page;
      for (int64_t h = 0; h < kv_heads; ++h) {
        const int64_t at = ((block * kv_heads + h) * page + offset) * head_dim;
        norm_rope(key.data(), in + (heads + h) * head_dim, head_dim, k_weight, args.eps, args.kind,
                  cos_sin, rotary, args.interleaved);
        store_any(kv.k, at, key.data(), head_dim);
        store_any(kv.v, at, in + (heads + kv_heads + h) * head_dim, head_dim);
      }
    }
  });
}

template <class T>
void attend(float* out, const float* q, const T* k, const T* v, const int32_t* blocks,
            int64_t kv_heads, int64_t kv_head, int64_t page, int64_t head_dim, int64_t first,
            int64_t last, const AttentionArgs& args, const float* sink) {
  float top = sink ? *sink : -std::numeric_limits<float>::infinity();
  float sum = sink ? 1.0f : 0.0f;
  for (int64_t d = 0; d < head_dim; ++d) out[d] = 0;
  for (int64_t i = first; i <= last; ++i) {
    const int64_t row = ((blocks[i / page] * kv_heads + kv_head) * page + i % page) * head_dim;
    float score = 0;
    for (int64_t d = 0; d < head_dim; ++d) score += q[d] * to_float(k[row + d]);
    score *= args.scale;
    if (args.soft_cap > 0) score = args.soft_cap * std::tanh(score / args.soft_cap);
    const float new_top = std::max(top, score);
    const float keep = std::exp(top - new_top);
    const float weight = std::exp(score - new_top);
    for (int64_t d = 0; d < head_dim; ++d) out[d] = out[d] * keep + weight * to_float(v[row + d]);
    sum = sum * keep + weight;
    top = new_top;
  }
  for (int64_t d = 0; d < head_dim; ++d) out[d] = sum > 0 ? out[d] / sum : 0;
}

template <class T>
void paged_attention_typed(Tensor& out, const Tensor& q, const PagedKv& kv,
                           const AttentionBatch& batch, const AttentionArgs& args) {
  const int64_t heads = q.size(1), head_dim = q.size(2), kv_heads = kv.k.size(1);
  const int32_t* start = batch.query_start.data<int32_t>();
  const int32_t* context = batch.context_len.data<int32_t>();
  const int64_t max_blocks = batch.block_table.size(1);
  for (int64_t b = 0; b < batch.context_len.size(0); ++b) {
    const int64_t queries = start[b + 1] - start[b];
    const int32_t* blocks = batch.block_table.data<int32_t>() + b * max_blocks;
    compute_pool().parallel_for(queries * heads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t h = i % heads;
        const int64_t last = context[b] - queries + i / heads;
        const int64_t first = args.window > 0 ? std::max<int64_t>(0, last - args.window + 1) : 0;
        const int64_t at = (start[b] * heads + i) * head_dim;
        attend(out.data<float>() + at, q.data<float>() + at, kv.k.data<T>(), kv.v.data<T>(), blocks,
               kv_heads, h / (heads / kv_heads), kv.k.size(2), head_dim, first, last, args,
               args.sinks.defined() ? args.sinks.data<float>() + h : nullptr);
      }
    });
  }
}

void paged_attention_cpu(Tensor& out, const Tensor& q, const PagedKv& kv,
                         const AttentionBatch& batch, const AttentionArgs& args) {
  if (kv.k.dtype() == DType::kF32) return paged_attention_typed<float>(out, q, kv, batch, args);
  if (kv.k.dtype() == DType::kF16) return paged_attention_typed<f16>(out, q, kv, batch, args);
  paged_attention_typed<bf16>(out, q, kv, batch, args);
}

const RegisterKernel qk_norm_rope_cache_entry(qk_norm_rope_cache_kernel, DeviceType::kCpu,
                                              &qk_norm_rope_cache_cpu);
const RegisterKernel paged_attention_entry(paged_attention_kernel, DeviceType::kCpu,
                                           &paged_attention_cpu);

}  // namespace
}  // namespace reft
