// Attention of packed batches for any head dim and float type: a warp per token and head, the
// head's elements spread over its lanes.
#include "backends/cuda/packed_attention.h"

namespace reft {
namespace {

constexpr int kMaxHeadDim = 512;

// What every warp works on; `first` and `last` token of its sequence.
struct Item {
  int64_t token, first, end;
  int head;
  bool outside;  // after the last sequence, or no item at all
};

__device__ __forceinline__ Item item_of(const PackedShape& s, int heads) {
  const int64_t item = (blockIdx.x * int64_t{blockDim.x} + threadIdx.x) / 32;
  Item it{.token = item / heads, .first = 0, .end = 0, .head = static_cast<int>(item % heads)};
  it.outside = it.token >= s.query_start[s.num_sequences];
  if (it.outside) return it;
  int64_t low = 0, high = s.num_sequences;  // the last sequence that starts at or before the token
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (s.query_start[middle] <= it.token ? low : high) = middle;
  }
  it.first = s.query_start[low];
  it.end = s.query_start[low + 1];
  return it;
}

template <class T, int kPerLane>
__device__ __forceinline__ void load(float (&to)[kPerLane], const T* from, int dim) {
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int d = threadIdx.x % 32 + 32 * i;
    to[i] = d < dim ? as_float(from[d]) : 0.0f;
  }
}
template <class T, int kPerLane>
__device__ __forceinline__ void store(T* to, const float (&from)[kPerLane], float scale, int dim) {
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int d = threadIdx.x % 32 + 32 * i;
    if (d < dim) to[d] = as<T>(from[i] * scale);
  }
}
template <int kPerLane>
__device__ __forceinline__ float dot(const float (&a)[kPerLane], const float (&b)[kPerLane]) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) sum += a[i] * b[i];
  return warp_sum(sum);
}
template <int kPerLane>
__device__ __forceinline__ void add_scaled(float (&to)[kPerLane], float scale,
                                           const float (&x)[kPerLane]) {
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) to[i] += scale * x[i];
}

__device__ __forceinline__ float cap_packed(float score, const PackedShape& s) {
  score *= s.scale;
  return s.soft_cap > 0.0f ? s.soft_cap * tanhf(score / s.soft_cap) : score;
}

template <class T, int kPerLane>
__global__ void plain_forward_kernel(T* __restrict__ out, float* __restrict__ lse,
                                     const T* __restrict__ qkv, PackedShape s) {
  const Item it = item_of(s, s.num_heads);
  if (it.outside) return;
  const int dim = s.head_dim;
  const T* keys = qkv + int64_t{s.num_heads + it.head / s.group()} * dim;
  const T* values = keys + int64_t{s.num_kv_heads} * dim;
  float query[kPerLane], sum[kPerLane] = {};
  load(query, qkv + it.token * s.width() + int64_t{it.head} * dim, dim);
  float maximum = -INFINITY, total = 0.0f;
  const int64_t from = s.window > 0 ? max(it.first, it.token - s.window + 1) : it.first;
  for (int64_t key = from; key <= it.token; ++key) {
    float k[kPerLane], v[kPerLane];
    load(k, keys + key * s.width(), dim);
    load(v, values + key * s.width(), dim);
    const float score = cap_packed(dot(query, k), s);
    const float grown = fmaxf(maximum, score);
    const float keep = expf(maximum - grown), weight = expf(score - grown);
    maximum = grown;
    total = total * keep + weight;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) sum[i] = sum[i] * keep + weight * v[i];
  }
  const int64_t row = it.token * s.num_heads + it.head;
  store(out + row * dim, sum, row_scale(maximum * kLog2e, total, s.sinks, it.head), dim);
  if (lse != nullptr && threadIdx.x % 32 == 0)
    lse[row] = log_denominator(maximum * kLog2e, total, s.sinks, it.head);
}

// A query's weight of a key and the gradient of their product before the scale.
struct Weights {
  float p, ds;
};
template <int kPerLane>
__device__ __forceinline__ Weights weights_of(const float (&q)[kPerLane],
                                              const float (&k)[kPerLane],
                                              const float (&v)[kPerLane],
                                              const float (&dout)[kPerLane], float lse, float delta,
                                              const PackedShape& s) {
  const float score = cap_packed(dot(q, k), s);
  const float p = expf(score - lse);
  float ds = p * (dot(dout, v) - delta);
  if (s.soft_cap > 0.0f) ds *= 1.0f - score / s.soft_cap * (score / s.soft_cap);
  return {p, ds};
}

