#include "ops/copy_rows.h"

namespace reft {
namespace {

void copy_rows_cpu(std::span<const RowsCopy> copies) {
  for (const RowsCopy& c : copies) {
    const int64_t wide = c.to.dims() == 2 ? c.to.size(1) : 1;
    const int64_t narrow = c.from.dims() == 2 ? c.from.size(1) : 1;
    const auto* from = c.from.data<int32_t>();
    auto* to = c.to.data<int32_t>();
    const int32_t* values = c.values.defined() ? c.values.data<int32_t>() : nullptr;
    for (int64_t i = 0; i < c.to.size(0); ++i) {
      for (int64_t j = 0; j < narrow; ++j) {
        int32_t x = i < c.from.size(0) ? from[i * narrow + j] : c.fill;
        if (values != nullptr && x < 0) x = values[-1 - x];
        to[i * wide + j] = x;
      }
    }
  }
}

const RegisterKernel r(copy_rows_kernel, DeviceType::kCpu, &copy_rows_cpu);

}  // namespace
}  // namespace reft
