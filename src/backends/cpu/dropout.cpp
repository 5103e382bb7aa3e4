#include "ops/dropout.h"

#include <algorithm>
#include <cmath>

#include "base/thread_pool.h"
#include "ops/philox.h"

namespace reft {
namespace {

constexpr int64_t kPerDraw = 4;  // numbers that one call of philox gives

// Element i of the packed tensor gets number i % 4 of draw i / 4.
class Draws {
 public:
  Draws(uint64_t seed, uint64_t stream) : seed_(seed), stream_(stream) {}
  uint32_t at(int64_t i) {
    const int64_t draw = i / kPerDraw;
    if (draw != draw_) bits_ = philox(seed_, static_cast<uint64_t>(draw), stream_);
    draw_ = draw;
    return bits_[static_cast<size_t>(i % kPerDraw)];
  }

 private:
  uint64_t seed_, stream_;
  int64_t draw_ = -1;
  std::array<uint32_t, kPerDraw> bits_{};
};

void scale_row(float* y, bool accumulate, const float* x, int64_t n, float factor) {
  if (accumulate) {
    for (int64_t i = 0; i < n; ++i) y[i] += factor * x[i];
  } else {
    for (int64_t i = 0; i < n; ++i) y[i] = factor * x[i];
  }
}

void dropout_cpu(const GradientSlot& y, const Tensor& x, const DropoutArgs& args) {
  const int64_t rows = x.size(0), n = x.size(1);
  const float factor = args.factor / (1.0f - args.p);
  const auto bound = static_cast<uint64_t>(std::ldexp(static_cast<double>(args.p), 32));
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(n, 1));
  compute_pool().parallel_for(rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* from = x.data<float>() + t * x.stride(0);
      float* to = y.tensor.data<float>() + t * y.tensor.stride(0);
      if (bound == 0) {
        scale_row(to, y.accumulate, from, n, factor);
        continue;
      }
      Draws draws(args.seed, args.stream);
      for (int64_t i = 0; i < n; ++i) {
        const float value = draws.at(t * n + i) < bound ? 0.0f : factor * from[i];
        to[i] = y.accumulate ? to[i] + value : value;
      }
    }
  });
}

void add_uniform_noise_cpu(Tensor& x, const Tensor& row_scale, uint64_t seed, uint64_t stream) {
  const int64_t n = x.size(1);
  compute_pool().parallel_for(x.size(0), 8, [&](int64_t begin, int64_t end) {
    Draws draws(seed, stream);
    for (int64_t t = begin; t < end; ++t) {
      const float scale = row_scale.data<float>()[t];
      float* row = x.data<float>() + t * n;
      for (int64_t i = 0; i < n; ++i) {
        const double u = static_cast<double>(draws.at(t * n + i)) * 0x1p-31 - 1;
        row[i] += scale * static_cast<float>(u);
      }
    }
  });
}

const RegisterKernel dropout_entry(dropout_kernel, DeviceType::kCpu, &dropout_cpu);
const RegisterKernel noise_entry(add_uniform_noise_kernel, DeviceType::kCpu,
                                 &add_uniform_noise_cpu);

}  // namespace
}  // namespace reft
