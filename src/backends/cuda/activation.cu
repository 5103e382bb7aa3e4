// Element-wise ops and row gathers.
#include "backends/cuda/activation.h"
#include "backends/cuda/linear_quantized.h"
#include "ops/embedding.h"

namespace reft {
namespace {

// One thread per kWidth neighbouring elements; n and f count such vectors.
template <class T, int kWidth>
__global__ void gated_kernel(T* __restrict__ y, const T* gate_up, int64_t stride, uint32_t f,
                             uint32_t n, Activation activation) {
  allow_next();
  await_inputs();
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  using V = Vector<T, kWidth>;
  const auto* row = reinterpret_cast<const V*>(gate_up + i / f * stride);
  const V gate = row[i % f], up = row[f + i % f];
  V out;
#pragma unroll
  for (int e = 0; e < kWidth; ++e)
    out.v[e] = as<T>(gated(as_float(gate.v[e]), as_float(up.v[e]), activation));
  reinterpret_cast<V*>(y)[i] = out;
}

__global__ void soft_cap_kernel_cuda(float* __restrict__ x, int64_t n, float cap) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i < n) x[i] = cap * tanhf(x[i] / cap);
}

template <class Out, class In>
__global__ void embedding_kernel_cuda(Out* __restrict__ out, const int32_t* __restrict__ ids,
                                      const In* __restrict__ table, int64_t vocab, int64_t d,
                                      float scale) {
  const int64_t row = blockIdx.x;
  // Ids were validated when the request came in; clamping keeps a padded slot of a graph harmless.
  const int64_t id = min(max(int64_t{ids[row]}, int64_t{0}), vocab - 1);
  for (int64_t i = threadIdx.x; i < d; i += blockDim.x) {
    out[row * d + i] = as<Out>(as_float(as<Out>(as_float(table[id * d + i]))) * scale);
  }
}

template <class T>
__global__ void gather_rows_kernel_cuda(T* __restrict__ out, const T* __restrict__ x,
                                        int64_t stride, const int32_t* __restrict__ rows,
                                        int64_t d) {
  const int64_t row = blockIdx.x;
  const T* source = x + rows[row] * stride;
  for (int64_t i = threadIdx.x; i < d; i += blockDim.x) out[row * d + i] = source[i];
}

void gated_activation_cuda(Tensor& y, const Tensor& gate_up, Activation activation) {
  const int64_t f = y.size(1), n = y.numel();
  if (n == 0) return;
  dispatch_float(y.dtype(), "gated_activation", [&](auto type) {
    using T = decltype(type);
    const auto run = [&]<int kWidth>() {
      const int64_t vectors = n / kWidth;
      check(vectors < int64_t{1} << 32, "gated_activation: {} is too large on CUDA", y.str());
      launch_dependent("gated_activation", gated_kernel<T, kWidth>, y.device().index,
                       dim3(blocks_for(vectors, 128)), 128, 0, ptr<T>(y), ptr<T>(gate_up),
                       gate_up.stride(0), f / kWidth, vectors, activation);
    };
    const bool wide = f % 8 == 0 && gate_up.stride(0) % 8 == 0 && aligned_16(y.raw()) &&
                      aligned_16(gate_up.raw());
    wide ? run.template operator()<8>() : run.template operator()<1>();
  });
}

void soft_cap_cuda(Tensor& x, float cap) {
  check(x.dtype() == DType::kF32, "soft_cap_: {} is not supported on CUDA", x.str());
  if (x.numel() == 0) return;
  soft_cap_kernel_cuda<<<blocks_for(x.numel(), 256), 256, 0, stream_of(x)>>>(ptr<float>(x),
                                                                             x.numel(), cap);
  check_launch("soft_cap_");
}

void embedding_cuda(Tensor& out, const Tensor& ids, const Weight& table, float scale) {
  if (ids.size(0) == 0) return;
  if (table.packed != nullptr) return blocks_embedding_cuda(out, ids, table, scale);
  const int64_t vocab = table.data.size(0), d = table.data.size(1);
  dispatch_float(out.dtype(), "embedding", [&](auto out_type) {
    using Out = decltype(out_type);
    dispatch_float(table.data.dtype(), "embedding", [&](auto in_type) {
      using In = decltype(in_type);
      embedding_kernel_cuda<Out, In>
          <<<static_cast<unsigned>(ids.size(0)), 256, 0, stream_of(out)>>>(
              ptr<Out>(out), ptr<int32_t>(ids), ptr<In>(table.data), vocab, d, scale);
      check_launch("embedding");
    });
  });
}

void gather_rows_cuda(Tensor& out, const Tensor& x, const Tensor& rows) {
  if (rows.size(0) == 0) return;
  dispatch_float(x.dtype(), "gather_rows", [&](auto type) {
    using T = decltype(type);
    gather_rows_kernel_cuda<T><<<static_cast<unsigned>(rows.size(0)), 256, 0, stream_of(x)>>>(
        ptr<T>(out), ptr<T>(x), x.stride(0), ptr<int32_t>(rows), x.size(1));
    check_launch("gather_rows");
  });
}

const RegisterKernel r1(gated_activation_kernel, DeviceType::kCuda, &gated_activation_cuda);
const RegisterKernel r2(soft_cap_kernel, DeviceType::kCuda, &soft_cap_cuda);
const RegisterKernel r3(embedding_kernel, DeviceType::kCuda, &embedding_cuda);
const RegisterKernel r4(gather_rows_kernel, DeviceType::kCuda, &gather_rows_cuda);

}  // namespace
}  // namespace reft
