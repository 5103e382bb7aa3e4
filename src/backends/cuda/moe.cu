// Experts' weights in place, and what joins their results.
#include "backends/cuda/moe.h"

#include <cstring>

#include "base/thread_pool.h"

namespace reft {
namespace {

// y[t] = Σ over j of weights[t, j] x[rows[t, j]]. One thread per kWidth neighbouring columns; d
// counts such vectors.
template <class T, int kWidth>
__global__ void combine_experts_kernel_cuda(T* y, const T* x, const int32_t* rows,
                                            const float* weights, int top_k, int64_t d,
                                            int64_t total) {
  allow_next();
  await_inputs();
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= total) return;
  using V = Vector<T, kWidth>;
  const int64_t token = i / d, column = i % d;
  float sum[kWidth] = {};
  for (int j = 0; j < top_k; ++j) {
    const float weight = weights[token * top_k + j];
    const V v = reinterpret_cast<const V*>(x)[rows[token * top_k + j] * d + column];
#pragma unroll
    for (int e = 0; e < kWidth; ++e) sum[e] += weight * as_float(v.v[e]);
  }
  V out;
#pragma unroll
  for (int e = 0; e < kWidth; ++e) out.v[e] = as<T>(sum[e]);
  reinterpret_cast<V*>(y)[i] = out;
}

template <class T>
__global__ void sigmoid_scale_rows_kernel_cuda(T* y, const T* x, const float* gate,
                                               int64_t gate_stride, int64_t d, int64_t total) {
  allow_next();
  await_inputs();
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= total) return;
  const float scale = 1.0f / (1.0f + __expf(-gate[i / d * gate_stride]));
  y[i] = as<T>(as_float(x[i]) * scale);
}

void combine_experts_cuda(Tensor& y, const Tensor& x, const Routing& routing) {
  const int64_t d = x.size(1);
  dispatch_float(x.dtype(), "combine_experts", [&](auto type) {
    using T = decltype(type);
    const auto run = [&]<int kWidth>() {
      const int64_t total = y.numel() / kWidth;
      launch_dependent("combine_experts", combine_experts_kernel_cuda<T, kWidth>, x.device().index,
                       dim3(blocks_for(total, 128)), 128, 0, ptr<T>(y), ptr<T>(x),
                       ptr<int32_t>(routing.rows), ptr<float>(routing.weights),
                       static_cast<int>(routing.top_k()), d / kWidth, total);
    };
    const bool wide = d % 8 == 0 && aligned_16(x.raw()) && aligned_16(y.raw());
    wide ? run.template operator()<8>() : run.template operator()<1>();
  });
}

void sigmoid_scale_rows_cuda(Tensor& y, const Tensor& x, const Tensor& gate) {
  dispatch_float(x.dtype(), "sigmoid_scale_rows", [&](auto type) {
    using T = decltype(type);
    launch_dependent("sigmoid_scale_rows", sigmoid_scale_rows_kernel_cuda<T>, x.device().index,
                     dim3(blocks_for(x.numel(), 256)), 256, 0, ptr<T>(y), ptr<T>(x),
                     ptr<float>(gate), gate.stride(0), x.size(1), x.numel());
  });
}

// Of a row of GGUF's blocks (an exponent, then 16 bytes: low nibbles are the first 16 values) the
// codes in the order of moe.h.
void repack_mxfp4_row(const uint8_t* blocks, int64_t k, uint8_t* codes, uint8_t* scales) {
  for (int64_t block = 0; block < k / 32; ++block, blocks += 17, codes += 16) {
    scales[block] = blocks[0];
    std::memset(codes, 0, 16);
    for (int i = 0; i < 32; ++i) {
      const int code = i < 16 ? blocks[1 + i] & 15 : blocks[1 + i - 16] >> 4;
      const int nibble = i / 8 * 8 + mxfp4_nibble(i % 8);
      codes[nibble / 2] = static_cast<uint8_t>(codes[nibble / 2] | code << (nibble % 2 * 4));
    }
  }
}

void copy_expert(const Tensor& all, int64_t e, const Tensor& matrix) {
  all.rows(e, e + 1).copy_from(matrix.contiguous().reshape({1, matrix.size(0), matrix.size(1)}));
}

void place_expert_cuda(ExpertWeights& weights, int64_t e, const Tensor& matrix, Device device,
                       DType compute) {
  const int64_t n = weights.out_features, k = weights.in_features;
  // 4 bits stay 4 bits where the kernels take them.
  const bool blocks = weights.dtype == DType::kMXFP4 && compute != DType::kF32 && k % 64 == 0;
  if (!weights.data.defined()) {
    const Shape shape{weights.num_experts, n, blocks ? k / 2 : k};
    weights.data = Tensor::empty(shape, blocks ? DType::kU8 : compute, device);
    if (blocks)
      weights.scales = Tensor::empty({weights.num_experts, n, k / 32}, DType::kU8, device);
  }
  if (!blocks) return copy_expert(weights.data, e, matrix.to(compute));
  const Tensor source = matrix.contiguous();
  const Tensor codes = Tensor::empty({n, k / 2}, DType::kU8);
  const Tensor scales = Tensor::empty({n, k / 32}, DType::kU8);
  compute_pool().parallel_for(n, 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      repack_mxfp4_row(reinterpret_cast<const uint8_t*>(source.raw()) + row * (k / 32 * 17), k,
                       codes.data<uint8_t>() + row * (k / 2),
                       scales.data<uint8_t>() + row * (k / 32));
    }
  });
  copy_expert(weights.data, e, codes);
  copy_expert(weights.scales, e, scales);
}

const RegisterKernel r1(place_expert_kernel, DeviceType::kCuda, &place_expert_cuda);
const RegisterKernel r2(combine_experts_kernel, DeviceType::kCuda, &combine_experts_cuda);
const RegisterKernel r3(sigmoid_scale_rows_kernel, DeviceType::kCuda, &sigmoid_scale_rows_cuda);

}  // namespace
}  // namespace reft
