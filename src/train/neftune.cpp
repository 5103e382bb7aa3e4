#include "train/neftune.h"

#include <cmath>

#include "ops/dropout.h"

namespace reft {

void add_neftune_noise(Tensor& embedded, const std::vector<int32_t>& sequence_start, double alpha,
                       uint64_t seed, uint64_t pass) {
  constexpr uint64_t kStream = uint64_t{0x4E} << 56;
  std::vector<float> scales;
  for (size_t i = 0; i + 1 < sequence_start.size(); ++i) {
    const int32_t length = sequence_start[i + 1] - sequence_start[i];
    const double area = static_cast<double>(length) * static_cast<double>(embedded.size(1));
    scales.insert(scales.end(), static_cast<size_t>(length),
                  static_cast<float>(alpha / std::sqrt(area)));
  }
  const Tensor row_scale = Tensor::from_vector(scales).to(embedded.device());
  add_uniform_noise(embedded, row_scale, seed, kStream | pass);
}

}  // namespace reft
