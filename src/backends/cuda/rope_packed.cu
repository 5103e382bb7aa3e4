// Head norm and rotary embedding of a packed batch, and their gradient. A warp takes a head of a
// token; in the gradient it keeps its part of the weights' gradients for itself, and the parts are
// added up in order afterwards.
#include <algorithm>

#include "backends/cuda/reduce.h"
#include "ops/attention.h"

namespace reft {
namespace {

constexpr int kWarps = 4;
constexpr int kMaxHeadDim = 512;

struct RopeShape {
  int64_t num_tokens;
  int num_heads, num_kv_heads, head_dim, rotary_dim;
  float eps, weight_offset;
  bool interleaved;
  const float *q_weight, *k_weight, *cos_sin;  // may be null
  const int32_t* positions;

  __device__ int heads_per_token() const { return num_heads + 2 * num_kv_heads; }
  __device__ const float* weight_of(int head) const {
    return head < num_heads ? q_weight : head < num_heads + num_kv_heads ? k_weight : nullptr;
  }
  __device__ bool rotates(int head) const {
    return rotary_dim > 0 && head < num_heads + num_kv_heads;
  }
};

// The usual case: all of a head of 64, 128 or 256 is rotated by halves. A lane holds kDim / 64
// neighbours of the first half and those as far from the middle, both members of its pairs.
template <class T, int kDim>
__device__ __forceinline__ void load_halves(float (&a)[kDim / 64], float (&b)[kDim / 64],
                                            const T* from, int lane) {
  using V = Vector<T, kDim / 64>;
  const V low = reinterpret_cast<const V*>(from)[lane];
  const V high = reinterpret_cast<const V*>(from + kDim / 2)[lane];
#pragma unroll
  for (int e = 0; e < kDim / 64; ++e) {
    a[e] = as_float(low.v[e]);
    b[e] = as_float(high.v[e]);
  }
}
template <class T, int kDim>
__device__ __forceinline__ void store_halves(T* to, const float (&a)[kDim / 64],
                                             const float (&b)[kDim / 64], int lane) {
  using V = Vector<T, kDim / 64>;
  V low, high;
#pragma unroll
  for (int e = 0; e < kDim / 64; ++e) {
    low.v[e] = as<T>(a[e]);
    high.v[e] = as<T>(b[e]);
  }
  reinterpret_cast<V*>(to)[lane] = low;
  reinterpret_cast<V*>(to + kDim / 2)[lane] = high;
}

template <class T, int kDim>
__global__ void __launch_bounds__(kWarps * 32)
    qk_norm_rope_halves(T* __restrict__ out, const T* __restrict__ qkv, RopeShape s) {
  constexpr int kEach = kDim / 64;
  const int lane = threadIdx.x % 32;
  const int64_t token = blockIdx.x * int64_t{kWarps} + threadIdx.x / 32;
  if (token >= s.num_tokens) return;
  const int heads = s.heads_per_token();
  float c[kEach], n[kEach];
  load_halves<float, kDim>(c, n, s.cos_sin + int64_t{s.positions[token]} * kDim, lane);
  for (int head = 0; head < heads; ++head) {
    const int64_t at = (token * heads + head) * kDim;
    float a[kEach], b[kEach];
    load_halves<T, kDim>(a, b, qkv + at, lane);
    if (const float* weight = s.weight_of(head)) {
      float squares = 0.0f;
#pragma unroll
      for (int e = 0; e < kEach; ++e) squares += a[e] * a[e] + b[e] * b[e];
      const float scale = rsqrtf(warp_sum(squares) / kDim + s.eps);
      float low[kEach], high[kEach];
      load_halves<float, kDim>(low, high, weight, lane);
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        a[e] *= scale * (low[e] + s.weight_offset);
        b[e] *= scale * (high[e] + s.weight_offset);
      }
    }
    if (s.rotates(head)) {
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        const float first = a[e];
        a[e] = first * c[e] - b[e] * n[e];
        b[e] = b[e] * c[e] + first * n[e];
      }
    }
    store_halves<T, kDim>(out + at, a, b, lane);
  }
}

