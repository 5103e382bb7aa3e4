#include "ops/linear.h"

#include <algorithm>
#include <vector>

#include "base/thread_pool.h"
#include "tensor/dequantize.h"

namespace reft {
namespace {

// Expands each weight row to float once and multiplies all rows of x by it. Any dtype, no layout
// needed.
void linear_plain(Tensor& y, const Tensor& x, const Weight& weight, const Tensor& bias) {
  const Tensor& w = weight.data;
  const int64_t k = weight.in_features;
  const int64_t w_stride = row_bytes(w.dtype(), w.stride(0));
  const float* xs = x.data<float>();
  float* ys = y.data<float>();
  compute_pool().parallel_for(weight.out_features, 8, [&](int64_t begin, int64_t end) {
    std::vector<float> row(static_cast<size_t>(k));
    for (int64_t n = begin; n < end; ++n) {
      dequantize_row(w.dtype(), w.raw() + n * w_stride, row.data(), k);
      for (int64_t t = 0; t < x.size(0); ++t) {
        const float* xt = xs + t * x.stride(0);
        float sums[8] = {};
        int64_t i = 0;
        for (; i + 8 <= k; i += 8) {
          for (int j = 0; j < 8; ++j) sums[j] += xt[i + j] * row[static_cast<size_t>(i + j)];
        }
        float sum = bias.defined() ? bias.data<float>()[n] : 0.0f;
        for (; i < k; ++i) sum += xt[i] * row[static_cast<size_t>(i)];
        for (float part : sums) sum += part;
        ys[t * y.stride(0) + n] = sum;
      }
    }
  });
}

void linear_cpu(Tensor& y, const Tensor& x, const Weight& weight, const Tensor& bias) {
  check(x.dtype() == DType::kF32 && y.dtype() == DType::kF32,
        "linear on the CPU takes float32 activations, got {}", x.str());
  linear_plain(y, x, weight, bias);
}

void prepare_weight_cpu(Weight& weight, DType compute, bool keep_data) {
  if (compute == DType::kF32 && !keep_data && weight.dtype != DType::kF32) {
    weight.data = weight.data.to(DType::kF32);
    weight.dtype = DType::kF32;
  }
}

const RegisterKernel register_linear(linear_kernel, DeviceType::kCpu, &linear_cpu);
const RegisterKernel register_prepare(prepare_weight_kernel, DeviceType::kCpu, &prepare_weight_cpu);

}  // namespace
}  // namespace reft
