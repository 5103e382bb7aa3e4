// Head norm, rotary embedding and cache write in one pass over qkv: one warp per token and head.
#include "backends/cuda/common.h"
#include "ops/attention.h"

namespace reft {
namespace {

constexpr int kWarps = 4;
constexpr int kMaxHeadDim = 512;

struct RopeShape {
  int64_t num_tokens, num_heads, num_kv_heads, head_dim;
  int64_t qkv_stride, block_size;
  int64_t rotary_dim;  // 0: none
  float eps;
  NormKind kind;
  bool interleaved;
};

template <class T, class C>
__global__ void qk_norm_rope_cache_kernel_cuda(T* __restrict__ q, const T* __restrict__ qkv,
                                               const int32_t* __restrict__ positions,
                                               const int32_t* __restrict__ slots,
                                               C* __restrict__ k_cache, C* __restrict__ v_cache,
                                               const float* __restrict__ q_weight,
                                               const float* __restrict__ k_weight,
                                               const float* __restrict__ cos_sin, RopeShape s) {
  __shared__ float heads[kWarps][kMaxHeadDim];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t heads_per_token = s.num_heads + 2 * s.num_kv_heads;
  const int64_t item = blockIdx.x * int64_t{kWarps} + warp;
  if (item >= s.num_tokens * heads_per_token) return;
  const int64_t token = item / heads_per_token, head = item % heads_per_token;
  const bool is_q = head < s.num_heads;
  const bool is_v = head >= s.num_heads + s.num_kv_heads;
  const T* source = qkv + token * s.qkv_stride + head * s.head_dim;
  float* x = heads[warp];
  float squares = 0.0f;
  for (int64_t i = lane; i < s.head_dim; i += 32) {
    const float value = as_float(source[i]);
    x[i] = value;
    squares += value * value;
  }
  const float* weight = is_v ? nullptr : is_q ? q_weight : k_weight;
  if (weight != nullptr) {
    const float scale = rsqrtf(warp_sum(squares) / static_cast<float>(s.head_dim) + s.eps);
    for (int64_t i = lane; i < s.head_dim; i += 32) {
      const float normalised = x[i] * scale;
      // Not rounded between the norm and the rotation: fewer roundings than composed ops would do.
      x[i] = normalised * (s.kind == NormKind::kOnePlus ? 1.0f + weight[i] : weight[i]);
    }
  }
  __syncwarp();
  if (!is_v && s.rotary_dim > 0) {
    const int64_t half = s.rotary_dim / 2;
    const float* table = cos_sin + positions[token] * s.rotary_dim;
    for (int64_t i = lane; i < half; i += 32) {
      const int64_t first = s.interleaved ? 2 * i : i;
      const int64_t second = s.interleaved ? 2 * i + 1 : i + half;
      const float a = x[first], b = x[second], c = table[i], n = table[half + i];
      x[first] = a * c - b * n;
      x[second] = b * c + a * n;
    }
    __syncwarp();
  }
  if (is_q) {
    T* out = q + (token * s.num_heads + head) * s.head_dim;
    for (int64_t i = lane; i < s.head_dim; i += 32) out[i] = as<T>(x[i]);
    return;
  }
  const int64_t slot = slots[token];
  if (slot < 0) return;
  const int64_t kv_head = head - s.num_heads - (is_v ? s.num_kv_heads : 0);
  C* cache = is_v ? v_cache : k_cache;
  C* out = cache +
           ((slot / s.block_size * s.num_kv_heads + kv_head) * s.block_size + slot % s.block_size) *
               s.head_dim;
  for (int64_t i = lane; i < s.head_dim; i += 32) out[i] = as<C>(x[i]);
}

void qk_norm_rope_cache_cuda(Tensor& q, const Tensor& qkv, const Tensor& positions,
                             const Tensor& slots, PagedKv& kv, const QkNormRopeArgs& args) {
  const int64_t head_dim = kv.k.size(3);
  check(head_dim <= kMaxHeadDim, "qk_norm_rope_cache: head_dim {} is above {} on CUDA", head_dim,
        kMaxHeadDim);
  const RopeShape s{.num_tokens = qkv.size(0),
                    .num_heads = q.size(1),
                    .num_kv_heads = kv.k.size(1),
                    .head_dim = head_dim,
                    .qkv_stride = qkv.stride(0),
                    .block_size = kv.k.size(2),
                    .rotary_dim = args.cos_sin.defined() ? args.cos_sin.size(1) : 0,
                    .eps = args.eps,
                    .kind = args.kind,
                    .interleaved = args.interleaved};
  const int64_t items = s.num_tokens * (s.num_heads + 2 * s.num_kv_heads);
  if (items == 0) return;
  const auto optional = [](const Tensor& t) { return t.defined() ? ptr<float>(t) : nullptr; };
  dispatch_float(qkv.dtype(), "qk_norm_rope_cache", [&](auto type) {
    using T = decltype(type);
    dispatch_float(kv.k.dtype(), "qk_norm_rope_cache", [&](auto cache_type) {
      using C = decltype(cache_type);
      qk_norm_rope_cache_kernel_cuda<T, C>
          <<<blocks_for(items, kWarps), kWarps * 32, 0, stream_of(qkv)>>>(
              ptr<T>(q), ptr<T>(qkv), ptr<int32_t>(positions), ptr<int32_t>(slots), ptr<C>(kv.k),
              ptr<C>(kv.v), optional(args.q_weight), optional(args.k_weight),
              optional(args.cos_sin), s);
      check_launch("qk_norm_rope_cache");
    });
  });
}

const RegisterKernel r(qk_norm_rope_cache_kernel, DeviceType::kCuda, &qk_norm_rope_cache_cuda);

}  // namespace
}  // namespace reft
