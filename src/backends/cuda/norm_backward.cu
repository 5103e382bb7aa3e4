// Gradients of RMS norms. A block goes through every gridDim.x-th row and keeps its part of the
// weight's gradient for itself; the parts are added up in order afterwards.
#include <algorithm>

#include "backends/cuda/reduce.h"
#include "ops/norm.h"

namespace reft {
namespace {

// Where the gradient of what was normalised goes.
template <class T>
struct Target {
  T* at;  // null: nobody wants it
  int64_t stride;
  bool accumulate;
};

template <class T>
struct NormGradient {
  const T *dy, *x, *dsum;  // dsum: gradient of x from elsewhere, packed rows; may be null
  int64_t dy_stride, x_stride;
  const float* weight;  // may be null
  float offset;         // added to the weight
  float eps;
  int64_t rows, d;
  Target<T> to[2];
  float* pieces;  // [gridDim.x, d]: Σ dy x̂ over the block's rows; may be null
};

// Sums of two values over the block; `scratch` must not be that of the call before.
__device__ __forceinline__ float2 block_sums(float2 v, float2* scratch) {
  v.x = warp_sum(v.x);
  v.y = warp_sum(v.y);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (lane == 0) scratch[warp] = v;
  __syncthreads();
  v = lane < static_cast<int>(blockDim.x + 31) / 32 ? scratch[lane] : make_float2(0.0f, 0.0f);
  return make_float2(warp_sum(v.x), warp_sum(v.y));
}

template <class T>
__global__ void rms_norm_backward_plain(NormGradient<T> p) {
  __shared__ float2 scratch[2][32];
  int turn = 0;
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x, turn ^= 1) {
    const T *dy = p.dy + row * p.dy_stride, *x = p.x + row * p.x_stride;
    const auto slope = [&](int64_t i) {
      return p.weight == nullptr ? as_float(dy[i]) : as_float(dy[i]) * (p.weight[i] + p.offset);
    };
    float2 sums = make_float2(0.0f, 0.0f);
    for (int64_t i = threadIdx.x; i < p.d; i += blockDim.x) {
      const float value = as_float(x[i]);
      sums.x += value * value;
      sums.y += slope(i) * value;
    }
    sums = block_sums(sums, scratch[turn]);
    const auto n = static_cast<float>(p.d);
    const float scale = rsqrtf(sums.x / n + p.eps);
    const float back = sums.y * scale / n * scale;
    for (int64_t i = threadIdx.x; i < p.d; i += blockDim.x) {
      const float value = as_float(x[i]);
      float total = (slope(i) - value * back) * scale;
      if (p.pieces != nullptr) {
        float& piece = p.pieces[blockIdx.x * p.d + i];
        const float own = as_float(dy[i]) * (value * scale);
        piece = row == blockIdx.x ? own : piece + own;
      }
      if (p.dsum != nullptr) total += as_float(p.dsum[row * p.d + i]);
#pragma unroll
      for (const Target<T>& to : p.to) {
        if (to.at == nullptr) continue;
        T& place = to.at[row * to.stride + i];
        place = as<T>(to.accumulate ? as_float(place) + total : total);
      }
    }
  }
}

constexpr int kMaxThreads = 512;

// Rows of whole vectors of 8, of which a thread has kVectors.
template <class T, int kVectors>
__global__ void __launch_bounds__(kMaxThreads) rms_norm_backward_vectors(NormGradient<T> p) {
  __shared__ float2 scratch[2][32];
  const int vectors = static_cast<int>(p.d / 8);
  float w[kVectors][8], dw[kVectors][8] = {};
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    const int index = threadIdx.x + j * blockDim.x;
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      w[j][e] = p.weight == nullptr || index >= vectors ? 1.0f : p.weight[index * 8 + e] + p.offset;
    }
  }
  int turn = 0;
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x, turn ^= 1) {
    Vector8<T> dy[kVectors], x[kVectors], more[kVectors];
    float2 sums = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      const int index = threadIdx.x + j * blockDim.x;
      if (index >= vectors) continue;
      dy[j] = reinterpret_cast<const Vector8<T>*>(p.dy + row * p.dy_stride)[index];
      x[j] = reinterpret_cast<const Vector8<T>*>(p.x + row * p.x_stride)[index];
      if (p.dsum != nullptr)
        more[j] = reinterpret_cast<const Vector8<T>*>(p.dsum + row * p.d)[index];
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const float value = as_float(x[j].v[e]);
        sums.x += value * value;
        sums.y += as_float(dy[j].v[e]) * w[j][e] * value;
      }
    }
    sums = block_sums(sums, scratch[turn]);
    const auto n = static_cast<float>(p.d);
    const float scale = rsqrtf(sums.x / n + p.eps);
    const float back = sums.y * scale / n * scale;
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      const int index = threadIdx.x + j * blockDim.x;
      if (index >= vectors) continue;
      float total[8];
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const float d = as_float(dy[j].v[e]), value = as_float(x[j].v[e]);
        total[e] = (d * w[j][e] - value * back) * scale;
        dw[j][e] += d * (value * scale);
        if (p.dsum != nullptr) total[e] += as_float(more[j].v[e]);
      }
