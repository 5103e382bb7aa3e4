#include "ops/loss.h"

#include <cmath>
#include <vector>

#include "backends/cpu/simd.h"
#include "base/thread_pool.h"

namespace reft {
namespace {

void cross_entropy_cpu(const Tensor& losses, const Tensor& logits, const Tensor& labels,
                       const Tensor& dlosses, const Tensor& /*dlogits: the logits*/,
                       float soft_cap) {
  const auto& simd = simd_kernels();
  const int64_t vocab = logits.size(1);
  const int32_t* label = labels.data<int32_t>();
  float* loss = losses.defined() ? losses.data<float>() : nullptr;
  const float* dloss = dlosses.defined() ? dlosses.data<float>() : nullptr;
  for (int64_t r = 0; r < labels.size(0); ++r) {
    check(label[r] < vocab, "linear_cross_entropy: label {} of row {} is outside [0, {})", label[r],
          r, vocab);
  }
  compute_pool().parallel_for(labels.size(0), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> p(soft_cap > 0 ? static_cast<size_t>(vocab) : 0);
    for (int64_t r = begin; r < end; ++r) {
      float* z = logits.data<float>() + r * logits.stride(0);
      if (label[r] < 0) {
        if (loss != nullptr) loss[r] = 0;
        if (dloss != nullptr) std::fill(z, z + vocab, 0.0f);
        continue;
      }
      if (soft_cap > 0) simd.soft_cap(z, vocab, soft_cap);
      const float own = z[label[r]], top = simd.largest(z, vocab);
      float* to = dloss == nullptr ? nullptr : soft_cap > 0 ? p.data() : z;
      const double sum = simd.exponentials(to, z, vocab, top, 1.0f, 0.0f);
      if (loss != nullptr) loss[r] = static_cast<float>(std::log(sum)) + (top - own);
      if (dloss == nullptr) continue;
      const auto scale = static_cast<float>(dloss[r] / sum);
      if (soft_cap == 0) {
        for (int64_t i = 0; i < vocab; ++i) z[i] *= scale;
        z[label[r]] -= dloss[r];
        continue;
      }
      for (int64_t i = 0; i < vocab; ++i) {
        const float t = z[i] / soft_cap;
        const float d = p[static_cast<size_t>(i)] * scale - (i == label[r] ? dloss[r] : 0.0f);
        z[i] = d * (1.0f - t * t);
      }
    }
  });
}

const RegisterKernel cross_entropy_entry(cross_entropy_kernel, DeviceType::kCpu,
                                         &cross_entropy_cpu);

}  // namespace
}  // namespace reft
