// Sums of squares of many tensors at once, and the orthogonalization of Muon.
#include <algorithm>
#include <vector>

#include "backends/cuda/common.h"
#include "backends/cuda/gemm.h"
#include "ops/optimizer.h"

namespace reft {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kChunk = 262144;  // elements of a block

struct Chunk {
  const float* data;
  int64_t size;
};

__device__ __forceinline__ double block_sum_double(double x, double* scratch) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  x = 0;
  for (int i = 0; i < kThreads / 32; ++i) x += scratch[i];
  return x;
}

// Squares of floats are exact in double. A thread adds up its own in four sums.
__global__ void __launch_bounds__(kThreads)
    chunk_sums_kernel(double* __restrict__ sums, const Chunk* __restrict__ chunks) {
  __shared__ double scratch[kThreads / 32];
  const Chunk chunk = chunks[blockIdx.x];
  double sum[4] = {};
  const int64_t fours = reinterpret_cast<uintptr_t>(chunk.data) % 16 == 0 ? chunk.size / 4 : 0;
  for (int64_t i = threadIdx.x; i < fours; i += kThreads) {
    const float4 x = reinterpret_cast<const float4*>(chunk.data)[i];
    sum[0] += static_cast<double>(x.x) * x.x;
    sum[1] += static_cast<double>(x.y) * x.y;
    sum[2] += static_cast<double>(x.z) * x.z;
    sum[3] += static_cast<double>(x.w) * x.w;
  }
  for (int64_t i = fours * 4 + threadIdx.x; i < chunk.size; i += kThreads)
    sum[0] += static_cast<double>(chunk.data[i]) * chunk.data[i];
  const double all = block_sum_double((sum[0] + sum[1]) + (sum[2] + sum[3]), scratch);
  if (threadIdx.x == 0) sums[blockIdx.x] = all;
}

// Block b adds up chunks [first[b], first[b + 1]), in order.
__global__ void __launch_bounds__(kThreads)
    tensor_sums_kernel(double* __restrict__ sums, const double* __restrict__ of_chunks,
                       const int32_t* __restrict__ first) {
  __shared__ double scratch[kThreads / 32];
  double sum = 0;
  for (int i = first[blockIdx.x] + static_cast<int>(threadIdx.x); i < first[blockIdx.x + 1];
       i += kThreads)
    sum += of_chunks[i];
  sum = block_sum_double(sum, scratch);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

void square_sums_cuda(Tensor& sums, std::span<const Tensor> tensors) {
  std::vector<int64_t> chunks;  // Chunk as two numbers
  std::vector<int32_t> first = {0};
  for (const Tensor& t : tensors) {
    for (int64_t at = 0; at < t.numel(); at += kChunk) {
      chunks.push_back(reinterpret_cast<int64_t>(ptr<float>(t) + at));
      chunks.push_back(std::min(kChunk, t.numel() - at));
    }
    first.push_back(static_cast<int32_t>(chunks.size() / 2));
  }
  static_assert(sizeof(Chunk) == 2 * sizeof(int64_t));
  const Device device = sums.device();
  const auto num_chunks = static_cast<int64_t>(chunks.size() / 2);
  const Tensor list = Tensor::from_vector(chunks).to(device);
  const Tensor starts = Tensor::from_vector(first).to(device);
  const Tensor partial = Tensor::empty({num_chunks}, DType::kF64, device);
  if (num_chunks > 0) {
    chunk_sums_kernel<<<static_cast<unsigned>(num_chunks), kThreads, 0, stream_of(sums)>>>(
        ptr<double>(partial), ptr<Chunk>(list));
    check_launch("square_sums");
  }
  tensor_sums_kernel<<<static_cast<unsigned>(tensors.size()), kThreads, 0, stream_of(sums)>>>(
      ptr<double>(sums), ptr<double>(partial), ptr<int32_t>(starts));
  check_launch("square_sums");
}

// to [rows, columns] = x / max(|x|, 1e-7), or of x's transpose; without a sum x as it is.
__global__ void normalized_kernel(float* __restrict__ to, const float* __restrict__ x,
                                  const double* square_sum, int64_t rows, int64_t columns,
                                  bool transposed) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= rows * columns) return;
  const float scale =
      square_sum == nullptr ? 1.0f : static_cast<float>(1 / fmax(sqrt(*square_sum), 1e-7));
  to[i] = (transposed ? x[i % columns * rows + i / columns] : x[i]) * scale;
}

// to = alpha to + beta x
__global__ void mix_kernel(float* __restrict__ to, const float* __restrict__ x, float alpha,
                           float beta, int64_t n) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i < n) to[i] = alpha * to[i] + beta * x[i];
}

void copy_normalized(const Tensor& to, const Tensor& x, const double* square_sum, bool transposed) {
  normalized_kernel<<<blocks_for(x.numel(), kThreads), kThreads, 0, stream_of(x)>>>(
      ptr<float>(to), ptr<float>(x), square_sum, to.size(0), to.size(1), transposed);
  check_launch("orthogonalize");
}

void mix(const Tensor& to, const Tensor& x, float alpha, float beta) {
  mix_kernel<<<blocks_for(x.numel(), kThreads), kThreads, 0, stream_of(x)>>>(
      ptr<float>(to), ptr<float>(x), alpha, beta, x.numel());
  check_launch("orthogonalize");
}

void orthogonalize_cuda(Tensor& x) {
  constexpr float kA = 3.4445f, kB = -4.7750f, kC = 2.0315f;
  constexpr int kSteps = 5;
  const bool tall = x.size(0) > x.size(1);
  const int64_t m = std::min(x.size(0), x.size(1)), n = std::max(x.size(0), x.size(1));
  const Device device = x.device();
  Tensor norm = Tensor::empty({1}, DType::kF64, device);
  square_sums_cuda(norm, std::span<const Tensor>(&x, 1));
  Tensor wide = Tensor::empty({m, n}, DType::kF32, device);
  Tensor next = Tensor::empty({m, n}, DType::kF32, device);
  const Tensor gram = Tensor::empty({m, m}, DType::kF32, device);
  const Tensor square = Tensor::empty({m, m}, DType::kF32, device);
  copy_normalized(wide, x, ptr<double>(norm), tall);
  for (int step = 0; step < kSteps; ++step) {
    multiply(gram, {wide}, {wide, true}, false);
    multiply(square, {gram}, {gram}, false);
    mix(square, gram, kC, kB);
    next.fill_zero();
    mix(next, wide, 0.0f, kA);
    multiply(next, {square}, {wide}, true);
    std::swap(next, wide);
  }
  copy_normalized(x, wide, nullptr, tall);
}

const RegisterKernel r1(square_sums_kernel, DeviceType::kCuda, &square_sums_cuda);
const RegisterKernel r2(orthogonalize_kernel, DeviceType::kCuda, &orthogonalize_cuda);

}  // namespace
}  // namespace reft
