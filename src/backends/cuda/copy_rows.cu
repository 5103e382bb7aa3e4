#include <algorithm>

#include "backends/cuda/common.h"
#include "ops/copy_rows.h"

namespace reft {
namespace {

struct Copy {
  int32_t* to;
  const int32_t* from;
  const int32_t* values;
  int32_t rows, narrow;
  int32_t all_rows, wide;
  int32_t fill;
};
struct Copies {
  Copy copies[kMaxRowsCopies];
};

constexpr int kThreads = 256;

// Grid: (stretches of an array, copies).
__global__ void copy_rows_kernel_cuda(const Copies all) {
  const Copy& c = all.copies[blockIdx.y];
  const int64_t total = int64_t{c.all_rows} * c.narrow;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < total;
       i += int64_t{gridDim.x} * kThreads) {
    const int64_t row = i / c.narrow;
    int32_t x = row < c.rows ? c.from[i] : c.fill;
    if (c.values != nullptr && x < 0) x = c.values[-1 - x];
    c.to[row * c.wide + i % c.narrow] = x;
  }
}

void copy_rows_cuda(std::span<const RowsCopy> copies) {
  Copies all{};
  int64_t most = 0;
  for (size_t i = 0; i < copies.size(); ++i) {
    const RowsCopy& c = copies[i];
    const auto columns = [](const Tensor& t) {
      return t.dims() == 2 ? static_cast<int32_t>(t.size(1)) : 1;
    };
    all.copies[i] = {.to = ptr<int32_t>(c.to),
                     .from = ptr<int32_t>(c.from),
                     .values = c.values.defined() ? ptr<int32_t>(c.values) : nullptr,
                     .rows = static_cast<int32_t>(c.from.size(0)),
                     .narrow = columns(c.from),
                     .all_rows = static_cast<int32_t>(c.to.size(0)),
                     .wide = columns(c.to),
                     .fill = c.fill};
    most = std::max(most, c.to.size(0) * columns(c.from));
  }
  if (most == 0) return;
  const unsigned blocks = std::min(64u, blocks_for(most, kThreads));
  copy_rows_kernel_cuda<<<dim3(blocks, static_cast<unsigned>(copies.size())), kThreads, 0,
                          stream_of(copies[0].to)>>>(all);
  check_launch("copy_rows");
}

const RegisterKernel r(copy_rows_kernel, DeviceType::kCuda, &copy_rows_cuda);

}  // namespace
}  // namespace reft