// pieces: [gridDim.x, 2, kDim], Σ dy x̂ over the block's tokens for q and k; may be null.
template <class T, int kDim>
__global__ void __launch_bounds__(kWarps * 32)
    qk_norm_rope_halves_backward(T* dqkv, int64_t to_stride, bool accumulate, const T* dy,
                                 int64_t dy_stride, const T* __restrict__ qkv, float* pieces,
                                 RopeShape s) {
  constexpr int kEach = kDim / 64;
  __shared__ float sums[kWarps][2][kDim];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int heads = s.heads_per_token();
  float dw[2][2][kEach] = {};  // of q and k, both halves
  for (int64_t token = blockIdx.x * int64_t{kWarps} + warp; token < s.num_tokens;
       token += gridDim.x * int64_t{kWarps}) {
    float c[kEach], n[kEach];
    load_halves<float, kDim>(c, n, s.cos_sin + int64_t{s.positions[token]} * kDim, lane);
    const auto one_head = [&](int head, float(&own)[2][kEach]) {
      float a[kEach], b[kEach];
      load_halves<T, kDim>(a, b, dy + token * dy_stride + int64_t{head} * kDim, lane);
      if (s.rotates(head)) {
#pragma unroll
        for (int e = 0; e < kEach; ++e) {
          const float first = a[e];
          a[e] = first * c[e] + b[e] * n[e];
          b[e] = b[e] * c[e] - first * n[e];
        }
      }
      if (const float* weight = s.weight_of(head)) {
        float x[kEach], y[kEach], low[kEach], high[kEach];
        load_halves<T, kDim>(x, y, qkv + (token * heads + head) * kDim, lane);
        load_halves<float, kDim>(low, high, weight, lane);
        float squares = 0.0f, dot = 0.0f;
#pragma unroll
        for (int e = 0; e < kEach; ++e) {
          low[e] += s.weight_offset;
          high[e] += s.weight_offset;
          squares += x[e] * x[e] + y[e] * y[e];
          dot += a[e] * low[e] * x[e] + b[e] * high[e] * y[e];
        }
        const float scale = rsqrtf(warp_sum(squares) / kDim + s.eps);
        const float back = warp_sum(dot) * scale / kDim * scale;
#pragma unroll
        for (int e = 0; e < kEach; ++e) {
          own[0][e] += a[e] * (x[e] * scale);
          own[1][e] += b[e] * (y[e] * scale);
          a[e] = (a[e] * low[e] - x[e] * back) * scale;
          b[e] = (b[e] * high[e] - y[e] * back) * scale;
        }
      }
      if (dqkv == nullptr) return;
      T* to = dqkv + token * to_stride + int64_t{head} * kDim;
      if (accumulate) {
        float x[kEach], y[kEach];
        load_halves<T, kDim>(x, y, to, lane);
#pragma unroll
        for (int e = 0; e < kEach; ++e) {
          a[e] += x[e];
          b[e] += y[e];
        }
      }
      store_halves<T, kDim>(to, a, b, lane);
    };
    for (int head = 0; head < s.num_heads; ++head) one_head(head, dw[0]);
    for (int head = s.num_heads; head < heads; ++head) one_head(head, dw[1]);
  }
  if (pieces == nullptr) return;
#pragma unroll
  for (int which = 0; which < 2; ++which)
    store_halves<float, kDim>(sums[warp][which], dw[which][0], dw[which][1], lane);
  __syncthreads();
  for (int i = threadIdx.x; i < 2 * kDim; i += kWarps * 32) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += sums[w][i / kDim][i % kDim];
    pieces[blockIdx.x * int64_t{2 * kDim} + i] = sum;
  }
}

// Places of the two members of rotated pair i.
__device__ __forceinline__ int first_of(int i, const RopeShape& s) {
  return s.interleaved ? 2 * i : i;
}
__device__ __forceinline__ int second_of(int i, const RopeShape& s) {
  return s.interleaved ? 2 * i + 1 : i + s.rotary_dim / 2;
}

// Any head dim and rotation.
template <class T>
__global__ void qk_norm_rope_plain(T* __restrict__ out, const T* __restrict__ qkv, RopeShape s) {
  __shared__ float x_of[kWarps][kMaxHeadDim];
  const int lane = threadIdx.x % 32;
  float* x = x_of[threadIdx.x / 32];
  const int64_t item = blockIdx.x * int64_t{kWarps} + threadIdx.x / 32;
  const int heads = s.heads_per_token();
  if (item >= s.num_tokens * heads) return;
  const int64_t token = item / heads;
  const int head = static_cast<int>(item % heads);
  float squares = 0.0f;
  for (int i = lane; i < s.head_dim; i += 32) {
    x[i] = as_float(qkv[item * s.head_dim + i]);
    squares += x[i] * x[i];
  }
  if (const float* weight = s.weight_of(head)) {
    const float scale = rsqrtf(warp_sum(squares) / static_cast<float>(s.head_dim) + s.eps);
    for (int i = lane; i < s.head_dim; i += 32) x[i] *= scale * (weight[i] + s.weight_offset);
  }
  __syncwarp();
  if (s.rotates(head)) {
    const float* cosine = s.cos_sin + int64_t{s.positions[token]} * s.rotary_dim;
    const float* sine = cosine + s.rotary_dim / 2;
    for (int i = lane; i < s.rotary_dim / 2; i += 32) {
      float &first = x[first_of(i, s)], &second = x[second_of(i, s)];
      const float a = first, b = second;
      first = a * cosine[i] - b * sine[i];
      second = b * cosine[i] + a * sine[i];
    }
    __syncwarp();
  }
  for (int i = lane; i < s.head_dim; i += 32) out[item * s.head_dim + i] = as<T>(x[i]);
}

