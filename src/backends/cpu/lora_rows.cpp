#include "ops/lora_rows.h"

#include <algorithm>
#include <vector>

#include "backends/cpu/simd.h"
#include "base/thread_pool.h"

namespace reft {
namespace {

// One row, in an order of its own whatever the other rows are: alone or in a batch the same bits.
void add_row(float* y, const float* x, int64_t n, int64_t k, int64_t slot, const LoraStack& stack,
             const float* bias, std::vector<float>& hidden) {
  const auto& simd = simd_kernels();
  const int64_t stride = stack.b.size(1);
  const int64_t rank = stack.ranks.data<int32_t>()[slot];
  if (rank == 0) return;
  const float* change = stack.column_change.data<float>() + slot * n;
  for (int64_t i = 0; i < n; ++i) y[i] += (bias != nullptr ? y[i] - bias[i] : y[i]) * change[i];
  hidden.assign(static_cast<size_t>(rank), 0.0f);
  const float* a = stack.a.data<float>() + slot * k * stride;
  for (int64_t i = 0; i < k; ++i) simd.add_scaled(hidden.data(), a + i * stride, x[i], rank);
  const float* b = stack.b.data<float>() + slot * stride * n;
  for (int64_t r = 0; r < rank; ++r)
    simd.add_scaled(y, b + r * n, hidden[static_cast<size_t>(r)], n);
}

void lora_rows_cpu(Tensor& y, const Tensor& x, const Tensor& slots, const LoraStack& stack,
                   const Tensor& bias) {
  const int64_t n = y.size(1), k = x.size(1);
  const int64_t work = std::max<int64_t>(1, (n + k) * stack.b.size(1));
  const int64_t grain = std::max<int64_t>(1, (int64_t{1} << 16) / work);
  compute_pool().parallel_for(x.size(0), grain, [&](int64_t begin, int64_t end) {
    std::vector<float> hidden;
    for (int64_t t = begin; t < end; ++t) {
      const int32_t slot = slots.data<int32_t>()[t];
      if (slot < 0) continue;
      add_row(y.data<float>() + t * y.stride(0), x.data<float>() + t * x.stride(0), n, k, slot,
              stack, bias.defined() ? bias.data<float>() : nullptr, hidden);
    }
  });
}

const RegisterKernel lora_rows_entry(lora_rows_kernel, DeviceType::kCpu, &lora_rows_cpu);

}  // namespace
}  // namespace reft
