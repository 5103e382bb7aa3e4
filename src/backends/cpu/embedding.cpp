#include "ops/embedding.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "backends/cpu/linear_pack.h"
#include "backends/cpu/simd.h"
#include "base/thread_pool.h"
#include "tensor/dequantize.h"

namespace reft {
namespace {

// Rows per chunk: below about 64 KB of output the hand-out costs more than the copy.
int64_t row_grain(int64_t columns) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(columns, 1));
}

void embedding_cpu(Tensor& out, const Tensor& ids, const Weight& table, float scale) {
  const Tensor& data = table.data;
  const int64_t columns = table.in_features;
  const int64_t num_rows = table.out_features;
  const auto* packed = dynamic_cast<const cpu::CpuPackedWeight*>(table.packed.get());
  const Tensor packed_ids = ids.contiguous();
  const int32_t* id = packed_ids.data<int32_t>();
  for (int64_t t = 0; t < ids.size(0); ++t) {
    check(id[t] >= 0 && id[t] < num_rows, "embedding: id {} at position {} is outside [0, {})",
          id[t], t, num_rows);
  }
  const bool plain = data.defined();
  const int64_t in_stride = plain ? row_bytes(data.dtype(), data.stride(0)) : 0;
  const int64_t out_stride = row_bytes(out.dtype(), out.stride(0));
  compute_pool().parallel_for(ids.size(0), row_grain(columns), [&](int64_t begin, int64_t end) {
    std::vector<float> row(static_cast<size_t>(columns));
    for (int64_t t = begin; t < end; ++t) {
      std::byte* to = out.raw() + t * out_stride;
      const bool direct = out.dtype() == DType::kF32;
      float* values = direct ? reinterpret_cast<float*>(to) : row.data();
      if (plain) {
        dequantize_row(data.dtype(), data.raw() + id[t] * in_stride, values, columns);
      } else {
        cpu::unpack_rows(*packed, id[t], id[t] + 1, values);
      }
      if (scale != 1.0f) {
        for (int64_t i = 0; i < columns; ++i) values[i] *= scale;
      }
      if (!direct) quantize_row(out.dtype(), values, to, columns);
    }
  });
}

void gather_rows_cpu(Tensor& out, const Tensor& x, const Tensor& rows) {
  const int64_t bytes = row_bytes(x.dtype(), x.size(1));
  const int64_t in_stride = row_bytes(x.dtype(), x.stride(0));
  const int64_t out_stride = row_bytes(out.dtype(), out.stride(0));
  const Tensor packed_rows = rows.contiguous();
  const int32_t* row = packed_rows.data<int32_t>();
  for (int64_t r = 0; r < rows.size(0); ++r) {
    check(row[r] >= 0 && row[r] < x.size(0), "gather_rows: row {} is outside [0, {})", row[r],
          x.size(0));
  }
  compute_pool().parallel_for(rows.size(0), row_grain(x.size(1)), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      std::memcpy(out.raw() + r * out_stride, x.raw() + row[r] * in_stride,
                  static_cast<size_t>(bytes));
    }
  });
}

// Threads share out the columns, so that rows which are named twice need no lock and add up in
// order.
void scatter_add_rows_cpu(const Tensor& out, const Tensor& x, const Tensor& rows, float scale) {
  const auto& simd = simd_kernels();
  const int64_t columns = x.size(1);
  const Tensor packed_rows = rows.contiguous();
  const int32_t* row = packed_rows.data<int32_t>();
  for (int64_t r = 0; r < rows.size(0); ++r) {
    check(row[r] >= 0 && row[r] < out.size(0), "scatter_add_rows: row {} is outside [0, {})",
          row[r], out.size(0));
  }
  const int64_t grain = std::max<int64_t>(64, 16384 / std::max<int64_t>(rows.size(0), 1));
  compute_pool().parallel_for(columns, grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = 0; r < rows.size(0); ++r) {
      simd.add_scaled(out.data<float>() + row[r] * out.stride(0) + begin,
                      x.data<float>() + r * x.stride(0) + begin, scale, end - begin);
    }
  });
}

const RegisterKernel register_scatter(scatter_add_rows_kernel, DeviceType::kCpu,
                                      &scatter_add_rows_cpu);
const RegisterKernel register_embedding(embedding_kernel, DeviceType::kCpu, &embedding_cpu);
const RegisterKernel register_gather(gather_rows_kernel, DeviceType::kCpu, &gather_rows_cpu);

}  // namespace
}  // namespace reft
