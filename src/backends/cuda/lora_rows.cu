// Adapters of many requests in one step: a block per row.
#include "backends/cuda/common.h"
#include "ops/lora_rows.h"

namespace reft {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxRank = 256;

struct Tables {
  const float* a;       // [S, K, R]
  const float* b;       // [S, R, N]
  const float* change;  // [S, N]
  const int32_t* ranks;
  int64_t n, k, stride;  // stride: R
};

template <class T>
__global__ void lora_rows_kernel_cuda(T* y, int64_t y_stride, const T* x, int64_t x_stride,
                                      const int32_t* slots, Tables tables, const float* bias) {
  __shared__ float hidden[kMaxRank];
  __shared__ float parts[kThreads];
  allow_next();
  await_inputs();
  const int64_t row = blockIdx.x;
  const int slot = slots[row];
  if (slot < 0) return;
  const int rank = tables.ranks[slot];
  if (rank == 0) return;
  x += row * x_stride;
  y += row * y_stride;
  const float* a = tables.a + slot * tables.k * tables.stride;
  // Thread t sums hidden value t % rank over every (256 / rank)-th k: neighbours read neighbours.
  const int groups = kThreads / rank, group = threadIdx.x / rank, r = threadIdx.x % rank;
  float sum = 0;
  if (group < groups) {
    for (int64_t i = group; i < tables.k; i += groups)
      sum += as_float(x[i]) * a[i * tables.stride + r];
  }
  parts[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x < rank) {
    for (int g = 1; g < groups; ++g) sum += parts[g * rank + threadIdx.x];
    hidden[threadIdx.x] = sum;
  }
  __syncthreads();
  const float* b = tables.b + slot * tables.stride * tables.n;
  const float* change = tables.change + slot * tables.n;
  for (int64_t i = threadIdx.x; i < tables.n; i += kThreads) {
    float value = as_float(y[i]);
    value += (bias != nullptr ? value - bias[i] : value) * change[i];
    for (int j = 0; j < rank; ++j) value += hidden[j] * b[j * tables.n + i];
    y[i] = as<T>(value);
  }
}

void lora_rows_cuda(Tensor& y, const Tensor& x, const Tensor& slots, const LoraStack& stack,
                    const Tensor& bias) {
  check(stack.b.size(1) <= kMaxRank, "lora_rows: ranks up to {} on CUDA, got {}", kMaxRank,
        stack.b.size(1));
  const Tables tables{ptr<float>(stack.a),
                      ptr<float>(stack.b),
                      ptr<float>(stack.column_change),
                      ptr<int32_t>(stack.ranks),
                      y.size(1),
                      x.size(1),
                      stack.b.size(1)};
  dispatch_float(y.dtype(), "lora_rows", [&](auto type) {
    using T = decltype(type);
    launch_dependent("lora_rows", lora_rows_kernel_cuda<T>, y.device().index,
                     dim3(static_cast<unsigned>(x.size(0))), kThreads, 0, ptr<T>(y), y.stride(0),
                     ptr<T>(x), x.stride(0), ptr<int32_t>(slots), tables,
                     bias.defined() ? ptr<float>(bias) : nullptr);
  });
}

const RegisterKernel lora_rows_entry(lora_rows_kernel, DeviceType::kCuda, &lora_rows_cuda);

}  // namespace
}  // namespace reft
