#include "engine/lora_merge.h"

#include <cmath>

#include "base/thread_pool.h"

namespace reft {

Tensor merge_lora(const std::string& path, const Tensor& weight, const LoraWeights& lora) {
  const int64_t rank = lora.a.size(0);
  check(weight.dims() == 2 && weight.size(0) == lora.b.size(0) && weight.size(1) == lora.a.size(1),
        "the adapter's '{}' is [{}, {}], the model's {}", path, lora.b.size(0), lora.a.size(1),
        weight.shape());
  const Tensor w = weight.to(DType::kF32).contiguous();
  const Tensor a = lora.a.to(DType::kF32).contiguous(), b = lora.b.to(DType::kF32).contiguous();
  const std::vector<float> lengths = lora.magnitude.defined()
                                         ? lora.magnitude.to(DType::kF32).to_vector<float>()
                                         : std::vector<float>();
  const int64_t columns = w.size(1);
  Tensor result = Tensor::empty(w.shape(), DType::kF32);
  compute_pool().parallel_for(w.size(0), 16, [&](int64_t begin, int64_t end) {
    std::vector<double> row(static_cast<size_t>(columns));
    for (int64_t o = begin; o < end; ++o) {
      const float* from = w.data<float>() + o * columns;
      row.assign(from, from + columns);
      for (int64_t r = 0; r < rank; ++r) {
        const double factor = lora.scale * double{b.data<float>()[o * rank + r]};
        const float* direction = a.data<float>() + r * columns;
        for (size_t i = 0; i < row.size(); ++i) row[i] += factor * double{direction[i]};
      }
      double stretch = 1;
      if (!lengths.empty()) {
        double squares = 0;
        for (const double x : row) squares += x * x;
        stretch = squares > 0 ? double{lengths[static_cast<size_t>(o)]} / std::sqrt(squares) : 1;
      }
      float* to = result.data<float>() + o * columns;
      for (size_t i = 0; i < row.size(); ++i) to[i] = static_cast<float>(stretch * row[i]);
    }
  });
  return result;
}

}  // namespace reft