template <class T>
__global__ void qk_norm_rope_plain_backward(T* dqkv, int64_t to_stride, bool accumulate,
                                            const T* dy, int64_t dy_stride,
                                            const T* __restrict__ qkv, float* pieces, RopeShape s) {
  __shared__ float d_of[kWarps][kMaxHeadDim], sums[kWarps][2][kMaxHeadDim];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int heads = s.heads_per_token(), dim = s.head_dim;
  float* d = d_of[warp];
  for (int i = lane; i < dim; i += 32) sums[warp][0][i] = sums[warp][1][i] = 0.0f;
  for (int64_t item = blockIdx.x * int64_t{kWarps} + warp; item < s.num_tokens * heads;
       item += gridDim.x * int64_t{kWarps}) {
    const int64_t token = item / heads;
    const int head = static_cast<int>(item % heads);
    __syncwarp();
    for (int i = lane; i < dim; i += 32)
      d[i] = as_float(dy[token * dy_stride + int64_t{head} * dim + i]);
    __syncwarp();
    if (s.rotates(head)) {
      const float* cosine = s.cos_sin + int64_t{s.positions[token]} * s.rotary_dim;
      const float* sine = cosine + s.rotary_dim / 2;
      for (int i = lane; i < s.rotary_dim / 2; i += 32) {
        float &first = d[first_of(i, s)], &second = d[second_of(i, s)];
        const float a = first, b = second;
        first = a * cosine[i] + b * sine[i];
        second = b * cosine[i] - a * sine[i];
      }
      __syncwarp();
    }
    if (const float* weight = s.weight_of(head)) {
      const T* x = qkv + item * dim;
      float squares = 0.0f, dot = 0.0f;
      for (int i = lane; i < dim; i += 32) {
        const float value = as_float(x[i]);
        squares += value * value;
        dot += d[i] * (weight[i] + s.weight_offset) * value;
      }
      const auto n = static_cast<float>(dim);
      const float scale = rsqrtf(warp_sum(squares) / n + s.eps);
      const float back = warp_sum(dot) * scale / n * scale;
      for (int i = lane; i < dim; i += 32) {
        const float value = as_float(x[i]);
        sums[warp][head < s.num_heads ? 0 : 1][i] += d[i] * (value * scale);
        d[i] = (d[i] * (weight[i] + s.weight_offset) - value * back) * scale;
      }
    }
    if (dqkv == nullptr) continue;
    T* to = dqkv + token * to_stride + int64_t{head} * dim;
    for (int i = lane; i < dim; i += 32) to[i] = as<T>(accumulate ? as_float(to[i]) + d[i] : d[i]);
  }
  if (pieces == nullptr) return;
  __syncthreads();
  for (int i = threadIdx.x; i < 2 * dim; i += kWarps * 32) {
    float sum = 0.0f;
    for (int w = 0; w < kWarps; ++w) sum += sums[w][i / dim][i % dim];
    pieces[blockIdx.x * int64_t{2} * dim + i] = sum;
  }
}

RopeShape shape_of(const char* op, int64_t tokens, const Tensor& positions, const HeadCounts& heads,
                   const QkNormRopeArgs& args) {
  check(heads.head_dim <= kMaxHeadDim, "{}: head_dim {} is above {} on CUDA", op, heads.head_dim,
        kMaxHeadDim);
  const auto optional = [](const Tensor& t) { return t.defined() ? ptr<float>(t) : nullptr; };
  return {.num_tokens = tokens,
          .num_heads = static_cast<int>(heads.num_heads),
          .num_kv_heads = static_cast<int>(heads.num_kv_heads),
          .head_dim = static_cast<int>(heads.head_dim),
          .rotary_dim = args.cos_sin.defined() ? static_cast<int>(args.cos_sin.size(1)) : 0,
          .eps = args.eps,
          .weight_offset = args.kind == NormKind::kOnePlus ? 1.0f : 0.0f,
          .interleaved = args.interleaved,
          .q_weight = optional(args.q_weight),
          .k_weight = optional(args.k_weight),
          .cos_sin = optional(args.cos_sin),
          .positions = ptr<int32_t>(positions)};
}

