#include "ops/weight.h"

#include <algorithm>
#include <vector>

#include "base/thread_pool.h"
#include "tensor/dequantize.h"

namespace reft {

constinit Kernel<void(Weight& weight, DType compute, bool keep_data)> prepare_weight_kernel{
    "prepare_weight"};
constinit Kernel<void(const Tensor& x, int64_t group, Tensor& codes, Tensor& scales)>
    quantize_fp8_kernel{"quantize_fp8"};

namespace {

int64_t num_blocks(int64_t n) { return (n + kFp8Block - 1) / kFp8Block; }

void check_scales(const Tensor& codes, const Tensor& scales) {
  const Shape rows{codes.size(0)}, blocks{num_blocks(codes.size(0)), num_blocks(codes.size(1))};
  check(codes.dtype() == DType::kF8E4M3 && scales.dtype() == DType::kF32 &&
            scales.is_contiguous() && (scales.shape() == rows || scales.shape() == blocks),
        "a weight of {} has the scales {}, not float32 {} or {}", codes, scales, rows, blocks);
}

}  // namespace

Weight Weight::from(Tensor data, Tensor scales) {
  check(data.defined() && data.dims() == 2, "a weight needs two dimensions, got {}", data);
  if (scales.defined()) check_scales(data, scales);
  Weight weight;
  weight.dtype = data.dtype();
  weight.out_features = data.size(0);
  weight.in_features = data.size(1);
  weight.data = std::move(data);
  weight.scales = std::move(scales);
  return weight;
}

Tensor expand_scaled(const Tensor& codes, const Tensor& scales, DType dtype) {
  check_scales(codes, scales);
  const Tensor host = codes.to(kCpuDevice).contiguous(), factors = scales.to(kCpuDevice);
  const int64_t n = codes.size(0), k = codes.size(1);
  Tensor out = Tensor::empty({n, k}, dtype);
  compute_pool().parallel_for(
      n, std::max<int64_t>(1, 16384 / std::max<int64_t>(k, 1)), [&](int64_t begin, int64_t end) {
        std::vector<float> row(static_cast<size_t>(k));
        for (int64_t r = begin; r < end; ++r) {
          dequantize_row(host.dtype(), host.raw() + r * k, row.data(), k);
          const bool blocks = factors.dims() == 2;
          const float* factor =
              factors.data<float>() + (blocks ? r / kFp8Block * factors.size(1) : r);
          for (int64_t i = 0; i < k; ++i)
            row[static_cast<size_t>(i)] *= factor[blocks ? i / kFp8Block : 0];
          quantize_row(dtype, row.data(), out.raw() + r * row_bytes(dtype, k), k);
        }
      });
  return out;
}

void quantize_fp8(const Tensor& x, int64_t group, Tensor& codes, Tensor& scales) {
  check(x.dims() == 2 && is_float(x.dtype()) && (group == 0 || group == kFp8Block),
        "quantize_fp8: x is {}, the group {}", x, group);
  const Shape wanted = group == 0 ? Shape{x.size(0)} : Shape{num_blocks(x.size(1)), x.size(0)};
  check(codes.dtype() == DType::kF8E4M3 && codes.shape() == x.shape() && codes.is_contiguous() &&
            scales.dtype() == DType::kF32 && scales.shape() == wanted && scales.is_contiguous(),
        "quantize_fp8: codes are {} and scales {} for x {}", codes, scales, x);
  if (x.numel() > 0) quantize_fp8_kernel(x.device(), x, group, codes, scales);
}

void quantize_weight(Weight& weight, Device device) {
  check(weight.data.defined() && is_float(weight.dtype), "weights in {} cannot be quantised to fp8",
        dtype_name(weight.dtype));
  const Tensor data = weight.data.to(device);
  Tensor codes = Tensor::empty(data.shape(), DType::kF8E4M3, device);
  Tensor scales = Tensor::empty({data.size(0)}, DType::kF32, device);
  quantize_fp8(data, 0, codes, scales);
  weight = Weight::from(std::move(codes), std::move(scales));
}

void prepare_weight(Weight& weight, Device device, DType compute, bool keep_data) {
  check(weight.data.defined(), "prepare_weight: the weight has no data");
  check(is_float(compute), "prepare_weight: cannot compute in {}", dtype_name(compute));
  const bool on_cpu = device.type == DeviceType::kCpu;
  if (weight.scales.defined() && (on_cpu || compute == DType::kF32)) {
    weight.data = expand_scaled(weight.data, weight.scales, compute);
    weight.scales = {};
  } else if (!on_cpu && !weight.scales.defined() &&
             (is_float(weight.dtype) || compute == DType::kF32)) {
    weight.data = weight.data.to(compute);  // conversion is the host's business
  }
  weight.dtype = weight.data.dtype();
  weight.data = weight.data.to(device);
  if (weight.scales.defined()) weight.scales = weight.scales.to(device);
  prepare_weight_kernel(device, weight, compute, keep_data);
}

}  // namespace reft