template <class T, int kPerLane>
__global__ void plain_dq_kernel(T* dqkv, const T* __restrict__ qkv, const T* __restrict__ dout,
                                const float* __restrict__ lse, const float* __restrict__ delta,
                                PackedShape s) {
  const Item it = item_of(s, s.num_heads);
  if (it.outside) return;
  const int dim = s.head_dim;
  const T* keys = qkv + int64_t{s.num_heads + it.head / s.group()} * dim;
  const T* values = keys + int64_t{s.num_kv_heads} * dim;
  const int64_t row = it.token * s.num_heads + it.head;
  float q[kPerLane], d[kPerLane], dq[kPerLane] = {};
  load(q, qkv + it.token * s.width() + int64_t{it.head} * dim, dim);
  load(d, dout + row * dim, dim);
  const int64_t from = s.window > 0 ? max(it.first, it.token - s.window + 1) : it.first;
  for (int64_t key = from; key <= it.token; ++key) {
    float k[kPerLane], v[kPerLane];
    load(k, keys + key * s.width(), dim);
    load(v, values + key * s.width(), dim);
    add_scaled(dq, weights_of(q, k, v, d, lse[row], delta[row], s).ds, k);
  }
  store(dqkv + it.token * s.width() + int64_t{it.head} * dim, dq, s.scale, dim);
}

template <class T, int kPerLane>
__global__ void plain_dkv_kernel(T* dqkv, const T* __restrict__ qkv, const T* __restrict__ dout,
                                 const float* __restrict__ lse, const float* __restrict__ delta,
                                 PackedShape s) {
  const Item it = item_of(s, s.num_kv_heads);  // the token is the key
  if (it.outside) return;
  const int dim = s.head_dim;
  const int64_t own = it.token * s.width() + int64_t{s.num_heads + it.head} * dim;
  const int64_t to_value = int64_t{s.num_kv_heads} * dim;
  float k[kPerLane], v[kPerLane], dk[kPerLane] = {}, dv[kPerLane] = {};
  load(k, qkv + own, dim);
  load(v, qkv + own + to_value, dim);
  const int64_t end = s.window > 0 ? min(it.end, it.token + s.window) : it.end;
  for (int head = it.head * s.group(); head < (it.head + 1) * s.group(); ++head) {
    for (int64_t query = it.token; query < end; ++query) {
      const int64_t row = query * s.num_heads + head;
      float q[kPerLane], d[kPerLane];
      load(q, qkv + query * s.width() + int64_t{head} * dim, dim);
      load(d, dout + row * dim, dim);
      const Weights w = weights_of(q, k, v, d, lse[row], delta[row], s);
      add_scaled(dk, w.ds, q);
      add_scaled(dv, w.p, d);
    }
  }
  store(dqkv + own, dk, s.scale, dim);
  store(dqkv + own + to_value, dv, 1.0f, dim);
}

// Calls f with the elements of a lane.
template <class F>
void dispatch_lanes(const char* op, int dim, F f) {
  check(dim <= kMaxHeadDim, "{}: head_dim {} is above {} on CUDA", op, dim, kMaxHeadDim);
  if (dim <= 64) return f(std::integral_constant<int, 2>{});
  if (dim <= 128) return f(std::integral_constant<int, 4>{});
  f(std::integral_constant<int, kMaxHeadDim / 32>{});
}

}  // namespace

void plain_packed_attention(Tensor& out, const Tensor& lse, const Tensor& qkv,
                            const PackedShape& s) {
  const char* op = "packed_attention";
  dispatch_float(qkv.dtype(), op, [&](auto type) {
    using T = decltype(type);
    dispatch_lanes(op, s.head_dim, [&](auto per_lane) {
      plain_forward_kernel<T, per_lane>
          <<<blocks_for(s.num_tokens * s.num_heads, 4), 128, 0, stream_of(qkv)>>>(
              ptr<T>(out), lse.defined() ? ptr<float>(lse) : nullptr, ptr<T>(qkv), s);
      check_launch(op);
    });
  });
}

void plain_packed_attention_backward(const PackedGradient& g, const PackedShape& s) {
  const char* op = "packed_attention_backward";
  const Tensor& qkv = g.forward.qkv;
  dispatch_float(qkv.dtype(), op, [&](auto type) {
    using T = decltype(type);
    dispatch_lanes(op, s.head_dim, [&](auto per_lane) {
      const auto launch = [&](auto kernel, int heads) {
        kernel<<<blocks_for(s.num_tokens * heads, 4), 128, 0, stream_of(qkv)>>>(
            ptr<T>(g.dqkv), ptr<T>(qkv), ptr<T>(g.dout), ptr<float>(g.forward.lse),
            ptr<float>(g.delta), s);
        check_launch(op);
      };
      launch(&plain_dq_kernel<T, per_lane>, s.num_heads);
      launch(&plain_dkv_kernel<T, per_lane>, s.num_kv_heads);
    });
  });
}

}  // namespace reft
