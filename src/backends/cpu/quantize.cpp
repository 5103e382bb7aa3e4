// Floats to fp8.
#include <algorithm>
#include <cmath>
#include <vector>

#include "base/thread_pool.h"
#include "ops/weight.h"
#include "tensor/dequantize.h"

namespace reft {
namespace {

void quantize_fp8_cpu(const Tensor& x, int64_t group, Tensor& codes, Tensor& scales) {
  constexpr float kLargest = 448.0f;
  const int64_t rows = x.size(0), k = x.size(1), width = group == 0 ? k : group;
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(k, 1));
  compute_pool().parallel_for(rows, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> row(static_cast<size_t>(k));
    for (int64_t r = begin; r < end; ++r) {
      dequantize_row(x.dtype(), x.raw() + r * row_bytes(x.dtype(), x.stride(0)), row.data(), k);
      for (int64_t at = 0; at < k; at += width) {
        const auto first = row.begin() + at, last = row.begin() + std::min(k, at + width);
        float largest = 0.0f;
        for (auto i = first; i != last; ++i) largest = std::max(largest, std::fabs(*i));
        const float scale = largest > 0.0f ? largest / kLargest : 1.0f;
        for (auto i = first; i != last; ++i) *i /= scale;
        scales.data<float>()[group == 0 ? r : at / width * rows + r] = scale;
      }
      quantize_row(DType::kF8E4M3, row.data(), codes.raw() + r * k, k);
    }
  });
}

const RegisterKernel r(quantize_fp8_kernel, DeviceType::kCpu, &quantize_fp8_cpu);

}  // namespace
}  // namespace reft
