#include "ops/weight.h"

namespace reft {

constinit Kernel<void(Weight& weight, DType compute, bool keep_data)> prepare_weight_kernel{
    "prepare_weight"};

Weight Weight::from(Tensor data) {
  check(data.defined() && data.dims() == 2, "a weight needs two dimensions, got {}", data);
  Weight weight;
  weight.dtype = data.dtype();
  weight.out_features = data.size(0);
  weight.in_features = data.size(1);
  weight.data = std::move(data);
  return weight;
}

void prepare_weight(Weight& weight, Device device, DType compute, bool keep_data) {
  check(weight.data.defined(), "prepare_weight: the weight has no data");
  check(is_float(compute), "prepare_weight: cannot compute in {}", dtype_name(compute));
  if (device.type != DeviceType::kCpu && !weight.scales.defined()) {
    weight.data = weight.data.to(compute);  // conversion is the host's business
    weight.dtype = compute;
  }
  weight.data = weight.data.to(device);
  if (weight.scales.defined()) weight.scales = weight.scales.to(device);
  prepare_weight_kernel(device, weight, compute, keep_data);
}

}  // namespace reft
