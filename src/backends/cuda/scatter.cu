// Rows added to a table by number: the gradient of embeddings and gathers. Rows of the same number
// are brought together by a stable sort and added up by one block, so that no order is left to
// chance.
#include <algorithm>
#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "backends/cuda/common.h"
#include "ops/embedding.h"

namespace reft {
namespace {

__global__ void count_up_kernel(int32_t* to, int64_t n) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i < n) to[i] = static_cast<int32_t>(i);
}

// Block b, if it is the first of its number among the sorted rows, adds all rows of that number.
template <class Out, class T>
__global__ void add_sorted_rows_kernel(Out* out, int64_t out_stride, int64_t out_rows, const T* x,
                                       int64_t x_stride, const int32_t* __restrict__ numbers,
                                       const int32_t* __restrict__ rows, int64_t num_rows,
                                       int64_t columns, float scale) {
  const int64_t first = blockIdx.x;
  const int32_t number = numbers[first];
  if (number < 0 || number >= out_rows) return;
  if (first > 0 && numbers[first - 1] == number) return;
  for (int64_t i = threadIdx.x; i < columns; i += blockDim.x) {
    Out& to = out[number * out_stride + i];
    float sum = as_float(to);
#pragma unroll 4
    for (int64_t r = first; r < num_rows && numbers[r] == number; ++r)
      sum += scale * as_float(x[rows[r] * x_stride + i]);
    to = as<Out>(sum);
  }
}

void scatter_add_rows_cuda(const Tensor& out, const Tensor& x, const Tensor& rows, float scale) {
  const int64_t n = rows.size(0);
  if (n == 0) return;
  check(n < int64_t{1} << 31 && rows.is_contiguous(), "scatter_add_rows: rows are {}", rows);
  const Device device = x.device();
  const cudaStream_t stream = stream_of(x);
  const Tensor numbers = Tensor::empty({n}, DType::kI32, device);
  const Tensor counted = Tensor::empty({n}, DType::kI32, device);
  const Tensor sorted = Tensor::empty({n}, DType::kI32, device);
  count_up_kernel<<<blocks_for(n, 256), 256, 0, stream>>>(ptr<int32_t>(counted), n);
  check_launch("scatter_add_rows");
  // Only the bits that numbers in range have; others are passed over.
  const int bits = 1 + std::bit_width(static_cast<uint64_t>(out.size(0)));
  const auto sort = [&](void* space, size_t& bytes) {
    cuda_check(cub::DeviceRadixSort::SortPairs(
                   space, bytes, ptr<uint32_t>(rows), ptr<uint32_t>(numbers), ptr<int32_t>(counted),
                   ptr<int32_t>(sorted), static_cast<int>(n), 0, std::min(bits, 32), stream),
               "sorting rows");
  };
  size_t bytes = 0;
  sort(nullptr, bytes);
  const Tensor space = Tensor::empty({static_cast<int64_t>(bytes)}, DType::kU8, device);
  sort(space.raw(), bytes);
  dispatch_float(x.dtype(), "scatter_add_rows", [&](auto type) {
    using T = decltype(type);
    const auto add = [&](auto out_type) {
      using Out = decltype(out_type);
      add_sorted_rows_kernel<Out, T><<<static_cast<unsigned>(n), 256, 0, stream>>>(
          ptr<Out>(out), out.stride(0), out.size(0), ptr<T>(x), x.stride(0), ptr<int32_t>(numbers),
          ptr<int32_t>(sorted), n, x.size(1), scale);
      check_launch("scatter_add_rows");
    };
    out.dtype() == DType::kF32 ? add(float{}) : add(T{});
  });
}

const RegisterKernel r(scatter_add_rows_kernel, DeviceType::kCuda, &scatter_add_rows_cuda);

}  // namespace
}  // namespace reft