// Whether the kernels for whole heads rotated by halves apply to all of `tensors`.
bool by_halves(const RopeShape& s, std::initializer_list<const Tensor*> tensors) {
  bool fits = s.rotary_dim == s.head_dim && !s.interleaved &&
              (s.head_dim == 64 || s.head_dim == 128 || s.head_dim == 256);
  for (const Tensor* t : tensors) {
    fits = fits && (!t->defined() || (aligned_16(t->raw()) && t->stride(0) % 8 == 0));
  }
  return fits;
}

template <class F>
void dispatch_dim(int dim, F f) {
  if (dim == 64) return f(std::integral_constant<int, 64>{});
  if (dim == 128) return f(std::integral_constant<int, 128>{});
  f(std::integral_constant<int, 256>{});
}

void qk_norm_rope_cuda(Tensor& out, const Tensor& qkv, const Tensor& positions,
                       const HeadCounts& heads, const QkNormRopeArgs& args) {
  const int64_t tokens = qkv.size(0);
  if (tokens == 0) return;
  const RopeShape s = shape_of("qk_norm_rope", tokens, positions, heads, args);
  const cudaStream_t stream = stream_of(qkv);
  dispatch_float(qkv.dtype(), "qk_norm_rope", [&](auto type) {
    using T = decltype(type);
    if (by_halves(s, {&out, &qkv})) {
      dispatch_dim(s.head_dim, [&](auto dim) {
        qk_norm_rope_halves<T, dim>
            <<<blocks_for(tokens, kWarps), kWarps * 32, 0, stream>>>(ptr<T>(out), ptr<T>(qkv), s);
      });
    } else {
      const int64_t items = tokens * (heads.num_heads + 2 * heads.num_kv_heads);
      qk_norm_rope_plain<T>
          <<<blocks_for(items, kWarps), kWarps * 32, 0, stream>>>(ptr<T>(out), ptr<T>(qkv), s);
    }
    check_launch("qk_norm_rope");
  });
}

void qk_norm_rope_backward_cuda(const GradientSlot& dqkv, const GradientSlot& dq_weight,
                                const GradientSlot& dk_weight, const Tensor& dy, const Tensor& qkv,
                                const Tensor& positions, const HeadCounts& heads,
                                const QkNormRopeArgs& args) {
  const char* op = "qk_norm_rope_backward";
  const int64_t tokens = dy.size(0), dim = heads.head_dim;
  for (const GradientSlot* slot : {&dq_weight, &dk_weight}) {
    if (tokens == 0 && *slot && !slot->accumulate) slot->tensor.fill_zero();
  }
  if (tokens == 0) return;
  const RopeShape s = shape_of(op, tokens, positions, heads, args);
  const int64_t blocks = num_pieces(tokens, kWarps, dy.device().index);
  const Tensor pieces = dq_weight || dk_weight
                            ? Tensor::empty({blocks, 2 * dim}, DType::kF32, dy.device())
                            : Tensor();
  dispatch_float(dy.dtype(), op, [&](auto type) {
    using T = decltype(type);
    const auto launch = [&](auto kernel) {
      kernel<<<static_cast<unsigned>(blocks), kWarps * 32, 0, stream_of(dy)>>>(
          dqkv ? ptr<T>(dqkv.tensor) : nullptr, dqkv ? dqkv.tensor.stride(0) : 0, dqkv.accumulate,
          ptr<T>(dy), dy.stride(0), qkv.defined() ? ptr<T>(qkv) : nullptr,
          pieces.defined() ? ptr<float>(pieces) : nullptr, s);
      check_launch(op);
    };
    if (by_halves(s, {&dqkv.tensor, &dy, &qkv})) {
      dispatch_dim(s.head_dim, [&](auto dim) { launch(&qk_norm_rope_halves_backward<T, dim>); });
    } else {
      launch(&qk_norm_rope_plain_backward<T>);
    }
  });
  if (dq_weight) add_pieces(dq_weight, pieces);
  if (dk_weight) add_pieces(dk_weight, pieces, dim);
}

const RegisterKernel r1(qk_norm_rope_kernel, DeviceType::kCuda, &qk_norm_rope_cuda);
const RegisterKernel r2(qk_norm_rope_backward_kernel, DeviceType::kCuda,
                        &qk_norm_rope_backward_cuda);

}  // namespace
}  // namespace reft