#pragma unroll
      for (const Target<T>& to : p.to) {
        if (to.at == nullptr) continue;
        Vector8<T>& place = reinterpret_cast<Vector8<T>*>(to.at + row * to.stride)[index];
        Vector8<T> out;
        if (to.accumulate) out = place;
#pragma unroll
        for (int e = 0; e < 8; ++e)
          out.v[e] = as<T>(to.accumulate ? as_float(out.v[e]) + total[e] : total[e]);
        place = out;
      }
    }
  }
  if (p.pieces == nullptr) return;
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    const int index = threadIdx.x + j * blockDim.x;
    if (index >= vectors) continue;
    auto* to = reinterpret_cast<Vector<float, 8>*>(p.pieces + blockIdx.x * p.d) + index;
    Vector<float, 8> out;
#pragma unroll
    for (int e = 0; e < 8; ++e) out.v[e] = dw[j][e];
    *to = out;
  }
}

void run(const char* op, const GradientSlot* const (&targets)[2], const GradientSlot& dweight,
         const Tensor& dy, const Tensor& dsum, const Tensor& x, const Tensor& weight, float eps,
         NormKind kind) {
  const int64_t rows = x.size(0), d = x.size(1);
  const int device = x.device().index;
  if (rows == 0 || d == 0) {
    if (dweight && !dweight.accumulate && d > 0) dweight.tensor.fill_zero();
    return;
  }
  // Few threads a block: more blocks, for enough loads on their way.
  const int64_t blocks = std::min<int64_t>(rows, (d <= 2048 ? 8 : 4) * cuda_num_sms(device));
  const Tensor pieces = dweight ? Tensor::empty({blocks, d}, DType::kF32, x.device()) : Tensor();
  dispatch_float(x.dtype(), op, [&](auto type) {
    using T = decltype(type);
    NormGradient<T> p{.dy = ptr<T>(dy),
                      .x = ptr<T>(x),
                      .dsum = dsum.defined() ? ptr<T>(dsum) : nullptr,
                      .dy_stride = dy.stride(0),
                      .x_stride = x.stride(0),
                      .weight = weight.defined() ? ptr<float>(weight) : nullptr,
                      .offset = kind == NormKind::kOnePlus ? 1.0f : 0.0f,
                      .eps = eps,
                      .rows = rows,
                      .d = d,
                      .to = {},
                      .pieces = pieces.defined() ? ptr<float>(pieces) : nullptr};
    const auto whole = [](const Tensor& t) {
      return !t.defined() || (aligned_16(t.raw()) && t.stride(0) % 8 == 0);
    };
    bool vectors = d % 8 == 0 && d <= 32 * kMaxThreads && whole(dy) && whole(x) && whole(dsum);
    for (int i = 0; i < 2; ++i) {
      const Tensor to = targets[i] == nullptr ? Tensor() : targets[i]->tensor;
      if (!to.defined()) continue;
      p.to[i] = {ptr<T>(to), to.stride(0), targets[i]->accumulate};
      vectors = vectors && whole(to);
    }
    const auto grid = static_cast<unsigned>(blocks);
    const auto threads = [&](int64_t per_thread) {
      return static_cast<unsigned>(((d + per_thread - 1) / per_thread + 31) / 32 * 32);
    };
    if (!vectors) {
      rms_norm_backward_plain<T><<<grid, std::min(256u, threads(1)), 0, stream_of(x)>>>(p);
    } else if (d <= 8 * kMaxThreads) {
      rms_norm_backward_vectors<T, 1><<<grid, threads(8), 0, stream_of(x)>>>(p);
    } else if (d <= 16 * kMaxThreads) {
      rms_norm_backward_vectors<T, 2><<<grid, threads(16), 0, stream_of(x)>>>(p);
    } else {
      rms_norm_backward_vectors<T, 4><<<grid, threads(32), 0, stream_of(x)>>>(p);
    }
    check_launch(op);
  });
  if (dweight) add_pieces(dweight, pieces);
}

void rms_norm_backward_cuda(const GradientSlot& dx, const GradientSlot& dweight, const Tensor& dy,
                            const Tensor& x, const Tensor& weight, float eps, NormKind kind) {
  run("rms_norm_backward", {&dx, nullptr}, dweight, dy, {}, x, weight, eps, kind);
}

void add_rms_norm_backward_cuda(const GradientSlot& dresidual, const GradientSlot& dx,
                                const GradientSlot& dweight, const Tensor& dy, const Tensor& dsum,
                                const Tensor& sum, const Tensor& weight, float eps, NormKind kind) {
  run("add_rms_norm_backward", {&dresidual, &dx}, dweight, dy, dsum, sum, weight, eps, kind);
}

const RegisterKernel r1(rms_norm_backward_kernel, DeviceType::kCuda, &rms_norm_backward_cuda);
const RegisterKernel r2(add_rms_norm_backward_kernel, DeviceType::kCuda,
                        &add_rms_norm_backward_cuda);

}  // namespace
}  // namespace reft
