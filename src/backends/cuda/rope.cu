// Head norm, rotary embedding and cache write in one pass over qkv: one warp per token and head.
#include "backends/cuda/fp8.h"
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
  for (int64_t i = lane; i < s.head_dim; i += 32) out[i] = to_cache<T, C>(x[i]);
}

// Lanes that take a head together.
template <int kDim>
constexpr int kRopeLanes = kDim / 4 < 32 ? kDim / 4 : 32;

// The usual case: halves rotated over the whole head, kDim 64, 128 or 256, 16-bit types. kLanes
// neighbouring lanes take a head, each holding pairs of neighbours of either half; they go through
// kHeads heads of a token, whose cosines they load once.
template <class T, int kDim, int kHeads>
__global__ void __launch_bounds__(128)
    rope_vector_kernel(T* __restrict__ q, const T* qkv, const int32_t* positions,
                       const int32_t* slots, T* __restrict__ k_cache, T* __restrict__ v_cache,
                       const float* __restrict__ q_weight, const float* __restrict__ k_weight,
                       const float* __restrict__ cos_sin, RopeShape s) {
  constexpr int kLanes = kRopeLanes<kDim>;
  constexpr int kPairs = kDim / 4 / kLanes;
  constexpr int kHalf = kDim / 2;
  using Pair = Vector<T, 2>;
  allow_next();
  await_inputs();
  const auto heads_per_token = static_cast<uint32_t>(s.num_heads + 2 * s.num_kv_heads);
  const uint32_t groups = (heads_per_token + kHeads - 1) / kHeads;
  const uint32_t item = (blockIdx.x * blockDim.x + threadIdx.x) / kLanes;
  const int lane = threadIdx.x % kLanes;
  const uint32_t token = item / groups;
  const bool inside = token < s.num_tokens;
  const uint32_t row = inside ? token : 0;  // all lanes take part in the shuffles
  float2 c[kPairs], n[kPairs];
  const float* table = cos_sin + int64_t{positions[row]} * kDim;
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
    c[j] = reinterpret_cast<const float2*>(table)[lane + j * kLanes];
    n[j] = reinterpret_cast<const float2*>(table + kHalf)[lane + j * kLanes];
  }
  const int64_t slot = slots[row];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    const uint32_t head = item % groups * kHeads + h;
    const bool wanted = inside && head < heads_per_token;
    const bool is_q = head < s.num_heads, is_v = head >= s.num_heads + s.num_kv_heads;
    const T* source = qkv + row * s.qkv_stride + int64_t{wanted ? head : 0} * kDim;
    float a[kPairs][2], b[kPairs][2];  // elements of the first and of the second half
    float squares = 0.0f;
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const Pair low = reinterpret_cast<const Pair*>(source)[lane + j * kLanes];
      const Pair high = reinterpret_cast<const Pair*>(source + kHalf)[lane + j * kLanes];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        a[j][e] = as_float(low.v[e]);
        b[j][e] = as_float(high.v[e]);
        squares += a[j][e] * a[j][e] + b[j][e] * b[j][e];
      }
    }
    const float* weight = is_v ? nullptr : is_q ? q_weight : k_weight;
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2)
      squares += __shfl_xor_sync(0xffffffffu, squares, offset);
    if (weight != nullptr) {
      const float scale = rsqrtf(squares / kDim + s.eps);
      const float more = s.kind == NormKind::kOnePlus ? 1.0f : 0.0f;
#pragma unroll
      for (int j = 0; j < kPairs; ++j) {
        const float2 low = reinterpret_cast<const float2*>(weight)[lane + j * kLanes];
        const float2 high = reinterpret_cast<const float2*>(weight + kHalf)[lane + j * kLanes];
        a[j][0] *= scale * (more + low.x);
        a[j][1] *= scale * (more + low.y);
        b[j][0] *= scale * (more + high.x);
        b[j][1] *= scale * (more + high.y);
      }
    }
    T* to;
    if (is_q) {
      to = q + (row * s.num_heads + head) * kDim;
    } else {
      const int64_t kv_head = head - s.num_heads - (is_v ? s.num_kv_heads : 0);
      to = (is_v ? v_cache : k_cache) +
           ((slot / s.block_size * s.num_kv_heads + kv_head) * s.block_size + slot % s.block_size) *
               kDim;
    }
    if (!wanted || (!is_q && slot < 0)) continue;
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      Pair low, high;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float cosine = e == 0 ? c[j].x : c[j].y, sine = e == 0 ? n[j].x : n[j].y;
        low.v[e] = as<T>(is_v ? a[j][e] : a[j][e] * cosine - b[j][e] * sine);
        high.v[e] = as<T>(is_v ? b[j][e] : b[j][e] * cosine + a[j][e] * sine);
      }
      reinterpret_cast<Pair*>(to)[lane + j * kLanes] = low;
      reinterpret_cast<Pair*>(to + kHalf)[lane + j * kLanes] = high;
    }
  }
}

template <class T, int kDim>
void launch_vectors(Tensor& q, const Tensor& qkv, const Tensor& positions, const Tensor& slots,
                    PagedKv& kv, const QkNormRopeArgs& args, const RopeShape& s) {
  const auto optional = [](const Tensor& t) { return t.defined() ? ptr<float>(t) : nullptr; };
  const auto run = [&]<int kHeads>() {
    const int64_t groups = (s.num_heads + 2 * s.num_kv_heads + kHeads - 1) / kHeads;
    launch_dependent("qk_norm_rope_cache", rope_vector_kernel<T, kDim, kHeads>, qkv.device().index,
                     dim3(blocks_for(s.num_tokens * groups * kRopeLanes<kDim>, 128)), 128, 0,
                     ptr<T>(q), ptr<T>(qkv), ptr<int32_t>(positions), ptr<int32_t>(slots),
                     ptr<T>(kv.k), ptr<T>(kv.v), optional(args.q_weight), optional(args.k_weight),
                     ptr<float>(args.cos_sin), s);
  };
  // Few tokens: a head each, for the shortest way; many: fewer loads of the table.
  s.num_tokens < 256 ? run.template operator()<1>() : run.template operator()<4>();
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
  if (qkv.dtype() != DType::kF32 && kv.k.dtype() == qkv.dtype() && s.rotary_dim == head_dim &&
      !s.interleaved && s.qkv_stride % 2 == 0 &&
      (head_dim == 64 || head_dim == 128 || head_dim == 256)) {
    return dispatch_half(qkv.dtype(), "qk_norm_rope_cache", [&](auto type) {
      using T = decltype(type);
      if (head_dim == 64) return launch_vectors<T, 64>(q, qkv, positions, slots, kv, args, s);
      if (head_dim == 128) return launch_vectors<T, 128>(q, qkv, positions, slots, kv, args, s);
      launch_vectors<T, 256>(q, qkv, positions, slots, kv, args, s);
    });
  }
  const auto optional = [](const Tensor& t) { return t.defined() ? ptr<float>(t) : nullptr; };
  dispatch_float(qkv.dtype(), "qk_norm_rope_cache", [&](auto type) {
    using T = decltype(type);
    dispatch_cache(kv.k.dtype(), "qk_norm_rope_cache", [&](auto cache_type) {
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
